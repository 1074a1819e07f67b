//! Listings, slice by slice: what a client has not taken yet is not made yet. The tables are read
//! without a lock or a write bit, so that no worker waits for a listing, whoever reads it how slowly.

use std::sync::Arc;

use conntrack::{Occupant, Policy, Protocol, Time};
use ipnet::Ipv4Net;

use super::answer::{Answer, End};
use super::filter::{Filter, Pattern};
use super::record::{Mapping, Occupied, Session};
use super::request::{List, Lookup};
use crate::gateway::Shared;

/// Records that a slice looks at: its lines are a megabyte at most.
const SLICE: u32 = 2048;

/// A part of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Sessions,
    Mappings,
    Forwards,
}

/// A listing, and how far it is.
pub struct Listing {
    shared: Arc<Shared>,
    filter: Filter,
    /// What is still to be listed, beginning with the part under way.
    parts: &'static [Part],
    /// The record of that part which is next.
    next: u32,
    /// Lines that may still come.
    left: u64,
    end: End,
    /// What a look-up is about, until it is told.
    asked: Option<Lookup>,
}

impl Listing {
    fn new(shared: &Arc<Shared>, list: List, parts: &'static [Part]) -> Listing {
        Listing {
            shared: Arc::clone(shared),
            filter: list.filter,
            parts,
            next: 1,
            left: list.limit.unwrap_or(u64::MAX),
            end: End {
                count: 0,
                limited: false,
            },
            asked: None,
        }
    }

    /// Of sessions that have not expired.
    pub fn sessions(shared: &Arc<Shared>, list: List) -> Listing {
        Listing::new(shared, list, &[Part::Sessions])
    }

    /// Of dynamic mappings, and then of forwards' static ones.
    pub fn mappings(shared: &Arc<Shared>, list: List) -> Listing {
        Listing::new(shared, list, &[Part::Mappings, Part::Forwards])
    }

    /// Of what is behind an external endpoint: what it is used for, its mappings, its sessions.
    pub fn lookup(shared: &Arc<Shared>, lookup: Lookup) -> Listing {
        let filter = Filter {
            external: Some(Pattern {
                prefix: Ipv4Net::from(lookup.external.addr),
                port: Some(lookup.external.port),
            }),
            protocol: lookup.protocol,
            ..Filter::default()
        };
        let list = List {
            filter,
            limit: None,
        };
        let parts = &[Part::Mappings, Part::Forwards, Part::Sessions];
        Listing {
            asked: Some(lookup),
            ..Listing::new(shared, list, parts)
        }
    }

    /// Puts the next lines behind `lines`; true when the last one is there.
    pub fn slice(&mut self, now: Time, lines: &mut Vec<u8>) -> bool {
        let shared = Arc::clone(&self.shared);
        let policy = shared.rulebook.load();
        if let Some(lookup) = self.asked.take() {
            self.tell_use(&lookup, &policy, now, lines);
        }
        let mut budget = SLICE;
        while let Some(&part) = self.parts.first() {
            let records = match part {
                Part::Sessions => shared.nat.session_records(),
                Part::Mappings => shared.nat.mapping_records(),
                Part::Forwards => policy.forwards.len() as u32,
            };
            while self.next <= records {
                if budget == 0 {
                    return false;
                }
                if let Some(answer) = self.record(part, &policy, now) {
                    if self.left == 0 {
                        self.end.limited = true;
                        return self.finish(lines);
                    }
                    self.left -= 1;
                    self.end.count += 1;
                    answer.write(lines);
                }
                self.next += 1;
                budget -= 1;
            }
            self.parts = &self.parts[1..];
            self.next = 1;
        }
        self.finish(lines)
    }

    fn finish(&mut self, lines: &mut Vec<u8>) -> bool {
        self.parts = &[];
        Answer::End(self.end).write(lines);
        true
    }

    /// The line of the next record, if it is meant.
    fn record(&self, part: Part, policy: &Policy, now: Time) -> Option<Answer> {
        let (nat, filter, number) = (&self.shared.nat, &self.filter, self.next);
        match part {
            Part::Sessions => {
                let session = nat.session(number, now);
                let session = session.filter(|view| filter.matches_living(view, policy, now))?;
                Some(Answer::Session(Session::new(&session, policy, now)))
            }
            Part::Mappings => {
                let mapping = nat.mapping(number);
                let mapping = mapping.filter(|view| filter.matches_mapping(view, now))?;
                Some(Answer::Mapping(Mapping::new(&mapping, now)))
            }
            Part::Forwards => {
                let forward = policy.forwards.get(number as usize - 1);
                let forward = forward.filter(|forward| filter.matches_forward(forward))?;
                let occupant = nat.occupant(policy, forward.protocol, forward.external);
                // Not yet, or no longer, in the tables: nobody comes by it.
                let Occupant::Forward { sessions, .. } = occupant else {
                    return None;
                };
                Mapping::of_forward(forward, sessions).map(Answer::Mapping)
            }
        }
    }

    fn tell_use(&mut self, lookup: &Lookup, policy: &Policy, now: Time, lines: &mut Vec<u8>) {
        let one = lookup.protocol.map(Protocol::from);
        for protocol in Protocol::ALL {
            if one.is_none_or(|one| one == protocol) {
                let occupant = self.shared.nat.occupant(policy, protocol, lookup.external);
                let used = Occupied::new(policy, protocol, lookup.external, occupant, now);
                self.end.count += 1;
                Answer::Endpoint(used).write(lines);
            }
        }
    }
}
