//! Some of the datagrams under way: a hash index over entries in fixed memory.

use conntrack::{Time, Tuple};

use super::arena::{Arena, NONE};
use super::idle::{Group, Idle};
use super::list::{Link, Linked, List};
use super::ranges::{Added, Ranges};
use super::{Decision, Key, Part, Recorded};
use crate::drop_reason::DropReason;

/// Entries that one call frees at most because they have expired.
const REAP_MAX: usize = 64;

/// What is known of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No first fragment yet; holds copies.
    Waiting,
    /// The first fragment's tuple, where it ended, and its fate.
    Decided {
        tuple: Tuple,
        end: u16,
        decision: Decision,
    },
    /// Its fragments contradict each other: given up.
    Poisoned,
    /// Too old; holds copies, and can no longer be found.
    Expired,
}

/// An entry is in one of three lists: free, idle (holds no copy) or holding.
#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    hash: u32,
    state: State,
    expires: Time,
    ranges: Ranges,
    /// First and last copy held, or both [`NONE`].
    copies: (u32, u32),
    /// Next in the bucket.
    chain: u32,
    /// What it counts for while it is idle.
    group: Group,
    /// Neighbours in the list, and in the list of the group.
    links: [Link; 2],
}

impl Linked<2> for Entry {
    fn links(&mut self) -> &mut [Link; 2] {
        &mut self.links
    }
}

/// A first fragment that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    pub(super) part: Part,
    pub(super) tuple: Tuple,
    pub(super) decision: Decision,
    pub(super) group: Group,
    pub(super) now: Time,
    /// When a new entry expires.
    pub(super) expires: Time,
}

#[derive(Debug)]
pub(super) struct Shard {
    buckets: Box<[u32]>,
    entries: Box<[Entry]>,
    free: List<0>,
    idle: Idle,
    holding: List<0>,
    len: usize,
}

impl Shard {
    pub(super) fn new(entries: usize) -> Shard {
        let nobody = std::net::Ipv4Addr::UNSPECIFIED;
        let key = Key {
            source: nobody,
            destination: nobody,
            protocol: 0,
            identification: 0,
        };
        let entry = Entry {
            key,
            hash: 0,
            state: State::Expired,
            expires: Time(0),
            ranges: Ranges::EMPTY,
            copies: (NONE, NONE),
            chain: NONE,
            group: Group::new(0, None),
            links: [Link::NOWHERE; 2],
        };
        let mut shard = Shard {
            buckets: vec![NONE; entries.next_power_of_two()].into(),
            entries: vec![entry; entries].into(),
            free: List::EMPTY,
            idle: Idle::new(),
            holding: List::EMPTY,
            len: 0,
        };
        for index in 0..entries as u32 {
            shard.free.push(&mut shard.entries, index);
        }
        shard
    }

    /// Entries in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        let tables = size_of_val(&*self.buckets) + size_of_val(&*self.entries);
        size_of::<Shard>() + tables + self.idle.bytes()
    }

    fn entry(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// Puts an entry that holds no copy, and is in no list, among the idle ones.
    fn rest(&mut self, index: u32) {
        let group = self.entry(index).group;
        self.idle.push(&mut self.entries, index, group);
    }

    /// Takes an idle entry out of its list.
    fn wake(&mut self, index: u32) {
        let group = self.entry(index).group;
        self.idle.remove(&mut self.entries, index, group);
    }

    fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn find(&self, key: &Key, hash: u32) -> Option<u32> {
        let mut index = self.buckets[self.bucket(hash)];
        while index != NONE {
            let entry = &self.entries[index as usize];
            if entry.key == *key {
                return Some(index);
            }
            index = entry.chain;
        }
        None
    }

    /// The datagram's entry, unless it is too old.
    fn find_live(&mut self, key: &Key, hash: u32, now: Time) -> Option<u32> {
        let index = self.find(key, hash)?;
        if now < self.entry(index).expires {
            return Some(index);
        }
        if self.entry(index).copies.0 == NONE {
            self.wake(index);
            self.release(index);
        } else {
            // Its copies are still to be handed out.
            self.unchain(index);
            self.entry(index).state = State::Expired;
        }
        None
    }

    /// Takes an entry out of its bucket.
    fn unchain(&mut self, index: u32) {
        let Entry { hash, chain, .. } = self.entries[index as usize];
        let bucket = self.bucket(hash);
        if self.buckets[bucket] == index {
            self.buckets[bucket] = chain;
            return;
        }
        let mut at = self.buckets[bucket];
        while at != NONE {
            let next = self.entry(at).chain;
            if next == index {
                self.entry(at).chain = chain;
                return;
            }
            at = next;
        }
    }

    /// Frees an entry that was taken out of its list.
    fn release(&mut self, index: u32) {
        if self.entry(index).state != State::Expired {
            self.unchain(index);
        }
        self.free.push(&mut self.entries, index);
        self.len -= 1;
    }

    /// A new entry, in no list; an idle one makes room, see [`Idle`].
    fn insert(&mut self, key: Key, hash: u32, state: State, expires: Time) -> Option<u32> {
        if self.free.first() == NONE {
            let expendable = self.idle.most_expendable();
            if expendable == NONE {
                return None;
            }
            self.wake(expendable);
            self.release(expendable);
        }
        let index = self.free.first();
        self.free.remove(&mut self.entries, index);
        self.len += 1;
        let bucket = self.bucket(hash);
        let chain = self.buckets[bucket];
        self.buckets[bucket] = index;
        let entry = self.entry(index);
        (entry.key, entry.hash, entry.state, entry.expires) = (key, hash, state, expires);
        (entry.copies, entry.chain) = ((NONE, NONE), chain);
        entry.ranges = Ranges::EMPTY;
        Some(index)
    }

    /// See [`super::FragmentTable::first`].
    pub(super) fn first(
        &mut self,
        key: Key,
        hash: u32,
        first: First,
    ) -> Result<Recorded, DropReason> {
        let First {
            part,
            tuple,
            mut decision,
            group,
            now,
            expires,
        } = first;
        let decided = |decision| State::Decided {
            tuple,
            end: part.end,
            decision,
        };
        let index = match self.find_live(&key, hash, now) {
            Some(index) => index,
            None => {
                let index = self.insert(key, hash, decided(decision), expires);
                let index = index.ok_or(DropReason::FragmentsFull)?;
                self.rest(index);
                index
            }
        };
        let entry = self.entry(index);
        match entry.state {
            State::Waiting => {}
            // The same once more: duplicated on the way, or the next datagram that got this
            // identification, its predecessor having lost a fragment.
            State::Decided {
                tuple: old,
                end,
                decision: before,
            } if (old, end) == (tuple, part.end) => {
                entry.expires = expires;
                if let (Decision::Translate(before), Decision::Translate(now)) =
                    (before, &mut decision)
                {
                    now.identification = before.identification;
                }
            }
            _ => {
                entry.state = State::Poisoned;
                return Err(DropReason::FragmentBad);
            }
        }
        entry.state = decided(decision);
        entry.ranges = Ranges::EMPTY;
        entry.ranges.add(part);
        let waits = entry.copies.0 != NONE;
        if !waits {
            self.wake(index);
        }
        self.entry(index).group = group;
        if !waits {
            self.rest(index);
        }
        Ok(Recorded { decision, waits })
    }

    /// What the first fragment decided for a later one; none if it has not come.
    pub(super) fn later(
        &mut self,
        key: Key,
        hash: u32,
        part: Part,
        now: Time,
    ) -> Option<Result<Decision, DropReason>> {
        let index = self.find_live(&key, hash, now)?;
        let entry = self.entry(index);
        let State::Decided { decision, .. } = entry.state else {
            return match entry.state {
                State::Poisoned => Some(Err(DropReason::FragmentBad)),
                _ => None,
            };
        };
        match entry.ranges.add(part) {
            Added::New => {}
            Added::Duplicate => return Some(Err(DropReason::FragmentBad)),
            Added::Full => return Some(Err(DropReason::FragmentsFull)),
            Added::Overlap => {
                entry.state = State::Poisoned;
                return Some(Err(DropReason::FragmentBad));
            }
        }
        if entry.ranges.is_complete() && entry.copies.0 == NONE {
            self.wake(index);
            self.release(index);
        }
        Some(Ok(decision))
    }

    /// Adds a copy to a datagram whose first fragment has not come; false if there is no room.
    pub(super) fn hold(
        &mut self,
        key: Key,
        hash: u32,
        copy: u32,
        arena: &mut Arena,
        expires: Time,
    ) -> bool {
        let index = match self.find(&key, hash) {
            Some(index) => index,
            None => match self.insert(key, hash, State::Waiting, expires) {
                Some(index) => {
                    self.holding.push(&mut self.entries, index);
                    index
                }
                None => return false,
            },
        };
        let entry = self.entry(index);
        match entry.copies.1 {
            NONE => entry.copies.0 = copy,
            last => arena.link(last, copy),
        }
        entry.copies.1 = copy;
        true
    }

    /// The oldest copy of an entry, which holds one less from now on.
    fn pop(&mut self, index: u32, arena: &mut Arena) -> u32 {
        let entry = self.entry(index);
        let copy = entry.copies.0;
        entry.copies.0 = arena.next(copy);
        if entry.copies.0 == NONE {
            entry.copies.1 = NONE;
        }
        copy
    }

    /// The oldest copy of a datagram whose first fragment has come.
    pub(super) fn take(&mut self, key: Key, hash: u32, arena: &mut Arena) -> Option<u32> {
        let index = self.find(&key, hash)?;
        let entry = self.entry(index);
        if entry.state == State::Waiting || entry.copies.0 == NONE {
            return None;
        }
        let copy = self.pop(index, arena);
        if self.entry(index).copies.0 == NONE {
            self.holding.remove(&mut self.entries, index);
            if self.entry(index).ranges.is_complete() {
                self.release(index);
            } else {
                self.rest(index);
            }
        }
        Some(copy)
    }

    /// The oldest copy of a datagram that has expired; frees what else has.
    pub(super) fn expire(&mut self, now: Time, arena: &mut Arena) -> Option<u32> {
        for _ in 0..REAP_MAX {
            let index = self.idle.first();
            if index == NONE || now < self.entry(index).expires {
                break;
            }
            self.wake(index);
            self.release(index);
        }
        let index = self.holding.first();
        if index == NONE || now < self.entry(index).expires {
            return None;
        }
        let copy = self.pop(index, arena);
        if self.entry(index).copies.0 == NONE {
            self.holding.remove(&mut self.entries, index);
            self.release(index);
        }
        Some(copy)
    }

    /// When the next entry expires, in milliseconds; `u64::MAX`: none.
    pub(super) fn next_expiry(&self) -> u64 {
        [self.idle.first(), self.holding.first()]
            .into_iter()
            .filter(|&index| index != NONE)
            .map(|index| self.entries[index as usize].expires.0)
            .min()
            .unwrap_or(u64::MAX)
    }
}
