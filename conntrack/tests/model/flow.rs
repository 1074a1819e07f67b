//! What the policy makes of a flow: the first rule that fits, pool, behaviours, timers.

use conntrack::{
    Action, Endpoint, FilteringBehaviour, FlowTimers, MappingBehaviour, Pairing, Policy, Profile,
    Protocol, Refusal, Rule, Timers, Tuple,
};

use crate::reference::{Mapping, Reference, Session};

/// What is paired with an external address of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub pool: u16,
    /// The internal address; without pairing with the port, too.
    internal: Endpoint,
    /// `edm` without pairing: the far side.
    remote: Option<Endpoint>,
}

fn fits(rule: &Rule, flow: &Tuple) -> bool {
    let (source, destination) = (flow.source.addr, flow.destination);
    let to_port = |&(first, last): &(u16, u16)| (first..=last).contains(&destination.port);
    let has_port = flow.protocol != Protocol::Icmp;
    rule.protocols[flow.protocol.index()]
        && (rule.sources.is_empty() || rule.sources.iter().any(|net| net.contains(&source)))
        && (rule.destinations.is_empty()
            || rule
                .destinations
                .iter()
                .any(|net| net.contains(&destination.addr)))
        && (rule.ports.is_empty() || has_port && rule.ports.iter().any(to_port))
}

/// What the first rule that fits says: all rules in turn.
pub fn action(policy: &Policy, flow: &Tuple) -> Action {
    let mut rules = policy.rules.list().iter();
    let rule = rules.find(|rule| fits(rule, flow));
    rule.map_or(Action::Translate(0), |rule| rule.action)
}

/// How a flow from inside is translated, if it is.
pub fn profile_for<'p>(policy: &'p Policy, flow: &Tuple) -> Option<&'p Profile> {
    let Action::Translate(number) = action(policy, flow) else {
        return None;
    };
    Some(match number {
        0 => &policy.profile,
        number => {
            let other = policy.others.get(usize::from(number) - 1);
            other.unwrap_or(&policy.profile)
        }
    })
}

pub fn is_independent(profile: &Profile, protocol: Protocol) -> bool {
    profile.mapping[protocol.index()] == MappingBehaviour::EndpointIndependent
}

/// How `eim` mappings of a pool are made: as the first profile says that makes any there.
fn maker(policy: &Policy, protocol: Protocol, pool: u16) -> Option<&Profile> {
    let all = [&policy.profile].into_iter().chain(&policy.others);
    let mut makers = all.filter(|profile| is_independent(profile, protocol));
    makers.find(|profile| profile.pool == pool)
}

/// The number of the timers of flows to a port.
pub fn timers_of(timers: &FlowTimers, protocol: Protocol, port: u16) -> u8 {
    let mut services = timers.services.iter();
    let service = services.find(|s| s.protocol == protocol && (s.first..=s.last).contains(&port));
    service.map_or(timers.base, |service| service.timers)
}

/// The pool of an external endpoint under a policy.
pub fn pool_in(policy: &Policy, external: Endpoint) -> Option<u16> {
    let mut addresses = policy.addresses.iter();
    let address = addresses.find(|address| address.addr == external.addr);
    address.map(|address| address.pool)
}

impl Reference {
    /// How a flow from inside is translated: as if no rule fitted, if it is not.
    pub fn way(&self, flow: &Tuple) -> &Profile {
        profile_for(&self.policy, flow).unwrap_or(&self.policy.profile)
    }

    /// Has the internal endpoint of a flow one mapping for all flows that leave from this pool?
    pub fn eim(&self, flow: &Tuple) -> bool {
        is_independent(self.way(flow), flow.protocol)
    }

    pub fn pool_of(&self, external: Endpoint) -> Option<u16> {
        pool_in(&self.policy, external)
    }

    /// May a new mapping be on another address than the first choice? What an `eim` endpoint begins
    /// with a hairpin stays: the far side judged by that address.
    pub fn is_soft(&self, flow: &Tuple, back: Endpoint) -> bool {
        let hairpin = back != flow.destination;
        let pairing = self.way(flow).pairing[flow.protocol.index()];
        let stays = self.eim(flow) && hairpin;
        pairing != Pairing::Hard && !stays
    }

    /// By what the first choice of a flow's address goes.
    pub fn pair(&self, flow: &Tuple) -> Pair {
        let way = self.way(flow);
        let paired = way.pairing[flow.protocol.index()] != Pairing::None;
        let port = if paired { 0 } else { flow.source.port };
        Pair {
            pool: way.pool,
            internal: Endpoint::new(flow.source.addr, port),
            remote: (!paired && !self.eim(flow)).then_some(flow.destination),
        }
    }

    /// The number of a session's timers: from outside nobody knows a flow of the internal host's.
    pub fn timers_number(&self, session: &Session) -> u8 {
        let (timers, port) = match session.from_outside {
            true => (
                &self.policy.profile.timers,
                session.sides[1].tuple.destination.port,
            ),
            false => {
                let flow = &session.sides[0].tuple;
                (&self.way(flow).timers, flow.destination.port)
            }
        };
        timers_of(timers, session.protocol, port)
    }

    pub fn session_timers(&self, session: &Session) -> &Timers {
        self.policy.timers.get(self.timers_number(session))
    }

    /// Sessions that are over by other timers than most.
    pub fn note_timers(&mut self, gone: &[bool]) {
        let gone = self.sessions.iter().zip(gone).filter(|(_, gone)| **gone);
        let numbers = gone.map(|(session, _)| {
            let base = match session.from_outside {
                true => self.policy.profile.timers.base,
                false => self.way(&session.sides[0].tuple).timers.base,
            };
            (base, self.timers_number(session))
        });
        for (base, number) in numbers.collect::<Vec<_>>() {
            if number != base {
                self.seen("over by a service's timers");
            } else if base != 0 {
                self.seen("over by a rule's timers");
            }
        }
    }

    /// The timers of a mapping beside its sessions' own.
    pub fn mapping_timers(&self, mapping: &Mapping) -> &Timers {
        let pool = self.pool_of(mapping.external);
        let maker = pool.and_then(|pool| maker(&self.policy, mapping.protocol, pool));
        let profile = maker.unwrap_or(&self.policy.profile);
        self.policy.timers.get(profile.timers.base)
    }

    /// Are mappings that leave from a pool open to everybody?
    pub fn makes_open(&self, protocol: Protocol, pool: Option<u16>) -> bool {
        let maker = pool.and_then(|pool| maker(&self.policy, protocol, pool));
        let filtering = maker.map(|profile| profile.filtering[protocol.index()]);
        filtering == Some(FilteringBehaviour::EndpointIndependent)
    }

    /// Is a released mapping's endpoint to be held down (RFC 6888 REQ-8 and its exceptions)?
    pub fn hold_is_due(&self, protocol: Protocol, open: bool) -> bool {
        open && protocol != Protocol::Tcp && self.policy.timers.hold_down_ms > 0
    }

    /// A policy is in the tables: mappings are what it makes of them. Of one of which nobody can tell
    /// whether it is there, what it was may count still.
    pub fn renew_mappings(&mut self) {
        let mut mappings = std::mem::take(&mut self.mappings);
        for mapping in &mut mappings {
            let open = self.makes_open(mapping.protocol, self.pool_of(mapping.external));
            if open != mapping.open {
                self.seen("hold-down renewed");
            }
            mapping.open = open || mapping.open && mapping.limbo_ms.is_some();
        }
        self.mappings = mappings;
    }

    /// Why a mapping is not open to a remote: the way of the host's own flow to there.
    pub fn note_way_back(&mut self, tuple: &Tuple, refusal: Refusal) {
        let Some(mapping) = self.mapping_at(tuple.protocol, tuple.destination) else {
            return;
        };
        let flow = Tuple {
            protocol: tuple.protocol,
            source: mapping.internal,
            destination: tuple.source,
        };
        let is_open = self.now_ms < self.open_until_ms(mapping);
        let by_rule = profile_for(&self.policy, &flow) != Some(&self.policy.profile);
        match refusal {
            Refusal::Filtered if by_rule => self.seen("filtered by a rule's way"),
            Refusal::NoSession if by_rule && is_open => self.seen("no way back by a rule"),
            _ => {}
        }
    }
}
