//! What must hold in a world.

use std::sync::atomic::{AtomicU64, Ordering};

use super::World;
use crate::device::Device;
use crate::invariants::{self, Violation};
use crate::stats::Snapshot;

impl World {
    /// The invariants of the design, between two rounds: the tables are sound, no frame is lost or
    /// uncounted, no frame that left shows an internal address to the outside, and each that left
    /// is well-formed (checksums, length, TTL).
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check_invariants(&mut self) -> Result<(), Violation> {
        self.check_frames()?;
        let counters: Vec<Snapshot> = self.workers.iter().map(|w| w.stats().snapshot()).collect();
        invariants::check(&self.shared, &counters, self.now)
    }

    /// The part of [`World::check_invariants`] that is fast: frames and counters, not the tables.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check_frames(&mut self) -> Result<(), Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        let mut owned = 0;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let held = worker.frames_owned();
            let device = worker.device();
            let memory = device.inner();
            let (free, slots) = (memory.free_count(), memory.slots());
            let found = free + memory.waiting() + device.late() + held;
            if found != slots {
                return Err(Violation(format!(
                    "worker {number}: {found} of {slots} frames found"
                )));
            }
            let lost = worker.stats().snapshot().imbalance();
            if lost != 0 {
                return Err(Violation(format!(
                    "worker {number}: {lost} frames not counted"
                )));
            }
            owned += held as u64;
        }
        let total = self.snapshot();
        let waiting = owned + self.shared.fragments.totals().copies as u64;
        let told = total.held.wrapping_sub(total.released);
        if waiting != told {
            return Err(Violation(format!(
                "{told} frames are told to wait, {waiting} do"
            )));
        }
        Ok(())
    }

    /// Lets everything expire: as long as the longest timer, and two sweeps of the tables.
    pub fn drain(&mut self) {
        let timers = self.config.timers;
        let longest = [
            timers.udp_timeout_ms,
            timers.tcp_trans_open_timeout_ms,
            timers.tcp_idle_timeout_ms,
            timers.tcp_trans_close_timeout_ms,
            timers.icmp_timeout_ms,
            timers.fragment_timeout_ms,
        ];
        let longest = longest.into_iter().max().unwrap_or(0);
        self.set_transmit_room(usize::MAX);
        self.pass_ms(10_000, 1_000);
        self.advance_ms(u64::from(longest) + 2_048);
        self.pass_ms(60_000, 1_000);
        self.advance_ms(u64::from(timers.hold_down_ms) + 2_048);
        self.pass_ms(60_000, 1_000);
    }

    /// After [`World::drain`]: nothing is left, in the tables or anywhere (invariant 6).
    ///
    /// # Errors
    /// What is left.
    pub fn check_empty(&mut self) -> Result<(), Violation> {
        self.check_invariants()?;
        let totals = self.totals();
        let left = totals.sessions + totals.sessions_inbound + totals.mappings;
        let ports: u64 = totals.ports_in_use.iter().chain(&totals.ports_held).sum();
        let owned: u32 = self.owned.iter().map(ones).sum();
        let policy = self.policy();
        let known = |forward: &&conntrack::Forward| {
            policy
                .addresses
                .iter()
                .any(|own| own.addr == forward.external.addr)
        };
        let forwards = policy.forwards.iter().filter(known);
        let forwards: usize = forwards.map(|forward| forward.ports().len()).sum();
        let waiting = self.snapshot().held - self.snapshot().released;
        if left + ports + waiting > 0 || owned as usize != forwards {
            return Err(Violation(format!(
                "left after all timers: {totals:?}, {owned} owned ports ({forwards} of forwards), \
                 {waiting} frames"
            )));
        }
        Ok(())
    }
}

fn ones(word: &AtomicU64) -> u32 {
    word.load(Ordering::Relaxed).count_ones()
}
