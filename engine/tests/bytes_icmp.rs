//! The ICMP errors that Egret makes: silence rules, bytes, rate.

use std::net::Ipv4Addr;

use conntrack::Time;
use engine::icmp::{ErrorKind, ErrorLimiter, may_answer, write_error};
use engine::packet::{Body, parse};
use engine::wire::build::Envelope;
use engine::wire::{checksum, ipv4, samples};
use proptest::prelude::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

const KINDS: [(ErrorKind, u8, u8, u16); 5] = [
    (ErrorKind::TimeExceeded, 11, 0, 0),
    (ErrorKind::FragmentationNeeded { mtu: 1400 }, 3, 4, 1400),
    (ErrorKind::HostUnreachable, 3, 1, 0),
    (ErrorKind::AdminProhibited, 3, 13, 0),
    (ErrorKind::PortUnreachable, 3, 3, 0),
];

fn envelope() -> Envelope {
    Envelope {
        dscp_ecn: 0xBB,
        ..Envelope::new(samples::SOURCE, samples::DESTINATION)
    }
}

/// A slot of 4096 bytes with the frame at an offset.
fn slot(frame: &[u8], offset: usize) -> Vec<u8> {
    let mut slot = vec![0xEE; 4096];
    slot[offset..offset + frame.len()].copy_from_slice(frame);
    slot
}

fn answer(frame: &[u8], offset: usize, kind: ErrorKind) -> Vec<u8> {
    let packet = parse(frame).unwrap();
    let mut slot = slot(frame, offset);
    let (at, len) = write_error(
        &mut slot,
        offset,
        frame.len(),
        &packet.ipv4,
        kind,
        GATEWAY,
        99,
    );
    slot[at..at + len].to_vec()
}

#[test]
fn every_kind_is_the_error_that_was_asked_for() {
    let about = envelope().udp(1000, 53, &[7; 100]);
    for (kind, icmp_type, code, mtu) in KINDS {
        let [high, low] = mtu.to_be_bytes();
        let mut expected = Envelope::new(GATEWAY, samples::SOURCE);
        expected.identification = 99;
        expected.dscp_ecn = 0xB8; // the DS field without ECN
        (expected.destination_mac, expected.source_mac) =
            (envelope().source_mac, envelope().destination_mac);
        let expected = expected.icmp(icmp_type, code, [0, 0, high, low], &about[14..]);
        for offset in [0, 1, 27, 28, 256, 4096 - about.len()] {
            assert_eq!(
                answer(&about, offset, kind),
                expected,
                "{kind:?} at {offset}"
            );
        }
    }
}

#[test]
fn a_long_packet_is_quoted_up_to_576_bytes_in_all() {
    let about = envelope().udp(1000, 53, &[7; 1400]);
    for offset in [0, 100, 4096 - about.len()] {
        let reply = answer(&about, offset, ErrorKind::TimeExceeded);
        assert_eq!(reply.len(), 14 + 576);
        assert_eq!(reply[42..], about[14..14 + 548]);
        assert!(checksum::is_right(&reply[14..34]) && checksum::is_right(&reply[34..]));
    }
}

#[test]
fn ethernet_padding_is_not_quoted() {
    let mut about = envelope().udp(1000, 53, b"");
    about.resize(60, 0x5A);
    assert_eq!(answer(&about, 0, ErrorKind::HostUnreachable).len(), 42 + 28);
}

#[test]
fn another_parser_reads_the_error() {
    let about = envelope().tcp(1000, 80, 2, b"");
    let reply = answer(&about, 0, ErrorKind::FragmentationNeeded { mtu: 1280 });
    let sliced = etherparse::SlicedPacket::from_ethernet(&reply).unwrap();
    let Some(etherparse::TransportSlice::Icmpv4(message)) = sliced.transport else {
        panic!()
    };
    use etherparse::{Icmpv4Type, icmpv4::DestUnreachableHeader};
    assert_eq!(
        message.icmp_type(),
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: 1280
        })
    );
    assert_eq!(
        message.icmp_type().calc_checksum(message.payload()),
        message.checksum()
    );
    assert_eq!(message.payload(), &about[14..]);
    // And so does ours, which means that it may itself pass another gateway.
    assert!(matches!(
        parse(&reply).unwrap().body,
        Body::Error {
            icmp_type: 3,
            code: 4,
            ..
        }
    ));
}

#[test]
fn rfc5508_10e_silence_where_rfc1812_forbids_an_answer() {
    for sample in samples::valid() {
        let packet = parse(&sample.frame).unwrap();
        let silent = sample.name.starts_with("error-")
            || ["udp-middle-fragment", "udp-last-fragment"].contains(&sample.name);
        assert_eq!(
            may_answer(&sample.frame, &packet),
            !silent,
            "{}",
            sample.name
        );
    }
    let mut frame = envelope().udp(1, 2, b"x");
    let packet = parse(&frame).unwrap();
    frame[..6].fill(0xFF);
    assert!(
        !may_answer(&frame, &packet),
        "to the broadcast address of the link"
    );
    frame[..6].copy_from_slice(&[1, 0, 0x5E, 0, 0, 1]);
    assert!(
        !may_answer(&frame, &packet),
        "to a multicast address of the link"
    );
    frame[0] = 2;
    for addr in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ] {
        let addr = Ipv4Addr::from(addr);
        let (mut from, mut to) = (packet, packet);
        from.ipv4.source = addr;
        to.ipv4.destination = addr;
        assert!(
            !may_answer(&frame, &from) && !may_answer(&frame, &to),
            "{addr}"
        );
    }
}

#[test]
fn first_fragments_may_be_answered_and_are_quoted_as_they_are() {
    let first = Envelope {
        flags_offset: ipv4::MORE_FRAGMENTS,
        ..envelope()
    };
    let about = first.frame(17, &envelope().udp_datagram(1, 2, &[0; 64])[..24]);
    assert!(may_answer(&about, &parse(&about).unwrap()));
    let reply = answer(&about, 0, ErrorKind::TimeExceeded);
    assert_eq!(reply[42..], about[14..]);
}

#[test]
fn a_slot_without_room_gives_an_empty_frame() {
    let about = envelope().udp(1, 2, b"x");
    let packet = parse(&about).unwrap();
    let kind = ErrorKind::TimeExceeded;
    assert_eq!(
        write_error(&mut [0; 41], 0, 41, &packet.ipv4, kind, GATEWAY, 0).1,
        0
    );
    assert_eq!(
        write_error(&mut [0; 600], 0, 601, &packet.ipv4, kind, GATEWAY, 0).1,
        0
    );
    // What fits is quoted.
    let mut short = about.clone();
    let (at, len) = write_error(&mut short, 0, about.len(), &packet.ipv4, kind, GATEWAY, 0);
    assert_eq!((at, len), (0, about.len()));
    assert!(checksum::is_right(&short[34..]));
}

#[test]
fn rfc5508_10f_errors_are_limited() {
    let mut limiter = ErrorLimiter::new(100, 10);
    let sent =
        |limiter: &mut ErrorLimiter, now| (0..1000).filter(|_| limiter.allow(Time(now))).count();
    assert_eq!(sent(&mut limiter, 5000), 10);
    assert_eq!(sent(&mut limiter, 5009), 0);
    assert_eq!(sent(&mut limiter, 5010), 1);
    assert_eq!(sent(&mut limiter, 5060), 5);
    assert_eq!(sent(&mut limiter, 100_000), 10);
    // A clock that goes back gives nothing away.
    assert_eq!(sent(&mut limiter, 0), 0);
    let flood: usize = (100_000..101_000).map(|now| sent(&mut limiter, now)).sum();
    assert_eq!(flood, 99);
}

#[test]
fn a_rate_of_zero_is_silence() {
    let mut limiter = ErrorLimiter::new(0, 10);
    assert!(!limiter.allow(Time(0)) && !limiter.allow(Time(u64::MAX)));
}

proptest! {
    #[test]
    fn writing_never_panics(
        at in any::<prop::sample::Index>(),
        slot in proptest::collection::vec(any::<u8>(), 0..700),
        offset in 0usize..800,
        len in 0usize..800,
    ) {
        let samples = samples::valid();
        let packet = parse(&samples[at.index(samples.len())].frame).unwrap();
        let mut slot = slot;
        let kind = ErrorKind::TimeExceeded;
        let (at, len) = write_error(&mut slot, offset, len, &packet.ipv4, kind, GATEWAY, 1);
        prop_assert!(len == 0 || at + len <= slot.len());
    }
}
