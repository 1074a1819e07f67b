//! Counters: one block a worker, written by that worker alone, read by anyone.
//!
//! Conservation (invariant 5), for every worker and at all times between two rounds:
//! `received + made + released = transmitted + punted + held + dropped + split`, where `held` and
//! `released` count the frames that entered and left a waiting place (unresolved next hop, fragment
//! whose first has not come, room in a transmit ring), `made` the packets that Egret itself creates,
//! and `split` those that were cut into fragments.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use serde::{Deserialize, Serialize};

use crate::device::SocketCounters;
use crate::drop_reason::DropReason;

/// One number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the counter's own worker may call it: it is no read-modify-write.
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Replaces the value. Only the counter's own worker may call it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the sockets of one interface counted when their worker last looked.
#[derive(Debug, Default)]
pub struct SocketWords([Counter; SocketCounters::LEN]);

impl SocketWords {
    /// Replaces the numbers. Only their own worker may call it.
    pub fn publish(&self, counters: SocketCounters) {
        for (word, value) in self.0.iter().zip(counters.to_words()) {
            word.set(value);
        }
    }

    /// The numbers.
    pub fn get(&self) -> SocketCounters {
        SocketCounters::from_words(std::array::from_fn(|at| self.0[at].get()))
    }
}

/// The counters of one worker.
#[derive(Debug)]
pub struct WorkerStats {
    /// Frames received, by interface number.
    pub received: Vec<Counter>,
    /// Frames handed to the transmit ring, by interface number.
    pub transmitted: Vec<Counter>,
    /// Frames given to the host's kernel.
    pub punted: Counter,
    /// Frames that began to wait.
    pub held: Counter,
    /// Frames that stopped waiting.
    pub released: Counter,
    /// Packets that Egret itself made: ICMP errors, fragments, announcements.
    pub made: Counter,
    /// Packets that were cut into fragments.
    pub split: Counter,
    /// Partial checksums that were completed.
    pub checksums_completed: Counter,
    /// ICMP errors that the rate limit or RFC 1812's silence rules suppressed.
    pub errors_suppressed: Counter,
    /// Rounds in which there was work.
    pub rounds_busy: Counter,
    /// Times the worker went to sleep.
    pub sleeps: Counter,
    /// What the worker's sockets count, by interface number; at most a second old. None of it is
    /// part of the conservation: these frames never reached the worker.
    pub sockets: Vec<SocketWords>,
    /// Frames dropped, by [`DropReason`].
    dropped: Vec<Counter>,
}

impl WorkerStats {
    /// Zeroed counters for that many interfaces.
    pub fn new(interfaces: usize) -> CachePadded<WorkerStats> {
        let counters = |n: usize| (0..n).map(|_| Counter::default()).collect::<Vec<_>>();
        CachePadded::new(WorkerStats {
            received: counters(interfaces),
            transmitted: counters(interfaces),
            punted: Counter::default(),
            held: Counter::default(),
            released: Counter::default(),
            made: Counter::default(),
            split: Counter::default(),
            checksums_completed: Counter::default(),
            errors_suppressed: Counter::default(),
            rounds_busy: Counter::default(),
            sleeps: Counter::default(),
            sockets: (0..interfaces).map(|_| SocketWords::default()).collect(),
            dropped: counters(DropReason::ALL.len()),
        })
    }

    /// Counts a dropped frame.
    pub fn count_drop(&self, reason: DropReason) {
        self.dropped[reason as usize].add(1);
    }

    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].get()
    }

    /// A copy of all numbers.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            received: self.received.iter().map(Counter::get).collect(),
            transmitted: self.transmitted.iter().map(Counter::get).collect(),
            punted: self.punted.get(),
            held: self.held.get(),
            released: self.released.get(),
            made: self.made.get(),
            split: self.split.get(),
            checksums_completed: self.checksums_completed.get(),
            errors_suppressed: self.errors_suppressed.get(),
            rounds_busy: self.rounds_busy.get(),
            sleeps: self.sleeps.get(),
            sockets: self.sockets.iter().map(SocketWords::get).collect(),
            dropped: self.dropped.iter().map(Counter::get).collect(),
        }
    }
}

/// A copy of the counters of one worker, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// See [`WorkerStats::received`].
    pub received: Vec<u64>,
    /// See [`WorkerStats::transmitted`].
    pub transmitted: Vec<u64>,
    /// See [`WorkerStats::punted`].
    pub punted: u64,
    /// See [`WorkerStats::held`].
    pub held: u64,
    /// See [`WorkerStats::released`].
    pub released: u64,
    /// See [`WorkerStats::made`].
    pub made: u64,
    /// See [`WorkerStats::split`].
    pub split: u64,
    /// See [`WorkerStats::checksums_completed`].
    pub checksums_completed: u64,
    /// See [`WorkerStats::errors_suppressed`].
    pub errors_suppressed: u64,
    /// See [`WorkerStats::rounds_busy`].
    pub rounds_busy: u64,
    /// See [`WorkerStats::sleeps`].
    pub sleeps: u64,
    /// See [`WorkerStats::sockets`].
    #[serde(skip)]
    pub sockets: Vec<SocketCounters>,
    /// Frames dropped, in the order of [`DropReason::ALL`].
    #[serde(skip)]
    pub dropped: Vec<u64>,
}

impl Snapshot {
    /// The sum of several workers' counters.
    pub fn sum(parts: impl IntoIterator<Item = Snapshot>) -> Snapshot {
        fn add<T: AddAssign + Copy + Default>(to: &mut Vec<T>, from: &[T]) {
            to.resize(to.len().max(from.len()), T::default());
            to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
        }
        let mut total = Snapshot::default();
        for part in parts {
            add(&mut total.received, &part.received);
            add(&mut total.transmitted, &part.transmitted);
            add(&mut total.dropped, &part.dropped);
            add(&mut total.sockets, &part.sockets);
            total.punted += part.punted;
            total.held += part.held;
            total.released += part.released;
            total.made += part.made;
            total.split += part.split;
            total.checksums_completed += part.checksums_completed;
            total.errors_suppressed += part.errors_suppressed;
            total.rounds_busy += part.rounds_busy;
            total.sleeps += part.sleeps;
        }
        total
    }

    /// The drop reasons that occurred, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .zip(&self.dropped)
            .filter(|&(_, &count)| count > 0)
            .map(|(&reason, &count)| (reason, count))
    }

    /// Frames in, and packets made, minus frames out, punted, waiting and dropped: 0 when every
    /// frame is accounted for (invariant 5).
    pub fn imbalance(&self) -> i64 {
        let arrived = self.received.iter().sum::<u64>() + self.made + self.released;
        let left = self.transmitted.iter().sum::<u64>()
            + self.punted
            + self.held
            + self.split
            + self.dropped.iter().sum::<u64>();
        arrived.wrapping_sub(left) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_has_its_own_counter_and_name() {
        let stats = WorkerStats::new(2);
        for (i, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, i);
            for _ in 0..=i {
                stats.count_drop(reason);
            }
        }
        let snapshot = stats.snapshot();
        let mut names: Vec<_> = snapshot.drops().map(|(reason, _)| reason.name()).collect();
        assert!(
            snapshot
                .drops()
                .all(|(reason, count)| count == reason as u64 + 1)
        );
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }

    #[test]
    fn imbalance_is_zero_only_when_all_frames_are_accounted_for() {
        let stats = WorkerStats::new(1);
        stats.received[0].add(10);
        stats.made.add(1);
        stats.transmitted[0].add(5);
        stats.punted.add(1);
        stats.held.add(2);
        stats.released.add(1);
        assert_eq!(stats.snapshot().imbalance(), 4);
        for _ in 0..4 {
            stats.count_drop(DropReason::NoSession);
        }
        assert_eq!(stats.snapshot().imbalance(), 0);
        let sum = Snapshot::sum([stats.snapshot(), stats.snapshot()]);
        assert_eq!(sum.received, [20]);
        assert_eq!(sum.imbalance(), 0);
    }
}
