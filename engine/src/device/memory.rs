//! A device in ordinary memory: for tests and for the simulated world.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::offload::Offload;
use super::{Device, FRAME_SIZE, Frame, HEADROOM, SocketCounters};

/// The queues of one interface.
#[derive(Debug, Default)]
struct Interface {
    received: VecDeque<Frame>,
    transmitted: Vec<Vec<u8>>,
    /// What was still to be done for each of them.
    offloads: Vec<Offload>,
    /// Frames accepted since the last flush.
    pending: usize,
    counters: SocketCounters,
}

/// Frames in a vector. What is transmitted can be taken out at once; its slots are free at once.
#[derive(Debug)]
pub struct MemoryDevice {
    memory: Vec<u8>,
    slot_size: usize,
    free: Vec<u32>,
    /// What is still to be done for the frame in each slot.
    offloads: Vec<Offload>,
    interfaces: Vec<Interface>,
    /// Slots that somebody has.
    taken: Vec<bool>,
    transmit_room: usize,
    forgetful: bool,
    flushes: u64,
}

impl MemoryDevice {
    /// A device of so many interfaces and frame slots.
    pub fn new(interfaces: usize, slots: u32) -> MemoryDevice {
        MemoryDevice::with_slots_of(FRAME_SIZE, interfaces, slots)
    }

    /// A device whose slots have `slot_size` bytes each.
    pub fn with_slots_of(slot_size: usize, interfaces: usize, slots: u32) -> MemoryDevice {
        MemoryDevice {
            memory: vec![0; slots as usize * slot_size],
            slot_size,
            offloads: vec![Offload::NONE; slots as usize],
            free: (0..slots).rev().collect(),
            interfaces: (0..interfaces).map(|_| Interface::default()).collect(),
            taken: vec![false; slots as usize],
            transmit_room: usize::MAX,
            forgetful: false,
            flushes: 0,
        }
    }

    /// Lets a frame arrive on an interface; false if no slot is free or it is larger than a slot
    /// takes.
    pub fn inject(&mut self, interface: usize, bytes: &[u8]) -> bool {
        self.inject_unfinished(interface, bytes, Offload::NONE)
    }

    /// As [`MemoryDevice::inject`], of a frame that is still to be finished.
    pub fn inject_unfinished(&mut self, interface: usize, bytes: &[u8], offload: Offload) -> bool {
        if bytes.len() > self.slot_size - HEADROOM {
            return false;
        }
        let Some(mut frame) = self.allocate() else {
            return false;
        };
        self.resize(&mut frame, HEADROOM, bytes.len())[HEADROOM..][..bytes.len()]
            .copy_from_slice(bytes);
        self.set_offload(&frame, offload);
        self.interfaces[interface].received.push_back(frame);
        true
    }

    /// Takes out what was transmitted on an interface, in order.
    pub fn take_transmitted(&mut self, interface: usize) -> Vec<Vec<u8>> {
        self.interfaces[interface].offloads.clear();
        std::mem::take(&mut self.interfaces[interface].transmitted)
    }

    /// As [`MemoryDevice::take_transmitted`], each frame with what is still to be done for it.
    pub fn take_unfinished(&mut self, interface: usize) -> Vec<(Vec<u8>, Offload)> {
        let offloads = std::mem::take(&mut self.interfaces[interface].offloads);
        let frames = self.take_transmitted(interface);
        frames.into_iter().zip(offloads).collect()
    }

    /// Bounds the frames that an interface's transmit ring takes between two flushes.
    pub fn set_transmit_room(&mut self, frames: usize) {
        self.transmit_room = frames;
    }

    /// Does not keep what is transmitted, and then allocates nothing.
    pub fn set_forgetful(&mut self, forgetful: bool) {
        self.forgetful = forgetful;
    }

    /// Sets what the device says that the sockets of an interface count; at first all is 0.
    pub fn set_socket_counters(&mut self, interface: usize, counters: SocketCounters) {
        self.interfaces[interface].counters = counters;
    }

    /// How often the device was flushed.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.memory.len() / self.slot_size
    }

    /// Frames that were injected and not received yet.
    pub fn waiting(&self) -> usize {
        self.interfaces
            .iter()
            .map(|interface| interface.received.len())
            .sum()
    }

    fn slot(&self, frame: &Frame) -> std::ops::Range<usize> {
        let start = frame.slot as usize * self.slot_size;
        start..start + self.slot_size
    }
}

impl Device for MemoryDevice {
    fn receive(&mut self, interface: usize, frames: &mut Vec<Frame>, max: usize) -> usize {
        let received = &mut self.interfaces[interface].received;
        let count = max.min(received.len());
        frames.extend(received.drain(..count));
        count
    }

    fn transmit(&mut self, interface: usize, frames: &mut Vec<Frame>) -> usize {
        let room = self
            .transmit_room
            .saturating_sub(self.interfaces[interface].pending);
        let count = room.min(frames.len());
        for frame in frames.drain(..count) {
            if !self.forgetful {
                let bytes = self.bytes(&frame).to_vec();
                let offload = self.offload(&frame);
                self.interfaces[interface].transmitted.push(bytes);
                self.interfaces[interface].offloads.push(offload);
            }
            self.free(frame);
        }
        self.interfaces[interface].pending += count;
        count
    }

    fn flush(&mut self) {
        self.flushes += 1;
        self.interfaces
            .iter_mut()
            .for_each(|interface| interface.pending = 0);
    }

    fn allocate(&mut self) -> Option<Frame> {
        let slot = self.free.pop()?;
        self.taken[slot as usize] = true;
        self.offloads[slot as usize] = Offload::NONE;
        Some(Frame {
            slot,
            offset: HEADROOM as u16,
            len: 0,
        })
    }

    fn free(&mut self, frame: Frame) {
        let taken = std::mem::take(&mut self.taken[frame.slot as usize]);
        assert!(taken, "slot {} freed twice", frame.slot);
        self.free.push(frame.slot);
    }

    fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.memory[self.slot(frame)][frame.offset.into()..][..frame.len()]
    }

    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let slot = self.slot(frame);
        &mut self.memory[slot][frame.offset.into()..][..frame.len()]
    }

    fn resize(&mut self, frame: &mut Frame, offset: usize, len: usize) -> &mut [u8] {
        frame.place(offset, len, self.slot_size);
        let slot = self.slot(frame);
        &mut self.memory[slot]
    }

    fn slot_size(&self) -> usize {
        self.slot_size
    }

    fn offload(&self, frame: &Frame) -> Offload {
        self.offloads[frame.slot as usize]
    }

    fn set_offload(&mut self, frame: &Frame, offload: Offload) {
        self.offloads[frame.slot as usize] = offload;
    }

    fn wait_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn socket_counters(&self, interface: usize) -> io::Result<SocketCounters> {
        Ok(self.interfaces[interface].counters)
    }

    fn free_count(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let mut device = MemoryDevice::new(2, 4);
        assert!(device.inject(0, b"one") && device.inject(0, b"two") && device.inject(1, b"three"));
        let mut frames = Vec::new();
        assert_eq!(device.receive(0, &mut frames, 1), 1);
        assert_eq!(device.receive(0, &mut frames, 9), 1);
        assert_eq!(device.bytes(&frames[1]), b"two");
        device.bytes_mut(&frames[1])[0] = b'T';
        assert_eq!(device.transmit(1, &mut frames), 2);
        assert_eq!(
            device.take_transmitted(1),
            [b"one".to_vec(), b"Two".to_vec()]
        );
        assert_eq!((device.waiting(), device.free_count()), (1, 3));
    }

    #[test]
    fn slots_and_rings_run_out() {
        let mut device = MemoryDevice::new(1, 2);
        assert!(device.inject(0, &[1; 3840]) && !device.inject(0, &[1; 3841]));
        assert!(device.inject(0, b"") && !device.inject(0, b"x"));
        assert!(device.allocate().is_none());
        device.set_transmit_room(1);
        let mut frames = Vec::new();
        device.receive(0, &mut frames, 9);
        assert_eq!(
            (
                device.transmit(0, &mut frames),
                device.transmit(0, &mut frames)
            ),
            (1, 0)
        );
        device.flush();
        assert_eq!((device.transmit(0, &mut frames), device.flushes()), (1, 1));
    }

    #[test]
    fn the_header_may_grow_into_the_headroom() {
        let mut device = MemoryDevice::new(1, 1);
        device.inject(0, b"body");
        let mut frames = Vec::new();
        device.receive(0, &mut frames, 1);
        let frame = &mut frames[0];
        let offset = device.offset(frame) - 2;
        device.resize(frame, offset, 6)[offset..offset + 2].copy_from_slice(b"H:");
        assert_eq!(device.bytes(frame), b"H:body");
    }
}
