//! Network interfaces: index, address, MTU, state, and which XDP program is attached.
//!
//! Everything here concerns the network namespace of the calling thread.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `RTEXT_FILTER_SKIP_STATS` of linux/rtnetlink.h.
const SKIP_STATS: u32 = 1 << 3;
/// Interface attributes of linux/if_link.h: `IFLA_EXT_MASK`, and `IFLA_XDP` with its parts.
const IFLA_EXT_MASK: u16 = 29;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// Type bits of an attribute, without the nested and byte order flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
/// Bytes of `struct nlmsghdr` and `struct ifinfomsg`.
const NETLINK_HEADER: usize = 16;
const LINK_HEADER: usize = 16;

/// An interface request with the name filled in, everything else zero.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is integers, byte arrays and a raw pointer: all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        let why = format!("{name:?} is not an interface name");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    for (place, &byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

/// Any socket will do for interface requests.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// Runs an interface request that reads or writes the `ifreq` itself only.
fn ioctl(request: &mut libc::ifreq, code: libc::c_ulong) -> io::Result<()> {
    let socket = control_socket()?;
    // SAFETY: the codes that this module passes read and write one ifreq, which is ours, and no
    // memory behind it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code as _, std::ptr::from_mut(request)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Index of an interface.
pub fn index(name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    ioctl(&mut request, libc::SIOCGIFINDEX as _)?;
    // SAFETY: SIOCGIFINDEX filled this member of the union in.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// Ethernet address of an interface. Fails with `InvalidInput` if it is not an Ethernet device.
pub fn mac(name: &str) -> io::Result<[u8; 6]> {
    let mut request = request(name)?;
    ioctl(&mut request, libc::SIOCGIFHWADDR as _)?;
    // SAFETY: SIOCGIFHWADDR filled this member of the union in.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        let why = format!("{name} is not an Ethernet interface");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(std::array::from_fn(|at| address.sa_data[at] as u8))
}

/// Largest IP packet of an interface, in bytes.
pub fn mtu(name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    ioctl(&mut request, libc::SIOCGIFMTU as _)?;
    // SAFETY: SIOCGIFMTU filled this member of the union in.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Sets the largest IP packet of an interface, in bytes.
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    ioctl(&mut request, libc::SIOCSIFMTU as _)
}

fn flags(request: &mut libc::ifreq) -> io::Result<libc::c_short> {
    ioctl(request, libc::SIOCGIFFLAGS as _)?;
    // SAFETY: SIOCGIFFLAGS filled this member of the union in.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// A number of the calling thread's network namespace that no other one gets before the next boot
/// (Linux 5.14).
pub fn namespace_cookie() -> io::Result<u64> {
    let socket = control_socket()?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

/// Is the interface up?
pub fn is_up(name: &str) -> io::Result<bool> {
    Ok(flags(&mut request(name)?)? & libc::IFF_UP as libc::c_short != 0)
}

/// Brings an interface up.
pub fn set_up(name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    let flags = flags(&mut request)?;
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(&mut request, libc::SIOCSIFFLAGS as _)
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// Run by the driver.
    Native,
    /// Run by the network stack, after the driver has made a socket buffer.
    Generic,
}

impl std::fmt::Display for XdpMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        })
    }
}

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// Number of the program, as bpftool shows it.
    pub program: u32,
    /// How it is attached; `None` if by the hardware or in several ways.
    pub mode: Option<XdpMode>,
}

/// Which XDP program is attached to an interface, if any.
pub fn attached_xdp(ifindex: u32) -> io::Result<Option<AttachedXdp>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(
        socket.as_raw_fd(),
        &link_query(ifindex),
        &kernel,
        MsgFlags::empty(),
    )?;
    let mut reply = vec![0; 32 << 10];
    let len = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    xdp_of_reply(&reply[..len])
}

/// An RTM_GETLINK request for one interface.
fn link_query(ifindex: u32) -> Vec<u8> {
    let mut query = Vec::with_capacity(40);
    query.extend_from_slice(&40_u32.to_ne_bytes());
    query.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    query.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    query.extend_from_slice(&[0; 8]);
    query.extend_from_slice(&[0; 4]);
    query.extend_from_slice(&ifindex.to_ne_bytes());
    query.extend_from_slice(&[0; 8]);
    query.extend_from_slice(&8_u16.to_ne_bytes());
    query.extend_from_slice(&IFLA_EXT_MASK.to_ne_bytes());
    query.extend_from_slice(&SKIP_STATS.to_ne_bytes());
    query
}

/// The attributes of a message body: type and contents.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & ATTRIBUTE_TYPE;
        let body = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes
        .first_chunk::<4>()
        .map(|word| u32::from_ne_bytes(*word))
}

fn xdp_of_reply(reply: &[u8]) -> io::Result<Option<AttachedXdp>> {
    let short = || io::Error::other("the kernel's answer about an interface is too short");
    let kind = reply.get(4..6).ok_or_else(short)?;
    let body = reply.get(NETLINK_HEADER..).ok_or_else(short)?;
    if kind == (libc::NLMSG_ERROR as u16).to_ne_bytes() {
        let code = word(body).ok_or_else(short)? as i32;
        return Err(io::Error::from_raw_os_error(-code));
    }
    let Some((_, xdp)) =
        attributes(body.get(LINK_HEADER..).ok_or_else(short)?).find(|(kind, _)| *kind == IFLA_XDP)
    else {
        return Ok(None);
    };
    let part = |wanted| {
        attributes(xdp)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, body)| body)
    };
    let mode = match part(IFLA_XDP_ATTACHED).and_then(|body| body.first()) {
        None | Some(0) => return Ok(None),
        Some(1) => Some(XdpMode::Native),
        Some(2) => Some(XdpMode::Generic),
        Some(_) => None,
    };
    let ids = [
        IFLA_XDP_PROG_ID,
        IFLA_XDP_DRV_PROG_ID,
        IFLA_XDP_SKB_PROG_ID,
        IFLA_XDP_HW_PROG_ID,
    ];
    let program = ids
        .iter()
        .find_map(|&id| part(id).and_then(word))
        .unwrap_or(0);
    Ok(Some(AttachedXdp { program, mode }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known() {
        assert_eq!(namespace_cookie().unwrap(), namespace_cookie().unwrap());
        assert_eq!(index("lo").unwrap(), 1);
        assert!(mtu("lo").unwrap() >= 1280);
        assert_eq!(mac("lo").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(attached_xdp(1).unwrap(), None);
    }

    #[test]
    fn errors_come_back() {
        assert!(index("no-such-if0").is_err());
        assert_eq!(
            index("a-name-beyond-all-bounds").unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(attached_xdp(0x7fff_fff0).is_err());
        assert!(xdp_of_reply(&[0; 7]).is_err());
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_list() {
        assert_eq!(attributes(&[3, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(
            attributes(&[5, 0, 1, 0, 9]).collect::<Vec<_>>(),
            [(1, &[9_u8][..])]
        );
    }
}
