//! Which parts of a datagram have passed.

use super::Part;

/// Gaps that a datagram may have at a time, plus one: enough for the largest datagram at an MTU of
/// 1500 (45 fragments) when every other one comes late.
const RANGES: usize = 24;

/// What adding a part did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It is new.
    New,
    /// All of it had passed before: a duplicate.
    Duplicate,
    /// Some of it had passed before, or it contradicts where the datagram ends.
    Overlap,
    /// Too many gaps.
    Full,
}

/// Sorted ranges with gaps between them, in units of 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    list: [(u16, u16); RANGES],
    len: u8,
    /// Where the datagram ends; 0: not known.
    end: u16,
}

impl Ranges {
    pub(super) const EMPTY: Ranges = Ranges {
        list: [(0, 0); RANGES],
        len: 0,
        end: 0,
    };

    fn ranges(&self) -> &[(u16, u16)] {
        &self.list[..usize::from(self.len)]
    }

    /// Has the whole datagram passed?
    pub(super) fn is_complete(&self) -> bool {
        self.end > 0 && self.ranges() == [(0, self.end)]
    }

    /// Adds a part; nothing changes unless it is [`Added::New`].
    pub(super) fn add(&mut self, part: Part) -> Added {
        let Part { start, end, last } = part;
        let highest = self.ranges().last().map_or(0, |range| range.1);
        let other_end = self.end > 0
            && if last {
                end != self.end
            } else {
                end > self.end
            };
        if other_end || last && highest > end {
            return Added::Overlap;
        }
        let at = self
            .ranges()
            .iter()
            .take_while(|range| range.1 < start)
            .count();
        let joins_before = self.ranges().get(at).is_some_and(|range| range.1 == start);
        let next = at + usize::from(joins_before);
        let after = self.ranges().get(next).copied();
        match after {
            Some((low, high)) if low <= start && end <= high => return Added::Duplicate,
            Some((low, _)) if low < end => return Added::Overlap,
            _ => {}
        }
        let joins_after = after.is_some_and(|range| range.0 == end);
        let len = usize::from(self.len);
        match (joins_before, joins_after) {
            (true, true) => {
                self.list[at].1 = self.list[next].1;
                self.list.copy_within(next + 1..len, next);
                self.len -= 1;
            }
            (true, false) => self.list[at].1 = end,
            (false, true) => self.list[next].0 = start,
            (false, false) if len == RANGES => return Added::Full,
            (false, false) => {
                self.list.copy_within(next..len, next + 1);
                self.list[next] = (start, end);
                self.len += 1;
            }
        }
        if last {
            self.end = end;
        }
        Added::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(start: u16, end: u16, last: bool) -> Part {
        Part { start, end, last }
    }

    #[test]
    fn parts_in_any_order_become_complete() {
        let parts = [part(0, 3, false), part(3, 6, false), part(6, 7, true)];
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut ranges = Ranges::EMPTY;
            for index in order {
                assert!(!ranges.is_complete());
                assert_eq!(ranges.add(parts[index]), Added::New);
            }
            assert!(ranges.is_complete());
        }
    }

    #[test]
    fn a_datagram_ends_once() {
        let mut ranges = Ranges::EMPTY;
        assert_eq!(ranges.add(part(4, 8, true)), Added::New);
        assert_eq!(ranges.add(part(8, 9, false)), Added::Overlap);
        assert_eq!(ranges.add(part(8, 9, true)), Added::Overlap);
        assert_eq!(ranges.add(part(0, 2, true)), Added::Overlap);
        assert_eq!(ranges.add(part(4, 8, true)), Added::Duplicate);
    }

    #[test]
    fn too_many_gaps_are_refused_and_can_still_be_closed() {
        let mut ranges = Ranges::EMPTY;
        for index in 0..RANGES as u16 {
            assert_eq!(
                ranges.add(part(index * 2, index * 2 + 1, false)),
                Added::New
            );
        }
        assert_eq!(ranges.add(part(100, 101, false)), Added::Full);
        assert_eq!(ranges.add(part(1, 2, false)), Added::New);
        assert_eq!(ranges.add(part(100, 101, false)), Added::New);
    }

    proptest! {
        /// Against a map of every unit.
        #[test]
        fn agrees_with_a_map(parts in proptest::collection::vec((0u16..40, 1u16..6), 1..40)) {
            let mut ranges = Ranges::EMPTY;
            let mut map = [false; 50];
            for (start, len) in parts {
                let units = &mut map[usize::from(start)..usize::from(start + len)];
                let seen = units.iter().filter(|&&seen| seen).count();
                let expected = match seen {
                    0 => Added::New,
                    n if n == units.len() => Added::Duplicate,
                    _ => Added::Overlap,
                };
                prop_assert_eq!(ranges.add(part(start, start + len, false)), expected);
                if expected == Added::New {
                    units.fill(true);
                }
            }
        }
    }
}
