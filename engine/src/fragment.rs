//! Fragments: what the first one of a datagram decided holds for the later ones; later ones that
//! come before it are held as copies.
//!
//! One [`FragmentTable`] serves all workers. Its memory is fixed when it is made; nothing here
//! allocates afterwards. Packets that are no fragments never touch it, so a flood of fragments costs
//! them nothing (RFC 4787 REQ-14). Locks are held for a look-up and a copy of one frame.

mod arena;
mod identification;
mod idle;
mod list;
mod ranges;
mod shard;
mod split;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use conntrack::{Realm, Time, Tuple};

use crate::drop_reason::DropReason;
use crate::packet::{Body, FragmentFacts, Packet};
use arena::Arena;
pub use identification::{Ends, Identifications};
use idle::Group;
use shard::{First, Shard};
pub use split::Splitter;

/// How much the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Datagrams known at the same time. When there are more, one that holds no copies is
    /// forgotten: the oldest from the source that has most of them, refused ones being counted
    /// apart. So a million first fragments that are never completed push out each other. Rounded up
    /// to fill the shards evenly.
    pub datagrams_max: u32,
    /// Copies held at the same time; one realm gets three quarters of them, and of their bytes, at
    /// most.
    pub copies_max: u32,
    /// Bytes for copies; each takes a multiple of 1024.
    pub copy_bytes_max: u32,
    /// Copies held at the same time from one source address, so that no single sender fills the
    /// table. Sources are told apart by a hash with 1024 values.
    pub copies_per_source_max: u16,
    /// How long a datagram is known, from its first fragment to come, in milliseconds.
    pub timeout_ms: u32,
}

impl Default for FragmentLimits {
    /// 16,384 datagrams, 1024 copies of up to 2 KiB each (about 5.5 MB in all), 64 copies a source,
    /// 2 s.
    fn default() -> FragmentLimits {
        FragmentLimits {
            datagrams_max: 16_384,
            copies_max: 1024,
            copy_bytes_max: 2 << 20,
            copies_per_source_max: 64,
            timeout_ms: 2000,
        }
    }
}

/// How the fragments of a datagram pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The first fragment's tuple, as parsed, before its rewrite.
    pub tuple: Tuple,
    /// The identification that all of them get; none: they keep theirs.
    pub identification: Option<u16>,
}

/// What is known of a datagram after its first fragment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// What holds for all its fragments. It has the identification that an earlier copy of the first
    /// fragment got, if there was one.
    pub decision: Decision,
    /// Copies of later fragments wait for [`FragmentTable::take`].
    pub waits: bool,
}

/// What a first fragment's fate means for the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// They belong to the session of the first fragment's tuple.
    Translate(Passage),
    /// They go to the host, too.
    Punt,
    /// They are dropped for the same reason.
    Drop(DropReason),
}

/// What to do with a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// Translate it by this tuple (it has no ports and no signal of its own).
    Translate(Passage),
    /// Give it to the host.
    Punt,
    /// A copy is held; the frame itself is done with.
    Held,
}

/// A copy that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bytes of the frame.
    pub len: usize,
    /// The interface it came from.
    pub interface: u8,
}

/// What the table holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentTotals {
    /// Datagrams known.
    pub datagrams: usize,
    /// Copies held.
    pub copies: usize,
}

/// A datagram (RFC 791): what its fragments have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    identification: u16,
}

impl Key {
    fn of(packet: &Packet) -> Key {
        let ipv4 = &packet.ipv4;
        Key {
            source: ipv4.source,
            destination: ipv4.destination,
            protocol: ipv4.protocol,
            identification: ipv4.identification,
        }
    }
}

/// A keyed multiply-xor mix: senders choose all of the input.
fn mix(seed: u64, a: u64, b: u64) -> u64 {
    let mut hash = (seed ^ a).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ hash >> 32 ^ b ^ seed.rotate_left(32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^ hash >> 32
}

/// Which part of its datagram a fragment is, in units of 8 bytes.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u16,
    end: u16,
    last: bool,
}

impl Part {
    /// The parser has checked that it ends within 65,535 bytes.
    fn of(packet: &Packet) -> Part {
        let FragmentFacts { offset, more } = packet.fragment.unwrap_or(FragmentFacts {
            offset: 0,
            more: false,
        });
        let end = usize::from(offset) + packet.payload_len();
        Part {
            start: offset / 8,
            end: end.div_ceil(8) as u16,
            last: !more,
        }
    }
}

/// Shards: workers that meet fragments of different datagrams rarely wait for each other.
const SHARDS: usize = 16;

/// The fragments of all datagrams under way; shared by all workers.
#[derive(Debug)]
pub struct FragmentTable {
    shards: Box<[Mutex<Shard>]>,
    /// Locked only while the lock of a shard is held.
    arena: Mutex<Arena>,
    seed: u64,
    timeout_ms: AtomicU32,
    /// No copy expires before this time.
    earliest: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A worker that panicked elsewhere must not stop the others; every edit here is finished or
    // harmless.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FragmentTable {
    /// An empty table; takes all its memory. `seed` must be unpredictable.
    pub fn new(limits: &FragmentLimits, seed: u64) -> FragmentTable {
        let entries = (limits.datagrams_max as usize).div_ceil(SHARDS).max(1);
        FragmentTable {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(Shard::new(entries)))
                .collect(),
            arena: Mutex::new(Arena::new(limits)),
            seed,
            timeout_ms: AtomicU32::new(limits.timeout_ms),
            earliest: AtomicU64::new(u64::MAX),
        }
    }

    /// Changes how long datagrams are known, from the next one on.
    pub fn set_timeout_ms(&self, timeout_ms: u32) {
        self.timeout_ms.store(timeout_ms, Ordering::Relaxed);
    }

    /// The shard of a datagram, and its hash within.
    fn shard(&self, key: &Key) -> (MutexGuard<'_, Shard>, u32) {
        let ends = u64::from(key.source.to_bits()) << 32 | u64::from(key.destination.to_bits());
        let rest = u64::from(key.protocol) << 16 | u64::from(key.identification);
        let hash = mix(self.seed, ends, rest);
        (
            lock(&self.shards[(hash >> 60) as usize % SHARDS]),
            hash as u32,
        )
    }

    /// The hash of a datagram's source.
    fn source(&self, key: &Key) -> u64 {
        mix(self.seed, u64::from(key.source.to_bits()), 0)
    }

    fn expiry(&self, now: Time) -> Time {
        now.plus_ms(u64::from(self.timeout_ms.load(Ordering::Relaxed)))
    }

    /// Records what a first fragment (offset 0, more to come) from a realm decided, before it is sent
    /// on.
    ///
    /// # Errors
    /// The first fragment is dropped: [`DropReason::FragmentBad`] if it contradicts what is known
    /// of its datagram, which is then given up (in the spirit of RFC 5722);
    /// [`DropReason::FragmentsFull`] if every datagram known here holds copies.
    pub fn first(
        &self,
        packet: &Packet,
        realm: Realm,
        decision: Decision,
        now: Time,
    ) -> Result<Recorded, DropReason> {
        let Body::Flow { tuple, .. } = packet.body else {
            return Err(DropReason::FragmentBad);
        };
        let key = Key::of(packet);
        let (mut shard, hash) = self.shard(&key);
        let expires = self.expiry(now);
        let passes = matches!(decision, Decision::Translate(_));
        let first = First {
            part: Part::of(packet),
            tuple,
            decision,
            group: Group::new(self.source(&key), passes.then_some(realm)),
            now,
            expires,
        };
        let recorded = shard.first(key, hash, first)?;
        self.earliest.fetch_min(expires.0, Ordering::Relaxed);
        Ok(recorded)
    }

    /// What to do with a later fragment from a realm. If its first fragment has not come, `frame` is copied, with
    /// the interface that it came from.
    ///
    /// # Errors
    /// It is dropped: for its first fragment's reason; [`DropReason::FragmentBad`] if it
    /// overlaps another one, and if it does so only in part the datagram is given up;
    /// [`DropReason::FragmentsFull`] if no room is left for a copy.
    pub fn later(
        &self,
        packet: &Packet,
        realm: Realm,
        frame: &[u8],
        interface: u8,
        now: Time,
    ) -> Result<Later, DropReason> {
        let key = Key::of(packet);
        let (mut shard, hash) = self.shard(&key);
        if let Some(decision) = shard.later(key, hash, Part::of(packet), now) {
            return match decision? {
                Decision::Translate(passage) => Ok(Later::Translate(passage)),
                Decision::Punt => Ok(Later::Punt),
                Decision::Drop(reason) => Err(reason),
            };
        }
        let mut arena = lock(&self.arena);
        let frame = frame.get(..packet.frame_len()).unwrap_or(frame);
        let copy = arena
            .store(frame, interface, self.source(&key), realm)
            .ok_or(DropReason::FragmentsFull)?;
        let expires = self.expiry(now);
        if !shard.hold(key, hash, copy, &mut arena, expires) {
            arena.release(copy);
            return Err(DropReason::FragmentsFull);
        }
        self.earliest.fetch_min(expires.0, Ordering::Relaxed);
        Ok(Later::Held)
    }

    /// Takes the oldest copy that waited for this first fragment, after
    /// [`FragmentTable::first`], into `frame`; it then goes the route of a received frame, from
    /// step 3. None: no more wait. A copy longer than `frame` is cut, and will not parse.
    pub fn take(&self, first: &Packet, frame: &mut [u8]) -> Option<Held> {
        let key = Key::of(first);
        let (mut shard, hash) = self.shard(&key);
        let mut arena = lock(&self.arena);
        let copy = shard.take(key, hash, &mut arena)?;
        Some(arena.read(copy, frame))
    }

    /// Takes a copy whose first fragment did not come in time into `frame`: the caller punts it if
    /// its destination is shared with the host, else drops it
    /// ([`DropReason::FragmentTimeout`]). None: nothing has expired; one atomic load as a rule, so
    /// it may be called for every batch.
    pub fn expire(&self, now: Time, frame: &mut [u8]) -> Option<Held> {
        if now.0 < self.earliest.load(Ordering::Relaxed) {
            return None;
        }
        // Whoever holds a copy after this store, in a shard already looked at, lowers it again.
        self.earliest.store(u64::MAX, Ordering::Relaxed);
        let mut earliest = u64::MAX;
        for shard in &self.shards {
            let mut shard = lock(shard);
            let mut arena = lock(&self.arena);
            if let Some(copy) = shard.expire(now, &mut arena) {
                self.earliest.fetch_min(now.0, Ordering::Relaxed);
                return Some(arena.read(copy, frame));
            }
            earliest = earliest.min(shard.next_expiry());
        }
        self.earliest.fetch_min(earliest, Ordering::Relaxed);
        None
    }

    /// What the table holds at the moment; datagrams that expired but were not replaced count.
    pub fn totals(&self) -> FragmentTotals {
        let datagrams = self.shards.iter().map(|shard| lock(shard).len()).sum();
        FragmentTotals {
            datagrams,
            copies: lock(&self.arena).len(),
        }
    }

    /// Bytes of memory that the table took when it was made.
    pub fn bytes(&self) -> usize {
        let shards: usize = self.shards.iter().map(|shard| lock(shard).bytes()).sum();
        shards + lock(&self.arena).bytes()
    }
}
