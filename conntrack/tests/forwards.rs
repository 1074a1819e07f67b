//! Forwards of ranges, of whole addresses, and to several targets.

mod common;
use common::*;
use conntrack::Signal::{IcmpQuery, IcmpReply, TcpData, TcpSyn, TcpSynAck, Udp};
use conntrack::{Affinity, Forward, Nat, Protocol, Refusal, Target, Targets};

const REMOTE: &str = "203.0.113.1:7000";

/// A range of TCP ports, to the same ones of a host.
fn range(first: u16, last_port: u16, host: &str) -> Forward {
    let external = format!("198.51.100.1:{first}");
    Forward {
        last_port,
        ..forward(TCP, &external, &format!("{host}:{first}"), &[])
    }
}

/// The whole of 198.51.100.2 stands for a host.
fn whole(host: &str) -> Vec<Forward> {
    let of = |protocol, first: u16| Forward {
        last_port: u16::MAX,
        whole: true,
        ..forward(
            protocol,
            &format!("198.51.100.2:{first}"),
            &format!("{host}:{first}"),
            &[],
        )
    };
    vec![of(TCP, 1), of(UDP, 1), of(ICMP, 0)]
}

#[test]
fn every_port_of_a_range_leads_to_its_own() {
    for mapping in [EIM, EDM] {
        let mut policy = policy(mapping, EDF);
        policy.forwards = vec![range(30_000, 32_767, "10.0.0.2")].into();
        policy
            .addresses
            .edit(|list| list[0].ports[0].remove_range(30_000, 32_767));
        let mut rig = Rig::new(policy);
        rig.check();
        for port in [30_000, 30_001, 31_999, 32_767] {
            let external = ep(&format!("198.51.100.1:{port}"));
            let there = rig.back(TcpSyn, REMOTE, external).unwrap();
            assert_eq!(there.destination, ep(&format!("10.0.0.2:{port}")));
            let answer = rig
                .out(TcpSynAck, &format!("10.0.0.2:{port}"), REMOTE)
                .unwrap();
            assert_eq!(answer.source, external);
        }
        for port in [29_999, 32_768] {
            let external = ep(&format!("198.51.100.1:{port}"));
            assert_eq!(rig.back(TcpSyn, REMOTE, external), Err(Refusal::NoSession));
        }
        // A client reaches it, too.
        let hairpin = rig
            .out(TcpSyn, "10.0.0.9:5000", "198.51.100.1:30080")
            .unwrap();
        assert_eq!(hairpin.destination, ep("10.0.0.2:30080"));
        rig.check();
        // After a restart all of them have their one record again.
        let Rig {
            words, owned, size, ..
        } = rig;
        rig.nat = Nat::open(words, owned, size, IDENTITY).unwrap();
        rig.apply();
        rig.check();
        assert_eq!(rig.nat.totals().sessions_inbound, 4);
        rig.policy.forwards.edit(Vec::clear);
        rig.apply();
        rig.wait(300_000);
        rig.sweep();
        rig.assert_empty();
    }
}

/// Sessions of what both have go on, whichever of the parts has the record.
#[test]
fn a_range_can_be_cut_and_put_together_under_sessions() {
    let mut policy = policy(EDM, EDF);
    policy
        .addresses
        .edit(|list| list[0].ports[0].remove_range(30_000, 30_099));
    policy.forwards = vec![range(30_000, 30_099, "10.0.0.2")].into();
    let mut rig = Rig::new(policy);
    let ports = [30_000, 30_020, 30_050, 30_099];
    for port in ports {
        rig.back(TcpSyn, REMOTE, ep(&format!("198.51.100.1:{port}")))
            .unwrap();
    }
    let parts: [&[(u16, u16)]; 4] = [
        &[(30_000, 30_019), (30_020, 30_099)],
        &[
            (30_020, 30_020),
            (30_021, 30_098),
            (30_000, 30_019),
            (30_099, 30_099),
        ],
        &[(30_050, 30_099), (30_000, 30_049)],
        &[(30_000, 30_099)],
    ];
    for parts in parts {
        let parts = parts
            .iter()
            .map(|&(first, last)| range(first, last, "10.0.0.2"));
        rig.policy.forwards = parts.collect();
        rig.apply();
        rig.check();
        assert_eq!(rig.nat.totals().sessions, 4);
        for port in ports {
            let external = ep(&format!("198.51.100.1:{port}"));
            rig.back(TcpData, REMOTE, external).unwrap();
            let other = format!("203.0.113.{}:9", port % 200 + 2);
            rig.back(TcpSyn, &other, external).unwrap();
            rig.policy.forwards.edit(|list| list[0].allow.clear());
        }
        rig.wait(240_000);
        for port in ports {
            rig.back(TcpData, REMOTE, ep(&format!("198.51.100.1:{port}")))
                .ok();
            rig.back(TcpSyn, REMOTE, ep(&format!("198.51.100.1:{port}")))
                .ok();
        }
        rig.sweep();
    }
    rig.policy.forwards = vec![range(30_000, 30_049, "10.0.0.2")].into();
    rig.apply();
    rig.check();
    assert_eq!(
        rig.nat.totals().sessions,
        2,
        "what has no forward any more ends"
    );
}

#[test]
fn a_whole_address_stands_for_its_host_both_ways() {
    for mapping in [EIM, EDM] {
        let mut policy = policy(mapping, EDF);
        let mut second = external("198.51.100.2", 1, 1, 1);
        second
            .ports
            .iter_mut()
            .for_each(|ports| ports.remove_range(0, u16::MAX));
        policy.addresses.edit(|list| list.push(second));
        policy.forwards = whole("10.0.0.2").into();
        let mut rig = Rig::new(policy);
        rig.check();
        for (signal, port) in [(TcpSyn, 443), (Udp, 9), (IcmpQuery, 0)] {
            let (internal, remote) = (format!("10.0.0.2:{port}"), "203.0.113.1:443");
            let left = rig.out(signal, &internal, remote).unwrap();
            assert_eq!(
                left.source,
                ep(&format!("198.51.100.2:{port}")),
                "{signal:?}"
            );
        }
        let there = rig.back(TcpSyn, REMOTE, ep("198.51.100.2:22")).unwrap();
        assert_eq!(there.destination, ep("10.0.0.2:22"));
        // A ping from outside, and its answer.
        let ping = tuple(Protocol::Icmp, ep("203.0.113.1:77"), ep("198.51.100.2:77"));
        let there = rig
            .packet(conntrack::Realm::External, ping, IcmpQuery)
            .unwrap();
        assert_eq!(there.destination, ep("10.0.0.2:77"));
        let answer = rig.out(IcmpReply, "10.0.0.2:77", "203.0.113.1:77").unwrap();
        assert_eq!(answer.source, ep("198.51.100.2:77"));
        // Nobody else leaves by it, and nobody is pinged at another address.
        for host in 3..40 {
            let left = rig.udp(&format!("10.0.0.{host}:9"), "203.0.113.1:53");
            assert_eq!(left.addr, addr("198.51.100.1"));
        }
        let ping = tuple(Protocol::Icmp, ep("203.0.113.1:77"), ep("198.51.100.1:77"));
        let refused = rig.packet(conntrack::Realm::External, ping, IcmpQuery);
        assert_eq!(refused, Err(Refusal::NoSession));
        rig.check();
    }
}

#[test]
fn several_targets_share_and_a_source_keeps_its_own() {
    let mut policy = policy(EDM, EDF);
    let target = |host: u8, weight| Target {
        endpoint: ep(&format!("10.0.0.{host}:8080")),
        weight,
    };
    let two = Forward {
        targets: Targets {
            list: vec![target(1, 1), target(2, 3)],
            affinity: Affinity::Source,
        },
        ..forward(TCP, "198.51.100.1:80", "10.0.0.1:1", &[])
    };
    policy.forwards = vec![two].into();
    let mut rig = Rig::new(policy);
    let web = ep("198.51.100.1:80");
    let mut counts = [0; 2];
    for host in 0..100 {
        let from = |port| format!("203.0.113.{}:{port}", host + 1);
        let first = rig.back(TcpSyn, &from(1), web).unwrap().destination;
        let second = rig.back(TcpSyn, &from(2), web).unwrap().destination;
        assert_eq!(first, second);
        counts[usize::from(first == ep("10.0.0.2:8080"))] += 1;
        let answer = rig.out(TcpSynAck, &first.to_string(), &from(1)).unwrap();
        assert_eq!(answer.source, web);
    }
    assert!((12..40).contains(&counts[0]), "{counts:?}");
    rig.check();
    // One goes: its sessions end, the others' go on.
    rig.policy
        .forwards
        .edit(|list| list[0].targets.list.truncate(1));
    rig.apply();
    rig.check();
    assert_eq!(rig.nat.totals().sessions, 2 * counts[0]);
    // A client's connection to a forward of several is not its target's external endpoint.
    let left = rig.out(TcpSyn, "10.0.0.2:8080", REMOTE).unwrap();
    assert_ne!(left.source, web);
}
