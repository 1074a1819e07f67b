//! ARP over Ethernet for IPv4 (RFC 826) and announcements (RFC 5227 section 2.3).

use std::net::Ipv4Addr;

use super::{address, be16, ethernet, put_address, put16};

/// Bytes of the ARP message.
pub const MESSAGE_LEN: usize = 28;
/// Bytes of the whole frame, Ethernet header included, without padding.
pub const FRAME_LEN: usize = ethernet::HEADER_LEN + MESSAGE_LEN;
/// Offset of the operation.
pub const OPERATION: usize = 6;
/// Offset of the sender's Ethernet address.
pub const SENDER_MAC: usize = 8;
/// Offset of the sender's IPv4 address.
pub const SENDER_ADDR: usize = 14;
/// Offset of the target's Ethernet address.
pub const TARGET_MAC: usize = 18;
/// Offset of the target's IPv4 address.
pub const TARGET_ADDR: usize = 24;

/// Operation: request.
pub const REQUEST: u16 = 1;
/// Operation: reply.
pub const REPLY: u16 = 2;

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const FIXED: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// A message to read.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a>(&'a [u8; MESSAGE_LEN]);

impl<'a> Message<'a> {
    /// The message at the start of `bytes`; none if they are too few or not Ethernet and IPv4.
    pub fn new(bytes: &'a [u8]) -> Option<Message<'a>> {
        bytes
            .first_chunk()
            .filter(|b: &&[u8; MESSAGE_LEN]| b.starts_with(&FIXED))
            .map(Message)
    }

    /// [`REQUEST`], [`REPLY`] or another operation.
    pub fn operation(self) -> u16 {
        be16(self.0, OPERATION)
    }

    /// The sender's Ethernet address.
    pub fn sender_mac(self) -> [u8; 6] {
        let b = self.0;
        [b[8], b[9], b[10], b[11], b[12], b[13]]
    }

    /// The sender's IPv4 address.
    pub fn sender_addr(self) -> Ipv4Addr {
        address(self.0, SENDER_ADDR)
    }

    /// The target's IPv4 address.
    pub fn target_addr(self) -> Ipv4Addr {
        address(self.0, TARGET_ADDR)
    }
}

/// A gratuitous ARP frame, broadcast: "`addr` is at `mac`". With [`REQUEST`] it is the announcement
/// of RFC 5227; some switches and hosts learn only from a [`REPLY`], so a burst sends both.
pub fn announcement(mac: [u8; 6], addr: Ipv4Addr, operation: u16) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    ethernet::write(
        &mut frame,
        ethernet::BROADCAST,
        mac,
        Some(ethernet::TYPE_ARP),
    );
    const AT: usize = ethernet::HEADER_LEN;
    frame[AT..AT + OPERATION].copy_from_slice(&FIXED);
    put16(&mut frame, AT + OPERATION, operation);
    frame[AT + SENDER_MAC..AT + SENDER_ADDR].copy_from_slice(&mac);
    put_address(&mut frame, AT + SENDER_ADDR, addr);
    if operation == REPLY {
        frame[AT + TARGET_MAC..AT + TARGET_ADDR].copy_from_slice(&ethernet::BROADCAST);
    }
    put_address(&mut frame, AT + TARGET_ADDR, addr);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_byte_by_byte() {
        let frame = announcement([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 7), REQUEST);
        let expected: [u8; 42] = [
            0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 1, 8, 6, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 1, // request
            2, 0, 0, 0, 0, 1, 192, 0, 2, 7, // sender
            0, 0, 0, 0, 0, 0, 192, 0, 2, 7, // target
        ];
        assert_eq!(frame, expected);
        let message = Message::new(&frame[14..]).unwrap();
        assert_eq!(message.operation(), REQUEST);
        assert_eq!(message.sender_mac(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(message.sender_addr(), message.target_addr());
    }

    #[test]
    fn a_reply_announcement_names_everyone_as_its_target() {
        let frame = announcement([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 7), REPLY);
        assert_eq!(&frame[20..22], &[0, 2]);
        assert_eq!(&frame[32..38], &[0xFF; 6]);
    }

    #[test]
    fn other_hardware_is_no_message() {
        let mut frame = announcement([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 7), REQUEST);
        frame[15] = 6;
        assert!(Message::new(&frame[14..]).is_none());
        assert!(Message::new(&frame[14..41]).is_none());
    }
}
