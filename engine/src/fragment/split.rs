//! Cutting an outgoing packet into fragments (RFC 791 section 3.2, RFC 4787 REQ-13).

use crate::packet::{IP, Packet};
use crate::wire::{checksum, ipv4};

/// Cuts the IPv4 packet in a frame, or a fragment, into fragments that fit an MTU, in order. The
/// frame is borrowed: it must lie elsewhere than the buffers written.
#[derive(Clone, Debug)]
pub struct Splitter<'a> {
    /// Ethernet and IPv4 header, options included.
    headers: &'a [u8],
    payload: &'a [u8],
    /// IPv4 header of the pieces after the first: only the options to be copied.
    later: [u8; ipv4::HEADER_LEN_MAX],
    later_len: usize,
    mtu: usize,
    /// Payload bytes written.
    done: usize,
}

impl<'a> Splitter<'a> {
    /// `mtu`: bytes of the longest IPv4 packet. `packet`: what was parsed from the frame; it may have
    /// been rewritten since, checksums and all. None if DF is set, or the MTU has no room for 8
    /// bytes after the header.
    pub fn new(frame: &'a [u8], packet: &Packet, mtu: usize) -> Option<Splitter<'a>> {
        let (headers, payload) = frame
            .get(..packet.frame_len())?
            .split_at_checked(packet.l4)?;
        let ip = headers.get(IP..)?;
        if packet.ipv4.dont_fragment || mtu < ip.len() + 8 {
            return None;
        }
        let mut later = [0; ipv4::HEADER_LEN_MAX];
        let (fixed, options) = ip.split_at_checked(ipv4::HEADER_LEN)?;
        let mut later_len = ipv4::HEADER_LEN;
        later[..later_len].copy_from_slice(fixed);
        // The parser has checked the options.
        for option in ipv4::Options::new(options).map_while(Result::ok) {
            if option[0] & ipv4::OPTION_COPIED != 0 {
                later
                    .get_mut(later_len..later_len + option.len())?
                    .copy_from_slice(option);
                later_len += option.len();
            }
        }
        // The rest is zero: the end of the list.
        later_len = later_len.next_multiple_of(4);
        ipv4::HeaderMut::new(&mut later)?.set_header_len(later_len);
        Some(Splitter {
            headers,
            payload,
            later,
            later_len,
            mtu,
            done: 0,
        })
    }

    /// How many fragments are still to be written.
    pub fn remaining(&self) -> usize {
        let (mut left, mut count) = (self.payload.len() - self.done, 0);
        let mut header_len = self.header_len(self.done);
        while left > 0 {
            left -= self.piece(header_len, left);
            header_len = self.later_len;
            count += 1;
        }
        count
    }

    /// Bytes of the IPv4 header of the piece that starts at `done`.
    fn header_len(&self, done: usize) -> usize {
        if done == 0 {
            self.headers.len() - IP
        } else {
            self.later_len
        }
    }

    /// Payload bytes of the next piece when `left` are left: a multiple of 8, or all.
    fn piece(&self, header_len: usize, left: usize) -> usize {
        let room = self.mtu - header_len;
        if left <= room { left } else { room & !7 }
    }

    /// Writes the next fragment, Ethernet header included, to the start of `frame`; its length.
    /// None when all were written, or `frame` is too short for it: it needs `14 + mtu` bytes at
    /// most.
    pub fn write(&mut self, frame: &mut [u8]) -> Option<usize> {
        let left = self.payload.len() - self.done;
        if left == 0 {
            return None;
        }
        let header_len = self.header_len(self.done);
        let len = self.piece(header_len, left);
        let l4 = IP + header_len;
        let frame = frame.get_mut(..l4 + len)?;
        frame[..IP].copy_from_slice(&self.headers[..IP]);
        let header = if self.done == 0 {
            &self.headers[IP..]
        } else {
            &self.later[..header_len]
        };
        frame[IP..l4].copy_from_slice(header);
        frame[l4..].copy_from_slice(&self.payload[self.done..self.done + len]);

        let mut header = ipv4::HeaderMut::new(&mut frame[IP..])?;
        // A fragment that is cut again keeps its place, and its last piece its flag.
        let old = header.as_ref().flags_offset();
        let more = if len < left { ipv4::MORE_FRAGMENTS } else { 0 };
        let offset = (old & ipv4::OFFSET_MASK) + (self.done / 8) as u16;
        header.set_flags_offset(old & !ipv4::OFFSET_MASK | more | offset & ipv4::OFFSET_MASK);
        header.set_total_len((header_len + len) as u16);
        header.set_checksum(0);
        let checksum = !checksum::sum(&frame[IP..l4]);
        ipv4::HeaderMut::new(&mut frame[IP..])?.set_checksum(checksum);
        self.done += len;
        Some(l4 + len)
    }
}
