//! A device whose wire is bad: frames are lost, doubled, damaged and overtaken, by a seeded source.

use std::io;
use std::os::fd::RawFd;

use super::offload::Offload;
use super::{Device, Frame, SocketCounters};

/// How often a received frame meets a fault, each from 0 (never) to 1000 (always).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// It is lost.
    pub drop_permille: u16,
    /// It comes twice.
    pub duplicate_permille: u16,
    /// One of its bits is turned.
    pub corrupt_permille: u16,
    /// The frame behind it overtakes it.
    pub reorder_permille: u16,
}

/// What was done to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Lost.
    pub dropped: u64,
    /// Doubled.
    pub duplicated: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Put behind the next one.
    pub reordered: u64,
}

/// A device with faults on its receiving side. The same seed and the same calls give the same
/// faults.
#[derive(Debug)]
pub struct FaultDevice<D> {
    inner: D,
    faults: Faults,
    counters: FaultCounters,
    state: u64,
    /// What the inner device gave in this call.
    batch: Vec<Frame>,
    /// A frame that waits to be overtaken, an interface.
    late: Vec<Option<Frame>>,
}

impl<D: Device> FaultDevice<D> {
    /// Wraps a device of so many interfaces.
    pub fn new(inner: D, interfaces: usize, faults: Faults, seed: u64) -> FaultDevice<D> {
        FaultDevice {
            inner,
            faults,
            counters: FaultCounters::default(),
            state: seed,
            batch: Vec::new(),
            late: (0..interfaces).map(|_| None).collect(),
        }
    }

    /// The device within.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The device within, to inject and take out frames.
    pub fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }

    /// Changes the faults from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// What was done so far.
    pub fn counters(&self) -> FaultCounters {
        self.counters
    }

    /// Frames that wait to be overtaken.
    pub fn late(&self) -> usize {
        self.late.iter().flatten().count()
    }

    /// The next number of the source (SplitMix64).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn happens(&mut self, permille: u16) -> bool {
        self.random() % 1000 < u64::from(permille)
    }

    /// A copy of a frame, if a slot is free.
    fn copy(&mut self, frame: &Frame) -> Option<Frame> {
        let mut twin = self.inner.allocate()?;
        let (offset, len) = (self.inner.offset(frame), frame.len());
        let bytes = self.inner.bytes(frame).to_vec();
        self.inner.resize(&mut twin, offset, len)[offset..offset + len].copy_from_slice(&bytes);
        self.inner.set_offload(&twin, self.inner.offload(frame));
        Some(twin)
    }

    fn corrupt(&mut self, frame: &Frame) {
        let random = self.random();
        let bytes = self.inner.bytes_mut(frame);
        if !bytes.is_empty() {
            let at = (random >> 3) as usize % bytes.len();
            bytes[at] ^= 1 << (random & 7);
            self.counters.corrupted += 1;
        }
    }

    /// Gives one frame to the receiver, if its faults let it.
    fn deliver(&mut self, interface: usize, frame: Frame, frames: &mut Vec<Frame>) {
        if self.happens(self.faults.drop_permille) {
            self.counters.dropped += 1;
            self.inner.free(frame);
            return;
        }
        if self.happens(self.faults.corrupt_permille) {
            self.corrupt(&frame);
        }
        if self.happens(self.faults.duplicate_permille)
            && let Some(twin) = self.copy(&frame)
        {
            self.counters.duplicated += 1;
            frames.push(twin);
        }
        if self.late[interface].is_none() && self.happens(self.faults.reorder_permille) {
            self.counters.reordered += 1;
            self.late[interface] = Some(frame);
        } else {
            frames.push(frame);
            frames.extend(self.late[interface].take());
        }
    }
}

impl<D: Device> Device for FaultDevice<D> {
    /// May give up to twice `max` and one frames (duplicates, and a late one).
    fn receive(&mut self, interface: usize, frames: &mut Vec<Frame>, max: usize) -> usize {
        let before = frames.len();
        let mut batch = std::mem::take(&mut self.batch);
        let count = self.inner.receive(interface, &mut batch, max);
        for frame in batch.drain(..) {
            self.deliver(interface, frame, frames);
        }
        self.batch = batch;
        if count == 0 {
            // Nobody comes any more to overtake it.
            frames.extend(self.late[interface].take());
        }
        frames.len() - before
    }

    fn transmit(&mut self, interface: usize, frames: &mut Vec<Frame>) -> usize {
        self.inner.transmit(interface, frames)
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.inner.allocate()
    }

    fn free(&mut self, frame: Frame) {
        self.inner.free(frame);
    }

    fn bytes(&self, frame: &Frame) -> &[u8] {
        self.inner.bytes(frame)
    }

    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        self.inner.bytes_mut(frame)
    }

    fn resize(&mut self, frame: &mut Frame, offset: usize, len: usize) -> &mut [u8] {
        self.inner.resize(frame, offset, len)
    }

    fn slot_size(&self) -> usize {
        self.inner.slot_size()
    }

    fn offload(&self, frame: &Frame) -> Offload {
        self.inner.offload(frame)
    }

    fn set_offload(&mut self, frame: &Frame, offload: Offload) {
        self.inner.set_offload(frame, offload);
    }

    fn wait_fds(&self) -> Vec<RawFd> {
        self.inner.wait_fds()
    }

    fn socket_counters(&self, interface: usize) -> io::Result<SocketCounters> {
        self.inner.socket_counters(interface)
    }

    fn free_count(&self) -> usize {
        self.inner.free_count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryDevice;
    use super::*;

    /// What comes out when 1000 numbered frames go in, with the counters.
    fn run(faults: Faults, seed: u64) -> (Vec<u32>, FaultCounters) {
        let mut device = FaultDevice::new(MemoryDevice::new(1, 64), 1, faults, seed);
        let mut out = Vec::new();
        let mut frames = Vec::new();
        for number in 0..1000_u32 {
            assert!(device.inner_mut().inject(0, &number.to_be_bytes()));
            if number % 7 == 0 {
                device.receive(0, &mut frames, 64);
            }
            for frame in frames.drain(..) {
                out.push(u32::from_be_bytes(device.bytes(&frame).try_into().unwrap()));
                device.free(frame);
            }
        }
        for _ in 0..2 {
            device.receive(0, &mut frames, 64);
            for frame in frames.drain(..) {
                out.push(u32::from_be_bytes(device.bytes(&frame).try_into().unwrap()));
                device.free(frame);
            }
        }
        assert_eq!(
            (device.late(), device.free_count()),
            (0, 64),
            "no frame is lost for good"
        );
        (out, device.counters())
    }

    #[test]
    fn without_faults_nothing_changes() {
        let (out, counters) = run(Faults::default(), 1);
        assert_eq!(out, (0..1000).collect::<Vec<_>>());
        assert_eq!(counters, FaultCounters::default());
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let (out, counters) = run(
            Faults {
                drop_permille: 100,
                ..Faults::default()
            },
            2,
        );
        assert_eq!(out.len() as u64, 1000 - counters.dropped);
        assert!((50..200).contains(&counters.dropped), "{counters:?}");
        let (out, counters) = run(
            Faults {
                duplicate_permille: 100,
                ..Faults::default()
            },
            3,
        );
        assert_eq!(out.len() as u64, 1000 + counters.duplicated);
        assert!(counters.duplicated > 0 && out.is_sorted());
        let (out, counters) = run(
            Faults {
                corrupt_permille: 100,
                ..Faults::default()
            },
            4,
        );
        let wrong = out
            .iter()
            .zip(0..)
            .filter(|(got, sent)| **got != *sent)
            .count();
        assert!(wrong > 0 && wrong as u64 == counters.corrupted);
        let (mut out, counters) = run(
            Faults {
                reorder_permille: 100,
                ..Faults::default()
            },
            5,
        );
        assert!(counters.reordered > 0 && !out.is_sorted());
        out.sort_unstable();
        assert_eq!(out, (0..1000).collect::<Vec<_>>());
        assert_eq!(
            run(
                Faults {
                    drop_permille: 1000,
                    ..Faults::default()
                },
                6
            )
            .0,
            Vec::<u32>::new()
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let faults = Faults {
            drop_permille: 50,
            duplicate_permille: 50,
            corrupt_permille: 50,
            reorder_permille: 50,
        };
        assert_eq!(run(faults, 7), run(faults, 7));
        assert_ne!(run(faults, 7), run(faults, 8));
    }
}
