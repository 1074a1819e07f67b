//! Builds valid frames for tests, fuzzing and the demo. Not for the packet path: it allocates.

use std::net::Ipv4Addr;

use super::{checksum, ethernet, icmp, ipv4, tcp, udp};

/// Everything below the transport header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Ethernet destination.
    pub destination_mac: [u8; 6],
    /// Ethernet source.
    pub source_mac: [u8; 6],
    /// IPv4 source.
    pub source: Ipv4Addr,
    /// IPv4 destination.
    pub destination: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// DS field and ECN.
    pub dscp_ecn: u8,
    /// Identification.
    pub identification: u16,
    /// Flags and fragment offset as on the wire, see [`ipv4::FLAGS_OFFSET`].
    pub flags_offset: u16,
    /// IPv4 options; at most 40 bytes are used, padded with zeros to a multiple of 4.
    pub options: Vec<u8>,
}

impl Envelope {
    /// TTL 64, identification 1, DF clear, no options, locally administered Ethernet addresses.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Envelope {
        Envelope {
            destination_mac: [2, 0, 0, 0, 0, 2],
            source_mac: [2, 0, 0, 0, 0, 1],
            source,
            destination,
            ttl: 64,
            dscp_ecn: 0,
            identification: 1,
            flags_offset: 0,
            options: Vec::new(),
        }
    }

    /// A frame of any IPv4 protocol around a payload of at most 65,475 bytes.
    pub fn frame(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut options = self.options.clone();
        options.truncate(ipv4::HEADER_LEN_MAX - ipv4::HEADER_LEN);
        options.resize(options.len().next_multiple_of(4), ipv4::OPTION_END);
        let header_len = ipv4::HEADER_LEN + options.len();

        let mut frame = vec![0; ethernet::HEADER_LEN + ipv4::HEADER_LEN];
        ethernet::write(
            &mut frame,
            self.destination_mac,
            self.source_mac,
            Some(ethernet::TYPE_IPV4),
        );
        if let Some(mut header) = ipv4::HeaderMut::new(&mut frame[ethernet::HEADER_LEN..]) {
            header.set_header_len(header_len);
            header.set_dscp_ecn(self.dscp_ecn);
            header.set_total_len((header_len + payload.len()) as u16);
            header.set_identification(self.identification);
            header.set_flags_offset(self.flags_offset);
            header.set_ttl(self.ttl);
            header.set_protocol(protocol);
            header.set_source(self.source);
            header.set_destination(self.destination);
        }
        frame.extend(options);
        let checksum = !checksum::sum(&frame[ethernet::HEADER_LEN..]);
        put(&mut frame, ethernet::HEADER_LEN + ipv4::CHECKSUM, checksum);
        frame.extend(payload);
        frame
    }

    /// A UDP datagram.
    pub fn udp(&self, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
        self.frame(
            17,
            &self.udp_datagram(source_port, destination_port, payload),
        )
    }

    /// The UDP datagram of [`Envelope::udp`] without its frame, to be cut into fragments.
    pub fn udp_datagram(&self, source_port: u16, destination_port: u16, data: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; udp::HEADER_LEN];
        put(&mut datagram, udp::SOURCE_PORT, source_port);
        put(&mut datagram, udp::DESTINATION_PORT, destination_port);
        put(
            &mut datagram,
            udp::LEN,
            (udp::HEADER_LEN + data.len()) as u16,
        );
        datagram.extend(data);
        let checksum = checksum::never_zero(self.transport_checksum(17, &datagram));
        put(&mut datagram, udp::CHECKSUM, checksum);
        datagram
    }

    /// A TCP segment with the given [`tcp`] flags, sequence number 1, acknowledgement number 2 and
    /// no options.
    pub fn tcp(&self, source_port: u16, destination_port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; tcp::HEADER_LEN];
        put(&mut segment, tcp::SOURCE_PORT, source_port);
        put(&mut segment, tcp::DESTINATION_PORT, destination_port);
        segment[7] = 1;
        segment[11] = 2;
        segment[tcp::DATA_OFFSET] = 5 << 4;
        segment[tcp::FLAGS] = flags;
        segment[14] = 0x20;
        segment.extend(data);
        let checksum = self.transport_checksum(6, &segment);
        put(&mut segment, tcp::CHECKSUM, checksum);
        self.frame(6, &segment)
    }

    /// An ICMP message; `rest` is its second 32-bit word, such as identifier and sequence number.
    pub fn icmp(&self, icmp_type: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
        let mut message = vec![icmp_type, code, 0, 0];
        message.extend(rest);
        message.extend(data);
        let checksum = !checksum::sum(&message);
        put(&mut message, icmp::CHECKSUM, checksum);
        self.frame(1, &message)
    }

    /// An ICMP echo request, sequence number 1.
    pub fn echo_request(&self, identifier: u16, data: &[u8]) -> Vec<u8> {
        let [high, low] = identifier.to_be_bytes();
        self.icmp(icmp::ECHO_REQUEST, 0, [high, low, 0, 1], data)
    }

    /// An ICMP echo reply, sequence number 1.
    pub fn echo_reply(&self, identifier: u16, data: &[u8]) -> Vec<u8> {
        let [high, low] = identifier.to_be_bytes();
        self.icmp(icmp::ECHO_REPLY, 0, [high, low, 0, 1], data)
    }

    /// An ICMP error about the packet in the frame `about`, quoting at most `quote_max` bytes of
    /// it.
    pub fn icmp_error(&self, icmp_type: u8, code: u8, about: &[u8], quote_max: usize) -> Vec<u8> {
        let packet = about.get(ethernet::HEADER_LEN..).unwrap_or_default();
        self.icmp(
            icmp_type,
            code,
            [0; 4],
            &packet[..packet.len().min(quote_max)],
        )
    }

    /// The checksum of a TCP or UDP message whose checksum field is zero.
    fn transport_checksum(&self, protocol: u8, message: &[u8]) -> u16 {
        let len = message.len() as u16;
        let pseudo = checksum::pseudo_header(self.source, self.destination, protocol, len);
        !checksum::fold(pseudo + u64::from(checksum::sum(message)))
    }
}

/// Writes a big-endian word.
fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    fn envelope() -> Envelope {
        Envelope::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 9))
    }

    #[test]
    fn another_parser_finds_every_checksum_right() {
        let mut with_options = envelope();
        with_options.options = vec![7, 3, 4];
        for envelope in [envelope(), with_options] {
            for frame in [
                envelope.udp(1000, 53, b"odd"),
                envelope.tcp(1000, 80, tcp::SYN, b""),
                envelope.echo_request(7, b"abc"),
            ] {
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                let ipv4 = sliced
                    .net
                    .as_ref()
                    .unwrap()
                    .ipv4_ref()
                    .unwrap()
                    .header()
                    .to_header();
                assert_eq!(ipv4.calc_header_checksum(), ipv4.header_checksum);
                match sliced.transport.unwrap() {
                    TransportSlice::Udp(udp) => {
                        let header = udp.to_header();
                        let checksum = header.calc_checksum_ipv4(&ipv4, udp.payload()).unwrap();
                        assert_eq!(checksum, header.checksum);
                    }
                    TransportSlice::Tcp(tcp) => {
                        let header = tcp.to_header();
                        let checksum = header.calc_checksum_ipv4(&ipv4, tcp.payload()).unwrap();
                        assert_eq!(checksum, header.checksum);
                    }
                    TransportSlice::Icmpv4(icmp) => {
                        let icmp_type = icmp.icmp_type();
                        assert_eq!(icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
