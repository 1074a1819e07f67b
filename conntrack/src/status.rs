//! What the tables tell: totals, and a listing of sessions. Never takes a write bit.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::half::Snapshot;
use crate::layout::header;
use crate::mapping::Mapping;
use crate::meta::TimeoutClass;
use crate::nat::Nat;
use crate::tcp::State;
use crate::time::Time;
use crate::verdict::Direction;
use crate::word::Word;

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
    /// Opened by the external realm.
    pub from_outside: bool,
    /// It goes by a forward's external endpoint.
    pub forwarded: bool,
    /// Milliseconds since the last packet of either direction.
    pub idle_ms: u32,
    /// Start of its mapping, to about a second; `None` without a dynamic mapping.
    pub started: Option<Time>,
}

impl SessionView {
    /// The external endpoint of its (even half's) mapping or forward.
    pub fn external(&self) -> Endpoint {
        self.outbound.source
    }
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
        (1..=self.sessions.highest()).filter_map(move |number| self.session_view(number, now))
    }

    fn session_view(&self, number: u32, now: Time) -> Option<SessionView> {
        let halves = [self.half(2 * number), self.half(2 * number + 1)];
        let (even, odd) = (halves[0].read()?, halves[1].read()?);
        let meta = even.meta();
        // Unchanged after both were read: they are of one session.
        let one = halves[0].words[0].load(Relaxed) == even.control;
        if !meta.valid() || !odd.meta().valid() || !one {
            return None;
        }
        let view = |snapshot: &Snapshot, side: usize| {
            let (source, destination) = snapshot.written();
            HalfView {
                tuple: snapshot.tuple(),
                source,
                destination,
                packets: halves[side].packets(),
                bytes: halves[side].bytes(),
            }
        };
        let idle = halves.map(|half| crate::age::idle_ms(now.0 as u32, half.last_seen()));
        let mapping = (even.mapping() != 0)
            .then(|| self.mappings.read(even.mapping()))
            .flatten();
        Some(SessionView {
            number,
            protocol: meta.protocol(),
            direction: meta.direction(),
            outbound: view(&even, 0),
            inbound: view(&odd, 1),
            state: (meta.protocol() == Protocol::Tcp).then(|| meta.state()),
            class: meta.class(),
            from_outside: meta.opened_outside(),
            forwarded: even.mapping() == 0 || odd.mapping() == 0,
            idle_ms: idle[0].min(idle[1]),
            started: mapping.map(|mapping| Time(u64::from(mapping.start) << 10)),
        })
    }
}
