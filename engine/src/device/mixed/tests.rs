//! A mixed device over devices in memory: whose frames are whose, and that none is lost on the way.

use std::collections::HashSet;

use super::super::memory::MemoryDevice;
use super::super::offload::Checksum;
use super::super::{FRAME_SIZE, HEADROOM};
use super::*;

/// Bytes of the large slots.
const LARGE: usize = 5 * FRAME_SIZE;
/// Slots of either part.
const SLOTS: u32 = 8;
/// Interfaces: the first and the last are of the part with small slots.
const SMALL: [usize; 2] = [0, 2];
const ROOMY: usize = 1;

fn device() -> MixedDevice<Box<MemoryDevice>> {
    MixedDevice::new(vec![small(), large(0)])
}

fn small() -> Part<Box<MemoryDevice>> {
    Part {
        device: Box::new(MemoryDevice::new(2, SLOTS)),
        interfaces: SMALL.to_vec(),
        reserve: 0,
    }
}

fn large(reserve: usize) -> Part<Box<MemoryDevice>> {
    Part {
        device: Box::new(MemoryDevice::with_slots_of(LARGE, 1, SLOTS)),
        interfaces: vec![ROOMY],
        reserve,
    }
}

fn free(device: &mut MixedDevice<Box<MemoryDevice>>) -> [usize; 2] {
    [0, 1].map(|part| device.parts()[part].free_count())
}

/// Lets numbered frames arrive and takes them.
fn arrive(
    device: &mut MixedDevice<Box<MemoryDevice>>,
    interface: usize,
    bytes: impl IntoIterator<Item = Vec<u8>>,
) -> Vec<Frame> {
    let Seat { part, local } = device.seats[interface];
    for bytes in bytes {
        assert!(device.parts()[part].inject(local, &bytes));
    }
    let mut frames = Vec::new();
    device.receive(interface, &mut frames, usize::MAX);
    frames
}

fn numbered(count: u8) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|number| vec![number; 60 + usize::from(number)])
}

#[test]
fn frames_of_all_parts_have_numbers_and_bytes_of_their_own() {
    let mut device = device();
    assert_eq!(device.free_count(), 2 * SLOTS as usize);
    let mut frames = Vec::new();
    for interface in [0, 1, 2] {
        let bytes = [vec![interface as u8; 100], vec![interface as u8 + 10; 200]];
        frames.extend(arrive(&mut device, interface, bytes));
    }
    frames.extend(device.allocate());
    let slots: HashSet<u32> = frames.iter().map(Frame::slot).collect();
    assert_eq!(slots.len(), 7, "{frames:?}");
    for (frame, first) in frames.iter().zip([0, 10, 1, 11, 2, 12]) {
        assert_eq!(device.bytes(frame)[0], first);
        assert!(device.bytes(frame).iter().all(|&byte| byte == first));
    }
    device.bytes_mut(&frames[2])[0] = 99;
    assert_eq!(device.bytes(&frames[0])[0], 0);
    assert_eq!(free(&mut device), [4, 5]);
    frames.into_iter().for_each(|frame| device.free(frame));
    assert_eq!(free(&mut device), [8, 8]);
}

#[test]
fn what_crosses_is_copied_and_what_stays_is_not() {
    let mut device = device();
    for (from, to) in [(0, 1), (1, 0), (1, 2), (0, 2), (1, 1)] {
        let mut frames = arrive(&mut device, from, numbered(3));
        assert_eq!(device.transmit(to, &mut frames), 3);
        assert!(frames.is_empty());
        let Seat { part, local } = device.seats[to];
        let sent = device.parts()[part].take_transmitted(local);
        assert_eq!(sent, numbered(3).collect::<Vec<_>>(), "{from} to {to}");
        device.flush();
        assert_eq!(free(&mut device), [8, 8], "{from} to {to}");
    }
}

#[test]
fn a_full_ring_keeps_the_order_and_every_frame() {
    let mut device = device();
    device.parts()[0].set_transmit_room(2);
    let mut frames = arrive(&mut device, 1, numbered(5));
    let mut sent = Vec::new();
    for (taken, waiting) in [(2, 3), (2, 1), (1, 0)] {
        assert_eq!(device.transmit(0, &mut frames), taken);
        assert_eq!(frames.len(), waiting);
        // What waits is in either memory, once.
        assert_eq!(device.free_count(), 16 - waiting);
        device.flush();
        sent.extend(device.parts()[0].take_transmitted(0));
    }
    assert_eq!(sent, numbered(5).collect::<Vec<_>>());
    assert_eq!(free(&mut device), [8, 8]);
}

#[test]
fn without_a_free_frame_there_it_waits() {
    let mut device = device();
    let mut held = arrive(&mut device, 0, numbered(8));
    let mut frames = arrive(&mut device, 1, numbered(2));
    // All of the small part's frames are with the worker.
    assert_eq!(device.transmit(2, &mut frames), 0);
    assert_eq!((frames.len(), free(&mut device)), (2, [0, 6]));
    let one = held.pop().unwrap();
    device.free(one);
    // A copy that leaves makes room for the next.
    assert_eq!(device.transmit(2, &mut frames), 2);
    assert_eq!(device.parts()[0].take_transmitted(1).len(), 2);
    // Its own frames need none.
    let mut own = vec![held.pop().unwrap()];
    assert_eq!(device.transmit(2, &mut own), 1);
    held.into_iter().for_each(|frame| device.free(frame));
    assert_eq!(free(&mut device), [8, 8]);
}

#[test]
fn what_fits_no_slot_or_is_unfinished_is_lost_and_counted() {
    let mut device = device();
    let most = FRAME_SIZE - HEADROOM;
    let bytes = [vec![1; most + 1], vec![2; most], vec![3; LARGE - HEADROOM]];
    let mut frames = arrive(&mut device, 1, bytes);
    assert_eq!(device.transmit(0, &mut frames), 3);
    assert_eq!(device.parts()[0].take_transmitted(0), [vec![2; most]]);
    let partial = Offload {
        checksum: Checksum::Partial { start: 34, at: 6 },
        segments: None,
    };
    assert!(device.parts()[1].inject_unfinished(0, &[4; 60], partial));
    device.receive(1, &mut frames, 9);
    assert_eq!(device.offload(&frames[0]), partial);
    assert_eq!(device.transmit(2, &mut frames), 1);
    let lost = |interface| device.socket_counters(interface).unwrap().tx_invalid;
    assert_eq!([0, 1, 2].map(lost), [2, 0, 1]);
    assert_eq!(free(&mut device), [8, 8]);
}

#[test]
fn what_is_made_has_the_largest_slots() {
    let mut device = device();
    assert_eq!(device.slot_size(), LARGE);
    let mut frame = device.allocate().unwrap();
    let offset = device.offset(&frame);
    device.resize(&mut frame, offset, LARGE - offset)[offset..].fill(7);
    assert_eq!(device.bytes(&frame), vec![7; LARGE - HEADROOM]);
    device.resize(&mut frame, offset - 1, 60)[offset - 1] = 8;
    assert_eq!(device.bytes(&frame)[..2], [8, 7]);
    let mut frames = vec![frame];
    assert_eq!(device.transmit(0, &mut frames), 1);
    assert_eq!(device.parts()[0].take_transmitted(0)[0][..2], [8, 7]);
    assert_eq!(free(&mut device), [8, 8]);
}

/// Else what one direction cannot send takes the room that the other one needs.
#[test]
fn receiving_leaves_a_reserve_for_what_others_send() {
    let mut device = MixedDevice::new(vec![small(), large(3)]);
    for bytes in numbered(5) {
        assert!(device.parts()[1].inject(0, &bytes));
    }
    // A device in memory takes its frames when they arrive: 3 are free now, and 5 wait.
    let mut frames = Vec::new();
    assert_eq!(device.receive(ROOMY, &mut frames, 9), 0);
    let mut others = arrive(&mut device, 0, numbered(3));
    device.parts()[1].set_transmit_room(0);
    assert_eq!(device.transmit(ROOMY, &mut others), 0);
    assert_eq!(free(&mut device), [8, 0], "the reserve is for copies");
    device.parts()[1].set_transmit_room(9);
    device.flush();
    assert_eq!(device.transmit(ROOMY, &mut others), 3);
    // The other part has no such limit.
    assert_eq!(arrive(&mut device, 2, numbered(8)).len(), 8);
}

#[test]
#[should_panic(expected = "an interface has one part")]
fn every_interface_has_one_part() {
    MixedDevice::new(vec![large(0), large(0)]);
}
