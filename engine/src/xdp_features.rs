//! What a driver can do with XDP, as the kernel tells it: the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml; Linux 6.3 and later).

use std::io;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// What a driver can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs programs itself, and redirects.
    pub native: bool,
    /// It can bind AF_XDP sockets without copying.
    pub zero_copy: bool,
}

const NETLINK_HEADER_LEN: usize = 16;
const GENERIC_HEADER_LEN: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `nlctrl`, which names all other families; its request and attributes.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const XDP_BASIC: u64 = 1;
const XDP_REDIRECT: u64 = 2;
const XDP_XSK_ZEROCOPY: u64 = 8;

/// Asks the kernel. Errors: it does not know the family (before Linux 6.3), or the interface.
pub fn read(ifindex: u32) -> io::Result<XdpFeatures> {
    let socket = Socket::new(NETLINK_GENERIC)?;
    let family = ask(
        &socket,
        &request(
            GENL_ID_CTRL,
            CTRL_CMD_GETFAMILY,
            CTRL_ATTR_FAMILY_NAME,
            b"netdev\0",
        ),
    )?;
    let id = attribute(&family, CTRL_ATTR_FAMILY_ID).and_then(|value| value.first_chunk().copied());
    let id = u16::from_ne_bytes(id.ok_or(io::ErrorKind::InvalidData)?);
    let device = ask(
        &socket,
        &request(
            id,
            NETDEV_CMD_DEV_GET,
            NETDEV_A_DEV_IFINDEX,
            &ifindex.to_ne_bytes(),
        ),
    )?;
    let bits = attribute(&device, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|value| value.first_chunk().copied())
        .map_or(0, u64::from_ne_bytes);
    Ok(XdpFeatures {
        native: bits & XDP_BASIC != 0 && bits & XDP_REDIRECT != 0,
        zero_copy: bits & XDP_XSK_ZEROCOPY != 0,
    })
}

/// A generic netlink request with one attribute.
fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute_len = 4 + value.len();
    let len = NETLINK_HEADER_LEN + GENERIC_HEADER_LEN + attribute_len.next_multiple_of(4);
    let mut message = Vec::with_capacity(len);
    message.extend((len as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // port: the kernel fills it in
    message.extend([command, 1, 0, 0]);
    message.extend((attribute_len as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(len, 0);
    message
}

/// Sends a request; the attributes of the answer.
fn ask(socket: &Socket, request: &[u8]) -> io::Result<Vec<u8>> {
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer
        .get(4..6)
        .and_then(|kind| kind.first_chunk().copied());
    let kind = u16::from_ne_bytes(kind.ok_or(io::ErrorKind::InvalidData)?);
    if kind == NLMSG_ERROR {
        let code = answer
            .get(NETLINK_HEADER_LEN..)
            .and_then(|code| code.first_chunk().copied());
        let code = i32::from_ne_bytes(code.ok_or(io::ErrorKind::InvalidData)?);
        return Err(io::Error::from_raw_os_error(-code));
    }
    let attributes = answer.get(NETLINK_HEADER_LEN + GENERIC_HEADER_LEN..);
    Ok(attributes.ok_or(io::ErrorKind::InvalidData)?.to_vec())
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *attributes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([c, d]) & 0x3fff == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_never_beyond_the_end() {
        let mut bytes = request(0, 0, 7, b"abc")[20..].to_vec();
        bytes.extend(&request(0, 0, 9, &5_u64.to_ne_bytes())[20..]);
        assert_eq!(attribute(&bytes, 7), Some(&b"abc"[..]));
        assert_eq!(attribute(&bytes, 9), Some(&5_u64.to_ne_bytes()[..]));
        assert_eq!(attribute(&bytes, 8), None);
        for cut in 0..bytes.len() {
            attribute(&bytes[..cut], 9);
        }
        assert_eq!(
            attribute(&[0, 0, 0, 0, 1], 9),
            None,
            "a length of zero ends the list"
        );
    }

    #[test]
    fn loopback_has_no_native_xdp() {
        match read(1) {
            Ok(features) => assert_eq!(
                features,
                XdpFeatures {
                    native: false,
                    zero_copy: false
                }
            ),
            Err(error) => println!("skipped: the kernel does not tell: {error}"),
        }
    }
}
