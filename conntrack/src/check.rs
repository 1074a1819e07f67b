//! The invariants of the tables, as one function over quiescent tables: for tests, fuzzing and the
//! demo alike.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use crate::age::tick;
use crate::config::{ExternalAddress, Policy};
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::forward::FORWARDS_MAX;
use crate::half::{Snapshot, agree, being_written};
use crate::layout::{PORT_WORDS, header};
use crate::mapping::Mapping;
use crate::nat::Nat;
use crate::port::{Cell, Place};
use crate::session::outside::is_plausible;
use crate::time::Time;
use crate::verdict::Direction;
use crate::word::Word;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

type Checked = Result<(), Violation>;

fn hold(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Violation(what()))
    }
}

/// What the walk over sessions and mappings finds, to be compared with everything else.
#[derive(Default)]
struct Census {
    tuples: HashMap<Tuple, u32>,
    sessions: HashSet<u32>,
    inbound: u64,
    /// Of these, of each mapping and each forward; and those of forwards that are half-open.
    inbound_of_mapping: HashMap<u32, u32>,
    inbound_of_forward: HashMap<u32, u32>,
    half_open: HashSet<u32>,
    /// Sessions and ports that count in a subscriber's record.
    quotas: HashMap<(Ipv4Addr, Protocol), (u32, u32)>,
    /// Sessions of each mapping.
    users: HashMap<u32, u32>,
    /// Sessions that belong to a filter list.
    listed: HashSet<u32>,
    mappings: u64,
    indexed: usize,
    exclusive: HashMap<Place, u32>,
    overloaded: HashMap<Place, u32>,
}

impl<W: Word> Nat<'_, W> {
    /// Checks every invariant of the tables: halves that undo each other, no tuple in two sessions,
    /// everything found through the indexes and nothing else in them, counts that add up, an
    /// external endpoint with one `eim` mapping at most, and owned exactly while something needs
    /// it. `policy` must be the one last applied. Only while no worker is at work.
    pub fn check(&self, policy: &Policy, now: Time) -> Result<(), Violation> {
        let held = self
            .locks
            .words
            .iter()
            .position(|word| word.load(Relaxed) != 0);
        hold(held.is_none(), || format!("lock {held:?} is held"))?;
        let mut census = Census::default();
        for session in 1..=self.sessions.highest() {
            self.check_session(policy, session, &mut census)?;
        }
        for number in 1..=self.mappings.pool.highest() {
            self.check_mapping(policy, number, now, &mut census)?;
        }
        self.check_indexes(&census)?;
        self.check_lists(&census)?;
        self.check_forwards(&census)?;
        self.check_subscribers(&census)?;
        self.check_ports(policy, &census)?;
        self.check_free(&census)?;
        self.check_totals(&census)
    }

    fn check_session(&self, policy: &Policy, session: u32, census: &mut Census) -> Checked {
        let halves = [self.half(2 * session), self.half(2 * session + 1)];
        let name = |what: &str| format!("session {session}: {what}");
        for half in halves {
            let control = half.words[0].load(Relaxed);
            hold(!being_written(control), || name("a half is being written"))?;
        }
        let [even, odd] = halves.map(|half| half.read_held());
        if !even.meta().valid() && !odd.meta().valid() {
            return Ok(());
        }
        hold(agree(&even, &odd), || {
            name("the halves do not undo each other")
        })?;
        hold(even.meta().state() == odd.meta().state(), || {
            name("two TCP states")
        })?;
        for (snapshot, half) in [(&even, 2 * session), (&odd, 2 * session + 1)] {
            let tuple = snapshot.tuple();
            let twin = census.tuples.insert(tuple, half);
            hold(twin.is_none(), || {
                name(&format!("{tuple} is also half {twin:?}"))
            })?;
            let found = self.find(&tuple, self.hash(&tuple)).ok().flatten();
            hold(found.is_some_and(|seen| seen.half == half), || {
                name(&format!("{tuple} is not found"))
            })?;
            hold(
                snapshot.deltas >> 32 == snapshot.side().deltas() >> 32,
                || name("deltas"),
            )?;
        }
        self.check_backing(policy, session, &even, &odd, census)?;
        census.sessions.insert(session);
        let meta = even.meta();
        hold(is_plausible(&self.forwards, meta, even.mapping()), || {
            name("opened by nobody")
        })?;
        if meta.opened_outside() {
            census.inbound += 1;
            let counts = match meta.forward() {
                0 => census.inbound_of_mapping.entry(even.mapping()),
                forward => census.inbound_of_forward.entry(forward),
            };
            *counts.or_default() += 1;
        }
        if meta.counted() {
            let subscriber = (even.tuple().source.addr, meta.protocol());
            census.quotas.entry(subscriber).or_default().0 += 1;
        }
        if meta.half_open() {
            census.half_open.insert(session);
        }
        if even.meta().shared() {
            census.listed.insert(session);
        }
        Ok(())
    }

    /// The external endpoints that a session uses are its mappings' or a forward's.
    fn check_backing(
        &self,
        policy: &Policy,
        session: u32,
        even: &Snapshot,
        odd: &Snapshot,
        census: &mut Census,
    ) -> Checked {
        let hairpin = even.meta().direction() == Direction::Hairpin;
        let ends = [
            (even, even.tuple().source, even.written().0, true),
            (odd, odd.tuple().source, odd.written().0, hairpin),
        ];
        for (snapshot, internal, external, owner) in ends {
            let number = snapshot.mapping();
            let name = |what: &str| format!("session {session}, mapping {number}: {what}");
            if !owner {
                hold(number == even.mapping(), || {
                    name("the halves name two mappings")
                })?;
                continue;
            }
            let protocol = snapshot.meta().protocol();
            if number == 0 {
                let fits = policy
                    .forward(0, protocol, external)
                    .is_some_and(|forward| forward.leads(external, internal));
                hold(fits, || name("neither mapping nor forward"))?;
                continue;
            }
            let mapping = self.mappings.read(number).filter(|mapping| {
                mapping.alive()
                    && mapping.internal == internal
                    && mapping.external == external
                    && mapping.protocol() == protocol
                    && mapping.shared() == snapshot.meta().shared()
            });
            hold(mapping.is_some(), || name("the mapping is another one"))?;
            *census.users.entry(number).or_default() += 1;
        }
        Ok(())
    }

    fn check_mapping(
        &self,
        policy: &Policy,
        number: u32,
        now: Time,
        census: &mut Census,
    ) -> Checked {
        let name = |what: &str| format!("mapping {number}: {what}");
        let Some(mapping) = self.mappings.read(number).filter(Mapping::alive) else {
            return Ok(());
        };
        let users = census.users.get(&number).copied().unwrap_or(0);
        hold(mapping.sessions() == users, || {
            name(&format!(
                "counts {} sessions, has {users}",
                mapping.sessions()
            ))
        })?;
        let inbound = census.inbound_of_mapping.get(&number).copied();
        let counted = u32::from(self.mappings.inbound(number));
        hold(counted == inbound.unwrap_or(0), || {
            name(&format!("counts {counted} from outside, has {inbound:?}"))
        })?;
        hold(mapping.agrees_with(policy), || {
            name("its address is not the policy's")
        })?;
        hold(mapping.stamp <= tick(now), || {
            name("refreshed in the future")
        })?;
        census.mappings += 1;
        let protocol = mapping.protocol();
        if mapping.counted() {
            let subscriber = (mapping.internal.addr, protocol);
            census.quotas.entry(subscriber).or_default().1 += 1;
        }
        if mapping.shared() {
            let pool = mapping.pool(policy).unwrap_or(u16::MAX);
            let found = self.shared_mapping(policy, pool, protocol, mapping.internal);
            hold(found.is_some_and(|found| found.number == number), || {
                name("is not found")
            })?;
            hold(users > 0 || protocol != Protocol::Tcp, || {
                name("TCP without a session")
            })?;
            let twin = census.exclusive.insert(mapping.place(), number);
            hold(twin.is_none(), || {
                name(&format!("shares its endpoint with {twin:?}"))
            })?;
            census.indexed += 1;
        } else {
            hold(users == 1, || name("an edm mapping has one session"))?;
            *census.overloaded.entry(mapping.place()).or_default() += 1;
        }
        Ok(())
    }

    fn check_indexes(&self, census: &Census) -> Checked {
        let (mut entries, mut strays) = (0, 0);
        for (line, entry, half) in self.tuples.entries() {
            entries += 1;
            let snapshot = self.half(half).read_held();
            let hash = self.keys.hash(&snapshot.key());
            let right = snapshot.meta().valid() && self.tuples.belongs(line, entry, hash, half);
            hold(right, || {
                format!("tuple index: a stray entry of half {half}")
            })?;
            strays += u64::from(self.tuples.is_stray(line, hash));
        }
        hold(self.tuples.has_strays(strays), || {
            format!("tuple index: {strays} entries in further lines, counted otherwise")
        })?;
        let halves = census.tuples.len();
        hold(entries == halves, || {
            format!("tuple index: {entries} entries, {halves} halves")
        })?;
        let entries = self.mappings.index.entries().count();
        hold(entries == census.indexed, || {
            format!(
                "endpoint index: {entries} entries, {} mappings",
                census.indexed
            )
        })
    }

    /// Every listed session is in exactly one list, the one of its key.
    fn check_lists(&self, census: &Census) -> Checked {
        let mut seen = HashSet::new();
        for (_, _, first) in self.filters.entries() {
            hold(first != 0, || {
                "filter index: a tag without an entry".to_owned()
            })?;
            let key_of = |session| {
                let [even, odd] = [2 * session, 2 * session + 1].map(|n| self.half(n).read_held());
                self.filter_key(&even, &odd)
            };
            let key = key_of(first);
            let (mut before, mut session) = (0, first);
            while session != 0 {
                let name =
                    |what: &str| format!("filter list of {first}, session {session}: {what}");
                hold(census.listed.contains(&session), || {
                    name("should not be in a list")
                })?;
                hold(seen.insert(session), || name("is in two places"))?;
                hold(key_of(session) == key, || name("has another key"))?;
                let back = self.half(2 * session + 1).link();
                hold(back == before, || name("is linked wrongly"))?;
                before = session;
                session = self.half(2 * session).link();
            }
        }
        let (listed, should) = (seen.len(), census.listed.len());
        hold(listed == should, || {
            format!("filter lists have {listed} of {should} sessions")
        })
    }

    /// Counts and lists of the sessions that forwards let in.
    fn check_forwards(&self, census: &Census) -> Checked {
        let mut listed = 0;
        for number in 1..=FORWARDS_MAX as u32 {
            let name = |what: &str| format!("forward {number}: {what}");
            let (sessions, half_open) = self.forwards.counts(number);
            let has = census.inbound_of_forward.get(&number).copied();
            hold(sessions == has.unwrap_or(0), || {
                name(&format!("counts {sessions} sessions, has {has:?}"))
            })?;
            hold(!self.forwards.is_locked(number), || {
                name("its list is locked")
            })?;
            let (mut session, newest) = self.forwards.ends(number);
            let (mut before, mut length) = (0, 0);
            while session != 0 && length <= half_open {
                let meta = self.half(2 * session).read_held().meta();
                let mine = census.half_open.contains(&session) && meta.forward() == number;
                let back = self.half(2 * session + 1).link();
                hold(mine && back == before, || name("its list is wrong"))?;
                length += 1;
                before = session;
                session = self.half(2 * session).link();
            }
            hold(length == half_open && newest == before, || {
                name(&format!("lists {length} half-open, counts {half_open}"))
            })?;
            listed += length as usize;
        }
        hold(listed == census.half_open.len(), || {
            format!("{listed} half-open listed of {}", census.half_open.len())
        })
    }

    /// Every subscriber counts what it has, and has one key, where it is found.
    fn check_subscribers(&self, census: &Census) -> Checked {
        let (mut known, mut counted) = (HashSet::new(), 0);
        for (number, address, users) in self.subscribers.all() {
            if address.is_unspecified() && users == 0 {
                continue;
            }
            let name = |what: &str| format!("subscriber {address}: {what}");
            hold(known.insert(address), || name("has two keys"))?;
            hold(self.knows_subscriber(number, address), || {
                name("is not found")
            })?;
            let mut all = 0;
            for protocol in Protocol::ALL {
                let has = census.quotas.get(&(address, protocol)).copied();
                let has = has.unwrap_or_default();
                let counts = self.subscribers.counts(number, protocol);
                hold(counts == has, || {
                    name(&format!("counts {counts:?} of {protocol}, has {has:?}"))
                })?;
                all += has.0 + has.1;
            }
            hold(users == all, || name(&format!("counts {users}, has {all}")))?;
            counted += all;
        }
        let should = census.quotas.values().map(|has| has.0 + has.1).sum();
        hold(counted == should, || {
            format!("subscribers count {counted} of {should}")
        })
    }

    fn check_ports(&self, policy: &Policy, census: &Census) -> Checked {
        let mut found = (0, 0);
        let mut fixed = HashMap::new();
        for slot in 0..self.ports.slots() {
            for protocol in Protocol::ALL {
                let mut held = 0;
                for word in 0..PORT_WORDS {
                    if self.ports.all_free(slot, protocol, word) {
                        continue;
                    }
                    let owned = self.ports.owned_bits(slot, protocol, word);
                    for bit in 0..64 {
                        let place = Place {
                            slot,
                            protocol,
                            port: (word * 64 + bit) as u16,
                        };
                        let cell = self.ports.cell(place);
                        let name = |what: &str| format!("{place:?} is {cell:?}: {what}");
                        let used = cell != Cell::Free;
                        hold(owned >> bit & 1 == u64::from(used), || {
                            name("ownership bit")
                        })?;
                        held += u32::from(matches!(cell, Cell::Held(_)));
                        found.0 += usize::from(matches!(cell, Cell::Exclusive(_)));
                        found.1 += usize::from(matches!(cell, Cell::Overloaded(_)));
                        if let Cell::Fixed(number) = cell {
                            let addr = policy.address_in(slot).map(|address| address.addr);
                            let external = addr.map(|addr| Endpoint::new(addr, place.port));
                            let found = |external| policy.forwards.find(protocol, external);
                            let forward = external.and_then(found).map(|(place, _)| place);
                            // All ports of a forward have its record, and no others do.
                            let one = *fixed.entry(number).or_insert(forward) == forward
                                && self.forwards.is_claimed(number);
                            hold(one, || name("no record, or another's"))?;
                        }
                        hold(right_cell(policy, census, place, cell), || {
                            name("nothing uses it")
                        })?;
                    }
                }
                hold(self.ports.is_counted(slot, protocol), || {
                    format!("slot {slot}, {protocol}: the groups' counts are not their bits'")
                })?;
                let counted = self.ports.held(slot, protocol);
                hold(held == counted, || {
                    format!("{held} held ports, {counted} counted")
                })?;
            }
        }
        let should = (census.exclusive.len(), census.overloaded.len());
        hold(found == should, || {
            format!("ports of mappings {should:?}, of cells {found:?}")
        })?;
        let mut records = 1..=FORWARDS_MAX as u32;
        let stray = records.find(|n| self.forwards.is_claimed(*n) && !fixed.contains_key(n));
        hold(stray.is_none(), || format!("forward {stray:?} has no port"))?;
        for forward in policy.forwards.iter() {
            let Some(address) = policy.address(forward.external.addr) else {
                continue;
            };
            for port in forward.ports() {
                let place = Place {
                    slot: address.slot,
                    protocol: forward.protocol,
                    port,
                };
                let fixed = matches!(self.ports.cell(place), Cell::Fixed(_));
                hold(fixed, || {
                    format!("the forward of {} is not in the tables", forward.external)
                })?;
            }
        }
        Ok(())
    }

    /// Every record is in use or free, and free once.
    fn check_free(&self, census: &Census) -> Checked {
        let sessions: Vec<u32> = self.sessions.free().collect();
        let distinct: HashSet<u32> = sessions.iter().copied().collect();
        let total = distinct.len() + census.sessions.len();
        let sound = sessions.len() == distinct.len()
            && distinct.is_disjoint(&census.sessions)
            && total == self.sessions.highest() as usize;
        hold(sound, || {
            format!("free sessions: {total} of {}", self.sessions.highest())
        })?;
        let mappings: Vec<u32> = self.mappings.pool.free().collect();
        let distinct: HashSet<u32> = mappings.iter().copied().collect();
        let total = distinct.len() + census.mappings as usize;
        let dead = |&number: &u32| self.mappings.read(number).is_some_and(|m| !m.alive());
        let sound = mappings.len() == distinct.len()
            && mappings.iter().all(dead)
            && total == self.mappings.pool.highest() as usize;
        hold(sound, || {
            format!("free mappings: {total} of {}", self.mappings.pool.highest())
        })
    }

    fn check_totals(&self, census: &Census) -> Checked {
        let totals = self.totals();
        let mut ports = [0; 3];
        for place in census.exclusive.keys().chain(census.overloaded.keys()) {
            ports[place.protocol.index()] += 1;
        }
        let sessions = census.sessions.len() as u64;
        let mapped: u32 = census.inbound_of_mapping.values().sum();
        let told = (
            self.header[header::INBOUND_MAPPED].load(Relaxed),
            totals.sessions_half_open,
        );
        let counted = (u64::from(mapped), census.half_open.len() as u64);
        hold(told == counted, || {
            format!("from outside told {told:?}, there are {counted:?}")
        })?;
        let told = (
            totals.sessions,
            totals.sessions_inbound,
            totals.mappings,
            totals.ports_in_use,
        );
        let counted = (sessions, census.inbound, census.mappings, ports);
        hold(told == counted, || {
            format!("totals tell {told:?}, there are {counted:?}")
        })?;
        let ended = totals.expired + totals.removed + totals.evicted;
        hold(totals.created == sessions + ended, || {
            format!("{} created, {ended} ended, {sessions} left", totals.created)
        })
    }
}

/// Has the cell the user that it names?
fn right_cell(policy: &Policy, census: &Census, place: Place, cell: Cell) -> bool {
    let address: Option<&ExternalAddress> = policy.address_in(place.slot);
    match cell {
        Cell::Free => true,
        Cell::Changing => false,
        Cell::Exclusive(mapping) => census.exclusive.get(&place) == Some(&mapping),
        Cell::Overloaded(count) => census.overloaded.get(&place) == Some(&count),
        Cell::Held(_) => address.is_some(),
        Cell::Fixed(_) => address.is_some_and(|address| {
            let external = Endpoint::new(address.addr, place.port);
            policy.forward(0, place.protocol, external).is_some()
        }),
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests;
