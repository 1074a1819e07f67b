//! The RST that answers a TCP segment of a connection that nobody here knows.

use crate::packet::{IP, Packet};
use crate::wire::{checksum, ethernet, ipv4, put16, put32, tcp};

/// Bytes of the frame that [`write`] makes.
pub const RESET_FRAME_LEN: usize = IP + ipv4::HEADER_LEN + tcp::HEADER_LEN;

/// Turns a segment's frame into the RST that its receiver would send if it knew no such connection
/// (RFC 9293 section 3.10.7.1): with the number that the segment acknowledges, or, if it acknowledges
/// nothing, acknowledging all of it. It goes back to where the segment came from, from `mac`. False,
/// and nothing was written, for what is no whole TCP segment or has a wrong checksum, and for a RST,
/// which is never answered.
pub fn write(frame: &mut [u8], packet: &Packet, mac: [u8; 6], identification: u16) -> bool {
    let segment = frame.get(packet.l4..packet.frame_len());
    let Some((segment, header)) = segment.and_then(|s| Some((s, tcp::Header::new(s)?))) else {
        return false;
    };
    let flags = header.flags();
    if packet.fragment.is_some() || flags & tcp::RST != 0 || frame.len() < RESET_FRAME_LEN {
        return false;
    }
    let ends = (packet.ipv4.source, packet.ipv4.destination);
    let pseudo = checksum::pseudo_header(ends.0, ends.1, 6, segment.len() as u16);
    if checksum::fold(pseudo + u64::from(checksum::sum(segment))) != 0xffff {
        return false;
    }
    let data = segment.len().saturating_sub(header.header_len()) as u32;
    let counts = |flag: u8| u32::from(flags & flag != 0);
    let end = data + counts(tcp::SYN) + counts(tcp::FIN);
    let (sequence, acknowledgement, answer) = if flags & tcp::ACK != 0 {
        (header.acknowledgement(), 0, tcp::RST)
    } else {
        let all = header.sequence().wrapping_add(end);
        (0, all, tcp::RST | tcp::ACK)
    };
    let (from, to) = (header.destination_port(), header.source_port());
    let Some(old) = ethernet::Header::new(frame) else {
        return false;
    };
    let back_to = old.source();

    ethernet::write(frame, back_to, mac, Some(ethernet::TYPE_IPV4));
    let (source, destination) = (packet.ipv4.destination, packet.ipv4.source);
    let ip = &mut frame[IP..RESET_FRAME_LEN];
    ipv4::write_made(ip, 6, source, destination, 0, identification);
    let Some(out) = ip[ipv4::HEADER_LEN..].first_chunk_mut::<{ tcp::HEADER_LEN }>() else {
        return false;
    };
    out.fill(0);
    put16(out, tcp::SOURCE_PORT, from);
    put16(out, tcp::DESTINATION_PORT, to);
    put32(out, tcp::SEQUENCE, sequence);
    put32(out, tcp::ACKNOWLEDGEMENT, acknowledgement);
    out[tcp::DATA_OFFSET] = (tcp::HEADER_LEN as u8 / 4) << 4;
    out[tcp::FLAGS] = answer;
    let pseudo = checksum::pseudo_header(source, destination, 6, tcp::HEADER_LEN as u16);
    let sum = !checksum::fold(pseudo + u64::from(checksum::sum(out)));
    put16(out, tcp::CHECKSUM, sum);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use crate::wire::build::Envelope;
    use std::net::Ipv4Addr;

    /// Sequence number, acknowledgement number and flags of the answer; [`Envelope::tcp`] sends 1
    /// and 2.
    fn answer(flags: u8, data: &[u8]) -> Option<(u32, u32, u8)> {
        let envelope = Envelope {
            options: vec![1; 4],
            ..Envelope::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 2))
        };
        let mut frame = envelope.tcp(1000, 80, flags, data);
        let packet = parse(&frame).unwrap();
        if !write(&mut frame, &packet, [2, 0, 0, 0, 0, 9], 7) {
            return None;
        }
        frame.truncate(RESET_FRAME_LEN);
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
        let packet = parse(&frame).expect("a right packet");
        assert_eq!(packet.ipv4.source, envelope.destination);
        assert_eq!(packet.ipv4.destination, envelope.source);
        let pseudo = checksum::pseudo_header(packet.ipv4.source, packet.ipv4.destination, 6, 20);
        let sum = pseudo + u64::from(checksum::sum(&frame[packet.l4..]));
        assert_eq!(checksum::fold(sum), 0xffff, "checksum");
        let header = tcp::Header::new(&frame[packet.l4..]).unwrap();
        assert_eq!(
            (header.source_port(), header.destination_port()),
            (80, 1000)
        );
        let (sequence, acknowledgement) = (header.sequence(), header.acknowledgement());
        Some((sequence, acknowledgement, header.flags()))
    }

    #[test]
    fn the_numbers_are_those_that_the_sender_believes() {
        const BOTH: u8 = tcp::RST | tcp::ACK;
        assert_eq!(answer(tcp::ACK, b"data"), Some((2, 0, tcp::RST)));
        assert_eq!(answer(tcp::SYN | tcp::ACK, b""), Some((2, 0, tcp::RST)));
        assert_eq!(answer(tcp::FIN | tcp::ACK, b""), Some((2, 0, tcp::RST)));
        assert_eq!(answer(tcp::PSH, b"data"), Some((0, 5, BOTH)));
        assert_eq!(answer(tcp::FIN, b"data"), Some((0, 6, BOTH)));
        assert_eq!(answer(tcp::RST, b""), None);
        assert_eq!(answer(BOTH, b""), None);
    }

    /// It may say anything: what it says is not what was sent.
    #[test]
    fn a_segment_with_a_wrong_checksum_is_not_answered() {
        let envelope = Envelope::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 2));
        let mut frame = envelope.tcp(1000, 80, tcp::ACK, b"data");
        *frame.last_mut().unwrap() ^= 1;
        let (before, packet) = (frame.clone(), parse(&frame).unwrap());
        assert!(!write(&mut frame, &packet, [2, 0, 0, 0, 0, 9], 7));
        assert_eq!(frame, before);
    }
}
