//! Several devices in one, each over some of the interfaces and with a frame memory of its own: for
//! interfaces that do not exchange frames the same way.
//!
//! The upper bits of a frame's slot number say whose frame it is. What leaves by an interface of
//! another part is copied into a frame of that part first, and its own is free again at once.

use std::io;
use std::ops::DerefMut;
use std::os::fd::RawFd;

use super::offload::Offload;
use super::{Device, Frame, SocketCounters};
use crate::worker::BATCH;

/// Lower bits of a slot number, which are the part's own: 1 TiB of the smallest slots.
const OWN_BITS: u32 = 28;
/// So many parts can be told apart.
const PARTS_MAX: usize = 1 << (u32::BITS - OWN_BITS);

/// A device of any kind, as a part of a mixed one.
pub type AnyDevice = Box<dyn Device + Send>;

/// A device that becomes a part of a mixed one.
pub struct Part<B> {
    /// The device.
    pub device: B,
    /// The numbers that its interfaces have in the mixed device, in its own order.
    pub interfaces: Vec<usize>,
    /// Free frames that receiving leaves to what others send by this part: a device that fills its
    /// frames from its free list takes no more from its queues then. 0 where it keeps some itself.
    pub reserve: usize,
}

/// Who serves an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    /// Number of the part.
    part: usize,
    /// The interface's number there.
    local: usize,
}

/// One worker's devices, as one. See the module.
pub struct MixedDevice<B> {
    parts: Vec<B>,
    /// By part.
    reserves: Vec<usize>,
    /// By interface.
    seats: Vec<Seat>,
    /// The part with the largest slots.
    roomiest: usize,
    /// Frames of one part on their way to its transmit ring.
    moving: Vec<Frame>,
    /// Frames that could not be copied to the part that they leave by, by interface.
    lost: Vec<u64>,
}

impl<B: DerefMut<Target: Device>> MixedDevice<B> {
    /// Joins devices.
    ///
    /// # Panics
    /// Unless their interfaces are 0, 1, ... without a gap, each once, and there are 1 to 16 devices.
    pub fn new(parts: Vec<Part<B>>) -> MixedDevice<B> {
        assert!(parts.len() <= PARTS_MAX, "too many parts");
        let mut seats: Vec<(usize, Seat)> = Vec::new();
        for (part, Part { interfaces, .. }) in parts.iter().enumerate() {
            let numbered = interfaces.iter().enumerate();
            seats.extend(numbered.map(|(local, &number)| (number, Seat { part, local })));
        }
        seats.sort_by_key(|(number, _)| *number);
        let numbers = seats.iter().map(|(number, _)| *number);
        assert!(numbers.eq(0..seats.len()), "an interface has one part");
        let reserves = parts.iter().map(|part| part.reserve).collect();
        let parts: Vec<B> = parts.into_iter().map(|part| part.device).collect();
        let roomiest = (0..parts.len()).max_by_key(|&part| parts[part].slot_size());
        MixedDevice {
            roomiest: roomiest.expect("at least one part"),
            parts,
            reserves,
            moving: Vec::with_capacity(BATCH),
            lost: vec![0; seats.len()],
            seats: seats.into_iter().map(|(_, seat)| seat).collect(),
        }
    }

    /// The parts, in the order in which they were given.
    pub fn parts(&mut self) -> &mut [B] {
        &mut self.parts
    }

    /// How many of the first frames a part can take now: its own, and as many of others' as it has
    /// free frames for copies. At most a batch, so that few copies wait where a ring is full.
    fn movable(&self, part: usize, frames: &[Frame]) -> usize {
        let mut free = self.parts[part].free_count();
        let fits = |frame: &&Frame| {
            let is_own = owner(frame) == part;
            let fits = is_own || free > 0;
            free -= usize::from(fits && !is_own);
            fits
        };
        frames.iter().take(BATCH).take_while(fits).count()
    }

    /// Makes a frame one of the part's own; none, and the frame is free, if it cannot be copied.
    fn bring(&mut self, frame: Frame, part: usize) -> Option<Frame> {
        let (from, own) = (owner(&frame), inner(&frame));
        if from == part {
            return Some(own);
        }
        let both = self.parts.get_disjoint_mut([from, part]);
        let [source, target] = both.expect("two parts that there are");
        let copied = copy(&**source, &own, &mut **target);
        source.free(own);
        copied
    }
}

/// Number of the part whose frame it is.
fn owner(frame: &Frame) -> usize {
    (frame.slot >> OWN_BITS) as usize
}

/// The frame as its part knows it. A second token, never to outlive the call that it is made for
/// unless the first one ends there.
fn inner(frame: &Frame) -> Frame {
    Frame {
        slot: frame.slot & ((1 << OWN_BITS) - 1),
        ..*frame
    }
}

/// The frame of a part as the worker knows it.
fn outer(part: usize, frame: Frame) -> Frame {
    debug_assert!(frame.slot >> OWN_BITS == 0, "the part has too many slots");
    Frame {
        slot: frame.slot | (part as u32) << OWN_BITS,
        ..frame
    }
}

/// Copies a frame into another device; none if it fits no slot there, if that has none free, or if
/// the packet is not finished, which the other device may not be able to say.
fn copy<S, T>(source: &S, frame: &Frame, target: &mut T) -> Option<Frame>
where
    S: Device + ?Sized,
    T: Device + ?Sized,
{
    let (bytes, offload) = (source.bytes(frame), source.offload(frame));
    if offload.is_pending() {
        return None;
    }
    let mut copy = target.allocate()?;
    let (offset, len) = (target.offset(&copy), bytes.len());
    if len > target.slot_size() - offset {
        target.free(copy);
        return None;
    }
    target.resize(&mut copy, offset, len)[offset..offset + len].copy_from_slice(bytes);
    target.set_offload(&copy, offload);
    Some(copy)
}

impl<B: DerefMut<Target: Device>> Device for MixedDevice<B> {
    fn receive(&mut self, interface: usize, frames: &mut Vec<Frame>, max: usize) -> usize {
        let Seat { part, local } = self.seats[interface];
        let (device, reserve) = (&mut self.parts[part], self.reserves[part]);
        let max = match reserve {
            0 => max,
            _ => max.min(device.free_count().saturating_sub(reserve)),
        };
        let before = frames.len();
        let count = device.receive(local, frames, max);
        for frame in &mut frames[before..] {
            frame.slot |= (part as u32) << OWN_BITS;
        }
        count
    }

    /// What cannot be copied to the interface's part is lost, and counted as `tx_invalid`. What finds
    /// no free frame there waits.
    fn transmit(&mut self, interface: usize, frames: &mut Vec<Frame>) -> usize {
        let Seat { part, local } = self.seats[interface];
        let mut taken = 0;
        loop {
            let count = self.movable(part, frames);
            if count == 0 {
                return taken;
            }
            for frame in frames.drain(..count) {
                match self.bring(frame, part) {
                    Some(frame) => self.moving.push(frame),
                    None => {
                        self.lost[interface] += 1;
                        taken += 1;
                    }
                }
            }
            taken += self.parts[part].transmit(local, &mut self.moving);
            if !self.moving.is_empty() {
                let waiting = self.moving.drain(..).map(|frame| outer(part, frame));
                drop(frames.splice(..0, waiting));
                return taken;
            }
        }
    }

    fn flush(&mut self) {
        for part in &mut self.parts {
            part.flush();
        }
    }

    /// Of the part with the largest slots, so that whatever is written fits.
    fn allocate(&mut self) -> Option<Frame> {
        let frame = self.parts[self.roomiest].allocate()?;
        Some(outer(self.roomiest, frame))
    }

    fn free(&mut self, frame: Frame) {
        self.parts[owner(&frame)].free(inner(&frame));
    }

    fn bytes(&self, frame: &Frame) -> &[u8] {
        self.parts[owner(frame)].bytes(&inner(frame))
    }

    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        self.parts[owner(frame)].bytes_mut(&inner(frame))
    }

    /// `offset + len` is at most the bytes of the part's own slots.
    fn resize(&mut self, frame: &mut Frame, offset: usize, len: usize) -> &mut [u8] {
        let mut own = inner(frame);
        let slot = self.parts[owner(frame)].resize(&mut own, offset, len);
        (frame.offset, frame.len) = (own.offset, own.len);
        slot
    }

    /// The largest there are.
    fn slot_size(&self) -> usize {
        self.parts[self.roomiest].slot_size()
    }

    fn offload(&self, frame: &Frame) -> Offload {
        self.parts[owner(frame)].offload(&inner(frame))
    }

    fn set_offload(&mut self, frame: &Frame, offload: Offload) {
        self.parts[owner(frame)].set_offload(&inner(frame), offload);
    }

    /// As the part that tires first.
    fn empty_rounds_max(&self) -> u32 {
        let rounds = self.parts.iter().map(|part| part.empty_rounds_max());
        rounds.min().unwrap_or(1)
    }

    fn wait_fds(&self) -> Vec<RawFd> {
        let fds = self.parts.iter().map(|part| part.wait_fds());
        fds.flatten().collect()
    }

    fn socket_counters(&self, interface: usize) -> io::Result<SocketCounters> {
        let Seat { part, local } = self.seats[interface];
        let mut counters = self.parts[part].socket_counters(local)?;
        counters.tx_invalid += self.lost[interface];
        Ok(counters)
    }

    fn free_count(&self) -> usize {
        self.parts.iter().map(|part| part.free_count()).sum()
    }
}

#[cfg(test)]
mod tests;
