//! A TAP device: a network interface whose other end is a file (drivers/net/tun.c).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::link;

/// What a TAP's owner can be given unfinished: checksums; TCP's super-packets, with and without CWR
/// on the first segment.
const TCP_OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP's (Linux 6.2). The kernel takes both or none; IPv6 is never sent here.
const UDP_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A TAP device, or one queue of it. The interface disappears when the last of them is dropped.
/// Frames are read and written with a `struct virtio_net_hdr` before them, and neither ever blocks.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    ifindex: u32,
}

/// How packets come out of a TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// As the kernel has them: with checksums to be completed, and super-packets to be cut.
    Unfinished,
    /// As they go onto a wire: the kernel completes and cuts them first.
    Whole,
}

/// Why a TAP could not be made ready.
#[derive(Debug, thiserror::Error)]
#[error("TAP {name}: {step}: {source}{}", remedy(.source))]
pub struct TapError {
    name: String,
    step: &'static str,
    #[source]
    source: io::Error,
}

impl TapError {
    /// Names the TAP and what was being done in the kernel's answer.
    pub fn at(name: &str, step: &'static str) -> impl FnOnce(io::Error) -> TapError {
        let name = name.to_owned();
        move |source| TapError { name, step, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            " (is there /dev/net/tun? `modprobe tun`, and give the container the device)"
        }
        io::ErrorKind::PermissionDenied => " (it takes CAP_NET_ADMIN and access to /dev/net/tun)",
        _ => "",
    }
}

impl Tap {
    /// Makes the interface `name`, down, in the network namespace of the calling thread, with one
    /// queue. Fails with `ResourceBusy` if the name is taken.
    pub fn create(name: &str) -> io::Result<Tap> {
        Tap::attach(name, libc::IFF_TUN_EXCL)
    }

    /// Makes it with so many queues: one value each. What is written into the interface may come
    /// from any. Packets that are still [`Packets::Unfinished`] come so, or the kernel finishes them.
    pub fn create_queues(name: &str, queues: u32, packets: Packets) -> io::Result<Vec<Tap>> {
        let first = Tap::attach(name, libc::IFF_MULTI_QUEUE | libc::IFF_TUN_EXCL)?;
        if packets == Packets::Unfinished {
            first.take_unfinished()?;
        }
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(Tap::attach(name, libc::IFF_MULTI_QUEUE)?);
        }
        Ok(all)
    }

    fn attach(name: &str, flags: libc::c_int) -> io::Result<Tap> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = link::request(name)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let ifindex = link::index(name)?;
        Ok(Tap {
            file,
            name: name.to_owned(),
            ifindex,
        })
    }

    /// Lets the kernel hand over what is unfinished; UDP's super-packets where it has them.
    fn take_unfinished(&self) -> io::Result<()> {
        self.set_offloads(TCP_OFFLOADS | UDP_OFFLOADS)
            .or_else(|_| self.set_offloads(TCP_OFFLOADS))
    }

    fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()> {
        let value = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes its argument as a number.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, value) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Index of the interface.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
