//! Datagrams that hold no copy, and which of them is forgotten when there are too many.
//!
//! They are counted by group: where the datagram comes from (a hash of its source address), from
//! which realm, and whether its packets are refused. The oldest one of the largest group goes. So who
//! floods pushes out its own: a sender with few datagrams under way keeps them whatever the others
//! do, a flood from one realm does not reach the other's, and one that is refused, however many
//! sources it invents, reaches nothing that passes (RFC 4787 REQ-14 a).

use conntrack::Realm;

use super::arena::NONE;
use super::list::{Linked, List};

/// Hash values of source addresses.
const SOURCES: usize = 128;
/// From inside, from outside, refused.
const CLASSES: usize = 3;

/// A group of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group(u16);

impl Group {
    /// The group of datagrams from a source with this hash; `realm`: none if they are refused.
    pub(super) fn new(source: u64, realm: Option<Realm>) -> Group {
        let class = match realm {
            Some(Realm::Internal) => 0,
            Some(Realm::External) => 1,
            None => 2,
        };
        Group((class * SOURCES + source as usize % SOURCES) as u16)
    }
}

/// The idle entries, by age and by group.
#[derive(Debug)]
pub(super) struct Idle {
    all: List<0>,
    groups: Box<[List<1>]>,
    /// How many are in each group.
    counts: Box<[u32]>,
}

impl Idle {
    pub(super) fn new() -> Idle {
        Idle {
            all: List::EMPTY,
            groups: vec![List::EMPTY; CLASSES * SOURCES].into(),
            counts: vec![0; CLASSES * SOURCES].into(),
        }
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.groups) + size_of_val(&*self.counts)
    }

    /// The oldest entry, or [`NONE`].
    pub(super) fn first(&self) -> u32 {
        self.all.first()
    }

    pub(super) fn push(&mut self, entries: &mut [impl Linked<2>], index: u32, group: Group) {
        let group = usize::from(group.0);
        self.all.push(entries, index);
        self.groups[group].push(entries, index);
        self.counts[group] += 1;
    }

    pub(super) fn remove(&mut self, entries: &mut [impl Linked<2>], index: u32, group: Group) {
        let group = usize::from(group.0);
        self.all.remove(entries, index);
        self.groups[group].remove(entries, index);
        self.counts[group] -= 1;
    }

    /// The oldest entry of the largest group, or [`NONE`].
    pub(super) fn most_expendable(&self) -> u32 {
        let largest = self.counts.iter().copied().max().unwrap_or(0);
        let group = self.counts.iter().position(|&count| count == largest);
        group.map_or(NONE, |group| self.groups[group].first())
    }
}
