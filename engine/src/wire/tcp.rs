//! The TCP header (RFC 9293 section 3.1). Offsets count from its first byte.

use super::{be16, be32};

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 20;
/// Offset of the source port.
pub const SOURCE_PORT: usize = 0;
/// Offset of the destination port.
pub const DESTINATION_PORT: usize = 2;
/// Offset of the sequence number.
pub const SEQUENCE: usize = 4;
/// Offset of the acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = 8;
/// Offset of the data offset: header length in 32-bit words (high 4 bits).
pub const DATA_OFFSET: usize = 12;
/// Offset of the flags.
pub const FLAGS: usize = 13;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

/// Flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// Flag: the urgent pointer counts.
pub const URG: u8 = 0x20;

/// A header to read, without its options.
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

    /// Sequence number.
    #[inline]
    pub fn sequence(self) -> u32 {
        be32(self.0, SEQUENCE)
    }

    /// Acknowledgement number; it counts only with [`ACK`].
    #[inline]
    pub fn acknowledgement(self) -> u32 {
        be32(self.0, ACKNOWLEDGEMENT)
    }

    /// Bytes of the header as it says: 0 to 60; valid from 20.
    #[inline]
    pub fn header_len(self) -> usize {
        usize::from(self.0[DATA_OFFSET] >> 4) * 4
    }

    /// Flags.
    #[inline]
    pub fn flags(self) -> u8 {
        self.0[FLAGS]
    }

    /// Checksum.
    #[inline]
    pub fn checksum(self) -> u16 {
        be16(self.0, CHECKSUM)
    }
}
