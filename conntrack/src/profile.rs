//! Profiles: how a flow is translated. One for flows that no rule fits, one for each way that rules
//! name.

use crate::endpoint::Protocol;

/// When a mapping is reused (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingBehaviour {
    /// `eim`: one external endpoint for all remote endpoints.
    EndpointIndependent,
    /// `edm`: a mapping per remote endpoint; external endpoints are overloaded (RFC 7857
    /// section 3).
    EndpointDependent,
}

/// Which remote endpoints may send inbound (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilteringBehaviour {
    /// `eif`: any.
    EndpointIndependent,
    /// `adf`: addresses that the internal endpoint has sent to.
    AddressDependent,
    /// `edf`: endpoints that the internal endpoint has sent to.
    EndpointDependent,
}

/// Whether an internal address is paired with an external one, and what a flow gets for which that one
/// has no port left (RFC 7857 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Nothing: its host is seen by one address, or not at all.
    Hard,
    /// A port of the pool's other addresses.
    Soft,
    /// There are no pairs: flows of one host leave from all addresses of the pool.
    None,
}

/// How flows are translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The pool that they leave from ([`crate::ExternalAddress::pool`]).
    pub pool: u16,
    /// Mapping behaviour, by [`Protocol::index`].
    pub mapping: [MappingBehaviour; 3],
    /// Filtering behaviour, by [`Protocol::index`] (RFC 5382 REQ-3, RFC 7857 sections 5 and 6).
    pub filtering: [FilteringBehaviour; 3],
    /// Pairing, by [`Protocol::index`]. The address is the same for all protocols.
    pub pairing: [Pairing; 3],
    /// Keep the source port where it is free.
    pub preserve_port: bool,
    /// Else, and for TCP and UDP, keep its class (0-1023 or 1024-65535) where the pool has a port of
    /// it (RFC 4787 REQ-3a).
    pub preserve_port_class: bool,
    /// Else, and for UDP, keep its parity where the pool has such a port (RFC 4787 REQ-4; RFC 7857
    /// section 8 lets it be off).
    pub preserve_port_parity: bool,
    /// The timers of the flows.
    pub timers: FlowTimers,
}

impl Profile {
    /// Has an internal endpoint one mapping for all remote ones?
    pub(crate) fn is_independent(&self, protocol: Protocol) -> bool {
        self.mapping[protocol.index()] == MappingBehaviour::EndpointIndependent
    }

    /// May anybody send to a mapping?
    pub(crate) fn is_open(&self, protocol: Protocol) -> bool {
        self.is_independent(protocol)
            && self.filtering[protocol.index()] == FilteringBehaviour::EndpointIndependent
    }
}

/// Which set of timers a flow has ([`crate::TimerSets`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowTimers {
    /// The set of all flows that have no other, and of `eim` mappings.
    pub base: u8,
    /// Those of flows to some destination ports: sorted by protocol and port, without overlaps.
    pub services: Vec<Service>,
}

/// Flows to some destination ports have a set of timers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The first of the ports.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// The number of the set.
    pub timers: u8,
}

impl FlowTimers {
    /// The number of the set for flows to a port (for ICMP, to an identifier: the base).
    pub(crate) fn of(&self, protocol: Protocol, port: u16) -> u8 {
        let key = (protocol.index(), port);
        let after = |service: &Service| (service.protocol.index(), service.first) <= key;
        let at = self.services.partition_point(after).checked_sub(1);
        let service = at.and_then(|at| self.services.get(at));
        let fits = |s: &&Service| s.protocol == protocol && port <= s.last;
        service.filter(fits).map_or(self.base, |s| s.timers)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn services_have_their_own_timers() {
        let service = |protocol, first, last, timers| Service {
            protocol,
            first,
            last,
            timers,
        };
        let timers = FlowTimers {
            base: 3,
            services: vec![
                service(Protocol::Tcp, 22, 22, 4),
                service(Protocol::Udp, 53, 54, 5),
                service(Protocol::Udp, 123, u16::MAX, 6),
            ],
        };
        let cases = [
            (Protocol::Tcp, 21, 3),
            (Protocol::Tcp, 22, 4),
            (Protocol::Tcp, 53, 3),
            (Protocol::Udp, 22, 3),
            (Protocol::Udp, 53, 5),
            (Protocol::Udp, 54, 5),
            (Protocol::Udp, 55, 3),
            (Protocol::Udp, u16::MAX, 6),
            (Protocol::Icmp, 53, 3),
        ];
        for (protocol, port, set) in cases {
            assert_eq!(timers.of(protocol, port), set, "{protocol:?} {port}");
        }
    }
}
