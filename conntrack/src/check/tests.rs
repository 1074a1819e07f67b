//! Every invariant can fail: tables in order, spoilt in one place each, and what the check says.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::age::At;
use crate::config::{AddressKind, Limits, Quotas};
use crate::forward::{Forward, Forwards};
use crate::layout::TableSize;
use crate::meta::Meta;
use crate::port_set::PortSet;
use crate::prefixes::Prefixes;
use crate::profile::{FilteringBehaviour, FlowTimers, MappingBehaviour, Pairing, Profile};
use crate::reload::PolicyChange;
use crate::restart::Identity;
use crate::rules::Rules;
use crate::signal::{PacketFacts, Realm, Signal};
use crate::tcp::State;
use crate::time::Random;
use crate::timers::Timers;
use crate::verdict::Refusal;

const NOW: Time = Time(1_000_000);

/// Counts up.
struct Counting(u64);

impl Random for Counting {
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

struct Rig {
    nat: Nat<'static>,
    policy: Policy,
}

/// Ports 1000 to 1999 of one address, `eim` but for TCP, a forward, quotas.
pub(crate) fn policy() -> Policy {
    let mut ports = PortSet::empty();
    ports.insert_range(1000, 1999);
    let mut quotas = Quotas::NONE;
    quotas.sessions = [Some(9); 3];
    let mut mapping = [MappingBehaviour::EndpointIndependent; 3];
    mapping[Protocol::Tcp.index()] = MappingBehaviour::EndpointDependent;
    Policy {
        profile: Profile {
            pool: 0,
            mapping,
            filtering: [FilteringBehaviour::AddressDependent; 3],
            pairing: [Pairing::Hard; 3],
            preserve_port: true,
            preserve_port_class: true,
            preserve_port_parity: false,
            timers: FlowTimers::default(),
        },
        others: Vec::new(),
        rules: Rules::default(),
        inbound_refresh: false,
        timers: Timers::RFC.into(),
        limits: Limits {
            quotas,
            ..Limits::DEFAULT
        },
        hold_down_max_percent: 25,
        addresses: vec![ExternalAddress {
            addr: Ipv4Addr::new(198, 51, 100, 1),
            slot: 0,
            kind: AddressKind::Own,
            pool: 0,
            ports: [ports.clone(), ports.clone(), ports],
        }]
        .into(),
        denied: Prefixes::default(),
        forwards: vec![Forward {
            protocol: Protocol::Tcp,
            external: ep([198, 51, 100, 1], 80),
            last_port: 80,
            targets: ep([10, 0, 0, 9], 80).into(),
            whole: false,
            allow: vec![],
        }]
        .into(),
    }
}

fn ep(addr: [u8; 4], port: u16) -> Endpoint {
    Endpoint::new(addr.into(), port)
}

impl Rig {
    /// Sessions 1 and 2 of mapping 1 (UDP, two remotes at one address), 3 of mapping 2 (TCP, its
    /// own), 4 from outside through the forward, 5 ended.
    fn new() -> Rig {
        let size = TableSize {
            sessions_max: 64,
            addresses_max: 2,
        };
        let memory = |words: usize| -> &'static [AtomicU64] {
            Box::leak((0..words).map(|_| AtomicU64::new(0)).collect())
        };
        let identity = Identity { boot_id: [1; 16] };
        let (words, owned) = (memory(size.words()), memory(size.owned_words()));
        let nat = Nat::create(words, owned, size, identity, &mut Counting(0)).unwrap();
        let policy = policy();
        let mut change = PolicyChange::new(&policy);
        while !nat.apply_policy(&policy, &mut change, NOW, 1000) {}
        let rig = Rig { nat, policy };
        let remote = |port| ep([203, 0, 113, 1], port);
        let inside = |host, port| ep([10, 0, 0, host], port);
        rig.packet(Realm::Internal, Signal::Udp, inside(1, 1500), remote(53));
        rig.packet(Realm::Internal, Signal::Udp, inside(1, 1500), remote(54));
        rig.packet(Realm::Internal, Signal::TcpSyn, inside(2, 1500), remote(80));
        let web = ep([198, 51, 100, 1], 80);
        rig.packet(Realm::External, Signal::TcpSyn, remote(7), web);
        rig.packet(Realm::Internal, Signal::TcpSyn, inside(3, 1600), remote(80));
        rig.end(5);
        rig
    }

    fn end(&self, session: u32) {
        let at = At {
            policy: &self.policy,
            now: NOW,
        };
        assert!(self.nat.end_if(&at, session, header::REMOVED, |_, _| true));
    }

    fn packet(&self, realm: Realm, signal: Signal, source: Endpoint, destination: Endpoint) {
        let made = self.translate(realm, signal, source, destination);
        assert_eq!(made, Ok(()), "{source} -> {destination}");
    }

    fn translate(
        &self,
        realm: Realm,
        signal: Signal,
        source: Endpoint,
        destination: Endpoint,
    ) -> Result<(), Refusal> {
        let protocol = match signal {
            Signal::Udp => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        let tuple = Tuple {
            protocol,
            source,
            destination,
        };
        let facts = PacketFacts {
            signal,
            length: 60,
            sequence: 0,
            acknowledgement: 0,
        };
        let (nat, random) = (&self.nat, &mut Counting(0));
        let hash = nat.hash(&tuple);
        let made = nat.translate(&self.policy, realm, &tuple, hash, facts, NOW, random);
        made.map(drop)
    }

    /// Changes a word of a half.
    fn half(&self, half: u32, word: usize, change: impl FnOnce(u64) -> u64) {
        let word = &self.nat.half(half).words[word];
        word.store(change(word.load(Relaxed)), Relaxed);
    }

    /// Changes the meaning of both halves of a session.
    fn meta(&self, session: u32, change: impl Fn(Meta) -> Meta) {
        for half in [2 * session, 2 * session + 1] {
            self.half(half, 0, |word| {
                word >> 32 << 32 | u64::from(change(Meta(word as u32)).0)
            });
        }
    }

    fn mapping(&self, number: usize, word: usize, by: u64) {
        self.nat.mappings.records[number][word].fetch_add(by, Relaxed);
    }

    fn tuple_hash(&self, half: u32) -> u64 {
        self.nat.keys.hash(&self.nat.half(half).read_held().key())
    }
}

fn place(port: u16) -> Place {
    Place {
        slot: 0,
        protocol: Protocol::Udp,
        port,
    }
}

type Spoil = fn(&mut Rig);

/// What the check says after each of these.
const SPOILT: &[(&str, Spoil)] = &[
    ("lock Some(3) is held", |rig| {
        rig.nat.locks.words[3].store(1, Relaxed);
    }),
    ("session 1: a half is being written", |rig| {
        rig.half(3, 0, |word| word | 1 << 32);
    }),
    ("session 1: the halves do not undo each other", |rig| {
        rig.half(3, 3, |word| word + 1);
    }),
    ("session 3: two TCP states", |rig| {
        rig.half(7, 0, |word| {
            let meta = Meta(word as u32).with_state(State::Established);
            word >> 32 << 32 | u64::from(meta.0)
        });
    }),
    ("is also half Some(2)", |rig| {
        for (from, to) in [(2, 4), (3, 5)] {
            for word in 1..=3 {
                let value = rig.nat.half(from).words[word].load(Relaxed);
                rig.half(to, word, |_| value);
            }
        }
    }),
    (
        "session 1: udp 10.0.0.1:1500 -> 203.0.113.1:53 is not found",
        |rig| {
            let hash = rig.tuple_hash(2);
            assert!(rig.nat.tuples.remove(hash, 2));
        },
    ),
    ("session 1: deltas", |rig| {
        rig.half(2, 4, |word| word ^ 1 << 40);
    }),
    ("session 4: opened by nobody", |rig| {
        rig.meta(4, |meta| meta.with_forward(0));
    }),
    ("session 1, mapping 1: the mapping is another one", |rig| {
        rig.mapping(1, 1, 1);
    }),
    (
        "session 1, mapping 2: the halves name two mappings",
        |rig| {
            rig.half(3, 5, |word| word + (1 << 32));
        },
    ),
    ("neither mapping nor forward", |rig| {
        rig.policy.forwards = Forwards::default();
    }),
    ("mapping 1: counts 3 sessions, has 2", |rig| {
        rig.mapping(1, 0, 1);
    }),
    ("mapping 1: counts 1 from outside, has None", |rig| {
        rig.mapping(1, 2, 1);
    }),
    ("its address is not the policy's", |rig| {
        rig.policy.addresses.edit(|list| list[0].slot = 1);
    }),
    ("mapping 1: refreshed in the future", |rig| {
        rig.mapping(1, 3, 1 << 40);
    }),
    ("mapping 1: is not found", |rig| {
        let mapping = rig.nat.mappings.read(1).unwrap();
        let hash = rig.nat.mapping_hash(mapping.protocol(), mapping.internal);
        assert!(rig.nat.mappings.index.remove(hash, 1));
    }),
    ("tuple index: a stray entry of half 10", |rig| {
        assert!(rig.nat.tuples.insert(77, 10));
    }),
    ("tuple index: 9 entries, 8 halves", |rig| {
        let hash = rig.tuple_hash(2);
        assert!(rig.nat.tuples.insert(hash, 2));
    }),
    ("endpoint index: 2 entries, 1 mappings", |rig| {
        assert!(rig.nat.mappings.index.insert(77, 1));
    }),
    (
        "filter list of 3, session 3: should not be in a list",
        |rig| {
            assert!(rig.nat.filters.insert(77, 3));
        },
    ),
    ("is in two places", |rig| {
        assert!(rig.nat.filters.insert(77, 1));
    }),
    ("filter lists have 0 of 2 sessions", |rig| {
        rig.nat.filters.clear()
    }),
    ("is linked wrongly", |rig| {
        let first = rig.nat.filters.entries().next().unwrap().2;
        rig.nat.half(2 * first + 1).set_link(3);
    }),
    ("forward 1: counts 2 sessions, has Some(1)", |rig| {
        rig.nat.forwards.records[1][1].fetch_add(1, Relaxed);
    }),
    ("forward 1: its list is locked", |rig| {
        rig.nat.forwards.records[1][3].store(1, Relaxed);
    }),
    ("forward 1: its list is wrong", |rig| {
        rig.nat.forwards.records[1][2].store(3 << 32 | 3, Relaxed);
    }),
    ("forward 1: lists 0 half-open, counts 1", |rig| {
        rig.nat.forwards.records[1][2].store(0, Relaxed);
    }),
    ("half-open listed of 1", |rig| {
        rig.nat.forwards.records[1][2].store(0, Relaxed);
        rig.nat.forwards.records[1][1].store(1, Relaxed);
    }),
    ("forward Some(2) has no port", |rig| {
        rig.nat.forwards.set_place(2, 0)
    }),
    ("no record, or another's", |rig| rig.nat.forwards.release(1)),
    ("subscriber 10.0.0.2: counts 3, has 2", |rig| {
        let mut keys = rig.nat.subscribers.keys.as_flattened().iter();
        let address = Ipv4Addr::new(10, 0, 0, 2).to_bits();
        let key = keys.find(|key| (key.load(Relaxed) >> 32) as u32 == address);
        key.unwrap().fetch_add(1, Relaxed);
    }),
    ("counts (3, 1) of udp, has (2, 1)", |rig| {
        for record in rig.nat.subscribers.records {
            if record[1].load(Relaxed) as u32 == 2 {
                record[1].fetch_add(1, Relaxed);
            }
        }
    }),
    ("subscriber 10.9.9.9: is not found", |rig| {
        let keys = rig.nat.subscribers.keys.as_flattened();
        let key = u64::from(Ipv4Addr::new(10, 9, 9, 9).to_bits()) << 32;
        let vacant = keys.iter().rfind(|key| key.load(Relaxed) == 0);
        vacant.unwrap().store(key, Relaxed);
    }),
    ("subscribers count 0 of", |rig| {
        for key in rig.nat.subscribers.keys.as_flattened() {
            key.store(0, Relaxed);
        }
    }),
    ("is Exclusive(1): ownership bit", |rig| {
        rig.nat.ports.owned[1024 + 1500 / 64].store(0, Relaxed);
    }),
    ("is Exclusive(9): nothing uses it", |rig| {
        rig.nat
            .ports
            .claim(place(1700), Cell::Exclusive(9))
            .unwrap();
    }),
    ("is Changing: nothing uses it", |rig| {
        rig.nat
            .ports
            .claim(place(1700), Cell::Exclusive(9))
            .unwrap();
        rig.nat.ports.set_cell(place(1700), Cell::Changing);
    }),
    ("the groups' counts are not their bits'", |rig| {
        rig.nat.ports.fills.words[24].fetch_add(1, Relaxed);
    }),
    ("0 held ports, 1 counted", |rig| {
        rig.nat.ports.tallies[1].fetch_add(1 << 32, Relaxed);
    }),
    (
        "the forward of 198.51.100.1:81 is not in the tables",
        |rig| {
            let mut other = rig.policy.forwards[0].clone();
            other.external.port = 81;
            other.last_port = 81;
            rig.policy.forwards.edit(|list| list.push(other));
        },
    ),
    ("free sessions: 4 of 5", |rig| {
        rig.nat.sessions.pop();
    }),
    ("free mappings: 2 of 3", |rig| {
        rig.nat.mappings.pool.pop();
    }),
    ("from outside told (1, 1), there are (0, 1)", |rig| {
        rig.nat.add(header::INBOUND_MAPPED, 1);
    }),
    ("totals tell (5, 1, 2", |rig| {
        rig.nat.add(header::SESSIONS, 1);
    }),
    ("6 created, 1 ended, 4 left", |rig| {
        rig.nat.add(header::CREATED, 1);
    }),
];

#[test]
fn tables_in_order_pass() {
    let rig = Rig::new();
    assert_eq!(rig.nat.check(&rig.policy, NOW), Ok(()));
}

#[test]
fn whatever_is_spoilt_is_seen() {
    let mut wrong = Vec::new();
    for (says, spoil) in SPOILT {
        let mut rig = Rig::new();
        spoil(&mut rig);
        let said = match rig.nat.check(&rig.policy, NOW) {
            Ok(()) => "nothing".to_owned(),
            Err(violation) => violation.to_string(),
        };
        if !said.contains(says) {
            wrong.push(format!("says \"{said}\", should \"{says}\""));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Fills all lines of a hash while something is done.
fn while_full<T>(
    index: &crate::index::Index<'_, AtomicU64>,
    hash: u64,
    numbers: std::ops::Range<u32>,
    act: impl FnOnce() -> T,
) -> T {
    let stuffed: Vec<u32> = numbers
        .cycle()
        .take_while(|&n| index.insert(hash, n))
        .collect();
    let done = act();
    for number in stuffed {
        assert!(index.remove(hash, number));
    }
    done
}

/// A session that finds no place in an index is refused, and everything that was taken for it is
/// given back.
#[test]
fn what_cannot_be_entered_leaves_nothing() {
    let there = ep([203, 0, 113, 9], 53);
    let mapped = ep([198, 51, 100, 1], 1777);
    let web = ep([198, 51, 100, 1], 80);
    let inside = ep([10, 0, 0, 4], 1777);
    for (realm, signal, source, destination, halves) in [
        (
            Realm::Internal,
            Signal::Udp,
            inside,
            there,
            [(inside, there), (there, mapped)],
        ),
        (
            Realm::Internal,
            Signal::TcpSyn,
            inside,
            there,
            [(inside, there), (there, mapped)],
        ),
        (
            Realm::External,
            Signal::TcpSyn,
            there,
            web,
            [(ep([10, 0, 0, 9], 80), there), (there, web)],
        ),
    ] {
        let rig = Rig::new();
        for (source_of_half, destination_of_half) in halves {
            let hash = rig.nat.hash(&Tuple {
                protocol: match signal {
                    Signal::Udp => Protocol::Udp,
                    _ => Protocol::Tcp,
                },
                source: source_of_half,
                destination: destination_of_half,
            });
            let refused = while_full(&rig.nat.tuples, hash, 20..128, || {
                rig.translate(realm, signal, source, destination)
            });
            assert_eq!(refused, Err(Refusal::SessionsFull), "{signal:?}");
            assert_eq!(rig.nat.check(&rig.policy, NOW), Ok(()), "{signal:?}");
        }
        rig.packet(realm, signal, source, destination);
        assert_eq!(rig.nat.check(&rig.policy, NOW), Ok(()));
    }
}

#[test]
fn a_session_without_a_place_in_its_filter_list_leaves_nothing() {
    let rig = Rig::new();
    let (inside, there) = (ep([10, 0, 0, 4], 1777), ep([203, 0, 113, 9], 53));
    rig.packet(Realm::Internal, Signal::Udp, inside, there);
    let session = rig.nat.sessions.highest();
    let [even, odd] = [2 * session, 2 * session + 1].map(|half| rig.nat.half(half).read_held());
    assert_eq!(even.tuple().source, inside);
    let key = rig.nat.filter_key(&even, &odd);
    rig.end(session);
    let refused = while_full(&rig.nat.filters, rig.nat.keys.hash(&key), 10..64, || {
        rig.translate(Realm::Internal, Signal::Udp, inside, there)
    });
    assert_eq!(refused, Err(Refusal::SessionsFull));
    assert_eq!(rig.nat.check(&rig.policy, NOW), Ok(()));
}

/// The list of a forward is another worker's for too long.
#[test]
fn a_handshake_that_cannot_be_listed_leaves_nothing() {
    let rig = Rig::new();
    let lock = &rig.nat.forwards.records[1][3];
    lock.store(1, Relaxed);
    let remote = ep([203, 0, 113, 9], 7);
    let web = ep([198, 51, 100, 1], 80);
    let refused = rig.translate(Realm::External, Signal::TcpSyn, remote, web);
    assert_eq!(refused, Err(Refusal::Contended));
    lock.store(0, Relaxed);
    assert_eq!(rig.nat.check(&rig.policy, NOW), Ok(()));
}

/// What a restart does where it finds no room to count a mapping.
#[test]
fn a_mapping_that_counts_no_more_is_otherwise_the_same() {
    let rig = Rig::new();
    let before = rig.nat.mappings.read(1).unwrap();
    rig.nat.mappings.set_uncounted(1);
    let after = rig.nat.mappings.read(1).unwrap();
    assert!(before.counted() && !after.counted());
    assert_eq!(
        (
            before.alive(),
            before.shared(),
            before.protocol(),
            before.sessions()
        ),
        (
            after.alive(),
            after.shared(),
            after.protocol(),
            after.sessions()
        )
    );
}
