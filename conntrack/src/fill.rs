//! How full each (address, protocol) is: what lets a search go straight to free ports, and refuse
//! at once where there are none.
//!
//! | word | what |
//! | --- | --- |
//! | 0-15 | owned ports of each group of 1024, 16 bits a group |
//! | 16 | releases, ever |
//! | 17 | the state (see `look`) in which a search found nothing, inverted |
//!
//! A group's count never tells more than its bits: a port counts after its bit was set and until
//! before it is cleared. So 1024 less the count is never less than the free ports.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::layout::{FILL_WORDS, PORT_WORDS};
use crate::port_set::GROUPS;
use crate::word::Word;

const LANES: usize = 4;
const RELEASES: usize = GROUPS / LANES;
const EXHAUSTED: usize = RELEASES + 1;

/// What a table looked like before a search.
pub(crate) struct Before(u64);

/// The counts of all (address, protocol) tables.
pub(crate) struct Fills<'m, W> {
    pub words: &'m [W],
    /// Counts changes of the policy.
    pub epoch: &'m W,
}

impl<W: Word> Fills<'_, W> {
    fn word(&self, table: usize, word: usize) -> &W {
        &self.words[table * FILL_WORDS + word]
    }

    fn add(&self, table: usize, port: u16, by: i64) {
        let group = usize::from(port) / 1024;
        let lane = (by as u64) << (group % LANES * 16);
        // Lanes do not borrow from each other: no count goes below 0 or above 1024.
        self.word(table, group / LANES).fetch_add(lane, AcqRel);
    }

    /// The bit of a port was set.
    pub fn took(&self, table: usize, port: u16) {
        self.add(table, port, 1);
    }

    /// The bit of a port is about to be cleared.
    pub fn gives(&self, table: usize, port: u16) {
        self.add(table, port, -1);
    }

    /// A port can be claimed again.
    pub fn gave(&self, table: usize) {
        self.word(table, RELEASES).fetch_add(1, AcqRel);
    }

    /// Owned ports of each group; while others are at work perhaps fewer than there are.
    pub fn owned(&self, table: usize) -> [u16; GROUPS] {
        let mut owned = [0; GROUPS];
        for (word, lanes) in owned.chunks_mut(LANES).enumerate() {
            let counts = self.word(table, word).load(Acquire);
            for (lane, count) in lanes.iter_mut().enumerate() {
                *count = (counts >> (lane * 16)) as u16;
            }
        }
        owned
    }

    /// `Err`: known to have no free port of the pool. `Ok`: what a search must show to
    /// [`Fills::set`].
    pub fn look(&self, table: usize) -> Result<Before, ()> {
        let epoch = self.epoch.load(Acquire) << 32;
        let state = epoch | self.word(table, RELEASES).load(Acquire) & 0xffff_ffff;
        if self.word(table, EXHAUSTED).load(Acquire) == !state {
            Err(())
        } else {
            Ok(Before(state))
        }
    }

    /// Notes that a search of the whole pool begun after `before` found nothing. A release since
    /// then has changed the state, so that the note says nothing.
    pub fn set(&self, table: usize, before: &Before) {
        self.word(table, EXHAUSTED).store(!before.0, Release);
    }

    /// The pool may be another one: nothing is known of it.
    pub fn void(&self) {
        self.epoch.fetch_add(1, AcqRel);
    }

    /// Counts the bits anew. Only whoever holds the tables alone.
    pub fn derive(&self, table: usize, owned: &[W]) {
        for word in 0..RELEASES {
            let count = |lane: usize| counted(owned, word * LANES + lane) << (lane * 16);
            let lanes: u64 = (0..LANES).map(count).sum();
            self.word(table, word).store(lanes, Relaxed);
        }
        self.word(table, RELEASES).store(0, Relaxed);
        self.word(table, EXHAUSTED).store(0, Relaxed);
    }

    /// Are the counts those of the bits? Only while no worker is at work.
    pub fn is_right(&self, table: usize, owned: &[W]) -> bool {
        let counts = self.owned(table);
        (0..GROUPS).all(|group| u64::from(counts[group]) == counted(owned, group))
    }
}

/// Bits of a group in the words of one table.
fn counted<W: Word>(owned: &[W], group: usize) -> u64 {
    const WORDS: usize = PORT_WORDS / GROUPS;
    let words = &owned[group * WORDS..][..WORDS];
    let bits = words.iter().map(|word| word.load(Relaxed).count_ones());
    bits.sum::<u32>().into()
}
