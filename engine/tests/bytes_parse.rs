//! Parsing: literal frames, every kind of malformed frame, and bytes that mean nothing.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use conntrack::{Endpoint, Protocol, Signal, Tuple};
use engine::drop_reason::DropReason;
use engine::packet::{Body, FragmentFacts, Packet, parse};
use engine::wire::build::Envelope;
use engine::wire::{samples, tcp};
use proptest::prelude::*;

fn tuple(protocol: Protocol, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Tuple {
    Tuple {
        protocol,
        source: Endpoint::new(source.0, source.1),
        destination: Endpoint::new(destination.0, destination.1),
    }
}

fn valid(name: &str) -> Packet {
    let sample = samples::valid()
        .into_iter()
        .find(|sample| sample.name == name)
        .unwrap();
    parse(&sample.frame).unwrap()
}

/// A DNS query as captured, padding included.
#[test]
fn a_literal_udp_frame() {
    let mut frame = vec![
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x52, 0x54, 0x00, 0x65, 0x43, 0x21, 0x08,
        0x00, // MAC
        0x45, 0xB8, 0x00, 0x20, 0xAB, 0xCD, 0x40, 0x00, 0x3F, 0x11, 0xC2, 0xE3, // IPv4 header
        0x0A, 0x2A, 0x00, 0x05, 0xC0, 0x00, 0x02, 0x35, // 10.42.0.5 -> 192.0.2.53
        0xC0, 0x00, 0x00, 0x35, 0x00, 0x0C, 0x00, 0x00, 1, 2, 3, 4, // 49152 -> 53
    ];
    frame.resize(60, 0);
    let packet = parse(&frame).unwrap();
    assert_eq!(packet.ipv4.total_len, 32);
    assert_eq!(packet.frame_len(), 46);
    assert_eq!(packet.payload_len(), 12);
    assert_eq!((packet.ipv4.header_len, packet.l4), (20, 34));
    assert_eq!((packet.ipv4.ttl, packet.ipv4.dscp_ecn), (63, 0xB8));
    assert_eq!(
        (packet.ipv4.identification, packet.ipv4.dont_fragment),
        (0xABCD, true)
    );
    assert_eq!(packet.fragment, None);
    let source = (Ipv4Addr::new(10, 42, 0, 5), 49152);
    let destination = (Ipv4Addr::new(192, 0, 2, 53), 53);
    assert_eq!(
        packet.body,
        Body::Flow {
            tuple: tuple(Protocol::Udp, source, destination),
            signal: Signal::Udp,
            sequence: 0,
            acknowledgement: 0,
        }
    );
}

#[test]
fn every_malformed_sample_has_its_drop_reason() {
    let mut names = HashSet::new();
    for (sample, reason) in samples::malformed() {
        assert_eq!(parse(&sample.frame), Err(reason), "{}", sample.name);
        assert!(names.insert(sample.name), "{} twice", sample.name);
    }
}

#[test]
fn every_reason_of_the_parser_has_a_malformed_sample() {
    use DropReason::*;
    let reasons: HashSet<_> = samples::malformed()
        .into_iter()
        .map(|(_, reason)| reason)
        .collect();
    for reason in [
        Truncated,
        NotIpv4,
        BadHeader,
        BadChecksum,
        BadLength,
        BadAddress,
        BadTransport,
        UnsupportedProtocol,
        UnsupportedIcmp,
        IcmpBadChecksum,
        IcmpBadEmbedded,
        IcmpBadEmbeddedChecksum,
        SourceRoute,
        FragmentBad,
    ] {
        assert!(reasons.contains(&reason), "{reason:?}");
    }
}

#[test]
fn every_valid_sample_parses() {
    let mut names = HashSet::new();
    for sample in samples::valid() {
        assert!(
            parse(&sample.frame).is_ok(),
            "{}: {:?}",
            sample.name,
            parse(&sample.frame)
        );
        assert!(names.insert(sample.name));
    }
}

#[test]
fn signals_follow_the_flags() {
    for (name, expected) in [
        ("tcp-syn", Signal::TcpSyn),
        ("tcp-syn-ack", Signal::TcpSynAck),
        ("tcp-data", Signal::TcpData),
        ("tcp-fin", Signal::TcpFin),
        ("tcp-rst", Signal::TcpRst),
        ("udp", Signal::Udp),
        ("echo-request", Signal::IcmpQuery),
        ("timestamp", Signal::IcmpQuery),
        ("echo-reply", Signal::IcmpReply),
        ("timestamp-reply", Signal::IcmpReply),
    ] {
        let Body::Flow {
            signal, sequence, ..
        } = valid(name).body
        else {
            panic!("{name} is no flow")
        };
        assert_eq!(signal, expected, "{name}");
        assert_eq!(sequence, u32::from(name.starts_with("tcp")), "{name}");
    }
    // A reset wins over a FIN.
    let envelope = Envelope::new(samples::SOURCE, samples::DESTINATION);
    let packet = parse(&envelope.tcp(1, 2, tcp::RST | tcp::FIN, b"")).unwrap();
    assert!(matches!(
        packet.body,
        Body::Flow {
            signal: Signal::TcpRst,
            ..
        }
    ));
}

#[test]
fn a_query_reply_has_its_request_tuple_reversed() {
    let Body::Flow { tuple: asked, .. } = valid("echo-request").body else {
        panic!()
    };
    let Body::Flow {
        tuple: answered, ..
    } = valid("echo-reply").body
    else {
        panic!()
    };
    assert_eq!((asked.source.port, asked.destination.port), (77, 0));
    assert_eq!(answered, asked.reversed());
}

#[test]
fn fragments_know_their_place() {
    let first = valid("udp-first-fragment");
    assert_eq!(
        first.fragment,
        Some(FragmentFacts {
            offset: 0,
            more: true
        })
    );
    assert!(matches!(first.body, Body::Flow { .. }));
    let middle = valid("udp-middle-fragment");
    assert_eq!(
        middle.fragment,
        Some(FragmentFacts {
            offset: 24,
            more: true
        })
    );
    assert_eq!(middle.body, Body::LaterFragment);
    let last = valid("udp-last-fragment");
    assert_eq!(
        last.fragment,
        Some(FragmentFacts {
            offset: 40,
            more: false
        })
    );
}

/// RFC 5508 REQ-3: options in the embedded header, short quotes, extensions.
#[test]
fn errors_find_the_embedded_ports() {
    let flow = |protocol, source: u16, destination: u16| {
        tuple(
            protocol,
            (samples::SOURCE, source),
            (samples::DESTINATION, destination),
        )
    };
    for (name, expected, quoted_l4) in [
        ("error-udp", flow(Protocol::Udp, 1000, 53), 16),
        ("error-udp-8-bytes", flow(Protocol::Udp, 1000, 53), 8),
        ("error-udp-options", flow(Protocol::Udp, 1000, 53), 16),
        ("error-tcp", flow(Protocol::Tcp, 1000, 80), 24),
        ("error-tcp-8-bytes", flow(Protocol::Tcp, 1000, 80), 8),
        ("error-echo", flow(Protocol::Icmp, 77, 0), 12),
        ("error-extended", flow(Protocol::Udp, 1000, 53), 108),
    ] {
        let Body::Error { embedded, .. } = valid(name).body else {
            panic!("{name}")
        };
        assert_eq!(embedded.tuple, expected, "{name}");
        assert_eq!(embedded.end - embedded.l4, quoted_l4, "{name}");
    }
    let Body::Error {
        icmp_type, code, ..
    } = valid("error-tcp").body
    else {
        panic!()
    };
    assert_eq!((icmp_type, code), (3, 4));
}

/// RFC 5508 REQ-3 c: nobody checks the embedded transport checksum.
#[test]
fn a_wrong_embedded_transport_checksum_passes() {
    let mut udp = samples::valid().remove(0).frame;
    udp[14 + 20 + 6] ^= 0x55;
    let error = Envelope::new(samples::DESTINATION, samples::SOURCE).icmp_error(3, 3, &udp, 548);
    assert!(matches!(parse(&error).unwrap().body, Body::Error { .. }));
}

/// Offsets of an accepted packet lie within its frame.
fn check_facts(frame: &[u8], packet: &Packet) {
    assert!(packet.frame_len() <= frame.len());
    assert_eq!(packet.l4, 14 + packet.ipv4.header_len);
    assert!(packet.l4 + packet.payload_len() == packet.frame_len());
    if let Body::Error { embedded, .. } = packet.body {
        assert!(packet.l4 + 8 == embedded.ip && embedded.ip + 20 <= embedded.l4);
        assert!(embedded.l4 + 8 <= embedded.end && embedded.end <= packet.frame_len());
    }
    assert!(packet.ipv4.source.octets()[0] < 224 && !packet.ipv4.destination.is_loopback());
}

#[test]
fn truncations_of_every_sample_never_panic_and_never_pass() {
    for sample in samples::valid() {
        let whole = parse(&sample.frame).unwrap().frame_len();
        for len in 0..whole {
            assert!(
                parse(&sample.frame[..len]).is_err(),
                "{} cut to {len}",
                sample.name
            );
        }
    }
    for (sample, _) in samples::malformed() {
        for len in 0..sample.frame.len() {
            let _ = parse(&sample.frame[..len]);
        }
    }
}

#[test]
fn bit_flips_of_every_sample_never_panic() {
    let all = samples::valid()
        .into_iter()
        .chain(samples::malformed().into_iter().map(|(s, _)| s));
    for sample in all {
        for bit in 0..sample.frame.len() * 8 {
            let mut frame = sample.frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            match parse(&frame) {
                Ok(packet) => check_facts(&frame, &packet),
                Err(reason) => assert!(DropReason::ALL.contains(&reason)),
            }
        }
    }
}

/// Puts a right header checksum, so that arbitrary bytes get past it.
fn with_right_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x40 | frame[14] & 15;
    let end = (14 + usize::from(frame[14] & 15) * 4).min(frame.len());
    if end >= 34 {
        frame[24..26].fill(0);
        let sum = !engine::wire::checksum::sum(&frame[14..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(packet) = parse(&frame) {
            check_facts(&frame, &packet);
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(
        frame in proptest::collection::vec(any::<u8>(), 60..200),
        protocol in prop_oneof![Just(1u8), Just(6), Just(17)],
        icmp_type in prop_oneof![Just(3u8), Just(11), Just(12), any::<u8>()],
        whole in any::<bool>(),
    ) {
        let mut frame = frame;
        frame[14] = 0x45;
        frame[23] = protocol;
        frame[34] = icmp_type;
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        if whole {
            frame[20..22].fill(0);
        }
        if let Ok(packet) = parse(&with_right_checksum(frame.clone())) {
            check_facts(&frame, &packet);
        }
    }

    #[test]
    fn changed_samples_never_panic(
        at in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let samples = samples::valid();
        let mut frame = samples[at.index(samples.len())].frame.clone();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let frame = with_right_checksum(frame);
        if let Ok(packet) = parse(&frame) {
            check_facts(&frame, &packet);
        }
    }
}
