//! Rewriting against frames that were built whole with the new addresses: every byte must agree,
//! so every incremental checksum equals a full computation.

use std::net::Ipv4Addr;

use conntrack::{Direction, Endpoint, NextHop, Protocol, Rewrite, SessionRef, Tuple};
use engine::packet::{Body, parse};
use engine::rewrite::{
    apply, apply_embedded, complete_checksum, decrement_ttl, set_ethernet, set_identification,
};
use engine::wire::build::Envelope;
use engine::wire::{checksum, samples, tcp};
use proptest::prelude::*;

/// The literal form of RFC 1624's `~old + new`, word by word.
fn delta(old: &[u16], new: &[u16]) -> u16 {
    let mut sum: u32 = old
        .iter()
        .zip(new)
        .map(|(&o, &n)| u32::from(!o) + u32::from(n))
        .sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

fn words(addr: Ipv4Addr) -> [u16; 2] {
    let [a, b, c, d] = addr.octets();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

fn rewrite(old: &Tuple, source: Endpoint, destination: Endpoint, direction: Direction) -> Rewrite {
    let of = |source: Endpoint, destination: Endpoint| {
        let addresses = [words(source.addr), words(destination.addr)].concat();
        (addresses, vec![source.port, destination.port])
    };
    let (old_addresses, old_ports) = of(old.source, old.destination);
    let (new_addresses, new_ports) = of(source, destination);
    let ports_only = old.protocol == Protocol::Icmp;
    let l4_delta = if ports_only {
        let identifier = usize::from(old.source.port == 0);
        delta(
            &old_ports[identifier..=identifier],
            &new_ports[identifier..=identifier],
        )
    } else {
        delta(
            &[&old_addresses[..], &old_ports].concat(),
            &[&new_addresses[..], &new_ports].concat(),
        )
    };
    Rewrite {
        source,
        destination,
        ip_delta: delta(&old_addresses, &new_addresses),
        l4_delta,
        direction,
        next_hop: NextHop::NONE,
        session: SessionRef {
            half: 0,
            sequence: 0,
        },
    }
}

/// Addresses that may be forwarded, with the corners of the sums among them.
fn addr() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        any::<u32>().prop_map(Ipv4Addr::from_bits),
        Just(Ipv4Addr::new(1, 0, 0, 0)),
        Just(Ipv4Addr::new(10, 0, 255, 255)),
        Just(Ipv4Addr::new(223, 255, 255, 255)),
    ]
    .prop_filter("may not be forwarded", |addr| {
        !matches!(addr.octets()[0], 0 | 127 | 224..)
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), Just(0), Just(0xFFFF), Just(1)]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        proptest::collection::vec(Just(0u8), 0..20),
        proptest::collection::vec(Just(0xFFu8), 0..20),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Tcp,
    Request,
    Reply,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Udp),
        Just(Kind::Tcp),
        Just(Kind::Request),
        Just(Kind::Reply)
    ]
}

fn build(kind: Kind, envelope: &Envelope, source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    match kind {
        Kind::Udp => envelope.udp(source, destination, data),
        Kind::Tcp => envelope.tcp(source, destination, tcp::ACK, data),
        Kind::Request => envelope.echo_request(source, data),
        Kind::Reply => {
            let [high, low] = destination.to_be_bytes();
            envelope.icmp(0, 0, [high, low, 0, 0], data)
        }
    }
}

/// Checksum equality as the checksum defines it: +0 is -0.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || a ^ b == 0xFFFF && (a == 0 || b == 0)
}

/// Where the transport checksum of a frame without options is.
fn checksum_at(kind: Kind) -> usize {
    34 + match kind {
        Kind::Udp => 6,
        Kind::Tcp => 16,
        Kind::Request | Kind::Reply => 2,
    }
}

/// A receiver's view: is the transport checksum accepted?
fn accepted(frame: &[u8], kind: Kind) -> bool {
    let packet = parse(frame).unwrap();
    let l4 = &frame[packet.l4..packet.frame_len()];
    match kind {
        Kind::Udp | Kind::Tcp => {
            let ipv4 = packet.ipv4;
            let len = l4.len() as u16;
            let pseudo = checksum::pseudo_header(ipv4.source, ipv4.destination, ipv4.protocol, len);
            checksum::fold(pseudo + u64::from(checksum::sum(l4))) == 0xFFFF
        }
        Kind::Request | Kind::Reply => checksum::is_right(l4),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_flow_rewritten_equals_a_flow_built(
        kind in kind(),
        ends in (addr(), addr(), addr(), addr()),
        ports in (port(), port(), port(), port()),
        data in payload(),
        options in prop_oneof![Just(vec![]), Just(vec![7, 3, 4])],
        shift in 0usize..4,
    ) {
        let mut envelope = Envelope::new(ends.0, ends.1);
        envelope.options = options;
        let frame = build(kind, &envelope, ports.0, ports.1, &data);
        (envelope.source, envelope.destination) = (ends.2, ends.3);
        let expected = build(kind, &envelope, ports.2, ports.3, &data);

        // Any alignment in memory.
        let mut memory = vec![0xEE; shift];
        memory.extend(&frame);
        let frame = &mut memory[shift..];
        let packet = parse(frame).unwrap();
        let Body::Flow { tuple, .. } = packet.body else { panic!() };
        let source = Endpoint::new(ends.2, if tuple.protocol == Protocol::Icmp && matches!(kind, Kind::Reply) { 0 } else { ports.2 });
        let destination = Endpoint::new(ends.3, if matches!(kind, Kind::Request) { 0 } else { ports.3 });
        apply(frame, &packet, &rewrite_of(&tuple, kind, source, destination));
        prop_assert!(accepted(frame, kind));
        let at = packet.l4 - 34 + checksum_at(kind);
        let written = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let whole = u16::from_be_bytes([expected[at], expected[at + 1]]);
        prop_assert!(same_sum(written, whole), "{written:#x} {whole:#x}");
        frame[at..at + 2].copy_from_slice(&whole.to_be_bytes());
        prop_assert_eq!(&*frame, &expected[..]);
    }

    /// Invariant 7, the other half.
    #[test]
    fn a_wrong_transport_checksum_stays_wrong(
        kind in kind(),
        ends in (addr(), addr(), addr(), addr()),
        ports in (port(), port(), port(), port()),
        data in payload(),
        error in 1u16..0xFFFF,
    ) {
        let mut frame = build(kind, &Envelope::new(ends.0, ends.1), ports.0, ports.1, &data);
        let at = checksum_at(kind);
        let wrong = checksum::fold(u64::from(frame[at]) << 8 | u64::from(frame[at + 1]))
            .wrapping_add(error);
        frame[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        prop_assume!(!accepted(&frame, kind));
        prop_assume!(wrong != 0 || !matches!(kind, Kind::Udp));
        let packet = parse(&frame).unwrap();
        let Body::Flow { tuple, .. } = packet.body else { panic!() };
        let source = Endpoint::new(ends.2, if matches!(kind, Kind::Reply) { 0 } else { ports.2 });
        let destination = Endpoint::new(ends.3, if matches!(kind, Kind::Request) { 0 } else { ports.3 });
        apply(&mut frame, &packet, &rewrite_of(&tuple, kind, source, destination));
        prop_assert!(!accepted(&frame, kind));
        // RFC 768: never turned into "no checksum".
        prop_assert!(!matches!(kind, Kind::Udp) || frame[at..at + 2] != [0, 0]);
    }

    /// RFC 5508 REQ-4 and REQ-5: the error as if it had been made about the other packet.
    #[test]
    fn an_error_rewritten_equals_an_error_built(
        kind in kind(),
        ends in (addr(), addr(), addr(), addr(), addr()),
        ports in (port(), port(), port(), port()),
        data in payload(),
        options in prop_oneof![Just(vec![]), Just(vec![7, 3, 4]), Just(vec![1; 40])],
        direction in prop_oneof![
            Just(Direction::Outbound), Just(Direction::Inbound), Just(Direction::Hairpin)
        ],
        cut in 0usize..80,
        padding in 0usize..9,
        shift in 0usize..3,
    ) {
        let (router, old_source, old_destination, new_source, new_destination) = ends;
        let mut inner = Envelope::new(old_source, old_destination);
        inner.options = options;
        let before = build(kind, &inner, ports.0, ports.1, &data);
        (inner.source, inner.destination) = (new_source, new_destination);
        let after = build(kind, &inner, ports.2, ports.3, &data);
        let quote_max = 20 + inner.options.len().next_multiple_of(4) + 8 + cut;

        let error = |from: Ipv4Addr, to: Ipv4Addr, about: &[u8]| {
            let mut quote = about[14..].to_vec();
            quote.truncate(quote_max);
            // What lies after the embedded packet is not its transport header.
            if quote.len() == about.len() - 14 {
                quote.extend(vec![0xA5; padding]);
            }
            let mut outer = Envelope::new(from, to);
            outer.ttl = 61;
            outer.icmp(3, 4, [0, 0, 5, 0x78], &quote)
        };
        let mut memory = vec![0xEE; shift];
        memory.extend(error(router, old_source, &before));
        let frame = &mut memory[shift..];
        let packet = parse(frame).unwrap();
        let Body::Error { embedded, .. } = packet.body else { panic!() };
        // The half that carries the embedded tuple reversed.
        let reversed = embedded.tuple.reversed();
        let port_of = |asks: bool, port: u16| match kind {
            Kind::Udp | Kind::Tcp => port,
            Kind::Request => if asks { port } else { 0 },
            Kind::Reply => if asks { 0 } else { port },
        };
        let source = Endpoint::new(new_destination, port_of(false, ports.3));
        let destination = Endpoint::new(new_source, port_of(true, ports.2));
        let rewrite = rewrite(&reversed, source, destination, direction);
        apply_embedded(frame, &packet, &rewrite, None);

        let from = if direction == Direction::Inbound { router } else { new_destination };
        let mut expected = error(from, new_source, &after);
        // +0 and -0 in the embedded transport checksum, then in the ICMP checksum.
        let at = embedded.l4 - 34 + checksum_at(kind);
        if at + 2 <= embedded.end {
            let pair = |b: &[u8]| u16::from_be_bytes([b[at], b[at + 1]]);
            prop_assert!(same_sum(pair(frame), pair(&expected)));
            expected[at..at + 2].copy_from_slice(&frame[at..at + 2]);
        } else if at < embedded.end {
            // Half a checksum cannot be updated, and stays.
            expected[at] = before[14 + at - embedded.ip];
        }
        prop_assert!(checksum::is_right(&frame[34..]));
        expected[36..38].copy_from_slice(&frame[36..38]);
        prop_assert_eq!(&*frame, &expected[..]);
    }

    #[test]
    fn a_partial_checksum_is_completed_and_others_are_left(
        kind in prop_oneof![Just(Kind::Udp), Just(Kind::Tcp)],
        ends in (addr(), addr()),
        ports in (port(), port()),
        data in payload(),
    ) {
        let whole = build(kind, &Envelope::new(ends.0, ends.1), ports.0, ports.1, &data);
        let packet = parse(&whole).unwrap();
        let mut frame = whole.clone();
        let len = packet.payload_len() as u16;
        let protocol = packet.ipv4.protocol;
        let pseudo = checksum::fold(checksum::pseudo_header(ends.0, ends.1, protocol, len));
        let at = checksum_at(kind);
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        prop_assert!(complete_checksum(&mut frame, &packet));
        prop_assert_eq!(&frame, &whole);
        // Completed is complete: at most rewritten with the same value.
        complete_checksum(&mut frame, &packet);
        prop_assert_eq!(&frame, &whole);
        // A wrong one is no partial one.
        let wrong = pseudo ^ 0x0101;
        frame[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        let before = frame.clone();
        prop_assert!(!complete_checksum(&mut frame, &packet));
        prop_assert_eq!(&frame, &before);
    }

    #[test]
    fn a_ttl_taken_off_equals_a_header_built(ttl in 1u8..=255, ends in (addr(), addr())) {
        let mut envelope = Envelope::new(ends.0, ends.1);
        envelope.ttl = ttl;
        let mut frame = envelope.udp(1, 2, b"x");
        let packet = parse(&frame).unwrap();
        decrement_ttl(&mut frame, &packet);
        envelope.ttl -= 1;
        prop_assert_eq!(frame, envelope.udp(1, 2, b"x"));
    }

    /// Facts of one frame on the bytes of another: nothing panics.
    #[test]
    fn facts_that_do_not_fit_never_panic(
        at in any::<prop::sample::Index>(),
        frame in proptest::collection::vec(any::<u8>(), 0..160),
    ) {
        let samples = samples::valid();
        let packet = parse(&samples[at.index(samples.len())].frame).unwrap();
        let end = Endpoint::new(Ipv4Addr::new(192, 0, 2, 1), 4000);
        let tuple = Tuple { protocol: Protocol::Udp, source: end, destination: end };
        let rewrite = rewrite(&tuple, end, end, Direction::Hairpin);
        let mut frame = frame;
        complete_checksum(&mut frame, &packet);
        apply(&mut frame, &packet, &rewrite);
        apply_embedded(&mut frame, &packet, &rewrite, Some(at.index(65_536) as u16));
        set_identification(&mut frame, at.index(65_536) as u16);
        decrement_ttl(&mut frame, &packet);
        set_ethernet(&mut frame, [1; 6], [2; 6]);
    }
}

/// [`rewrite`], with the identifier's place taken from the kind: it may be 0 itself.
fn rewrite_of(old: &Tuple, kind: Kind, source: Endpoint, destination: Endpoint) -> Rewrite {
    let mut result = rewrite(old, source, destination, Direction::Outbound);
    match kind {
        Kind::Request => result.l4_delta = delta(&[old.source.port], &[source.port]),
        Kind::Reply => result.l4_delta = delta(&[old.destination.port], &[destination.port]),
        Kind::Udp | Kind::Tcp => {}
    }
    result
}

fn between(source: Endpoint, destination: Endpoint) -> Envelope {
    Envelope::new(source.addr, destination.addr)
}

const INTERNAL: Endpoint = Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 1000);
const EXTERNAL: Endpoint = Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), 40_000);
const REMOTE: Endpoint = Endpoint::new(Ipv4Addr::new(192, 0, 2, 9), 53);

fn outbound(protocol: Protocol) -> Rewrite {
    let old = Tuple {
        protocol,
        source: INTERNAL,
        destination: REMOTE,
    };
    rewrite(&old, EXTERNAL, REMOTE, Direction::Outbound)
}

#[test]
fn no_udp_checksum_stays_none() {
    let mut frame = between(INTERNAL, REMOTE).udp(INTERNAL.port, REMOTE.port, b"question");
    frame[40..42].fill(0);
    let packet = parse(&frame).unwrap();
    assert!(!complete_checksum(&mut frame, &packet));
    apply(&mut frame, &packet, &outbound(Protocol::Udp));
    assert_eq!(frame[40..42], [0, 0]);
    let mut expected = between(EXTERNAL, REMOTE).udp(EXTERNAL.port, REMOTE.port, b"question");
    expected[40..42].fill(0);
    assert_eq!(frame, expected);
}

/// A port and payload for which the checksum under the new addresses comes out as 0.
#[test]
fn a_udp_checksum_that_becomes_zero_is_written_as_ffff() {
    let expected = (0..=u16::MAX)
        .map(|word| between(EXTERNAL, REMOTE).udp(EXTERNAL.port, REMOTE.port, &word.to_be_bytes()))
        .find(|frame| frame[40..42] == [0xFF, 0xFF])
        .unwrap();
    let mut frame = between(INTERNAL, REMOTE).udp(INTERNAL.port, REMOTE.port, &expected[42..]);
    let packet = parse(&frame).unwrap();
    apply(&mut frame, &packet, &outbound(Protocol::Udp));
    assert_eq!(frame, expected);
    // And back out of the corner.
    let packet = parse(&frame).unwrap();
    let old = Tuple {
        protocol: Protocol::Udp,
        source: EXTERNAL,
        destination: REMOTE,
    };
    apply(
        &mut frame,
        &packet,
        &rewrite(&old, INTERNAL, REMOTE, Direction::Inbound),
    );
    assert_eq!(
        frame,
        between(INTERNAL, REMOTE).udp(INTERNAL.port, REMOTE.port, &expected[42..])
    );
}

/// The one message in which every word can be zero: there 0x0000 is wrong and 0xFFFF right.
#[test]
fn an_echo_reply_of_zeros_gets_the_right_zero() {
    let reply = |to: Endpoint, identifier: u16| {
        let [high, low] = identifier.to_be_bytes();
        between(REMOTE, to).icmp(0, 0, [high, low, 0, 0], &[0; 6])
    };
    let zero = Endpoint::new(INTERNAL.addr, 0);
    let asked = Endpoint::new(REMOTE.addr, 0);
    let mut frame = reply(EXTERNAL, EXTERNAL.port);
    let packet = parse(&frame).unwrap();
    let Body::Flow { tuple, .. } = packet.body else {
        panic!()
    };
    apply(
        &mut frame,
        &packet,
        &rewrite_of(&tuple, Kind::Reply, asked, zero),
    );
    assert_eq!(frame[36..38], [0xFF, 0xFF]);
    assert_eq!(frame, reply(zero, 0));

    // All zero, checksum included, is wrong, and stays wrong.
    frame[36..38].fill(0);
    assert!(!accepted(&frame, Kind::Reply));
    let packet = parse(&frame).unwrap();
    let Body::Flow { tuple, .. } = packet.body else {
        panic!()
    };
    let internal = Endpoint::new(INTERNAL.addr, 7);
    apply(
        &mut frame,
        &packet,
        &rewrite_of(&tuple, Kind::Reply, asked, internal),
    );
    assert!(!accepted(&frame, Kind::Reply));

    // In a first fragment the same bytes may be right: the rest is elsewhere.
    let rest = [0xFF; 8];
    let first = Envelope {
        flags_offset: 0x2000,
        ..between(REMOTE, zero)
    };
    let mut frame = first.frame(1, &[0; 16]);
    let packet = parse(&frame).unwrap();
    apply(
        &mut frame,
        &packet,
        &rewrite_of(&tuple, Kind::Reply, asked, internal),
    );
    let message = [&frame[34..], &rest].concat();
    assert_eq!(message[4..6], [0, 7]);
    assert!(checksum::is_right(&message));
}

/// Its bytes are not all there.
#[test]
fn a_partial_checksum_in_a_fragment_is_left() {
    let first = Envelope {
        flags_offset: 0x2000,
        ..between(INTERNAL, REMOTE)
    };
    let mut frame = first.tcp(INTERNAL.port, REMOTE.port, tcp::ACK, &[1; 12]);
    let pseudo = checksum::pseudo_header(INTERNAL.addr, REMOTE.addr, 6, 32);
    frame[50..52].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let before = frame.clone();
    let packet = parse(&frame).unwrap();
    assert!(!complete_checksum(&mut frame, &packet));
    assert_eq!(frame, before);
}

#[test]
fn fragments_add_up_to_the_rewritten_datagram() {
    let envelope = between(INTERNAL, REMOTE);
    let data: Vec<u8> = (0..100).collect();
    let datagram = envelope.udp_datagram(INTERNAL.port, REMOTE.port, &data);
    let mut whole: Vec<u8> = Vec::new();
    for (at, end, more) in [(0, 48, 0x2000), (48, 96, 0x2000), (96, 108, 0)] {
        let part = Envelope {
            flags_offset: (at as u16 / 8) | more,
            ..envelope.clone()
        };
        let mut frame = part.frame(17, &datagram[at..end]);
        let packet = parse(&frame).unwrap();
        apply(&mut frame, &packet, &outbound(Protocol::Udp));
        let packet = parse(&frame).unwrap();
        assert_eq!(
            (packet.ipv4.source, packet.ipv4.destination),
            (EXTERNAL.addr, REMOTE.addr)
        );
        whole.extend(&frame[34..]);
    }
    assert_eq!(
        whole,
        between(EXTERNAL, REMOTE).udp_datagram(EXTERNAL.port, REMOTE.port, &data)
    );
}

/// RFC 5508 REQ-3 d: extensions pass unchanged, and nothing of them is taken for a checksum.
#[test]
fn extensions_stay_as_they_are() {
    let sample = samples::valid()
        .into_iter()
        .find(|s| s.name == "error-extended")
        .unwrap();
    let mut frame = sample.frame.clone();
    let packet = parse(&frame).unwrap();
    let Body::Error { embedded, .. } = packet.body else {
        panic!()
    };
    let old = embedded.tuple.reversed();
    apply_embedded(
        &mut frame,
        &packet,
        &rewrite(&old, REMOTE, EXTERNAL, Direction::Inbound),
        None,
    );
    assert_eq!(frame[embedded.end..], sample.frame[embedded.end..]);
    assert!(checksum::is_right(&frame[34..]));
    let Body::Error { embedded, .. } = parse(&frame).unwrap().body else {
        panic!()
    };
    assert_eq!(
        (embedded.tuple.source, embedded.tuple.destination),
        (EXTERNAL, REMOTE)
    );
}

#[test]
fn a_wrong_embedded_transport_checksum_keeps_its_error() {
    let mut about = between(EXTERNAL, REMOTE).udp(EXTERNAL.port, REMOTE.port, b"question");
    about[40] ^= 0x10;
    let mut frame = between(REMOTE, EXTERNAL).icmp_error(3, 3, &about, 548);
    let packet = parse(&frame).unwrap();
    let Body::Error { embedded, .. } = packet.body else {
        panic!()
    };
    let old = embedded.tuple.reversed();
    apply_embedded(
        &mut frame,
        &packet,
        &rewrite(&old, REMOTE, INTERNAL, Direction::Inbound),
        None,
    );
    let right = between(INTERNAL, REMOTE).udp(INTERNAL.port, REMOTE.port, b"question");
    let at = embedded.l4 + 6;
    assert_ne!(frame[at..at + 2], right[40..42]);
    let back = Tuple {
        protocol: Protocol::Udp,
        source: INTERNAL,
        destination: REMOTE,
    };
    let packet = parse(&frame).unwrap();
    apply_embedded(
        &mut frame,
        &packet,
        &rewrite(&back.reversed(), REMOTE, EXTERNAL, Direction::Inbound),
        None,
    );
    assert_eq!(frame[at..at + 2], about[40..42]);
}

#[test]
fn set_ethernet_changes_the_addresses_only() {
    let mut frame = between(INTERNAL, REMOTE).udp(1, 2, b"x");
    let before = frame.clone();
    set_ethernet(&mut frame, [2, 0, 0, 0, 0, 0xAA], [2, 0, 0, 0, 0, 0xBB]);
    assert_eq!(frame[..12], [2, 0, 0, 0, 0, 0xAA, 2, 0, 0, 0, 0, 0xBB]);
    assert_eq!(frame[12..], before[12..]);
}
