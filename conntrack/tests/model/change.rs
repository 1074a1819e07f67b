//! A changed policy: what it ends, what it keeps, and what goes on otherwise.

use conntrack::{Policy, Protocol, Timers};

use crate::drive::Drive;
use crate::flow::{pool_in, profile_for};
use crate::observe::{Judged, World, ensure};
use crate::reference::{Backing, Mapping, Reference, Session, open_until_ms};
use crate::upkeep::put;

/// What a new policy does to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Ends,
    /// Its internal endpoint has two mappings in one pool now, of which one stays.
    Either,
}

/// A mapping before a change.
struct Earlier {
    mapping: Mapping,
    had_sessions: bool,
    was_fresh: bool,
    /// It has no session, and is over by its own timers and, as theirs change at once, those of all.
    is_over: bool,
    /// Another one of its internal endpoint is in the same pool now.
    met: bool,
}

impl Reference {
    fn fate(&self, session: &Session, next: &Policy) -> Fate {
        let met = |mapping: &&Mapping| session.uses(mapping.name) && self.meets(mapping, next);
        if self.contradicts(session, next) {
            Fate::Ends
        } else if self.mappings.iter().any(|mapping| met(&mapping)) {
            Fate::Either
        } else {
            Fate::Stays
        }
    }

    /// Must a session end under a new policy?
    fn contradicts(&self, session: &Session, next: &Policy) -> bool {
        let slot_in = |policy: &Policy, addr| {
            let mut addresses = policy.addresses.iter();
            addresses.find(|a| a.addr == addr).map(|a| a.slot)
        };
        let there = session.sides[0].tuple.destination.addr;
        if !session.from_outside && next.denied.contains(there) || !is_translated_so(session, next)
        {
            return true;
        }
        session.owners().iter().enumerate().any(|(i, side)| {
            let external = side.source;
            let same = slot_in(next, external.addr).is_some()
                && slot_in(next, external.addr) == slot_in(&self.policy, external.addr);
            let mut forwards = next.forwards.iter();
            let forward =
                forwards.find(|f| f.protocol == session.protocol && f.external == external);
            if side.backing != Backing::Forward {
                return !same || forward.is_some();
            }
            // The far side sees the opener by its external address.
            let opener = match (session.from_outside, i) {
                (true, _) => Some(session.sides[1].tuple.source.addr),
                (false, 1) => Some(session.sides[0].source.addr),
                (false, _) => None,
            };
            let fits = forward.is_some_and(|f| {
                let allowed =
                    |addr| f.allow.is_empty() || f.allow.iter().any(|n| n.contains(&addr));
                f.targets == side.tuple.source.into() && opener.is_none_or(allowed)
            });
            !same || !fits
        })
    }

    /// Comes another mapping of the internal endpoint to be in the same pool? There is room for one
    /// (RFC 4787 REQ-1).
    fn meets(&self, mapping: &Mapping, next: &Policy) -> bool {
        let pool = pool_in(next, mapping.external);
        pool.is_some()
            && self.mappings.iter().any(|other| {
                other.name != mapping.name
                    && (other.protocol, other.internal) == (mapping.protocol, mapping.internal)
                    && pool_in(next, other.external) == pool
            })
    }

    fn earlier(&self, next: &Policy) -> Vec<Earlier> {
        let mappings = self.mappings.iter();
        mappings
            .map(|mapping| Earlier {
                had_sessions: self.users(mapping.name) > 0,
                was_fresh: self.now_ms < self.open_until_ms(mapping),
                is_over: self.users(mapping.name) == 0
                    && self.now_ms >= self.open_until_ms(mapping)
                    && self.now_ms >= open_until_ms(mapping, &next.timers),
                met: self.meets(mapping, next),
                mapping: mapping.clone(),
            })
            .collect()
    }

    /// Takes out the mappings that the policy in force has ended.
    fn end_mappings(&mut self, earlier: &[Earlier], after: &World) -> Judged {
        for Earlier {
            mapping,
            had_sessions,
            was_fresh,
            met,
            ..
        } in earlier
        {
            let (protocol, external) = (mapping.protocol, mapping.external);
            let is_lost = self.pool_of(external).is_none();
            let is_taken = self.forward_at(protocol, external).is_some();
            // One that lives by its sessions only ends with the last of them, by the timers that it
            // had. Nothing is held down where that could be, so its port tells.
            let may_end = *met || *had_sessions && !was_fresh;
            let has_ended =
                may_end && self.users(mapping.name) == 0 && !self.is_set(after, protocol, external);
            if is_lost || is_taken || has_ended {
                self.mappings.retain(|m| m.name != mapping.name);
            }
        }
        earlier
            .iter()
            .filter(|earlier| earlier.met)
            .try_for_each(|met| self.check_met(met, earlier))
    }

    /// The sessions of a mapping may end as another one is in its pool now: but for none that is over,
    /// or where a forward is now.
    fn check_yielded(&self, fates: &[Fate], earlier: &[Earlier], after: &World) -> Judged {
        let met = |e: &&Earlier, session: &Session| e.met && session.uses(e.mapping.name);
        let yields_to = |e: &Earlier, other: &Earlier| {
            let (mapping, rival) = (&e.mapping, &other.mapping);
            rival.name != mapping.name
                && (rival.protocol, rival.internal) == (mapping.protocol, mapping.internal)
                && self.pool_of(rival.external) == self.pool_of(mapping.external)
                && !other.is_over
                && self.forward_at(rival.protocol, rival.external).is_none()
        };
        for (session, _) in self
            .sessions
            .iter()
            .zip(fates)
            .filter(|(_, f)| **f == Fate::Either)
        {
            let listed = after
                .listing
                .iter()
                .any(|view| view.number == session.number);
            let mut mappings = earlier.iter().filter(|e| met(e, session));
            let yields = mappings.any(|e| earlier.iter().any(|other| yields_to(e, other)));
            ensure(listed || yields || !self.lives(session), || {
                format!("gave way to what is over: {session:?}")
            })?;
        }
        Ok(())
    }

    /// Of mappings that met in one pool, just one stays.
    fn check_met(&mut self, met: &Earlier, earlier: &[Earlier]) -> Judged {
        self.seen("mappings met in one pool");
        let of_it = |m: &Mapping| {
            (m.protocol, m.internal) == (met.mapping.protocol, met.mapping.internal)
                && self.pool_of(m.external) == self.pool_of(met.mapping.external)
        };
        let is_over = |m: &Mapping| m.protocol == Protocol::Tcp && self.users(m.name) == 0;
        let mut mappings = self.mappings.iter();
        let left = mappings.clone().filter(|m| of_it(m) && !is_over(m)).count();
        ensure(left <= 1, || format!("{left} left of {:?}", met.mapping))?;
        let stays = |e: &Earlier| {
            e.was_fresh
                && e.mapping.protocol != Protocol::Tcp
                && self
                    .forward_at(e.mapping.protocol, e.mapping.external)
                    .is_none()
        };
        let mut group = earlier.iter().filter(|e| of_it(&e.mapping));
        let is_left = mappings.any(of_it) || !group.all(stays);
        ensure(is_left, || format!("none left of {:?}", met.mapping))
    }

    /// Sessions, and the number and timers that each has.
    fn all_timers(&self) -> Vec<(u32, u8, Timers)> {
        let sessions = self.sessions.iter();
        sessions
            .map(|s| (s.number, self.timers_number(s), *self.session_timers(s)))
            .collect()
    }

    /// Sessions that go on with other timers than before: references to them are stale.
    fn renew_sessions(&mut self, before: &[(u32, u8, Timers)]) {
        for (session, number, timers) in self.all_timers() {
            let was = before.iter().find(|was| was.0 == session);
            let &(_, old_number, old) = was.expect("no change makes one");
            if number != old_number {
                let mut sessions = self.sessions.iter_mut();
                let session = sessions.find(|s| s.number == session);
                session.expect("listed").version += 1;
            }
            if timers != old && number != 0 {
                self.seen("timers renewed");
            }
        }
    }

    /// Why rules end a session, if they do.
    fn note_rules(&mut self, session: &Session, next: &Policy) {
        if session.from_outside {
            return;
        }
        let [there, _] = &session.sides;
        match profile_for(next, &there.tuple) {
            None => self.seen("ended by a rule"),
            Some(_) if pool_in(next, there.source).is_none() => {}
            Some(_) if !is_translated_so(session, next) => self.seen("ended by another pool"),
            Some(_) if next.rules != self.policy.rules => self.seen("not ended by other rules"),
            Some(_) => {}
        }
    }
}

/// Does a policy translate the flow of a session opened from inside as it is translated? A forward's
/// endpoint is its target's whatever the pool is.
fn is_translated_so(session: &Session, policy: &Policy) -> bool {
    let [there, _] = &session.sides;
    session.from_outside
        || profile_for(policy, &there.tuple).is_some_and(|profile| {
            there.backing == Backing::Forward || pool_in(policy, there.source) == Some(profile.pool)
        })
}

impl Drive<'_> {
    pub fn change(&mut self, next: Policy, budget: u8) -> Judged {
        let earlier = self.reference.earlier(&next);
        let unsure = |e: &Earlier| {
            e.mapping.protocol != Protocol::Tcp && (e.met || e.had_sessions && !e.was_fresh)
        };
        if earlier.iter().any(unsure) && next.timers.hold_down_ms > 0 {
            // A port that is in use still would not tell whether its mapping is or was ended.
            let mut first = next.clone();
            first.timers.hold_down_ms = 0;
            self.enact(first, budget)?;
        }
        self.enact(next, budget)
    }

    fn enact(&mut self, next: Policy, budget: u8) -> Judged {
        put(&self.nat, &next, self.reference.now_ms, budget);
        let after = self.look();
        let reference = &mut self.reference;
        let earlier = reference.earlier(&next);
        let sessions = reference.sessions.iter();
        let fates: Vec<Fate> = sessions.map(|s| reference.fate(s, &next)).collect();
        for session in reference.sessions.clone() {
            reference.note_rules(&session, &next);
        }
        let timers = reference.all_timers();
        let same_pool = reference.policy.addresses == next.addresses;
        let before = std::mem::replace(&mut reference.policy, next);
        reference.move_holds(&before, &after);
        reference.check_yielded(&fates, &earlier, &after)?;
        reference.end_sessions(&fates, &after)?;
        reference.renew_sessions(&timers);
        reference.reap(&after, None)?;
        reference.end_mappings(&earlier, &after)?;
        if !same_pool {
            reference.pairings.clear();
        }
        reference.refused.clear();
        self.finish(after, true)?;
        self.reference.renew_mappings();
        Ok(())
    }
}

impl Reference {
    /// Takes out the sessions that the policy in force has ended.
    fn end_sessions(&mut self, fates: &[Fate], after: &World) -> Judged {
        let mut most = 0;
        let mut least = 0;
        let sessions = std::mem::take(&mut self.sessions);
        for (session, fate) in sessions.into_iter().zip(fates) {
            self.note_denial(&session);
            let mut listing = after.listing.iter();
            let listed = listing.any(|view| view.number == session.number);
            if *fate == Fate::Stays || *fate == Fate::Either && listed {
                self.sessions.push(session);
                continue;
            }
            most += 1;
            least += u64::from(self.lives(&session));
            ensure(!listed, || {
                format!("contradicts the policy, but is there: {session:?}")
            })?;
        }
        let removed = after.totals.removed - self.removed;
        ensure((least..=most).contains(&removed), || {
            format!("{removed} removed, should be {least} to {most}")
        })?;
        self.removed += removed;
        self.expired += most - removed;
        if removed > 0 {
            self.seen("removed by policy");
        }
        Ok(())
    }
}
