//! Tables full of UDP sessions, to look them up and translate by them.

use conntrack::{Nat, PacketFacts, Policy, Realm, Refusal, Signal, Time, Tuple};

use crate::{Memory, Sequence, flow, policy};

/// When all sessions were made, and are looked up.
const TIME: Time = Time(1000);
const DATAGRAM: PacketFacts = PacketFacts {
    signal: Signal::Udp,
    length: 64,
    sequence: 0,
    acknowledgement: 0,
};

/// Conntrack with as many sessions as its tables have room for, or none yet.
pub struct Sessions {
    memory: Memory,
    nat: Nat<'static>,
    policy: Policy,
    random: Sequence,
}

impl Sessions {
    /// Tables that are full. `sessions`: a number that tables can be made for.
    ///
    /// # Panics
    /// When a session is refused.
    pub fn full(sessions: u32) -> Sessions {
        let mut full = Sessions::empty(sessions);
        for number in 0..sessions {
            full.translate(&flow(number)).expect("there is room");
        }
        full
    }

    /// Empty tables for so many sessions.
    pub fn empty(sessions: u32) -> Sessions {
        let memory = Memory::new(sessions, 1);
        Sessions {
            nat: memory.tables(),
            memory,
            policy: policy(1),
            random: Sequence(1),
        }
    }

    /// Ends all sessions.
    pub fn clear(&mut self) {
        self.nat = self.memory.tables();
    }

    /// Looks a session up, and changes nothing: whether there is one.
    pub fn find(&self, tuple: &Tuple) -> bool {
        self.nat.embedded(&tuple.reversed(), TIME).is_ok()
    }

    /// Translates one packet.
    ///
    /// # Errors
    /// It is refused.
    pub fn translate(&mut self, tuple: &Tuple) -> Result<(), Refusal> {
        let hash = self.nat.hash(tuple);
        self.translate_hashed(tuple, hash)
    }

    /// Translates a batch as a worker does: the index lines and then the sessions are asked for
    /// before they are needed. How many were translated.
    pub fn translate_batch(&mut self, tuples: &[Tuple], hashes: &mut Vec<u64>) -> usize {
        hashes.clear();
        for tuple in tuples {
            let hash = self.nat.hash(tuple);
            self.nat.prefetch(hash);
            hashes.push(hash);
        }
        for &hash in &*hashes {
            self.nat.prefetch_half(hash);
        }
        let mut translated = 0;
        for (tuple, &hash) in tuples.iter().zip(&*hashes) {
            translated += usize::from(self.translate_hashed(tuple, hash).is_ok());
        }
        translated
    }

    #[inline]
    fn translate_hashed(&mut self, tuple: &Tuple, hash: u64) -> Result<(), Refusal> {
        let (realm, random) = (Realm::Internal, &mut self.random);
        let found = self
            .nat
            .translate(&self.policy, realm, tuple, hash, DATAGRAM, TIME, random);
        std::hint::black_box(found).map(|_| ())
    }
}

/// Flows without end: each of the first so many once, in no order that memory would notice, and then
/// again.
#[derive(Clone, Debug)]
pub struct Visits {
    next: u32,
    mask: u32,
}

impl Visits {
    /// Visits of the flows below `flows`, a power of two.
    pub fn new(flows: u32) -> Visits {
        assert!(flows.is_power_of_two(), "{flows} flows");
        Visits {
            next: 0,
            mask: flows - 1,
        }
    }
}

impl Iterator for Visits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        // A linear congruential generator of full period (Numerical Recipes).
        self.next = self
            .next
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223)
            & self.mask;
        Some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_is_visited_once_and_found() {
        let mut sessions = Sessions::full(1024);
        let mut seen: Vec<u32> = Visits::new(1024).take(1024).collect();
        let tuples: Vec<Tuple> = seen.iter().map(|&number| flow(number)).collect();
        assert!(tuples.iter().all(|tuple| sessions.find(tuple)));
        assert_eq!(sessions.translate_batch(&tuples, &mut Vec::new()), 1024);
        assert!(!sessions.find(&flow(1024)));
        assert!(
            sessions.translate(&flow(1024)).is_err(),
            "the tables are full"
        );
        sessions.clear();
        assert!(sessions.translate(&flow(1024)).is_ok());
        seen.sort_unstable();
        assert_eq!(seen, (0..1024).collect::<Vec<_>>());
    }
}
