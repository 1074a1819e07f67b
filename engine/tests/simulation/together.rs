//! Frames as they come from a tun driver: partial checksums, and several packets of a flow as one
//! super-packet. Made without the gateway's own code.

use engine::device::offload::{Checksum, Offload, SegmentKind, Segments};

use super::dice::Dice;
use super::fragments::finish_header;
use super::hosts::DATA;
use super::packet::{
    ACK, Draft, IP, Kind, Proto, Seen, Sum, TAG_LEN, address, proto_of, pseudo_sum, put16,
};

/// Where the transport header begins: no end sends IP options.
const L4: usize = IP + 20;
/// The longest packet that a link takes, bytes.
const MTU: usize = 1500;

/// The packets that a host hands over at once for what it has to say: one, or several that go
/// together. Of a connection's data they are its parts, of datagrams the same thing again.
pub fn parts(draft: Draft, dice: &mut Dice) -> Vec<Draft> {
    let usual = draft.tag.kind != Kind::Attack && draft.tag.sum == Sum::Right && draft.ttl == 64;
    if !usual || !dice.chance(400) {
        return vec![draft];
    }
    match draft.proto {
        Proto::Udp if 28 + TAG_LEN + draft.fill <= MTU => {
            vec![draft; dice.between(2, 4) as usize]
        }
        Proto::Tcp if draft.fill == DATA as usize => stretch(&draft, dice.between(2, 3) as usize),
        _ => vec![draft],
    }
}

/// A connection's data in several segments, the last one the shortest.
fn stretch(draft: &Draft, count: usize) -> Vec<Draft> {
    let data = DATA as usize;
    let each = data.div_ceil(count);
    let part = |number: usize| {
        let (done, len) = (number * each, each.min(data - number * each));
        let mut part = draft.clone();
        part.tag_in_data = true;
        part.fill = len - TAG_LEN;
        part.tag.more = number + 1 < count;
        if let Some(segment) = &mut part.segment {
            segment.seq = segment.seq.wrapping_add(done as u32);
            debug_assert_eq!(segment.flags, ACK);
        }
        part
    };
    (0..count).map(part).collect()
}

/// May the sum of this packet be left to whoever sends it?
pub fn can_be_partial(seen: &Seen) -> bool {
    let flow = matches!(seen.proto, Proto::Tcp | Proto::Udp);
    flow && seen.fragment.is_none() && seen.sum == Sum::Right
}

/// Frames of one flow, which follow each other, as one that stands for all of them; a single one
/// only loses its checksum.
pub fn join(frames: &[Vec<u8>]) -> (Vec<u8>, Offload) {
    let first = &frames[0];
    let tcp = first[IP + 9] == Proto::Tcp as u8;
    let (at, kind, transport_len) = match tcp {
        true => (
            16,
            SegmentKind::Tcp { ecn: false },
            usize::from(first[L4 + 12] >> 4) * 4,
        ),
        false => (6, SegmentKind::Udp, 8),
    };
    let headers_len = L4 + transport_len;
    let mut all = first[..headers_len].to_vec();
    for frame in frames {
        all.extend(&frame[headers_len..]);
    }
    let l4_len = all.len() - L4;
    put16(&mut all, IP + 2, (l4_len + 20) as u16);
    finish_header(&mut all);
    if !tcp {
        put16(&mut all, L4 + 4, l4_len as u16);
    }
    let ip = &all[IP..];
    let proto = proto_of(ip[9]).expect("a flow");
    let sum = pseudo_sum(address(ip, 12), address(ip, 16), proto, l4_len);
    put16(&mut all, L4 + at, sum);
    let segments = Segments {
        kind,
        headers_len: headers_len as u16,
        payload_len: (first.len() - headers_len) as u16,
    };
    let offload = Offload {
        checksum: Checksum::Partial {
            start: L4 as u16,
            at: at as u16,
        },
        segments: (frames.len() > 1).then_some(segments),
    };
    (all, offload)
}
