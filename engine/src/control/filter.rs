//! Which sessions and mappings are meant: the filters of a request.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use conntrack::tcp::State;
use conntrack::{Endpoint, MappingView, Mark, Policy, Protocol, SessionView, Time};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Addresses, and maybe one port of them: `10.0.0.1`, `10.0.0.1:53`, `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    /// The addresses.
    pub prefix: Ipv4Net,
    /// Only this port, or ICMP identifier.
    pub port: Option<u16>,
}

impl Pattern {
    /// Does the endpoint fit?
    pub fn matches(&self, endpoint: Endpoint) -> bool {
        self.prefix.contains(&endpoint.addr) && self.port.is_none_or(|port| port == endpoint.port)
    }
}

/// A text that is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is none of: an address (10.0.0.1), an endpoint (10.0.0.1:53), a prefix without host bits \
     (10.0.0.0/8)"
)]
pub struct NoPattern(pub String);

impl FromStr for Pattern {
    type Err = NoPattern;

    fn from_str(text: &str) -> Result<Pattern, NoPattern> {
        let whole = |addr: Ipv4Addr| Ipv4Net::from(addr);
        if let Ok(endpoint) = parse_endpoint(text) {
            return Ok(Pattern {
                prefix: whole(endpoint.addr),
                port: Some(endpoint.port),
            });
        }
        let addr = text.parse().ok().map(whole);
        let prefix = text.parse().ok();
        let prefix = addr.or_else(|| prefix.filter(|net: &Ipv4Net| net.trunc() == *net));
        let prefix = prefix.ok_or_else(|| NoPattern(text.to_owned()))?;
        Ok(Pattern { prefix, port: None })
    }
}

impl TryFrom<String> for Pattern {
    type Error = NoPattern;

    fn try_from(text: String) -> Result<Pattern, NoPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.prefix.prefix_len()) {
            (Some(port), _) => write!(f, "{}:{port}", self.prefix.addr()),
            (None, 32) => write!(f, "{}", self.prefix.addr()),
            (None, _) => write!(f, "{}", self.prefix),
        }
    }
}

/// An endpoint as it is written: `10.0.0.1:53`.
///
/// # Errors
/// It is none; the message names the value.
pub fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    let parsed: Option<std::net::SocketAddrV4> = text.parse().ok();
    let endpoint = parsed.map(|socket| Endpoint::new(*socket.ip(), socket.port()));
    endpoint.ok_or_else(|| {
        format!("`{text}` is no endpoint: an address, a colon and a port (198.51.100.1:5000)")
    })
}

/// A transport protocol by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtocolName {
    /// `tcp`
    Tcp,
    /// `udp`
    Udp,
    /// `icmp`
    Icmp,
}

impl From<Protocol> for ProtocolName {
    fn from(protocol: Protocol) -> ProtocolName {
        match protocol {
            Protocol::Tcp => ProtocolName::Tcp,
            Protocol::Udp => ProtocolName::Udp,
            Protocol::Icmp => ProtocolName::Icmp,
        }
    }
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Protocol {
        match name {
            ProtocolName::Tcp => Protocol::Tcp,
            ProtocolName::Udp => Protocol::Udp,
            ProtocolName::Icmp => Protocol::Icmp,
        }
    }
}

/// A state of a TCP session, or several of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// The internal side's SYN was seen.
    Init,
    /// The external side's SYN was seen.
    InitOutside,
    /// Opened from outside, both SYNs seen, the initiator's ACK not yet.
    SynSeen,
    /// Open.
    Established,
    /// The initiator has sent a FIN.
    InitiatorFin,
    /// The responder has sent a FIN.
    ResponderFin,
    /// Both have.
    Closing,
    /// A RST was seen.
    Reset,
    /// Opened from outside, and not yet open: `init-outside` or `syn-seen`. For filters only.
    HalfOpen,
}

impl From<State> for StateName {
    fn from(state: State) -> StateName {
        match state {
            State::Init => StateName::Init,
            State::InitOutside => StateName::InitOutside,
            State::SynSeen => StateName::SynSeen,
            State::Established => StateName::Established,
            State::InitiatorFin => StateName::InitiatorFin,
            State::ResponderFin => StateName::ResponderFin,
            State::Closing => StateName::Closing,
            State::Reset => StateName::Reset,
        }
    }
}

impl StateName {
    fn matches(self, state: State) -> bool {
        self == StateName::from(state) || self == StateName::HalfOpen && state.is_half_open()
    }
}

/// What a session or mapping must be like; what is not given may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// The internal endpoint; in a hairpin one of the two.
    pub internal: Option<Pattern>,
    /// The external endpoint; in a hairpin one of the two.
    pub external: Option<Pattern>,
    /// The remote endpoint. Mappings have none.
    pub remote: Option<Pattern>,
    /// Any of these endpoints.
    pub address: Option<Pattern>,
    /// The port, or ICMP identifier, of any of these endpoints.
    pub port: Option<u16>,
    /// The transport protocol.
    pub protocol: Option<ProtocolName>,
    /// The state of a TCP session.
    pub state: Option<StateName>,
    /// Older than this, in seconds. What has no known age does not match.
    pub older_than_s: Option<u64>,
    /// Younger than this, in seconds. What has no known age does not match.
    pub younger_than_s: Option<u64>,
}

/// The endpoints of a session or mapping, by what they are.
struct Ends {
    protocol: Protocol,
    internal: [Option<Endpoint>; 2],
    external: [Option<Endpoint>; 2],
    remote: Option<Endpoint>,
}

impl Ends {
    fn new(
        protocol: Protocol,
        internal: Endpoint,
        external: Endpoint,
        remote: Endpoint,
        peer: Option<Endpoint>,
    ) -> Ends {
        Ends {
            protocol,
            internal: [Some(internal), peer],
            external: [Some(external), peer.map(|_| remote)],
            remote: Some(remote),
        }
    }

    fn all(&self) -> impl Iterator<Item = Endpoint> {
        let [near, far] = self.internal;
        let [own, others] = self.external;
        [near, far, own, others, self.remote].into_iter().flatten()
    }
}

impl Filter {
    /// Does it let everything pass?
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Does it ask for what only a session has?
    pub fn is_for_sessions(&self) -> bool {
        self.remote.is_some() || self.state.is_some()
    }

    /// Does it ask for more than endpoints and protocol?
    pub fn is_for_more_than_endpoints(&self) -> bool {
        self.state.is_some() || self.older_than_s.is_some() || self.younger_than_s.is_some()
    }

    fn matches_ends(&self, ends: &Ends) -> bool {
        let one_of = |pattern: &Option<Pattern>, endpoints: &[Option<Endpoint>]| {
            pattern.is_none_or(|pattern| {
                let mut endpoints = endpoints.iter().flatten();
                endpoints.any(|&endpoint| pattern.matches(endpoint))
            })
        };
        let protocol = self.protocol.map(Protocol::from);
        protocol.is_none_or(|protocol| protocol == ends.protocol)
            && one_of(&self.internal, &ends.internal)
            && one_of(&self.external, &ends.external)
            && one_of(&self.remote, &[ends.remote])
            && self
                .address
                .is_none_or(|pattern| ends.all().any(|endpoint| pattern.matches(endpoint)))
            && self
                .port
                .is_none_or(|port| ends.all().any(|endpoint| endpoint.port == port))
    }

    fn matches_age(&self, started: Option<Time>, now: Time) -> bool {
        let age_s = started.map(|started| now.0.saturating_sub(started.0) / 1000);
        let older = |limit_s: u64| age_s.is_some_and(|age_s| age_s > limit_s);
        let younger = |limit_s: u64| age_s.is_some_and(|age_s| age_s < limit_s);
        self.older_than_s.is_none_or(older) && self.younger_than_s.is_none_or(younger)
    }

    /// Is the session meant?
    pub fn matches_session(&self, view: &SessionView, now: Time) -> bool {
        let state = |name: StateName| view.state.is_some_and(|state| name.matches(state));
        self.state.is_none_or(state)
            && self.matches_age(view.started, now)
            && self.matches_ends(&Ends::new(
                view.protocol,
                view.outbound.tuple.source,
                view.external(),
                view.outbound.tuple.destination,
                peer(view.direction, view.outbound.destination),
            ))
    }

    /// Is the session of this mark meant, as far as endpoints and protocol tell?
    pub fn matches_mark(&self, mark: &Mark) -> bool {
        let (internal, remote) = mark.tuple();
        let (external, target) = mark.written();
        let peer = peer(mark.direction(), target);
        self.matches_ends(&Ends::new(
            mark.protocol(),
            internal,
            external,
            remote,
            peer,
        ))
    }

    /// Is the mapping meant? No mapping is by a filter for sessions.
    pub fn matches_mapping(&self, view: &MappingView, now: Time) -> bool {
        !self.is_for_sessions()
            && self.matches_age(Some(view.started), now)
            && self.matches_ends(&Ends {
                protocol: view.protocol,
                internal: [Some(view.internal), None],
                external: [Some(view.external), None],
                remote: None,
            })
    }

    /// Is a static mapping of a forward meant, by any of its ports and targets? It has no age.
    pub fn matches_forward(&self, forward: &conntrack::Forward) -> bool {
        if self.is_for_sessions() || !self.matches_age(None, Time(0)) {
            return false;
        }
        let first = forward.external.port;
        let given = [self.internal, self.external, self.address];
        let given = given
            .into_iter()
            .flatten()
            .filter_map(|pattern| pattern.port);
        let inside = given.chain(self.port).filter_map(|port| {
            let inside = forward
                .targets
                .list
                .iter()
                .map(|target| target.endpoint.port);
            // As it is outside, and as it is inside.
            let outside = inside.map(|inside| port.wrapping_sub(inside).wrapping_add(first));
            outside
                .chain([port])
                .find(|port| (first..=forward.last_port).contains(port))
        });
        let mut ports = inside.chain([first]);
        ports.any(|port| {
            forward.targets.list.iter().any(|target| {
                let Endpoint { addr, port: inside } = target.endpoint;
                let inside = inside.wrapping_add(port.wrapping_sub(first));
                self.matches_ends(&Ends {
                    protocol: forward.protocol,
                    internal: [Some(Endpoint::new(addr, inside)), None],
                    external: [Some(Endpoint::new(forward.external.addr, port)), None],
                    remote: None,
                })
            })
        })
    }

    /// Is the session meant, and not over?
    pub fn matches_living(&self, view: &SessionView, policy: &Policy, now: Time) -> bool {
        self.matches_session(view, now) && view.expires_in_ms(policy) > 0
    }
}

/// The other internal endpoint of a hairpin.
pub fn peer(direction: conntrack::Direction, target: Endpoint) -> Option<Endpoint> {
    (direction == conntrack::Direction::Hairpin).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_written_as_they_are_read() {
        for text in [
            "10.0.0.1",
            "10.0.0.1:53",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "10.0.0.1:0",
        ] {
            let pattern: Pattern = text.parse().expect(text);
            assert_eq!(pattern.to_string(), text);
        }
        let whole: Pattern = "10.0.0.1/32".parse().unwrap();
        assert_eq!(whole.to_string(), "10.0.0.1");
        for text in [
            "",
            "10.0.0",
            "10.0.0.5/24",
            "10.0.0.1:65536",
            "host",
            "10.0.0.0/8:1",
            "::1",
        ] {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("prefix"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_pattern_matches_its_addresses_and_port() {
        let at = |text: &str| parse_endpoint(text).unwrap();
        let matches = |pattern: &str, endpoint: &str| {
            pattern.parse::<Pattern>().unwrap().matches(at(endpoint))
        };
        assert!(matches("10.0.0.0/8", "10.9.9.9:1") && !matches("10.0.0.0/8", "11.0.0.1:1"));
        assert!(matches("10.0.0.1:53", "10.0.0.1:53") && !matches("10.0.0.1:53", "10.0.0.1:54"));
    }

    #[test]
    fn half_open_means_two_states() {
        let half_open = State::ALL.map(|state| StateName::HalfOpen.matches(state));
        assert_eq!(half_open.iter().filter(|&&matches| matches).count(), 2);
        for state in State::ALL {
            assert!(StateName::from(state).matches(state));
        }
        assert!(!StateName::Init.matches(State::SynSeen));
    }
}
