//! CPU time a packet: what a rate does not tell of a worker that never sleeps.

use std::fs;
use std::time::Duration;

use super::Bench;
use crate::bench::path::choice::Test;
use crate::bench::path::load::{FlowSet, Load};
use crate::bench::path::rounds::Reading;
use crate::bench::path::sender::Way;
use crate::lab::LabError;

/// The unit of /proc/stat.
const TICK: Duration = Duration::from_millis(10);

impl Bench {
    /// CPU time of the whole machine, interrupts included and the generator's thread not, for each
    /// packet that arrives, at half of nft's overload rate.
    pub(super) fn cpu(&mut self, set: FlowSet) -> Result<Vec<Reading>, LabError> {
        let load = Load::paced(set, self.half_load()?, self.length);
        let before = (busy_time()?, self.sink.read()?.total());
        let (_, sent) = self.send(Way::Frames, &load, || Ok(()))?;
        let after = (busy_time()?, self.sink.read()?.total());
        let spent = (after.0 - before.0).saturating_sub(sent.cpu);
        let packets = (after.1 - before.1).max(1);
        let us = spent.as_secs_f64() * 1e6 / packets as f64;
        Ok(vec![Reading::new(Test::Cpu.name(), "us", us)])
    }
}

/// Time that all CPUs were not idle.
fn busy_time() -> Result<Duration, LabError> {
    let path = "/proc/stat";
    let text = fs::read_to_string(path).map_err(LabError::system(format!("reading {path}")))?;
    let strange = || LabError::Gateway(format!("{path} has no line of all CPUs"));
    busy_ticks(&text)
        .map(|ticks| TICK * ticks)
        .ok_or_else(strange)
}

/// User, nice, system, irq and softirq of the line of all CPUs.
fn busy_ticks(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let columns: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal ...
    let busy = [0, 1, 2, 5, 6].into_iter();
    busy.map(|column| columns.get(column))
        .sum::<Option<u64>>()
        .map(|ticks| ticks as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_do_not_count() {
        let text = "cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(text), Some(31));
        assert_eq!(busy_ticks("cpu  1 2"), None);
    }
}
