//! Frames that wait for their next hop's MAC: translated already, bounded, in order of arrival.

use conntrack::Time;

use crate::device::Frame;
use crate::neighbour::HopNumber;

/// Frames that may wait for one hop.
pub const HELD_PER_HOP_MAX: usize = 32;
/// Frames that may wait in one worker.
pub const HELD_MAX: usize = 512;
/// How long a frame waits: the kernel gives up on an unanswered ARP request after 3 s.
pub const HELD_TIMEOUT_MS: u64 = 3_000;

/// A waiting frame.
#[derive(Debug)]
pub struct Held {
    /// The frame.
    pub frame: Frame,
    /// The hop it waits for.
    pub hop: HopNumber,
    since: Time,
}

/// A frame that there was no place for.
#[derive(Debug)]
pub enum Pushed {
    /// The one that was to be kept.
    Back(Frame),
    /// One that waited already; the new one waits in its place.
    Out(Frame),
}

/// What is to become of a waiting frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Go on waiting.
    Wait,
    /// The hop is known (or has failed): take it out.
    Release,
}

/// One worker's waiting frames.
#[derive(Debug)]
pub struct HoldQueue {
    held: Vec<Held>,
}

impl Default for HoldQueue {
    fn default() -> HoldQueue {
        HoldQueue {
            held: Vec::with_capacity(HELD_MAX),
        }
    }
}

impl HoldQueue {
    /// Keeps a frame, in order. Comes back: the frame itself when as many wait for its hop as may;
    /// when the queue is full, the oldest, so that dead neighbours take no place from a living one,
    /// which answers long before the queue has turned over.
    pub fn push(&mut self, frame: Frame, hop: HopNumber, now: Time) -> Option<Pushed> {
        let same_hop = self.held.iter().filter(|held| held.hop == hop).count();
        if same_hop >= HELD_PER_HOP_MAX {
            return Some(Pushed::Back(frame));
        }
        let full = self.held.len() >= HELD_MAX;
        let pushed = full.then(|| Pushed::Out(self.held.remove(0).frame));
        self.held.push(Held {
            frame,
            hop,
            since: now,
        });
        pushed
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Takes out the first frame that has waited too long or that `judge` releases; the order of
    /// the others stays.
    pub fn take(&mut self, now: Time, judge: impl Fn(HopNumber) -> Outcome) -> Option<Held> {
        let late = |held: &Held| now.0.saturating_sub(held.since.0) >= HELD_TIMEOUT_MS;
        let at = self
            .held
            .iter()
            .position(|held| late(held) || judge(held.hop) == Outcome::Release)?;
        Some(self.held.remove(at))
    }
}
