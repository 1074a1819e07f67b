//! One worker: takes batches of frames from its device, has each judged by the gateway, and carries
//! the verdict out. A round is one pass over all interfaces; the clock is an argument of it.

mod reset;
mod unanswered;

use std::net::Ipv4Addr;
use std::sync::Arc;

use conntrack::{Random, Time};
use crossbeam_utils::CachePadded;

use crate::device::{Device, FRAME_SIZE, Frame};
use crate::drop_reason::DropReason;
use crate::fragment::{Ends, Splitter};
use crate::gateway::{Gateway, Prepared, Verdict};
use crate::hold::{HoldQueue, Outcome, Pushed};
use crate::icmp::{self, ErrorKind, Limiters};
use crate::neighbour::{Hop, HopNumber, HopState};
use crate::packet;
use crate::stats::WorkerStats;
use crate::wire::ethernet;
use crate::worker::reset::RESET_FRAME_LEN;
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
    /// Hands over a frame that came by `interface`; `false`: it could not be.
    fn punt(&mut self, interface: u8, frame: &mut [u8]) -> bool;
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
    batch: Vec<Frame>,
    prepared: Vec<Prepared>,
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
            device,
            host,
            gateway,
            stats,
            limiters: Limiters::new(errors_per_second, interfaces),
            hold: HoldQueue::default(),
            unanswered: Unanswered::default(),
            batch: Vec::with_capacity(BATCH),
            prepared: Vec::with_capacity(BATCH),
            transmit: (0..interfaces)
                .map(|_| Vec::with_capacity(TRANSMIT_MAX))
                .collect(),
            queued: vec![0; interfaces],
            scratch: vec![0; FRAME_SIZE],
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
            let count = self.device.receive(interface, &mut self.batch, BATCH);
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
            || !self.hold.is_empty()
            || self.transmit.iter().any(|frames| !frames.is_empty())
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

    /// Steps 3 to 9 for the frames in `batch`. Three passes, so that the tables' cache lines arrive
    /// while other frames are parsed.
    fn judge_batch(&mut self, ingress: u8, now: Time) {
        for frame in &self.batch {
            self.prepared
                .push(self.gateway.prepare(self.device.bytes(frame)));
        }
        for prepared in &self.prepared {
            self.gateway.prefetch(prepared);
        }
        let mut batch = std::mem::take(&mut self.batch);
        let mut prepared = std::mem::take(&mut self.prepared);
        for (frame, prepared) in batch.drain(..).zip(prepared.drain(..)) {
            self.judge(frame, &prepared, ingress, now);
        }
        self.batch = batch;
        self.prepared = prepared;
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
        match self
            .gateway
            .process(bytes, prepared, ingress, now, &self.stats)
        {
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
        if self.host.punt(ingress, self.device.bytes_mut(&frame)) {
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

    /// May a packet be answered, as far as the addresses on it tell?
    fn may_answer(&self, frame: &[u8], packet: &packet::Packet) -> bool {
        let links = self.gateway.links();
        let ends = [packet.ipv4.source, packet.ipv4.destination];
        icmp::may_answer(frame, packet) && !ends.iter().any(|&addr| links.is_broadcast(addr))
    }

    /// Answers with an ICMP error where rules and rate limit allow. The answer is written into the
    /// frame it answers, and goes back where that came from.
    fn reply(
        &mut self,
        mut frame: Frame,
        prepared: &Prepared,
        ingress: u8,
        kind: ErrorKind,
        reason: DropReason,
        now: Time,
    ) {
        let Ok(packet) = &prepared.parsed else {
            return self.drop(frame, reason);
        };
        let links = self.gateway.links();
        let source = links.source_towards(ingress, packet.ipv4.source);
        let allowed = self.may_answer(self.device.bytes(&frame), packet)
            && source.is_some()
            && self.limiters.of(ingress, kind).allow(now);
        let Some(source) = source.filter(|_| allowed) else {
            self.stats.errors_suppressed.add(1);
            return self.drop(frame, reason);
        };
        let identification = self.identification(source, packet.ipv4.source, 1);
        // The answer fits the link that it leaves by, however small.
        let mtu = self
            .gateway
            .links()
            .links
            .get(usize::from(ingress))
            .map_or(0, |link| link.mtu);
        let quoted = usize::from(mtu).saturating_sub(icmp::QUOTE_OFFSET);
        let (offset, len) = (self.device.offset(&frame), frame.len());
        let len = len.min(ethernet::HEADER_LEN + quoted);
        let slot = self.device.resize(&mut frame, offset, len);
        let (offset, len) = icmp::write_error(
            slot,
            offset,
            len,
            &packet.ipv4,
            kind,
            source,
            identification,
        );
        self.device.resize(&mut frame, offset, len);
        self.stats.count_drop(reason);
        self.stats.made.add(1);
        self.enqueue(frame, ingress, None);
    }

    /// Answers a segment with a RST, within the rules and the rate limit of ICMP errors.
    fn reset(
        &mut self,
        mut frame: Frame,
        prepared: &Prepared,
        ingress: u8,
        reason: DropReason,
        now: Time,
    ) {
        let link = self.gateway.links().links.get(usize::from(ingress));
        let (Ok(packet), Some(mac)) = (&prepared.parsed, link.map(|link| link.mac)) else {
            return self.drop(frame, reason);
        };
        let allowed = self.may_answer(self.device.bytes(&frame), packet)
            && self
                .limiters
                .of(ingress, ErrorKind::HostUnreachable)
                .allow(now);
        let ipv4 = &packet.ipv4;
        let identification = self.identification(ipv4.destination, ipv4.source, ipv4.protocol);
        if !allowed || !reset::write(self.device.bytes_mut(&frame), packet, mac, identification) {
            self.stats.errors_suppressed.add(1);
            return self.drop(frame, reason);
        }
        let offset = self.device.offset(&frame);
        self.device.resize(&mut frame, offset, RESET_FRAME_LEN);
        self.stats.count_drop(reason);
        self.stats.made.add(1);
        self.enqueue(frame, ingress, None);
    }

    /// For a packet of our own.
    fn identification(&self, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> u16 {
        let ends = Ends {
            source,
            destination,
            protocol,
        };
        self.gateway.shared().identifications.fresh(&ends)
    }

    /// Answers the SYNs that have waited long enough and are still not wanted, from the address that
    /// they were sent to.
    fn answer_syns(&mut self, now: Time) {
        let timeout_ms = self.gateway.policy().timers.tcp_in_syn_timeout_ms;
        while let Some(syn) = self.unanswered.take_due(now, timeout_ms) {
            let Some((about, tuple)) = syn.parse() else {
                continue;
            };
            if !self.gateway.is_unwanted(&tuple, now) {
                continue;
            }
            let kind = ErrorKind::PortUnreachable;
            let frame = if self.limiters.of(syn.interface, kind).allow(now) {
                self.device.allocate()
            } else {
                None
            };
            let Some(mut frame) = frame else {
                self.stats.errors_suppressed.add(1);
                continue;
            };
            let source = about.destination;
            let identification = self.identification(source, about.source, 1);
            let quoted = syn.frame();
            let offset = self.device.offset(&frame);
            let slot = self.device.resize(&mut frame, offset, quoted.len());
            slot[offset..offset + quoted.len()].copy_from_slice(quoted);
            let len = quoted.len();
            let (offset, len) =
                icmp::write_error(slot, offset, len, &about, kind, source, identification);
            self.device.resize(&mut frame, offset, len);
            self.stats.made.add(1);
            self.push(frame, syn.interface);
        }
    }

    /// Puts a translated frame into its egress queue, in fragments where the MTU asks for it.
    fn enqueue(&mut self, frame: Frame, interface: u8, split_mtu: Option<u16>) {
        match split_mtu {
            None => self.push(frame, interface),
            Some(mtu) => self.enqueue_split(frame, interface, mtu),
        }
    }

    /// Cuts a packet up for the egress MTU. The first piece takes the packet's own frame.
    fn enqueue_split(&mut self, frame: Frame, interface: u8, mtu: u16) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let len = frame.len();
        scratch[..len].copy_from_slice(self.device.bytes(&frame));
        let packet = packet::parse(&scratch[..len]);
        let splitter = packet.and_then(|packet| {
            Splitter::new(&scratch[..len], &packet, usize::from(mtu))
                .ok_or(DropReason::FragmentationNeeded)
        });
        match splitter {
            Err(reason) => self.drop(frame, reason),
            Ok(mut splitter) => {
                let mut room = Some(frame);
                while splitter.remaining() > 0 {
                    let Some(mut piece) = room.take().or_else(|| self.device.allocate()) else {
                        self.stats.made.add(1);
                        self.stats.count_drop(DropReason::NoFrame);
                        break;
                    };
                    let offset = self.device.offset(&piece);
                    let slot = self.device.resize(&mut piece, offset, 0);
                    let len = splitter.write(&mut slot[offset..]).unwrap_or(0);
                    self.device.resize(&mut piece, offset, len);
                    self.push(piece, interface);
                    self.stats.made.add(1);
                }
                // Every piece was counted as made; the packet itself is none of them.
                self.stats.split.add(1);
            }
        }
        self.scratch = scratch;
    }

    fn push(&mut self, frame: Frame, interface: u8) {
        let queue = &mut self.transmit[usize::from(interface)];
        if queue.len() < TRANSMIT_MAX {
            queue.push(frame);
        } else {
            self.drop(frame, DropReason::TxFull);
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
            let too_big = held.frame.len() > ethernet::HEADER_LEN + usize::from(mtu);
            self.enqueue(held.frame, hop.interface, too_big.then_some(mtu));
        }
    }

    /// What a frame that has waited may have: a hop keeps the MTU that it was made with, and the
    /// link's may be smaller by now.
    fn mtu_now(&self, hop: &Hop) -> u16 {
        let links = &self.gateway.links().links;
        let link = links.get(usize::from(hop.interface));
        link.map_or(hop.mtu, |link| link.mtu.min(hop.mtu))
    }

    /// Step 10: hands the queues to the device; what does not fit waits for the next round.
    fn send(&mut self) {
        let links = &self.gateway.links().links;
        for (interface, queue) in self.transmit.iter_mut().enumerate() {
            if queue.is_empty() {
                continue;
            }
            if links.get(interface).is_some_and(|link| !link.present) {
                // They would wait in the ring for ever.
                let waited = std::mem::take(&mut self.queued[interface]);
                self.stats.released.add(waited as u64);
                for frame in queue.drain(..) {
                    self.stats.count_drop(DropReason::NoRoute);
                    self.device.free(frame);
                }
            } else {
                let sent = self.device.transmit(interface, queue);
                self.stats.transmitted[interface].add(sent as u64);
                // The oldest go first.
                let released = sent.min(self.queued[interface]);
                let waited = self.queued[interface] - released;
                self.stats.released.add(released as u64);
                self.stats.held.add((queue.len() - waited) as u64);
                self.queued[interface] = queue.len();
            }
        }
        self.device.flush();
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
