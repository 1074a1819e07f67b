//! One AF_XDP socket: a queue of an interface with its four rings.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mapping::Mapping;
use super::ring::{Consumer, Descriptor, Entry, Offsets, Producer};
use super::umem::Umem;
use crate::device::{FRAME_SIZE, SocketCounters};

/// Entries of a fill and of a completion ring.
pub const FILL_RING: u32 = 4096;
/// Entries of a receive and of a transmit ring.
pub const RX_RING: u32 = 2048;
/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (Linux 6.17): frames that one system call sends.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Frames that one system call sends where the option above is missing (`TX_BATCH_SIZE`).
const TX_BATCH: u32 = 32;
/// How long a queue that is still being torn down is waited for, and how often it is tried.
const BUSY_WAIT: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A queue of an interface, for binding and for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Name of the interface.
    pub interface: String,
    /// Its index in the network namespace of the calling thread.
    pub ifindex: u32,
    /// Number of the receive queue.
    pub queue: u32,
}

/// How a socket and its driver exchange frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Zero-copy where the driver has it, else copy.
    #[default]
    Auto,
    /// Copy, whatever the driver has.
    Copy,
    /// Zero-copy or an error.
    ZeroCopy,
}

/// Which frame memory a socket is bound with.
#[derive(Clone, Copy, Debug)]
pub enum Bind<'a> {
    /// Its own registration; the mode holds for all that share it.
    Owner(CopyMode),
    /// That of another socket.
    Shared(BorrowedFd<'a>),
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{interface} queue {queue}: {step}: {source}; {advice}")]
pub struct SocketError {
    /// Name of the interface.
    pub interface: String,
    /// Number of the queue.
    pub queue: u32,
    /// What was being done.
    pub step: &'static str,
    /// What to do about it.
    pub advice: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl SocketError {
    fn new(queue: &Queue, step: &'static str, source: io::Error) -> SocketError {
        let advice = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_RAW and CAP_NET_ADMIN",
            Some(libc::EBUSY) => "another socket is bound to this queue: stop its process",
            Some(libc::ENETDOWN) => "bring the interface up",
            Some(libc::ENODEV | libc::ENXIO) => "the interface does not exist in this namespace",
            Some(libc::EINVAL) => "there may be no such queue: compare with `ethtool -l`",
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
                "the driver does not support this mode: choose copy mode"
            }
            Some(libc::ENOBUFS) => "raise the limit of locked memory (RLIMIT_MEMLOCK)",
            Some(libc::ENOMEM) => "give the engine fewer frames, or the machine more memory",
            Some(libc::EAFNOSUPPORT) => "the kernel was built without CONFIG_XDP_SOCKETS",
            _ => "see the kernel log",
        };
        let interface = queue.interface.clone();
        SocketError {
            interface,
            queue: queue.queue,
            step,
            advice,
            source,
        }
    }
}

/// One AF_XDP socket with its rings.
pub struct Socket {
    /// Receive ring.
    pub rx: Consumer<Descriptor>,
    /// Transmit ring.
    pub tx: Producer<Descriptor>,
    /// Fill ring.
    pub fill: Producer<u64>,
    /// Completion ring.
    pub completion: Consumer<u64>,
    /// Transmit entries sent by one system call.
    tx_budget: u32,
    fd: OwnedFd,
}

impl Socket {
    /// Makes a socket and its rings; with `register`, also registers the frame memory with it. To
    /// receive, fill its ring, then [`Socket::bind`] it.
    pub fn create(queue: &Queue, register: Option<&Umem>) -> Result<Socket, SocketError> {
        let fail = |step| move |source| SocketError::new(queue, step, source);
        let fd = open().map_err(fail("opening an AF_XDP socket"))?;
        if let Some(umem) = register {
            register_umem(fd.as_fd(), umem).map_err(fail("registering the frame memory"))?;
        }
        let rings = [
            (libc::XDP_UMEM_FILL_RING, FILL_RING),
            (libc::XDP_UMEM_COMPLETION_RING, FILL_RING),
            (libc::XDP_RX_RING, RX_RING),
            (libc::XDP_TX_RING, RX_RING),
        ];
        for (option, entries) in rings {
            set_option(fd.as_fd(), option, &entries).map_err(fail("sizing a ring"))?;
        }
        let budget = set_option(fd.as_fd(), XDP_MAX_TX_SKB_BUDGET, &RX_RING);
        let tx_budget = if budget.is_ok() { RX_RING } else { TX_BATCH };
        let at = ring_offsets(fd.as_fd()).map_err(fail("reading the ring layout"))?;
        let map = |step, offset, at: &libc::xdp_ring_offset, bytes| {
            map_ring(fd.as_fd(), offset, at, bytes).map_err(fail(step))
        };
        let wrong = |step| move |why| SocketError::new(queue, step, io::Error::other(why));
        let fill = "mapping the fill ring";
        let (memory, offsets) = map(
            fill,
            libc::XDP_UMEM_PGOFF_FILL_RING as i64,
            &at.fr,
            ring_bytes::<u64>(FILL_RING),
        )?;
        let fill = Producer::new(memory, FILL_RING, offsets).map_err(wrong(fill))?;
        let completion = "mapping the completion ring";
        let place = libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64;
        let (memory, offsets) = map(completion, place, &at.cr, ring_bytes::<u64>(FILL_RING))?;
        let completion = Consumer::new(memory, FILL_RING, offsets).map_err(wrong(completion))?;
        let rx = "mapping the receive ring";
        let (memory, offsets) = map(
            rx,
            XDP_PGOFF_RX_RING,
            &at.rx,
            ring_bytes::<Descriptor>(RX_RING),
        )?;
        let rx = Consumer::new(memory, RX_RING, offsets).map_err(wrong(rx))?;
        let tx = "mapping the transmit ring";
        let (memory, offsets) = map(
            tx,
            XDP_PGOFF_TX_RING,
            &at.tx,
            ring_bytes::<Descriptor>(RX_RING),
        )?;
        let tx = Producer::new(memory, RX_RING, offsets).map_err(wrong(tx))?;
        Ok(Socket {
            rx,
            tx,
            fill,
            completion,
            tx_budget,
            fd,
        })
    }

    /// Binds the socket to its queue. A queue whose last owner has just closed it is busy for some
    /// 100 ms (its teardown is asynchronous), so a busy queue is tried again for up to 2 s.
    pub fn bind(&self, queue: &Queue, bind: Bind<'_>) -> Result<(), SocketError> {
        let (flags, shared) = match bind {
            Bind::Owner(mode) => {
                let copy = match mode {
                    CopyMode::Auto => 0,
                    CopyMode::Copy => libc::XDP_COPY,
                    CopyMode::ZeroCopy => libc::XDP_ZEROCOPY,
                };
                (copy | libc::XDP_USE_NEED_WAKEUP, 0)
            }
            Bind::Shared(owner) => (libc::XDP_SHARED_UMEM, owner.as_raw_fd() as u32),
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: queue.ifindex,
            sxdp_queue_id: queue.queue,
            sxdp_shared_umem_fd: shared,
        };
        let deadline = Instant::now() + BUSY_WAIT;
        loop {
            // SAFETY: the address is a whole sockaddr_xdp and the length is its size.
            let result = unsafe {
                libc::bind(
                    self.fd.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as libc::socklen_t,
                )
            };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline {
                return Err(SocketError::new(queue, "binding", error));
            }
            std::thread::sleep(BUSY_PAUSE);
        }
    }

    /// Does the bound socket exchange frames without copying?
    pub fn zero_copy(&self) -> io::Result<bool> {
        let options: libc::xdp_options = get_option(self.fd.as_fd(), libc::XDP_OPTIONS)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// What the kernel counted. Fields that an old kernel lacks are 0, and so are those that the
    /// device counts itself.
    pub fn statistics(&self) -> io::Result<SocketCounters> {
        let raw: libc::xdp_statistics = get_option(self.fd.as_fd(), libc::XDP_STATISTICS)?;
        Ok(SocketCounters {
            rx_dropped: raw.rx_dropped,
            rx_invalid: raw.rx_invalid_descs,
            tx_invalid: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            fill_ring_empty: raw.rx_fill_ring_empty_descs,
            tx_ring_empty: raw.tx_ring_empty_descs,
            ..SocketCounters::default()
        })
    }

    /// Lets the kernel send what is in the transmit ring, if it asks to be told. One call, more
    /// only where the kernel sends a bounded number of frames a call and takes them.
    ///
    /// ENOBUFS, EAGAIN, EBUSY and ENETDOWN are not errors: the entries stay and the next round
    /// tries again.
    pub fn wake_tx(&self) -> io::Result<()> {
        let mut pending = self.tx.pending();
        while pending > 0 && self.tx.needs_wakeup() {
            // SAFETY: a zero-length send reads no memory and needs no address.
            let result = unsafe {
                libc::sendto(
                    self.fd.as_raw_fd(),
                    std::ptr::null(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null(),
                    0,
                )
            };
            if result < 0 {
                tolerate(io::Error::last_os_error())?;
            }
            let left = self.tx.pending();
            if self.tx_budget >= RX_RING || left == 0 || left >= pending {
                return Ok(());
            }
            pending = left;
        }
        Ok(())
    }

    /// Lets the driver take new fill entries, if it asks to be told.
    pub fn wake_fill(&self) -> io::Result<()> {
        if !self.fill.needs_wakeup() {
            return Ok(());
        }
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, which outlives the call.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } < 0 {
            tolerate(io::Error::last_os_error())?;
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Page offset of the receive ring.
const XDP_PGOFF_RX_RING: i64 = 0;
/// Page offset of the transmit ring (libc's constant is an `off_t`, which is negative at 32 bits).
const XDP_PGOFF_TX_RING: i64 = 0x8000_0000;

/// Errors of a wake-up that pass by themselves.
fn tolerate(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOBUFS | libc::EAGAIN | libc::EBUSY | libc::ENETDOWN | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no memory involved; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn register_umem(fd: BorrowedFd<'_>, umem: &Umem) -> io::Result<()> {
    let (addr, len) = umem.region();
    let registration = libc::xdp_umem_reg {
        addr,
        len,
        chunk_size: FRAME_SIZE as u32,
        // The kernel leaves XDP_PACKET_HEADROOM before every frame anyway.
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::XDP_UMEM_REG, &registration)
}

/// Sets a socket option of level SOL_XDP to a plain value.
fn set_option<T: Copy>(fd: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Structures that the kernel fills in.
///
/// # Safety
/// All zeroes is a value, and so is every other bit pattern.
unsafe trait Plain: Copy {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_options {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_statistics {}

/// Gets a socket option of level SOL_XDP; what an old kernel does not fill in stays 0.
fn get_option<T: Plain>(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<T> {
    // SAFETY: `Plain` types may be all zeroes.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the value; any bytes are a value.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

fn ring_offsets(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let at: libc::xdp_mmap_offsets = get_option(fd, libc::XDP_MMAP_OFFSETS)?;
    if at.fr.flags == 0 {
        return Err(io::Error::other(
            "rings have no flags word: Linux 5.4 or later is needed",
        ));
    }
    Ok(at)
}

fn ring_bytes<T: Entry>(entries: u32) -> usize {
    entries as usize * size_of::<T>()
}

/// Maps a ring of `bytes` bytes of entries at page offset `place`.
fn map_ring(
    fd: BorrowedFd<'_>,
    place: i64,
    at: &libc::xdp_ring_offset,
    bytes: usize,
) -> io::Result<(Arc<Mapping>, Offsets)> {
    let offsets = Offsets {
        producer: at.producer as usize,
        consumer: at.consumer as usize,
        entries: at.desc as usize,
        flags: at.flags as usize,
    };
    Ok((
        Arc::new(Mapping::shared(fd, offsets.entries + bytes, place)?),
        offsets,
    ))
}
