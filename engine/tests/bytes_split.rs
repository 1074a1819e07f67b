//! Packets that are too big for the link they leave by (RFC 4787 REQ-13, RFC 791 section 3.2).

mod bytes_support;

use bytes_support::*;
use engine::drop_reason::DropReason;
use engine::wire::build::Envelope;
use engine::wire::ipv4;
use engine::wire::tcp::{ACK, SYN};
use engine::world::{EXTERNAL, World};

/// Record route and no operation, which only the first piece keeps, and router alert, which all do.
const OPTIONS: [u8; 12] = [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0];
const COPIED: [u8; 4] = [148, 4, 0, 0];

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 % 251) as u8).collect()
}

/// Too big packets of each protocol and direction, after which the next is known.
fn packets(options: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let with = |envelope: Envelope| Envelope {
        options: options.to_vec(),
        ..envelope
    };
    let out = with(inside(CLIENT, SERVER));
    let back = with(outside(SERVER, EXTERNAL));
    let data = &text(1401);
    vec![
        (INSIDE, out.udp(20_000, 53, data)),
        (OUTSIDE, back.udp(53, 20_000, data)),
        (INSIDE, out.tcp(20_000, 80, SYN, data)),
        (OUTSIDE, back.tcp(80, 20_000, SYN | ACK, data)),
        (INSIDE, out.echo_request(7, data)),
        (OUTSIDE, back.echo_reply(7, data)),
    ]
}

/// The bytes after the IPv4 header.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[14 + header(frame).header_len()..]
}

/// Each piece of a packet fits, holds a multiple of 8 bytes unless it is the last, and comes in order.
#[track_caller]
fn check_pieces(pieces: &[Vec<u8>], mtu: u16) {
    for (number, piece) in pieces.iter().enumerate() {
        assert!(header(piece).total_len() <= mtu);
        let more = place(piece).1;
        assert_eq!(more, number + 1 < pieces.len());
        assert!(!more || payload(piece).len().is_multiple_of(8));
        // As full as it can be.
        let room = (usize::from(mtu) - header(piece).header_len()) & !7;
        assert!(!more || payload(piece).len() == room);
        assert_eq!(header(piece).ttl(), 63);
    }
    let offsets: Vec<usize> = pieces.iter().map(|piece| place(piece).0).collect();
    assert!(offsets.is_sorted());
}

#[test]
fn rfc4787_13a_a_packet_without_df_is_cut_in_order() {
    for mtu in [68, 69, 75, 76, 256, 576, 1280, 1400] {
        let mut world = world("");
        for (interface, whole) in packets(&[]) {
            world.set_mtu(1 - interface, 1500);
            let sent = through(&mut world, interface, &whole);
            world.set_mtu(1 - interface, mtu);
            let pieces = all(&mut world, interface, std::slice::from_ref(&whole));
            assert!(pieces.len() > 1);
            check_pieces(&pieces, mtu);
            let (source, destination, bytes) = assemble(&pieces);
            assert_eq!(source, header(&sent).source());
            assert_eq!(destination, header(&sent).destination());
            assert_eq!(bytes, payload(&sent));
            oracle::check(pieces.iter().map(|piece| &piece[..])).unwrap();
        }
        assert_eq!(world.snapshot().split, 6);
        world.check_invariants().unwrap();
    }
}

#[test]
fn rfc4787_13a_only_options_to_be_copied_are_in_later_pieces() {
    for mtu in [68, 576, 1280] {
        let mut world = world("");
        for (interface, whole) in packets(&OPTIONS) {
            world.set_mtu(1 - interface, 1500);
            let sent = through(&mut world, interface, &whole);
            world.set_mtu(1 - interface, mtu);
            let pieces = all(&mut world, interface, std::slice::from_ref(&whole));
            check_pieces(&pieces, mtu);
            assert_eq!(assemble(&pieces).2, payload(&sent));
            assert_eq!(pieces[0][34..46], OPTIONS);
            for piece in &pieces[1..] {
                assert_eq!(
                    (header(piece).header_len(), &piece[34..38]),
                    (24, &COPIED[..])
                );
            }
        }
    }
}

/// The smallest MTU and the longest header leave room for 8 bytes (RFC 791).
#[test]
fn rfc4787_13a_the_longest_header_at_the_smallest_mtu() {
    let options: Vec<u8> = COPIED.repeat(10);
    let mut world = world("");
    let whole = Envelope {
        options: options.clone(),
        ..inside(CLIENT, SERVER)
    }
    .udp(20_000, 53, &text(400));
    let sent = through(&mut world, INSIDE, &whole);
    world.set_mtu(OUTSIDE, 68);
    let pieces = all(&mut world, INSIDE, std::slice::from_ref(&whole));
    assert_eq!(pieces.len(), 51);
    check_pieces(&pieces, 68);
    assert_eq!(assemble(&pieces).2, payload(&sent));
    assert!(pieces.iter().all(|piece| piece[34..74] == options));
}

/// A packet that waits for its next hop is cut for the link as it is when it leaves. With DF it is lost:
/// it was changed already, so that it cannot be quoted to its sender any more.
#[test]
fn rfc4787_13_an_mtu_that_shrinks_while_a_packet_is_held_counts() {
    for (len, mtu, pieces) in [(1401, 576, 3), (1401, 1500, 1), (1700, 1500, 2)] {
        let mut world = world("");
        world.set_answer(false);
        let data = &text(len);
        let whole = inside(CLIENT, SERVER).udp(20_000, 53, data);
        let marked = with_df(inside(CLIENT, SERVER)).udp(20_000, 53, &text(1401));
        assert!(all(&mut world, INSIDE, &[whole.clone(), marked]).is_empty());
        assert_eq!(world.snapshot().held, 2);
        world.set_mtu(OUTSIDE, mtu);
        world.set_answer(true);
        world.run();
        world.run();
        let mut sent = world.take_sent(OUTSIDE);
        if mtu < 1500 {
            assert_eq!(drops(&world), [(DropReason::FragmentationNeeded, 1)]);
        } else {
            sent.pop().expect("the one with DF fits");
            assert_eq!(drops(&world), []);
        }
        assert_eq!(sent.len(), pieces);
        check_pieces(&sent, mtu);
        assert_eq!(assemble(&sent).2[8..], text(len));
        world.check_invariants().unwrap();
    }
}

/// A fragment that is cut again keeps its place in the datagram, and only the last piece of the last
/// fragment ends it.
#[test]
fn rfc4787_13a_fragments_are_cut_again() {
    for (interface, whole) in packets(&[]) {
        let mut world = world("");
        packets(&[]).iter().for_each(|(interface, whole)| {
            pass(&mut world, *interface, whole);
        });
        let sent = pass(&mut world, interface, &whole).concat();
        world.set_mtu(1 - interface, 300);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]] {
            let parts = cut(&whole, 9, 3);
            let arriving = order.map(|number| parts[number].clone());
            let mut pieces = all(&mut world, interface, &arriving);
            assert_eq!(pieces.len(), 6, "two a fragment");
            assert!(pieces.iter().all(|piece| header(piece).total_len() <= 300));
            assert_eq!(assemble(&pieces).2, payload(&sent[0]));
            // The pieces of each fragment are in order.
            assert!(
                pieces
                    .chunks(2)
                    .all(|pair| place(&pair[0]).0 < place(&pair[1]).0)
            );
            pieces.sort_by_key(|piece| place(piece).0);
            assert!(pieces[..5].iter().all(|piece| place(piece).1) && !place(&pieces[5]).1);
        }
        world.check_invariants().unwrap();
    }
}

/// DF holds for fragments, too: the first one is answered, of the others RFC 1812 forbids it.
#[test]
fn rfc4787_13_a_fragment_with_df_is_answered_and_not_cut() {
    let mut world = world("");
    let whole = inside(CLIENT, SERVER).udp(20_000, 53, &text(1401));
    let mut parts = cut(&whole, 9, 2);
    for part in &mut parts {
        set_flag(part, ipv4::DONT_FRAGMENT);
    }
    world.set_mtu(OUTSIDE, 576);
    let told = answer(&mut world, INSIDE, &parts[0]);
    assert_eq!(
        (icmp_type(&told), &told[40..42]),
        ([3, 4], &576u16.to_be_bytes()[..])
    );
    silence(&mut world, INSIDE, &parts[1]);
    assert_eq!(drops(&world), [(DropReason::FragmentationNeeded, 2)]);
    // With room enough it passes, with its flag.
    world.set_mtu(OUTSIDE, 1500);
    let sent = all(&mut world, INSIDE, &parts);
    assert!(
        sent.iter()
            .all(|frame| header(frame).flags_offset() & ipv4::DONT_FRAGMENT != 0)
    );
    assert_eq!(sent.len(), 2);
}

fn drops(world: &World) -> Vec<(DropReason, u64)> {
    world.snapshot().drops().collect()
}

fn set_flag(frame: &mut [u8], flag: u16) {
    let mut header = ipv4::HeaderMut::new(&mut frame[14..]).unwrap();
    let flags_offset = header.as_ref().flags_offset();
    header.set_flags_offset(flags_offset | flag);
    header.set_checksum(0);
    let sum = !engine::wire::checksum::sum(&frame[14..34]);
    ipv4::HeaderMut::new(&mut frame[14..])
        .unwrap()
        .set_checksum(sum);
}
