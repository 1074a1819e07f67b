//! Endpoints and tuples: who talks to whom, as on the wire in one direction.

use std::fmt;
use std::net::Ipv4Addr;

/// A transport protocol that Egret translates. The value is the IPv4 protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// ICMP queries; the query identifier stands in for the port (RFC 5508).
    Icmp = 1,
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

impl Protocol {
    /// All protocols, in the order of [`Protocol::index`].
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

    /// A dense number: TCP 0, UDP 1, ICMP 2. The ownership bitmap is laid out by it.
    pub const fn index(self) -> usize {
        match self {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Icmp => 2,
        }
    }

    /// The IPv4 protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmp => 1,
        }
    }

    /// The protocol with this IPv4 protocol number, if Egret translates it.
    pub const fn from_number(number: u8) -> Option<Protocol> {
        match number {
            1 => Some(Protocol::Icmp),
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Icmp => "icmp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// An address and a port. For an ICMP query the identifier stands in for the port of the side
/// that asks; the other side's port is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// IPv4 address.
    pub addr: Ipv4Addr,
    /// Port, or ICMP query identifier.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint from its two parts.
    pub const fn new(addr: Ipv4Addr, port: u16) -> Endpoint {
        Endpoint { addr, port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.addr, self.port)
    }
}

/// Protocol, source endpoint and destination endpoint of a packet as on the wire.
///
/// ICMP queries: a request is `source.port = identifier, destination.port = 0`; a reply is
/// `source.port = 0, destination.port = identifier`. So a reply's tuple is its request's, reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Sender.
    pub source: Endpoint,
    /// Receiver.
    pub destination: Endpoint,
}

impl Tuple {
    /// The tuple of a packet that answers this one.
    pub const fn reversed(&self) -> Tuple {
        Tuple {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} -> {}",
            self.protocol, self.source, self.destination
        )
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_their_numbers_and_names() {
        for (protocol, number, name) in [
            (Protocol::Icmp, 1, "icmp"),
            (Protocol::Tcp, 6, "tcp"),
            (Protocol::Udp, 17, "udp"),
        ] {
            assert_eq!(protocol.number(), number);
            assert_eq!(Protocol::from_number(number), Some(protocol));
            assert_eq!(protocol.to_string(), name);
            assert_eq!(Protocol::ALL[protocol.index()], protocol);
        }
        let known = (0..=255).filter(|&number| Protocol::from_number(number).is_some());
        assert_eq!(known.count(), 3);
    }

    #[test]
    fn a_tuple_and_its_answer() {
        let tuple = Tuple {
            protocol: Protocol::Tcp,
            source: Endpoint::new([10, 0, 0, 1].into(), 5000),
            destination: Endpoint::new([203, 0, 113, 1].into(), 80),
        };
        assert_eq!(tuple.to_string(), "tcp 10.0.0.1:5000 -> 203.0.113.1:80");
        let answer = tuple.reversed();
        assert_eq!(answer.to_string(), "tcp 203.0.113.1:80 -> 10.0.0.1:5000");
        assert_eq!(answer.reversed(), tuple);
    }
}
