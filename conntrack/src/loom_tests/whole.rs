//! Whole operations of the gateway.

use super::*;
use crate::half::Snapshot;
use crate::mapping::Joined;
use crate::nat::Arrival;
use crate::open::Request;
use crate::port::Cell;
use crate::signal::{PacketFacts, Realm, Signal};
use crate::verdict::Rewrite;

const FACTS: PacketFacts = PacketFacts {
    signal: Signal::TcpSyn,
    length: 100,
    sequence: 0,
    acknowledgement: 1,
};

fn send(memory: &Memory, mapping: MappingBehaviour, tuple: &Tuple, now: Time) -> Rewrite {
    let (nat, policy) = (memory.nat(), policy(mapping));
    let facts = FACTS;
    let hash = nat.hash(tuple);
    nat.translate(
        policy,
        Realm::Internal,
        tuple,
        hash,
        facts,
        now,
        &mut Fixed(0),
    )
    .unwrap()
}

fn at(mapping: MappingBehaviour, now: Time) -> At<'static> {
    At {
        policy: policy(mapping),
        now,
    }
}

/// When a session that was opened at [`NOW`] is over.
fn over() -> Time {
    NOW.plus_ms(Timers::RFC.tcp_trans_open_timeout_ms.into())
}

fn join(memory: &Memory) -> Joined {
    let nat = memory.nat();
    let (at, tuple) = (at(EIM, NOW), flow(1));
    let arrival = Arrival {
        tuple: &tuple,
        hash: nat.hash(&tuple),
        facts: FACTS,
    };
    let request = Request {
        arrival: &arrival,
        profile: &at.policy.profile,
        subscriber: 0,
    };
    let joined = nat.join_shared_mapping(&at, &request, true, &mut Fixed(0));
    joined.ok().unwrap()
}

/// One mapping with so many sessions, found, on its own port.
fn assert_one_mapping(memory: &Memory, external: Endpoint, sessions: u32) {
    let nat = memory.nat();
    let mapping = nat
        .shared_mapping(policy(EIM), 0, PROTOCOL, internal(1))
        .unwrap();
    assert_eq!((mapping.external, mapping.sessions()), (external, sessions));
    assert_eq!(memory.counter(header::MAPPINGS), 1);
    assert_eq!(nat.mappings.index.entries().count(), 1);
    let cell = nat.ports.cell(mapping.place());
    assert_eq!(cell, Cell::Exclusive(mapping.number));
    memory.assert_ports(1);
}

/// Two workers, one internal endpoint without a mapping: one makes it, both use it.
#[test]
fn loom_a_mapping_is_made_once() {
    race(
        Some(3),
        |_| {},
        join,
        join,
        |memory, left, right| {
            assert!(left.external == right.external && left.made ^ right.made);
            assert_one_mapping(memory, left.external, 2);
        },
    );
}

/// The last session leaves a TCP mapping, which ends, and another one wants it: it gets that
/// mapping or a new one.
#[test]
fn loom_a_mapping_that_ends_is_made_again() {
    race(
        Some(2),
        |memory| assert!(join(memory).made),
        |memory| memory.nat().leave_mapping(&at(EIM, NOW), 1),
        join,
        |memory, (), joined| assert_one_mapping(memory, joined.external, 1),
    );
}

fn assert_one_session(memory: &Memory, left: Rewrite, right: Rewrite) {
    assert_eq!(
        (left.source, left.session.half),
        (right.source, right.session.half)
    );
    assert_eq!(memory.counter(header::SESSIONS), 1);
    assert_eq!(memory.counter(header::MAPPINGS), 1);
    assert_eq!(memory.nat().tuples.entries().count(), 2);
    memory.assert_ports(1);
}

/// The known killer: packets of one new flow on two workers.
#[test]
fn loom_one_new_flow_is_one_session_in_eim() {
    let send = |memory: &Memory| send(memory, EIM, &flow(1), NOW);
    race(
        Some(2),
        |_| {},
        send,
        send,
        |memory, left, right| {
            assert_one_session(memory, left, right);
            assert_one_mapping(memory, left.source, 1);
        },
    );
}

#[test]
fn loom_one_new_flow_is_one_session_in_edm() {
    let send = |memory: &Memory| send(memory, EDM, &flow(1), NOW);
    race(Some(2), |_| {}, send, send, assert_one_session);
}

fn found(memory: &Memory, tuple: &Tuple) -> Option<Snapshot> {
    let nat = memory.nat();
    let seen = nat.find(tuple, nat.hash(tuple));
    seen.ok().unwrap().map(|seen| seen.snapshot)
}

fn open(memory: &Memory) {
    send(memory, EDM, &flow(1), NOW);
}

/// A session ends and its record becomes another one's, while somebody looks it up: what is found
/// is the session that was asked for, whole.
#[test]
fn loom_a_look_up_never_finds_another_session() {
    race(
        Some(2),
        open,
        |memory| {
            assert!(memory.nat().end_if_expired(&at(EDM, over()), 1));
            send(memory, EDM, &flow(2), over());
        },
        |memory| {
            for host in [1, 2] {
                if let Some(seen) = found(memory, &flow(host)) {
                    let (source, destination) = seen.written();
                    assert_eq!(seen.tuple(), flow(host));
                    assert_eq!(destination, flow(host).destination);
                    assert_eq!(source.addr, policy(EDM).addresses[0].addr);
                }
            }
        },
        |memory, (), ()| {
            assert!(found(memory, &flow(1)).is_none() && found(memory, &flow(2)).is_some());
            assert_eq!(memory.nat().tuples.entries().count(), 2);
            memory.assert_ports(1);
        },
    );
}

/// A sweep whose clock says that the session is over, and a packet whose clock says that it is
/// not: the packet passes; the session goes on, is over after it, or is made anew.
#[test]
fn loom_expiry_against_use() {
    race(
        Some(1),
        open,
        |memory| memory.nat().end_if_expired(&at(EDM, over()), 1),
        |memory| send(memory, EDM, &flow(1), Time(over().0 - 1)),
        |memory, ended, passed| {
            let seen = found(memory, &flow(1));
            assert!(ended || seen.is_some());
            assert!(seen.is_none_or(|seen| seen.written().0 == passed.source));
            let sessions = u64::from(seen.is_some());
            assert_eq!(memory.counter(header::SESSIONS), sessions);
            assert_eq!(memory.counter(header::MAPPINGS), sessions);
            assert_eq!(memory.nat().tuples.entries().count() as u64, 2 * sessions);
            memory.assert_ports(sessions);
        },
    );
}

/// A flow begins anew when its session is over, in the same record: no packet is given the old
/// session because the record's stamps are young again.
#[test]
fn loom_a_session_that_is_over_is_not_used() {
    race(
        Some(1),
        open,
        |memory| {
            assert!(memory.nat().end_if_expired(&at(EDM, over()), 1));
            send(memory, EDM, &flow(1), over()).session
        },
        |memory| {
            let nat = memory.nat();
            let seen = nat.find(&flow(1), nat.hash(&flow(1))).ok().unwrap();
            let live = seen.filter(|seen| nat.lives(&at(EDM, over()), seen));
            live.map(|seen| seen.snapshot.sequence())
        },
        |_, new, live| assert!(live.is_none_or(|sequence| sequence == new.sequence)),
    );
}

/// Two workers end one session: it ends once.
#[test]
fn loom_a_session_ends_once() {
    let end = |memory: &Memory| memory.nat().end_if_expired(&at(EIM, over()), 1);
    race(
        Some(2),
        |memory| {
            send(memory, EIM, &flow(1), NOW);
        },
        end,
        end,
        |memory, left, right| {
            assert!(left ^ right);
            assert_eq!(memory.counter(header::SESSIONS), 0);
            assert_eq!(memory.counter(header::MAPPINGS), 0);
            assert_eq!(memory.nat().sessions.free().count(), 1);
            assert_eq!(memory.nat().filters.entries().count(), 0);
            memory.assert_ports(0);
        },
    );
}
