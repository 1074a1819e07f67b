//! CPU time a packet: what a rate does not tell of a worker that never sleeps.

use std::time::Duration;

use super::Bench;
use crate::bench::path::choice::Test;
use crate::bench::path::contender::Contender;
use crate::bench::path::load::{FlowSet, Load};
use crate::bench::path::pin::{self, GATEWAY_CORE};
use crate::bench::path::rounds::Reading;
use crate::bench::path::sender::Way;
use crate::lab::LabError;

impl Bench {
    /// CPU time for each packet that arrives, at half of nft's overload rate: of the NAPI threads
    /// of the gateway's interfaces, of the contender's own threads, and of what interrupts leave to
    /// be done later on the gateway's core. Softirqs count with the thread that they run on, so this
    /// is all that the gateway costs, and nothing of the sender or of other programs.
    pub(super) fn cpu(
        &mut self,
        contender: &dyn Contender,
        set: FlowSet,
    ) -> Result<Vec<Reading>, LabError> {
        let load = Load::paced(set, self.half_load()?, self.length);
        let before = (self.spent(contender)?, self.sink.read()?.total());
        self.send(Way::Frames, &load, || Ok(()))?;
        let after = (self.spent(contender)?, self.sink.read()?.total());
        let packets = (after.1 - before.1).max(1);
        let us = after.0.saturating_sub(before.0).as_secs_f64() * 1e6 / packets as f64;
        Ok(vec![Reading::new(Test::Cpu.name(), "us", us)])
    }

    /// CPU time that the gateway has used.
    fn spent(&self, contender: &dyn Contender) -> Result<Duration, LabError> {
        let mut threads = contender.threads();
        threads.extend(pin::napi_threads(&self.stage.inside));
        threads.extend(pin::napi_threads(&self.stage.outside));
        threads.extend(pin::softirq_threads(GATEWAY_CORE));
        let times = threads.into_iter().map(pin::cpu_time);
        times
            .sum::<Result<Duration, _>>()
            .map_err(LabError::system("reading a thread's CPU time"))
    }
}
