//! Whole gateways under a scheduler that may change threads before every access to a word:
//! thousands of random schedules, each repeatable. Orderings weaker than sequential consistency are
//! the model checker's matter (`src/loom_tests`).
//!
//! `EGRET_SCHEDULES` says how many schedules each test tries, `SHUTTLE_RANDOM_SEED` begins other
//! ones. A schedule that fails is printed; with the test's name and `EGRET_SCHEDULE` set to what was
//! printed it runs again.

#![cfg(not(loom))]

mod common;
#[path = "schedules/quotas.rs"]
mod quotas;

use common::{ADF, EDF, EDM, EIM, Seeded, TCP, UDP, ep, external, facts, forward, policy, tuple};
use conntrack::{
    Direction, Endpoint, Identity, MappingBehaviour, Nat, NextHop, Policy, PolicyChange, Protocol,
    Realm, Refusal, Rewrite, Signal, TableSize, Time, Tuple, Word,
};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A word before every access to which another thread may run.
struct Scheduled(AtomicU64);

thread_local! {
    /// A schedule's threads are coroutines on one thread of the system, so they share this.
    static RACING: Cell<bool> = const { Cell::new(false) };
}

/// Lets another thread run. No time passes.
fn switch() {
    if RACING.get() {
        thread::sleep(Duration::ZERO);
    }
}

impl Word for Scheduled {
    fn load(&self, order: Ordering) -> u64 {
        switch();
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        switch();
        self.0.store(value, order);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        switch();
        self.0.compare_exchange(current, new, success, failure)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        switch();
        self.0.fetch_add(value, order)
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        switch();
        self.0.fetch_or(value, order)
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        switch();
        self.0.fetch_and(value, order)
    }
    fn fence(_order: Ordering) {}
    fn pause(_round: u32) {
        if RACING.get() {
            thread::yield_now();
        }
    }
}

const SIZE: TableSize = TableSize {
    sessions_max: 12,
    addresses_max: 1,
};
const NOW: Time = Time(1_000_000);
const SERVER: &str = "203.0.113.1:53";

/// A gateway that threads race on.
struct World {
    nat: Nat<'static, Scheduled>,
    policy: Policy,
}

/// Words that all schedules of a test use, one after the other.
#[derive(Clone, Copy)]
struct Memory {
    words: &'static [Scheduled],
    owned: &'static [Scheduled],
}

impl Memory {
    fn new() -> Memory {
        let zeros = |n: usize| Box::leak((0..n).map(|_| Scheduled(AtomicU64::new(0))).collect());
        Memory {
            words: zeros(SIZE.words()),
            owned: zeros(SIZE.owned_words()),
        }
    }

    fn world(self, policy: Policy) -> Arc<World> {
        RACING.set(false);
        let identity = Identity { boot_id: [7; 16] };
        let keys = &mut Seeded(1);
        let nat = Nat::create(self.words, self.owned, SIZE, identity, keys).unwrap();
        let world = World { nat, policy };
        world.apply(&world.policy, NOW);
        Arc::new(world)
    }
}

impl World {
    fn apply(&self, policy: &Policy, now: Time) {
        let mut change = PolicyChange::new(policy);
        let done = (0..100).any(|_| self.nat.apply_policy(policy, &mut change, now, 100_000));
        assert!(done, "the policy never got into the tables");
    }

    fn send(
        &self,
        realm: Realm,
        tuple: &Tuple,
        signal: Signal,
        now: Time,
    ) -> Result<Rewrite, Refusal> {
        let (policy, hash) = (&self.policy, self.nat.hash(tuple));
        let random = &mut Seeded(thread_rng().r#gen());
        self.nat
            .translate(policy, realm, tuple, hash, facts(signal), now, random)
    }

    /// A packet out, and its answer back: neither is refused. Returns the external endpoint.
    fn ask(&self, flow: &Tuple, signal: Signal, answer: Signal) -> Endpoint {
        let there = self.send(Realm::Internal, flow, signal, NOW).unwrap();
        let back = tuple(flow.protocol, there.destination, there.source);
        let back = self.send(Realm::External, &back, answer, NOW).unwrap();
        assert_eq!(
            (back.source, back.destination),
            (flow.destination, flow.source)
        );
        there.source
    }

    fn check(&self, now: Time) {
        if let Err(violation) = self.nat.check(&self.policy, now) {
            panic!("{violation}");
        }
    }

    fn assert_counts(&self, mappings: u64, sessions: u64) {
        self.check(NOW);
        let totals = self.nat.totals();
        assert_eq!((totals.mappings, totals.sessions), (mappings, sessions));
    }
}

/// Runs `work(world, thread)` on so many threads at once; returns what each made.
fn race<T: Send + 'static>(
    world: &Arc<World>,
    threads: usize,
    work: impl Fn(&World, usize) -> T + Clone + Send + 'static,
) -> Vec<T> {
    RACING.set(true);
    let threads: Vec<_> = (0..threads)
        .map(|number| {
            let (world, work) = (world.clone(), work.clone());
            thread::spawn(move || work(&world, number))
        })
        .collect();
    let made = threads.into_iter().map(|t| t.join().unwrap()).collect();
    RACING.set(false);
    made
}

/// Tries schedules: half of them change threads at random before every access, half rarely, but at
/// places drawn so that few changes suffice.
fn schedules(default: usize, test: impl Fn(Memory) + Send + Sync + 'static) {
    let memory = Memory::new();
    let test = Arc::new(move || {
        test(memory);
    });
    if let Ok(schedule) = std::env::var("EGRET_SCHEDULE") {
        shuttle::replay(move || test(), &schedule);
        return;
    }
    let asked = std::env::var("EGRET_SCHEDULES").ok();
    let count = asked.map_or(default, |text| {
        text.parse().expect("EGRET_SCHEDULES: a number")
    });
    let mut config = shuttle::Config::new();
    config.stack_size = 0x4_0000;
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let test = test.clone();
        shuttle::Runner::new(scheduler, config.clone()).run(move || test());
    };
    run(Box::new(RandomScheduler::new_from_seed(
        1,
        count.div_ceil(2),
    )));
    run(Box::new(PctScheduler::new_from_seed(1, 3, count / 2)));
}

fn small(mapping: MappingBehaviour) -> Policy {
    let mut policy = policy(mapping, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2007)].into();
    policy.profile.preserve_port = false;
    policy
}

/// The known killer: packets of one new flow on all workers (A and AAAA queries of one socket).
fn one_flow(mapping: MappingBehaviour, protocol: Protocol) {
    schedules(600, move |memory| {
        let world = memory.world(small(mapping));
        let threads = thread_rng().gen_range(2..=4);
        let (signal, answer) = match protocol {
            Protocol::Tcp => (Signal::TcpSyn, Signal::TcpSynAck),
            _ => (Signal::Udp, Signal::Udp),
        };
        let flow = tuple(protocol, ep("10.0.0.1:5000"), ep(SERVER));
        let made = race(&world, threads, move |world, _| {
            world.ask(&flow, signal, answer)
        });
        assert!(made.iter().all(|source| *source == made[0]), "{made:?}");
        world.assert_counts(1, 1);
    });
}

#[test]
fn one_new_flow_is_one_session_in_eim() {
    one_flow(EIM, UDP);
}

#[test]
fn one_new_flow_is_one_session_in_edm() {
    one_flow(EDM, UDP);
}

#[test]
fn one_new_connection_is_one_session_in_eim() {
    one_flow(EIM, TCP);
}

#[test]
fn one_new_connection_is_one_session_in_edm() {
    one_flow(EDM, TCP);
}

/// One socket asks several servers at once: in `eim` one mapping for all.
#[test]
fn one_socket_and_several_servers_is_one_mapping() {
    for mapping in [EIM, EDM] {
        schedules(400, move |memory| {
            let world = memory.world(small(mapping));
            let made = race(&world, 3, |world, thread| {
                let server = Endpoint::new([203, 0, 113, thread as u8].into(), 53);
                let flow = tuple(UDP, ep("10.0.0.1:5000"), server);
                world.ask(&flow, Signal::Udp, Signal::Udp)
            });
            if mapping == EIM {
                assert!(made.iter().all(|source| *source == made[0]), "{made:?}");
            }
            world.assert_counts(if mapping == EIM { 1 } else { 3 }, 3);
        });
    }
}

/// One port, and packets of one flow that all want it: nobody is refused.
#[test]
fn one_flow_and_one_port_is_no_refusal() {
    for mapping in [EIM, EDM] {
        schedules(400, move |memory| {
            let mut policy = small(mapping);
            policy.addresses = vec![external("198.51.100.1", 0, 2000, 2000)].into();
            let world = memory.world(policy);
            let flow = tuple(UDP, ep("10.0.0.1:5000"), ep(SERVER));
            race(&world, 2, move |world, _| {
                world.ask(&flow, Signal::Udp, Signal::Udp)
            });
            world.assert_counts(1, 1);
        });
    }
}

/// As many hosts as ports: nobody is refused, and no two share a tuple.
#[test]
fn the_last_ports_are_found() {
    for mapping in [EIM, EDM] {
        schedules(400, move |memory| {
            let mut policy = small(mapping);
            policy.addresses = vec![external("198.51.100.1", 0, 2000, 2002)].into();
            let world = memory.world(policy);
            let mut made = race(&world, 3, |world, thread| {
                let host = Endpoint::new([10, 0, 0, thread as u8].into(), 5000);
                world.ask(
                    &tuple(TCP, host, ep(SERVER)),
                    Signal::TcpSyn,
                    Signal::TcpSynAck,
                )
            });
            made.sort_by_key(|source| source.port);
            made.dedup();
            assert_eq!(made.len(), 3);
            world.assert_counts(3, 3);
        });
    }
}

/// A session that is over is swept while its flow begins anew on two workers: one session again.
#[test]
fn a_flow_begins_anew_while_it_is_swept() {
    for mapping in [EIM, EDM] {
        schedules(1500, move |memory| {
            let world = memory.world(small(mapping));
            let flow = tuple(UDP, ep("10.0.0.1:5000"), ep(SERVER));
            world.ask(&flow, Signal::Udp, Signal::Udp);
            let later = NOW.plus_ms(400_000);
            let made = race(&world, 3, move |world, thread| {
                if thread == 0 {
                    for _ in 0..4 {
                        world.nat.sweep(&world.policy, later, 4);
                    }
                    return None;
                }
                let sent = world.send(Realm::Internal, &flow, Signal::Udp, later);
                Some(sent.unwrap().source)
            });
            assert_eq!(made[1], made[2]);
            world.check(later);
            let totals = world.nat.totals();
            assert_eq!(
                (totals.mappings, totals.sessions, totals.expired),
                (1, 1, 1)
            );
        });
    }
}

/// A session is ended as soon as it is made, by workers whose clock is far ahead, and its record
/// becomes another one's: whoever made it still gets its own rewrite.
#[test]
fn a_record_that_is_used_again_confuses_nobody() {
    schedules(1000, |memory| {
        let world = memory.world(small(EDM));
        race(&world, 3, |world, thread| {
            let server = Endpoint::new([203, 0, 113, thread as u8].into(), 53);
            let flow = tuple(TCP, ep("10.0.0.1:5000"), server);
            let mut now = NOW;
            if thread > 0 {
                now = NOW.plus_ms(8_000_000);
                world.nat.sweep(&world.policy, now, 3);
            }
            let opened = world.send(Realm::Internal, &flow, Signal::TcpSyn, now);
            let opened = opened.unwrap();
            assert_eq!(opened.destination, server);
            let answer = tuple(TCP, server, opened.source);
            if let Ok(answer) = world.send(Realm::External, &answer, Signal::TcpSynAck, now) {
                assert_eq!(answer.source, server);
            }
            let again = world.send(Realm::Internal, &flow, Signal::TcpSyn, now);
            assert_eq!(again.unwrap().destination, server);
        });
        world.check(NOW.plus_ms(8_000_000));
    });
}

/// What the whole gateway does, drawn at random, on few flows, ports and sessions.
#[test]
fn everything_at_once_leaves_sound_tables() {
    for (mapping, filtering) in [(EIM, EDF), (EIM, ADF), (EDM, EDF)] {
        schedules(400, move |memory| {
            let mut policy = small(mapping);
            policy.profile.filtering = [filtering; 3];
            policy.forwards = vec![forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[])].into();
            policy.limits.half_open_per_forward = Some(1);
            let world = memory.world(policy);
            let threads = thread_rng().gen_range(2..=4);
            race(&world, threads, |world, thread| {
                (0..4).for_each(|_| any_operation(world, thread));
            });
            let later = NOW.plus_ms(300_000);
            world.apply(&world.policy, later);
            world.check(later);
        });
    }
}

fn any_operation(world: &World, thread: usize) {
    let mut random = thread_rng();
    // Each worker has a clock of its own; at the last two times UDP of the first is over.
    let now = NOW.plus_ms([0, 1, 299_999, 300_000][random.gen_range(0..4)]);
    let host = Endpoint::new([10, 0, 0, random.gen_range(1..3)].into(), 5000);
    let (protocol, signal) = [
        (UDP, Signal::Udp),
        (TCP, Signal::TcpSyn),
        (TCP, Signal::TcpRst),
    ][random.gen_range(0..3)];
    let flow = tuple(protocol, host, ep(SERVER));
    match random.gen_range(0..8) {
        0..=3 => there_and_back(world, &flow, signal, now),
        4 => {
            world.nat.sweep(&world.policy, now, 6);
        }
        5 => {
            let knock = Endpoint::new([203, 0, 113, thread as u8].into(), 9);
            let port = [80, random.gen_range(2000..2008)][random.gen_range(0..2)];
            let forward = Endpoint::new([198, 51, 100, 1].into(), port);
            let knock = tuple(protocol, knock, forward);
            let opened = world.send(Realm::External, &knock, signal, now);
            assert_ne!(opened.err(), Some(Refusal::Contended));
        }
        6 => {
            let hairpin = tuple(TCP, host, ep("198.51.100.1:80"));
            let opened = world.send(Realm::Internal, &hairpin, Signal::TcpSyn, now);
            assert_ne!(opened.err(), Some(Refusal::Contended));
        }
        // Only one thread carries a policy through, as in the engine.
        _ if thread == 0 => {
            let change = &mut PolicyChange::new(&world.policy);
            world.nat.apply_policy(&world.policy, change, now, 12);
        }
        _ => {
            let quoted = tuple(UDP, ep("198.51.100.1:2003"), ep(SERVER));
            if let Ok(answer) = world.nat.embedded(&quoted, now) {
                assert_eq!(answer.direction, Direction::Inbound);
                assert_eq!((answer.source, answer.destination.port), (ep(SERVER), 5000));
            }
        }
    }
}

fn there_and_back(world: &World, flow: &Tuple, signal: Signal, now: Time) {
    match world.send(Realm::Internal, flow, signal, now) {
        Ok(there) => {
            assert_eq!(there.destination, flow.destination);
            world.nat.set_next_hop(there.session, NextHop(5));
            let back = tuple(flow.protocol, there.destination, there.source);
            match world.send(Realm::External, &back, signal, now) {
                // The session may have ended, and its port be another flow's.
                Ok(back) => assert_eq!(back.source, flow.destination),
                Err(refusal) => assert_ne!(refusal, Refusal::Contended),
            }
        }
        Err(refusal) => assert_eq!((refusal, signal), (Refusal::TcpMidstream, Signal::TcpRst)),
    }
}
