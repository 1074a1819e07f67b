//! How much of the tables the outside may fill: counts, limits, and what gives way.
//!
//! A session opened from outside counts in the table's share for all of them (a quarter), and
//! either in its mapping and the share of all mappings (an eighth), so that a scan of `eif` mappings
//! leaves room for forwards, or in its forward. A forward's handshakes that are not over are
//! *half-open*; they have a limit of their own and a share (an eighth), so that a flood of forged
//! SYNs leaves room for connections.
//!
//! A limit that a SYN to a forward meets costs the forward's oldest half-open connection. It is not
//! live yet: nobody has shown that its initiator exists. Refusing instead would shut the forward to
//! everyone for as long as the flood lasts, since a forged handshake waits for the whole of
//! `tcp-trans-open`. The oldest, not any: an honest handshake needs one round trip, and gets
//! `limit / rate` of time whatever else happens, while with a victim drawn by lot some are lost at
//! any rate. Because of this the timer of half-open connections need not be shorter than RFC 5382
//! REQ-5 asks. Where a share that forwards have in common is used up, the one with the most half-open
//! connections gives way: else floods at four forwards would shut all others. Everything else that meets a limit is refused; nothing that was open ever gives way.
//!
//! | word | upper 32 bits | lower 32 bits |
//! | --- | --- | --- |
//! | 0 | 0 | place in the policy + 1, 0: not a forward's |
//! | 1 | half-open | sessions opened from outside |
//! | 2 | oldest half-open session | newest |
//! | 3 | lock of the list | |
//!
//! The list goes by the links of the halves, which a forward's sessions do not need for filtering:
//! the even half's is the next newer session, the odd half's the next older. Its lock is taken last,
//! after stripes and write bits, and nothing waits while it is held.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::age::At;
use crate::count::{HIGH, LOW, take};
use crate::forward::FORWARDS_MAX;
use crate::layout::{FORWARD_WORDS, header};
use crate::lock;
use crate::meta::Meta;
use crate::nat::Nat;
use crate::session::{NotMade, Plan};
use crate::signal::PacketFacts;
use crate::verdict::{Refusal, Rewrite};
use crate::word::Word;

const PLACE: usize = 0;
const COUNTS: usize = 1;
const ENDS: usize = 2;
const LOCK: usize = 3;

/// Forwards that one SYN looks at for one that should give way.
const GREEDY_LOOKS: u32 = 64;
/// Half-open connections that one SYN may push out: more than one only if another worker takes the
/// room.
const EVICTIONS_MAX: usize = 3;

/// Records of forwards. They outlive a change of policy, and are given to another forward only when
/// no session counts in them any more.
pub(crate) struct Forwards<'m, W> {
    pub records: &'m [[W; FORWARD_WORDS]],
}

impl<W: Word> Forwards<'_, W> {
    /// Is it a record's number?
    pub fn is_valid(&self, number: u32) -> bool {
        number != 0 && (number as usize) < self.records.len()
    }

    fn record(&self, number: u32) -> &[W; FORWARD_WORDS] {
        // Numbers come from cells and sessions, which a restart has checked.
        &self.records[number as usize]
    }

    /// Where in the policy the forward probably is.
    pub fn place(&self, number: u32) -> u32 {
        let place = self
            .records
            .get(number as usize)
            .map_or(0, |r| r[PLACE].load(Relaxed));
        (place as u32).saturating_sub(1)
    }

    /// A record for a forward that has none yet, sought from `first` on: whoever gives out many goes
    /// on where the last one was. Only whoever carries a policy through.
    pub fn claim(&self, first: u32) -> Option<u32> {
        let unused = |record: &[W; FORWARD_WORDS]| {
            [PLACE, COUNTS]
                .iter()
                .all(|&word| record[word].load(Acquire) == 0)
        };
        let max = FORWARDS_MAX as u32;
        let first = first.clamp(1, max);
        (first..=max)
            .chain(1..first)
            .find(|&number| unused(self.record(number)))
    }

    /// Notes where in the policy the forward is.
    pub fn set_place(&self, number: u32, place: u32) {
        self.record(number)[PLACE].store(u64::from(place) + 1, Relaxed);
    }

    /// The forward is gone; sessions may still count in its record.
    pub fn release(&self, number: u32) {
        if self.is_valid(number) {
            self.record(number)[PLACE].store(0, Release);
        }
    }

    /// Is it a forward's?
    pub fn is_claimed(&self, number: u32) -> bool {
        self.is_valid(number) && self.record(number)[PLACE].load(Relaxed) != 0
    }

    /// Is its list held?
    pub fn is_locked(&self, number: u32) -> bool {
        self.record(number)[LOCK].load(Relaxed) != 0
    }

    /// Forgets everything. Only whoever holds the tables alone.
    pub fn clear(&self) {
        for word in self.records.as_flattened() {
            word.store(0, Relaxed);
        }
    }

    /// Sessions opened from outside, and how many of them are half-open.
    pub fn counts(&self, number: u32) -> (u32, u32) {
        let counts = self.record(number)[COUNTS].load(Relaxed);
        (counts as u32, (counts >> HIGH) as u32)
    }

    fn count(&self, number: u32, shift: u32, by: i64) {
        self.record(number)[COUNTS].fetch_add((by << shift) as u64, Relaxed);
    }

    /// Oldest and newest half-open session, 0 for none.
    pub fn ends(&self, number: u32) -> (u32, u32) {
        let ends = self.record(number)[ENDS].load(Relaxed);
        ((ends >> 32) as u32, ends as u32)
    }
}

impl<W: Word> Nat<'_, W> {
    /// Makes a session that the external realm opens, at the cost of a half-open one if it must be.
    pub(crate) fn establish_from_outside(
        &self,
        at: &At,
        plan: &Plan,
        facts: PacketFacts,
    ) -> Result<Rewrite, NotMade> {
        let handshake = plan.meta(0).half_open();
        for _ in 0..EVICTIONS_MAX {
            match self.establish(at, *plan, facts) {
                Err(NotMade::Refused(limit))
                    if handshake && self.make_way(at, plan.forward, limit) => {}
                made => return made,
            }
        }
        self.establish(at, *plan, facts)
    }

    /// Counts a session that is about to be made everywhere it counts.
    pub(crate) fn admit(&self, at: &At, plan: &Plan) -> Result<(), Refusal> {
        let quarter = self.size.sessions_max / 4;
        if !take(&self.header[header::SESSIONS_INBOUND], LOW, quarter) {
            return Err(Refusal::InboundLimit);
        }
        let admitted = if plan.forward == 0 {
            self.admit_by_mapping(at, plan.sides[0].mapping)
        } else {
            self.admit_by_forward(at, plan)
        };
        if admitted.is_err() {
            self.add(header::SESSIONS_INBOUND, -1);
        }
        admitted
    }

    /// A part of the table, 1 at least.
    fn share(&self, part: u32) -> u32 {
        (self.size.sessions_max / part).max(1)
    }

    fn admit_by_mapping(&self, at: &At, mapping: u32) -> Result<(), Refusal> {
        if !take(&self.header[header::INBOUND_MAPPED], LOW, self.share(8)) {
            return Err(Refusal::InboundLimit);
        }
        let limit = at.policy.limits.inbound_sessions_per_mapping;
        if !self.mappings.admit(mapping, limit) {
            self.add(header::INBOUND_MAPPED, -1);
            return Err(Refusal::MappingInboundLimit);
        }
        Ok(())
    }

    fn admit_by_forward(&self, at: &At, plan: &Plan) -> Result<(), Refusal> {
        let limits = at.policy.limits;
        let counts = &self.forwards.record(plan.forward)[COUNTS];
        let most = limits.inbound_sessions_per_forward;
        if !take(counts, LOW, most.unwrap_or_else(|| self.share(8))) {
            return Err(Refusal::ForwardInboundLimit);
        }
        if !plan.meta(0).half_open() {
            return Ok(());
        }
        if take(counts, HIGH, self.half_open_max(at)) {
            if take(&self.header[header::HALF_OPEN], LOW, self.share(8)) {
                return Ok(());
            }
            self.forwards.count(plan.forward, HIGH, -1);
        }
        self.forwards.count(plan.forward, LOW, -1);
        Err(Refusal::HalfOpenLimit)
    }

    /// Undoes [`Nat::admit`]: the session is gone. `meta` is its last one.
    pub(crate) fn dismiss(&self, meta: Meta, mapping: u32) {
        self.add(header::SESSIONS_INBOUND, -1);
        if meta.forward() == 0 {
            self.add(header::INBOUND_MAPPED, -1);
            self.mappings.dismiss(mapping);
            return;
        }
        if meta.half_open() {
            self.count_half_open(meta.forward(), -1);
        }
        self.forwards.count(meta.forward(), LOW, -1);
    }

    fn count_half_open(&self, forward: u32, by: i64) {
        self.forwards.count(forward, HIGH, by);
        self.add(header::HALF_OPEN, by);
    }

    /// For a restart: counts a session that was found, whatever the limits.
    pub(crate) fn admit_again(&self, session: u32, meta: Meta, mapping: u32) {
        self.add(header::SESSIONS_INBOUND, 1);
        if meta.forward() == 0 {
            self.add(header::INBOUND_MAPPED, 1);
            self.mappings.admit(mapping, u16::MAX);
            return;
        }
        self.forwards.count(meta.forward(), LOW, 1);
        if meta.half_open() && self.enlist_half_open(session, meta) {
            self.count_half_open(meta.forward(), 1);
        }
    }

    /// A session becomes half-open or ceases to be: under its write bit. False, and nothing was
    /// changed, if the list is another worker's for too long.
    pub(crate) fn move_half_open(&self, session: u32, before: Meta, after: Meta) -> bool {
        match (before.half_open(), after.half_open()) {
            (true, false) if self.delist_half_open(session, before) => {
                self.count_half_open(before.forward(), -1);
                true
            }
            (false, true) if self.enlist_half_open(session, after) => {
                self.count_half_open(after.forward(), 1);
                true
            }
            (before, after) => before == after,
        }
    }

    /// Ends a half-open connection in favour of a new one of this forward that met a limit.
    fn make_way(&self, at: &At, forward: u32, limit: Refusal) -> bool {
        let own = match limit {
            Refusal::ForwardInboundLimit => true,
            Refusal::HalfOpenLimit => self.forwards.counts(forward).1 >= self.half_open_max(at),
            Refusal::InboundLimit => false,
            _ => return false,
        };
        let greedy = || self.greediest(forward);
        self.evict_half_open(at, if own { forward } else { greedy() })
    }

    /// The forward with the most half-open connections: of this one, the one found last, and some
    /// others, each time different ones. To look at all each time would be a flood's way to cost time.
    fn greediest(&self, forward: u32) -> u32 {
        if self.header[header::HALF_OPEN].load(Relaxed) == 0 {
            return forward;
        }
        let max = FORWARDS_MAX as u32;
        let word = &self.header[header::GREEDY];
        let last = word.load(Relaxed);
        let (cursor, last) = ((last >> 32) as u32 % max, last as u32 % (max + 1));
        let half_open = |number: u32| match number {
            0 => 0,
            _ => self.forwards.counts(number).1,
        };
        let mut greediest = match half_open(last) > half_open(forward) {
            true => last,
            false => forward,
        };
        let mut looks = 0;
        // Some forward has one: it is found, and known from then on.
        while looks < GREEDY_LOOKS || looks < max && half_open(greediest) == 0 {
            let number = 1 + (cursor + looks) % max;
            if half_open(number) > half_open(greediest) {
                greediest = number;
            }
            looks += 1;
        }
        let next = (cursor + looks) % max;
        word.store(u64::from(next) << 32 | u64::from(greediest), Relaxed);
        greediest
    }

    /// Half-open connections that a forward may have.
    fn half_open_max(&self, at: &At) -> u32 {
        let most = at.policy.limits.half_open_per_forward;
        most.unwrap_or_else(|| self.share(32))
    }

    /// Ends the oldest half-open connection of a forward.
    fn evict_half_open(&self, at: &At, forward: u32) -> bool {
        (0..EVICTIONS_MAX).any(|_| {
            let (oldest, _) = self.forwards.ends(forward);
            oldest != 0
                && self.end_if(at, oldest, header::EVICTED, |even, _| {
                    even.meta().forward() == forward && even.meta().half_open()
                })
        })
    }

    /// Puts a half-open session at the newest end of its forward's list: under its write bit.
    pub(crate) fn enlist_half_open(&self, session: u32, meta: Meta) -> bool {
        if !meta.half_open() {
            return true;
        }
        let record = self.forwards.record(meta.forward());
        if !lock::take(&record[LOCK]) {
            return false;
        }
        let (oldest, newest) = self.forwards.ends(meta.forward());
        self.half(2 * session).set_link(0);
        self.half(2 * session + 1).set_link(newest);
        let oldest = if newest == 0 {
            session
        } else {
            self.half(2 * newest).set_link(session);
            oldest
        };
        record[ENDS].store(u64::from(oldest) << 32 | u64::from(session), Relaxed);
        lock::give_back(&record[LOCK]);
        true
    }

    /// Takes a half-open session off its forward's list: under its write bit.
    pub(crate) fn delist_half_open(&self, session: u32, meta: Meta) -> bool {
        if !meta.half_open() {
            return true;
        }
        let record = self.forwards.record(meta.forward());
        if !lock::take(&record[LOCK]) {
            return false;
        }
        let (mut oldest, mut newest) = self.forwards.ends(meta.forward());
        let newer = self.half(2 * session).link();
        let older = self.half(2 * session + 1).link();
        if older == 0 {
            oldest = newer;
        } else {
            self.half(2 * older).set_link(newer);
        }
        if newer == 0 {
            newest = older;
        } else {
            self.half(2 * newer + 1).set_link(older);
        }
        record[ENDS].store(u64::from(oldest) << 32 | u64::from(newest), Relaxed);
        lock::give_back(&record[LOCK]);
        true
    }
}

/// Whether what a session says about who opened it can be: through a forward, a mapping, or from
/// inside.
pub(crate) fn is_plausible<W: Word>(forwards: &Forwards<'_, W>, meta: Meta, mapping: u32) -> bool {
    match (meta.opened_outside(), meta.forward()) {
        (false, forward) => forward == 0,
        (true, 0) => mapping != 0,
        (true, forward) => mapping == 0 && forwards.is_valid(forward),
    }
}
