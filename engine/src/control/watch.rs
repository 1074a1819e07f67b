//! Sessions that begin and end, told by comparing the tables with a copy of what they had at the look
//! before. So a packet pays nothing for being watched, nor does the making of a session; a session
//! that lives shorter than the time between two looks is seen by none of them, and only counted.
//!
//! The copy takes 32 bytes for each record that was ever in use.

use std::sync::Arc;

use conntrack::{Mark, Time};

use super::answer::{Answer, Begun, Missed};
use super::filter::Filter;
use super::record::Flow;
use crate::gateway::Shared;

/// Records that a slice looks at: its lines are two megabytes at most.
const SLICE: u32 = 4096;

/// What was seen of the sessions so far.
pub struct Watching {
    shared: Arc<Shared>,
    filter: Filter,
    /// By record: the session that it had at the last look.
    marks: Vec<Mark>,
    /// The record that is next.
    next: u32,
    /// The first look only takes the copy.
    begun: bool,
    /// Sessions that the tables had made when the first look ended, and when this one began.
    made: [u64; 2],
    /// Of those made since, seen.
    seen: u64,
    /// Of those made since, told as missed.
    missed: u64,
}

impl Watching {
    /// Begins with what there is at the first look.
    pub fn new(shared: &Arc<Shared>, filter: Filter) -> Watching {
        Watching {
            shared: Arc::clone(shared),
            filter,
            marks: Vec::new(),
            next: 1,
            begun: false,
            made: [0; 2],
            seen: 0,
            missed: 0,
        }
    }

    /// Puts what happened behind `lines`; true when this look is over.
    pub fn slice(&mut self, now: Time, lines: &mut Vec<u8>) -> bool {
        let shared = Arc::clone(&self.shared);
        let policy = shared.rulebook.load();
        if self.next == 1 {
            self.made[1] = shared.nat.totals().created;
        }
        let records = shared.nat.session_records();
        self.marks.resize(records as usize + 1, Mark::NONE);
        let end = self.next.saturating_add(SLICE).min(records + 1);
        for number in self.next..end {
            let mark = shared.nat.mark(&policy, number, now);
            self.compare(number, mark.unwrap_or(Mark::NONE), lines);
        }
        self.next = end;
        if self.next <= records {
            return false;
        }
        self.next = 1;
        match self.begun {
            true => self.tell_missed(lines),
            false => {
                self.made[0] = shared.nat.totals().created;
                let there = self.marks.iter().filter(|&&mark| mark != Mark::NONE);
                let sessions = there.count() as u64;
                Answer::Watching(Begun { sessions }).write(lines);
            }
        }
        self.begun = true;
        true
    }

    fn compare(&mut self, number: u32, mark: Mark, lines: &mut Vec<u8>) {
        let before = std::mem::replace(&mut self.marks[number as usize], mark);
        if before == mark || !self.begun {
            return;
        }
        if before != Mark::NONE && self.filter.matches_mark(&before) {
            Answer::Ended(Flow::from(&before)).write(lines);
        }
        if mark != Mark::NONE {
            self.seen += 1;
            if self.filter.matches_mark(&mark) {
                Answer::New(Flow::from(&mark)).write(lines);
            }
        }
    }

    /// What was made before this look began and has never been seen is gone. Sessions that were made
    /// during the look, and seen, count for others that were not, so it may be more.
    fn tell_missed(&mut self, lines: &mut Vec<u8>) {
        let [first, last] = self.made;
        let unseen = last.saturating_sub(first).saturating_sub(self.seen);
        if unseen > self.missed {
            let count = unseen - self.missed;
            self.missed = unseen;
            Answer::Missed(Missed { count }).write(lines);
        }
    }
}
