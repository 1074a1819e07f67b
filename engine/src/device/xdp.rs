//! AF_XDP: one worker's sockets on every interface, over one frame memory.
//!
//! Worker w of W binds every queue q with q mod W = w of every interface and sends on the first of
//! them. All its sockets share one frame memory, so a frame goes from any interface to any other
//! without a copy in userspace. Drop the device only after the steering program was detached:
//! detach, drain, close.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::sys::socket::{Bind, CopyMode, Queue, RX_RING, Socket, SocketError};
use super::sys::umem::Umem;
use super::{Device, FRAME_SIZE, Frame, SocketCounters};

/// Slots that the kernel holds for receiving, a queue: as many as the receive ring takes.
const FILL_TARGET: u32 = RX_RING;
/// Slots for frames on their way out, an interface.
const SEND_RESERVE: u32 = RX_RING;
/// Slots for frames that the worker holds or makes.
const WORKER_RESERVE: u32 = 1024;
/// The smallest fill level that a queue can work with.
const FILL_MIN: u32 = 64;

/// An interface as the device sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpInterface {
    /// Name, for messages.
    pub name: String,
    /// Index in the network namespace of the calling thread.
    pub ifindex: u32,
    /// Receive queues that the interface has.
    pub queues: u32,
}

/// What a worker's device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpConfig {
    /// The interfaces, in the order of the configuration.
    pub interfaces: Vec<XdpInterface>,
    /// Number of this worker, below `workers`.
    pub worker: u32,
    /// Workers in all, at least 1 and at most the smallest queue count.
    pub workers: u32,
    /// How frames are exchanged with the drivers.
    pub mode: CopyMode,
    /// Upper bound of the worker's frame slots of 4 KiB; fewer make queues shorter.
    pub slots_max: u32,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// A socket could not be made or bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No memory for the frames.
    #[error("mapping {slots} frames of {FRAME_SIZE} bytes: {source}")]
    Memory {
        /// Slots asked for.
        slots: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No interface was named.
    #[error("no interface to serve")]
    NoInterface,
    /// More workers than an interface has queues.
    #[error("worker {worker} of {workers} finds no queue on {interface}, which has {queues}")]
    NoQueue {
        /// Name of the interface.
        interface: String,
        /// Its queues.
        queues: u32,
        /// Number of the worker.
        worker: u32,
        /// Workers in all.
        workers: u32,
    },
    /// The frame bound leaves too few slots a queue.
    #[error("{slots_max} frames are too few for {queues} queues: at least {needed} are needed")]
    TooFewSlots {
        /// The bound.
        slots_max: u32,
        /// Queues of this worker.
        queues: u32,
        /// The least that works.
        needed: u32,
    },
}

/// One bound queue with its counts.
struct Port {
    socket: Socket,
    queue: u32,
    /// Slots with the kernel for receiving.
    receiving: u32,
    /// Slots with the kernel for sending.
    sending: u32,
    /// Ring entries that named no slot of ours.
    invalid: u64,
    /// Wake-ups that failed for good.
    wake_errors: u64,
}

/// The queues of one interface.
struct Interface {
    ports: Vec<Port>,
    /// The port that the next receive starts at.
    turn: usize,
}

/// Where all slots are at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// In the free list.
    pub free: u32,
    /// With the worker, as [`Frame`] tokens.
    pub worker: u32,
    /// In fill rings, drivers and receive rings.
    pub receiving: u32,
    /// In transmit rings, drivers and completion rings.
    pub sending: u32,
    /// Slots in all.
    pub total: u32,
}

impl Places {
    /// Is every slot in exactly one place?
    pub fn balanced(&self) -> bool {
        self.free + self.worker + self.receiving + self.sending == self.total
    }
}

/// One worker's AF_XDP sockets and frame memory.
pub struct XdpDevice {
    // Sockets are closed before the memory goes away.
    interfaces: Vec<Interface>,
    umem: Umem,
    /// Frame tokens that exist.
    worker_count: u32,
    fill_target: u32,
}

impl XdpDevice {
    /// Makes and binds all sockets of a worker. Frames arrive once the sockets are in the steering
    /// program's map ([`XdpDevice::sockets`]).
    ///
    /// Sockets that share frame memory all copy or all do not. In mode `Auto` the first one decides;
    /// if another driver then has no zero-copy, all are made again to copy.
    pub fn open(config: &XdpConfig) -> Result<XdpDevice, XdpError> {
        match XdpDevice::open_as(config, config.mode) {
            Err(XdpError::Socket(error))
                if config.mode == CopyMode::Auto
                    && error.source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                XdpDevice::open_as(config, CopyMode::Copy)
            }
            other => other,
        }
    }

    fn open_as(config: &XdpConfig, mode: CopyMode) -> Result<XdpDevice, XdpError> {
        let (slots, fill_target) = size(config)?;
        let umem = Umem::new(slots).map_err(|source| XdpError::Memory { slots, source })?;
        let interfaces = Vec::with_capacity(config.interfaces.len());
        let mut device = XdpDevice {
            interfaces,
            umem,
            worker_count: 0,
            fill_target,
        };
        for interface in &config.interfaces {
            device.interfaces.push(Interface {
                ports: Vec::new(),
                turn: 0,
            });
            for queue in queues_of(interface, config) {
                device.open_port(interface, queue, mode)?;
            }
        }
        Ok(device)
    }

    /// Makes, fills and binds one socket of the last interface. Zero-copy drivers of some kinds
    /// want a full fill ring before the bind.
    fn open_port(
        &mut self,
        interface: &XdpInterface,
        queue: u32,
        mode: CopyMode,
    ) -> Result<(), SocketError> {
        let target = Queue {
            interface: interface.name.clone(),
            ifindex: interface.ifindex,
            queue,
        };
        let owner = self.interfaces.iter().flat_map(|other| &other.ports).next();
        let register = owner.is_none().then_some(&self.umem);
        let socket = Socket::create(&target, register)?;
        let mut port = Port {
            socket,
            queue,
            receiving: 0,
            sending: 0,
            invalid: 0,
            wake_errors: 0,
        };
        refill(&mut port, &mut self.umem, self.fill_target);
        let bind = match owner {
            Some(owner) => Bind::Shared(owner.socket.as_fd()),
            None => Bind::Owner(mode),
        };
        port.socket.bind(&target, bind)?;
        if let Some(last) = self.interfaces.last_mut() {
            last.ports.push(port);
        }
        Ok(())
    }

    /// Every socket with its interface number and queue, for the steering program's map.
    pub fn sockets(&self) -> impl Iterator<Item = (usize, u32, BorrowedFd<'_>)> {
        self.interfaces
            .iter()
            .enumerate()
            .flat_map(|(number, interface)| {
                interface
                    .ports
                    .iter()
                    .map(move |port| (number, port.queue, port.socket.as_fd()))
            })
    }

    /// Do the sockets exchange frames without copying? All of a worker's sockets do or none.
    pub fn zero_copy(&self) -> io::Result<bool> {
        match self
            .interfaces
            .iter()
            .flat_map(|interface| &interface.ports)
            .next()
        {
            Some(port) => port.socket.zero_copy(),
            None => Ok(false),
        }
    }

    /// Where all slots are (for the accounting invariant).
    pub fn places(&self) -> Places {
        let ports = || {
            self.interfaces
                .iter()
                .flat_map(|interface| &interface.ports)
        };
        Places {
            free: self.umem.free_count() as u32,
            worker: self.worker_count,
            receiving: ports().map(|port| port.receiving).sum(),
            sending: ports().map(|port| port.sending).sum(),
            total: self.umem.slots(),
        }
    }

    /// Frames that wait in the receive rings at the moment: not 0 means: do not sleep.
    pub fn ready(&self) -> u32 {
        let ports = self
            .interfaces
            .iter()
            .flat_map(|interface| &interface.ports);
        ports.map(|port| port.socket.rx.ready()).sum()
    }

    /// Slots that the kernel has for sending, over all interfaces.
    pub fn sending(&self) -> u32 {
        self.places().sending
    }
}

/// The queues of an interface that a worker serves.
fn queues_of(interface: &XdpInterface, config: &XdpConfig) -> impl Iterator<Item = u32> + use<> {
    (config.worker..interface.queues).step_by(config.workers.max(1) as usize)
}

/// Slots in all, and the fill level of a queue.
fn size(config: &XdpConfig) -> Result<(u32, u32), XdpError> {
    if config.interfaces.is_empty() {
        return Err(XdpError::NoInterface);
    }
    let mut queues = 0;
    for interface in &config.interfaces {
        let count = queues_of(interface, config).count() as u32;
        if count == 0 {
            return Err(XdpError::NoQueue {
                interface: interface.name.clone(),
                queues: interface.queues,
                worker: config.worker,
                workers: config.workers,
            });
        }
        queues += count;
    }
    let outside = config.interfaces.len() as u32 * SEND_RESERVE + WORKER_RESERVE;
    let wanted = queues * FILL_TARGET + outside;
    if wanted <= config.slots_max {
        return Ok((wanted, FILL_TARGET));
    }
    // Short of memory: two thirds for receiving.
    let fill = config.slots_max / 3 * 2 / queues;
    if fill < FILL_MIN {
        let needed = FILL_MIN * queues * 3 / 2 + 3;
        return Err(XdpError::TooFewSlots {
            slots_max: config.slots_max,
            queues,
            needed,
        });
    }
    Ok((config.slots_max, fill.min(FILL_TARGET)))
}

/// Brings a queue's slots for receiving back to the target. Published at once.
fn refill(port: &mut Port, umem: &mut Umem, target: u32) -> bool {
    let mut filled = false;
    while port.receiving < target {
        let Some(addr) = umem.to_fill() else { break };
        if !port.socket.fill.push(addr) {
            umem.unfilled(addr);
            break;
        }
        port.receiving += 1;
        filled = true;
    }
    if filled {
        port.socket.fill.publish();
    }
    filled
}

impl Port {
    /// Frees the slots of frames that were sent.
    fn reap(&mut self, umem: &mut Umem) {
        let mut reaped = false;
        while let Some(addr) = self.socket.completion.pop() {
            reaped = true;
            if umem.completed(addr) {
                self.sending -= 1;
            } else {
                self.invalid += 1;
            }
        }
        if reaped {
            self.socket.completion.release();
        }
    }

    /// Takes up to `max` received frames.
    fn receive(&mut self, umem: &mut Umem, frames: &mut Vec<Frame>, max: usize) -> usize {
        let (mut taken, mut popped) = (0, false);
        while taken < max {
            let Some(descriptor) = self.socket.rx.pop() else {
                break;
            };
            popped = true;
            match umem.received(descriptor) {
                Some(frame) => {
                    self.receiving -= 1;
                    frames.push(frame);
                    taken += 1;
                }
                None => self.invalid += 1,
            }
        }
        if popped {
            self.socket.rx.release();
        }
        taken
    }

    /// Counts a wake-up that failed.
    fn woken(&mut self, result: io::Result<()>) {
        self.wake_errors += u64::from(result.is_err());
    }
}

impl Device for XdpDevice {
    fn receive(&mut self, interface: usize, frames: &mut Vec<Frame>, max: usize) -> usize {
        let interface = &mut self.interfaces[interface];
        let mut taken = 0;
        let count = interface.ports.len();
        for step in 0..count {
            let at = (interface.turn + step) % count;
            let port = &mut interface.ports[at];
            taken += port.receive(&mut self.umem, frames, max - taken);
        }
        interface.turn = (interface.turn + 1) % count;
        self.worker_count += taken as u32;
        taken
    }

    fn transmit(&mut self, interface: usize, frames: &mut Vec<Frame>) -> usize {
        let port = &mut self.interfaces[interface].ports[0];
        let room = port.socket.tx.room(frames.len() as u32) as usize;
        let count = room.min(frames.len());
        for frame in frames.drain(..count) {
            if frame.is_empty() {
                // The kernel would skip an empty entry and never complete it.
                self.umem.free(frame);
                continue;
            }
            let pushed = port.socket.tx.push(self.umem.to_send(frame));
            debug_assert!(pushed, "room was asked for");
            port.sending += 1;
        }
        if count > 0 {
            port.socket.tx.publish();
            self.worker_count -= count as u32;
        }
        count
    }

    fn flush(&mut self) {
        let XdpDevice {
            interfaces,
            umem,
            fill_target,
            ..
        } = self;
        for port in interfaces
            .iter_mut()
            .flat_map(|interface| &mut interface.ports)
        {
            if port.sending > 0 {
                port.woken(port.socket.wake_tx());
                port.reap(umem);
            }
        }
        // Only now: what was sent on one interface may refill another.
        for port in interfaces
            .iter_mut()
            .flat_map(|interface| &mut interface.ports)
        {
            refill(port, umem, *fill_target);
            port.woken(port.socket.wake_fill());
        }
    }

    fn allocate(&mut self) -> Option<Frame> {
        let frame = self.umem.allocate()?;
        self.worker_count += 1;
        Some(frame)
    }

    fn free(&mut self, frame: Frame) {
        self.worker_count -= 1;
        self.umem.free(frame);
    }

    fn bytes(&self, frame: &Frame) -> &[u8] {
        self.umem.bytes(frame)
    }

    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        self.umem.bytes_mut(frame)
    }

    fn resize(&mut self, frame: &mut Frame, offset: usize, len: usize) -> &mut [u8] {
        frame.place(offset, len, FRAME_SIZE);
        self.umem.slot_mut(frame)
    }

    fn wait_fds(&self) -> Vec<RawFd> {
        let ports = self
            .interfaces
            .iter()
            .flat_map(|interface| &interface.ports);
        ports.map(|port| port.socket.as_raw_fd()).collect()
    }

    /// Summed over this worker's queues.
    fn socket_counters(&self, interface: usize) -> io::Result<SocketCounters> {
        let mut sum = SocketCounters::default();
        for port in &self.interfaces[interface].ports {
            sum += SocketCounters {
                ring_invalid: port.invalid,
                wake_errors: port.wake_errors,
                ..port.socket.statistics()?
            };
        }
        Ok(sum)
    }

    fn free_count(&self) -> usize {
        self.umem.free_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(queues: &[u32], worker: u32, workers: u32, slots_max: u32) -> XdpConfig {
        let interfaces = queues
            .iter()
            .enumerate()
            .map(|(number, &queues)| XdpInterface {
                name: format!("if{number}"),
                ifindex: 1,
                queues,
            })
            .collect();
        XdpConfig {
            interfaces,
            worker,
            workers,
            mode: CopyMode::Auto,
            slots_max,
        }
    }

    #[test]
    fn every_queue_is_served_by_one_worker() {
        let mut served = vec![0; 5];
        for worker in 0..2 {
            let config = config(&[5], worker, 2, 65_536);
            queues_of(&config.interfaces[0], &config).for_each(|queue| served[queue as usize] += 1);
        }
        assert_eq!(served, [1; 5]);
    }

    #[test]
    fn slots_cover_all_queues_or_shrink_to_the_bound() {
        let (slots, fill) = size(&config(&[2, 2], 0, 1, 65_536)).unwrap();
        assert_eq!((slots, fill), (4 * 2048 + 2 * 2048 + 1024, 2048));
        let (slots, fill) = size(&config(&[2, 2], 0, 1, 3000)).unwrap();
        assert_eq!((slots, fill), (3000, 500));
        assert!(matches!(
            size(&config(&[2, 2], 0, 1, 300)),
            Err(XdpError::TooFewSlots { needed: 387, .. })
        ));
    }

    #[test]
    fn a_worker_without_a_queue_is_refused() {
        assert!(matches!(
            size(&config(&[2, 1], 1, 2, 65_536)),
            Err(XdpError::NoQueue { .. })
        ));
        assert!(matches!(
            size(&config(&[], 0, 1, 65_536)),
            Err(XdpError::NoInterface)
        ));
    }
}
