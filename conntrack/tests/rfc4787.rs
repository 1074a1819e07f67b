//! RFC 4787: UDP. Each test is named by the requirement it is about.

mod common;
use common::*;
use conntrack::{Direction, Refusal, Signal};

#[test]
fn rfc4787_1_one_external_endpoint_for_all_remotes() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let first = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    assert_eq!(first, ep("198.51.100.1:5000"), "the source port is kept");
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.2:53"), first);
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.1:99"), first);
    assert_eq!(rig.nat.totals().mappings, 1);
    assert_eq!(rig.nat.totals().sessions, 3);
    rig.check();
}

#[test]
fn rfc4787_2_pool_is_paired() {
    let mut policy = policy(EIM, EDF);
    for i in 2..=4 {
        let more = external(&format!("198.51.100.{i}"), i - 1, 1024, 65535);
        policy.addresses.edit(|list| list.push(more));
    }
    let mut rig = Rig::new(policy);
    let mut used = std::collections::HashSet::new();
    for host in 1..=40 {
        let one = rig.udp(&format!("10.0.0.{host}:1000"), "203.0.113.1:53");
        let syn = format!("10.0.0.{host}:1001");
        let two = rig
            .out(Signal::TcpSyn, &syn, "203.0.113.2:80")
            .unwrap()
            .source;
        let ping = format!("10.0.0.{host}:9");
        let three = rig
            .out(Signal::IcmpQuery, &ping, "203.0.113.2:0")
            .unwrap()
            .source;
        assert_eq!(one.addr, two.addr);
        assert_eq!(one.addr, three.addr);
        used.insert(one.addr);
    }
    assert_eq!(used.len(), 4, "all addresses of the pool are used");
    rig.check();
}

#[test]
fn rfc4787_3_no_overloading_in_eim() {
    let mut policy = policy(EIM, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 40000, 40009)].into();
    let mut rig = Rig::new(policy);
    let mut used = std::collections::HashSet::new();
    for host in 1..=10 {
        let external = rig.udp(
            &format!("10.0.0.{host}:40000"),
            &format!("203.0.113.{host}:53"),
        );
        assert!(used.insert(external), "{external} twice");
    }
    assert_eq!(
        rig.out(Signal::Udp, "10.0.0.11:40000", "203.0.113.200:53"),
        Err(Refusal::PortsExhausted)
    );
    assert_eq!(rig.nat.totals().ports_in_use, [0, 10, 0]);
    rig.check();
}

#[test]
fn rfc4787_5_udp_lives_its_timeout_and_no_longer() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(299_999);
    let inbound = rig.back(Signal::Udp, "203.0.113.1:53", external).unwrap();
    assert_eq!(inbound.destination, ep("10.0.0.1:5000"));
    assert_eq!(inbound.direction, Direction::Inbound);
    // Neither the session nor, rounded up to a tick, the mapping.
    rig.wait(1 + 1024);
    assert_eq!(
        rig.back(Signal::Udp, "203.0.113.1:53", external),
        Err(Refusal::NoSession)
    );
}

#[test]
fn rfc4787_6_outbound_refreshes_and_inbound_by_policy_only() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(299_000);
    rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(299_000);
    assert!(rig.back(Signal::Udp, "203.0.113.1:53", external).is_ok());
    rig.wait(1_000);
    assert!(
        rig.back(Signal::Udp, "203.0.113.1:53", external).is_err(),
        "inbound did not refresh"
    );

    let mut refreshing = policy(EIM, EDF);
    refreshing.inbound_refresh = true;
    let mut rig = Rig::new(refreshing);
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    for _ in 0..5 {
        rig.wait(299_000);
        assert!(rig.back(Signal::Udp, "203.0.113.1:53", external).is_ok());
    }
    // The mapping lives with its sessions.
    assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.9:53"), external);
    rig.check();
}

#[test]
fn rfc4787_8_filtering() {
    for (filtering, stranger, other_port) in [
        (EIF, Ok(()), Ok(())),
        (ADF, Err(Refusal::Filtered), Ok(())),
        (EDF, Err(Refusal::Filtered), Err(Refusal::Filtered)),
    ] {
        let mut rig = Rig::new(policy(EIM, filtering));
        let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
        let mut probe = |from| {
            rig.back(Signal::Udp, from, external).map(|rewrite| {
                assert_eq!(rewrite.destination, ep("10.0.0.1:5000"));
            })
        };
        assert_eq!(probe("203.0.113.1:53"), Ok(()));
        assert_eq!(probe("203.0.113.1:54"), other_port, "{filtering:?}");
        assert_eq!(probe("203.0.113.2:53"), stranger, "{filtering:?}");
        rig.check();
    }
}

#[test]
fn rfc4787_8_adf_follows_the_sessions() {
    let mut rig = Rig::new(policy(EIM, ADF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.udp("10.0.0.1:5000", "203.0.113.1:54");
    rig.wait(200_000);
    rig.udp("10.0.0.1:5000", "203.0.113.1:55");
    rig.udp("10.0.0.1:5000", "203.0.113.2:1");
    rig.wait(150_000);
    // The first two have expired, unswept; the third still opens the address.
    assert!(rig.back(Signal::Udp, "203.0.113.1:99", external).is_ok());
    rig.sweep();
    rig.check();
    rig.wait(140_000);
    rig.udp("10.0.0.1:5000", "203.0.113.2:1");
    rig.wait(200_000);
    assert_eq!(
        rig.back(Signal::Udp, "203.0.113.1:100", external),
        Err(Refusal::Filtered)
    );
    assert!(rig.back(Signal::Udp, "203.0.113.2:2", external).is_ok());
    rig.check();
}

#[test]
fn rfc4787_9_hairpin_with_external_source() {
    for mapping in [EIM, EDM] {
        let mut policy = policy(mapping, EIF);
        policy
            .forwards
            .edit(|list| list.push(forward(UDP, "198.51.100.1:7000", "10.0.0.2:70", &[])));
        let mut rig = Rig::new(policy);
        let to = if mapping == EIM {
            rig.udp("10.0.0.2:6000", "203.0.113.1:53")
        } else {
            ep("198.51.100.1:7000")
        };
        let target = ep(if mapping == EIM {
            "10.0.0.2:6000"
        } else {
            "10.0.0.2:70"
        });
        let there = rig
            .out(Signal::Udp, "10.0.0.1:5000", &to.to_string())
            .unwrap();
        assert_eq!(
            (there.direction, there.destination),
            (Direction::Hairpin, target)
        );
        assert_eq!(
            there.source,
            ep("198.51.100.1:5000"),
            "9a: the external endpoint"
        );
        let back = rig
            .out(Signal::Udp, &target.to_string(), &there.source.to_string())
            .unwrap();
        assert_eq!((back.source, back.destination), (to, ep("10.0.0.1:5000")));
        assert_eq!(back.direction, Direction::Hairpin);
        rig.check();
        rig.wait(400_000);
        rig.sweep();
        rig.wait(400_000);
        rig.sweep();
        rig.assert_empty();
    }
}

#[test]
fn rfc4787_9_hairpin_is_filtered_by_the_external_source() {
    let mut rig = Rig::new(policy(EIM, ADF));
    let b = rig.udp("10.0.0.2:6000", "203.0.113.1:53");
    let to_b = b.to_string();
    assert_eq!(
        rig.out(Signal::Udp, "10.0.0.1:5000", &to_b),
        Err(Refusal::Filtered)
    );
    // b has sent to the address that a appears with.
    rig.udp("10.0.0.3:2000", "203.0.113.1:53");
    rig.policy.profile.filtering = [EIF; 3];
    rig.out(Signal::Udp, "10.0.0.2:6000", "198.51.100.1:2000")
        .unwrap();
    rig.policy.profile.filtering = [ADF; 3];
    assert!(rig.out(Signal::Udp, "10.0.0.1:5000", &to_b).is_ok());
    rig.check();
}

/// A mapping whose time is over says nothing about how its host will be seen: the next one may be on
/// another address.
#[test]
fn rfc4787_9_hairpin_is_filtered_by_the_address_that_will_be_seen() {
    let mut policy = policy(EIM, EDF);
    let allowed = ["198.51.100.1/32"];
    policy.forwards = vec![forward(UDP, "198.51.100.1:8080", "10.0.0.99:80", &allowed)].into();
    let mut rig = Rig::new(policy);
    for host in 1..=30 {
        rig.udp(&format!("10.0.0.{host}:5000"), "203.0.113.1:53");
    }
    // The sessions are over and swept, the mappings, whose stamps are rounded up, a moment later.
    rig.wait(300_001);
    rig.sweep();
    assert_eq!(
        (rig.nat.totals().sessions, rig.nat.totals().mappings),
        (0, 30)
    );
    rig.wait(3_000);
    let second = external("198.51.100.2", 1, 1024, 65535);
    rig.policy.addresses.edit(|list| list.push(second));
    rig.apply();
    let mut moved = 0;
    for host in 1..=30 {
        let seen_as = rig
            .udp(&format!("10.0.0.{host}:5001"), "203.0.113.1:53")
            .addr;
        let hairpin = rig.out(
            Signal::Udp,
            &format!("10.0.0.{host}:5000"),
            "198.51.100.1:8080",
        );
        match hairpin {
            Ok(rewrite) => assert_eq!((rewrite.source.addr, seen_as), (seen_as, seen_as)),
            Err(refusal) => {
                assert_eq!(
                    (refusal, seen_as),
                    (Refusal::ForwardDenied, addr("198.51.100.2"))
                );
                moved += 1;
            }
        }
    }
    assert!(moved > 0 && moved < 30, "{moved}");
    rig.check();
}

/// Mapping and filtering, probed as from outside, are what they are in an empty pool when it is half,
/// nearly, and wholly full.
#[test]
fn rfc4787_11_deterministic_at_any_fill() {
    for (mapping, filtering) in [(EIM, EIF), (EIM, ADF), (EIM, EDF), (EDM, EDF)] {
        let mut policy = policy(mapping, filtering);
        policy.addresses = vec![external("198.51.100.1", 0, 2000, 2199)].into();
        let mut rig = Rig::new(policy);
        let mut behaviours = Vec::new();
        for flows in 1..=200 {
            let inside = format!("10.0.1.{flows}:3000");
            let first = rig.udp(&inside, "203.0.113.1:53");
            if ![1, 100, 198, 200].contains(&flows) {
                continue;
            }
            let same = rig.udp(&inside, "203.0.113.2:53") == first;
            let mut admits = |from| rig.back(Signal::Udp, from, first).map(|r| r.destination);
            let known = admits("203.0.113.1:53");
            assert_eq!(known, Ok(ep(&inside)));
            let others = ["203.0.113.1:99", "203.0.113.7:53"].map(admits);
            let others = others.map(|other| other.map(|to| to == ep(&inside)));
            behaviours.push((mapping == EIM && same, others));
        }
        assert!(
            behaviours.iter().all(|b| *b == behaviours[0]),
            "{behaviours:?}"
        );
        assert_eq!(behaviours[0].0, mapping == EIM);
        let full = rig.out(Signal::Udp, "10.0.2.1:3000", "203.0.113.1:53");
        assert_eq!(
            full,
            Err(Refusal::PortsExhausted),
            "refused, not mapped otherwise"
        );
        rig.check();
    }
}

#[test]
fn rfc4787_12_icmp_errors_change_nothing() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    let sent = tuple(UDP, external, ep("203.0.113.1:53"));
    rig.wait(299_000);
    let error = rig.nat.embedded(&sent, rig.now).unwrap();
    assert_eq!(
        (error.direction, error.destination),
        (Direction::Inbound, ep("10.0.0.1:5000"))
    );
    // An error from inside about a packet that came in.
    let came = tuple(UDP, ep("203.0.113.1:53"), ep("10.0.0.1:5000"));
    assert_eq!(rig.nat.embedded(&came, rig.now).unwrap().source, external);
    rig.wait(1_000);
    assert_eq!(
        rig.nat.embedded(&sent, rig.now),
        Err(Refusal::NoSession),
        "nothing refreshed"
    );
    assert_eq!(rig.nat.totals().sessions, 1);
}
