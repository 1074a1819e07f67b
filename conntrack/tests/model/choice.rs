//! What the tables choose when the internal side opens a session: mapping, address, port. Every
//! legal choice is adopted.

use conntrack::{Endpoint, ExternalAddress, Pairing, Protocol, Rewrite, Signal, Tuple};

use crate::flow::profile_for;
use crate::judge::{Packet, Worlds};
use crate::observe::{Judged, World, ensure};
use crate::operation::PORTS;
use crate::quota::{self, Demand};
use crate::reference::{Backing, Hold, Mapping, Reach, Reference};

/// What a packet from inside gets its external endpoint from.
pub enum Source {
    Forward(Endpoint),
    Mapping(Mapping),
    /// A mapping that is over: revived or replaced.
    Over(Mapping),
    New,
}

impl Reference {
    pub fn source(&self, flow: &Tuple) -> Source {
        if !self.eim(flow) {
            return Source::New;
        }
        if let Some(forward) = self.forward_to(flow.protocol, flow.source) {
            return Source::Forward(forward.external);
        }
        match self.mapping_of(flow) {
            Some(mapping) if self.mapping_lives(mapping) => Source::Mapping(mapping.clone()),
            Some(mapping) => Source::Over(mapping.clone()),
            None => Source::New,
        }
    }

    pub fn judge_opened_inside(
        &mut self,
        packet: &Packet,
        rewrite: &Rewrite,
        worlds: &Worlds,
    ) -> Judged {
        let tuple = packet.tuple;
        let opens = matches!(
            packet.signal,
            Signal::TcpSyn | Signal::Udp | Signal::IcmpQuery
        );
        ensure(opens, || "opened by a packet that must not open".into())?;
        ensure(profile_for(&self.policy, &tuple).is_some(), || {
            "opened against a rule".into()
        })?;
        self.check_quotas(packet, &worlds.demand)?;
        let external = rewrite.source;
        let (target, far) = match self.target(&tuple, external.addr) {
            None => (tuple.destination, None),
            Some(Reach::Open {
                target, backing, ..
            }) => (target, Some(backing)),
            Some(Reach::Shut(reasons)) => {
                return Err(format!("hairpin to {external}'s view: {reasons:?}"));
            }
        };
        ensure(rewrite.destination == target, || {
            format!("rewrites to {rewrite:?}, should go to {target}")
        })?;
        let backing = match self.source(&tuple) {
            Source::Forward(fixed) => {
                ensure(external == fixed, || {
                    format!("leaves from {external}, should from its forward {fixed}")
                })?;
                Backing::Forward
            }
            Source::Mapping(mapping) => {
                ensure(external == mapping.external, || {
                    format!("leaves from {external}, not its mapping {mapping:?}")
                })?;
                Backing::Mapping(mapping.name)
            }
            Source::Over(mapping) if external == mapping.external => {
                self.seen("mapping revived");
                let mut mappings = self.mappings.iter_mut();
                let mapping = mappings.find(|m| m.name == mapping.name).expect("found");
                (mapping.started_ms, mapping.limbo_ms) = (None, None);
                if worlds.demand.renews {
                    // It has the endpoint of the one before, but is another one.
                    mapping.counted = quota::counts(&self.policy);
                }
                Backing::Mapping(mapping.name)
            }
            Source::Over(_) | Source::New => self.adopt(&tuple, external, target, worlds)?,
        };
        let back = Tuple {
            protocol: tuple.protocol,
            source: target,
            destination: external,
        };
        self.note_way(&tuple, &worlds.demand);
        self.seen(match (far, backing) {
            (Some(_), _) => "opened as hairpin",
            (None, Backing::Forward) => "opened by a forward's target",
            (None, Backing::Own(_)) => "opened with edm",
            (None, Backing::Mapping(_)) => "opened with eim",
        });
        self.add_session(
            packet,
            rewrite,
            [tuple, back],
            [external, target],
            backing,
            far,
        )?;
        self.touch(backing);
        Ok(())
    }

    /// Checks the external endpoint chosen for a new mapping, and makes the mapping.
    pub fn adopt(
        &mut self,
        tuple: &Tuple,
        external: Endpoint,
        back: Endpoint,
        worlds: &Worlds,
    ) -> Result<Backing, String> {
        let protocol = tuple.protocol;
        let wrong = |why: &str| Err(format!("{external} assigned to {tuple}: {why}"));
        let pool = self.way(tuple).pool;
        let address = self.address(external.addr).filter(|a| a.pool == pool);
        let Some(address) = address.cloned() else {
            return wrong("not of its pool");
        };
        if !address.ports[protocol.index()].contains(external.port) {
            return wrong("not a port of the pool");
        }
        if self.forward_at(protocol, external).is_some() {
            return wrong("a forward's");
        }
        let held = |h: &&Hold| h.protocol == protocol && h.external == external;
        if let Some(hold) = self.holds.iter().find(held)
            && self.now_ms < hold.from_ms
        {
            return wrong("in hold-down");
        }
        if let Some(mapping) = self.mapping_at(protocol, external) {
            if self.mapping_lives(mapping) || self.users(mapping.name) > 0 {
                return wrong("another mapping's");
            }
            let held_max = self.held_max(protocol, &address);
            // In limbo it may have been held down, and that is over.
            let fresh = mapping.limbo_ms.is_none();
            let due = fresh && self.hold_is_due(protocol, mapping.open);
            if due && self.held_at_most(protocol, external.addr, &self.holds) < held_max {
                return wrong(&format!("should be in hold-down: {mapping:?}"));
            }
        }
        if self.overloaded(protocol, external) {
            if self.eim(tuple) {
                return wrong("overloaded");
            }
            self.seen("port overloaded");
        }
        self.check_preserved(tuple, external, back, &address, worlds)?;
        self.learn_pairing(tuple, external, back, worlds.after)?;
        if !self.eim(tuple) {
            self.note_exhausted(protocol, back);
            return Ok(Backing::Own(self.now_ms));
        }
        self.mappings
            .retain(|m| !(m.protocol == protocol && m.external == external));
        let elsewhere = |m: &Mapping| m.protocol == protocol && m.internal == tuple.source;
        if self.mappings.iter().any(elsewhere) {
            self.seen("a mapping in each pool");
        }
        self.names += 1;
        self.mappings.push(Mapping {
            name: self.names,
            protocol,
            internal: tuple.source,
            external,
            refreshed_ms: self.now_ms,
            started_ms: Some(self.now_ms),
            counted: quota::counts(&self.policy),
            open: self.makes_open(protocol, Some(pool)),
            limbo_ms: None,
        });
        Ok(Backing::Mapping(self.names))
    }

    pub fn check_preserved(
        &mut self,
        tuple: &Tuple,
        external: Endpoint,
        back: Endpoint,
        address: &ExternalAddress,
        worlds: &Worlds,
    ) -> Judged {
        let (protocol, wanted) = (tuple.protocol, tuple.source.port);
        if external.port == wanted {
            self.seen("port preserved");
            return Ok(());
        }
        self.check_likeness(tuple, external, address, worlds)?;
        if !self.way(tuple).preserve_port || !address.ports[protocol.index()].contains(wanted) {
            return Ok(());
        }
        let wanted = Endpoint::new(external.addr, wanted);
        let free = [worlds.before, worlds.after]
            .iter()
            .all(|world| self.usable(tuple, wanted, back, world));
        let held = self.holds.iter().any(|hold| hold.external == wanted);
        ensure(!free || held, || {
            format!("{external} assigned to {tuple}, though {wanted} is free")
        })
    }

    /// A port that is less like the source port than a wholly free one is no legal choice: class
    /// comes before parity, and counts where the pool has ports of both classes.
    pub fn check_likeness(
        &mut self,
        tuple: &Tuple,
        external: Endpoint,
        address: &ExternalAddress,
        worlds: &Worlds,
    ) -> Judged {
        let (protocol, wanted) = (tuple.protocol, tuple.source.port);
        let pool = PORTS
            .iter()
            .copied()
            .filter(|&port| address.ports[protocol.index()].contains(port));
        let pool: Vec<u16> = pool.collect();
        let low = pool.iter().filter(|&&port| port < 1024).count();
        let class = self.way(tuple).preserve_port_class
            && protocol != Protocol::Icmp
            && (1..pool.len()).contains(&low);
        let parity = self.way(tuple).preserve_port_parity && protocol == Protocol::Udp;
        let likeness = |port: u16| {
            let same_class = class && (port < 1024) == (wanted < 1024);
            let same_parity = parity && port % 2 == wanted % 2;
            match (class, parity) {
                (true, true) => usize::from(same_class) * (1 + usize::from(same_parity)),
                _ => usize::from(same_class || same_parity),
            }
        };
        let free = |port: u16| {
            let endpoint = Endpoint::new(external.addr, port);
            !self.is_set(worlds.before, protocol, endpoint)
                && !self.is_set(worlds.after, protocol, endpoint)
        };
        let chosen = likeness(external.port);
        let better = pool.iter().find(|&&p| likeness(p) > chosen && free(p));
        ensure(better.is_none(), || {
            format!("{external} assigned to {tuple}, though {better:?} is free")
        })?;
        if chosen > 0 {
            self.seen("port like the source port");
        }
        Ok(())
    }

    /// The first choice; but with hard pairing the first from it on that has a port.
    pub fn learn_pairing(
        &mut self,
        tuple: &Tuple,
        external: Endpoint,
        back: Endpoint,
        world: &World,
    ) -> Judged {
        let mut paired = self.pairing(tuple).clone();
        let all: Vec<ExternalAddress> = self.pool(tuple).cloned().collect();
        paired.retain(|&addr| {
            let start = all
                .iter()
                .position(|a| a.addr == addr)
                .expect("of the policy");
            let mut order = all.iter().cycle().skip(start).take(all.len());
            if !self.is_soft(tuple, back) {
                return addr == external.addr;
            }
            let first = order.find(|a| {
                a.addr == external.addr
                    || self.admits(tuple, a) && !self.exhausted(a, tuple, back, world)
            });
            first.is_some_and(|a| a.addr == external.addr)
        });
        ensure(!paired.is_empty(), || {
            let before = self.pairing(tuple);
            format!("{external} assigned to {tuple}, paired with {before:?}")
        })?;
        if !paired.contains(&external.addr) {
            self.seen("not the paired address");
        }
        *self.pairing(tuple) = paired;
        Ok(())
    }

    /// What was special about how a flow is translated.
    fn note_way(&mut self, flow: &Tuple, demand: &Demand) {
        let way = self.way(flow).clone();
        if way.pool != 0 {
            self.seen("leaves by another pool");
        }
        if way != self.policy.profile {
            self.seen("translated by a rule");
        }
        if demand.renews && way.pairing[flow.protocol.index()] == Pairing::None {
            self.seen("opened without pairing");
        }
    }
}
