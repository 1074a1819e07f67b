//! The UDP header (RFC 768). Offsets count from its first byte.

use super::be16;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Offset of the source port.
pub const SOURCE_PORT: usize = 0;
/// Offset of the destination port.
pub const DESTINATION_PORT: usize = 2;
/// Offset of the length.
pub const LEN: usize = 4;
/// Offset of the checksum; 0: none.
pub const CHECKSUM: usize = 6;

/// A header to read.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Header<'a> {
    /// The header at the start of `bytes`; none if they are too few.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Header<'a>> {
        bytes.first_chunk().map(Header)
    }

    /// Source port.
    #[inline]
    pub fn source_port(self) -> u16 {
        be16(self.0, SOURCE_PORT)
    }

    /// Destination port.
    #[inline]
    pub fn destination_port(self) -> u16 {
        be16(self.0, DESTINATION_PORT)
    }

    /// Bytes of header and payload as it says; valid from 8.
    #[inline]
    pub fn len(self) -> u16 {
        be16(self.0, LEN)
    }

    /// Does the datagram carry no payload?
    #[inline]
    pub fn is_empty(self) -> bool {
        usize::from(self.len()) <= HEADER_LEN
    }

    /// Checksum; 0: none.
    #[inline]
    pub fn checksum(self) -> u16 {
        be16(self.0, CHECKSUM)
    }
}
