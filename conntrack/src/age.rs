//! Time: which timeout a session is under, whether it is over, and the sweep that collects what is.
//!
//! Stamps of halves are milliseconds truncated to 32 bits, compared wrapping; a session must be
//! swept within 49 days of its end, or it would seem young again. Mappings and hold-downs
//! count in ticks of 1.024 s in 32 bits, which do not wrap in a century.

use crate::config::Policy;
use crate::endpoint::Protocol;
use crate::layout::{PORT_WORDS, header};
use crate::mapping::Mapping;
use crate::meta::{Meta, TimeoutClass};
use crate::nat::Nat;
use crate::time::Time;
use crate::verdict::Direction;
use crate::word::Word;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

/// A stamp this much ahead of the clock is another worker's clock, not 49 days of silence.
const CLOCK_SKEW_MS: u32 = 60_000;

const TICK_SHIFT: u32 = 10;

/// The policy and the time that something is judged by.
#[derive(Clone, Copy)]
pub(crate) struct At<'p> {
    pub policy: &'p Policy,
    pub now: Time,
}

impl At<'_> {
    #[inline(always)]
    pub fn stamp(&self) -> u32 {
        self.now.0 as u32
    }

    #[inline(always)]
    pub fn tick(&self) -> u32 {
        tick(self.now)
    }

    /// Is the stamp of a mapping young enough for it to live without a session, and to let the
    /// external realm open sessions? Rounded up to the next tick.
    pub fn is_fresh(&self, mapping: &Mapping) -> bool {
        let class = match mapping.protocol() {
            Protocol::Tcp => TimeoutClass::TcpIdle,
            Protocol::Udp => TimeoutClass::Udp,
            Protocol::Icmp => TimeoutClass::Icmp,
        };
        let timers = self.policy.timers.get(mapping.timers());
        let timeout = u64::from(timers.timeout_ms(class));
        self.now.0 < ((u64::from(mapping.stamp) + 1) << TICK_SHIFT) + timeout
    }

    /// Until which tick a mapping's endpoint is held down (RFC 6888 REQ-8), `None` for not at all:
    /// TCP has a state machine, `adf` and `edf` are excepted, and so is a pool of which as much
    /// as may be is held already. A hold-down that is over counts until it is swept: it still
    /// keeps its port from use, and to look for such ones would be to visit the whole pool.
    pub fn hold_until(&self, mapping: &Mapping, held: u32) -> Option<u32> {
        let policy = self.policy;
        let protocol = mapping.protocol();
        let due = mapping.open() && protocol != Protocol::Tcp && policy.timers.hold_down_ms > 0;
        let address = policy.address_in(mapping.slot).filter(|_| due)?;
        let room =
            address.addr == mapping.external.addr && held < policy.held_max(address, protocol);
        room.then(|| self.hold_end())
    }
}

impl At<'_> {
    /// The tick in which a hold-down that begins now is over: rounded up.
    pub fn hold_end(&self) -> u32 {
        let hold_down_ms = self.policy.timers.hold_down_ms;
        tick(self.now.plus_ms(hold_down_ms.into())) + 1
    }
}

/// A time in ticks.
#[inline(always)]
pub(crate) fn tick(time: Time) -> u32 {
    (time.0 >> TICK_SHIFT) as u32
}

/// When a tick began.
pub(crate) fn time_of(tick: u32) -> Time {
    Time(u64::from(tick) << TICK_SHIFT)
}

/// Did the tick change between two stamps?
#[inline(always)]
pub(crate) fn tick_differs(a: u32, b: u32) -> bool {
    (a ^ b) >> TICK_SHIFT != 0
}

/// Milliseconds since a stamp.
#[inline(always)]
pub(crate) fn idle_ms(now: u32, last_seen: u32) -> u32 {
    let idle = now.wrapping_sub(last_seen);
    if idle > u32::MAX - CLOCK_SKEW_MS {
        0
    } else {
        idle
    }
}

/// Do packets of a half keep its session alive? Inbound UDP and ICMP only if the policy says so
/// (RFC 4787 REQ-6).
#[inline(always)]
pub(crate) fn refreshes(protocol: Protocol, direction: Direction, inbound_refresh: bool) -> bool {
    inbound_refresh || protocol == Protocol::Tcp || direction != Direction::Inbound
}

/// What one call of [`Nat::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sessions, mappings and groups of 64 ports looked at.
    pub examined: u32,
    /// Sessions that had expired.
    pub sessions: u32,
    /// Mappings that had.
    pub mappings: u32,
    /// Ports whose hold-down was over.
    pub ports: u32,
    /// The sweep went past the end of the tables and starts again.
    pub wrapped: bool,
}

impl<W: Word> Nat<'_, W> {
    /// Collects expired sessions, then mappings, then hold-downs, `budget` records from where the
    /// last call of any worker stopped. Look-ups do not wait for it: an expired session is absent.
    /// What it gives back is capacity.
    pub fn sweep(&self, policy: &Policy, now: Time, budget: u32) -> Swept {
        let at = At { policy, now };
        let mut swept = Swept::default();
        let Some((from, to)) = self.next_slice(budget, &mut swept) else {
            return swept;
        };
        for position in from..to {
            swept.examined += 1;
            match self.section(position) {
                Section::Session(number) => {
                    swept.sessions += u32::from(self.end_if_expired(&at, number));
                }
                Section::Mapping(number) => {
                    swept.mappings += u32::from(self.end_mapping_if_idle(&at, number));
                }
                Section::Ports { table, word } => {
                    let (slot, protocol) = ((table / 3) as u16, Protocol::ALL[table % 3]);
                    if self.ports.held(slot, protocol) > 0 {
                        let ended = self.ports.end_holds(slot, protocol, word, at.tick());
                        swept.ports += ended;
                        if ended > 0 {
                            self.void_memos(&at, protocol);
                        }
                    }
                }
            }
        }
        swept
    }

    /// Frees all ports of an (address, protocol) whose hold-down is over: what a search does that
    /// found nothing. Were there any?
    pub(crate) fn end_all_holds(&self, at: &At, slot: u16, protocol: Protocol) -> bool {
        let ended = self.ports.end_all_holds(slot, protocol, at.tick()) > 0;
        if ended {
            self.void_memos(at, protocol);
        }
        ended
    }

    /// An endpoint outside overloading became free: where ports are overloaded, exhausted remotes
    /// may be so no more. Elsewhere there are no memos, and those of other protocols stay.
    pub(crate) fn void_memos(&self, at: &At, protocol: Protocol) {
        if at.policy.overloads(protocol) {
            self.memos.void();
        }
    }

    /// Positions 0.. are the sessions, then the mappings, then the port words of each table.
    fn section(&self, position: u64) -> Section {
        let records = u64::from(self.size.sessions_max);
        if position < records {
            return Section::Session(position as u32 + 1);
        }
        let position = position - records;
        if position < records {
            return Section::Mapping(position as u32 + 1);
        }
        let position = (position - records) as usize;
        Section::Ports {
            table: position / PORT_WORDS,
            word: position % PORT_WORDS,
        }
    }

    /// Takes the next slice for this worker, ending at the section's last used record at most and
    /// moving the cursor over the unused ones.
    fn next_slice(&self, budget: u32, swept: &mut Swept) -> Option<(u64, u64)> {
        let records = u64::from(self.size.sessions_max);
        let tables = u64::from(self.size.addresses_max) * 3;
        let cursor = &self.header[header::SWEEP];
        let mut from = cursor.load(Relaxed);
        loop {
            let (used_end, next_section) = if from < records {
                (u64::from(self.sessions.highest()), records)
            } else if from < 2 * records {
                (
                    records + u64::from(self.mappings.pool.highest()),
                    2 * records,
                )
            } else {
                (2 * records + tables * PORT_WORDS as u64, 0)
            };
            let to = (from + u64::from(budget)).min(used_end.max(from));
            let next = if to >= used_end { next_section } else { to };
            match cursor.compare_exchange(from, next, AcqRel, Relaxed) {
                Ok(_) => {
                    swept.wrapped = next == 0;
                    return (from < to).then_some((from, to));
                }
                Err(found) => from = found,
            }
        }
    }

    /// Is either half's last refreshing packet younger than the timeout?
    #[inline(always)]
    pub(crate) fn is_alive(
        &self,
        half: u32,
        meta: Meta,
        now: u32,
        timeout_ms: u32,
        inbound_refresh: bool,
    ) -> bool {
        let (protocol, direction) = (meta.protocol(), meta.direction());
        let other = match direction {
            Direction::Outbound => Direction::Inbound,
            Direction::Inbound => Direction::Outbound,
            Direction::Hairpin => Direction::Hairpin,
        };
        let young = |half, direction| {
            refreshes(protocol, direction, inbound_refresh)
                && idle_ms(now, self.half(half).last_seen()) < timeout_ms
        };
        young(half, direction) || young(half ^ 1, other)
    }
}

enum Section {
    Session(u32),
    Mapping(u32),
    Ports { table: usize, word: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_wraps() {
        assert_eq!(idle_ms(5, u32::MAX - 4), 10);
        assert_eq!(idle_ms(100, 100), 0);
        assert_eq!(idle_ms(100, 130), 0, "another worker's clock is ahead");
        assert_eq!(idle_ms(0, 1 << 31), 1 << 31);
    }

    #[test]
    fn ticks_differ_across_their_border_only() {
        assert!(!tick_differs(1024, 2047));
        assert!(tick_differs(2047, 2048));
        assert_eq!(tick(Time(u64::from(u32::MAX) << 10)), u32::MAX);
    }
}
