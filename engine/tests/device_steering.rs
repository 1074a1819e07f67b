//! The steering program, rule by rule, run by the kernel on frames that never touch a wire.

mod common;

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use common::frames::{ethernet, icmp, ipv4, tcp, udp};
use common::{Instance, Net, privileged, unique, veth};
use conntrack::AddressKind;
use engine::device::sys::link;
use engine::device::sys::socket::CopyMode;
use engine::device::sys::tap::Tap;
use engine::device::xdp::{XdpConfig, XdpDevice, XdpInterface};
use engine::steering::{
    Judgement, SteeredAddress, SteeredInterface, Steering, SteeringCounters, SteeringSize,
};

const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
const INSIDE_2: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 7);
const REMOTE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SLOT: u16 = 1;

/// A gateway with an interface of each role; sockets serve queue 0 of each, not queue 1.
struct Bench {
    steering: Steering,
    interfaces: [(u32, [u8; 6]); 3],
    _device: XdpDevice,
    /// The same in tc: a way to the engine for each interface.
    doors: Vec<Tap>,
    /// Every frame is judged in tc, too.
    compares_tc: bool,
}

const INTERNAL: usize = 0;
const EXTERNAL: usize = 1;
const ONE_ARM: usize = 2;

impl Bench {
    fn new(instance: &str) -> Bench {
        let size = SteeringSize {
            addresses_max: 4,
            ..SteeringSize::default()
        };
        let mut steering = Steering::open(instance, size, [0xff; 6]).unwrap();
        let names = ["in0", "out0", "arm0"];
        let interfaces = names.map(|name| (link::index(name).unwrap(), link::mac(name).unwrap()));
        let served = |(number, role): (usize, (bool, bool))| {
            let (ifindex, mac) = interfaces[number];
            SteeredInterface {
                ifindex,
                mac,
                internal: role.0,
                external: role.1,
            }
        };
        let roles = [(true, false), (false, true), (true, true)];
        let served: Vec<_> = roles.into_iter().enumerate().map(served).collect();
        steering.set_interfaces(&served).unwrap();
        let shared = SteeredAddress {
            addr: HOST,
            kind: AddressKind::Shared,
            slot: SLOT,
        };
        let own = SteeredAddress {
            addr: OWN,
            kind: AddressKind::Own,
            slot: 0,
        };
        steering.set_externals(&[shared, own]).unwrap();
        steering
            .set_internals(&["10.1.0.0/16".parse().unwrap()])
            .unwrap();
        steering
            .set_bypasses(&["10.42.0.0/16".parse().unwrap()])
            .unwrap();
        steering.set_locals(&[HOST, GATEWAY]).unwrap();
        let config = XdpConfig {
            interfaces: names
                .iter()
                .zip(interfaces)
                .map(|(name, (ifindex, _))| XdpInterface {
                    name: (*name).to_owned(),
                    ifindex,
                    queues: 1,
                })
                .collect(),
            worker: 0,
            workers: 1,
            mode: CopyMode::Copy,
            slots_max: 1024,
        };
        let device = XdpDevice::open(&config).unwrap();
        for (interface, queue, socket) in device.sockets() {
            steering.set_socket(interface, queue, socket).unwrap();
        }
        let door = |number: usize| Tap::create(&format!("door{number}")).unwrap();
        let doors: Vec<Tap> = (0..names.len()).map(door).collect();
        for (number, door) in doors.iter().enumerate() {
            steering.set_door(number, door).unwrap();
        }
        Bench {
            steering,
            interfaces,
            _device: device,
            doors,
            compares_tc: true,
        }
    }

    fn own(&self, protocol: usize, port: u16) {
        let word = usize::from(SLOT) * 3072 + protocol * 1024 + usize::from(port) / 64;
        self.steering.owned()[word].fetch_or(1 << (port % 64), Ordering::Relaxed);
    }

    /// What becomes of an IPv4 packet that arrives on an interface, on a queue with a socket and on
    /// one without.
    fn packet(&self, on: usize, packet: &[u8]) -> (Judgement, Judgement) {
        let (_, mac) = self.interfaces[on];
        self.frame(on, &ethernet(mac, PEER, 0x0800, packet))
    }

    fn frame(&self, on: usize, frame: &[u8]) -> (Judgement, Judgement) {
        let (ifindex, _) = self.interfaces[on];
        let served = self.steering.judge(ifindex, 0, frame).unwrap();
        let unserved = self.steering.judge(ifindex, 1, frame).unwrap();
        // For a try in tc the kernel takes none that is shorter than its IP header.
        let is_ipv6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
        let shortest = if is_ipv6 { 54 } else { 34 };
        if !self.compares_tc || frame.len() < shortest {
            return (served, unserved);
        }
        let in_tc = self.steering.judge_tc(ifindex, frame).unwrap();
        let wanted = if self.doors.is_empty() {
            unserved
        } else {
            served
        };
        assert_eq!(in_tc, wanted, "tc judges otherwise: {frame:02x?}");
        (served, unserved)
    }
}

const PASS: (Judgement, Judgement) = (Judgement::Pass, Judgement::Pass);
const DROP: (Judgement, Judgement) = (Judgement::Drop, Judgement::Drop);
/// To the engine; without a socket dropped.
const ENGINE: (Judgement, Judgement) = (Judgement::Engine, Judgement::Drop);
/// To the engine; without a socket passed.
const ENGINE_OR_PASS: (Judgement, Judgement) = (Judgement::Engine, Judgement::Pass);

/// Runs a test in a namespace with three interfaces.
fn with_bench(test: &str, work: impl FnOnce(&mut Bench) + Send) {
    if !privileged(test) {
        return;
    }
    let (gateway, peer) = (Net::new("gw"), Net::new("peer"));
    for name in ["in0", "out0", "arm0"] {
        veth(&gateway, name, &peer, &format!("p{}", unique()), 2);
    }
    let instance = Instance::new();
    gateway.enter(|| work(&mut Bench::new(&instance.0)));
}

const MORE: u16 = 0x2000;

#[test]
fn rule_1_what_is_not_ipv4_to_us_passes() {
    with_bench("rule_1", |bench| {
        let (_, mac) = bench.interfaces[ONE_ARM];
        let packet = ipv4(17, INSIDE, REMOTE, 0, &udp(5000, 53, b"x"));
        assert_eq!(
            bench.packet(ONE_ARM, &packet),
            ENGINE,
            "the control: else a good packet"
        );
        let mark = bench.steering.mark();
        assert_eq!(mark[0] & 3, 2, "local and unicast");
        assert_eq!(
            bench.frame(ONE_ARM, &ethernet(mac, mark, 0x0800, &packet)),
            PASS
        );
        for kind in [0x0806, 0x86dd, 0x88cc, 0x8100, 0x88a8] {
            assert_eq!(
                bench.frame(ONE_ARM, &ethernet(mac, PEER, kind, &packet)),
                PASS,
                "{kind:x}"
            );
        }
        let mut tagged = vec![0, 5, 8, 0];
        tagged.extend_from_slice(&packet);
        assert_eq!(
            bench.frame(ONE_ARM, &ethernet(mac, PEER, 0x8100, &tagged)),
            PASS
        );
        // The kernel takes a tag of priority only for none: not past the program with it.
        bench.compares_tc = false;
        let local = ipv4(17, REMOTE, HOST, 0, &udp(53, 22, b"x"));
        for (packet, wanted) in [(&packet, DROP), (&local, PASS)] {
            for (kind, tci) in [(0x8100, [0, 0]), (0x8100, [0xe0, 0]), (0x88a8, [0x10, 0])] {
                let mut tagged = vec![tci[0], tci[1], 8, 0];
                tagged.extend_from_slice(packet);
                let frame = ethernet(mac, PEER, kind, &tagged);
                assert_eq!(bench.frame(ONE_ARM, &frame), wanted, "{kind:x} {tci:x?}");
            }
        }
        // One in the other is none to the kernel either; inside a VLAN's it is that VLAN's.
        for (outer, wanted) in [([0, 0], DROP), ([0, 5], PASS)] {
            let mut tagged = vec![outer[0], outer[1], 0x81, 0, 0x20, 0, 8, 0];
            tagged.extend_from_slice(&packet);
            let frame = ethernet(mac, PEER, 0x8100, &tagged);
            assert_eq!(bench.frame(ONE_ARM, &frame), wanted, "{outer:x?}");
        }
        bench.compares_tc = true;
        for other in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], PEER] {
            assert_eq!(
                bench.frame(ONE_ARM, &ethernet(other, PEER, 0x0800, &packet)),
                PASS
            );
        }
    });
}

#[test]
fn rule_2_own_addresses_are_the_engines() {
    with_bench("rule_2", |bench| {
        let packets = [
            ipv4(17, REMOTE, OWN, 0, &udp(53, 5000, b"x")),
            ipv4(6, REMOTE, OWN, 0, &tcp(443, 5000)),
            ipv4(1, REMOTE, OWN, 0, &icmp(8, 0, 7, b"ping")),
            ipv4(17, REMOTE, OWN, MORE, &udp(53, 5000, b"first....")),
            ipv4(17, REMOTE, OWN, 185, b"later fragment"),
            ipv4(47, REMOTE, OWN, 0, b"gre"),
            ipv4(17, REMOTE, OWN, 0, b""),
        ];
        for (number, packet) in packets.iter().enumerate() {
            assert_eq!(bench.packet(EXTERNAL, packet), ENGINE, "packet {number}");
            assert_eq!(bench.packet(ONE_ARM, packet), ENGINE, "packet {number}");
        }
        assert_eq!(
            bench.packet(INTERNAL, &ipv4(6, INSIDE, OWN, 0, &tcp(1, 2))),
            ENGINE,
            "hairpin"
        );
    });
}

#[test]
fn rule_3_a_shared_address_is_divided_by_port() {
    with_bench("rule_3", |bench| {
        bench.own(0, 40_000);
        bench.own(1, 40_001);
        bench.own(2, 40_002);
        bench.own(0, 65_535);
        let to = |protocol, body: &[u8]| ipv4(protocol, REMOTE, HOST, 0, body);
        let table = [
            (to(6, &tcp(443, 40_000)), ENGINE),
            (to(6, &tcp(443, 65_535)), ENGINE),
            (to(17, &udp(443, 40_001, b"")), ENGINE),
            (to(1, &icmp(0, 0, 40_002, b"echo reply")), ENGINE),
            (to(1, &icmp(14, 0, 40_002, &[0; 12])), ENGINE),
            // The neighbours of those bits, and the same ports of another protocol.
            (to(6, &tcp(443, 39_999)), PASS),
            (to(6, &tcp(443, 40_001)), PASS),
            (to(6, &tcp(40_000, 443)), PASS),
            (to(6, &tcp(443, 65_534)), PASS),
            (to(17, &udp(443, 40_000, b"")), PASS),
            (to(1, &icmp(0, 0, 40_000, b"")), PASS),
            // What asks is for the host, whatever its identifier.
            (to(1, &icmp(8, 0, 40_002, b"ping")), PASS),
            (to(1, &icmp(13, 0, 40_002, &[0; 12])), PASS),
            (to(1, &icmp(5, 0, 40_002, b"redirect")), PASS),
            // Other protocols and what is cut short.
            (to(47, b"gre.gre."), PASS),
            (to(132, &tcp(443, 40_000)), PASS),
            (to(6, &[1, 0xbb, 0x9c]), PASS),
            (to(1, &[0, 0, 0, 0]), PASS),
        ];
        for (number, (packet, expected)) in table.iter().enumerate() {
            assert_eq!(bench.packet(EXTERNAL, packet), *expected, "packet {number}");
        }
        bench.steering.owned()[usize::from(SLOT) * 3072 + 40_000 / 64].store(0, Ordering::Relaxed);
        assert_eq!(bench.packet(EXTERNAL, &table[0].0), PASS, "given back");
    });
}

#[test]
fn rule_3_header_options_move_the_ports() {
    with_bench("rule_3_options", |bench| {
        bench.own(0, 40_000);
        for words in [6_u8, 10, 15] {
            let mut packet = ipv4(6, REMOTE, HOST, 0, &[]);
            packet[0] = 0x40 | words;
            packet.resize(usize::from(words) * 4, 1);
            packet.extend_from_slice(&tcp(443, 40_000));
            assert_eq!(bench.packet(EXTERNAL, &packet), ENGINE, "{words} words");
        }
    });
}

#[test]
fn rule_3_icmp_errors_go_by_what_they_are_about() {
    with_bench("rule_3_errors", |bench| {
        bench.own(0, 40_000);
        bench.own(1, 40_001);
        bench.own(2, 40_002);
        let error =
            |kind: u8, embedded: &[u8]| ipv4(1, REMOTE, HOST, 0, &icmp(kind, 0, 0, embedded));
        let left = |protocol, fragment, body: &[u8]| ipv4(protocol, HOST, REMOTE, fragment, body);
        for kind in [3, 11, 12] {
            let about = [
                (left(6, 0, &tcp(40_000, 443)[..8]), ENGINE),
                (left(17, 0, &udp(40_001, 53, b"")), ENGINE),
                (left(1, 0, &icmp(8, 0, 40_002, b"")), ENGINE),
                (left(6, 0x4000, &tcp(40_000, 443)[..8]), ENGINE),
                (left(17, MORE, &udp(40_001, 53, b"")), ENGINE),
                (left(6, 0, &tcp(40_001, 443)[..8]), PASS),
                (left(6, 0, &tcp(443, 40_000)[..8]), PASS),
                (left(17, 0, &udp(40_000, 53, b"")), PASS),
                (left(1, 0, &icmp(0, 0, 40_002, b"")), PASS),
                (left(17, 185, &udp(40_001, 53, b"")), PASS),
                (left(47, 0, &udp(40_001, 53, b"")), PASS),
                (ipv4(6, OWN, REMOTE, 0, &tcp(40_000, 443)[..8]), PASS),
                (left(6, 0, &tcp(40_000, 443)[..3]), PASS),
                (left(6, 0, b"")[..12].to_vec(), PASS),
            ];
            for (number, (embedded, expected)) in about.iter().enumerate() {
                let packet = error(kind, embedded);
                assert_eq!(
                    bench.packet(EXTERNAL, &packet),
                    *expected,
                    "{kind}, packet {number}"
                );
            }
        }
        let mut options = left(6, 0, &[]);
        options[0] = 0x47;
        options.extend_from_slice(&[1; 8]);
        options.extend_from_slice(&tcp(40_000, 443)[..8]);
        assert_eq!(bench.packet(EXTERNAL, &error(3, &options)), ENGINE);
        options[0] = 0x44;
        assert_eq!(bench.packet(EXTERNAL, &error(3, &options)), PASS);
    });
}

#[test]
fn rule_3_all_fragments_to_a_shared_address_are_the_engines() {
    with_bench("rule_3_fragments", |bench| {
        let fragments = [
            ipv4(17, REMOTE, HOST, MORE, &udp(53, 5000, b"first....")),
            ipv4(17, REMOTE, HOST, MORE | 185, b"in the middle"),
            ipv4(17, REMOTE, HOST, 185, b"last"),
            ipv4(47, REMOTE, HOST, 185, b"of anything"),
        ];
        for fragment in &fragments {
            assert_eq!(bench.packet(EXTERNAL, fragment), ENGINE_OR_PASS);
        }
        let forged = ipv4(17, INSIDE, HOST, MORE | 185, b"from inside, it says");
        assert_eq!(bench.packet(EXTERNAL, &forged), DROP);
        let whole = ipv4(
            17,
            REMOTE,
            HOST,
            0x4000,
            &udp(53, 5000, b"DF is no fragment"),
        );
        assert_eq!(bench.packet(EXTERNAL, &whole), PASS);
    });
}

#[test]
fn rule_4_internal_sources() {
    with_bench("rule_4", |bench| {
        let from = |source, destination| ipv4(6, source, destination, 0, &tcp(5000, 443));
        for on in [INTERNAL, ONE_ARM] {
            assert_eq!(bench.packet(on, &from(INSIDE, REMOTE)), ENGINE);
            assert_eq!(
                bench.packet(on, &from(INSIDE, GATEWAY)),
                PASS,
                "to the host"
            );
            assert_eq!(
                bench.packet(on, &from(INSIDE, INSIDE_2)),
                PASS,
                "internal to internal"
            );
            assert_eq!(bench.packet(on, &from(INSIDE, POD)), PASS, "bypass");
            assert_eq!(
                bench.packet(on, &from(POD, REMOTE)),
                PASS,
                "not an internal source"
            );
            let fragment = ipv4(17, INSIDE, REMOTE, 185, b"later");
            assert_eq!(bench.packet(on, &fragment), ENGINE);
        }
        assert_eq!(
            bench.packet(EXTERNAL, &from(INSIDE, REMOTE)),
            DROP,
            "spoofed"
        );
        assert_eq!(
            bench.packet(EXTERNAL, &from(INSIDE, GATEWAY)),
            DROP,
            "spoofed"
        );
        assert_eq!(bench.packet(EXTERNAL, &from(REMOTE, GATEWAY)), PASS);
        // The host's own services on the shared address are spared it, too.
        assert_eq!(bench.packet(EXTERNAL, &from(INSIDE, HOST)), DROP, "spoofed");
        assert_eq!(bench.packet(INTERNAL, &from(INSIDE, HOST)), PASS);
        assert_eq!(bench.packet(ONE_ARM, &from(INSIDE, HOST)), PASS);
    });
}

#[test]
fn nothing_goes_straight_from_outside_to_inside() {
    with_bench("uninvited", |bench| {
        let from = |source, destination| ipv4(6, source, destination, 0, &tcp(5000, 443));
        for on in [EXTERNAL, ONE_ARM] {
            assert_eq!(bench.packet(on, &from(REMOTE, INSIDE)), DROP);
            assert_eq!(
                bench.packet(on, &from(POD, INSIDE)),
                PASS,
                "bypass goes both ways"
            );
            assert_eq!(
                bench.packet(on, &from(REMOTE, GATEWAY)),
                PASS,
                "the host itself"
            );
            assert_eq!(bench.packet(on, &from(REMOTE, POD)), PASS);
        }
        assert_eq!(
            bench.packet(INTERNAL, &from(REMOTE, INSIDE)),
            PASS,
            "not from outside"
        );
    });
}

#[test]
fn malformed_packets_go_by_their_addresses() {
    with_bench("malformed", |bench| {
        let bad = |source, destination, first: u8| {
            let mut packet = ipv4(6, source, destination, 0, &tcp(5000, 443));
            packet[0] = first;
            packet
        };
        assert_eq!(bench.packet(EXTERNAL, &bad(REMOTE, OWN, 0x44)), ENGINE);
        assert_eq!(bench.packet(EXTERNAL, &bad(REMOTE, HOST, 0x44)), PASS);
        assert_eq!(bench.packet(INTERNAL, &bad(INSIDE, REMOTE, 0x40)), ENGINE);
        assert_eq!(
            bench.packet(EXTERNAL, &bad(REMOTE, OWN, 0x65)),
            PASS,
            "version 6"
        );
        assert_eq!(
            bench.packet(EXTERNAL, &bad(REMOTE, OWN, 0x45)[..19]),
            PASS,
            "no addresses"
        );
        assert_eq!(bench.packet(EXTERNAL, &[]), PASS);
        // Any length and any header length: the program ends, whatever it says.
        bench.own(0, 443);
        for first in 0x40..=0x4f {
            for length in 0..60 {
                let packet = bad(REMOTE, HOST, first);
                bench.packet(EXTERNAL, &packet[..length.min(packet.len())]);
                let error = ipv4(1, REMOTE, HOST, 0, &icmp(3, 0, 0, &packet));
                bench.packet(EXTERNAL, &error[..(length + 20).min(error.len())]);
            }
        }
    });
}

/// The kernel forgets the doors of a dead engine: then tc does what XDP does without a socket.
#[test]
fn without_doors_tc_falls_back_as_xdp_does() {
    with_bench("without_doors", |bench| {
        let mut doors = std::mem::take(&mut bench.doors);
        let own = ipv4(17, REMOTE, OWN, 0, &udp(53, 5000, b"x"));
        let internal = ipv4(17, INSIDE, REMOTE, 0, &udp(5000, 53, b"x"));
        let fragment = ipv4(17, REMOTE, HOST, MORE, &udp(53, 5000, b"12345678"));
        let (ifindex, mac) = bench.interfaces[ONE_ARM];
        let own_frame = ethernet(mac, PEER, 0x0800, &own);
        let judge = |bench: &Bench| bench.steering.judge_tc(ifindex, &own_frame).unwrap();
        assert_eq!(judge(bench), Judgement::Engine);
        doors.clear();
        common::eventually("the doors to be forgotten", || {
            judge(bench) == Judgement::Drop
        });
        assert_eq!(bench.packet(ONE_ARM, &own), ENGINE);
        assert_eq!(bench.packet(ONE_ARM, &internal), ENGINE);
        assert_eq!(bench.packet(EXTERNAL, &fragment), ENGINE_OR_PASS);
    });
}

#[test]
fn everything_is_counted() {
    with_bench("counted", |bench| {
        bench.compares_tc = false;
        bench.own(0, 40_000);
        let (ifindex, mac) = bench.interfaces[EXTERNAL];
        let before = bench.steering.counters().unwrap();
        let on_external = |packet: &[u8], queue: u32, times: usize| {
            for _ in 0..times {
                let frame = ethernet(mac, PEER, 0x0800, packet);
                bench.steering.judge(ifindex, queue, &frame).unwrap();
            }
        };
        on_external(&ipv4(6, REMOTE, OWN, 0, &tcp(1, 2)), 0, 2);
        on_external(&ipv4(6, REMOTE, HOST, 0, &tcp(1, 40_000)), 0, 3);
        on_external(&ipv4(6, REMOTE, HOST, MORE, &tcp(1, 2)), 0, 4);
        on_external(&ipv4(6, INSIDE, REMOTE, 0, &tcp(1, 2)), 0, 5);
        on_external(&ipv4(6, REMOTE, HOST, 0, &tcp(1, 2)), 0, 6);
        on_external(&ipv4(6, REMOTE, OWN, 0, &tcp(1, 2)), 1, 7);
        on_external(&ipv4(6, REMOTE, INSIDE, 0, &tcp(1, 2)), 0, 2);
        let marked = ethernet(mac, bench.steering.mark(), 0x0800, &[0; 40]);
        bench.steering.judge(ifindex, 0, &marked).unwrap();
        bench.packet(INTERNAL, &ipv4(6, INSIDE, REMOTE, 0, &tcp(1, 2)));
        let after = bench.steering.counters().unwrap();
        assert_eq!(before, SteeringCounters::default());
        let expected = SteeringCounters {
            passed: 6,
            punted: 1,
            own: 9,
            shared: 3,
            fragments: 4,
            internal: 2,
            spoofed: 5,
            unserved: 8,
            uninvited: 2,
        };
        assert_eq!(after, expected);
    });
}

#[test]
fn sets_are_replaced_as_wholes() {
    with_bench("sets", |bench| {
        let from_inside = ipv4(6, INSIDE, REMOTE, 0, &tcp(5000, 443));
        bench
            .steering
            .set_internals(&["10.9.0.0/16".parse().unwrap()])
            .unwrap();
        assert_eq!(bench.packet(INTERNAL, &from_inside), PASS);
        let nets = [
            "10.1.2.0/24".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ];
        bench.steering.set_internals(&nets).unwrap();
        bench.steering.set_internals(&nets).unwrap();
        assert_eq!(bench.packet(INTERNAL, &from_inside), ENGINE);
        bench
            .steering
            .set_bypasses(&["0.0.0.0/0".parse().unwrap()])
            .unwrap();
        assert_eq!(bench.packet(INTERNAL, &from_inside), PASS);
        bench.steering.set_bypasses(&[]).unwrap();
        bench.steering.set_locals(&[REMOTE]).unwrap();
        assert_eq!(bench.packet(INTERNAL, &from_inside), PASS);
        bench.steering.set_locals(&[]).unwrap();
        let as_own = SteeredAddress {
            addr: HOST,
            kind: AddressKind::Own,
            slot: SLOT,
        };
        let to_host = ipv4(6, REMOTE, HOST, 0, &tcp(443, 5));
        assert_eq!(bench.packet(EXTERNAL, &to_host), PASS);
        bench.steering.set_externals(&[as_own]).unwrap();
        assert_eq!(bench.packet(EXTERNAL, &to_host), ENGINE);
        assert_eq!(
            bench.packet(EXTERNAL, &ipv4(6, REMOTE, OWN, 0, &tcp(1, 2))),
            PASS
        );
        bench.steering.set_interfaces(&[]).unwrap();
        assert_eq!(bench.packet(EXTERNAL, &to_host), PASS, "not served");
    });
}

#[test]
fn a_socket_can_be_taken_away() {
    with_bench("socket", |bench| {
        bench.compares_tc = false;
        let packet = ipv4(6, INSIDE, REMOTE, 0, &tcp(5000, 443));
        assert_eq!(bench.packet(INTERNAL, &packet), ENGINE);
        bench.steering.clear_socket(INTERNAL, 0).unwrap();
        bench.steering.clear_socket(INTERNAL, 0).unwrap();
        assert_eq!(bench.packet(INTERNAL, &packet), DROP);
        assert!(bench.steering.clear_socket(INTERNAL, 64).is_err());
    });
}

#[test]
fn the_committed_object_is_built_from_the_committed_source() {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bpf");
    let has = |tool: &str| {
        std::process::Command::new(tool)
            .arg("--version")
            .output()
            .is_ok()
    };
    if !has("clang-14") || !has("llvm-strip-14") {
        common::skip(
            "the_committed_object",
            "clang-14 and llvm-strip-14 are not installed",
        );
        return;
    }
    let built = std::env::temp_dir().join(format!("egret-object-{}.o", std::process::id()));
    common::run(&format!("{sources}/build.sh {}", built.display()));
    let bytes = std::fs::read(&built).unwrap();
    std::fs::remove_file(&built).unwrap();
    assert!(
        bytes == std::fs::read(format!("{sources}/egret.bpf.o")).unwrap(),
        "run build.sh"
    );
}
