//! IPv4 identifications of what leaves: no two datagrams of different hosts may be taken for one
//! (RFC 6864 section 5.3.1, RFC 7857 section 10).

mod bytes_support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use bytes_support::*;
use engine::neighbour::HopState;
use engine::wire::build::Envelope;
use engine::wire::ipv4;
use engine::wire::tcp::SYN;
use engine::world::{EXTERNAL, Setup, World};

fn id(frame: &[u8]) -> u16 {
    header(frame).identification()
}

fn with_id(identification: u16, envelope: Envelope) -> Envelope {
    Envelope {
        identification,
        ..envelope
    }
}

/// Two hosts that count in step, whole packets without DF, as many as there are identifications.
#[test]
fn rfc7857_10_two_hosts_never_share_an_identification() {
    let mut world = world("");
    let mut seen = BTreeSet::new();
    for n in 0..32_768u16 {
        for (host, port) in [(CLIENT, 20_000), (OTHER, 30_000)] {
            let frame = with_id(n, inside(host, SERVER)).udp(port, 53, b"");
            let sent = through(&mut world, INSIDE, &frame);
            assert!(seen.insert(id(&sent)), "datagram {n} of {host}");
        }
    }
    assert_eq!(seen.len(), 65_536);
    world.check_invariants().unwrap();
}

/// The same identification at the same time, their fragments mixed in every way: each datagram can
/// be put together, and none from parts of both.
#[test]
fn rfc7857_10_fragments_of_two_hosts_are_told_apart() {
    let data = |byte| vec![byte; 180];
    let a = inside(CLIENT, SERVER).udp(20_000, 53, &data(0xAA));
    let b = inside(OTHER, SERVER).udp(20_000, 53, &data(0xBB));
    for pattern in 0..64u32 {
        let mut world = world("");
        let mut queues = [cut(&a, 9, 3), cut(&b, 9, 3)];
        // Some orders turn round, too.
        queues[(pattern % 2) as usize].rotate_left((pattern / 2 % 3) as usize);
        let mut sent = Vec::new();
        for step in 0..6 {
            let from = (pattern >> step & 1) as usize;
            let from = if queues[from].is_empty() {
                1 - from
            } else {
                from
            };
            let part = queues[from].remove(0);
            sent.extend(all(&mut world, INSIDE, &[part]));
        }
        let ids: BTreeSet<u16> = sent.iter().map(|frame| id(frame)).collect();
        assert_eq!(ids.len(), 2);
        for one in ids {
            let parts: Vec<Vec<u8>> = sent.iter().filter(|f| id(f) == one).cloned().collect();
            let (source, _, bytes) = assemble(&parts);
            assert_eq!(source, EXTERNAL);
            assert!(bytes[8..] == data(0xAA) || bytes[8..] == data(0xBB));
        }
        oracle::check(sent.iter().map(|frame| &frame[..])).unwrap();
    }
}

/// Packets that we cut, and those that somebody else cuts, share one sequence.
#[test]
fn rfc7857_10_packets_cut_here_are_told_apart() {
    let mut world = world("");
    world.set_mtu(OUTSIDE, 600);
    let mut seen = BTreeSet::new();
    for n in 0..100 {
        for host in [CLIENT, OTHER] {
            let frame = with_id(n, inside(host, SERVER)).udp(20_000, 53, &[1; 1400]);
            let pieces = all(&mut world, INSIDE, &[frame]);
            assert_eq!(pieces.len(), 3);
            assemble(&pieces);
            assert!(seen.insert(id(&pieces[0])));
        }
    }
}

/// Atomic packets cost nothing: their identification is as it was, and none of ours is used up.
#[test]
fn atomic_packets_keep_their_identification() {
    let mut world = world("");
    let mut last = None;
    for n in [0, 1, 7, 0xFFFF] {
        for frame in [
            with_id(n, with_df(inside(CLIENT, SERVER))).udp(20_000, 53, b""),
            with_id(n, with_df(inside(CLIENT, SERVER))).tcp(20_000, 53, SYN, b""),
            with_id(n, with_df(inside(CLIENT, SERVER))).echo_request(7, b""),
        ] {
            assert_eq!(id(&through(&mut world, INSIDE, &frame)), n);
        }
        let frame = with_id(n, inside(CLIENT, SERVER)).udp(20_000, 53, b"");
        let new = id(&through(&mut world, INSIDE, &frame));
        assert!(last.is_none_or(|last: u16| new == last.wrapping_add(1)));
        last = Some(new);
    }
}

/// DF on a fragment does not make it atomic.
#[test]
fn fragments_with_df_get_one_identification() {
    let mut world = world("");
    let datagram = &inside(CLIENT, SERVER).udp(20_000, 53, &[1; 40])[34..];
    let part = |flags_offset, bytes: &[u8]| {
        let flags_offset = flags_offset | ipv4::DONT_FRAGMENT;
        Envelope {
            flags_offset,
            identification: 9,
            ..inside(CLIENT, SERVER)
        }
        .frame(17, bytes)
    };
    let parts = [
        part(ipv4::MORE_FRAGMENTS, &datagram[..24]),
        part(3, &datagram[24..]),
    ];
    let before = id(&through(
        &mut world,
        INSIDE,
        &inside(CLIENT, SERVER).udp(20_000, 53, b""),
    ));
    let sent = all(&mut world, INSIDE, &parts);
    assert_eq!(id(&sent[0]), before.wrapping_add(1));
    assert_eq!(id(&sent[0]), id(&sent[1]));
}

#[test]
fn inbound_packets_keep_their_identification() {
    let mut world = world(FORWARD);
    through(
        &mut world,
        INSIDE,
        &inside(CLIENT, SERVER).udp(20_000, 53, b""),
    );
    for n in [0, 1, 0xFFFF] {
        for envelope in [
            outside(SERVER, EXTERNAL),
            with_df(outside(SERVER, EXTERNAL)),
        ] {
            let frame = with_id(n, envelope).udp(53, 20_000, b"");
            assert_eq!(id(&through(&mut world, OUTSIDE, &frame)), n);
        }
        let whole = outside(SERVER, EXTERNAL).udp(53, 20_000, &[1; 100]);
        let sent = all(&mut world, OUTSIDE, &cut(&whole, n, 3));
        assert!(sent.iter().all(|frame| id(frame) == n));
    }
}

/// Hairpinned packets come from an external address, too.
#[test]
fn hairpinned_packets_of_two_hosts_are_told_apart() {
    let mut world = world(FORWARD);
    let mut seen = BTreeSet::new();
    for n in 0..100 {
        for host in [CLIENT, WITHIN] {
            let frame = with_id(n, inside(host, EXTERNAL)).udp(20_000, 8443, b"");
            let sent = answer(&mut world, INSIDE, &frame);
            assert_eq!(header(&sent).destination(), OTHER);
            assert!(seen.insert(id(&sent)));
        }
    }
}

/// Each destination and protocol has its own sequence, which begins anywhere: none shows how much is
/// sent elsewhere.
#[test]
fn other_ends_have_other_sequences() {
    let mut world = world("");
    let send = |world: &mut World, remote: Ipv4Addr| {
        let udp = through(world, INSIDE, &inside(CLIENT, remote).udp(20_000, 53, b""));
        let echo = through(world, INSIDE, &inside(CLIENT, remote).echo_request(7, b""));
        [id(&udp), id(&echo)]
    };
    let remotes = [SERVER, STRANGER, BEYOND];
    let before = remotes.map(|remote| send(&mut world, remote));
    let after = remotes.map(|remote| send(&mut world, remote));
    let begins: BTreeSet<u16> = before.concat().into_iter().collect();
    assert_eq!(begins.len(), 6);
    for (before, after) in before.concat().into_iter().zip(after.concat()) {
        assert_eq!(after, before.wrapping_add(1));
    }
}

/// RFC 5508 REQ-4 a: the quote gets the identification that the sender gave it. (All other tests of
/// errors compare it, too.) After very many other datagrams it is forgotten, and the error passes as
/// it is.
#[test]
fn rfc5508_4a_a_quote_gets_its_own_identification_back() {
    let mut world = world("");
    let whole = inside(CLIENT, SERVER).udp(20_000, 53, &[1; 100]);
    let parts = cut(&whole, 9, 2);
    let first = &all(&mut world, INSIDE, &parts)[0];
    assert_ne!(id(first), 9);
    let error = outside(BEYOND, EXTERNAL).icmp_error(11, 1, first, 576);
    let mut send = |count: u32| {
        for n in 0..count {
            let remote = Ipv4Addr::from_bits(0xCB00_7200 + n % 512);
            let frame = inside(OTHER, remote).udp(20_000, 53, b"");
            through(&mut world, INSIDE, &frame);
        }
        world.advance_ms(1);
        through(&mut world, OUTSIDE, &error)
    };
    let got = send(1_000);
    assert_eq!(got[42..], one_hop_further(&parts[0]));
    let forgotten = (0..100).map(|_| send(8_192)).any(|got| {
        let quoted = u16::from_be_bytes([got[46], got[47]]);
        assert!(quoted == 9 || quoted == id(first));
        quoted == id(first)
    });
    assert!(forgotten, "the memory is bounded");
}

/// What Egret sends itself counts in the same sequence as what it forwards.
#[test]
fn errors_of_our_own_are_told_apart() {
    let mut world = world(FORWARD);
    let mut seen = BTreeSet::new();
    for n in 0..50 {
        let expiring = Envelope {
            ttl: 1,
            ..outside(SERVER, EXTERNAL)
        };
        let own = answer(&mut world, OUTSIDE, &expiring.udp(53, 8443, b""));
        let forwarded = with_id(n, inside(CLIENT, SERVER)).echo_request(7, b"");
        let forwarded = through(&mut world, INSIDE, &forwarded);
        assert_eq!(header(&own).source(), header(&forwarded).source());
        assert!(seen.insert(id(&own)) && seen.insert(id(&forwarded)));
        world.advance_ms(100);
    }
}

/// Whichever worker sends: the sequences are theirs together. Fragments of one datagram may come to
/// different ones.
#[test]
fn workers_share_the_sequences() {
    let setup = Setup {
        workers: 3,
        ..Setup::default()
    };
    let mut world = World::with(TWO_ARM, setup).unwrap();
    assert!(world.set_neighbour(SERVER, HopState::Resolved));
    let mut seen = BTreeSet::new();
    for n in 0..300u16 {
        let whole = inside([CLIENT, OTHER][usize::from(n % 2)], SERVER).udp(20_000, 53, &[1; 60]);
        for (number, part) in cut(&whole, n / 2, 2).iter().enumerate() {
            let worker = (usize::from(n) + number) % 3;
            assert!(world.inject_to(worker, INSIDE, part));
            world.run();
        }
        let sent = world.take_sent(OUTSIDE);
        assert_eq!(sent.len(), 2);
        assemble(&sent);
        assert!(seen.insert(id(&sent[0])));
    }
    world.check_invariants().unwrap();
}
