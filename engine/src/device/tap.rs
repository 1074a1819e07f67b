//! The tun driver: one worker's queues of the TAPs that stand for the interfaces.
//!
//! The steering program in tc redirects what is ours from an interface into its TAP, and what is
//! written into the TAP leaves by the interface (`crate::doors`). So frames are as with AF_XDP, but
//! come with what is still to be done for them: packets of up to 64 KiB that the kernel cuts when they
//! leave, and checksums that it completes. A frame is read once and written once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::errno::Errno;
use nix::unistd::{read, write};

use super::offload::{Offload, VIRTIO_HEADER_LEN};
use super::sys::tap::Tap;
use super::{Device, Frame, HEADROOM, SocketCounters};
use crate::wire::ethernet;

/// Bytes of a slot: headroom, an Ethernet header and the longest IPv4 packet, in whole pages.
pub const SLOT_SIZE: usize =
    (HEADROOM + ethernet::HEADER_LEN + u16::MAX as usize).next_multiple_of(4096);
/// Slots of a worker. Memory is taken up by those that were in use at the same time.
const SLOTS: u32 = 2048;
/// Bytes after which a batch is complete: they are to be in the cache still when they are written.
const BATCH_BYTES: usize = 256 << 10;
/// A packet above this many bytes counts as a big one.
const BIG: usize = 32 << 10;

/// One worker's queue of one interface's TAP.
struct Port {
    tap: Tap,
    counters: SocketCounters,
    /// The worker that asks for the whole TAP's counters, too.
    is_first: bool,
}

/// One worker's queues and frame memory.
pub struct TapDevice {
    ports: Vec<Port>,
    memory: Vec<u8>,
    free: Vec<u32>,
    /// What is still to be done for the frame in each slot.
    offloads: Vec<Offload>,
}

impl TapDevice {
    /// A device of one queue an interface, in the order of the configuration. `is_first`: it tells
    /// what the TAPs count, too.
    pub fn new(queues: Vec<Tap>, is_first: bool) -> TapDevice {
        let port = |tap| Port {
            tap,
            counters: SocketCounters::default(),
            is_first,
        };
        TapDevice {
            ports: queues.into_iter().map(port).collect(),
            memory: vec![0; SLOTS as usize * SLOT_SIZE],
            free: (0..SLOTS).rev().collect(),
            offloads: vec![Offload::NONE; SLOTS as usize],
        }
    }

    /// Reads one frame, if one waits and a slot is free for it.
    fn read(&mut self, interface: usize) -> Option<Frame> {
        const START: usize = HEADROOM - VIRTIO_HEADER_LEN;
        let port = &mut self.ports[interface];
        loop {
            let slot = *self.free.last()?;
            let base = slot as usize * SLOT_SIZE;
            let room = &mut self.memory[base + START..base + SLOT_SIZE];
            let len = match read(&port.tap, room) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return None,
                Err(_) => {
                    port.counters.wake_errors += 1;
                    return None;
                }
            };
            let (header, frame) = room[..len].split_first_chunk()?;
            port.counters.bytes += frame.len() as u64;
            if frame.len() > BIG {
                port.counters.bytes_big += frame.len() as u64;
            }
            let Ok(offload) = Offload::decode(header, frame) else {
                port.counters.rx_invalid += 1;
                continue;
            };
            let frame = Frame {
                slot,
                len: frame.len() as u32,
                offset: HEADROOM as u16,
            };
            self.offloads[slot as usize] = offload;
            self.free.pop();
            return Some(frame);
        }
    }

    /// Writes one frame; `false`: it has to wait. One that the kernel refuses is lost, and counted.
    fn write(&mut self, interface: usize, frame: &Frame) -> bool {
        let offset = usize::from(frame.offset);
        let base = frame.slot as usize * SLOT_SIZE;
        let Some(start) = offset.checked_sub(VIRTIO_HEADER_LEN) else {
            self.ports[interface].counters.tx_invalid += 1;
            return true;
        };
        let bytes = &mut self.memory[base + start..base + offset + frame.len()];
        if let Some(header) = bytes.first_chunk_mut() {
            self.offloads[frame.slot as usize].encode(header);
        }
        let port = &mut self.ports[interface];
        match write(&port.tap, bytes) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return false,
            Err(Errno::EINVAL) => port.counters.tx_invalid += 1,
            Err(_) => port.counters.wake_errors += 1,
        }
        true
    }

    fn slot(frame: &Frame) -> std::ops::Range<usize> {
        let start = frame.slot as usize * SLOT_SIZE;
        start..start + SLOT_SIZE
    }
}

impl Device for TapDevice {
    fn receive(&mut self, interface: usize, frames: &mut Vec<Frame>, max: usize) -> usize {
        let (mut count, mut bytes) = (0, 0);
        while count < max && bytes < BATCH_BYTES {
            let Some(frame) = self.read(interface) else {
                break;
            };
            bytes += frame.len();
            count += 1;
            frames.push(frame);
        }
        count
    }

    fn transmit(&mut self, interface: usize, frames: &mut Vec<Frame>) -> usize {
        let mut taken = 0;
        while taken < frames.len() && self.write(interface, &frames[taken]) {
            taken += 1;
        }
        for frame in frames.drain(..taken) {
            self.free(frame);
        }
        taken
    }

    fn flush(&mut self) {}

    fn allocate(&mut self) -> Option<Frame> {
        let slot = self.free.pop()?;
        self.offloads[slot as usize] = Offload::WHOLE;
        Some(Frame {
            slot,
            len: 0,
            offset: HEADROOM as u16,
        })
    }

    fn free(&mut self, frame: Frame) {
        self.free.push(frame.slot);
    }

    fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.memory[TapDevice::slot(frame)][frame.offset.into()..][..frame.len()]
    }

    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        &mut self.memory[TapDevice::slot(frame)][frame.offset.into()..][..frame.len()]
    }

    fn resize(&mut self, frame: &mut Frame, offset: usize, len: usize) -> &mut [u8] {
        frame.place(offset, len, SLOT_SIZE);
        &mut self.memory[TapDevice::slot(frame)]
    }

    fn slot_size(&self) -> usize {
        SLOT_SIZE
    }

    fn offload(&self, frame: &Frame) -> Offload {
        self.offloads[frame.slot as usize]
    }

    fn set_offload(&mut self, frame: &Frame, offload: Offload) {
        self.offloads[frame.slot as usize] = offload;
    }

    /// An empty round is a system call for each interface, not a look at a ring.
    fn empty_rounds_max(&self) -> u32 {
        1
    }

    fn wait_fds(&self) -> Vec<RawFd> {
        let fd = |port: &Port| port.tap.as_fd().as_raw_fd();
        self.ports.iter().map(fd).collect()
    }

    /// The worker's own numbers; the first one's with what found no room in the TAP's queues.
    fn socket_counters(&self, interface: usize) -> io::Result<SocketCounters> {
        let port = &self.ports[interface];
        let mut counters = port.counters;
        if port.is_first {
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            counters.rx_ring_full = sent_in_vain(&devices, port.tap.name()).unwrap_or(0);
        }
        Ok(counters)
    }

    fn free_count(&self) -> usize {
        self.free.len()
    }
}

/// How many frames the kernel could not send by an interface, from the text of `/proc/net/dev`:
/// sixteen numbers a line, of which the twelfth.
fn sent_in_vain(devices: &str, name: &str) -> Option<u64> {
    let of_name = |line: &str| {
        let (device, numbers) = line.trim_start().split_once(':')?;
        (device == name).then(|| numbers.split_whitespace().nth(11)?.parse().ok())?
    };
    devices.lines().find_map(of_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_drops_are_found_by_name() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes    packets\n\
                    \x20   lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                    egretp0:17 2 3 4 5 6 7 8 9 10 11 99 13 14 15 16\n";
        assert_eq!(sent_in_vain(text, "lo"), Some(12));
        assert_eq!(sent_in_vain(text, "egretp0"), Some(99));
        assert_eq!(sent_in_vain(text, "egretp"), None);
    }

    #[test]
    fn the_longest_packet_fits_a_slot() {
        let mut device = TapDevice::new(Vec::new(), false);
        let mut frame = device.allocate().unwrap();
        device.resize(&mut frame, HEADROOM, 14 + 65_535);
        device.bytes_mut(&frame).fill(7);
        assert_eq!(device.bytes(&frame).len(), 65_549);
        device.free(frame);
        assert_eq!(device.free_count(), SLOTS as usize);
    }
}
