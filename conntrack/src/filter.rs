//! Which remote addresses a mapping has sessions with: what address-dependent filtering asks.
//!
//! The sessions of one `eim` mapping with one remote address form a list: the even half's link is
//! the next session, the odd half's the one before (0 at the ends), and the filter index knows the
//! first. Lists change under the lock of their key. A session is listed under the mapping that its
//! internal side opened or was reached through; the far side of a hairpin is not.

use crate::age::At;
use crate::half::{Side, Snapshot};
use crate::hash::Key;
use crate::mapping::Mapping;
use crate::nat::Nat;
use crate::session::{Plan, Seen};
use crate::verdict::Refusal;
use crate::word::Word;
use std::net::Ipv4Addr;

fn key_of(remote: u32, external: u32, key: &Key) -> Key {
    Key {
        addresses: u64::from(remote) << 32 | u64::from(external),
        ports: key.ports & 0xffff,
        protocol: key.protocol,
    }
}

impl Plan {
    /// The list that the session will belong to, if its even half has an `eim` mapping.
    pub(crate) fn filter_key(&self) -> Option<Key> {
        let [even, odd]: &[Side; 2] = &self.sides;
        let back = Key::of(&odd.tuple);
        let remote = even.tuple.destination.addr.to_bits();
        even.shared
            .then(|| key_of(remote, back.addresses as u32, &back))
    }
}

impl<W: Word> Nat<'_, W> {
    /// The list a session belongs to: (external endpoint, remote address as the internal side
    /// knows it).
    pub(crate) fn filter_key(&self, even: &Snapshot, odd: &Snapshot) -> Key {
        key_of(even.addresses as u32, odd.addresses as u32, &odd.key())
    }

    fn key_of_session(&self, session: u32) -> Option<Key> {
        let (even, odd) = (
            self.half(2 * session).read()?,
            self.half(2 * session + 1).read()?,
        );
        Some(self.filter_key(&even, &odd))
    }

    /// The first session of a list. Certain only under the list's lock.
    pub(crate) fn first_listed(&self, key: &Key) -> Option<u32> {
        self.filters.find(self.keys.hash(key), |session| {
            (self.key_of_session(session).as_ref() == Some(key)).then_some(session)
        })
    }

    /// Lists a session that is being made: under the list's lock and the session's write bit.
    pub(crate) fn enlist(&self, session: u32, key: &Key) -> bool {
        let (even, odd) = (self.half(2 * session), self.half(2 * session + 1));
        let Some(first) = self.first_listed(key) else {
            return self.filters.insert(self.keys.hash(key), session);
        };
        let next = self.half(2 * first).link();
        even.set_link(next);
        odd.set_link(first);
        self.half(2 * first).set_link(session);
        if next != 0 {
            self.half(2 * next + 1).set_link(session);
        }
        true
    }

    /// Takes a session off its list: under the list's lock.
    pub(crate) fn delist(&self, session: u32, key: &Key) {
        let next = self.half(2 * session).link();
        let before = self.half(2 * session + 1).link();
        let hash = self.keys.hash(key);
        match (before, next) {
            (0, 0) => {
                self.filters.remove(hash, session);
            }
            (0, next) => {
                self.filters.replace(hash, session, next);
            }
            (before, next) => self.half(2 * before).set_link(next),
        }
        if next != 0 {
            self.half(2 * next + 1).set_link(before);
        }
    }

    /// Has the mapping a live session with this remote address?
    pub(crate) fn knows_address(
        &self,
        at: &At,
        mapping: &Mapping,
        remote: Ipv4Addr,
    ) -> Result<bool, Refusal> {
        let key = Key {
            addresses: u64::from(remote.to_bits()) << 32
                | u64::from(mapping.external.addr.to_bits()),
            ports: u32::from(mapping.external.port),
            protocol: mapping.protocol(),
        };
        // A flood of refused packets takes no lock.
        if self.first_listed(&key).is_none() {
            return Ok(false);
        }
        let mut expired = None;
        let held = self.locks.hold([self.keys.hash(&key)])?;
        let mut next = self.first_listed(&key).unwrap_or(0);
        while next != 0 {
            let snapshot = self.half(2 * next).read().ok_or(Refusal::Contended)?;
            let seen = Seen {
                half: 2 * next,
                snapshot,
            };
            if snapshot.meta().valid() {
                if self.is_young(at, &seen) {
                    return Ok(true);
                }
                expired = Some(next);
            }
            next = self.half(2 * next).link();
        }
        drop(held);
        if let Some(session) = expired {
            self.end_if_expired(at, session);
        }
        Ok(false)
    }
}
