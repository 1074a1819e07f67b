//! RFC 7857: updates of the behavioural requirements.

mod common;
use common::*;
use conntrack::Signal::{TcpData, TcpRst, TcpSyn, Udp};
use conntrack::{Refusal, TimeoutClass};
use std::collections::HashSet;

#[test]
fn rfc7857_2_2_a_reset_leaves_four_minutes_and_data_revives() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    rig.back(TcpRst, "203.0.113.1:80", external).unwrap();
    rig.wait(200_000);
    rig.out(TcpData, "10.0.0.1:5000", "203.0.113.1:80").unwrap();
    assert_eq!(
        rig.nat.sessions(rig.now).next().unwrap().class,
        TimeoutClass::TcpIdle
    );
    rig.out(TcpRst, "10.0.0.1:5000", "203.0.113.1:80").unwrap();
    rig.wait(240_000);
    let late = rig.back(TcpData, "203.0.113.1:80", external);
    assert_eq!(late, Err(Refusal::NoSession));
}

#[test]
fn rfc7857_3_overloading_for_different_remotes_only() {
    let mut policy = policy(EDM, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2002)];
    let mut rig = Rig::new(policy);
    for remote in 1..=200 {
        let remote = format!("203.0.113.{remote}:53");
        let mut used = HashSet::new();
        for host in 1..=3 {
            let inside = format!("10.0.0.{host}:2001");
            let external = rig.udp(&inside, &remote);
            assert!(used.insert(external), "{external} twice to {remote}");
            let back = rig.back(Udp, &remote, external).unwrap();
            assert_eq!(back.destination, ep(&inside));
        }
        let fourth = rig.out(Udp, "10.0.0.4:2001", &remote);
        assert_eq!(fourth, Err(Refusal::PortsExhausted));
    }
    assert_eq!(rig.nat.totals().ports_in_use, [0, 3, 0]);
    assert_eq!(rig.nat.totals().sessions, 600);
    rig.check();
}

#[test]
fn rfc7857_3_a_released_port_is_found_again() {
    let mut policy = policy(EDM, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2999)];
    let mut rig = Rig::new(policy);
    for host in 0..1000 {
        rig.udp(
            &format!("10.0.{}.{}:7", host / 250, host % 250),
            "203.0.113.1:53",
        );
        rig.wait(1);
    }
    let refused = Err(Refusal::PortsExhausted);
    assert_eq!(rig.out(Udp, "10.9.0.1:7", "203.0.113.1:53"), refused);
    assert_eq!(
        rig.out(Udp, "10.9.0.1:7", "203.0.113.1:53"),
        refused,
        "by the memo"
    );
    rig.udp("10.9.0.1:7", "203.0.113.2:53");
    // Exactly one session expires.
    rig.wait(300_000 - 1000);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions, 1000);
    rig.udp("10.9.0.1:7", "203.0.113.1:53");
    assert_eq!(rig.out(Udp, "10.9.0.2:7", "203.0.113.1:53"), refused);
    rig.check();
}

#[test]
fn rfc7857_4_in_edm_the_pairing_is_soft() {
    let mut policy = policy(EDM, EDF);
    policy.addresses = vec![
        external("198.51.100.1", 0, 2000, 2009),
        external("198.51.100.2", 1, 2000, 2009),
    ];
    let mut rig = Rig::new(policy);
    let mut first = None;
    for port in 1..=20 {
        let external = rig.udp(&format!("10.0.0.1:{port}"), "203.0.113.1:53");
        let paired = *first.get_or_insert(external.addr);
        assert_eq!(external.addr == paired, port <= 10, "port {port}");
    }
    assert_eq!(
        rig.out(Udp, "10.0.0.1:21", "203.0.113.1:53"),
        Err(Refusal::PortsExhausted)
    );
    rig.check();
}

#[test]
fn rfc7857_5_and_6_protocols_have_mappings_of_their_own() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    assert_eq!(
        rig.back(Udp, "203.0.113.2:9", external),
        Err(Refusal::NoSession)
    );
    assert!(rig.back(TcpSyn, "203.0.113.2:9", external).is_ok());
    rig.check();
}

#[test]
fn rfc7857_7_refused_packets_refresh_nothing() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    for _ in 0..310 {
        rig.wait(1_000);
        assert!(rig.back(Udp, "203.0.113.9:53", external).is_err());
    }
    rig.sweep();
    rig.sweep();
    rig.assert_empty();
}

/// Packets that `eif` admits keep the mapping open no longer than its host's silence allows.
#[test]
fn rfc7857_7_inbound_alone_does_not_keep_a_mapping_open() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(290_000);
    assert!(rig.back(Udp, "203.0.113.2:1", external).is_ok());
    rig.wait(20_000);
    assert_eq!(
        rig.back(Udp, "203.0.113.3:1", external),
        Err(Refusal::NoSession)
    );
    assert!(
        rig.back(Udp, "203.0.113.2:1", external).is_ok(),
        "its session lives on"
    );
    rig.check();
}

#[test]
fn rfc7857_9_without_preservation_ports_are_spread() {
    let mut policy = policy(EDM, EDF);
    policy.preserve_port = false;
    let mut rig = Rig::new(policy);
    let mut blocks = HashSet::new();
    for i in 0..200 {
        let external = rig.udp(&format!("10.0.0.{i}:5000"), &format!("203.0.113.{i}:53"));
        blocks.insert(external.port / 1024);
    }
    assert!(blocks.len() > 50, "{} of 63 blocks", blocks.len());
}
