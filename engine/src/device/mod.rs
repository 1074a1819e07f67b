//! Where frames come from and go to: one worker's rings over all interfaces, and its frame memory.
//!
//! A [`Frame`] is a token: it is neither `Clone` nor `Copy`, so every frame has one owner at any
//! time (free list, fill ring, receive batch, transmit batch, completion ring).

pub mod fault;
pub mod memory;
pub mod mixed;
pub mod offload;
pub mod pcap;
pub mod queues;
pub mod sys;
pub mod tap;
pub mod xdp;

use std::io;

use serde::{Deserialize, Serialize};

use offload::Offload;

/// Bytes of one frame slot of AF_XDP's, and of every device's that takes no larger frames.
pub const FRAME_SIZE: usize = 4096;
/// Free bytes before a received or allocated frame (`XDP_PACKET_HEADROOM`): room for a header to
/// grow. A frame has at most `FRAME_SIZE - HEADROOM` bytes when it is received by AF_XDP.
pub const HEADROOM: usize = 256;

/// Ownership of one frame slot, and where in it the frame's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of the slot in the worker's frame memory.
    pub(crate) slot: u32,
    /// Length in bytes.
    pub(crate) len: u32,
    /// Offset of the first byte within the slot.
    pub(crate) offset: u16,
}

impl Frame {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Has the frame no bytes?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets where the bytes lie in the slot of `slot_size` bytes.
    ///
    /// # Panics
    /// If they do not lie within the slot.
    pub(crate) fn place(&mut self, offset: usize, len: usize, slot_size: usize) {
        assert!(
            offset <= slot_size && len <= slot_size - offset,
            "beyond the frame's slot"
        );
        self.offset = offset as u16;
        self.len = len as u32;
    }

    /// Number of the frame's slot: unique among the frames of one device.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// What the sockets of one interface count: the kernel's numbers, and two of our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketCounters {
    /// Frames dropped before the receive ring, for any other reason than those below.
    pub rx_dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Frames dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Frames dropped because a fill entry was not valid.
    pub rx_invalid: u64,
    /// Transmit entries that were not valid, whose slots are lost; of a mixed device also frames that
    /// fit no slot of the interface they were to leave by.
    pub tx_invalid: u64,
    /// How often the kernel found the transmit ring empty: no fault.
    pub tx_ring_empty: u64,
    /// Entries of the kernel's that named no slot of ours; 0 unless the kernel or the steering
    /// program is at fault.
    pub ring_invalid: u64,
    /// Wake-ups that failed with an error that does not pass by itself, as when the interface was
    /// removed.
    pub wake_errors: u64,
    /// Bytes of all frames received, in tun mode.
    pub bytes: u64,
    /// Of these, in frames above 32 KiB.
    pub bytes_big: u64,
}

impl SocketCounters {
    /// How many numbers there are.
    pub(crate) const LEN: usize = 10;

    /// The numbers in the order of the fields.
    pub(crate) fn to_words(self) -> [u64; SocketCounters::LEN] {
        [
            self.rx_dropped,
            self.rx_ring_full,
            self.fill_ring_empty,
            self.rx_invalid,
            self.tx_invalid,
            self.tx_ring_empty,
            self.ring_invalid,
            self.wake_errors,
            self.bytes,
            self.bytes_big,
        ]
    }

    /// The reverse of [`SocketCounters::to_words`].
    pub(crate) fn from_words(words: [u64; SocketCounters::LEN]) -> SocketCounters {
        let [
            rx_dropped,
            rx_ring_full,
            fill_ring_empty,
            rx_invalid,
            tx_invalid,
            tx_ring_empty,
            ring_invalid,
            wake_errors,
            bytes,
            bytes_big,
        ] = words;
        SocketCounters {
            rx_dropped,
            rx_ring_full,
            fill_ring_empty,
            rx_invalid,
            tx_invalid,
            tx_ring_empty,
            ring_invalid,
            wake_errors,
            bytes,
            bytes_big,
        }
    }
}

impl std::ops::AddAssign for SocketCounters {
    fn add_assign(&mut self, other: SocketCounters) {
        let (ours, theirs) = (self.to_words(), other.to_words());
        let sum = std::array::from_fn(|at| ours[at].wrapping_add(theirs[at]));
        *self = SocketCounters::from_words(sum);
    }
}

/// One worker's rings over all interfaces, and the frame memory they share. Interfaces are numbered
/// from 0 in the order of the configuration.
pub trait Device {
    /// Takes up to `max` received frames of an interface, appends them to `frames`; how many.
    fn receive(&mut self, interface: usize, frames: &mut Vec<Frame>, max: usize) -> usize;

    /// Hands frames to an interface's transmit ring, from the front of `frames`; what does not fit
    /// stays in it. How many were taken.
    fn transmit(&mut self, interface: usize, frames: &mut Vec<Frame>) -> usize;

    /// Ends a round: reaps completions, refills fill rings, and wakes the kernel where it asked
    /// for it, at most once an interface.
    fn flush(&mut self);

    /// A free frame of length 0 with headroom before it, for a packet that Egret makes itself.
    fn allocate(&mut self) -> Option<Frame>;

    /// Gives a frame back.
    fn free(&mut self, frame: Frame);

    /// The bytes of a frame.
    fn bytes(&self, frame: &Frame) -> &[u8];

    /// The bytes of a frame, to change.
    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8];

    /// Sets where the frame's bytes lie within its slot, and gives the whole slot to write them.
    /// The bytes keep their place. `offset + len` is at most [`Device::slot_size`].
    fn resize(&mut self, frame: &mut Frame, offset: usize, len: usize) -> &mut [u8];

    /// Offset of the frame's first byte within its slot.
    fn offset(&self, frame: &Frame) -> usize {
        usize::from(frame.offset)
    }

    /// Bytes of a slot.
    fn slot_size(&self) -> usize {
        FRAME_SIZE
    }

    /// What of a frame's packet is still to be done: [`Offload::NONE`] from devices that are not
    /// told.
    fn offload(&self, _frame: &Frame) -> Offload {
        Offload::NONE
    }

    /// Says what of a frame's packet is to be done by whoever sends it. Of a device that does
    /// nothing of the kind it is not asked, as it gives no such frames.
    fn set_offload(&mut self, _frame: &Frame, _offload: Offload) {}

    /// Empty rounds after which a worker that may sleep does so; at least 1. Few: on a small machine
    /// the spinning worker takes the core from the very interrupt that would bring it work.
    fn empty_rounds_max(&self) -> u32 {
        32
    }

    /// Files to wait on for received frames while the worker sleeps.
    fn wait_fds(&self) -> Vec<std::os::fd::RawFd>;

    /// What the sockets of an interface count. May be a system call a queue: not for every round.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn socket_counters(&self, interface: usize) -> io::Result<SocketCounters>;

    /// Frames that are in the free list at the moment (for the accounting invariant).
    fn free_count(&self) -> usize;
}
