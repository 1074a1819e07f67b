//! The process dies before any write that an operation makes, one after the other: tables that are
//! opened afterwards are sound, keep what was complete, and work.

mod common;
use common::*;
use conntrack::{
    MappingBehaviour, Nat, Policy, PolicyChange, Quotas, Realm, Refusal, Rewrite, Signal,
    TableSize, Time, Tuple, Word,
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
    /// Does this write happen? One that changes nothing is no moment to die: memory is the same
    /// before and after.
    fn lives(&self, value: impl FnOnce(u64) -> u64) -> bool {
        let old = self.0.load(Ordering::Relaxed);
        match LEFT.get() {
            0 => false,
            _ if value(old) == old => true,
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
        if self.lives(|_| value) {
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
        let swapped = |old| if old == current { new } else { old };
        if self.lives(swapped) {
            self.0.compare_exchange(current, new, success, failure)
        } else {
            Ok(current)
        }
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        if self.lives(|old| old.wrapping_add(value)) {
            self.0.fetch_add(value, order)
        } else {
            0
        }
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        if self.lives(|old| old | value) {
            self.0.fetch_or(value, order)
        } else {
            0
        }
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        if self.lives(|old| old & value) {
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
    sessions_max: 16,
    addresses_max: 1,
};
const START: Time = Time(5_000_000);

type Gateway<'a> = Nat<'a, Mortal>;

/// Memory that outlives its process.
struct Tables {
    words: Vec<Mortal>,
    owned: Vec<Mortal>,
}

impl Tables {
    fn new() -> Tables {
        let zeros = |n| (0..n).map(|_| Mortal(AtomicU64::new(0))).collect();
        Tables {
            words: zeros(SIZE.words()),
            owned: zeros(SIZE.owned_words()),
        }
    }

    fn open(&self, policy: &Policy) -> Gateway<'_> {
        let nat = Nat::open(&self.words, &self.owned, SIZE, IDENTITY).unwrap();
        apply(&nat, policy, START);
        nat
    }

    fn all(&self) -> impl Iterator<Item = &Mortal> {
        self.words.iter().chain(&self.owned)
    }

    fn image(&self) -> Vec<u64> {
        self.all()
            .map(|word| word.0.load(Ordering::Relaxed))
            .collect()
    }

    fn restore(&self, image: &[u64]) {
        for (word, &value) in self.all().zip(image) {
            word.0.store(value, Ordering::Relaxed);
        }
    }
}

fn send(
    nat: &Gateway,
    policy: &Policy,
    realm: Realm,
    signal: Signal,
    ends: [&str; 2],
    now: Time,
) -> Result<Rewrite, Refusal> {
    let tuple = tuple(protocol_of(signal), ep(ends[0]), ep(ends[1]));
    let hash = nat.hash(&tuple);
    nat.translate(
        policy,
        realm,
        &tuple,
        hash,
        facts(signal),
        now,
        &mut Seeded(3),
    )
}

fn apply(nat: &Gateway, policy: &Policy, now: Time) {
    let mut change = PolicyChange::new(policy);
    while !nat.apply_policy(policy, &mut change, now, 10_000) {}
}

/// Two established connections and a UDP exchange, with which every later operation begins.
fn prepare(nat: &Gateway, policy: &Policy) {
    apply(nat, policy, START);
    for host in ["10.0.0.1:5000", "10.0.0.2:5000"] {
        for (to, signal) in [
            ("203.0.113.1:80", Signal::TcpSyn),
            ("203.0.113.1:53", Signal::Udp),
            ("203.0.113.1:54", Signal::Udp),
        ] {
            send(nat, policy, Realm::Internal, signal, [host, to], START).unwrap();
        }
    }
}

/// A packet: from where, what, and its ends.
type Packet = (Realm, Signal, [&'static str; 2]);
const OUT: Realm = Realm::Internal;
const IN: Realm = Realm::External;
const FORWARD: &str = "198.51.100.1:80";
const KNOCK: Packet = (IN, Signal::TcpSyn, ["203.0.113.9:7", FORWARD]);

type Operation<'a> = (&'static str, Box<dyn Fn(&Tables, &Gateway) + 'a>);

fn operations(policy: &Policy) -> Vec<Operation<'_>> {
    let later = START.plus_ms(400_000);
    let sent = |name, packets: &'static [Packet], now| -> Operation<'_> {
        let send_all = move |_: &Tables, nat: &Gateway| {
            for &(realm, signal, ends) in packets {
                let _ = send(nat, policy, realm, signal, ends, now);
            }
        };
        (name, Box::new(send_all))
    };
    let mut other = policy.clone();
    other.forwards = vec![forward(TCP, "198.51.100.1:5000", "10.0.0.9:80", &[])].into();
    let mut denying = policy.clone();
    denying.denied = ["203.0.113.1/32".parse().unwrap()].into_iter().collect();
    let sweep = move |_: &Tables, nat: &Gateway| {
        for _ in 0..40 {
            nat.sweep(policy, later, 1000);
        }
    };
    vec![
        sent(
            "open",
            &[(OUT, Signal::Udp, ["10.0.0.3:5000", "203.0.113.1:53"])],
            START,
        ),
        sent(
            "open again",
            &[(OUT, Signal::Udp, ["10.0.0.1:5000", "203.0.113.1:55"])],
            START,
        ),
        sent("enter by a forward", &[KNOCK], START),
        sent(
            "push a half-open one out",
            &[KNOCK, (IN, Signal::TcpSyn, ["203.0.113.9:8", FORWARD])],
            START,
        ),
        sent(
            "connect through a forward",
            &[
                KNOCK,
                (OUT, Signal::TcpSynAck, ["10.0.0.8:80", "203.0.113.9:7"]),
                (IN, Signal::TcpData, ["203.0.113.9:7", FORWARD]),
            ],
            START,
        ),
        sent(
            "transition",
            &[(
                IN,
                Signal::TcpSynAck,
                ["203.0.113.1:80", "198.51.100.1:5000"],
            )],
            START,
        ),
        sent(
            "expire and open",
            &[(OUT, Signal::Udp, ["10.0.0.1:5000", "203.0.113.1:53"])],
            later,
        ),
        ("sweep", Box::new(sweep)),
        (
            "change the policy",
            Box::new(move |_, nat| apply(nat, &other, START)),
        ),
        (
            "deny a destination",
            Box::new(move |_, nat| apply(nat, &denying, START)),
        ),
        (
            "restart",
            Box::new(|tables, _| {
                tables.open(policy);
            }),
        ),
    ]
}

fn die_in_every_operation(quotas: Quotas) {
    for mapping in [EIM, EDM] {
        let mut policy = policy(mapping, EIF);
        policy.addresses = vec![external("198.51.100.1", 0, 4990, 5005)].into();
        policy.forwards = vec![forward(TCP, FORWARD, "10.0.0.8:80", &[])].into();
        policy.limits.half_open_per_forward = Some(1);
        policy.limits.quotas = quotas;
        for (name, operation) in operations(&policy) {
            die_everywhere(name, mapping, &policy, &*operation);
        }
    }
}

#[test]
fn dying_at_any_write_leaves_tables_that_open() {
    die_in_every_operation(Quotas::NONE);
}

/// Hosts have two UDP sessions and one TCP port, and may have four and three: what is counted of
/// them is right after any death.
#[test]
fn dying_at_any_write_leaves_the_counts_right() {
    die_in_every_operation(Quotas {
        sessions: [None, Some(4), None],
        ports: [Some(3), None, None],
        ..Quotas::NONE
    });
}

fn die_everywhere(
    name: &str,
    mapping: MappingBehaviour,
    policy: &Policy,
    operation: &dyn Fn(&Tables, &Gateway),
) {
    LEFT.set(u64::MAX);
    let tables = Tables::new();
    let (words, owned) = (&tables.words, &tables.owned);
    let nat = Nat::create(words, owned, SIZE, IDENTITY, &mut Seeded(1)).unwrap();
    prepare(&nat, policy);
    let before = tables.image();
    for death in 1.. {
        tables.restore(&before);
        let nat = tables.open(policy);
        let kept = listed(&nat);
        assert_eq!(kept.len(), 6, "{name}, {mapping:?}");
        LEFT.set(death);
        let survived = catch_unwind(AssertUnwindSafe(|| operation(&tables, &nat))).is_ok();
        LEFT.set(u64::MAX);

        let nat = tables.open(policy);
        let check = || {
            if let Err(violation) = nat.check(policy, START.plus_ms(400_000)) {
                panic!("{name}, {mapping:?}, dead before write {death}: {violation}");
            }
        };
        check();
        let now = listed(&nat);
        // Opening, moving on and starting again lose nothing that was there.
        let loses = ["push", "expire", "sweep", "change", "deny"];
        if !loses.iter().any(|what| name.starts_with(what)) {
            let lost = kept.iter().find(|tuple| !now.contains(tuple));
            assert!(lost.is_none(), "{name}, {death}: {lost:?}");
        }
        let fresh = ["10.0.0.4:5", "203.0.113.4:4"];
        send(&nat, policy, OUT, Signal::Udp, fresh, START).unwrap();
        check();
        if policy.limits.quotas != Quotas::NONE {
            use_up(&nat, policy, Signal::Udp, 4, Refusal::SubscriberSessions);
            use_up(&nat, policy, Signal::TcpSyn, 3, Refusal::SubscriberPorts);
            check();
        }
        if survived {
            assert!(death > 3, "{name} writes something");
            return;
        }
    }
}

fn listed(nat: &Gateway) -> Vec<Tuple> {
    let views = nat.sessions(START);
    views.map(|view| view.outbound.tuple).collect()
}

/// Host 1 opens sessions until its quota is met: it has exactly as many as it may have.
fn use_up(nat: &Gateway, policy: &Policy, signal: Signal, quota: usize, refusal: Refusal) {
    let refused = (1..=quota + 1).find_map(|port| {
        let from = format!("10.0.0.1:{port}");
        send(nat, policy, OUT, signal, [&from, "203.0.113.4:4"], START).err()
    });
    assert_eq!(refused, Some(refusal));
    let protocol = protocol_of(signal);
    let mine = |tuple: &&Tuple| tuple.protocol == protocol && tuple.source.addr == addr("10.0.0.1");
    assert_eq!(listed(nat).iter().filter(mine).count(), quota);
}
