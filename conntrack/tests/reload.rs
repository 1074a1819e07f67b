//! A changed policy: what contradicts it ends, everything else goes on.

mod common;
use common::*;
use conntrack::Refusal;
use conntrack::Signal::{TcpData, TcpSyn, Udp};

#[test]
fn a_lost_address_takes_its_sessions_along() {
    for mapping in [EIM, EDM] {
        let mut policy = policy(mapping, EDF);
        let second = external("198.51.100.2", 1, 1024, 65535);
        policy.addresses.edit(|list| list.push(second));
        let mut rig = Rig::new(policy);
        let before: Vec<_> = (1..=30)
            .map(|host| rig.udp(&format!("10.0.0.{host}:5000"), "203.0.113.1:53"))
            .collect();
        // The address changes; the new one is in the old one's slot.
        let other = external("198.51.100.3", 1, 1024, 65535);
        rig.policy.addresses.edit(|list| list[1] = other);
        rig.apply();
        rig.check();
        let kept = before
            .iter()
            .filter(|e| e.addr == addr("198.51.100.1"))
            .count() as u64;
        assert!(kept > 0 && kept < 30);
        assert_eq!(rig.nat.totals().sessions, kept);
        for (host, old) in (1..=30).zip(before) {
            let now = rig.udp(&format!("10.0.0.{host}:5000"), "203.0.113.1:53");
            assert_ne!(now.addr, addr("198.51.100.2"));
            if old.addr == addr("198.51.100.1") {
                assert_eq!(now, old, "an untouched mapping stays");
            }
        }
        rig.check();
    }
}

#[test]
fn forwards_come_change_and_go() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let web = ep("198.51.100.1:8080");
    // A dynamic mapping sits where the forward will be.
    let dynamic = rig.connect("10.0.0.9:8080", "203.0.113.1:80");
    assert_eq!(dynamic, web);
    rig.policy.forwards = vec![forward(TCP, "198.51.100.1:8080", "10.0.0.2:80", &[])].into();
    rig.apply();
    rig.check();
    assert_eq!(rig.nat.totals().removed, 1);
    assert_eq!(
        rig.out(TcpData, "10.0.0.9:8080", "203.0.113.1:80"),
        Err(Refusal::TcpMidstream)
    );
    rig.back(TcpSyn, "203.0.113.1:7", web).unwrap();
    rig.back(TcpSyn, "192.0.2.1:7", web).unwrap();
    // An allow-list that leaves one of them out.
    rig.policy
        .forwards
        .edit(|list| list[0].allow = vec!["203.0.113.0/24".parse().unwrap()]);
    rig.apply();
    assert_eq!(rig.nat.totals().sessions, 1);
    assert_eq!(
        rig.back(TcpSyn, "192.0.2.1:7", web),
        Err(Refusal::ForwardDenied)
    );
    // Another target.
    rig.policy
        .forwards
        .edit(|list| list[0].targets = ep("10.0.0.3:80").into());
    rig.apply();
    assert_eq!(rig.nat.totals().sessions, 0);
    let there = rig.back(TcpSyn, "203.0.113.1:7", web).unwrap();
    assert_eq!(there.destination, ep("10.0.0.3:80"));
    rig.check();
    rig.policy.forwards.edit(Vec::clear);
    rig.apply();
    assert_eq!(
        rig.back(TcpSyn, "203.0.113.1:7", web),
        Err(Refusal::NoSession)
    );
    rig.assert_empty();
}

#[test]
fn behaviours_change_under_living_sessions() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.policy = policy(EDM, EDF);
    rig.apply();
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.1:53"), external);
    let other = rig.udp("10.0.0.1:5000", "203.0.113.2:53");
    assert_ne!(other, external, "an exclusive endpoint is not overloaded");
    rig.policy = policy(EIM, EIF);
    rig.apply();
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.3:53"), external);
    assert!(rig.back(Udp, "192.0.2.1:1", external).is_ok());
    rig.check();
}

#[test]
fn a_smaller_pool_keeps_old_ports_and_gives_no_more_of_them() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let old = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.policy.addresses = vec![external("198.51.100.1", 0, 40000, 40001)].into();
    rig.apply();
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.1:53"), old);
    for port in 1..=2 {
        assert!(rig.udp(&format!("10.0.0.2:{port}"), "203.0.113.1:53").port >= 40000);
    }
    let more = rig.out(Udp, "10.0.0.2:3", "203.0.113.1:53");
    assert_eq!(more, Err(Refusal::PortsExhausted));
    // A larger pool lifts the exhaustion at once.
    rig.policy.addresses = vec![external("198.51.100.1", 0, 40000, 40002)].into();
    rig.apply();
    assert_eq!(rig.udp("10.0.0.2:3", "203.0.113.1:53").port, 40002);
    rig.check();
}

#[test]
fn no_pool_no_mapping() {
    let mut rig = Rig::new(policy(EIM, EDF));
    rig.policy.addresses = Vec::new().into();
    rig.apply();
    let refused = rig.out(Udp, "10.0.0.1:5000", "203.0.113.1:53");
    assert_eq!(refused, Err(Refusal::NoExternalAddress));
    rig.policy.profile.mapping = [EDM; 3];
    let refused = rig.out(Udp, "10.0.0.1:5000", "203.0.113.1:53");
    assert_eq!(refused, Err(Refusal::NoExternalAddress));
}

/// An address that goes and comes back before its mappings have ended: an internal endpoint keeps
/// one mapping, and that one is found (RFC 4787 REQ-1).
#[test]
fn an_address_that_comes_back_leaves_one_mapping_for_an_endpoint() {
    let (old, new) = (
        external("198.51.100.1", 0, 1024, 65535),
        external("198.51.100.9", 1, 1024, 65535),
    );
    for after in [vec![old.clone()], vec![old.clone(), new.clone()]] {
        let mut rig = Rig::new(policy(EIM, EDF));
        rig.udp("10.0.0.1:5000", "203.0.113.1:53");
        rig.policy.addresses = vec![new.clone()].into();
        rig.udp("10.0.0.1:5000", "203.0.113.2:53");
        let both = after.len() == 2;
        rig.policy.addresses = after.into();
        rig.apply();
        rig.check();
        assert_eq!(rig.nat.totals().mappings, 1);
        let kept = rig.udp("10.0.0.1:5000", "203.0.113.3:53");
        let wanted = if both { new.addr } else { old.addr };
        assert_eq!(kept.addr, wanted);
        assert_eq!(rig.nat.totals().mappings, 1);
        rig.check();
    }
}

/// A destination that becomes denied ends what clients have opened to it, and nothing else: whoever
/// comes from there through a forward is answered.
#[test]
fn a_destination_becomes_denied() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(policy(mapping, EDF));
        let web = ep("198.51.100.1:8080");
        rig.policy.forwards = vec![forward(TCP, "198.51.100.1:8080", "10.0.0.2:80", &[])].into();
        rig.apply();
        rig.udp("10.0.0.1:5000", "203.0.113.1:53");
        rig.udp("10.0.0.1:5000", "203.0.113.2:53");
        rig.back(TcpSyn, "203.0.113.1:7", web).unwrap();
        rig.policy.denied = ["203.0.113.1/32".parse().unwrap()].into_iter().collect();
        rig.apply();
        rig.check();
        assert_eq!(rig.nat.totals().removed, 1);
        let denied = rig.out(Udp, "10.0.0.1:5000", "203.0.113.1:53");
        assert_eq!(denied, Err(Refusal::DestinationDenied));
        rig.udp("10.0.0.1:5000", "203.0.113.2:53");
        rig.back(TcpData, "203.0.113.1:7", web).unwrap();
        rig.check();
    }
}
