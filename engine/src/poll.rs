//! When a worker runs and when it sleeps. `adaptive`: spin while there is work, then arm the wake-up
//! of every receive ring and sleep in the kernel. `busy`: never sleep, on a core of its own.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conntrack::{Random, Time};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::device::Device;
use crate::worker::{Host, Worker};

/// Longest sleep: housekeeping (the sweep) goes on when no frame arrives.
const SLEEP_MS_MAX: u64 = 100;
/// Longest sleep while frames wait for a next hop or for room in a ring.
const SLEEP_WAITING_MS: u64 = 2;

const WAKE: Token = Token(usize::MAX);

/// How a worker waits for frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Sleep when there is nothing to do.
    Adaptive,
    /// Never sleep.
    Busy,
}

/// Where a worker sleeps: its receive rings, and a bell that another thread can ring.
pub struct Bed {
    poll: Poll,
    events: Events,
}

impl Bed {
    /// Watches the files; also returns the bell.
    pub fn new(fds: &[RawFd]) -> io::Result<(Bed, Waker)> {
        let poll = Poll::new()?;
        for (number, fd) in fds.iter().enumerate() {
            poll.registry()
                .register(&mut SourceFd(fd), Token(number), Interest::READABLE)?;
        }
        let waker = Waker::new(poll.registry(), WAKE)?;
        Ok((
            Bed {
                poll,
                events: Events::with_capacity(fds.len() + 1),
            },
            waker,
        ))
    }

    fn sleep(&mut self, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }
}

/// Runs a worker until `stop` is set. Errors: waiting itself failed.
pub fn run<D: Device, H: Host, R: Random>(
    worker: &mut Worker<D, H, R>,
    bed: &mut Bed,
    mode: PollMode,
    clock: impl Fn() -> Time,
    stop: &AtomicBool,
) -> io::Result<()> {
    let empty_rounds_max = worker.device().empty_rounds_max();
    let mut empty_rounds = 0;
    while !stop.load(Ordering::Acquire) {
        if worker.round(clock()) > 0 {
            empty_rounds = 0;
            continue;
        }
        empty_rounds += 1;
        if mode == PollMode::Busy || empty_rounds < empty_rounds_max {
            std::hint::spin_loop();
            continue;
        }
        // The files are edge-triggered: what arrived since the last round's look at the rings is
        // an edge that the wait reports at once.
        worker.stats().sleeps.add(1);
        let timeout_ms = if worker.is_waiting() {
            SLEEP_WAITING_MS
        } else {
            SLEEP_MS_MAX
        };
        bed.sleep(Duration::from_millis(timeout_ms))?;
        // After a sleep, one empty round is enough to sleep again.
        empty_rounds = empty_rounds_max - 1;
    }
    Ok(())
}
