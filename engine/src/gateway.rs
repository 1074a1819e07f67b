//! The whole route of a frame, the only place that branches: steps 4 to 8, called once each from top to
//! bottom. (The commonest frames take [`crate::shortcut`].) In: a frame's bytes, the interface it came by, the time. Out: a [`Verdict`].

use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use conntrack::{
    AddressKind, Direction, Key, Nat, PacketFacts, Policy, Protocol, Random, Realm, Refusal,
    Rewrite, Signal, TableSize, Time, Tuple,
};
use crossbeam_queue::ArrayQueue;

use crate::config::{Midstream, OnRefusal, Role, Unsolicited};
use crate::control::flush::Flushes;
use crate::device::offload::{Checksum, Offload};
use crate::drop_reason::DropReason;
use crate::fragment::{Decision, Ends, FragmentTable, Identifications, Later, Passage};
use crate::icmp::ErrorKind;
use crate::link::Links;
use crate::neighbour::{Hop, HopNumber, HopState};
use crate::own_address::Announcement;
use crate::packet::{self, Body, Embedded, Packet};
use crate::rewrite;
use crate::route::{Forwarding, NoRoute, Routes};
use crate::rulebook::Rulebook;
use crate::shortcut::View;
use crate::stats::WorkerStats;
use crate::wire::{ethernet, ipv4};

/// What all workers share.
pub struct Shared {
    /// Conntrack.
    pub nat: Nat<'static>,
    /// Its size.
    pub size: TableSize,
    /// What packets are judged by.
    pub rulebook: Rulebook,
    /// The served interfaces and the internal prefixes.
    pub links: ArcSwap<Links>,
    /// Routes and neighbours.
    pub forwarding: Arc<Forwarding>,
    /// Datagrams that arrive in fragments.
    pub fragments: FragmentTable,
    /// Identifications of datagrams that leave in the name of an external address.
    pub identifications: Identifications,
    /// The answer to a packet from inside that conntrack refuses for want of room.
    pub on_refusal: OnRefusal,
    /// The answer to a SYN from outside that nobody waits for.
    pub unsolicited: Unsolicited,
    /// The answer to a TCP segment from inside that belongs to no session.
    pub midstream: Midstream,
    /// Sessions that an operator wants ended.
    pub flushes: Flushes,
    /// Frames that any worker sends as they are, at its next housekeeping.
    pub announcements: ArrayQueue<Announcement>,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it by this interface, whole or (with an MTU) in fragments.
    Transmit {
        /// Egress interface.
        interface: u8,
        /// Split it for this MTU.
        split_mtu: Option<u16>,
    },
    /// Keep it until the next hop's MAC is known; then set it and send.
    Hold {
        /// The next hop.
        hop: HopNumber,
    },
    /// A copy waits for the datagram's first fragment; the frame itself is free.
    HeldFragment,
    /// Give it to the host's kernel.
    Punt,
    /// Drop it, and answer with an ICMP error if rules and rate limit allow.
    Reply {
        /// Which error.
        kind: ErrorKind,
        /// Why the frame is dropped.
        reason: DropReason,
    },
    /// Drop a SYN, and answer it with an ICMP error once the inside has had time to open, too.
    Unanswered(DropReason),
    /// Drop a segment, and answer it with a RST if rules and rate limit allow.
    Reset(DropReason),
    /// Drop it.
    Drop(DropReason),
}

/// A frame after step 4. Made for a whole batch before any is processed, so that the cache lines
/// of the tables are on their way.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The checked packet, or why it is none.
    pub parsed: Result<Packet, DropReason>,
    /// What of the packet is still to be done by whoever sends it.
    pub offload: Offload,
    /// Hash of the flow's tuple; none for what is no flow.
    pub(crate) hash: Option<u64>,
}

impl Prepared {
    /// The same with what is still to be done for its packet, if that speaks of this packet.
    #[must_use]
    pub(crate) fn with(mut self, offload: Offload) -> Prepared {
        if self
            .parsed
            .as_ref()
            .is_ok_and(|packet| !offload.fits(packet))
        {
            self.parsed = Err(DropReason::BadTransport);
        }
        self.offload = offload;
        self
    }

    /// Is it the first of several fragments?
    pub fn is_first_fragment(&self) -> bool {
        let fragment = self.parsed.as_ref().ok().and_then(|packet| packet.fragment);
        fragment.is_some_and(|fragment| fragment.offset == 0)
    }
}

/// Where a packet comes from and goes to, as far as its addresses tell.
#[derive(Clone, Copy)]
struct Place {
    realm: Realm,
    /// The destination is an external address of this kind.
    external: Option<AddressKind>,
}

/// How a packet is changed.
struct Translation {
    rewrite: Rewrite,
    /// The identification that its datagram got before, if that is known.
    identification: Option<u16>,
}

/// One worker's gateway: the shared state, and the snapshots that this round is judged by.
pub struct Gateway<R> {
    shared: Arc<Shared>,
    worker: usize,
    policy: Arc<Policy>,
    links: Arc<Links>,
    routes: Arc<Routes>,
    view: View,
    random: R,
}

/// Takes up a newer snapshot, if there is one.
fn renew<T>(current: &mut Arc<T>, newest: &ArcSwap<T>) -> bool {
    let newest = newest.load();
    let newer = !Arc::ptr_eq(current, &newest);
    if newer {
        *current = Arc::clone(&newest);
    }
    newer
}

impl<R: Random> Gateway<R> {
    /// The gateway of worker number `worker` over the shared state, choosing ports by `random`.
    pub fn new(shared: Arc<Shared>, worker: usize, random: R) -> Gateway<R> {
        let policy = Arc::clone(&shared.rulebook.load());
        let links = shared.links.load_full();
        let routes = shared.forwarding.routes().load_full();
        Gateway {
            worker,
            view: View::new(&links, routes.generation()),
            policy,
            links,
            routes,
            shared,
            random,
        }
    }

    /// Records that this worker has to visit in `elapsed_ms`, so that all workers together visit the
    /// whole table once in `cycle_ms`.
    pub fn sweep_share(&self, elapsed_ms: u64, cycle_ms: u64) -> u64 {
        let size = self.shared.size;
        let records = 2 * u64::from(size.sessions_max) + size.owned_words() as u64;
        let share = records / self.shared.rulebook.workers() as u64;
        (share * elapsed_ms / cycle_ms).max(64)
    }

    /// A slice of conntrack's housekeeping: ends what contradicts a new policy or an operator wants
    /// ended, and frees what has expired among the next `budget` records.
    pub fn sweep(&mut self, now: Time, budget: u32) {
        self.shared.nat.sweep(&self.policy, now, budget);
        self.shared.rulebook.carry(&self.shared.nat, now);
        let (nat, policy) = (&self.shared.nat, &self.policy);
        self.shared.flushes.carry(nat, policy, now);
    }

    /// Takes up the newest policy, links and routes. Called once a round.
    pub fn refresh(&mut self) {
        self.shared.rulebook.renew(self.worker, &mut self.policy);
        let links = renew(&mut self.links, &self.shared.links);
        let routes = renew(&mut self.routes, self.shared.forwarding.routes());
        if links || routes {
            self.view = View::new(&self.links, self.routes.generation());
        }
    }

    /// The policy of this round.
    #[inline(always)]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The links of this round.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// What the shortcut sees of this round's policy, links and routes.
    #[inline(always)]
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// The shared state.
    #[inline(always)]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Step 4: parses a frame, and asks for the index lines of its flow.
    pub fn prepare(&self, frame: &[u8]) -> Prepared {
        let parsed = packet::parse(frame);
        let hash = match &parsed {
            Ok(Packet {
                body: Body::Flow { tuple, .. },
                ..
            }) => Some(self.shared.nat.hash(tuple)),
            _ => None,
        };
        if let Some(hash) = hash {
            self.shared.nat.prefetch(hash);
        }
        Prepared {
            parsed,
            offload: Offload::NONE,
            hash,
        }
    }

    /// Between [`Gateway::prepare`] and [`Gateway::process`] of a batch: asks for the session.
    pub fn prefetch(&self, prepared: &Prepared) {
        let Some(hash) = prepared.hash else { return };
        let candidate = self.shared.nat.candidate(hash);
        let packet = prepared.parsed.as_ref().map(|packet| &packet.body);
        if let (true, Ok(Body::Flow { tuple, .. })) = (candidate.is_none(), packet) {
            self.prefetch_new(&Key::of(tuple));
        }
    }

    /// Asks for what a new session will need, if it is the inside that opens it.
    pub(crate) fn prefetch_new(&self, key: &Key) {
        if self
            .links
            .is_internal(((key.addresses >> 32) as u32).into())
        {
            self.shared.nat.prefetch_new(&self.policy, key);
        }
    }

    /// Steps 4 to 8 for one frame. `Transmit` and `Hold` mean that the bytes were translated; with
    /// every other verdict they are as they came (but for a completed checksum).
    pub fn process(
        &mut self,
        frame: &mut [u8],
        prepared: &Prepared,
        ingress: u8,
        now: Time,
        stats: &WorkerStats,
    ) -> Verdict {
        let packet = match &prepared.parsed {
            Ok(packet) => packet,
            Err(reason) => return self.unparsed(frame, *reason, ingress),
        };
        let place = match self.place(packet, ingress) {
            Ok(place) => place,
            // Fragments to the host come here whoever sends them, from a network behind the
            // internal interface that is not served, too.
            Err(DropReason::NotOurs) if self.is_to_shared(frame) => {
                complete_checksum(frame, packet, prepared.offload, stats);
                return Verdict::Punt;
            }
            Err(reason) => return Verdict::Drop(reason),
        };
        // Punted packets need it, too: on the way through the TAP the kernel's own mark is lost.
        complete_checksum(frame, packet, prepared.offload, stats);
        // Before conntrack, so that a traceroute's first probes leave no session behind.
        if place.external.is_none() && packet.ipv4.ttl <= 1 {
            return ttl_expired();
        }
        let translation = match self.translate(frame, prepared, packet, ingress, place, now) {
            Ok(translation) => translation,
            Err(verdict) => return verdict,
        };
        if packet.ipv4.ttl <= 1 {
            return ttl_expired();
        }
        self.forward(frame, packet, prepared.offload, &translation)
    }

    /// What a frame is that was steered to us but could not be parsed. The host's own traffic comes
    /// here in fragments whatever its protocol: that part goes on to the host.
    fn unparsed(&self, frame: &[u8], reason: DropReason, ingress: u8) -> Verdict {
        let link = self.links.links.get(usize::from(ingress));
        let outside = link.is_some_and(|link| link.role == Role::External);
        let header = frame
            .get(ethernet::HEADER_LEN..)
            .and_then(ipv4::Header::new);
        let inside = header.is_some_and(|header| self.links.is_internal(header.source()));
        let foreign = matches!(
            reason,
            DropReason::UnsupportedProtocol | DropReason::UnsupportedIcmp
        );
        match foreign && self.is_to_shared(frame) {
            true if outside && inside => Verdict::Drop(DropReason::Spoofed),
            true => Verdict::Punt,
            false => Verdict::Drop(reason),
        }
    }

    /// What becomes of a fragment whose first fragment did not come in time.
    pub fn fragment_expired(&self, frame: &[u8]) -> Verdict {
        if self.is_to_shared(frame) {
            Verdict::Punt
        } else {
            Verdict::Drop(DropReason::FragmentTimeout)
        }
    }

    fn is_to_shared(&self, frame: &[u8]) -> bool {
        frame
            .get(ethernet::HEADER_LEN..)
            .and_then(ipv4::Header::new)
            .is_some_and(|ip| self.kind_of(ip.destination()) == Some(AddressKind::Shared))
    }

    /// Which realm a packet comes from, and whether it goes to an external address.
    fn place(&self, packet: &Packet, ingress: u8) -> Result<Place, DropReason> {
        let role = self
            .links
            .links
            .get(usize::from(ingress))
            .map(|link| link.role);
        let internal = self.links.is_internal(packet.ipv4.source);
        let external = self.kind_of(packet.ipv4.destination);
        let realm = match (role, internal) {
            (Some(Role::External), true) => return Err(DropReason::Spoofed),
            (Some(Role::Internal), false) | (None, _) => return Err(DropReason::NotOurs),
            (Some(_), true) => Realm::Internal,
            (Some(_), false) if external.is_none() => return Err(DropReason::NotOurs),
            (Some(_), false) => Realm::External,
        };
        Ok(Place { realm, external })
    }

    fn kind_of(&self, addr: Ipv4Addr) -> Option<AddressKind> {
        self.policy.addresses.find(addr).map(|own| own.kind)
    }

    /// Steps 5 and 6: the rewrite of a packet.
    fn translate(
        &mut self,
        frame: &[u8],
        prepared: &Prepared,
        packet: &Packet,
        ingress: u8,
        place: Place,
        now: Time,
    ) -> Result<Translation, Verdict> {
        let alone = |rewrite| Translation {
            rewrite,
            identification: None,
        };
        match &packet.body {
            &Body::Flow {
                ref tuple,
                signal,
                sequence,
                acknowledgement,
            } => {
                let facts = PacketFacts {
                    acknowledgement,
                    ..facts(packet, signal, sequence)
                };
                let found = self.judge(tuple, prepared.hash, facts, place, now);
                if prepared.is_first_fragment() {
                    self.first_fragment(packet, *tuple, found, place, now)
                } else {
                    found.map(alone)
                }
            }
            Body::Error { embedded, .. } => self
                .shared
                .nat
                .embedded(&embedded.tuple, now)
                .and_then(|rewrite| match (rewrite.direction, place.realm) {
                    // A quote of the other side's packet: nobody but its sender is told of it.
                    (Direction::Inbound, Realm::Internal)
                    | (Direction::Outbound | Direction::Hairpin, Realm::External) => {
                        Err(Refusal::NoSession)
                    }
                    _ => Ok(alone(rewrite)),
                })
                .map_err(|refusal| match self.refused(refusal, place) {
                    Verdict::Punt => Verdict::Punt,
                    _ => Verdict::Drop(DropReason::IcmpNoSession),
                }),
            Body::LaterFragment => {
                match self
                    .shared
                    .fragments
                    .later(packet, place.realm, frame, ingress, now)
                {
                    Ok(Later::Translate(passage)) => {
                        let tuple = &passage.tuple;
                        let facts = facts(packet, signal_of_rest(tuple), 0);
                        self.judge(tuple, None, facts, place, now)
                            .map(|rewrite| Translation {
                                rewrite,
                                identification: passage.identification,
                            })
                    }
                    Ok(Later::Punt) => Err(Verdict::Punt),
                    Ok(Later::Held) => Err(Verdict::HeldFragment),
                    Err(reason) => Err(self.fragment_refused(reason, place)),
                }
            }
        }
    }

    /// Step 5 for a first fragment that was judged: what holds for the others is recorded.
    fn first_fragment(
        &self,
        packet: &Packet,
        tuple: Tuple,
        found: Result<Rewrite, Verdict>,
        place: Place,
        now: Time,
    ) -> Result<Translation, Verdict> {
        let decision = match &found {
            Ok(rewrite) => Decision::Translate(Passage {
                tuple,
                identification: self.identification(packet, rewrite, 1),
            }),
            Err(
                Verdict::Drop(reason)
                | Verdict::Reply { reason, .. }
                | Verdict::Unanswered(reason)
                | Verdict::Reset(reason),
            ) => Decision::Drop(*reason),
            Err(_) => Decision::Punt,
        };
        let recorded = self
            .shared
            .fragments
            .first(packet, place.realm, decision, now)
            .map_err(|reason| self.fragment_refused(reason, place))?;
        let identification = match recorded.decision {
            Decision::Translate(passage) => passage.identification,
            _ => None,
        };
        found.map(|rewrite| Translation {
            rewrite,
            identification,
        })
    }

    /// The identification that a datagram leaves with (RFC 6864 section 5.3.1): a new one if its
    /// source becomes an external address, unless it is atomic; else none, it keeps its own. Of a
    /// super-packet it is the first of as many as it has packets.
    #[inline]
    fn identification(&self, packet: &Packet, rewrite: &Rewrite, packets: u16) -> Option<u16> {
        if packet.is_atomic() || rewrite.direction == Direction::Inbound {
            return None;
        }
        let ends = Ends {
            source: rewrite.source.addr,
            destination: rewrite.destination.addr,
            protocol: packet.ipv4.protocol,
        };
        let original = packet.ipv4.identification;
        let identifications = &self.shared.identifications;
        Some(identifications.replace_all(&ends, original, packets))
    }

    /// The identification that the quoted packet of an ICMP error had before it was translated; none
    /// if it has it still, or that is forgotten.
    fn original_identification(&self, embedded: &Embedded, rewrite: &Rewrite) -> Option<u16> {
        if rewrite.direction == Direction::Outbound {
            return None;
        }
        let ends = Ends {
            source: embedded.tuple.source.addr,
            destination: embedded.tuple.destination.addr,
            protocol: embedded.tuple.protocol.number(),
        };
        let quoted = embedded.identification?;
        self.shared.identifications.original(&ends, quoted)
    }

    /// Step 6 for a packet of a flow.
    fn judge(
        &mut self,
        tuple: &Tuple,
        hash: Option<u64>,
        facts: PacketFacts,
        place: Place,
        now: Time,
    ) -> Result<Rewrite, Verdict> {
        let nat = &self.shared.nat;
        let hash = hash.unwrap_or_else(|| nat.hash(tuple));
        nat.translate(
            &self.policy,
            place.realm,
            tuple,
            hash,
            facts,
            now,
            &mut self.random,
        )
        .map_err(|refusal| {
            let unwanted = self.unwanted(refusal, facts.signal, place);
            unwanted.unwrap_or_else(|| self.refused(refusal, place))
        })
    }

    /// What becomes of a TCP segment that has no session, where it is answered. On a shared address
    /// that is the host's to do (RFC 5382 REQ-4); an allow-list that refuses a SYN refuses the
    /// answer (REQ-4a).
    fn unwanted(&self, refusal: Refusal, signal: Signal, place: Place) -> Option<Verdict> {
        let own = place.external == Some(AddressKind::Own);
        match (refusal, signal, place.realm) {
            (Refusal::NoSession | Refusal::Filtered, Signal::TcpSyn, Realm::External)
                if own && self.shared.unsolicited == Unsolicited::PortUnreachable =>
            {
                Some(Verdict::Unanswered(refusal.into()))
            }
            (
                Refusal::TcpMidstream,
                Signal::TcpSynAck | Signal::TcpFin | Signal::TcpData,
                Realm::Internal,
            ) if self.shared.midstream == Midstream::Reset
                && place.external != Some(AddressKind::Shared) =>
            {
                Some(Verdict::Reset(refusal.into()))
            }
            _ => None,
        }
    }

    /// Does a SYN that had no session when it came still have none, at an address that is still
    /// ours?
    pub fn is_unwanted(&self, tuple: &Tuple, now: Time) -> bool {
        self.kind_of(tuple.destination.addr) == Some(AddressKind::Own)
            && self.shared.nat.embedded(&tuple.reversed(), now) == Err(Refusal::NoSession)
    }

    /// What becomes of a packet that conntrack gives no rewrite for. On a shared address what
    /// matches nothing of ours may be the host's: its kernel may use the very same port.
    fn refused(&self, refusal: Refusal, place: Place) -> Verdict {
        if refusal == Refusal::RuleBypass {
            return Verdict::Punt;
        }
        let unmatched = matches!(
            refusal,
            Refusal::NoSession | Refusal::Filtered | Refusal::TcpMidstream | Refusal::IcmpUnasked
        );
        if unmatched && place.external == Some(AddressKind::Shared) {
            return Verdict::Punt;
        }
        let told = matches!(
            refusal,
            Refusal::PortsExhausted
                | Refusal::SessionsFull
                | Refusal::MappingsFull
                | Refusal::NoExternalAddress
                | Refusal::DestinationDenied
                | Refusal::RuleDrop
                | Refusal::SubscriberSessions
                | Refusal::SubscriberPorts
                | Refusal::SubscriberRate
                | Refusal::SubscribersFull
        );
        let kind = match self.shared.on_refusal {
            OnRefusal::HostUnreachable => Some(ErrorKind::HostUnreachable),
            OnRefusal::AdminProhibited => Some(ErrorKind::AdminProhibited),
            OnRefusal::Silent => None,
        };
        match kind.filter(|_| told && place.realm == Realm::Internal) {
            Some(kind) => Verdict::Reply {
                kind,
                reason: refusal.into(),
            },
            None => Verdict::Drop(refusal.into()),
        }
    }

    /// What becomes of a fragment that the table has no room for, or finds bad.
    fn fragment_refused(&self, reason: DropReason, place: Place) -> Verdict {
        if place.external == Some(AddressKind::Shared) && reason == DropReason::FragmentsFull {
            Verdict::Punt
        } else {
            Verdict::Drop(reason)
        }
    }

    /// Steps 7 and 8: the next hop, the MTU, and then the bytes. The hop comes before the rewrite
    /// because an ICMP error must quote the packet as its sender knows it.
    fn forward(
        &mut self,
        frame: &mut [u8],
        packet: &Packet,
        offload: Offload,
        translation: &Translation,
    ) -> Verdict {
        let rewrite = &translation.rewrite;
        let number = match self.next_hop(rewrite) {
            Ok(number) => number,
            // For the moment only: no reason to tell the sender.
            Err(NoRoute::TableFull) => return Verdict::Drop(DropReason::HoldFull),
            Err(no_route) => {
                let kind = ErrorKind::HostUnreachable;
                return Verdict::Reply {
                    kind,
                    reason: no_route.into(),
                };
            }
        };
        let hop = self.shared.forwarding.hops().load(number);
        // While a link inside is down its prefix falls to the default route, which leads outside.
        if rewrite.direction != Direction::Outbound && !self.leads_inside(hop.interface) {
            return Verdict::Reply {
                kind: ErrorKind::HostUnreachable,
                reason: DropReason::NoRoute,
            };
        }
        let len = match offload.segments {
            Some(segments) => segments.packet_len(),
            None => usize::from(packet.ipv4.total_len),
        };
        let too_big = len > usize::from(hop.mtu);
        if too_big && packet.ipv4.dont_fragment {
            return Verdict::Reply {
                kind: ErrorKind::FragmentationNeeded { mtu: hop.mtu },
                reason: DropReason::FragmentationNeeded,
            };
        }
        if hop.state != HopState::Resolved {
            self.shared.forwarding.hops().request(number);
        }
        if hop.state == HopState::Failed {
            return Verdict::Reply {
                kind: ErrorKind::HostUnreachable,
                reason: DropReason::NeighbourUnreachable,
            };
        }
        self.rewrite(frame, packet, offload, rewrite);
        let identification = translation.identification;
        // Those of fragments are known already.
        let new = match packet.fragment {
            Some(_) => identification,
            None => self.identification(packet, rewrite, offload.packets(frame.len(), hop.mtu)),
        };
        if let Some(new) = new {
            rewrite::set_identification(frame, new);
        }
        rewrite::decrement_ttl(frame, packet);
        if hop.state == HopState::Unresolved {
            return Verdict::Hold { hop: number };
        }
        self.set_ethernet(frame, &hop);
        Verdict::Transmit {
            interface: hop.interface,
            split_mtu: too_big.then_some(hop.mtu),
        }
    }

    /// Step 7: writes the new addresses and ports.
    #[inline]
    fn rewrite(&self, frame: &mut [u8], packet: &Packet, offload: Offload, rewrite: &Rewrite) {
        match &packet.body {
            Body::Error { embedded, .. } => {
                let original = self.original_identification(embedded, rewrite);
                rewrite::apply_embedded(frame, packet, rewrite, original);
            }
            Body::Flow { .. } | Body::LaterFragment => match offload.checksum {
                Checksum::Partial { .. } => rewrite::apply_partial(frame, packet, rewrite),
                Checksum::Unknown | Checksum::Whole => rewrite::apply(frame, packet, rewrite),
            },
        }
    }

    /// The next hop: remembered in the session while routes are unchanged, else looked up and
    /// remembered.
    fn next_hop(&self, rewrite: &Rewrite) -> Result<HopNumber, NoRoute> {
        let forwarding = &self.shared.forwarding;
        if let Some(hop) = forwarding.decode_if_current(&self.routes, rewrite.next_hop) {
            return Ok(hop);
        }
        let hop = forwarding.next_hop(&self.routes, rewrite.destination.addr)?;
        let remembered = forwarding.encode(&self.routes, hop);
        self.shared.nat.set_next_hop(rewrite.session, remembered);
        Ok(hop)
    }

    fn leads_inside(&self, interface: u8) -> bool {
        self.links
            .links
            .get(usize::from(interface))
            .is_some_and(|link| link.role.is_internal())
    }

    /// Writes the Ethernet addresses for a resolved hop.
    pub fn set_ethernet(&self, frame: &mut [u8], hop: &Hop) {
        if let Some(link) = self.links.links.get(usize::from(hop.interface)) {
            rewrite::set_ethernet(frame, hop.mac, link.mac);
        }
    }
}

/// Completes a checksum that is partial by its looks, where nobody knows better.
#[inline(always)]
fn complete_checksum(frame: &mut [u8], packet: &Packet, offload: Offload, stats: &WorkerStats) {
    if offload.checksum == Checksum::Unknown && rewrite::complete_checksum(frame, packet) {
        stats.checksums_completed.add(1);
    }
}

/// What conntrack is told of a packet.
fn facts(packet: &Packet, signal: Signal, sequence: u32) -> PacketFacts {
    PacketFacts {
        signal,
        length: u32::from(packet.ipv4.total_len),
        sequence,
        acknowledgement: 0,
    }
}

/// A later fragment's signal: it never opens or ends anything that its first fragment did not.
fn signal_of_rest(tuple: &Tuple) -> Signal {
    match tuple.protocol {
        Protocol::Tcp => Signal::TcpData,
        Protocol::Udp => Signal::Udp,
        Protocol::Icmp if tuple.destination.port == 0 => Signal::IcmpQuery,
        Protocol::Icmp => Signal::IcmpReply,
    }
}

fn ttl_expired() -> Verdict {
    Verdict::Reply {
        kind: ErrorKind::TimeExceeded,
        reason: DropReason::TtlExpired,
    }
}
