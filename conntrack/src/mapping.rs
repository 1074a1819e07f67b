//! Mappings: internal endpoint to external endpoint.
//!
//! | word | upper 32 bits | lower 32 bits |
//! | --- | --- | --- |
//! | 0 | generation << 11, timers << 6, open << 5, counted << 4, protocol << 2, shared << 1, alive | sessions |
//! | 1 | internal address | external address (free: link) |
//! | 2 | internal port, external port | address slot, sessions opened from outside (16 bits each) |
//! | 3 | tick of the last refresh | tick of the start |
//!
//! A *shared* mapping is `eim`: found by its internal endpoint, used by many sessions. An `edm`
//! mapping belongs to one session, is found through it, and ends with it. Words 1 and 2 do not
//! change while the mapping is alive, but for word 2's count; that of word 0 moves only by
//! compare-and-swap of the whole word 0, so no session can join a mapping that is dead or another one
//! by now.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::age::At;
use crate::choose::{Kind, Kinds};
use crate::config::{ExternalAddress, Policy};
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::hash::{Key, pack_addresses, pack_ports, unpack};
use crate::index::Index;
use crate::layout::{MAPPING_WORDS, header};
use crate::nat::Nat;
use crate::open::Request;
use crate::pool::Pool;
use crate::port::{Cell, Place};
use crate::subscriber::Quota;
use crate::time::Random;
use crate::timers::TIMER_SETS;
use crate::verdict::Refusal;
use crate::word::{ROUNDS_MAX, Word};

const ALIVE: u64 = 1 << 32;
const SHARED: u64 = 1 << 33;
const PROTOCOL_SHIFT: u32 = 34;
const COUNTED: u64 = 1 << 36;
const OPEN: u64 = 1 << 37;
const TIMERS_SHIFT: u32 = 38;
const TIMERS_MASK: u64 = (TIMER_SETS as u64 - 1) << TIMERS_SHIFT;
const GENERATION: u64 = 1 << 43;
const COUNT_MASK: u64 = 0xffff_ffff;

/// A consistent copy of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub number: u32,
    control: u64,
    pub internal: Endpoint,
    pub external: Endpoint,
    pub slot: u16,
    /// Ticks.
    pub stamp: u32,
    pub start: u32,
}

impl Mapping {
    pub fn alive(&self) -> bool {
        self.control & ALIVE != 0
    }

    pub fn shared(&self) -> bool {
        self.control & SHARED != 0
    }

    pub fn protocol(&self) -> Protocol {
        Protocol::ALL[(self.control >> PROTOCOL_SHIFT & 3).min(2) as usize]
    }

    /// Does it count in its subscriber's record?
    pub fn counted(&self) -> bool {
        self.control & COUNTED != 0
    }

    /// Was it made for anybody to send to (`eif`)? Then its endpoint is held down afterwards.
    pub fn open(&self) -> bool {
        self.control & OPEN != 0
    }

    /// The number of its set of timers.
    pub fn timers(&self) -> u8 {
        (self.control >> TIMERS_SHIFT) as u8 % TIMER_SETS as u8
    }

    pub fn sessions(&self) -> u32 {
        self.control as u32
    }

    pub fn place(&self) -> Place {
        Place {
            slot: self.slot,
            protocol: self.protocol(),
            port: self.external.port,
        }
    }

    /// The pool that its external address is in, if it still is in one.
    pub fn pool(&self, policy: &Policy) -> Option<u16> {
        let address = policy.address_in(self.slot)?;
        (address.addr == self.external.addr).then_some(address.pool)
    }

    /// Is it the same mapping, however many sessions it has by now, and whatever a changed policy made
    /// of it?
    pub fn is_same(&self, other: &Mapping) -> bool {
        let changing = COUNT_MASK | OPEN | TIMERS_MASK;
        self.number == other.number && (self.control ^ other.control) & !changing == 0
    }

    /// Is its external endpoint still the policy's?
    pub fn agrees_with(&self, policy: &Policy) -> bool {
        self.pool(policy).is_some()
    }
}

/// What a new mapping is made of.
#[derive(Clone, Copy)]
pub(crate) struct NewMapping {
    pub protocol: Protocol,
    pub internal: Endpoint,
    pub external: Endpoint,
    pub slot: u16,
    pub shared: bool,
    /// It counts in its subscriber's record.
    pub counted: bool,
    /// It is `eif`.
    pub open: bool,
    /// Its set of timers, beside its sessions' own.
    pub timers: u8,
}

/// All mappings.
pub(crate) struct Mappings<'m, W> {
    pub records: &'m [[W; MAPPING_WORDS]],
    pub pool: Pool<'m, W>,
    /// Shared mappings by protocol and internal endpoint: one a pool.
    pub index: Index<'m, W>,
}

impl<W: Word> Mappings<'_, W> {
    /// A consistent copy, alive or not; `None` if it kept changing.
    pub fn read(&self, number: u32) -> Option<Mapping> {
        let words = &self.records[number as usize];
        for round in 0..ROUNDS_MAX {
            let control = words[0].load(Acquire);
            let mapping = self.read_as(number, control);
            W::fence(Acquire);
            // The count may move: it does not concern the other words.
            if (words[0].load(Relaxed) ^ control) & !COUNT_MASK == 0 {
                return Some(mapping);
            }
            W::pause(round);
        }
        None
    }

    fn read_as(&self, number: u32, control: u64) -> Mapping {
        let words = &self.records[number as usize];
        let ports = words[2].load(Relaxed);
        let times = words[3].load(Relaxed);
        let (internal, external) = unpack(words[1].load(Relaxed), (ports >> 32) as u32);
        Mapping {
            number,
            control,
            internal,
            external,
            slot: (ports >> 16) as u16,
            stamp: (times >> 32) as u32,
            start: times as u32,
        }
    }

    /// Writes a new mapping with one session and brings it to life.
    pub fn write(&self, number: u32, new: &NewMapping, tick: u32) {
        let words = &self.records[number as usize];
        let ports = u64::from(pack_ports(new.internal, new.external));
        // A reader that still holds the record's last mapping and sees one of these words must
        // also see that that mapping was ended.
        W::fence(Release);
        words[1].store(pack_addresses(new.internal, new.external), Relaxed);
        words[2].store(ports << 32 | u64::from(new.slot) << 16, Relaxed);
        words[3].store(u64::from(tick) << 32 | u64::from(tick), Relaxed);
        let generation = words[0].load(Relaxed) / GENERATION * GENERATION;
        let control = generation.wrapping_add(GENERATION)
            | ALIVE
            | if new.shared { SHARED } else { 0 }
            | if new.counted { COUNTED } else { 0 }
            | if new.open { OPEN } else { 0 }
            | u64::from(new.timers) << TIMERS_SHIFT & TIMERS_MASK
            | (new.protocol.index() as u64) << PROTOCOL_SHIFT
            | 1;
        words[0].store(control, Release);
    }

    /// Adds a session; false if the mapping is dead or another one by now.
    pub fn join(&self, mapping: &Mapping) -> bool {
        let word = &self.records[mapping.number as usize][0];
        let mut control = word.load(Relaxed);
        while control & ALIVE != 0 && (control ^ mapping.control) & !COUNT_MASK == 0 {
            match word.compare_exchange(control, control + 1, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(found) => control = found,
            }
        }
        false
    }

    /// Takes a session off; returns how many are left.
    pub fn leave(&self, number: u32) -> u32 {
        (self.records[number as usize][0].fetch_add(u64::MAX, AcqRel) as u32).wrapping_sub(1)
    }

    /// Counts one more session opened from outside, of at most `limit`; false if it has as many.
    pub fn admit(&self, number: u32, limit: u16) -> bool {
        let word = &self.records[number as usize][2];
        let mut ports = word.load(Relaxed);
        while (ports as u16) < limit {
            match word.compare_exchange(ports, ports + 1, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(found) => ports = found,
            }
        }
        false
    }

    /// One fewer. Only after [`Mappings::admit`], so the count never falls below 0.
    pub fn dismiss(&self, number: u32) {
        self.records[number as usize][2].fetch_add(u64::MAX, Relaxed);
    }

    /// Sessions opened from outside.
    pub fn inbound(&self, number: u32) -> u16 {
        self.records[number as usize][2].load(Relaxed) as u16
    }

    /// Ends a mapping that no session uses; false if one does, or it is dead or another one by now.
    pub fn kill(&self, mapping: &Mapping) -> bool {
        let idle = mapping.control & !COUNT_MASK;
        let word = &self.records[mapping.number as usize][0];
        mapping.alive()
            && word
                .compare_exchange(idle, idle & !ALIVE, AcqRel, Relaxed)
                .is_ok()
    }

    /// Sets life and count. Only whoever holds the tables alone.
    pub fn set(&self, number: u32, alive: bool, sessions: u32) {
        let word = &self.records[number as usize][0];
        let rest = word.load(Relaxed) & !COUNT_MASK & !ALIVE;
        if sessions == 0 {
            let ports = &self.records[number as usize][2];
            ports.fetch_and(!0xffff, Relaxed);
        }
        let alive = if alive { ALIVE } else { 0 };
        word.store(rest | alive | u64::from(sessions), Relaxed);
    }

    /// It counts in no subscriber's record. Only whoever holds the tables alone.
    pub fn set_uncounted(&self, number: u32) {
        self.records[number as usize][0].fetch_and(!COUNTED, Relaxed);
    }

    /// Says anew whether a mapping is open, and which set of timers it has; false if it is dead or
    /// another one by now.
    pub fn renew(&self, mapping: &Mapping, open: bool, timers: u8) -> bool {
        let word = &self.records[mapping.number as usize][0];
        let new = if open { OPEN } else { 0 } | u64::from(timers) << TIMERS_SHIFT & TIMERS_MASK;
        let mut control = word.load(Relaxed);
        while control & ALIVE != 0 && (control ^ mapping.control) & !COUNT_MASK == 0 {
            let renewed = control & !(TIMERS_MASK | OPEN) | new;
            match word.compare_exchange(control, renewed, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(found) => control = found,
            }
        }
        false
    }

    /// Notes a packet that keeps the mapping alive. Never turns the stamp back; if the mapping
    /// became another one meanwhile, that one lives a little longer.
    #[cold]
    pub fn touch(&self, number: u32, tick: u32) {
        let word = &self.records[number as usize][3];
        let times = word.load(Relaxed);
        if tick > (times >> 32) as u32 {
            let new = u64::from(tick) << 32 | times & 0xffff_ffff;
            let _ = word.compare_exchange(times, new, Relaxed, Relaxed);
        }
    }
}

/// A mapping that a session is about to use: one count of it is the caller's.
pub(crate) struct Joined {
    pub number: u32,
    pub external: Endpoint,
    /// It was made for this session.
    pub made: bool,
}

impl<W: Word> Nat<'_, W> {
    pub(crate) fn mapping_hash(&self, protocol: Protocol, internal: Endpoint) -> u64 {
        self.keys.hash(&Key::of(&Tuple {
            protocol,
            source: internal,
            destination: Endpoint::new(Ipv4Addr::UNSPECIFIED, 0),
        }))
    }

    /// A live shared mapping of an internal endpoint that is as asked for.
    pub(crate) fn some_shared_mapping(
        &self,
        protocol: Protocol,
        internal: Endpoint,
        fits: impl Fn(&Mapping) -> bool,
    ) -> Option<Mapping> {
        self.mappings
            .index
            .find(self.mapping_hash(protocol, internal), |number| {
                self.mappings.read(number).filter(|mapping| {
                    mapping.alive()
                        && mapping.shared()
                        && mapping.protocol() == protocol
                        && mapping.internal == internal
                        && fits(mapping)
                })
            })
    }

    /// The live shared mapping of an internal endpoint in a pool: it has one in each that its flows
    /// leave from.
    pub(crate) fn shared_mapping(
        &self,
        policy: &Policy,
        pool: u16,
        protocol: Protocol,
        internal: Endpoint,
    ) -> Option<Mapping> {
        self.some_shared_mapping(protocol, internal, |mapping| {
            mapping.pool(policy) == Some(pool)
        })
    }

    /// A live shared mapping of an internal endpoint that is in no pool any more.
    pub(crate) fn stale_mapping(
        &self,
        policy: &Policy,
        protocol: Protocol,
        internal: Endpoint,
    ) -> Option<Mapping> {
        self.some_shared_mapping(protocol, internal, |mapping| mapping.pool(policy).is_none())
    }

    /// Get-or-create of the one mapping of an internal endpoint in its pool (RFC 4787 REQ-1): of two
    /// workers, one makes it and both use it. `only_first`: no other address than the first choice will
    /// do. A new one counts in the record of the request's subscriber.
    pub(crate) fn join_shared_mapping(
        &self,
        at: &At,
        request: &Request,
        only_first: bool,
        random: &mut impl Random,
    ) -> Result<Joined, Refusal> {
        if let Some(joined) = self.join_existing(at, request, false) {
            return Ok(joined);
        }
        let Tuple {
            protocol, source, ..
        } = *request.arrival.tuple;
        let _held = self.locks.hold([self.mapping_hash(protocol, source)])?;
        match self.join_existing(at, request, true) {
            Some(joined) => Ok(joined),
            None => self.make_shared_mapping(at, request, only_first, random),
        }
    }

    /// `locked`: the caller holds the lock of the internal endpoint. Only then may an entry of the
    /// index go: without, its number could be that of a new mapping of the same endpoint by now.
    fn join_existing(&self, at: &At, request: &Request, locked: bool) -> Option<Joined> {
        let Tuple {
            protocol,
            source: internal,
            ..
        } = *request.arrival.tuple;
        let pool = request.profile.pool;
        let Some(mapping) = self.shared_mapping(at.policy, pool, protocol, internal) else {
            if locked && let Some(stale) = self.stale_mapping(at.policy, protocol, internal) {
                // Its address is gone: its sessions may end with it, new ones get a new mapping.
                let hash = self.mapping_hash(protocol, internal);
                self.mappings.index.remove(hash, stale.number);
            }
            return None;
        };
        if mapping.sessions() == 0 && !at.is_fresh(&mapping) {
            self.end_mapping(at, &mapping);
            return None;
        }
        self.mappings.join(&mapping).then_some(Joined {
            number: mapping.number,
            external: mapping.external,
            made: false,
        })
    }

    /// Under the lock of the internal endpoint.
    fn make_shared_mapping(
        &self,
        at: &At,
        request: &Request,
        only_first: bool,
        random: &mut impl Random,
    ) -> Result<Joined, Refusal> {
        let Request {
            profile,
            subscriber,
            ..
        } = *request;
        let Tuple {
            protocol,
            source: internal,
            ..
        } = *request.arrival.tuple;
        let hash = self.mapping_hash(protocol, internal);
        let mut choices = at.policy.addresses.choices(profile, request.arrival.tuple);
        let first = choices.next().ok_or(Refusal::NoExternalAddress)?;
        self.may_map(at, subscriber, protocol)?;
        let number = self.mappings.pool.pop().ok_or(Refusal::MappingsFull)?;
        if let Err(refusal) = self.charge(at, subscriber, Quota::Ports, protocol) {
            self.mappings.pool.push(number);
            return Err(refusal);
        }
        let others = choices.take(if only_first { 0 } else { usize::MAX });
        let claimed = std::iter::once(first).chain(others).find_map(|address| {
            let port = self.claim_port(at, request, address, number, random);
            port.map(|port| (address, port))
        });
        let claimed = claimed.ok_or(Refusal::PortsExhausted);
        let charged = claimed.and_then(|(address, port)| {
            let place = Place {
                slot: address.slot,
                protocol,
                port,
            };
            self.charge_claimed(at, subscriber, place, number)?;
            Ok((address, port))
        });
        let (address, port) = match charged {
            Ok(charged) => charged,
            Err(refusal) => {
                if subscriber != 0 {
                    self.discharge(internal.addr, Quota::Ports, protocol);
                }
                self.mappings.pool.push(number);
                return Err(refusal);
            }
        };
        let external = Endpoint::new(address.addr, port);
        // Flows of all profiles of the pool share it, whichever came first.
        let maker = at.policy.mapping_profile(protocol, profile.pool);
        let maker = maker.unwrap_or(profile);
        let new = NewMapping {
            protocol,
            internal,
            external,
            slot: address.slot,
            shared: true,
            counted: subscriber != 0,
            open: maker.is_open(protocol),
            timers: maker.timers.base,
        };
        self.mappings.write(number, &new, at.tick());
        self.add(header::MAPPINGS, 1);
        let joined = Joined {
            number,
            external,
            made: true,
        };
        if !self.mappings.index.insert(hash, number) {
            self.unjoin_mapping(at, &joined);
            return Err(Refusal::MappingsFull);
        }
        Ok(joined)
    }

    /// Counts a new mapping in its subscriber's rate, last of all, so that what is not made does
    /// not count; if there is no room any more, gives its port back.
    fn charge_claimed(
        &self,
        at: &At,
        subscriber: u32,
        place: Place,
        number: u32,
    ) -> Result<(), Refusal> {
        let charged = self.charge_rate(at, subscriber);
        charged.inspect_err(|_| self.ports.release(place, number, None))
    }

    /// A port for a shared mapping: the source port if it is free and the policy keeps it, else
    /// a random free one, like the source port where that can be (RFC 7857 section 9).
    fn claim_port(
        &self,
        at: &At,
        request: &Request,
        address: &ExternalAddress,
        mapping: u32,
        random: &mut impl Random,
    ) -> Option<u16> {
        let Tuple {
            protocol, source, ..
        } = *request.arrival.tuple;
        let (profile, wanted) = (request.profile, source.port);
        let set = &address.ports[protocol.index()];
        let slot = address.slot;
        if slot >= self.ports.slots() {
            return None;
        }
        let claim = |port| {
            let place = Place {
                slot,
                protocol,
                port,
            };
            self.ports
                .claim(place, Cell::Exclusive(mapping))
                .ok()
                .map(|()| port)
        };
        let kept = profile.preserve_port && set.contains(wanted);
        if let Some(port) = kept.then(|| claim(wanted)).flatten() {
            return Some(port);
        }
        let start = random.next_u64();
        let kinds = Kinds::of(profile, protocol, set, wanted);
        let choose = || {
            let before = self.ports.look(slot, protocol).ok()?;
            let all = kinds.wishes().iter().chain([&Kind::ALL]);
            let mut chosen = all.map(|&kind| {
                self.ports
                    .choose_free(slot, protocol, (set, kind), start, claim)
            });
            let chosen = chosen.find_map(|port| port);
            if chosen.is_none() {
                self.ports.note_exhausted(slot, protocol, &before);
            }
            chosen
        };
        choose().or_else(|| {
            self.end_all_holds(at, slot, protocol)
                .then(choose)
                .flatten()
        })
    }

    /// Takes a session off a mapping and ends the mapping if nothing else keeps it: UDP and ICMP
    /// `eim` mappings outlive their sessions by their stamp.
    pub(crate) fn leave_mapping(&self, at: &At, number: u32) {
        let Some(mapping) = self.mappings.read(number) else {
            return;
        };
        let outlives = mapping.shared()
            && mapping.protocol() != Protocol::Tcp
            && at.is_fresh(&mapping)
            && mapping.agrees_with(at.policy);
        if self.mappings.leave(number) == 0 && !outlives {
            self.end_mapping(at, &mapping);
        }
    }

    /// Takes off a session that could not be made. A mapping made for it must not linger.
    pub(crate) fn unjoin_mapping(&self, at: &At, joined: &Joined) {
        if !joined.made {
            return self.leave_mapping(at, joined.number);
        }
        let Some(mapping) = self.mappings.read(joined.number) else {
            return;
        };
        if self.mappings.leave(joined.number) == 0 {
            self.end_mapping(at, &mapping);
        }
    }

    /// For the sweep: ends a shared mapping without sessions whose time is over.
    pub(crate) fn end_mapping_if_idle(&self, at: &At, number: u32) -> bool {
        self.mappings.read(number).is_some_and(|mapping| {
            mapping.sessions() == 0 && !at.is_fresh(&mapping) && self.end_mapping(at, &mapping)
        })
    }

    /// Ends a mapping that no session uses, with its port.
    pub(crate) fn end_mapping(&self, at: &At, mapping: &Mapping) -> bool {
        if !self.mappings.kill(mapping) {
            return false;
        }
        let number = mapping.number;
        if mapping.shared() {
            let hash = self.mapping_hash(mapping.protocol(), mapping.internal);
            self.mappings.index.remove(hash, number);
            let held = self.ports.held(mapping.slot, mapping.protocol());
            self.ports
                .release(mapping.place(), number, at.hold_until(mapping, held));
            self.void_memos(at, mapping.protocol());
        } else {
            self.ports.leave(mapping.place());
        }
        if mapping.counted() {
            self.discharge(mapping.internal.addr, Quota::Ports, mapping.protocol());
        }
        self.add(header::MAPPINGS, -1);
        self.mappings.pool.push(number);
        true
    }
}
