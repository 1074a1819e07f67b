//! The process dies before any write that an operation makes, one after the other: tables that are
//! opened afterwards are sound, keep what was complete, and work.

mod common;
use common::*;
use conntrack::{
    MappingBehaviour, Nat, Policy, PolicyChange, Realm, Signal, TableSize, Time, Word,
};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Writes until death; the dead write nothing.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// A word of a process that dies.
struct Mortal(AtomicU64);

impl Mortal {
    /// Does this write happen?
    fn lives(&self) -> bool {
        match LEFT.get() {
            0 => false,
            1 => {
                LEFT.set(0);
                std::panic::resume_unwind(Box::new("dead"));
            }
            left => {
                LEFT.set(left - 1);
                true
            }
        }
    }
}

impl Word for Mortal {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        if self.lives() {
            self.0.store(value, order);
        }
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        if self.lives() {
            self.0.compare_exchange(current, new, success, failure)
        } else {
            Ok(current)
        }
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        if self.lives() {
            self.0.fetch_add(value, order)
        } else {
            0
        }
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        if self.lives() {
            self.0.fetch_or(value, order)
        } else {
            0
        }
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        if self.lives() {
            self.0.fetch_and(value, order)
        } else {
            0
        }
    }
    fn fence(order: Ordering) {
        std::sync::atomic::fence(order);
    }
    fn pause(_round: u32) {
        std::hint::spin_loop();
    }
}

const SIZE: TableSize = TableSize {
    sessions_max: 12,
    addresses_max: 1,
};
const START: Time = Time(5_000_000);

type Gateway<'a> = Nat<'a, Mortal>;

fn send(nat: &Gateway, policy: &Policy, realm: Realm, signal: Signal, ends: [&str; 2], now: Time) {
    let tuple = tuple(protocol_of(signal), ep(ends[0]), ep(ends[1]));
    let hash = nat.hash(&tuple);
    let _ = nat.translate(
        policy,
        realm,
        &tuple,
        hash,
        facts(signal),
        now,
        &mut Seeded(3),
    );
}

fn apply(nat: &Gateway, policy: &Policy, now: Time) {
    let mut change = PolicyChange::new(policy);
    while !nat.apply_policy(policy, &mut change, now, 10_000) {}
}

/// Two established connections and a UDP exchange, with which every later operation begins.
fn prepare(nat: &Gateway, policy: &Policy) {
    apply(nat, policy, START);
    for host in ["10.0.0.1:5000", "10.0.0.2:5000"] {
        for (from, to, realm, signal) in [
            (host, "203.0.113.1:80", Realm::Internal, Signal::TcpSyn),
            (host, "203.0.113.1:53", Realm::Internal, Signal::Udp),
            (host, "203.0.113.1:54", Realm::Internal, Signal::Udp),
        ] {
            send(nat, policy, realm, signal, [from, to], START);
        }
    }
}

type Operation<'a> = (&'static str, Box<dyn Fn(&Gateway) + 'a>);

fn operations(policy: &Policy) -> Vec<Operation<'_>> {
    let later = START.plus_ms(400_000);
    let mut other = policy.clone();
    other.forwards = vec![forward(TCP, "198.51.100.1:5000", "10.0.0.9:80", &[])];
    vec![
        (
            "open",
            Box::new(|nat: &Gateway| {
                send(
                    nat,
                    policy,
                    Realm::Internal,
                    Signal::Udp,
                    ["10.0.0.3:5000", "203.0.113.1:53"],
                    START,
                );
            }),
        ),
        (
            "open again",
            Box::new(|nat: &Gateway| {
                send(
                    nat,
                    policy,
                    Realm::Internal,
                    Signal::Udp,
                    ["10.0.0.1:5000", "203.0.113.1:55"],
                    START,
                );
            }),
        ),
        (
            "enter by a forward",
            Box::new(|nat: &Gateway| {
                send(
                    nat,
                    policy,
                    Realm::External,
                    Signal::TcpSyn,
                    ["203.0.113.9:7", "198.51.100.1:80"],
                    START,
                );
            }),
        ),
        (
            "push a half-open one out",
            Box::new(|nat: &Gateway| {
                for remote in ["203.0.113.9:7", "203.0.113.9:8"] {
                    let ends = [remote, "198.51.100.1:80"];
                    send(nat, policy, Realm::External, Signal::TcpSyn, ends, START);
                }
            }),
        ),
        (
            "connect through a forward",
            Box::new(|nat: &Gateway| {
                let (remote, forward, target) = ("203.0.113.9:7", "198.51.100.1:80", "10.0.0.8:80");
                for (realm, signal, ends) in [
                    (Realm::External, Signal::TcpSyn, [remote, forward]),
                    (Realm::Internal, Signal::TcpSynAck, [target, remote]),
                    (Realm::External, Signal::TcpData, [remote, forward]),
                ] {
                    send(nat, policy, realm, signal, ends, START);
                }
            }),
        ),
        (
            "transition",
            Box::new(|nat: &Gateway| {
                send(
                    nat,
                    policy,
                    Realm::External,
                    Signal::TcpSynAck,
                    ["203.0.113.1:80", "198.51.100.1:5000"],
                    START,
                );
            }),
        ),
        (
            "expire and open",
            Box::new(move |nat: &Gateway| {
                send(
                    nat,
                    policy,
                    Realm::Internal,
                    Signal::Udp,
                    ["10.0.0.1:5000", "203.0.113.1:53"],
                    later,
                );
            }),
        ),
        (
            "sweep",
            Box::new(move |nat: &Gateway| {
                for _ in 0..40 {
                    nat.sweep(policy, later, 1000);
                }
            }),
        ),
        (
            "change the policy",
            Box::new(move |nat: &Gateway| apply(nat, &other, START)),
        ),
    ]
}

#[test]
fn dying_at_any_write_leaves_tables_that_open() {
    for mapping in [EIM, EDM] {
        let mut policy = policy(mapping, EIF);
        policy.addresses = vec![external("198.51.100.1", 0, 4990, 5005)];
        policy.forwards = vec![forward(TCP, "198.51.100.1:80", "10.0.0.8:80", &[])];
        policy.limits.half_open_per_forward = Some(1);
        for (name, operation) in operations(&policy) {
            die_everywhere(name, mapping, &policy, &*operation);
        }
    }
}

fn die_everywhere(
    name: &str,
    mapping: MappingBehaviour,
    policy: &Policy,
    operation: &dyn Fn(&Gateway),
) {
    let zeros = |n: usize| {
        (0..n)
            .map(|_| Mortal(AtomicU64::new(0)))
            .collect::<Vec<_>>()
    };
    let (words, owned) = (zeros(SIZE.words()), zeros(SIZE.owned_words()));
    LEFT.set(u64::MAX);
    let nat = Nat::create(&words, &owned, SIZE, IDENTITY, &mut Seeded(1)).unwrap();
    prepare(&nat, policy);
    let image = |words: &[Mortal]| -> Vec<u64> {
        words
            .iter()
            .map(|word| word.0.load(Ordering::Relaxed))
            .collect()
    };
    let before = [image(&words), image(&owned)];
    for death in 1.. {
        for (words, image) in [&words, &owned].into_iter().zip(&before) {
            for (word, &value) in words.iter().zip(image) {
                word.0.store(value, Ordering::Relaxed);
            }
        }
        let nat = Nat::open(&words, &owned, SIZE, IDENTITY).unwrap();
        apply(&nat, policy, START);
        let kept: Vec<_> = nat
            .sessions(START)
            .map(|view| view.outbound.tuple)
            .collect();
        assert_eq!(kept.len(), 6, "{name}, {mapping:?}");
        LEFT.set(death);
        let survived = catch_unwind(AssertUnwindSafe(|| operation(&nat))).is_ok();
        LEFT.set(u64::MAX);

        let nat = Nat::open(&words, &owned, SIZE, IDENTITY).unwrap();
        apply(&nat, policy, START);
        if let Err(violation) = nat.check(policy, START.plus_ms(400_000)) {
            panic!("{name}, {mapping:?}, dead before write {death}: {violation}");
        }
        let now: Vec<_> = nat
            .sessions(START)
            .map(|view| view.outbound.tuple)
            .collect();
        // Opening and moving on lose nothing that was there.
        if ["open", "open again", "enter by a forward", "transition"].contains(&name) {
            assert!(
                kept.iter().all(|tuple| now.contains(tuple)),
                "{name}, {death}: {now:?}"
            );
        }
        send(
            &nat,
            policy,
            Realm::Internal,
            Signal::Udp,
            ["10.0.0.4:5", "203.0.113.4:4"],
            START,
        );
        nat.check(policy, START.plus_ms(400_000)).unwrap();
        if survived {
            assert!(death > 3, "{name} writes something");
            return;
        }
    }
}
