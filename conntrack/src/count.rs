//! Counts of 32 bits, two in a word.

use std::sync::atomic::Ordering::Relaxed;

use crate::word::Word;

/// Where a count's bits begin in its word.
pub(crate) const LOW: u32 = 0;
pub(crate) const HIGH: u32 = 32;

/// Reads a count.
pub(crate) fn read<W: Word>(word: &W, shift: u32) -> u32 {
    (word.load(Relaxed) >> shift) as u32
}

/// Adds one, unless the count has reached the limit.
pub(crate) fn take<W: Word>(word: &W, shift: u32, limit: u32) -> bool {
    let fits = ((word.fetch_add(1 << shift, Relaxed) >> shift) as u32) < limit;
    if !fits {
        give_back(word, shift);
    }
    fits
}

/// One fewer. Only after [`take`], so that no count falls below 0.
pub(crate) fn give_back<W: Word>(word: &W, shift: u32) {
    word.fetch_add((1_u64 << shift).wrapping_neg(), Relaxed);
}
