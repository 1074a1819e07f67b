//! What the oracle knows of sessions: those that surely live, and those that may.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::oracle::{Entered, Oracle};
use super::packet::{ACK, End, FIN, Proto, RST, SYN, Seen};
use super::rules::{Filtering, Rules};

/// Internal and remote endpoint, or external and remote endpoint.
pub type Pair = (Proto, End, End);
/// The oldest that a packet waits in the gateway for its next hop, and a tick of the mappings.
const SLACK_MS: u64 = 4_100;

/// A session that was seen at work.
#[derive(Clone, Debug)]
pub struct Session {
    pub external: End,
    /// When the packet came that began it.
    pub since: u64,
    /// When packets came that went out, and in; 0 for never.
    pub out_at: u64,
    pub in_at: u64,
    /// SYN out, SYN in, ACK out, ACK in.
    pub shakes: [bool; 4],
    /// A FIN came: the connection ends, now or later.
    pub ends: bool,
    /// A RST came, and no data since.
    pub reset: bool,
    /// Its far end is inside, too.
    pub hairpin: bool,
    /// It surely counts in its client's quota.
    pub counted: bool,
    /// It was made when an internal endpoint had one mapping.
    pub eim: bool,
}

impl Session {
    pub fn is_established(&self) -> bool {
        self.shakes == [true; 4] && !self.ends && !self.reset
    }
}

/// A session that may be there.
#[derive(Default)]
pub struct Trial {
    pub at: u64,
    /// The trial before.
    pub before: u64,
    /// When something came in by the session that kept nothing alive.
    pub heard: u64,
    pub external: Option<End>,
    /// Only a forward can have let it in.
    pub by_forward: bool,
    /// The other side may have opened it.
    pub by_outside: bool,
    /// It was ended. Its mapping lives as long as it would have.
    pub ended: bool,
}

impl Oracle {
    /// Until when after its last packet a session may live.
    pub fn longest_ms(&self, proto: Proto) -> u64 {
        let of = |rules: &Rules| {
            let t = rules.timers;
            SLACK_MS
                + t.fragment
                + match proto {
                    Proto::Udp => t.udp,
                    Proto::Icmp => t.icmp,
                    Proto::Tcp => t.idle.max(t.open).max(t.close),
                }
        };
        self.all_rules().map(of).max().unwrap_or(0)
    }

    /// The shortest that a session may live after its last packet.
    pub fn shortest_ms(&self, proto: Proto) -> u64 {
        let timers = self.rules.timers;
        match proto {
            Proto::Udp => timers.udp,
            Proto::Icmp => timers.icmp,
            Proto::Tcp => timers.open.min(timers.close).min(timers.idle),
        }
    }

    pub fn surely_lives(&self, now: u64, proto: Proto, session: &Session) -> bool {
        // Half-open from outside, it gives way to others.
        let [_, syn_in, _, ack_in] = session.shakes;
        if proto == Proto::Tcp && syn_in && !ack_in {
            return false;
        }
        let timers = self.rules.timers;
        let both = proto == Proto::Tcp || self.rules.inbound_refresh;
        let last = if both {
            session.out_at.max(session.in_at)
        } else {
            session.out_at
        };
        let timeout = match proto {
            Proto::Tcp if session.is_established() => timers.idle,
            _ => self.shortest_ms(proto),
        };
        last > 0 && now - last < timeout
    }

    pub fn live(&self, now: u64, proto: Proto, internal: End, remote: End) -> Option<&Session> {
        let session = self.sessions.get(&(proto, internal, remote));
        session.filter(|session| self.surely_lives(now, proto, session))
    }

    /// Whose session surely has this wire tuple.
    pub fn owner(
        &self,
        now: u64,
        proto: Proto,
        external: End,
        remote: End,
    ) -> Option<(End, &Session)> {
        let internal = *self.wire.get(&(proto, external, remote))?;
        let session = self.live(now, proto, internal, remote)?;
        (session.external == external).then_some((internal, session))
    }

    pub fn try_out(&mut self, now: u64, proto: Proto, internal: End, remote: End) {
        let longest = self.longest_ms(proto);
        let settled = self.earlier.is_empty();
        let known = self.is_external_known(now, proto, internal, remote);
        let trial = self.trials.entry((proto, internal, remote)).or_default();
        trial.by_forward &= settled && now - trial.at <= longest;
        trial.by_outside &= now - trial.at <= longest;
        if !settled || !known {
            trial.external = None;
        }
        (trial.before, trial.at, trial.ended) = (trial.at, now, false);
    }

    /// Does an internal endpoint surely have the external one to this remote endpoint that it had?
    fn is_external_known(&self, now: u64, proto: Proto, internal: End, remote: End) -> bool {
        let mut of_endpoint = self.sessions.range(at_endpoint(proto, internal));
        of_endpoint.any(|((.., far), session)| {
            (session.eim || *far == remote) && self.surely_lives(now, proto, session)
        })
    }

    /// If a session begins with the packet at hand: is it surely an `eim` one?
    pub fn is_eim_now(&self, now: u64, proto: Proto, internal: End, remote: End) -> bool {
        self.rules.eim && self.is_new(now, proto, internal, remote)
    }

    /// If a session begins with the packet at hand: surely by the rules of now, and not before?
    pub fn is_new(&self, now: u64, proto: Proto, internal: End, remote: End) -> bool {
        let trial = self.trials.get(&(proto, internal, remote));
        let old = trial.is_some_and(|trial| now - trial.before <= self.longest_ms(proto));
        self.earlier.is_empty() && !old
    }

    /// Did the gateway judge what came then by the rules of now alone?
    pub fn is_of_now(&self, at: u64) -> bool {
        self.earlier.is_empty() && at >= self.settled_at
    }

    /// A session began, or one that surely lived no more goes on. `since`: when, if it is known by
    /// which rules.
    pub fn begin(
        &mut self,
        since: Option<u64>,
        proto: Proto,
        internal: End,
        remote: End,
        external: End,
    ) {
        let Some(since) = since else {
            self.sessions.remove(&(proto, internal, remote));
            return;
        };
        let session = Session {
            external,
            since,
            out_at: 0,
            in_at: 0,
            shakes: [false; 4],
            ends: false,
            reset: false,
            hairpin: self.in_pool(*remote.ip()),
            counted: false,
            eim: self.is_eim_now(self.now, proto, internal, remote),
        };
        self.sessions.insert((proto, internal, remote), session);
        self.wire.insert((proto, external, remote), internal);
    }

    /// `out`: 0 for a packet that went out, 1 for one that went in.
    pub fn shake(&mut self, key: &Pair, seen: &Seen, out: usize) {
        let (Some(segment), Some(session)) = (seen.segment, self.sessions.get_mut(key)) else {
            return;
        };
        session.shakes[out] |= segment.flags & SYN != 0;
        // A SYN that came in before the session was known for sure.
        session.shakes[1] |= out == 0 && segment.flags & (SYN | ACK) == SYN | ACK;
        let bare = segment.flags & (SYN | ACK | FIN | RST) == ACK;
        session.shakes[2 + out] |= bare && session.shakes[0] && session.shakes[1];
        session.reset &= !bare;
    }

    /// A packet from outside may have kept a session alive, or opened one.
    pub fn try_in(&mut self, now: u64, settled: bool, key: Pair, external: End) {
        let (proto, internal, remote) = key;
        let by_session = self.may_live(now, proto, internal, remote);
        let by_forward = self.is_forwarded(now, proto, external, internal, *remote.ip());
        let by_mapping = self.may_be_open(now, proto, internal, external, remote);
        let refreshes = proto == Proto::Tcp || self.all_rules().any(|rules| rules.inbound_refresh);
        if by_session && let Some(trial) = self.trials.get_mut(&key) {
            trial.heard = now;
        }
        if by_forward || by_mapping || by_session && refreshes {
            let trial = self.trials.entry(key).or_default();
            trial.by_outside |= by_forward || by_mapping;
            if !by_session {
                trial.by_forward = settled && !by_mapping;
            }
            (trial.at, trial.external, trial.ended) = (now, Some(external), false);
        }
    }

    /// What a packet from outside may have done that did not leave, or not yet.
    pub fn try_unseen(&mut self, number: u32) {
        let Some(Entered { at, seen, .. }) = self.entered.get(&number) else {
            return;
        };
        let (at, proto, external, remote) = (*at, seen.proto, seen.destination, seen.source);
        let of_wire = self.wire.range(at_endpoint(proto, external));
        let mut internals: BTreeSet<End> = of_wire.map(|(_, internal)| *internal).collect();
        let forwards = self
            .all_rules()
            .filter_map(|rules| rules.forward_at(proto, external));
        internals.extend(forwards.map(|forward| forward.target));
        let settled = self.is_of_now(at);
        for internal in internals {
            let key = (proto, internal, remote);
            let known = self.trials.get(&key).and_then(|trial| trial.external);
            self.try_in(at, settled, key, external);
            // It may have been for a session that had this endpoint earlier, and was lost.
            if let Some(trial) = self.trials.get_mut(&key)
                && known.is_some_and(|known| known != external)
            {
                trial.external = None;
            }
        }
    }

    pub fn may_live(&self, now: u64, proto: Proto, internal: End, remote: End) -> bool {
        let trial = self.trials.get(&(proto, internal, remote));
        trial.is_some_and(|trial| {
            !trial.ended && now.saturating_sub(trial.at) <= self.longest_ms(proto)
        })
    }

    /// Did a forward lead there, at this time or since?
    pub fn is_forwarded(
        &self,
        at: u64,
        proto: Proto,
        external: End,
        internal: End,
        remote: Ipv4Addr,
    ) -> bool {
        self.rules_since(at).any(|rules| {
            let forward = rules.forward_at(proto, external);
            forward.is_some_and(|forward| forward.target == internal && forward.allows(remote))
        })
    }

    /// May filtering let this remote endpoint in to the mapping of an internal one?
    pub fn may_be_open(
        &self,
        now: u64,
        proto: Proto,
        internal: End,
        external: End,
        remote: End,
    ) -> bool {
        let filtering = |filtering| {
            self.rules_since(now)
                .any(|rules| rules.eim && rules.filtering == filtering)
        };
        let (eif, adf) = (filtering(Filtering::Eif), filtering(Filtering::Adf));
        let longest = self.longest_ms(proto);
        let mut trials = self.trials.range(at_endpoint(proto, internal));
        proto != Proto::Icmp
            && trials.any(|((.., other), trial)| {
                let fits = trial.external.is_none_or(|known| known == external);
                fits && now.saturating_sub(trial.at) <= longest
                    && (eif || adf && other.ip() == remote.ip())
            })
    }
}

pub fn at_endpoint(proto: Proto, end: End) -> std::ops::RangeInclusive<Pair> {
    let bound = |addr: u32, port| (proto, end, End::new(addr.into(), port));
    bound(0, 0)..=bound(u32::MAX, u16::MAX)
}
