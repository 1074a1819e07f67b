//! What the tables show from outside (listing, totals, ownership bitmap), and whether the
//! reference explains it: what lives is there, nothing is there that never was, what is over may
//! be there until it is swept.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use conntrack::{
    Direction, Endpoint, ExternalAddress, Nat, Policy, Protocol, SessionView, TableSize, Time,
    TimeoutClass, Totals,
};

use crate::operation::PORTS;
use crate::reference::{Backing, Hold, Mapping, Reference, Session, TICK_MS};

/// A disagreement, in words.
pub type Judged = Result<(), String>;

/// `Err` of the words unless it holds.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Judged {
    if holds { Ok(()) } else { Err(what()) }
}

/// The tables at one moment.
pub struct World {
    pub listing: Vec<SessionView>,
    pub totals: Totals,
    /// By slot, protocol and place in [`PORTS`].
    owned: Vec<bool>,
}

impl World {
    pub fn of(nat: &Nat, owned: &[AtomicU64], size: TableSize, now: Time) -> World {
        let tables = usize::from(size.addresses_max) * 3;
        let bit = |table: usize, port: u16| {
            let word = owned[table * 1024 + usize::from(port) / 64].load(Relaxed);
            word >> (port % 64) & 1 == 1
        };
        World {
            listing: nat.sessions(now).collect(),
            totals: nat.totals(),
            owned: (0..tables)
                .flat_map(|table| PORTS.iter().map(move |&port| bit(table, port)))
                .collect(),
        }
    }

    /// Is the ownership bit of an address's port set? `port` is one of [`PORTS`].
    pub fn owns(&self, slot: u16, protocol: Protocol, port: u16) -> bool {
        let place = PORTS.iter().position(|&p| p == port);
        let table = usize::from(slot) * 3 + protocol.index();
        self.owned[table * PORTS.len() + place.expect("a port of the tests")]
    }
}

impl Reference {
    /// Takes out what is over and has left the tables. Returns how many sessions.
    pub fn reap(&mut self, world: &World, made: Option<u32>) -> Result<u64, String> {
        let listed = |session: &Session| {
            made != Some(session.number)
                && world.listing.iter().any(|view| {
                    view.number == session.number
                        && view.protocol == session.protocol
                        && view.outbound.tuple == session.sides[0].tuple
                        && view.inbound.tuple == session.sides[1].tuple
                })
        };
        let gone: Vec<bool> = self.sessions.iter().map(|s| !listed(s)).collect();
        for (session, &gone) in self.sessions.iter().zip(&gone) {
            ensure(!gone || !self.lives(session), || {
                format!("a live session is gone: {session:?}")
            })?;
        }
        self.note_timers(&gone);
        let mut each = gone.iter();
        self.sessions.retain(|_| !*each.next().unwrap());
        let reaped = gone.iter().filter(|&&gone| gone).count() as u64;
        self.expired += reaped;
        Ok(reaped)
    }

    fn slot_of(&self, addr: Ipv4Addr) -> Option<u16> {
        self.address(addr).map(|address| address.slot)
    }

    pub fn is_set(&self, world: &World, protocol: Protocol, external: Endpoint) -> bool {
        self.slot_of(external.addr)
            .is_some_and(|slot| world.owns(slot, protocol, external.port))
    }

    /// Does a session of its own mapping use the endpoint?
    pub fn overloaded(&self, protocol: Protocol, external: Endpoint) -> bool {
        self.sessions.iter().any(|session| {
            session.protocol == protocol
                && matches!(session.sides[0].backing, Backing::Own(_))
                && session.sides[0].source == external
        })
    }

    /// Something certain (not a hold-down, not a mapping that is over) needs the endpoint.
    pub fn needed(&self, protocol: Protocol, external: Endpoint) -> bool {
        self.forward_at(protocol, external).is_some()
            || self.overloaded(protocol, external)
            || self.mappings.iter().any(|mapping| {
                mapping.protocol == protocol
                    && mapping.external == external
                    && (self.users(mapping.name) > 0 || self.mapping_lives(mapping))
            })
    }

    pub fn held(&self, protocol: Protocol, addr: Ipv4Addr) -> usize {
        let here = |hold: &&Hold| hold.protocol == protocol && hold.external.addr == addr;
        self.holds.iter().filter(here).count()
    }

    /// Looks up what became of mappings and hold-downs that are over. `changed`: the policy was, so
    /// endpoints of lost addresses and of forwards may be free at once.
    pub fn settle(&mut self, world: &World, changed: bool) -> Judged {
        let before = self.holds.clone();
        self.settle_holds(world, changed)?;
        for protocol in Protocol::ALL {
            self.settle_mappings(world, changed, protocol, &before)?;
        }
        let limbo = self.mappings.iter().filter(|m| m.limbo_ms.is_some());
        self.limbo = limbo.cloned().collect();
        Ok(())
    }

    /// A slot that went from one address to another at once: hold-downs may stay in it.
    pub fn move_holds(&mut self, before: &Policy, world: &World) {
        let mut holds = std::mem::take(&mut self.holds);
        for hold in &mut holds {
            let slot_of = |a: &ExternalAddress| (a.addr == hold.external.addr).then_some(a.slot);
            let slot = before.addresses.iter().find_map(slot_of);
            let heir = self.policy.addresses.iter().find(|a| Some(a.slot) == slot);
            if let Some(heir) = heir
                && world.owns(heir.slot, hold.protocol, hold.external.port)
            {
                hold.external.addr = heir.addr;
            }
        }
        self.holds = holds;
    }

    fn settle_holds(&mut self, world: &World, changed: bool) -> Judged {
        let mut kept = Vec::new();
        for hold in std::mem::take(&mut self.holds) {
            let set = self.is_set(world, hold.protocol, hold.external);
            if set && !self.needed(hold.protocol, hold.external) {
                kept.push(hold);
                continue;
            }
            let excused = changed
                && (self.address(hold.external.addr).is_none()
                    || self.forward_at(hold.protocol, hold.external).is_some());
            ensure(self.now_ms >= hold.from_ms || excused, || {
                format!("hold-down ended early: {hold:?} at {}", self.now_ms)
            })?;
        }
        self.holds = kept;
        Ok(())
    }

    /// Mappings that are over and have no session: in the tables, in hold-down, or gone.
    fn settle_mappings(
        &mut self,
        world: &World,
        changed: bool,
        protocol: Protocol,
        before: &[Hold],
    ) -> Judged {
        let mut sure = 0;
        let mut unsure = Vec::new();
        let (mut released, mut replaced) = (Vec::new(), Vec::new());
        let mut kept = Vec::new();
        for mapping in &self.mappings {
            if mapping.protocol != protocol {
                kept.push(mapping.clone());
                continue;
            }
            if self.users(mapping.name) > 0 || self.mapping_lives(mapping) {
                sure += 1;
                kept.push(mapping.clone());
                continue;
            }
            let external = mapping.external;
            let excused = self.address(external.addr).is_none() || self.needed(protocol, external);
            if protocol == Protocol::Tcp || excused {
                continue;
            }
            if self.is_replaced(mapping) && self.is_set(world, protocol, external) {
                replaced.push(mapping.clone());
            } else if self.is_set(world, protocol, external) {
                unsure.push(mapping.clone());
            } else if mapping.limbo_ms.is_none() {
                released.push(mapping.clone());
            }
        }
        self.mappings = kept;
        for mapping in replaced {
            let since = mapping.limbo_ms.unwrap_or(self.now_ms);
            self.hold(protocol, mapping.external, mapping.open, since)?;
        }
        let distinct = self.overloaded_ports(protocol);
        let (in_use, held) = (
            world.totals.ports_in_use[protocol.index()],
            world.totals.ports_held[protocol.index()],
        );
        let known = self.holds.iter().filter(|h| h.protocol == protocol).count() as u64;
        let present = in_use.checked_sub(sure + distinct);
        let holding = held.checked_sub(known);
        let (Some(present), Some(holding)) = (present, holding) else {
            return Err(format!(
                "{protocol}: {in_use} ports in use and {held} held, but {sure} mappings, \
                 {distinct} overloaded, {known} in hold-down"
            ));
        };
        ensure(present + holding == unsure.len() as u64, || {
            format!(
                "{protocol}: {in_use} ports in use and {held} held; {sure} mappings, {distinct} \
                 overloaded, {known} in hold-down, and one of these: {unsure:?}"
            )
        })?;
        for mut mapping in unsure {
            if holding == 0 {
                mapping.limbo_ms = None;
                mapping.open = self.makes_open(protocol, self.pool_of(mapping.external));
                self.mappings.push(mapping);
            } else if present == 0 {
                let since = mapping.limbo_ms.unwrap_or(self.now_ms);
                self.hold(protocol, mapping.external, mapping.open, since)?;
            } else {
                mapping.limbo_ms.get_or_insert(self.now_ms);
                self.mappings.push(mapping);
            }
        }
        for mapping in released.iter().filter(|_| !changed) {
            self.check_not_held(mapping, before)?;
        }
        self.check_held_max(protocol, before)
    }

    /// Has its internal endpoint a later mapping in its pool?
    fn is_replaced(&self, mapping: &Mapping) -> bool {
        self.mappings.iter().any(|other| {
            other.protocol == mapping.protocol
                && other.internal == mapping.internal
                && self.pool_of(other.external) == self.pool_of(mapping.external)
                && other.name > mapping.name
        })
    }

    pub fn hold(
        &mut self,
        protocol: Protocol,
        external: Endpoint,
        open: bool,
        since_ms: u64,
    ) -> Judged {
        ensure(self.hold_is_due(protocol, open), || {
            format!("{protocol} {external} is in hold-down without a reason")
        })?;
        self.seen("held down");
        let hold_ms = u64::from(self.policy.timers.hold_down_ms);
        self.holds.push(Hold {
            protocol,
            external,
            from_ms: since_ms + hold_ms,
            until_ms: ((self.now_ms + hold_ms) / TICK_MS + 1) * TICK_MS,
        });
        Ok(())
    }

    pub fn held_max(&self, protocol: Protocol, address: &ExternalAddress) -> usize {
        let percent = usize::from(self.policy.hold_down_max_percent);
        address.ports[protocol.index()].len() as usize * percent / 100
    }

    /// A released endpoint that is free at once: only where no hold-down is due, or there is no
    /// room for it.
    fn check_not_held(&mut self, mapping: &Mapping, before: &[Hold]) -> Judged {
        let (protocol, external) = (mapping.protocol, mapping.external);
        if !self.hold_is_due(protocol, mapping.open) {
            return Ok(());
        }
        let held = self.held_at_most(protocol, external.addr, before);
        let address = self.address(external.addr).expect("looked up before");
        let held_max = self.held_max(protocol, address);
        ensure(held >= held_max, || {
            format!("{protocol} {external} was released without hold-down: {held} of {held_max}")
        })?;
        self.seen("no room for a hold-down");
        Ok(())
    }

    /// How many ports of an address may have been in hold-down at once during an operation. One
    /// that is over counts until it is swept, and what was or is in limbo may be one, unless its
    /// mapping turned out to be there.
    pub fn held_at_most(&self, protocol: Protocol, addr: Ipv4Addr, before: &[Hold]) -> usize {
        let is_there = |mapping: &&Mapping| {
            let mut mappings = self.mappings.iter();
            mappings.any(|m| m.name == mapping.name && m.limbo_ms.is_none())
        };
        let was = self.limbo.iter().filter(|m| !is_there(m));
        let is = self.mappings.iter().filter(|m| m.limbo_ms.is_some());
        let limbo = was.chain(is).map(|m| (m.protocol, m.external));
        let holds = before.iter().chain(&self.holds);
        let held = holds.map(|h| (h.protocol, h.external)).chain(limbo);
        let here = held.filter(|&(p, external)| p == protocol && external.addr == addr);
        let ports: BTreeSet<u16> = here.map(|(_, external)| external.port).collect();
        ports.len()
    }

    fn check_held_max(&self, protocol: Protocol, before: &[Hold]) -> Judged {
        for address in &self.policy.addresses {
            let here = |h: &&Hold| h.protocol == protocol && h.external.addr == address.addr;
            let held = before.iter().filter(here).count();
            let limit = held.max(self.held_max(protocol, address));
            let now = self.held(protocol, address.addr);
            ensure(now <= limit, || {
                format!("{protocol}: {now} held ports at {}", address.addr)
            })?;
        }
        Ok(())
    }

    fn overloaded_ports(&self, protocol: Protocol) -> u64 {
        let mut ports: Vec<Endpoint> = Vec::new();
        for session in &self.sessions {
            let side = &session.sides[0];
            let own = matches!(side.backing, Backing::Own(_)) && session.protocol == protocol;
            if own && !ports.contains(&side.source) {
                ports.push(side.source);
            }
        }
        ports.len() as u64
    }

    /// Everything that the tables show is what the reference has.
    pub fn compare(&self, world: &World) -> Judged {
        for view in &world.listing {
            let mut sessions = self.sessions.iter();
            let session = sessions
                .find(|session| session.number == view.number)
                .ok_or_else(|| format!("listed, but never made or over: {view:?}"))?;
            self.compare_session(session, view)?;
        }
        let totals = &world.totals;
        let count = |holds: &dyn Fn(&Session) -> bool| {
            self.sessions.iter().filter(|s| holds(s)).count() as u64
        };
        let own = count(&|s| matches!(s.sides[0].backing, Backing::Own(_)));
        let limbo = self.mappings.iter().any(|m| m.limbo_ms.is_some());
        let mappings = self.mappings.len() as u64 + own;
        let told = (totals.sessions, totals.sessions_inbound);
        let should = (self.sessions.len() as u64, count(&|s| s.from_outside));
        ensure(told == should, || {
            format!("totals tell {told:?} sessions, should {should:?}")
        })?;
        ensure(totals.mappings == mappings || limbo, || {
            format!("{} mappings, should be {mappings}", totals.mappings)
        })?;
        let told = (
            totals.created,
            totals.expired,
            totals.removed,
            totals.evicted,
        );
        let should = (self.created, self.expired, self.removed, self.evicted);
        ensure(told == should, || {
            format!("created, expired, removed, evicted: {told:?}, should {should:?}")
        })?;
        let half_open = count(&|s| s.half_open().is_some());
        ensure(totals.sessions_half_open == half_open, || {
            format!(
                "{} half-open, should be {half_open}",
                totals.sessions_half_open
            )
        })?;
        for address in &self.policy.addresses {
            for protocol in Protocol::ALL {
                for &port in PORTS {
                    self.compare_bit(world, protocol, Endpoint::new(address.addr, port))?;
                }
            }
        }
        Ok(())
    }

    fn compare_bit(&self, world: &World, protocol: Protocol, external: Endpoint) -> Judged {
        let held = self.holds.iter();
        let mappings = self.mappings.iter();
        let over = held.map(|hold| (hold.protocol, hold.external));
        let mut over = over.chain(mappings.map(|m| (m.protocol, m.external)));
        let should = self.needed(protocol, external) || over.any(|o| o == (protocol, external));
        let set = self.is_set(world, protocol, external);
        ensure(set == should, || {
            format!("ownership bit of {protocol} {external} is {set}")
        })
    }

    fn compare_session(&self, session: &Session, view: &SessionView) -> Judged {
        let [there, back] = &session.sides;
        for (side, view) in [(there, view.outbound), (back, view.inbound)] {
            let is = (view.tuple, view.source, view.destination);
            let should = (side.tuple, side.source, side.destination);
            ensure(is == should, || {
                format!("half is {is:?}, should be {should:?}")
            })?;
            let is = (view.packets, view.bytes);
            let should = (side.packets, side.bytes);
            ensure(is == should, || {
                format!("{is:?} packets and bytes, should {should:?}")
            })?;
        }
        let class = match (&session.tcp, session.protocol) {
            (Some(_), _) => session.tcp.as_ref().map(|tcp| tcp.state().class()),
            (None, Protocol::Icmp) => Some(TimeoutClass::Icmp),
            (None, _) => Some(TimeoutClass::Udp),
        };
        let forwarded = session.sides.iter().any(|s| s.backing == Backing::Forward);
        let idle = self.now_ms - there.seen_ms.max(back.seen_ms);
        let state = session.tcp.as_ref().map(|tcp| tcp.state());
        let is = (
            view.protocol,
            view.direction,
            view.from_outside,
            view.forwarded,
            view.state,
            Some(view.class),
            u64::from(view.idle_ms),
        );
        let direction = match session.direction {
            Direction::Hairpin => Direction::Hairpin,
            _ => Direction::Outbound,
        };
        let should = (
            session.protocol,
            direction,
            session.from_outside,
            forwarded,
            state,
            class,
            idle,
        );
        ensure(is == should, || {
            format!("session is {is:?}, should be {should:?}")
        })?;
        let started = match there.backing {
            Backing::Forward => None,
            Backing::Own(started) => Some(started),
            Backing::Mapping(name) => {
                let mut mappings = self.mappings.iter();
                let mapping = mappings.find(|m| m.name == name);
                match mapping.and_then(|m| m.started_ms) {
                    Some(started) => Some(started),
                    None => return Ok(()),
                }
            }
        };
        let started = started.map(|started| Time(started / TICK_MS * TICK_MS));
        ensure(view.started == started, || {
            format!("started {:?}, should be {started:?}", view.started)
        })
    }
}
