//! What the kernel does to an unfinished frame before it is on the wire, done slowly: a stand-in for
//! what is sent through a tun driver.

use crate::device::offload::{Checksum, Offload, SegmentKind, Segments};
use crate::packet::IP;
use crate::wire::{checksum, ipv4, tcp, udp};

/// The frames on the wire.
pub fn finish(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let Checksum::Partial { start, at } = offload.checksum else {
        return vec![frame.to_vec()];
    };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(at));
    let Some(segments) = offload.segments else {
        let mut whole = frame.to_vec();
        complete(&mut whole, start, field);
        return vec![whole];
    };
    let (headers, payload) = frame.split_at(usize::from(segments.headers_len));
    let parts = payload.chunks(usize::from(segments.payload_len));
    let count = parts.len();
    let segment = |(number, part): (usize, &[u8])| {
        let mut segment = [headers, part].concat();
        describe(&mut segment, &segments, start, number, count);
        // The pseudo-header has the length in it: that of the whole super-packet until now.
        let lengths =
            checksum::delta16((frame.len() - start) as u16, (segment.len() - start) as u16);
        let old = u16::from_be_bytes([segment[field], segment[field + 1]]);
        let partial = checksum::fold(u64::from(old) + lengths);
        segment[field..field + 2].copy_from_slice(&partial.to_be_bytes());
        complete(&mut segment, start, field);
        segment
    };
    parts.enumerate().map(segment).collect()
}

/// Adds what a partial checksum covers to it.
fn complete(frame: &mut [u8], start: usize, field: usize) {
    let sum = !checksum::sum(&frame[start..]);
    let sum = if field == start + udp::CHECKSUM {
        checksum::never_zero(sum)
    } else {
        sum
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Writes what differs in the headers of one segment.
fn describe(frame: &mut [u8], segments: &Segments, start: usize, number: usize, count: usize) {
    let len = frame.len();
    let mut put = |at: usize, value: u16| frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    put(IP + ipv4::TOTAL_LEN, (len - IP) as u16);
    put(IP + ipv4::CHECKSUM, 0);
    if segments.kind == SegmentKind::Udp {
        put(start + udp::LEN, (len - start) as u16);
    }
    let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let identification = word(frame, IP + ipv4::IDENTIFICATION).wrapping_add(number as u16);
    let place = IP + ipv4::IDENTIFICATION;
    frame[place..place + 2].copy_from_slice(&identification.to_be_bytes());
    let sum = !checksum::sum(&frame[IP..start]);
    frame[IP + ipv4::CHECKSUM..IP + ipv4::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    if let SegmentKind::Tcp { .. } = segments.kind {
        let place = start + tcp::SEQUENCE..start + tcp::SEQUENCE + 4;
        let bytes = [0, 1, 2, 3].map(|at| frame[place.start + at]);
        let done = number as u32 * u32::from(segments.payload_len);
        let sequence = u32::from_be_bytes(bytes).wrapping_add(done);
        frame[place].copy_from_slice(&sequence.to_be_bytes());
        if number + 1 < count {
            frame[start + tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
        }
    }
}

/// Makes a right frame one that is still to be finished: with the sum of its pseudo-header in place
/// of the checksum, and with `payload_len` as several packets of so many bytes each.
pub fn unfinish(frame: &mut [u8], payload_len: Option<u16>) -> Offload {
    let packet = crate::packet::parse(frame).expect("a right frame");
    let len = packet.payload_len() as u16;
    let ipv4 = &packet.ipv4;
    let pseudo = checksum::pseudo_header(ipv4.source, ipv4.destination, ipv4.protocol, len);
    let (at, kind, transport_len) = match ipv4.protocol {
        6 => (
            tcp::CHECKSUM,
            SegmentKind::Tcp { ecn: false },
            usize::from(frame[packet.l4 + tcp::DATA_OFFSET] >> 4) * 4,
        ),
        _ => (udp::CHECKSUM, SegmentKind::Udp, udp::HEADER_LEN),
    };
    let field = packet.l4 + at;
    frame[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    Offload {
        checksum: Checksum::Partial {
            start: packet.l4 as u16,
            at: at as u16,
        },
        segments: payload_len.map(|payload_len| Segments {
            kind,
            headers_len: (packet.l4 + transport_len) as u16,
            payload_len,
        }),
    }
}
