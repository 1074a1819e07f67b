//! What the kernel leaves to whoever sends a packet: its checksum, and cutting it into segments. The
//! tun driver tells it in a header before each frame (`struct virtio_net_hdr`), and is told it.

use conntrack::Protocol;

use crate::packet::{Body, Packet};
use crate::wire::{ethernet, ipv4, tcp, udp};

/// Bytes of the header before a frame.
pub const VIRTIO_HEADER_LEN: usize = 10;

/// Bits of the header's flags (linux/virtio_net.h).
const NEEDS_CSUM: u8 = 1;
/// Data that a packet has room for at least, bytes.
const ROOM_MIN: usize = 8;
/// Kinds of super-packets.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
/// Bit beside the kind: the first segment alone has TCP's CWR.
const GSO_ECN: u8 = 0x80;

/// What is known of a TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it may be partial, and only its value shows.
    #[default]
    Unknown,
    /// It is as its sender made it.
    Whole,
    /// It is the sum of the pseudo-header, not complemented; the sender's rest is to be added.
    Partial {
        /// Offset in the frame of the first byte that it covers: the transport header's.
        start: u16,
        /// Offset of the checksum from there.
        at: u16,
    },
}

/// The protocol of a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// One stretch of a TCP stream.
    Tcp {
        /// Only the first segment keeps CWR (RFC 3168).
        ecn: bool,
    },
    /// Datagrams of one flow, each with a header of its own in the end.
    Udp,
}

/// A super-packet: several packets of one flow that share their headers until they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Its protocol.
    pub kind: SegmentKind,
    /// Bytes of the frame's headers, from Ethernet's to TCP's or UDP's.
    pub headers_len: u16,
    /// Payload bytes of each packet; the last one may have fewer.
    pub payload_len: u16,
}

impl Segments {
    /// Bytes of the longest IP packet that it becomes.
    pub fn packet_len(&self) -> usize {
        usize::from(self.headers_len) - ethernet::HEADER_LEN + usize::from(self.payload_len)
    }

    /// How many packets a frame of so many bytes becomes; at least 1.
    pub fn packets(&self, frame_len: usize) -> u16 {
        let payload_len = frame_len.saturating_sub(self.headers_len.into());
        let packets = payload_len.div_ceil(usize::from(self.payload_len).max(1));
        u16::try_from(packets).unwrap_or(u16::MAX).max(1)
    }

    /// The same cut into packets that fit an MTU, as only a TCP stream can be; none if that leaves
    /// hardly room for data.
    pub fn fitting(self, mtu: u16) -> Option<Segments> {
        let headers_len = usize::from(self.headers_len) - ethernet::HEADER_LEN;
        let room = usize::from(mtu).checked_sub(headers_len)?;
        let SegmentKind::Tcp { .. } = self.kind else {
            return None;
        };
        (room >= ROOM_MIN).then(|| Segments {
            payload_len: self.payload_len.min(room as u16),
            ..self
        })
    }
}

/// What is still to be done for a frame's packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum.
    pub checksum: Checksum,
    /// How it is to be cut, if it is several packets.
    pub segments: Option<Segments>,
}

/// A header that is no description of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

impl Offload {
    /// Nothing is known to be left.
    pub const NONE: Offload = Offload {
        checksum: Checksum::Unknown,
        segments: None,
    };
    /// Nothing is left, as the kernel says.
    pub const WHOLE: Offload = Offload {
        checksum: Checksum::Whole,
        segments: None,
    };

    /// Is something left that the packet's sender has to do?
    #[inline]
    pub fn is_pending(&self) -> bool {
        matches!(self.checksum, Checksum::Partial { .. }) || self.segments.is_some()
    }

    /// How many packets a frame of so many bytes becomes by a link of this MTU; those that are cut for
    /// it count as one.
    pub fn packets(&self, frame_len: usize, mtu: u16) -> u16 {
        let resized = |segments: Segments| segments.fitting(mtu).unwrap_or(segments);
        self.segments
            .map_or(1, |segments| resized(segments).packets(frame_len))
    }

    /// Does it speak of this packet? Who sent the frame may have written anything (a guest, or a packet
    /// socket with such headers): a sum that the kernel puts elsewhere would change what was
    /// translated.
    pub fn fits(&self, packet: &Packet) -> bool {
        let Checksum::Partial { start, at } = self.checksum else {
            return true;
        };
        let (Body::Flow { tuple, .. }, None) = (&packet.body, packet.fragment) else {
            return false;
        };
        let (field, kind) = match tuple.protocol {
            Protocol::Tcp => (tcp::CHECKSUM, true),
            Protocol::Udp => (udp::CHECKSUM, false),
            Protocol::Icmp => return false,
        };
        let is_tcp = |segments: Segments| matches!(segments.kind, SegmentKind::Tcp { .. });
        usize::from(start) == packet.l4
            && usize::from(at) == field
            && self
                .segments
                .is_none_or(|segments| is_tcp(segments) == kind)
    }

    /// Reads the header that came before `frame`.
    ///
    /// # Errors
    /// It does not fit the frame, or speaks of what was not agreed on.
    pub fn decode(header: &[u8; VIRTIO_HEADER_LEN], frame: &[u8]) -> Result<Offload, BadHeader> {
        let &[flags, kind, _, _, s0, s1, c0, c1, a0, a1] = header;
        if flags & NEEDS_CSUM == 0 {
            return match kind & !GSO_ECN {
                GSO_NONE => Ok(Offload::WHOLE),
                _ => Err(BadHeader),
            };
        }
        // Both ends are on one machine: its own byte order.
        let word = |low, high| u16::from_ne_bytes([low, high]);
        let (start, at) = (word(c0, c1), word(a0, a1));
        let field_end = usize::from(start) + usize::from(at) + 2;
        if field_end > frame.len() || usize::from(start) < ethernet::HEADER_LEN + ipv4::HEADER_LEN {
            return Err(BadHeader);
        }
        let kind = match kind & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentKind::Tcp {
                ecn: kind & GSO_ECN != 0,
            }),
            GSO_UDP_L4 => Some(SegmentKind::Udp),
            _ => return Err(BadHeader),
        };
        let segments = match kind {
            Some(kind) => Some(segments(kind, word(s0, s1), usize::from(start), frame)?),
            None => None,
        };
        Ok(Offload {
            checksum: Checksum::Partial { start, at },
            segments,
        })
    }

    /// Writes the header that goes before a frame.
    pub fn encode(&self, header: &mut [u8; VIRTIO_HEADER_LEN]) {
        header.fill(0);
        let Checksum::Partial { start, at } = self.checksum else {
            return;
        };
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&at.to_ne_bytes());
        let Some(segments) = self.segments else {
            return;
        };
        header[1] = match segments.kind {
            SegmentKind::Tcp { ecn: false } => GSO_TCPV4,
            SegmentKind::Tcp { ecn: true } => GSO_TCPV4 | GSO_ECN,
            SegmentKind::Udp => GSO_UDP_L4,
        };
        header[2..4].copy_from_slice(&segments.headers_len.to_ne_bytes());
        header[4..6].copy_from_slice(&segments.payload_len.to_ne_bytes());
    }
}

/// The kernel's own header length is that of the part of the packet that lies in one piece: the
/// headers' is found in the frame.
fn segments(
    kind: SegmentKind,
    payload_len: u16,
    start: usize,
    frame: &[u8],
) -> Result<Segments, BadHeader> {
    let transport = frame.get(start..).ok_or(BadHeader)?;
    let transport_len = match kind {
        SegmentKind::Tcp { .. } => tcp::Header::new(transport).ok_or(BadHeader)?.header_len(),
        SegmentKind::Udp => udp::HEADER_LEN,
    };
    let headers_len = start + transport_len;
    if payload_len == 0 || headers_len > frame.len() {
        return Err(BadHeader);
    }
    Ok(Segments {
        kind,
        headers_len: u16::try_from(headers_len).map_err(|_| BadHeader)?,
        payload_len,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::build::Envelope;

    fn frame() -> Vec<u8> {
        let envelope = Envelope::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 2));
        envelope.tcp(1000, 80, tcp::ACK, &[7; 4000])
    }

    /// A header as the kernel writes it: flags, kind, bytes in one piece, segment size, start, place.
    fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; VIRTIO_HEADER_LEN] {
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in words.into_iter().enumerate() {
            header[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        header
    }

    #[test]
    fn a_super_packet_keeps_its_description_but_for_the_length_of_the_headers() {
        for (kind, ecn) in [(GSO_TCPV4, false), (GSO_TCPV4 | GSO_ECN, true)] {
            let offload = Offload::decode(&header(1, kind, [300, 1448, 34, 16]), &frame()).unwrap();
            let segments = offload.segments.unwrap();
            assert_eq!(segments.kind, SegmentKind::Tcp { ecn });
            assert_eq!((segments.headers_len, segments.packet_len()), (54, 1488));
            let mut written = [0xff; VIRTIO_HEADER_LEN];
            offload.encode(&mut written);
            assert_eq!(written, header(1, kind, [54, 1448, 34, 16]));
        }
        let offload = Offload::decode(&header(1, GSO_UDP_L4, [42, 1200, 34, 6]), &frame()).unwrap();
        assert_eq!(offload.segments.unwrap().headers_len, 42);
    }

    #[test]
    fn what_is_whole_says_nothing() {
        // 2: the checksum was verified already.
        for flags in [0, 2] {
            let offload = Offload::decode(&header(flags, 0, [0; 4]), &frame()).unwrap();
            assert_eq!(offload, Offload::WHOLE);
            assert!(!offload.is_pending());
        }
        let mut written = [0xff; VIRTIO_HEADER_LEN];
        Offload::NONE.encode(&mut written);
        assert_eq!(written, [0; VIRTIO_HEADER_LEN]);
    }

    #[test]
    fn headers_that_do_not_fit_their_frame_are_refused() {
        let frame = frame();
        for bad in [
            header(1, 0, [0, 0, 4040, 16]),
            header(1, 0, [0, 0, 13, 16]),
            header(1, 0, [0, 0, 34, u16::MAX]),
            header(0, GSO_TCPV4, [54, 1448, 34, 16]),
            header(1, GSO_TCPV4, [54, 0, 34, 16]),
            header(1, 3, [54, 1448, 34, 6]),
            header(1, 4, [54, 1448, 34, 16]),
        ] {
            assert_eq!(Offload::decode(&bad, &frame), Err(BadHeader), "{bad:?}");
        }
        assert!(Offload::decode(&header(1, 0, [0, 0, 34, 16]), &frame[..51]).is_err());
    }

    #[test]
    fn a_header_that_speaks_of_another_packet_does_not_fit() {
        let envelope = Envelope::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 2));
        let tcp = envelope.tcp(1000, 80, tcp::ACK, &[7; 4000]);
        let udp = envelope.udp(1000, 53, &[7; 4000]);
        let fits = |frame: &[u8], kind, start, at| {
            let header = header(1, kind, [54, 1400, start, at]);
            let offload = Offload::decode(&header, frame).unwrap();
            offload.fits(&crate::packet::parse(frame).unwrap())
        };
        assert!(fits(&tcp, GSO_NONE, 34, 16) && fits(&tcp, GSO_TCPV4, 34, 16));
        assert!(fits(&udp, GSO_NONE, 34, 6) && fits(&udp, GSO_UDP_L4, 34, 6));
        // Into the ports, beside the field, of the other protocol, from within the payload.
        assert!(!fits(&udp, GSO_NONE, 34, 0) && !fits(&udp, GSO_NONE, 34, 2));
        assert!(!fits(&tcp, GSO_NONE, 34, 18) && !fits(&tcp, GSO_NONE, 54, 16));
        assert!(!fits(&udp, GSO_TCPV4, 34, 6) && !fits(&tcp, GSO_UDP_L4, 34, 16));
        let echo = envelope.icmp(8, 0, [0, 7, 0, 1], &[7; 100]);
        assert!(!fits(&echo, GSO_NONE, 34, 2));
    }

    #[test]
    fn packets_are_counted_as_they_leave() {
        let stream = Segments {
            kind: SegmentKind::Tcp { ecn: false },
            headers_len: 54,
            payload_len: 1448,
        };
        let of = |segments| Offload {
            segments: Some(segments),
            ..Offload::WHOLE
        };
        assert_eq!(of(stream).packets(54 + 2 * 1448, 1500), 2);
        assert_eq!(of(stream).packets(54 + 2 * 1448 + 1, 1500), 3);
        assert_eq!(of(stream).packets(54, 1500), 1);
        // A stream is cut anew for a link, datagrams are not.
        assert_eq!(of(stream).packets(54 + 3 * 960, 1000), 3);
        assert_eq!(stream.fitting(47), None);
        assert_eq!(stream.fitting(48).map(|small| small.payload_len), Some(8));
        let datagrams = Segments {
            kind: SegmentKind::Udp,
            headers_len: 42,
            payload_len: 1200,
        };
        assert_eq!(of(datagrams).packets(42 + 3000, 1000), 3);
        assert_eq!(Offload::WHOLE.packets(60_000, 1000), 1);
    }

    proptest! {
        #[test]
        fn what_is_understood_is_written_again(bytes: [u8; VIRTIO_HEADER_LEN]) {
            if let Ok(offload) = Offload::decode(&bytes, &frame()) {
                let mut written = [0; VIRTIO_HEADER_LEN];
                offload.encode(&mut written);
                let read = Offload::decode(&written, &frame()).unwrap();
                prop_assert_eq!(read.segments, offload.segments);
                prop_assert_eq!(read.checksum, offload.checksum);
            }
        }
    }
}
