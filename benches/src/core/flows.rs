//! The flows of a run: so many internal endpoints, each to so many remotes, and their frames.

use std::net::Ipv4Addr;

use conntrack::{Endpoint, Protocol, Tuple};
use engine::wire::{checksum, ethernet, ipv4, udp};

/// Bytes of a frame: 64 on the wire, of which the last four are Ethernet's checksum.
pub const FRAME_BYTES: usize = 60;

/// Offset of the IPv4 header.
const IP: usize = ethernet::HEADER_LEN;
/// Offset of the UDP header.
const UDP: usize = IP + ipv4::HEADER_LEN;
/// Internal endpoints of one internal address.
const ENDPOINTS_PER_ADDRESS: u32 = 64;
/// Where the ports of internal endpoints begin, and how many there are: what Linux gives to clients.
const CLIENT_PORTS: (u32, u32) = (32_768, 28_224);

/// How many flows there are, and between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    /// Internal endpoints.
    pub internal: u32,
    /// Remote endpoints; each internal endpoint sends to all of them.
    pub remotes: u32,
}

impl Flows {
    /// The sizes of a run, by [`Flows::label`]: 1k, 64k, 1M, 4M.
    pub const SIZES: [Flows; 4] = [
        Flows::of(1 << 10, 1),
        Flows::of(1 << 14, 4),
        Flows::of(1 << 15, 32),
        Flows::of(1 << 17, 32),
    ];

    const fn of(internal: u32, remotes: u32) -> Flows {
        Flows { internal, remotes }
    }

    /// How many.
    pub const fn count(self) -> u32 {
        self.internal * self.remotes
    }

    /// The short way to write the count: `64k`, `1M`.
    pub fn label(self) -> String {
        match self.count() {
            count if count >= 1 << 20 => format!("{}M", count >> 20),
            count => format!("{}k", count >> 10),
        }
    }

    /// Flow number `number`, below the count, as its internal endpoint sends it.
    pub fn outbound(self, number: u32) -> Tuple {
        let (internal, remote) = (number % self.internal, number / self.internal);
        let addr = |base: u32, low: u32| Ipv4Addr::from_bits(base + low);
        let (first_port, ports) = CLIENT_PORTS;
        // Each address has its own, all over the range.
        let port = internal % ENDPOINTS_PER_ADDRESS * (ports / ENDPOINTS_PER_ADDRESS)
            + (internal / ENDPOINTS_PER_ADDRESS).wrapping_mul(0x9e37_79b1) % ports;
        Tuple {
            protocol: Protocol::Udp,
            source: Endpoint::new(
                addr(0x0a4d_0002, internal / ENDPOINTS_PER_ADDRESS),
                (first_port + port % ports) as u16,
            ),
            destination: Endpoint::new(addr(0xcb00_7100, remote % 256), 5000 + remote as u16 / 256),
        }
    }
}

/// Writes frames of 64-byte UDP datagrams with right checksums.
#[derive(Clone, Debug)]
pub struct FrameWriter {
    template: [u8; FRAME_BYTES],
    ip_sum: u64,
    udp_sum: u64,
}

impl FrameWriter {
    /// Frames to this MAC; `dont_fragment`: with DF set, as Linux sends UDP.
    pub fn new(destination_mac: [u8; 6], dont_fragment: bool) -> FrameWriter {
        let mut template = [0x42; FRAME_BYTES];
        let source_mac = [2, 0, 0, 0, 0, 9];
        ethernet::write(
            &mut template,
            destination_mac,
            source_mac,
            Some(ethernet::TYPE_IPV4),
        );
        let total_len = (FRAME_BYTES - IP) as u16;
        let udp_len = (FRAME_BYTES - UDP) as u16;
        template[IP..UDP].fill(0);
        if let Some(mut header) = ipv4::HeaderMut::new(&mut template[IP..]) {
            header.set_header_len(ipv4::HEADER_LEN);
            header.set_total_len(total_len);
            header.set_flags_offset(if dont_fragment {
                ipv4::DONT_FRAGMENT
            } else {
                0
            });
            header.set_ttl(64);
            header.set_protocol(Protocol::Udp.number());
        }
        template[UDP..UDP + udp::HEADER_LEN].fill(0);
        put16(&mut template, UDP + udp::LEN, udp_len);
        let none = Ipv4Addr::UNSPECIFIED;
        let pseudo = checksum::pseudo_header(none, none, Protocol::Udp.number(), udp_len);
        FrameWriter {
            ip_sum: u64::from(checksum::sum(&template[IP..UDP])),
            udp_sum: u64::from(checksum::sum(&template[UDP..])) + pseudo,
            template,
        }
    }

    /// Writes the frame of a tuple to the start of `bytes`, which has room for it.
    pub fn write(&self, bytes: &mut [u8], tuple: &Tuple) {
        let frame = &mut bytes[..FRAME_BYTES];
        frame.copy_from_slice(&self.template);
        let (source, destination) = (tuple.source, tuple.destination);
        let addresses = u64::from(source.addr.to_bits()) + u64::from(destination.addr.to_bits());
        let ports = u64::from(source.port) + u64::from(destination.port);
        let ip = !checksum::fold(self.ip_sum + addresses);
        let udp = checksum::never_zero(!checksum::fold(self.udp_sum + addresses + ports));
        put16(frame, IP + ipv4::CHECKSUM, ip);
        frame[IP + ipv4::SOURCE..][..4].copy_from_slice(&source.addr.octets());
        frame[IP + ipv4::DESTINATION..][..4].copy_from_slice(&destination.addr.octets());
        put16(frame, UDP + udp::SOURCE_PORT, source.port);
        put16(frame, UDP + udp::DESTINATION_PORT, destination.port);
        put16(frame, UDP + udp::CHECKSUM, udp);
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::packet::{self, Body};
    use std::collections::HashSet;

    #[test]
    fn flows_are_distinct() {
        let flows = Flows {
            internal: 200,
            remotes: 300,
        };
        let tuples: HashSet<Tuple> = (0..flows.count()).map(|n| flows.outbound(n)).collect();
        assert_eq!(tuples.len(), 60_000);
    }

    #[test]
    fn frames_are_what_the_parser_expects() {
        let flows = Flows {
            internal: 200,
            remotes: 3,
        };
        for dont_fragment in [false, true] {
            let writer = FrameWriter::new([2, 0, 0, 0, 0, 1], dont_fragment);
            let mut frame = [0; FRAME_BYTES];
            let tuple = flows.outbound(577);
            writer.write(&mut frame, &tuple);
            let parsed = packet::parse(&frame).unwrap();
            assert!(matches!(parsed.body, Body::Flow { tuple: found, .. } if found == tuple));
            assert_eq!(parsed.ipv4.dont_fragment, dont_fragment);
            assert_eq!(engine::world::transport_is_right(&frame), Some(true));
        }
    }
}
