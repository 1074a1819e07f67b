//! The ICMP header (RFC 792). Offsets count from its first byte.

use super::be16;

/// Bytes of the header of a query or an error.
pub const HEADER_LEN: usize = 8;
/// Offset of the type.
pub const TYPE: usize = 0;
/// Offset of the code.
pub const CODE: usize = 1;
/// Offset of the checksum, over the whole message.
pub const CHECKSUM: usize = 2;
/// Offset of a query's identifier.
pub const IDENTIFIER: usize = 4;
/// Offset of an error's count of quoted 32-bit words; 0: unsaid (RFC 4884 section 3).
pub const QUOTED_WORDS: usize = 5;
/// Offset of the next-hop MTU of "fragmentation needed" (RFC 1191).
pub const NEXT_HOP_MTU: usize = 6;

/// Type: echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type: destination unreachable; an error.
pub const UNREACHABLE: u8 = 3;
/// Type: echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type: time exceeded; an error.
pub const TIME_EXCEEDED: u8 = 11;
/// Type: parameter problem; an error.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Type: timestamp request.
pub const TIMESTAMP: u8 = 13;
/// Type: timestamp reply.
pub const TIMESTAMP_REPLY: u8 = 14;

/// Code of [`UNREACHABLE`]: host.
pub const CODE_HOST: u8 = 1;
/// Code of [`UNREACHABLE`]: port.
pub const CODE_PORT: u8 = 3;
/// Code of [`UNREACHABLE`]: fragmentation needed and DF set.
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`UNREACHABLE`]: communication administratively prohibited (RFC 1812).
pub const CODE_ADMIN_PROHIBITED: u8 = 13;
/// Code of [`TIME_EXCEEDED`]: TTL.
pub const CODE_TTL: u8 = 0;

/// A header to read.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Header<'a> {
    /// The header at the start of `bytes`; none if they are too few.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Header<'a>> {
        bytes.first_chunk().map(Header)
    }

    /// Type.
    #[inline]
    pub fn icmp_type(self) -> u8 {
        self.0[TYPE]
    }

    /// Code.
    #[inline]
    pub fn code(self) -> u8 {
        self.0[CODE]
    }

    /// Checksum.
    #[inline]
    pub fn checksum(self) -> u16 {
        be16(self.0, CHECKSUM)
    }

    /// A query's identifier.
    #[inline]
    pub fn identifier(self) -> u16 {
        be16(self.0, IDENTIFIER)
    }

    /// Bytes that an error quotes, as it says; 0: unsaid (RFC 4884 section 3).
    #[inline]
    pub fn quoted_len(self) -> usize {
        usize::from(self.0[QUOTED_WORDS]) * 4
    }
}
