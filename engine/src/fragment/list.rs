//! Lists over entries in fixed memory, linked by number.

use super::arena::NONE;

/// An entry's neighbours in one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    previous: u32,
    next: u32,
}

impl Link {
    pub(super) const NOWHERE: Link = Link {
        previous: NONE,
        next: NONE,
    };
}

/// What can be in `N` lists at a time.
pub(super) trait Linked<const N: usize> {
    fn links(&mut self) -> &mut [Link; N];
}

/// The ends of a list, oldest first. It uses the entries' links number `WHICH`.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<const WHICH: usize> {
    first: u32,
    last: u32,
}

impl<const WHICH: usize> List<WHICH> {
    pub(super) const EMPTY: List<WHICH> = List {
        first: NONE,
        last: NONE,
    };

    /// The oldest entry, or [`NONE`].
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    pub(super) fn push<const N: usize>(&mut self, entries: &mut [impl Linked<N>], index: u32) {
        entries[index as usize].links()[WHICH] = Link {
            previous: self.last,
            next: NONE,
        };
        match self.last {
            NONE => self.first = index,
            last => entries[last as usize].links()[WHICH].next = index,
        }
        self.last = index;
    }

    pub(super) fn remove<const N: usize>(&mut self, entries: &mut [impl Linked<N>], index: u32) {
        let Link { previous, next } = entries[index as usize].links()[WHICH];
        match previous {
            NONE => self.first = next,
            previous => entries[previous as usize].links()[WHICH].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => entries[next as usize].links()[WHICH].previous = previous,
        }
    }
}
