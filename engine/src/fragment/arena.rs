//! Copies of frames in a fixed number of fixed-size blocks.

use conntrack::Realm;

use super::{FragmentLimits, Held};

/// Bytes of a block.
const BLOCK: usize = 1024;
/// Hash values of source addresses.
const SOURCES: usize = 1024;
/// No copy, no block.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Copy {
    /// First block.
    block: u32,
    len: u32,
    /// Next copy of the same datagram, or next free copy.
    next: u32,
    source: u16,
    interface: u8,
    realm: Realm,
}

/// What the copies from one realm take.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    copies: usize,
    blocks: usize,
}

/// Three quarters, so that a flood from one realm leaves room for the other's.
fn share(all: usize) -> usize {
    all - all / 4
}

/// Copies, named by number.
#[derive(Debug)]
pub(super) struct Arena {
    bytes: Box<[u8]>,
    /// Next block of the same copy, or next free block.
    next_block: Box<[u32]>,
    free_block: u32,
    blocks_free: usize,
    copies: Box<[Copy]>,
    free_copy: u32,
    len: usize,
    per_source: Box<[u16]>,
    per_source_max: u16,
    /// From inside, from outside.
    shares: [Share; 2],
}

/// Links that make one list of all `n`.
fn chain(n: usize) -> impl Iterator<Item = u32> {
    (1..=n).map(move |next| if next == n { NONE } else { next as u32 })
}

impl Arena {
    pub(super) fn new(limits: &FragmentLimits) -> Arena {
        let blocks = limits.copy_bytes_max as usize / BLOCK;
        let copies = limits.copies_max as usize;
        let copy = |next| Copy {
            block: NONE,
            len: 0,
            next,
            source: 0,
            interface: 0,
            realm: Realm::Internal,
        };
        Arena {
            bytes: vec![0; blocks * BLOCK].into(),
            next_block: chain(blocks).collect(),
            free_block: if blocks > 0 { 0 } else { NONE },
            blocks_free: blocks,
            copies: chain(copies).map(copy).collect(),
            free_copy: if copies > 0 { 0 } else { NONE },
            len: 0,
            per_source: vec![0; SOURCES].into(),
            per_source_max: limits.copies_per_source_max,
            shares: [Share::default(); 2],
        }
    }

    /// Copies held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
            + size_of_val(&*self.next_block)
            + size_of_val(&*self.copies)
            + size_of_val(&*self.per_source)
    }

    /// Copies a frame from the source with this hash; none if a limit is reached.
    pub(super) fn store(
        &mut self,
        frame: &[u8],
        interface: u8,
        source: u64,
        realm: Realm,
    ) -> Option<u32> {
        let source = (source % SOURCES as u64) as u16;
        let copy = self.free_copy;
        let blocks = frame.len().div_ceil(BLOCK);
        let per_source = self.per_source[usize::from(source)];
        if copy == NONE || blocks > self.blocks_free || per_source >= self.per_source_max {
            return None;
        }
        let (copies_max, blocks_max) = (share(self.copies.len()), share(self.next_block.len()));
        let taken = &mut self.shares[realm as usize];
        if taken.copies >= copies_max || taken.blocks + blocks > blocks_max {
            return None;
        }
        taken.copies += 1;
        taken.blocks += blocks;
        self.per_source[usize::from(source)] += 1;
        self.free_copy = self.copies[copy as usize].next;
        self.len += 1;
        self.copies[copy as usize] = Copy {
            block: if blocks > 0 { self.free_block } else { NONE },
            len: frame.len() as u32,
            next: NONE,
            source,
            interface,
            realm,
        };
        let mut last = NONE;
        for part in frame.chunks(BLOCK) {
            last = self.free_block;
            self.free_block = self.next_block[last as usize];
            self.bytes[last as usize * BLOCK..][..part.len()].copy_from_slice(part);
        }
        if last != NONE {
            self.next_block[last as usize] = NONE;
        }
        self.blocks_free -= blocks;
        Some(copy)
    }

    /// Writes a copy to `frame`, as much as fits, and frees it.
    pub(super) fn read(&mut self, copy: u32, frame: &mut [u8]) -> Held {
        let Copy {
            mut block,
            len,
            interface,
            ..
        } = self.copies[copy as usize];
        let len = frame.len().min(len as usize);
        for part in frame[..len].chunks_mut(BLOCK) {
            part.copy_from_slice(&self.bytes[block as usize * BLOCK..][..part.len()]);
            block = self.next_block[block as usize];
        }
        self.release(copy);
        Held { len, interface }
    }

    /// Frees a copy.
    pub(super) fn release(&mut self, copy: u32) {
        let Copy {
            mut block,
            source,
            realm,
            ..
        } = self.copies[copy as usize];
        self.shares[realm as usize].copies -= 1;
        while block != NONE {
            self.shares[realm as usize].blocks -= 1;
            let next = self.next_block[block as usize];
            self.next_block[block as usize] = self.free_block;
            self.free_block = block;
            self.blocks_free += 1;
            block = next;
        }
        self.per_source[usize::from(source)] -= 1;
        self.copies[copy as usize].next = self.free_copy;
        self.free_copy = copy;
        self.len -= 1;
    }

    /// Makes `next` the copy after `copy` in its datagram.
    pub(super) fn link(&mut self, copy: u32, next: u32) {
        self.copies[copy as usize].next = next;
    }

    /// The copy after this one in its datagram.
    pub(super) fn next(&self, copy: u32) -> u32 {
        self.copies[copy as usize].next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: Realm = Realm::Internal;

    fn arena(copies_max: u32, copy_bytes_max: u32, copies_per_source_max: u16) -> Arena {
        let limits = FragmentLimits::default();
        Arena::new(&FragmentLimits {
            copies_max,
            copy_bytes_max,
            copies_per_source_max,
            ..limits
        })
    }

    #[test]
    fn what_was_stored_comes_back() {
        let mut arena = arena(8, 12_288, 8);
        let frames: Vec<Vec<u8>> = [0, 1, 1023, 1024, 1025, 3000]
            .iter()
            .map(|&n| vec![n as u8; n])
            .collect();
        for _ in 0..3 {
            let copies: Vec<u32> = frames
                .iter()
                .map(|frame| arena.store(frame, 3, 9, INSIDE).unwrap())
                .collect();
            // The order of freeing mixes the blocks.
            for (copy, frame) in copies.into_iter().zip(&frames).rev() {
                let mut bytes = [0; 4096];
                let held = arena.read(copy, &mut bytes);
                assert_eq!(
                    held,
                    Held {
                        len: frame.len(),
                        interface: 3
                    }
                );
                assert_eq!(&bytes[..held.len], &frame[..]);
            }
            assert_eq!((arena.len(), arena.blocks_free), (0, 12));
        }
    }

    #[test]
    fn each_limit_holds_and_is_given_back() {
        for (mut arena, fits, len) in [
            (arena(8, 12_288, 9), 6, 10),
            (arena(9, 8192, 9), 3, 1025),
            (arena(9, 12_288, 3), 3, 10),
        ] {
            for _ in 0..2 {
                let copies: Vec<u32> = (0..9)
                    .map_while(|_| arena.store(&vec![1; len], 0, 7, INSIDE))
                    .collect();
                assert_eq!(copies.len(), fits);
                copies.into_iter().for_each(|copy| arena.release(copy));
            }
        }
        let mut arena = arena(9, 12_288, 1);
        let mut store = |source| arena.store(b"a", 0, source, INSIDE).is_some();
        assert!(store(1) && !store(1) && store(2));
    }

    #[test]
    fn one_realm_leaves_room_for_the_other() {
        let mut arena = arena(16, 32_768, 64);
        let fill = |arena: &mut Arena, realm| {
            (0..99)
                .map_while(|source| arena.store(&[1; 1500], 0, source, realm))
                .count()
        };
        assert_eq!(fill(&mut arena, Realm::External), 12);
        assert_eq!(fill(&mut arena, INSIDE), 4);
    }

    #[test]
    fn a_buffer_that_is_too_short_gets_the_beginning() {
        let mut arena = arena(1, 4096, 1);
        let copy = arena.store(&[5; 2000], 0, 0, INSIDE).unwrap();
        let mut bytes = [0; 1500];
        assert_eq!(arena.read(copy, &mut bytes).len, 1500);
        assert_eq!((bytes, arena.blocks_free), ([5; 1500], 4));
    }
}
