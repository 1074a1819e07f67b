//! What the tables tell, and next hops.

mod common;
use common::*;
use conntrack::tcp::State;
use conntrack::{Direction, NextHop, Signal};

#[test]
fn a_session_is_listed_as_it_is() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let started = rig.now;
    let external = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    rig.wait(5_000);
    rig.out(Signal::TcpData, "10.0.0.1:5000", "203.0.113.1:80")
        .unwrap();
    rig.wait(2_000);
    let view = rig.nat.sessions(rig.now).next().unwrap();
    assert_eq!((view.protocol, view.direction), (TCP, Direction::Outbound));
    assert_eq!(view.external(), external);
    assert_eq!(
        view.outbound.tuple,
        tuple(TCP, ep("10.0.0.1:5000"), ep("203.0.113.1:80"))
    );
    assert_eq!(view.inbound.destination, ep("10.0.0.1:5000"));
    assert_eq!((view.outbound.packets, view.outbound.bytes), (3, 300));
    assert_eq!((view.inbound.packets, view.inbound.bytes), (1, 100));
    assert_eq!(
        (view.state, view.idle_ms),
        (Some(State::Established), 2_000)
    );
    assert!(started.0 - view.started.unwrap().0 < 1024);
    assert!(!view.from_outside && !view.forwarded);
    let totals = rig.nat.totals();
    assert_eq!(
        (totals.sessions, totals.mappings, totals.created),
        (1, 1, 1)
    );
    assert_eq!(totals.ports_in_use, [1, 0, 0]);
}

#[test]
fn a_next_hop_stays_with_its_half_and_stale_views_change_nothing() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let (a, b) = ("10.0.0.1:5000", "203.0.113.1:80");
    let syn = rig.out(Signal::TcpSyn, a, b).unwrap();
    assert_eq!(syn.next_hop, NextHop::NONE);
    rig.nat.set_next_hop(syn.session, NextHop(7));
    let answer = rig.back(Signal::TcpSynAck, b, syn.source).unwrap();
    assert_eq!(answer.next_hop, NextHop::NONE, "each half has its own");
    rig.nat.set_next_hop(answer.session, NextHop(9));
    // The first view is stale by now.
    rig.nat.set_next_hop(syn.session, NextHop(8));
    assert_eq!(rig.out(Signal::TcpData, a, b).unwrap().next_hop, NextHop(7));
    assert_eq!(
        rig.back(Signal::TcpData, b, syn.source).unwrap().next_hop,
        NextHop(9)
    );
    rig.check();
    // Neither a session that is gone nor a nonsensical one.
    let last = rig.out(Signal::TcpData, a, b).unwrap().session;
    rig.wait(8_000_000);
    rig.sweep();
    rig.nat.set_next_hop(last, NextHop(1));
    for half in [0, 1, u32::MAX] {
        rig.nat
            .set_next_hop(conntrack::SessionRef { half, ..last }, NextHop(1));
    }
    rig.assert_empty();
    assert_eq!(
        rig.out(Signal::TcpSyn, a, b).unwrap().next_hop,
        NextHop::NONE
    );
}

/// A packet from the other realm with the very tuple of a half is not that half's.
#[test]
fn realms_are_kept_apart() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    let spoofed = rig.back(Signal::Udp, "10.0.0.1:5000", ep("203.0.113.1:53"));
    assert_eq!(spoofed, Err(conntrack::Refusal::NoSession));
    let inside = rig.out(Signal::Udp, "203.0.113.1:53", &external.to_string());
    assert_eq!(inside, Err(conntrack::Refusal::NoSession));
    assert_eq!(rig.nat.sessions(rig.now).next().unwrap().inbound.packets, 0);
}
