//! IPv4 identifications of what leaves in the name of an external address.
//!
//! Hosts behind one address choose identifications that know nothing of each other, and a receiver
//! puts fragments together by them. So every datagram that may be in fragments somewhere gets one
//! from us, as if we had sent it (RFC 6864 section 5.3.1, RFC 7857 section 10). Atomic ones (DF set, no
//! fragment) keep theirs: theirs mean nothing.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::mix;

/// Sequences of identifications.
const COUNTERS: usize = 16_384;
/// Identifications whose original is remembered.
const RECORDS: usize = 65_536;

/// What identifications are unique for (RFC 6864 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source, as on the wire outside.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
}

/// Sequences of identifications, shared by all workers. One is used by all ends that have the same
/// hash, so none of them meets an identification again before 65,536 others; whoever sends faster than
/// that in the two minutes that a datagram may live wraps around, as any sender does. The memory is
/// fixed: 544 KiB.
#[derive(Debug)]
pub struct Identifications {
    counters: Box<[AtomicU16]>,
    /// The last ones given: hash of the ends (32 bits), the new one, the original one.
    records: Box<[AtomicU64]>,
    seed: u64,
}

impl Identifications {
    /// Sequences that begin anywhere. `seed` must be unpredictable, so that nobody can find ends that
    /// share a sequence.
    pub fn new(seed: u64) -> Identifications {
        let begin = |index| AtomicU16::new(mix(seed, index, 1) as u16);
        Identifications {
            counters: (0..COUNTERS as u64).map(begin).collect(),
            records: (0..RECORDS).map(|_| AtomicU64::new(0)).collect(),
            seed,
        }
    }

    fn hash(&self, ends: &Ends) -> u64 {
        let addresses =
            u64::from(ends.source.to_bits()) << 32 | u64::from(ends.destination.to_bits());
        mix(self.seed, addresses, u64::from(ends.protocol))
    }

    /// An identification for a datagram of our own.
    pub fn fresh(&self, ends: &Ends) -> u16 {
        self.advance(self.hash(ends), 1)
    }

    /// An identification instead of `original`, which is remembered for [`Identifications::original`].
    pub fn replace(&self, ends: &Ends, original: u16) -> u16 {
        self.replace_all(ends, original, 1)
    }

    /// As [`Identifications::replace`], for so many datagrams that are numbered on from `original`:
    /// whoever cuts a super-packet does that. The first of the new ones.
    pub fn replace_all(&self, ends: &Ends, original: u16, count: u16) -> u16 {
        let hash = self.hash(ends);
        let first = self.advance(hash, count);
        for number in 0..count {
            let (new, original) = (first.wrapping_add(number), original.wrapping_add(number));
            let known = u64::from(hash as u32) << 32 | u64::from(new) << 16 | u64::from(original);
            self.record(hash, new).store(known, Ordering::Relaxed);
        }
        first
    }

    /// What a replaced identification was, for an ICMP error that quotes it (RFC 5508 REQ-4 a); none
    /// if it was not replaced, or too many others have been since.
    pub fn original(&self, ends: &Ends, new: u16) -> Option<u16> {
        let hash = self.hash(ends);
        let known = self.record(hash, new).load(Ordering::Relaxed);
        let same = known >> 32 == u64::from(hash as u32) && (known >> 16) as u16 == new;
        same.then_some(known as u16)
    }

    fn advance(&self, hash: u64, count: u16) -> u16 {
        self.counters[hash as usize % COUNTERS].fetch_add(count, Ordering::Relaxed)
    }

    /// A sequence lies in one piece, so that its records share cache lines.
    fn record(&self, hash: u64, new: u16) -> &AtomicU64 {
        &self.records[((hash >> 32) as usize + usize::from(new)) % RECORDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(last: u8) -> Ends {
        Ends {
            source: Ipv4Addr::new(198, 51, 100, 1),
            destination: Ipv4Addr::new(203, 0, 113, last),
            protocol: 17,
        }
    }

    #[test]
    fn none_comes_again_before_all_others_did() {
        let ids = Identifications::new(7);
        let mut seen = vec![false; 65_536];
        for n in 0..65_536u32 {
            let new = ids.replace(&ends(1), n as u16);
            assert!(!std::mem::replace(&mut seen[usize::from(new)], true));
        }
    }

    #[test]
    fn the_last_ones_are_remembered() {
        let ids = Identifications::new(7);
        let given: Vec<(u16, u16)> = (0..65_000)
            .map(|original| (ids.replace(&ends(1), original), original))
            .collect();
        for (new, original) in given {
            assert_eq!(ids.original(&ends(1), new), Some(original));
            assert_eq!(ids.original(&ends(2), new), None);
        }
        let fresh = ids.fresh(&ends(1));
        assert_eq!(ids.original(&ends(1), fresh), None);
    }

    #[test]
    fn those_of_a_super_packet_follow_each_other_and_are_nobody_elses() {
        let ids = Identifications::new(7);
        let before = ids.replace(&ends(1), 500);
        let first = ids.replace_all(&ends(1), 65_534, 4);
        let after = ids.replace(&ends(1), 600);
        assert_eq!(first, before.wrapping_add(1));
        assert_eq!(after, first.wrapping_add(4));
        for (number, original) in [65_534, 65_535, 0, 1].into_iter().enumerate() {
            let new = first.wrapping_add(number as u16);
            assert_eq!(ids.original(&ends(1), new), Some(original));
        }
    }

    #[test]
    fn ends_begin_at_different_places() {
        let ids = Identifications::new(7);
        let mut first: Vec<u16> = (0..100).map(|last| ids.fresh(&ends(last))).collect();
        first.sort();
        first.dedup();
        assert!(first.len() > 90);
    }
}
