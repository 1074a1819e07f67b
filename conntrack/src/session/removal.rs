//! Removing sessions that an operator names, with their mappings, slice by slice.

use std::cell::Cell;

use crate::age::At;
use crate::config::Policy;
use crate::half::Snapshot;
use crate::layout::header;
use crate::mapping::Mapping;
use crate::nat::Nat;
use crate::status::{MappingView, SessionView};
use crate::time::Time;
use crate::word::Word;

/// A session that is ended costs a slice as much as so many that are only looked at.
const REMOVED_COST: u32 = 8;

/// Attempts at a session that another worker is changing, which takes it nanoseconds.
const ATTEMPTS: u32 = 64;

/// A removal on its way through the tables, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    position: u64,
    /// Sessions that were ended.
    pub sessions: u64,
    /// Mappings that ended with them, or had no session.
    pub mappings: u64,
    /// Sessions that should have ended, but kept changing.
    pub left: u64,
}

impl<W: Word> Nat<'_, W> {
    /// One slice of `budget` records; true when the removal is through.
    ///
    /// Ends every session that `sessions` holds for, and with it each of its mappings that no other
    /// session uses; then every mapping without a session that `mappings` holds for. Ports are free
    /// afterwards, or in hold-down where they would be after any other end. Packets go on meanwhile:
    /// a flow whose session was ended may have made another one. Only for workers, like
    /// [`Nat::sweep`].
    pub fn remove(
        &self,
        policy: &Policy,
        removal: &mut Removal,
        now: Time,
        budget: u32,
        sessions: impl Fn(&SessionView) -> bool,
        mappings: impl Fn(&MappingView) -> bool,
    ) -> bool {
        let at = At { policy, now };
        let mut spent = 0;
        while spent < budget {
            let records = u64::from(self.session_records());
            let before = (removal.sessions, removal.mappings);
            if removal.position < records {
                self.remove_session(&at, removal.position as u32 + 1, removal, &sessions);
            } else if removal.position < records + u64::from(self.mapping_records()) {
                let number = (removal.position - records) as u32 + 1;
                removal.mappings += u64::from(self.remove_mapping(&at, number, &mappings));
            } else {
                return true;
            }
            removal.position += 1;
            spent += match before == (removal.sessions, removal.mappings) {
                true => 1,
                false => REMOVED_COST,
            };
        }
        false
    }

    fn remove_session(
        &self,
        at: &At,
        number: u32,
        removal: &mut Removal,
        matches: impl Fn(&SessionView) -> bool,
    ) {
        let used = Cell::new([None; 2]);
        let condition = |even: &Snapshot, odd: &Snapshot| {
            used.set([even, odd].map(|half| self.used_mapping(half)));
            matches(&self.session_view(number, even, odd, at.now))
        };
        let is_there = || {
            let view = self.session(number, at.now);
            view.is_some_and(|view| matches(&view))
        };
        for round in 0..ATTEMPTS {
            if !is_there() {
                return;
            }
            if self.end_if(at, number, header::REMOVED, condition) {
                removal.sessions += 1;
                let [even, odd] = used.get();
                let odd = odd.filter(|odd: &Mapping| {
                    even.is_none_or(|even: Mapping| even.number != odd.number)
                });
                let ended = [even, odd].into_iter().flatten();
                let ended = ended.filter(|mapping| self.end_unused(at, mapping));
                removal.mappings += ended.count() as u64;
                return;
            }
            W::pause(round);
        }
        removal.left += 1;
    }

    fn used_mapping(&self, half: &Snapshot) -> Option<Mapping> {
        match half.mapping() {
            0 => None,
            number => self.mappings.read(number),
        }
    }

    /// Ends a mapping that a removed session has left, unless another one uses it. Is it gone?
    fn end_unused(&self, at: &At, mapping: &Mapping) -> bool {
        let current = self.mappings.read(mapping.number);
        match current.filter(|current| current.is_same(mapping)) {
            Some(current) if current.sessions() > 0 => false,
            Some(current) => self.end_mapping(at, &current),
            None => true,
        }
    }

    fn remove_mapping(&self, at: &At, number: u32, matches: impl Fn(&MappingView) -> bool) -> bool {
        let mapping = self.mappings.read(number);
        let idle = mapping.filter(|mapping| mapping.alive() && mapping.sessions() == 0);
        idle.is_some_and(|mapping| {
            matches(&self.mapping_view(&mapping)) && self.end_mapping(at, &mapping)
        })
    }
}
