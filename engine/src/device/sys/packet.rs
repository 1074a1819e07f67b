//! Sending frames as ordinary socket buffers, many a system call (packet(7)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The most frames that one call sends.
pub const BATCH_MAX: usize = 64;

/// A packet socket that hands frames to an interface's driver, past its queueing discipline.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens an interface of the calling thread's network namespace for sending. Needs CAP_NET_RAW.
    pub fn open(ifindex: u32) -> io::Result<PacketSocket> {
        // Protocol 0: it never receives.
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let bypass: libc::c_int = 1;
        // SAFETY: the option is an int, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const bypass).cast(),
                size_of_val(&bypass) as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: sockaddr_ll is integers: all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = ifindex as libc::c_int;
        // SAFETY: the address is a live sockaddr_ll of the stated length.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PacketSocket { fd })
    }

    /// Sends frames in order, [`BATCH_MAX`] at most; how many were taken.
    pub fn send<const LEN: usize>(&self, frames: &[[u8; LEN]]) -> io::Result<usize> {
        let count = frames.len().min(BATCH_MAX);
        // SAFETY: iovec and mmsghdr are integers and pointers: all zeroes is a value.
        let mut parts: [libc::iovec; BATCH_MAX] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH_MAX] = unsafe { std::mem::zeroed() };
        for ((part, message), frame) in parts.iter_mut().zip(&mut messages).zip(&frames[..count]) {
            part.iov_base = frame.as_ptr().cast_mut().cast();
            part.iov_len = LEN;
            message.msg_hdr.msg_iov = std::ptr::from_mut(part);
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: `count` messages are filled in; each points to one live part, and that to a frame
        // of the stated length, which sending only reads.
        let sent = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(sent as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(PacketSocket::open(u32::MAX >> 1).is_err());
    }
}
