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

impl Signal {
    /// Does it carry the sender's first sequence number?
    #[inline(always)]
    pub(crate) fn is_syn(self) -> bool {
        matches!(self, Signal::TcpSyn | Signal::TcpSynAck)
    }
}

/// What conntrack is told of a packet beside its tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFacts {
    /// What it means.
    pub signal: Signal,
    /// Bytes to count.
    pub length: u32,
    /// TCP's sequence number; 0 for other protocols, and where it is not known.
    pub sequence: u32,
    /// TCP's acknowledgement number; 0 without ACK, and as above.
    pub acknowledgement: u32,
}

impl PacketFacts {
    /// The part of the sequence number that a half keeps.
    #[inline(always)]
    pub(crate) fn sequence_high(&self) -> u16 {
        (self.sequence >> 16) as u16
    }

    /// Does it acknowledge a SYN of which a half kept this part of the number, and at most 64 KiB
    /// after it? Blindly, in one of 32,768 cases.
    pub(crate) fn acknowledges(&self, sequence_high: u16) -> bool {
        let last = (self.acknowledgement.wrapping_sub(1) >> 16) as u16;
        last.wrapping_sub(sequence_high) <= 1
    }
}

/// The side of the gateway a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Realm {
    /// The private side: the packet's source is in an internal prefix.
    Internal,
    /// The public side.
    External,
}
