//! Quotas: workers that open and end sessions of the same subscribers.

use super::*;
use conntrack::Quotas;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

const LATER: Time = Time(NOW.0 + 400_000);

fn with_quotas(mapping: MappingBehaviour, quotas: Quotas) -> Policy {
    let mut policy = small(mapping);
    policy.limits.quotas = quotas;
    policy
}

/// One kind of quota, of so many.
fn one_of(kind: usize, most: u32) -> (Quotas, Refusal) {
    let all = [Some(most); 3];
    let none = Quotas::NONE;
    let sessions = Quotas {
        sessions: all,
        ..none
    };
    let ports = Quotas { ports: all, ..none };
    let rate = Quotas {
        mappings_per_second: Some(1),
        mapping_burst: most,
        ..none
    };
    [
        (sessions, Refusal::SubscriberSessions),
        (ports, Refusal::SubscriberPorts),
        (rate, Refusal::SubscriberRate),
    ][kind]
}

/// Packets of one new flow on all workers, and a quota that has room for one session: it is this
/// one, so nobody is refused.
#[test]
fn one_flow_and_a_quota_of_one_is_no_refusal() {
    for (mapping, kind) in [EIM, EDM]
        .into_iter()
        .flat_map(|m| [0, 1, 2].map(|k| (m, k)))
    {
        schedules(400, move |memory| {
            let world = memory.world(with_quotas(mapping, one_of(kind, 1).0));
            let threads = thread_rng().gen_range(2..=3);
            let flow = tuple(UDP, ep("10.0.0.1:5000"), ep(SERVER));
            race(&world, threads, move |world, _| {
                world.ask(&flow, Signal::Udp, Signal::Udp)
            });
            world.assert_counts(1, 1);
        });
    }
}

/// As many sessions as the quota has room for, whoever opens them.
#[test]
fn a_quota_is_used_up_and_no_more() {
    for (mapping, kind) in [EIM, EDM]
        .into_iter()
        .flat_map(|m| [0, 1, 2].map(|k| (m, k)))
    {
        schedules(400, move |memory| {
            let (quotas, refusal) = one_of(kind, 4);
            let world = memory.world(with_quotas(mapping, quotas));
            let made = race(&world, 3, |world, thread| {
                [0, 1].map(|n| {
                    let from = Endpoint::new([10, 0, 0, 1].into(), (2 * thread + n) as u16);
                    let flow = tuple(UDP, from, ep(SERVER));
                    world.send(Realm::Internal, &flow, Signal::Udp, NOW).err()
                })
            });
            let refused: Vec<Refusal> = made.into_iter().flatten().flatten().collect();
            assert_eq!(refused, [refusal; 2]);
            world.assert_counts(4, 4);
        });
    }
}

/// Hosts whose keys are in the same two lines: two and as many as have room there.
fn neighbours(world: &World) -> &'static [Ipv4Addr] {
    static NEIGHBOURS: OnceLock<Vec<Ipv4Addr>> = OnceLock::new();
    // 1024 keys are the least that tables have.
    const LINES: u64 = 1024 / 8;
    let nowhere = Endpoint::new(Ipv4Addr::UNSPECIFIED, 0);
    let lines = |addr: Ipv4Addr| {
        let hash = world.nat.hash(&tuple(TCP, Endpoint::new(addr, 0), nowhere));
        [hash >> 32, hash & 0xffff_ffff].map(|half| (half * LINES) >> 32)
    };
    NEIGHBOURS.get_or_init(|| {
        let all = || (1..1 << 23).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n));
        let first = all().map(lines).find(|[a, b]| a != b).unwrap();
        let hosts: Vec<Ipv4Addr> = all()
            .filter(|&addr| lines(addr) == first)
            .take(18)
            .collect();
        assert_eq!(hosts.len(), 18);
        hosts
    })
}

/// Gives every key of the two lines to a host that then has nothing any more; returns two others.
fn use_every_key(world: &World) -> [Ipv4Addr; 2] {
    let hosts = neighbours(world);
    for (eight, start) in [(&hosts[2..10], 0), (&hosts[10..], 400_000)] {
        for &host in eight {
            let flow = tuple(UDP, Endpoint::new(host, 5000), ep(SERVER));
            let opened = world.send(Realm::Internal, &flow, Signal::Udp, Time(start));
            assert!(opened.is_ok(), "{opened:?}");
        }
        for _ in 0..2 {
            while !world
                .nat
                .sweep(&world.policy, Time(start + 400_000), 10_000)
                .wrapped
            {}
        }
    }
    assert_eq!(world.nat.totals().sessions, 0);
    [hosts[0], hosts[1]]
}

/// Two hosts that want the same keys, which change hands as soon as nothing counts there: what each
/// has at the end is counted, and is no more than its quota.
#[test]
fn subscribers_that_come_and_go_are_counted_right() {
    for mapping in [EIM, EDM] {
        schedules(1000, move |memory| {
            let quotas = Quotas {
                sessions: [Some(2); 3],
                ports: [Some(2); 3],
                ..Quotas::NONE
            };
            let world = memory.world(with_quotas(mapping, quotas));
            let hosts = use_every_key(&world);
            let threads = thread_rng().gen_range(2..=4);
            race(&world, threads, move |world, _| {
                (0..4).for_each(|_| come_or_go(world, hosts, &world.policy));
            });
            world.apply(&world.policy, LATER);
            world.check(LATER);
            for host in hosts {
                let mine = world.nat.sessions(LATER);
                let mine = mine.filter(|view| view.outbound.tuple.source.addr == host);
                assert!(mine.count() <= 2);
            }
        });
    }
}

/// A policy sets quotas or takes them away, and some workers have it and some have not yet: what
/// one of them counts, the other takes off.
#[test]
fn quotas_come_and_go_under_workers() {
    for mapping in [EIM, EDM] {
        schedules(600, move |memory| {
            let (quotas, _) = one_of(thread_rng().gen_range(0..3), 2);
            let world = memory.world(with_quotas(mapping, quotas));
            let hosts = use_every_key(&world);
            race(&world, 3, move |world, _| {
                let mut policy = world.policy.clone();
                for _ in 0..4 {
                    policy.limits.quotas = match thread_rng().r#gen() {
                        true => quotas,
                        false => Quotas::NONE,
                    };
                    come_or_go(world, hosts, &policy);
                }
            });
            world.apply(&world.policy, LATER);
            world.check(LATER);
        });
    }
}

fn come_or_go(world: &World, hosts: [Ipv4Addr; 2], policy: &Policy) {
    let mut random = thread_rng();
    let now = [NOW, LATER][random.gen_range(0..2)];
    if random.gen_range(0..3) == 0 {
        world.nat.sweep(policy, now, 8);
        return;
    }
    let host = hosts[random.gen_range(0..2)];
    let from = Endpoint::new(host, 5000 + random.gen_range(0..3));
    let flow = tuple(UDP, from, ep(SERVER));
    let (hash, seed) = (world.nat.hash(&flow), &mut Seeded(random.r#gen()));
    let facts = facts(Signal::Udp);
    let opened = world
        .nat
        .translate(policy, Realm::Internal, &flow, hash, facts, now, seed);
    let expected = [
        Refusal::SubscriberSessions,
        Refusal::SubscriberPorts,
        Refusal::SubscriberRate,
    ];
    if let Err(refusal) = opened {
        assert!(expected.contains(&refusal), "{refusal:?}");
    }
}
