//! One half of a session: a direction's record in one cache line, read under a sequence lock.
//!
//! | word | upper 32 bits | lower 32 bits |
//! | --- | --- | --- |
//! | 0 | sequence, odd while the half is written | [`Meta`] |
//! | 1 | source address of the tuple | destination address |
//! | 2 | source, destination port of the tuple | source, destination port to write |
//! | 3 | source address to write | destination address to write |
//! | 4 | IPv4 delta, transport delta (16 bits each) | next hop |
//! | 5 | mapping, 0 none | link to another session (free list, filter list) |
//! | 6 | last seen, ms | packets |
//! | 7 | upper 16 bits: TCP sequence number's; bytes (48 bits) | |
//!
//! Words 1 to 5 change only while the sequence is odd, except the link, which belongs to the
//! filter list's lock (and to the free list while the session is not valid). Words 6 and 7 are
//! stamped by the direction's packets at any time and mean nothing to the structure.
//!
//! Word 7 has the upper 16 bits of the last sequence number of the direction's segments. A segment
//! is *near* if its number is within [`NEAR`] x 65,536 = 16 MiB of it, either way: more than the
//! windows that hosts use (Linux: 6 MiB to receive, 4 MiB to send unless tuned), so that a RST in
//! use is near, while a forged one that guesses its number is near with a probability of 513 in
//! 65,536. A window may be as large as 1 GiB (RFC 7323); a RST from beyond 16 MiB leaves its session
//! to `tcp-idle`, which costs memory and nothing else. Numbers that are not near are not noted, so
//! that a forger cannot move the mark first.
//!
//! Orderings. A reader loads word 0 (acquire), the words (relaxed), fences (acquire) and loads
//! word 0 again. A writer makes word 0 odd, fences (release), stores the words (relaxed) and stores
//! word 0 even (release). A reader that saw any word of a writer therefore sees the odd word 0, or
//! a later one, in its second load; the release store makes the words of a finished write visible
//! to a first load that saw it.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::hash::{Key, pack_addresses, pack_ports, unpack};
use crate::meta::Meta;
use crate::verdict::{Direction, NextHop, Rewrite, SessionRef};
use crate::word::{ROUNDS_MAX, Word};

/// Words in a half: 64 bytes.
pub(crate) const HALF_WORDS: usize = 8;

/// How many 65,536 sequence numbers on either side of the last one are near.
const NEAR: u16 = 256;
/// Word 7's share of the sequence number.
const SEQUENCE_SHIFT: u32 = 48;
const BYTES_MASK: u64 = (1 << SEQUENCE_SHIFT) - 1;

/// Is a sequence number near another one? Upper 16 bits of both.
#[inline(always)]
pub(crate) fn is_near(seen: u16, sequence: u16) -> bool {
    sequence.wrapping_sub(seen).wrapping_add(NEAR) <= 2 * NEAR
}

/// A consistent copy of a half's structural words.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    pub control: u64,
    pub addresses: u64,
    pub ports: u64,
    pub new_addresses: u64,
    pub deltas: u64,
    pub links: u64,
}

impl Snapshot {
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        Meta(self.control as u32)
    }

    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        (self.control >> 32) as u32
    }

    #[inline(always)]
    pub fn mapping(&self) -> u32 {
        (self.links >> 32) as u32
    }

    #[inline(always)]
    pub fn carries(&self, key: &Key) -> bool {
        self.addresses == key.addresses
            && (self.ports >> 32) as u32 == key.ports
            && self.meta().valid()
            && self.meta().protocol() == key.protocol
    }

    pub fn key(&self) -> Key {
        Key {
            addresses: self.addresses,
            ports: (self.ports >> 32) as u32,
            protocol: self.meta().protocol(),
        }
    }

    pub fn tuple(&self) -> Tuple {
        let (source, destination) = unpack(self.addresses, (self.ports >> 32) as u32);
        Tuple {
            protocol: self.meta().protocol(),
            source,
            destination,
        }
    }

    /// The endpoints to write.
    #[inline(always)]
    pub fn written(&self) -> (Endpoint, Endpoint) {
        unpack(self.new_addresses, self.ports as u32)
    }

    /// What the half was made of.
    pub fn side(&self) -> Side {
        let (source, destination) = self.written();
        Side {
            tuple: self.tuple(),
            source,
            destination,
            direction: self.meta().direction(),
            mapping: self.mapping(),
            shared: self.meta().shared(),
        }
    }

    #[inline(always)]
    pub fn rewrite(&self, half: u32) -> Rewrite {
        let (source, destination) = self.written();
        Rewrite {
            source,
            destination,
            ip_delta: (self.deltas >> 48) as u16,
            l4_delta: (self.deltas >> 32) as u16,
            direction: self.meta().direction(),
            next_hop: NextHop(self.deltas as u32),
            session: SessionRef {
                half,
                sequence: self.sequence(),
            },
        }
    }
}

/// What a new half is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub tuple: Tuple,
    pub source: Endpoint,
    pub destination: Endpoint,
    pub direction: Direction,
    /// Mapping number, 0 for none (a forward's end).
    pub mapping: u32,
    /// The mapping is `eim`.
    pub shared: bool,
}

impl Side {
    /// The deltas word without a next hop.
    pub fn deltas(&self) -> u64 {
        let tuple = &self.tuple;
        let addresses = [
            (tuple.source.addr, self.source.addr),
            (tuple.destination.addr, self.destination.addr),
        ];
        let ports = [
            (tuple.source.port, self.source.port),
            (tuple.destination.port, self.destination.port),
        ];
        let mut sum = 0;
        for (old, new) in addresses {
            let (old, new) = (old.to_bits(), new.to_bits());
            sum += difference((old >> 16) as u16, (new >> 16) as u16);
            sum += difference(old as u16, new as u16);
        }
        let ip_delta = fold(sum);
        let mut l4_sum = if tuple.protocol == Protocol::Icmp {
            0
        } else {
            u32::from(ip_delta)
        };
        for (old, new) in ports {
            l4_sum += difference(old, new);
        }
        u64::from(ip_delta) << 48 | u64::from(fold(l4_sum)) << 32
    }
}

/// `~old + new` of a changed 16-bit word (RFC 1624 equation 3); nothing for an unchanged one.
fn difference(old: u16, new: u16) -> u32 {
    if old == new {
        0
    } else {
        u32::from(!old) + u32::from(new)
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Are these the two halves of one session: does each undo what the other does?
pub(crate) fn agree(even: &Snapshot, odd: &Snapshot) -> bool {
    let (there, back) = (even.tuple(), odd.tuple());
    let (meta, other) = (even.meta(), odd.meta());
    let directions = match meta.direction() {
        Direction::Outbound => other.direction() == Direction::Inbound,
        Direction::Inbound => false,
        Direction::Hairpin => other.direction() == Direction::Hairpin,
    };
    directions
        && meta.valid()
        && other.valid()
        && there.protocol == back.protocol
        && meta.initiator() != other.initiator()
        && meta.opened_outside() == other.opened_outside()
        && even.written() == (back.destination, back.source)
        && odd.written() == (there.destination, there.source)
}

/// Word 0 with the next sequence number: odd from even, even from odd.
#[inline]
pub(crate) fn advanced(control: u64, meta: Meta) -> u64 {
    let sequence = ((control >> 32) as u32).wrapping_add(1);
    u64::from(sequence) << 32 | u64::from(meta.0)
}

#[inline(always)]
pub(crate) fn being_written(control: u64) -> bool {
    control >> 32 & 1 == 1
}

/// One half in the tables.
pub(crate) struct Half<'m, W> {
    pub words: &'m [W; HALF_WORDS],
}

impl<'m, W> Clone for Half<'m, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<'m, W> Copy for Half<'m, W> {}

impl<'m, W: Word> Half<'m, W> {
    /// A consistent copy; `None` if a writer held the half longer than the bounded wait.
    #[inline]
    pub fn read(self) -> Option<Snapshot> {
        let mut round = 0;
        loop {
            let control = self.words[0].load(Acquire);
            if !being_written(control) {
                let snapshot = Snapshot {
                    control,
                    addresses: self.words[1].load(Relaxed),
                    ports: self.words[2].load(Relaxed),
                    new_addresses: self.words[3].load(Relaxed),
                    deltas: self.words[4].load(Relaxed),
                    links: self.words[5].load(Relaxed),
                };
                W::fence(Acquire);
                if self.words[0].load(Relaxed) == control {
                    return Some(snapshot);
                }
            }
            W::pause(round);
            round += 1;
            if round == ROUNDS_MAX {
                return None;
            }
        }
    }

    /// The words as they are, for whoever holds the write bit or the tables alone.
    pub fn read_held(self) -> Snapshot {
        Snapshot {
            control: self.words[0].load(Relaxed),
            addresses: self.words[1].load(Relaxed),
            ports: self.words[2].load(Relaxed),
            new_addresses: self.words[3].load(Relaxed),
            deltas: self.words[4].load(Relaxed),
            links: self.words[5].load(Relaxed),
        }
    }

    /// Takes the write bit if word 0 still is `control` (even). The whole word is compared, so a
    /// stale view of the session can never write.
    pub fn lock(self, control: u64) -> bool {
        debug_assert!(!being_written(control));
        let locked = advanced(control, Meta(control as u32));
        let taken = self.words[0]
            .compare_exchange(control, locked, AcqRel, Relaxed)
            .is_ok();
        if taken {
            W::fence(Release);
        }
        taken
    }

    /// Ends what [`Half::lock`] began, with a new meaning; returns the new word 0.
    pub fn unlock(self, meta: Meta) -> u64 {
        let locked = self.words[0].load(Relaxed);
        debug_assert!(being_written(locked));
        let control = advanced(locked, meta);
        self.words[0].store(control, Release);
        control
    }

    /// Ends what [`Half::lock`] began when nothing in this half was changed: the old word 0.
    pub fn unlock_unchanged(self, control: u64) {
        self.words[0].store(control, Release);
    }

    /// Makes the sequence odd without a contest: only for the odd half under the even one's bit, and
    /// for a session that is not valid.
    pub fn begin(self) {
        let control = self.words[0].load(Relaxed);
        self.words[0].store(advanced(control, Meta(control as u32)), Relaxed);
        W::fence(Release);
    }

    /// Ends a write that its writer did not: the sequence even, the meaning as given. Only whoever
    /// holds the tables alone.
    pub fn mend(self, meta: Meta) {
        let control = self.words[0].load(Relaxed);
        let odd = control | 1 << 32;
        self.words[0].store(advanced(odd, meta), Relaxed);
    }

    /// Replaces meta alone, under the even half's write bit: one store needs no odd phase. Returns
    /// the new word 0.
    pub fn replace_meta(self, meta: Meta) -> u64 {
        let old = self.words[0].load(Relaxed);
        let control = old.wrapping_add(2 << 32) >> 32 << 32 | u64::from(meta.0);
        self.words[0].store(control, Release);
        control
    }

    /// Writes the words of a half that is being written. The link is set to 0.
    pub fn fill(self, side: &Side) {
        let ports = u64::from(pack_ports(side.tuple.source, side.tuple.destination)) << 32
            | u64::from(pack_ports(side.source, side.destination));
        self.words[1].store(
            pack_addresses(side.tuple.source, side.tuple.destination),
            Relaxed,
        );
        self.words[2].store(ports, Relaxed);
        self.words[3].store(pack_addresses(side.source, side.destination), Relaxed);
        self.words[4].store(side.deltas(), Relaxed);
        self.words[5].store(u64::from(side.mapping) << 32, Relaxed);
    }

    /// Sets the next hop of a half that is being written.
    pub fn fill_next_hop(self, hop: NextHop) {
        let deltas = self.words[4].load(Relaxed);
        self.words[4].store(deltas >> 32 << 32 | u64::from(hop.0), Relaxed);
    }

    pub fn link(self) -> u32 {
        self.words[5].load(Relaxed) as u32
    }

    /// Only the holder of the link (filter list's lock, free list) calls this.
    pub fn set_link(self, link: u32) {
        let links = self.words[5].load(Relaxed);
        self.words[5].store(links >> 32 << 32 | u64::from(link), Relaxed);
    }

    #[inline(always)]
    pub fn last_seen(self) -> u32 {
        (self.words[6].load(Relaxed) >> 32) as u32
    }

    pub fn packets(self) -> u32 {
        self.words[6].load(Relaxed) as u32
    }

    pub fn bytes(self) -> u64 {
        self.words[7].load(Relaxed) & BYTES_MASK
    }

    /// Upper 16 bits of the last sequence number that was near the one before.
    pub fn sequence(self) -> u16 {
        (self.words[7].load(Relaxed) >> SEQUENCE_SHIFT) as u16
    }

    /// Notes a sequence number however far it is: a SYN's.
    pub fn set_sequence(self, sequence: u16) {
        let counted = self.words[7].load(Relaxed) & BYTES_MASK;
        self.words[7].store(u64::from(sequence) << SEQUENCE_SHIFT | counted, Relaxed);
    }

    /// Starts the stamps anew.
    pub fn reset_stamp(self, now: u32, packets: u32, bytes: u64, sequence: u16) {
        self.words[6].store(u64::from(now) << 32 | u64::from(packets), Relaxed);
        let counted = bytes & BYTES_MASK;
        self.words[7].store(u64::from(sequence) << SEQUENCE_SHIFT | counted, Relaxed);
    }

    /// Counts a packet; returns when the one before was seen, and how many there were. Plain loads
    /// and stores: two workers stamping one half in the same instant may lose a count, never the
    /// time. `sequence` is 0 for what is not TCP, which leaves the number at 0 without a branch.
    #[inline(always)]
    pub fn stamp(self, now: u32, length: u32, sequence: u16) -> (u32, u32) {
        let old = self.words[6].load(Relaxed);
        let last = (old >> 32) as u32;
        // A worker whose clock is a batch behind must not turn the stamp back.
        let newest = if now.wrapping_sub(last) < 1 << 31 {
            now
        } else {
            last
        };
        let before = old as u32;
        let packets = before.wrapping_add(1);
        self.words[6].store(u64::from(newest) << 32 | u64::from(packets), Relaxed);
        let counted = self.words[7].load(Relaxed);
        let seen = (counted >> SEQUENCE_SHIFT) as u16;
        let sequence = if is_near(seen, sequence) {
            sequence
        } else {
            seen
        };
        let bytes = counted.wrapping_add(u64::from(length)) & BYTES_MASK;
        self.words[7].store(u64::from(sequence) << SEQUENCE_SHIFT | bytes, Relaxed);
        (last, before)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::meta::TimeoutClass;
    use crate::tcp::State;
    use std::sync::atomic::AtomicU64;

    fn words() -> [AtomicU64; HALF_WORDS] {
        [const { AtomicU64::new(0) }; HALF_WORDS]
    }

    fn side() -> Side {
        Side {
            tuple: Tuple {
                protocol: Protocol::Tcp,
                source: Endpoint::new([10, 0, 0, 5].into(), 40000),
                destination: Endpoint::new([203, 0, 113, 7].into(), 443),
            },
            source: Endpoint::new([198, 51, 100, 1].into(), 61000),
            destination: Endpoint::new([203, 0, 113, 7].into(), 443),
            direction: Direction::Outbound,
            mapping: 77,
            shared: true,
        }
    }

    #[test]
    fn the_sequence_number_follows_what_is_near() {
        let words = words();
        let half = Half { words: &words };
        half.reset_stamp(5, 1, BYTES_MASK, 0xfff0);
        // Across the wrap, up to 16 MiB ahead and behind, and no further.
        for (sequence, noted) in [
            (0x0010, 0x0010),
            (0x0110, 0x0110),
            (0x0211, 0x0110),
            (0x000f, 0x0110),
            (0x0010, 0x0010),
            (0x8010, 0x0010),
        ] {
            half.stamp(6, 1, sequence);
            assert_eq!(half.sequence(), noted, "{sequence:#x}");
        }
        assert_eq!(half.bytes(), 5, "the bytes wrap in their own bits");
        half.set_sequence(0x8010);
        assert_eq!((half.sequence(), half.bytes()), (0x8010, 5));
    }

    #[test]
    fn reads_back_what_was_written() {
        let words = words();
        let half = Half { words: &words };
        assert!(half.lock(0));
        half.fill(&side());
        half.unlock(
            Meta::new(Protocol::Tcp, Direction::Outbound, State::Init)
                .with_initiator(true)
                .with_shared(true),
        );
        let snapshot = half.read().unwrap();
        assert_eq!(snapshot.tuple(), side().tuple);
        assert_eq!(snapshot.written(), (side().source, side().destination));
        assert_eq!(snapshot.mapping(), 77);
        assert_eq!(snapshot.sequence(), 2);
        let meta = snapshot.meta();
        assert!(meta.valid() && meta.initiator() && meta.shared() && !meta.opened_outside());
        assert_eq!(meta.direction(), Direction::Outbound);
        assert_eq!(meta.class(), TimeoutClass::TcpTransOpen);
        assert!(snapshot.carries(&Key::of(&side().tuple)));
        assert!(!snapshot.carries(&Key::of(&side().tuple.reversed())));
    }

    #[test]
    fn a_stale_view_cannot_lock() {
        let words = words();
        let half = Half { words: &words };
        assert!(half.lock(0));
        assert!(!half.lock(0), "held");
        half.unlock(Meta(0));
        assert!(!half.lock(0), "stale");
        assert!(half.lock(2 << 32));
    }

    /// The deltas against a checksum computed from scratch, also where words do not change.
    #[test]
    fn deltas_update_a_checksum() {
        let side = side();
        let words_of = |source: Endpoint, destination: Endpoint| {
            let [s, d] = [source.addr.to_bits(), destination.addr.to_bits()];
            [
                (s >> 16) as u16,
                s as u16,
                (d >> 16) as u16,
                d as u16,
                source.port,
                destination.port,
            ]
        };
        let checksum = |words: &[u16]| !fold(words.iter().map(|&w| u32::from(w)).sum());
        let old = words_of(side.tuple.source, side.tuple.destination);
        let new = words_of(side.source, side.destination);
        let deltas = side.deltas();
        let updated = |sum: u16, delta: u16| !fold(u32::from(!sum) + u32::from(delta));
        assert_eq!(
            updated(checksum(&old[..4]), (deltas >> 48) as u16),
            checksum(&new[..4])
        );
        assert_eq!(
            updated(checksum(&old), (deltas >> 32) as u16),
            checksum(&new)
        );
    }

    #[test]
    fn icmp_delta_leaves_addresses_out() {
        let mut side = side();
        side.tuple.protocol = Protocol::Icmp;
        side.source.port = side.tuple.source.port;
        assert_eq!((side.deltas() >> 32) as u16, 0);
    }

    #[test]
    fn a_late_clock_does_not_turn_the_stamp_back() {
        let words = words();
        let half = Half { words: &words };
        half.reset_stamp(5, 0, 0, 0);
        assert_eq!(half.stamp(u32::MAX - 3, 100, 0), (5, 0));
        assert_eq!(half.last_seen(), 5, "u32::MAX - 3 is before 5");
        half.stamp(9, 100, 0);
        assert_eq!(
            (half.last_seen(), half.packets(), half.bytes()),
            (9, 2, 200)
        );
    }
}
