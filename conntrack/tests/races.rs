//! Real threads on the same tables: nothing made twice, nothing dropped, nothing left behind.

mod common;
use common::*;
use conntrack::{Endpoint, MappingBehaviour, Policy, Realm, Refusal, Rewrite, Signal, Time, Tuple};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{self, Relaxed};

const THREADS: usize = 2;

fn send(
    rig: &Rig,
    realm: Realm,
    tuple: &Tuple,
    signal: Signal,
    now: Time,
    random: &mut Seeded,
) -> Result<Rewrite, Refusal> {
    let hash = rig.nat.hash(tuple);
    rig.nat
        .translate(&rig.policy, realm, tuple, hash, facts(signal), now, random)
}

/// Waits, spinning, until so many have arrived: a barrier that sleeps would let them go one by one.
fn meet(arrived: &AtomicU64, expected: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    let mut spins = 0_u64;
    while (arrived.load(Ordering::Acquire) as usize) < expected {
        spins += 1;
        assert!(spins < 1 << 30, "another thread has stopped");
        // More threads than cores: the others need this one to arrive.
        if spins.is_multiple_of(500) {
            std::thread::yield_now();
        }
    }
}

/// Runs `work(thread, round)` on [`THREADS`] threads, each round started together; returns what they
/// made.
fn race<T: Send>(rounds: usize, work: impl Fn(usize, usize) -> T + Sync) -> Vec<Vec<T>> {
    race_of(THREADS, rounds, work)
}

fn race_of<T: Send>(
    threads: usize,
    rounds: usize,
    work: impl Fn(usize, usize) -> T + Sync,
) -> Vec<Vec<T>> {
    let arrived = AtomicU64::new(0);
    let work = &work;
    let mut results: Vec<Vec<T>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let arrived = &arrived;
                scope.spawn(move || {
                    (0..rounds)
                        .map(|round| {
                            meet(arrived, (round + 1) * threads);
                            work(thread, round)
                        })
                        .collect::<Vec<T>>()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    (0..rounds)
        .map(|_| results.iter_mut().map(|made| made.remove(0)).collect())
        .collect()
}

fn inside(round: usize, port: u16) -> Endpoint {
    Endpoint::new(
        [10, 1, (round / 250) as u8, (round % 250) as u8].into(),
        port,
    )
}

fn small(mapping: MappingBehaviour) -> Policy {
    let mut policy = policy(mapping, EDF);
    policy.profile.preserve_port = false;
    policy
}

#[test]
fn one_new_flow_on_all_workers_is_one_session() {
    for mapping in [EIM, EDM] {
        let rig = Rig::new(small(mapping));
        let now = rig.now;
        let made = race(2000, |thread, round| {
            let flow = tuple(UDP, inside(round, 5000), ep("203.0.113.1:53"));
            let mut random = Seeded((thread * 10_000 + round) as u64);
            send(&rig, Realm::Internal, &flow, Signal::Udp, now, &mut random)
                .unwrap()
                .source
        });
        for round in made {
            assert!(round.iter().all(|source| *source == round[0]), "{round:?}");
        }
        assert_eq!(rig.nat.totals().sessions, 2000);
        assert_eq!(rig.nat.totals().mappings, 2000);
        rig.check();
    }
}

/// The known killer: a resolver's A and AAAA queries from one socket, and a third one to another
/// server, each on a worker of its own at the same instant, as are their answers: one mapping, and
/// no refusal, ever.
#[test]
fn queries_of_one_socket_are_never_refused() {
    const ROUNDS: usize = 10_000;
    for threads in 2..=4 {
        for mapping in [EIM, EDM] {
            // Not full: the index of a full table refuses one in thousands.
            let rig = Rig::sized(small(mapping), 3 * ROUNDS as u32);
            let now = rig.now;
            let made = race_of(threads, ROUNDS, |thread, round| {
                let server = ep(["203.0.113.1:53", "203.0.113.1:53", "203.0.113.2:53"][thread % 3]);
                let query = tuple(UDP, inside(round, 5000), server);
                let mut random = Seeded((thread * 10_000 + round) as u64);
                let there = send(&rig, Realm::Internal, &query, Signal::Udp, now, &mut random);
                let external = there.unwrap().source;
                let answer = tuple(UDP, server, external);
                let back = send(
                    &rig,
                    Realm::External,
                    &answer,
                    Signal::Udp,
                    now,
                    &mut random,
                );
                assert_eq!(back.unwrap().destination, query.source);
                external
            });
            for round in &made {
                assert_eq!(round[0], round[1]);
                assert!(mapping == EDM || round.iter().all(|source| *source == round[0]));
                assert!(round.get(3).is_none_or(|source| *source == round[0]));
            }
            let servers = if threads > 2 { 2 } else { 1 };
            let mappings = if mapping == EIM { 1 } else { servers };
            let totals = rig.nat.totals();
            assert_eq!(totals.sessions, (servers * ROUNDS) as u64);
            assert_eq!(totals.mappings, (mappings * ROUNDS) as u64);
            rig.check();
        }
    }
}

/// The very last port, fought for by packets of one flow: nobody is refused.
#[test]
fn one_new_flow_and_one_port_is_no_refusal() {
    for mapping in [EIM, EDM] {
        let mut rig = Rig::new(small(mapping));
        rig.policy.addresses = vec![external("198.51.100.1", 0, 2000, 2000)].into();
        let now = rig.now;
        let rig = &rig;
        race(2000, |thread, round| {
            let flow = tuple(UDP, inside(round, 5000), ep("203.0.113.1:53"));
            // Virtual time expires the round before.
            let now = now.plus_ms(round as u64 * 400_000);
            let mut random = Seeded((thread + round) as u64);
            let mut sent = send(rig, Realm::Internal, &flow, Signal::Udp, now, &mut random);
            // In `eim` the last round's mapping has to be swept by somebody first.
            while sent == Err(Refusal::PortsExhausted) && mapping == EIM && round > 0 {
                rig.nat.sweep(&rig.policy, now, 100);
                sent = send(rig, Realm::Internal, &flow, Signal::Udp, now, &mut random);
            }
            sent.unwrap();
        });
    }
}

/// The very last session of the table, fought for by packets of one flow: nobody is refused.
#[test]
fn one_new_flow_and_one_session_left_is_no_refusal() {
    for mapping in [EIM, EDM] {
        for threads in 2..=3 {
            let rig = Rig::sized(small(mapping), 1);
            let (rig, start) = (&rig, rig.now);
            race_of(threads, 10_000, |thread, round| {
                // Virtual time expires the flow before.
                let now = start.plus_ms(round as u64 * 1_000_000);
                if round % 2 == 0 {
                    while thread == 0 && rig.nat.totals().sessions > 0 {
                        rig.nat.sweep(&rig.policy, now, 100);
                    }
                    return;
                }
                let flow = tuple(UDP, inside(round, 5000), ep("203.0.113.1:53"));
                let mut random = Seeded((thread + round) as u64);
                send(rig, Realm::Internal, &flow, Signal::Udp, now, &mut random).unwrap();
            });
        }
    }
}

#[test]
fn flows_of_one_internal_endpoint_share_its_mapping() {
    let rig = Rig::new(small(EIM));
    let now = rig.now;
    let made = race(5000, |thread, round| {
        let remote = Endpoint::new([203, 0, 113, thread as u8].into(), 53);
        let flow = tuple(UDP, inside(round, 5000), remote);
        let mut random = Seeded((thread * 10_000 + round) as u64);
        send(&rig, Realm::Internal, &flow, Signal::Udp, now, &mut random)
            .unwrap()
            .source
    });
    for round in made {
        assert!(round.iter().all(|source| *source == round[0]), "{round:?}");
    }
    assert_eq!(rig.nat.totals().mappings, 5000);
    assert_eq!(rig.nat.totals().sessions, 5000 * THREADS as u64);
    rig.check();
}

/// Different flows to one remote that fit exactly: each gets a port, all differ.
#[test]
fn overloading_gives_no_tuple_twice() {
    let mut rig = Rig::sized(small(EDM), 20_000);
    rig.policy.addresses = vec![external("198.51.100.1", 0, 2000, 2000 + 2 * 1000 - 1)].into();
    let now = rig.now;
    let rig = &rig;
    let made = race(1000, |thread, round| {
        let flow = tuple(TCP, inside(round, thread as u16 + 1), ep("203.0.113.1:80"));
        let mut random = Seeded((thread * 10_000 + round) as u64);
        send(
            rig,
            Realm::Internal,
            &flow,
            Signal::TcpSyn,
            now,
            &mut random,
        )
        .map(|r| r.source)
    });
    let sources: Vec<_> = made.into_iter().flatten().flatten().collect();
    let distinct: std::collections::HashSet<_> = sources.iter().collect();
    assert_eq!(distinct.len(), sources.len());
    assert_eq!(
        sources.len(),
        2000,
        "nobody is refused while a port is left"
    );
    let mut random = Seeded(9);
    let flow = tuple(TCP, ep("10.9.9.9:9"), ep("203.0.113.1:80"));
    let refused = send(
        rig,
        Realm::Internal,
        &flow,
        Signal::TcpSyn,
        now,
        &mut random,
    );
    assert_eq!(refused, Err(Refusal::PortsExhausted));
    rig.check();
}

/// Making, answering, closing, expiring and sweeping, all at once on few flows and few ports.
#[test]
fn churn_leaves_sound_tables() {
    for (mapping, filtering) in [(EIM, EDF), (EIM, ADF), (EIM, EIF), (EDM, EDF)] {
        let mut rig = Rig::sized(policy(mapping, filtering), 300);
        rig.policy.addresses = vec![external("198.51.100.1", 0, 2000, 2100)].into();
        rig.policy.forwards = vec![forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])].into();
        rig.policy.limits.half_open_per_forward = Some(3);
        rig.apply();
        let clock = AtomicU64::new(rig.now.0);
        {
            let (rig, clock) = (&rig, &clock);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    scope.spawn(move || churn(rig, clock, Seeded(thread + 77)));
                }
            });
        }
        rig.now = Time(clock.load(Relaxed));
        rig.check();
        let totals = rig.nat.totals();
        assert!(totals.expired > 100 && totals.evicted > 100, "{totals:?}");
        for _ in 0..3 {
            rig.wait(8_000_000);
            rig.sweep();
        }
        rig.assert_empty();
    }
}

fn churn(rig: &Rig, clock: &AtomicU64, mut random: Seeded) {
    let signals = [
        Signal::TcpSyn,
        Signal::TcpSynAck,
        Signal::TcpData,
        Signal::TcpFin,
        Signal::TcpRst,
        Signal::Udp,
        Signal::Udp,
        Signal::IcmpQuery,
    ];
    for _ in 0..150_000 {
        let now = Time(clock.fetch_add(random.below(40), Relaxed));
        if random.below(20) == 0 {
            rig.nat.sweep(&rig.policy, now, 30);
        }
        if random.below(5000) == 0 {
            clock.fetch_add(250_000, Relaxed);
        }
        let signal = signals[random.below(8) as usize];
        let inside = Endpoint::new(
            [10, 0, 0, random.below(8) as u8].into(),
            2000 + random.below(8) as u16,
        );
        let remote = Endpoint::new(
            [203, 0, 113, random.below(4) as u8].into(),
            random.below(4) as u16,
        );
        let remote = match random.below(20) {
            0 => ep("198.51.100.1:80"),
            1 => Endpoint::new([198, 51, 100, 1].into(), 2000 + random.below(100) as u16),
            _ => remote,
        };
        let mut flow = tuple(protocol_of(signal), inside, remote);
        if signal == Signal::IcmpQuery {
            flow.destination.port = 0;
        }
        let out = send(rig, Realm::Internal, &flow, signal, now, &mut random);
        if let Ok(rewrite) = out {
            if random.below(3) == 0 {
                rig.nat.set_next_hop(rewrite.session, conntrack::NextHop(5));
            }
            let answer = match signal {
                Signal::TcpSyn => Signal::TcpSynAck,
                Signal::IcmpQuery => Signal::IcmpReply,
                other => other,
            };
            let back = tuple(flow.protocol, rewrite.destination, rewrite.source);
            let realm = match rewrite.direction {
                conntrack::Direction::Hairpin => Realm::Internal,
                _ => Realm::External,
            };
            match send(rig, realm, &back, answer, now, &mut random) {
                // Another flow's answer must never come back to us.
                Ok(back) => assert!(
                    back.destination == inside || out_again(rig, &flow, signal, now) != out,
                    "{flow} was answered at {}",
                    back.destination
                ),
                Err(refusal) => assert_ne!(refusal, Refusal::Contended),
            }
        } else {
            assert_ne!(out, Err(Refusal::Contended));
        }
        let knock = tuple(TCP, remote, ep("198.51.100.1:80"));
        let _ = send(
            rig,
            Realm::External,
            &knock,
            Signal::TcpSyn,
            now,
            &mut random,
        );
        let knock = tuple(
            UDP,
            remote,
            Endpoint::new([198, 51, 100, 1].into(), 2000 + random.below(100) as u16),
        );
        let _ = send(rig, Realm::External, &knock, Signal::Udp, now, &mut random);
    }
}

/// The session may have expired and been made anew under us: then its rewrite is another one.
fn out_again(rig: &Rig, flow: &Tuple, signal: Signal, now: Time) -> Result<Rewrite, Refusal> {
    send(rig, Realm::Internal, flow, signal, now, &mut Seeded(5))
}
