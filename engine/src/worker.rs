//! One worker: takes batches of frames from its device, has each judged by the gateway, and carries
//! the verdict out. A round is one pass over all interfaces; the clock is an argument of it.

mod answer;
mod reset;
mod transmit;
mod unanswered;

use std::sync::Arc;

use conntrack::{Random, Time};
use crossbeam_utils::CachePadded;

use crate::batch::Batch;
use crate::device::offload::Offload;
use crate::device::{Device, Frame};
use crate::drop_reason::DropReason;
use crate::gateway::{Gateway, Prepared, Verdict};
use crate::hold::{HoldQueue, Outcome, Pushed};
use crate::icmp::Limiters;
use crate::neighbour::{HopNumber, HopState};
use crate::stats::WorkerStats;
use crate::wire::ethernet;
use crate::worker::unanswered::Unanswered;

/// Frames taken from one interface in a round.
pub const BATCH: usize = 64;
/// Frames that may wait for room in one interface's transmit ring.
const TRANSMIT_MAX: usize = 2048;
/// Time between two sweep slices.
const SWEEP_INTERVAL_MS: u64 = 10;
/// Time in which the whole table is swept once: an expired session is absent at once, but holds
/// its memory and port for at most this long.
const SWEEP_CYCLE_MS: u64 = 10_000;
/// Records visited in one slice, some tenths of a millisecond: what a sleep has left over is made up
/// for in rounds of its own.
const SWEEP_SLICE_MAX: u64 = 65_536;

/// Time between two looks at what the sockets count, which are system calls.
const SOCKET_COUNTERS_INTERVAL_MS: u64 = 1000;

/// Gives frames to the host's own kernel, as if the interface had received them.
pub trait Host {
    /// Hands over a frame that came by `interface`, with what is still to be done for it; `false`:
    /// it could not be.
    fn punt(&mut self, interface: u8, frame: &mut [u8], offload: Offload) -> bool;
}

/// A worker over a device, the host beside it, and the gateway.
pub struct Worker<D, H, R> {
    device: D,
    host: H,
    gateway: Gateway<R>,
    stats: Arc<CachePadded<WorkerStats>>,
    limiters: Limiters,
    hold: HoldQueue,
    unanswered: Unanswered,
    received: Vec<Frame>,
    batch: Batch,
    /// Frames to send, by egress interface.
    transmit: Vec<Vec<Frame>>,
    /// How many of them found no room in the ring and are counted as held, by interface.
    queued: Vec<usize>,
    /// A packet that is being cut into fragments.
    scratch: Vec<u8>,
    swept_at: Time,
    /// Records that are due to be visited.
    sweep_due: u64,
    published_at: Time,
}

impl<D: Device, H: Host, R: Random> Worker<D, H, R> {
    /// A worker that sends at most `errors_per_second` ICMP errors of Egret's own, shared out by
    /// [`Limiters`].
    pub fn new(
        device: D,
        host: H,
        gateway: Gateway<R>,
        stats: Arc<CachePadded<WorkerStats>>,
        errors_per_second: u32,
    ) -> Worker<D, H, R> {
        let interfaces = stats.received.len();
        Worker {
            scratch: vec![0; device.slot_size()],
            device,
            host,
            gateway,
            stats,
            limiters: Limiters::new(errors_per_second, interfaces),
            hold: HoldQueue::default(),
            unanswered: Unanswered::default(),
            received: Vec::with_capacity(BATCH),
            batch: Batch::with_capacity(BATCH),
            transmit: (0..interfaces)
                .map(|_| Vec::with_capacity(TRANSMIT_MAX))
                .collect(),
            queued: vec![0; interfaces],
            swept_at: Time::default(),
            sweep_due: 0,
            published_at: Time::default(),
        }
    }

    /// One pass: receive, judge, send, and a slice of housekeeping. Returns the number of frames
    /// received; 0 means that the worker may rest.
    pub fn round(&mut self, now: Time) -> usize {
        self.gateway.refresh();
        let mut received = 0;
        for interface in 0..self.transmit.len() {
            let count = self.device.receive(interface, &mut self.received, BATCH);
            self.stats.received[interface].add(count as u64);
            received += count;
            self.judge_batch(interface as u8, now);
        }
        self.release_held(now);
        // Before sending: what it makes leaves in this round.
        if now.0.saturating_sub(self.swept_at.0) >= SWEEP_INTERVAL_MS {
            self.keep_house(now);
        }
        self.sweep(now);
        self.send();
        if received > 0 {
            self.stats.rounds_busy.add(1);
        }
        received
    }

    /// Is something waiting that needs a round soon, without a frame arriving?
    pub fn is_waiting(&self) -> bool {
        self.sweep_due > 0
            || self.gateway.shared().flushes.is_pending()
            || !self.hold.is_empty()
            || self.transmit.iter().any(|frames| !frames.is_empty())
    }

    /// Sends every frame by the whole route from now on, to compare.
    pub fn set_whole_route(&mut self) {
        self.batch.set_whole_route();
    }

    /// How many frames took the shortcut, ever.
    pub fn shortcuts(&self) -> u64 {
        self.batch.shortcuts()
    }

    /// The device, to feed it in tests and to wait on.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// The host beside the gateway, to look at in tests.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// The gateway.
    pub fn gateway(&self) -> &Gateway<R> {
        &self.gateway
    }

    /// The counters.
    pub fn stats(&self) -> &WorkerStats {
        &self.stats
    }

    /// Frames of the device that this worker holds between two rounds (waiting for a next hop, or
    /// for room in a transmit ring).
    pub fn frames_owned(&self) -> usize {
        self.hold.len() + self.transmit.iter().map(Vec::len).sum::<usize>()
    }

    /// Frames that wait for room in an interface's transmit ring, in the order in which they will
    /// leave.
    pub fn frames_queued(&self, interface: usize) -> usize {
        self.transmit.get(interface).map_or(0, Vec::len)
    }

    /// Steps 3 to 9 for the frames that were received.
    fn judge_batch(&mut self, ingress: u8, now: Time) {
        let frames = self.received.iter().map(|frame| self.device.bytes(frame));
        self.batch.look(&self.gateway, frames);
        let mut received = std::mem::take(&mut self.received);
        for (place, mut frame) in received.drain(..).enumerate() {
            let offload = self.device.offload(&frame);
            let bytes = self.device.bytes_mut(&frame);
            let sent = match offload.is_pending() {
                false => self
                    .batch
                    .shortcut(&self.gateway, place, bytes, ingress, now),
                true => None,
            };
            if let Some((interface, len)) = sent {
                let offset = self.device.offset(&frame);
                self.device.resize(&mut frame, offset, len);
                self.push(frame, interface);
            } else {
                let prepared = self.batch.prepared(&self.gateway, place, bytes);
                let prepared = prepared.with(offload);
                self.judge(frame, &prepared, ingress, now);
            }
        }
        self.received = received;
    }

    /// Judges one frame, and after a first fragment the fragments that waited for it.
    fn judge(&mut self, frame: Frame, prepared: &Prepared, ingress: u8, now: Time) {
        self.carry_out(frame, prepared, ingress, now);
        if prepared.is_first_fragment() {
            self.reinject(prepared, now);
        }
    }

    /// Step 9: the verdict of one frame, carried out.
    fn carry_out(&mut self, mut frame: Frame, prepared: &Prepared, ingress: u8, now: Time) {
        if let Ok(packet) = &prepared.parsed {
            // What follows the IP packet is Ethernet padding, and no part of what we send.
            let len = ethernet::HEADER_LEN + usize::from(packet.ipv4.total_len);
            let offset = self.device.offset(&frame);
            self.device.resize(&mut frame, offset, len);
        }
        let bytes = self.device.bytes_mut(&frame);
        let verdict = self
            .gateway
            .process(bytes, prepared, ingress, now, &self.stats);
        let single;
        let prepared = match verdict {
            Verdict::Reply { .. } | Verdict::Unanswered(_) | Verdict::Reset(_)
                if prepared.offload.is_pending() =>
            {
                single = self.single(&mut frame, prepared);
                &single
            }
            _ => prepared,
        };
        match verdict {
            Verdict::Transmit {
                interface,
                split_mtu,
            } => {
                self.enqueue(frame, interface, split_mtu);
            }
            Verdict::Hold { hop } => self.hold(frame, hop, now),
            Verdict::HeldFragment => {
                self.stats.held.add(1);
                self.device.free(frame);
            }
            Verdict::Punt => self.punt(frame, ingress),
            Verdict::Reply { kind, reason } => {
                self.reply(frame, prepared, ingress, kind, reason, now);
            }
            Verdict::Unanswered(reason) => {
                if let Ok(packet) = &prepared.parsed {
                    let bytes = self.device.bytes(&frame);
                    if packet.fragment.is_none() && self.may_answer(bytes, packet) {
                        self.unanswered.remember(bytes, packet, ingress, now);
                    }
                }
                self.drop(frame, reason);
            }
            Verdict::Reset(reason) => self.reset(frame, prepared, ingress, reason, now),
            Verdict::Drop(reason) => self.drop(frame, reason),
        }
    }

    fn hold(&mut self, frame: Frame, hop: HopNumber, now: Time) {
        match self.hold.push(frame, hop, now) {
            None => self.stats.held.add(1),
            Some(Pushed::Back(frame)) => self.drop(frame, DropReason::HoldFull),
            Some(Pushed::Out(frame)) => {
                self.stats.held.add(1);
                self.stats.released.add(1);
                self.drop(frame, DropReason::HoldFull);
            }
        }
    }

    fn drop(&mut self, frame: Frame, reason: DropReason) {
        self.stats.count_drop(reason);
        self.device.free(frame);
    }

    fn punt(&mut self, frame: Frame, ingress: u8) {
        let offload = self.device.offload(&frame);
        let bytes = self.device.bytes_mut(&frame);
        if self.host.punt(ingress, bytes, offload) {
            self.stats.punted.add(1);
            self.device.free(frame);
        } else {
            self.drop(frame, DropReason::PuntFailed);
        }
    }

    /// The fragments that waited for this first fragment go the route of received frames.
    fn reinject(&mut self, first: &Prepared, now: Time) {
        let Ok(packet) = first.parsed else { return };
        while let Some(mut frame) = self.device.allocate() {
            let (offset, held) = {
                let offset = self.device.offset(&frame);
                let slot = self.device.resize(&mut frame, offset, 0);
                (
                    offset,
                    self.gateway
                        .shared()
                        .fragments
                        .take(&packet, &mut slot[offset..]),
                )
            };
            let Some(held) = held else {
                return self.device.free(frame);
            };
            self.device.resize(&mut frame, offset, held.len);
            self.stats.released.add(1);
            let prepared = self.gateway.prepare(self.device.bytes(&frame));
            self.carry_out(frame, &prepared, held.interface, now);
        }
    }

    /// Fragments whose first did not come in time: punted if they may be the host's, else dropped.
    fn expire_fragments(&mut self, now: Time) {
        while let Some(mut frame) = self.device.allocate() {
            let (offset, held) = {
                let offset = self.device.offset(&frame);
                let slot = self.device.resize(&mut frame, offset, 0);
                (
                    offset,
                    self.gateway
                        .shared()
                        .fragments
                        .expire(now, &mut slot[offset..]),
                )
            };
            let Some(held) = held else {
                return self.device.free(frame);
            };
            self.device.resize(&mut frame, offset, held.len);
            self.stats.released.add(1);
            match self.gateway.fragment_expired(self.device.bytes(&frame)) {
                Verdict::Punt => self.punt(frame, held.interface),
                _ => self.drop(frame, DropReason::FragmentTimeout),
            }
        }
    }

    /// Sends what waited for a next hop that is known now, and drops what waited in vain.
    fn release_held(&mut self, now: Time) {
        if self.hold.is_empty() {
            return;
        }
        let shared = Arc::clone(self.gateway.shared());
        let judge = |hop| match shared.forwarding.hops().load(hop).state {
            HopState::Unresolved => Outcome::Wait,
            HopState::Resolved | HopState::Failed => Outcome::Release,
        };
        while let Some(held) = self.hold.take(now, judge) {
            self.stats.released.add(1);
            let hop = shared.forwarding.hops().load(held.hop);
            if hop.state != HopState::Resolved {
                self.drop(held.frame, DropReason::NeighbourUnreachable);
                continue;
            }
            self.gateway
                .set_ethernet(self.device.bytes_mut(&held.frame), &hop);
            let mtu = self.mtu_now(&hop);
            let too_big = self.packet_len(&held.frame) > usize::from(mtu);
            self.enqueue(held.frame, hop.interface, too_big.then_some(mtu));
        }
    }

    /// Frees what has expired, so that a full cycle takes [`SWEEP_CYCLE_MS`] however long the worker
    /// slept.
    fn sweep(&mut self, now: Time) {
        let slice = self.sweep_due.min(SWEEP_SLICE_MAX);
        if slice > 0 {
            self.sweep_due -= slice;
            self.gateway.sweep(now, slice as u32);
        }
    }

    /// What is done at intervals.
    fn keep_house(&mut self, now: Time) {
        let elapsed_ms = now.0.saturating_sub(self.swept_at.0).min(SWEEP_CYCLE_MS);
        self.swept_at = now;
        let share = |elapsed_ms| self.gateway.sweep_share(elapsed_ms, SWEEP_CYCLE_MS);
        self.sweep_due = (self.sweep_due + share(elapsed_ms)).min(share(SWEEP_CYCLE_MS));
        self.expire_fragments(now);
        self.answer_syns(now);
        self.announce();
        if now.0.saturating_sub(self.published_at.0) >= SOCKET_COUNTERS_INTERVAL_MS {
            self.published_at = now;
            self.publish_socket_counters();
        }
    }

    /// What the kernel dropped before us is seen only by asking the sockets. Numbers that cannot be
    /// had stay what they were.
    fn publish_socket_counters(&self) {
        for (interface, words) in self.stats.sockets.iter().enumerate() {
            if let Ok(counters) = self.device.socket_counters(interface) {
                words.publish(counters);
            }
        }
    }

    /// Sends what waits in the announcement queue.
    fn announce(&mut self) {
        let shared = Arc::clone(self.gateway.shared());
        while !shared.announcements.is_empty() {
            let Some(mut frame) = self.device.allocate() else {
                return;
            };
            // Another worker was faster.
            let Some(announcement) = shared.announcements.pop() else {
                return self.device.free(frame);
            };
            let offset = self.device.offset(&frame);
            let end = offset + announcement.frame.len();
            self.device
                .resize(&mut frame, offset, announcement.frame.len())[offset..end]
                .copy_from_slice(&announcement.frame);
            self.stats.made.add(1);
            self.push(frame, announcement.interface);
        }
    }
}
