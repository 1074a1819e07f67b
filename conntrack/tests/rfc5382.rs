//! RFC 5382: TCP.

mod common;
use common::*;
use conntrack::Signal::{TcpData, TcpFin, TcpRst, TcpSyn, TcpSynAck};
use conntrack::{Refusal, TimeoutClass};

const A: &str = "10.0.0.1:5000";
const B: &str = "203.0.113.1:80";

fn class(rig: &Rig) -> TimeoutClass {
    rig.nat.sessions(rig.now).next().unwrap().class
}

#[test]
fn rfc5382_1_one_external_endpoint_for_all_remotes() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let first = rig.connect(A, B);
    assert_eq!(rig.connect(A, "203.0.113.2:80"), first);
    assert_eq!(rig.connect(A, "203.0.113.1:443"), first);
    rig.check();
}

#[test]
fn rfc5382_2_handshake_half_close_close_and_again() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.out(TcpSyn, A, B).unwrap().source;
    assert_eq!(class(&rig), TimeoutClass::TcpTransOpen);
    rig.out(TcpSyn, A, B).unwrap();
    rig.back(TcpSynAck, B, external).unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpIdle);
    rig.out(TcpData, A, B).unwrap();
    rig.back(TcpFin, B, external).unwrap();
    rig.wait(3_600_000);
    rig.out(TcpData, A, B).unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpIdle, "half closed is open");
    rig.out(TcpFin, A, B).unwrap();
    rig.back(TcpData, B, external).unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpTransClose);
    assert_eq!(rig.out(TcpSyn, A, B).unwrap().source, external);
    assert_eq!(class(&rig), TimeoutClass::TcpTransOpen);
    rig.check();
}

#[test]
fn rfc5382_2a_simultaneous_open() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.out(TcpSyn, A, B).unwrap().source;
    rig.back(TcpSyn, B, external).unwrap();
    rig.out(TcpSynAck, A, B).unwrap();
    rig.back(TcpSynAck, B, external).unwrap();
    rig.wait(7_000_000);
    rig.out(TcpData, A, B).unwrap();
    rig.check();
}

/// The same from outside: the initiator's SYN crosses the target's.
#[test]
fn rfc5382_2a_simultaneous_open_from_outside() {
    let mut policy = policy(EIM, EDF);
    policy.forwards = vec![forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])].into();
    let mut rig = Rig::new(policy);
    let (remote, to) = ("203.0.113.5:999", ep("198.51.100.1:80"));
    rig.back(TcpSyn, remote, to).unwrap();
    let crossing = rig.out(TcpSyn, "10.0.0.2:8080", remote).unwrap();
    assert_eq!(crossing.source, to);
    rig.back(TcpSynAck, remote, to).unwrap();
    rig.out(TcpSynAck, "10.0.0.2:8080", remote).unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpIdle);
    rig.wait(7_000_000);
    rig.back(TcpData, remote, to).unwrap();
    rig.check();
}

#[test]
fn rfc5382_2_what_is_sent_again_changes_nothing() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.out(TcpSyn, A, B).unwrap().source;
    for _ in 0..3 {
        assert_eq!(rig.out(TcpSyn, A, B).unwrap().source, external);
    }
    for _ in 0..3 {
        rig.back(TcpSynAck, B, external).unwrap();
        rig.out(TcpSyn, A, B).unwrap();
    }
    for _ in 0..3 {
        rig.out(TcpData, A, B).unwrap();
        rig.out(TcpFin, A, B).unwrap();
    }
    assert_eq!(class(&rig), TimeoutClass::TcpIdle, "one side's FIN only");
    for _ in 0..3 {
        rig.back(TcpFin, B, external).unwrap();
        rig.out(TcpFin, A, B).unwrap();
        rig.out(TcpData, A, B).unwrap();
    }
    assert_eq!(class(&rig), TimeoutClass::TcpTransClose);
    assert_eq!(rig.nat.totals().created, 1);
    rig.check();
}

/// Half closed, the other side may go on for days.
#[test]
fn rfc5382_2_half_closed_for_long() {
    for closes_inside in [true, false] {
        let mut rig = Rig::new(policy(EDM, EDF));
        let external = rig.connect(A, B);
        if closes_inside {
            rig.out(TcpFin, A, B).unwrap();
        } else {
            rig.back(TcpFin, B, external).unwrap();
        }
        for _ in 0..24 {
            rig.wait(7_200_000);
            rig.sweep();
            if closes_inside {
                rig.back(TcpData, B, external).unwrap();
            } else {
                rig.out(TcpData, A, B).unwrap();
            }
        }
        assert_eq!(class(&rig), TimeoutClass::TcpIdle);
        rig.check();
    }
}

#[test]
fn rfc5382_2_a_reset_after_a_fin_closes() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.connect(A, B);
    rig.out(TcpFin, A, B).unwrap();
    rig.back(TcpRst, B, external).unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpTransClose);
    rig.wait(240_000);
    rig.sweep();
    rig.assert_empty();
}

/// A client that uses its port again while the connection before is in TIME-WAIT: the whole
/// handshake passes by the same endpoint at once, and the new connection has the long timer.
#[test]
fn rfc5382_2_a_port_used_again_is_a_new_connection_at_once() {
    for end in [[TcpFin, TcpFin], [TcpRst, TcpRst]] {
        let mut rig = Rig::new(policy(EDM, EDF));
        let external = rig.connect(A, B);
        rig.out(end[0], A, B).unwrap();
        rig.back(end[1], B, external).unwrap();
        assert_eq!(class(&rig), TimeoutClass::TcpTransClose);
        rig.wait(1);
        assert_eq!(rig.connect(A, B), external);
        rig.wait(7_439_999);
        rig.back(TcpData, B, external).unwrap();
        assert_eq!(class(&rig), TimeoutClass::TcpIdle);
        assert_eq!(rig.nat.totals().sessions, 1);
        rig.check();
    }
}

#[test]
fn rfc5382_5_timeouts() {
    for (idle, alive) in [(7_439_999, true), (7_440_000, false)] {
        let mut rig = Rig::new(policy(EIM, EDF));
        let external = rig.connect(A, B);
        rig.wait(idle);
        let back = rig.back(TcpData, B, external);
        assert_eq!(back.is_ok(), alive, "established, {idle} ms idle");
    }
    for (idle, alive) in [(239_999, true), (240_000, false)] {
        let mut rig = Rig::new(policy(EIM, EDF));
        let external = rig.out(TcpSyn, A, B).unwrap().source;
        rig.wait(idle);
        assert_eq!(
            rig.back(TcpSynAck, B, external).is_ok(),
            alive,
            "SYN, {idle} ms idle"
        );
    }
}

#[test]
fn rfc5382_5_a_profile_that_is_reloaded_holds_at_once() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.connect(A, B);
    rig.wait(400_000);
    rig.policy.timers.tcp_idle_timeout_ms = 350_000;
    assert_eq!(rig.back(TcpData, B, external), Err(Refusal::NoSession));
}

#[test]
fn rfc5382_7_no_overloading_in_eim() {
    let mut policy = policy(EIM, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2000)].into();
    let mut rig = Rig::new(policy);
    rig.connect(A, B);
    assert_eq!(
        rig.out(TcpSyn, "10.0.0.2:1", "203.0.113.9:1"),
        Err(Refusal::PortsExhausted)
    );
}

#[test]
fn rfc5382_8_hairpin_to_a_forward() {
    let mut policy = policy(EDM, EDF);
    policy
        .forwards
        .edit(|list| list.push(forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])));
    let mut rig = Rig::new(policy);
    let there = rig.out(TcpSyn, A, "198.51.100.1:80").unwrap();
    assert_eq!(there.destination, ep("10.0.0.2:8080"));
    let reply = there.source.to_string();
    let back = rig.out(TcpSynAck, "10.0.0.2:8080", &reply).unwrap();
    assert_eq!(
        (back.source, back.destination),
        (ep("198.51.100.1:80"), ep(A))
    );
    rig.out(TcpData, A, "198.51.100.1:80").unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpIdle);
    rig.check();
}

#[test]
fn a_stray_segment_opens_nothing() {
    let mut rig = Rig::new(policy(EIM, EIF));
    for signal in [TcpSynAck, TcpData, TcpFin, TcpRst] {
        assert_eq!(rig.out(signal, A, B), Err(Refusal::TcpMidstream));
        assert_eq!(
            rig.back(signal, B, ep("198.51.100.1:5000")),
            Err(Refusal::NoSession)
        );
    }
    assert_eq!(rig.nat.totals().created, 0);
    rig.check();
}

#[test]
fn a_forward_opens_for_whom_it_allows() {
    let mut policy = policy(EDM, EDF);
    policy.forwards.edit(|list| {
        list.push(forward(
            TCP,
            "198.51.100.1:80",
            "10.0.0.2:8080",
            &["203.0.113.0/24"],
        ))
    });
    let mut rig = Rig::new(policy);
    assert!(rig.is_owned(TCP, 0, 80) && !rig.is_owned(UDP, 0, 80));
    let to = ep("198.51.100.1:80");
    let there = rig.back(TcpSyn, "203.0.113.5:999", to).unwrap();
    assert_eq!(
        (there.source, there.destination),
        (ep("203.0.113.5:999"), ep("10.0.0.2:8080"))
    );
    assert_eq!(
        rig.back(TcpSyn, "192.0.2.1:999", to),
        Err(Refusal::ForwardDenied)
    );
    let reply = rig
        .out(TcpSynAck, "10.0.0.2:8080", "203.0.113.5:999")
        .unwrap();
    assert_eq!(reply.source, to);
    assert_eq!(
        class(&rig),
        TimeoutClass::TcpTransOpen,
        "until the initiator's ACK"
    );
    rig.back(TcpData, "203.0.113.5:999", to).unwrap();
    assert_eq!(class(&rig), TimeoutClass::TcpIdle);
    assert_eq!(rig.nat.totals().sessions_inbound, 1);
    // The target's own connections get an ordinary mapping in `edm`.
    assert_eq!(rig.connect("10.0.0.2:8080", B), ep("198.51.100.1:8080"));
    rig.check();
}

#[test]
fn in_eim_a_forwards_target_keeps_the_forwards_endpoint() {
    let mut policy = policy(EIM, EDF);
    policy
        .forwards
        .edit(|list| list.push(forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])));
    let mut rig = Rig::new(policy);
    assert_eq!(rig.connect("10.0.0.2:8080", B), ep("198.51.100.1:80"));
    assert_eq!(rig.nat.totals().mappings, 0);
    rig.check();
}

#[test]
fn sessions_from_outside_stop_at_a_quarter() {
    let mut policy = policy(EDM, EDF);
    policy
        .forwards
        .edit(|list| list.push(forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])));
    policy.limits.inbound_sessions_per_forward = Some(1000);
    let mut rig = Rig::sized(policy, 100);
    let to = ep("198.51.100.1:80");
    for port in 1..=25 {
        let client = format!("203.0.113.5:{port}");
        rig.back(TcpSyn, &client, to).unwrap();
        rig.out(TcpSynAck, "10.0.0.2:8080", &client).unwrap();
        rig.back(TcpData, &client, to).unwrap();
    }
    assert_eq!(
        rig.back(TcpSyn, "203.0.113.5:26", to),
        Err(Refusal::InboundLimit)
    );
    rig.connect(A, B);
    rig.check();
    rig.wait(7_440_000);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions, 0);
    assert!(rig.back(TcpSyn, "203.0.113.5:26", to).is_ok());
    rig.check();
}
