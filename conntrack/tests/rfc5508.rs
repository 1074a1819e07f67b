//! RFC 5508: ICMP queries.

mod common;
use common::*;
use conntrack::Signal::{IcmpQuery, IcmpReply};
use conntrack::{Refusal, Signal};

#[test]
fn rfc5508_1_queries_and_replies() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(policy(mapping, EDF));
        let one = rig.out(IcmpQuery, "10.0.0.1:77", "203.0.113.1:0").unwrap();
        // A second host with the same identifier.
        let two = rig.out(IcmpQuery, "10.0.0.2:77", "203.0.113.1:0").unwrap();
        assert_ne!(one.source, two.source);
        let reply = rig.back(IcmpReply, "203.0.113.1:0", two.source).unwrap();
        assert_eq!(reply.destination, ep("10.0.0.2:77"));
        rig.check();
    }
}

#[test]
fn rfc5508_1a_identifier_is_independent_of_the_remote() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let one = rig
        .out(IcmpQuery, "10.0.0.1:2000", "203.0.113.1:0")
        .unwrap();
    let two = rig
        .out(IcmpQuery, "10.0.0.1:2000", "203.0.113.2:0")
        .unwrap();
    assert_eq!(one.source, two.source);
}

#[test]
fn rfc5508_2_sixty_seconds() {
    for (idle, alive) in [(59_999, true), (60_000, false)] {
        let mut rig = Rig::new(policy(EDM, EDF));
        let source = rig
            .out(IcmpQuery, "10.0.0.1:77", "203.0.113.1:0")
            .unwrap()
            .source;
        rig.wait(idle);
        assert_eq!(rig.back(IcmpReply, "203.0.113.1:0", source).is_ok(), alive);
    }
}

#[test]
fn rfc5508_6_an_error_about_a_query_changes_nothing() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let source = rig
        .out(IcmpQuery, "10.0.0.1:77", "203.0.113.1:0")
        .unwrap()
        .source;
    rig.wait(59_000);
    let sent = tuple(ICMP, source, ep("203.0.113.1:0"));
    assert_eq!(
        rig.nat.embedded(&sent, rig.now).unwrap().destination,
        ep("10.0.0.1:77")
    );
    rig.wait(1_000);
    assert_eq!(
        rig.back(IcmpReply, "203.0.113.1:0", source),
        Err(Refusal::NoSession)
    );
}

#[test]
fn nobody_asked() {
    let mut policy = policy(EIM, EIF);
    policy
        .forwards
        .edit(|list| list.push(forward(UDP, "198.51.100.1:0", "10.0.0.2:1", &[])));
    let mut rig = Rig::new(policy);
    assert_eq!(
        rig.out(IcmpReply, "10.0.0.1:0", "203.0.113.1:7"),
        Err(Refusal::IcmpUnasked)
    );
    let us = ep("198.51.100.1:0");
    assert_eq!(
        rig.back(IcmpQuery, "203.0.113.1:7", us),
        Err(Refusal::NoSession)
    );
    assert_eq!(
        rig.out(IcmpQuery, "10.0.0.1:7", "198.51.100.1:0"),
        Err(Refusal::NoSession)
    );
    let port = ep("198.51.100.1:9");
    assert_eq!(
        rig.back(Signal::Udp, "203.0.113.1:7", port),
        Err(Refusal::NoSession)
    );
    assert_eq!(rig.nat.totals().created, 0);
}
