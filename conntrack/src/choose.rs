//! Which free port a mapping gets: each with the same chance (RFC 6056 section 3, RFC 7857
//! section 9), those like the source port first.
//!
//! A draw is made from more ports than are free, and counts only if it hits a free one; so all free
//! ports are equally likely, however full the pool is and whatever gaps it has. The first draws are
//! from the span of the pool, the others from what each group of 1024 ports has free at most. A
//! group that disappoints is counted, and then never disappoints again: after a draw a group at the
//! latest there is a port, or surely none.

use crate::endpoint::Protocol;
use crate::layout::PORT_WORDS;
use crate::port::{Ports, search, table_of};
use crate::port_set::{GROUPS, PortSet};
use crate::profile::Profile;
use crate::word::Word;

const GROUP_WORDS: usize = PORT_WORDS / GROUPS;

/// Draws from the span of the pool: enough while it is half empty.
const QUICK_DRAWS: usize = 4;

/// Free ports that another worker takes first, until every free port is offered in turn.
const LOST_MAX: u32 = 8;

/// Ports that are alike: groups, and bits of each word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    first_group: usize,
    end_group: usize,
    bits: u64,
}

impl Kind {
    pub const ALL: Kind = Kind {
        first_group: 0,
        end_group: GROUPS,
        bits: u64::MAX,
    };

    /// RFC 4787 REQ-3a: 0-1023, or the rest.
    fn of_class(port: u16) -> Kind {
        let low = port < 1024;
        Kind {
            first_group: usize::from(!low),
            end_group: if low { 1 } else { GROUPS },
            ..Kind::ALL
        }
    }

    /// RFC 4787 REQ-4.
    fn with_parity(self, port: u16) -> Kind {
        let bits = 0x5555_5555_5555_5555 << (port % 2);
        Kind { bits, ..self }
    }

    /// Bits of 64 ports that are of this kind.
    pub fn mask(self, word: usize) -> u64 {
        if (self.first_group..self.end_group).contains(&(word / GROUP_WORDS)) {
            self.bits
        } else {
            0
        }
    }

    fn contains(self, port: u16) -> bool {
        self.mask(usize::from(port) / 64) >> (port % 64) & 1 == 1
    }

    fn has_any(self, set: &PortSet) -> bool {
        (self.first_group..self.end_group).any(|group| set.in_group(group) > 0)
    }
}

/// Kinds of ports to be tried in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds {
    kinds: [Kind; 3],
    first: usize,
}

impl Kinds {
    /// The kinds for a source port, the best first, all ports last: a wish about the external port
    /// never refuses a flow that another port could carry (RFC 6888 REQ-13). A pool without ports of
    /// the class has nothing to keep it with. Identifiers have neither class nor parity; parity
    /// serves pairs of UDP ports (RFC 4787 section 4.2.2) and goes first, as RFC 7857 section 8 drops
    /// it.
    pub fn of(profile: &Profile, protocol: Protocol, set: &PortSet, wanted: u16) -> Kinds {
        let class = Kind::of_class(wanted);
        let classed = profile.preserve_port_class
            && protocol != Protocol::Icmp
            && class.has_any(set)
            && class.has_any_other(set);
        let paired = profile.preserve_port_parity && protocol == Protocol::Udp;
        let base = if classed { class } else { Kind::ALL };
        Kinds {
            kinds: [base.with_parity(wanted), base, Kind::ALL],
            first: match (classed, paired) {
                (_, true) => 0,
                (true, false) => 1,
                (false, false) => 2,
            },
        }
    }

    /// All but the last, which is all ports.
    pub fn wishes(&self) -> &[Kind] {
        let end = if self.kinds[1] == Kind::ALL { 1 } else { 2 };
        self.kinds.get(self.first..end).unwrap_or(&[])
    }
}

impl Kind {
    /// Has the set ports of the other class?
    fn has_any_other(self, set: &PortSet) -> bool {
        let other = |group: &usize| !(self.first_group..self.end_group).contains(group);
        (0..GROUPS)
            .filter(other)
            .any(|group| set.in_group(group) > 0)
    }
}

/// Numbers drawn from one random one: Knuth's MMIX generator. The seed must not be guessed, what
/// follows from it within a search need not be unguessable again.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: u32) -> u32 {
        let drawn = ((self.0 >> 32) * u64::from(limit)) >> 32;
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        drawn as u32
    }
}

impl<W: Word> Ports<'_, W> {
    /// Offers free ports of a kind, each drawn from all of them, until `take` returns something.
    /// `None`: none is free.
    pub fn choose_free<T>(
        &self,
        slot: u16,
        protocol: Protocol,
        (set, kind): (&PortSet, Kind),
        random: u64,
        mut take: impl FnMut(u16) -> Option<T>,
    ) -> Option<T> {
        let mut draws = Draws(random);
        let (low, high) = set.bounds()?;
        for _ in 0..QUICK_DRAWS {
            let port = low + draws.below(u32::from(high - low) + 1) as u16;
            let hit = set.contains(port) && kind.contains(port);
            if hit
                && !self.is_owned(slot, protocol, port)
                && let Some(taken) = take(port)
            {
                return Some(taken);
            }
        }
        let owned = self.fills.owned(table_of(slot, protocol));
        let mut most: [u32; GROUPS] = std::array::from_fn(|group| {
            if kind.mask(group * GROUP_WORDS) == 0 {
                return 0;
            }
            set.in_group(group).min(1024 - u32::from(owned[group]))
        });
        let mut total: u32 = most.iter().sum();
        let mut lost = 0;
        while total > 0 && lost < LOST_MAX {
            let mut rest = draws.below(total);
            let mut group = 0;
            while rest >= most[group] {
                rest -= most[group];
                group += 1;
            }
            let (free, port) = self.nth_free(slot, protocol, (set, kind), group, rest);
            if let Some(port) = port {
                if let Some(taken) = take(port) {
                    return Some(taken);
                }
                lost += 1;
            }
            total -= most[group] - free.min(most[group]);
            most[group] = free.min(most[group]);
        }
        if total == 0 {
            return None;
        }
        let free = |word| kind.mask(word) & !self.owned_bits(slot, protocol, word);
        search(set, draws.0, free, take)
    }

    /// How many ports of a kind are free in a group, and the one with this number.
    fn nth_free(
        &self,
        slot: u16,
        protocol: Protocol,
        (set, kind): (&PortSet, Kind),
        group: usize,
        number: u32,
    ) -> (u32, Option<u16>) {
        let (mut count, mut found) = (0, None);
        for word in group * GROUP_WORDS..(group + 1) * GROUP_WORDS {
            let free = set.word(word) & kind.bits & !self.owned_bits(slot, protocol, word);
            let next = count + free.count_ones();
            if found.is_none() && number < next {
                let mut bits = free;
                for _ in count..number {
                    bits &= bits - 1;
                }
                found = Some((word * 64) as u16 + bits.trailing_zeros() as u16);
            }
            count = next;
        }
        (count, found)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::fill::Fills;
    use crate::layout::{CELL_WORDS, FILL_WORDS};
    use crate::port::{Cell, Place};

    const TCP: Protocol = Protocol::Tcp;

    type Ranges = &'static [(u16, u16)];

    fn set_of(ranges: Ranges) -> PortSet {
        let mut set = PortSet::empty();
        for &(first, last) in ranges {
            set.insert_range(first, last);
        }
        set
    }

    /// Runs `work` on ports of which these are claimed.
    fn with_used(used: &PortSet, work: impl FnOnce(&Ports<'_, AtomicU64>)) {
        let zeros = |n: usize| -> Vec<AtomicU64> { (0..n).map(|_| AtomicU64::new(0)).collect() };
        let (tallies, in_use, epoch) = (zeros(3), zeros(3), AtomicU64::new(0));
        let (fills, cells, owned) = (
            zeros(3 * FILL_WORDS),
            zeros(3 * CELL_WORDS),
            zeros(3 * PORT_WORDS),
        );
        let ports = Ports {
            tallies: &tallies,
            fills: Fills {
                words: &fills,
                epoch: &epoch,
            },
            cells: &cells,
            owned: &owned,
            in_use: &in_use,
        };
        for port in (0..=u16::MAX).filter(|&port| used.contains(port)) {
            let (slot, protocol) = (0, TCP);
            let place = Place {
                slot,
                protocol,
                port,
            };
            ports.claim(place, Cell::Exclusive(1)).unwrap();
        }
        work(&ports);
    }

    /// How many kinds are tried before all ports are, for TCP from port 80.
    fn wishes(ranges: Ranges, keep_class: bool) -> usize {
        let set = set_of(ranges);
        let mut policy = crate::check::tests::policy();
        policy.profile.preserve_port_class = keep_class;
        Kinds::of(&policy.profile, TCP, &set, 80).wishes().len()
    }

    /// Where all ports are of one class there is nothing to prefer, and nothing to look for twice.
    #[test]
    fn the_class_is_a_wish_only_where_there_are_two() {
        let cases: [(Ranges, usize); 4] = [
            (&[(1, 65_535)], 1),
            (&[(1023, 1024)], 1),
            (&[(1024, 65_535)], 0),
            (&[(1, 1023)], 0),
        ];
        for (ranges, count) in cases {
            assert_eq!(wishes(ranges, true), count, "{ranges:?}");
            assert_eq!(wishes(ranges, false), 0);
        }
    }

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In an empty pool, between long runs of used ports, beside gaps, in groups that are partly
    /// the pool's, with a handful left of all: chi-square below its 99.9th percentile.
    #[test]
    fn every_free_port_is_as_likely_as_the_others() {
        let even = Kind::ALL.with_parity(0);
        let cases: [(Ranges, Ranges, Kind); 7] = [
            (&[(1024, 1223)], &[], Kind::ALL),
            (&[(1024, 1099), (61_000, 61_123)], &[], Kind::ALL),
            (
                &[(1024, 65_535)],
                &[(1500, 2500), (4000, 64_000)],
                Kind::ALL,
            ),
            (&[(1000, 9999)], &[(1005, 1500), (1503, 9900)], Kind::ALL),
            (
                &[(1024, 29_999), (61_000, 65_535)],
                &[(1100, 29_900), (61_010, 65_500)],
                Kind::ALL,
            ),
            (
                &[(1, 65_535)],
                &[(30, 900), (3000, 9000)],
                Kind::of_class(5),
            ),
            (&[(1, 65_535)], &[(4, 65_000)], even),
        ];
        for (pool, used, kind) in cases {
            let (set, used) = (set_of(pool), set_of(used));
            let all = 0..=u16::MAX;
            let free = all.filter(|&p| set.contains(p) && kind.contains(p) && !used.contains(p));
            let cells = free.count();
            with_used(&used, |ports| {
                let mut counts = vec![0_u32; 65_536];
                let (draws, mut state) = (cells as u32 * 20, 7);
                for _ in 0..draws {
                    let seed = random(&mut state);
                    let port = ports.choose_free(0, TCP, (&set, kind), seed, Some).unwrap();
                    counts[usize::from(port)] += 1;
                    assert!(set.contains(port) && kind.contains(port) && !used.contains(port));
                }
                let expected = f64::from(draws) / cells as f64;
                let off = |&count: &u32| (f64::from(count) - expected).powi(2) / expected;
                // Ports that were never drawn count, those that cannot be drawn do not.
                let drawn = counts.iter().filter(|&&count| count > 0);
                let missing = (cells - drawn.clone().count()) as f64 * expected;
                let found: f64 = drawn.map(off).sum::<f64>() + missing;
                let degrees = cells as f64 - 1.0;
                let spread = 2.0 / (9.0 * degrees);
                let most = degrees * (1.0 - spread + 3.09 * spread.sqrt()).powi(3);
                assert!(found < most, "{pool:?} {kind:?}: {found:.0} of {most:.0}");
            });
        }
    }

    /// A worker that loses every draw still gets the one port that nobody else takes.
    #[test]
    fn every_free_port_is_offered_before_giving_up() {
        let set = set_of(&[(2000, 2999)]);
        with_used(&PortSet::empty(), |ports| {
            for seed in 0..50 {
                let only = |port| (port == 2345).then_some(port);
                let found = ports.choose_free(0, TCP, (&set, Kind::ALL), seed << 56, only);
                assert_eq!(found, Some(2345));
            }
        });
    }
}
