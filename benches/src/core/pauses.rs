//! How long a worker's round takes while everything else goes on: the sweep, reloads of the policy,
//! reading the counters, and listing all sessions.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conntrack::{Policy, Time};
use engine::control::listing::Listing;
use engine::control::request::List;
use engine::gateway::Shared;
use engine::worker::BATCH;

use super::bed::{Bed, Way};

/// Time between two reloads.
const RELOAD_INTERVAL: Duration = Duration::from_millis(50);

/// What rounds took, in ascending order.
pub struct Pauses(Vec<Duration>);

impl Pauses {
    /// The time that a share of the rounds, 0 to 1, did not exceed, in microseconds.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let place = (self.0.len() as f64 * share) as usize;
        let round = self.0.get(place.min(self.0.len().saturating_sub(1)));
        round.map_or(0.0, |round| round.as_secs_f64() * 1e6)
    }
}

/// Times so many rounds of the first worker, each with a batch of these flows. The clock of the world
/// goes as the real one does.
pub fn measure(bed: &mut Bed, numbers: &[u32], rounds: usize) -> Pauses {
    let shared = Arc::clone(bed.shared());
    let stop = AtomicBool::new(false);
    let began = bed.now();
    std::thread::scope(|scope| {
        scope.spawn(|| disturb(&shared, began, &stop));
        let started = Instant::now();
        let mut took: Vec<Duration> = numbers
            .chunks_exact(BATCH)
            .cycle()
            .take(rounds)
            .map(|batch| {
                let elapsed_ms = started.elapsed().as_millis() as u64;
                bed.round(Way::Outbound, batch, began.plus_ms(elapsed_ms))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        took.sort_unstable();
        Pauses(took)
    })
}

/// What control does beside the workers, without a rest.
fn disturb(shared: &Arc<Shared>, now: Time, stop: &AtomicBool) {
    let mut reloaded = Instant::now();
    let mut listing = Listing::sessions(shared, List::default());
    let mut lines = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if reloaded.elapsed() >= RELOAD_INTERVAL {
            reloaded = Instant::now();
            let mut policy = Policy::clone(&shared.rulebook.load());
            policy.timers.icmp_timeout_ms ^= 1;
            shared.rulebook.publish(policy);
        }
        black_box(shared.nat.totals());
        if listing.slice(now, &mut lines) {
            listing = Listing::sessions(shared, List::default());
        }
        black_box(&lines);
        lines.clear();
    }
}
