//! A small, slow, obvious NAT: what exists, who lives, who may reach whom.
//!
//! Written from RFC 4787, 5382, 5508, 6888, 7857 and the design's words. What lives is certain;
//! what is over may still be in the tables until it is swept, which the observer looks up.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use conntrack::{
    Direction, Endpoint, ExternalAddress, FilteringBehaviour, Forward, NextHop, Policy, Protocol,
    Realm, Refusal, Timers, Tuple,
};

use crate::connection::Connection;
use crate::flow::{Pair, is_independent, profile_for};

/// What stands behind the external endpoint of one side of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The `eim` mapping with this name.
    Mapping(u64),
    /// A mapping of the session's own (`edm`), made at this time.
    Own(u64),
    /// A forward.
    Forward,
}

/// One direction of a session.
#[derive(Clone, Debug)]
pub struct Side {
    pub tuple: Tuple,
    pub source: Endpoint,
    pub destination: Endpoint,
    pub backing: Backing,
    pub seen_ms: u64,
    pub packets: u32,
    pub bytes: u64,
    /// Next hops that the half may remember: several after a stale request.
    pub hops: Vec<NextHop>,
}

/// A session that is in the tables, over or not.
#[derive(Clone, Debug)]
pub struct Session {
    pub number: u32,
    /// Bumped by every change but stamps: an older reference is stale.
    pub version: u64,
    pub protocol: Protocol,
    pub direction: Direction,
    pub from_outside: bool,
    /// Counts in what its opener has.
    pub counted: bool,
    pub tcp: Option<Connection>,
    /// The internal (in a hairpin: the opening) side, and the other one.
    pub sides: [Side; 2],
}

/// An `eim` mapping that is in the tables, over or not.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub name: u64,
    pub protocol: Protocol,
    pub internal: Endpoint,
    pub external: Endpoint,
    pub refreshed_ms: u64,
    /// `None`: made anew or revived, nobody can tell.
    pub started_ms: Option<u64>,
    /// Anybody may send to it.
    pub open: bool,
    /// Its port counts in what its internal host has.
    pub counted: bool,
    /// Over since then, and in the tables or in hold-down: nobody can tell.
    pub limbo_ms: Option<u64>,
}

/// An external endpoint in hold-down.
#[derive(Clone, Debug)]
pub struct Hold {
    pub protocol: Protocol,
    pub external: Endpoint,
    /// Must not be assigned before.
    pub from_ms: u64,
    /// Must not be refused from then on.
    pub until_ms: u64,
}

/// Ends of mappings and hold-downs are rounded up to this many ms.
pub const TICK_MS: u64 = 1024;

/// The NAT.
pub struct Reference {
    pub policy: Policy,
    pub now_ms: u64,
    pub sessions_max: u32,
    pub sessions: Vec<Session>,
    pub mappings: Vec<Mapping>,
    pub holds: Vec<Hold>,
    /// Mappings in limbo after the last operation: another may have their port by now.
    pub limbo: Vec<Mapping>,
    /// External addresses that may be the first choice, as far as it showed.
    pub pairings: Vec<(Pair, Vec<Ipv4Addr>)>,
    /// `edm`: (protocol, remote, tick) for which an address may have been found exhausted.
    pub refused: Vec<(Protocol, Endpoint, u64)>,
    pub created: u64,
    pub expired: u64,
    pub removed: u64,
    pub evicted: u64,
    pub names: u64,
    /// How often what happened, so that a run can tell what it tried.
    pub coverage: BTreeMap<String, u64>,
}

/// Who answers at an external endpoint.
pub enum Reach {
    /// Somebody: internal endpoint and what backs it; `sure` unless everything that keeps the
    /// mapping is over and merely not swept.
    Open {
        target: Endpoint,
        backing: Backing,
        sure: bool,
    },
    /// Nobody, for any of these reasons.
    Shut(Vec<Refusal>),
}

impl Side {
    pub fn is_of(&self, mapping: u64) -> bool {
        self.backing == Backing::Mapping(mapping)
    }
}

impl Session {
    /// The sides that bring the external endpoint of an internal host: one, in a hairpin both.
    pub fn owners(&self) -> &[Side] {
        match self.direction {
            Direction::Hairpin => &self.sides,
            _ => &self.sides[..1],
        }
    }

    pub fn uses(&self, mapping: u64) -> bool {
        self.sides.iter().any(|side| side.is_of(mapping))
    }

    /// Side of a tuple that arrives from a realm.
    pub fn side_of(&self, realm: Realm, tuple: &Tuple) -> Option<usize> {
        (0..2).find(|&side| self.realm(side) == realm && self.sides[side].tuple == *tuple)
    }

    pub fn realm(&self, side: usize) -> Realm {
        if side == 0 || self.direction == Direction::Hairpin {
            Realm::Internal
        } else {
            Realm::External
        }
    }

    /// The forward's endpoint by which the outside opened it, if the handshake is not over.
    pub fn half_open(&self) -> Option<Endpoint> {
        let half_open = self.tcp.as_ref().is_some_and(Connection::half_open);
        (half_open && self.sides[0].backing == Backing::Forward).then_some(self.sides[0].source)
    }

    /// Who opened it: side 0 or 1.
    pub fn initiator(&self) -> usize {
        usize::from(self.from_outside)
    }
}

impl Reference {
    pub fn new(policy: Policy, now_ms: u64, sessions_max: u32) -> Reference {
        Reference {
            policy,
            now_ms,
            sessions_max,
            sessions: Vec::new(),
            mappings: Vec::new(),
            holds: Vec::new(),
            limbo: Vec::new(),
            pairings: Vec::new(),
            refused: Vec::new(),
            created: 0,
            expired: 0,
            removed: 0,
            evicted: 0,
            names: 0,
            coverage: BTreeMap::new(),
        }
    }

    /// Counts something that happened.
    pub fn seen(&mut self, what: &str) {
        match self.coverage.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.coverage.insert(what.to_owned(), 1);
            }
        }
    }

    pub fn timeout_ms(&self, session: &Session) -> u64 {
        let timers = self.session_timers(session);
        u64::from(match (&session.tcp, session.protocol) {
            (Some(tcp), _) => tcp.timeout_ms(timers),
            (None, Protocol::Icmp) => timers.icmp_timeout_ms,
            (None, _) => timers.udp_timeout_ms,
        })
    }

    /// Do packets of this side keep the session (RFC 4787 REQ-6; TCP: any segment)?
    pub fn refreshes(&self, session: &Session, side: usize) -> bool {
        self.policy.inbound_refresh
            || session.protocol == Protocol::Tcp
            || session.realm(side) == Realm::Internal
    }

    pub fn ends_ms(&self, session: &Session) -> u64 {
        let seen = (0..2)
            .filter(|&side| self.refreshes(session, side))
            .map(|side| session.sides[side].seen_ms);
        seen.max().unwrap_or(0) + self.timeout_ms(session)
    }

    pub fn lives(&self, session: &Session) -> bool {
        self.now_ms < self.ends_ms(session)
    }

    /// Until when a mapping is open to the external realm: rounded up to a tick.
    pub fn open_until_ms(&self, mapping: &Mapping) -> u64 {
        open_until_ms(mapping, self.mapping_timers(mapping))
    }

    /// When a mapping without a session is over.
    pub fn mapping_ends_ms(&self, mapping: &Mapping) -> u64 {
        match mapping.protocol {
            Protocol::Tcp => 0,
            _ => self.open_until_ms(mapping),
        }
    }

    /// A mapping lives with its sessions, and for a while after the last packet (not TCP's).
    pub fn mapping_lives(&self, mapping: &Mapping) -> bool {
        self.now_ms < self.mapping_ends_ms(mapping)
            || self
                .sessions
                .iter()
                .any(|session| session.uses(mapping.name) && self.lives(session))
    }

    /// Sessions in the tables that use a mapping, over or not.
    pub fn users(&self, mapping: u64) -> usize {
        self.sessions
            .iter()
            .filter(|session| session.uses(mapping))
            .count()
    }

    /// The live session of a tuple, and which side of it.
    pub fn find(&self, realm: Realm, tuple: &Tuple) -> Option<(usize, usize)> {
        let mut sessions = self.sessions.iter().enumerate();
        sessions.find_map(|(place, session)| {
            let side = session.side_of(realm, tuple)?;
            self.lives(session).then_some((place, side))
        })
    }

    /// Is a tuple either half's of a session in the tables?
    pub fn in_use(&self, tuple: &Tuple) -> bool {
        let sides = self.sessions.iter().flat_map(|session| &session.sides);
        sides.into_iter().any(|side| side.tuple == *tuple)
    }

    /// Is a tuple either half's of a live session?
    pub fn lives_at(&self, tuple: &Tuple) -> bool {
        let mut realms = [Realm::Internal, Realm::External].into_iter();
        realms.any(|realm| self.find(realm, tuple).is_some())
    }

    pub fn address(&self, addr: Ipv4Addr) -> Option<&ExternalAddress> {
        self.policy.addresses.iter().find(|a| a.addr == addr)
    }

    /// The forward at an external endpoint, if its address is there.
    pub fn forward_at(&self, protocol: Protocol, external: Endpoint) -> Option<&Forward> {
        let mut forwards = self.policy.forwards.iter();
        forwards
            .find(|f| f.protocol == protocol && f.external == external)
            .filter(|f| self.address(f.external.addr).is_some())
    }

    /// The first forward to an internal endpoint whose address is there.
    pub fn forward_to(&self, protocol: Protocol, internal: Endpoint) -> Option<&Forward> {
        let mut forwards = self.policy.forwards.iter();
        forwards.find(|f| {
            f.protocol == protocol
                && f.targets == internal.into()
                && self.address(f.external.addr).is_some()
        })
    }

    /// The mapping that a flow's internal endpoint has in the pool that it leaves from.
    pub fn mapping_of(&self, flow: &Tuple) -> Option<&Mapping> {
        let pool = Some(self.way(flow).pool);
        let mut mappings = self.mappings.iter().rev();
        mappings.find(|m| {
            (m.protocol, m.internal) == (flow.protocol, flow.source)
                && self.pool_of(m.external) == pool
        })
    }

    pub fn mapping_at(&self, protocol: Protocol, external: Endpoint) -> Option<&Mapping> {
        let at = |m: &&Mapping| m.protocol == protocol && m.external == external;
        let living = |m: &&Mapping| at(m) && (self.mapping_lives(m) || self.users(m.name) > 0);
        let mut mappings = self.mappings.iter();
        mappings.clone().find(living).or_else(|| mappings.find(at))
    }

    /// Has the internal endpoint of a mapping sent to this address in a session that lives
    /// (address-dependent filtering)? The far side of a hairpin does not count.
    fn knows(&self, mapping: &Mapping, remote: Ipv4Addr) -> bool {
        self.sessions.iter().any(|session| {
            session.sides[0].is_of(mapping.name)
                && session.sides[0].tuple.destination.addr == remote
                && self.lives(session)
        })
    }

    /// Who answers at an external endpoint to this remote endpoint.
    pub fn reach(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> Reach {
        if let Some(forward) = self.forward_at(protocol, external) {
            let allowed = forward.allow.is_empty()
                || forward.allow.iter().any(|net| net.contains(&remote.addr));
            return if allowed {
                Reach::Open {
                    target: forward.targets.list[0].endpoint,
                    backing: Backing::Forward,
                    sure: true,
                }
            } else {
                Reach::Shut(vec![Refusal::ForwardDenied])
            };
        }
        let nobody = Reach::Shut(vec![Refusal::NoSession]);
        let Some(mapping) = self.mapping_at(protocol, external) else {
            return nobody;
        };
        // Outside, only what refreshes keeps a mapping open (RFC 4787 REQ-6, RFC 7857 section 7):
        // a session that was opened from there does not, else they could follow each other for ever.
        let fresh = self.now_ms < self.open_until_ms(mapping);
        // A TCP mapping goes with its last session, at the latest when that is swept. Whether one
        // that is silent from inside for longer than `tcp-idle` is open is left open.
        let tcp = protocol == Protocol::Tcp;
        let lives = fresh && (!tcp || self.mapping_lives(mapping));
        if !(lives || tcp) || self.address(external.addr).is_none() {
            return nobody;
        }
        // Filtering is that of the flow that the internal host itself would have to there.
        let flow = Tuple {
            protocol,
            source: mapping.internal,
            destination: remote,
        };
        let Some(way) = profile_for(&self.policy, &flow) else {
            return nobody;
        };
        if !is_independent(way, protocol) {
            return nobody;
        }
        let admitted = match way.filtering[protocol.index()] {
            FilteringBehaviour::EndpointIndependent => true,
            FilteringBehaviour::AddressDependent => self.knows(mapping, remote.addr),
            FilteringBehaviour::EndpointDependent => false,
        };
        match (admitted, lives) {
            (true, sure) => Reach::Open {
                target: mapping.internal,
                backing: Backing::Mapping(mapping.name),
                sure,
            },
            (false, true) => Reach::Shut(vec![Refusal::Filtered]),
            (false, false) => Reach::Shut(vec![Refusal::Filtered, Refusal::NoSession]),
        }
    }

    pub fn touch(&mut self, backing: Backing) {
        let now = self.now_ms;
        if let Backing::Mapping(name) = backing {
            let mapping = self.mappings.iter_mut().find(|m| m.name == name);
            mapping.expect("a session's mapping").refreshed_ms = now;
        }
    }

    /// The addresses of the pool that a flow leaves from.
    pub fn pool(&self, flow: &Tuple) -> impl Iterator<Item = &ExternalAddress> {
        let pool = self.way(flow).pool;
        self.policy.addresses.iter().filter(move |a| a.pool == pool)
    }

    /// Addresses that may be the first choice of a flow.
    pub fn pairing(&mut self, flow: &Tuple) -> &mut Vec<Ipv4Addr> {
        let pair = self.pair(flow);
        let place = self.pairings.iter().position(|(other, _)| *other == pair);
        let place = place.unwrap_or_else(|| {
            let all = self.pool(flow);
            let usable = all.filter(|a| a.ports.iter().any(|ports| !ports.is_empty()));
            let usable = usable.map(|a| a.addr).collect();
            self.pairings.push((pair, usable));
            self.pairings.len() - 1
        });
        &mut self.pairings[place].1
    }
}

pub fn open_until_ms(mapping: &Mapping, timers: &Timers) -> u64 {
    let timeout = match mapping.protocol {
        Protocol::Tcp => timers.tcp_idle_timeout_ms,
        Protocol::Udp => timers.udp_timeout_ms,
        Protocol::Icmp => timers.icmp_timeout_ms,
    };
    (mapping.refreshed_ms / TICK_MS + 1) * TICK_MS + u64::from(timeout)
}
