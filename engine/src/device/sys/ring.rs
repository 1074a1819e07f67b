//! The four AF_XDP rings: single producer, single consumer, in memory shared with the kernel
//! (Documentation/networking/af_xdp.rst).
//!
//! Indices are free-running `u32`; an index masked with `size - 1` is an entry's place. The side
//! that fills an entry publishes it by a release store of its index, and the other side sees the
//! entry by an acquire load of that index. The reverse holds for giving entries back: the consumer
//! releases its index after its last read of an entry, and the producer acquires it before it
//! overwrites that entry. No other ordering is needed; on aarch64 these are `stlr` and `ldar`.
//! Whether the kernel sleeps is a store-load question, so [`Producer::needs_wakeup`] has a full
//! fence between the published index and the flag.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::mapping::Mapping;

/// `XDP_RING_NEED_WAKEUP` of linux/if_xdp.h.
const NEED_WAKEUP: u32 = 1;

/// `struct xdp_desc` of linux/if_xdp.h: a frame in the receive and transmit ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Offset of the first byte in the frame memory.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Must be 0 when transmitting.
    pub options: u32,
}

/// What a ring may carry.
///
/// # Safety
/// Every bit pattern is a value, and the type has no padding.
pub unsafe trait Entry: Copy + Send + 'static {}
// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: integers of 8, 4 and 4 bytes in C layout: no padding.
unsafe impl Entry for Descriptor {}

/// Where the parts of a ring lie in its mapping, in bytes (`struct xdp_ring_offset`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// The producer's index.
    pub producer: usize,
    /// The consumer's index.
    pub consumer: usize,
    /// The entries.
    pub entries: usize,
    /// The flags word.
    pub flags: usize,
}

/// The shared part of a ring. Its memory lives as long as one of its sides.
struct Shared<T> {
    _memory: Arc<Mapping>,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
}

// SAFETY: the pointers point into `_memory`, which may be used from any thread; the indices are
// atomics, and an entry is touched only by the side that owns it at the moment (module comment).
unsafe impl<T: Entry> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    /// Lays a ring of `size` entries over `memory`, or says why it cannot.
    fn new(memory: Arc<Mapping>, size: u32, at: Offsets) -> Result<Shared<T>, &'static str> {
        if !size.is_power_of_two() {
            return Err("ring size is not a power of two");
        }
        let fits = |offset: usize, bytes: usize, align: usize| {
            offset.is_multiple_of(align)
                && offset
                    .checked_add(bytes)
                    .is_some_and(|end| end <= memory.len())
        };
        let bytes = size as usize * size_of::<T>();
        let words_fit = [at.producer, at.consumer, at.flags]
            .iter()
            .all(|&word| fits(word, 4, 4));
        if !words_fit || !fits(at.entries, bytes, align_of::<T>()) {
            return Err("ring does not fit its mapping");
        }
        let base = memory.base();
        // SAFETY: all four offsets lie inside the mapping and are aligned (checked above; a mapping
        // starts on a page).
        let (producer, consumer, flags, entries) = unsafe {
            (
                base.add(at.producer).cast(),
                base.add(at.consumer).cast(),
                base.add(at.flags).cast(),
                base.add(at.entries).cast(),
            )
        };
        Ok(Shared {
            _memory: memory,
            producer,
            consumer,
            flags,
            entries,
            size,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points to an aligned word of the mapping that lives as long as `self`, and is
        // only ever accessed atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is below `size`, and `size` entries lie inside the mapping.
        unsafe { self.entries.add((index & (self.size - 1)) as usize) }
    }
}

/// The filling side of a ring: fill and transmit rings.
pub struct Producer<T: Entry> {
    ring: Shared<T>,
    /// Next index to write; ahead of the shared index until [`Producer::publish`].
    next: u32,
    /// The consumer's index as last seen.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    /// The filling side of the ring of `size` entries in `memory`. At most one side of each kind
    /// may be made for a ring: a second one only loses entries, it cannot break memory.
    pub fn new(memory: Arc<Mapping>, size: u32, at: Offsets) -> Result<Producer<T>, &'static str> {
        let ring = Shared::new(memory, size, at)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Ok(Producer {
            ring,
            next,
            consumed,
        })
    }

    /// Entries of the ring.
    pub fn size(&self) -> u32 {
        self.ring.size
    }

    /// Entries that can be pushed; looks at the shared index only if fewer than `wanted` are known
    /// to be free.
    pub fn room(&mut self, wanted: u32) -> u32 {
        let known = self.known_room();
        if known >= wanted {
            return known;
        }
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.known_room()
    }

    fn known_room(&self) -> u32 {
        self.ring
            .size
            .saturating_sub(self.next.wrapping_sub(self.consumed))
    }

    /// Writes one entry; false if the ring is full. Not seen by the consumer before `publish`.
    pub fn push(&mut self, value: T) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        // SAFETY: the entry is inside the mapping. Its index is less than `size` ahead of the
        // consumer's released index, so the consumer has finished with it and does not look at it
        // before `publish`.
        unsafe { self.ring.entry(self.next).as_ptr().write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Hands what was pushed to the consumer.
    pub fn publish(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Published entries that the consumer has not taken yet.
    pub fn pending(&self) -> u32 {
        let published = self.ring.producer().load(Ordering::Relaxed);
        published.wrapping_sub(self.ring.consumer().load(Ordering::Acquire))
    }

    /// Does the consumer ask for a system call before it goes on?
    pub fn needs_wakeup(&self) -> bool {
        // The kernel sets the flag, then looks at the ring once more; we publish, then look at the
        // flag. Without a full fence on our side both could miss the other.
        fence(Ordering::SeqCst);
        self.ring.flags().load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// The taking side of a ring: receive and completion rings.
pub struct Consumer<T: Entry> {
    ring: Shared<T>,
    /// Next index to read; ahead of the shared index until [`Consumer::release`].
    next: u32,
    /// The producer's index as last seen.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    /// The taking side of the ring of `size` entries in `memory`.
    pub fn new(memory: Arc<Mapping>, size: u32, at: Offsets) -> Result<Consumer<T>, &'static str> {
        let ring = Shared::new(memory, size, at)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        let produced = ring.producer().load(Ordering::Acquire);
        Ok(Consumer {
            ring,
            next,
            produced,
        })
    }

    /// Takes one entry. Its place is not written again before `release`.
    pub fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: the entry is inside the mapping, every bit pattern is a T, and the producer
        // released it by the index just acquired and will not write it before `release`.
        let value = unsafe { self.ring.entry(self.next).as_ptr().read() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the places of what was popped back to the producer.
    pub fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }

    /// Entries that are ready to be popped.
    pub fn ready(&self) -> u32 {
        self.ring
            .producer()
            .load(Ordering::Acquire)
            .wrapping_sub(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Offsets = Offsets {
        producer: 0,
        consumer: 64,
        flags: 128,
        entries: 192,
    };

    /// Both sides of a ring in ordinary memory, the indices starting at `start`.
    fn pair<T: Entry>(size: u32, start: u32) -> (Producer<T>, Consumer<T>, Arc<Mapping>) {
        let memory = Arc::new(Mapping::anonymous(192 + size as usize * size_of::<T>()).unwrap());
        let shared = Shared::<T>::new(memory.clone(), size, AT).unwrap();
        shared.producer().store(start, Ordering::Relaxed);
        shared.consumer().store(start, Ordering::Relaxed);
        let producer = Producer::new(memory.clone(), size, AT).unwrap();
        (
            producer,
            Consumer::new(memory.clone(), size, AT).unwrap(),
            memory,
        )
    }

    #[test]
    fn entries_come_out_in_order_and_only_when_published() {
        let (mut producer, mut consumer, _) = pair::<u64>(4, 0);
        assert!(producer.push(10) && producer.push(11));
        assert_eq!(consumer.pop(), None);
        producer.publish();
        assert_eq!(producer.pending(), 2);
        assert_eq!(
            (consumer.pop(), consumer.pop(), consumer.pop()),
            (Some(10), Some(11), None)
        );
    }

    #[test]
    fn full_until_released() {
        let (mut producer, mut consumer, _) = pair::<u64>(4, 0);
        assert_eq!((0..5).filter(|&value| producer.push(value)).count(), 4);
        producer.publish();
        assert_eq!(consumer.pop(), Some(0));
        assert!(!producer.push(9), "popped but not released");
        consumer.release();
        assert!(producer.push(9));
        assert!(!producer.push(10));
    }

    #[test]
    fn indices_wrap_around_u32() {
        let (mut producer, mut consumer, _) = pair::<u64>(4, u32::MAX - 1);
        for value in 0..16 {
            assert_eq!(producer.room(4), 4);
            assert!(producer.push(value));
            producer.publish();
            assert_eq!((producer.pending(), consumer.ready()), (1, 1));
            assert_eq!(consumer.pop(), Some(value));
            consumer.release();
        }
    }

    #[test]
    fn wakeup_flag_is_read() {
        let (producer, _consumer, memory) = pair::<u64>(4, 0);
        assert!(!producer.needs_wakeup());
        let shared = Shared::<u64>::new(memory, 4, AT).unwrap();
        shared.flags().store(NEED_WAKEUP, Ordering::Relaxed);
        assert!(producer.needs_wakeup());
    }

    #[test]
    fn rings_that_do_not_fit_are_refused() {
        let memory = Arc::new(Mapping::anonymous(4096).unwrap());
        let size = (memory.len() / 8).next_power_of_two() as u32;
        assert!(Producer::<u64>::new(memory.clone(), size, AT).is_err());
        assert!(Producer::<u64>::new(memory.clone(), 3, AT).is_err());
        let unaligned = Offsets { producer: 2, ..AT };
        assert!(Consumer::<u64>::new(memory, 4, unaligned).is_err());
    }

    #[test]
    fn two_threads_see_every_entry_once_and_whole() {
        let (mut producer, mut consumer, _) = pair::<Descriptor>(64, u32::MAX - 1000);
        let entries = 200_000_u32;
        let writer = std::thread::spawn(move || {
            let mut value = 0;
            while value < entries {
                let entry = Descriptor {
                    addr: u64::from(value),
                    len: !value,
                    options: value ^ 7,
                };
                if producer.push(entry) {
                    value += 1;
                }
                if value % 5 == 0 || value == entries || producer.room(1) == 0 {
                    producer.publish();
                }
            }
        });
        let mut expected = 0;
        while expected < entries {
            while let Some(entry) = consumer.pop() {
                let whole = Descriptor {
                    addr: expected.into(),
                    len: !expected,
                    options: expected ^ 7,
                };
                assert_eq!(entry, whole);
                expected += 1;
            }
            consumer.release();
            std::hint::spin_loop();
        }
        writer.join().unwrap();
        assert_eq!(consumer.pop(), None);
    }
}
