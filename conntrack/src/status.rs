//! What the tables tell: totals, sessions, mappings. Never takes a write bit.

pub(crate) mod mark;
pub(crate) mod occupant;

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::age::{idle_ms, refreshes, time_of};
use crate::config::Policy;
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::half::Snapshot;
use crate::layout::header;
use crate::mapping::Mapping;
use crate::meta::TimeoutClass;
use crate::nat::Nat;
use crate::profile::MappingBehaviour;
use crate::tcp::State;
use crate::time::Time;
use crate::verdict::Direction;
use crate::word::Word;
use mark::Mark;

/// Looks at a session that changes under them: each change takes a packet.
const LOOKS: u32 = 16;

/// Counts over the tables. Each is exact when no worker is at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sessions, expired but not yet swept ones included.
    pub sessions: u64,
    /// Of these, opened from outside.
    pub sessions_inbound: u64,
    /// And of these, connections of forwards whose handshake is not over.
    pub sessions_half_open: u64,
    /// Dynamic mappings.
    pub mappings: u64,
    /// External ports of dynamic mappings, by [`Protocol::index`].
    pub ports_in_use: [u64; 3],
    /// External ports in hold-down, by [`Protocol::index`].
    pub ports_held: [u64; 3],
    /// Sessions made since the tables were.
    pub created: u64,
    /// Sessions that ended by time.
    pub expired: u64,
    /// Sessions that ended by a change of policy.
    pub removed: u64,
    /// Half-open connections of forwards that gave way to newer ones.
    pub evicted: u64,
}

/// One direction of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfView {
    /// The tuple of its packets as they arrive.
    pub tuple: Tuple,
    /// The source endpoint they leave with.
    pub source: Endpoint,
    /// The destination endpoint they leave with.
    pub destination: Endpoint,
    /// Packets; wraps at 2^32.
    pub packets: u32,
    /// Bytes; wraps at 2^48.
    pub bytes: u64,
    /// Milliseconds since its last packet, or since the session began.
    pub idle_ms: u32,
}

/// A session as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its number, 1 to `sessions_max`: its halves are twice it and the next.
    pub number: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// [`Direction::Outbound`], or [`Direction::Hairpin`] for a session between internal hosts.
    pub direction: Direction,
    /// The internal realm's packets; in a hairpin those of the side that opened.
    pub outbound: HalfView,
    /// The packets of the other side.
    pub inbound: HalfView,
    /// TCP only.
    pub state: Option<State>,
    /// The timeout it is under.
    pub class: TimeoutClass,
    /// The number of its set of timers.
    pub timers: u8,
    /// Opened by the external realm.
    pub from_outside: bool,
    /// It goes by a forward's external endpoint.
    pub forwarded: bool,
    /// Milliseconds since the last packet of either direction.
    pub idle_ms: u32,
    /// Start of its mapping, to about a second; `None` without a dynamic mapping. In `edm` that is
    /// the session's own; an `eim` mapping may be older than its session.
    pub started: Option<Time>,
}

impl SessionView {
    /// The external endpoint of its (even half's) mapping or forward.
    pub fn external(&self) -> Endpoint {
        self.outbound.source
    }

    /// Milliseconds until it expires if no packet comes; 0: it has expired, and only still takes
    /// room.
    pub fn expires_in_ms(&self, policy: &Policy) -> u32 {
        let other = match self.direction {
            Direction::Hairpin => Direction::Hairpin,
            _ => Direction::Inbound,
        };
        let halves = [(&self.outbound, self.direction), (&self.inbound, other)];
        let refresh = policy.inbound_refresh;
        let refreshing = halves.into_iter().filter_map(|(half, direction)| {
            refreshes(self.protocol, direction, refresh).then_some(half.idle_ms)
        });
        let idle_ms = refreshing.min().unwrap_or(u32::MAX);
        let timers = policy.timers.get(self.timers);
        timers.timeout_ms(self.class).saturating_sub(idle_ms)
    }
}

/// A dynamic mapping as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingView {
    /// Its number, 1 to `sessions_max`.
    pub number: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The internal host's endpoint.
    pub internal: Endpoint,
    /// The endpoint that Egret assigned.
    pub external: Endpoint,
    /// `eim`: for all remote endpoints; `edm`: one session's.
    pub behaviour: MappingBehaviour,
    /// Sessions that use it.
    pub sessions: u32,
    /// Of these, opened from outside.
    pub sessions_inbound: u16,
    /// When it was made, to about a second.
    pub started: Time,
    /// When a packet last kept it alive, to about a second. Followed in `eim` only: an `edm` mapping
    /// lives as long as its session.
    pub refreshed: Time,
}

impl<W: Word> Nat<'_, W> {
    /// The current counts.
    pub fn totals(&self) -> Totals {
        let read = |counter: usize| self.header[counter].load(Relaxed);
        let slots = 0..self.ports.slots();
        Totals {
            sessions: read(header::SESSIONS),
            sessions_inbound: read(header::SESSIONS_INBOUND),
            sessions_half_open: read(header::HALF_OPEN),
            mappings: read(header::MAPPINGS),
            ports_in_use: [0, 1, 2].map(|i| read(header::PORTS_IN_USE + i)),
            ports_held: Protocol::ALL.map(|protocol| {
                slots
                    .clone()
                    .map(|slot| u64::from(self.ports.held(slot, protocol)))
                    .sum()
            }),
            created: read(header::CREATED),
            expired: read(header::EXPIRED),
            removed: read(header::REMOVED),
            evicted: read(header::EVICTED),
        }
    }

    /// Which external address the living mappings of each slot have: after a restart, addresses that
    /// are still there keep their slots, and with them their sessions.
    pub fn placed(&self) -> Vec<(u16, Ipv4Addr)> {
        let mut placed = vec![None; usize::from(self.ports.slots())];
        for number in 1..=self.mappings.pool.highest() {
            if let Some(mapping) = self.mappings.read(number).filter(Mapping::alive)
                && let Some(place) = placed.get_mut(usize::from(mapping.slot))
            {
                *place = Some(mapping.external.addr);
            }
        }
        let some = |(slot, addr): (u16, Option<Ipv4Addr>)| Some((slot, addr?));
        (0..).zip(placed).filter_map(some).collect()
    }

    /// All sessions, expired but not yet swept ones included, each as it was when it was reached.
    pub fn sessions(&self, now: Time) -> impl Iterator<Item = SessionView> {
        (1..=self.session_records()).filter_map(move |number| self.session(number, now))
    }

    /// The highest number that a session has had.
    pub fn session_records(&self) -> u32 {
        self.sessions.highest()
    }

    /// The session of a number, expired or not. `None`: there is none, or it kept changing.
    pub fn session(&self, number: u32, now: Time) -> Option<SessionView> {
        self.look(number, |even, odd| {
            self.session_view(number, even, odd, now)
        })
    }

    /// The mark of a session that has not expired. Cheaper than [`Nat::session`].
    pub fn mark(&self, policy: &Policy, number: u32, now: Time) -> Option<Mark> {
        let marked = |even: &Snapshot, odd: &Snapshot| {
            let meta = even.meta();
            let timeout_ms = policy.timers.get(meta.timers()).timeout_ms(meta.class());
            let refresh = policy.inbound_refresh;
            self.is_alive(2 * number, meta, now.0 as u32, timeout_ms, refresh)
                .then(|| Mark::of(even, odd))
        };
        self.look(number, marked).flatten()
    }

    /// What `tell` says of a session: stamps and mapping, which it may read, are another one's if
    /// this one has ended meanwhile.
    fn look<T>(&self, number: u32, tell: impl Fn(&Snapshot, &Snapshot) -> T) -> Option<T> {
        for _ in 0..LOOKS {
            let (even, odd) = self.pair(number)?;
            let told = tell(&even, &odd);
            W::fence(Acquire);
            if self.half(2 * number).words[0].load(Relaxed) == even.control {
                return Some(told);
            }
        }
        None
    }

    /// Both halves of a session's record, if they are valid.
    fn pair(&self, number: u32) -> Option<(Snapshot, Snapshot)> {
        if number == 0 || number > self.session_records() {
            return None;
        }
        let valid = |half| {
            let snapshot = self.half(half).read();
            snapshot.filter(|snapshot| snapshot.meta().valid())
        };
        Some((valid(2 * number)?, valid(2 * number + 1)?))
    }

    /// What two halves of a session tell, with its stamps as they are now.
    pub(crate) fn session_view(
        &self,
        number: u32,
        even: &Snapshot,
        odd: &Snapshot,
        now: Time,
    ) -> SessionView {
        let halves = [self.half(2 * number), self.half(2 * number + 1)];
        let meta = even.meta();
        let view = |snapshot: &Snapshot, side: usize| {
            let (source, destination) = snapshot.written();
            HalfView {
                tuple: snapshot.tuple(),
                source,
                destination,
                packets: halves[side].packets(),
                bytes: halves[side].bytes(),
                idle_ms: idle_ms(now.0 as u32, halves[side].last_seen()),
            }
        };
        let (outbound, inbound) = (view(even, 0), view(odd, 1));
        let mapping = (even.mapping() != 0)
            .then(|| self.mappings.read(even.mapping()))
            .flatten();
        SessionView {
            number,
            protocol: meta.protocol(),
            direction: meta.direction(),
            outbound,
            inbound,
            state: (meta.protocol() == Protocol::Tcp).then(|| meta.state()),
            class: meta.class(),
            timers: meta.timers(),
            from_outside: meta.opened_outside(),
            forwarded: even.mapping() == 0 || odd.mapping() == 0,
            idle_ms: outbound.idle_ms.min(inbound.idle_ms),
            started: mapping.map(|mapping| time_of(mapping.start)),
        }
    }

    /// The highest number that a mapping has had.
    pub fn mapping_records(&self) -> u32 {
        self.mappings.pool.highest()
    }

    /// The living mapping of a number.
    pub fn mapping(&self, number: u32) -> Option<MappingView> {
        if number == 0 || number > self.mapping_records() {
            return None;
        }
        let mapping = self.mappings.read(number).filter(Mapping::alive)?;
        Some(self.mapping_view(&mapping))
    }

    pub(crate) fn mapping_view(&self, mapping: &Mapping) -> MappingView {
        MappingView {
            number: mapping.number,
            protocol: mapping.protocol(),
            internal: mapping.internal,
            external: mapping.external,
            behaviour: match mapping.shared() {
                true => MappingBehaviour::EndpointIndependent,
                false => MappingBehaviour::EndpointDependent,
            },
            sessions: mapping.sessions(),
            sessions_inbound: self.mappings.inbound(mapping.number),
            started: time_of(mapping.start),
            refreshed: time_of(mapping.stamp),
        }
    }
}
