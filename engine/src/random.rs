//! Unpredictable numbers for port choice (RFC 6056).

use conntrack::Random;
use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng};

/// A cryptographic generator; one a worker, so that no state is shared.
#[derive(Debug)]
pub struct WorkerRandom(StdRng);

impl WorkerRandom {
    /// Seeded by the system.
    ///
    /// # Panics
    /// When the system has no entropy source, which Linux always has.
    pub fn from_system() -> WorkerRandom {
        WorkerRandom(StdRng::try_from_rng(&mut SysRng).expect("getrandom works on every Linux"))
    }

    /// Seeded by a number, for tests and simulation.
    pub fn from_seed(seed: u64) -> WorkerRandom {
        WorkerRandom(StdRng::seed_from_u64(seed))
    }
}

impl Random for WorkerRandom {
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}
