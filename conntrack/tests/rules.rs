//! Rules: which pool a flow leaves from, how it is translated there, under which timers, or that it is
//! not.

mod common;
use common::*;
use conntrack::Signal::{IcmpQuery, TcpData, TcpSyn, Udp};
use conntrack::{
    Action, ExternalAddress, FlowTimers, Nat, Pairing, Policy, Profile, Protocol, Refusal, Rule,
    Rules, Service, TimerSets, Timers,
};

/// Which flows: source prefix, destination prefix ("" for any), ports; and what is done.
fn rule(source: &str, destination: &str, ports: &[(u16, u16)], action: Action) -> Rule {
    let net = |text: &str| text.parse().ok().into_iter().collect();
    Rule {
        sources: net(source),
        destinations: net(destination),
        ports: ports.to_vec(),
        protocols: [true; 3],
        action,
    }
}

fn in_pool(pool: u16, address: ExternalAddress) -> ExternalAddress {
    ExternalAddress { pool, ..address }
}

/// Three egress policies, each with an address of its own, and one for all else: 198.51.100.1.
fn policies(mapping: conntrack::MappingBehaviour, ports: u16) -> Policy {
    let mut policy = policy(mapping, EDF);
    let address = |pool: u16| {
        let addr = format!("198.51.100.{}", pool + 1);
        in_pool(pool, external(&addr, pool, 4000, 3999 + ports))
    };
    policy.addresses = (0..4).map(address).collect();
    policy.profile.pairing = [Pairing::Hard; 3];
    policy.others = (1..4)
        .map(|pool| Profile {
            pool,
            ..policy.profile.clone()
        })
        .collect();
    policy.rules = Rules::new(vec![
        rule("10.0.1.0/24", "203.0.113.0/24", &[], Action::Translate(1)),
        rule("10.0.2.0/24", "", &[(443, 443)], Action::Translate(2)),
        rule("10.0.3.0/24", "", &[], Action::Translate(3)),
        rule("10.0.4.0/24", "203.0.113.9/32", &[], Action::Bypass),
        rule("10.0.4.0/24", "", &[], Action::Drop),
    ])
    .unwrap();
    policy
}

/// The external address that a flow leaves from.
fn leaves_by(rig: &mut Rig, signal: conntrack::Signal, from: &str, to: &str) -> String {
    let left = rig.out(signal, from, to);
    left.map_or_else(
        |refusal| format!("{refusal:?}"),
        |r| r.source.addr.to_string(),
    )
}

#[test]
fn a_flow_leaves_by_the_pool_of_its_rule() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(policies(mapping, 1000));
        let cases = [
            (TcpSyn, "10.0.1.5:5000", "203.0.113.7:80", "198.51.100.2"),
            (TcpSyn, "10.0.1.5:5000", "192.0.2.7:80", "198.51.100.1"),
            (TcpSyn, "10.0.2.5:5000", "192.0.2.7:443", "198.51.100.3"),
            (TcpSyn, "10.0.2.5:5000", "192.0.2.7:444", "198.51.100.1"),
            (IcmpQuery, "10.0.2.5:443", "192.0.2.7:443", "198.51.100.1"),
            (IcmpQuery, "10.0.3.5:443", "192.0.2.7:443", "198.51.100.4"),
            (Udp, "10.0.3.5:5000", "203.0.113.7:53", "198.51.100.4"),
            (Udp, "10.0.9.5:5000", "203.0.113.7:53", "198.51.100.1"),
            (Udp, "10.0.4.5:5000", "203.0.113.9:53", "RuleBypass"),
            (TcpData, "10.0.4.5:5000", "203.0.113.9:53", "RuleBypass"),
            (Udp, "10.0.4.5:5000", "203.0.113.8:53", "RuleDrop"),
        ];
        for (signal, from, to, address) in cases {
            assert_eq!(
                leaves_by(&mut rig, signal, from, to),
                address,
                "{from} {to}"
            );
            // A hit now, where there is a session.
            assert_eq!(leaves_by(&mut rig, signal, from, to), address);
        }
        rig.check();
    }
}

#[test]
fn a_full_pool_refuses_and_no_other_one_helps_out() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(policies(mapping, 2));
        let from = |n: u16| format!("10.0.1.5:{}", 5000 + n);
        for n in 0..2 {
            assert_eq!(
                leaves_by(&mut rig, Udp, &from(n), "203.0.113.7:53"),
                "198.51.100.2"
            );
        }
        for pairing in [Pairing::Hard, Pairing::Soft, Pairing::None] {
            rig.policy.others[0].pairing = [pairing; 3];
            rig.apply();
            assert_eq!(
                leaves_by(&mut rig, Udp, &from(2), "203.0.113.7:53"),
                "PortsExhausted"
            );
        }
        assert_eq!(
            leaves_by(&mut rig, Udp, &from(2), "192.0.2.7:53"),
            "198.51.100.1"
        );
        rig.check();
    }
}

/// RFC 4787 REQ-1, pool by pool: the mapping of a pool is the same for all its remotes.
#[test]
fn an_internal_endpoint_has_a_mapping_in_each_pool() {
    let mut rig = Rig::new(policies(EIM, 1000));
    let (one, other) = ("203.0.113.7:53", "192.0.2.7:53");
    let first = rig.udp("10.0.1.5:5000", one);
    let second = rig.udp("10.0.1.5:5000", other);
    assert_ne!(first.addr, second.addr);
    assert_eq!(rig.udp("10.0.1.5:5000", "203.0.113.8:54"), first);
    assert_eq!(rig.udp("10.0.1.5:5000", "192.0.2.8:54"), second);
    assert_eq!(rig.nat.totals().mappings, 2);
    rig.check();
    // Both are found again after a restart.
    let Rig {
        words, owned, size, ..
    } = rig;
    rig.nat = Nat::open(words, owned, size, IDENTITY).unwrap();
    rig.apply();
    rig.check();
    assert_eq!(rig.udp("10.0.1.5:5000", "203.0.113.9:1"), first);
    assert_eq!(rig.udp("10.0.1.5:5000", "192.0.2.9:1"), second);
    rig.wait(302_000);
    rig.sweep();
    rig.assert_empty();
}

/// Who may send to a mapping goes by how the host would be translated towards that sender.
#[test]
fn filtering_is_the_rules_too() {
    let mut policy = policies(EIM, 1000);
    policy.others[0].filtering = [EIF; 3];
    policy.rules = Rules::new(vec![rule(
        "10.0.1.0/24",
        "203.0.113.0/24",
        &[],
        Action::Translate(1),
    )])
    .unwrap();
    policy.others[0].pool = 0;
    let mut rig = Rig::new(policy);
    let external = rig.udp("10.0.1.5:5000", "192.0.2.7:53");
    assert_eq!(
        rig.back(Udp, "192.0.2.8:53", external),
        Err(Refusal::Filtered)
    );
    assert!(rig.back(Udp, "203.0.113.8:53", external).is_ok());
    let external = rig.udp("10.0.9.5:5001", "192.0.2.7:53");
    assert_eq!(
        rig.back(Udp, "203.0.113.8:53", external),
        Err(Refusal::Filtered)
    );
    rig.check();
}

fn udp_after(udp_timeout_ms: u32) -> Timers {
    Timers {
        udp_timeout_ms,
        ..Timers::RFC
    }
}

/// Rule 0 and flows to port 53 have timers of their own.
fn with_timers(earlier: &TimerSets, settled: bool, [rule, dns]: [u32; 2]) -> Policy {
    let mut policy = policies(EDM, 1000);
    let wanted = [udp_after(rule), udp_after(dns)];
    let (timers, numbers) = earlier.following(settled, Timers::RFC, &wanted).unwrap();
    policy.timers = timers;
    policy.others[0].timers.base = numbers[0];
    policy.profile.timers = FlowTimers {
        base: 0,
        services: vec![Service {
            protocol: Protocol::Udp,
            first: 53,
            last: 53,
            timers: numbers[1],
        }],
    };
    policy
}

#[test]
fn flows_end_by_the_timers_of_their_rule_or_service() {
    let mut rig = Rig::new(with_timers(&Timers::RFC.into(), true, [50_000, 20_000]));
    rig.udp("10.0.1.5:5000", "203.0.113.7:99");
    rig.udp("10.0.9.5:5000", "203.0.113.7:53");
    rig.udp("10.0.9.5:5000", "203.0.113.7:54");
    for (after_ms, left) in [(20_000, 2), (30_000, 1), (250_000, 0)] {
        rig.wait(after_ms - 1);
        rig.sweep();
        assert_eq!(rig.nat.totals().sessions, left + 1);
        rig.wait(1);
        rig.sweep();
        assert_eq!(rig.nat.totals().sessions, left);
    }
    rig.assert_empty();
}

#[test]
fn changed_timers_count_for_sessions_that_there_are() {
    let mut rig = Rig::new(with_timers(&Timers::RFC.into(), true, [50_000, 20_000]));
    rig.udp("10.0.1.5:5000", "203.0.113.7:99");
    rig.udp("10.0.9.5:5000", "203.0.113.7:53");
    for round in 0..100 {
        // So many that every number has to be used again.
        rig.policy = with_timers(&rig.policy.timers, true, [60_000 + round, 30_000 + round]);
        rig.apply();
    }
    rig.wait(30_098);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions, 2);
    rig.wait(1);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions, 1);
    rig.wait(29_999);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions, 1);
    rig.wait(1);
    rig.sweep();
    rig.assert_empty();
}

/// A mapping's own timer, too: it lives on without a session.
#[test]
fn an_eim_mapping_has_the_timers_of_its_profile() {
    let mut policy = with_timers(&Timers::RFC.into(), true, [50_000, 20_000]);
    for profile in policy.others.iter_mut() {
        profile.mapping = [EIM; 3];
    }
    let mut rig = Rig::new(policy);
    let external = rig.udp("10.0.1.5:5000", "203.0.113.7:99");
    rig.wait(50_000);
    rig.sweep();
    // Rounded up to a tick.
    rig.wait(1024);
    rig.sweep();
    assert_eq!(rig.nat.totals().mappings, 0, "{external}");
    rig.assert_empty();
}

/// Profiles of one pool share its mappings: which of their flows came first changes nothing.
#[test]
fn a_mapping_is_its_pools_whoever_makes_it() {
    let mut policy = with_timers(&Timers::RFC.into(), true, [50_000, 20_000]);
    policy.profile.mapping = [EIM; 3];
    policy.others[0].mapping = [EIM; 3];
    policy.others[0].filtering = [EIF; 3];
    policy.others[0].pool = 0;
    for reloaded in [false, true] {
        let mut rig = Rig::new(policy.clone());
        let external = rig.udp("10.0.1.5:5000", "203.0.113.7:99");
        if reloaded {
            rig.apply();
        }
        rig.wait(299_000);
        assert_eq!(rig.udp("10.0.1.5:5000", "203.0.113.7:99"), external);
        rig.wait(302_000);
        rig.sweep();
        // The first of them is `edf`, so nothing is held down.
        rig.assert_empty();
    }
}

/// The far side's mapping is joined once, and not once more for each address that is tried.
#[test]
fn a_hairpin_from_edm_to_eim_leaves_nothing_behind() {
    let mut policy = policies(EIM, 1000);
    policy.profile.filtering = [EIF; 3];
    policy.timers.hold_down_ms = 0;
    policy.others[0].mapping = [EDM; 3];
    policy.rules = Rules::new(vec![rule("10.0.1.0/24", "", &[], Action::Translate(1))]).unwrap();
    let mut rig = Rig::new(policy);
    let external = rig.udp("10.0.9.5:5000", "192.0.2.7:53");
    let far = rig.out(Udp, "10.0.1.5:5000", &external.to_string());
    assert_eq!(far.unwrap().destination, ep("10.0.9.5:5000"));
    rig.check();
    rig.wait(302_000);
    rig.sweep();
    rig.assert_empty();
}

#[test]
fn after_a_restart_numbers_of_timers_may_mean_something_else() {
    let mut rig = Rig::new(with_timers(&Timers::RFC.into(), true, [50_000, 20_000]));
    rig.udp("10.0.9.5:5000", "203.0.113.7:53");
    let Rig {
        words, owned, size, ..
    } = rig;
    rig.nat = Nat::open(words, owned, size, IDENTITY).unwrap();
    // The new process numbers anew: what was the number of 20 s is that of 1 s now.
    rig.policy = with_timers(&Timers::RFC.into(), true, [25_000, 1_000]);
    rig.policy.profile.timers.services[0].timers = 1;
    rig.wait(22_000);
    rig.apply();
    rig.check();
    assert_eq!(rig.nat.totals().sessions, 1, "ended by another's timer");
    rig.wait(3_000);
    rig.sweep();
    rig.assert_empty();
}

#[test]
fn sessions_that_new_rules_translate_otherwise_end_and_others_go_on() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(policies(mapping, 1000));
        let kept = rig.connect("10.0.3.5:5000", "203.0.113.7:80");
        rig.connect("10.0.1.5:5000", "203.0.113.7:80");
        rig.connect("10.0.1.6:5000", "203.0.113.9:80");
        let other = rig.connect("10.0.1.6:5000", "192.0.2.9:80");
        let mut list = rig.policy.rules.list().to_vec();
        list.insert(
            0,
            rule("10.0.1.0/24", "203.0.113.9/32", &[], Action::Bypass),
        );
        list[1].action = Action::Translate(2);
        rig.policy.rules = Rules::new(list).unwrap();
        rig.apply();
        rig.check();
        assert_eq!(rig.nat.totals().sessions, 2);
        let goes_on = |rig: &mut Rig, from, to| rig.out(TcpData, from, to).map(|r| r.source);
        assert_eq!(
            goes_on(&mut rig, "10.0.3.5:5000", "203.0.113.7:80"),
            Ok(kept)
        );
        assert_eq!(
            goes_on(&mut rig, "10.0.1.6:5000", "192.0.2.9:80"),
            Ok(other)
        );
        assert_eq!(
            goes_on(&mut rig, "10.0.1.5:5000", "203.0.113.7:80"),
            Err(Refusal::TcpMidstream)
        );
        assert_eq!(
            goes_on(&mut rig, "10.0.1.6:5000", "203.0.113.9:80"),
            Err(Refusal::RuleBypass)
        );
        assert_eq!(
            leaves_by(&mut rig, TcpSyn, "10.0.1.5:5000", "203.0.113.7:80"),
            "198.51.100.3"
        );
        rig.check();
    }
}

/// RFC 4787 REQ-1 again: one of them stays, and none that is over takes the other's place.
#[test]
fn of_mappings_that_come_to_be_in_one_pool_the_living_one_stays() {
    let (kept, over) = ("192.0.2.7:99", "203.0.113.7:53");
    for order in [[kept, over], [over, kept]] {
        let mut policy = policies(EIM, 1000);
        let first = TimerSets::from(Timers::RFC);
        let (timers, numbers) = first
            .following(true, Timers::RFC, &[udp_after(20_000)])
            .unwrap();
        policy.timers = timers;
        policy.others[0].timers.services = vec![Service {
            protocol: Protocol::Udp,
            first: 53,
            last: 53,
            timers: numbers[0],
        }];
        let mut rig = Rig::new(policy);
        let from = "10.0.1.5:5000";
        for to in order {
            rig.udp(from, to);
        }
        rig.wait(25_000);
        rig.sweep();
        let external = rig.udp(from, kept);
        rig.wait(280_000);
        // Without a session, and its time is over, but it is still in the tables.
        assert_eq!(rig.nat.totals().mappings, 2);
        rig.policy.rules = Rules::default();
        rig.policy.addresses.edit(|list| list[1].pool = 0);
        rig.apply();
        rig.check();
        let totals = rig.nat.totals();
        assert_eq!((totals.sessions, totals.mappings), (1, 1), "{order:?}");
        assert_eq!(rig.udp(from, "192.0.2.8:1"), external);
    }
}

/// The same source always leaves by the same address, whatever else happens.
#[test]
fn who_leaves_by_which_address_stays() {
    let mut policy = policies(EDM, 1000);
    policy.addresses.edit(|list| {
        for address in list.iter_mut() {
            address.pool = 0;
        }
    });
    policy.rules = Rules::default();
    let mut rig = Rig::new(policy);
    let by = |rig: &mut Rig, host: u8| {
        leaves_by(rig, Udp, &format!("10.0.0.{host}:7"), "203.0.113.1:53")
    };
    let before: Vec<String> = (1..=50).map(|host| by(&mut rig, host)).collect();
    rig.wait(400_000);
    rig.sweep();
    let after: Vec<String> = (1..=50).map(|host| by(&mut rig, host)).collect();
    assert_eq!(before, after);
    let distinct: std::collections::HashSet<&String> = before.iter().collect();
    assert_eq!(distinct.len(), 4);
}
