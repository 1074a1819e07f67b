//! What is left for existing flows while the ports to one destination have run out.

use std::time::Duration;

use super::Bench;
use crate::bench::path::choice::Test;
use crate::bench::path::contender::Contender;
use crate::bench::path::load::{FlowSet, Load};
use crate::bench::path::rounds::Reading;
use crate::bench::path::sender::Way;
use crate::bench::path::sink::Arrived;
use crate::lab::LabError;

/// Endpoints of the second kind that find a port each.
const FEW_BITS: u32 = 8;
/// Endpoints of the second kind of which only the first find one.
const MANY_BITS: u32 = 20;
/// Frames after which the ports of one destination are used up: every second one takes a port.
const EXHAUSTED_AFTER: u64 = 2 * 72_000;

/// New flows that may still get a port, as a share of those that are tried: the kernel gives up
/// its search before the very last port is taken.
const REFUSED_MAX: f64 = 0.05;

impl Bench {
    /// Half of the packets are of existing flows, half of others, as many as the contender has
    /// capacity for. First the others exist, too; then each is a new flow to a destination to which
    /// no port is left. How much of their rate do the existing flows keep, and how many ICMP errors
    /// do the others get?
    pub(super) fn ports_exhausted(
        &mut self,
        contender: &dyn Contender,
        set: FlowSet,
    ) -> Result<Vec<Reading>, LabError> {
        let others_exist = Load {
            second_bits: Some(FEW_BITS),
            ..Load::full(set, self.length)
        };
        let capacity = self
            .rate(Way::Frames, &others_exist, Arrived::total)?
            .delivered;
        let paced = Load {
            pace: Some(capacity),
            burst: 32,
            ..others_exist
        };
        let existing = |arrived: Arrived| arrived.translated[0];
        let before = self.rate(Way::Frames, &paced, existing)?.delivered;
        self.exhaust(contender, set)?;
        let refused = Load {
            second_bits: Some(MANY_BITS),
            first: EXHAUSTED_AFTER,
            ..paced
        };
        let (answers, others) = (self.answers.read()?, self.sink.read()?.translated[1]);
        let after = self.rate(Way::Frames, &refused, existing)?.delivered;
        let seconds = self.length.as_secs_f64();
        let answers = (self.answers.read()? - answers) as f64 / seconds;
        let others = (self.sink.read()?.translated[1] - others) as f64 / seconds;
        if others > before * REFUSED_MAX {
            return Err(LabError::Gateway(format!(
                "{others:.0} new flows a second still found a port: none should be left"
            )));
        }
        let name = Test::PortsExhausted.name();
        Ok(vec![
            Reading::new(name.clone(), "ratio", after / before),
            Reading::new(format!("{name}-errors"), "1/s", answers),
        ])
    }

    /// Opens flows to one destination until it has no more ports.
    fn exhaust(&mut self, contender: &dyn Contender, set: FlowSet) -> Result<(), LabError> {
        let pace = contender.fill_rate().min(1e6);
        let load = Load {
            second_bits: Some(MANY_BITS),
            ..Load::paced(
                set,
                pace,
                Duration::from_secs_f64(EXHAUSTED_AFTER as f64 / pace),
            )
        };
        self.send(Way::Frames, &load, || Ok(())).map(drop)
    }
}
