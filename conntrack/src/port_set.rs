//! Sets of ports.

/// Ports that a search counts together: 0-1023, 1024-2047, and so on. The first group is the low
/// port class of RFC 4787 REQ-3a, the others are the high one.
pub(crate) const GROUPS: usize = 64;

/// A set of ports: 65,536 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; 1024]>,
    /// How many of each group.
    groups: [u16; GROUPS],
}

impl std::fmt::Debug for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortSet({} ports)", self.len())
    }
}

impl PortSet {
    /// No port.
    pub fn empty() -> PortSet {
        PortSet {
            words: Box::new([0; 1024]),
            groups: [0; GROUPS],
        }
    }

    /// Adds `first..=last`.
    pub fn insert_range(&mut self, first: u16, last: u16) {
        self.words_of(first, last, |word, bits| *word |= bits);
    }

    /// Takes out `first..=last`.
    pub fn remove_range(&mut self, first: u16, last: u16) {
        self.words_of(first, last, |word, bits| *word &= !bits);
    }

    /// Offers each word that has ports of `first..=last`, with their bits.
    fn words_of(&mut self, first: u16, last: u16, mut change: impl FnMut(&mut u64, u64)) {
        let (low, high) = (usize::from(first) / 64, usize::from(last) / 64);
        let words = self.words.iter_mut().enumerate();
        for (index, word) in words.skip(low).take((high + 1).saturating_sub(low)) {
            let from = if index == low { first % 64 } else { 0 };
            let to = if index == high { last % 64 } else { 63 };
            if from > to {
                continue;
            }
            let before = word.count_ones() as u16;
            change(word, u64::MAX >> (63 - to + from) << from);
            let count = &mut self.groups[index * GROUPS / 1024];
            *count = *count + word.count_ones() as u16 - before;
        }
    }

    /// Is the port in the set?
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port) / 64] >> (port % 64) & 1 == 1
    }

    /// How many ports, 0 to 65,536.
    pub fn len(&self) -> u32 {
        self.groups.iter().map(|&count| u32::from(count)).sum()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|&count| count == 0)
    }

    /// How many of `1024 * group ..`, `group` below 64.
    pub(crate) fn in_group(&self, group: usize) -> u32 {
        u32::from(self.groups[group])
    }

    /// The lowest and the highest port, if there is any.
    pub fn bounds(&self) -> Option<(u16, u16)> {
        let low = self.words.iter().position(|&word| word != 0)?;
        let high = self.words.iter().rposition(|&word| word != 0)?;
        let first = low * 64 + self.words[low].trailing_zeros() as usize;
        let last = high * 64 + 63 - self.words[high].leading_zeros() as usize;
        Some((first as u16, last as u16))
    }

    /// The 64 bits of ports `64 * index ..`, `index` below 1024.
    pub fn word(&self, index: usize) -> u64 {
        self.words[index]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_go_in_and_out() {
        let edges = [
            0, 1, 62, 63, 64, 65, 127, 128, 1023, 65471, 65472, 65534, 65535,
        ];
        for first in edges {
            for last in edges {
                let inside = |port: &u16| (first..=last).contains(port);
                let mut set = PortSet::empty();
                set.insert_range(first, last);
                assert!((0..=u16::MAX).all(|port| set.contains(port) == inside(&port)));
                let mut rest = PortSet::empty();
                rest.insert_range(0, u16::MAX);
                rest.remove_range(first, last);
                assert!((0..=u16::MAX).all(|port| rest.contains(port) != inside(&port)));
                assert_eq!(set.len() + rest.len(), 65_536, "{first}-{last}");
            }
        }
    }
}
