//! RFC 6888: what of carrier-grade NAT concerns the tables.

mod common;
use common::*;
use conntrack::{Refusal, Signal};

#[test]
fn rfc6888_8_hold_down_only_without_an_exception() {
    for (filtering, held) in [(EIF, true), (ADF, false), (EDF, false)] {
        let mut rig = Rig::new(policy(EIM, filtering));
        let port = rig.udp("10.0.0.1:5000", "203.0.113.1:53").port;
        rig.out(Signal::TcpSyn, "10.0.0.1:6000", "203.0.113.1:80")
            .unwrap();
        rig.wait(302_000);
        rig.sweep();
        assert_eq!(rig.nat.totals().ports_held, [0, u64::from(held), 0]);
        assert_eq!(
            rig.is_owned(UDP, 0, port),
            held,
            "a held endpoint stays ours"
        );
        let other = rig.udp("10.0.0.2:5000", "203.0.113.1:53").port;
        assert_eq!(other == port, !held);
        rig.check();
        rig.wait(122_000);
        rig.sweep();
        assert_eq!(rig.nat.totals().ports_held, [0; 3]);
        rig.check();
    }
}

#[test]
fn rfc6888_8x_a_quarter_of_the_pool_at_most() {
    let mut policy = policy(EIM, EIF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2039)].into();
    let mut rig = Rig::new(policy);
    for host in 1..=40 {
        rig.udp(&format!("10.0.0.{host}:1000"), "203.0.113.1:53");
    }
    rig.wait(302_000);
    rig.sweep();
    assert_eq!(rig.nat.totals().ports_held, [0, 10, 0]);
    for host in 1..=30 {
        rig.udp(&format!("10.0.1.{host}:1000"), "203.0.113.1:53");
    }
    let more = rig.out(Signal::Udp, "10.0.2.1:1000", "203.0.113.1:53");
    assert_eq!(more, Err(Refusal::PortsExhausted));
    // A hold-down that is over gives way without waiting for the sweep.
    rig.wait(122_000);
    rig.udp("10.0.2.1:1000", "203.0.113.1:53");
    rig.check();
}

#[test]
fn rfc6888_11_full_refuses_and_keeps_what_lives() {
    let mut rig = Rig::sized(policy(EDM, EDF), 50);
    for port in 1..=50 {
        rig.udp(&format!("10.0.0.1:{port}"), "203.0.113.1:53");
    }
    for _ in 0..3 {
        let refused = rig.out(Signal::Udp, "10.0.0.1:51", "203.0.113.1:53");
        assert_eq!(refused, Err(Refusal::SessionsFull));
    }
    for port in 1..=50 {
        rig.udp(&format!("10.0.0.1:{port}"), "203.0.113.1:53");
    }
    assert_eq!(rig.nat.totals().created, 50);
    rig.check();
}

#[test]
fn rfc6888_13_every_port_of_the_pool_is_used() {
    let mut policy = policy(EIM, EDF);
    policy.profile.preserve_port = false;
    policy.addresses = vec![external("198.51.100.1", 0, 1024, 9999)].into();
    let mut rig = Rig::new(policy);
    for i in 0..8976 {
        rig.udp(
            &format!("10.0.{}.{}:99", i / 250, i % 250),
            "203.0.113.1:53",
        );
    }
    assert!(
        rig.out(Signal::Udp, "10.9.0.1:99", "203.0.113.1:53")
            .is_err()
    );
    rig.check();
}
