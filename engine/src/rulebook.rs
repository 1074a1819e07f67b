//! The policy in force, and the way of a new one into the tables: it is published, every worker
//! takes it up at its next round, and then one worker after the other carries a slice of the change
//! through, beside its packets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use arc_swap::{ArcSwap, Guard};
use conntrack::{Nat, Policy, PolicyChange, Time};
use crossbeam_utils::CachePadded;

/// Records that one slice of a change visits: some ten microseconds.
const SLICE: u32 = 512;

/// A policy that is not yet in the tables everywhere.
struct Pending {
    version: u64,
    policy: Arc<Policy>,
    change: PolicyChange,
}

/// See the module.
pub struct Rulebook {
    current: ArcSwap<Policy>,
    /// Number of the policy in `current`, or of an older one.
    version: AtomicU64,
    /// By worker: it judges by this version, or a newer one.
    seen: Box<[CachePadded<AtomicU64>]>,
    pending: Mutex<Option<Pending>>,
}

impl Rulebook {
    /// Begins with a policy that is in the tables already ([`settle`]).
    pub fn new(policy: Policy, workers: usize) -> Rulebook {
        policy.addresses.prepare();
        Rulebook {
            current: ArcSwap::from_pointee(policy),
            version: AtomicU64::new(0),
            seen: (0..workers)
                .map(|_| CachePadded::new(AtomicU64::new(0)))
                .collect(),
            pending: Mutex::new(None),
        }
    }

    /// How many workers take up policies; at least 1.
    pub fn workers(&self) -> usize {
        self.seen.len().max(1)
    }

    /// The policy in force.
    pub fn load(&self) -> Guard<Arc<Policy>> {
        self.current.load()
    }

    /// Puts a new policy in force. One that was still on its way is replaced: the new one's way
    /// covers it.
    pub fn publish(&self, policy: Policy) {
        policy.addresses.prepare();
        let policy = Arc::new(policy);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        // It goes on where the one that it replaces is: changes that follow each other closely
        // must not keep each other from the end of the tables.
        let change = match pending.as_ref() {
            Some(earlier) => PolicyChange::following(&policy, &earlier.change),
            None => PolicyChange::new(&policy),
        };
        let version = self.version.load(Ordering::Relaxed) + 1;
        self.current.store(Arc::clone(&policy));
        // After the policy: who sees the number finds the policy.
        self.version.store(version, Ordering::Release);
        *pending = Some(Pending {
            version,
            policy,
            change,
        });
    }

    /// Takes up the newest policy for a worker's next rounds.
    pub fn renew(&self, worker: usize, policy: &mut Arc<Policy>) {
        let version = self.version.load(Ordering::Acquire);
        let newest = self.current.load();
        if !Arc::ptr_eq(policy, &newest) {
            *policy = Arc::clone(&newest);
        }
        if let Some(seen) = self.seen.get(worker)
            && seen.load(Ordering::Relaxed) != version
        {
            seen.store(version, Ordering::Release);
        }
    }

    /// Carries a slice of a pending change through, once all workers judge by its policy. Called by
    /// workers; never waits for another one.
    pub fn carry(&self, nat: &Nat<'_>, now: Time) {
        let mut pending = match self.pending.try_lock() {
            Ok(pending) => pending,
            Err(TryLockError::WouldBlock) => return,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let Some(job) = pending.as_mut() else { return };
        if self
            .seen
            .iter()
            .any(|seen| seen.load(Ordering::Acquire) < job.version)
        {
            return;
        }
        if nat.apply_policy(&job.policy, &mut job.change, now, SLICE) {
            *pending = None;
        }
    }

    /// Is the policy in force in the tables everywhere?
    pub fn is_settled(&self) -> bool {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }
}

/// Puts a policy into tables that no worker uses yet. False if they do not take it, as only broken
/// ones would: nobody is in the way.
#[must_use]
pub fn settle(nat: &Nat<'_>, policy: &Policy, now: Time) -> bool {
    let mut change = PolicyChange::new(policy);
    (0..1024).any(|_| nat.apply_policy(policy, &mut change, now, u32::MAX))
}
