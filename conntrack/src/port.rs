//! External endpoints: which are in use, and by what.
//!
//! A (address slot, protocol) has a 32-bit cell a port, and a bit a port in the ownership bitmap,
//! which steering reads and the search for a free port scans. A cell is
//! `kind << 29 | value`: free (0), changing, exclusive (mapping), overloaded (sessions),
//! fixed (a forward's record), held (tick until which).
//!
//! Every way from free to not free and back leads through *changing*, and only the worker that
//! made it so touches the bit then. So a claim and a release of one port never interleave, and the
//! bit is set exactly while the cell is not free.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::endpoint::Protocol;
use crate::fill::{Before, Fills};
use crate::layout::{CELL_WORDS, PORT_WORDS, PROTOCOLS};
use crate::port_set::PortSet;
use crate::prefetch::prefetch;
use crate::word::Word;

const KIND_SHIFT: u32 = 29;
const VALUE_MASK: u32 = (1 << KIND_SHIFT) - 1;

/// Tries for a random start within a set: with half of it gaps, one search in 65,536 fails them all.
const STARTS_MAX: usize = 16;

/// Rounds that a session waits for a port that is changing.
const JOIN_ROUNDS: u32 = 2_000;

/// What a port is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Free,
    /// Between free and something else, for nanoseconds.
    Changing,
    /// An `eim` mapping's alone.
    Exclusive(u32),
    /// Used by so many `edm` mappings.
    Overloaded(u32),
    /// A forward's; the number of its record.
    Fixed(u32),
    /// In hold-down until this tick.
    Held(u32),
}

impl Cell {
    fn pack(self) -> u32 {
        let (kind, value) = match self {
            Cell::Free => (0, 0),
            Cell::Changing => (1, 0),
            Cell::Exclusive(mapping) => (2, mapping),
            Cell::Overloaded(count) => (3, count),
            Cell::Fixed(place) => (4, place),
            Cell::Held(until) => (5, until),
        };
        kind << KIND_SHIFT | value & VALUE_MASK
    }

    fn unpack(cell: u32) -> Cell {
        let value = cell & VALUE_MASK;
        match cell >> KIND_SHIFT {
            0 => Cell::Free,
            2 => Cell::Exclusive(value),
            3 => Cell::Overloaded(value),
            4 => Cell::Fixed(value),
            5 => Cell::Held(value),
            _ => Cell::Changing,
        }
    }
}

/// A port of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub slot: u16,
    pub protocol: Protocol,
    pub port: u16,
}

impl Place {
    /// The (address, protocol) table it is in.
    fn table(self) -> usize {
        table_of(self.slot, self.protocol)
    }

    /// Word and bit of the ownership bitmap.
    fn bit(self) -> (usize, u64) {
        (
            self.table() * PORT_WORDS + usize::from(self.port) / 64,
            1 << (self.port % 64),
        )
    }

    fn cell(self) -> (usize, u32) {
        (
            self.table() * CELL_WORDS + usize::from(self.port) / 2,
            u32::from(self.port) % 2 * 32,
        )
    }
}

/// The (address, protocol) table.
pub(crate) fn table_of(slot: u16, protocol: Protocol) -> usize {
    usize::from(slot) * PROTOCOLS + protocol.index()
}

/// All ports of all addresses.
pub(crate) struct Ports<'m, W> {
    /// A word an (address, protocol): held ports (upper half), tick of the last pass over them.
    pub tallies: &'m [W],
    pub fills: Fills<'m, W>,
    pub cells: &'m [W],
    pub owned: &'m [W],
    /// Three counters: ports of dynamic mappings by protocol.
    pub in_use: &'m [W],
}

impl<W: Word> Ports<'_, W> {
    /// How many address slots there are.
    pub fn slots(&self) -> u16 {
        (self.tallies.len() / PROTOCOLS) as u16
    }

    pub fn cell(&self, place: Place) -> Cell {
        let (word, shift) = place.cell();
        Cell::unpack((self.cells[word].load(Acquire) >> shift) as u32)
    }

    /// Asks the processor for what a claim of a port needs.
    #[inline(always)]
    pub fn prefetch(&self, place: Place) {
        if let Some(cell) = self.cells.get(place.cell().0) {
            prefetch(cell);
        }
        if let Some(owned) = self.owned.get(place.bit().0) {
            prefetch(owned);
        }
    }

    /// Replaces a cell; the error is what was found instead.
    fn swap(&self, place: Place, from: Cell, to: Cell) -> Result<(), Cell> {
        let (word, shift) = place.cell();
        let word = &self.cells[word];
        let mut pair = word.load(Acquire);
        loop {
            let found = (pair >> shift) as u32;
            if found != from.pack() {
                return Err(Cell::unpack(found));
            }
            let swapped = pair & !(0xffff_ffff << shift) | u64::from(to.pack()) << shift;
            match word.compare_exchange(pair, swapped, AcqRel, Acquire) {
                Ok(_) => return Ok(()),
                Err(other) => pair = other,
            }
        }
    }

    /// Only for the worker that made the cell *changing*, or holds the tables alone.
    pub fn settle(&self, place: Place, to: Cell) {
        let (word, bit) = place.bit();
        let table = place.table();
        if to == Cell::Free {
            self.fills.gives(table, place.port);
            self.owned[word].fetch_and(!bit, AcqRel);
        } else if self.owned[word].fetch_or(bit, AcqRel) & bit == 0 {
            self.fills.took(table, place.port);
        }
        let (word, shift) = place.cell();
        let mut pair = self.cells[word].load(Acquire);
        loop {
            let settled = pair & !(0xffff_ffff << shift) | u64::from(to.pack()) << shift;
            match self.cells[word].compare_exchange(pair, settled, AcqRel, Acquire) {
                Ok(_) => break,
                Err(other) => pair = other,
            }
        }
        if to == Cell::Free {
            self.fills.gave(table);
        }
    }

    fn count(&self, protocol: Protocol, by: i64) {
        self.in_use[protocol.index()].fetch_add(by as u64, Relaxed);
    }

    /// Takes a free port; the error is what it is used for.
    pub fn claim(&self, place: Place, to: Cell) -> Result<(), Cell> {
        self.swap(place, Cell::Free, Cell::Changing)?;
        if !matches!(to, Cell::Fixed(_)) {
            self.count(place.protocol, 1);
        }
        self.settle(place, to);
        Ok(())
    }

    /// Adds a session to a free or overloaded port; the error is what it is used for. Waits for a
    /// worker that is changing it: it may be the last port that will do.
    pub fn join(&self, place: Place) -> Result<(), Cell> {
        let mut found = Cell::Free;
        for round in 0..JOIN_ROUNDS {
            let joined = match found {
                Cell::Free => self.claim(place, Cell::Overloaded(1)),
                Cell::Overloaded(count) if count < VALUE_MASK => {
                    self.swap(place, found, Cell::Overloaded(count + 1))
                }
                Cell::Changing => {
                    W::pause(round);
                    Err(self.cell(place))
                }
                other => return Err(other),
            };
            match joined {
                Ok(()) => return Ok(()),
                Err(now) => found = now,
            }
        }
        Err(Cell::Changing)
    }

    /// Takes a session off an overloaded port; the last one frees it.
    pub fn leave(&self, place: Place) {
        let mut found = self.cell(place);
        while let Cell::Overloaded(count) = found {
            let left = match count {
                1 => self.swap(place, found, Cell::Changing),
                _ => self.swap(place, found, Cell::Overloaded(count - 1)),
            };
            match left {
                Ok(()) if count == 1 => {
                    self.count(place.protocol, -1);
                    return self.settle(place, Cell::Free);
                }
                Ok(()) => return,
                Err(now) => found = now,
            }
        }
    }

    /// Frees an `eim` mapping's port, or holds it down until a tick.
    pub fn release(&self, place: Place, mapping: u32, held_until: Option<u32>) {
        if self
            .swap(place, Cell::Exclusive(mapping), Cell::Changing)
            .is_ok()
        {
            self.count(place.protocol, -1);
            if held_until.is_some() {
                self.tallies[place.table()].fetch_add(1 << 32, AcqRel);
            }
            self.settle(place, held_until.map_or(Cell::Free, Cell::Held));
        }
    }

    /// Holds a free port down until a tick; false if it is in use.
    pub fn hold(&self, place: Place, until: u32) -> bool {
        if self.swap(place, Cell::Free, Cell::Changing).is_err() {
            return false;
        }
        self.tallies[place.table()].fetch_add(1 << 32, AcqRel);
        self.settle(place, Cell::Held(until));
        true
    }

    /// Ends a forward's or a hold-down's claim.
    pub fn drop_claim(&self, place: Place, cell: Cell) -> bool {
        if self.swap(place, cell, Cell::Changing).is_err() {
            return false;
        }
        if matches!(cell, Cell::Held(_)) {
            self.tallies[place.table()].fetch_add((u64::MAX >> 32) << 32, AcqRel);
        }
        self.settle(place, Cell::Free);
        true
    }

    /// Makes the port a forward's; the error is a use that must end first.
    pub fn fix(&self, place: Place, forward: u32) -> Result<(), Cell> {
        if let held @ Cell::Held(_) = self.cell(place) {
            self.drop_claim(place, held);
        }
        self.claim(place, Cell::Fixed(forward))
    }

    /// Ports of this (address, protocol) in hold-down.
    pub fn held(&self, slot: u16, protocol: Protocol) -> u32 {
        (self.tallies[table_of(slot, protocol)].load(Acquire) >> 32) as u32
    }

    /// Frees the ports of 64 whose hold-down is over; returns how many.
    pub fn end_holds(&self, slot: u16, protocol: Protocol, word: usize, tick: u32) -> u32 {
        let mut owned = self.owned[table_of(slot, protocol) * PORT_WORDS + word].load(Acquire);
        let mut ended = 0;
        while owned != 0 {
            let port = (word * 64) as u16 + owned.trailing_zeros() as u16;
            owned &= owned - 1;
            let place = Place {
                slot,
                protocol,
                port,
            };
            if let cell @ Cell::Held(until) = self.cell(place)
                && until <= tick
                && self.drop_claim(place, cell)
            {
                ended += 1;
            }
        }
        ended
    }

    /// Frees every port whose hold-down is over, at most once a tick: what a claimer does when
    /// nothing else is free. Returns how many.
    pub fn end_all_holds(&self, slot: u16, protocol: Protocol, tick: u32) -> u32 {
        let tally = &self.tallies[table_of(slot, protocol)];
        let old = tally.load(Acquire);
        let new = old >> 32 << 32 | u64::from(tick);
        let ours = old >> 32 != 0
            && old as u32 != tick
            && tally.compare_exchange(old, new, AcqRel, Relaxed).is_ok();
        if !ours {
            return 0;
        }
        (0..PORT_WORDS)
            .map(|word| self.end_holds(slot, protocol, word, tick))
            .sum()
    }

    /// `Err`: no port of the pool is free. `Ok`: what [`Ports::note_exhausted`] must be shown.
    pub fn look(&self, slot: u16, protocol: Protocol) -> Result<Before, ()> {
        self.fills.look(table_of(slot, protocol))
    }

    /// Notes that a search of the whole pool found no free port.
    pub fn note_exhausted(&self, slot: u16, protocol: Protocol, before: &Before) {
        self.fills.set(table_of(slot, protocol), before);
    }

    /// Is the port's bit set?
    pub fn is_owned(&self, slot: u16, protocol: Protocol, port: u16) -> bool {
        self.owned_bits(slot, protocol, usize::from(port) / 64) >> (port % 64) & 1 == 1
    }

    /// The ownership bits of 64 ports.
    pub fn owned_bits(&self, slot: u16, protocol: Protocol, word: usize) -> u64 {
        self.owned[table_of(slot, protocol) * PORT_WORDS + word].load(Relaxed)
    }

    /// Are 64 ports free, by their cells and their bits? For checks, which mostly meet free ones.
    pub fn all_free(&self, slot: u16, protocol: Protocol, word: usize) -> bool {
        let cells = table_of(slot, protocol) * CELL_WORDS + word * 32;
        self.owned_bits(slot, protocol, word) == 0
            && self.cells[cells..cells + 32]
                .iter()
                .all(|pair| pair.load(Relaxed) == 0)
    }

    fn bitmap(&self, table: usize) -> &[W] {
        &self.owned[table * PORT_WORDS..][..PORT_WORDS]
    }

    /// Do the counts of a table agree with its bits? Only while no worker is at work.
    pub fn is_counted(&self, slot: u16, protocol: Protocol) -> bool {
        let table = table_of(slot, protocol);
        self.fills.is_right(table, self.bitmap(table))
    }

    /// Writes a cell without its bit. Only whoever holds the tables alone.
    pub fn set_cell(&self, place: Place, cell: Cell) {
        let (word, shift) = place.cell();
        let pair = self.cells[word].load(Relaxed);
        let set = pair & !(0xffff_ffff << shift) | u64::from(cell.pack()) << shift;
        self.cells[word].store(set, Relaxed);
    }

    /// Derives bitmap and counts from the cells. Only whoever holds the tables alone; but steering
    /// reads the bitmap meanwhile, so each word goes from old to right in one store.
    pub fn derive(&self) {
        for protocol in Protocol::ALL {
            let mut in_use = 0;
            for slot in 0..self.slots() {
                let table = table_of(slot, protocol);
                let mut held = 0_u64;
                for word in 0..PORT_WORDS {
                    let mut bits = 0;
                    for bit in 0..64 {
                        let place = Place {
                            slot,
                            protocol,
                            port: (word * 64 + bit) as u16,
                        };
                        let cell = self.cell(place);
                        bits |= u64::from(cell != Cell::Free) << bit;
                        held += u64::from(matches!(cell, Cell::Held(_)));
                        let dynamic = matches!(cell, Cell::Exclusive(_) | Cell::Overloaded(_));
                        in_use += u64::from(dynamic);
                    }
                    self.owned[table * PORT_WORDS + word].store(bits, Release);
                }
                self.tallies[table].store(held << 32, Relaxed);
                self.fills.derive(table, self.bitmap(table));
            }
            self.in_use[protocol.index()].store(in_use, Relaxed);
        }
    }
}

/// A random port of the set, each as likely as the others (RFC 6056): a start in a gap would make the
/// port behind the gap the likeliest. In a set full of gaps the last try may lie in one.
fn start_in(set: &PortSet, first: u16, last: u16, random: u64) -> u16 {
    let span = u64::from(last - first) + 1;
    let mut state = random;
    let mut start = first;
    for _ in 0..STARTS_MAX {
        start = first + (((state >> 32) * span) >> 32) as u16;
        if set.contains(start) {
            break;
        }
        // Knuth's MMIX generator: the source's bits are spent, and these need not be guessed.
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
    }
    start
}

/// Offers the ports of a set, masked word by word, from a random one on and around.
pub(crate) fn search<T>(
    set: &PortSet,
    random: u64,
    mask: impl Fn(usize) -> u64,
    mut take: impl FnMut(u16) -> Option<T>,
) -> Option<T> {
    let (first, last) = set.bounds()?;
    let (low, high) = (usize::from(first) / 64, usize::from(last) / 64);
    let start = start_in(set, first, last, random);
    let at = usize::from(start) / 64;
    let above = u64::MAX << (start % 64);
    // The start's word is visited twice: its upper bits first, its lower bits last.
    let upper = std::iter::once((at, above)).chain((at + 1..=high).map(|word| (word, u64::MAX)));
    let lower = (low..at)
        .map(|word| (word, u64::MAX))
        .chain(std::iter::once((at, !above)));
    for (word, part) in upper.chain(lower) {
        let mut ports = set.word(word) & part;
        if ports == 0 {
            continue;
        }
        ports &= mask(word);
        while ports != 0 {
            let port = (word * 64) as u16 + ports.trailing_zeros() as u16;
            ports &= ports - 1;
            if let Some(taken) = take(port) {
                return Some(taken);
            }
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::choose::Kind;
    use crate::layout::FILL_WORDS;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn the_port_behind_a_gap_is_no_likelier_than_others() {
        let mut set = PortSet::empty();
        set.insert_range(1024, 29_999);
        set.insert_range(61_000, 65_535);
        let mut state = 1_u64;
        let mut behind_the_gap = 0;
        for _ in 0..20_000 {
            state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
            let port = search(&set, state, |_| u64::MAX, Some).unwrap();
            assert!(set.contains(port));
            behind_the_gap += u32::from(port == 61_000);
        }
        // One in 33,512 draws is fair; without care it would be nearly every second one.
        assert!(behind_the_gap < 20, "{behind_the_gap} of 20,000");
    }

    struct Memory {
        tallies: Vec<AtomicU64>,
        fills: Vec<AtomicU64>,
        epoch: AtomicU64,
        cells: Vec<AtomicU64>,
        owned: Vec<AtomicU64>,
        in_use: Vec<AtomicU64>,
    }

    impl Memory {
        fn new() -> Memory {
            let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
            Memory {
                tallies: zeros(3),
                fills: zeros(3 * FILL_WORDS),
                epoch: AtomicU64::new(0),
                cells: zeros(3 * CELL_WORDS),
                owned: zeros(3 * PORT_WORDS),
                in_use: zeros(3),
            }
        }
        fn ports(&self) -> Ports<'_, AtomicU64> {
            Ports {
                tallies: &self.tallies,
                fills: Fills {
                    words: &self.fills,
                    epoch: &self.epoch,
                },
                cells: &self.cells,
                owned: &self.owned,
                in_use: &self.in_use,
            }
        }
        fn owned_count(&self) -> u32 {
            self.owned
                .iter()
                .map(|w| w.load(Relaxed).count_ones())
                .sum()
        }
    }

    const UDP: Protocol = Protocol::Udp;

    fn place(port: u16) -> Place {
        Place {
            slot: 0,
            protocol: UDP,
            port,
        }
    }

    #[test]
    fn cells_round_trip() {
        for cell in [
            Cell::Free,
            Cell::Changing,
            Cell::Exclusive(7),
            Cell::Overloaded(VALUE_MASK),
            Cell::Fixed(0),
            Cell::Held(3),
        ] {
            assert_eq!(Cell::unpack(cell.pack()), cell);
        }
    }

    #[test]
    fn neighbours_in_a_word_do_not_disturb_each_other() {
        let memory = Memory::new();
        let ports = memory.ports();
        ports.claim(place(4000), Cell::Exclusive(9)).unwrap();
        ports.join(place(4001)).unwrap();
        ports.join(place(4001)).unwrap();
        assert_eq!(ports.join(place(4000)), Err(Cell::Exclusive(9)));
        assert_eq!(
            ports.claim(place(4001), Cell::Exclusive(1)),
            Err(Cell::Overloaded(2))
        );
        ports.leave(place(4001));
        ports.leave(place(4001));
        assert_eq!(ports.cell(place(4001)), Cell::Free);
        assert_eq!(ports.cell(place(4000)), Cell::Exclusive(9));
        assert_eq!(
            (memory.owned_count(), memory.in_use[1].load(Relaxed)),
            (1, 1)
        );
    }

    #[test]
    fn the_last_free_port_is_found_from_every_start() {
        let memory = Memory::new();
        let ports = memory.ports();
        let mut set = PortSet::empty();
        set.insert_range(1000, 1200);
        set.insert_range(65_535, 65_535);
        for port in (1000..=1200).filter(|&port| port != 1063) {
            ports.claim(place(port), Cell::Exclusive(1)).unwrap();
        }
        ports.claim(place(65_535), Cell::Exclusive(1)).unwrap();
        for random in (0..u64::MAX).step_by(1 << 56) {
            let found = ports.choose_free(0, UDP, (&set, Kind::ALL), random, Some);
            assert_eq!(found, Some(1063));
        }
        ports.claim(place(1063), Cell::Exclusive(1)).unwrap();
        let found = ports.choose_free(0, UDP, (&set, Kind::ALL), 0, Some);
        assert_eq!(found, None);
        assert!(ports.is_counted(0, UDP));
    }

    #[test]
    fn a_held_port_stays_owned_until_its_tick() {
        let memory = Memory::new();
        let ports = memory.ports();
        ports.claim(place(5000), Cell::Exclusive(3)).unwrap();
        ports.release(place(5000), 3, Some(100));
        assert_eq!((ports.held(0, UDP), memory.owned_count()), (1, 1));
        assert_eq!(ports.end_all_holds(0, UDP, 99), 0);
        assert_eq!(ports.end_all_holds(0, UDP, 99), 0, "one pass a tick");
        assert_eq!(ports.end_all_holds(0, UDP, 100), 1);
        assert_eq!((ports.held(0, UDP), memory.owned_count()), (0, 0));
    }

    /// Joins and leaves of two threads on the same ports leave no bit behind.
    #[test]
    fn racing_claims_keep_bits_and_cells_together() {
        let memory = Memory::new();
        let ports = memory.ports();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..30_000_u32 {
                        let place = place(6000 + (round % 3) as u16);
                        if ports.join(place).is_ok() {
                            let (word, bit) = place.bit();
                            assert_ne!(ports.owned[word].load(Acquire) & bit, 0);
                            ports.leave(place);
                        }
                    }
                });
            }
        });
        assert_eq!(
            (memory.owned_count(), memory.in_use[1].load(Relaxed)),
            (0, 0)
        );
        assert!(ports.is_counted(0, UDP));
    }
}
