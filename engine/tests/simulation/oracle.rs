//! What must hold of the packets that enter and leave a gateway, judged by the packets alone: who
//! may hear whom, which external endpoint is whose, and which sessions surely live.
//!
//! Where packets do not tell, the oracle leaves room: a session *surely* lives, or *may* live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::changes::Loss;
use super::checks::check_sum;
use super::packet::{End, FIN, Kind, Proto, RST, Seen};
use super::refusals::opens;
use super::rules::{Filtering, Rules};
use super::sessions::{Pair, Session, Trial, at_endpoint};

/// Why a packet must pass that opens a session.
const NO_SESSION_YET: &str = "nothing is in its way";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Inside,
    Outside,
}

pub(super) struct Entered {
    pub(super) at: u64,
    pub(super) from: Side,
    pub(super) seen: Seen,
}

/// How much is known of the gateway's situation.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Routes, neighbours, links and rings are well: a live session's packet gets through.
    pub clear: bool,
    /// There is room for everybody, too.
    pub calm: bool,
}

pub struct Oracle {
    pub(super) rules: Rules,
    /// Rules that the gateway may still act by.
    pub(super) earlier: Vec<Rules>,
    /// Rules of before, and until when the gateway acted by them.
    pub(super) past: Vec<(u64, Rules)>,
    /// When the gateway last began to act by the newest rules alone.
    pub(super) settled_at: u64,
    /// When the tables were lost, if they were.
    pub(super) loss: Option<Loss>,
    /// External addresses of now and before: of what was translated then, and waited.
    pub(super) ever: BTreeSet<Ipv4Addr>,
    pub(super) now: u64,
    pub(super) sessions: BTreeMap<Pair, Session>,
    /// External and remote endpoint to the internal one.
    pub(super) wire: BTreeMap<Pair, End>,
    pub(super) trials: BTreeMap<Pair, Trial>,
    pub(super) entered: BTreeMap<u32, Entered>,
    /// Packets that must leave in this step, and why.
    pub(super) due: Vec<(u32, &'static str)>,
    /// Packets that surely were refused, by the policy.
    pub(super) refused: BTreeSet<u32>,
    /// Those of this step whose sender must be told, and those whose is.
    pub(super) untold: Vec<u32>,
    pub(super) told: BTreeSet<u32>,
    /// Packets that came from outside in this step.
    pub(super) inward: Vec<u32>,
    /// Sessions whose end was asked for in this step.
    pub(super) ending: Vec<(Pair, u8)>,
    pub(super) left: BTreeSet<u32>,
    /// Packets of sessions that surely lived.
    pub insisted: u64,
    /// Packets whose refusal had to be told.
    pub refusals: u64,
}

pub type Verdict = Result<(), String>;

impl Oracle {
    pub fn new(rules: Rules) -> Oracle {
        Oracle {
            earlier: Vec::new(),
            past: Vec::new(),
            settled_at: 0,
            loss: None,
            ever: rules.pool().into_iter().collect(),
            rules,
            now: 0,
            sessions: BTreeMap::new(),
            wire: BTreeMap::new(),
            trials: BTreeMap::new(),
            entered: BTreeMap::new(),
            due: Vec::new(),
            refused: BTreeSet::new(),
            untold: Vec::new(),
            told: BTreeSet::new(),
            inward: Vec::new(),
            ending: Vec::new(),
            left: BTreeSet::new(),
            insisted: 0,
            refusals: 0,
        }
    }

    /// A packet comes to the gateway.
    pub fn enter(&mut self, now: u64, from: Side, seen: &Seen, weather: Weather) {
        self.now = now;
        let Some(tag) = seen.tag.filter(|_| seen.quote.is_none()) else {
            return;
        };
        let proto = seen.proto;
        // An address that the gateway's host has, or had, is none of the outside.
        let host = self.ever.contains(seen.destination.ip()) && from == Side::Inside;
        let simple = seen.fragment.is_none() && seen.ttl > 8;
        let internal = match from {
            Side::Inside => Some(seen.source),
            Side::Outside => self
                .wire
                .get(&(proto, seen.destination, seen.source))
                .copied(),
        };
        let remote = if from == Side::Inside {
            seen.destination
        } else {
            seen.source
        };
        let session = internal.and_then(|internal| self.live(now, proto, internal, remote));
        let fits = |s: &&Session| from == Side::Inside || s.external == seen.destination;
        let must = match session.filter(fits) {
            Some(s) if weather.clear && simple && (s.hairpin || !host) => Some("its session lives"),
            _ if weather.calm && simple && !host && self.is_welcome(now, from, seen) => {
                Some(NO_SESSION_YET)
            }
            _ => None,
        };
        if let Some(why) = must {
            self.insisted += 1;
            self.due.push((tag.number, why));
        }
        let flags = seen.segment.map_or(0, |segment| segment.flags);
        // Whether it gets through or not.
        if let Some(internal) = internal.filter(|_| flags & (FIN | RST) != 0) {
            self.ending.push(((proto, internal, remote), flags));
        }
        if from == Side::Outside {
            self.inward.push(tag.number);
        } else if !(simple && !host && self.expect_refusal(now, weather.calm, tag.number, seen)) {
            self.try_out(now, proto, seen.source, remote);
        }
        self.entered.insert(
            tag.number,
            Entered {
                at: now,
                from,
                seen: *seen,
            },
        );
    }

    /// May an opening packet surely pass, when there is room?
    fn is_welcome(&self, now: u64, from: Side, seen: &Seen) -> bool {
        let (proto, external, remote) = (seen.proto, seen.destination, seen.source);
        if from == Side::Inside {
            let denied = self.rules.denies(*seen.destination.ip());
            return opens(seen) && !denied && self.has_quota(seen);
        }
        if !opens(seen) || proto == Proto::Icmp {
            return false;
        }
        if let Some(forward) = self.rules.forward_at(proto, external) {
            // With `edm` the target may have a session with this remote endpoint by another external
            // one: it began when a reply came too late for the forward's. There are no two with
            // the same ends inside.
            let key = (proto, forward.target, remote);
            let other = self.sessions.get(&key);
            let clear = other.is_none_or(|other| other.external == external)
                || !self.may_live(now, proto, forward.target, remote);
            return clear && forward.allows(*remote.ip());
        }
        let sessions = self.wire.range(at_endpoint(proto, external));
        let mut open = sessions.filter(|((_, _, other), internal)| {
            let live = self.live(now, proto, **internal, *other);
            let adf = self.rules.filtering == Filtering::Adf && other.ip() == remote.ip();
            // Outbound packets alone keep a mapping open.
            live.is_some_and(|s| s.eim && s.external == external && s.out_at + 1 >= s.in_at)
                && (self.rules.filtering == Filtering::Eif || adf)
        });
        self.rules.eim && open.next().is_some()
    }

    /// A packet left the gateway.
    pub fn leave(&mut self, now: u64, to: Side, seen: &Seen) -> Verdict {
        self.now = now;
        if let Some(quote) = &seen.quote {
            self.check_error(to, seen, quote)?;
            return self.check_answer(quote);
        }
        if to == Side::Outside && !self.ever.contains(seen.source.ip()) {
            return Err(format!("{} is no external address", seen.source.ip()));
        }
        let Some(tag) = seen.tag else {
            // A later fragment: its datagram is judged where it is put together.
            return if seen.fragment.is_some() {
                Ok(())
            } else {
                Err("it has lost its tag".into())
            };
        };
        let Some(Entered {
            at,
            from,
            seen: before,
        }) = self.entered.get(&tag.number)
        else {
            return Err("no such packet ever came".into());
        };
        let (at, from, before) = (*at, *from, *before);
        if before.tag != seen.tag || before.segment != seen.segment {
            return Err(format!("it was changed; it came as {before}"));
        }
        let whole = seen.fragment.is_none();
        // What may be in fragments leaves in the name of the gateway, with a number of its own.
        let renumbered =
            from == Side::Inside && (before.fragment.is_some() || !before.dont_fragment);
        let same = seen.ttl + 1 == before.ttl
            && (renumbered || seen.identification == before.identification)
            && (!whole || before.fragment.is_some() || seen.len == before.len);
        if !same {
            return Err("its length, TTL or identification is wrong".into());
        }
        if whole {
            check_sum(seen)?;
        }
        if from == Side::Inside && self.refused.contains(&tag.number) {
            return Err("it was to be refused".into());
        }
        self.left.insert(tag.number);
        match (from, to) {
            (Side::Inside, Side::Outside) => self.outbound(now, at, &before, seen),
            (Side::Outside, Side::Inside) => self.inbound(now, at, &before, seen),
            (Side::Inside, Side::Inside) => self.hairpin(now, at, &before, seen),
            (Side::Outside, Side::Outside) => Err("it came from outside and went back".into()),
        }
    }

    fn outbound(&mut self, now: u64, at: u64, before: &Seen, seen: &Seen) -> Verdict {
        let (proto, internal, remote) = (seen.proto, before.source, before.destination);
        let external = seen.source;
        if seen.destination != remote {
            return Err(format!("it was for {remote}"));
        }
        if self.is_of_now(at) && !self.in_pool(*external.ip()) {
            return Err(format!("{external} is external no more"));
        }
        let live = self.live(now, proto, internal, remote).cloned();
        let settled = self.is_of_now(at);
        if settled {
            self.check_allowed(proto, internal, external, live.is_some())?;
            self.check_denied(proto, internal, remote)?;
        }
        // What waited for its next hop over a change has the address of before.
        if let Some(session) = &live
            && settled
            && session.external != external
        {
            // It waited for so long that its session may have ended, and one that began since left
            // first.
            if at + self.shortest_ms(proto) <= session.since {
                return Ok(());
            }
            return Err(format!("{internal} was {} to it before", session.external));
        }
        self.check_unshared(now, settled, proto, internal, external, remote, &live)?;
        if let Some(trial) = self.trials.get_mut(&(proto, internal, remote)) {
            trial.external = Some(external);
        }
        if live.is_none() {
            self.begin(settled.then_some(at), proto, internal, remote, external);
            self.charge(now, (proto, internal, remote))?;
        }
        self.shake(&(proto, internal, remote), seen, 0);
        if let Some(session) = self.sessions.get_mut(&(proto, internal, remote)) {
            session.out_at = session.out_at.max(at);
        }
        Ok(())
    }

    fn inbound(&mut self, now: u64, at: u64, before: &Seen, seen: &Seen) -> Verdict {
        let (proto, external, remote) = (seen.proto, before.destination, before.source);
        let internal = seen.destination;
        if seen.source != remote {
            return Err(format!("it came from {remote}"));
        }
        self.check_asked(seen)?;
        if let Some((owner, _)) = self.owner(now, proto, external, remote)
            && owner != internal
        {
            return Err(format!("{external} is {owner}'s towards {remote}"));
        }
        if let Some(session) = self.live(now, proto, internal, remote)
            && session.external != external
        {
            return Err(format!("{internal} is {} to {remote}", session.external));
        }
        // It may have waited: for a first fragment, a next hop, or room in a ring.
        let by_session = self.may_live(at, proto, internal, remote);
        let by_forward = self.is_forwarded(at, proto, external, internal, *remote.ip());
        let by_mapping = self.may_be_open(at, proto, internal, external, remote);
        let settled = self.is_of_now(at);
        if !by_session && !by_forward && !by_mapping {
            if !settled {
                return Ok(());
            }
            return Err(format!(
                "{internal} did not ask {remote} for anything by {external}"
            ));
        }
        self.try_in(now, settled, (proto, internal, remote), external);
        let key = (proto, internal, remote);
        if self.live(now, proto, internal, remote).is_none() {
            let since = (settled && !by_session).then_some(at);
            self.begin(since, proto, internal, remote, external);
        }
        self.shake(&key, seen, 1);
        let session = self.sessions.get_mut(&key);
        if let Some(session) = session.filter(|session| session.external == external) {
            session.in_at = session.in_at.max(at);
        }
        Ok(())
    }

    fn hairpin(&mut self, now: u64, at: u64, before: &Seen, seen: &Seen) -> Verdict {
        self.check_asked(seen)?;
        let (proto, external, sender) = (seen.proto, before.destination, *seen.source.ip());
        if !self.ever.contains(&sender) {
            return Err(format!("{sender} is no external address"));
        }
        let asks = seen.tag.is_some_and(|tag| tag.kind != Kind::Reply);
        // By a forward, or by a mapping that filtering opens (RFC 4787 REQ-9).
        let leads = self.is_forwarded(at, proto, external, seen.destination, sender)
            || self.may_be_open(at, proto, seen.destination, external, seen.source);
        if asks && !leads {
            return Err(format!(
                "{external} does not lead to {} for {sender}",
                seen.destination
            ));
        }
        let settled = self.is_of_now(at);
        let near = (before.source, before.destination, seen.source);
        let far = (seen.destination, seen.source, before.destination);
        for (way, (internal, remote, external)) in [near, far].into_iter().enumerate() {
            let live = self.live(now, proto, internal, remote).cloned();
            match &live {
                Some(session) if session.external != external => {
                    return Err(format!("{internal} was {} to it", session.external));
                }
                Some(_) => {}
                None => self.begin(settled.then_some(at), proto, internal, remote, external),
            }
            if way == 0 {
                self.check_unshared(now, settled, proto, internal, external, remote, &live)?;
            }
            let key = (proto, internal, remote);
            self.shake(&key, seen, way);
            if let Some(session) = self.sessions.get_mut(&key) {
                let last = if way == 0 {
                    &mut session.out_at
                } else {
                    &mut session.in_at
                };
                *last = at.max(*last);
            }
        }
        Ok(())
    }

    /// All that came has been through the gateway.
    pub fn end_step(&mut self) -> Verdict {
        let left = std::mem::take(&mut self.left);
        let due = std::mem::take(&mut self.due);
        for (key, flags) in std::mem::take(&mut self.ending) {
            if let Some(session) = self.sessions.get_mut(&key) {
                session.ends |= flags & FIN != 0;
                session.reset |= flags & RST != 0;
            }
        }
        for number in std::mem::take(&mut self.inward) {
            if !left.contains(&number) {
                self.try_unseen(number);
            }
        }
        self.check_told()?;
        let missed = |number: &u32, why: &str| {
            let crowded_out = why == NO_SESSION_YET
                && self
                    .entered
                    .get(number)
                    .is_some_and(|entered| !self.has_quota(&entered.seen));
            !left.contains(number) && !crowded_out
        };
        let lost = due.into_iter().find(|(number, why)| missed(number, why));
        if self.entered.len() > 4096 {
            let newest = *self.entered.keys().next_back().expect("many");
            self.entered.retain(|number, _| number + 2048 > newest);
            self.refused.retain(|number| number + 2048 > newest);
        }
        let Some((number, why)) = lost else {
            return Ok(());
        };
        let seen = self
            .entered
            .get(&number)
            .map(|entered| entered.seen.to_string());
        Err(format!(
            "packet {number} must pass, {why}: {}",
            seen.unwrap_or_default()
        ))
    }

    /// When a packet came to the gateway.
    pub fn came_at(&self, number: u32) -> Option<u64> {
        self.entered.get(&number).map(|entered| entered.at)
    }

    /// A packet found no room on its way in.
    pub fn turned_away(&mut self, number: u32) {
        self.due.retain(|(due, _)| *due != number);
        self.untold.retain(|untold| *untold != number);
    }
}
