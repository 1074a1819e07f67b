//! Punting to the real kernel: what was steered to the engine arrives at the host after all.

mod common;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Instance, Net, eventually, privileged, veth};
use conntrack::AddressKind;
use engine::device::Device;
use engine::device::offload::Offload;
use engine::device::sys::link::{self, XdpMode};
use engine::device::sys::socket::CopyMode;
use engine::device::xdp::{XdpConfig, XdpDevice, XdpInterface};
use engine::punt::{Punt, PuntError};
use engine::steering::{SteeredAddress, SteeredInterface, Steering, SteeringSize};

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const PORT: u16 = 40_000;

/// A host with two interfaces, the second of which leads to a client; the host's UDP port 40000 is
/// the engine's by its bitmap.
struct World {
    client: Net,
    host: Net,
    instance: Instance,
}

impl World {
    fn new() -> World {
        let (client, host) = (Net::new("client"), Net::new("host"));
        veth(&host, "other0", &client, "o0", 1);
        veth(&host, "out0", &client, "c0", 1);
        client.ip(&format!("addr add {CLIENT}/24 dev c0"));
        host.ip(&format!("addr add {HOST}/24 dev out0"));
        World {
            client,
            host,
            instance: Instance::new(),
        }
    }

    /// Call it inside the host.
    fn steering(&self) -> Steering {
        let size = SteeringSize {
            addresses_max: 1,
            ..SteeringSize::default()
        };
        let mut steering = Steering::open(&self.instance.0, size, [0x11; 6]).unwrap();
        let interface = |name: &str| SteeredInterface {
            ifindex: link::index(name).unwrap(),
            mac: link::mac(name).unwrap(),
            internal: false,
            external: true,
        };
        steering
            .set_interfaces(&[interface("other0"), interface("out0")])
            .unwrap();
        let shared = SteeredAddress {
            addr: HOST,
            kind: AddressKind::Shared,
            slot: 0,
        };
        steering.set_externals(&[shared]).unwrap();
        steering.owned()[1024 + usize::from(PORT) / 64].store(1 << (PORT % 64), Ordering::Relaxed);
        steering
    }

    fn device(&self) -> XdpDevice {
        let interfaces = ["other0", "out0"]
            .map(|name| XdpInterface {
                name: name.to_owned(),
                ifindex: link::index(name).unwrap(),
                queues: 1,
            })
            .to_vec();
        let (worker, workers, mode) = (0, 1, CopyMode::Auto);
        XdpDevice::open(&XdpConfig {
            interfaces,
            worker,
            workers,
            mode,
            slots_max: 1024,
        })
        .unwrap()
    }
}

/// A socket that receives only what arrives on `interface`. Call it inside the host.
fn host_socket(interface: &str) -> UdpSocket {
    use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    setsockopt(&socket, BindToDevice, &interface.into()).unwrap();
    socket
}

/// What the socket gets within a time.
fn receive(socket: &UdpSocket, limit_ms: u64) -> Option<(Vec<u8>, IpAddr)> {
    let mut buffer = [0; 64];
    let limit = Duration::from_millis(limit_ms);
    socket.set_read_timeout(Some(limit)).unwrap();
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    Some((buffer[..len].to_vec(), from.ip()))
}

fn delivers(test: &str, mode: XdpMode, tcx: bool) {
    if !privileged(test) {
        return;
    }
    let world = World::new();
    let client = world.client.udp(CLIENT, 0);
    let (mut steering, mut device, punt, socket) = world.host.enter(|| {
        let mut steering = world.steering();
        let device = world.device();
        for (interface, queue, socket) in device.sockets() {
            steering.set_socket(interface, queue, socket).unwrap();
        }
        let interfaces = ["other0", "out0"];
        let punt = if tcx {
            Punt::open(&mut steering, "egretp", &interfaces).unwrap()
        } else {
            Punt::open_without_tcx(&mut steering, "egretp", &interfaces).unwrap()
        };
        steering.attach("other0", mode).unwrap();
        steering.attach("out0", mode).unwrap();
        (steering, device, punt, host_socket("out0"))
    });
    let filters = world.host.exec("tc filter show dev egretp1 ingress");
    assert_eq!(filters.contains("egret_punt"), !tcx, "{filters}");
    let mut frames = Vec::new();
    for (round, rp_filter) in ["0", "1", "2"].into_iter().enumerate() {
        for interface in ["all", "out0", "egretp1"] {
            world
                .host
                .sysctl(&format!("ipv4/conf/{interface}/rp_filter"), rp_filter);
        }
        let sent = format!("rp_filter {rp_filter}");
        client.send_to(sent.as_bytes(), (HOST, PORT)).unwrap();
        eventually("the frame to reach the engine", || {
            device.receive(1, &mut frames, 8) > 0
        });
        assert_eq!(receive(&socket, 20), None, "not yet at the host");
        for frame in frames.drain(..) {
            assert!(punt.punt(1, device.bytes(&frame), Offload::NONE));
            device.free(frame);
        }
        let wanted = (sent.into_bytes(), CLIENT.into());
        assert_eq!(receive(&socket, 5_000), Some(wanted));
        // In generic mode the program sees the frame again and lets the mark pass.
        let again = if mode == XdpMode::Generic {
            round as u64 + 1
        } else {
            0
        };
        assert_eq!(steering.counters().unwrap().punted, again);
        assert_eq!(
            device.receive(1, &mut frames, 8),
            0,
            "it does not come round"
        );
    }
    drop(punt);
    // A process that another test starts at this moment has their descriptors until it is on its way.
    eventually("the TAPs to go away", || {
        !world.host.ip("link").contains("egretp")
    });
    steering.detach().unwrap();
    assert!(
        world
            .host
            .exec("tc qdisc show")
            .lines()
            .all(|line| !line.contains("clsact"))
    );
}

#[test]
fn native_mode_delivers_at_every_rp_filter() {
    delivers("native_mode_delivers", XdpMode::Native, true);
}

#[test]
fn generic_mode_delivers_at_every_rp_filter() {
    delivers("generic_mode_delivers", XdpMode::Generic, true);
}

#[test]
fn native_mode_delivers_without_tcx() {
    delivers("native_mode_without_tcx", XdpMode::Native, false);
}

#[test]
fn what_cannot_be_punted_is_counted() {
    if !privileged("what_cannot_be_punted") {
        return;
    }
    let world = World::new();
    world.host.enter(|| {
        let mut steering = world.steering();
        let punt = Punt::open(&mut steering, "egretp", &["other0", "out0"]).unwrap();
        assert!(!punt.punt(0, &[0; 13], Offload::NONE) && !punt.punt(2, &[0; 60], Offload::NONE));
        common::run("ip link set egretp0 down");
        assert!(!punt.punt(0, &[0; 60], Offload::NONE));
        let taken = Punt::open(&mut steering, "egretp", &["other0"]).unwrap_err();
        assert!(matches!(taken, PuntError::Tap(_)) && taken.to_string().contains("egretp0"));
        let unknown = Punt::open(&mut steering, "egretq", &["none"]).unwrap_err();
        assert!(
            unknown.to_string().contains("finding its interface"),
            "{unknown}"
        );
    });
}

#[test]
fn a_tap_is_silent_and_takes_full_frames() {
    if !privileged("a_tap_is_silent") {
        return;
    }
    let world = World::new();
    world.host.ip("link set out0 mtu 3000");
    world.host.enter(|| {
        let mut steering = world.steering();
        let punt = Punt::open(&mut steering, "egretp", &["other0", "out0"]).unwrap();
        assert_eq!(link::mtu("egretp1").unwrap(), 3000);
        assert!(punt.punt(1, &[0; 3014], Offload::NONE));
        let addresses = common::run("ip addr show dev egretp1");
        assert!(!addresses.contains("inet"), "{addresses}");
        let path = "/proc/sys/net/ipv6/conf/egretp1/disable_ipv6";
        assert!(std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1"));
    });
}
