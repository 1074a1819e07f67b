//! The policy a packet is judged by: behaviours, timers, external addresses, forwards.
//!
//! A [`Policy`] is immutable; a changed configuration is a new policy. Tables outlive policies.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::addresses::Addresses;
use crate::endpoint::{Endpoint, Protocol};
use crate::prefixes::Prefixes;

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

/// What a flow gets whose internal address is paired with an external one that has no port left for
/// it (RFC 7857 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Nothing: its host is seen by one address, or not at all.
    Hard,
    /// A port of the pool's other addresses.
    Soft,
}

/// Timeouts, all in milliseconds, 1 to 2^31 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// UDP, RFC 4787 REQ-5.
    pub udp_timeout_ms: u32,
    /// TCP before both SYNs (and, opened from outside, the initiator's ACK) were seen.
    pub tcp_trans_open_timeout_ms: u32,
    /// TCP established and idle, RFC 5382 REQ-5.
    pub tcp_idle_timeout_ms: u32,
    /// TCP after both FINs, or a RST.
    pub tcp_trans_close_timeout_ms: u32,
    /// How long an unsolicited inbound SYN goes unanswered, RFC 5382 REQ-4.
    pub tcp_in_syn_timeout_ms: u32,
    /// ICMP queries, RFC 5508 REQ-2.
    pub icmp_timeout_ms: u32,
    /// Fragments waiting for their datagram's ports.
    pub fragment_timeout_ms: u32,
    /// How long a released external endpoint is not assigned again, where RFC 6888 REQ-8 asks
    /// for it.
    pub hold_down_ms: u32,
}

impl Timers {
    /// The `rfc` profile.
    pub const RFC: Timers = Timers {
        udp_timeout_ms: 300_000,
        tcp_trans_open_timeout_ms: 240_000,
        tcp_idle_timeout_ms: 7_440_000,
        tcp_trans_close_timeout_ms: 240_000,
        tcp_in_syn_timeout_ms: 6_000,
        icmp_timeout_ms: 60_000,
        fragment_timeout_ms: 2_000,
        hold_down_ms: 120_000,
    };
    /// The `conntrack` profile: netfilter's defaults.
    pub const CONNTRACK: Timers = Timers {
        udp_timeout_ms: 120_000,
        tcp_trans_open_timeout_ms: 120_000,
        tcp_idle_timeout_ms: 432_000_000,
        tcp_trans_close_timeout_ms: 120_000,
        tcp_in_syn_timeout_ms: 6_000,
        icmp_timeout_ms: 30_000,
        fragment_timeout_ms: 30_000,
        hold_down_ms: 0,
    };
    /// The `cloud` profile: what managed cloud gateways do.
    pub const CLOUD: Timers = Timers {
        udp_timeout_ms: 30_000,
        tcp_trans_open_timeout_ms: 30_000,
        tcp_idle_timeout_ms: 1_200_000,
        tcp_trans_close_timeout_ms: 120_000,
        tcp_in_syn_timeout_ms: 6_000,
        icmp_timeout_ms: 30_000,
        fragment_timeout_ms: 2_000,
        hold_down_ms: 120_000,
    };
}

/// Ports that a search counts together: 0-1023, 1024-2047, and so on. The first group is the low
/// port class of RFC 4787 REQ-3a, the others are the high one.
pub(crate) const GROUPS: usize = 64;

/// A set of ports: 65,536 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; 1024]>,
    /// How many of each group.
    groups: [u16; GROUPS],
}

impl std::fmt::Debug for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortSet({} ports)", self.len())
    }
}

impl PortSet {
    /// No port.
    pub fn empty() -> PortSet {
        PortSet {
            words: Box::new([0; 1024]),
            groups: [0; GROUPS],
        }
    }

    /// Adds `first..=last`.
    pub fn insert_range(&mut self, first: u16, last: u16) {
        self.words_of(first, last, |word, bits| *word |= bits);
    }

    /// Takes out `first..=last`.
    pub fn remove_range(&mut self, first: u16, last: u16) {
        self.words_of(first, last, |word, bits| *word &= !bits);
    }

    /// Offers each word that has ports of `first..=last`, with their bits.
    fn words_of(&mut self, first: u16, last: u16, mut change: impl FnMut(&mut u64, u64)) {
        let (low, high) = (usize::from(first) / 64, usize::from(last) / 64);
        let words = self.words.iter_mut().enumerate();
        for (index, word) in words.skip(low).take((high + 1).saturating_sub(low)) {
            let from = if index == low { first % 64 } else { 0 };
            let to = if index == high { last % 64 } else { 63 };
            if from > to {
                continue;
            }
            let before = word.count_ones() as u16;
            change(word, u64::MAX >> (63 - to + from) << from);
            let count = &mut self.groups[index * GROUPS / 1024];
            *count = *count + word.count_ones() as u16 - before;
        }
    }

    /// Is the port in the set?
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port) / 64] >> (port % 64) & 1 == 1
    }

    /// How many ports, 0 to 65,536.
    pub fn len(&self) -> u32 {
        self.groups.iter().map(|&count| u32::from(count)).sum()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|&count| count == 0)
    }

    /// How many of `1024 * group ..`, `group` below 64.
    pub(crate) fn in_group(&self, group: usize) -> u32 {
        u32::from(self.groups[group])
    }

    /// The lowest and the highest port, if there is any.
    pub fn bounds(&self) -> Option<(u16, u16)> {
        let low = self.words.iter().position(|&word| word != 0)?;
        let high = self.words.iter().rposition(|&word| word != 0)?;
        let first = low * 64 + self.words[low].trailing_zeros() as usize;
        let last = high * 64 + 63 - self.words[high].leading_zeros() as usize;
        Some((first as u16, last as u16))
    }

    /// The 64 bits of ports `64 * index ..`, `index` below 1024.
    pub fn word(&self, index: usize) -> u64 {
        self.words[index]
    }
}

/// Whether the host uses the address, too (design: "own" and "shared").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// Egret's alone.
    Own,
    /// The interface's: shared port by port with the host's kernel.
    Shared,
}

/// An external address of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAddress {
    /// The address.
    pub addr: Ipv4Addr,
    /// Its place in the port tables and the ownership bitmap, below `TableSize::addresses_max`.
    /// A slot is reused only after every session of its old address is gone.
    pub slot: u16,
    /// Own or shared.
    pub kind: AddressKind,
    /// Ports (and ICMP identifiers) that dynamic mappings may use, by [`Protocol::index`].
    pub ports: [PortSet; 3],
}

/// A static mapping that lets the external realm open sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The external endpoint.
    pub external: Endpoint,
    /// The internal endpoint.
    pub target: Endpoint,
    /// Sources that may use it; empty: any.
    pub allow: Vec<Ipv4Net>,
}

/// How much of the tables the outside may fill (RFC 6888 REQ-5). Beside them stand shares of the
/// table that are not settings: sessions opened from outside have at most a quarter of it, those of
/// mappings and half-open ones of forwards an eighth each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions opened from outside that one `eim` mapping may have, 1 to 65,535.
    pub inbound_sessions_per_mapping: u16,
    /// Sessions opened from outside that one forward may have, at least 1. None: an eighth of the
    /// table, half of what all forwards may have, since an ingress has two.
    pub inbound_sessions_per_forward: Option<u32>,
    /// Of these, TCP connections whose handshake is not over, at least 1. One more replaces the
    /// oldest. None: a 32nd of the table: at 100,000 forged SYNs a second an honest handshake has
    /// 80 ms with 262,144 sessions, 320 ms with 1,048,576.
    pub half_open_per_forward: Option<u32>,
    /// What each subscriber may have.
    pub quotas: Quotas,
}

impl Limits {
    /// What holds if nothing is configured.
    pub const DEFAULT: Limits = Limits {
        inbound_sessions_per_mapping: 1024,
        inbound_sessions_per_forward: None,
        half_open_per_forward: None,
        quotas: Quotas::NONE,
    };
}

/// What one subscriber, an internal address, may have (RFC 6888 REQ-4, REQ-5). Counted is what it
/// opens itself: what comes from outside has limits of its own, or the outside could use up a
/// subscriber's quota. (A port counts as long as its mapping lives, and with
/// [`Policy::inbound_refresh`] the outside can make that long.) While none is set, nothing is counted;
/// what was made before one is set never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Sessions, by [`Protocol::index`], at least 1; none: any number.
    pub sessions: [Option<u32>; 3],
    /// External ports (identifiers), by [`Protocol::index`], at least 1; none: any number. One a
    /// mapping: in `edm` each session has one, though sessions to different remotes share a port.
    pub ports: [Option<u32>; 3],
    /// New mappings a second, 1 to 1,000,000; none: any number.
    pub mappings_per_second: Option<u32>,
    /// New mappings at once, at least 1: so many are let through before the rate is felt. The clock
    /// has milliseconds: a rate of more than 1000 bursts a second is not reached.
    pub mapping_burst: u32,
}

impl Quotas {
    /// No quota.
    pub const NONE: Quotas = Quotas {
        sessions: [None; 3],
        ports: [None; 3],
        mappings_per_second: None,
        mapping_burst: 1,
    };

    /// Is there any?
    pub fn any(&self) -> bool {
        let counts = self.sessions.iter().chain(&self.ports);
        self.mappings_per_second.is_some() || counts.flatten().next().is_some()
    }
}

/// Forwards that a policy may have.
pub const FORWARDS_MAX: usize = 8192;

/// Everything a packet is judged by. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
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
    /// Inbound UDP and ICMP refresh their session, too (RFC 4787 REQ-6 leaves it open).
    pub inbound_refresh: bool,
    /// Timeouts.
    pub timers: Timers,
    /// What the outside may fill.
    pub limits: Limits,
    /// How much of an address's ports may be in hold-down at once, by protocol, in percent
    /// (RFC 6888 REQ-8): 0 to 100.
    pub hold_down_max_percent: u8,
    /// The pool. Empty: nothing can be mapped.
    pub addresses: Addresses,
    /// Destinations that the internal realm may not open sessions to.
    pub denied: Prefixes,
    /// Forwards, [`FORWARDS_MAX`] at most; no two share (protocol, external endpoint).
    pub forwards: Vec<Forward>,
}

impl Policy {
    /// Has an internal endpoint one mapping for all remote ones?
    pub(crate) fn is_independent(&self, protocol: Protocol) -> bool {
        self.mapping[protocol.index()] == MappingBehaviour::EndpointIndependent
    }

    /// How many ports of an address may be in hold-down.
    pub(crate) fn held_max(&self, address: &ExternalAddress, protocol: Protocol) -> u32 {
        address.ports[protocol.index()].len() * u32::from(self.hold_down_max_percent) / 100
    }

    /// May a flow leave from another address than its paired one?
    pub(crate) fn is_soft(&self, protocol: Protocol) -> bool {
        self.pairing[protocol.index()] == Pairing::Soft
    }

    /// The external address with these 32 bits.
    #[inline]
    pub(crate) fn address(&self, addr: Ipv4Addr) -> Option<&ExternalAddress> {
        self.addresses.find(addr)
    }

    /// The external address in this slot.
    pub(crate) fn address_in(&self, slot: u16) -> Option<&ExternalAddress> {
        self.addresses.iter().find(|address| address.slot == slot)
    }

    /// The forward of an external endpoint; `place` is where it probably is.
    pub(crate) fn forward(
        &self,
        place: u32,
        protocol: Protocol,
        external: Endpoint,
    ) -> Option<&Forward> {
        let fits =
            |forward: &&Forward| forward.protocol == protocol && forward.external == external;
        self.forwards
            .get(place as usize)
            .filter(fits)
            .or_else(|| self.forwards.iter().find(fits))
    }

    /// The forwards to an internal endpoint.
    pub(crate) fn forwards_to(
        &self,
        protocol: Protocol,
        target: Endpoint,
    ) -> impl Iterator<Item = &Forward> {
        self.forwards
            .iter()
            .filter(move |forward| forward.protocol == protocol && forward.target == target)
    }
}

impl Forward {
    /// May this source use it?
    pub(crate) fn allows(&self, source: Ipv4Addr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&source))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_go_in_and_out() {
        let edges = [
            0, 1, 62, 63, 64, 65, 127, 128, 1023, 65471, 65472, 65534, 65535,
        ];
        for first in edges {
            for last in edges {
                let inside = |port: &u16| (first..=last).contains(port);
                let mut set = PortSet::empty();
                set.insert_range(first, last);
                assert!((0..=u16::MAX).all(|port| set.contains(port) == inside(&port)));
                let mut rest = PortSet::empty();
                rest.insert_range(0, u16::MAX);
                rest.remove_range(first, last);
                assert!((0..=u16::MAX).all(|port| rest.contains(port) != inside(&port)));
                assert_eq!(set.len() + rest.len(), 65_536, "{first}-{last}");
            }
        }
    }
}
