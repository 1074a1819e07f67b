//! Putting a changed policy into the tables, slice by slice.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use crate::age::At;
use crate::config::Policy;
use crate::endpoint::{Endpoint, Protocol};
use crate::half::Snapshot;
use crate::layout::{PORT_WORDS, TIMERS_WORDS, header};
use crate::mapping::Mapping;
use crate::meta::TimeoutClass;
use crate::nat::Nat;
use crate::port::{Cell, Place};
use crate::time::Time;
use crate::verdict::Direction;
use crate::word::Word;

/// A policy on its way into the tables: what the slices need to know, and how far they are.
/// Whoever controls the workers makes it (it allocates); a worker carries it through.
#[derive(Debug)]
pub struct PolicyChange {
    /// How many external ports the forwards before each one have, and all together.
    port_counts: Vec<u64>,
    /// The record of each forward; 0: none yet.
    records: Vec<u32>,
    /// Records that have their forward.
    taken: HashSet<u32>,
    position: u64,
    /// Something was in the way that a worker still used: another round.
    again: bool,
    /// Timers are published, memos are void.
    begun: bool,
    /// Where an unused record for a forward is sought first.
    next_record: u32,
}

impl PolicyChange {
    /// For this policy; nothing is done yet.
    pub fn new(policy: &Policy) -> PolicyChange {
        let mut port_counts = vec![0];
        for forward in policy.forwards.iter() {
            let before = port_counts.last().copied().unwrap_or(0);
            port_counts.push(before + forward.ports().len() as u64);
        }
        PolicyChange {
            port_counts,
            records: vec![0; policy.forwards.len()],
            taken: HashSet::new(),
            position: 0,
            again: false,
            begun: false,
            next_record: 1,
        }
    }

    /// For this policy, in the place of an earlier change that has not reached its end: goes on
    /// from where that is, and then once over everything.
    pub fn following(policy: &Policy, earlier: &PolicyChange) -> PolicyChange {
        PolicyChange {
            position: earlier.position,
            again: earlier.position > 0,
            ..PolicyChange::new(policy)
        }
    }
}

/// What lies at a position: sessions, then mappings, then the port words, then the forwards' ports.
enum Step {
    Session(u32),
    Mapping(u32),
    Ports {
        slot: u16,
        protocol: Protocol,
        word: usize,
    },
    Forward {
        place: usize,
        /// Which of its ports, from 0.
        port: u64,
    },
    End,
}

impl<W: Word> Nat<'_, W> {
    /// One slice of `budget` records; true when the policy is in the tables.
    ///
    /// Needed after [`Nat::create`] and [`Nat::open`], and after every change, once all workers
    /// judge by the new policy. Ends every session and mapping that contradicts it (an external
    /// address that is gone or whose slot is another's, a rule that does not translate the flow any more
    /// or by another pool, a forward that is gone, has another target or an allow-list that leaves the
    /// source out, a denied destination, a dynamic mapping where a forward is now), gives forwards their
    /// endpoints and all that goes on its set of timers, and keeps all else. `change` must be made for `policy`. The
    /// pool's port sets should leave out forwards' ports; else a busy pool can delay the end.
    pub fn apply_policy(
        &self,
        policy: &Policy,
        change: &mut PolicyChange,
        now: Time,
        budget: u32,
    ) -> bool {
        let at = At { policy, now };
        if !change.begun {
            change.begun = true;
            self.publish_timers(policy);
            self.memos.void();
            self.ports.fills.void();
        }
        for _ in 0..budget {
            match self.step(change) {
                Step::Session(session) => self.end_contradicting(&at, change, session),
                Step::Mapping(number) => self.end_contradicting_mapping(&at, change, number),
                Step::Ports {
                    slot,
                    protocol,
                    word,
                } => {
                    self.drop_claims(policy, slot, protocol, word);
                }
                Step::Forward { place, port } => self.fix_forward(policy, change, place, port),
                Step::End => {
                    self.memos.void();
                    self.ports.fills.void();
                    change.position = 0;
                    return !std::mem::take(&mut change.again);
                }
            }
            change.position += 1;
        }
        false
    }

    fn step(&self, change: &PolicyChange) -> Step {
        let mut rest = change.position;
        let sessions = u64::from(self.sessions.highest());
        if rest < sessions {
            return Step::Session(rest as u32 + 1);
        }
        rest -= sessions;
        let mappings = u64::from(self.mappings.pool.highest());
        if rest < mappings {
            return Step::Mapping(rest as u32 + 1);
        }
        rest -= mappings;
        let tables = u64::from(self.ports.slots()) * 3;
        if rest < tables * PORT_WORDS as u64 {
            let (table, word) = (rest as usize / PORT_WORDS, rest as usize % PORT_WORDS);
            return Step::Ports {
                slot: (table / 3) as u16,
                protocol: Protocol::ALL[table % 3],
                word,
            };
        }
        rest -= tables * PORT_WORDS as u64;
        let after = change.port_counts.partition_point(|&before| before <= rest);
        match after
            .checked_sub(1)
            .filter(|_| after < change.port_counts.len())
        {
            Some(place) => Step::Forward {
                place,
                port: rest - change.port_counts[place],
            },
            None => Step::End,
        }
    }

    /// For readers of the tables that hold no policy.
    fn publish_timers(&self, policy: &Policy) {
        for (number, row) in (0..).zip(self.timers.chunks_exact(TIMERS_WORDS)) {
            let timers = policy.timers.get(number);
            for class in TimeoutClass::ALL {
                row[class as usize].store(timers.timeout_ms(class).into(), Relaxed);
            }
        }
        self.header[header::INBOUND_REFRESH].store(policy.inbound_refresh.into(), Relaxed);
    }

    fn end_contradicting(&self, at: &At, change: &mut PolicyChange, session: u32) {
        let contradicts = |even: &Snapshot, odd: &Snapshot| {
            let meta = even.meta();
            // Whom a forward's allow-list must contain, if the session was opened through one.
            let opened_by = meta.opened_outside().then(|| odd.tuple().source.addr);
            let hairpin = meta.direction() == Direction::Hairpin;
            let there = even.tuple().destination.addr;
            !meta.opened_outside() && at.policy.denied.contains(there)
                || !meta.opened_outside() && !self.is_translated_so(at.policy, even)
                || !self.agrees(at, even, opened_by)
                || hairpin && !self.agrees(at, odd, Some(even.written().0.addr))
        };
        if self.end_if(at, session, header::REMOVED, contradicts) {
            return;
        }
        // Not ended though it should be: another worker is changing it.
        let halves = [2 * session, 2 * session + 1].map(|half| self.half(half).read());
        if let [Some(even), Some(odd)] = halves
            && even.meta().valid()
            && odd.meta().valid()
        {
            let timers = timers_of(at.policy, &even, &odd);
            if contradicts(&even, &odd) || !self.renew_timers(session, timers) {
                change.again = true;
            }
        }
    }

    /// Does the policy translate the flow of a session opened from inside as it is translated?
    fn is_translated_so(&self, policy: &Policy, even: &Snapshot) -> bool {
        let Some(profile) = policy.profile_for(&even.tuple()) else {
            return false;
        };
        let address = policy.address(even.written().0.addr);
        // A forward's endpoint is its target's whatever its pool is.
        even.mapping() == 0 || address.is_some_and(|address| address.pool == profile.pool)
    }

    /// May a half's external endpoint go on?
    fn agrees(&self, at: &At, half: &Snapshot, opened_by: Option<Ipv4Addr>) -> bool {
        let policy = at.policy;
        let (internal, external) = (half.tuple().source, half.written().0);
        let forward = policy.forwards.find(half.meta().protocol(), external);
        if half.mapping() != 0 {
            let mapping = self.mappings.read(half.mapping());
            return forward.is_none()
                && mapping.is_some_and(|m| m.agrees_with(policy) && !self.is_superseded(at, &m));
        }
        forward.is_some_and(|(_, forward)| {
            forward.leads(external, internal)
                && opened_by.is_none_or(|source| forward.allows(source))
                && policy.address(external.addr).is_some()
        })
    }

    fn end_contradicting_mapping(&self, at: &At, change: &mut PolicyChange, number: u32) {
        let Some(mapping) = self.mappings.read(number).filter(Mapping::alive) else {
            return;
        };
        let forward = at
            .policy
            .forwards
            .find(mapping.protocol(), mapping.external);
        let ends = forward.is_some()
            || !mapping.agrees_with(at.policy)
            || self.is_superseded(at, &mapping);
        let done = match mapping.pool(at.policy) {
            Some(pool) if !ends && mapping.shared() => self.renew_mapping(at, &mapping, pool),
            Some(_) if !ends => true,
            _ => self.end_mapping(at, &mapping),
        };
        change.again |= !done;
    }

    /// Lets a mapping that goes on be as the policy would make it. False if that must be tried again.
    fn renew_mapping(&self, at: &At, mapping: &Mapping, pool: u16) -> bool {
        let protocol = mapping.protocol();
        let profile = at.policy.mapping_profile(protocol, pool);
        let open = profile.is_some_and(|profile| profile.is_open(protocol));
        let timers = profile.unwrap_or(&at.policy.profile).timers.base;
        let right = (mapping.open(), mapping.timers()) == (open, timers);
        if !right && !self.mappings.renew(mapping, open, timers) {
            return false;
        }
        // Its first word has changed.
        let renewed = self.mappings.read(mapping.number);
        let renewed = renewed.filter(|renewed| right || renewed.alive());
        renewed.is_some_and(|renewed| self.find_again(at, &renewed, pool))
    }

    /// Has the internal endpoint another mapping in the same pool, which new sessions join (RFC 4787
    /// REQ-1 leaves room for one)? The address of this one was gone for a moment and came back, or
    /// came from another pool. What is over, or makes room for a forward, takes no other's place.
    fn is_superseded(&self, at: &At, mapping: &Mapping) -> bool {
        let Some(pool) = mapping.pool(at.policy).filter(|_| mapping.shared()) else {
            return false;
        };
        let (protocol, internal) = (mapping.protocol(), mapping.internal);
        let goes_on = |other: &Mapping| {
            other.pool(at.policy) == Some(pool)
                && (other.sessions() > 0 || at.is_fresh(other))
                && at.policy.forwards.find(protocol, other.external).is_none()
        };
        let found = self
            .some_shared_mapping(protocol, internal, goes_on)
            .or_else(|| self.shared_mapping(at.policy, pool, protocol, internal));
        found.is_some_and(|found| found.number != mapping.number)
    }

    /// Makes sure that an internal endpoint's mapping is found: one that has lost its address left
    /// the index, or a restart put it there in this one's place. False if that must be tried again.
    fn find_again(&self, at: &At, mapping: &Mapping, pool: u16) -> bool {
        let protocol = mapping.protocol();
        let found = || self.shared_mapping(at.policy, pool, protocol, mapping.internal);
        if found().is_some_and(|found| found.number == mapping.number) {
            return true;
        }
        let hash = self.mapping_hash(protocol, mapping.internal);
        let Ok(_held) = self.locks.hold([hash]) else {
            return false;
        };
        // Joined, it cannot end meanwhile and leave its entry behind.
        if !self.mappings.join(mapping) {
            return true;
        }
        if let Some(old) = self.stale_mapping(at.policy, protocol, mapping.internal) {
            self.mappings.index.remove(hash, old.number);
        }
        let done = match found() {
            Some(found) => found.number == mapping.number,
            None => self.mappings.index.insert(hash, mapping.number),
        };
        self.leave_mapping(at, mapping.number);
        done
    }

    /// Gives up claims of forwards that are gone and hold-downs of addresses that are.
    fn drop_claims(&self, policy: &Policy, slot: u16, protocol: Protocol, word: usize) {
        let mut owned = self.ports.owned_bits(slot, protocol, word);
        let address = policy.address_in(slot).map(|address| address.addr);
        while owned != 0 {
            let port = (word * 64) as u16 + owned.trailing_zeros() as u16;
            owned &= owned - 1;
            let place = Place {
                slot,
                protocol,
                port,
            };
            let cell = self.ports.cell(place);
            let stays = match cell {
                Cell::Fixed(_) => address.is_some_and(|addr| {
                    let external = Endpoint::new(addr, port);
                    policy.forwards.find(protocol, external).is_some()
                }),
                Cell::Held(_) => address.is_some(),
                _ => true,
            };
            if !stays
                && self.ports.drop_claim(place, cell)
                && let Cell::Fixed(number) = cell
            {
                self.forwards.release(number);
            }
        }
    }

    /// Gives one port of a forward its claim.
    fn fix_forward(&self, policy: &Policy, change: &mut PolicyChange, place: usize, port: u64) {
        let forward = &policy.forwards[place];
        let slot = policy.address(forward.external.addr);
        let Some(slot) = slot.map(|address| address.slot) else {
            return;
        };
        if slot >= self.ports.slots() {
            return;
        }
        let port = Place {
            slot,
            protocol: forward.protocol,
            port: forward.external.port + port as u16,
        };
        let cell = self.ports.cell(port);
        let has = match cell {
            Cell::Fixed(number) => number,
            _ => 0,
        };
        // The first of its ports that has a record gives it to all, so that sessions stay counted. One
        // that is another forward's by now, as when a range is cut in two, does not.
        let own = Some(has).filter(|has| *has != 0 && !change.taken.contains(has));
        let number = match change.records[place] {
            0 => own.or_else(|| self.unused_record(change)),
            number => Some(number),
        };
        // None is left while sessions of forwards before still count in theirs.
        let Some(number) = number else {
            change.again = true;
            return;
        };
        self.forwards.set_place(number, place as u32);
        if has != number {
            let free = has == 0 || self.ports.drop_claim(port, cell);
            if free && !change.taken.contains(&has) {
                // A forward before was wider. Who has other ports of it takes it up again.
                self.forwards.release(has);
            }
            if !free || self.ports.fix(port, number).is_err() {
                if change.records[place] == 0 {
                    self.forwards.release(number);
                }
                change.again = true;
                return;
            }
        }
        change.records[place] = number;
        change.taken.insert(number);
    }

    fn unused_record(&self, change: &mut PolicyChange) -> Option<u32> {
        let number = self.forwards.claim(change.next_record)?;
        change.next_record = number + 1;
        Some(number)
    }
}

/// The set of timers that a session has under a policy.
fn timers_of(policy: &Policy, even: &Snapshot, odd: &Snapshot) -> u8 {
    let protocol = even.meta().protocol();
    match even.meta().opened_outside() {
        true => {
            let external = odd.tuple().destination;
            policy.profile.timers.of(protocol, external.port)
        }
        false => {
            let flow = even.tuple();
            let profile = policy.profile_for(&flow).unwrap_or(&policy.profile);
            profile.timers.of(protocol, flow.destination.port)
        }
    }
}
