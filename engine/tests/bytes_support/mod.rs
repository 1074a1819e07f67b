//! A two-arm gateway in memory and the frames around it, byte by byte.
#![allow(dead_code)] // Each test file uses a part.

#[path = "../golden_support/oracle.rs"]
pub mod oracle;

use std::net::Ipv4Addr;

use engine::wire::build::Envelope;
use engine::wire::{checksum, ethernet, ipv4};
use engine::world::{UPSTREAM, World, mac_of, mac_of_interface};

pub const INSIDE: usize = 0;
pub const OUTSIDE: usize = 1;
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// A router inside.
pub const WITHIN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// A router on the way to the server.
pub const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

pub const TWO_ARM: &str = "internal = \"10.77.0.0/24\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";
/// To [`OTHER`].
pub const FORWARD: &str = "[[forwards]]\nprotocol = \"udp\"\nexternal = \"8443\"\n\
    target = \"10.77.0.10:443\"\n";

pub fn world(more: &str) -> World {
    World::new(&format!("{TWO_ARM}{more}")).unwrap()
}

/// From a host inside, by way of the gateway.
pub fn inside(source: Ipv4Addr, destination: Ipv4Addr) -> Envelope {
    Envelope {
        destination_mac: mac_of_interface(INSIDE),
        source_mac: mac_of(source),
        ..Envelope::new(source, destination)
    }
}

/// From outside, brought by the upstream router.
pub fn outside(source: Ipv4Addr, destination: Ipv4Addr) -> Envelope {
    Envelope {
        destination_mac: mac_of_interface(OUTSIDE),
        source_mac: mac_of(UPSTREAM),
        ..Envelope::new(source, destination)
    }
}

/// As the gateway sends it to a host inside: one hop further.
pub fn to_inside(source: Ipv4Addr, destination: Ipv4Addr) -> Envelope {
    Envelope {
        destination_mac: mac_of(destination),
        source_mac: mac_of_interface(INSIDE),
        ttl: 63,
        ..Envelope::new(source, destination)
    }
}

/// As the gateway sends it to the upstream router.
pub fn to_outside(source: Ipv4Addr, destination: Ipv4Addr) -> Envelope {
    Envelope {
        destination_mac: mac_of(UPSTREAM),
        source_mac: mac_of_interface(OUTSIDE),
        ttl: 63,
        ..Envelope::new(source, destination)
    }
}

/// With DF, so that its identification means nothing.
pub fn with_df(envelope: Envelope) -> Envelope {
    Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        ..envelope
    }
}

/// What leaves after a frame came, by interface.
pub fn pass(world: &mut World, interface: usize, frame: &[u8]) -> [Vec<Vec<u8>>; 2] {
    assert!(world.inject(interface, frame));
    world.run();
    world.check_frames().unwrap();
    [INSIDE, OUTSIDE].map(|interface| world.take_sent(interface))
}

/// The one frame that leaves, by the other interface; all its checksums are right.
#[track_caller]
pub fn through(world: &mut World, interface: usize, frame: &[u8]) -> Vec<u8> {
    let mut sent = pass(world, interface, frame);
    assert_eq!(sent[interface].len(), 0, "it goes back");
    let sent = sent[1 - interface].pop().expect("it goes through");
    oracle::check([&sent[..]]).unwrap();
    sent
}

/// The one frame that leaves, by the interface that the other came by.
#[track_caller]
pub fn answer(world: &mut World, interface: usize, frame: &[u8]) -> Vec<u8> {
    let mut sent = pass(world, interface, frame);
    assert_eq!(sent[1 - interface].len(), 0, "it goes through");
    let sent = sent[interface].pop().expect("it is answered");
    oracle::check([&sent[..]]).unwrap();
    sent
}

/// Nothing leaves, and nothing goes to the host.
#[track_caller]
pub fn silence(world: &mut World, interface: usize, frame: &[u8]) {
    let sent = pass(world, interface, frame);
    assert!(sent.iter().all(Vec::is_empty), "{sent:02x?}");
    assert!(world.take_punted().is_empty());
}

/// The IPv4 packet in a frame.
pub fn packet(frame: &[u8]) -> &[u8] {
    &frame[ethernet::HEADER_LEN..]
}

pub fn header(frame: &[u8]) -> ipv4::Header<'_> {
    ipv4::Header::new(packet(frame)).unwrap()
}

/// Type and code of the ICMP message in a frame without IP options.
pub fn icmp_type(frame: &[u8]) -> [u8; 2] {
    [frame[34], frame[35]]
}

/// The IPv4 packet in a frame as it is after one hop.
pub fn one_hop_further(frame: &[u8]) -> Vec<u8> {
    let mut packet = packet(frame).to_vec();
    let header_len = header(frame).header_len();
    packet[ipv4::TTL] -= 1;
    packet[ipv4::CHECKSUM..ipv4::SOURCE].fill(0);
    let sum = !checksum::sum(&packet[..header_len]);
    packet[ipv4::CHECKSUM..ipv4::SOURCE].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The datagram of a frame without IP options, cut into this many fragments.
pub fn cut(frame: &[u8], identification: u16, count: usize) -> Vec<Vec<u8>> {
    let whole = header(frame);
    let payload = &frame[34..];
    let size = payload.len().div_ceil(count).next_multiple_of(8);
    let parts: Vec<&[u8]> = payload.chunks(size).collect();
    assert_eq!(parts.len(), count);
    let last = count - 1;
    let fragment = |(number, part): (usize, &[u8])| {
        let more = [ipv4::MORE_FRAGMENTS, 0][usize::from(number == last)];
        let ethernet = ethernet::Header::new(frame).unwrap();
        Envelope {
            destination_mac: ethernet.destination(),
            source_mac: ethernet.source(),
            identification,
            flags_offset: (number * size / 8) as u16 | more,
            ..Envelope::new(whole.source(), whole.destination())
        }
        .frame(whole.protocol(), part)
    };
    parts.into_iter().enumerate().map(fragment).collect()
}

/// Offset in bytes, and whether more follow.
pub fn place(frame: &[u8]) -> (usize, bool) {
    let flags_offset = header(frame).flags_offset();
    let offset = usize::from(flags_offset & ipv4::OFFSET_MASK) * 8;
    (offset, flags_offset & ipv4::MORE_FRAGMENTS != 0)
}

/// Puts fragments together: they must have one identification, and neither gap nor overlap. The
/// addresses and the payload.
#[track_caller]
pub fn assemble(frames: &[Vec<u8>]) -> (Ipv4Addr, Ipv4Addr, Vec<u8>) {
    let mut frames: Vec<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
    frames.sort_by_key(|frame| place(frame).0);
    let first = header(frames[0]);
    let mut payload = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        let header = header(frame);
        assert_eq!(header.identification(), first.identification());
        assert_eq!(place(frame), (payload.len(), number + 1 < frames.len()));
        payload.extend(&frame[14 + header.header_len()..]);
    }
    (first.source(), first.destination(), payload)
}

/// The frames that leave, all of them, in order.
pub fn all(world: &mut World, interface: usize, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    for frame in frames {
        sent.extend(pass(world, interface, frame).into_iter().flatten());
    }
    sent
}
