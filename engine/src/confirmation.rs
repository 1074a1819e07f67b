//! Whether a start is for good. One on trial ends by itself, as if it had never been, unless an
//! operator confirms it in time: a wrong start must not lock anybody out.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

const AWAITED: u8 = 0;
const GIVEN: u8 = 1;
const EXPIRED: u8 = 2;

/// The confirmation of one start. It is given or it expires, once and for all, whichever is first.
#[derive(Debug)]
pub struct Confirmation {
    state: AtomicU8,
    limit: Duration,
    /// Set when the gateway serves: before that nobody could look whether it is right.
    deadline: OnceLock<Instant>,
    asked: Notify,
}

impl Confirmation {
    /// Of a start that needs none.
    pub fn given() -> Confirmation {
        Confirmation::new(GIVEN, Duration::ZERO)
    }

    /// Of a start on trial, for so long from the moment that it serves.
    pub fn awaited(limit: Duration) -> Confirmation {
        Confirmation::new(AWAITED, limit)
    }

    fn new(state: u8, limit: Duration) -> Confirmation {
        Confirmation {
            state: AtomicU8::new(state),
            limit,
            deadline: OnceLock::new(),
            asked: Notify::new(),
        }
    }

    /// The gateway serves: the time runs from now on.
    pub fn begin(&self, now: Instant) {
        // Only the first call counts.
        let _ = self.deadline.set(now + self.limit);
    }

    /// Is it neither given nor expired?
    pub fn is_awaited(&self) -> bool {
        self.state.load(Ordering::Acquire) == AWAITED
    }

    /// Was it given, or never needed?
    pub fn is_given(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN
    }

    /// How long it is waited for yet; `None` if it is not.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let deadline = self.deadline.get();
        let left = deadline.map_or(self.limit, |at| at.saturating_duration_since(now));
        self.is_awaited().then_some(left)
    }

    /// Gives it. False: it was not waited for (any more).
    pub fn give(&self) -> bool {
        self.settle(GIVEN)
    }

    /// Lets it expire if its time is over. True once, for the caller who is to end the gateway.
    pub fn expire(&self, now: Instant) -> bool {
        let due = self.deadline.get().is_some_and(|&deadline| now >= deadline);
        due && self.settle(EXPIRED)
    }

    fn settle(&self, state: u8) -> bool {
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        let settled = self.state.compare_exchange(AWAITED, state, order, failed);
        settled.is_ok()
    }

    /// Asks the control thread to give it.
    pub fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits until somebody asks.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn it_expires_once_and_only_when_its_time_is_over() {
        let confirmation = Confirmation::awaited(LIMIT);
        let now = Instant::now();
        assert!(!confirmation.expire(now + 2 * LIMIT), "it does not serve");
        assert_eq!(confirmation.left(now), Some(LIMIT));
        confirmation.begin(now);
        assert_eq!(confirmation.left(now + LIMIT / 4), Some(LIMIT * 3 / 4));
        assert!(!confirmation.expire(now + LIMIT - Duration::from_millis(1)));
        assert!(confirmation.expire(now + LIMIT));
        assert!(!confirmation.expire(now + LIMIT), "once");
        assert!(!confirmation.give(), "too late");
        assert!(!confirmation.is_given());
        assert_eq!(confirmation.left(now), None);
    }

    #[test]
    fn given_in_time_it_never_expires() {
        let confirmation = Confirmation::awaited(LIMIT);
        let now = Instant::now();
        confirmation.begin(now);
        assert!(confirmation.is_awaited() && confirmation.give());
        assert!(!confirmation.give(), "once");
        assert!(!confirmation.expire(now + 2 * LIMIT));
        assert!(confirmation.is_given() && Confirmation::given().is_given());
        assert!(!Confirmation::given().is_awaited());
        assert!(!Confirmation::given().expire(now + 2 * LIMIT));
    }
}
