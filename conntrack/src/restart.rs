//! Making tables, and taking them over after the process that used them is gone.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::endpoint::{Protocol, Tuple};
use crate::half::{Snapshot, agree};
use crate::layout::{MAGIC, TableSize, header, layout_word};
use crate::mapping::Mapping;
use crate::meta::Meta;
use crate::nat::Nat;
use crate::port::{Cell, Place};
use crate::session::outside::is_plausible;
use crate::subscriber::Quota;
use crate::time::Random;
use crate::verdict::Direction;
use crate::word::Word;

/// What ties tables to one boot of one machine: the clock of their stamps restarts with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Linux: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: [u8; 16],
}

impl Identity {
    fn words(&self) -> [u64; 2] {
        let number = u128::from_le_bytes(self.boot_id);
        [number as u64, (number >> 64) as u64]
    }
}

/// Why tables cannot be made or taken over. Where it says so, making new ones helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// `sessions_max` or `addresses_max` is out of range.
    Size,
    /// The memory is smaller than the size needs.
    Memory,
    /// No tables, or half made ones: make new ones.
    Absent,
    /// Made by a version with another layout: make new ones.
    Layout,
    /// Made for another size: make new ones.
    OtherSize,
    /// Made in another boot: make new ones.
    OtherBoot,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OpenError::Size => "sessions_max or addresses_max is out of range",
            OpenError::Memory => "the memory is too small for the tables",
            OpenError::Absent => "there are no complete tables",
            OpenError::Layout => "the tables have another version's layout",
            OpenError::OtherSize => "the tables have another size",
            OpenError::OtherBoot => "the tables are of another boot",
        })
    }
}

impl std::error::Error for OpenError {}

impl<'m, W: Word> Nat<'m, W> {
    /// Makes empty tables in the first words of `words` and `owned` (more are left alone),
    /// whatever was there. Errors: [`OpenError::Size`], [`OpenError::Memory`].
    pub fn create(
        words: &'m [W],
        owned: &'m [W],
        size: TableSize,
        identity: Identity,
        random: &mut impl Random,
    ) -> Result<Nat<'m, W>, OpenError> {
        let (words, owned) = fitting(words, owned, size)?;
        words[header::MAGIC].store(0, Release);
        for word in words.iter().chain(owned) {
            word.store(0, Relaxed);
        }
        for (place, value) in expected(size, identity) {
            words[place].store(value, Relaxed);
        }
        for i in 0..2 {
            words[header::KEYS + i].store(random.next_u64(), Relaxed);
        }
        words[header::MAGIC].store(MAGIC, Release);
        Ok(Nat::over(words, owned, size))
    }
}

/// The words of a header that must be as expected, each with what it says if it is not.
fn expected(size: TableSize, identity: Identity) -> [(usize, u64); 4] {
    let [low, high] = identity.words();
    [
        (header::LAYOUT, layout_word()),
        (
            header::SIZE,
            u64::from(size.sessions_max) << 32 | u64::from(size.addresses_max),
        ),
        (header::BOOT, low),
        (header::BOOT + 1, high),
    ]
}

fn fitting<'m, W>(
    words: &'m [W],
    owned: &'m [W],
    size: TableSize,
) -> Result<(&'m [W], &'m [W]), OpenError> {
    if !size.valid() {
        return Err(OpenError::Size);
    }
    let words = words.get(..size.words()).ok_or(OpenError::Memory)?;
    let owned = owned.get(..size.owned_words()).ok_or(OpenError::Memory)?;
    Ok((words, owned))
}

impl<'m, W: Word> Nat<'m, W> {
    /// Takes over the tables of a process that is gone, at whatever instruction it was. What was
    /// half made or half removed is removed; everything else goes on, and all that can be derived
    /// (indexes, lists, ports' bits, counts) is derived anew. Forwards and hold-downs are kept;
    /// [`Nat::apply_policy`] must follow.
    pub fn open(
        words: &'m [W],
        owned: &'m [W],
        size: TableSize,
        identity: Identity,
    ) -> Result<Nat<'m, W>, OpenError> {
        let (words, owned) = fitting(words, owned, size)?;
        if words[header::MAGIC].load(Acquire) != MAGIC {
            return Err(OpenError::Absent);
        }
        let errors = [
            OpenError::Layout,
            OpenError::OtherSize,
            OpenError::OtherBoot,
            OpenError::OtherBoot,
        ];
        for ((place, value), error) in expected(size, identity).into_iter().zip(errors) {
            if words[place].load(Relaxed) != value {
                return Err(error);
            }
        }
        let nat = Nat::over(words, owned, size);
        nat.repair();
        Ok(nat)
    }

    fn repair(&self) {
        for word in self.locks.words.iter().chain(self.memos.words) {
            word.store(0, Relaxed);
        }
        for pool in [&self.sessions, &self.mappings.pool] {
            pool.used
                .store(pool.used.load(Relaxed).min(u64::from(pool.max)), Relaxed);
            pool.clear();
        }
        for index in [&self.tuples, &self.filters, &self.mappings.index] {
            index.clear();
        }
        self.subscribers.clear_counts();
        self.keep_independent_cells();
        self.repair_mappings();
        let inbound = [
            header::SESSIONS_INBOUND,
            header::INBOUND_MAPPED,
            header::HALF_OPEN,
        ];
        for counter in inbound {
            self.header[counter].store(0, Relaxed);
        }
        let sessions = self.repair_sessions();
        let mappings = self.drop_unused_mappings();
        self.ports.derive();
        let created = self.header[header::CREATED].load(Relaxed);
        let evicted = self.header[header::EVICTED].load(Relaxed);
        let expired = self.header[header::EXPIRED].load(Relaxed);
        let known = expired + evicted + sessions;
        for (counter, value) in [
            (header::SESSIONS, sessions),
            (header::MAPPINGS, mappings),
            (header::CREATED, created.max(known)),
            (header::REMOVED, created.max(known) - known),
        ] {
            self.header[counter].store(value, Relaxed);
        }
    }

    /// Forwards and hold-downs are in the cells alone; mappings claim theirs again.
    fn keep_independent_cells(&self) {
        self.forwards.clear();
        for slot in 0..self.ports.slots() {
            for protocol in Protocol::ALL {
                for port in 0..=u16::MAX {
                    let place = Place {
                        slot,
                        protocol,
                        port,
                    };
                    match self.ports.cell(place) {
                        Cell::Free | Cell::Held(_) => {}
                        // Several ports of a forward have one record.
                        Cell::Fixed(number) if self.forwards.is_valid(number) => {
                            self.forwards.set_place(number, 0);
                        }
                        _ => self.ports.set_cell(place, Cell::Free),
                    }
                }
            }
        }
    }

    /// Lets each living mapping claim its port, with no sessions yet; one that cannot is ended.
    fn repair_mappings(&self) {
        for number in 1..=self.mappings.pool.highest() {
            let mapping = self.mappings.read(number).filter(Mapping::alive);
            let claimed = mapping.is_some_and(|mapping| self.reclaim(&mapping));
            self.mappings.set(number, claimed, 0);
        }
    }

    fn reclaim(&self, mapping: &Mapping) -> bool {
        let place = mapping.place();
        if mapping.slot >= self.ports.slots() {
            return false;
        }
        let claim = match (self.ports.cell(place), mapping.shared()) {
            (Cell::Free, true) => Cell::Exclusive(mapping.number),
            (Cell::Free, false) => Cell::Overloaded(1),
            (Cell::Overloaded(count), false) => Cell::Overloaded(count + 1),
            _ => return false,
        };
        // Of two in one pool, the policy that follows keeps one.
        if mapping.shared() {
            let hash = self.mapping_hash(mapping.protocol(), mapping.internal);
            if !self.mappings.index.insert(hash, mapping.number) {
                return false;
            }
        }
        self.ports.set_cell(place, claim);
        true
    }

    /// Enters every sound session anew and frees the rest; returns how many there are.
    fn repair_sessions(&self) -> u64 {
        let mut sessions = 0;
        for session in 1..=self.sessions.highest() {
            if self.repair_session(session) {
                sessions += 1;
            } else {
                for half in [2 * session, 2 * session + 1] {
                    self.half(half).mend(Meta(0));
                }
                self.sessions.push(session);
            }
        }
        sessions
    }

    fn repair_session(&self, session: u32) -> bool {
        let halves = [self.half(2 * session), self.half(2 * session + 1)];
        let [even, odd] = halves.map(|half| half.read_held());
        // A half that is valid while it is written has its words: only word 0 (a transition) or
        // the next hop was being changed. A new one becomes valid with the end of its write.
        if !agree(&even, &odd)
            || !self.may_use_mappings(&even, &odd)
            || !is_plausible(&self.forwards, even.meta(), even.mapping())
        {
            return false;
        }
        let absent = |tuple: &Tuple| {
            self.find(tuple, self.hash(tuple))
                .is_ok_and(|found| found.is_none())
        };
        halves[0].mend(even.meta());
        halves[1].mend(odd.meta().with_state(even.meta().state()));
        if !absent(&even.tuple()) || !absent(&odd.tuple()) {
            return false;
        }
        for (half, snapshot) in halves.into_iter().zip([&even, &odd]) {
            half.fill(&snapshot.side());
        }
        let hashes = [self.hash(&even.tuple()), self.hash(&odd.tuple())];
        let list = even.meta().shared().then(|| self.filter_key(&even, &odd));
        if !self.enter(session, list, hashes) {
            return false;
        }
        if even.meta().opened_outside() {
            self.admit_again(session, even.meta(), even.mapping());
        }
        let Tuple {
            protocol, source, ..
        } = even.tuple();
        if even.meta().counted() && !self.charge_again(source.addr, Quota::Sessions, protocol) {
            for half in halves {
                half.mend(half.read_held().meta().with_counted(false));
            }
        }
        for number in self.mappings_of(&even, &odd).into_iter().flatten() {
            let count = self
                .mappings
                .read(number)
                .map_or(0, |mapping| mapping.sessions());
            self.mappings.set(number, true, count + 1);
        }
        true
    }

    /// The mappings that a session counts in: the even half's, and a hairpin's odd half's.
    fn mappings_of(&self, even: &Snapshot, odd: &Snapshot) -> [Option<u32>; 2] {
        let hairpin = odd.meta().direction() == Direction::Hairpin;
        let some = |number: u32| (number != 0).then_some(number);
        [
            some(even.mapping()),
            some(odd.mapping()).filter(|_| hairpin),
        ]
    }

    /// Do the session's mappings live, fit, and have room for it?
    fn may_use_mappings(&self, even: &Snapshot, odd: &Snapshot) -> bool {
        let hairpin = odd.meta().direction() == Direction::Hairpin;
        let fits = |snapshot: &Snapshot| {
            let number = snapshot.mapping();
            if number == 0 || number > self.mappings.pool.highest() {
                return number == 0;
            }
            self.mappings.read(number).is_some_and(|mapping| {
                mapping.alive()
                    && mapping.protocol() == snapshot.meta().protocol()
                    && mapping.internal == snapshot.tuple().source
                    && mapping.external == snapshot.written().0
                    && mapping.shared() == snapshot.meta().shared()
                    && (mapping.shared() || mapping.sessions() == 0)
            })
        };
        fits(even)
            && if hairpin {
                fits(odd)
            } else {
                odd.mapping() == even.mapping()
            }
    }

    /// Ends mappings that nothing keeps; returns how many are left.
    fn drop_unused_mappings(&self) -> u64 {
        let mut left = 0;
        for number in 1..=self.mappings.pool.highest() {
            let mapping = self.mappings.read(number).filter(Mapping::alive);
            let Some(mapping) = mapping else {
                self.mappings.pool.push(number);
                continue;
            };
            let stays = mapping.shared() && mapping.protocol() != Protocol::Tcp;
            if mapping.sessions() > 0 || stays {
                left += 1;
                let (address, protocol) = (mapping.internal.addr, mapping.protocol());
                if mapping.counted() && !self.charge_again(address, Quota::Ports, protocol) {
                    self.mappings.set_uncounted(number);
                }
                continue;
            }
            self.mappings.set(number, false, 0);
            if mapping.shared() {
                let hash = self.mapping_hash(mapping.protocol(), mapping.internal);
                self.mappings.index.remove(hash, number);
            }
            let rest = match self.ports.cell(mapping.place()) {
                Cell::Overloaded(count) if count > 1 => Cell::Overloaded(count - 1),
                _ => Cell::Free,
            };
            self.ports.set_cell(mapping.place(), rest);
            self.mappings.pool.push(number);
        }
        left
    }
}
