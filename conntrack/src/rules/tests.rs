use proptest::prelude::*;

use super::*;
use crate::endpoint::Endpoint;

fn rule(sources: &[&str], destinations: &[&str], ports: &[(u16, u16)], action: Action) -> Rule {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Rule {
        sources: nets(sources),
        destinations: nets(destinations),
        ports: ports.to_vec(),
        protocols: [true; 3],
        action,
    }
}

fn flow(protocol: Protocol, source: &str, destination: &str, port: u16) -> Tuple {
    Tuple {
        protocol,
        source: Endpoint::new(source.parse().unwrap(), 4000),
        destination: Endpoint::new(destination.parse().unwrap(), port),
    }
}

/// What the words at the top of the module say, without any laying out.
fn fits(rule: &Rule, flow: &Tuple) -> bool {
    let within = |nets: &[Ipv4Net], addr| nets.is_empty() || nets.iter().any(|n| n.contains(&addr));
    let port = flow.destination.port;
    let in_ports = rule
        .ports
        .iter()
        .any(|&(first, last)| (first..=last).contains(&port));
    rule.protocols[flow.protocol.index()]
        && within(&rule.sources, flow.source.addr)
        && within(&rule.destinations, flow.destination.addr)
        && (rule.ports.is_empty() || flow.protocol != Protocol::Icmp && in_ports)
}

#[test]
fn the_first_rule_that_fits_decides() {
    let rules = Rules::new(vec![
        rule(
            &["10.0.1.0/24"],
            &["203.0.113.0/24"],
            &[(443, 443)],
            Action::Drop,
        ),
        rule(&["10.0.0.0/16"], &["203.0.113.0/24"], &[], Action::Bypass),
        rule(&["10.0.1.7/32"], &[], &[], Action::Translate(3)),
    ])
    .unwrap();
    let find = |protocol, source, destination, port| {
        rules.find(&flow(protocol, source, destination, port))
    };
    let tcp = Protocol::Tcp;
    assert_eq!(
        find(tcp, "10.0.1.7", "203.0.113.9", 443),
        Some((0, Action::Drop))
    );
    assert_eq!(
        find(tcp, "10.0.1.7", "203.0.113.9", 444),
        Some((1, Action::Bypass))
    );
    assert_eq!(
        find(Protocol::Icmp, "10.0.1.7", "203.0.113.9", 443),
        Some((1, Action::Bypass))
    );
    assert_eq!(
        find(tcp, "10.0.1.7", "198.51.100.1", 443),
        Some((2, Action::Translate(3)))
    );
    assert_eq!(find(tcp, "10.0.1.8", "198.51.100.1", 443), None);
}

#[test]
fn a_rule_with_too_many_pairs_is_named() {
    let nets = |count: u32, base: u32| -> Vec<Ipv4Net> {
        let net = |n: u32| Ipv4Net::new((base + n).into(), 32).unwrap();
        (0..count).map(net).collect()
    };
    let wide = |sources| Rule {
        sources: nets(sources, 0x0a00_0000),
        destinations: nets(1024, 0xc000_0000),
        ..rule(&[], &[], &[], Action::Drop)
    };
    assert!(Rules::new(vec![wide(256)]).is_ok());
    let refused = Rules::new(vec![wide(200), wide(56), wide(1)]);
    assert_eq!(refused.err(), Some(TooManyEntries { rule: 2 }));
}

#[test]
fn ten_thousand_rules_are_laid_out_soon_and_small() {
    let rules: Vec<Rule> = (0..10_000_u32)
        .map(|n| Rule {
            sources: vec![Ipv4Net::new((0x0a00_0000 + n).into(), 32).unwrap()],
            destinations: vec![Ipv4Net::new((0xc000_0000 + (n << 8)).into(), 24).unwrap()],
            ..rule(&[], &[], &[(443, 443)], Action::Translate((n % 100) as u16))
        })
        .collect();
    let rules = Rules::new(rules).unwrap();
    assert!(rules.bytes() < 2 << 20, "{} bytes", rules.bytes());
    let flow = flow(Protocol::Tcp, "10.0.39.15", "192.39.15.1", 443);
    assert_eq!(rules.find(&flow), Some((9999, Action::Translate(99))));
}

fn net(bits: u32, base: u32) -> impl Strategy<Value = Ipv4Net> {
    // Few different ones, so that they nest and meet.
    let some = (0..1_u32 << bits, 32 - bits as u8..=32)
        .prop_map(move |(addr, len)| Ipv4Net::new((base + addr).into(), len).unwrap());
    prop_oneof![6 => some, 1 => Just(Ipv4Net::default())]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let ports = (0..40_u16, 0..20_u16).prop_map(|(first, more)| (first, first + more));
    let edge = prop_oneof![Just((0, u16::MAX)), Just((65_530, u16::MAX)), Just((0, 0))];
    let action = prop_oneof![
        (0..5_u16).prop_map(Action::Translate),
        Just(Action::Bypass),
        Just(Action::Drop)
    ];
    (
        prop::collection::vec(net(4, 0x0a00_0000), 0..3),
        prop::collection::vec(net(4, 0xffff_fff0), 0..3),
        prop::collection::vec(prop_oneof![4 => ports, 1 => edge], 0..3),
        any::<[bool; 3]>(),
        action,
    )
        .prop_map(|(sources, destinations, ports, protocols, action)| Rule {
            sources,
            destinations,
            ports,
            protocols,
            action,
        })
}

proptest! {
    #[test]
    fn a_look_up_says_what_going_through_the_list_says(
        list in prop::collection::vec(any_rule(), 0..12),
        flows in prop::collection::vec((0..17_u32, 0..17_u32, prop_oneof![0..62_u16, 65_528..=u16::MAX], 0..3_usize), 40),
    ) {
        let rules = Rules::new(list.clone()).unwrap();
        for (source, destination, port, protocol) in flows {
            let flow = Tuple {
                protocol: Protocol::ALL[protocol],
                source: Endpoint::new((0x0a00_0000 + source).into(), 1),
                destination: Endpoint::new((0xffff_ffef + destination).into(), port),
            };
            let first = list.iter().position(|rule| fits(rule, &flow));
            prop_assert_eq!(rules.find(&flow).map(|(number, _)| number), first);
        }
    }
}
