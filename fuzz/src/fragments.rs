//! Any bytes as fragments of datagrams in both directions: any offset, length, order and overlap,
//! with time between them.

use std::net::Ipv4Addr;

use engine::fragment::FragmentLimits;
use engine::wire::build::Envelope;
use engine::wire::ipv4;
use engine::world::{EXTERNAL, Setup, World};

const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 9), Ipv4Addr::new(10, 77, 0, 10)];
const SERVERS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(203, 0, 113, 80),
    Ipv4Addr::new(203, 0, 113, 81),
];
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// Protocols: UDP, TCP, ICMP, and one that is not translated.
const PROTOCOLS: [u8; 4] = [17, 6, 1, 47];
const CONFIGS: [&str; 2] = ["", "[pool]\naddresses = [\"198.51.100.20\"]\n"];
const TWO_ARM: &str = "internal = \"10.77.0.0/24\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";

/// The first byte chooses the pool and the number of workers; then six bytes a fragment: who and
/// which way, identification and protocol, offset, length, flags, time.
pub fn fragments(data: &[u8]) {
    let Some((&kind, mut data)) = data.split_first() else {
        return;
    };
    let own = kind & 1 == 1;
    let setup = Setup {
        seed: kind.into(),
        workers: 1 + u32::from(kind >> 1 & 1),
        slots: 48,
        sessions_max: 64,
        hops_max: 16,
        // A part that pretends to be the whole has a wrong checksum, and keeps it.
        transport: false,
        fragments: FragmentLimits {
            datagrams_max: 16,
            copies_max: 8,
            copies_per_source_max: 4,
            ..FragmentLimits::default()
        },
        ..Setup::default()
    };
    let text = format!("{TWO_ARM}{}", CONFIGS[usize::from(own)]);
    let mut world = World::with(&text, setup).expect("a valid configuration");
    while let Some((&[who, which, offset, length, flags, time], rest)) = data.split_first_chunk() {
        data = rest;
        let (client, server) = (
            CLIENTS[usize::from(who & 1)],
            SERVERS[usize::from(who >> 1 & 1)],
        );
        let inbound = who & 4 != 0;
        let (source, destination) = match (inbound, own) {
            (false, _) => (client, server),
            (true, false) => (server, EXTERNAL),
            (true, true) => (server, OWN),
        };
        let more = if flags & 1 == 0 {
            0
        } else {
            ipv4::MORE_FRAGMENTS
        };
        let whole = if flags & 2 == 0 {
            0
        } else {
            ipv4::DONT_FRAGMENT
        };
        let envelope = Envelope {
            identification: u16::from(which >> 2 & 7),
            flags_offset: ((u16::from(offset) * (1 + u16::from(flags >> 2 & 31))) & 0x1fff)
                | more
                | whole,
            ttl: if flags & 0x80 == 0 { 64 } else { 1 },
            ..Envelope::new(source, destination)
        };
        let datagram = match PROTOCOLS[usize::from(which & 3)] {
            17 => envelope.udp_datagram(20_000, 53, &[0xaa; 600]),
            6 => [
                &[0x4e, 0x20, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2][..],
                &[0; 600],
            ]
            .concat(),
            1 => [&[8, 0, 0, 0, 0, 7, 0, 1][..], &[0; 600]].concat(),
            _ => vec![0; 600],
        };
        // What is asked of a fragment's length is up to its sender, multiples of eight included.
        let payload = &datagram[..usize::from(length).min(datagram.len())];
        let frame = envelope.frame(PROTOCOLS[usize::from(which & 3)], payload);
        let worker = usize::from(who >> 3) % world.workers();
        if world.inject_to(worker, usize::from(inbound), &frame) {
            world.run();
        }
        if time & 0xc0 == 0xc0 {
            world.pass_ms(u64::from(time & 0x3f) * 100, 250);
        }
        if let Err(violation) = world.check_frames() {
            panic!("{violation}");
        }
    }
    world.pass_ms(10_000, 500);
    let counters = world.snapshot();
    assert_eq!(counters.held, counters.released, "copies wait for ever");
    if let Err(violation) = world.check_invariants() {
        panic!("{violation}");
    }
}
