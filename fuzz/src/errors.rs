//! Any bytes as an ICMP error about a packet of a session that there is, from either side.

use std::net::Ipv4Addr;

use engine::packet::{self, Body};
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, Setup, World, repair};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CONFIG: &str = "internal = \"10.77.0.0/24\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n\
    [[forwards]]\nprotocol = \"udp\"\nexternal = \"8443\"\ntarget = \"10.77.0.10:443\"\n";

/// A world with a session of each kind, and the frames that made them as they left.
fn world() -> (World, Vec<(usize, Vec<u8>)>) {
    let setup = Setup {
        slots: 32,
        sessions_max: 64,
        hops_max: 16,
        transport: false,
        ..Setup::default()
    };
    let mut world = World::with(CONFIG, setup).expect("a valid configuration");
    let (out, back) = (
        Envelope::new(CLIENT, SERVER),
        Envelope::new(SERVER, EXTERNAL),
    );
    let mut left = Vec::new();
    for (interface, frame) in [
        (0, out.udp(20_000, 53, b"question")),
        (0, out.tcp(20_000, 80, SYN, b"")),
        (1, back.tcp(80, 20_000, SYN | ACK, b"")),
        (0, out.echo_request(7, b"ping")),
        (1, back.udp(4000, 8443, b"forwarded")),
        (
            0,
            Envelope::new(CLIENT, EXTERNAL).udp(20_001, 8443, b"hairpin"),
        ),
    ] {
        world.inject(interface, &frame);
        world.run();
        for egress in 0..2 {
            let sent = world.take_sent(egress);
            left.extend(sent.into_iter().map(|frame| (egress, frame)));
        }
    }
    (world, left)
}

/// Byte 0: which packet the error is about. 1: flags (from the receiver or a router; checksums are
/// made right; what is quoted is changed). 2 and 3: type and code. 4: how much is quoted. 5: bytes
/// of options in the error. The rest are pairs: a place in the frame, and what is added to its byte.
///
/// An error changes no session, never reaches anybody but the sender of what it quotes, and shows
/// no internal address outside.
pub fn errors(data: &[u8]) {
    let Some((&[about, flags, icmp_type, code, quote, options], changes)) =
        data.split_first_chunk()
    else {
        return;
    };
    let (mut world, left) = world();
    let Some((egress, frame)) = left.get(usize::from(about) % left.len().max(1)).cloned() else {
        return;
    };
    let packet = packet::parse(&frame)
        .expect("a frame that left is valid")
        .ipv4;
    let types = [
        icmp::UNREACHABLE,
        icmp::TIME_EXCEEDED,
        icmp::PARAMETER_PROBLEM,
        icmp_type,
    ];
    let envelope = Envelope {
        options: vec![1; usize::from(options % 41)],
        flags_offset: if flags & 8 == 0 {
            0
        } else {
            ipv4::DONT_FRAGMENT
        },
        ..Envelope::new(
            if flags & 1 == 0 {
                packet.destination
            } else if egress == 1 {
                ROUTER
            } else {
                NEIGHBOUR
            },
            packet.source,
        )
    };
    let kind = types[usize::from(icmp_type >> 6)];
    let mut error = envelope.icmp_error(kind, code, &frame, usize::from(quote));
    for change in changes.as_chunks::<2>().0 {
        let place = usize::from(change[0]) % error.len();
        error[place] = error[place].wrapping_add(change[1]);
    }
    if flags & 2 != 0 {
        repair(&mut error);
    }
    let before = world.totals();
    world.inject(egress, &error);
    world.run();
    // What is no error any more may do what other packets do.
    let is_error =
        packet::parse(&error).is_ok_and(|packet| matches!(packet.body, Body::Error { .. }));
    if is_error {
        assert_eq!(before, world.totals(), "an error changed the tables");
        for egress in 0..2 {
            for sent in world.take_sent(egress) {
                let sent = packet::parse(&sent).expect("what is sent is valid").ipv4;
                let to_client = [CLIENT, NEIGHBOUR].contains(&sent.destination);
                assert_eq!(
                    to_client,
                    egress == 0,
                    "{sent:?} left by interface {egress}"
                );
            }
        }
    }
    world.pass_ms(4_000, 500);
    if let Err(violation) = world.check_invariants() {
        panic!("{violation}");
    }
}
