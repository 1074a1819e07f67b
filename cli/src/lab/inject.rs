//! Frames that no kernel would send: forged, unsolicited, or straight to an inner address.

use std::io::{self, Write};
use std::net::SocketAddrV4;

use etherparse::PacketBuilder;
use nix::sys::socket::LinkAddr;
use socket2::Socket;

use super::capture::packet_socket;
use super::error::LabError;
use super::netns::Namespace;

/// What a forged packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A UDP datagram with a few bytes.
    Udp,
    /// The first packet of a TCP connection.
    TcpSyn,
    /// A packet that claims to belong to a TCP connection.
    TcpData,
}

/// Sends frames out of one interface to one neighbour.
#[derive(Debug)]
pub struct Injector {
    socket: Socket,
    source: [u8; 6],
    destination: [u8; 6],
}

impl Injector {
    /// Opens an interface for sending to the neighbour with this Ethernet address.
    ///
    /// # Errors
    /// No such interface, or no privilege.
    pub fn open(from: &Namespace, link: &str, to: [u8; 6]) -> Result<Injector, LabError> {
        let address: LinkAddr = from.link_address(link)?;
        let socket = from
            .run(|| packet_socket(&address, 0))
            .map_err(LabError::system(format!(
                "opening {link} in {}",
                from.name()
            )))?;
        Ok(Injector {
            socket,
            source: address.addr().unwrap_or_default(),
            destination: to,
        })
    }

    /// Sends one packet with right checksums.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn send(&self, kind: Kind, source: SocketAddrV4, to: SocketAddrV4) -> io::Result<()> {
        const TTL: u8 = 64;
        let ip = PacketBuilder::ethernet2(self.source, self.destination).ipv4(
            source.ip().octets(),
            to.ip().octets(),
            TTL,
        );
        let payload = b"from a stranger";
        let mut frame = Vec::new();
        let window = 64_000;
        let written = match kind {
            Kind::Udp => ip.udp(source.port(), to.port()).write(&mut frame, payload),
            Kind::TcpSyn => ip
                .tcp(source.port(), to.port(), 1, window)
                .syn()
                .write(&mut frame, &[]),
            Kind::TcpData => ip
                .tcp(source.port(), to.port(), 1, window)
                .ack(1)
                .write(&mut frame, payload),
        };
        written.map_err(io::Error::other)?;
        (&self.socket).write_all(&frame)
    }
}
