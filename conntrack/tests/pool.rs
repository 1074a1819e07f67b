//! Pools of several addresses: pairing over protocols, ranges with gaps, what follows when the
//! paired address has no port left. Each test is named by the requirement it is about.

mod common;
use common::*;
use conntrack::{ExternalAddress, Pairing, Policy, PortSet, Refusal, Signal};
use std::collections::{HashMap, HashSet};

const REMOTE: &str = "203.0.113.1:53";

type Ranges = &'static [(u16, u16)];

/// Addresses far apart, each with ports of its own, two of them with gaps.
fn scattered(policy: Policy) -> Policy {
    let pool: [(&str, Ranges); 4] = [
        ("198.51.100.1", &[(1024, 65535)]),
        ("203.0.113.200", &[(2000, 2999), (40_000, 49_999)]),
        ("192.0.2.7", &[(1024, 29_999), (61_000, 65_535)]),
        ("198.51.100.77", &[(5000, 14_999)]),
    ];
    let address = |(slot, (addr, ranges)): (u16, (&str, Ranges))| {
        let mut set = PortSet::empty();
        for &(first, last) in ranges {
            set.insert_range(first, last);
        }
        let mut all = PortSet::empty();
        all.insert_range(0, 65535);
        ExternalAddress {
            ports: [set.clone(), set, all],
            ..external(addr, slot, 1, 1)
        }
    };
    Policy {
        addresses: (0..).zip(pool).map(address).collect(),
        ..policy
    }
}

#[test]
fn rfc6888_2_and_3_one_external_address_for_all_protocols() {
    for (mapping, pairing) in [
        (EIM, Pairing::Hard),
        (EIM, Pairing::Soft),
        (EDM, Pairing::Hard),
        (EDM, Pairing::Soft),
    ] {
        let mut policy = scattered(policy(mapping, EDF));
        policy.profile.pairing = [pairing; 3];
        let mut rig = Rig::new(policy);
        let mut hosts: HashMap<_, u32> = HashMap::new();
        for host in 1..=200 {
            let mut seen = HashSet::new();
            for (signal, port, remote) in [
                (Signal::Udp, 1000, "203.0.113.1:53"),
                (Signal::TcpSyn, 1001, "203.0.113.2:80"),
                (Signal::IcmpQuery, 9, "203.0.113.2:0"),
                (Signal::TcpSyn, 30_500, "203.0.113.9:443"),
                (Signal::Udp, 50_000, "203.0.113.1:53"),
            ] {
                let sent = rig.out(signal, &format!("10.0.0.{host}:{port}"), remote);
                let external = sent.unwrap().source;
                let mut addresses = rig.policy.addresses.iter();
                let address = addresses.find(|a| a.addr == external.addr).unwrap();
                let ports = &address.ports[protocol_of(signal).index()];
                assert!(ports.contains(external.port), "{external}");
                seen.insert(external.addr);
            }
            assert_eq!(seen.len(), 1, "{mapping:?}: host {host} has {seen:?}");
            *hosts.entry(seen.into_iter().next().unwrap()).or_default() += 1;
        }
        assert_eq!(hosts.len(), 4);
        assert!(hosts.values().all(|&n| n > 25), "{hosts:?}");
        rig.check();
    }
}

/// Two addresses of five ports; host by host what the first ten flows of one host get.
fn ten_flows(rig: &mut Rig) -> Vec<Result<String, Refusal>> {
    let flow = |port: u16| {
        let sent = rig.out(Signal::Udp, &format!("10.0.0.1:{port}"), REMOTE);
        sent.map(|rewrite| rewrite.source.addr.to_string())
    };
    (1..=11).map(flow).collect()
}

#[test]
fn rfc7857_4_hard_pairing_refuses_and_soft_goes_on_elsewhere() {
    for mapping in [EIM, EDM] {
        for pairing in [Pairing::Hard, Pairing::Soft] {
            let mut policy = policy(mapping, EDF);
            policy.addresses = (1..=2)
                .map(|i| external(&format!("198.51.100.{i}"), i - 1, 4000, 4004))
                .collect();
            policy.profile.pairing = [Pairing::Hard, pairing, Pairing::Hard];
            let mut rig = Rig::new(policy);
            let flows = ten_flows(&mut rig);
            let paired = flows[0].clone();
            assert!(flows[..5].iter().all(|flow| *flow == paired));
            match pairing {
                Pairing::Hard => {
                    let refused = |flow: &_| *flow == Err(Refusal::PortsExhausted);
                    assert!(flows[5..].iter().all(refused), "{flows:?}");
                }
                Pairing::Soft => {
                    let other = |flow: &Result<String, _>| flow.is_ok() && *flow != paired;
                    assert!(flows[5..10].iter().all(other), "{flows:?}");
                    assert_eq!(flows[10], Err(Refusal::PortsExhausted));
                }
                Pairing::None => unreachable!("not asked for"),
            }
            // Another protocol is not touched: it has the paired address.
            let tcp = rig.out(Signal::TcpSyn, "10.0.0.1:1", REMOTE).unwrap();
            assert_eq!(Ok(tcp.source.addr.to_string()), paired);
            // A mapping keeps its address: the sixth flow's goes on, wherever it is.
            if pairing == Pairing::Soft {
                let again = rig.udp("10.0.0.1:6", REMOTE).addr.to_string();
                assert_eq!(Ok(again), flows[5]);
            }
            rig.check();
        }
    }
}

/// `eim`, soft: when the paired address has ports again, new endpoints have it again.
#[test]
fn rfc7857_4_soft_pairing_comes_back() {
    let mut policy = policy(EIM, EDF);
    policy.addresses = (1..=2)
        .map(|i| external(&format!("198.51.100.{i}"), i - 1, 4000, 4004))
        .collect();
    policy.profile.pairing = [Pairing::Soft; 3];
    let mut rig = Rig::new(policy);
    let first = ten_flows(&mut rig);
    rig.wait(302_000);
    rig.sweep();
    assert!(first[9].is_ok() && first[9] != first[0]);
    assert_eq!(ten_flows(&mut rig), first);
    rig.check();
}
