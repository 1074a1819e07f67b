//! Why a frame was dropped: one reason, one counter of the same name, one test.

use conntrack::Refusal;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a frame was dropped. Each reason has exactly one counter, called [`DropReason::name`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The counter's name.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than the headers it announces, or than an Ethernet and IPv4 header.
    Truncated => "truncated",
    /// Not IPv4 although it was steered to us (a race with the steering program's settings).
    NotIpv4 => "not_ipv4",
    /// IPv4 version or header length field wrong.
    BadHeader => "bad_header",
    /// IPv4 header checksum wrong (RFC 1812 section 5.2.2).
    BadChecksum => "bad_checksum",
    /// Total length below the header length, or beyond the frame.
    BadLength => "bad_length",
    /// Source or destination address that may not be forwarded (RFC 1812 section 5.3.7).
    BadAddress => "bad_address",
    /// TCP data offset, UDP length or TCP flags impossible, or what the tun driver says of the checksum
    /// is not of this packet.
    BadTransport => "bad_transport",
    /// A transport protocol that is not translated.
    UnsupportedProtocol => "unsupported_protocol",
    /// An ICMP type that is neither a query nor a translated error.
    UnsupportedIcmp => "unsupported_icmp",
    /// ICMP error with a wrong ICMP checksum (RFC 5508 REQ-3).
    IcmpBadChecksum => "icmp_bad_checksum",
    /// ICMP error whose embedded IPv4 header has a wrong checksum (RFC 5508 REQ-3 a).
    IcmpBadEmbeddedChecksum => "icmp_bad_embedded_checksum",
    /// ICMP error whose embedded packet is too short or malformed.
    IcmpBadEmbedded => "icmp_bad_embedded",
    /// ICMP error about no session of ours.
    IcmpNoSession => "icmp_no_session",
    /// Source routing option (RFC 5508 REQ-10, RFC 7126).
    SourceRoute => "source_route",
    /// TTL ran out; time exceeded was sent if the rate limit allowed.
    TtlExpired => "ttl_expired",
    /// Too big for the egress MTU with DF set; fragmentation needed was sent if allowed.
    FragmentationNeeded => "fragmentation_needed",
    /// A fragment that no table space was left for.
    FragmentsFull => "fragments_full",
    /// A fragment whose first fragment did not come in time.
    FragmentTimeout => "fragment_timeout",
    /// A fragment too small or overlapping the transport header (RFC 1858, RFC 3128).
    FragmentBad => "fragment_bad",
    /// Internal source on the external interface.
    Spoofed => "spoofed",
    /// From outside to an own address, and nothing matches.
    NoSession => "no_session",
    /// From outside to a mapping whose filtering refuses the sender.
    Filtered => "filtered",
    /// To a forward whose allow-list does not contain the source.
    ForwardDenied => "forward_denied",
    /// No external port is free (in `edm`: for this remote endpoint).
    PortsExhausted => "ports_exhausted",
    /// No session is free.
    SessionsFull => "sessions_full",
    /// No mapping is free.
    MappingsFull => "mappings_full",
    /// Sessions opened from outside have reached their share of the table.
    InboundLimit => "inbound_limit",
    /// Those of a mapping have reached `limits.inbound_sessions_per_mapping`.
    MappingInboundLimit => "mapping_inbound_limit",
    /// Those of a forward have reached `limits.inbound_sessions_per_forward`.
    ForwardInboundLimit => "forward_inbound_limit",
    /// Half-open connections of forwards have reached their share, and none could give way.
    HalfOpenLimit => "half_open_limit",
    /// From inside to a destination in `deny`.
    DestinationDenied => "destination_denied",
    /// From inside, and a rule with action = "drop" fits.
    RuleDrop => "rule_drop",
    /// A client has as many sessions as `limits.sessions_per_subscriber` lets it have.
    SubscriberSessions => "subscriber_sessions",
    /// A client has as many external ports as `limits.ports_per_subscriber` lets it have.
    SubscriberPorts => "subscriber_ports",
    /// A client makes mappings faster than `limits.mappings_per_second_per_subscriber`.
    SubscriberRate => "subscriber_rate",
    /// There are quotas, and no room to count for one more client.
    SubscribersFull => "subscribers_full",
    /// TCP from inside in the middle of a connection that has no session.
    TcpMidstream => "tcp_midstream",
    /// ICMP reply from inside that nothing asked for.
    IcmpUnasked => "icmp_unasked",
    /// No external address is known at the moment.
    NoExternalAddress => "no_external_address",
    /// Another worker held the same entry too long.
    Contended => "contended",
    /// No route to the destination, or the route leaves by an interface that Egret does not serve.
    NoRoute => "no_route",
    /// The next hop did not answer ARP.
    NeighbourUnreachable => "neighbour_unreachable",
    /// Too many frames are held for unresolved next hops.
    HoldFull => "hold_full",
    /// Steered to us, yet neither from an internal prefix nor to an external address.
    NotOurs => "not_ours",
    /// No frame was left for a packet that Egret makes itself.
    NoFrame => "no_frame",
    /// The transmit ring stayed full.
    TxFull => "tx_full",
    /// Punting to the host failed.
    PuntFailed => "punt_failed",
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> DropReason {
        match refusal {
            Refusal::NoSession => DropReason::NoSession,
            Refusal::Filtered => DropReason::Filtered,
            Refusal::ForwardDenied => DropReason::ForwardDenied,
            Refusal::PortsExhausted => DropReason::PortsExhausted,
            Refusal::SessionsFull => DropReason::SessionsFull,
            Refusal::MappingsFull => DropReason::MappingsFull,
            Refusal::InboundLimit => DropReason::InboundLimit,
            Refusal::MappingInboundLimit => DropReason::MappingInboundLimit,
            Refusal::ForwardInboundLimit => DropReason::ForwardInboundLimit,
            Refusal::HalfOpenLimit => DropReason::HalfOpenLimit,
            Refusal::DestinationDenied => DropReason::DestinationDenied,
            Refusal::RuleDrop => DropReason::RuleDrop,
            // Such packets are punted.
            Refusal::RuleBypass => DropReason::PuntFailed,
            Refusal::SubscriberSessions => DropReason::SubscriberSessions,
            Refusal::SubscriberPorts => DropReason::SubscriberPorts,
            Refusal::SubscriberRate => DropReason::SubscriberRate,
            Refusal::SubscribersFull => DropReason::SubscribersFull,
            Refusal::TcpMidstream => DropReason::TcpMidstream,
            Refusal::IcmpUnasked => DropReason::IcmpUnasked,
            Refusal::NoExternalAddress => DropReason::NoExternalAddress,
            Refusal::Contended => DropReason::Contended,
        }
    }
}
