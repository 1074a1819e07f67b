//! What a subscriber has when a packet asks for more, and what it may have. A session and the port
//! of a mapping count if they were made from inside while any quota was set.

use std::net::Ipv4Addr;

use conntrack::{Policy, Protocol, Refusal};

use crate::choice::Source;
use crate::judge::Packet;
use crate::observe::{Judged, ensure};
use crate::reference::{Backing, Mapping, Reference, Session};

/// What a sender has, counted by the packet's protocol as its quotas are asked: what is over counts
/// until it is ended, which the packet does to its own flow and its own mapping first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    pub sessions: u32,
    /// Ports for sure, and with mappings of which nobody can tell whether they are there.
    pub ports: [u32; 2],
    /// A session of the sender needs a new mapping.
    pub renews: bool,
}

/// Is anything counted under this policy?
pub fn counts(policy: &Policy) -> bool {
    let quotas = &policy.limits.quotas;
    let some = |limits: &[Option<u32>; 3]| limits.iter().any(Option::is_some);
    some(&quotas.sessions) || some(&quotas.ports)
}

impl Reference {
    fn limit(&self, limits: [Option<u32>; 3], protocol: Protocol) -> u32 {
        limits[protocol.index()].unwrap_or(u32::MAX)
    }

    fn sessions_limit(&self, protocol: Protocol) -> u32 {
        self.limit(self.policy.limits.quotas.sessions, protocol)
    }

    fn ports_limit(&self, protocol: Protocol) -> u32 {
        self.limit(self.policy.limits.quotas.ports, protocol)
    }

    /// Before a packet without a live session: what its sender has.
    pub fn demand(&self, packet: &Packet) -> Demand {
        let (protocol, sender) = (packet.tuple.protocol, packet.tuple.source.addr);
        // One that is over with this very tuple is ended first.
        let stays = |s: &&Session| !s.sides.iter().any(|side| side.tuple == packet.tuple);
        let users = |name: u64| {
            let staying = self.sessions.iter().filter(stays);
            staying.filter(|s| s.uses(name)).count()
        };
        let counted = self.sessions.iter().filter(stays).filter(|s| {
            (s.counted, s.protocol, s.sides[0].tuple.source.addr) == (true, protocol, sender)
        });
        let own = |s: &&Session| matches!(s.sides[0].backing, Backing::Own(_));
        let (renews, replaced) = match self.source(&packet.tuple) {
            Source::New => (true, None),
            Source::Over(mapping) if users(mapping.name) == 0 => (true, Some(mapping.name)),
            Source::Over(_) | Source::Forward(_) | Source::Mapping(_) => (false, None),
        };
        let is_left = |m: &Mapping| {
            let used = self.users(m.name) > 0;
            let ended = used && users(m.name) == 0 && self.now_ms >= self.mapping_ends_ms(m);
            !ended && replaced != Some(m.name)
        };
        let mappings = self.mappings.iter().filter(|m| {
            (m.counted, m.protocol, m.internal.addr) == (true, protocol, sender) && is_left(m)
        });
        let least = mappings.clone().filter(|m| m.limbo_ms.is_none()).count();
        let owned = counted.clone().filter(own).count();
        Demand {
            sessions: counted.count() as u32,
            ports: [owned + least, owned + mappings.count()].map(|ports| ports as u32),
            renews,
        }
    }

    /// The one reason that a packet from inside is surely refused for, whatever else holds.
    pub fn refused_first(&self, packet: &Packet, demand: &Demand) -> Option<Refusal> {
        let over = demand.sessions >= self.sessions_limit(packet.tuple.protocol);
        if self.is_denied(packet.tuple.destination.addr) {
            Some(Refusal::DestinationDenied)
        } else {
            over.then_some(Refusal::SubscriberSessions)
        }
    }

    pub fn is_denied(&self, destination: Ipv4Addr) -> bool {
        self.policy.denied.contains(destination)
    }

    /// A policy denies the far side of a session: that ends what a client opened only.
    pub fn note_denial(&mut self, session: &Session) {
        if self.is_denied(session.sides[0].tuple.destination.addr) {
            self.seen(match session.from_outside {
                true => "not ended by a denial",
                false => "ended by a denial",
            });
        }
    }

    /// Is a new mapping refused for its port: surely, and perhaps?
    pub fn is_out_of_ports(&self, protocol: Protocol, demand: &Demand) -> [bool; 2] {
        let limit = self.ports_limit(protocol);
        demand.ports.map(|ports| demand.renews && ports >= limit)
    }

    /// A session was opened: was it within the quotas?
    pub fn check_quotas(&mut self, packet: &Packet, demand: &Demand) -> Judged {
        let protocol = packet.tuple.protocol;
        let first = self.refused_first(packet, demand);
        ensure(first.is_none(), || format!("opened in spite of {first:?}"))?;
        let [surely, _] = self.is_out_of_ports(protocol, demand);
        ensure(!surely, || {
            format!("opened over the port quota: {demand:?}")
        })?;
        let last = |has: u32, limit: u32| has.checked_add(1) == Some(limit);
        if last(demand.sessions, self.sessions_limit(protocol)) {
            self.seen("last session of a quota");
        }
        if demand.renews && last(demand.ports[0], self.ports_limit(protocol)) {
            self.seen("last port of a quota");
        }
        Ok(())
    }
}
