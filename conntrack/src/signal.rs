//! What a packet means to a session, and from which side it came.

/// What a packet means to a session. The parser derives it; the state machine sees nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// TCP SYN without ACK: opens a connection.
    TcpSyn,
    /// TCP SYN with ACK: the answer of the side that was called.
    TcpSynAck,
    /// TCP FIN (and no RST).
    TcpFin,
    /// TCP RST.
    TcpRst,
    /// Any other TCP segment.
    TcpData,
    /// A UDP datagram.
    Udp,
    /// An ICMP query that asks (echo request, timestamp request).
    IcmpQuery,
    /// An ICMP query's reply (echo reply, timestamp reply).
    IcmpReply,
}

/// The side of the gateway a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Realm {
    /// The private side: the packet's source is in an internal prefix.
    Internal,
    /// The public side.
    External,
}
