//! What is sent: flows, pace, and the same frame that the generator's program writes.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::choice::Flows;

/// First internal address that flows come from; 64 endpoints share one.
pub const INTERNAL_BASE: Ipv4Addr = Ipv4Addr::new(10, 77, 16, 0);
/// First remote address. The one before it is that of the second kind.
pub const REMOTE_BASE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Destination port of the first kind of frames.
const PORT: u16 = 9000;
/// Bytes of a frame: 64 with the checksum that a wire would add.
pub const FRAME_BYTES: usize = 60;
const IP_BYTES: u16 = 46;
const UDP_BYTES: u16 = 26;

/// A set of flows: internal endpoints times remote addresses, both powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSet {
    /// Internal endpoints are `1 << endpoint_bits`.
    pub endpoint_bits: u32,
    /// Flows are `1 << flow_bits`.
    pub flow_bits: u32,
}

impl FlowSet {
    /// More flows than a run can send packets: each packet is a new one. No remote endpoint has
    /// more than 32,768 of them.
    pub const ENDLESS: FlowSet = FlowSet {
        endpoint_bits: 15,
        flow_bits: 25,
    };

    /// How many flows there are.
    pub fn count(self) -> u64 {
        1 << self.flow_bits
    }

    /// Internal endpoint and remote of frame `number`: the numbers below [`FlowSet::count`] meet each flow once,
    /// in an order without a pattern.
    pub fn flow(self, number: u64) -> (u64, u64) {
        let flow = shuffled(number, self.flow_bits);
        (
            flow & ((1 << self.endpoint_bits) - 1),
            flow >> self.endpoint_bits,
        )
    }
}

impl From<Flows> for FlowSet {
    fn from(flows: Flows) -> FlowSet {
        let (endpoint_bits, flow_bits) = match flows {
            Flows::Thousand => (8, 10),
            Flows::Thousands64 => (14, 16),
            Flows::Million => (15, 20),
        };
        FlowSet {
            endpoint_bits,
            flow_bits,
        }
    }
}

/// All numbers below `1 << bits`, each once.
fn shuffled(number: u64, bits: u32) -> u64 {
    let mask = (1 << bits) - 1;
    let mixed = number.wrapping_mul(0x9e37_79b1) & mask;
    let mixed = mixed ^ mixed >> (bits / 2 + 1);
    mixed.wrapping_mul(0x85eb_ca6b) & mask
}

/// Address and port of an internal endpoint.
pub fn endpoint(number: u64) -> (Ipv4Addr, u16) {
    let address = number / 64;
    let shift = (address as u32).wrapping_mul(0x9e37_79b1) >> 8;
    let port = 32_768 + (number % 64) * 441 + u64::from(shift % 441);
    (
        Ipv4Addr::from_bits(INTERNAL_BASE.to_bits() + address as u32),
        port as u16,
    )
}

/// One run of the generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// The flows.
    pub flows: FlowSet,
    /// Every second frame is of the second kind: from this many endpoints (a power of two, given by
    /// its exponent) to one remote endpoint.
    pub second_bits: Option<u32>,
    /// Packets a second; `None`: as many as it can.
    pub pace: Option<f64>,
    /// Frames that are handed over together, as by a network card that waits a little before it
    /// interrupts; 1 to 64.
    pub burst: u32,
    /// How long it sends.
    pub duration: Duration,
    /// Number of the first frame.
    pub first: u64,
}

impl Load {
    /// As much as the generator can, over these flows.
    pub fn full(flows: FlowSet, duration: Duration) -> Load {
        Load {
            flows,
            second_bits: None,
            pace: None,
            burst: 64,
            duration,
            first: 0,
        }
    }

    /// `pace` packets a second.
    pub fn paced(flows: FlowSet, pace: f64, duration: Duration) -> Load {
        Load {
            pace: Some(pace),
            burst: 32,
            ..Load::full(flows, duration)
        }
    }
}

/// Frame `number` of the first kind, with right checksums.
pub fn write_frame(frame: &mut [u8; FRAME_BYTES], macs: [[u8; 6]; 2], flows: FlowSet, number: u64) {
    let (internal, remote) = flows.flow(number);
    let (from, port) = endpoint(internal);
    let to = Ipv4Addr::from_bits(REMOTE_BASE.to_bits() + remote as u32);
    let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &macs[0]);
    put(6, &macs[1]);
    put(12, &[0x08, 0x00, 0x45, 0]);
    put(16, &IP_BYTES.to_be_bytes());
    put(18, &[0, 0, 0x40, 0, 64, 17, 0, 0]);
    put(26, &from.octets());
    put(30, &to.octets());
    put(34, &port.to_be_bytes());
    put(36, &PORT.to_be_bytes());
    put(38, &UDP_BYTES.to_be_bytes());
    put(40, &[0; 20]);
    let header = !folded(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    let pseudo = sum(&frame[26..34]) + 17 + u32::from(UDP_BYTES);
    let checksum = match !folded(pseudo + sum(&frame[34..])) {
        0 => 0xffff,
        checksum => checksum,
    };
    frame[40..42].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum()
}

fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_flow_comes_once_a_turn() {
        for flows in [Flows::Thousand, Flows::Thousands64].map(FlowSet::from) {
            let seen: HashSet<_> = (0..flows.count()).map(|n| flows.flow(n)).collect();
            assert_eq!(seen.len() as u64, flows.count());
            assert_eq!(flows.flow(3), flows.flow(3 + flows.count()));
        }
    }

    #[test]
    fn endpoints_differ_and_have_ephemeral_ports() {
        let all: HashSet<_> = (0..32_768).map(endpoint).collect();
        assert_eq!(all.len(), 32_768);
        assert!(all.iter().all(|(_, port)| (32_768..60_999).contains(port)));
        assert_eq!(endpoint(64).0, Ipv4Addr::new(10, 77, 16, 1));
    }

    #[test]
    fn no_destination_has_more_flows_than_an_address_has_ports() {
        let sets = Flows::ALL.map(FlowSet::from);
        assert!(sets.iter().all(|set| 1u32 << set.endpoint_bits <= 32_768));
        assert_eq!(sets.map(FlowSet::count), [1024, 65_536, 1_048_576]);
        assert_eq!(1 << FlowSet::ENDLESS.endpoint_bits, 32_768);
    }

    #[test]
    fn frames_are_right() {
        let mut frame = [0xff; FRAME_BYTES];
        for number in 0..2000 {
            let flows = Flows::Thousands64.into();
            write_frame(&mut frame, [[1; 6], [2; 6]], flows, number);
            let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else {
                panic!("not IPv4");
            };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else {
                panic!("not UDP");
            };
            let (source, to) = (header.source, header.destination);
            let right = udp
                .to_header()
                .calc_checksum_ipv4_raw(source, to, udp.payload());
            assert_eq!(udp.checksum(), right.unwrap());
            assert_eq!(
                (udp.source_port(), udp.destination_port()),
                (
                    endpoint(FlowSet::from(Flows::Thousands64).flow(number).0).1,
                    PORT
                )
            );
        }
    }
}
