//! What leaves: the queues of the egress interfaces, and packets cut up for their MTU.

use conntrack::Random;

use super::{Host, TRANSMIT_MAX, Worker};
use crate::device::offload::{Offload, SegmentKind, Segments};
use crate::device::{Device, Frame};
use crate::drop_reason::DropReason;
use crate::fragment::Splitter;
use crate::gateway::Prepared;
use crate::neighbour::Hop;
use crate::packet;
use crate::segment::{self, Datagrams};
use crate::wire::ethernet;

impl<D: Device, H: Host, R: Random> Worker<D, H, R> {
    /// Puts a translated frame into its egress queue, in fragments where the MTU asks for it.
    pub(super) fn enqueue(&mut self, frame: Frame, interface: u8, split_mtu: Option<u16>) {
        match split_mtu {
            None => self.push(frame, interface),
            Some(mtu) => self.enqueue_split(frame, interface, mtu),
        }
    }

    /// Cuts a packet up for the egress MTU. The first piece takes the packet's own frame. Of a
    /// super-packet it is the packets that are too big.
    pub(super) fn enqueue_split(&mut self, mut frame: Frame, interface: u8, mtu: u16) {
        let offload = self.device.offload(&frame);
        if let Some(Segments {
            kind: SegmentKind::Tcp { .. },
            ..
        }) = offload.segments
        {
            return self.enqueue_resized(frame, interface, mtu);
        }
        if offload.is_pending() && offload.segments.is_none() {
            let prepared = self.gateway.prepare(self.device.bytes(&frame));
            self.single(
                &mut frame,
                &Prepared {
                    offload,
                    ..prepared
                },
            );
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let len = frame.len();
        scratch[..len].copy_from_slice(self.device.bytes(&frame));
        let mut room = Some(frame);
        let cut = match (offload.segments, packet::parse(&scratch[..len])) {
            (_, Err(reason)) => Err(reason),
            (None, Ok(_)) => self.cut(&scratch[..len], &mut room, interface, mtu),
            (Some(segments), Ok(packet)) => {
                let datagrams = Datagrams::new(&mut scratch[..len], &packet, segments);
                datagrams.map_or(Err(DropReason::FragmentationNeeded), |mut datagrams| {
                    while let Some(datagram) = datagrams.next_frame() {
                        self.cut(datagram, &mut room, interface, mtu)?;
                    }
                    Ok(())
                })
            }
        };
        match (cut, room) {
            (Err(reason), Some(frame)) => self.drop(frame, reason),
            // Every piece was counted as made; the packet itself is none of them.
            (_, None) => self.stats.split.add(1),
            (Ok(()), Some(frame)) => self.drop(frame, DropReason::FragmentationNeeded),
        }
        self.scratch = scratch;
    }

    /// Sends the pieces of one packet, the first of all in `room`.
    fn cut(
        &mut self,
        bytes: &[u8],
        room: &mut Option<Frame>,
        interface: u8,
        mtu: u16,
    ) -> Result<(), DropReason> {
        let packet = packet::parse(bytes)?;
        let mut splitter = Splitter::new(bytes, &packet, usize::from(mtu))
            .ok_or(DropReason::FragmentationNeeded)?;
        while splitter.remaining() > 0 {
            let Some(mut piece) = room.take().or_else(|| self.device.allocate()) else {
                self.stats.made.add(1);
                self.stats.count_drop(DropReason::NoFrame);
                break;
            };
            self.device.set_offload(&piece, Offload::WHOLE);
            let offset = self.device.offset(&piece);
            let slot = self.device.resize(&mut piece, offset, 0);
            let len = splitter.write(&mut slot[offset..]).unwrap_or(0);
            self.device.resize(&mut piece, offset, len);
            self.push(piece, interface);
            self.stats.made.add(1);
        }
        Ok(())
    }

    /// A stretch of a TCP stream can be cut anywhere: it leaves in smaller segments.
    fn enqueue_resized(&mut self, frame: Frame, interface: u8, mtu: u16) {
        let packet = packet::parse(self.device.bytes(&frame));
        let whole = packet.is_ok_and(|packet| packet.ipv4.dont_fragment);
        let offload = self.device.offload(&frame);
        let segments = offload.segments.and_then(|segments| segments.fitting(mtu));
        if whole || segments.is_none() {
            return self.drop(frame, DropReason::FragmentationNeeded);
        }
        let resized = Offload {
            segments,
            ..offload
        };
        self.device.set_offload(&frame, resized);
        self.push(frame, interface);
    }

    /// Makes an ordinary packet of a frame that is not to be left to the kernel: the first one that
    /// it stands for.
    pub(super) fn single(&mut self, frame: &mut Frame, prepared: &Prepared) -> Prepared {
        if let Ok(packet) = &prepared.parsed {
            let len = segment::first(self.device.bytes_mut(frame), packet, prepared.offload);
            let offset = self.device.offset(frame);
            self.device.resize(frame, offset, len);
        }
        self.device.set_offload(frame, Offload::WHOLE);
        Prepared {
            offload: Offload::WHOLE,
            ..self.gateway.prepare(self.device.bytes(frame))
        }
    }

    /// Bytes of the longest IP packet that a frame becomes.
    pub(super) fn packet_len(&self, frame: &Frame) -> usize {
        match self.device.offload(frame).segments {
            Some(segments) => segments.packet_len(),
            None => frame.len().saturating_sub(ethernet::HEADER_LEN),
        }
    }

    pub(super) fn push(&mut self, frame: Frame, interface: u8) {
        let queue = &mut self.transmit[usize::from(interface)];
        if queue.len() < TRANSMIT_MAX {
            queue.push(frame);
        } else {
            self.drop(frame, DropReason::TxFull);
        }
    }

    /// What a frame that has waited may have: a hop keeps the MTU that it was made with, and the
    /// link's may be smaller by now.
    pub(super) fn mtu_now(&self, hop: &Hop) -> u16 {
        let links = &self.gateway.links().links;
        let link = links.get(usize::from(hop.interface));
        link.map_or(hop.mtu, |link| link.mtu.min(hop.mtu))
    }

    /// Step 10: hands the queues to the device; what does not fit waits for the next round.
    pub(super) fn send(&mut self) {
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
}
