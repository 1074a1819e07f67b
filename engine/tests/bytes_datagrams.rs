//! Datagrams in fragments through a gateway in memory: every order, both directions, what is
//! refused, and floods (RFC 4787 REQ-14, RFC 791, RFC 815, RFC 1858, RFC 3128).

mod bytes_support;

use std::net::Ipv4Addr;

use bytes_support::*;
use engine::drop_reason::DropReason;
use engine::fragment::FragmentLimits;
use engine::wire::build::Envelope;
use engine::wire::ipv4;
use engine::wire::tcp::{ACK, SYN};
use engine::world::{EXTERNAL, Setup, World};

/// Every order of `0..count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let with_last_at = |at: usize| {
        shorter.iter().map(move |order| {
            let mut order = order.clone();
            order.insert(at, count - 1);
            order
        })
    };
    (0..count).flat_map(with_last_at).collect()
}

/// The world has forgotten every datagram, and holds no copy.
#[track_caller]
fn nothing_is_left(world: &World) {
    let totals = world.shared().fragments.totals();
    assert_eq!((totals.datagrams, totals.copies), (0, 0));
}

/// A packet of each protocol in each direction: outbound, inbound, hairpin both ways.
fn packets() -> Vec<(usize, Vec<u8>)> {
    let data = &[0x5A; 180];
    let out = inside(CLIENT, SERVER);
    let back = outside(SERVER, EXTERNAL);
    vec![
        (INSIDE, out.udp(20_000, 53, data)),
        (OUTSIDE, back.udp(53, 20_000, data)),
        (INSIDE, out.tcp(20_000, 80, SYN, data)),
        (OUTSIDE, back.tcp(80, 20_000, SYN | ACK, data)),
        (INSIDE, out.echo_request(7, data)),
        (OUTSIDE, back.echo_reply(7, data)),
        (INSIDE, inside(CLIENT, EXTERNAL).udp(20_000, 8443, data)),
        (INSIDE, inside(OTHER, EXTERNAL).udp(443, 20_000, data)),
    ]
}

/// Two to five fragments in all orders come out as the whole packet would have, the first one first.
#[test]
fn rfc4787_14_fragments_in_every_order_in_both_directions() {
    let mut world = world(FORWARD);
    let mut identification = 0;
    for (interface, whole) in packets() {
        let sent = pass(&mut world, interface, &whole).concat();
        let expected = assemble(&sent);
        for count in 2..=5 {
            for order in orders(count) {
                identification += 1;
                let parts = cut(&whole, identification, count);
                let arriving: Vec<Vec<u8>> = order.iter().map(|&n| parts[n].clone()).collect();
                let sent = all(&mut world, interface, &arriving);
                assert_eq!(sent.len(), count, "{order:?}");
                assert_eq!(place(&sent[0]).0, 0, "{order:?}");
                assert_eq!(assemble(&sent), expected, "{order:?}");
                oracle::check(sent.iter().map(|frame| &frame[..])).unwrap();
                nothing_is_left(&world);
            }
        }
    }
    assert_eq!(world.snapshot().drops().count(), 0);
    world.check_invariants().unwrap();
}

/// What came first counts, and a datagram whose fragments overlap in part is given up (RFC 5722
/// demands it of IPv6; honest senders of IPv4 do not do it either): nothing more of it passes, and
/// the receiver's time-out takes what has. Its flow goes on.
#[test]
fn overlapping_fragments_end_their_datagram_and_nothing_else() {
    for (interface, whole) in packets() {
        // Half of the second, half of the third; all of the second and more; another end.
        for (offset, len, more) in [(96, 64, true), (56, 96, true), (64, 8, false)] {
            let mut world = world(FORWARD);
            packets().iter().take(8).for_each(|(interface, whole)| {
                pass(&mut world, *interface, whole);
            });
            let parts = cut(&whole, 9, 3);
            assert_eq!(all(&mut world, interface, &parts[..2]).len(), 2);
            let mut overlap = cut(&whole, 9, 2)[1].clone();
            overlap.truncate(34 + len);
            overlap.resize(34 + len, 0xEE);
            let flags = (offset / 8) | [0, ipv4::MORE_FRAGMENTS][usize::from(more)];
            let envelope = Envelope {
                destination_mac: overlap[..6].try_into().unwrap(),
                source_mac: overlap[6..12].try_into().unwrap(),
                identification: 9,
                flags_offset: flags,
                ..Envelope::new(header(&whole).source(), header(&whole).destination())
            };
            let overlap = envelope.frame(header(&whole).protocol(), &overlap[34..]);
            silence(&mut world, interface, &overlap);
            silence(&mut world, interface, &parts[2]);
            let drops: Vec<_> = world.snapshot().drops().collect();
            assert_eq!(drops, [(DropReason::FragmentBad, 2)]);
            assert_eq!(all(&mut world, interface, &cut(&whole, 10, 3)).len(), 3);
        }
    }
}

#[test]
fn a_duplicate_is_dropped_and_its_datagram_passes() {
    for (interface, whole) in packets() {
        let mut world = world(FORWARD);
        packets().iter().for_each(|(interface, whole)| {
            pass(&mut world, *interface, whole);
        });
        let parts = cut(&whole, 9, 3);
        let twice = [&parts[0], &parts[1], &parts[1], &parts[2]].map(Clone::clone);
        let sent = all(&mut world, interface, &twice);
        assert_eq!(sent.len(), 3);
        assemble(&sent);
        let drops: Vec<_> = world.snapshot().drops().collect();
        assert_eq!(drops, [(DropReason::FragmentBad, 1)]);
        nothing_is_left(&world);
    }
}

/// RFC 1858 and RFC 3128: no first fragment hides part of the TCP header, and no later one lies over
/// it. No session is made.
#[test]
fn rfc1858_and_rfc3128_fragments_within_the_tcp_header_are_dropped() {
    let segment = &inside(CLIENT, SERVER).tcp(20_000, 80, SYN, &[1; 60])[34..];
    let mut options = segment.to_vec();
    options[12] = 8 << 4;
    let mut world = world(FORWARD);
    let mut count = 0;
    for (interface, envelope) in [
        (INSIDE, inside(CLIENT, SERVER)),
        (OUTSIDE, outside(SERVER, EXTERNAL)),
    ] {
        for (offset, bytes) in [
            (0, &segment[..8]),
            (0, &segment[..16]),
            (0, &options[..24]),
            (8, &segment[8..]),
            (16, &segment[16..]),
        ] {
            let more = if offset == 0 { ipv4::MORE_FRAGMENTS } else { 0 };
            let flags_offset = (offset / 8) | more;
            let fragment = Envelope {
                flags_offset,
                ..envelope.clone()
            };
            silence(&mut world, interface, &fragment.frame(6, bytes));
            count += 1;
        }
    }
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::FragmentBad, count)]);
    assert_eq!(world.totals().created, 0);
    nothing_is_left(&world);
}

/// Datagrams that never become whole leave nothing behind when their time is over: first fragments
/// silently, held ones counted.
#[test]
fn datagrams_that_are_never_completed_are_forgotten_in_time() {
    let mut world = world("");
    let bytes = world.shared().fragments.bytes();
    let whole = inside(CLIENT, SERVER).udp(20_000, 53, &[1; 300]);
    for identification in 0..10 {
        all(&mut world, INSIDE, &cut(&whole, identification, 4)[..2]);
        all(
            &mut world,
            INSIDE,
            &cut(&whole, 100 + identification, 4)[3..],
        );
    }
    assert_eq!(world.shared().fragments.totals().copies, 10);
    world.pass_ms(1_999, 1);
    assert_eq!(world.shared().fragments.totals().copies, 10);
    world.pass_ms(20, 1);
    nothing_is_left(&world);
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::FragmentTimeout, 10)]);
    assert_eq!(world.shared().fragments.bytes(), bytes);
}

/// An own pool address, where nothing from outside has a session.
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

/// Fragments that never become a datagram, from everywhere and ever new.
struct Flood {
    sent: u32,
    first: Vec<u8>,
    later: Vec<u8>,
}

impl Flood {
    fn new() -> Flood {
        let datagram = inside(OTHER, BEYOND).udp(30_000, 9, &[0; 24]);
        let part = |flags_offset, bytes: &[u8]| {
            Envelope {
                flags_offset,
                ..Envelope::new(OTHER, BEYOND)
            }
            .frame(17, bytes)
        };
        Flood {
            sent: 0,
            first: part(ipv4::MORE_FRAGMENTS, &datagram[34..58]),
            later: part(3 | ipv4::MORE_FRAGMENTS, &[0; 24]),
        }
    }

    /// The next first fragment, and the later one of another datagram: in turn from a host inside,
    /// from strangers to an address where nobody waits for them, from strangers to a forward, from a
    /// thousand of them again and again, and from strangers to the host.
    fn next(&mut self) -> (usize, &[u8], &[u8]) {
        let n = self.sent;
        self.sent += 1;
        let invented = Ipv4Addr::from_bits(0x5000_0000 + n.wrapping_mul(0x9E37_79B1) % 0x0FFF_FFFF);
        let again = Ipv4Addr::from_bits(0x5000_0000 + n % 5_000);
        let (interface, source, destination, port) = match n % 5 {
            0 => (INSIDE, OTHER, BEYOND, 9),
            1 => (OUTSIDE, invented, OWN, 9),
            2 => (OUTSIDE, invented, EXTERNAL, 8443),
            3 => (OUTSIDE, again, EXTERNAL, 8443),
            _ => (OUTSIDE, invented, EXTERNAL, 9),
        };
        let id = (n / 5) as u16;
        for (frame, id) in [(&mut self.first, id), (&mut self.later, !id)] {
            set(frame, (source, destination), id);
        }
        self.first[36..38].copy_from_slice(&u16::to_be_bytes(port));
        (interface, &self.first, &self.later)
    }
}

/// Changes addresses and identification of a frame.
fn set(frame: &mut [u8], (source, destination): (Ipv4Addr, Ipv4Addr), identification: u16) {
    let mut header = ipv4::HeaderMut::new(&mut frame[14..]).unwrap();
    header.set_source(source);
    header.set_destination(destination);
    header.set_identification(identification);
    header.set_checksum(0);
    let sum = !engine::wire::checksum::sum(&frame[14..34]);
    let mut header = ipv4::HeaderMut::new(&mut frame[14..]).unwrap();
    header.set_checksum(sum);
}

/// A flooded gateway, and what leaves it of the flows that are no part of the flood.
struct Flooded {
    world: World,
    flood: Flood,
    frames: Vec<Vec<u8>>,
}

impl Flooded {
    fn new() -> Flooded {
        let forward = FORWARD.replace("\"8443", &format!("\"{EXTERNAL}:8443"));
        let pool = format!("[pool]\naddresses = [\"interface\", \"{OWN}\"]\n");
        let config = format!("{TWO_ARM}{pool}{forward}");
        let setup = Setup {
            fragments: FragmentLimits::default(),
            sessions_max: 16_384,
            transport: false,
            ..Setup::default()
        };
        Flooded {
            world: World::with(&config, setup).unwrap(),
            flood: Flood::new(),
            frames: Vec::new(),
        }
    }

    /// This many first fragments of the flood, and as many later ones; a thousand a millisecond.
    fn flood(&mut self, count: u32) {
        for n in 0..count {
            let (interface, first, later) = self.flood.next();
            assert!(self.world.inject(interface, first));
            assert!(self.world.inject(interface, later));
            if n % 32 == 31 || n + 1 == count {
                self.round();
            }
            if self.flood.sent.is_multiple_of(1_000) {
                self.world.advance_ms(1);
            }
        }
    }

    fn round(&mut self) {
        self.world.run();
        self.world.take_punted();
        for interface in [INSIDE, OUTSIDE] {
            let sent = self.world.take_sent(interface).into_iter();
            self.frames.extend(sent.filter(|frame| {
                let ends = [header(frame).source(), header(frame).destination()];
                ends.contains(&SERVER)
            }));
        }
    }

    /// A frame that must come through.
    fn send(&mut self, interface: usize, frame: &[u8]) {
        assert!(self.world.inject(interface, frame));
        self.round();
    }

    /// What has come through of a datagram: all of it.
    #[track_caller]
    fn expect(&mut self, payload: &[u8]) {
        let frames = std::mem::take(&mut self.frames);
        assert!(!frames.is_empty(), "nothing came through");
        // The transport header is another afterwards.
        assert_eq!(assemble(&frames).2[8..], payload[8..]);
    }
}

/// Flows meet a flood of `count` first fragments and as many later ones, with `gap` of each between
/// any two of their frames.
fn flows_lose_nothing(count: u32, gap: u32) {
    let mut flooded = Flooded::new();
    let bytes = flooded.world.shared().fragments.bytes();
    let plain = inside(CLIENT, SERVER).udp(20_000, 53, b"question");
    let out = inside(CLIENT, SERVER).udp(20_000, 53, &[0x5A; 300]);
    flooded.send(INSIDE, &plain);
    let external = header(&flooded.frames[0]).source();
    let back = outside(SERVER, external).udp(53, 20_000, &[0xA5; 300]);
    flooded.expect(&plain[34..]);
    flooded.flood(40_000.min(count));
    let mut identification = 0;
    while flooded.flood.sent < count {
        identification += 1;
        for (interface, whole, order) in [
            (INSIDE, &out, [0, 1, 2]),
            (OUTSIDE, &back, [0, 1, 2]),
            (INSIDE, &out, [2, 0, 1]),
        ] {
            identification += 1;
            let parts = cut(whole, identification, 3);
            for part in order {
                flooded.send(interface, &parts[part]);
                flooded.flood(gap);
            }
            flooded.expect(&whole[34..]);
            flooded.send(INSIDE, &plain);
            flooded.expect(&plain[34..]);
        }
    }
    let totals = flooded.world.shared().fragments.totals();
    assert!(
        totals.datagrams <= 16_384 + 16 && totals.copies <= 1024,
        "{totals:?}"
    );
    assert_eq!(flooded.world.shared().fragments.bytes(), bytes);
    flooded.world.check_invariants().unwrap();
    flooded.world.pass_ms(5_000, 10);
    nothing_is_left(&flooded.world);
}

/// Unfragmented packets, in-order fragments both ways, and out-of-order ones from inside.
#[test]
fn rfc4787_14a_a_million_fragments_take_nothing_from_others() {
    flows_lose_nothing(1_000_000, 1_000);
}

/// More of the flood between two fragments than the table has room for: only its own are forgotten,
/// since the client has one datagram under way, and each of the others more.
#[test]
fn rfc4787_14a_a_flood_pushes_out_its_own_datagrams_only() {
    let mut flooded = Flooded::new();
    let out = inside(CLIENT, SERVER).udp(20_000, 53, &[0x5A; 300]);
    flooded.flood(40_000);
    for part in cut(&out, 9, 3) {
        flooded.send(INSIDE, &part);
        flooded.flood(40_000);
    }
    flooded.expect(&out[34..]);
    flooded.world.check_invariants().unwrap();
}
