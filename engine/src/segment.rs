//! Super-packets as the packets that they stand for: where the kernel cannot be left to cut them.

use crate::device::offload::{Checksum, Offload, SegmentKind, Segments};
use crate::packet::{IP, Packet};
use crate::rewrite;
use crate::wire::{checksum, ipv4, put16, tcp, udp};

/// Bytes of the longest headers of a datagram's frame.
const HEADERS_MAX: usize = IP + ipv4::HEADER_LEN_MAX + udp::HEADER_LEN;

/// Makes an ordinary packet of a frame that is to be answered: the first packet that it stands for,
/// with a whole checksum. Bytes of the frame that are left.
pub fn first(frame: &mut [u8], packet: &Packet, offload: Offload) -> usize {
    let Some(segments) = offload.segments else {
        if matches!(offload.checksum, Checksum::Partial { .. }) {
            rewrite::complete_partial(frame, packet);
        }
        return frame.len();
    };
    let len = usize::from(segments.headers_len) + usize::from(segments.payload_len);
    let len = len.min(frame.len());
    let is_last = len == frame.len();
    finish(&mut frame[..len], packet, segments.kind, is_last);
    len
}

/// The datagrams of a super-packet, one after the other, made in its place.
#[derive(Debug)]
pub struct Datagrams<'a> {
    frame: &'a mut [u8],
    packet: &'a Packet,
    headers: [u8; HEADERS_MAX],
    segments: Segments,
    /// Payload bytes that were given out.
    done: usize,
    /// Datagrams that were given out.
    count: u16,
}

impl<'a> Datagrams<'a> {
    /// `packet`: what was parsed from the frame. None if it is not one of UDP datagrams.
    pub fn new(frame: &'a mut [u8], packet: &'a Packet, segments: Segments) -> Option<Self> {
        let len = usize::from(segments.headers_len);
        let mut headers = [0; HEADERS_MAX];
        headers.get_mut(..len)?.copy_from_slice(frame.get(..len)?);
        (segments.kind == SegmentKind::Udp).then_some(Datagrams {
            frame,
            packet,
            headers,
            segments,
            done: 0,
            count: 0,
        })
    }

    /// The frame of the next datagram.
    pub fn next_frame(&mut self) -> Option<&mut [u8]> {
        let headers_len = usize::from(self.segments.headers_len);
        let left = self.frame.len() - headers_len - self.done;
        if left == 0 {
            return None;
        }
        // The headers go before its payload, where that of the one before it was.
        let payload_len = left.min(usize::from(self.segments.payload_len));
        let start = self.done;
        let frame = &mut self.frame[start..start + headers_len + payload_len];
        frame[..headers_len].copy_from_slice(&self.headers[..headers_len]);
        let identification = self.packet.ipv4.identification.wrapping_add(self.count);
        if let Some(mut header) = ipv4::HeaderMut::new(&mut frame[IP..]) {
            header.set_identification(identification);
        }
        self.done += payload_len;
        self.count = self.count.wrapping_add(1);
        finish(frame, self.packet, SegmentKind::Udp, left == payload_len);
        Some(frame)
    }
}

/// Writes the lengths and checksums of one packet that was cut out of a super-packet.
fn finish(frame: &mut [u8], packet: &Packet, kind: SegmentKind, is_last: bool) {
    let total_len = frame.len().saturating_sub(IP);
    let Some((ip, transport)) = frame
        .get_mut(IP..)
        .and_then(|ip| ip.split_at_mut_checked(packet.l4 - IP))
    else {
        return;
    };
    let Some(mut header) = ipv4::HeaderMut::new(ip) else {
        return;
    };
    header.set_total_len(total_len as u16);
    header.set_checksum(0);
    let ends = (header.as_ref().source(), header.as_ref().destination());
    let sum = !checksum::sum(ip);
    if let Some(mut header) = ipv4::HeaderMut::new(ip) {
        header.set_checksum(sum);
    }
    let len = transport.len() as u16;
    let pseudo = checksum::pseudo_header(ends.0, ends.1, packet.ipv4.protocol, len);
    match kind {
        SegmentKind::Tcp { .. } => {
            let Some(header) = transport.first_chunk_mut::<{ tcp::HEADER_LEN }>() else {
                return;
            };
            if !is_last {
                header[tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
            }
            put16(header, tcp::CHECKSUM, 0);
            let sum = !checksum::fold(pseudo + u64::from(checksum::sum(transport)));
            if let Some(header) = transport.first_chunk_mut::<{ tcp::HEADER_LEN }>() {
                put16(header, tcp::CHECKSUM, sum);
            }
        }
        SegmentKind::Udp => {
            let Some(header) = transport.first_chunk_mut::<{ udp::HEADER_LEN }>() else {
                return;
            };
            put16(header, udp::LEN, len);
            put16(header, udp::CHECKSUM, 0);
            let sum = !checksum::fold(pseudo + u64::from(checksum::sum(transport)));
            if let Some(header) = transport.first_chunk_mut::<{ udp::HEADER_LEN }>() {
                put16(header, udp::CHECKSUM, checksum::never_zero(sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::packet::parse;
    use crate::wire::build::Envelope;
    use crate::world::transport_is_right;

    fn envelope() -> Envelope {
        Envelope::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 2))
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 / 3) as u8).collect()
    }

    fn offload(kind: SegmentKind, headers_len: u16, payload_len: u16) -> Offload {
        Offload {
            checksum: Checksum::Partial { start: 34, at: 16 },
            segments: Some(Segments {
                kind,
                headers_len,
                payload_len,
            }),
        }
    }

    #[test]
    fn the_first_segment_is_a_packet_of_its_own() {
        let flags = tcp::ACK | tcp::PSH | tcp::FIN;
        let mut frame = envelope().tcp(1000, 80, flags, &payload(5000));
        let packet = parse(&frame).unwrap();
        let offload = offload(SegmentKind::Tcp { ecn: false }, 54, 1448);
        let len = first(&mut frame, &packet, offload);
        frame.truncate(len);
        assert_eq!(frame.len(), 54 + 1448);
        assert_eq!(parse(&frame).unwrap().ipv4.total_len, 1488);
        assert_eq!(transport_is_right(&frame), Some(true));
        assert_eq!(frame[34 + tcp::FLAGS], tcp::ACK);
        assert_eq!(frame[54..], payload(1448));
    }

    #[test]
    fn one_that_is_a_single_packet_keeps_its_flags() {
        let mut frame = envelope().tcp(1000, 80, tcp::ACK | tcp::FIN, &payload(100));
        let packet = parse(&frame).unwrap();
        let offload = offload(SegmentKind::Tcp { ecn: false }, 54, 1448);
        assert_eq!(first(&mut frame, &packet, offload), 154);
        assert_eq!(transport_is_right(&frame), Some(true));
        assert_eq!(frame[34 + tcp::FLAGS], tcp::ACK | tcp::FIN);
    }

    #[test]
    fn datagrams_come_out_whole_and_in_order() {
        let mut frame = envelope().udp(1000, 53, &payload(3500));
        let packet = parse(&frame).unwrap();
        let segments = offload(SegmentKind::Udp, 42, 1200).segments.unwrap();
        let mut datagrams = Datagrams::new(&mut frame, &packet, segments).unwrap();
        let (mut lens, mut bytes, mut identifications) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(datagram) = datagrams.next_frame() {
            let parsed = parse(datagram).unwrap();
            assert_eq!(transport_is_right(datagram), Some(true));
            assert_eq!(parsed.frame_len(), datagram.len());
            lens.push(datagram.len() - 42);
            bytes.extend_from_slice(&datagram[42..]);
            identifications.push(
                parsed
                    .ipv4
                    .identification
                    .wrapping_sub(packet.ipv4.identification),
            );
        }
        assert_eq!(lens, [1200, 1200, 1100]);
        assert_eq!(bytes, payload(3500));
        assert_eq!(identifications, [0, 1, 2]);
    }

    #[test]
    fn only_datagrams_are_given_out() {
        let mut frame = envelope().tcp(1000, 80, tcp::ACK, &payload(3000));
        let packet = parse(&frame).unwrap();
        let segments = offload(SegmentKind::Tcp { ecn: false }, 54, 1000).segments;
        assert!(Datagrams::new(&mut frame, &packet, segments.unwrap()).is_none());
    }
}
