//! What else could be done in the time of a packet: touching as many cache lines and nothing else,
//! and the same look-up and update in two well-known concurrent maps.

use std::hint::black_box;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use conntrack::{Key, Random, prefetch};
use engine::device::sys::memfile::MemFile;
use engine::worker::BATCH;

use super::flows::Flows;
use crate::Sequence;

/// Words in a cache line.
const LINE_WORDS: usize = 8;
/// Cache lines that a hit touches: two of the index, and a half.
pub const HIT_LINES: usize = 3;

/// Random lines of memory as large as the tables of a run.
pub struct Memory {
    lines: &'static [[AtomicU64; LINE_WORDS]],
    random: Sequence,
}

impl Memory {
    /// `bytes` of memory, in huge pages where there are any.
    ///
    /// # Errors
    /// There is not so much.
    pub fn new(bytes: u64) -> io::Result<Memory> {
        let words = MemFile::anonymous(bytes as usize / 8)?.words();
        for word in words.iter().step_by(LINE_WORDS) {
            word.store(1, Relaxed);
        }
        Ok(Memory {
            lines: words.as_chunks().0,
            random: Sequence(11),
        })
    }

    /// Touches `LINES` random lines for each of `packets` packets, of which the last is written, too;
    /// in batches, all lines of a batch asked for before the first is read.
    pub fn touch<const LINES: usize>(&mut self, packets: usize) -> Duration {
        let started = Instant::now();
        let mut places = [[0; LINES]; BATCH];
        for _ in 0..packets / BATCH {
            for packet in &mut places {
                for place in packet {
                    let random = self.random.next_u64() >> 32;
                    *place = (random as usize * self.lines.len()) >> 32;
                    prefetch(&self.lines[*place]);
                }
            }
            for packet in &places {
                let mut seen = 0;
                for &place in packet {
                    seen ^= self.lines[place][0].load(Relaxed);
                }
                if let Some(&last) = packet.last() {
                    self.lines[last][6].store(seen, Relaxed);
                }
            }
        }
        started.elapsed()
    }
}

/// A flow's tuple as the maps have it.
pub type MapKey = (u64, u64);

/// The key of a flow in the maps.
pub fn map_key(key: &Key) -> MapKey {
    let rest = u64::from(key.ports) << 8 | key.protocol as u64;
    (key.addresses, rest)
}

/// What a session is to a packet: what to write, and the stamp and counters.
#[derive(Default)]
pub struct Session {
    written: [u64; 2],
    seen: AtomicU64,
    packets: AtomicU64,
}

impl Session {
    fn of(key: MapKey) -> Session {
        Session {
            written: [key.1, key.0],
            ..Session::default()
        }
    }

    fn stamp(&self, now: u64) -> u64 {
        self.seen.store(now, Relaxed);
        self.packets.store(self.packets.load(Relaxed) + 1, Relaxed);
        self.written[0] ^ self.written[1]
    }
}

/// A concurrent map of sessions.
pub enum Map {
    /// Sharded locks.
    Dashmap(dashmap::DashMap<MapKey, Session, foldhash::fast::FixedState>),
    /// Lock-free reads.
    Papaya(papaya::HashMap<MapKey, Session, foldhash::fast::FixedState>),
}

impl Map {
    /// An empty [`dashmap::DashMap`].
    pub fn dashmap(flows: Flows) -> Map {
        let room = flows.count() as usize;
        let hasher = foldhash::fast::FixedState::default();
        Map::Dashmap(dashmap::DashMap::with_capacity_and_hasher(room, hasher))
    }

    /// An empty [`papaya::HashMap`].
    pub fn papaya(flows: Flows) -> Map {
        let room = flows.count() as usize;
        let hasher = foldhash::fast::FixedState::default();
        Map::Papaya(papaya::HashMap::with_capacity_and_hasher(room, hasher))
    }

    /// Puts a session for every flow in.
    pub fn fill(&self, flows: Flows, order: &[u32]) {
        for &number in order {
            let key = map_key(&Key::of(&flows.outbound(number)));
            match self {
                Map::Dashmap(map) => drop(map.insert(key, Session::of(key))),
                Map::Papaya(map) => drop(map.pin().insert(key, Session::of(key)).is_some()),
            }
        }
    }

    /// Looks the sessions of these flows up, and stamps them.
    pub fn look_up(&self, keys: &[MapKey]) -> Duration {
        let started = Instant::now();
        match self {
            Map::Dashmap(map) => {
                for key in keys {
                    let session = map.get(key);
                    let session = session.expect("every flow was put in");
                    black_box(session.stamp(7));
                }
            }
            Map::Papaya(map) => {
                let map = map.pin();
                for key in keys {
                    let session = map.get(key);
                    let session = session.expect("every flow was put in");
                    black_box(session.stamp(7));
                }
            }
        }
        started.elapsed()
    }
}
