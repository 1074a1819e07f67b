//! What stays when an engine dies, how the next one takes over, and what detaching leaves.

mod common;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use common::{Instance, Net, eventually, privileged, run, veth};
use conntrack::AddressKind;
use engine::device::sys::ethtool::{self, Offload};
use engine::device::sys::link::{self, XdpMode};
use engine::device::sys::socket::CopyMode;
use engine::device::xdp::{XdpConfig, XdpDevice, XdpInterface};
use engine::steering::{
    SteeredAddress, SteeredInterface, Steering, SteeringError, SteeringSize, detach_all,
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const SIZE: SteeringSize = SteeringSize {
    interfaces_max: 4,
    addresses_max: 2,
    locals_max: 64,
    prefixes_max: 64,
};

/// A client behind a gateway that forwards, and a server outside that knows the way back: without a
/// steering program, the client's packets reach the server raw.
struct World {
    client: Net,
    gateway: Net,
    server: Net,
    instance: Instance,
}

impl World {
    fn new() -> World {
        let (client, gateway, server) = (Net::new("client"), Net::new("gw"), Net::new("server"));
        veth(&gateway, "in0", &client, "c0", 1);
        veth(&gateway, "out0", &server, "s0", 1);
        client.ip(&format!("addr add {CLIENT}/24 dev c0"));
        client.ip(&format!("route add default via {GATEWAY}"));
        gateway.ip(&format!("addr add {GATEWAY}/24 dev in0"));
        gateway.ip(&format!("addr add {OUTSIDE}/24 dev out0"));
        server.ip(&format!("addr add {SERVER}/24 dev s0"));
        server.ip(&format!("route add default via {OUTSIDE}"));
        gateway.sysctl("ipv4/ip_forward", "1");
        World {
            client,
            gateway,
            server,
            instance: Instance::new(),
        }
    }

    fn open(&self) -> Steering {
        self.gateway.enter(|| open(&self.instance.0, SIZE).unwrap())
    }

    fn attached(&self) -> Option<(u32, XdpMode)> {
        self.gateway.enter(|| {
            let there = link::attached_xdp(link::index("in0").unwrap()).unwrap()?;
            Some((there.program, there.mode.unwrap()))
        })
    }

    /// Does a datagram from the client reach an address?
    fn reaches(&self, net: &Net, address: Ipv4Addr) -> bool {
        let receiver = net.udp(address, 0);
        let sender = self.client.udp(CLIENT, 0);
        let port = receiver.local_addr().unwrap().port();
        sender.send_to(b"hello", (address, port)).unwrap();
        receiver.recv_from(&mut [0; 16]).is_ok()
    }

    fn host_is_reached(&self) -> bool {
        self.reaches(&self.gateway, GATEWAY)
    }

    fn server_is_reached_raw(&self) -> bool {
        self.reaches(&self.server, SERVER)
    }

    /// Starts this test program again as an engine, as `ip netns exec` does, and waits until it
    /// serves.
    fn spawn_engine(&self) -> Engine {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.gateway.name])
            .arg(program)
            .args(["--exact", "engine_in_a_process_of_its_own", "--nocapture"])
            .env(CHILD, &self.instance.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let serving = output
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains(SERVING));
        assert!(serving, "the engine ended early");
        Engine(child)
    }
}

struct Engine(Child);

impl Engine {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CHILD: &str = "EGRET_TEST_ENGINE";
const SERVING: &str = "serving now";

fn open(instance: &str, size: SteeringSize) -> Result<Steering, SteeringError> {
    let mut steering = Steering::open(instance, size, [0x5a; 6])?;
    let interface = SteeredInterface {
        ifindex: link::index("in0").unwrap(),
        mac: link::mac("in0").unwrap(),
        internal: true,
        external: false,
    };
    steering.set_interfaces(&[interface])?;
    let addr = OUTSIDE;
    steering.set_externals(&[SteeredAddress {
        addr,
        kind: AddressKind::Shared,
        slot: 0,
    }])?;
    steering.set_internals(&["10.1.0.0/16".parse().unwrap()])?;
    steering.set_locals(&[GATEWAY, OUTSIDE])?;
    Ok(steering)
}

fn device() -> XdpDevice {
    let ifindex = link::index("in0").unwrap();
    let interfaces = vec![XdpInterface {
        name: "in0".to_owned(),
        ifindex,
        queues: 1,
    }];
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

/// Not a test of its own: the engine that the tests below start and kill.
#[test]
fn engine_in_a_process_of_its_own() {
    let Ok(instance) = std::env::var(CHILD) else {
        return;
    };
    let mut steering = open(&instance, SIZE).unwrap();
    let device = device();
    for (interface, queue, socket) in device.sockets() {
        steering.set_socket(interface, queue, socket).unwrap();
    }
    steering.owned()[7].store(0xabcd, Ordering::Relaxed);
    steering.attach("in0", XdpMode::Native).unwrap();
    println!("{SERVING}");
    // Until killed, or the parent is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_killed_engine_leaves_internal_traffic_dropped_and_the_host_alone() {
    if !privileged("a_killed_engine") {
        return;
    }
    let world = World::new();
    assert!(
        world.host_is_reached() && world.server_is_reached_raw(),
        "the control"
    );
    let engine = world.spawn_engine();
    assert!(world.host_is_reached() && !world.server_is_reached_raw());
    engine.kill();
    let (first, _) = world
        .attached()
        .expect("the pinned link outlives the process");
    assert!(world.host_is_reached() && !world.server_is_reached_raw());

    // The next engine: same maps, one step.
    let mut steering = world.open();
    assert_eq!(
        steering.owned()[7].load(Ordering::Relaxed),
        0xabcd,
        "the map was reused"
    );
    assert_eq!(steering.mark(), [0x5a; 6]);
    let before = steering.counters().unwrap();
    assert!(
        before.unserved > 0 && before.internal >= before.unserved,
        "{before:?}"
    );
    let device = world.gateway.enter(|| {
        let device = device();
        for (interface, queue, socket) in device.sockets() {
            steering.set_socket(interface, queue, socket).unwrap();
        }
        steering.attach("in0", XdpMode::Native).unwrap();
        device
    });
    let (second, mode) = world.attached().unwrap();
    assert_ne!(first, second, "another program");
    assert_eq!(mode, XdpMode::Native);
    assert!(world.host_is_reached() && !world.server_is_reached_raw());
    let after = steering.counters().unwrap();
    assert_eq!(after.unserved, before.unserved, "served again: {after:?}");
    assert!(device.ready() > 0);
    steering.detach().unwrap();
    assert_eq!(world.attached(), None);
    assert!(world.host_is_reached() && world.server_is_reached_raw());
}

#[test]
fn take_over_never_lets_a_packet_out_raw() {
    if !privileged("take_over") {
        return;
    }
    let world = World::new();
    let receiver = world.server.udp(SERVER, 9000);
    let sender = world.client.udp(CLIENT, 0);
    let mut steering = world.open();
    world
        .gateway
        .enter(|| steering.attach("in0", XdpMode::Native).unwrap());
    let send = |sender: &UdpSocket| {
        for _ in 0..50 {
            sender.send_to(b"secret", (SERVER, 9000)).unwrap();
        }
    };
    send(&sender);
    for round in 0..10_u16 {
        drop(steering);
        send(&sender);
        // Every other time with maps of another size.
        let size = SteeringSize {
            addresses_max: 2 + round % 2,
            ..SIZE
        };
        steering = world.gateway.enter(|| {
            let mut steering = open(&world.instance.0, size).unwrap();
            send(&sender);
            steering.attach("in0", XdpMode::Native).unwrap();
            steering
        });
        assert_eq!(
            steering.owned().len(),
            usize::from(size.addresses_max) * 3072
        );
        send(&sender);
    }
    assert!(
        receiver.recv_from(&mut [0; 16]).is_err(),
        "nothing came through"
    );
    steering.detach().unwrap();
    send(&sender);
    assert!(receiver.recv_from(&mut [0; 16]).is_ok(), "the control");
}

#[test]
fn detaching_leaves_nothing() {
    if !privileged("detaching_leaves_nothing") {
        return;
    }
    let world = World::new();
    let offloads = |net: &Net, name: &str| {
        net.enter(|| Offload::ALL.map(|which| ethtool::offload(name, which).unwrap()))
    };
    let links = world.gateway.ip("-d link");
    let (near, far) = (
        offloads(&world.gateway, "in0"),
        offloads(&world.client, "c0"),
    );
    let dir = format!("/run/egret/{}", world.instance.0);
    let mut steering = world.open();
    for mode in [XdpMode::Native, XdpMode::Generic, XdpMode::Native] {
        world
            .gateway
            .enter(|| steering.attach("in0", mode).unwrap());
        assert_eq!(world.attached().unwrap().1, mode, "the mode was changed");
        assert!(!world.server_is_reached_raw());
    }
    assert!(Path::new(&dir).join("bpf").exists());
    steering.detach().unwrap();
    assert_eq!(world.attached(), None);
    assert!(!Path::new(&dir).exists());
    assert!(!run("cat /proc/self/mounts").contains(&dir));
    assert_eq!(
        (near, far),
        (
            offloads(&world.gateway, "in0"),
            offloads(&world.client, "c0")
        )
    );
    assert_eq!(links, world.gateway.ip("-d link"));
    steering.detach().unwrap();
    drop(steering);
    assert_eq!(detach_all(&world.instance.0).unwrap(), 0);
}

#[test]
fn what_a_crash_left_is_removed_by_detach_all() {
    if !privileged("what_a_crash_left") {
        return;
    }
    let world = World::new();
    let engine = world.spawn_engine();
    assert!(matches!(
        detach_all(&world.instance.0),
        Err(SteeringError::InUse(_))
    ));
    engine.kill();
    assert!(world.attached().is_some() && !world.server_is_reached_raw());
    // From a mount namespace of its own, too.
    let instance = &world.instance.0;
    let dir = format!("/run/egret/{instance}");
    assert!(
        run("cat /proc/self/mounts").contains(&dir),
        "mounted where everybody sees it"
    );
    eventually("the lock to be free", || {
        detach_all(instance).is_ok_and(|freed| freed == 1)
    });
    assert!(world.attached().is_none() && world.server_is_reached_raw());
    assert!(!Path::new(&dir).exists());
    assert!(matches!(
        detach_all("../etc"),
        Err(SteeringError::BadInstance(_))
    ));
}

#[test]
fn the_program_of_somebody_else_is_left_alone() {
    if !privileged("somebody_else") {
        return;
    }
    let world = World::new();
    let mut steering = world.open();
    world
        .gateway
        .enter(|| steering.attach("in0", XdpMode::Generic).unwrap());
    let (program, _) = world.attached().unwrap();
    let other = Instance::new();
    for mode in [XdpMode::Generic, XdpMode::Native] {
        let error = world.gateway.enter(|| {
            let mut second = open(&other.0, SIZE).unwrap();
            second.attach("in0", mode).unwrap_err()
        });
        let text = error.to_string();
        assert!(matches!(error, SteeringError::Occupied { program: p, .. } if p == program));
        assert!(
            text.contains("in0") && text.contains(&format!("id {program}")),
            "{text}"
        );
    }
    assert_eq!(world.attached().unwrap().0, program);
    let twice = world
        .gateway
        .enter(|| open(&world.instance.0, SIZE).unwrap_err());
    assert!(matches!(twice, SteeringError::InUse(_)), "{twice}");
}

#[test]
fn pins_of_interfaces_that_are_gone_do_not_block() {
    if !privileged("pins_of_interfaces") {
        return;
    }
    let world = World::new();
    let mut steering = world.open();
    world
        .gateway
        .enter(|| steering.attach("in0", XdpMode::Native).unwrap());
    drop(steering);
    let ifindex = world.gateway.enter(|| link::index("in0").unwrap());
    world.gateway.ip("link del in0");
    // Another interface of the same name and index.
    world.gateway.ip(&format!(
        "link add in0 index {ifindex} type veth peer name in1"
    ));
    world.gateway.ip("link set in0 up");
    let mut steering = world.open();
    world
        .gateway
        .enter(|| steering.attach("in0", XdpMode::Native).unwrap());
    assert!(world.attached().is_some());
    assert!(
        world
            .gateway
            .enter(|| steering.attach("none", XdpMode::Native))
            .is_err()
    );
    steering.detach().unwrap();
    assert!(world.attached().is_none());
}

/// In tc the program stays when its engine dies, is replaced in one step by the next one's, and goes
/// when it is detached: by a link, and by a filter as before Linux 6.6.
fn stays_in_tc(test: &str, tcx: bool) {
    if !privileged(test) {
        return;
    }
    let world = World::new();
    let filters = || world.gateway.exec("tc filter show dev in0 ingress");
    assert!(world.server_is_reached_raw());
    for _ in 0..2 {
        let mut steering = world.open();
        assert!(world.gateway.enter(|| {
            steering.attach_tc("in0", tcx).unwrap();
            steering.attach_tc("in0", tcx).is_ok()
        }));
        drop(steering);
        let shown = filters().matches("handle 0x1 egret_steer_tc").count();
        assert_eq!(shown, usize::from(!tcx), "{}", filters());
        assert!(!world.server_is_reached_raw(), "nobody guards the inside");
        assert!(world.host_is_reached());
    }
    let count = world
        .gateway
        .enter(|| detach_all(&world.instance.0).unwrap());
    assert_eq!(count, 1);
    assert_eq!(filters().trim(), "");
    assert!(world.server_is_reached_raw());
}

#[test]
fn a_tcx_link_outlives_its_engine() {
    stays_in_tc("a_tcx_link_outlives_its_engine", true);
}

#[test]
fn a_filter_outlives_its_engine() {
    stays_in_tc("a_filter_outlives_its_engine", false);
}
