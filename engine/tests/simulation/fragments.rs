//! Packets in pieces: how senders and routers cut them, and how receivers put them together.

use std::net::Ipv4Addr;

use super::packet::{IP, MORE_FRAGMENTS, Proto, Seen, be16, put16, sum16};

/// What the fragments of one datagram have in common.
type Key = (Ipv4Addr, Ipv4Addr, u16, Proto);

/// The fragments of a frame that is too long for a link; the frame itself if it is not.
pub fn cut(frame: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let (ip, head) = (&frame[IP..], IP + 20);
    if ip.len() <= mtu {
        return vec![frame.to_vec()];
    }
    let room = (mtu - 20) / 8 * 8;
    let was = be16(ip, 6);
    let parts = frame[head..].chunks(room).enumerate();
    let count = (ip.len() - 20).div_ceil(room);
    let part = |(number, bytes): (usize, &[u8])| {
        let mut part = [&frame[..head], bytes].concat();
        let more = if number + 1 < count {
            MORE_FRAGMENTS
        } else {
            was & MORE_FRAGMENTS
        };
        let offset = (was & 0x1fff) + (number * room / 8) as u16;
        put16(&mut part, IP + 2, (20 + bytes.len()) as u16);
        put16(&mut part, IP + 6, more | offset);
        finish_header(&mut part);
        part
    };
    parts.map(part).collect()
}

/// Puts the checksum of an IPv4 header without options right.
pub fn finish_header(frame: &mut [u8]) {
    put16(frame, IP + 10, 0);
    let sum = !sum16(&frame[IP..IP + 20]);
    put16(frame, IP + 10, sum);
}

/// Datagrams whose fragments are on their way to one end.
#[derive(Default)]
pub struct Assembler(Vec<(Key, Vec<Vec<u8>>)>);

impl Assembler {
    /// The whole frame, as soon as this fragment completes it.
    pub fn put(&mut self, seen: &Seen, frame: Vec<u8>) -> Option<Vec<u8>> {
        if seen.fragment.is_none() {
            return Some(frame);
        }
        let key = (
            *seen.source.ip(),
            *seen.destination.ip(),
            seen.identification,
            seen.proto,
        );
        let place = self.0.iter().position(|(other, _)| *other == key);
        let place = place.unwrap_or_else(|| {
            if self.0.len() >= 64 {
                self.0.remove(0);
            }
            self.0.push((key, Vec::new()));
            self.0.len() - 1
        });
        let parts = &mut self.0[place].1;
        parts.push(frame);
        let offset = |part: &Vec<u8>| be16(part, IP + 6) & 0x1fff;
        parts.sort_by_key(offset);
        parts.dedup_by_key(|part| offset(part));
        let mut whole: Vec<u8> = parts[0][..IP + 20].to_vec();
        for part in parts.iter() {
            let end = IP + usize::from(be16(part, IP + 2));
            if usize::from(offset(part)) * 8 != whole.len() - IP - 20 {
                return None;
            }
            whole.extend(&part[IP + 20..end]);
        }
        if be16(parts.last()?, IP + 6) & MORE_FRAGMENTS != 0 {
            return None;
        }
        self.0.remove(place);
        let len = (whole.len() - IP) as u16;
        put16(&mut whole, IP + 2, len);
        put16(&mut whole, IP + 6, 0);
        finish_header(&mut whole);
        Some(whole)
    }
}
