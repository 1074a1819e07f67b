//! The yardstick for the engine's rings: the same sockets and the same rounds on the crate xsk-rs,
//! which is libxdp.
//!
//! The crate leaves it to its user that no frame is in two places. Here every frame of the memory is
//! in `free`, in the part of `batch` that the round has taken and not yet handed on, or with the
//! kernel; a [`FrameDesc`] that stays behind in `batch` is overwritten before it is used again.
#![allow(unsafe_code)]

use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use engine::device::FRAME_SIZE;
use engine::device::sys::socket::{FILL_RING, RX_RING};
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::bare::{Addresses, BATCH, Rings};
use crate::bench::path::stage::Stage;
use crate::lab::LabError;

/// As many as the engine has for two queues: a full fill ring and the way out for each, and some
/// for the worker.
const FRAMES: u32 = 4 * RX_RING + 1024;
/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (Linux 6.17): frames that one system call sends.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// How long a queue that is still being torn down is waited for, and how often it is tried, as by
/// the engine.
const BUSY_WAIT: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The queues of one socket.
struct Port {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames with the kernel for receiving.
    receiving: usize,
    /// Frames with the kernel for sending.
    sending: usize,
    /// Does one system call send all that is in the transmit ring?
    sends_all: bool,
}

/// xsk-rs's sockets on both of the gateway's interfaces, over one frame memory.
pub struct XskRings {
    inside: Port,
    outside: Port,
    umem: Umem,
    free: Vec<FrameDesc>,
    batch: [FrameDesc; BATCH],
}

impl XskRings {
    /// Binds a socket on both of the gateway's interfaces.
    ///
    /// # Errors
    /// The kernel's or libxdp's refusal.
    pub fn open(stage: &Stage) -> Result<XskRings, LabError> {
        let open = || {
            let deadline = Instant::now() + BUSY_WAIT;
            loop {
                match XskRings::bind([&stage.inside, &stage.outside]) {
                    Err(error)
                        if error.raw_os_error() == Some(libc::EBUSY)
                            && Instant::now() < deadline =>
                    {
                        std::thread::sleep(BUSY_PAUSE);
                    }
                    bound => return bound,
                }
            }
        };
        let opened = stage.gateway.run(open);
        opened.map_err(LabError::system("opening AF_XDP sockets by xsk-rs"))
    }

    fn bind([inside, outside]: [&str; 2]) -> io::Result<XskRings> {
        let ring = |entries| QueueSize::new(entries).map_err(io::Error::other);
        let memory = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_SIZE as u32).map_err(io::Error::other)?)
            .fill_queue_size(ring(FILL_RING)?)
            .comp_queue_size(ring(FILL_RING)?)
            .build()
            .map_err(io::Error::other)?;
        // The bench has a steering program of its own; whether to copy is the driver's choice.
        let config = SocketConfig::builder()
            .rx_queue_size(ring(RX_RING)?)
            .tx_queue_size(ring(RX_RING)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let frames = NonZeroU32::new(FRAMES).ok_or(io::ErrorKind::InvalidInput)?;
        let (umem, mut free) = Umem::new(memory, frames, false).map_err(refusal)?;
        let mut inside = Port::open(&umem, config, inside)?;
        let mut outside = Port::open(&umem, config, outside)?;
        inside.refill(&mut free);
        outside.refill(&mut free);
        Ok(XskRings {
            inside,
            outside,
            umem,
            free,
            batch: [FrameDesc::default(); BATCH],
        })
    }
}

/// The kernel's answer where there is one: the crate's own words do not tell it.
fn refusal(error: impl Error + Send + Sync + 'static) -> io::Error {
    let answer = error.source().and_then(|cause| cause.downcast_ref());
    match answer.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error),
    }
}

impl Port {
    fn open(umem: &Umem, config: SocketConfig, name: &str) -> io::Result<Port> {
        let interface: Interface = name.parse().map_err(io::Error::other)?;
        // SAFETY: with queue 0 of two interfaces, each socket of this memory has a fill and a
        // completion queue of its own, and both are used by this port alone.
        let queues = unsafe { Socket::new(config, umem, &interface, 0) };
        let (tx, rx, rings) = queues.map_err(refusal)?;
        let (fill, completion) =
            rings.ok_or_else(|| io::Error::other(format!("{name} has a socket already")))?;
        let sends_all = set_budget(tx.fd().as_raw_fd());
        Ok(Port {
            rx,
            tx,
            fill,
            completion,
            receiving: 0,
            sending: 0,
            sends_all,
        })
    }

    /// Takes frames that were received, at most a batch.
    fn receive(&mut self, batch: &mut [FrameDesc]) -> usize {
        // SAFETY: every frame in this queue is one of the memory that the port was made with.
        let taken = unsafe { self.rx.consume(batch) };
        self.receiving -= taken;
        taken
    }

    /// Puts as many frames into the transmit queue as have room, and returns their number.
    fn transmit(&mut self, frames: &[FrameDesc]) -> usize {
        let room = self.tx.nb_free(frames.len() as u32) as usize;
        let frames = &frames[..room.min(frames.len())];
        // SAFETY: frames of the same memory, taken from the receive queue; nobody touches them
        // before they come out of the completion queue.
        let sent = unsafe { self.tx.produce(frames) };
        self.sending += sent;
        sent
    }

    /// Entries that the kernel has not taken from the transmit queue.
    fn pending(&mut self) -> u32 {
        RX_RING - self.tx.nb_free_exact()
    }

    /// Lets the kernel send what is in the transmit queue, as `Socket::wake_tx` of the engine.
    fn wake(&mut self) -> io::Result<()> {
        let mut pending = self.pending();
        while pending > 0 && self.tx.needs_wakeup() {
            self.tx.wakeup()?;
            let left = self.pending();
            if self.sends_all || left == 0 || left >= pending {
                break;
            }
            pending = left;
        }
        Ok(())
    }

    /// Takes back the frames that were sent.
    fn reap(&mut self, free: &mut Vec<FrameDesc>) {
        let mut sent = [FrameDesc::default(); BATCH];
        loop {
            // SAFETY: every frame in this queue is one of the memory that the port was made with.
            let count = unsafe { self.completion.consume(&mut sent) };
            if count == 0 {
                return;
            }
            free.extend_from_slice(&sent[..count]);
            self.sending -= count;
        }
    }

    /// Brings the frames for receiving back to as many as the receive queue takes.
    fn refill(&mut self, free: &mut Vec<FrameDesc>) {
        let wanted = (RX_RING as usize - self.receiving).min(free.len());
        let count = wanted.min(self.fill.nb_free(wanted as u32) as usize);
        let kept = free.len() - count;
        // SAFETY: frames of the same memory that are in the free list and leave it now; nobody
        // touches them before they come out of the receive queue.
        let filled = unsafe { self.fill.produce(&free[kept..]) };
        free.truncate(free.len() - filled);
        self.receiving += filled;
    }

    /// Lets the driver take new fill entries, if it asks to be told.
    fn wake_fill(&mut self) -> io::Result<()> {
        if self.fill.needs_wakeup() {
            self.fill.wakeup(self.rx.fd_mut(), 0)?;
        }
        Ok(())
    }
}

/// Lets one system call send all that is in the transmit ring, as the engine does. False on a
/// kernel that cannot.
fn set_budget(socket: RawFd) -> bool {
    let entries = RX_RING;
    // SAFETY: the kernel reads the four bytes of a live integer.
    let result = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const entries).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    result == 0
}

impl Rings for XskRings {
    fn carry(&mut self, addresses: &Addresses) -> io::Result<usize> {
        let taken = self.inside.receive(&mut self.batch);
        let frames = &mut self.batch[..taken];
        for frame in &mut *frames {
            // SAFETY: a frame of this memory that came out of the receive queue and is in no other
            // one yet; the slice ends before the next frame is looked at.
            let mut data = unsafe { self.umem.data_mut(frame) };
            data.contents_mut()[..12].copy_from_slice(addresses);
        }
        let sent = self.outside.transmit(frames);
        self.free.extend_from_slice(&frames[sent..]);
        for port in [&mut self.inside, &mut self.outside] {
            if port.sending > 0 {
                port.wake()?;
                port.reap(&mut self.free);
            }
        }
        // Only now: what was sent outside may refill the inside.
        for port in [&mut self.inside, &mut self.outside] {
            port.refill(&mut self.free);
            port.wake_fill()?;
        }
        Ok(taken)
    }

    fn sockets(&self) -> [RawFd; 2] {
        [&self.inside, &self.outside].map(|port| port.rx.fd().as_raw_fd())
    }
}
