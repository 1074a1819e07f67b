//! The invariants of a gateway (conntrack's and the frames'), as one function: tests, fuzzing and
//! the control socket ask it.

use conntrack::Time;

use crate::gateway::Shared;
use crate::stats::Snapshot;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl From<conntrack::Violation> for Violation {
    fn from(violation: conntrack::Violation) -> Violation {
        Violation(violation.to_string())
    }
}

/// Checks what holds between two rounds, while no worker is at work: every frame is accounted for
/// by each worker, and the tables are sound ([`conntrack::Nat::check`]; left out while a policy is
/// on its way into them, which they then contradict). `workers`: the counters of each.
pub fn check(shared: &Shared, workers: &[Snapshot], now: Time) -> Result<(), Violation> {
    for (number, counters) in workers.iter().enumerate() {
        let lost = counters.imbalance();
        if lost != 0 {
            return Err(Violation(format!(
                "worker {number}: {lost} frames are not accounted for"
            )));
        }
    }
    if shared.rulebook.is_settled() {
        let policy = shared.rulebook.load();
        shared.nat.check(&policy, now)?;
    }
    Ok(())
}
