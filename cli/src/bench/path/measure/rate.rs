//! Packets and sessions a second.

use std::time::Duration;

use super::{Bench, LOSS_MAX};
use crate::bench::path::choice::Test;
use crate::bench::path::load::{FlowSet, Load};
use crate::bench::path::rounds::Reading;
use crate::bench::path::sender::Way;
use crate::bench::path::sink::Arrived;
use crate::lab::LabError;

/// Halvings of the interval in which the highest rate without loss is searched.
const SEARCH_STEPS: u32 = 7;
/// How often a pace is tried: what the machine's host takes away for a millisecond, which is more than a
/// receive ring bridges, is lost by every contender, and says nothing about any.
const TRIES: u32 = 3;
/// The longest time in which every packet may be a new flow: then the tables are full.
const NEW_SESSIONS_MAX: Duration = Duration::from_secs(2);
/// Multiples of the capacity that are offered.
const OVERLOADS: [f64; 5] = [1.0, 2.0, 4.0, 7.0, 10.0];
/// Less than this many times what is delivered is no overload.
const OVERLOAD_MIN: f64 = 1.2;
/// What is under way when the generator ends arrives within this time.
const DRAIN: Duration = Duration::from_millis(30);

/// What went in and what came out, in packets a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Of what was picked, at the sink.
    pub(super) delivered: f64,
    /// Handed over by the generator.
    offered: f64,
}

impl Bench {
    /// Packets a second that arrive, once the flow has settled, when as many are sent as the
    /// generator can.
    pub(super) fn delivered(&mut self, way: Way, set: FlowSet) -> Result<Rate, LabError> {
        let load = Load::full(set, self.length);
        self.rate(way, &load, Arrived::total)
    }

    /// Packets a second of those that `pick` counts, once the flow has settled.
    pub(super) fn rate(
        &mut self,
        way: Way,
        load: &Load,
        pick: impl Fn(Arrived) -> u64,
    ) -> Result<Rate, LabError> {
        let lead = (load.duration / 10).max(Duration::from_millis(50));
        let window = load.duration.saturating_sub(lead * 2);
        let Bench {
            stage,
            sender,
            sink,
            ..
        } = self;
        let watch = || {
            std::thread::sleep(lead);
            let before = sink.read()?;
            std::thread::sleep(window);
            Ok(sink.read()?.rate_since(before, pick))
        };
        let (delivered, sent) = sender.during(stage, way, load, watch)?;
        Ok(Rate {
            delivered,
            offered: sent as f64 / load.duration.as_secs_f64(),
        })
    }

    pub(super) fn overload(
        &mut self,
        test: Test,
        set: FlowSet,
        way: Way,
    ) -> Result<Vec<Reading>, LabError> {
        let rate = self.delivered(way, set)?;
        if rate.offered < rate.delivered * OVERLOAD_MIN {
            eprintln!(
                "{}: no overload, the generator made only {:.2} Mpps",
                test.name(),
                rate.offered / 1e6
            );
        }
        Ok(vec![Reading::new(
            test.name(),
            "Mpps",
            rate.delivered / 1e6,
        )])
    }

    pub(super) fn new_sessions(&mut self) -> Result<Vec<Reading>, LabError> {
        let load = Load::full(FlowSet::ENDLESS, self.length.min(NEW_SESSIONS_MAX));
        let rate = self.rate(Way::Frames, &load, |arrived| arrived.translated[0])?;
        let name = Test::NewSessions.name();
        Ok(vec![Reading::new(name, "M/s", rate.delivered / 1e6)])
    }

    /// The highest rate at which hardly anything is lost (RFC 2544, section 26.1), in the best of
    /// [`TRIES`] tries.
    pub(super) fn without_loss(&mut self, set: FlowSet) -> Result<Vec<Reading>, LabError> {
        let ceiling = self.delivered(Way::Frames, set)?.delivered * 1.1;
        let rate = highest(ceiling, |pace| {
            for _ in 0..TRIES {
                if self.loss_at(set, pace)? <= LOSS_MAX {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        let name = Test::Udp64Ndr.name();
        Ok(vec![Reading::new(name, "Mpps", rate / 1e6)])
    }

    /// The share of packets that is lost at a pace.
    fn loss_at(&mut self, set: FlowSet, pace: f64) -> Result<f64, LabError> {
        let before = self.sink.read()?.total();
        let load = Load::paced(set, pace, (self.length / 4).max(Duration::from_millis(250)));
        let (_, sent) = self.send(Way::Frames, &load, || Ok(()))?;
        std::thread::sleep(DRAIN);
        let arrived = self.sink.read()?.total() - before;
        Ok(1.0 - arrived as f64 / sent.max(1) as f64)
    }

    /// Does what is delivered fall when more and more is offered? The lowest rate over the
    /// highest.
    pub(super) fn overload_times_ten(&mut self, set: FlowSet) -> Result<Vec<Reading>, LabError> {
        let capacity = self.delivered(Way::Frames, set)?.delivered;
        let mut rates = Vec::new();
        for times in OVERLOADS {
            let load = Load::paced(set, capacity * times, self.length);
            rates.push(self.rate(Way::Frames, &load, Arrived::total)?);
        }
        let steps = rates.iter().map(|Rate { delivered, offered }| {
            format!("{:.2} of {:.2}", delivered / 1e6, offered / 1e6)
        });
        let steps: Vec<String> = steps.collect();
        let name = Test::Overload10x.name();
        eprintln!("{name}: {} Mpps delivered", steps.join(", "));
        Ok(vec![Reading::new(name, "ratio", steadiness(&rates))])
    }
}

/// The lowest of what is delivered, as a share of the highest, or of what was offered where that
/// was less.
fn steadiness(rates: &[Rate]) -> f64 {
    let highest = rates.iter().map(|rate| rate.delivered).fold(0.0, f64::max);
    let shares = rates
        .iter()
        .map(|rate| rate.delivered / highest.min(rate.offered));
    shares.fold(1.0, f64::min)
}

/// The highest rate up to `ceiling` that holds, by halving; 0 if none does.
fn highest<E>(ceiling: f64, mut holds: impl FnMut(f64) -> Result<bool, E>) -> Result<f64, E> {
    let (mut low, mut high) = (0.0, ceiling);
    for _ in 0..SEARCH_STEPS {
        let middle = (low + high) / 2.0;
        if holds(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn the_search_finds_the_edge() {
        for edge in [0.0, 0.3, 0.77, 1.0] {
            let Ok(found) = highest(1.0, |rate| Ok::<_, Infallible>(rate <= edge));
            assert!(
                found <= edge && edge - found <= 1.0 / 128.0,
                "{edge}: {found}"
            );
        }
    }

    #[test]
    fn a_rate_is_compared_with_the_peak_or_with_what_was_offered() {
        let rate = |offered, delivered| Rate { delivered, offered };
        // Fewer offered than the peak are no fall; fewer delivered are.
        assert_eq!(steadiness(&[rate(0.5, 0.5), rate(2.0, 1.0)]), 1.0);
        assert_eq!(steadiness(&[rate(2.0, 1.0), rate(8.0, 0.25)]), 0.25);
    }

    #[test]
    fn the_search_ends_at_the_first_error() {
        let mut tries = 0;
        let failed = highest(1.0, |_| {
            tries += 1;
            Err::<bool, _>("broken")
        });
        assert_eq!((failed, tries), (Err("broken"), 1));
    }
}
