//! The one thing the tables are made of: a 64-bit word that several workers, and later a kernel
//! program, read and write at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

/// A 64-bit atomic word. Implemented by [`AtomicU64`]; generic so that a model checker can stand in.
pub trait Word: Send + Sync {
    /// Reads the word.
    fn load(&self, order: Ordering) -> u64;
    /// Writes the word.
    fn store(&self, value: u64, order: Ordering);
    /// Replaces `current` by `new`; the error is what was found instead.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
    /// Adds, wrapping; returns the value before.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Sets bits; returns the value before.
    fn fetch_or(&self, value: u64, order: Ordering) -> u64;
    /// Keeps only these bits; returns the value before.
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
    /// A fence between accesses to words of this kind.
    fn fence(order: Ordering);
    /// Called once a round of a bounded wait. Holders of a lock or write bit need nanoseconds, so
    /// the first rounds only spin; later ones give the core to a holder that lost it.
    fn pause(round: u32);
}

/// Rounds of [`Word::pause`] before a bounded wait gives up.
pub(crate) const ROUNDS_MAX: u32 = 200_000;

/// Rounds that only spin.
const SPINS: u32 = 200;

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }
    #[inline(always)]
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
    #[inline(always)]
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        AtomicU64::compare_exchange(self, current, new, success, failure)
    }
    #[inline(always)]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_add(self, value, order)
    }
    #[inline(always)]
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_or(self, value, order)
    }
    #[inline(always)]
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_and(self, value, order)
    }
    #[inline(always)]
    fn fence(order: Ordering) {
        std::sync::atomic::fence(order);
    }
    #[inline]
    fn pause(round: u32) {
        if round < SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(loom)]
impl Word for loom::sync::atomic::AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_or(value, order)
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_and(value, order)
    }
    fn fence(order: Ordering) {
        loom::sync::atomic::fence(order);
    }
    fn pause(_round: u32) {
        loom::thread::yield_now();
    }
}
