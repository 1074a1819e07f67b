//! What the gateway tells of one session, mapping or external endpoint.
//!
//! A field that says nothing is `null`, never absent, so that `protocol.schema.json` can hold every
//! one of them to account.

use std::fmt;

use conntrack::{
    Direction, Endpoint, Forward, MappingBehaviour, MappingView, Mark, Occupant, Policy,
    SessionView, Time,
};
use serde::{Deserialize, Serialize};

use super::filter::{ProtocolName, StateName, peer};

/// An endpoint as text: `10.0.0.1:53`.
pub mod endpoint {
    use conntrack::Endpoint;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(endpoint: &Endpoint, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(endpoint)
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Endpoint, D::Error> {
        let text = String::deserialize(from)?;
        crate::control::filter::parse_endpoint(&text).map_err(Error::custom)
    }
}

/// An endpoint as text, or `null`.
mod maybe_endpoint {
    use conntrack::Endpoint;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(endpoint: &Option<Endpoint>, to: S) -> Result<S::Ok, S::Error> {
        match endpoint {
            Some(endpoint) => to.collect_str(endpoint),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Endpoint>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| crate::control::filter::parse_endpoint(&text).map_err(Error::custom))
            .transpose()
    }
}

/// Which way a session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From inside.
    Outbound,
    /// From outside.
    Inbound,
    /// From inside to inside, through an external endpoint.
    Hairpin,
}

impl Way {
    fn new(direction: Direction, from_outside: bool) -> Way {
        match (direction, from_outside) {
            (Direction::Hairpin, _) => Way::Hairpin,
            (_, true) => Way::Inbound,
            (_, false) => Way::Outbound,
        }
    }
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Transport protocol.
    pub protocol: ProtocolName,
    /// Who opened it.
    pub direction: Way,
    /// The internal host's endpoint; in a hairpin of the side that opened.
    #[serde(with = "endpoint")]
    pub internal: Endpoint,
    /// The endpoint that Egret assigned, or of a forward.
    #[serde(with = "endpoint")]
    pub external: Endpoint,
    /// The peer's endpoint, as the internal host knows it.
    #[serde(with = "endpoint")]
    pub remote: Endpoint,
    /// In a hairpin the peer's internal endpoint.
    #[serde(with = "maybe_endpoint")]
    pub peer: Option<Endpoint>,
    /// TCP only.
    pub state: Option<StateName>,
    /// It goes by a forward's external endpoint.
    pub forward: bool,
    /// Seconds since its mapping was made: in `edm` its own age, in `eim` it may be younger. Not
    /// known of a forward's sessions.
    pub age_s: Option<u64>,
    /// Milliseconds since its last packet.
    pub idle_ms: u32,
    /// Milliseconds until it expires if no packet comes.
    pub expires_in_ms: u32,
    /// Packets from the internal host (in a hairpin the side that opened); wraps at 2^32.
    pub packets_out: u32,
    /// Their bytes; wraps at 2^48.
    pub bytes_out: u64,
    /// Packets to it.
    pub packets_in: u32,
    /// Their bytes.
    pub bytes_in: u64,
}

impl Session {
    /// What a session looks like under this policy.
    pub fn new(view: &SessionView, policy: &Policy, now: Time) -> Session {
        Session {
            protocol: view.protocol.into(),
            direction: Way::new(view.direction, view.from_outside),
            internal: view.outbound.tuple.source,
            external: view.external(),
            remote: view.outbound.tuple.destination,
            peer: peer(view.direction, view.outbound.destination),
            state: view.state.map(StateName::from),
            forward: view.forwarded,
            age_s: view.started.map(|started| seconds(started, now)),
            idle_ms: view.idle_ms,
            expires_in_ms: view.expires_in_ms(policy),
            packets_out: view.outbound.packets,
            bytes_out: view.outbound.bytes,
            packets_in: view.inbound.packets,
            bytes_in: view.inbound.bytes,
        }
    }
}

fn seconds(from: Time, to: Time) -> u64 {
    to.0.saturating_sub(from.0) / 1000
}

/// A session that began or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Transport protocol.
    pub protocol: ProtocolName,
    /// Who opened it.
    pub direction: Way,
    /// As of a session.
    #[serde(with = "endpoint")]
    pub internal: Endpoint,
    /// As of a session.
    #[serde(with = "endpoint")]
    pub external: Endpoint,
    /// As of a session.
    #[serde(with = "endpoint")]
    pub remote: Endpoint,
    /// As of a session.
    #[serde(with = "maybe_endpoint")]
    pub peer: Option<Endpoint>,
    /// As of a session.
    pub forward: bool,
}

impl From<&Mark> for Flow {
    fn from(mark: &Mark) -> Flow {
        let (internal, remote) = mark.tuple();
        let (external, target) = mark.written();
        Flow {
            protocol: mark.protocol().into(),
            direction: Way::new(mark.direction(), mark.from_outside()),
            internal,
            external,
            remote,
            peer: peer(mark.direction(), target),
            forward: mark.forwarded(),
        }
    }
}

/// How a mapping came about, and whom it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// Dynamic, for one remote endpoint.
    Edm,
    /// Dynamic, for all remote endpoints.
    Eim,
    /// Configured: a forward's.
    Static,
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// Transport protocol.
    pub protocol: ProtocolName,
    /// The internal host's endpoint.
    #[serde(with = "endpoint")]
    pub internal: Endpoint,
    /// The external endpoint.
    #[serde(with = "endpoint")]
    pub external: Endpoint,
    /// The last external port of a forward's range; `null` for one port.
    pub last_port: Option<u16>,
    /// The other endpoints that a forward shares its sessions out to.
    pub other_targets: Vec<String>,
    /// How it came about, and whom it serves.
    pub behaviour: Behaviour,
    /// Sessions that use it; of a static one those that the outside opened.
    pub sessions: u32,
    /// Of these, opened from outside.
    pub sessions_inbound: u32,
    /// Seconds since it was made; `null` for a static one.
    pub age_s: Option<u64>,
    /// Seconds since a packet last kept it alive, which is followed in `eim` only.
    pub refreshed_s: Option<u64>,
}

impl Mapping {
    /// What a dynamic mapping looks like.
    pub fn new(view: &MappingView, now: Time) -> Mapping {
        let independent = view.behaviour == MappingBehaviour::EndpointIndependent;
        Mapping {
            protocol: view.protocol.into(),
            internal: view.internal,
            external: view.external,
            last_port: None,
            other_targets: Vec::new(),
            behaviour: match independent {
                true => Behaviour::Eim,
                false => Behaviour::Edm,
            },
            sessions: view.sessions,
            sessions_inbound: view.sessions_inbound.into(),
            age_s: Some(seconds(view.started, now)),
            refreshed_s: independent.then(|| seconds(view.refreshed, now)),
        }
    }

    /// A forward's, through which the outside has opened so many sessions.
    pub fn of_forward(forward: &Forward, sessions: u32) -> Option<Mapping> {
        let (first, others) = forward.targets.list.split_first()?;
        let others = others.iter().map(|target| target.endpoint.to_string());
        Some(Mapping {
            protocol: forward.protocol.into(),
            internal: first.endpoint,
            external: forward.external,
            last_port: Some(forward.last_port).filter(|&last| last != forward.external.port),
            other_targets: others.collect(),
            behaviour: Behaviour::Static,
            sessions,
            sessions_inbound: sessions,
            age_s: None,
            refreshed_s: None,
        })
    }
}

/// What an external endpoint is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// One `eim` mapping.
    Mapping,
    /// `edm` mappings of several sessions, told apart by their remote endpoints.
    Overloaded,
    /// A forward.
    Forward,
    /// Nobody: in hold-down, not given out until then.
    Held,
    /// Nobody.
    Free,
    /// Nobody of ours: on the interface's address it is left to the host.
    Host,
    /// Nobody: left out of the pool's ports.
    Excluded,
    /// Nobody: the address is none of the pool's.
    NotPool,
}

impl Use {
    /// Is somebody behind it?
    pub fn is_taken(self) -> bool {
        matches!(self, Use::Mapping | Use::Overloaded | Use::Forward)
    }
}

/// An external endpoint, and what it is used for. The mappings and sessions follow on lines of their
/// own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Occupied {
    /// Transport protocol.
    pub protocol: ProtocolName,
    /// The endpoint that was asked for.
    #[serde(with = "endpoint")]
    pub external: Endpoint,
    /// What it is used for.
    #[serde(rename = "use")]
    pub used: Use,
    /// Mappings on it.
    pub mappings: u32,
    /// Seconds that it is held down yet.
    pub held_s: Option<u64>,
}

impl Occupied {
    /// What an occupant means to an operator.
    pub fn new(
        policy: &Policy,
        protocol: conntrack::Protocol,
        external: Endpoint,
        occupant: Occupant,
        now: Time,
    ) -> Occupied {
        let address = policy.addresses.find(external.addr);
        let shared = address.is_some_and(|own| own.kind == conntrack::AddressKind::Shared);
        let (used, mappings) = match occupant {
            Occupant::Mapping(_) => (Use::Mapping, 1),
            Occupant::Overloaded(mappings) => (Use::Overloaded, mappings),
            Occupant::Forward { .. } => (Use::Forward, 1),
            Occupant::Held(_) => (Use::Held, 0),
            Occupant::Free => (Use::Free, 0),
            Occupant::NotGiven if shared => (Use::Host, 0),
            Occupant::NotGiven => (Use::Excluded, 0),
            Occupant::NotPool => (Use::NotPool, 0),
        };
        let held_s = match occupant {
            Occupant::Held(until) => Some(seconds(now, until)),
            _ => None,
        };
        Occupied {
            protocol: protocol.into(),
            external,
            used,
            mappings,
            held_s,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Outbound => "outbound",
            Way::Inbound => "inbound",
            Way::Hairpin => "hairpin",
        })
    }
}
