//! Rules of a policy: pools, ways of translating, services, and what a rule says.

use conntrack::Protocol::{Icmp, Tcp, Udp};
use conntrack::{
    Action, FilteringBehaviour, FlowTimers, MappingBehaviour, Pairing, Policy, Profile, Protocol,
    Rule, Rules, Service, TimerSets, Timers,
};
use ipnet::Ipv4Net;

use crate::operation::{ADDRESSES, timers};

/// How a profile differs from that of no rule.
#[derive(Clone, Copy, Default)]
struct Way {
    pool: u16,
    other_mapping: bool,
    filtering: Option<FilteringBehaviour>,
    pairing: Option<Pairing>,
    /// A number of [`timers`].
    timers: Option<u8>,
}

/// Flows to ports of theirs, with a number of [`timers`].
type Services = &'static [(Protocol, u16, u16, u8)];

struct Ruling {
    /// Pools of [`ADDRESSES`].
    pools: [u16; 4],
    rules: Vec<Rule>,
    /// That of no rule, and the others.
    ways: Vec<Way>,
    services: Services,
}

const ANY: &[&str] = &[];
const HOST_1: &str = "10.0.0.1/32";
const HOST_2: &str = "10.0.0.2/32";
const HOST_3: &str = "10.0.0.3/32";
const REMOTE_1: &str = "198.51.100.10/32";
const REMOTE_2: &str = "198.51.100.11/32";
const ALL: &[Protocol] = &Protocol::ALL;

const EIF: Option<FilteringBehaviour> = Some(FilteringBehaviour::EndpointIndependent);
const EDF: Option<FilteringBehaviour> = Some(FilteringBehaviour::EndpointDependent);
const PLAIN: Way = Way {
    pool: 0,
    other_mapping: false,
    filtering: None,
    pairing: None,
    timers: None,
};
const SECOND: Way = Way { pool: 1, ..PLAIN };

fn rule(
    sources: &[&str],
    destinations: &[&str],
    ports: &[(u16, u16)],
    protocols: &[Protocol],
    action: Action,
) -> Rule {
    let nets = |nets: &[&str]| -> Vec<Ipv4Net> {
        let nets = nets.iter().map(|net| net.parse().expect("a prefix"));
        nets.collect()
    };
    Rule {
        sources: nets(sources),
        destinations: nets(destinations),
        ports: ports.to_vec(),
        protocols: Protocol::ALL.map(|protocol| protocols.contains(&protocol)),
        action,
    }
}

/// More than half of the policies have no rules.
fn ruling(which: u8) -> Ruling {
    let to = Action::Translate;
    let (pools, rules, ways, services): ([u16; 4], Vec<Rule>, Vec<Way>, Services) = match which % 22
    {
        // By source; the other pool has other timers.
        0 => (
            [0, 1, 0, 1],
            vec![rule(&[HOST_2], ANY, &[], ALL, to(1))],
            vec![
                PLAIN,
                Way {
                    timers: Some(0),
                    ..SECOND
                },
            ],
            &[],
        ),
        // By remote: who may send goes by the sender. Services.
        1 => (
            [0, 1, 0, 1],
            vec![rule(ANY, &[REMOTE_2], &[], ALL, to(1))],
            vec![
                PLAIN,
                Way {
                    filtering: EDF,
                    ..SECOND
                },
            ],
            &[(Tcp, 1000, 1002, 0), (Udp, 53, 53, 4)],
        ),
        // By port and protocol: another mapping behaviour in the same pool.
        2 => (
            [0, 1, 1, 0],
            vec![
                rule(ANY, ANY, &[(53, 53)], &[Udp], to(1)),
                rule(ANY, ANY, &[(900, 1000)], &[Tcp, Icmp], to(2)),
            ],
            vec![
                PLAIN,
                Way {
                    other_mapping: true,
                    timers: Some(4),
                    ..PLAIN
                },
                SECOND,
            ],
            &[(Udp, 1000, 1003, 3)],
        ),
        // Flows that are not translated.
        3 => (
            [0; 4],
            vec![
                rule(&[HOST_3], &[REMOTE_2], &[], ALL, Action::Bypass),
                rule(&[HOST_3], ANY, &[(1000, 1000)], &[Udp], Action::Drop),
                rule(&[HOST_2], ANY, &[], &[Icmp], Action::Drop),
                rule(
                    &[HOST_1],
                    &[REMOTE_1],
                    &[(53, 53)],
                    &[Tcp, Udp],
                    Action::Drop,
                ),
            ],
            vec![PLAIN],
            &[],
        ),
        // No pairs.
        4 => (
            [0, 0, 0, 1],
            vec![rule(ANY, &[REMOTE_2], &[], ALL, to(1))],
            [PLAIN, SECOND]
                .map(|way| Way {
                    pairing: Some(Pairing::None),
                    ..way
                })
                .to_vec(),
            &[],
        ),
        // Prefixes within prefixes: the first rule decides, not the longest prefix.
        5 => (
            [1, 0, 0, 1],
            vec![
                rule(
                    &["10.0.0.0/30"],
                    &["198.51.100.10/31"],
                    &[(0, 999)],
                    ALL,
                    to(1),
                ),
                rule(&[HOST_2], ANY, &[], ALL, Action::Bypass),
                rule(&["0.0.0.0/0"], ANY, &[], ALL, to(2)),
            ],
            vec![
                PLAIN,
                Way {
                    filtering: EIF,
                    ..SECOND
                },
                Way {
                    filtering: EIF,
                    timers: Some(0),
                    ..PLAIN
                },
            ],
            &[],
        ),
        // By external addresses, so for hairpins.
        6 => (
            [0, 1, 1, 1],
            vec![
                rule(&[HOST_1], &["203.0.113.1/32"], &[], ALL, Action::Bypass),
                rule(ANY, &["203.0.113.0/24"], &[], ALL, to(1)),
            ],
            vec![
                PLAIN,
                Way {
                    pairing: Some(Pairing::Soft),
                    ..SECOND
                },
            ],
            &[],
        ),
        // Two makers of mappings in one pool, and a pool without addresses.
        7 => (
            [0; 4],
            vec![
                rule(&[HOST_1, HOST_2], &[REMOTE_1], &[], &[Tcp, Udp], to(1)),
                rule(&[HOST_3], &[REMOTE_2], &[], &[Tcp, Udp], to(2)),
            ],
            vec![
                Way {
                    filtering: EDF,
                    ..PLAIN
                },
                Way {
                    filtering: EIF,
                    timers: Some(4),
                    ..PLAIN
                },
                Way { pool: 2, ..PLAIN },
            ],
            &[],
        ),
        // Lists of everything, and a number that no profile has.
        8 => (
            [1, 1, 1, 0],
            vec![
                rule(
                    &[HOST_3, HOST_1],
                    &[REMOTE_2, REMOTE_1],
                    &[(0, 53), (1000, 1000)],
                    &[Udp, Tcp],
                    to(1),
                ),
                rule(&[HOST_1], ANY, &[], ALL, to(9)),
                rule(ANY, ANY, &[], ALL, to(1)),
            ],
            vec![
                PLAIN,
                Way {
                    other_mapping: true,
                    timers: Some(3),
                    ..SECOND
                },
            ],
            &[(Tcp, 0, 65535, 4)],
        ),
        // Which profile makes the mappings of the first pool goes by the mapping behaviour.
        9 => (
            [0, 1, 0, 0],
            vec![
                rule(&[HOST_1], ANY, &[], ALL, to(2)),
                rule(&[HOST_2], ANY, &[], ALL, to(1)),
            ],
            vec![
                Way {
                    other_mapping: true,
                    ..PLAIN
                },
                Way {
                    timers: Some(0),
                    filtering: EIF,
                    ..PLAIN
                },
                Way {
                    timers: Some(4),
                    ..SECOND
                },
            ],
            &[(Udp, 1001, 1001, 0)],
        ),
        _ => ([0; 4], vec![], vec![PLAIN], &[]),
    };
    Ruling {
        pools,
        rules,
        ways,
        services,
    }
}

/// Gives a policy its rules, pools, profiles and timers, numbered after those of the policy before.
pub fn enact(policy: &mut Policy, which: u8, earlier: Option<&TimerSets>) {
    let ruling = ruling(which);
    policy.addresses.edit(|list| {
        for address in list {
            let mut places = ADDRESSES.iter();
            let place = places.position(|&(addr, _)| addr == address.addr);
            address.pool = ruling.pools[place.expect("an address of the tests")];
        }
    });
    let base: Timers = *policy.timers;
    let wanted: Vec<Timers> = ruling
        .ways
        .iter()
        .flat_map(|way| {
            let services = ruling.services.iter().map(|service| timers(service.3));
            [way.timers.map_or(base, timers)]
                .into_iter()
                .chain(services)
        })
        .collect();
    let first = TimerSets::from(base);
    let (sets, numbers) = earlier
        .unwrap_or(&first)
        .following(true, base, &wanted)
        .expect("room for the timers");
    let numbers = numbers.chunks_exact(1 + ruling.services.len());
    let profiles = ruling.ways.iter().zip(numbers);
    let mut profiles = profiles
        .map(|(way, numbers)| profile(&policy.profile, way, ruling.services, numbers))
        .collect::<Vec<Profile>>()
        .into_iter();
    policy.profile = profiles.next().expect("that of no rule");
    policy.others = profiles.collect();
    policy.rules = Rules::new(ruling.rules).expect("few entries");
    policy.timers = sets;
}

fn profile(plain: &Profile, way: &Way, services: Services, numbers: &[u8]) -> Profile {
    let other = |mapping| match mapping {
        MappingBehaviour::EndpointIndependent => MappingBehaviour::EndpointDependent,
        MappingBehaviour::EndpointDependent => MappingBehaviour::EndpointIndependent,
    };
    let services = services.iter().zip(&numbers[1..]);
    let service =
        |(&(protocol, first, last, _), &timers): (&(Protocol, u16, u16, u8), &u8)| Service {
            protocol,
            first,
            last,
            timers,
        };
    Profile {
        pool: way.pool,
        mapping: match way.other_mapping {
            true => plain.mapping.map(other),
            false => plain.mapping,
        },
        filtering: way.filtering.map_or(plain.filtering, |one| [one; 3]),
        pairing: way.pairing.map_or(plain.pairing, |one| [one; 3]),
        timers: FlowTimers {
            base: numbers[0],
            services: services.map(service).collect(),
        },
        ..plain.clone()
    }
}
