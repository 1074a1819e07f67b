//! Sessions: making, ending and changing them. Look-ups are in `nat`.
//!
//! Session k is the halves 2k (even) and 2k + 1 (odd). The even half is the internal side's
//! outbound one, in a hairpin that of the side that opened. Its write bit is the session's: every
//! structural change of either half happens under it.
//!
//! A session becomes valid after both halves are in the index, and is made invalid before they are
//! taken out: whoever finds it valid finds it complete, and whoever ends it finds every entry.

pub(crate) mod outside;
pub(crate) mod removal;

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::age::{At, tick_differs};
use crate::endpoint::Tuple;
use crate::half::{HALF_WORDS, Half, Side, Snapshot, being_written, is_near};
use crate::hash::Key;
use crate::layout::header;
use crate::mapping::NewMapping;
use crate::memo::Remote;
use crate::meta::{Meta, TimeoutClass};
use crate::nat::Nat;
use crate::port::{Cell, Place};
use crate::signal::{PacketFacts, Signal};
use crate::subscriber::Quota;
use crate::tcp::{self, State};
use crate::verdict::{Direction, NextHop, Refusal, Rewrite, SessionRef};
use crate::word::{ROUNDS_MAX, Word};

/// A half as it was found.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub half: u32,
    pub snapshot: Snapshot,
}

/// A session to make.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// The even and the odd half.
    pub sides: [Side; 2],
    /// The external realm opens it: the first packet is the odd half's.
    pub from_outside: bool,
    /// The even half's mapping is made together with the session, on a port that may be
    /// overloaded; otherwise `sides` name what the caller has joined.
    pub own_mapping: Option<NewMapping>,
    /// The record of the forward that lets the external realm open it; 0 for none.
    pub forward: u32,
    /// The record of the subscriber that opens it, in which it and its mapping count; 0 for none.
    pub subscriber: u32,
    /// The set of timers.
    pub timers: u8,
}

impl Plan {
    /// Whose packet opens the session: 0 even, 1 odd.
    fn opener(&self) -> usize {
        usize::from(self.from_outside)
    }

    fn meta(&self, side: usize) -> Meta {
        let Side {
            tuple,
            direction,
            shared,
            ..
        } = self.sides[side];
        Meta::new(tuple.protocol, direction, State::opening(self.from_outside))
            .with_initiator(side == self.opener())
            .with_opened_outside(self.from_outside)
            .with_shared(shared)
            .with_forward(self.forward)
            .with_counted(self.subscriber != 0)
            .with_timers(self.timers)
    }
}

/// Why a session was not made.
pub(crate) enum NotMade {
    /// It exists: another worker was faster.
    There,
    /// The other half's tuple belongs to another session.
    Clash,
    /// The port is used for something else.
    Taken(Cell),
    /// A limit.
    Refused(Refusal),
}

impl From<Refusal> for NotMade {
    fn from(refusal: Refusal) -> NotMade {
        NotMade::Refused(refusal)
    }
}

impl<'m, W: Word> Nat<'m, W> {
    #[inline(always)]
    pub(crate) fn half(&self, number: u32) -> Half<'m, W> {
        Half {
            words: &self.halves[number as usize] as &'m [W; HALF_WORDS],
        }
    }

    /// The live session that has this tuple; an expired one is ended.
    pub(crate) fn live(&self, at: &At, tuple: &Tuple, hash: u64) -> Result<Option<Seen>, Refusal> {
        for round in 0..ROUNDS_MAX {
            let Some(seen) = self.find(tuple, hash)? else {
                return Ok(None);
            };
            if self.lives(at, &seen) {
                return Ok(Some(seen));
            }
            if self.is_current(&seen) {
                self.end_if_expired(at, seen.half / 2);
                return Ok(None);
            }
            W::pause(round);
        }
        Err(Refusal::Contended)
    }

    /// Has the session not expired, and not changed since it was seen?
    #[inline(always)]
    pub(crate) fn lives(&self, at: &At, seen: &Seen) -> bool {
        self.is_young(at, seen) && self.is_current(seen)
    }

    /// Is the half still as it was seen? Stamps say nothing about what was seen before until this
    /// is asked after them: the session may have ended, and its record be a younger one's.
    #[inline(always)]
    pub(crate) fn is_current(&self, seen: &Seen) -> bool {
        // Whoever starts the stamps anew has made the sequence odd before, with a release fence.
        W::fence(Acquire);
        self.half(seen.half).words[0].load(Relaxed) == seen.snapshot.control
    }

    /// Has the session not expired, by the stamps that its record has now? Enough for whoever
    /// holds a lock that keeps the session from ending.
    #[inline(always)]
    pub(crate) fn is_young(&self, at: &At, seen: &Seen) -> bool {
        let meta = seen.snapshot.meta();
        let timeout_ms = at.policy.timers.get(meta.timers()).timeout_ms(meta.class());
        self.is_alive(
            seen.half,
            meta,
            at.stamp(),
            timeout_ms,
            at.policy.inbound_refresh,
        )
    }

    /// Makes a session for its first packet, unless one of its tuples is in use.
    pub(crate) fn establish(
        &self,
        at: &At,
        plan: Plan,
        facts: PacketFacts,
    ) -> Result<Rewrite, NotMade> {
        let hashes = [0, 1].map(|side| self.hash(&plan.sides[side].tuple));
        let opener = plan.opener();
        let filter_hash = plan.filter_key().map(|key| self.keys.hash(&key));
        for round in 0..ROUNDS_MAX {
            let held = self
                .locks
                .hold([hashes[0], hashes[1], filter_hash.unwrap_or(hashes[0])])?;
            // Ending an expired session takes locks of its own.
            let mut expired = None;
            for side in [opener, 1 - opener] {
                match self.find(&plan.sides[side].tuple, hashes[side])? {
                    Some(seen) if !self.lives(at, &seen) => {
                        // Or it is being changed; then it is still there after a pause.
                        expired = Some(seen.half / 2);
                        break;
                    }
                    Some(_) if side == opener => return Err(NotMade::There),
                    Some(_) => return Err(NotMade::Clash),
                    None => {}
                }
            }
            let Some(session) = expired else {
                return self.make_session(at, plan, hashes, facts);
            };
            drop(held);
            if !self.end_if_expired(at, session) {
                // Another worker is at it.
                W::pause(round);
            }
        }
        Err(Refusal::Contended.into())
    }

    /// Under the locks of both tuples, which are not in use.
    fn make_session(
        &self,
        at: &At,
        mut plan: Plan,
        hashes: [u64; 2],
        facts: PacketFacts,
    ) -> Result<Rewrite, NotMade> {
        let number = self.sessions.pop().ok_or(Refusal::SessionsFull)?;
        if let Err(refused) = self.back(at, &mut plan) {
            self.sessions.push(number);
            return Err(refused);
        }
        let halves = [self.half(2 * number), self.half(2 * number + 1)];
        // Nobody else writes a session that is not valid.
        halves.into_iter().for_each(Half::begin);
        for (side, half) in halves.into_iter().enumerate() {
            half.fill(&plan.sides[side]);
            if side == plan.opener() {
                let (bytes, sequence) = (facts.length.into(), facts.sequence_high());
                half.reset_stamp(at.stamp(), 1, bytes, sequence);
            } else {
                half.reset_stamp(at.stamp(), 0, 0, 0);
            }
        }
        if let Err(refusal) = self.enter_opened(number, &plan, hashes) {
            halves[1].unlock(Meta(0));
            halves[0].unlock(Meta(0));
            self.unback(at, &plan);
            self.sessions.push(number);
            return Err(refusal.into());
        }
        let side = plan.opener();
        let made = halves[side].read_held();
        let odd = halves[1].unlock(plan.meta(1));
        let even = halves[0].unlock(plan.meta(0));
        self.add(header::SESSIONS, 1);
        self.add(header::CREATED, 1);
        // Another worker may end it now, and the record be another session's: not read again.
        let control = [even, odd][side];
        Ok(Snapshot { control, ..made }.rewrite(2 * number + side as u32))
    }

    /// Takes what the session needs beside its own record.
    fn back(&self, at: &At, plan: &mut Plan) -> Result<(), NotMade> {
        if plan.from_outside {
            self.admit(at, plan)?;
        }
        let Side { tuple, .. } = plan.sides[0];
        self.charge(at, plan.subscriber, Quota::Sessions, tuple.protocol)?;
        let backed = self.back_mapping(at, plan);
        if backed.is_err() && plan.subscriber != 0 {
            self.discharge(tuple.source.addr, Quota::Sessions, tuple.protocol);
        }
        backed
    }

    fn back_mapping(&self, at: &At, plan: &mut Plan) -> Result<(), NotMade> {
        if let Some(new) = &plan.own_mapping {
            let number = self.mappings.pool.pop().ok_or(Refusal::MappingsFull)?;
            let place = Place {
                slot: new.slot,
                protocol: new.protocol,
                port: new.external.port,
            };
            if let Err(refusal) = self.charge(at, plan.subscriber, Quota::Ports, new.protocol) {
                self.mappings.pool.push(number);
                return Err(refusal.into());
            }
            let taken = match self.ports.join(place).map_err(NotMade::Taken) {
                Ok(()) => self.charge_rate(at, plan.subscriber).map_err(|refusal| {
                    self.ports.leave(place);
                    NotMade::Refused(refusal)
                }),
                full => full,
            };
            if let Err(not_made) = taken {
                if new.counted {
                    self.discharge(new.internal.addr, Quota::Ports, new.protocol);
                }
                self.mappings.pool.push(number);
                return Err(not_made);
            }
            self.mappings.write(number, new, at.tick());
            self.add(header::MAPPINGS, 1);
            plan.sides[0].mapping = number;
            if plan.sides[1].direction == Direction::Inbound {
                plan.sides[1].mapping = number;
            }
        }
        Ok(())
    }

    fn unback(&self, at: &At, plan: &Plan) {
        if plan.from_outside {
            self.dismiss(plan.meta(0), plan.sides[0].mapping);
        }
        if plan.subscriber != 0 {
            let Side { tuple, .. } = plan.sides[0];
            self.discharge(tuple.source.addr, Quota::Sessions, tuple.protocol);
        }
        if plan.own_mapping.is_some() {
            self.leave_mapping(at, plan.sides[0].mapping);
            self.memos.void();
        }
    }

    /// Enters a new session everywhere it is found.
    fn enter_opened(&self, number: u32, plan: &Plan, hashes: [u64; 2]) -> Result<(), Refusal> {
        if !self.enter(number, plan.filter_key(), hashes) {
            return Err(Refusal::SessionsFull);
        }
        if !self.enlist_half_open(number, plan.meta(0)) {
            self.withdraw(number, plan.filter_key(), hashes);
            return Err(Refusal::Contended);
        }
        Ok(())
    }

    /// Enters both halves into the index, and the session into its filter list.
    pub(crate) fn enter(&self, number: u32, list: Option<Key>, hashes: [u64; 2]) -> bool {
        let halves = [2 * number, 2 * number + 1];
        if !self.tuples.insert(hashes[0], halves[0]) {
            return false;
        }
        if !self.tuples.insert(hashes[1], halves[1]) {
            self.tuples.remove(hashes[0], halves[0]);
            return false;
        }
        let listed = list.is_none_or(|key| self.enlist(number, &key));
        if !listed {
            self.tuples.remove(hashes[0], halves[0]);
            self.tuples.remove(hashes[1], halves[1]);
        }
        listed
    }

    /// Undoes [`Nat::enter`].
    fn withdraw(&self, number: u32, list: Option<Key>, hashes: [u64; 2]) {
        self.tuples.remove(hashes[0], 2 * number);
        self.tuples.remove(hashes[1], 2 * number + 1);
        if let Some(key) = list {
            self.delist(number, &key);
        }
    }

    /// Ends a session if it has expired.
    pub(crate) fn end_if_expired(&self, at: &At, session: u32) -> bool {
        self.end_if(at, session, header::EXPIRED, |even, _| {
            let meta = even.meta();
            let timeout_ms = at.policy.timers.get(meta.timers()).timeout_ms(meta.class());
            let refresh = at.policy.inbound_refresh;
            !self.is_alive(2 * session, meta, at.stamp(), timeout_ms, refresh)
        })
    }

    /// Ends a session of which the condition holds, counting it under `counter`. False if it does
    /// not hold, or the session is another worker's to change or end at the moment.
    pub(crate) fn end_if(
        &self,
        at: &At,
        session: u32,
        counter: usize,
        condition: impl Fn(&Snapshot, &Snapshot) -> bool,
    ) -> bool {
        let halves = [self.half(2 * session), self.half(2 * session + 1)];
        let control = halves[0].words[0].load(Acquire);
        if being_written(control) || !Meta(control as u32).valid() {
            return false;
        }
        let (Some(even), Some(odd)) = (halves[0].read(), halves[1].read()) else {
            return false;
        };
        if even.control != control || !odd.meta().valid() || !condition(&even, &odd) {
            return false;
        }
        // Locks come before write bits, so the filter list's is taken now.
        let listed = even.meta().shared().then(|| self.filter_key(&even, &odd));
        let _held = match listed.map(|key| self.locks.hold([self.keys.hash(&key)])) {
            Some(Ok(held)) => Some(held),
            Some(Err(_)) => return false,
            None => None,
        };
        if !halves[0].lock(control) {
            return false;
        }
        // A packet may have refreshed it meanwhile.
        if !condition(&even, &odd) || !self.delist_half_open(session, even.meta()) {
            halves[0].unlock_unchanged(control);
            return false;
        }
        halves[1].replace_meta(odd.meta().invalid());
        halves[0].unlock(even.meta().invalid());
        self.tuples.remove(self.keys.hash(&even.key()), 2 * session);
        self.tuples
            .remove(self.keys.hash(&odd.key()), 2 * session + 1);
        if let Some(key) = listed {
            self.delist(session, &key);
        }
        self.add(header::SESSIONS, -1);
        self.add(counter, 1);
        if even.meta().opened_outside() {
            self.dismiss(even.meta(), even.mapping());
        }
        if even.meta().counted() {
            let Tuple {
                protocol, source, ..
            } = even.tuple();
            self.discharge(source.addr, Quota::Sessions, protocol);
        }
        drop(_held);
        self.release_mappings(at, &even, &odd);
        self.sessions.push(session);
        true
    }

    fn release_mappings(&self, at: &At, even: &Snapshot, odd: &Snapshot) {
        let number = even.mapping();
        if number != 0 {
            let own = self
                .mappings
                .read(number)
                .filter(|mapping| !mapping.shared());
            self.leave_mapping(at, number);
            if let Some(mapping) = own {
                let remote = Remote {
                    protocol: mapping.protocol(),
                    endpoint: odd.tuple().source,
                    slot: mapping.slot,
                };
                self.memos.release(&remote, mapping.external.port);
            }
        }
        if odd.meta().direction() == Direction::Hairpin && odd.mapping() != 0 {
            self.leave_mapping(at, odd.mapping());
        }
    }

    /// Gives a session another set of timers. False if another worker is changing it.
    pub(crate) fn renew_timers(&self, session: u32, number: u8) -> bool {
        let [even, odd] = [self.half(2 * session), self.half(2 * session + 1)];
        let control = even.words[0].load(Acquire);
        let meta = Meta(control as u32);
        if !meta.valid() || meta.timers() == number {
            return true;
        }
        if being_written(control) || !even.lock(control) {
            return false;
        }
        let odd_meta = Meta(odd.words[0].load(Relaxed) as u32);
        odd.replace_meta(odd_meta.with_timers(number));
        even.unlock(meta.with_timers(number));
        true
    }

    /// Counts a packet of a half and refreshes what it refreshes.
    #[inline(always)]
    pub(crate) fn stamp(&self, at: &At, seen: &Seen, facts: PacketFacts) {
        self.stamp_half(at, self.half(seen.half), &seen.snapshot, facts);
    }

    /// As [`Nat::stamp`], for a half at hand.
    #[inline(always)]
    pub(crate) fn stamp_half(
        &self,
        at: &At,
        half: Half<'_, W>,
        snapshot: &Snapshot,
        facts: PacketFacts,
    ) {
        let sequence = facts.sequence_high();
        let (last, packets) = half.stamp(at.stamp(), facts.length, sequence);
        let meta = snapshot.meta();
        // A half that was only made with its session has not refreshed the mapping yet.
        if meta.shared() && (packets == 0 || tick_differs(last, at.stamp())) {
            let inbound = meta.direction() == Direction::Inbound;
            if !inbound || at.policy.inbound_refresh {
                self.mappings.touch(snapshot.mapping(), at.tick());
            }
        }
    }

    /// Moves a TCP session on, and notes the sequence number that a SYN begins with. `None` if the
    /// session is not the one that was seen any more.
    #[cold]
    pub(crate) fn transition(
        &self,
        seen: &Seen,
        facts: PacketFacts,
    ) -> Result<Option<Seen>, Refusal> {
        let [even, odd] = [self.half(seen.half & !1), self.half(seen.half | 1)];
        for round in 0..ROUNDS_MAX {
            let control = even.words[0].load(Acquire);
            if !being_written(control) {
                let meta = Meta(control as u32);
                if !meta.valid() {
                    return Ok(None);
                }
                if even.lock(control) {
                    let mut now = self.half(seen.half).read_held();
                    if !now.carries(&seen.snapshot.key()) {
                        even.unlock_unchanged(control);
                        return Ok(None);
                    }
                    let from_initiator = now.meta().initiator();
                    let state = self.judged(seen.half, meta, from_initiator, facts);
                    if state == meta.state() {
                        even.unlock_unchanged(control);
                        if seen.half & 1 == 0 {
                            now.control = control;
                        }
                        return Ok(Some(Seen {
                            half: seen.half,
                            snapshot: now,
                        }));
                    }
                    let odd_meta = Meta(odd.words[0].load(Relaxed) as u32);
                    if !self.move_half_open(seen.half / 2, meta, meta.with_state(state)) {
                        even.unlock_unchanged(control);
                        return Err(Refusal::Contended);
                    }
                    let odd_control = odd.replace_meta(odd_meta.with_state(state));
                    let even_control = even.unlock(meta.with_state(state));
                    // From here on another worker may end it: what was held is not read again.
                    now.control = [even_control, odd_control][seen.half as usize & 1];
                    return Ok(Some(Seen {
                        half: seen.half,
                        snapshot: now,
                    }));
                }
            }
            W::pause(round);
        }
        Err(Refusal::Contended)
    }

    /// The state after a segment, where its numbers bear it out. A RST that is not near what its
    /// direction sends changes nothing, nor does a first answer of the initiator that acknowledges
    /// another SYN than the responder's: whoever forged it cannot see the connection.
    /// A SYN of an opening connection begins its direction's numbers; in an open one it is another
    /// forgery, or left over.
    fn judged(&self, number: u32, meta: Meta, from_initiator: bool, facts: PacketFacts) -> State {
        let (state, half) = (meta.state(), self.half(number));
        let next = tcp::next(state, from_initiator, meta.opened_outside(), facts.signal);
        let begins = next != state || next.class() == TimeoutClass::TcpTransOpen;
        if facts.signal.is_syn() && begins {
            half.set_sequence(facts.sequence_high());
        }
        let wild = !is_near(half.sequence(), facts.sequence_high());
        if facts.signal == Signal::TcpRst && wild {
            return state;
        }
        let answers = state == State::SynSeen && from_initiator && next != state;
        if answers && !facts.acknowledges(self.half(number ^ 1).sequence()) {
            return state;
        }
        next
    }

    /// Remembers the next hop of a half. Nothing happens if the session has changed since `session`
    /// was given out, or is being changed.
    pub fn set_next_hop(&self, session: SessionRef, hop: NextHop) {
        if session.half < 2 || session.half as usize >= self.halves.len() {
            return;
        }
        let half = self.half(session.half);
        let even = self.half(session.half & !1);
        let control = even.words[0].load(Acquire);
        let seen = half.words[0].load(Acquire);
        let current = (seen >> 32) as u32 == session.sequence && Meta(seen as u32).valid();
        if !current || being_written(seen) || being_written(control) || !even.lock(control) {
            return;
        }
        if session.half & 1 == 0 {
            half.fill_next_hop(hop);
            half.unlock(Meta(seen as u32));
            return;
        }
        if half.words[0].load(Relaxed) == seen {
            half.begin();
            half.fill_next_hop(hop);
            half.unlock(Meta(seen as u32));
        }
        even.unlock_unchanged(control);
    }
}
