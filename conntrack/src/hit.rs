//! The short way of a packet through conntrack: it finds its session alive, and nothing but the stamps
//! changes. In steps that a batch takes one after the other, so that cache lines arrive meanwhile.
//! Whoever gets `None` goes the long way ([`Nat::translate`]), which gives the same answer where there
//! is one.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::age::{At, idle_ms, refreshes};
use crate::config::Policy;
use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::half::{Half, Snapshot};
use crate::hash::{Key, pack_addresses, pack_ports, unpack};
use crate::nat::{Nat, is_of};
use crate::port::Place;
use crate::signal::{PacketFacts, Realm, Signal};
use crate::tcp::State;
use crate::time::Time;
use crate::verdict::{Direction, NextHop};
use crate::word::Word;

/// A half that may be a tuple's: the first that the index names for its hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate(u32);

impl Candidate {
    /// Is there none? Then the flow most likely has no session yet.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// A live session's half, and what it does to a packet.
pub struct Hit<'m, W = AtomicU64> {
    half: Half<'m, W>,
    snapshot: Snapshot,
}

impl<W> Hit<'_, W> {
    /// Addresses to write: the source in the upper 32 bits, the destination in the lower.
    #[inline(always)]
    pub fn new_addresses(&self) -> u64 {
        self.snapshot.new_addresses
    }

    /// Ports to write: the source's in the upper 16 bits, the destination's in the lower.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        self.snapshot.ports as u32
    }

    /// Delta of the IPv4 header checksum, as in [`crate::Rewrite::ip_delta`].
    #[inline(always)]
    pub fn ip_delta(&self) -> u16 {
        (self.snapshot.deltas >> 48) as u16
    }

    /// Delta of the transport checksum, as in [`crate::Rewrite::l4_delta`].
    #[inline(always)]
    pub fn l4_delta(&self) -> u16 {
        (self.snapshot.deltas >> 32) as u16
    }

    /// The next hop remembered for this half.
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop {
        NextHop(self.snapshot.deltas as u32)
    }

    /// Which way the packet goes.
    #[inline(always)]
    pub fn direction(&self) -> Direction {
        self.snapshot.meta().direction()
    }
}

impl<'m, W: Word> Nat<'m, W> {
    /// The hash of a tuple in two words, as [`Nat::hash`].
    #[inline(always)]
    pub fn hash_key(&self, key: &Key) -> u64 {
        self.keys.hash(key)
    }

    /// The second step of a batch, after [`Nat::prefetch`]: asks for the half that the index names for
    /// a hash, and for the other one where its stamp decides, too.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Candidate {
        match self.tuples.first(hash) {
            Some(half) => {
                self.prefetch_pair(half);
                Candidate(half)
            }
            None => Candidate::default(),
        }
    }

    /// The second step for a packet from inside without a candidate: asks for what a new session of
    /// its flow will most likely need. That is a guess; nothing depends on it.
    #[inline(never)]
    pub fn prefetch_new(&self, policy: &Policy, key: &Key) {
        let (source, destination) = unpack(key.addresses, key.ports);
        let flow = Tuple {
            protocol: key.protocol,
            source,
            destination,
        };
        let Some(profile) = policy.profile_for(&flow) else {
            return;
        };
        if profile.is_independent(key.protocol) {
            let hash = self.mapping_hash(key.protocol, source);
            self.mappings.index.prefetch(hash);
            return;
        }
        let Some(address) = policy.addresses.choices(profile, &flow).next() else {
            return;
        };
        let external = Endpoint::new(address.addr, source.port);
        self.tuples.prefetch(self.keys.hash(&Key {
            addresses: pack_addresses(destination, external),
            ports: pack_ports(destination, external),
            protocol: key.protocol,
        }));
        self.ports.prefetch(Place {
            slot: address.slot,
            protocol: key.protocol,
            port: source.port,
        });
    }

    /// The third step: the packet's half, if it is the candidate, its session lives, and a packet of
    /// this signal changes no state. Nothing is counted yet.
    #[inline(always)]
    pub fn seek(
        &self,
        policy: &Policy,
        realm: Realm,
        key: &Key,
        candidate: Candidate,
        signal: Signal,
        now: Time,
    ) -> Option<Hit<'m, W>> {
        if candidate.0 == 0 {
            return None;
        }
        let half = Half {
            words: self.halves.get(candidate.0 as usize)?,
        };
        let snapshot = half.read()?;
        let meta = snapshot.meta();
        if !snapshot.carries(key) || !is_of(realm, &snapshot) {
            return None;
        }
        let timers = policy.timers.get(meta.timers());
        let timeout_ms = match key.protocol {
            Protocol::Udp => timers.udp_timeout_ms,
            Protocol::Tcp if signal == Signal::TcpData && takes_data(meta.state()) => {
                timers.tcp_idle_timeout_ms
            }
            _ => return None,
        };
        let (now, refresh) = (now.0 as u32, policy.inbound_refresh);
        // Usually the half's own packets keep it alive, and the other's line is not needed.
        let alive = refreshes(key.protocol, meta.direction(), refresh)
            && idle_ms(now, half.last_seen()) < timeout_ms
            || self.is_alive(candidate.0, meta, now, timeout_ms, refresh);
        // As in `is_current`: the stamps may be a younger session's.
        W::fence(Acquire);
        let current = half.words[0].load(Relaxed) == snapshot.control;
        (alive && current).then_some(Hit { half, snapshot })
    }

    /// The last step: counts the packet and refreshes what it refreshes.
    #[inline(always)]
    pub fn count(&self, policy: &Policy, hit: &Hit<'_, W>, facts: PacketFacts, now: Time) {
        self.stamp_half(&At { policy, now }, hit.half, &hit.snapshot, facts);
    }
}

/// Does data leave a connection in the state that it is in? All of these are under `tcp-idle`.
#[inline(always)]
fn takes_data(state: State) -> bool {
    matches!(
        state,
        State::Established | State::InitiatorFin | State::ResponderFin
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::TimeoutClass;
    use crate::tcp;

    #[test]
    fn data_is_taken_where_the_state_machine_stays() {
        for state in State::ALL {
            for (initiator, outside) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let stays = tcp::next(state, initiator, outside, Signal::TcpData) == state;
                assert!(stays || !takes_data(state), "{state:?}");
                let idle = state.class() == TimeoutClass::TcpIdle;
                assert!(idle || !takes_data(state), "{state:?}");
            }
        }
    }
}
