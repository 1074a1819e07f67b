//! A fixed index from hashes to record numbers: lines of sixteen 32-bit entries, two lines a key.
//!
//! An entry is `tag << number_bits | number`; 0 is empty, so number 0 is never used. A key goes
//! into the emptier of its two lines. Filled once, that refuses first at a load of about 0.85; under
//! churn at a constant load an insertion in 14,000 is refused at 0.80, one in 130,000 at 0.78,
//! and none in 1.2 million at 0.76: so the index is sized for [`LOAD`]. The index knows no keys: a probe verifies the record.
//!
//! Orderings. An insertion publishes with release, so a prober that found an entry and fenced
//! (acquire) sees the record that was written before. A prober may miss an entry that is inserted
//! at that instant; whoever must not, holds the key's lock.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::prefetch::prefetch;
use crate::word::Word;

/// Words in a line: 64 bytes.
pub(crate) const LINE_WORDS: usize = 8;
/// Entries in a line.
pub(crate) const LINE_ENTRIES: usize = 16;
/// Entries in use at most, as a fraction.
const LOAD: (u64, u64) = (3, 4);

/// Lines for `entries` entries. Two more than the load asks: tiny tables have no averages.
pub(crate) const fn lines_for(entries: u64) -> usize {
    (entries * LOAD.1).div_ceil(LINE_ENTRIES as u64 * LOAD.0) as usize + 2
}

/// The two lines of a hash. Multiply-shift range reduction: the number of lines need not be a power
/// of two.
#[inline(always)]
pub(crate) fn places(hash: u64, lines: usize) -> [usize; 2] {
    let lines = lines as u64;
    [
        (((hash >> 32) * lines) >> 32) as usize,
        (((hash & 0xffff_ffff) * lines) >> 32) as usize,
    ]
}

/// The index over its words.
pub(crate) struct Index<'m, W> {
    lines: &'m [[W; LINE_WORDS]],
    number_bits: u32,
}

impl<'m, W: Word> Index<'m, W> {
    /// `records`: numbers are below it.
    pub fn new(words: &'m [W], records: u32) -> Index<'m, W> {
        let (lines, rest) = words.as_chunks();
        debug_assert!(rest.is_empty() && !lines.is_empty());
        Index {
            lines,
            number_bits: 32 - (records - 1).leading_zeros(),
        }
    }

    #[inline(always)]
    fn places(&self, hash: u64) -> [usize; 2] {
        places(hash, self.lines.len())
    }

    /// Bits 32 and up, which the range reduction of the first line hardly uses.
    #[inline(always)]
    fn entry(&self, hash: u64, number: u32) -> u32 {
        ((hash >> 32) as u32) << self.number_bits | number
    }

    /// Offers the numbers of all entries with the key's tag, until `verify` returns something.
    #[inline(always)]
    pub fn find<T>(&self, hash: u64, mut verify: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let tag = self.entry(hash, 0);
        let mask = u32::MAX << self.number_bits;
        let numbers = !mask;
        for place in self.places(hash) {
            for word in &self.lines[place] {
                let pair = word.load(Relaxed);
                for entry in [pair as u32, (pair >> 32) as u32] {
                    if (entry ^ tag) & mask == 0 && entry & numbers != 0 {
                        W::fence(Acquire);
                        if let Some(found) = verify(entry & numbers) {
                            return Some(found);
                        }
                    }
                }
            }
        }
        None
    }

    /// Puts a number under a hash; false if both lines are full.
    #[must_use]
    pub fn insert(&self, hash: u64, number: u32) -> bool {
        let entry = self.entry(hash, number);
        let mut places = self.places(hash);
        if self.vacancies(places[0]) < self.vacancies(places[1]) {
            places.swap(0, 1);
        }
        places.into_iter().any(|place| {
            self.lines[place]
                .iter()
                .any(|word| swap_entry(word, 0, entry))
        })
    }

    /// Takes out exactly this number under this hash; false if it is not there.
    pub fn remove(&self, hash: u64, number: u32) -> bool {
        self.swap(self.places(hash), self.entry(hash, number), 0)
    }

    /// Puts one number in the place of another under the same hash.
    pub fn replace(&self, hash: u64, number: u32, by: u32) -> bool {
        self.swap(
            self.places(hash),
            self.entry(hash, number),
            self.entry(hash, by),
        )
    }

    fn swap(&self, places: [usize; 2], from: u32, to: u32) -> bool {
        places.into_iter().any(|place| {
            self.lines[place]
                .iter()
                .any(|word| swap_entry(word, from, to))
        })
    }

    fn vacancies(&self, place: usize) -> usize {
        let empty = |pair: u64| usize::from(pair as u32 == 0) + usize::from(pair >> 32 == 0);
        self.lines[place]
            .iter()
            .map(|word| empty(word.load(Relaxed)))
            .sum()
    }

    /// Asks the processor for both lines of a hash.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        for place in self.places(hash) {
            prefetch(&self.lines[place]);
        }
    }

    /// All entries with their lines, for checks on quiescent tables: (line, entry, number).
    pub fn entries(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        let numbers = !(u32::MAX << self.number_bits);
        self.lines
            .iter()
            .enumerate()
            .flat_map(move |(place, line)| {
                line.iter().flat_map(move |word| {
                    let pair = word.load(Relaxed);
                    [pair as u32, (pair >> 32) as u32]
                        .into_iter()
                        .filter(|&entry| entry != 0)
                        .map(move |entry| (place, entry, entry & numbers))
                })
            })
    }

    /// Takes out everything. Only whoever holds the tables alone.
    pub fn clear(&self) {
        for word in self.lines.as_flattened() {
            word.store(0, Relaxed);
        }
    }

    /// Does this entry, in this line, belong to the hash?
    pub fn belongs(&self, place: usize, entry: u32, hash: u64, number: u32) -> bool {
        self.places(hash).contains(&place) && self.entry(hash, number) == entry
    }
}

/// Replaces an entry in one of a word's two places.
fn swap_entry<W: Word>(word: &W, from: u32, to: u32) -> bool {
    let mut pair = word.load(Relaxed);
    loop {
        let shift = match (pair as u32 == from, (pair >> 32) as u32 == from) {
            (true, _) => 0,
            (_, true) => 32,
            _ => return false,
        };
        let swapped = pair & !(0xffff_ffff << shift) | u64::from(to) << shift;
        match word.compare_exchange(pair, swapped, AcqRel, Relaxed) {
            Ok(_) => return true,
            Err(found) => pair = found,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::hash::mix;
    use std::sync::atomic::AtomicU64;

    fn memory(lines: usize) -> Vec<AtomicU64> {
        (0..lines * LINE_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn finds_what_was_inserted_until_it_is_removed() {
        let words = memory(lines_for(1000));
        let index = Index::new(&words, 1001);
        let exact = |n: u32| index.find(mix(u64::from(n)), |number| (number == n).then_some(()));
        for n in 1..=1000 {
            assert!(index.insert(mix(u64::from(n)), n));
        }
        assert!((1..=1000).all(|n| exact(n).is_some()));
        assert!(index.replace(mix(7), 7, 1000));
        assert!(exact(7).is_none());
        assert!(index.remove(mix(7), 1000));
        assert!(!index.remove(mix(7), 1000));
        assert!(index.remove(mix(8), 8) && exact(8).is_none());
        assert_eq!(index.entries().count(), 998);
    }

    /// The size that `lines_for` gives takes all its entries, and goes on doing so under churn.
    #[test]
    fn takes_its_load_under_churn() {
        let entries = 100_000_u32;
        let words = memory(lines_for(u64::from(entries)));
        let index = Index::new(&words, entries + 1);
        let hash = |n: u32, age: u32| mix(u64::from(n) << 32 | u64::from(age));
        for n in 1..=entries {
            assert!(index.insert(hash(n, 0), n), "refused at {n} of {entries}");
        }
        for age in 0..3 {
            for n in 1..=entries {
                assert!(index.remove(hash(n, age), n));
                assert!(index.insert(hash(n, age + 1), n), "refused in churn at {n}");
            }
        }
    }
}
