//! Frames with priority tags, as they really arrive: in XDP the tag is in the frame, in tc the kernel
//! has put it beside the packet. Both programs must judge them alike, and as the kernel would take them
//! without a program: not at all as tagged.

mod common;

use std::net::{Ipv4Addr, UdpSocket};

use common::frames::{ethernet, ipv4, udp};
use common::{Instance, Net, privileged, veth};
use engine::device::sys::link::{self, XdpMode};
use engine::device::sys::packet::PacketSocket;
use engine::device::sys::tap::Tap;
use engine::steering::{SteeredInterface, Steering, SteeringSize};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const PORT: u16 = 7000;
const SIZE: SteeringSize = SteeringSize {
    interfaces_max: 4,
    addresses_max: 1,
    locals_max: 16,
    prefixes_max: 16,
};
/// Bytes of a frame on the wire, padding included.
const FRAME_LEN: usize = 80;

/// A client behind a gateway that forwards, and a server that knows the way back.
struct World {
    client: Net,
    gateway: Net,
    _server: Net,
    at_host: UdpSocket,
    at_server: UdpSocket,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It reached the host's or the server's socket.
    Arrived,
    /// The program gave it to the engine, or would have.
    Engine,
    /// Neither.
    Nowhere,
}

impl World {
    fn new() -> World {
        let (client, gateway, server) = (Net::new("client"), Net::new("gw"), Net::new("server"));
        veth(&gateway, "in0", &client, "c0", 1);
        veth(&gateway, "out0", &server, "s0", 1);
        client.ip(&format!("addr add {CLIENT}/24 dev c0"));
        gateway.ip(&format!("addr add {GATEWAY}/24 dev in0"));
        gateway.ip(&format!("addr add {OUTSIDE}/24 dev out0"));
        server.ip(&format!("addr add {SERVER}/24 dev s0"));
        server.ip(&format!("route add default via {OUTSIDE}"));
        gateway.sysctl("ipv4/ip_forward", "1");
        World {
            at_host: gateway.udp(GATEWAY, PORT),
            at_server: server.udp(SERVER, PORT),
            client,
            gateway,
            _server: server,
        }
    }

    fn steering(&self, instance: &Instance) -> Steering {
        self.gateway.enter(|| {
            let mut steering = Steering::open(&instance.0, SIZE, [0x5a; 6]).unwrap();
            let interface = SteeredInterface {
                ifindex: link::index("in0").unwrap(),
                mac: link::mac("in0").unwrap(),
                internal: true,
                external: false,
            };
            steering.set_interfaces(&[interface]).unwrap();
            steering
                .set_internals(&["10.1.0.0/16".parse().unwrap()])
                .unwrap();
            steering.set_locals(&[GATEWAY, OUTSIDE]).unwrap();
            steering
        })
    }

    /// Sends a datagram with these tags, each type and contents, as the client.
    fn send(&self, tags: &[(u16, u16)], destination: Ipv4Addr) {
        let to = self.gateway.enter(|| link::mac("in0").unwrap());
        let datagram = ipv4(17, CLIENT, destination, 0, &udp(PORT, PORT, b"tagged"));
        let mut body = datagram;
        let mut kind = 0x0800_u16;
        for &(tag, contents) in tags.iter().rev() {
            let mut tagged = contents.to_be_bytes().to_vec();
            tagged.extend_from_slice(&kind.to_be_bytes());
            tagged.extend_from_slice(&body);
            (body, kind) = (tagged, tag);
        }
        self.client.enter(|| {
            let mut frame = ethernet(to, link::mac("c0").unwrap(), kind, &body);
            frame.resize(FRAME_LEN, 0);
            let frame: [u8; FRAME_LEN] = frame.try_into().unwrap();
            let socket = PacketSocket::open(link::index("c0").unwrap()).unwrap();
            assert_eq!(socket.send(&[frame]).unwrap(), 1);
        });
    }

    /// What becomes of such a datagram; `door`: where the engine would get it in tc.
    fn fate(
        &self,
        steering: &Steering,
        tags: &[(u16, u16)],
        destination: Ipv4Addr,
        door: Option<&Tap>,
    ) -> Fate {
        let before = steering.counters().unwrap();
        self.send(tags, destination);
        let socket = match destination {
            GATEWAY => &self.at_host,
            _ => &self.at_server,
        };
        // Waits, and so the frame has been judged.
        let arrived = socket.recv(&mut [0; 64]).is_ok();
        let engine = match door {
            Some(door) => read_all(door) > 0,
            None => steering.counters().unwrap().unserved > before.unserved,
        };
        match (arrived, engine) {
            (true, false) => Fate::Arrived,
            (false, true) => Fate::Engine,
            (false, false) => Fate::Nowhere,
            (true, true) => panic!("twice: {tags:x?} to {destination}"),
        }
    }
}

/// How many frames have come to a door.
fn read_all(door: &Tap) -> usize {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| nix::unistd::read(door, &mut buffer).ok()).count()
}

const NONE: &[(u16, u16)] = &[];
/// The kernel takes all of these for no tags.
const PRIORITY: [&[(u16, u16)]; 4] = [
    &[(0x8100, 0)],
    &[(0x8100, 0xe000)],
    &[(0x88a8, 0x1000)],
    &[(0x8100, 0), (0x8100, 0x2000)],
];
const TAGGED: [&[(u16, u16)]; 2] = [&[(0x8100, 5)], &[(0x8100, 0xe005)]];

/// The host's own traffic passes under any priority tag, a client's never slips by with one.
fn judged_alike(world: &World, steering: &Steering, door: Option<&Tap>) {
    let fate = |tags, destination| world.fate(steering, tags, destination, door);
    assert_eq!(fate(NONE, GATEWAY), Fate::Arrived);
    assert_eq!(fate(NONE, SERVER), Fate::Engine);
    for tags in PRIORITY {
        let to_server = fate(tags, SERVER);
        assert_ne!(to_server, Fate::Arrived, "{tags:x?} slipped by");
        if door.is_some() {
            assert_eq!(
                to_server,
                Fate::Nowhere,
                "the engine knows no tags: {tags:x?}"
            );
        }
        if let [_] = tags {
            assert_eq!(fate(tags, GATEWAY), Fate::Arrived, "{tags:x?} to the host");
        }
    }
    for tags in TAGGED {
        assert_eq!(fate(tags, GATEWAY), Fate::Nowhere, "{tags:x?}");
        assert_eq!(fate(tags, SERVER), Fate::Nowhere, "{tags:x?}");
    }
}

#[test]
fn frames_with_priority_tags_do_not_slip_by() {
    if !privileged("frames_with_priority_tags_do_not_slip_by") {
        return;
    }
    let world = World::new();
    // The tests can tell: without a program the kernel carries them all.
    for tags in PRIORITY.iter().chain([&NONE]) {
        world.send(tags, SERVER);
        assert!(world.at_server.recv(&mut [0; 64]).is_ok(), "{tags:x?}");
    }
    for offload in ["on", "off"] {
        world
            .gateway
            .exec(&format!("ethtool -K in0 rxvlan {offload}"));
        world
            .client
            .exec(&format!("ethtool -K c0 txvlan {offload}"));
        let instance = Instance::new();
        let mut steering = world.steering(&instance);
        let door = world.gateway.enter(|| {
            let door = Tap::create("door0").unwrap();
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/door0/disable_ipv6", "1");
            link::set_up("door0").unwrap();
            steering.set_door(0, &door).unwrap();
            steering.attach_tc("in0", true).unwrap();
            door
        });
        judged_alike(&world, &steering, Some(&door));
        drop(door);
        for mode in [XdpMode::Native, XdpMode::Generic] {
            world.gateway.enter(|| {
                steering
                    .detach_interface(link::index("in0").unwrap())
                    .unwrap();
                steering.detach_tc(link::index("in0").unwrap()).unwrap();
                steering.attach("in0", mode).unwrap();
            });
            judged_alike(&world, &steering, None);
        }
        world.gateway.enter(|| steering.detach().unwrap());
    }
}
