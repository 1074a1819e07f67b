//! The only place on the route of a frame that branches: steps 4 to 8, called once each from top to
//! bottom. In: a frame's bytes, the interface it came by, the time. Out: a [`Verdict`].

use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use conntrack::{AddressKind, Nat, NextHop, Policy, Random, Realm, Refusal, Rewrite, Signal, Time};

use crate::drop_reason::DropReason;
use crate::fragment::{Decision, FragmentTable, Lookup};
use crate::icmp::ErrorKind;
use crate::link::{Links, Role};
use crate::neighbour::{HopNumber, HopState};
use crate::packet::{self, Body, Packet};
use crate::rewrite;
use crate::route::{Forwarding, Routes};
use crate::stats::WorkerStats;

/// What all workers share.
pub struct Shared {
    /// Conntrack.
    pub nat: Nat<'static>,
    /// What packets are judged by.
    pub policy: Arc<ArcSwap<Policy>>,
    /// The served interfaces and the internal prefixes.
    pub links: Arc<ArcSwap<Links>>,
    /// Routes and neighbours.
    pub forwarding: Arc<Forwarding>,
    /// Datagrams that arrive in fragments.
    pub fragments: FragmentTable,
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
        /// Split it for this MTU.
        split_mtu: Option<u16>,
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
    /// Drop it.
    Drop(DropReason),
}

/// A frame after step 4. Made for a whole batch before any is processed, so that the cache lines
/// of the tables are on their way.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The checked packet, or why it is none.
    pub parsed: Result<Packet, DropReason>,
    hash: u64,
}

impl Prepared {
    /// Is it the first of several fragments?
    pub fn is_first_fragment(&self) -> bool {
        matches!(&self.parsed, Ok(Packet { fragment: Some(fragment), .. }) if fragment.offset == 0)
    }
}

/// One worker's gateway: the shared state, and the snapshots that this round is judged by.
pub struct Gateway<R> {
    shared: Arc<Shared>,
    policies: Cache<Arc<ArcSwap<Policy>>, Arc<Policy>>,
    policy: Arc<Policy>,
    links_cache: Cache<Arc<ArcSwap<Links>>, Arc<Links>>,
    links: Arc<Links>,
    routes: Arc<Routes>,
    random: R,
}

impl<R: Random> Gateway<R> {
    /// A gateway over the shared state, choosing ports by `random`.
    pub fn new(shared: Arc<Shared>, random: R) -> Gateway<R> {
        Gateway {
            policies: Cache::new(Arc::clone(&shared.policy)),
            policy: shared.policy.load_full(),
            links_cache: Cache::new(Arc::clone(&shared.links)),
            links: shared.links.load_full(),
            routes: shared.forwarding.routes(),
            shared,
            random,
        }
    }

    /// Takes up the newest policy, links and routes. Called once a round.
    pub fn refresh(&mut self) {
        let policy = self.policies.load();
        if !Arc::ptr_eq(policy, &self.policy) {
            self.policy = Arc::clone(policy);
        }
        let links = self.links_cache.load();
        if !Arc::ptr_eq(links, &self.links) {
            self.links = Arc::clone(links);
        }
        if self.shared.forwarding.is_newer_than(&self.routes) {
            self.routes = self.shared.forwarding.routes();
        }
    }

    /// The policy of this round.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The links of this round.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The shared state.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Step 4: parses a frame and asks for the index lines of its flow.
    pub fn prepare(&self, frame: &[u8]) -> Prepared {
        let parsed = packet::parse(frame);
        let hash = match &parsed {
            Ok(Packet { body: Body::Flow { tuple, .. }, .. }) => self.shared.nat.hash(tuple),
            _ => 0,
        };
        if hash != 0 {
            self.shared.nat.prefetch(hash);
        }
        Prepared { parsed, hash }
    }

    /// Between [`Gateway::prepare`] and [`Gateway::process`] of a batch: asks for the sessions.
    pub fn prefetch(&self, prepared: &Prepared) {
        if prepared.hash != 0 {
            self.shared.nat.prefetch_half(prepared.hash);
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
            Err(reason) => return self.unparsed(frame, *reason),
        };
        let realm = match self.realm(packet, ingress) {
            Ok(realm) => realm,
            Err(reason) => return Verdict::Drop(reason),
        };
        let local = self.kind_of(packet.ipv4.destination);
        if realm == Realm::Internal && local.is_none() && packet.ipv4.ttl <= 1 {
            return Self::ttl_expired();
        }
        if rewrite::complete_checksum(frame, packet) {
            stats.checksums_completed.add(1);
        }

        let rewrite = match self.translate(frame, prepared, packet, realm, now) {
            Ok(rewrite) => rewrite,
            Err(Stop::Refused(refusal)) => return self.refused(packet, refusal, realm, local, now),
            Err(Stop::Verdict(verdict)) => return verdict,
        };
        if packet.ipv4.ttl <= 1 {
            return Self::ttl_expired();
        }
        self.forward(frame, packet, &rewrite, now)
    }

    /// Step 6 (and 5 for fragments): the rewrite of a packet.
    fn translate(
        &mut self,
        frame: &[u8],
        prepared: &Prepared,
        packet: &Packet,
        realm: Realm,
        now: Time,
    ) -> Result<Rewrite, Stop> {
        let length = u32::from(packet.ipv4.total_len);
        match &packet.body {
            Body::Flow { tuple, signal } => {
                let found = self.shared.nat.translate(
                    &self.policy,
                    realm,
                    tuple,
                    prepared.hash,
                    *signal,
                    length,
                    now,
                    &mut self.random,
                );
                if packet.fragment.is_some() && found.is_ok() {
                    let decision = Decision::Translate { tuple: *tuple, signal: *signal };
                    self.shared.fragments.decide(packet, decision, now)?;
                }
                found.map_err(Stop::Refused)
            }
            Body::Error { embedded, .. } => {
                self.shared.nat.embedded(&embedded.tuple, now).map_err(Stop::Refused)
            }
            Body::LaterFragment => match self.shared.fragments.later(packet, frame, now) {
                Lookup::Decided(Decision::Translate { tuple, signal }) => {
                    let hash = self.shared.nat.hash(&tuple);
                    self.shared
                        .nat
                        .translate(
                            &self.policy,
                            realm,
                            &tuple,
                            hash,
                            signal,
                            length,
                            now,
                            &mut self.random,
                        )
                        .map_err(Stop::Refused)
                }
                Lookup::Decided(Decision::Punt) => Err(Stop::Verdict(Verdict::Punt)),
                Lookup::Decided(Decision::Drop(reason)) => {
                    Err(Stop::Verdict(Verdict::Drop(reason)))
                }
                Lookup::Held => Err(Stop::Verdict(Verdict::HeldFragment)),
                Lookup::Refused(reason) => Err(Stop::Verdict(self.unheld(packet, reason))),
            },
        }
    }
}
