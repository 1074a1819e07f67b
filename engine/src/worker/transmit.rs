//! What leaves: the queues of the egress interfaces, and packets cut up for their MTU.

use conntrack::Random;

use super::{Host, TRANSMIT_MAX, Worker};
use crate::device::{Device, Frame};
use crate::drop_reason::DropReason;
use crate::fragment::Splitter;
use crate::neighbour::Hop;
use crate::packet;

impl<D: Device, H: Host, R: Random> Worker<D, H, R> {
    /// Puts a translated frame into its egress queue, in fragments where the MTU asks for it.
    pub(super) fn enqueue(&mut self, frame: Frame, interface: u8, split_mtu: Option<u16>) {
        match split_mtu {
            None => self.push(frame, interface),
            Some(mtu) => self.enqueue_split(frame, interface, mtu),
        }
    }

    /// Cuts a packet up for the egress MTU. The first piece takes the packet's own frame.
    pub(super) fn enqueue_split(&mut self, frame: Frame, interface: u8, mtu: u16) {
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
