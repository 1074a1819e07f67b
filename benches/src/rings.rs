//! The four rings of one AF_XDP socket over ordinary memory, with the kernel's side of them.

use std::sync::Arc;

use engine::device::sys::mapping::Mapping;
use engine::device::sys::ring::{Consumer, Descriptor, Entry, Offsets, Producer};

/// Entries of each ring, as a socket of the engine has.
const SIZE: u32 = 2048;
/// Bytes of a frame's slot.
const SLOT: u64 = 4096;
const AT: Offsets = Offsets {
    producer: 0,
    consumer: 64,
    flags: 128,
    entries: 192,
};

/// Both sides of one ring.
struct Pair<T: Entry> {
    producer: Producer<T>,
    consumer: Consumer<T>,
}

impl<T: Entry> Pair<T> {
    fn new() -> Pair<T> {
        let bytes = AT.entries + SIZE as usize * size_of::<T>();
        let memory = Arc::new(Mapping::anonymous(bytes).expect("memory for a ring"));
        let fits = "the memory was made for it";
        Pair {
            producer: Producer::new(Arc::clone(&memory), SIZE, AT).expect(fits),
            consumer: Consumer::new(memory, SIZE, AT).expect(fits),
        }
    }
}

/// A socket's rings: the worker's sides and the kernel's.
pub struct Rings {
    fill: Pair<u64>,
    receive: Pair<Descriptor>,
    transmit: Pair<Descriptor>,
    completion: Pair<u64>,
}

impl Rings {
    /// Rings whose fill ring has so many slots for frames to come, and which are empty else.
    ///
    /// # Panics
    /// Without memory, and with more slots than a ring has.
    pub fn new(slots: u32) -> Rings {
        let mut fill = Pair::new();
        for slot in 0..u64::from(slots) {
            assert!(fill.producer.push(slot * SLOT), "{slots} slots");
        }
        fill.producer.publish();
        Rings {
            fill,
            receive: Pair::new(),
            transmit: Pair::new(),
            completion: Pair::new(),
        }
    }

    /// The kernel's part of a round: sends what is to be sent, and receives `frames` frames.
    pub fn serve(&mut self, frames: u32) {
        while let Some(sent) = self.transmit.consumer.pop() {
            self.completion.producer.push(sent.addr);
        }
        self.transmit.consumer.release();
        self.completion.producer.publish();
        for _ in 0..frames {
            let Some(addr) = self.fill.consumer.pop() else {
                break;
            };
            self.receive.producer.push(Descriptor {
                addr,
                len: 60,
                options: 0,
            });
        }
        self.fill.consumer.release();
        self.receive.producer.publish();
    }

    /// The worker's part: takes the slots of sent frames back and gives them to the fill ring, and
    /// passes every received frame on to be sent. How many these were.
    #[inline(never)]
    pub fn round(&mut self) -> u32 {
        while let Some(slot) = self.completion.consumer.pop() {
            self.fill.producer.push(slot);
        }
        self.completion.consumer.release();
        self.fill.producer.publish();
        let mut frames = 0;
        while let Some(frame) = self.receive.consumer.pop() {
            self.transmit.producer.push(frame);
            frames += 1;
        }
        self.receive.consumer.release();
        self.transmit.producer.publish();
        frames + u32::from(self.transmit.producer.needs_wakeup())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_round_and_none_is_lost() {
        let mut rings = Rings::new(128);
        for _ in 0..100 {
            rings.serve(64);
            assert_eq!(rings.round(), 64);
        }
        rings.serve(0);
        assert_eq!(rings.round(), 0);
        assert_eq!(rings.fill.producer.pending(), 128);
    }
}
