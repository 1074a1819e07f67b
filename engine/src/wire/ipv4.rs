//! The IPv4 header (RFC 791). Offsets count from its first byte.

use std::net::Ipv4Addr;

use super::checksum;
use super::{address, be16, put_address, put16};

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const HEADER_LEN_MAX: usize = 60;
/// Offset of version (high 4 bits) and header length in 32-bit words (low 4 bits).
pub const VERSION_IHL: usize = 0;
/// Offset of the DS field and ECN.
pub const DSCP_ECN: usize = 1;
/// Offset of the total length.
pub const TOTAL_LEN: usize = 2;
/// Offset of the identification.
pub const IDENTIFICATION: usize = 4;
/// Offset of the flags (high 3 bits) and the fragment offset in units of 8 bytes (13 bits).
pub const FLAGS_OFFSET: usize = 6;
/// Offset of the time to live.
pub const TTL: usize = 8;
/// Offset of the protocol.
pub const PROTOCOL: usize = 9;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the destination address.
pub const DESTINATION: usize = 16;

/// Flag "do not fragment" in the word at [`FLAGS_OFFSET`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flag "more fragments" in the word at [`FLAGS_OFFSET`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Mask of the fragment offset in the word at [`FLAGS_OFFSET`].
pub const OFFSET_MASK: u16 = 0x1FFF;
/// Mask of the DS field in the byte at [`DSCP_ECN`] (RFC 2474).
pub const DS_MASK: u8 = 0xFC;

/// Option kind: end of the list; one byte.
pub const OPTION_END: u8 = 0;
/// Option kind: no operation; one byte.
pub const OPTION_NOP: u8 = 1;
/// Option kind: loose source route.
pub const OPTION_LSRR: u8 = 131;
/// Option kind: strict source route.
pub const OPTION_SSRR: u8 = 137;
/// Bit of an option's kind: it is copied into every fragment (RFC 791 section 3.1).
pub const OPTION_COPIED: u8 = 0x80;

/// A header to read, without its options.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Header<'a> {
    /// The header at the start of `bytes`; none if they are too few. Checks nothing else.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Header<'a>> {
        bytes.first_chunk().map(Header)
    }

    /// Version; 4 if this is IPv4.
    #[inline]
    pub fn version(self) -> u8 {
        self.0[VERSION_IHL] >> 4
    }

    /// Bytes of the header as it says: 0 to 60; valid from 20.
    #[inline]
    pub fn header_len(self) -> usize {
        usize::from(self.0[VERSION_IHL] & 15) * 4
    }

    /// DS field and ECN.
    #[inline]
    pub fn dscp_ecn(self) -> u8 {
        self.0[DSCP_ECN]
    }

    /// Bytes of the packet, header included.
    #[inline]
    pub fn total_len(self) -> u16 {
        be16(self.0, TOTAL_LEN)
    }

    /// Identification.
    #[inline]
    pub fn identification(self) -> u16 {
        be16(self.0, IDENTIFICATION)
    }

    /// Flags and fragment offset, see [`FLAGS_OFFSET`].
    #[inline]
    pub fn flags_offset(self) -> u16 {
        be16(self.0, FLAGS_OFFSET)
    }

    /// Time to live.
    #[inline]
    pub fn ttl(self) -> u8 {
        self.0[TTL]
    }

    /// Protocol number.
    #[inline]
    pub fn protocol(self) -> u8 {
        self.0[PROTOCOL]
    }

    /// Header checksum.
    #[inline]
    pub fn checksum(self) -> u16 {
        be16(self.0, CHECKSUM)
    }

    /// Source address.
    #[inline]
    pub fn source(self) -> Ipv4Addr {
        address(self.0, SOURCE)
    }

    /// Destination address.
    #[inline]
    pub fn destination(self) -> Ipv4Addr {
        address(self.0, DESTINATION)
    }
}

/// A header to change, without its options.
#[derive(Debug)]
pub struct HeaderMut<'a>(&'a mut [u8; HEADER_LEN]);

impl<'a> HeaderMut<'a> {
    /// The header at the start of `bytes`; none if they are too few. Checks nothing else.
    #[inline]
    pub fn new(bytes: &'a mut [u8]) -> Option<HeaderMut<'a>> {
        bytes.first_chunk_mut().map(HeaderMut)
    }

    /// The same header to read.
    #[inline]
    pub fn as_ref(&self) -> Header<'_> {
        Header(self.0)
    }

    /// Writes the DS field and ECN.
    #[inline]
    pub fn set_dscp_ecn(&mut self, value: u8) {
        self.0[DSCP_ECN] = value;
    }

    /// Writes version 4 and the header length in bytes, a multiple of 4 from 20 to 60.
    #[inline]
    pub fn set_header_len(&mut self, bytes: usize) {
        self.0[VERSION_IHL] = 0x40 | (bytes / 4) as u8 & 15;
    }

    /// Writes the total length.
    #[inline]
    pub fn set_total_len(&mut self, value: u16) {
        put16(self.0, TOTAL_LEN, value);
    }

    /// Writes the identification.
    #[inline]
    pub fn set_identification(&mut self, value: u16) {
        put16(self.0, IDENTIFICATION, value);
    }

    /// Writes flags and fragment offset, see [`FLAGS_OFFSET`].
    #[inline]
    pub fn set_flags_offset(&mut self, value: u16) {
        put16(self.0, FLAGS_OFFSET, value);
    }

    /// Writes the time to live.
    #[inline]
    pub fn set_ttl(&mut self, value: u8) {
        self.0[TTL] = value;
    }

    /// Writes the protocol number.
    #[inline]
    pub fn set_protocol(&mut self, value: u8) {
        self.0[PROTOCOL] = value;
    }

    /// Writes the header checksum.
    #[inline]
    pub fn set_checksum(&mut self, value: u16) {
        put16(self.0, CHECKSUM, value);
    }

    /// Writes the source address.
    #[inline]
    pub fn set_source(&mut self, value: Ipv4Addr) {
        put_address(self.0, SOURCE, value);
    }

    /// Writes the destination address.
    #[inline]
    pub fn set_destination(&mut self, value: Ipv4Addr) {
        put_address(self.0, DESTINATION, value);
    }
}

/// The options of a header, one by one; stops at the end of the list.
#[derive(Clone, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// The options in the bytes after the fixed header, up to the header length.
    pub fn new(bytes: &'a [u8]) -> Options<'a> {
        Options(bytes)
    }
}

/// An option that runs over the end of the header, or whose length is below 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

impl<'a> Iterator for Options<'a> {
    /// The option's bytes: kind, length, data; one byte for no operation.
    type Item = Result<&'a [u8], BadOption>;

    fn next(&mut self) -> Option<Result<&'a [u8], BadOption>> {
        let len = match *self.0 {
            [] | [OPTION_END, ..] => return None,
            [OPTION_NOP, ..] => 1,
            [_, len, ..] if len >= 2 => usize::from(len),
            _ => 0,
        };
        let Some((option, rest)) = self.0.split_at_checked(len).filter(|_| len > 0) else {
            self.0 = &[];
            return Some(Err(BadOption));
        };
        self.0 = rest;
        Some(Ok(option))
    }
}

/// TTL of the packets that Egret makes.
const MADE_TTL: u8 = 64;

/// Writes the header of a packet that Egret makes and that fills `ip`: no options, a right checksum.
/// Nothing happens if `ip` is too short for it.
pub fn write_made(
    ip: &mut [u8],
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    dscp_ecn: u8,
    identification: u16,
) {
    let total_len = ip.len() as u16;
    let Some(bytes) = ip.first_chunk_mut::<HEADER_LEN>() else {
        return;
    };
    bytes.fill(0);
    let mut header = HeaderMut(bytes);
    header.set_header_len(HEADER_LEN);
    header.set_dscp_ecn(dscp_ecn);
    header.set_total_len(total_len);
    header.set_identification(identification);
    header.set_ttl(MADE_TTL);
    header.set_protocol(protocol);
    header.set_source(source);
    header.set_destination(destination);
    let checksum = !checksum::sum(bytes);
    HeaderMut(bytes).set_checksum(checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_end_at_the_end_of_the_list_or_of_the_bytes() {
        let list = [OPTION_NOP, 7, 3, 4, OPTION_END, 9, 9, 9];
        let options: Vec<_> = Options::new(&list).map(Result::unwrap).collect();
        assert_eq!(options, [&[OPTION_NOP][..], &[7, 3, 4]]);
        assert_eq!(Options::new(&[]).count(), 0);
    }

    #[test]
    fn a_bad_option_is_reported_once() {
        for list in [
            &[7u8, 0, 0, 0][..],
            &[7, 1, 0, 0],
            &[7, 5, 0, 0],
            &[1, 1, 1, 7],
        ] {
            let last = Options::new(list).last().unwrap();
            assert_eq!(last, Err(BadOption), "{list:?}");
            assert!(Options::new(list).count() <= 4);
        }
    }

    #[test]
    fn reads_what_was_written() {
        let mut bytes = [0; HEADER_LEN];
        let mut header = HeaderMut::new(&mut bytes).unwrap();
        header.set_header_len(24);
        header.set_dscp_ecn(0xB9);
        header.set_total_len(1400);
        header.set_identification(7);
        header.set_flags_offset(MORE_FRAGMENTS | 5);
        header.set_ttl(63);
        header.set_protocol(17);
        header.set_checksum(0xABCD);
        header.set_source(Ipv4Addr::new(10, 0, 0, 1));
        header.set_destination(Ipv4Addr::new(192, 0, 2, 1));
        let header = header.as_ref();
        assert_eq!((header.version(), header.header_len()), (4, 24));
        assert_eq!(
            bytes,
            [
                0x46, 0xB9, 0x05, 0x78, 0, 7, 0x20, 5, 63, 17, 0xAB, 0xCD, 10, 0, 0, 1, 192, 0, 2,
                1
            ]
        );
    }
}
