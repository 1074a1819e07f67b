//! The translation of one packet: tuple in, rewrite or refusal out.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::age::At;
use crate::config::Policy;
use crate::endpoint::{Protocol, Tuple};
use crate::fill::Fills;
use crate::half::{HALF_WORDS, Snapshot};
use crate::hash::{HashKeys, Key};
use crate::index::Index;
use crate::layout::{Layout, PROTOCOLS, SESSION_WORDS, TIMERS_WORDS, TableSize, header};
use crate::lock::Locks;
use crate::mapping::Mappings;
use crate::memo::Memos;
use crate::meta::Meta;
use crate::pool::Pool;
use crate::port::Ports;
use crate::prefetch::prefetch;
use crate::session::Seen;
use crate::session::outside::Forwards;
use crate::signal::{PacketFacts, Realm};
use crate::subscriber::Subscribers;
use crate::tcp;
use crate::time::{Random, Time};
use crate::verdict::{Direction, Refusal, Rewrite};
use crate::word::Word;

/// The tables of one gateway, over words that the caller owns. Any number of threads may use it
/// at the same time; it holds nothing that is not in the words.
pub struct Nat<'m, W: Word = AtomicU64> {
    pub(crate) size: TableSize,
    pub(crate) header: &'m [W],
    pub(crate) keys: HashKeys,
    pub(crate) locks: Locks<'m, W>,
    pub(crate) memos: Memos<'m, W>,
    /// Timeouts of each set, by class.
    pub(crate) timers: &'m [W],
    /// Tuple to half.
    pub(crate) tuples: Index<'m, W>,
    /// External endpoint and remote address to the first session of a list.
    pub(crate) filters: Index<'m, W>,
    pub(crate) halves: &'m [[W; HALF_WORDS]],
    pub(crate) sessions: Pool<'m, W>,
    pub(crate) mappings: Mappings<'m, W>,
    pub(crate) forwards: Forwards<'m, W>,
    pub(crate) subscribers: Subscribers<'m, W>,
    pub(crate) ports: Ports<'m, W>,
}

/// A packet that found no session.
pub(crate) struct Arrival<'t> {
    pub tuple: &'t Tuple,
    pub hash: u64,
    pub facts: PacketFacts,
}

/// How often a packet starts over because its session changed under it.
const RETRIES: u32 = 16;

impl<'m, W: Word> Nat<'m, W> {
    /// The sections over the words. The hash keys are read from the header.
    pub(crate) fn over(words: &'m [W], owned: &'m [W], size: TableSize) -> Nat<'m, W> {
        let layout = Layout::of(size);
        let header = &words[layout.header];
        let records = size.sessions_max + 1;
        let sessions = &words[layout.sessions];
        let mappings = &words[layout.mappings];
        let strays = |index: usize| &header[header::STRAYS + index];
        let pool = |at: usize, records, stride, link| Pool {
            head: &header[at],
            used: &header[at + 1],
            records,
            stride,
            link,
            max: size.sessions_max,
        };
        Nat {
            size,
            header,
            keys: HashKeys([0, 1].map(|i| header[header::KEYS + i].load(Relaxed))),
            locks: Locks {
                words: &words[layout.locks],
            },
            memos: Memos {
                words: &words[layout.memos],
                epoch: &header[header::EPOCH],
            },
            timers: &words[layout.timers],
            tuples: Index::new(&words[layout.tuples], strays(0), 2 * records),
            filters: Index::new(&words[layout.filters], strays(1), records),
            halves: sessions.as_chunks().0,
            sessions: pool(header::FREE_SESSIONS, sessions, SESSION_WORDS, 5),
            mappings: Mappings {
                records: mappings.as_chunks().0,
                pool: pool(
                    header::FREE_MAPPINGS,
                    mappings,
                    crate::layout::MAPPING_WORDS,
                    1,
                ),
                index: Index::new(&words[layout.endpoints], strays(2), records),
            },
            forwards: Forwards {
                records: words[layout.forwards].as_chunks().0,
            },
            subscribers: Subscribers {
                keys: words[layout.subscriber_keys].as_chunks().0,
                records: words[layout.subscribers].as_chunks().0,
            },
            ports: Ports {
                tallies: &words[layout.tallies],
                fills: Fills {
                    words: &words[layout.fills],
                    epoch: &header[header::POOL_EPOCH],
                },
                cells: &words[layout.cells],
                owned,
                in_use: &header[header::PORTS_IN_USE..][..PROTOCOLS],
            },
        }
    }

    /// The hash of a tuple, keyed per table.
    #[inline(always)]
    pub fn hash(&self, tuple: &Tuple) -> u64 {
        self.keys.hash(&Key::of(tuple))
    }

    /// Asks the processor for the index lines of a hash: the first step of a batch.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.tuples.prefetch(hash);
    }

    /// Asks for a half, and for the other one if it is inbound: then the stamp there decides, too.
    #[inline(always)]
    pub(crate) fn prefetch_pair(&self, half: u32) {
        let half = half as usize;
        if let Some(line) = self.halves.get(half) {
            prefetch(line);
        }
        if let Some(even) = self.halves.get(half & !1) {
            prefetch(even);
        }
    }

    /// Translates a packet.
    ///
    /// `hash` is [`Nat::hash`] of `tuple`. A session is made where the signal and the policy allow
    /// one. What matches a session is translated whatever its TCP state and sequence number
    /// (RFC 7857 section 2.2). [`Refusal`] says why there is no rewrite.
    #[inline]
    pub fn translate(
        &self,
        policy: &Policy,
        realm: Realm,
        tuple: &Tuple,
        hash: u64,
        facts: PacketFacts,
        now: Time,
        random: &mut impl Random,
    ) -> Result<Rewrite, Refusal> {
        let at = At { policy, now };
        let found = self.find(tuple, hash)?;
        if let Some(seen) = &found
            && is_of(realm, &seen.snapshot)
            && self.lives(&at, seen)
            && let Some(rewrite) = self.hit(&at, seen, facts)?
        {
            return Ok(rewrite);
        }
        let arrival = Arrival { tuple, hash, facts };
        self.miss(&at, realm, &arrival, found.is_some(), random)
    }

    /// No live session: an expired one, if any was found, is ended, then a new one may be made.
    #[cold]
    #[inline(never)]
    fn miss(
        &self,
        at: &At,
        realm: Realm,
        arrival: &Arrival,
        mut found: bool,
        random: &mut impl Random,
    ) -> Result<Rewrite, Refusal> {
        for round in 0..RETRIES {
            if found && let Some(seen) = self.live(at, arrival.tuple, arrival.hash)? {
                if !is_of(realm, &seen.snapshot) {
                    return Err(Refusal::NoSession);
                }
                match self.hit(at, &seen, arrival.facts)? {
                    Some(rewrite) => return Ok(rewrite),
                    None => continue,
                }
            }
            let opened = match realm {
                Realm::Internal => self.open_from_inside(at, arrival, random),
                Realm::External => self.open_from_outside(at, arrival),
            };
            if let Some(rewrite) = opened? {
                return Ok(rewrite);
            }
            found = true;
            W::pause(round);
        }
        Err(Refusal::Contended)
    }

    /// The valid half that has this tuple, expired or not.
    #[inline(always)]
    pub(crate) fn find(&self, tuple: &Tuple, hash: u64) -> Result<Option<Seen>, Refusal> {
        let key = Key::of(tuple);
        let found = self.tuples.find(hash, |half| match self.half(half).read() {
            Some(snapshot) => snapshot
                .carries(&key)
                .then_some(Ok(Seen { half, snapshot })),
            None => Some(Err(Refusal::Contended)),
        });
        found.transpose()
    }

    /// A packet of a live session. `None` if the session changed its identity meanwhile.
    #[inline(always)]
    pub(crate) fn hit(
        &self,
        at: &At,
        seen: &Seen,
        facts: PacketFacts,
    ) -> Result<Option<Rewrite>, Refusal> {
        let meta = seen.snapshot.meta();
        if meta.protocol() == Protocol::Tcp {
            let (state, from_initiator) = (meta.state(), meta.initiator());
            let next = tcp::next(state, from_initiator, meta.opened_outside(), facts.signal);
            if next != state || facts.signal.is_syn() {
                return Ok(self.transition(seen, facts)?.map(|seen| {
                    self.stamp(at, &seen, facts);
                    seen.snapshot.rewrite(seen.half)
                }));
            }
        }
        self.stamp(at, seen, facts);
        Ok(Some(seen.snapshot.rewrite(seen.half)))
    }

    /// The rewrite of the half that answers a packet embedded in an ICMP error. Nothing is
    /// refreshed and no state changes (RFC 5508 REQ-6, RFC 4787 REQ-12). Expiry is judged by the
    /// timers of the last applied policy.
    pub fn embedded(&self, embedded: &Tuple, now: Time) -> Result<Rewrite, Refusal> {
        let tuple = embedded.reversed();
        let hash = self.hash(&tuple);
        for round in 0..RETRIES {
            let seen = self.find(&tuple, hash)?.ok_or(Refusal::NoSession)?;
            let meta = seen.snapshot.meta();
            let timeout_ms = self.known_timeout_ms(meta);
            let refresh = self.header[header::INBOUND_REFRESH].load(Relaxed) != 0;
            if !self.is_alive(seen.half, meta, now.0 as u32, timeout_ms, refresh) {
                return Err(Refusal::NoSession);
            }
            if self.is_current(&seen) {
                return Ok(seen.snapshot.rewrite(seen.half));
            }
            W::pause(round);
        }
        Err(Refusal::Contended)
    }

    /// The timeout that the tables have for readers without a policy; not known is for ever.
    fn known_timeout_ms(&self, meta: Meta) -> u32 {
        let place = usize::from(meta.timers()) * TIMERS_WORDS + meta.class() as usize;
        match self.timers[place].load(Relaxed) as u32 {
            0 => u32::MAX,
            timeout_ms => timeout_ms,
        }
    }

    pub(crate) fn add(&self, counter: usize, by: i64) {
        self.header[counter].fetch_add(by as u64, Relaxed);
    }
}

/// May packets from this realm use this half? A packet from outside with an internal source must
/// not pass as the internal host's.
#[inline(always)]
pub(crate) fn is_of(realm: Realm, snapshot: &Snapshot) -> bool {
    (snapshot.meta().direction() == Direction::Inbound) == (realm == Realm::External)
}
