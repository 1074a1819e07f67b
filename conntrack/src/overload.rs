//! `edm`: a port for one session, shared with sessions whose remote endpoints differ
//! (RFC 7857 section 3).
//!
//! A port will do for a remote endpoint if no session has the tuple remote -> external endpoint.
//! Tried in turn: the source port; a wholly free port and some used ones of its kind; any wholly
//! free port; the port last released for this remote; then every port of the pool from a random one
//! on: the last one that will do is found.

use crate::age::At;
use crate::choose::{Kind, Kinds};
use crate::config::ExternalAddress;
use crate::endpoint::Endpoint;
use crate::mapping::NewMapping;
use crate::memo::Remote;
use crate::nat::{Arrival, Nat};
use crate::open::{Opened, Request, Target, outbound_sides};
use crate::port::{Cell, Place, search as search_ports};
use crate::session::{NotMade, Plan};
use crate::time::Random;
use crate::verdict::{Direction, Refusal, Rewrite};
use crate::word::Word;

/// Ports in use that are tried because they are like the source port, before any other will do: a
/// wish is not worth a scan of the pool.
const WISH_LOOKS: u32 = 64;

/// One port tried.
enum Tried {
    Made(Rewrite),
    /// Another worker has made this very session.
    There,
    /// It will not do for this remote.
    InUse,
    /// It was changing: it might have done, so the scan proves nothing.
    Unsure,
    Refused(Refusal),
}

/// The search over one address.
struct Search<'a, 'p> {
    at: &'a At<'p>,
    request: &'a Request<'a>,
    target: &'a Target,
    address: &'a ExternalAddress,
    /// Every port so far was surely in use.
    exact: bool,
}

impl<W: Word> Nat<'_, W> {
    /// The paired address first, then, with soft pairing, the others.
    pub(crate) fn open_dependent(
        &self,
        at: &At,
        request: &Request,
        target: &Target,
        random: &mut impl Random,
    ) -> Opened {
        let arrival = request.arrival;
        let mut choices = at.policy.addresses.choices(request.profile, arrival.tuple);
        let first = choices.next().ok_or(Refusal::NoExternalAddress)?;
        if self.sessions.is_empty() {
            return Err(Refusal::SessionsFull);
        }
        self.may_map(at, request.subscriber, arrival.tuple.protocol)?;
        let mut exact = true;
        for address in std::iter::once(first).chain(choices) {
            if address.slot >= self.ports.slots() || !self.may_be(at, arrival, target, address) {
                continue;
            }
            let mut search = Search {
                at,
                request,
                target,
                address,
                exact: true,
            };
            match self.open_on(&mut search, random) {
                Some(Tried::Made(rewrite)) => return Ok(Some(rewrite)),
                Some(Tried::There) => return Ok(None),
                Some(Tried::Refused(refusal)) => return Err(refusal),
                _ => exact &= search.exact,
            }
        }
        // Another worker may have taken the last port for this very session. And if a port was
        // changing, it is worth another look.
        match self.is_made(at, arrival)? || !exact {
            true => Ok(None),
            false => Err(Refusal::PortsExhausted),
        }
    }

    /// May the session leave from the address? Behind an external endpoint the far side judges by
    /// the address that it sees, which need not be the paired one.
    fn may_be(
        &self,
        at: &At,
        arrival: &Arrival,
        target: &Target,
        address: &ExternalAddress,
    ) -> bool {
        let tuple = arrival.tuple;
        let seen_as = Endpoint::new(address.addr, tuple.source.port);
        if target.direction != Direction::Hairpin {
            return true;
        }
        let seen = self.behind(at, tuple.protocol, tuple.destination, seen_as);
        // It is the target's to join what is behind; this only asked.
        if let Ok(joined) = &seen
            && joined.mapping != 0
        {
            self.leave_mapping(at, joined.mapping);
        }
        seen.is_ok()
    }

    /// `None`: no port of the address will do.
    fn open_on(&self, search: &mut Search, random: &mut impl Random) -> Option<Tried> {
        let Request {
            arrival, profile, ..
        } = *search.request;
        let protocol = arrival.tuple.protocol;
        let slot = search.address.slot;
        let set = &search.address.ports[protocol.index()];
        let remote = Remote {
            protocol,
            endpoint: search.target.endpoint,
            slot,
        };
        let before = self.memos.look(&remote, search.at.tick()).ok()?;

        let wanted = arrival.tuple.source.port;
        let kept = profile.preserve_port && set.contains(wanted);
        if let Some(done) = kept.then(|| self.try_port(search, wanted)).flatten() {
            return Some(done);
        }
        let start = random.next_u64();
        let kinds = Kinds::of(profile, protocol, set, wanted);
        for &kind in kinds.wishes() {
            if let Some(done) = self.try_free(search, kind, start) {
                return Some(done);
            }
            if let Some(done) = self.try_wish(search, kind, start) {
                return Some(done);
            }
        }
        if let Some(done) = self.try_free(search, Kind::ALL, start) {
            return Some(done);
        }
        if self.end_all_holds(search.at, slot, protocol)
            && let Some(done) = self.try_free(search, Kind::ALL, start)
        {
            return Some(done);
        }
        let hint = self.memos.hint(&remote).filter(|&port| set.contains(port));
        if let Some(done) = hint.and_then(|port| self.try_port(search, port)) {
            return Some(done);
        }
        let every = |_| u64::MAX;
        let done = search_ports(set, start, every, |port| self.try_overload(search, port));
        if done.is_none() && search.exact {
            self.memos.set(&remote, &before);
        }
        done
    }

    /// Wholly free ports of a kind. `None` also where it is known that there are none.
    fn try_free(&self, search: &mut Search, kind: Kind, start: u64) -> Option<Tried> {
        let protocol = search.request.arrival.tuple.protocol;
        let slot = search.address.slot;
        let set = &search.address.ports[protocol.index()];
        let before = self.ports.look(slot, protocol).ok()?;
        let mut offered = false;
        let done = self
            .ports
            .choose_free(slot, protocol, (set, kind), start, |port| {
                offered = true;
                self.try_port(search, port)
            });
        // What was offered and would not do may be free all the same.
        if done.is_none() && !offered && kind == Kind::ALL {
            self.ports.note_exhausted(slot, protocol, &before);
        }
        done
    }

    /// Some ports of a kind that other sessions use.
    fn try_wish(&self, search: &mut Search, kind: Kind, start: u64) -> Option<Tried> {
        let set = &search.address.ports[search.request.arrival.tuple.protocol.index()];
        let mut looks = 0;
        let mask = |word| kind.mask(word);
        let done = search_ports(set, start, mask, |port| {
            looks += 1;
            match looks {
                ..=WISH_LOOKS => self.try_overload(search, port).map(Some),
                _ => Some(None),
            }
        });
        done.flatten()
    }

    /// Skips ports that cannot be overloaded without looking for the tuple.
    fn try_overload(&self, search: &mut Search, port: u16) -> Option<Tried> {
        let protocol = search.request.arrival.tuple.protocol;
        match self.ports.cell(Place {
            slot: search.address.slot,
            protocol,
            port,
        }) {
            Cell::Free | Cell::Overloaded(_) => self.try_port(search, port),
            Cell::Changing => {
                search.exact = false;
                None
            }
            _ => None,
        }
    }

    /// `None`: go on with another port.
    fn try_port(&self, search: &mut Search, port: u16) -> Option<Tried> {
        match self.attempt(search, port) {
            Tried::InUse => None,
            Tried::Unsure => {
                search.exact = false;
                None
            }
            done => Some(done),
        }
    }

    fn attempt(&self, search: &Search, port: u16) -> Tried {
        let Search {
            at,
            request,
            target,
            address,
            ..
        } = *search;
        let (arrival, subscriber) = (request.arrival, request.subscriber);
        let tuple = arrival.tuple;
        let external = Endpoint::new(address.addr, port);
        let sides = outbound_sides(tuple, external, target);
        let back = &sides[1].tuple;
        let place = Place {
            slot: address.slot,
            protocol: tuple.protocol,
            port,
        };
        // A free port has no session.
        if self.ports.cell(place) != Cell::Free {
            match self.live(at, back, self.hash(back)) {
                Ok(None) => {}
                Ok(Some(_)) => return Tried::InUse,
                Err(refusal) => return Tried::Refused(refusal),
            }
        }
        let own_mapping = Some(NewMapping {
            protocol: tuple.protocol,
            internal: tuple.source,
            external,
            slot: address.slot,
            shared: false,
            counted: subscriber != 0,
            open: false,
            timers: 0,
        });
        let plan = Plan {
            sides,
            from_outside: false,
            own_mapping,
            forward: 0,
            subscriber,
            timers: request.timers(),
        };
        match self.establish(at, plan, arrival.facts) {
            Ok(rewrite) => Tried::Made(rewrite),
            Err(NotMade::There) => Tried::There,
            Err(NotMade::Taken(Cell::Changing)) => Tried::Unsure,
            Err(NotMade::Clash | NotMade::Taken(_)) => Tried::InUse,
            Err(NotMade::Refused(refusal)) => Tried::Refused(refusal),
        }
    }
}
