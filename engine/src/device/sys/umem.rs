//! Frame memory (UMEM): slots of [`FRAME_SIZE`] bytes, and who owns which.
//!
//! A slot's bytes are reached through its [`Frame`] token only. A token is made when a slot leaves
//! the free list or the receive ring and consumed when it goes back or to the transmit ring, so
//! while a token exists the kernel does not touch the slot.
#![allow(unsafe_code)]

use std::io;

use super::mapping::Mapping;
use super::ring::Descriptor;
use crate::device::{FRAME_SIZE, Frame, HEADROOM};

/// Where a slot is; kept in debug builds to catch a slot that is in two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the free list.
    Free,
    /// A [`Frame`] token exists.
    Worker,
    /// In a fill ring, with the driver, or in a receive ring.
    Receiving,
    /// In a transmit ring, with the driver, or in a completion ring.
    Sending,
}

/// One worker's frame memory and its free list.
pub struct Umem {
    memory: Mapping,
    slots: u32,
    free: Vec<u32>,
    #[cfg(debug_assertions)]
    places: Vec<Place>,
}

impl Umem {
    /// Memory for `slots` frames, all free. Fails with what `mmap` says.
    pub fn new(slots: u32) -> io::Result<Umem> {
        Ok(Umem {
            memory: Mapping::anonymous(slots as usize * FRAME_SIZE)?,
            slots,
            free: (0..slots).rev().collect(),
            #[cfg(debug_assertions)]
            places: vec![Place::Free; slots as usize],
        })
    }

    /// Slots in all.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Slots in the free list.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Address and length in bytes, for registering with the kernel.
    pub(super) fn region(&self) -> (u64, u64) {
        (
            self.memory.base().as_ptr() as u64,
            u64::from(self.slots) * FRAME_SIZE as u64,
        )
    }

    fn moved(&mut self, slot: u32, from: Place, to: Place) {
        #[cfg(debug_assertions)]
        {
            let place = &mut self.places[slot as usize];
            assert_eq!(*place, from, "slot {slot} is not where it was left");
            *place = to;
        }
        #[cfg(not(debug_assertions))]
        let _ = (slot, from, to);
    }

    /// A free frame of length 0 after the headroom.
    pub fn allocate(&mut self) -> Option<Frame> {
        let slot = self.free.pop()?;
        self.moved(slot, Place::Free, Place::Worker);
        Some(Frame {
            slot,
            offset: HEADROOM as u16,
            len: 0,
        })
    }

    /// Puts a frame into the free list.
    pub fn free(&mut self, frame: Frame) {
        self.moved(frame.slot, Place::Worker, Place::Free);
        self.free.push(frame.slot);
    }

    /// Takes a free slot for a fill ring: its address.
    pub fn to_fill(&mut self) -> Option<u64> {
        let slot = self.free.pop()?;
        self.moved(slot, Place::Free, Place::Receiving);
        Some(u64::from(slot) * FRAME_SIZE as u64)
    }

    /// Takes back a slot that [`Umem::to_fill`] gave and the ring did not take.
    pub fn unfilled(&mut self, addr: u64) {
        let slot = (addr / FRAME_SIZE as u64) as u32;
        self.moved(slot, Place::Receiving, Place::Free);
        self.free.push(slot);
    }

    /// The frame of a receive descriptor; `None` if it lies outside the memory or crosses a slot.
    pub fn received(&mut self, descriptor: Descriptor) -> Option<Frame> {
        let slot = u32::try_from(descriptor.addr / FRAME_SIZE as u64).ok()?;
        let offset = (descriptor.addr % FRAME_SIZE as u64) as u32;
        let inside = offset.checked_add(descriptor.len)? <= FRAME_SIZE as u32;
        if slot >= self.slots || !inside {
            return None;
        }
        self.moved(slot, Place::Receiving, Place::Worker);
        Some(Frame {
            slot,
            offset: offset as u16,
            len: descriptor.len,
        })
    }

    /// Turns a frame into a transmit descriptor.
    pub fn to_send(&mut self, frame: Frame) -> Descriptor {
        self.moved(frame.slot, Place::Worker, Place::Sending);
        let addr = u64::from(frame.slot) * FRAME_SIZE as u64 + u64::from(frame.offset);
        Descriptor {
            addr,
            len: frame.len,
            options: 0,
        }
    }

    /// Frees the slot of a completion; false if there is no such slot.
    pub fn completed(&mut self, addr: u64) -> bool {
        let Ok(slot) = u32::try_from(addr / FRAME_SIZE as u64) else {
            return false;
        };
        if slot >= self.slots {
            return false;
        }
        self.moved(slot, Place::Sending, Place::Free);
        self.free.push(slot);
        true
    }

    /// Start of a range within a frame's slot, checked.
    fn range(&self, frame: &Frame, offset: usize, len: usize) -> *mut u8 {
        assert!(frame.slot < self.slots, "frame of another device");
        assert!(offset + len <= FRAME_SIZE, "beyond the frame's slot");
        let start = frame.slot as usize * FRAME_SIZE + offset;
        // SAFETY: slot and range were checked just now, and the memory has `slots` slots.
        unsafe { self.memory.base().as_ptr().add(start) }
    }

    /// The bytes of a frame.
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        let start = self.range(frame, frame.offset.into(), frame.len());
        // SAFETY: in bounds (`range`). The token shows that the slot is with the worker, so neither
        // the kernel nor another token touches it; `&self` keeps `bytes_mut` away.
        unsafe { std::slice::from_raw_parts(start, frame.len()) }
    }

    /// The bytes of a frame, to change.
    pub fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let start = self.range(frame, frame.offset.into(), frame.len());
        // SAFETY: as for `bytes`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(start, frame.len()) }
    }

    /// The whole slot of a frame, to change.
    pub fn slot_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let start = self.range(frame, 0, FRAME_SIZE);
        // SAFETY: as for `bytes_mut`, over the whole slot, which the token owns.
        unsafe { std::slice::from_raw_parts_mut(start, FRAME_SIZE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_given_out_once() {
        let mut umem = Umem::new(8).unwrap();
        let mut slots: Vec<u32> = std::iter::from_fn(|| umem.allocate())
            .map(|frame| frame.slot())
            .collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..8).collect::<Vec<_>>());
        assert_eq!(umem.to_fill(), None);
    }

    #[test]
    fn frames_keep_their_own_bytes() {
        let mut umem = Umem::new(2).unwrap();
        let (mut one, mut two) = (umem.allocate().unwrap(), umem.allocate().unwrap());
        (one.len, two.len) = (100, 3840);
        umem.bytes_mut(&one).fill(1);
        umem.bytes_mut(&two).fill(2);
        assert!(umem.bytes(&one).iter().all(|&byte| byte == 1) && umem.bytes(&one).len() == 100);
        assert!(umem.bytes(&two).iter().all(|&byte| byte == 2));
        assert_eq!(umem.slot_mut(&one)[HEADROOM - 1..HEADROOM + 1], [0, 1]);
    }

    #[test]
    fn a_frame_goes_round() {
        let mut umem = Umem::new(1).unwrap();
        let addr = umem.to_fill().unwrap();
        let frame = umem
            .received(Descriptor {
                addr: addr + 256,
                len: 60,
                options: 0,
            })
            .unwrap();
        assert_eq!((frame.slot(), frame.offset, frame.len()), (0, 256, 60));
        let sent = umem.to_send(frame);
        assert_eq!(
            sent,
            Descriptor {
                addr: 256,
                len: 60,
                options: 0
            }
        );
        assert!(umem.completed(sent.addr));
        assert_eq!(umem.free_count(), 1);
    }

    #[test]
    fn descriptors_outside_the_memory_are_refused() {
        let mut umem = Umem::new(2).unwrap();
        let at = |addr, len| Descriptor {
            addr,
            len,
            options: 0,
        };
        assert_eq!(umem.received(at(2 * 4096, 60)), None);
        assert_eq!(umem.received(at(u64::MAX, 60)), None);
        assert_eq!(umem.received(at(4000, 97)), None);
        assert_eq!(umem.received(at(4000, u32::MAX)), None);
        assert!(!umem.completed(2 * 4096));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "not where it was left")]
    fn a_slot_in_two_places_is_found() {
        let mut umem = Umem::new(1).unwrap();
        umem.allocate().unwrap();
        umem.completed(0);
    }
}
