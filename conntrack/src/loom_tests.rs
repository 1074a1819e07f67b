//! The orderings of the tables under a model checker: every schedule, and every value that a load
//! may return, within a bound on preemptions where a whole operation is modelled.
//!
//! The tables are cut to the words that the models touch: two sessions, TCP, ports 1 to 7.

mod parts;
mod subscribers;
mod whole;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;

use crate::age::At;
use crate::config::{AddressKind, ExternalAddress, Limits, Policy};
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::fill::Fills;
use crate::hash::HashKeys;
use crate::index::{Index, LINE_WORDS};
use crate::layout::{
    FILL_WORDS, FORWARD_WORDS, MAPPING_WORDS, MEMO_WORDS, MEMOS, PROTOCOLS, SESSION_WORDS, STRIPES,
    TIMER_ROWS, TIMERS_WORDS, TableSize, header,
};
use crate::lock::Locks;
use crate::mapping::Mappings;
use crate::memo::Memos;
use crate::nat::Nat;
use crate::pool::Pool;
use crate::port::{Place, Ports};
use crate::port_set::PortSet;
use crate::prefixes::Prefixes;
use crate::profile::{FilteringBehaviour, FlowTimers, MappingBehaviour, Pairing, Profile};
use crate::rules::Rules;
use crate::session::outside::Forwards;
use crate::subscriber::{SUBSCRIBER_WORDS, Subscribers};
use crate::time::{Random, Time};
use crate::timers::Timers;

/// Sessions, and mappings.
const RECORDS: usize = 2;
const PROTOCOL: Protocol = Protocol::Tcp;
const EIM: MappingBehaviour = MappingBehaviour::EndpointIndependent;
const EDM: MappingBehaviour = MappingBehaviour::EndpointDependent;

/// Words of one small gateway.
struct Memory {
    header: Vec<AtomicU64>,
    locks: Vec<AtomicU64>,
    memos: Vec<AtomicU64>,
    timers: Vec<AtomicU64>,
    indexes: [Vec<AtomicU64>; 3],
    sessions: Vec<AtomicU64>,
    mappings: Vec<AtomicU64>,
    forwards: Vec<AtomicU64>,
    subscriber_keys: Vec<AtomicU64>,
    subscribers: Vec<AtomicU64>,
    tallies: Vec<AtomicU64>,
    fills: Vec<AtomicU64>,
    cells: Vec<AtomicU64>,
    owned: Vec<AtomicU64>,
    /// For what a model has beside the tables.
    extra: AtomicU64,
}

fn zeros(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

impl Memory {
    fn new() -> Arc<Memory> {
        Arc::new(Memory {
            header: zeros(64),
            locks: zeros(STRIPES),
            memos: zeros(MEMOS * MEMO_WORDS),
            timers: zeros(TIMER_ROWS * TIMERS_WORDS),
            indexes: std::array::from_fn(|_| zeros(LINE_WORDS)),
            sessions: zeros((RECORDS + 1) * SESSION_WORDS),
            mappings: zeros((RECORDS + 1) * MAPPING_WORDS),
            forwards: zeros(FORWARD_WORDS),
            subscriber_keys: zeros(LINE_WORDS),
            subscribers: zeros(LINE_WORDS * SUBSCRIBER_WORDS),
            tallies: zeros(PROTOCOLS),
            fills: zeros(FILL_WORDS),
            cells: zeros(4),
            // A search reads the bits of a whole group of 1024 ports.
            owned: zeros(16),
            extra: AtomicU64::new(0),
        })
    }

    fn pool<'m>(
        &'m self,
        at: usize,
        records: &'m [AtomicU64],
        stride: usize,
        link: usize,
    ) -> Pool<'m, AtomicU64> {
        Pool {
            head: &self.header[at],
            used: &self.header[at + 1],
            records,
            stride,
            link,
            max: RECORDS as u32,
        }
    }

    fn nat(&self) -> Nat<'_, AtomicU64> {
        let records = RECORDS as u32 + 1;
        let [tuples, filters, endpoints] = &self.indexes;
        let (sessions, mappings) = (&self.sessions, &self.mappings);
        let strays = |index: usize| &self.header[header::STRAYS + index];
        Nat {
            size: TableSize {
                sessions_max: RECORDS as u32,
                addresses_max: 1,
            },
            header: &self.header,
            keys: HashKeys([1, 2]),
            locks: Locks { words: &self.locks },
            memos: Memos {
                words: &self.memos,
                epoch: &self.header[header::EPOCH],
            },
            timers: &self.timers,
            tuples: Index::new(tuples, strays(0), 2 * records),
            filters: Index::new(filters, strays(1), records),
            halves: sessions.as_chunks().0,
            sessions: self.pool(header::FREE_SESSIONS, sessions, SESSION_WORDS, 5),
            mappings: Mappings {
                records: mappings.as_chunks().0,
                pool: self.pool(header::FREE_MAPPINGS, mappings, MAPPING_WORDS, 1),
                index: Index::new(endpoints, strays(2), records),
            },
            forwards: Forwards {
                records: self.forwards.as_chunks().0,
            },
            subscribers: Subscribers {
                keys: self.subscriber_keys.as_chunks().0,
                records: self.subscribers.as_chunks().0,
            },
            ports: Ports {
                tallies: &self.tallies,
                fills: Fills {
                    words: &self.fills,
                    epoch: &self.header[header::POOL_EPOCH],
                },
                cells: &self.cells,
                owned: &self.owned,
                in_use: &self.header[header::PORTS_IN_USE..][..PROTOCOLS],
            },
        }
    }

    fn counter(&self, place: usize) -> u64 {
        self.header[place].load(Relaxed)
    }

    /// Bits of the ports 0 to 63.
    fn bits(&self) -> u64 {
        self.owned[0].load(Relaxed)
    }

    /// No lock is held, and ports, bits and counts agree on so many ports in use.
    fn assert_ports(&self, in_use: u64) {
        assert!(self.locks.iter().all(|lock| lock.load(Relaxed) == 0));
        let nat = self.nat();
        for port in 0..8 {
            let used = nat.ports.cell(place(port)) != crate::port::Cell::Free;
            assert_eq!(self.bits() >> port & 1 == 1, used, "bit of port {port}");
        }
        assert_eq!(u64::from(self.bits().count_ones()), in_use);
        assert_eq!(u64::from(nat.ports.fills.owned(0)[0]), in_use);
        assert_eq!(self.counter(header::PORTS_IN_USE), in_use);
    }
}

fn place(port: u16) -> Place {
    Place {
        slot: 0,
        protocol: PROTOCOL,
        port,
    }
}

/// Explores the schedules of two operations on one memory with so many preemptions at most (`None`:
/// with any number), and then looks at what they left.
///
/// The checker knows of each word the last access only, so the loads that a thread does before it
/// writes hide another one's loads before. Hence either operation is the main thread's once: then
/// each of them is the one that comes later, and meets the other's writes.
fn race<L, R>(
    preemptions: Option<usize>,
    before: fn(&Memory),
    left: fn(&Memory) -> L,
    right: fn(&Memory) -> R,
    after: fn(&Memory, L, R),
) where
    L: 'static,
    R: 'static,
{
    explore(preemptions, move || {
        let memory = Memory::new();
        before(&memory);
        let other = {
            let memory = memory.clone();
            loom::thread::spawn(move || left(&memory))
        };
        let right = right(&memory);
        let left = other.join().unwrap();
        after(&memory, left, right);
    });
    explore(preemptions, move || {
        let memory = Memory::new();
        before(&memory);
        let other = {
            let memory = memory.clone();
            loom::thread::spawn(move || right(&memory))
        };
        let left = left(&memory);
        let right = other.join().unwrap();
        after(&memory, left, right);
    });
}

fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 100_000;
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = executions.clone();
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    println!("{} executions", executions.load(Relaxed));
}

/// The same number again and again.
struct Fixed(u64);

impl Random for Fixed {
    fn next_u64(&mut self) -> u64 {
        self.0
    }
}

/// The policy of a behaviour, made once.
fn policy(mapping: MappingBehaviour) -> &'static Policy {
    static POLICIES: [std::sync::OnceLock<Policy>; 2] = [const { std::sync::OnceLock::new() }; 2];
    POLICIES[usize::from(mapping == EDM)].get_or_init(|| policy_of(mapping))
}

fn policy_of(mapping: MappingBehaviour) -> Policy {
    let mut ports = PortSet::empty();
    ports.insert_range(1, 2);
    Policy {
        profile: Profile {
            pool: 0,
            mapping: [mapping; 3],
            filtering: [FilteringBehaviour::EndpointDependent; 3],
            pairing: [Pairing::Hard; 3],
            preserve_port: true,
            preserve_port_class: false,
            preserve_port_parity: false,
            timers: FlowTimers::default(),
        },
        others: Vec::new(),
        rules: Rules::default(),
        inbound_refresh: false,
        timers: Timers::RFC.into(),
        limits: Limits::DEFAULT,
        hold_down_max_percent: 25,
        addresses: vec![ExternalAddress {
            addr: [198, 51, 100, 1].into(),
            slot: 0,
            kind: AddressKind::Own,
            pool: 0,
            ports: [ports.clone(), ports.clone(), ports],
        }]
        .into(),
        denied: Prefixes::default(),
        forwards: crate::forward::Forwards::default(),
    }
}

/// An internal endpoint with port 1.
fn internal(host: u8) -> Endpoint {
    Endpoint::new([10, 0, 0, host].into(), 1)
}

fn flow(host: u8) -> Tuple {
    Tuple {
        protocol: PROTOCOL,
        source: internal(host),
        destination: Endpoint::new([203, 0, 113, host].into(), 53),
    }
}

const NOW: Time = Time(1_000_000);
