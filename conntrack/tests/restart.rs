//! Tables taken over after a crash at any moment.

mod common;
use common::*;
use conntrack::{Identity, Nat, OpenError, Signal, TableSize, Time};
use std::sync::atomic::Ordering::Relaxed;

fn reopen(rig: &mut Rig) {
    rig.nat = Nat::open(rig.words, rig.owned, rig.size, IDENTITY).unwrap();
    rig.apply();
}

fn busy_rig(mapping: conntrack::MappingBehaviour) -> Rig {
    let mut policy = policy(mapping, ADF);
    policy
        .forwards
        .edit(|list| list.push(forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])));
    let mut rig = Rig::sized(policy, 1000);
    for host in 1..=20 {
        rig.udp(&format!("10.0.0.{host}:5000"), "203.0.113.1:53");
        rig.udp(&format!("10.0.0.{host}:5000"), "203.0.113.1:54");
        rig.connect(&format!("10.0.0.{host}:5000"), "203.0.113.1:80");
        let from = format!("203.0.113.{host}:7");
        rig.back(Signal::TcpSyn, &from, ep("198.51.100.1:80"))
            .unwrap();
        rig.out(
            Signal::TcpSyn,
            &format!("10.0.0.{host}:6000"),
            "198.51.100.1:80",
        )
        .unwrap();
    }
    rig.check();
    rig
}

#[test]
fn sessions_survive() {
    for mapping in [EIM, EDM] {
        let mut rig = busy_rig(mapping);
        let before: Vec<_> = rig.nat.sessions(rig.now).collect();
        let owned = rig.owned_bits();
        let totals = rig.nat.totals();
        reopen(&mut rig);
        rig.check();
        let placed = |own: &conntrack::ExternalAddress| (own.slot, own.addr);
        let mut addresses: Vec<_> = rig.policy.addresses.iter().map(placed).collect();
        addresses.sort();
        assert_eq!(rig.nat.placed(), addresses);
        assert_eq!(rig.nat.sessions(rig.now).collect::<Vec<_>>(), before);
        assert_eq!((rig.owned_bits(), rig.nat.totals()), (owned, totals));
        rig.wait(100_000);
        for view in before.iter().filter(|view| view.protocol == UDP) {
            let back = rig.packet(conntrack::Realm::External, view.inbound.tuple, Signal::Udp);
            assert_eq!(back.unwrap().destination, view.inbound.destination);
        }
    }
}

#[test]
fn other_tables_are_refused() {
    let rig = busy_rig(EIM);
    let open = |size, identity| Nat::open(rig.words, rig.owned, size, identity).err();
    let other = TableSize {
        sessions_max: 999,
        addresses_max: 4,
    };
    assert_eq!(open(other, IDENTITY), Some(OpenError::OtherSize));
    let boot = Identity { boot_id: [8; 16] };
    assert_eq!(open(rig.size, boot), Some(OpenError::OtherBoot));
    let big = TableSize {
        sessions_max: 100_000,
        addresses_max: 4,
    };
    assert_eq!(open(big, IDENTITY), Some(OpenError::Memory));
    let none = TableSize {
        sessions_max: 0,
        addresses_max: 4,
    };
    assert_eq!(open(none, IDENTITY), Some(OpenError::Size));
    let version = rig.words[1].load(Relaxed);
    rig.words[1].store(version ^ 1, Relaxed);
    assert_eq!(open(rig.size, IDENTITY), Some(OpenError::Layout));
    rig.words[0].store(0, Relaxed);
    assert_eq!(open(rig.size, IDENTITY), Some(OpenError::Absent));
}

/// Where the sessions' section starts, found by the tuple of session 1.
fn sessions_at(rig: &Rig) -> usize {
    let first = rig.nat.sessions(Time(0)).next().unwrap();
    assert_eq!(first.number, 1);
    let (source, destination) = (
        first.outbound.tuple.source,
        first.outbound.tuple.destination,
    );
    let word = u64::from(source.addr.to_bits()) << 32 | u64::from(destination.addr.to_bits());
    let found = rig.words.iter().position(|w| w.load(Relaxed) == word);
    found.unwrap() - 1 - 16
}

/// A writer died: with the session valid (a transition, a next hop) it lives; not yet valid it
/// goes, and its port with it.
#[test]
fn half_written_records_are_mended_or_removed() {
    for mapping in [EIM, EDM] {
        let mut rig = busy_rig(mapping);
        let total = rig.nat.totals().sessions;
        let of = |rig: &Rig, port: u16, proto| {
            rig.nat
                .sessions(rig.now)
                .find(|v| v.protocol == proto && v.outbound.tuple.destination.port == port)
                .unwrap()
        };
        let (mended, removed, torn) = (of(&rig, 80, TCP), of(&rig, 53, UDP), of(&rig, 54, UDP));
        let odd = 1 << 32;
        let sessions = sessions_at(&rig);
        let at = sessions + mended.number as usize * 16;
        rig.words[at].fetch_add(odd, Relaxed);
        // Being made: odd and not valid.
        let at = sessions + removed.number as usize * 16;
        rig.words[at].store((rig.words[at].load(Relaxed) + odd) & !4, Relaxed);
        // Bytes that never were: the halves do not fit.
        let at = sessions + torn.number as usize * 16 + 8;
        rig.words[at + 3].fetch_add(1 << 40, Relaxed);
        reopen(&mut rig);
        rig.check();
        assert_eq!(rig.nat.totals().sessions, total - 2);
        let numbers: Vec<u32> = rig.nat.sessions(rig.now).map(|view| view.number).collect();
        assert!(numbers.contains(&mended.number));
        assert!(!numbers.contains(&removed.number) && !numbers.contains(&torn.number));
        // Those flows go on with a new session.
        let again = rig.packet(
            conntrack::Realm::Internal,
            removed.outbound.tuple,
            Signal::Udp,
        );
        again.unwrap();
        rig.check();
    }
}

/// Any single word of the records changed to anything: opening never panics, and what it leaves is
/// sound and still works.
#[test]
fn no_corruption_survives_opening() {
    for mapping in [EIM, EDM] {
        let mut rig = busy_rig(mapping);
        let mut random = Seeded(11);
        let first = sessions_at(&rig) + 16;
        let halves = 200 * 8;
        for round in 0..60 {
            let at = if round % 3 == 0 {
                // Anywhere behind the header, ports left out: their number is fixed.
                64 + random.below((rig.words.len() - 64) as u64) as usize
            } else {
                first + random.below(halves) as usize
            };
            let value = match random.below(3) {
                0 => rig.words[at].load(Relaxed) ^ (1 << random.below(64)),
                1 => random.0,
                _ => 0,
            };
            rig.words[at].store(value, Relaxed);
            reopen(&mut rig);
            rig.check();
            let from = format!("10.0.1.{}:5000", round % 200);
            rig.udp(&from, "203.0.113.1:53");
            rig.check();
        }
    }
}

/// Killed between an address change and its end: the mapping of the new address is the one that is
/// found, though the old one's record comes first.
#[test]
fn an_address_change_cut_short_leaves_one_mapping_for_an_endpoint() {
    let mut rig = Rig::new(policy(EIM, EDF));
    rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.policy.addresses = vec![external("198.51.100.9", 1, 1024, 65535)].into();
    let new = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    assert_eq!(new.addr, addr("198.51.100.1"), "its session goes on");
    let new = rig.udp("10.0.0.1:5000", "203.0.113.2:53");
    assert_eq!(new.addr, addr("198.51.100.9"));
    reopen(&mut rig);
    rig.check();
    assert_eq!(rig.nat.totals().mappings, 1);
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.3:53"), new);
    rig.check();
}
