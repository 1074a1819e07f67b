//! What an operator removes is gone with its mappings, and nothing else is.

mod common;
use common::*;
use conntrack::{
    MappingView, Nat, Occupant, Policy, Removal, SessionView, Signal, TableSize, Time,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Carries a removal through in slices of this size.
fn remove_in(
    rig: &Rig,
    budget: u32,
    sessions: impl Fn(&SessionView) -> bool,
    mappings: impl Fn(&MappingView) -> bool,
) -> Removal {
    let mut removal = Removal::default();
    for _ in 0..1_000_000 {
        let (policy, now) = (&rig.policy, rig.now);
        if rig
            .nat
            .remove(policy, &mut removal, now, budget, &sessions, &mappings)
        {
            rig.check();
            return removal;
        }
    }
    panic!("it never ends");
}

fn remove(rig: &Rig, sessions: impl Fn(&SessionView) -> bool) -> Removal {
    remove_in(rig, 7, sessions, |_| false)
}

fn of(addr: &str) -> impl Fn(&SessionView) -> bool {
    let addr = common::addr(addr);
    move |view| view.outbound.tuple.source.addr == addr
}

#[test]
fn only_what_matches_goes_and_its_port_is_free_at_once() {
    for mapping in [EDM, EIM] {
        let mut rig = Rig::new(policy(mapping, EDF));
        let gone = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
        rig.udp("10.0.0.1:5001", "203.0.113.1:53");
        let stays = rig.connect("10.0.0.2:6000", "203.0.113.1:80");
        let removal = remove(&rig, of("10.0.0.1"));
        let done = (removal.sessions, removal.mappings, removal.left);
        assert_eq!(done, (2, 2, 0), "{mapping:?}");
        let totals = rig.nat.totals();
        assert_eq!(
            (totals.sessions, totals.mappings, totals.removed),
            (1, 1, 2)
        );
        assert!(!rig.is_owned(TCP, 0, gone.port) && rig.is_owned(TCP, 0, stays.port));
        let occupant = |at| rig.nat.occupant(&rig.policy, TCP, at);
        assert_eq!(occupant(gone), Occupant::Free);
        assert_ne!(occupant(stays), Occupant::Free);
        // The flow that was ended may begin again; the other one goes on.
        assert!(
            rig.out(Signal::TcpData, "10.0.0.1:5000", "203.0.113.1:80")
                .is_err()
        );
        assert_eq!(rig.connect("10.0.0.1:5000", "203.0.113.1:80"), gone);
        rig.out(Signal::TcpData, "10.0.0.2:6000", "203.0.113.1:80")
            .unwrap();
        rig.check();
    }
}

#[test]
fn a_mapping_that_another_session_uses_stays() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.2:53"), external);
    let to = |addr: &str| {
        let addr = common::addr(addr);
        move |view: &SessionView| view.outbound.tuple.destination.addr == addr
    };
    let first = remove(&rig, to("203.0.113.1"));
    assert_eq!((first.sessions, first.mappings), (1, 0));
    assert!(matches!(
        rig.nat.occupant(&rig.policy, UDP, external),
        Occupant::Mapping(_)
    ));
    let last = remove(&rig, to("203.0.113.2"));
    assert_eq!((last.sessions, last.mappings), (1, 1));
    // RFC 6888 REQ-8: as after any other end.
    let Occupant::Held(until) = rig.nat.occupant(&rig.policy, UDP, external) else {
        panic!("the port is not held down");
    };
    assert!(until > rig.now && rig.nat.totals().ports_held == [0, 1, 0]);
}

#[test]
fn mappings_without_sessions_go_by_their_own_filter() {
    let mut rig = Rig::new(policy(EIM, ADF));
    for host in 1..=4 {
        rig.udp(&format!("10.0.0.{host}:5000"), "203.0.113.1:53");
    }
    rig.wait(u64::from(rig.policy.timers.udp_timeout_ms) - 500);
    rig.udp("10.0.0.4:5000", "203.0.113.1:53");
    rig.wait(600);
    while rig.nat.totals().sessions > 1 {
        rig.nat.sweep(&rig.policy, rig.now, 500);
    }
    assert_eq!(
        rig.nat.totals().mappings,
        4,
        "to about a second they outlive their sessions"
    );
    let two = |view: &MappingView| view.internal.addr <= addr("10.0.0.2");
    let removal = remove_in(&rig, 1, |_| false, two);
    assert_eq!((removal.sessions, removal.mappings), (0, 2));
    // One with a session does not go by it.
    let removal = remove_in(&rig, 1, |_| false, |_| true);
    assert_eq!((removal.mappings, rig.nat.totals().mappings), (1, 1));
}

#[test]
fn forwards_and_hairpins_end_and_begin_again() {
    let mut rules = policy(EIM, EIF);
    rules.forwards = vec![forward(TCP, "198.51.100.1:443", "10.0.0.9:8443", &[])].into();
    rules
        .addresses
        .edit(|list| list[0].ports[0].remove_range(443, 443));
    let mut rig = Rig::new(rules);
    let public = ep("198.51.100.1:443");
    rig.back(Signal::TcpSyn, "203.0.113.5:4000", public)
        .unwrap();
    rig.out(Signal::TcpSyn, "10.0.0.1:5000", "198.51.100.1:443")
        .unwrap();
    let counts = |rig: &Rig| rig.nat.occupant(&rig.policy, TCP, public);
    let before = Occupant::Forward {
        sessions: 1,
        half_open: 1,
    };
    assert_eq!(counts(&rig), before);
    let removal = remove(&rig, |_| true);
    assert_eq!((removal.sessions, removal.mappings), (2, 1));
    let after = Occupant::Forward {
        sessions: 0,
        half_open: 0,
    };
    assert_eq!(counts(&rig), after);
    rig.back(Signal::TcpSyn, "203.0.113.5:4000", public)
        .unwrap();
    assert_eq!(counts(&rig), before);
    remove(&rig, |_| true);
    rig.assert_empty();
}

#[test]
fn what_an_external_endpoint_is_used_for() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    let occupant = |protocol, at: &str| rig.nat.occupant(&rig.policy, protocol, ep(at));
    let shared = external.to_string();
    assert_eq!(occupant(UDP, &shared), Occupant::Overloaded(1));
    assert_eq!(occupant(TCP, &shared), Occupant::Free);
    assert_eq!(occupant(UDP, "198.51.100.1:80"), Occupant::NotGiven);
    assert_eq!(occupant(UDP, "198.51.100.9:5000"), Occupant::NotPool);
}

#[test]
fn a_view_tells_when_its_session_expires() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(1_000);
    rig.back(Signal::Udp, "203.0.113.1:53", external).unwrap();
    let left = |rig: &Rig| {
        let view = rig.nat.sessions(rig.now).next().unwrap();
        view.expires_in_ms(&rig.policy)
    };
    let timeout_ms = rig.policy.timers.udp_timeout_ms;
    // RFC 4787 REQ-6: what comes in does not refresh, unless the policy says so.
    assert_eq!(left(&rig), timeout_ms - 1_000);
    rig.policy.inbound_refresh = true;
    assert_eq!(left(&rig), timeout_ms);
    rig.policy.inbound_refresh = false;
    rig.wait(u64::from(timeout_ms));
    assert_eq!(left(&rig), 0);
    let view = rig.nat.mapping(1).unwrap();
    assert_eq!(
        (view.external, view.sessions, view.behaviour),
        (external, 1, EDM)
    );
    assert!(rig.nat.mapping(2).is_none() && rig.nat.session(2, rig.now).is_none());
}

/// Two workers make sessions while a third one removes: what is left is sound.
#[test]
fn removing_beside_traffic_leaves_the_tables_sound() {
    for mapping in [EDM, EIM] {
        let rules = policy(mapping, EDF);
        let size = TableSize {
            sessions_max: 512,
            addresses_max: 1,
        };
        let (words, owned): (&[AtomicU64], &[AtomicU64]) =
            (memory(size.words()), memory(size.owned_words()));
        let nat = Nat::create(words, owned, size, IDENTITY, &mut Seeded(1)).unwrap();
        let now = Time(1_000_000);
        let stop = AtomicBool::new(false);
        let removed = std::thread::scope(|scope| {
            for worker in 0..2 {
                let (nat, rules, stop) = (&nat, &rules, &stop);
                scope.spawn(move || {
                    let mut random = Seeded(worker);
                    while !stop.load(Ordering::Relaxed) {
                        send_some(nat, rules, now, &mut random);
                    }
                });
            }
            let removed = (0..300).map(|_| {
                let mut removal = Removal::default();
                while !nat.remove(&rules, &mut removal, now, 64, |_| true, |_| true) {}
                removal.sessions
            });
            let removed: u64 = removed.sum();
            stop.store(true, Ordering::Relaxed);
            removed
        });
        nat.check(&rules, now)
            .unwrap_or_else(|violation| panic!("{violation}"));
        let mut removal = Removal::default();
        while !nat.remove(&rules, &mut removal, now, 64, |_| true, |_| true) {}
        let totals = nat.totals();
        assert_eq!((totals.sessions, totals.mappings), (0, 0), "{mapping:?}");
        assert_eq!(totals.removed, removed + removal.sessions);
        nat.check(&rules, now)
            .unwrap_or_else(|violation| panic!("{violation}"));
    }
}

/// A handful of packets of a few flows.
fn send_some(nat: &Nat<'_>, rules: &Policy, now: Time, random: &mut Seeded) {
    for _ in 0..64 {
        let host = 1 + random.below(40);
        let from = format!("10.0.0.{host}:5000");
        let to = format!("203.0.113.{}:53", 1 + random.below(3));
        let tuple = tuple(UDP, ep(&from), ep(&to));
        let hash = nat.hash(&tuple);
        let realm = conntrack::Realm::Internal;
        let facts = facts(Signal::Udp);
        // A full table refuses some.
        let _ = nat.translate(rules, realm, &tuple, hash, facts, now, random);
    }
}
