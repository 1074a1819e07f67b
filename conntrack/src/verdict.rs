//! What conntrack answers: a rewrite, or the reason why there is none.

use crate::endpoint::Endpoint;

/// A next hop remembered in a session's half: opaque to conntrack, [`NextHop::NONE`] until the
/// engine sets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop(pub u32);

impl NextHop {
    /// No next hop is remembered.
    pub const NONE: NextHop = NextHop(0);
}

/// Names one half of a session at one moment; goes stale when the session changes or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionRef {
    /// Number of the half; the other half is `half ^ 1`.
    pub half: u32,
    /// Its sequence word when it was read.
    pub sequence: u32,
}

/// Which way a packet goes through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Internal to external.
    Outbound,
    /// External to internal.
    Inbound,
    /// Internal to internal through an external endpoint: both ends change.
    Hairpin,
}

/// How to change a packet: the endpoints to write and the checksum deltas that go with them.
///
/// A delta is the folded ones' complement sum of `~old + new` over every changed 16-bit word
/// (RFC 1624, equation 3): `new_checksum = ~fold(~old_checksum + delta)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Source endpoint to write.
    pub source: Endpoint,
    /// Destination endpoint to write.
    pub destination: Endpoint,
    /// Delta of the IPv4 header checksum (addresses only).
    pub ip_delta: u16,
    /// Delta of the transport checksum: addresses and ports for TCP and UDP, the identifier alone
    /// for ICMP queries.
    pub l4_delta: u16,
    /// Which way the packet goes.
    pub direction: Direction,
    /// The next hop remembered for this half.
    pub next_hop: NextHop,
    /// The half this rewrite came from.
    pub session: SessionRef,
}

/// Why conntrack gives no rewrite. Each is a drop reason of the same name in the engine, except
/// that on a shared address `NoSession` and `Filtered` mean: punt to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// From outside, and nothing matches.
    NoSession,
    /// From outside to a mapping whose filtering behaviour refuses this remote endpoint.
    Filtered,
    /// To a forward whose allow-list does not contain the source.
    ForwardDenied,
    /// No external port is free (in `edm`: none for this remote endpoint).
    PortsExhausted,
    /// No session is free.
    SessionsFull,
    /// No mapping is free.
    MappingsFull,
    /// Sessions opened from outside have reached their share of the table (a quarter; an eighth for
    /// those of mappings).
    InboundLimit,
    /// The mapping has as many sessions opened from outside as it may have.
    MappingInboundLimit,
    /// The forward has as many sessions opened from outside as it may have.
    ForwardInboundLimit,
    /// There are as many half-open connections of forwards as there may be, and none gave way.
    HalfOpenLimit,
    /// From inside to a destination that the policy denies.
    DestinationDenied,
    /// From inside, and a rule drops it.
    RuleDrop,
    /// From inside, and a rule leaves it to the kernel.
    RuleBypass,
    /// The subscriber has as many sessions of the protocol as it may have.
    SubscriberSessions,
    /// The subscriber has as many external ports of the protocol as it may have.
    SubscriberPorts,
    /// The subscriber has made as many mappings in the last moment as it may.
    SubscriberRate,
    /// There are quotas, and no room to count for one more subscriber.
    SubscribersFull,
    /// TCP from inside in the middle of a connection that has no session.
    TcpMidstream,
    /// An ICMP reply from inside that nothing asked for.
    IcmpUnasked,
    /// No external address is configured or known at the moment.
    NoExternalAddress,
    /// Another worker held the same entry for longer than the bounded retries.
    Contended,
}
