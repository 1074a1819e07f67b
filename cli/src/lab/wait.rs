//! Waiting for a condition, bounded.

use std::time::{Duration, Instant};

/// Asks until the condition holds or the time is over; did it hold?
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
