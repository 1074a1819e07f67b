//! Ethernet II: destination, source, EtherType; 14 bytes, untagged.

use super::be16;

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;
/// Offset of the destination address.
pub const DESTINATION: usize = 0;
/// Offset of the source address.
pub const SOURCE: usize = 6;
/// Offset of the EtherType.
pub const ETHER_TYPE: usize = 12;

/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const TYPE_ARP: u16 = 0x0806;
/// The broadcast address.
pub const BROADCAST: [u8; 6] = [0xFF; 6];

/// A header to read.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Header<'a> {
    /// The header at the start of `bytes`; none if they are too few.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Header<'a>> {
        bytes.first_chunk().map(Header)
    }

    /// Destination address.
    #[inline]
    pub fn destination(self) -> [u8; 6] {
        let b = self.0;
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// Source address.
    #[inline]
    pub fn source(self) -> [u8; 6] {
        let b = self.0;
        [b[6], b[7], b[8], b[9], b[10], b[11]]
    }

    /// EtherType.
    #[inline]
    pub fn ether_type(self) -> u16 {
        be16(self.0, ETHER_TYPE)
    }

    /// Is the destination a group address (broadcast included)?
    #[inline]
    pub fn is_group(self) -> bool {
        self.0[DESTINATION] & 1 == 1
    }
}

/// Writes both addresses and, if given, the EtherType; nothing if `bytes` are fewer than 14.
#[inline]
pub fn write(bytes: &mut [u8], destination: [u8; 6], source: [u8; 6], ether_type: Option<u16>) {
    let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() else {
        return;
    };
    header[DESTINATION..SOURCE].copy_from_slice(&destination);
    header[SOURCE..ETHER_TYPE].copy_from_slice(&source);
    if let Some(ether_type) = ether_type {
        super::put16(header, ETHER_TYPE, ether_type);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written() {
        let mut bytes = [0; 15];
        write(&mut bytes, BROADCAST, [2, 0, 0, 0, 0, 7], Some(TYPE_ARP));
        let header = Header::new(&bytes).unwrap();
        assert_eq!(header.destination(), BROADCAST);
        assert_eq!(header.source(), [2, 0, 0, 0, 0, 7]);
        assert_eq!(header.ether_type(), TYPE_ARP);
        assert!(header.is_group());
        write(&mut bytes, [2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8], None);
        let header = Header::new(&bytes).unwrap();
        assert_eq!((header.ether_type(), header.is_group()), (TYPE_ARP, false));
        assert!(Header::new(&bytes[..13]).is_none());
    }
}
