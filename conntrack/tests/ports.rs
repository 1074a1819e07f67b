//! External ports: which one a mapping gets, and that every one of them can be had. Each test is
//! named by the requirement it is about.

mod common;
use common::*;
use conntrack::{Policy, PortSet, Refusal, Signal};
use std::collections::{HashMap, HashSet};

/// A policy of one address with these ports for all protocols.
fn with_ports(policy: Policy, ranges: &[(u16, u16)]) -> Policy {
    let mut set = PortSet::empty();
    for &(first, last) in ranges {
        set.insert_range(first, last);
    }
    let mut address = external("198.51.100.1", 0, 1, 1);
    address.ports = [set.clone(), set.clone(), set];
    Policy {
        addresses: vec![address].into(),
        ..policy
    }
}

/// Internal endpoint number `number`, with this port.
fn inside(number: u32, port: u16) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("10.{a}.{b}.{c}:{port}")
}

const REMOTE: &str = "203.0.113.1:53";

fn open(rig: &mut Rig, number: u32, port: u16) -> Result<u16, Refusal> {
    let opened = rig.out(Signal::Udp, &inside(number, port), REMOTE);
    opened.map(|rewrite| rewrite.source.port)
}

fn class(port: u16) -> bool {
    port < 1024
}

#[test]
fn rfc4787_3a_class_is_kept_while_the_pool_has_ports_of_it() {
    for (mapping, filtering) in [(EIM, EIF), (EDM, EDF)] {
        let pool = [(600, 699), (2000, 2199)];
        let mut rig = Rig::new(with_ports(policy(mapping, filtering), &pool));
        // To one remote every port serves once: the low ones go to low source ports.
        for number in 0..100 {
            let port = open(&mut rig, number, 123).unwrap();
            assert!(class(port), "{mapping:?}: 123 became {port}");
        }
        for number in 100..290 {
            let port = open(&mut rig, number, 5060).unwrap();
            assert!(!class(port), "{mapping:?}: 5060 became {port}");
        }
        // Beyond that a flow is worth more than its class, to the last port.
        for number in 300..310 {
            assert!(!class(open(&mut rig, number, 123).unwrap()));
        }
        let refused = open(&mut rig, 400, 123);
        assert_eq!(refused, Err(Refusal::PortsExhausted));
        rig.check();
    }
}

#[test]
fn rfc4787_3a_without_low_ports_any_port_will_do_and_the_option_is_off_when_off() {
    let mut rig = Rig::new(policy(EIM, EDF));
    assert!(open(&mut rig, 1, 123).is_ok(), "no low port in the pool");
    let mut any = with_ports(policy(EIM, EDF), &[(1, 65535)]);
    any.profile.preserve_port_class = false;
    let mut rig = Rig::new(any);
    let ports = (0..50).map(|number| open(&mut rig, number, 123).unwrap());
    assert!(ports.filter(|&port| !class(port)).count() > 40);
    // A ping has an identifier, which has no class.
    let mut rig = Rig::new(with_ports(policy(EIM, EDF), &[(0, 65535)]));
    let ids = (0..50).map(|number| {
        let ping = rig.out(Signal::IcmpQuery, &inside(number, 7), "203.0.113.1:0");
        ping.unwrap().source.port
    });
    assert!(ids.filter(|&id| !class(id)).count() > 40);
}

#[test]
fn rfc4787_4_parity_is_kept_for_udp_where_it_is_asked_for() {
    for (mapping, filtering) in [(EIM, EDF), (EDM, EDF)] {
        let mut pairs = with_ports(policy(mapping, filtering), &[(3001, 3100), (900, 909)]);
        pairs.profile.preserve_port_parity = true;
        let mut rig = Rig::new(pairs);
        for number in 0..50 {
            let even = open(&mut rig, number, 6000).unwrap();
            assert!(even.is_multiple_of(2) && even > 1023, "{mapping:?}: {even}");
        }
        // Even ones of the class are used up: class goes before parity.
        let odd = open(&mut rig, 50, 6000).unwrap();
        assert!(odd % 2 == 1 && odd > 1023, "{mapping:?}: {odd}");
        for number in 51..100 {
            assert!(open(&mut rig, number, 6001).unwrap() % 2 == 1);
        }
        // TCP is not asked.
        let ports = (0..40).map(|number| {
            let opened = rig.out(Signal::TcpSyn, &inside(number, 6000), REMOTE);
            opened.unwrap().source.port % 2
        });
        assert_eq!(ports.collect::<HashSet<_>>().len(), 2);
        rig.check();
    }
}

#[test]
fn rfc7857_8_parity_is_off_by_default() {
    let mut rig = Rig::new(with_ports(policy(EIM, EDF), &[(3001, 3100)]));
    let odd = (0..60).filter(|&number| open(&mut rig, number, 6000).unwrap() % 2 == 1);
    assert!(odd.count() > 10);
}

/// Chi-square of how often each of `cells` came up, `draws` times in all.
fn chi_square(counts: &HashMap<u16, u32>, cells: usize, draws: u32) -> f64 {
    let expected = f64::from(draws) / cells as f64;
    let seen: f64 = counts
        .values()
        .map(|&n| (f64::from(n) - expected).powi(2) / expected)
        .sum();
    seen + (cells - counts.len()) as f64 * expected
}

/// The 99.9th percentile for `cells` with the same chance (Wilson and Hilferty).
fn limit(cells: usize) -> f64 {
    let degrees = cells as f64 - 1.0;
    let spread = 2.0 / (9.0 * degrees);
    degrees * (1.0 - spread + 3.09 * spread.sqrt()).powi(3)
}

/// Which of a pool of 64 with every second port used a new flow gets; its port is free again before
/// the next draw.
#[test]
fn rfc7857_9_ports_are_uniform_over_the_free_ones() {
    for mapping in [EIM, EDM] {
        let mut short = with_ports(policy(mapping, EDF), &[(1024, 1055), (61000, 61031)]);
        short.timers.udp_timeout_ms = 2_000_000_000;
        short.timers.tcp_idle_timeout_ms = 2_000_000_000;
        short.timers.tcp_trans_open_timeout_ms = 1;
        let mut rig = Rig::sized(short, 100);
        for port in (1024..1040).chain(61016..61032) {
            let kept = rig.connect(&inside(port.into(), port), "203.0.113.1:80");
            assert_eq!(kept.port, port);
        }
        rig.policy.profile.preserve_port = false;
        let (mut counts, draws) = (HashMap::new(), 2_000);
        for _ in 0..draws {
            // To the same remote, so that used ports will not do in `edm` either.
            let opened = rig.out(Signal::TcpSyn, "10.200.0.1:1040", "203.0.113.1:80");
            *counts.entry(opened.unwrap().source.port).or_default() += 1;
            rig.wait(2);
            rig.sweep();
        }
        assert_eq!(rig.nat.totals().sessions, 32);
        let (found, most) = (chi_square(&counts, 32, draws), limit(32));
        assert!(
            found < most,
            "{mapping:?}: {found:.0} of {most:.0}, {counts:?}"
        );
    }
}

/// Without preservation nothing of the source port shows: all sources draw alike.
#[test]
fn rfc6056_4_without_preservation_nothing_of_the_source_port_shows() {
    for mapping in [EIM, EDM] {
        let mut hidden = with_ports(policy(mapping, EDF), &[(1024, 65535)]);
        hidden.profile.preserve_port = false;
        let mut rig = Rig::sized(hidden, 40_000);
        let (mut same, mut octaves, mut near) = (0, HashMap::new(), 0);
        for number in 0..16_000_u32 {
            let wanted = 1024 + (number * 4) as u16;
            let port = open(&mut rig, number, wanted).unwrap();
            same += u32::from(port == wanted);
            near += u32::from(port.abs_diff(wanted) < 64);
            *octaves.entry(port.wrapping_sub(wanted) >> 10).or_default() += 1;
        }
        assert!(same <= 4, "{mapping:?}: {same} kept by chance");
        assert!(near < 60, "{mapping:?}: {near} near, 31 expected");
        let (found, most) = (chi_square(&octaves, 64, 16_000), limit(64));
        // Ports below 1024 are not drawn, so distances are not quite alike.
        assert!(found < 1.5 * most, "{mapping:?}: {found:.0} of {most:.0}");
    }
}

/// With preservation the port is random only where it has to change.
#[test]
fn rfc7857_9_preserved_if_free_and_allowed_else_random() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(policy(mapping, EDF));
        assert_eq!(open(&mut rig, 1, 5000), Ok(5000));
        let others: HashSet<u16> = (2..52)
            .map(|number| open(&mut rig, number, 5000).unwrap())
            .collect();
        assert!(others.len() > 48 && !others.contains(&5000));
        let spread: HashSet<u16> = others.iter().map(|port| port / 2048).collect();
        assert!(spread.len() > 15, "{others:?}");
        assert_eq!(open(&mut rig, 60, 5001), Ok(5001));
        assert_ne!(open(&mut rig, 61, 80), Ok(80), "not a port of the pool");
    }
}
