//! ICMP as a host sees it: echo, and the errors that come back with the packet they are about.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::Namespace;

/// One ICMP message that a host received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub source: Ipv4Addr,
    /// What it says.
    pub kind: Icmpv4Type,
    /// Is the ICMP checksum right?
    pub checksum_right: bool,
    /// For an error: the endpoints of the packet it is about, as the message carries them.
    pub about: Option<(SocketAddrV4, SocketAddrV4)>,
    /// What follows the ICMP header.
    pub payload: Vec<u8>,
}

impl Message {
    /// Reads an IPv4 packet.
    fn parse(packet: &[u8]) -> Option<Message> {
        let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
        let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
        let kind = icmp.icmp_type();
        let error = matches!(
            kind,
            Icmpv4Type::DestinationUnreachable(_) | Icmpv4Type::TimeExceeded(_)
        );
        Some(Message {
            source: ip.source_addr(),
            checksum_right: kind.calc_checksum(icmp.payload()) == icmp.checksum(),
            about: if error {
                embedded(icmp.payload())
            } else {
                None
            },
            payload: icmp.payload().to_vec(),
            kind,
        })
    }

    /// The MTU in a "fragmentation needed" message.
    pub fn next_hop_mtu(&self) -> Option<u16> {
        match self.kind {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            }) => Some(next_hop_mtu),
            _ => None,
        }
    }

    /// The identifier and sequence number of an echo request.
    pub fn echo_request(&self) -> Option<(u16, u16)> {
        match self.kind {
            Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq }) => Some((id, seq)),
            _ => None,
        }
    }
}

/// The endpoints of the packet that an error embeds; ports 0 if it is neither TCP nor UDP.
fn embedded(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let transport = packet.get(ip.slice().len()..)?;
    let has_ports = matches!(
        ip.protocol(),
        etherparse::IpNumber::TCP | etherparse::IpNumber::UDP
    );
    let ports = match transport {
        [a, b, c, d, ..] if has_ports => {
            [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])]
        }
        _ => [0, 0],
    };
    Some((
        SocketAddrV4::new(ip.source_addr(), ports[0]),
        SocketAddrV4::new(ip.destination_addr(), ports[1]),
    ))
}

/// A raw ICMP socket of one host: it sees every ICMP message that reaches the host.
#[derive(Debug)]
pub struct IcmpSocket {
    socket: Socket,
}

impl IcmpSocket {
    /// Opens one in a namespace.
    ///
    /// # Errors
    /// No privilege.
    pub fn open(namespace: &Namespace) -> io::Result<IcmpSocket> {
        let socket =
            namespace.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))?;
        Ok(IcmpSocket { socket })
    }

    /// Sends an echo request.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn send_echo(&self, to: Ipv4Addr, id: u16, seq: u16, payload: &[u8]) -> io::Result<()> {
        let kind = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq });
        let mut message = Icmpv4Header::with_checksum(kind, payload)
            .to_bytes()
            .to_vec();
        message.extend_from_slice(payload);
        self.socket
            .send_to(&message, &SocketAddrV4::new(to, 0).into())
            .map(drop)
    }

    /// The next message within `limit` that the condition accepts; others are dropped.
    ///
    /// # Errors
    /// None came.
    pub fn receive(
        &self,
        limit: Duration,
        mut accept: impl FnMut(&Message) -> bool,
    ) -> io::Result<Message> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = (&self.socket).read(&mut buffer)?;
            if let Some(message) = Message::parse(&buffer[..length]).filter(|m| accept(m)) {
                return Ok(message);
            }
        }
    }

    /// Everything that has come until now.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn take(&self) -> io::Result<Vec<Message>> {
        self.socket.set_nonblocking(true)?;
        let mut buffer = vec![0; 65_536];
        let mut messages = Vec::new();
        while let Ok(length) = (&self.socket).read(&mut buffer) {
            messages.extend(Message::parse(&buffer[..length]));
        }
        self.socket.set_nonblocking(false)?;
        Ok(messages)
    }

    /// Asks for an echo, up to `tries` times with a wait of `limit` each, and checks it whole.
    ///
    /// # Errors
    /// No right answer to any.
    pub fn ping(
        &self,
        to: Ipv4Addr,
        id: u16,
        seq: u16,
        payload: &[u8],
        tries: u32,
        limit: Duration,
    ) -> io::Result<()> {
        let reply = Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq });
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..tries {
            self.send_echo(to, id, seq, payload)?;
            let right = |message: &Message| {
                message.source == to
                    && message.kind == reply
                    && message.checksum_right
                    && message.payload == payload
            };
            match self.receive(limit, right) {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_which_packet_it_is_about() {
        let (client, server) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(192, 0, 2, 9));
        let mut inner = Vec::new();
        etherparse::PacketBuilder::ipv4(client.octets(), server.octets(), 1)
            .udp(4000, 33_434)
            .write(&mut inner, b"probe")
            .expect("writing into memory");
        let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: 1280,
        });
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4(server.octets(), client.octets(), 64)
            .icmpv4(kind)
            .write(&mut packet, &inner)
            .expect("writing into memory");
        let message = Message::parse(&packet).expect("an ICMP message");
        assert_eq!(message.next_hop_mtu(), Some(1280));
        assert!(message.checksum_right);
        let endpoints = (
            SocketAddrV4::new(client, 4000),
            SocketAddrV4::new(server, 33_434),
        );
        assert_eq!(message.about, Some(endpoints));
        let last = packet.len() - 1;
        packet[last] ^= 1;
        assert!(!Message::parse(&packet).expect("still ICMP").checksum_right);
    }
}
