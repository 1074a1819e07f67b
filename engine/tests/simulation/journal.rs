//! What happened lately, for a person to read when something went wrong.

use std::collections::VecDeque;
use std::fmt;

use super::oracle::Side;
use super::packet::Seen;

/// Entries that are kept.
const KEPT: usize = 40;

enum Entry {
    Packet(&'static str, Side, Seen),
    Words(String),
}

#[derive(Default)]
pub struct Journal {
    entries: VecDeque<(u64, Entry)>,
    /// The first entry: what the world is.
    first: Option<String>,
    start: u64,
    /// Print everything at once.
    aloud: bool,
}

impl Journal {
    pub fn new(aloud: bool) -> Journal {
        Journal {
            aloud,
            ..Journal::default()
        }
    }

    pub fn packet(&mut self, now: u64, verb: &'static str, side: Side, seen: &Seen) {
        self.put(now, Entry::Packet(verb, side, *seen));
    }

    pub fn say(&mut self, now: u64, words: String) {
        if self.first.is_none() {
            (self.start, self.first) = (now, Some(words));
        } else {
            self.put(now, Entry::Words(words));
        }
    }

    fn put(&mut self, now: u64, entry: Entry) {
        if self.aloud {
            println!("{}", self.line(now, &entry));
        }
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back((now, entry));
    }

    fn line(&self, now: u64, entry: &Entry) -> String {
        let seconds = now.saturating_sub(self.start) as f64 / 1000.0;
        match entry {
            Entry::Packet("comes", side, seen) => {
                format!("{seconds:>12.3} s  from {side:?}: {seen}")
            }
            Entry::Packet(_, side, seen) => format!("{seconds:>12.3} s      to {side:?}: {seen}"),
            Entry::Words(words) => format!("{seconds:>12.3} s  * {words}"),
        }
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.first.as_deref().unwrap_or("no world"))?;
        for (now, entry) in &self.entries {
            writeln!(f, "{}", self.line(*now, entry))?;
        }
        Ok(())
    }
}
