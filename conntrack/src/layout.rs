//! Where everything lies in the words that the caller provides.
//!
//! | section | words | what |
//! | --- | --- | --- |
//! | header | 64 | identity, hash keys, free lists, counters: the constants of [`header`] |
//! | locks | 1024 | one word a stripe |
//! | memos | 4 x 1024 | remote endpoints found exhausted |
//! | timers | 8 x 32 | timeouts in ms of each set by class, 0 not known: for readers without a policy |
//! | tuple index | 8 a line | tuple to half |
//! | endpoint index | 8 a line | internal endpoint to `eim` mapping |
//! | filter index | 8 a line | (external endpoint, remote address) to session |
//! | sessions | 16 each | two halves of 8 words; number 0 is not used |
//! | mappings | 4 each | number 0 is not used |
//! | forwards | 4 each | number 0 is not used |
//! | subscriber keys | 8 a line | internal addresses |
//! | subscribers | 4 each | what each of them has |
//! | tallies | 3 an address | held ports, by protocol |
//! | fills | 3 x 24 an address | owned ports by groups of 1024, releases, exhaustion |
//! | cells | 3 x 32768 an address | 32 bits a port |
//!
//! The ownership bitmap (3 x 1024 words an address, one bit a port) lies in memory of its own. Everything is
//! position-independent and in the machine's byte order. Lines are lines only if the memory starts
//! on a 64-byte boundary; nothing breaks if it does not.

use std::ops::Range;

use crate::forward::FORWARDS_MAX;
use crate::half::HALF_WORDS;
use crate::index::{LINE_WORDS, Load, lines_for};
use crate::subscriber::{SUBSCRIBER_WORDS, subscribers_for};
use crate::timers::TIMER_SETS;

/// Words in the header.
const HEADER_WORDS: usize = 64;
/// Lock stripes. Under the model checker few: every word of a model costs.
pub(crate) const STRIPES: usize = if cfg!(loom) { 2 } else { 1024 };
/// Cells of the memo, and words in each.
pub(crate) const MEMOS: usize = if cfg!(loom) { 2 } else { 1024 };
pub(crate) const MEMO_WORDS: usize = 4;
/// Sets of timers that are told, and words in each.
pub(crate) const TIMER_ROWS: usize = if cfg!(loom) { 1 } else { TIMER_SETS };
pub(crate) const TIMERS_WORDS: usize = 8;
/// Words in a session.
pub(crate) const SESSION_WORDS: usize = 2 * HALF_WORDS;
/// Words in a mapping.
pub(crate) const MAPPING_WORDS: usize = 4;
/// Words in a forward's record.
pub(crate) const FORWARD_WORDS: usize = 4;
/// Ownership words for the ports of one (address, protocol).
pub(crate) const PORT_WORDS: usize = 1024;
/// Words that tell how full one (address, protocol) is.
pub(crate) const FILL_WORDS: usize = 24;
/// Cell words for the ports of one (address, protocol).
pub(crate) const CELL_WORDS: usize = 32_768;
/// Protocols.
pub(crate) const PROTOCOLS: usize = 3;

/// Largest `sessions_max`: leaves five bits of the hash in an index entry.
pub(crate) const SESSIONS_LIMIT: u32 = (1 << 26) - 2;

/// "egretnat" in ASCII.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"egretnat");
/// Bumped when the meaning of a word changes.
const VERSION: u32 = 5;

/// Word numbers of the header. What different packets write lies on different lines.
pub(crate) mod header {
    /// [`super::MAGIC`], written last.
    pub const MAGIC: usize = 0;
    /// Version and layout hash.
    pub const LAYOUT: usize = 1;
    /// `sessions_max` in the upper, `addresses_max` in the lower 32 bits.
    pub const SIZE: usize = 2;
    /// Boot id, two words.
    pub const BOOT: usize = 3;
    /// Hash keys, two words.
    pub const KEYS: usize = 5;
    /// 1 if inbound packets refresh UDP and ICMP: for readers that hold no policy.
    pub const INBOUND_REFRESH: usize = 13;
    /// Free sessions: head, then the number of sessions ever used.
    pub const FREE_SESSIONS: usize = 16;
    /// Free mappings, likewise.
    pub const FREE_MAPPINGS: usize = 24;
    /// Position of the sweep.
    pub const SWEEP: usize = 32;
    /// Counts releases of endpoints that were not overloaded: memos of before are void.
    pub const EPOCH: usize = 33;
    /// Counts changes of the policy: what was found out about a pool before is void.
    pub const POOL_EPOCH: usize = 34;
    /// Counters.
    pub const SESSIONS: usize = 40;
    pub const SESSIONS_INBOUND: usize = 41;
    pub const CREATED: usize = 42;
    pub const EXPIRED: usize = 43;
    pub const REMOVED: usize = 44;
    pub const EVICTED: usize = 45;
    /// Of the sessions opened from outside: those of mappings.
    pub const INBOUND_MAPPED: usize = 46;
    /// And those of forwards whose handshake is not over.
    pub const HALF_OPEN: usize = 47;
    pub const MAPPINGS: usize = 48;
    /// Ports of dynamic mappings, by protocol.
    pub const PORTS_IN_USE: usize = 49;
    /// Where a forward with many half-open connections is sought next, in the upper 32 bits; the one
    /// with the most that was found, in the lower.
    pub const GREEDY: usize = 52;
    /// Entries in further lines of the tuple, filter and endpoint index.
    pub const STRAYS: usize = 56;
}

/// What the tables are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Sessions, and mappings, at most: 1 to 67,108,862.
    pub sessions_max: u32,
    /// External addresses at most: 1 to 65,535.
    pub addresses_max: u16,
}

impl TableSize {
    /// 64-bit words of the tables.
    pub fn words(&self) -> usize {
        Layout::of(*self).end
    }

    /// 64-bit words of the ownership bitmap.
    pub fn owned_words(&self) -> usize {
        usize::from(self.addresses_max) * PROTOCOLS * PORT_WORDS
    }

    /// Bytes of both.
    pub fn bytes(&self) -> u64 {
        (self.words() + self.owned_words()) as u64 * 8
    }

    /// All memory divided by `sessions_max`.
    pub fn bytes_per_session(&self) -> f64 {
        self.bytes() as f64 / f64::from(self.sessions_max)
    }

    /// Subscribers that quotas surely have room to count for: the places that they have, less what
    /// two lines a subscriber leave unused.
    pub fn subscribers_max(&self) -> u32 {
        (subscribers_for(self.sessions_max) / 4 * 3) as u32
    }

    /// Are both numbers in their ranges?
    pub fn valid(&self) -> bool {
        (1..=SESSIONS_LIMIT).contains(&self.sessions_max) && self.addresses_max > 0
    }
}

/// The sections as ranges of words.
pub(crate) struct Layout {
    pub header: Range<usize>,
    pub locks: Range<usize>,
    pub memos: Range<usize>,
    pub timers: Range<usize>,
    pub tuples: Range<usize>,
    pub endpoints: Range<usize>,
    pub filters: Range<usize>,
    pub sessions: Range<usize>,
    pub mappings: Range<usize>,
    pub forwards: Range<usize>,
    pub subscriber_keys: Range<usize>,
    pub subscribers: Range<usize>,
    pub tallies: Range<usize>,
    pub fills: Range<usize>,
    pub cells: Range<usize>,
    end: usize,
}

impl Layout {
    pub fn of(size: TableSize) -> Layout {
        let sessions = u64::from(size.sessions_max);
        let records = size.sessions_max as usize + 1;
        let tables = usize::from(size.addresses_max) * PROTOCOLS;
        let subscribers = subscribers_for(size.sessions_max);
        let mut end = 0;
        let mut section = |words: usize| {
            let start = end;
            end = start + words.next_multiple_of(LINE_WORDS);
            start..start + words
        };
        Layout {
            header: section(HEADER_WORDS),
            locks: section(STRIPES),
            memos: section(MEMOS * MEMO_WORDS),
            timers: section(TIMER_ROWS * TIMERS_WORDS),
            tuples: section(lines_for(2 * sessions, Load::Usual) * LINE_WORDS),
            endpoints: section(lines_for(sessions, Load::High) * LINE_WORDS),
            filters: section(lines_for(sessions, Load::High) * LINE_WORDS),
            sessions: section(records * SESSION_WORDS),
            mappings: section(records * MAPPING_WORDS),
            forwards: section((FORWARDS_MAX + 1) * FORWARD_WORDS),
            subscriber_keys: section(subscribers),
            subscribers: section(subscribers * SUBSCRIBER_WORDS),
            tallies: section(tables),
            fills: section(tables * FILL_WORDS),
            cells: section(tables * CELL_WORDS),
            end,
        }
    }
}

/// Version in the upper 32 bits, a hash over every constant that places a word in the lower.
pub(crate) const fn layout_word() -> u64 {
    let constants = [
        HEADER_WORDS,
        STRIPES,
        MEMOS,
        MEMO_WORDS,
        TIMERS_WORDS,
        TIMER_ROWS,
        LINE_WORDS,
        SESSION_WORDS,
        MAPPING_WORDS,
        FORWARD_WORDS,
        FORWARDS_MAX,
        SUBSCRIBER_WORDS,
        subscribers_for(1_000_000),
        PORT_WORDS,
        FILL_WORDS,
        CELL_WORDS,
        PROTOCOLS,
        lines_for_million(),
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < constants.len() {
        hash = (hash ^ constants[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    (VERSION as u64) << 32 | hash >> 32
}

/// Stands for the rule that sizes an index.
const fn lines_for_million() -> usize {
    lines_for(1_000_000, Load::Usual) + lines_for(1_000_000, Load::High)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_192_bytes_a_session() {
        for sessions_max in [65_536, 262_144, 1_048_576] {
            let size = TableSize {
                sessions_max,
                addresses_max: 1,
            };
            println!(
                "{sessions_max} sessions: {:.1} bytes each",
                size.bytes_per_session()
            );
        }
        let default = TableSize {
            sessions_max: 262_144,
            addresses_max: 1,
        };
        assert!(
            default.bytes_per_session() <= 192.0,
            "{}",
            default.bytes_per_session()
        );
    }

    #[test]
    fn the_layout_word_names_version_and_layout() {
        assert_eq!((layout_word() >> 32) as u32, VERSION);
        assert_ne!(layout_word() as u32, 0);
    }

    #[test]
    fn sections_follow_each_other_on_line_boundaries() {
        let layout = Layout::of(TableSize {
            sessions_max: 1000,
            addresses_max: 3,
        });
        let sections = [
            &layout.header,
            &layout.locks,
            &layout.memos,
            &layout.timers,
            &layout.tuples,
            &layout.endpoints,
            &layout.filters,
            &layout.sessions,
            &layout.mappings,
            &layout.forwards,
            &layout.subscriber_keys,
            &layout.subscribers,
            &layout.tallies,
            &layout.fills,
            &layout.cells,
        ];
        for pair in sections.windows(2) {
            assert!(pair[0].end <= pair[1].start && pair[1].start % LINE_WORDS == 0);
        }
        assert!(layout.cells.end <= layout.end);
    }
}
