//! The policy a packet is judged by.
//!
//! A [`Policy`] is immutable; a changed configuration is a new policy. Tables outlive policies.

use std::net::Ipv4Addr;

use crate::addresses::Addresses;
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::forward::{Forward, Forwards};
use crate::port_set::PortSet;
use crate::prefixes::Prefixes;
use crate::profile::Profile;
use crate::rules::{Action, Rules};
use crate::timers::TimerSets;

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
    /// The pool that it is in ([`Profile::pool`]).
    pub pool: u16,
    /// Ports (and ICMP identifiers) that dynamic mappings may use, by [`Protocol::index`].
    pub ports: [PortSet; 3],
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

/// Everything a packet is judged by. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How flows are translated that no rule fits: number 0 in [`Action::Translate`].
    pub profile: Profile,
    /// How others are: number 1 and following.
    pub others: Vec<Profile>,
    /// Which flows are translated otherwise, or not at all.
    pub rules: Rules,
    /// Inbound UDP and ICMP refresh their session, too (RFC 4787 REQ-6 leaves it open).
    pub inbound_refresh: bool,
    /// Timeouts.
    pub timers: TimerSets,
    /// What the outside may fill.
    pub limits: Limits,
    /// How much of an address's ports may be in hold-down at once, by protocol, in percent
    /// (RFC 6888 REQ-8): 0 to 100.
    pub hold_down_max_percent: u8,
    /// The addresses of all pools. Flows of a profile whose pool has none are refused.
    pub addresses: Addresses,
    /// Destinations that the internal realm may not open sessions to.
    pub denied: Prefixes,
    /// Forwards, [`crate::FORWARDS_MAX`] at most; no two share (protocol, external endpoint).
    pub forwards: Forwards,
}

impl Policy {
    /// What is done with a flow from inside.
    pub fn action(&self, flow: &Tuple) -> Action {
        let rule = self.rules.find(flow);
        rule.map_or(Action::Translate(0), |(_, action)| action)
    }

    /// The profile with a number; that of no rule for a number that there is not.
    pub fn profile(&self, number: u16) -> &Profile {
        let other = usize::from(number).checked_sub(1);
        let other = other.and_then(|place| self.others.get(place));
        other.unwrap_or(&self.profile)
    }

    /// All profiles, by number.
    pub fn profiles(&self) -> impl Iterator<Item = &Profile> {
        std::iter::once(&self.profile).chain(&self.others)
    }

    /// How a flow from inside is translated, if it is.
    pub(crate) fn profile_for(&self, flow: &Tuple) -> Option<&Profile> {
        match self.action(flow) {
            Action::Translate(number) => Some(self.profile(number)),
            Action::Bypass | Action::Drop => None,
        }
    }

    /// Are there flows of a protocol whose ports are overloaded?
    pub(crate) fn overloads(&self, protocol: Protocol) -> bool {
        self.profiles()
            .any(|profile| !profile.is_independent(protocol))
    }

    /// How `eim` mappings that leave from a pool are made: by the first profile that makes such ones.
    pub(crate) fn mapping_profile(&self, protocol: Protocol, pool: u16) -> Option<&Profile> {
        let of_pool = |profile: &&Profile| profile.pool == pool && profile.is_independent(protocol);
        self.profiles().find(of_pool)
    }

    /// How many ports of an address may be in hold-down.
    pub(crate) fn held_max(&self, address: &ExternalAddress, protocol: Protocol) -> u32 {
        address.ports[protocol.index()].len() * u32::from(self.hold_down_max_percent) / 100
    }

    /// The external address with these 32 bits.
    #[inline]
    pub(crate) fn address(&self, addr: Ipv4Addr) -> Option<&ExternalAddress> {
        self.addresses.find(addr)
    }

    /// The external address in this slot.
    pub(crate) fn address_in(&self, slot: u16) -> Option<&ExternalAddress> {
        self.addresses.in_slot(slot)
    }

    /// The forward of an external endpoint; `place` is where it probably is.
    pub(crate) fn forward(
        &self,
        place: u32,
        protocol: Protocol,
        external: Endpoint,
    ) -> Option<&Forward> {
        let fits = |forward: &&Forward| forward.has(protocol, external);
        let there = self.forwards.get(place as usize).filter(fits);
        there.or_else(|| Some(self.forwards.find(protocol, external)?.1))
    }
}
