//! Whether an answer of the tables is one that the rules allow, and what it makes of the
//! reference. Where the tables may choose (a port, a pairing), the choice is checked and adopted.

use conntrack::{Direction, Endpoint, NextHop, Protocol, Realm, Refusal, Rewrite, Signal, Tuple};

use crate::connection::Connection;
use crate::observe::{Judged, World, ensure};
use crate::quota::{self, Demand};
use crate::reference::{Backing, Reach, Reference, Session, Side};

/// A packet at the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub realm: Realm,
    pub tuple: Tuple,
    pub signal: Signal,
    pub length: u32,
}

/// The tables before and after a packet.
pub struct Worlds<'w> {
    pub before: &'w World,
    pub after: &'w World,
    /// What the sender had before.
    pub demand: Demand,
}

impl Reference {
    /// A packet of a live session: the answer is certain.
    pub fn judge_hit(
        &mut self,
        (place, side): (usize, usize),
        packet: &Packet,
        result: Result<Rewrite, Refusal>,
    ) -> Judged {
        let rewrite = result.map_err(|refusal| format!("a live session's packet: {refusal:?}"))?;
        let now = self.now_ms;
        let session_outbound = self.sessions[place].realm(side) == Realm::Internal;
        let session = &mut self.sessions[place];
        let half = &mut session.sides[side];
        let source = (half.source, half.destination);
        ensure((rewrite.source, rewrite.destination) == source, || {
            format!("rewrites to {rewrite:?}, should {source:?}")
        })?;
        check_rewrite(&packet.tuple, &rewrite)?;
        ensure(half.hops.contains(&rewrite.next_hop), || {
            format!("next hop {:?}, should {:?}", rewrite.next_hop, half.hops)
        })?;
        half.hops = vec![rewrite.next_hop];
        (half.seen_ms, half.packets) = (now, half.packets + 1);
        half.bytes += u64::from(packet.length);
        let backing = half.backing;
        let direction = match (session.direction, side) {
            (Direction::Hairpin, _) => Direction::Hairpin,
            (_, 0) => Direction::Outbound,
            _ => Direction::Inbound,
        };
        ensure(rewrite.direction == direction, || {
            format!("goes {:?}, should {direction:?}", rewrite.direction)
        })?;
        let half = 2 * session.number + side as u32;
        ensure(rewrite.session.half == half, || {
            format!("half {}, should be {half}", rewrite.session.half)
        })?;
        let initiator = session.initiator();
        let mut moved = None;
        if let Some(tcp) = &mut session.tcp {
            let state = tcp.state();
            tcp.see(usize::from(side != initiator), packet.signal);
            if tcp.state() != state {
                session.version += 1;
                moved = Some(tcp.state());
            }
        }
        if session_outbound || self.policy.inbound_refresh {
            self.touch(backing);
        }
        if let Some(state) = moved {
            self.seen(&format!("tcp {state:?}"));
        }
        self.seen(&format!("packet {direction:?}"));
        Ok(())
    }

    /// A packet without a live session.
    pub fn judge_miss(
        &mut self,
        packet: &Packet,
        result: Result<Rewrite, Refusal>,
        worlds: &Worlds,
    ) -> Judged {
        match (packet.realm, result) {
            (Realm::Internal, Ok(rewrite)) => self.judge_opened_inside(packet, &rewrite, worlds),
            (Realm::External, Ok(rewrite)) => self.judge_opened_outside(packet, &rewrite),
            (realm, Err(refusal)) => {
                let (reasons, free_to) = match realm {
                    Realm::Internal => self.refuse_inside(packet, worlds),
                    Realm::External => self.refuse_outside(packet, worlds.after),
                };
                self.seen(&format!("{refusal:?} from {realm:?}"));
                if realm == Realm::External {
                    self.note_way_back(&packet.tuple, refusal);
                }
                ensure(
                    reasons.contains(&refusal) || free_to.contains(&refusal),
                    || format!("refused as {refusal:?}, should {reasons:?} or {free_to:?}"),
                )?;
                if refusal == Refusal::PortsExhausted && realm == Realm::Internal {
                    self.adopt_clashed(packet, worlds)?;
                    self.learn_exhaustion(packet, worlds.after)?;
                }
                Ok(())
            }
        }
    }

    fn judge_opened_outside(&mut self, packet: &Packet, rewrite: &Rewrite) -> Judged {
        ensure(
            matches!(packet.signal, Signal::TcpSyn | Signal::Udp),
            || "opened by a packet that must not open".into(),
        )?;
        let Tuple {
            protocol,
            source: remote,
            destination: external,
        } = packet.tuple;
        let (target, backing) = match self.reach(protocol, external, remote) {
            Reach::Shut(reasons) => {
                return Err(format!("admitted, should be refused: {reasons:?}"));
            }
            Reach::Open {
                target, backing, ..
            } => (target, backing),
        };
        let met = self.limits_met(protocol, external, backing);
        ensure(met.is_empty(), || format!("admitted against {met:?}"))?;
        ensure(
            (rewrite.source, rewrite.destination) == (remote, target),
            || format!("rewrites to {rewrite:?}, should to {target}"),
        )?;
        let there = Tuple {
            protocol,
            source: target,
            destination: remote,
        };
        self.seen(match backing {
            Backing::Forward => "opened through a forward",
            _ => "opened through a mapping",
        });
        self.add_session(
            packet,
            rewrite,
            [there, packet.tuple],
            [external, target],
            backing,
            None,
        )?;
        if self.policy.inbound_refresh {
            self.touch(backing);
        }
        Ok(())
    }

    /// Enters a session that this packet opened. `ends` are the opener's or target's external
    /// endpoint and the internal endpoint behind the far side.
    pub fn add_session(
        &mut self,
        packet: &Packet,
        rewrite: &Rewrite,
        tuples: [Tuple; 2],
        [external, target]: [Endpoint; 2],
        backing: Backing,
        far: Option<Backing>,
    ) -> Judged {
        check_rewrite(&packet.tuple, rewrite)?;
        for tuple in &tuples {
            ensure(!self.in_use(tuple), || format!("{tuple} is in use"))?;
        }
        let from_outside = packet.realm == Realm::External;
        let [there, back] = tuples;
        let direction = match (from_outside, far) {
            (true, _) => Direction::Inbound,
            (_, Some(_)) => Direction::Hairpin,
            _ => Direction::Outbound,
        };
        ensure(rewrite.direction == direction, || {
            format!("goes {:?}, should {direction:?}", rewrite.direction)
        })?;
        ensure(rewrite.next_hop == NextHop::NONE, || {
            "a new session has a next hop".into()
        })?;
        let opener = usize::from(from_outside);
        let side = |side: usize, tuple: Tuple, source, destination, backing| Side {
            tuple,
            source,
            destination,
            backing,
            seen_ms: self.now_ms,
            packets: u32::from(side == opener),
            bytes: if side == opener {
                packet.length.into()
            } else {
                0
            },
            hops: vec![NextHop::NONE],
        };
        let (arrives_at, leaves_to) = match from_outside {
            true => (there.destination, there.destination),
            false => (there.destination, target),
        };
        let sides = [
            side(0, there, external, leaves_to, backing),
            side(1, back, arrives_at, there.source, far.unwrap_or(backing)),
        ];
        let half = rewrite.session.half;
        ensure(half & 1 == opener as u32, || {
            format!("the opener is half {half}")
        })?;
        self.created += 1;
        self.sessions.push(Session {
            number: half >> 1,
            version: self.created << 32,
            protocol: there.protocol,
            direction,
            from_outside,
            counted: !from_outside && quota::counts(&self.policy),
            tcp: (there.protocol == Protocol::Tcp).then(|| Connection::new(from_outside)),
            sides,
        });
        Ok(())
    }
}

/// The deltas of a rewrite, computed anew (RFC 1624 equation 3).
pub fn check_rewrite(tuple: &Tuple, rewrite: &Rewrite) -> Judged {
    let halves = |endpoint: Endpoint| {
        let addr = endpoint.addr.to_bits();
        [(addr >> 16) as u16, addr as u16]
    };
    let mut addresses: Vec<(u16, u16)> = Vec::new();
    let mut ports = Vec::new();
    for (old, new) in [
        (tuple.source, rewrite.source),
        (tuple.destination, rewrite.destination),
    ] {
        addresses.extend(halves(old).into_iter().zip(halves(new)));
        ports.push((old.port, new.port));
    }
    let sum = |words: &[(u16, u16)]| {
        let changed = words.iter().filter(|(old, new)| old != new);
        let mut sum: u32 = changed
            .map(|&(old, new)| u32::from(!old) + u32::from(new))
            .sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    };
    let l4 = match tuple.protocol {
        Protocol::Icmp => sum(&ports),
        _ => sum(&[addresses.clone(), ports].concat()),
    };
    let should = (sum(&addresses), l4);
    ensure((rewrite.ip_delta, rewrite.l4_delta) == should, || {
        format!("deltas of {tuple} to {rewrite:?}, should be {should:?}")
    })
}
