//! Subscribers: internal addresses, and what each has in the tables, so that a quota keeps one of
//! them from taking everything (RFC 6888 REQ-4, REQ-5).
//!
//! Each subscriber has a key, in one of two lines of eight by its hash, and the record of the same
//! number:
//!
//! | word | upper 32 bits | lower 32 bits |
//! | --- | --- | --- |
//! | key | internal address | what counts here: sessions, mappings, workers that open one |
//! | 0 | TCP ports | TCP sessions |
//! | 1 | UDP ports | UDP sessions |
//! | 2 | ICMP identifiers | ICMP sessions |
//! | 3 | when the next new mapping is due, ns | |
//!
//! A key whose count is 0 may become another address's; until then it keeps the address, and the
//! record what it knows of the address's rate. A key moves by compare-and-swap of the whole word, and
//! only whoever holds the address's lock gives it a new one: an address has one key at most. Nobody
//! joins a key that is moving, as its record is another address's yet.
//!
//! Nothing is counted while no quota is set: it would cost a cache line a session. So sessions and
//! mappings say whether they are counted, and those made before a quota was set are not.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::age::At;
use crate::config::{Policy, Quotas};
use crate::count::{self, HIGH, LOW};
use crate::endpoint::{Endpoint, Protocol};
use crate::index::{LINE_WORDS, places};
use crate::nat::Nat;
use crate::time::Time;
use crate::verdict::Refusal;
use crate::word::Word;

/// Words in a record.
pub(crate) const SUBSCRIBER_WORDS: usize = 4;
const DUE: usize = 3;
const COUNT_MASK: u64 = 0xffff_ffff;
/// Of a key's count: the record is being made the address's.
const MOVING: u64 = 1 << 31;

/// How far a worker's clock may be behind another's.
const BEHIND_NS: u64 = 1_000_000_000;

/// Keys that one opening tries to make its own: more than one only if another worker is faster.
const CLAIMS_MAX: usize = 2 * LINE_WORDS;

/// Keys for a table of so many sessions: one for sixteen of them.
pub(crate) const fn subscribers_for(sessions_max: u32) -> usize {
    let keys = sessions_max as usize / 16;
    match keys {
        _ if cfg!(loom) => LINE_WORDS,
        0..1024 => 1024,
        _ => keys.next_multiple_of(LINE_WORDS),
    }
}

/// What a subscriber has of the tables.
#[derive(Clone, Copy)]
pub(crate) enum Quota {
    Sessions,
    Ports,
}

impl Quota {
    fn shift(self) -> u32 {
        match self {
            Quota::Sessions => LOW,
            Quota::Ports => HIGH,
        }
    }

    fn limit(self, policy: &Policy, protocol: Protocol) -> u32 {
        let quotas = &policy.limits.quotas;
        let limit = match self {
            Quota::Sessions => quotas.sessions[protocol.index()],
            Quota::Ports => quotas.ports[protocol.index()],
        };
        limit.unwrap_or(u32::MAX)
    }

    fn refusal(self) -> Refusal {
        match self {
            Quota::Sessions => Refusal::SubscriberSessions,
            Quota::Ports => Refusal::SubscriberPorts,
        }
    }
}

/// All subscribers.
pub(crate) struct Subscribers<'m, W> {
    pub keys: &'m [[W; LINE_WORDS]],
    pub records: &'m [[W; SUBSCRIBER_WORDS]],
}

impl<W: Word> Subscribers<'_, W> {
    /// Numbers are one more than the place of the key, so that 0 is none.
    fn key(&self, number: u32) -> &W {
        &self.keys.as_flattened()[number as usize - 1]
    }

    fn record(&self, number: u32) -> &[W; SUBSCRIBER_WORDS] {
        &self.records[number as usize - 1]
    }

    /// The numbers that an address may have.
    fn numbers(&self, hash: u64) -> impl Iterator<Item = u32> {
        let lines = places(hash, self.keys.len());
        lines.into_iter().flat_map(|line| {
            let first = (line * LINE_WORDS) as u32 + 1;
            first..first + LINE_WORDS as u32
        })
    }

    fn find(&self, hash: u64, address: Ipv4Addr) -> Option<u32> {
        self.numbers(hash)
            .find(|&number| address_of(self.key(number).load(Acquire)) == address)
    }

    /// One more that counts here; none if the address has no key.
    fn join(&self, hash: u64, address: Ipv4Addr) -> Option<u32> {
        let number = self.find(hash, address)?;
        let word = self.key(number);
        let mut key = word.load(Relaxed);
        while address_of(key) == address && key & MOVING == 0 {
            match word.compare_exchange(key, key + 1, AcqRel, Relaxed) {
                Ok(_) => return Some(number),
                Err(found) => key = found,
            }
        }
        None
    }

    /// A key for an address that has none, joined. Under the address's lock.
    fn claim(&self, hash: u64, address: Ipv4Addr) -> Option<u32> {
        for _ in 0..CLAIMS_MAX {
            let (number, vacant) = self.vacancy(hash)?;
            let key = u64::from(address.to_bits()) << 32 | 1;
            let word = self.key(number);
            let moving = word.compare_exchange(vacant, key | MOVING, AcqRel, Relaxed);
            if moving.is_ok() {
                self.record(number)[DUE].store(0, Relaxed);
                word.store(key, Release);
                return Some(number);
            }
        }
        None
    }

    /// A key that may be another address's, in the emptier line, and what it is now. Never used ones
    /// first: the others still know a rate.
    fn vacancy(&self, hash: u64) -> Option<(u32, u64)> {
        let lines = places(hash, self.keys.len()).map(|line| {
            let first = (line * LINE_WORDS) as u32 + 1;
            let keys = (first..).zip(&self.keys[line]);
            let keys = keys.map(|(number, word)| (number, word.load(Relaxed)));
            let vacant = || keys.clone().filter(|(_, key)| key & COUNT_MASK == 0);
            (vacant().count(), vacant().min_by_key(|&(_, key)| key != 0))
        });
        let [first, second] = lines;
        if second.0 > first.0 {
            second.1
        } else {
            first.1
        }
    }

    /// One fewer. Only after [`Subscribers::join`] or [`Subscribers::claim`].
    pub fn leave(&self, number: u32) {
        if number != 0 {
            self.key(number).fetch_add(u64::MAX, AcqRel);
        }
    }

    /// One more session or port, if there are fewer than `limit`: by whoever has joined.
    pub fn take(&self, number: u32, quota: Quota, protocol: Protocol, limit: u32) -> bool {
        let word = &self.record(number)[protocol.index()];
        let taken = count::take(word, quota.shift(), limit);
        if taken {
            self.key(number).fetch_add(1, Relaxed);
        }
        taken
    }

    /// Undoes [`Subscribers::take`].
    fn give_back(&self, number: u32, quota: Quota, protocol: Protocol) {
        count::give_back(&self.record(number)[protocol.index()], quota.shift());
        self.leave(number);
    }

    fn count(&self, number: u32, quota: Quota, protocol: Protocol) -> u32 {
        count::read(&self.record(number)[protocol.index()], quota.shift())
    }

    /// Is a new mapping within the rate? If it is and `counts`, the next one is due later. The
    /// generic cell rate algorithm (ITU-T I.371): each makes the next one due an interval later, and
    /// one may come so early that a burst of them fits.
    fn is_within_rate(&self, number: u32, quotas: &Quotas, now: Time, counts: bool) -> bool {
        let Some(rate) = quotas.mappings_per_second else {
            return true;
        };
        let interval_ns = 1_000_000_000 / u64::from(rate.max(1));
        let early_ns = interval_ns * u64::from(quotas.mapping_burst.max(1) - 1);
        let now_ns = now.0 * 1_000_000;
        let last_ns = now_ns + early_ns;
        let word = &self.record(number)[DUE];
        let mut due = word.load(Relaxed);
        loop {
            let within = due <= last_ns;
            // Later than this rate ever makes it due: a policy with a larger burst left it behind.
            let left_behind = due > last_ns + interval_ns + BEHIND_NS;
            let next = match (within && counts, left_behind) {
                (true, _) => due.max(now_ns) + interval_ns,
                (_, true) => last_ns + interval_ns,
                _ => return within,
            };
            match word.compare_exchange(due, next, Relaxed, Relaxed) {
                Ok(_) => return within,
                Err(found) => due = found,
            }
        }
    }

    /// Forgets every count. Only whoever holds the tables alone.
    pub fn clear_counts(&self) {
        for (key, record) in self.keys.as_flattened().iter().zip(self.records) {
            if key.fetch_and(!COUNT_MASK, Relaxed) & MOVING != 0 {
                record[DUE].store(0, Relaxed);
            }
            for word in &record[..DUE] {
                word.store(0, Relaxed);
            }
        }
    }

    /// All numbers with their addresses and what counts there, for checks on quiescent tables.
    pub fn all(&self) -> impl Iterator<Item = (u32, Ipv4Addr, u32)> {
        (1..).zip(self.keys.as_flattened()).map(|(number, word)| {
            let key = word.load(Relaxed);
            (number, address_of(key), key as u32)
        })
    }

    /// Sessions and ports of a protocol.
    pub fn counts(&self, number: u32, protocol: Protocol) -> (u32, u32) {
        (
            self.count(number, Quota::Sessions, protocol),
            self.count(number, Quota::Ports, protocol),
        )
    }
}

fn address_of(key: u64) -> Ipv4Addr {
    Ipv4Addr::from_bits((key >> 32) as u32)
}

impl<W: Word> Nat<'_, W> {
    fn subscriber_hash(&self, address: Ipv4Addr) -> u64 {
        self.mapping_hash(Protocol::Tcp, Endpoint::new(address, 0))
    }

    /// The record of a subscriber that is about to open a session, joined; 0 if nothing is counted.
    pub(crate) fn enroll(&self, at: &At, address: Ipv4Addr) -> Result<u32, Refusal> {
        if !at.policy.limits.quotas.any() {
            return Ok(0);
        }
        let hash = self.subscriber_hash(address);
        if let Some(number) = self.subscribers.join(hash, address) {
            return Ok(number);
        }
        let _held = self.locks.hold([hash])?;
        self.subscribers
            .join(hash, address)
            .or_else(|| self.subscribers.claim(hash, address))
            .ok_or(Refusal::SubscribersFull)
    }

    /// Has the subscriber a session or a port left? Counts nothing: spares work that would be in vain.
    pub(crate) fn has_quota(
        &self,
        at: &At,
        subscriber: u32,
        quota: Quota,
        protocol: Protocol,
    ) -> Result<(), Refusal> {
        let limit = quota.limit(at.policy, protocol);
        let has = subscriber == 0 || self.subscribers.count(subscriber, quota, protocol) < limit;
        has.then_some(()).ok_or(quota.refusal())
    }

    /// Might the subscriber have a new mapping now? Counts nothing.
    pub(crate) fn may_map(
        &self,
        at: &At,
        subscriber: u32,
        protocol: Protocol,
    ) -> Result<(), Refusal> {
        self.has_quota(at, subscriber, Quota::Ports, protocol)?;
        self.ask_rate(at, subscriber, false)
    }

    /// Counts a new mapping in the subscriber's rate.
    pub(crate) fn charge_rate(&self, at: &At, subscriber: u32) -> Result<(), Refusal> {
        self.ask_rate(at, subscriber, true)
    }

    fn ask_rate(&self, at: &At, subscriber: u32, counts: bool) -> Result<(), Refusal> {
        let quotas = &at.policy.limits.quotas;
        let within = subscriber == 0
            || self
                .subscribers
                .is_within_rate(subscriber, quotas, at.now, counts);
        within.then_some(()).ok_or(Refusal::SubscriberRate)
    }

    /// Counts a session or a port that is about to be made.
    pub(crate) fn charge(
        &self,
        at: &At,
        subscriber: u32,
        quota: Quota,
        protocol: Protocol,
    ) -> Result<(), Refusal> {
        let limit = quota.limit(at.policy, protocol);
        let charged = subscriber == 0 || self.subscribers.take(subscriber, quota, protocol, limit);
        charged.then_some(()).ok_or(quota.refusal())
    }

    /// Undoes [`Nat::charge`] for a session or a port that is gone.
    pub(crate) fn discharge(&self, address: Ipv4Addr, quota: Quota, protocol: Protocol) {
        // What counts keeps the key in its place.
        let number = self
            .subscribers
            .find(self.subscriber_hash(address), address);
        debug_assert!(number.is_some(), "{address} has no key");
        if let Some(number) = number {
            self.subscribers.give_back(number, quota, protocol);
        }
    }

    /// Is this the number that the address is found under?
    pub(crate) fn knows_subscriber(&self, number: u32, address: Ipv4Addr) -> bool {
        self.subscribers
            .find(self.subscriber_hash(address), address)
            == Some(number)
    }

    /// For a restart: counts what was found, whatever the quota; false if there is no room.
    pub(crate) fn charge_again(&self, address: Ipv4Addr, quota: Quota, protocol: Protocol) -> bool {
        let hash = self.subscriber_hash(address);
        let joined = self.subscribers.join(hash, address);
        let number = joined.or_else(|| self.subscribers.claim(hash, address));
        number.is_some_and(|number| {
            let taken = self.subscribers.take(number, quota, protocol, u32::MAX);
            self.subscribers.leave(number);
            taken
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    type Keys = [[AtomicU64; LINE_WORDS]; 1];
    type Records = [[AtomicU64; SUBSCRIBER_WORDS]; LINE_WORDS];

    fn memory() -> (Keys, Records) {
        Default::default()
    }

    fn all<'m>((keys, records): &'m (Keys, Records)) -> Subscribers<'m, AtomicU64> {
        Subscribers { keys, records }
    }

    #[test]
    fn a_rate_is_exact_at_any_size() {
        for rate in [1, 3, 999, 15_000, 150_000, 700_000] {
            let memory = memory();
            let quotas = Quotas {
                mappings_per_second: Some(rate),
                mapping_burst: 2 + rate / 100,
                ..Quotas::NONE
            };
            let passed = |ms: u64| {
                let ask = || all(&memory).is_within_rate(1, &quotas, Time(ms), true);
                std::iter::repeat_with(ask)
                    .take_while(|&within| within)
                    .count()
            };
            passed(5_000);
            let passed: usize = (5_001..=7_000).map(passed).sum();
            let least = 2 * rate as usize;
            let most = least + least / 1000 + 1;
            assert!(
                (least..=most).contains(&passed),
                "{passed} at {rate} a second"
            );
        }
    }

    /// A process that died while it moved a key leaves no rate of the subscriber before.
    #[test]
    fn a_restart_forgets_the_rate_of_a_moving_key() {
        let memory = memory();
        let key = |address: u64, count: u64| address << 32 | count;
        for (number, word) in [key(1, 2), key(2, MOVING | 1)].into_iter().enumerate() {
            memory.0[0][number].store(word, Relaxed);
            for word in &memory.1[number] {
                word.store(9, Relaxed);
            }
        }
        all(&memory).clear_counts();
        let left = |number: usize| memory.1[number].each_ref().map(|word| word.load(Relaxed));
        assert_eq!([0, 1].map(left), [[0, 0, 0, 9], [0; 4]]);
        let keys = [0, 1].map(|number| memory.0[0][number].load(Relaxed));
        assert_eq!(keys, [key(1, 0), key(2, 0)]);
    }
}
