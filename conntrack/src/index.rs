//! A fixed index from hashes to record numbers: lines of thirteen 32-bit entries, two lines a key.
//!
//! | word of a line | what |
//! | --- | --- |
//! | 0, and 1's lower half | twelve byte tags: 0 free, else some bits of the hash |
//! | 1's upper half | entry 12, which has no tag |
//! | 2 to 7 | entries 0 to 11 |
//!
//! An entry is `more bits of the hash << number_bits | number`; number 0 is never used. The tags tell
//! in a few instructions which entries to look at, without a branch an entry. The index knows no
//! keys: a probe verifies the record.
//!
//! A key goes into the emptier of its two lines, if they are full into entry 12 of one of them, and
//! then into one of a few further lines. Those are looked at only while any key is in one (a counter
//! tells), and only if entry 12 of all lines before was ever used: what is taken out of it leaves
//! [`USED`] there. So a key that is there is found in its two lines but for rare cases, and the index
//! can be filled far: under churn at a load of 0.86 two of 4 million insertions were refused, at 0.88
//! 32, at 0.92 two thousand. A key that is not there costs two lines, and more only in an index that is
//! all but full.
//!
//! Orderings. Who sets a tag owns the place, then publishes the entry with release, so a prober that
//! found an entry and fenced (acquire) sees the record that was written before. The entry is taken out
//! before the tag is cleared: so a place is given away again only when it is empty. A prober may miss
//! an entry that is inserted at that instant; whoever must not, holds the key's lock.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::hash::mix;
use crate::prefetch::prefetch;
use crate::word::Word;

/// Words in a line: 64 bytes.
pub(crate) const LINE_WORDS: usize = 8;
/// Entries in a line.
pub(crate) const LINE_ENTRIES: usize = 13;
/// Those of them that have a tag.
const TAGGED: u32 = 12;
/// Lines that a key may go to when its two are full.
const FURTHER: u64 = 6;
/// Entry 12 after its number was taken out: free, but keys may have gone on to further lines.
const USED: u32 = u32::MAX << 31;

/// The lowest bit of every byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// How full an index is with all its entries.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// 0.86: every packet looks here.
    Usual,
    /// 0.93: looked at when sessions are made and ended, in some behaviours only.
    High,
}

/// Lines for `entries` entries. Two more than the load asks: tiny tables have no averages.
pub(crate) const fn lines_for(entries: u64, load: Load) -> usize {
    let percent = match load {
        Load::Usual => 86,
        Load::High => 93,
    };
    (entries * 100).div_ceil(LINE_ENTRIES as u64 * percent) as usize + 2
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

/// The tag of a hash: bits that the range reduction of the second line hardly uses.
#[inline(always)]
fn tag(hash: u64) -> u64 {
    u64::from((hash as u8).max(1))
}

/// The highest bit of each byte that is 0.
#[inline(always)]
fn marks(word: u64) -> u64 {
    let low = ONES * 0x7f;
    !(((word & low) + low) | word | low)
}

/// A bit for each byte that is 0, in the order of the bytes.
#[inline(always)]
fn zero_bytes(word: u64) -> u64 {
    (marks(word) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// A bit for each place of a line whose tag is this one.
#[inline(always)]
fn tagged<W: Word>(line: &[W; LINE_WORDS], tag: u64) -> u64 {
    let pattern = tag * ONES;
    let low = zero_bytes(line[0].load(Relaxed) ^ pattern);
    let high = zero_bytes(line[1].load(Relaxed) ^ pattern);
    low | (high & 0xf) << 8
}

/// Where an entry lies in its line: the word, and the shift in it.
#[inline(always)]
fn position(slot: u32) -> (usize, u32) {
    match slot {
        TAGGED.. => (1, 32),
        _ => (2 + slot as usize / 2, slot % 2 * 32),
    }
}

/// The index over its words.
pub(crate) struct Index<'m, W> {
    lines: &'m [[W; LINE_WORDS]],
    /// How many entries are in further lines.
    strays: &'m W,
    number_bits: u32,
}

impl<'m, W: Word> Index<'m, W> {
    /// `strays`: a word for the count of entries in further lines. `records`: numbers are below it.
    pub fn new(words: &'m [W], strays: &'m W, records: u32) -> Index<'m, W> {
        let (lines, rest) = words.as_chunks();
        debug_assert!(rest.is_empty() && !lines.is_empty());
        Index {
            lines,
            strays,
            number_bits: 32 - (records - 1).leading_zeros(),
        }
    }

    #[inline(always)]
    fn places(&self, hash: u64) -> [usize; 2] {
        places(hash, self.lines.len())
    }

    /// The lines that a hash's numbers may be in: its two, and further ones as long as all before are
    /// or were full.
    #[inline(always)]
    fn lines_of(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let places = self.places(hash);
        let full = |place| self.read(place, TAGGED) != 0;
        let beyond = self.strays.load(Relaxed) != 0 && places.into_iter().all(full);
        let first = beyond.then_some(0);
        let further = std::iter::successors(first, move |&step| {
            (step + 1 < FURTHER && full(self.further(hash, step))).then_some(step + 1)
        });
        places
            .into_iter()
            .chain(further.map(move |step| self.further(hash, step)))
    }

    /// A further line of a hash: `step` is below [`FURTHER`].
    #[cold]
    fn further(&self, hash: u64, step: u64) -> usize {
        self.places(mix(hash ^ step))[0]
    }

    /// Bits 32 and up, which the range reduction of the first line hardly uses.
    #[inline(always)]
    fn entry(&self, hash: u64, number: u32) -> u32 {
        ((hash >> 32) as u32) << self.number_bits | number
    }

    #[inline(always)]
    fn read(&self, place: usize, slot: u32) -> u32 {
        let (word, shift) = position(slot);
        (self.lines[place][word & 7].load(Relaxed) >> shift) as u32
    }

    /// The number in an entry, if its bits are the hash's.
    #[inline(always)]
    fn number(&self, entry: u32, hash: u64) -> Option<u32> {
        let bits = u32::MAX << self.number_bits;
        let number = entry & !bits;
        let same = (entry ^ self.entry(hash, 0)) & bits == 0;
        (same && number != 0).then_some(number)
    }

    /// The first number that may be the hash's: usually its own, if it has one.
    #[inline(always)]
    pub fn first(&self, hash: u64) -> Option<u32> {
        let [one, two] = self.places(hash);
        let lines = [&self.lines[one], &self.lines[two]];
        let pattern = tag(hash) * ONES;
        // Four bits a byte: places 0 to 7 of both lines, then 8 to 11.
        let hits = |line: usize, word: usize| marks(lines[line][word].load(Relaxed) ^ pattern);
        let low = hits(0, 0) >> 7 | hits(1, 0) >> 6;
        let high = hits(0, 1) >> 5 | hits(1, 1) >> 4;
        let mut found = low | high & 0xffff_ffff;
        while found != 0 {
            let bit = found.trailing_zeros();
            let slot = bit / 8 + (bit & 2) * 4;
            let word = 2 + slot as usize / 2;
            let entry = (lines[bit as usize & 1][word & 7].load(Relaxed) >> (slot % 2 * 32)) as u32;
            if let Some(number) = self.number(entry, hash) {
                W::fence(Acquire);
                return Some(number);
            }
            found &= found - 1;
        }
        match (lines[0][1].load(Relaxed) | lines[1][1].load(Relaxed)) >> 32 {
            0 => None,
            _ => self.find_beyond(hash),
        }
    }

    #[cold]
    fn find_beyond(&self, hash: u64) -> Option<u32> {
        self.find(hash, Some)
    }

    /// Offers the numbers of all entries with the key's tag, until `verify` returns something.
    #[inline(always)]
    pub fn find<T>(&self, hash: u64, mut verify: impl FnMut(u32) -> Option<T>) -> Option<T> {
        for place in self.lines_of(hash) {
            let mut found = tagged(&self.lines[place], tag(hash)) | 1 << TAGGED;
            while found != 0 {
                let entry = self.read(place, found.trailing_zeros());
                if let Some(number) = self.number(entry, hash) {
                    W::fence(Acquire);
                    if let Some(result) = verify(number) {
                        return Some(result);
                    }
                }
                found &= found - 1;
            }
        }
        None
    }

    /// Puts a number under a hash; false if all lines that it may be in are full.
    #[must_use]
    pub fn insert(&self, hash: u64, number: u32) -> bool {
        let entry = self.entry(hash, number);
        let mut places = self.places(hash);
        if self.vacancies(places[0]) < self.vacancies(places[1]) {
            places.swap(0, 1);
        }
        let claimed = |place| Some((place, self.claim(place, tag(hash))?));
        if let Some((place, slot)) = places.into_iter().find_map(claimed) {
            return self.swap(place, slot, 0, entry);
        }
        if places.into_iter().any(|place| self.fill(place, entry)) {
            return true;
        }
        self.stray(hash, entry)
    }

    /// Puts an entry into one of the further lines.
    #[cold]
    fn stray(&self, hash: u64, entry: u32) -> bool {
        let places = self.places(hash);
        // First the count, so that whoever must find the entry looks for it.
        self.strays.fetch_add(1, AcqRel);
        let entered = (0..FURTHER).any(|step| {
            let place = self.further(hash, step);
            if places.contains(&place) {
                // It would count as an entry of its own line when it is taken out.
                return false;
            }
            match self.claim(place, tag(hash)) {
                Some(slot) => self.swap(place, slot, 0, entry),
                None => self.fill(place, entry),
            }
        });
        if !entered {
            self.strays.fetch_add(u64::MAX, AcqRel);
        }
        entered
    }

    /// Puts an entry into the place without a tag, if that is free.
    fn fill(&self, place: usize, entry: u32) -> bool {
        self.swap(place, TAGGED, 0, entry) || self.swap(place, TAGGED, USED, entry)
    }

    /// Sets a free place's tag.
    fn claim(&self, place: usize, tag: u64) -> Option<u32> {
        for (number, tags) in [(0, 8), (1, 4)] {
            let word = &self.lines[place][number];
            let mut seen = word.load(Relaxed);
            loop {
                let byte = zero_bytes(seen).trailing_zeros();
                if byte >= tags {
                    break;
                }
                let claimed = seen | tag << (8 * byte);
                match word.compare_exchange(seen, claimed, AcqRel, Relaxed) {
                    Ok(_) => return Some(8 * number as u32 + byte),
                    Err(found) => seen = found,
                }
            }
        }
        None
    }

    /// Takes out exactly this number under this hash; false if it is not there.
    pub fn remove(&self, hash: u64, number: u32) -> bool {
        let Some((place, slot)) = self.exchange(hash, number, |slot| match slot {
            TAGGED.. => USED,
            _ => 0,
        }) else {
            return false;
        };
        if slot < TAGGED {
            let tags = &self.lines[place][slot as usize / 8];
            tags.fetch_and(!(0xff << (8 * (slot % 8))), AcqRel);
        }
        if !self.places(hash).contains(&place) {
            self.strays.fetch_add(u64::MAX, AcqRel);
        }
        true
    }

    /// Puts one number in the place of another under the same hash.
    pub fn replace(&self, hash: u64, number: u32, by: u32) -> bool {
        let by = self.entry(hash, by);
        self.exchange(hash, number, |_| by).is_some()
    }

    /// Replaces the entry of a number, wherever it is; where it was.
    fn exchange(&self, hash: u64, number: u32, by: impl Fn(u32) -> u32) -> Option<(usize, u32)> {
        let entry = self.entry(hash, number);
        for place in self.lines_of(hash) {
            let mut found = tagged(&self.lines[place], tag(hash)) | 1 << TAGGED;
            while found != 0 {
                let slot = found.trailing_zeros();
                if self.swap(place, slot, entry, by(slot)) {
                    return Some((place, slot));
                }
                found &= found - 1;
            }
        }
        None
    }

    /// Replaces an entry if it is the expected one.
    fn swap(&self, place: usize, slot: u32, from: u32, to: u32) -> bool {
        let (word, shift) = position(slot);
        let word = &self.lines[place][word];
        let mut seen = word.load(Relaxed);
        while (seen >> shift) as u32 == from {
            let swapped = seen & !(0xffff_ffff << shift) | u64::from(to) << shift;
            match word.compare_exchange(seen, swapped, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(found) => seen = found,
            }
        }
        false
    }

    fn vacancies(&self, place: usize) -> u32 {
        let line = &self.lines[place];
        let untagged = matches!(self.read(place, TAGGED), 0 | USED);
        tagged(line, 0).count_ones() + u32::from(untagged)
    }

    /// Asks the processor for both lines of a hash.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        for place in self.places(hash) {
            prefetch(&self.lines[place]);
        }
    }

    /// All entries with their lines, for checks on quiescent tables: (line, what is there, number).
    pub fn entries(&self) -> impl Iterator<Item = (usize, Held, u32)> {
        let numbers = !(u32::MAX << self.number_bits);
        let slots = |place| (0..=TAGGED).map(move |slot| (place, slot));
        (0..self.lines.len())
            .flat_map(slots)
            .map(move |(place, slot)| {
                let held = Held {
                    entry: self.read(place, slot),
                    tag: (slot < TAGGED).then(|| {
                        let tags = self.lines[place][slot as usize / 8].load(Relaxed);
                        (tags >> (8 * (slot % 8))) as u8
                    }),
                };
                (place, held, held.entry & numbers)
            })
            .filter(|(_, held, _)| match held.tag {
                Some(tag) => tag != 0 || held.entry != 0,
                None => !matches!(held.entry, 0 | USED),
            })
    }

    /// Takes out everything. Only whoever holds the tables alone.
    pub fn clear(&self) {
        for word in self.lines.as_flattened() {
            word.store(0, Relaxed);
        }
        self.strays.store(0, Relaxed);
    }

    /// Is the count of entries in further lines this one?
    pub fn has_strays(&self, count: u64) -> bool {
        self.strays.load(Relaxed) == count
    }

    /// Is this line, where the hash's number is, none of its own two?
    pub fn is_stray(&self, place: usize, hash: u64) -> bool {
        !self.places(hash).contains(&place)
    }

    /// Is this, in this line, what a hash and a number are entered as?
    pub fn belongs(&self, place: usize, held: Held, hash: u64, number: u32) -> bool {
        self.lines_of(hash).any(|line| line == place)
            && self.entry(hash, number) == held.entry
            && held.tag.is_none_or(|found| u64::from(found) == tag(hash))
    }
}

/// What is in one place of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    entry: u32,
    /// None where there is no tag.
    tag: Option<u8>,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn memory(lines: usize) -> Vec<AtomicU64> {
        (0..lines * LINE_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn finds_what_was_inserted_until_it_is_removed() {
        let words = memory(lines_for(1000, Load::Usual));
        let strays = AtomicU64::new(0);
        let index = Index::new(&words, &strays, 1001);
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
        let words = memory(lines_for(u64::from(entries), Load::Usual));
        let strays = AtomicU64::new(0);
        let index = Index::new(&words, &strays, entries + 1);
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

    /// Whatever the lines hold, the first look finds what the thorough one does.
    #[test]
    fn the_first_look_finds_what_is_there() {
        let words = memory(lines_for(2000, Load::Usual));
        let strays = AtomicU64::new(0);
        let index = Index::new(&words, &strays, 2001);
        let (mut slots, mut beyond) = ([0; LINE_ENTRIES], 0);
        for n in 1..=2000 {
            assert!(index.insert(mix(u64::from(n)), n));
        }
        // Fuller than it is made for, so that keys go beyond their lines.
        let more = (2001..2600).filter(|&n| index.insert(mix(u64::from(n)), n % 2000 + 1));
        let more: Vec<u32> = more.collect();
        for n in (1..=2000).chain(more) {
            let (hash, number) = (mix(u64::from(n)), if n > 2000 { n % 2000 + 1 } else { n });
            let offered = |first: u32| index.find(hash, |n| (n == first).then_some(()));
            let first = index.first(hash).expect("it is there");
            assert!(offered(first).is_some() && offered(number).is_some(), "{n}");
            let (place, slot) = index
                .exchange(hash, number, |_| index.entry(hash, number))
                .unwrap();
            slots[slot as usize] += 1;
            beyond += u64::from(index.is_stray(place, hash));
        }
        assert!(slots.iter().all(|&count| count > 0), "{slots:?}");
        assert!(beyond > 0 && index.has_strays(beyond), "{beyond}");
    }

    /// Workers that fill and empty the index together leave neither an entry nor a tag behind.
    #[test]
    fn workers_leave_nothing_behind() {
        let entries = 3_000_u32;
        let words = memory(lines_for(u64::from(entries), Load::Usual));
        let strays = AtomicU64::new(0);
        let index = Index::new(&words, &strays, entries + 1);
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let index = &index;
                scope.spawn(move || {
                    let hash = |n: u32, age: u32| mix(u64::from(n) << 32 | u64::from(age));
                    let mine = (1..=entries).filter(move |n| n % 3 == worker);
                    let mut kept = vec![false; entries as usize + 1];
                    for age in 0..30 {
                        for n in mine.clone() {
                            let there = kept[n as usize];
                            assert_eq!(index.remove(hash(n, age), n), there, "{n}");
                            let entered = index.insert(hash(n, age + 1), n);
                            let found =
                                index.find(hash(n, age + 1), |found| (found == n).then_some(()));
                            assert_eq!(found.is_some(), entered, "{n}");
                            kept[n as usize] = entered;
                        }
                    }
                    for n in mine {
                        assert_eq!(index.remove(hash(n, 30), n), kept[n as usize]);
                    }
                });
            }
        });
        assert_eq!(index.entries().count(), 0);
        assert!(index.has_strays(0));
    }
}
