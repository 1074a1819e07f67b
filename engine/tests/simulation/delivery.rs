//! What becomes of frames behind the gateway: routers outside, and the hosts that they reach.

use std::net::Ipv4Addr;

use engine::wire::build::Envelope;
use engine::world::{EXTERNAL, UPSTREAM, mac_of};

use super::checks::check_sum;
use super::fragments::{cut, finish_header};
use super::hosts::Flow;
use super::network::Event;
use super::oracle::Side;
use super::packet::{Draft, Kind, Proto, RST, Seen, Segment, Sum, read};
use super::play::{Course, HOPS, NO_FLOW, Play};
use super::script::GREEDY;

impl Play<'_> {
    /// The path outside: routers count the TTL down, and links may be narrow.
    pub fn go_outside(&mut self, seen: Seen, frame: Vec<u8>) {
        if self.heard.len() >= 16 {
            self.heard.pop_front();
        }
        if self.complaints > 0 {
            self.complaints -= 1;
            let (kind, code) = self.dice.pick(&[(3, 1), (3, 3), (11, 0), (3, 13)]);
            self.complain(&seen, &frame, kind, code, 1);
        }
        let path_mtu = self.network.path_mtu;
        if seen.ttl <= HOPS {
            self.complain(&seen, &frame, 11, 0, seen.ttl);
        } else if seen.len <= path_mtu || !seen.dont_fragment {
            for part in cut(&frame, path_mtu) {
                self.network
                    .carry(self.now, &mut self.dice, &Event::Reach(Side::Outside, part));
            }
        } else {
            self.complain(&seen, &frame, 3, 4, HOPS);
        }
        self.heard.push_back(seen);
    }

    /// A router outside tells the sender of a frame what is wrong.
    pub fn complain(&mut self, seen: &Seen, frame: &[u8], kind: u8, code: u8, hop: u8) {
        if seen.quote.is_some() || seen.fragment.is_some_and(|(offset, _)| offset > 0) {
            return;
        }
        let packet = &frame[14..];
        let quoted = self.dice.pick(&[28, 84, 548]).min(packet.len());
        let mtu = if code == 4 {
            self.network.path_mtu as u16
        } else {
            0
        };
        let [high, low] = mtu.to_be_bytes();
        let router = Ipv4Addr::new(203, 0, 113, 240 + hop);
        let mut packet = packet[..quoted].to_vec();
        if kind == 11 {
            // The router has counted it down.
            packet[8] = 1;
            let mut framed = [&[0; 14], &packet[..]].concat();
            finish_header(&mut framed);
            packet = framed[14..].to_vec();
        }
        let error =
            Envelope::new(router, *seen.source.ip()).icmp(kind, code, [0, 0, high, low], &packet);
        self.network.carry(
            self.now,
            &mut self.dice,
            &Event::Arrive(Side::Outside, error),
        );
    }

    /// A frame reaches a host.
    pub fn reach(&mut self, side: Side, frame: Vec<u8>) -> Course {
        let Some(part) = read(&frame) else {
            return Ok(());
        };
        let whole = self.assemblers[side as usize].put(&part, frame);
        let Some(frame) = whole else { return Ok(()) };
        let Some(seen) = read(&frame) else {
            return Err(format!("{part}: cannot be read"));
        };
        check_sum(&seen).map_err(|what| format!("{seen}: {what}"))?;
        let known = self.hosts.contains(seen.destination.ip()) || *seen.destination.ip() == GREEDY;
        if side == Side::Inside && !known {
            return Err(format!("{seen}: there is no such host"));
        }
        if let Some(quote) = seen.quote {
            let told = |flow: &&mut Flow| {
                let ends = (quote.proto, quote.source, quote.destination);
                (flow.side, flow.proto, flow.local, flow.remote) == (side, ends.0, ends.1, ends.2)
            };
            for flow in self.flows.iter_mut().filter(told) {
                flow.hear_error(quote.kind, quote.code, quote.mtu);
            }
            return Ok(());
        }
        let Some(tag) = seen.tag.filter(|tag| tag.sum != Sum::Wrong) else {
            return Ok(());
        };
        match tag.kind {
            Kind::Request => {
                if let Some(reply) = self.servers.hear(&seen, &mut self.dice) {
                    self.send(side, reply);
                }
                Ok(())
            }
            Kind::Reply => self.hear_reply(side, &seen),
            Kind::Attack => {
                self.answer_attack(side, &seen, &frame);
                Ok(())
            }
        }
    }

    pub fn hear_reply(&mut self, side: Side, seen: &Seen) -> Course {
        let number = seen.tag.map_or(0, |tag| tag.flow) as usize;
        let Some(flow) = self.flows.get_mut(number) else {
            return Err(format!("{seen}: it is of no flow"));
        };
        if side == Side::Outside && flow.remote != seen.source {
            // The session by the forward had expired before the reply: it took another way.
            return Ok(());
        }
        if (flow.side, flow.local, flow.remote) != (side, seen.destination, seen.source) {
            if self.oracle.is_soon_after_loss(self.now) {
                return Ok(());
            }
            return Err(format!("{seen}: it is of {} > {}", flow.local, flow.remote));
        }
        self.tally.replies += 1;
        let drafts = flow.hear(self.now, seen, &mut self.dice);
        self.follow_up(number, drafts);
        Ok(())
    }

    /// Nobody listens there: some hosts say so.
    pub fn answer_attack(&mut self, side: Side, seen: &Seen, frame: &[u8]) {
        if !self.dice.chance(300) {
            return;
        }
        if let Some(segment) = seen.segment {
            let mut draft = Draft::new(Proto::Tcp, seen.destination, seen.source, Kind::Attack);
            draft.tag.flow = NO_FLOW;
            draft.segment = Some(Segment {
                seq: segment.ack,
                ack: segment.seq,
                flags: RST,
            });
            self.send(side, draft);
        } else if seen.proto == Proto::Udp {
            let back = Envelope::new(*seen.destination.ip(), *seen.source.ip());
            let error = back.icmp_error(3, 3, frame, 548);
            self.network
                .carry(self.now, &mut self.dice, &Event::Arrive(side, error));
        }
    }
}

/// The frame goes to the next hop's MAC. Errors go back to whom they answer, whoever that is.
/// `off_net`: the network outside may have been one that is reached by the upstream router.
pub fn check_receiver(seen: &Seen, frame: &[u8], off_net: bool) -> Course {
    let addr = *seen.destination.ip();
    let beside = addr.octets()[..3] == EXTERNAL.octets()[..3];
    let near = addr.octets()[0] == 10 || beside;
    let hop = if near { addr } else { UPSTREAM };
    let by_upstream = beside && off_net && frame[..6] == mac_of(UPSTREAM);
    if seen.quote.is_none() && frame[..6] != mac_of(hop) && !by_upstream {
        return Err(format!("{seen}: it goes to the MAC {:02x?}", &frame[..6]));
    }
    Ok(())
}
