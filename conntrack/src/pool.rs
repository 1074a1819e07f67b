//! Free records of one kind: a stack of released numbers, and behind it those never used.
//!
//! The head word is `tag << 32 | number`; the tag counts changes, so a worker that was away cannot
//! mistake a stack that came back to the same head. A free record holds the next number in the
//! lower half of one of its words.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::prefetch::prefetch;
use crate::word::Word;

/// A stack in the tables. Numbers are 1 to `max`.
pub(crate) struct Pool<'m, W> {
    /// Head word, and the count of numbers ever given out.
    pub head: &'m W,
    pub used: &'m W,
    /// The records' words, `stride` a record, the link in word `link`.
    pub records: &'m [W],
    pub stride: usize,
    pub link: usize,
    pub max: u32,
}

impl<W: Word> Pool<'_, W> {
    fn link(&self, number: u32) -> &W {
        &self.records[number as usize * self.stride + self.link]
    }

    /// Takes a number; `None` if all are in use.
    pub fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Acquire);
        while head as u32 != 0 {
            // The record may be taken and rewritten under us: then the tag has moved on, too.
            let next = self.link(head as u32).load(Relaxed) as u32;
            let new = changed(head, next);
            match self.head.compare_exchange(head, new, AcqRel, Acquire) {
                Ok(_) => {
                    // The next one to be taken, by whoever.
                    prefetch(self.link(next));
                    return Some(head as u32);
                }
                Err(found) => head = found,
            }
        }
        let mut used = self.used.load(Relaxed);
        while used < u64::from(self.max) {
            match self.used.compare_exchange(used, used + 1, AcqRel, Relaxed) {
                Ok(_) => return Some(used as u32 + 1),
                Err(found) => used = found,
            }
        }
        None
    }

    /// Gives a number back. The link word's upper half is kept.
    pub fn push(&self, number: u32) {
        let mut head = self.head.load(Relaxed);
        loop {
            let link = self.link(number);
            link.store(link.load(Relaxed) >> 32 << 32 | head & 0xffff_ffff, Relaxed);
            match self
                .head
                .compare_exchange(head, changed(head, number), AcqRel, Relaxed)
            {
                Ok(_) => return,
                Err(found) => head = found,
            }
        }
    }

    /// Is there none left at the moment?
    pub fn is_empty(&self) -> bool {
        self.head.load(Relaxed) as u32 == 0 && self.used.load(Relaxed) >= u64::from(self.max)
    }

    /// The highest number ever given out.
    pub fn highest(&self) -> u32 {
        self.used.load(Acquire).min(u64::from(self.max)) as u32
    }

    /// The numbers on the stack, for checks on quiescent tables. Ends on a loop, too.
    pub fn free(&self) -> impl Iterator<Item = u32> {
        let mut number = self.head.load(Acquire) as u32;
        (0..self.max).map_while(move |_| {
            let this = (1..=self.max).contains(&number).then_some(number)?;
            number = self.link(this).load(Relaxed) as u32;
            Some(this)
        })
    }

    /// Forgets the stack.
    pub fn clear(&self) {
        self.head.store(0, Relaxed);
    }
}

fn changed(head: u64, number: u32) -> u64 {
    ((head >> 32).wrapping_add(1)) << 32 | u64::from(number)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn gives_each_number_once() {
        let words: Vec<AtomicU64> = (0..40).map(|_| AtomicU64::new(0)).collect();
        let [head, used] = [AtomicU64::new(0), AtomicU64::new(0)];
        let pool = Pool {
            head: &head,
            used: &used,
            records: &words,
            stride: 4,
            link: 1,
            max: 9,
        };
        let mut taken: Vec<u32> = std::iter::from_fn(|| pool.pop()).collect();
        assert_eq!(taken, (1..=9).collect::<Vec<_>>());
        assert!(pool.is_empty());
        for &number in &taken {
            pool.push(number);
        }
        assert_eq!(pool.free().count(), 9);
        taken = std::iter::from_fn(|| pool.pop()).collect();
        taken.sort_unstable();
        assert_eq!(taken, (1..=9).collect::<Vec<_>>());
    }

    #[test]
    fn threads_never_share_a_number() {
        let words: Vec<AtomicU64> = (0..400).map(|_| AtomicU64::new(0)).collect();
        let [head, used] = [AtomicU64::new(0), AtomicU64::new(0)];
        let owners: Vec<AtomicU64> = (0..100).map(|_| AtomicU64::new(0)).collect();
        let pool = Pool {
            head: &head,
            used: &used,
            records: &words,
            stride: 4,
            link: 1,
            max: 8,
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(number) = pool.pop() {
                            let owner = &owners[number as usize];
                            assert_eq!(owner.fetch_add(1, AcqRel), 0);
                            owner.fetch_add(u64::MAX, AcqRel);
                            pool.push(number);
                        }
                    }
                });
            }
        });
        assert!(pool.free().count() <= 8);
    }
}
