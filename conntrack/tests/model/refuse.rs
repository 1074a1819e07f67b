//! The reasons for which a packet may be refused: a refusal must have one of them.

use std::net::Ipv4Addr;

use conntrack::{Action, Endpoint, ExternalAddress, Protocol, Refusal, Signal, Tuple};

use crate::choice::Source;
use crate::flow::action;
use crate::judge::{Packet, Worlds};
use crate::observe::{Judged, World, ensure};
use crate::operation::PORTS;
use crate::reference::{Backing, Reach, Reference, Session, Side, TICK_MS};

impl Reference {
    /// The reasons to refuse a packet from outside, and those that are not certain.
    pub fn refuse_outside(
        &mut self,
        packet: &Packet,
        world: &World,
    ) -> (Vec<Refusal>, Vec<Refusal>) {
        if !matches!(packet.signal, Signal::TcpSyn | Signal::Udp) {
            return (vec![Refusal::NoSession], vec![]);
        }
        let Tuple {
            protocol,
            source: remote,
            destination: external,
        } = packet.tuple;
        let mut free_to = Vec::new();
        let mut limits = Vec::new();
        let mut reasons = match self.reach(protocol, external, remote) {
            Reach::Shut(reasons) => reasons,
            Reach::Open {
                target,
                sure,
                backing,
            } => {
                if !sure {
                    free_to.push(Refusal::NoSession);
                }
                limits = self.limits_met(protocol, external, backing);
                let there = Tuple {
                    protocol,
                    source: target,
                    destination: remote,
                };
                // Two sessions cannot share a tuple: there is no endpoint for the second.
                match self.lives_at(&there) {
                    true => vec![Refusal::PortsExhausted],
                    false => vec![],
                }
            }
        };
        reasons.extend(self.full(world));
        reasons.extend(limits);
        (reasons, free_to)
    }

    /// The limits that one more session from outside would break.
    pub fn limits_met(
        &self,
        protocol: Protocol,
        external: Endpoint,
        backing: Backing,
    ) -> Vec<Refusal> {
        let count = |counts: &dyn Fn(&Session) -> bool| {
            let sessions = self.sessions.iter();
            sessions.filter(|s| s.from_outside && counts(s)).count() as u32
        };
        let (limits, max) = (self.policy.limits, self.sessions_max);
        let eighth = (max / 8).max(1);
        let mapped = |s: &Session| matches!(s.sides[0].backing, Backing::Mapping(_));
        let here = |s: &Session| s.protocol == protocol && s.sides[0].source == external;
        let mut met = Vec::new();
        if count(&|_| true) >= max / 4 {
            met.push(Refusal::InboundLimit);
        }
        match backing {
            Backing::Forward => {
                if count(&here) >= limits.inbound_sessions_per_forward.expect("set") {
                    met.push(Refusal::ForwardInboundLimit);
                }
                let half_open = |s: &Session| s.half_open().is_some();
                let full = count(&half_open) >= eighth
                    || count(&|s| half_open(s) && here(s))
                        >= limits.half_open_per_forward.expect("set");
                if protocol == Protocol::Tcp && full {
                    met.push(Refusal::HalfOpenLimit);
                }
            }
            _ => {
                if count(&mapped) >= eighth {
                    met.push(Refusal::InboundLimit);
                }
                let limit = u32::from(limits.inbound_sessions_per_mapping);
                if count(&|s| mapped(s) && here(s)) >= limit {
                    met.push(Refusal::MappingInboundLimit);
                }
            }
        }
        met
    }

    /// Half-open connections that a SYN pushed out, live or over: its forward's, or those of one that
    /// has more.
    pub fn give_way(&mut self, packet: &Packet, after: &World, made: Option<u32>) -> Judged {
        let evicted = after.totals.evicted - self.evicted;
        for _ in 0..evicted {
            let gone = |of: Option<Endpoint>| {
                self.sessions.iter().position(|s| {
                    let listed = made != Some(s.number)
                        && after.listing.iter().any(|view| {
                            view.number == s.number && view.inbound.tuple == s.sides[1].tuple
                        });
                    let half_open = s.half_open();
                    let fits = half_open.is_some() && (of.is_none() || of == half_open);
                    !listed && fits && s.sides[1].tuple != packet.tuple
                })
            };
            // One SYN may push out several: its own forward's, and then those of one that has more.
            let own = packet.tuple.destination;
            let gone = gone(Some(own)).or_else(|| gone(None));
            let gone = gone.ok_or_else(|| "evicted, but what?".to_owned())?;
            let of = self.sessions[gone].half_open().expect("half-open");
            // One that was over and had this very tuple went before.
            let others = || {
                self.sessions
                    .iter()
                    .filter(|s| s.sides[1].tuple != packet.tuple)
            };
            let has = |forward| {
                let half_open = others().filter_map(Session::half_open);
                half_open.filter(|&at| at == forward).count() as u32
            };
            if of != own {
                ensure(has(of) > has(own), || {
                    format!("{own} had {}, but {of} with {} gave way", has(own), has(of))
                })?;
                self.seen("half-open of another forward evicted");
            }
            ensure(packet.signal == Signal::TcpSyn, || {
                "evicted for this".into()
            })?;
            self.sessions.remove(gone);
            self.evicted += 1;
            self.seen("half-open evicted");
        }
        Ok(())
    }

    pub fn full(&self, world: &World) -> Option<Refusal> {
        (world.totals.sessions == u64::from(self.sessions_max)).then_some(Refusal::SessionsFull)
    }

    /// Addresses that the sender may be seen as.
    pub fn seen_as(&mut self, source: &Source, flow: &Tuple) -> Vec<Ipv4Addr> {
        match source {
            Source::Forward(external) => vec![external.addr],
            Source::Mapping(mapping) => vec![mapping.external.addr],
            Source::Over(mapping) => {
                let mut addresses = self.pairing(flow).clone();
                addresses.push(mapping.external.addr);
                addresses
            }
            Source::New if self.eim(flow) => self.pairing(flow).clone(),
            Source::New => self.pool(flow).map(|a| a.addr).collect(),
        }
    }

    /// Where a packet from inside goes, seen as an address: `None` is its own destination.
    pub fn target(&self, tuple: &Tuple, seen_as: Ipv4Addr) -> Option<Reach> {
        self.address(tuple.destination.addr)?;
        if tuple.protocol == Protocol::Icmp {
            return Some(Reach::Shut(vec![Refusal::NoSession]));
        }
        // The sender's external port is not chosen yet.
        let seen_as = Endpoint::new(seen_as, tuple.source.port);
        Some(
            match self.reach(tuple.protocol, tuple.destination, seen_as) {
                Reach::Open { target, .. } if target == tuple.source => {
                    Reach::Shut(vec![Refusal::NoSession])
                }
                reach => reach,
            },
        )
    }

    /// The reasons to refuse a packet from inside, and those that are not certain.
    pub fn refuse_inside(
        &mut self,
        packet: &Packet,
        worlds: &Worlds,
    ) -> (Vec<Refusal>, Vec<Refusal>) {
        match action(&self.policy, &packet.tuple) {
            Action::Translate(_) => {}
            Action::Bypass => return (vec![Refusal::RuleBypass], vec![]),
            Action::Drop => return (vec![Refusal::RuleDrop], vec![]),
        }
        match packet.signal {
            Signal::TcpSyn | Signal::Udp | Signal::IcmpQuery => {}
            Signal::IcmpReply => return (vec![Refusal::IcmpUnasked], vec![]),
            _ => return (vec![Refusal::TcpMidstream], vec![]),
        }
        if let Some(refusal) = self.refused_first(packet, &worlds.demand) {
            return (vec![refusal], vec![]);
        }
        let world = worlds.after;
        let tuple = packet.tuple;
        let (mut reasons, mut free_to) = (Vec::new(), Vec::new());
        reasons.extend(self.full(world));
        let source = self.source(&tuple);
        let seen_as = self.seen_as(&source, &tuple);
        if seen_as.is_empty() {
            reasons.push(Refusal::NoExternalAddress);
            if tuple.protocol == Protocol::Icmp && self.address(tuple.destination.addr).is_some() {
                reasons.push(Refusal::NoSession);
            }
        }
        let mut back = tuple.destination;
        for addr in seen_as {
            match self.target(&tuple, addr) {
                None => {}
                Some(Reach::Shut(shut)) => reasons.extend(shut),
                Some(Reach::Open { target, sure, .. }) => {
                    back = target;
                    if !sure {
                        free_to.push(Refusal::NoSession);
                    }
                }
            }
        }
        let [surely, perhaps] = self.is_out_of_ports(tuple.protocol, &worlds.demand);
        if perhaps {
            free_to.push(Refusal::SubscriberPorts);
        }
        let clash = |external| {
            self.lives_at(&Tuple {
                protocol: tuple.protocol,
                source: back,
                destination: external,
            })
        };
        match &source {
            Source::Forward(external) if clash(*external) => reasons.push(Refusal::PortsExhausted),
            Source::Mapping(mapping) if clash(mapping.external) => {
                reasons.push(Refusal::PortsExhausted);
            }
            Source::Forward(_) | Source::Mapping(_) => {}
            // Its own endpoint is free for it, unless it went into hold-down or left the pool.
            Source::Over(mapping)
                if !self.hold_is_due(tuple.protocol, mapping.open)
                    && *self.pairing(&tuple) == [mapping.external.addr]
                    && self.address(mapping.external.addr).is_some_and(|a| {
                        a.ports[tuple.protocol.index()].contains(mapping.external.port)
                    }) => {}
            _ if surely => reasons.push(Refusal::SubscriberPorts),
            Source::Over(_) => {
                let full = [Refusal::PortsExhausted, Refusal::MappingsFull];
                let really = self.refuse_new(&tuple, back, world);
                free_to.extend(full.into_iter().filter(|r| really.contains(r)));
            }
            Source::New => reasons.extend(self.refuse_new(&tuple, back, world)),
        }
        if self.may_clash(&tuple, back) && !matches!(source, Source::Forward(_)) {
            free_to.push(Refusal::PortsExhausted);
        }
        (reasons, free_to)
    }

    /// May a session leave from an address, or does the far side refuse what it sees then?
    pub fn admits(&self, tuple: &Tuple, address: &ExternalAddress) -> bool {
        !matches!(self.target(tuple, address.addr), Some(Reach::Shut(_)))
    }

    /// Has the far side of a hairpin a session to an address that has become the pool's since? An
    /// endpoint chosen anew may clash with it: `eim` does not choose by the far side.
    pub fn may_clash(&self, tuple: &Tuple, back: Endpoint) -> bool {
        let mut sides = self.sessions.iter().flat_map(|session| &session.sides);
        let clashing = |side: &Side| {
            (side.tuple.protocol, side.tuple.source) == (tuple.protocol, back)
                && self.address(side.tuple.destination.addr).is_some()
        };
        self.eim(tuple) && back != tuple.destination && sides.any(clashing)
    }

    /// The reasons to refuse a new mapping.
    pub fn refuse_new(&mut self, tuple: &Tuple, back: Endpoint, world: &World) -> Vec<Refusal> {
        let mut reasons = Vec::new();
        if world.totals.mappings == u64::from(self.sessions_max) {
            reasons.push(Refusal::MappingsFull);
        }
        let paired = self.pairing(tuple).clone();
        let soft = self.is_soft(tuple, back);
        let mut candidates = self
            .pool(tuple)
            .filter(|a| soft || paired.contains(&a.addr))
            .filter(|a| self.eim(tuple) || self.admits(tuple, a));
        let exhausted = match soft {
            true => candidates.all(|a| self.exhausted(a, tuple, back, world)),
            false => candidates.any(|a| self.exhausted(a, tuple, back, world)),
        };
        if exhausted {
            reasons.push(Refusal::PortsExhausted);
        }
        reasons
    }

    /// Is no port of an address left (in `edm`: for this far side)?
    pub fn exhausted(
        &self,
        address: &ExternalAddress,
        flow: &Tuple,
        back: Endpoint,
        world: &World,
    ) -> bool {
        let ports = &address.ports[flow.protocol.index()];
        let mut ports = PORTS.iter().filter(|p| ports.contains(**p));
        ports.all(|&port| {
            let external = Endpoint::new(address.addr, port);
            !self.usable(flow, external, back, world)
        })
    }

    /// Would a port do for a new mapping? A hold-down that is over is no reason against it.
    pub fn usable(&self, flow: &Tuple, external: Endpoint, back: Endpoint, world: &World) -> bool {
        let protocol = flow.protocol;
        let over = self.holds.iter().any(|hold| {
            hold.protocol == protocol && hold.external == external && self.now_ms >= hold.until_ms
        });
        if !self.is_set(world, protocol, external) || over {
            return true;
        }
        if self.eim(flow) || !self.overloaded(protocol, external) {
            return false;
        }
        let blocking = Tuple {
            protocol,
            source: back,
            destination: external,
        };
        let mut sessions = self.sessions.iter();
        let blocked = sessions.find(|s| s.sides.iter().any(|side| side.tuple == blocking));
        // A session that is over gives way, but the remote may be remembered as exhausted for the
        // rest of the tick.
        let tick = self.now_ms / TICK_MS;
        blocked.is_none_or(|session| {
            !self.lives(session) && !self.refused.contains(&(protocol, back, tick))
        })
    }

    /// Who is behind the destination of a packet from inside, seen as any address.
    fn far_side(&self, tuple: &Tuple) -> Endpoint {
        let addresses = self.policy.addresses.iter();
        let mut targets = addresses.map(|a| self.target(tuple, a.addr));
        let back = targets.find_map(|target| match target {
            Some(Reach::Open { target, .. }) => Some(target),
            _ => None,
        });
        back.unwrap_or(tuple.destination)
    }

    /// `PortsExhausted` as a hairpin's new endpoint clashed: the mapping was made and is released,
    /// so its endpoint is held down like any other.
    pub fn adopt_clashed(&mut self, packet: &Packet, worlds: &Worlds) -> Judged {
        let protocol = packet.tuple.protocol;
        let back = self.far_side(&packet.tuple);
        let open = self.makes_open(protocol, Some(self.way(&packet.tuple).pool));
        if !self.hold_is_due(protocol, open) || !self.may_clash(&packet.tuple, back) {
            return Ok(());
        }
        let addresses = self.policy.addresses.iter();
        let endpoints = addresses
            .flat_map(|address| PORTS.iter().map(|&port| Endpoint::new(address.addr, port)));
        let made = |external: &Endpoint| {
            self.is_set(worlds.after, protocol, *external)
                && !self.is_set(worlds.before, protocol, *external)
                && !self.needed(protocol, *external)
        };
        let made: Vec<Endpoint> = endpoints.filter(made).collect();
        ensure(made.len() <= 1, || format!("held down: {made:?}"))?;
        for external in made {
            self.hold(protocol, external, open, self.now_ms)?;
        }
        Ok(())
    }

    /// `PortsExhausted`: what it says about the pairing.
    pub fn learn_exhaustion(&mut self, packet: &Packet, world: &World) -> Judged {
        let tuple = packet.tuple;
        let back = self.far_side(&tuple);
        if !self.eim(&tuple) {
            self.note_exhausted(tuple.protocol, back);
            return Ok(());
        }
        let new = matches!(self.source(&tuple), Source::New);
        if !new || self.is_soft(&tuple, back) || self.may_clash(&tuple, back) {
            return Ok(());
        }
        let mut paired = self.pairing(&tuple).clone();
        paired.retain(|&addr| {
            let address = self.address(addr).expect("of the policy");
            self.exhausted(address, &tuple, back, world)
        });
        ensure(!paired.is_empty(), || "no pairing explains that".into())?;
        *self.pairing(&tuple) = paired;
        Ok(())
    }

    /// `edm`: an address may be remembered as exhausted for a far side until the tick ends.
    pub fn note_exhausted(&mut self, protocol: Protocol, back: Endpoint) {
        let tick = self.now_ms / TICK_MS;
        self.refused.retain(|refused| refused.2 == tick);
        self.refused.push((protocol, back, tick));
    }
}
