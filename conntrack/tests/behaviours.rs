//! Mapping and filtering behaviour of each protocol by itself: RFC 5382 REQ-3, RFC 7857 sections 5
//! and 6.

mod common;
use common::*;
use conntrack::{Refusal, Signal};

/// Each protocol is mapped and filtered by its own behaviour: TCP `edm` beside UDP `eim`, `adf`
/// beside `eif`.
#[test]
fn rfc5382_3b_behaviours_of_tcp_and_udp_are_independent() {
    let mut mixed = policy(EIM, EDF);
    mixed.profile.filtering = [ADF, EIF, EDF];
    let mut rig = Rig::new(mixed);
    let tcp = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    let udp = rig.udp("10.0.0.1:5000", "203.0.113.1:80");
    assert!(rig.back(Signal::Udp, "203.0.113.9:9", udp).is_ok());
    let stranger = rig.back(Signal::TcpSyn, "203.0.113.9:9", tcp);
    assert_eq!(stranger, Err(Refusal::Filtered));
    assert!(rig.back(Signal::TcpSyn, "203.0.113.1:9", tcp).is_ok());
    rig.check();

    let mut mixed = policy(EIM, EDF);
    mixed.profile.mapping = [EDM, EIM, EDM];
    mixed.addresses = vec![external("198.51.100.1", 0, 4000, 4001)].into();
    let mut rig = Rig::new(mixed);
    // Two ports carry three TCP hosts to different remotes, but only two UDP endpoints.
    for host in 1..=3 {
        let remote = format!("203.0.113.{host}:80");
        rig.connect(&format!("10.0.0.{host}:5000"), &remote);
        let udp = rig.out(Signal::Udp, &format!("10.0.0.{host}:5000"), &remote);
        assert_eq!(udp.is_ok(), host < 3);
    }
    let first = rig.udp("10.0.0.1:5000", "203.0.113.1:80");
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.8:80"), first);
    rig.check();
}

/// A change of one protocol's mapping behaviour leaves the sessions of all protocols alone, and new
/// ones go by it.
#[test]
fn rfc5382_3b_a_change_for_one_protocol_keeps_the_others() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let tcp = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    let udp = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.policy.profile.mapping = [EDM, EIM, EIM];
    rig.policy.profile.filtering = [EDF, EIF, EIF];
    rig.apply();
    let data = rig.out(Signal::TcpData, "10.0.0.1:5000", "203.0.113.1:80");
    assert_eq!(data.unwrap().source, tcp);
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.2:53"), udp);
    assert!(rig.back(Signal::Udp, "203.0.113.3:1", udp).is_ok());
    let unasked = rig.back(Signal::TcpSyn, "203.0.113.3:1", tcp);
    assert_eq!(unasked, Err(Refusal::NoSession));
    rig.check();
}
