//! Says how long a start on trial waits for its confirmation yet.

use std::time::Duration;

use tracing::warn;

/// Seconds left at which it is said again; beside these every full minute.
const MARKS: [u64; 4] = [30, 10, 5, 2];

/// Which words were said already.
#[derive(Debug)]
pub struct Countdown {
    instance: String,
    last_s: Option<u64>,
}

impl Countdown {
    /// Of an instance of this name, which messages tell the operator.
    pub fn new(instance: &str) -> Countdown {
        Countdown {
            instance: instance.to_owned(),
            last_s: None,
        }
    }

    /// Takes up how long is left, and says it if it is time to.
    pub fn look(&mut self, left: Duration) {
        let left_s = left.as_secs_f64().ceil() as u64;
        if self.is_due(left_s) {
            let (instance, pid) = (&self.instance, std::process::id());
            warn!(
                "on trial: the gateway detaches in {left_s} s unless it is confirmed: `egret \
                 confirm --instance {instance}` or `kill -USR1 {pid}`"
            );
        }
    }

    fn is_due(&mut self, left_s: u64) -> bool {
        let last = self.last_s.replace(left_s);
        last.is_none_or(|last| {
            let passed = |mark: u64| left_s <= mark && mark < last;
            let minute = last.saturating_sub(1) / 60 * 60;
            MARKS.into_iter().any(passed) || minute > 0 && passed(minute)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_at_first_and_ever_more_often() {
        let mut countdown = Countdown::new("default");
        let said: Vec<u64> = (0..=150)
            .rev()
            .flat_map(|left_s| [left_s, left_s])
            .filter(|&left_s| countdown.is_due(left_s))
            .collect();
        assert_eq!(said, [150, 120, 60, 30, 10, 5, 2]);
    }

    #[test]
    fn a_mark_that_was_slept_through_is_said_late() {
        let mut countdown = Countdown::new("default");
        assert!(countdown.is_due(40));
        assert!(countdown.is_due(27));
        assert!(!countdown.is_due(26));
    }
}
