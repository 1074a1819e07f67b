//! Quotas: what a subscriber may have, and that nobody else pays for it (RFC 6888 REQ-4, REQ-5).

mod common;
use common::*;
use conntrack::Signal::{IcmpQuery, TcpSyn, Udp};
use conntrack::{MappingBehaviour, Nat, Quotas, Refusal};

const SERVER: &str = "203.0.113.1:443";

fn rig(mapping: MappingBehaviour, quotas: Quotas) -> Rig {
    let mut policy = policy(mapping, EDF);
    policy.limits.quotas = quotas;
    Rig::new(policy)
}

fn sessions(tcp: u32, udp: u32, icmp: u32) -> Quotas {
    Quotas {
        sessions: [Some(tcp), Some(udp), Some(icmp)],
        ..Quotas::NONE
    }
}

fn ports(tcp: u32, udp: u32) -> Quotas {
    Quotas {
        ports: [Some(tcp), Some(udp), None],
        ..Quotas::NONE
    }
}

fn rate(mappings_per_second: u32, mapping_burst: u32) -> Quotas {
    Quotas {
        mappings_per_second: Some(mappings_per_second),
        mapping_burst,
        ..Quotas::NONE
    }
}

#[test]
fn sessions_by_protocol_and_subscriber() {
    for mapping in [EIM, EDM] {
        let mut rig = rig(mapping, sessions(3, 5, 1));
        for (signal, quota) in [(TcpSyn, 3), (Udp, 5), (IcmpQuery, 1)] {
            let ask = |rig: &mut Rig, host: u32, n: u32| {
                let from = format!("10.0.0.{host}:{}", 5000 + n);
                rig.out(signal, &from, "203.0.113.1:443").map(drop)
            };
            for n in 0..quota {
                ask(&mut rig, 1, n).unwrap();
            }
            let refused = Err(Refusal::SubscriberSessions);
            assert_eq!(ask(&mut rig, 1, quota), refused, "{signal:?}");
            assert_eq!(ask(&mut rig, 1, quota), refused);
            // What it has goes on, and so does everybody else.
            ask(&mut rig, 1, 0).unwrap();
            ask(&mut rig, 2, 0).unwrap();
            rig.check();
        }
        // What ends is given back.
        rig.wait(7_500_000);
        rig.sweep();
        rig.assert_empty();
        rig.out(TcpSyn, "10.0.0.1:9000", SERVER).unwrap();
        rig.check();
    }
}

/// An expired session counts until something ends it, at the latest the sweep; a packet of its own
/// flow does.
#[test]
fn an_expired_session_gives_way_to_its_own_flow() {
    let mut rig = rig(EDM, sessions(1, 1, 1));
    rig.udp("10.0.0.1:5000", SERVER);
    rig.wait(400_000);
    rig.udp("10.0.0.1:5000", SERVER);
    rig.check();
}

#[test]
fn ports_of_independent_mappings() {
    let mut rig = rig(EIM, ports(2, 3));
    for n in 0..3 {
        for remote in 1..=4 {
            rig.udp(
                &format!("10.0.0.1:{}", 5000 + n),
                &format!("203.0.113.{remote}:53"),
            );
        }
    }
    let more = rig.out(Udp, "10.0.0.1:5003", SERVER);
    assert_eq!(more, Err(Refusal::SubscriberPorts));
    rig.check();
    rig.connect("10.0.0.1:6000", SERVER);
    rig.connect("10.0.0.1:6001", SERVER);
    let more = rig.out(TcpSyn, "10.0.0.1:6002", SERVER);
    assert_eq!(more, Err(Refusal::SubscriberPorts));
    rig.out(IcmpQuery, "10.0.0.1:7", "203.0.113.1:7").unwrap();
    rig.udp("10.0.0.2:5003", SERVER);
    rig.check();
    rig.wait(7_500_000);
    rig.sweep();
    rig.assert_empty();
}

/// In `edm` each session has a port of its own in this sense, overloaded or not.
#[test]
fn ports_of_dependent_mappings() {
    let mut rig = rig(EDM, ports(9, 4));
    for remote in 1..=4 {
        rig.udp("10.0.0.1:5000", &format!("203.0.113.{remote}:53"));
    }
    let more = rig.out(Udp, "10.0.0.1:5000", "203.0.113.5:53");
    assert_eq!(more, Err(Refusal::SubscriberPorts));
    rig.udp("10.0.0.2:5000", "203.0.113.5:53");
    rig.check();
}

#[test]
fn a_port_that_is_not_to_be_had_does_not_count() {
    for mapping in [EIM, EDM] {
        let mut rig = rig(mapping, ports(9, 4));
        rig.policy.addresses = vec![external("198.51.100.1", 0, 2000, 2001)].into();
        rig.apply();
        rig.udp("10.0.0.2:5000", SERVER);
        rig.udp("10.0.0.2:5001", SERVER);
        for _ in 0..9 {
            let none = rig.out(Udp, "10.0.0.1:5000", SERVER);
            assert_eq!(none, Err(Refusal::PortsExhausted));
        }
        rig.check();
    }
}

#[test]
fn a_rate_with_a_burst() {
    for mapping in [EIM, EDM] {
        let mut rig = rig(mapping, rate(10, 5));
        let mut port = 2000;
        let mut open = |rig: &mut Rig, host: u32| {
            port += 1;
            rig.out(Udp, &format!("10.0.0.{host}:{port}"), SERVER)
                .map(drop)
        };
        let mut passed =
            |rig: &mut Rig, tries: u32| (0..tries).filter(|_| open(rig, 1).is_ok()).count();
        assert_eq!(passed(&mut rig, 9), 5, "the burst");
        rig.wait(99);
        assert_eq!(passed(&mut rig, 9), 0, "not yet");
        rig.wait(1);
        assert_eq!(passed(&mut rig, 9), 1, "one in 100 ms");
        rig.wait(250);
        assert_eq!(passed(&mut rig, 9), 2, "half an interval is kept");
        rig.wait(50);
        assert_eq!(passed(&mut rig, 9), 1);
        rig.wait(60_000);
        assert_eq!(passed(&mut rig, 9), 5, "no more than the burst");
        assert_eq!(open(&mut rig, 1), Err(Refusal::SubscriberRate));
        open(&mut rig, 2).unwrap();
        rig.check();
    }
}

/// A policy with a smaller burst holds at once: nobody waits until the larger one is worked off.
#[test]
fn a_smaller_burst_is_felt_at_once() {
    for mapping in [EIM, EDM] {
        let mut rig = rig(mapping, rate(1, 1000));
        for port in 2000..3000 {
            rig.udp(&format!("10.0.0.1:{port}"), SERVER);
        }
        let more = rig.out(Udp, "10.0.0.1:3000", SERVER);
        assert_eq!(more, Err(Refusal::SubscriberRate));
        rig.policy.limits.quotas = rate(10, 5);
        rig.apply();
        let passed = |rig: &mut Rig, from: u16| {
            let mut ports = from..from + 9;
            ports.any(|port| rig.out(Udp, &format!("10.0.0.1:{port}"), SERVER).is_ok())
        };
        assert!(!passed(&mut rig, 4000), "the burst is used up");
        rig.wait(100);
        assert!(passed(&mut rig, 5000), "one in 100 ms");
        assert!(!passed(&mut rig, 6000), "and no more");
        rig.check();
    }
}

/// A mapping for which there is no port costs nothing of the rate.
#[test]
fn what_is_not_made_does_not_count_in_the_rate() {
    for mapping in [EIM, EDM] {
        let mut rig = rig(mapping, rate(1, 1));
        rig.policy.addresses = vec![external("198.51.100.1", 0, 2000, 2000)].into();
        rig.apply();
        rig.udp("10.0.0.2:5000", SERVER);
        for _ in 0..3 {
            let none = rig.out(Udp, "10.0.0.1:5000", SERVER);
            assert_eq!(none, Err(Refusal::PortsExhausted));
        }
        rig.policy.addresses = vec![external("198.51.100.1", 0, 2000, 2001)].into();
        rig.apply();
        rig.udp("10.0.0.1:5000", SERVER);
        rig.check();
    }
}

/// More sessions of one mapping are no new mappings.
#[test]
fn the_rate_is_of_mappings() {
    let mut rig = rig(EIM, rate(1, 1));
    for remote in 1..=100 {
        rig.udp("10.0.0.1:5000", &format!("203.0.113.{remote}:53"));
    }
    rig.check();
}

/// What is made before a quota counts neither now nor when it ends.
#[test]
fn quotas_that_come_and_go() {
    let mut rig = rig(EIM, Quotas::NONE);
    for n in 0..9 {
        rig.udp(&format!("10.0.0.1:{}", 5000 + n), SERVER);
    }
    rig.policy.limits.quotas = sessions(1, 2, 1);
    rig.apply();
    rig.udp("10.0.0.1:5000", SERVER);
    rig.udp("10.0.0.1:6000", SERVER);
    rig.udp("10.0.0.1:6001", SERVER);
    let more = rig.out(Udp, "10.0.0.1:6002", SERVER);
    assert_eq!(more, Err(Refusal::SubscriberSessions));
    rig.check();
    // A mapping is there for each of these, so ports have a number of their own.
    for (ports_max, from, opens) in [
        (2, "10.0.0.1:6002", false),
        (3, "10.0.0.1:6002", true),
        (3, "10.0.0.1:6003", false),
        (4, "10.0.0.1:6003", true),
    ] {
        rig.policy.limits.quotas = ports(1, ports_max);
        rig.apply();
        let opened = rig.out(Udp, from, SERVER);
        match opens {
            true => drop(opened.unwrap()),
            false => assert_eq!(opened, Err(Refusal::SubscriberPorts), "{ports_max}"),
        }
        rig.check();
    }
    rig.policy.limits.quotas = Quotas::NONE;
    rig.apply();
    rig.udp("10.0.0.1:6004", SERVER);
    rig.check();
    rig.wait(400_000);
    rig.sweep();
    rig.assert_empty();
}

/// The outside cannot use up a subscriber's quota.
#[test]
fn what_comes_from_outside_does_not_count() {
    let mut policy = policy(EIM, EIF);
    policy.limits.quotas = sessions(1, 2, 1);
    policy.forwards = vec![forward(UDP, "198.51.100.1:7", "10.0.0.1:7", &[])].into();
    let mut rig = Rig::new(policy);
    let external = rig.udp("10.0.0.1:5000", SERVER);
    for remote in 2..=50 {
        let remote = format!("203.0.113.{remote}:9");
        rig.back(Udp, &remote, external).unwrap();
        rig.back(Udp, &remote, ep("198.51.100.1:7")).unwrap();
    }
    rig.udp("10.0.0.1:5001", SERVER);
    rig.check();
}

#[test]
fn a_hairpin_counts_with_whoever_opens_it() {
    let mut policy = policy(EIM, EIF);
    policy.limits.quotas = sessions(1, 1, 1);
    let mut rig = Rig::new(policy);
    let external = rig.udp("10.0.0.1:5000", SERVER);
    let there = format!("{}:{}", external.addr, external.port);
    rig.out(Udp, "10.0.0.2:5000", &there).unwrap();
    let more = rig.out(Udp, "10.0.0.2:5001", SERVER);
    assert_eq!(more, Err(Refusal::SubscriberSessions));
    rig.check();
}

/// More subscribers than there is room for: the others are refused, until some have gone.
#[test]
fn no_room_for_one_more_subscriber() {
    let mut rig = rig(EDM, sessions(9, 9, 9));
    let ask = |rig: &mut Rig, host: u32| {
        let from = format!("10.0.{}.{}:5000", host >> 8, host & 255);
        rig.out(Udp, &from, SERVER).map(drop)
    };
    // 10,000 sessions have 1024 keys, of which some stay empty.
    let results: Vec<_> = (1..=2000).map(|host| ask(&mut rig, host)).collect();
    let passed = results.iter().filter(|result| result.is_ok()).count();
    assert!((900..=1024).contains(&passed), "{passed}");
    assert!(results.contains(&Err(Refusal::SubscribersFull)));
    rig.check();
    assert!(results[..700].iter().all(Result::is_ok), "at 0.7 all fit");
    ask(&mut rig, 1).unwrap();
    rig.wait(400_000);
    rig.sweep();
    rig.assert_empty();
    for host in 3000..3700 {
        ask(&mut rig, host).unwrap();
    }
    rig.check();
}

#[test]
fn a_restart_counts_anew() {
    for mapping in [EIM, EDM] {
        let mut quotas = sessions(2, 3, 1);
        quotas.ports = [None, Some(3), None];
        let mut rig = rig(mapping, quotas);
        rig.udp("10.0.0.1:5000", SERVER);
        rig.udp("10.0.0.1:5001", SERVER);
        rig.connect("10.0.0.2:5001", SERVER);
        rig.nat = Nat::open(rig.words, rig.owned, rig.size, IDENTITY).unwrap();
        rig.apply();
        rig.check();
        rig.udp("10.0.0.1:5002", SERVER);
        let more = rig.out(Udp, "10.0.0.1:5003", SERVER);
        assert_eq!(more, Err(Refusal::SubscriberSessions));
        rig.wait(7_500_000);
        rig.sweep();
        rig.assert_empty();
    }
}

/// Workers that open and end sessions of the same few subscribers at the same time leave no count
/// behind, and none gets more than its quota.
#[test]
fn racing_workers_count_right() {
    for mapping in [EIM, EDM] {
        let mut rig = rig(mapping, sessions(20, 20, 20));
        let (nat, policy, start) = (&rig.nat, &rig.policy, rig.now);
        std::thread::scope(|scope| {
            for worker in 0..4_u64 {
                scope.spawn(move || {
                    let mut random = Seeded(worker);
                    for round in 0..20_000_u64 {
                        let now = start.plus_ms(round * 50);
                        let from = format!("10.0.0.{}:{}", round % 5, 1024 + random.below(60));
                        let tuple = tuple(UDP, ep(&from), ep("203.0.113.1:53"));
                        let result = nat.translate(
                            policy,
                            conntrack::Realm::Internal,
                            &tuple,
                            nat.hash(&tuple),
                            facts(Udp),
                            now,
                            &mut random,
                        );
                        let expected = matches!(
                            result,
                            Ok(_) | Err(Refusal::SubscriberSessions | Refusal::Contended)
                        );
                        assert!(expected, "{result:?}");
                        nat.sweep(policy, now, 20);
                    }
                });
            }
        });
        rig.wait(20_000 * 50);
        rig.check();
        let most = rig.nat.totals().sessions;
        assert!(most <= 100, "{most}");
        rig.wait(400_000);
        rig.sweep();
        rig.assert_empty();
    }
}
