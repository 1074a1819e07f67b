//! The one clock of the running gateway. Only worker threads' outermost loop and the control thread
//! read it; all below gets the time as an argument.

use conntrack::Time;
use nix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, suspended time included (`CLOCK_BOOTTIME`): it goes on over a restart
/// of the process, so the tables in the file keep their meaning.
pub fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since 2.6.39");
    Time(time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000)
}
