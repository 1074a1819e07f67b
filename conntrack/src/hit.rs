//! The short way of a packet through conntrack: it finds its session alive, and nothing but the stamps
//! changes. In steps that a batch takes one after the other, so that cache lines arrive meanwhile.
//! Whoever gets `None` goes the long way ([`Nat::translate`]), which gives the same answer where there
//! is one.

use crate::age::At;
use crate::config::Policy;
use crate::endpoint::Protocol;
use crate::hash::Key;
use crate::nat::{Nat, is_of};
use crate::session::Seen;
use crate::signal::{PacketFacts, Realm, Signal};
use crate::tcp::State;
use crate::time::Time;
use crate::verdict::{Direction, NextHop};
use crate::word::Word;

/// A half that may be a tuple's: the first that the index names for its hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate(u32);

/// A live session's half, and what it does to a packet.
#[derive(Clone, Copy)]
pub struct Hit {
    seen: Seen,
}

impl Hit {
    /// Addresses to write: the source in the upper 32 bits, the destination in the lower.
    #[inline(always)]
    pub fn addresses(&self) -> u64 {
        self.seen.snapshot.new_addresses
    }

    /// Ports to write: the source's in the upper 16 bits, the destination's in the lower.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        self.seen.snapshot.ports as u32
    }

    /// Delta of the IPv4 header checksum, as in [`crate::Rewrite::ip_delta`].
    #[inline(always)]
    pub fn ip_delta(&self) -> u16 {
        (self.seen.snapshot.deltas >> 48) as u16
    }

    /// Delta of the transport checksum, as in [`crate::Rewrite::l4_delta`].
    #[inline(always)]
    pub fn l4_delta(&self) -> u16 {
        (self.seen.snapshot.deltas >> 32) as u16
    }

    /// The next hop remembered for this half.
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop {
        NextHop(self.seen.snapshot.deltas as u32)
    }

    /// Which way the packet goes.
    #[inline(always)]
    pub fn direction(&self) -> Direction {
        self.seen.snapshot.meta().direction()
    }
}

impl<W: Word> Nat<'_, W> {
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
    ) -> Option<Hit> {
        if candidate.0 == 0 {
            return None;
        }
        let snapshot = self.half(candidate.0).read()?;
        let seen = Seen {
            half: candidate.0,
            snapshot,
        };
        let unchanged = match key.protocol {
            Protocol::Udp => true,
            Protocol::Tcp => signal == Signal::TcpData && takes_data(snapshot.meta().state()),
            Protocol::Icmp => false,
        };
        let at = At { policy, now };
        let found = unchanged && snapshot.carries(key) && is_of(realm, &snapshot);
        (found && self.lives(&at, &seen)).then_some(Hit { seen })
    }

    /// The last step: counts the packet and refreshes what it refreshes.
    #[inline(always)]
    pub fn count(&self, policy: &Policy, hit: &Hit, facts: PacketFacts, now: Time) {
        self.stamp(&At { policy, now }, &hit.seen, facts);
    }
}

/// Does data leave a connection in the state that it is in?
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
    use crate::tcp;

    #[test]
    fn data_is_taken_where_the_state_machine_stays() {
        for state in State::ALL {
            for (initiator, outside) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let stays = tcp::next(state, initiator, outside, Signal::TcpData) == state;
                assert!(stays || !takes_data(state), "{state:?}");
            }
        }
    }
}
