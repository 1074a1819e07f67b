//! What a worker sends by itself: ICMP errors, and RSTs.

use std::net::Ipv4Addr;

use conntrack::{Random, Time};

use super::reset::{self, RESET_FRAME_LEN};
use super::{Host, Worker};
use crate::device::{Device, Frame};
use crate::drop_reason::DropReason;
use crate::fragment::Ends;
use crate::gateway::Prepared;
use crate::icmp::{self, ErrorKind};
use crate::packet;
use crate::wire::ethernet;

impl<D: Device, H: Host, R: Random> Worker<D, H, R> {
    /// May a packet be answered, as far as the addresses on it tell?
    pub(super) fn may_answer(&self, frame: &[u8], packet: &packet::Packet) -> bool {
        let links = self.gateway.links();
        let ends = [packet.ipv4.source, packet.ipv4.destination];
        icmp::may_answer(frame, packet) && !ends.iter().any(|&addr| links.is_broadcast(addr))
    }

    /// Answers with an ICMP error where rules and rate limit allow. The answer is written into the
    /// frame it answers, and goes back where that came from.
    pub(super) fn reply(
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
    pub(super) fn reset(
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
    pub(super) fn identification(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
    ) -> u16 {
        let ends = Ends {
            source,
            destination,
            protocol,
        };
        self.gateway.shared().identifications.fresh(&ends)
    }

    /// Answers the SYNs that have waited long enough and are still not wanted, from the address that
    /// they were sent to.
    pub(super) fn answer_syns(&mut self, now: Time) {
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
}
