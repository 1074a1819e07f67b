//! Fragments: every order, every limit, overlaps, floods, expiry; and cutting packets up.

use std::net::Ipv4Addr;

use conntrack::{Realm, Time, Tuple};
use engine::drop_reason::DropReason;
use engine::fragment::{
    Decision, FragmentLimits, FragmentTable, FragmentTotals, Held, Later, Passage, Splitter,
};
use engine::packet::{Body, Packet, parse};
use engine::wire::build::Envelope;
use engine::wire::{checksum, ipv4, samples};
use proptest::prelude::*;

const INSIDE: Realm = Realm::Internal;
/// The identification that datagrams get.
const NEW: u16 = 4321;

fn passage(tuple: Tuple) -> Passage {
    Passage {
        tuple,
        identification: Some(NEW),
    }
}

fn translate(tuple: Tuple) -> Decision {
    Decision::Translate(passage(tuple))
}

fn envelope(source: u32, identification: u16) -> Envelope {
    let source = Ipv4Addr::from_bits(0x0A00_0000 + source);
    Envelope {
        identification,
        ..Envelope::new(source, samples::DESTINATION)
    }
}

/// A UDP datagram cut into parts of `part` bytes.
fn fragments(envelope: &Envelope, ports: (u16, u16), data: usize, part: usize) -> Vec<Vec<u8>> {
    let data: Vec<u8> = (0..data).map(|n| n as u8).collect();
    let datagram = envelope.udp_datagram(ports.0, ports.1, &data);
    let parts = datagram.chunks(part).count();
    let frame = |(index, bytes): (usize, &[u8])| {
        let more = if index + 1 < parts {
            ipv4::MORE_FRAGMENTS
        } else {
            0
        };
        let flags_offset = (index * part / 8) as u16 | more;
        Envelope {
            flags_offset,
            ..envelope.clone()
        }
        .frame(17, bytes)
    };
    datagram.chunks(part).enumerate().map(frame).collect()
}

fn limits() -> FragmentLimits {
    FragmentLimits {
        datagrams_max: 64,
        copies_max: 32,
        ..FragmentLimits::default()
    }
}

/// The gateway's use of the table: what leaves, in order, or why not.
struct Gateway {
    table: FragmentTable,
    sent: Vec<(Vec<u8>, Tuple)>,
    dropped: Vec<DropReason>,
    decision: fn(Tuple) -> Decision,
    punted: usize,
}

impl Gateway {
    fn new(limits: FragmentLimits) -> Gateway {
        Gateway {
            table: FragmentTable::new(&limits, 0x1234_5678_9ABC_DEF0),
            sent: Vec::new(),
            dropped: Vec::new(),
            decision: translate,
            punted: 0,
        }
    }

    fn receive(&mut self, frame: &[u8], now: u64) {
        let packet = parse(frame).unwrap();
        let result = match packet.body {
            Body::Flow { tuple, .. } => self.first(frame, &packet, tuple, now),
            _ => self.later(frame, &packet, now),
        };
        if let Err(reason) = result {
            self.dropped.push(reason);
        }
    }

    fn first(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        tuple: Tuple,
        now: u64,
    ) -> Result<(), DropReason> {
        let recorded = self
            .table
            .first(packet, INSIDE, (self.decision)(tuple), Time(now))?;
        self.sent.push((frame.to_vec(), tuple));
        let mut slot = [0; 4096];
        let mut taken = 0;
        while let Some(Held { len, interface }) = self.table.take(packet, &mut slot) {
            assert_eq!(interface, 5);
            taken += 1;
            let frame = slot[..len].to_vec();
            self.receive(&frame, now);
        }
        assert_eq!(recorded.waits, taken > 0);
        Ok(())
    }

    fn later(&mut self, frame: &[u8], packet: &Packet, now: u64) -> Result<(), DropReason> {
        match self.table.later(packet, INSIDE, frame, 5, Time(now))? {
            Later::Translate(passage) => {
                assert_eq!(passage.identification, Some(NEW));
                self.sent.push((frame.to_vec(), passage.tuple));
            }
            Later::Punt => self.punted += 1,
            Later::Held => {}
        }
        Ok(())
    }

    fn expired(&self, now: u64) -> Vec<Vec<u8>> {
        let mut slot = [0; 4096];
        std::iter::from_fn(|| {
            self.table
                .expire(Time(now), &mut slot)
                .map(|held| slot[..held.len].to_vec())
        })
        .collect()
    }

    /// Everything that left, as it left.
    fn frames(&self) -> Vec<Vec<u8>> {
        self.sent.iter().map(|(frame, _)| frame.clone()).collect()
    }
}

const NOTHING: FragmentTotals = FragmentTotals {
    datagrams: 0,
    copies: 0,
};

#[test]
fn rfc4787_14_three_fragments_in_every_order() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut gateway = Gateway::new(limits());
        let parts = fragments(&envelope(1, 7), (1000, 53), 60, 24);
        assert_eq!(parts.len(), 3);
        for index in order {
            gateway.receive(&parts[index], 1000);
        }
        // The first fragment leaves first, then the others as they came.
        let first = order.iter().position(|&index| index == 0).unwrap();
        let mut expected = vec![parts[0].clone()];
        expected.extend(order[..first].iter().map(|&index| parts[index].clone()));
        expected.extend(order[first + 1..].iter().map(|&index| parts[index].clone()));
        assert_eq!(gateway.frames(), expected, "{order:?}");
        let ports = gateway
            .sent
            .iter()
            .map(|(_, t)| (t.source.port, t.destination.port));
        assert!(ports.into_iter().all(|ports| ports == (1000, 53)));
        // A datagram that has passed is forgotten at once.
        assert_eq!(gateway.table.totals(), NOTHING, "{order:?}");
        assert_eq!(gateway.dropped, []);
    }
}

#[test]
fn the_largest_datagram_backwards_and_in_two_halves() {
    let parts = fragments(&envelope(1, 7), (1000, 53), 65_000, 1480);
    let odd = (1..parts.len()).step_by(2);
    let mut gateway = Gateway::new(FragmentLimits::default());
    let backwards: Vec<usize> = (0..parts.len()).rev().collect();
    let halves: Vec<usize> = (0..parts.len()).step_by(2).chain(odd).collect();
    for order in [backwards, halves] {
        gateway.sent.clear();
        for &index in &order {
            gateway.receive(&parts[index], 1000);
        }
        assert_eq!(gateway.sent.len(), parts.len());
        assert_eq!(gateway.dropped, []);
        assert_eq!(gateway.table.totals(), NOTHING);
    }
}

#[test]
fn later_fragments_share_the_fate_of_the_first() {
    let parts = fragments(&envelope(1, 7), (1000, 53), 60, 24);
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut gateway = Gateway::new(limits());
        gateway.decision = |_| Decision::Punt;
        order
            .iter()
            .for_each(|&index| gateway.receive(&parts[index], 0));
        assert_eq!(gateway.punted, 2);
        let mut gateway = Gateway::new(limits());
        gateway.decision = |_| Decision::Drop(DropReason::PortsExhausted);
        order
            .iter()
            .for_each(|&index| gateway.receive(&parts[index], 0));
        assert_eq!(gateway.dropped, [DropReason::PortsExhausted; 2]);
        assert_eq!(gateway.table.totals(), NOTHING);
    }
}

#[test]
fn datagrams_differ_by_each_part_of_their_key() {
    let one = envelope(1, 7);
    let others = [
        Envelope {
            identification: 8,
            ..one.clone()
        },
        Envelope {
            source: Ipv4Addr::new(10, 0, 0, 2),
            ..one.clone()
        },
        Envelope {
            destination: Ipv4Addr::new(192, 0, 2, 10),
            ..one.clone()
        },
    ];
    let mut gateway = Gateway::new(limits());
    gateway.receive(&fragments(&one, (1000, 53), 60, 24)[0], 0);
    for other in others {
        gateway.receive(&fragments(&other, (1000, 53), 60, 24)[1], 0);
    }
    let later = Envelope {
        flags_offset: 3,
        ..one
    };
    gateway.receive(&later.frame(1, &[0; 24]), 0);
    assert_eq!((gateway.sent.len(), gateway.table.totals().copies), (1, 4));
}

#[test]
fn copies_expire_exactly_in_time_and_in_order() {
    let mut gateway = Gateway::new(limits());
    let parts = fragments(&envelope(1, 7), (1000, 53), 80, 24);
    gateway.receive(&parts[2], 1000);
    gateway.receive(&parts[1], 1500);
    assert_eq!(gateway.expired(2999), Vec::<Vec<u8>>::new());
    // Counted from the first one that came.
    assert_eq!(gateway.expired(3000), [parts[2].clone(), parts[1].clone()]);
    assert_eq!(gateway.table.totals(), NOTHING);
}

#[test]
fn a_first_fragment_that_comes_too_late_gets_no_copies() {
    let mut gateway = Gateway::new(limits());
    let parts = fragments(&envelope(1, 7), (1000, 53), 60, 24);
    gateway.receive(&parts[1], 1000);
    gateway.receive(&parts[0], 3000);
    assert_eq!(gateway.frames(), [parts[0].clone()]);
    // Its own datagram goes on.
    gateway.receive(&parts[2], 3000);
    assert_eq!(gateway.sent.len(), 2);
    assert_eq!(gateway.expired(3000), [parts[1].clone()]);
    // What it decided is forgotten, too.
    gateway.receive(&parts[1], 5000);
    assert_eq!((gateway.sent.len(), gateway.table.totals().copies), (2, 1));
    gateway.expired(7000);
    assert_eq!(gateway.table.totals(), NOTHING);
}

#[test]
fn the_timeout_can_be_changed() {
    let mut gateway = Gateway::new(limits());
    gateway.table.set_timeout_ms(30_000);
    let parts = fragments(&envelope(1, 7), (1000, 53), 60, 24);
    gateway.receive(&parts[1], 0);
    assert_eq!(gateway.expired(29_999).len(), 0);
    assert_eq!(gateway.expired(30_000).len(), 1);
}

#[test]
fn copies_that_the_caller_has_no_frames_for_expire() {
    let gateway = Gateway::new(limits());
    let parts = fragments(&envelope(1, 7), (1000, 53), 60, 24);
    let packets: Vec<Packet> = parts.iter().map(|part| parse(part).unwrap()).collect();
    gateway
        .table
        .later(&packets[1], INSIDE, &parts[1], 5, Time(0))
        .unwrap();
    // Nothing is given out before the first fragment's fate is known.
    assert_eq!(gateway.table.take(&packets[0], &mut [0; 2048]), None);
    let Body::Flow { tuple, .. } = packets[0].body else {
        panic!()
    };
    let recorded = gateway
        .table
        .first(&packets[0], INSIDE, translate(tuple), Time(10));
    assert!(recorded.unwrap().waits);
    assert_eq!(gateway.expired(1999).len(), 0);
    assert_eq!(gateway.expired(2000), [parts[1].clone()]);
    assert_eq!(gateway.table.totals(), NOTHING);
}

/// A part of a datagram at any place.
fn part(identification: u16, offset: u16, len: usize, more: bool) -> Vec<u8> {
    let more = if more { ipv4::MORE_FRAGMENTS } else { 0 };
    let envelope = envelope(1, identification);
    Envelope {
        flags_offset: (offset / 8) | more,
        ..envelope
    }
    .frame(17, &vec![7; len])
}

#[test]
fn overlapping_fragments_give_up_their_datagram() {
    let bad = |frames: &[Vec<u8>]| {
        let mut gateway = Gateway::new(limits());
        let parts = fragments(&envelope(1, 7), (1000, 53), 120, 32);
        gateway.receive(&parts[0], 0);
        gateway.receive(&parts[1], 0);
        frames.iter().for_each(|frame| gateway.receive(frame, 0));
        assert_eq!(gateway.dropped, vec![DropReason::FragmentBad; frames.len()]);
        // Nothing of it passes any more, not even what would have been good.
        gateway.receive(&parts[2], 0);
        assert_eq!(gateway.dropped.len(), frames.len() + 1, "{}", frames.len());
        assert_eq!(gateway.sent.len(), 2);
        // Until it is forgotten.
        gateway.receive(&parts[0], 2000);
        assert_eq!(gateway.sent.len(), 3);
    };
    bad(&[part(7, 56, 16, true)]); // over the end of the second
    bad(&[part(7, 8, 96, false)]); // around the second
    bad(&[part(7, 40, 8, false)]); // an end before what has passed
    let mut other_ports = fragments(&envelope(1, 7), (1001, 53), 120, 32);
    bad(&[other_ports.swap_remove(0)]);
    let mut longer = fragments(&envelope(1, 7), (1000, 53), 120, 40);
    bad(&[longer.swap_remove(0)]);
}

#[test]
fn a_duplicate_is_dropped_alone() {
    let mut gateway = Gateway::new(limits());
    let parts = fragments(&envelope(1, 7), (1000, 53), 120, 32);
    gateway.receive(&parts[0], 0);
    gateway.receive(&parts[1], 0);
    gateway.receive(&parts[1], 0);
    // Within what has passed it is not told from a duplicate: what came first, counts.
    gateway.receive(&part(7, 24, 16, true), 0);
    assert_eq!(gateway.dropped, [DropReason::FragmentBad; 2]);
    parts[2..].iter().for_each(|part| gateway.receive(part, 0));
    assert_eq!(gateway.sent.len(), parts.len());
    assert_eq!(gateway.table.totals(), NOTHING);
}

/// A fast sender uses an identification again before the timeout; the datagram before lost a
/// fragment.
#[test]
fn an_identification_used_again_starts_again() {
    let mut gateway = Gateway::new(limits());
    let parts = fragments(&envelope(1, 7), (1000, 53), 60, 24);
    gateway.receive(&parts[0], 0);
    gateway.receive(&parts[1], 0);
    parts.iter().for_each(|part| gateway.receive(part, 100));
    assert_eq!((gateway.sent.len(), gateway.dropped.len()), (5, 0));
    assert_eq!(gateway.table.totals(), NOTHING);
}

/// A first fragment that comes twice: its datagram keeps the identification that it got, or what has
/// left and what will would not be put together.
#[test]
fn a_repeated_first_fragment_keeps_its_new_identification() {
    let table = FragmentTable::new(&limits(), 1);
    let first = parse(&fragments(&envelope(1, 7), (1000, 53), 60, 24)[0]).unwrap();
    let Body::Flow { tuple, .. } = first.body else {
        panic!()
    };
    let decision = |identification| {
        Decision::Translate(Passage {
            tuple,
            identification: Some(identification),
        })
    };
    for (new, ms, kept) in [(1, 0, 1), (2, 1_000, 1), (3, 2_999, 1), (4, 4_999, 4)] {
        let recorded = table
            .first(&first, INSIDE, decision(new), Time(ms))
            .unwrap();
        assert_eq!(recorded.decision, decision(kept), "{ms} ms");
    }
    // Refused before: nothing of it has left.
    let refused = Decision::Drop(DropReason::PortsExhausted);
    table.first(&first, INSIDE, refused, Time(5_000)).unwrap();
    let recorded = table
        .first(&first, INSIDE, decision(5), Time(5_001))
        .unwrap();
    assert_eq!(recorded.decision, decision(5));
}

#[test]
fn one_source_cannot_take_all_copies() {
    let limits = FragmentLimits {
        copies_max: 32,
        copies_per_source_max: 8,
        ..FragmentLimits::default()
    };
    let mut gateway = Gateway::new(limits);
    for identification in 0..100 {
        gateway.receive(&part(identification, 800, 8, true), 0);
    }
    assert_eq!(gateway.table.totals().copies, 8);
    assert_eq!(gateway.dropped, vec![DropReason::FragmentsFull; 92]);
    let parts = fragments(&envelope(2, 7), (1000, 53), 60, 24);
    [2, 1, 0]
        .iter()
        .for_each(|&index| gateway.receive(&parts[index], 0));
    assert_eq!(gateway.sent.len(), 3);
    // What expires can be used again.
    assert_eq!(gateway.expired(2000).len(), 8);
    gateway.receive(&part(0, 800, 8, true), 2000);
    assert_eq!(gateway.table.totals().copies, 1);
}

#[test]
fn copies_are_bounded_by_number_and_by_bytes() {
    for (limits, len, fits) in [
        (
            FragmentLimits {
                copies_max: 16,
                ..FragmentLimits::default()
            },
            8,
            12, // a realm's share
        ),
        (
            FragmentLimits {
                copy_bytes_max: 16 * 1024,
                ..FragmentLimits::default()
            },
            1480,
            6,
        ),
    ] {
        let mut gateway = Gateway::new(limits);
        let bytes = gateway.table.bytes();
        for source in 0..50 {
            let envelope = Envelope {
                flags_offset: 100,
                ..envelope(source, 7)
            };
            gateway.receive(&envelope.frame(17, &vec![1; len]), 0);
        }
        assert_eq!(gateway.table.totals().copies, fits);
        assert_eq!(gateway.dropped, vec![DropReason::FragmentsFull; 50 - fits]);
        assert_eq!(gateway.table.bytes(), bytes);
        assert_eq!(gateway.expired(2000).len(), fits);
        assert_eq!(gateway.table.totals(), NOTHING);
    }
}

/// RFC 4787 REQ-14a: first fragments that are never completed, a million of them, and in between
/// datagrams that come whole, in order.
#[test]
fn rfc4787_14a_a_flood_of_first_fragments_costs_in_order_datagrams_nothing() {
    let table = FragmentTable::new(&FragmentLimits::default(), 99);
    let bytes = table.bytes();
    let mut flood = parse(&fragments(&envelope(1, 0), (1000, 53), 60, 24)[0]).unwrap();
    let Body::Flow { tuple, .. } = flood.body else {
        panic!()
    };
    let decision = translate(tuple);
    let parts = fragments(&envelope(2, 7), (2000, 53), 60, 24);
    let good: Vec<Packet> = parts.iter().map(|part| parse(part).unwrap()).collect();
    let Body::Flow {
        tuple: good_tuple, ..
    } = good[0].body
    else {
        panic!()
    };
    for n in 0..1_000_000u32 {
        flood.ipv4.source = Ipv4Addr::from_bits(0x0B00_0000 + (n >> 16));
        flood.ipv4.identification = n as u16;
        let now = Time(u64::from(n / 1000));
        table.first(&flood, INSIDE, decision, now).unwrap();
        match n % 1000 {
            0 => {
                let recorded = table.first(&good[0], INSIDE, translate(good_tuple), now);
                assert!(!recorded.unwrap().waits);
            }
            // The later ones come 300 and 600 datagrams of the flood after the first.
            300 | 600 => {
                let index = n as usize % 1000 / 300;
                let later = table.later(&good[index], INSIDE, &parts[index], 5, now);
                assert_eq!(later, Ok(Later::Translate(passage(good_tuple))), "{n}");
            }
            _ => {}
        }
    }
    let totals = table.totals();
    assert!(
        totals.datagrams <= 16_384 && totals.copies == 0,
        "{totals:?}"
    );
    assert_eq!(table.bytes(), bytes);
    let mut slot = [0; 2048];
    while table.totals().datagrams > 0 {
        let before = table.totals().datagrams;
        assert_eq!(table.expire(Time(10_000), &mut slot), None);
        assert!(table.totals().datagrams < before);
    }
}

/// Held copies never push out what first fragments decided, and the other way round.
#[test]
fn a_flood_of_later_fragments_leaves_in_order_datagrams_alone() {
    let mut gateway = Gateway::new(limits());
    for n in 0..10_000u32 {
        let envelope = Envelope {
            flags_offset: 100,
            ..envelope(n, n as u16)
        };
        gateway.receive(&envelope.frame(17, &[1; 64]), 0);
        if n % 100 == 0 {
            let parts = fragments(&self::envelope(70_000, 7), (1000, 53), 60, 24);
            parts.iter().for_each(|part| gateway.receive(part, 0));
        }
    }
    assert_eq!(gateway.sent.len(), 300);
    assert_eq!(gateway.table.totals().copies, 24);
}

#[test]
fn workers_share_the_table() {
    const DATAGRAMS: u32 = 400;
    // The worker with the first fragments may get a core last: all others are held by then, and a
    // realm has three quarters of the copies.
    let limits = FragmentLimits {
        copies_max: 2 * DATAGRAMS * 4 / 3 + 1,
        ..FragmentLimits::default()
    };
    let table = FragmentTable::new(&limits, 5);
    let sent = std::sync::atomic::AtomicUsize::new(0);
    let count = |n: usize| sent.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    let datagrams: Vec<Vec<Vec<u8>>> = (0..DATAGRAMS)
        .map(|n| fragments(&envelope(n, 7), (1000, 53), 60, 24))
        .collect();
    // One worker has the first fragments, two the later ones; all at once.
    let worker = |index: usize| {
        let mut slot = [0; 2048];
        for parts in &datagrams {
            let packet = parse(&parts[index]).unwrap();
            if let Body::Flow { tuple, .. } = packet.body {
                table
                    .first(&packet, INSIDE, translate(tuple), Time(0))
                    .unwrap();
                count(1);
                while let Some(held) = table.take(&packet, &mut slot) {
                    let packet = parse(&slot[..held.len]).unwrap();
                    let later = table
                        .later(&packet, INSIDE, &slot[..held.len], 5, Time(0))
                        .unwrap();
                    assert!(matches!(later, Later::Translate(_)));
                    count(1);
                }
            } else if table
                .later(&packet, INSIDE, &parts[index], 5, Time(0))
                .unwrap()
                != Later::Held
            {
                count(1);
            }
        }
    };
    std::thread::scope(|scope| {
        for index in 0..3 {
            scope.spawn(move || worker(index));
        }
    });
    assert_eq!(sent.into_inner(), 3 * DATAGRAMS as usize);
    assert_eq!(table.totals(), NOTHING);
}

/// All fragments of a frame, each checked on its own.
fn split(frame: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let packet = parse(frame).unwrap();
    let mut splitter = Splitter::new(frame, &packet, mtu).unwrap();
    let count = splitter.remaining();
    let mut pieces = Vec::new();
    let mut slot = [0xEE; 9014];
    while let Some(len) = splitter.write(&mut slot) {
        assert!(len <= 14 + mtu);
        assert!(checksum::is_right(
            &slot[14..14 + usize::from(slot[14] & 15) * 4]
        ));
        pieces.push(slot[..len].to_vec());
        assert_eq!(splitter.remaining(), count - pieces.len());
    }
    pieces
}

/// Offset, more, payload.
fn place(frame: &[u8]) -> (usize, bool, &[u8]) {
    let header = ipv4::Header::new(&frame[14..]).unwrap();
    let flags_offset = header.flags_offset();
    let offset = usize::from(flags_offset & ipv4::OFFSET_MASK) * 8;
    let end = 14 + usize::from(header.total_len());
    (
        offset,
        flags_offset & ipv4::MORE_FRAGMENTS != 0,
        &frame[14 + header.header_len()..end],
    )
}

#[test]
fn rfc4787_13a_two_fragments_in_order() {
    let frame = envelope(1, 7).udp(1000, 53, &[9; 1472]);
    let pieces = split(&frame, 1400);
    let places: Vec<_> = pieces
        .iter()
        .map(|p| place(p))
        .map(|(at, more, bytes)| (at, more, bytes.len()))
        .collect();
    assert_eq!(places, [(0, true, 1376), (1376, false, 104)]);
    for piece in &pieces {
        assert_eq!(piece[..12], frame[..12]);
        let packet = parse(piece).unwrap();
        assert_eq!((packet.ipv4.identification, packet.ipv4.ttl), (7, 64));
    }
}

#[test]
fn a_packet_that_fits_is_one_piece_and_stays_the_same() {
    let frame = envelope(1, 7).udp(1000, 53, &[9; 100]);
    assert_eq!(split(&frame, 128), std::slice::from_ref(&frame));
    assert_eq!(split(&frame, 127).len(), 2);
}

#[test]
fn only_options_with_the_copy_flag_go_into_later_fragments() {
    let mut envelope = envelope(1, 7);
    // Record route (not copied), router alert (copied), no operation.
    envelope.options = vec![7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 1];
    let frame = envelope.udp(1000, 53, &[9; 200]);
    let pieces = split(&frame, 100);
    assert_eq!(pieces[0][34..46], envelope.options);
    for piece in &pieces[1..] {
        assert_eq!(parse(piece).unwrap().ipv4.header_len, 24);
        assert_eq!(piece[34..38], [148, 4, 0, 0]);
    }
}

#[test]
fn df_and_a_tiny_mtu_are_refused() {
    let mut envelope = envelope(1, 7);
    let frame = envelope.udp(1000, 53, &[9; 200]);
    let packet = parse(&frame).unwrap();
    assert!(Splitter::new(&frame, &packet, 27).is_none());
    assert!(Splitter::new(&frame, &packet, 28).is_some());
    assert_eq!(
        Splitter::new(&frame, &packet, 100)
            .unwrap()
            .write(&mut [0; 60]),
        None
    );
    envelope.flags_offset = ipv4::DONT_FRAGMENT;
    let frame = envelope.udp(1000, 53, &[9; 200]);
    assert!(Splitter::new(&frame, &parse(&frame).unwrap(), 100).is_none());
}

proptest! {
    #[test]
    fn pieces_add_up_to_the_packet(
        len in 0usize..4000,
        mtu in 68usize..1500,
        mtu2 in 68usize..600,
        options in prop_oneof![Just(vec![]), Just(vec![7, 3, 4]), Just(vec![148, 4, 0, 0, 1, 7, 3, 4])],
        offset in prop_oneof![Just(0u16), 1u16..5000],
        more in any::<bool>(),
    ) {
        let mut envelope = envelope(1, 7);
        envelope.options = options;
        envelope.flags_offset = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
        let payload = &envelope.udp_datagram(1000, 53, &vec![0x5A; len]);
        let payload = if more { &payload[..payload.len() & !7] } else { &payload[..] };
        let frame = envelope.frame(17, payload);
        // Cut, and cut again, as two narrow links in a row would.
        let mut at = usize::from(offset) * 8;
        let mut whole = Vec::new();
        let mut last = true;
        for piece in split(&frame, mtu).iter().flat_map(|piece| {
            if parse(piece).is_ok() { split(piece, mtu2) } else { vec![piece.clone()] }
        }) {
            let (start, more, bytes) = place(&piece);
            prop_assert_eq!(start, at);
            prop_assert!(!more || bytes.len() % 8 == 0);
            at += bytes.len();
            whole.extend_from_slice(bytes);
            last = more;
        }
        prop_assert_eq!(whole, payload);
        prop_assert_eq!(last, more);
    }
}
