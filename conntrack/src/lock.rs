//! Striped locks for creators: whoever makes something under a key holds the key's stripe, so two
//! workers never make the same thing twice. Look-ups take no lock.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::layout::STRIPES;
use crate::verdict::Refusal;
use crate::word::{ROUNDS_MAX, Word};

const FREE: u64 = 0;
const HELD: u64 = 1;

/// All stripes.
pub(crate) struct Locks<'m, W> {
    pub words: &'m [W],
}

impl<'m, W: Word> Locks<'m, W> {
    /// Holds the stripes of all these hashes, taken in ascending order (so creators cannot wait
    /// for each other in a circle), until the result is dropped.
    pub fn hold<const N: usize>(&self, hashes: [u64; N]) -> Result<Held<'m, W, N>, Refusal> {
        let mut stripes = hashes.map(|hash| (hash >> 16) as usize % STRIPES);
        stripes.sort_unstable();
        let mut held = Held {
            words: self.words,
            stripes,
            taken: 0,
        };
        while held.taken < N {
            if !held.is_repeated(held.taken) && !take(&self.words[stripes[held.taken]]) {
                return Err(Refusal::Contended);
            }
            held.taken += 1;
        }
        Ok(held)
    }
}

/// Takes a lock word, with a bounded wait.
pub(crate) fn take<W: Word>(word: &W) -> bool {
    (0..ROUNDS_MAX).any(|round| {
        let taken = word.load(Relaxed) == FREE
            && word.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok();
        if !taken {
            W::pause(round);
        }
        taken
    })
}

/// Gives back what [`take`] took.
pub(crate) fn give_back<W: Word>(word: &W) {
    word.store(FREE, Release);
}

/// Stripes held by one worker.
pub(crate) struct Held<'m, W: Word, const N: usize> {
    words: &'m [W],
    stripes: [usize; N],
    taken: usize,
}

impl<W: Word, const N: usize> Held<'_, W, N> {
    fn is_repeated(&self, i: usize) -> bool {
        i > 0 && self.stripes[i - 1] == self.stripes[i]
    }
}

impl<W: Word, const N: usize> Drop for Held<'_, W, N> {
    fn drop(&mut self) {
        for i in 0..self.taken {
            if !self.is_repeated(i) {
                give_back(&self.words[self.stripes[i]]);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn equal_stripes_are_taken_once_and_all_are_given_back() {
        let words: Vec<AtomicU64> = (0..STRIPES).map(|_| AtomicU64::new(0)).collect();
        let locks = Locks { words: &words };
        let held_count = || words.iter().filter(|w| w.load(Relaxed) == HELD).count();
        {
            let _held = locks.hold([5 << 16, 3 << 16, 5 << 16]).unwrap();
            assert_eq!(held_count(), 2);
        }
        assert_eq!(held_count(), 0);
    }
}
