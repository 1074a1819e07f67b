//! After warm-up a worker allocates nothing, whatever comes: hits, new sessions, expiry, refusals,
//! ICMP errors, fragments, held frames.
//!
//! Counted by the `allocation-counter` crate: it is this binary's allocator, and counts by thread.

use std::net::Ipv4Addr;

use engine::device::Device;
use engine::device::memory::MemoryDevice;
use engine::device::mixed::{MixedDevice, Part};
use engine::drop_reason::DropReason;
use engine::neighbour::HopState;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, RST, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, Setup, UPSTREAM, World};

const LAN: usize = 0;
const WAN: usize = 1;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 250);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);

const CONFIG: &str = "internal = \"10.77.0.0/24\"\ndeny = \"192.0.2.250/32\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n\
    [limits]\nsessions_per_subscriber = 100000\n\
    [icmp]\nerrors_per_second = 1000000\n\
    [pool]\nports = \"20000-20999\"\n\
    [tables]\nsessions_max = 2048\n\
    [[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\ntarget = \"10.77.0.10:443\"\n";

type Frames = Vec<(usize, Vec<u8>)>;

fn out() -> Envelope {
    Envelope::new(CLIENT, SERVER)
}

fn back() -> Envelope {
    Envelope::new(SERVER, EXTERNAL)
}

fn udp(port: u16) -> Vec<u8> {
    out().udp(port, 53, b"question")
}

fn fragment(envelope: Envelope, id: u16, flags_offset: u16, bytes: &[u8]) -> Vec<u8> {
    Envelope {
        identification: id,
        flags_offset,
        ..envelope
    }
    .frame(17, bytes)
}

/// Packets of sessions that are there: UDP and TCP, both ways.
fn hits() -> Frames {
    vec![
        (LAN, udp(20_000)),
        (WAN, back().udp(53, 20_000, b"answer")),
        (LAN, out().tcp(20_000, 80, SYN, b"")),
        (WAN, back().tcp(80, 20_000, SYN | ACK, b"")),
        (LAN, out().tcp(20_000, 80, ACK, b"data")),
        (WAN, back().tcp(80, 20_000, ACK, &[1; 1400])),
        (LAN, out().echo_request(7, b"ping")),
        (WAN, back().echo_reply(7, b"pong")),
    ]
}

/// More sessions than ports: they are made, and then refused with an ICMP error each.
fn creates() -> Frames {
    (0..1_500)
        .map(|n| (LAN, Envelope::new(OTHER, SERVER).udp(5_000 + n, 53, b"new")))
        .collect()
}

/// Whole connections, a forward, a hairpin.
fn connections() -> Frames {
    (0..40)
        .flat_map(|n| {
            let port = 20_100 + n;
            let hairpin = Envelope::new(CLIENT, EXTERNAL);
            [
                (LAN, out().tcp(port, 443, SYN, b"")),
                (WAN, back().tcp(443, port, SYN | ACK, b"")),
                (LAN, out().tcp(port, 443, FIN | ACK, b"")),
                (WAN, back().tcp(443, port, FIN | ACK, b"")),
                (WAN, back().tcp(40_000 + n, 8443, SYN, b"")),
                (
                    LAN,
                    Envelope::new(OTHER, SERVER).tcp(443, 40_000 + n, SYN | ACK, b""),
                ),
                (LAN, hairpin.tcp(port, 8443, SYN, b"")),
                (LAN, out().tcp(port, 443, RST, b"")),
            ]
        })
        .collect()
}

/// What is refused, punted, too big, or has nothing left to live; and errors from both sides.
fn refusals() -> Frames {
    let sent = Envelope {
        source: EXTERNAL,
        ..out()
    }
    .udp(20_000, 53, b"question");
    let got = Envelope::new(SERVER, CLIENT).udp(53, 20_000, b"answer");
    let error = |envelope: Envelope, about: &[u8]| {
        envelope.icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, about, 576)
    };
    let big = Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        ..out()
    };
    vec![
        (
            LAN,
            Envelope::new(CLIENT, DENIED).udp(20_000, 53, b"question"),
        ),
        (LAN, out().tcp(20_000, 81, ACK, b"midstream")),
        (WAN, back().tcp(4000, 22, SYN, b"")),
        (WAN, Envelope::new(CLIENT, EXTERNAL).udp(1, 2, b"spoofed")),
        (LAN, Envelope { ttl: 1, ..out() }.udp(20_000, 53, b"ttl")),
        (LAN, big.udp(20_000, 53, &[0; 1300])),
        (LAN, out().udp(20_000, 53, &[0; 1300])),
        (WAN, error(back(), &sent)),
        (LAN, error(out(), &got)),
        (LAN, vec![0; 60]),
        (LAN, out().frame(47, &[0; 20])),
    ]
}

/// Datagrams in order and not, of ours and the host's, and fragments whose first never comes.
fn fragments() -> Frames {
    let mut frames = Frames::new();
    for id in 0..8 {
        let datagram = out().udp_datagram(20_000, 53, &[id as u8; 600]);
        let first = fragment(out(), id, ipv4::MORE_FRAGMENTS, &datagram[..304]);
        let second = fragment(out(), id, 38, &datagram[304..]);
        let pair = [(LAN, first), (LAN, second)];
        frames.extend(if id % 2 == 0 {
            pair
        } else {
            let [a, b] = pair;
            [b, a]
        });
        frames.push((WAN, fragment(back(), 100 + id, 38, &[2; 64])));
    }
    frames
}

fn world() -> World {
    let setup = Setup {
        record: false,
        ..Setup::default()
    };
    let mut world = World::with(CONFIG, setup).unwrap();
    world.set_mtu(WAN, 1200);
    for known in [CLIENT, OTHER, UPSTREAM] {
        world.set_neighbour(known, HopState::Resolved);
    }
    world
}

/// Everything, with a minute or more between, so that sessions expire and make room.
fn everything(world: &mut World, kinds: &[Frames]) -> u64 {
    let mut count = 0_u64;
    for kind in kinds {
        for (interface, frame) in kind {
            assert!(world.inject(*interface, frame));
            count += 1;
            if count.is_multiple_of(48) {
                world.round();
            }
        }
        world.run();
        world.pass_ms(3_000, 500);
    }
    // A next hop that does not answer at first, and one that never does.
    world.set_answer(false);
    for state in [HopState::Resolved, HopState::Failed] {
        world.set_neighbour(UPSTREAM, HopState::Unresolved);
        for _ in 0..40 {
            assert!(world.inject(LAN, &kinds[0][0].1));
            count += 1;
        }
        world.run();
        world.set_neighbour(UPSTREAM, state);
        world.run();
    }
    world.set_neighbour(UPSTREAM, HopState::Resolved);
    world.set_answer(true);
    world.pass_ms(400_000, 10_000);
    count
}

#[test]
fn a_worker_allocates_nothing_after_warm_up() {
    let kinds = [
        hits(),
        creates(),
        connections(),
        refusals(),
        fragments(),
        hits(),
    ];
    let mut world = world();
    everything(&mut world, &kinds);
    let before = world.snapshot();

    let mut frames = 0;
    let allocations = allocation_counter::measure(|| {
        while frames < 100_000 {
            frames += everything(&mut world, &kinds);
        }
    });
    assert_eq!(
        allocations.count_total, 0,
        "{allocations:?} with {frames} frames"
    );

    // It was no idle test: each kind of thing happened.
    let after = world.snapshot();
    let dropped = |reason: DropReason| {
        let count = |snapshot: &engine::stats::Snapshot| snapshot.dropped[reason as usize];
        count(&after) - count(&before)
    };
    for reason in [
        DropReason::PortsExhausted,
        DropReason::TcpMidstream,
        DropReason::Spoofed,
        DropReason::TtlExpired,
        DropReason::FragmentationNeeded,
        DropReason::NeighbourUnreachable,
        DropReason::HoldFull,
        DropReason::NotIpv4,
        DropReason::DestinationDenied,
    ] {
        assert!(dropped(reason) > 0, "{}", reason.name());
    }
    assert!(after.split > before.split && after.held > before.held + 100);
    assert!(after.punted > before.punted && after.made > before.made);
    let totals = world.totals();
    assert!(
        totals.expired > 10_000 && totals.created > 10_000,
        "{totals:?}"
    );
    world.check_invariants().unwrap();
}

/// From one frame memory to the other, also where the ring is full and frames wait.
#[test]
fn frames_cross_a_mixed_device_without_an_allocation() {
    let part = |interface| {
        let mut device = MemoryDevice::new(1, 256);
        device.set_forgetful(true);
        Part {
            device: Box::new(device),
            interfaces: vec![interface],
            reserve: 0,
        }
    };
    let mut device = MixedDevice::new(vec![part(LAN), part(WAN)]);
    device.parts()[LAN].set_transmit_room(100);
    let mut queue = Vec::with_capacity(512);
    let mut sent = 0;
    let mut round = |device: &mut MixedDevice<_>| {
        while let Some(mut frame) = device.allocate() {
            let offset = device.offset(&frame);
            device.resize(&mut frame, offset, 1400)[offset..].fill(1);
            queue.push(frame);
        }
        // What is made is the last part's: its frames cross to the other, whose ring is short.
        sent += device.transmit(LAN, &mut queue);
        device.flush();
    };
    round(&mut device);
    let allocations = allocation_counter::measure(|| (0..100).for_each(|_| round(&mut device)));
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
    assert!(sent > 10_000, "{sent}");
}

/// The counter counts: else the test above would pass for nothing.
#[test]
fn an_allocation_is_counted() {
    let allocations = allocation_counter::measure(|| drop(std::hint::black_box(vec![0_u8; 64])));
    assert_eq!(allocations.count_total, 1);
}
