//! Every drop reason: a way to make it count exactly once, and nothing else.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::drop_reason::DropReason;
use engine::link::Links;
use engine::neighbour::HopState;
use engine::route::{RouteFacts, RouteKind};
use engine::wire::build::Envelope;
use engine::wire::samples;
use engine::wire::tcp::{ACK, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, Setup, UPSTREAM, World};

const LAN: usize = 0;
const WAN: usize = 1;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
const DENIED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

const TWO_ARM: &str = "internal = \"10.0.0.0/8\"\ndeny = \"203.0.113.99/32\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";
const OWN_POOL: &str = "[pool]\naddresses = \"198.51.100.20\"\n";
const FORWARD: &str = "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\n\
    target = \"10.77.0.10:443\"\nallow = \"203.0.113.80/32\"\n";

fn world(more: &str) -> World {
    with(more, |_| ())
}

/// A world in which the hops of the usual hosts are known.
fn with(more: &str, change: impl FnOnce(&mut Setup)) -> World {
    let mut setup = Setup {
        sessions_max: 64,
        answer: false,
        ..Setup::default()
    };
    change(&mut setup);
    let world = World::with(&format!("{TWO_ARM}{more}"), setup).unwrap();
    for known in [CLIENT, OTHER, UPSTREAM] {
        world.set_neighbour(known, HopState::Resolved);
    }
    world
}

fn out() -> Envelope {
    Envelope::new(CLIENT, SERVER)
}

fn udp(port: u16) -> Vec<u8> {
    out().udp(port, 53, b"question")
}

/// A world after these frames.
fn after(mut world: World, frames: &[(usize, Vec<u8>)]) -> World {
    for (interface, frame) in frames {
        assert!(world.inject(*interface, frame));
        world.run();
    }
    world
}

/// The same for one frame.
fn one(more: &str, interface: usize, frame: Vec<u8>) -> World {
    after(world(more), &[(interface, frame)])
}

fn fragment(id: u16, flags_offset: u16, bytes: &[u8]) -> Vec<u8> {
    Envelope {
        identification: id,
        flags_offset,
        ..out()
    }
    .frame(17, bytes)
}

/// So many forwards, from port 8440 on.
fn forwards(protocol: &str, count: u16) -> String {
    let forward = |n| {
        let port = 8440 + n;
        format!(
            "[[forwards]]\nprotocol = \"{protocol}\"\nexternal = \"{port}\"\n\
             target = \"10.77.0.10:{port}\"\n"
        )
    };
    (0..count).map(forward).collect()
}

/// Makes the reason count once.
fn provoke(reason: DropReason) -> World {
    use DropReason::*;
    match reason {
        Truncated
        | NotIpv4
        | BadHeader
        | BadChecksum
        | BadLength
        | BadAddress
        | BadTransport
        | UnsupportedProtocol
        | UnsupportedIcmp
        | IcmpBadChecksum
        | IcmpBadEmbedded
        | IcmpBadEmbeddedChecksum
        | SourceRoute
        | FragmentBad => {
            let sample = samples::malformed().into_iter().find(|(_, r)| *r == reason);
            one("", LAN, sample.expect("there is a sample").0.frame)
        }
        IcmpNoSession => {
            let about = Envelope::new(SERVER, CLIENT).udp(53, 20_000, b"");
            one(
                "",
                LAN,
                out().icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, &about, 576),
            )
        }
        TtlExpired => one("", LAN, Envelope { ttl: 1, ..out() }.udp(20_000, 53, b"")),
        FragmentationNeeded => {
            let mut world = world("");
            world.set_mtu(WAN, 1000);
            let big = Envelope {
                flags_offset: ipv4::DONT_FRAGMENT,
                ..out()
            };
            after(world, &[(LAN, big.udp(20_000, 53, &[0; 1000]))])
        }
        FragmentsFull => {
            let full = with("", |setup| setup.fragments.copies_max = 1);
            let mut world = after(
                full,
                &[
                    (LAN, fragment(1, 8, &[1; 8])),
                    (LAN, fragment(2, 8, &[1; 8])),
                ],
            );
            // The copy that was held belongs to another reason: its first fragment comes in time.
            let datagram = out().udp_datagram(20_000, 53, &[1; 64]);
            world.inject(LAN, &fragment(1, ipv4::MORE_FRAGMENTS, &datagram[..64]));
            world.run();
            world
        }
        FragmentTimeout => {
            let mut world = one("", LAN, fragment(1, 8, &[1; 8]));
            world.pass_ms(2_100, 10);
            world
        }
        Spoofed => one("", WAN, udp(20_000)),
        NoSession => one(
            OWN_POOL,
            WAN,
            Envelope::new(STRANGER, OWN).tcp(4000, 22, SYN, b""),
        ),
        Filtered => {
            let eim = format!("{OWN_POOL}[nat]\nmapping = \"eim\"\n");
            let from_stranger = Envelope::new(STRANGER, OWN).udp(53, 20_000, b"");
            after(world(&eim), &[(LAN, udp(20_000)), (WAN, from_stranger)])
        }
        ForwardDenied => one(
            FORWARD,
            WAN,
            Envelope::new(STRANGER, EXTERNAL).tcp(4000, 8443, SYN, b""),
        ),
        PortsExhausted => {
            let one_port = world("[pool]\nports = 20000\n");
            after(one_port, &[(LAN, udp(20_000)), (LAN, udp(20_001))])
        }
        SessionsFull => {
            let frames: Vec<_> = (0..65).map(|n| (LAN, udp(20_000 + n))).collect();
            after(world(""), &frames)
        }
        MappingsFull => mappings_full(),
        InboundLimit => {
            let ask = |n: u16| Envelope::new(SERVER, EXTERNAL).udp(4000 + n, 8440 + n / 8, b"");
            let frames: Vec<_> = (0..17).map(|n| (WAN, ask(n))).collect();
            after(world(&forwards("udp", 3)), &frames)
        }
        MappingInboundLimit => {
            let eif = "[nat]\nmapping = \"eim\"\nfiltering = \"eif\"\n\
                       [limits]\ninbound_sessions_per_mapping = 1\n";
            let call = |n: u16| Envelope::new(STRANGER, OWN).udp(4000 + n, 20_000, b"");
            let frames = [(LAN, udp(20_000)), (WAN, call(0)), (WAN, call(1))];
            after(world(&format!("{OWN_POOL}{eif}")), &frames)
        }
        ForwardInboundLimit => {
            let ask = |n: u16| Envelope::new(SERVER, EXTERNAL).udp(4000 + n, 8440, b"");
            let frames: Vec<_> = (0..9).map(|n| (WAN, ask(n))).collect();
            after(world(&forwards("udp", 1)), &frames)
        }
        HalfOpenLimit => half_open_limit(),
        DestinationDenied => one("", LAN, Envelope::new(CLIENT, DENIED).udp(20_000, 53, b"")),
        RuleDrop => {
            let rule = "[[rules]]\nports = 53\naction = \"drop\"\n";
            one(rule, LAN, udp(20_000))
        }
        SubscriberSessions => quota("sessions_per_subscriber = { udp = 2 }", 3),
        SubscriberPorts => quota("ports_per_subscriber = 1", 2),
        SubscriberRate => quota("mappings_per_second_per_subscriber = 3", 4),
        SubscribersFull => subscribers_full(),
        TcpMidstream => one("", LAN, out().tcp(20_000, 80, ACK, b"data")),
        IcmpUnasked => one("", LAN, out().echo_reply(7, b"")),
        NoExternalAddress => {
            let mut world = world("");
            world.set_external(Vec::new());
            world.pass_ms(1_000, 10);
            after(world, &[(LAN, udp(20_000))])
        }
        Contended => contended(),
        NoRoute => {
            let mut world = world("");
            world.set_routes(vec![RouteFacts {
                prefix: "203.0.113.0/24".parse().unwrap(),
                kind: RouteKind::Unreachable,
                metric: 0,
                mtu: None,
                paths: Vec::new(),
            }]);
            after(world, &[(LAN, udp(20_000))])
        }
        NeighbourUnreachable => {
            let world = world("");
            world.set_neighbour(UPSTREAM, HopState::Failed);
            after(world, &[(LAN, udp(20_000))])
        }
        HoldFull => {
            let world = world("");
            world.set_neighbour(UPSTREAM, HopState::Unresolved);
            let frames: Vec<_> = (0..33).map(|_| (LAN, udp(20_000))).collect();
            after(world, &frames)
        }
        NotOurs => one("", WAN, Envelope::new(SERVER, STRANGER).udp(53, 53, b"")),
        NoFrame => {
            let mut world = with("", |setup| setup.slots = 1);
            world.set_mtu(WAN, 1000);
            world.set_neighbour(UPSTREAM, HopState::Resolved);
            after(world, &[(LAN, out().udp(20_000, 53, &[0; 1200]))])
        }
        TxFull => {
            let mut world = with("", |setup| setup.slots = 2200);
            world.set_transmit_room(0);
            let frames: Vec<_> = (0..2049).map(|_| (LAN, udp(20_000))).collect();
            after(world, &frames)
        }
        PuntFailed => {
            let mut world = world("");
            world.refuse_punts(true);
            after(
                world,
                &[(
                    WAN,
                    Envelope::new(STRANGER, EXTERNAL).tcp(4000, 22, SYN, b""),
                )],
            )
        }
    }
}

/// With `eim`, a UDP mapping may outlive its sessions by a second: then all mappings can be in use
/// while no session is.
fn mappings_full() -> World {
    let mut world = with("[nat]\nmapping = \"eim\"\n", |setup| {
        setup.start = conntrack::Time(1_024_000)
    });
    let frames: Vec<_> = (0..64).map(|n| (LAN, udp(20_000 + n))).collect();
    world = after(world, &frames);
    world.advance_ms(300_001);
    let policy = world.policy();
    for _ in 0..4 {
        world.shared().nat.sweep(&policy, world.now(), 100_000);
    }
    assert_eq!((world.totals().sessions, world.totals().mappings), (0, 64));
    after(world, &[(LAN, udp(20_100))])
}

/// The last of so many flows of a client is more than a quota allows.
fn quota(limit: &str, flows: u16) -> World {
    let frames: Vec<_> = (0..flows).map(|n| (LAN, udp(20_000 + n))).collect();
    let world = after(world(&format!("[limits]\n{limit}\n")), &frames);
    assert_eq!(world.totals().sessions, u64::from(flows) - 1);
    world
}

/// Clients with one flow each, until one finds no room.
fn subscribers_full() -> World {
    let quotas = "[limits]\nports_per_subscriber = 9\n";
    let mut world = with(quotas, |setup| setup.sessions_max = 2048);
    for n in 1..2048_u32 {
        let client = Ipv4Addr::from_bits(0x0a00_0000 + n);
        let frame = Envelope::new(client, SERVER).udp(20_000, 53, b"question");
        world = after(world, &[(LAN, frame)]);
        if world.snapshot().drops().next().is_some() {
            break;
        }
    }
    world
}

/// As if other workers were about to make as many half-open connections as there may be (word 47, see
/// conntrack's layout): none is there yet that could give way.
fn half_open_limit() -> World {
    let mut world = world(&forwards("tcp", 1));
    let half_open = world.words()[47].fetch_add(1000, Ordering::Relaxed);
    assert_eq!(half_open, 0);
    let syn = Envelope::new(SERVER, EXTERNAL).tcp(4000, 8440, SYN, b"");
    world = after(world, &[(WAN, syn)]);
    world.words()[47].fetch_sub(1000, Ordering::Relaxed);
    world
}

/// As if other workers held all locks (words 64 to 1087, see conntrack's layout) for too long.
fn contended() -> World {
    let mut world = world("");
    let locks = &world.words()[64..64 + 1024];
    locks
        .iter()
        .for_each(|lock| lock.store(1, Ordering::Relaxed));
    world = after(world, &[(LAN, udp(20_000))]);
    locks
        .iter()
        .for_each(|lock| lock.store(0, Ordering::Relaxed));
    world
}

#[test]
fn every_drop_reason_has_a_test() {
    for &reason in DropReason::ALL {
        let mut world = provoke(reason);
        let drops: Vec<_> = world.snapshot().drops().collect();
        assert_eq!(drops, [(reason, 1)]);
        world
            .check_invariants()
            .unwrap_or_else(|what| panic!("{}: {what}", reason.name()));
    }
}

/// Each malformed frame counts once, for its reason, on either side, and nothing leaves.
#[test]
fn every_malformed_frame_is_dropped_for_its_reason() {
    for (sample, reason) in samples::malformed() {
        let mut world = one("", LAN, sample.frame);
        let drops: Vec<_> = world.snapshot().drops().collect();
        assert_eq!(drops, [(reason, 1)], "{}", sample.name);
        assert!(world.take_sent(LAN).is_empty() && world.take_sent(WAN).is_empty());
        world.check_invariants().unwrap();
    }
}

/// A hop table that is full for the moment is told from a route that is not there.
#[test]
fn a_full_hop_table_holds_nothing_more() {
    let world = with("", |setup| setup.hops_max = 3);
    let to = |last| Envelope::new(CLIENT, Ipv4Addr::new(198, 51, 100, last)).udp(20_000, 53, b"");
    let mut world = after(world, &[(LAN, to(77))]);
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::HoldFull, 1)]);
    assert!(
        world.take_sent(LAN).is_empty(),
        "nothing to tell the sender"
    );
}

/// Neighbours that never answer, with as many frames as may wait for each: one that answers still
/// gets its frame.
#[test]
fn dead_neighbours_leave_room_for_a_living_one() {
    let mut world = with("", |setup| {
        (setup.slots, setup.sessions_max) = (1024, 1024);
    });
    let to = |last, port| {
        Envelope::new(CLIENT, Ipv4Addr::new(198, 51, 100, last)).udp(port, 53, b"anybody?")
    };
    for last in 60..76 {
        for port in 0..32 {
            assert!(world.inject(LAN, &to(last, 20_000 + port)));
            world.run();
        }
    }
    assert_eq!(world.snapshot().drops().count(), 0, "the queue is full");
    let world = after(world, &[(LAN, to(100, 20_000))]);
    world.set_neighbour(Ipv4Addr::new(198, 51, 100, 100), HopState::Resolved);
    let mut world = after(world, &[]);
    world.run();
    let sent = world.take_sent(WAN);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0][30..34], [198, 51, 100, 100]);
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::HoldFull, 1)]);
    world.check_invariants().unwrap();
}

/// What waits for room in the ring of an interface would wait for ever once that is gone.
#[test]
fn frames_for_an_interface_that_is_gone_do_not_wait() {
    let mut world = with("", |_| {});
    world.set_transmit_room(0);
    world = after(world, &[(LAN, udp(20_000))]);
    assert!(world.worker(0).is_waiting());
    let mut links = Links::clone(&world.shared().links.load());
    links.links[WAN].present = false;
    world.shared().links.store(Arc::new(links));
    world.round();
    assert!(!world.worker(0).is_waiting());
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::NoRoute, 1)]);
    world.check_invariants().unwrap();
}
