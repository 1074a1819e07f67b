//! A removal of sessions that an operator asked for, and its way through the tables: only workers
//! end sessions, so control leaves the request here, and one worker after the other carries a slice
//! of it out, beside its packets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use conntrack::{Nat, Policy, Removal, Time};
use tokio::sync::oneshot;

use crate::control::filter::Filter;

/// Records that one slice visits, or an eighth as many that it ends: some tenths of a millisecond.
const SLICE: u32 = 8192;

/// A flush that is not through yet.
struct Job {
    filter: Filter,
    removal: Removal,
    asker: oneshot::Sender<Removal>,
}

/// The flush under way, if there is one.
#[derive(Default)]
pub struct Flushes {
    job: Mutex<Option<Job>>,
    /// There is a job: all that a worker reads when there is none.
    pending: AtomicBool,
}

impl Flushes {
    /// Asks the workers to remove what the filter means. The receiver gets what was done; dropping
    /// it ends the flush where it is. `None`: another one is under way.
    pub fn begin(&self, filter: Filter) -> Option<oneshot::Receiver<Removal>> {
        let mut job = self.lock();
        if job.as_ref().is_some_and(|job| !job.asker.is_closed()) {
            return None;
        }
        let (asker, answer) = oneshot::channel();
        *job = Some(Job {
            filter,
            removal: Removal::default(),
            asker,
        });
        self.pending.store(true, Ordering::Release);
        Some(answer)
    }

    /// Is there work for workers?
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Carries a slice of a flush out. Called by workers; never waits for another one.
    pub fn carry(&self, nat: &Nat<'_>, policy: &Policy, now: Time) {
        if !self.is_pending() {
            return;
        }
        let mut pending = match self.job.try_lock() {
            Ok(pending) => pending,
            Err(TryLockError::WouldBlock) => return,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let Some(job) = pending.as_mut() else {
            return;
        };
        let filter = &job.filter;
        let through = job.asker.is_closed()
            || nat.remove(
                policy,
                &mut job.removal,
                now,
                SLICE,
                |session| filter.matches_session(session, now),
                |mapping| filter.matches_mapping(mapping, now),
            );
        if through && let Some(job) = pending.take() {
            self.pending.store(false, Ordering::Release);
            // Whoever asked may be gone; then nobody needs to know.
            let _ = job.asker.send(job.removal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
