//! Opening sessions: what a packet without one may start, from inside and from outside.
//!
//! Choices written down: a pool is *paired* (an internal address keeps one external address, for
//! all protocols); hard pairing refuses when the address's ports are exhausted, with soft pairing the
//! other addresses follow in turn (but not for the first packet of an `eim` endpoint that is a
//! hairpin: the far side was asked about the paired address). `eif`, `adf` and `edf` admit through `eim` mappings only:
//! an `edm` mapping has one remote endpoint, whose session is found before filtering is asked.

use crate::age::At;
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::half::Side;
use crate::mapping::{Joined, Mapping};
use crate::nat::{Arrival, Nat};
use crate::port::{Cell, Place};
use crate::profile::{FilteringBehaviour, Profile};
use crate::rules::Action;
use crate::session::{NotMade, Plan};
use crate::signal::Signal;
use crate::subscriber::Quota;
use crate::time::Random;
use crate::verdict::{Direction, Refusal, Rewrite};
use crate::word::Word;
use std::net::Ipv4Addr;

/// Who a packet is really for: a remote endpoint, or what is behind an external one.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub endpoint: Endpoint,
    pub direction: Direction,
    /// The target's `eim` mapping, which the session joins; 0 for none.
    pub mapping: u32,
    /// The record of the forward that leads there; 0 for none.
    pub forward: u32,
}

/// A packet from inside that asks for a session.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub arrival: &'a Arrival<'a>,
    /// How it is translated.
    pub profile: &'a Profile,
    /// The record of the sender, joined; 0 for none.
    pub subscriber: u32,
}

impl Request<'_> {
    /// The set of timers of the session.
    pub fn timers(&self) -> u8 {
        let Tuple {
            protocol,
            destination,
            ..
        } = *self.arrival.tuple;
        self.profile.timers.of(protocol, destination.port)
    }
}

/// What came of opening: `None` if the session exists now, so that the look-up finds it.
pub(crate) type Opened = Result<Option<Rewrite>, Refusal>;

impl<W: Word> Nat<'_, W> {
    /// A packet from inside that has no session.
    pub(crate) fn open_from_inside(
        &self,
        at: &At,
        arrival: &Arrival,
        random: &mut impl Random,
    ) -> Opened {
        let profile = match at.policy.action(arrival.tuple) {
            Action::Translate(number) => at.policy.profile(number),
            Action::Bypass => return Err(Refusal::RuleBypass),
            Action::Drop => return Err(Refusal::RuleDrop),
        };
        match arrival.facts.signal {
            Signal::TcpSyn | Signal::Udp | Signal::IcmpQuery => {}
            Signal::IcmpReply => return Err(Refusal::IcmpUnasked),
            _ => return Err(Refusal::TcpMidstream),
        }
        if at.policy.denied.contains(arrival.tuple.destination.addr) {
            return Err(Refusal::DestinationDenied);
        }
        let subscriber = self.enroll(at, arrival.tuple.source.addr)?;
        let request = Request {
            arrival,
            profile,
            subscriber,
        };
        let opened = self.open_for(at, &request, random);
        self.subscribers.leave(subscriber);
        // The last of the table, or of a quota, may have gone into this very session, by another
        // worker.
        let may_be_made = match opened {
            Err(Refusal::SessionsFull) => true,
            Err(
                Refusal::SubscriberSessions | Refusal::SubscriberPorts | Refusal::SubscriberRate,
            ) => subscriber != 0,
            _ => false,
        };
        match may_be_made && self.is_made(at, arrival)? {
            true => Ok(None),
            false => opened,
        }
    }

    /// Has another worker made the session of this packet meanwhile? In `edm` it holds this lock from
    /// before it takes anything for the session until that is complete. In `eim` what a mapping takes
    /// is taken under the mapping's lock, and whoever comes later finds the mapping.
    pub(crate) fn is_made(&self, at: &At, arrival: &Arrival) -> Result<bool, Refusal> {
        let _held = self.locks.hold([arrival.hash])?;
        let found = self.find(arrival.tuple, arrival.hash)?;
        Ok(found.is_some_and(|seen| self.lives(at, &seen) || !self.is_current(&seen)))
    }

    fn open_for(&self, at: &At, request: &Request, random: &mut impl Random) -> Opened {
        let protocol = request.arrival.tuple.protocol;
        self.has_quota(at, request.subscriber, Quota::Sessions, protocol)?;
        let target = self.target(at, request)?;
        let independent = request.profile.is_independent(protocol);
        let opened = match independent || self.fixed_endpoint(at, request).is_some() {
            true => self.open_independent(at, request, &target, random),
            false => self.open_dependent(at, request, &target, random),
        };
        if target.mapping != 0 && !matches!(opened, Ok(Some(_))) {
            self.leave_mapping(at, target.mapping);
        }
        opened
    }

    /// Where a packet from inside goes: on to its destination, or back in (RFC 4787 REQ-9).
    fn target(&self, at: &At, request: &Request) -> Result<Target, Refusal> {
        let tuple = request.arrival.tuple;
        if at.policy.address(tuple.destination.addr).is_none() {
            return Ok(Target {
                endpoint: tuple.destination,
                direction: Direction::Outbound,
                mapping: 0,
                forward: 0,
            });
        }
        // The far side sees the sender's external endpoint, so that is what filtering judges.
        let seen_as = self
            .external_address(at, request)
            .ok_or(Refusal::NoExternalAddress)?;
        // Its port is not chosen yet.
        let seen_as = Endpoint::new(seen_as, tuple.source.port);
        let target = self.behind(at, tuple.protocol, tuple.destination, seen_as)?;
        if target.endpoint == tuple.source {
            // To itself: both directions would have one tuple.
            if target.mapping != 0 {
                self.leave_mapping(at, target.mapping);
            }
            return Err(Refusal::NoSession);
        }
        Ok(Target {
            direction: Direction::Hairpin,
            ..target
        })
    }

    /// The external address that an internal endpoint has, or would get.
    fn external_address(&self, at: &At, request: &Request) -> Option<Ipv4Addr> {
        let (tuple, profile) = (request.arrival.tuple, request.profile);
        let (protocol, internal) = (tuple.protocol, tuple.source);
        if let Some(external) = self.fixed_endpoint(at, request) {
            return Some(external.addr);
        }
        if profile.is_independent(protocol) {
            // One whose time is over gives way to a new one, maybe on another address.
            let stays = |mapping: &Mapping| {
                mapping.agrees_with(at.policy) && (mapping.sessions() > 0 || at.is_fresh(mapping))
            };
            let mapping = self.shared_mapping(at.policy, profile.pool, protocol, internal);
            if let Some(mapping) = mapping.filter(stays) {
                return Some(mapping.external.addr);
            }
        }
        let mut choices = at.policy.addresses.choices(profile, tuple);
        choices.next().map(|address| address.addr)
    }

    /// The external endpoint that forwards give a sender: that of the first one that is applied (one of
    /// an address that is not there at the moment is not), with `edm` only by a whole address.
    fn fixed_endpoint(&self, at: &At, request: &Request) -> Option<Endpoint> {
        let Tuple {
            protocol, source, ..
        } = *request.arrival.tuple;
        let independent = request.profile.is_independent(protocol);
        if !independent && !at.policy.forwards.has_whole() {
            return None;
        }
        let externals = at.policy.forwards.externals_of(protocol, source);
        externals
            .filter(|(_, forward)| independent || forward.whole)
            .map(|(external, _)| external)
            .find(|&external| matches!(self.cell_of(at, protocol, external), Some(Cell::Fixed(_))))
    }

    fn cell_of(&self, at: &At, protocol: Protocol, external: Endpoint) -> Option<Cell> {
        let slot = at.policy.address(external.addr)?.slot;
        let place = Place {
            slot,
            protocol,
            port: external.port,
        };
        (slot < self.ports.slots()).then(|| self.ports.cell(place))
    }

    /// Who may be reached through an external endpoint by a remote address: a forward's target, or
    /// the internal endpoint of an `eim` mapping that filtering opens. The mapping is joined.
    pub(crate) fn behind(
        &self,
        at: &At,
        protocol: Protocol,
        external: Endpoint,
        remote: Endpoint,
    ) -> Result<Target, Refusal> {
        let direction = Direction::Inbound;
        match self
            .cell_of(at, protocol, external)
            .ok_or(Refusal::NoSession)?
        {
            Cell::Fixed(number) => {
                let place = self.forwards.place(number);
                let forward = at
                    .policy
                    .forward(place, protocol, external)
                    .ok_or(Refusal::NoSession)?;
                if !forward.allows(remote.addr) {
                    return Err(Refusal::ForwardDenied);
                }
                let endpoint = forward.target(external, remote).ok_or(Refusal::NoSession)?;
                Ok(Target {
                    endpoint,
                    direction,
                    mapping: 0,
                    forward: number,
                })
            }
            // Identifiers are nobody's to be asked at, but of a whole address.
            Cell::Exclusive(_) if protocol == Protocol::Icmp => Err(Refusal::NoSession),
            Cell::Exclusive(number) => {
                let mapping = self.mappings.read(number).ok_or(Refusal::Contended)?;
                let open = mapping.alive()
                    && mapping.protocol() == protocol
                    && mapping.external == external
                    && (mapping.sessions() > 0 || protocol != Protocol::Tcp)
                    && at.is_fresh(&mapping);
                if !open {
                    return Err(Refusal::NoSession);
                }
                // As the host itself would be translated if it sent there.
                let back = Tuple {
                    protocol,
                    source: mapping.internal,
                    destination: remote,
                };
                let independent = |profile: &&Profile| profile.is_independent(protocol);
                let profile = at.policy.profile_for(&back).filter(independent);
                let profile = profile.ok_or(Refusal::NoSession)?;
                let admitted = match profile.filtering[protocol.index()] {
                    FilteringBehaviour::EndpointIndependent => true,
                    FilteringBehaviour::AddressDependent => {
                        self.knows_address(at, &mapping, remote.addr)?
                    }
                    FilteringBehaviour::EndpointDependent => false,
                };
                if !admitted {
                    return Err(Refusal::Filtered);
                }
                if !self.mappings.join(&mapping) {
                    return Err(Refusal::NoSession);
                }
                Ok(Target {
                    endpoint: mapping.internal,
                    direction,
                    mapping: number,
                    forward: 0,
                })
            }
            _ => Err(Refusal::NoSession),
        }
    }

    /// A packet from outside that has no session. What is refused refreshes nothing
    /// (RFC 7857 section 7).
    pub(crate) fn open_from_outside(&self, at: &At, arrival: &Arrival) -> Opened {
        let opens = matches!(
            arrival.facts.signal,
            Signal::TcpSyn | Signal::Udp | Signal::IcmpQuery
        );
        if !opens {
            return Err(Refusal::NoSession);
        }
        let tuple = arrival.tuple;
        let (remote, external) = (tuple.source, tuple.destination);
        let target = self.behind(at, tuple.protocol, external, remote)?;
        let shared = target.mapping != 0;
        let outbound = Side {
            tuple: Tuple {
                source: target.endpoint,
                destination: remote,
                ..*tuple
            },
            source: external,
            destination: remote,
            direction: Direction::Outbound,
            mapping: target.mapping,
            shared,
        };
        let inbound = Side {
            tuple: *tuple,
            source: remote,
            destination: target.endpoint,
            direction: Direction::Inbound,
            ..outbound
        };
        let plan = Plan {
            sides: [outbound, inbound],
            from_outside: true,
            own_mapping: None,
            forward: target.forward,
            subscriber: 0,
            timers: at.policy.profile.timers.of(tuple.protocol, external.port),
        };
        let opened = settle(self.establish_from_outside(at, &plan, arrival.facts));
        if shared && !matches!(opened, Ok(Some(_))) {
            self.leave_mapping(at, target.mapping);
        }
        if matches!(opened, Ok(Some(_))) && at.policy.inbound_refresh {
            self.mappings.touch(target.mapping, at.tick());
        }
        opened
    }

    /// `eim`: the internal endpoint's one mapping, or its forward's endpoint.
    fn open_independent(
        &self,
        at: &At,
        request: &Request,
        target: &Target,
        random: &mut impl Random,
    ) -> Opened {
        if self.sessions.is_empty() {
            return Err(Refusal::SessionsFull);
        }
        let arrival = request.arrival;
        let (external, joined) = match self.fixed_endpoint(at, request) {
            Some(external) => (external, None),
            None => {
                // The far side of a hairpin was asked about the paired address.
                let only_first = target.direction != Direction::Outbound;
                let joined = self.join_shared_mapping(at, request, only_first, random)?;
                (joined.external, Some(joined))
            }
        };
        let number = joined.as_ref().map_or(0, |joined: &Joined| joined.number);
        let mut sides = outbound_sides(arrival.tuple, external, target);
        sides[0].mapping = number;
        sides[0].shared = number != 0;
        if target.direction == Direction::Outbound {
            sides[1].mapping = number;
            sides[1].shared = number != 0;
        }
        let plan = Plan {
            sides,
            from_outside: false,
            own_mapping: None,
            forward: 0,
            subscriber: request.subscriber,
            timers: request.timers(),
        };
        let opened = settle(self.establish(at, plan, arrival.facts));
        match (joined, &opened) {
            (Some(joined), Ok(Some(_))) => self.mappings.touch(joined.number, at.tick()),
            (Some(joined), _) => self.unjoin_mapping(at, &joined),
            (None, _) => {}
        }
        opened
    }
}

/// The halves of a session that the internal side opens, without its own mapping.
pub(crate) fn outbound_sides(tuple: &Tuple, external: Endpoint, target: &Target) -> [Side; 2] {
    let there = Side {
        tuple: *tuple,
        source: external,
        destination: target.endpoint,
        direction: target.direction,
        mapping: 0,
        shared: false,
    };
    let hairpin = target.direction == Direction::Hairpin;
    let back = Side {
        tuple: Tuple {
            source: target.endpoint,
            destination: external,
            ..*tuple
        },
        source: tuple.destination,
        destination: tuple.source,
        direction: if hairpin {
            Direction::Hairpin
        } else {
            Direction::Inbound
        },
        mapping: target.mapping,
        shared: target.mapping != 0,
    };
    [there, back]
}

/// Without overloading, a tuple that is in use leaves no endpoint for the new session.
fn settle(made: Result<Rewrite, NotMade>) -> Opened {
    match made {
        Ok(rewrite) => Ok(Some(rewrite)),
        Err(NotMade::There) => Ok(None),
        Err(NotMade::Clash | NotMade::Taken(_)) => Err(Refusal::PortsExhausted),
        Err(NotMade::Refused(refusal)) => Err(refusal),
    }
}
