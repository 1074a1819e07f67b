//! How many receive queues an interface has at the moment, which may be more than its driver tells.
//!
//! virtio-net adds a queue pair a CPU while a program is attached to it, for frames that the program
//! sends, and tells of the others only; its host spreads what arrives over all of them. Frames on a
//! queue without a socket would be lost.

use super::sys::ethtool;
use super::sys::socket::{Bind, CopyMode, Queue, Socket};
use super::sys::umem::Umem;
use crate::steering::QUEUES_MAX;

/// Slots of the memory that a socket is bound with to see whether its queue is there.
const SLOTS: u32 = 1;

/// Receive queues of an interface of the calling thread's network namespace: those that its driver
/// tells of, and more of those that it may have, if sockets can be bound to them. Tells no less than
/// `told`, also where asking fails: whoever binds the queues then learns why.
pub fn count(name: &str, ifindex: u32, told: u32) -> u32 {
    let max = ethtool::channels(name).map_or(told, |channels| channels.receive_max);
    let is_there = |&queue: &u32| {
        exists(&Queue {
            interface: name.to_owned(),
            ifindex,
            queue,
        })
    };
    let more = (told..max.min(QUEUES_MAX)).take_while(is_there);
    told + more.count() as u32
}

/// Binds a socket to the queue for a moment.
fn exists(queue: &Queue) -> bool {
    let Ok(umem) = Umem::new(SLOTS) else {
        return false;
    };
    let socket = Socket::create(queue, Some(&umem));
    socket.is_ok_and(|socket| socket.bind(queue, Bind::Owner(CopyMode::Copy)).is_ok())
}
