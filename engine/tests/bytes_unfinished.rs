//! Frames that come unfinished, as from a tun driver: partial checksums and super-packets through a
//! gateway in memory. What leaves is finished by a stand-in for the kernel and then judged as packets
//! on the wire.

mod bytes_support;

use bytes_support::*;
use engine::device::offload::Offload;
use engine::device::tap::SLOT_SIZE;
use engine::drop_reason::DropReason;
use engine::packet::{Body, parse};
use engine::route::RouteFacts;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, PSH, SYN};
use engine::wire::{icmp, ipv4, tcp};
use engine::world::{EXTERNAL, Setup, World, finish, transport_is_right, unfinish, unicast_route};
use proptest::prelude::*;

const MTU: usize = 1500;

fn big_world(more: &str) -> World {
    let setup = Setup {
        slot_size: SLOT_SIZE,
        slots: 128,
        ..Setup::default()
    };
    World::with(&format!("{TWO_ARM}{more}"), setup).unwrap()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn df(envelope: Envelope) -> Envelope {
    with_df(envelope)
}

/// The wire frames that leave by each interface after an unfinished frame came.
fn pass_unfinished(
    world: &mut World,
    interface: usize,
    frame: &[u8],
    offload: Offload,
) -> [Vec<Vec<u8>>; 2] {
    assert!(world.inject_unfinished(interface, frame, offload));
    world.run();
    world.check_frames().unwrap();
    assert_eq!(world.snapshot().imbalance(), 0);
    [INSIDE, OUTSIDE].map(|interface| world.take_sent(interface))
}

/// As [`pass_unfinished`], of a right frame that is made unfinished.
fn send(
    world: &mut World,
    interface: usize,
    mut frame: Vec<u8>,
    segment: Option<u16>,
) -> [Vec<Vec<u8>>; 2] {
    let offload = unfinish(&mut frame, segment);
    pass_unfinished(world, interface, &frame, offload)
}

#[track_caller]
fn all_right(frames: &[Vec<u8>]) {
    for frame in frames {
        assert_eq!(
            transport_is_right(frame),
            Some(true),
            "{:02x?}",
            &frame[..60]
        );
        assert!(frame.len() <= 14 + MTU, "{} bytes", frame.len());
        oracle::check([&frame[..]]).unwrap();
    }
}

/// The stream in segments that must follow each other.
#[track_caller]
fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = None;
    for frame in frames {
        let packet = parse(frame).unwrap();
        let Body::Flow { sequence, .. } = packet.body else {
            panic!("no segment: {packet:?}");
        };
        let header_len = tcp::Header::new(&frame[packet.l4..]).unwrap().header_len();
        let data = &frame[packet.l4 + header_len..];
        assert_eq!(sequence, next.unwrap_or(sequence));
        next = Some(sequence.wrapping_add(data.len() as u32));
        bytes.extend_from_slice(data);
    }
    bytes
}

/// Opens a TCP session from inside; the client's external port.
fn open(world: &mut World) -> u16 {
    let syn = df(inside(CLIENT, SERVER)).tcp(20_000, 80, SYN, b"");
    let [_, out] = send(world, INSIDE, syn, None);
    all_right(&out);
    let Body::Flow { tuple, .. } = parse(&out[0]).unwrap().body else {
        panic!("no SYN");
    };
    assert_eq!(tuple.source.addr, EXTERNAL);
    let port = tuple.source.port;
    let answer = df(outside(SERVER, EXTERNAL)).tcp(80, port, SYN | ACK, b"");
    let [back, _] = send(world, OUTSIDE, answer, None);
    all_right(&back);
    assert_eq!(parse(&back[0]).unwrap().ipv4.destination, CLIENT);
    port
}

#[test]
fn super_packets_are_translated_once_and_leave_right_in_both_directions() {
    let mut world = big_world("");
    let port = open(&mut world);
    for len in [1449, 5000, 65_000] {
        let data = payload(len);
        let frame = df(inside(CLIENT, SERVER)).tcp(20_000, 80, ACK | PSH, &data);
        let sent_before = world.snapshot().transmitted[OUTSIDE];
        let [_, out] = send(&mut world, INSIDE, frame, Some(1448));
        assert_eq!(
            world.snapshot().transmitted[OUTSIDE],
            sent_before + 1,
            "one frame"
        );
        assert_eq!(out.len(), len.div_ceil(1448));
        all_right(&out);
        assert_eq!(stream(&out), data);
        assert_eq!(parse(&out[0]).unwrap().ipv4.source, EXTERNAL);
        let frame = df(outside(SERVER, EXTERNAL)).tcp(80, port, ACK | PSH, &data);
        let [back, _] = send(&mut world, OUTSIDE, frame, Some(1448));
        all_right(&back);
        assert_eq!(stream(&back), data);
        assert_eq!(parse(&back[0]).unwrap().ipv4.destination, CLIENT);
    }
    assert_eq!(
        world.snapshot().checksums_completed,
        0,
        "left to the kernel"
    );
    assert_eq!(world.snapshot().split, 0);
}

#[test]
fn hairpin_changes_both_ends_of_a_partial_checksum() {
    let mut world = big_world(FORWARD);
    let frame = inside(CLIENT, EXTERNAL).udp(20_000, 8443, &payload(900));
    let [back, _] = send(&mut world, INSIDE, frame, None);
    all_right(&back);
    let packet = parse(&back[0]).unwrap();
    assert_eq!(
        (packet.ipv4.source, packet.ipv4.destination),
        (EXTERNAL, OTHER)
    );
}

/// What the kernel says is whole is not touched, even if it looks partial: it is a wrong checksum.
#[test]
fn a_whole_checksum_that_looks_partial_stays_as_wrong_as_it_is() {
    let setup = Setup {
        transport: false,
        ..Setup::default()
    };
    let mut world = World::with(TWO_ARM, setup).unwrap();
    let mut frame = inside(CLIENT, SERVER).udp(20_000, 53, &payload(100));
    unfinish(&mut frame, None);
    assert_eq!(transport_is_right(&frame), Some(false));
    let [_, out] = pass_unfinished(&mut world, INSIDE, &frame, Offload::WHOLE);
    assert_eq!(transport_is_right(&out[0]), Some(false));
    // And with no word about it, it is completed.
    let [_, out] = pass_unfinished(&mut world, INSIDE, &frame, Offload::NONE);
    all_right(&out);
    assert_eq!(world.snapshot().checksums_completed, 1);
}

/// A world with a smaller MTU on the way out.
fn narrow(mtu: u16) -> World {
    let mut world = big_world("");
    open(&mut world);
    world.set_mtu(OUTSIDE, mtu);
    world
}

#[test]
fn segments_that_are_too_big_are_answered_with_the_mtu_and_a_right_quote() {
    let mut world = narrow(1400);
    let data = payload(30_000);
    let frame = df(inside(CLIENT, SERVER)).tcp(20_000, 80, ACK | PSH, &data);
    let [back, out] = send(&mut world, INSIDE, frame.clone(), Some(1448));
    assert!(out.is_empty());
    assert_eq!(back.len(), 1);
    all_right(&back);
    assert_eq!(icmp_type(&back[0]), [3, 4]);
    assert_eq!(u16::from_be_bytes([back[0][40], back[0][41]]), 1400);
    // The quote is of the first segment, as its sender's network card would have sent it.
    let quote = &back[0][42..];
    assert_eq!(u16::from_be_bytes([quote[2], quote[3]]), 40 + 1448);
    let mut super_packet = frame.clone();
    let offload = unfinish(&mut super_packet, Some(1448));
    let first = finish(&super_packet, offload).swap_remove(0);
    assert_eq!(transport_is_right(&first), Some(true));
    assert_eq!(quote, &first[14..14 + quote.len()]);
    assert_eq!(
        world.snapshot().dropped[DropReason::FragmentationNeeded as usize],
        1
    );
}

#[test]
fn a_super_packet_above_the_mtu_goes_on_if_its_segments_fit() {
    let mut world = narrow(1400);
    let data = payload(30_000);
    let frame = df(inside(CLIENT, SERVER)).tcp(20_000, 80, ACK, &data);
    let [back, out] = send(&mut world, INSIDE, frame, Some(1360));
    assert!(back.is_empty());
    all_right(&out);
    assert_eq!(stream(&out), data);
}

#[test]
fn without_df_a_stream_leaves_in_smaller_segments() {
    let mut world = narrow(1400);
    let data = payload(30_000);
    let frame = inside(CLIENT, SERVER).tcp(20_000, 80, ACK | FIN, &data);
    let [back, out] = send(&mut world, INSIDE, frame, Some(1448));
    assert!(back.is_empty());
    all_right(&out);
    assert!(
        out.iter()
            .all(|frame| frame.len() <= 14 + 1400 && !place(frame).1)
    );
    assert_eq!(stream(&out), data);
    assert_eq!(out.last().unwrap()[34 + tcp::FLAGS], ACK | FIN);
}

#[test]
fn without_df_datagrams_that_are_too_big_leave_in_fragments() {
    let mut world = narrow(1000);
    let data = payload(3300);
    let frame = inside(CLIENT, SERVER).udp(20_000, 53, &data);
    let [back, out] = send(&mut world, INSIDE, frame, Some(1200));
    assert!(back.is_empty());
    assert!(out.iter().all(|frame| frame.len() <= 14 + 1000));
    let mut came = Vec::new();
    // Two fragments for each of the first two datagrams, one packet for the third.
    assert_eq!(out.len(), 5);
    for datagram in [&out[..2], &out[2..4], &out[4..]] {
        let (source, destination, bytes) = assemble(datagram);
        assert_eq!((source, destination), (EXTERNAL, SERVER));
        let mut whole = Envelope::new(source, destination).frame(17, &bytes);
        assert_eq!(transport_is_right(&whole), Some(true));
        came.extend(whole.split_off(42));
    }
    assert_eq!(came, data);
    let snapshot = world.snapshot();
    assert_eq!((snapshot.split, snapshot.imbalance()), (1, 0));
}

/// What super-packets and single packets become has the identifications of one sequence, each once, and
/// a quote of any gets its own back.
#[test]
fn without_df_every_packet_of_a_super_packet_has_an_identification_of_its_own() {
    for (mtu, each) in [(1500, 1448), (1400, 1360)] {
        let mut world = narrow(mtu);
        let mut next = None;
        for len in [60_000, 1, 1448, 30_000, 60_000] {
            let envelope = Envelope {
                identification: 65_500,
                ..inside(CLIENT, SERVER)
            };
            let frame = envelope.tcp(20_000, 80, ACK, &payload(len));
            let [_, out] = send(&mut world, INSIDE, frame, (len > 1).then_some(1448));
            assert_eq!(out.len(), len.div_ceil(each));
            for frame in &out {
                let number = identification(frame);
                assert_eq!(number, next.unwrap_or(number), "{len} bytes by {mtu}");
                next = Some(number.wrapping_add(1));
            }
            let middle = out.len() / 2;
            let error = outside(BEYOND, EXTERNAL).icmp(11, 0, [0; 4], packet(&out[middle]));
            let [back, _] = pass_unfinished(&mut world, OUTSIDE, &error, Offload::NONE);
            let original = u16::from_be_bytes([back[0][46], back[0][47]]);
            assert_eq!(original, 65_500_u16.wrapping_add(middle as u16));
        }
    }
}

fn identification(frame: &[u8]) -> u16 {
    parse(frame).unwrap().ipv4.identification
}

/// Of one sequence: those of the second begin where those of the first end.
#[test]
fn without_df_datagrams_that_are_sent_together_share_no_identification() {
    let mut world = big_world("");
    let mut next = None;
    for client in [CLIENT, OTHER, CLIENT] {
        let frame = inside(client, SERVER).udp(20_000, 53, &payload(30_000));
        let [_, out] = send(&mut world, INSIDE, frame, Some(1200));
        assert_eq!(out.len(), 25);
        for frame in &out {
            let number = identification(frame);
            assert_eq!(number, next.unwrap_or(number));
            next = Some(number.wrapping_add(1));
        }
    }
}

#[test]
fn a_packet_that_is_cut_has_its_checksum_completed_first() {
    let mut world = narrow(1000);
    let frame = inside(CLIENT, SERVER).udp(20_000, 53, &payload(1400));
    let [_, out] = send(&mut world, INSIDE, frame, None);
    assert_eq!(out.len(), 2);
    let (source, destination, bytes) = assemble(&out);
    let whole = Envelope::new(source, destination).frame(17, &bytes);
    assert_eq!(transport_is_right(&whole), Some(true));
    assert_eq!(whole[42..], payload(1400));
}

#[test]
fn a_packet_above_any_mtu_that_is_no_super_packet_is_cut_or_answered() {
    let mut world = narrow(1400);
    let data = payload(20_000);
    let frame = inside(CLIENT, SERVER).udp(20_000, 53, &data);
    let [_, out] = send(&mut world, INSIDE, frame, None);
    assert_eq!(assemble(&out).2[8..], data);
    let frame = df(inside(CLIENT, SERVER)).udp(20_000, 53, &data);
    let [back, out] = send(&mut world, INSIDE, frame, None);
    assert!(out.is_empty());
    assert_eq!(icmp_type(&back[0]), [3, 4]);
}

#[test]
fn a_super_packet_whose_ttl_ends_here_is_answered() {
    let mut world = big_world("");
    open(&mut world);
    let last_hop = Envelope {
        ttl: 1,
        ..df(inside(CLIENT, SERVER))
    };
    let frame = last_hop.tcp(20_000, 80, ACK, &payload(9000));
    let [back, out] = send(&mut world, INSIDE, frame, Some(1448));
    assert!(out.is_empty());
    assert_eq!(icmp_type(&back[0]), [icmp::TIME_EXCEEDED, 0]);
    assert_eq!(u16::from_be_bytes([back[0][44], back[0][45]]), 1488);
}

/// What belongs to nobody here is reset, whether or not its checksum is there yet.
#[test]
fn a_segment_of_no_session_is_reset() {
    let mut world = big_world("[nat]\nmidstream = \"reset\"\n");
    let frame = df(inside(CLIENT, SERVER)).tcp(20_001, 80, ACK, &payload(9000));
    let [back, out] = send(&mut world, INSIDE, frame, Some(1448));
    assert!(out.is_empty());
    all_right(&back);
    assert_eq!(back[0].len(), 54);
    assert_eq!(back[0][34 + tcp::FLAGS] & tcp::RST, tcp::RST);
}

/// What is the host's goes there as it came.
#[test]
fn a_punted_super_packet_is_still_to_be_finished() {
    let mut world = big_world("");
    let data = payload(20_000);
    let frame = df(outside(SERVER, EXTERNAL)).tcp(80, 50_000, ACK, &data);
    let out = send(&mut world, OUTSIDE, frame, Some(1448));
    assert!(out.iter().all(Vec::is_empty));
    let punted: Vec<Vec<u8>> = world
        .take_punted()
        .into_iter()
        .map(|(_, frame)| frame)
        .collect();
    all_right(&punted);
    assert_eq!(stream(&punted), data);
}

/// A hop keeps what waits for it whole, and a smaller MTU is seen when it leaves.
#[test]
fn a_super_packet_waits_for_its_next_hop() {
    const NEAR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(203, 0, 113, 1);
    let route: RouteFacts = unicast_route("198.18.0.0/16".parse().unwrap(), OUTSIDE, Some(NEAR));
    let setup = Setup {
        slot_size: SLOT_SIZE,
        slots: 128,
        routes: vec![route],
        answer: false,
        ..Setup::default()
    };
    let mut world = World::with(TWO_ARM, setup).unwrap();
    let data = payload(3000);
    let far = std::net::Ipv4Addr::new(198, 18, 0, 9);
    let frame = df(inside(CLIENT, far)).udp(20_000, 53, &data);
    let [_, out] = send(&mut world, INSIDE, frame, Some(1200));
    assert!(out.is_empty());
    world.set_answer(true);
    world.run();
    world.run();
    let out = world.take_sent(OUTSIDE);
    assert_eq!(out.len(), 3);
    all_right(&out);
    assert_eq!(
        out.iter()
            .flat_map(|frame| frame[42..].to_vec())
            .collect::<Vec<u8>>(),
        data
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sizes and ports are, with and without a session that is known already.
    #[test]
    fn what_leaves_is_what_came(
        len in 1_usize..20_000,
        segment in 8_u16..1448,
        port in 1024_u16..,
        is_tcp: bool,
        seed: u64,
    ) {
        let setup = Setup { slot_size: SLOT_SIZE, slots: 64, seed, ..Setup::default() };
        let mut world = World::with(TWO_ARM, setup).unwrap();
        let data = payload(len);
        let envelope = df(inside(CLIENT, SERVER));
        if is_tcp {
            let syn = envelope.tcp(port, 80, SYN, b"");
            let [_, out] = send(&mut world, INSIDE, syn, None);
            all_right(&out);
            let answer = tcp_answer(&out[0]);
            send(&mut world, OUTSIDE, answer, None);
        }
        for _ in 0..2 {
            let frame = match is_tcp {
                true => envelope.tcp(port, 80, ACK, &data),
                false => envelope.udp(port, 53, &data),
            };
            let one = len <= usize::from(segment);
            let [_, out] = send(&mut world, INSIDE, frame, (!one).then_some(segment));
            prop_assert_eq!(out.len(), len.div_ceil(segment.into()));
            all_right(&out);
            let came: Vec<u8> = match is_tcp {
                true => stream(&out),
                false => out.iter().flat_map(|frame| frame[42..].to_vec()).collect(),
            };
            prop_assert_eq!(&came, &data);
            prop_assert!(out.iter().all(|frame| header(frame).source() == EXTERNAL));
            prop_assert!(out.iter().all(|frame| frame[14 + ipv4::TTL] == 63));
        }
    }
}

/// The server's SYN+ACK to a translated SYN.
fn tcp_answer(syn: &[u8]) -> Vec<u8> {
    let Body::Flow { tuple, .. } = parse(syn).unwrap().body else {
        panic!("no SYN");
    };
    df(outside(SERVER, EXTERNAL)).tcp(80, tuple.source.port, SYN | ACK, b"")
}
