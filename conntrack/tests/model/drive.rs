//! Does each operation to the tables and to the reference, and compares.

use std::sync::atomic::AtomicU64;

use conntrack::{
    Endpoint, Identity, Nat, PacketFacts, Protocol, Random, Realm, Refusal, SessionRef, TableSize,
    Time, Tuple,
};

use crate::judge::{Packet, Worlds, check_rewrite};
use crate::observe::{Judged, World, ensure};
use crate::operation::{self, Choice, Configuration, Operation, PORTS};
use crate::reference::{Reference, TICK_MS};
use crate::upkeep::put;

pub const IDENTITY: Identity = Identity { boot_id: [9; 16] };
/// Operations between two calls of [`Nat::check`], which looks at every port.
const CHECK_EVERY: usize = 400;

/// A seeded generator (xorshift).
pub struct Seeded(u64);

impl Random for Seeded {
    fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Memory for the tables of one run.
pub struct Memory {
    pub words: Vec<AtomicU64>,
    pub owned: Vec<AtomicU64>,
}

impl Memory {
    pub fn new(size: TableSize) -> Memory {
        let zeros = |words| (0..words).map(|_| AtomicU64::new(0)).collect();
        Memory {
            words: zeros(size.words()),
            owned: zeros(size.owned_words()),
        }
    }
}

/// A reference to a half that was given out.
pub struct Given {
    pub session: SessionRef,
    pub version: u64,
    /// No later reference was used for this half.
    pub sure: bool,
}

/// The tables and the reference side by side.
pub struct Drive<'m> {
    pub nat: Nat<'m>,
    pub memory: &'m Memory,
    pub size: TableSize,
    pub reference: Reference,
    pub choice: Choice,
    pub random: Seeded,
    pub given: Vec<Given>,
    pub world: World,
    /// Each packet with its answer, if somebody wants to tell a failure.
    pub story: Option<Vec<String>>,
}

/// The size of the tables of a configuration.
pub fn size_of(configuration: &Configuration) -> TableSize {
    TableSize {
        sessions_max: configuration.sessions_max(),
        addresses_max: 3,
    }
}

impl<'m> Drive<'m> {
    pub fn new(memory: &'m Memory, configuration: &Configuration) -> Drive<'m> {
        let size = size_of(configuration);
        let mut random = Seeded(configuration.random | 1);
        let (words, owned) = (&memory.words[..], &memory.owned[..]);
        let nat = Nat::create(words, owned, size, IDENTITY, &mut random).expect("memory");
        let policy = configuration.choice.policy(None);
        let now_ms = configuration.start_ms();
        put(&nat, &policy, now_ms, 255);
        let world = World::of(&nat, owned, size, Time(now_ms));
        Drive {
            nat,
            memory,
            size,
            reference: Reference::new(policy, now_ms, size.sessions_max),
            choice: configuration.choice,
            random,
            given: Vec::new(),
            world,
            story: None,
        }
    }

    /// All operations, and the end of traffic. The error names the operation.
    pub fn run(&mut self, operations: &[Operation]) -> Judged {
        for (place, operation) in operations.iter().enumerate() {
            let done = self.perform(operation);
            let done = done.and_then(|()| match (place + 1) % CHECK_EVERY {
                0 => self.check(),
                _ => Ok(()),
            });
            done.map_err(|what: String| {
                let now = self.reference.now_ms;
                format!("operation {place} at {now} ms, {operation:?}: {what}")
            })?;
        }
        self.drain().map_err(|what| format!("at the end: {what}"))
    }

    pub fn now(&self) -> Time {
        Time(self.reference.now_ms)
    }

    pub fn check(&self) -> Judged {
        let checked = self.nat.check(&self.reference.policy, self.now());
        checked.map_err(|violation| format!("check: {violation}"))
    }

    fn perform(&mut self, operation: &Operation) -> Judged {
        if let (Some(story), Operation::Change { .. }) = (&mut self.story, operation) {
            story.push(format!("{} ms {operation:?}", self.reference.now_ms));
        }
        match *operation {
            Operation::Out {
                protocol,
                source,
                remote,
                signal,
                length,
            } => {
                let protocol = operation::protocol(protocol);
                let mut tuple = Tuple {
                    protocol,
                    source: operation::source(source),
                    destination: operation::remote(remote),
                };
                let signal = operation::signal(protocol, signal, true, true);
                if protocol == Protocol::Icmp {
                    tuple.destination.port = 0;
                }
                self.packet(Packet {
                    realm: Realm::Internal,
                    tuple,
                    signal,
                    length: length.into(),
                })
            }
            Operation::Of {
                which,
                side,
                signal,
                length,
            } => {
                let Some((tuple, realm)) = self.session(which, side) else {
                    return Ok(());
                };
                let signal = operation::signal(tuple.protocol, signal, false, !side);
                self.packet(Packet {
                    realm,
                    tuple,
                    signal,
                    length: length.into(),
                })
            }
            Operation::Spoofed {
                which,
                side,
                signal,
            } => {
                let Some((tuple, realm)) = self.session(which, side) else {
                    return Ok(());
                };
                let realm = match realm {
                    Realm::Internal => Realm::External,
                    Realm::External => Realm::Internal,
                };
                let signal = operation::signal(tuple.protocol, signal, true, true);
                self.packet(Packet {
                    realm,
                    tuple,
                    signal,
                    length: 1,
                })
            }
            Operation::In {
                which,
                remote,
                signal,
            } => self.send_to_external(which, Realm::External, operation::remote(remote), signal),
            Operation::Hairpin {
                which,
                source,
                signal,
            } => self.send_to_external(which, Realm::Internal, operation::source(source), signal),
            Operation::Embedded { which, side, stray } => self.embedded(which, side, stray),
            Operation::Pass { ms } => self.pass(self.reference.now_ms + u64::from(ms)),
            Operation::Edge { which, offset } => self.edge(which, offset),
            Operation::Sweep { budget } => self.sweep(1 + u32::from(budget) / 32).map(|_| ()),
            Operation::SweepAll => self.sweep_all(),
            Operation::Change {
                what,
                value,
                budget,
            } => {
                if self.reference.mappings.iter().any(|m| m.limbo_ms.is_some()) {
                    // Longer timers would revive what nobody knows to be there.
                    self.sweep_all()?;
                }
                let refresh = self.choice.inbound_refresh;
                self.choice = self.choice.changed(what, value);
                if refresh != self.choice.inbound_refresh {
                    // A mapping is refreshed at most once a tick, by the rule at that time.
                    let tick = TICK_MS;
                    self.pass((self.reference.now_ms / tick + 1) * tick)?;
                }
                let before = &self.reference.policy.timers;
                self.change(self.choice.policy(Some(before)), budget)
            }
            Operation::Restart => self.restart(),
            Operation::Hop { which, hop } => self.hop(which, hop),
        }
    }

    fn session(&self, which: u8, side: bool) -> Option<(Tuple, Realm)> {
        let sessions = &self.reference.sessions;
        let session = sessions.get(usize::from(which) % sessions.len().max(1))?;
        let side = usize::from(side);
        Some((session.sides[side].tuple, session.realm(side)))
    }

    /// A packet to one of the external endpoints that mean something, or to the pool's first port.
    fn send_to_external(
        &mut self,
        which: u8,
        realm: Realm,
        source: Endpoint,
        signal: u8,
    ) -> Judged {
        let reference = &self.reference;
        let mut seen: Vec<(Protocol, Endpoint)> = Vec::new();
        let sides = reference
            .sessions
            .iter()
            .map(|s| (s.protocol, s.sides[0].source));
        seen.extend(sides);
        seen.extend(reference.mappings.iter().map(|m| (m.protocol, m.external)));
        seen.extend(reference.holds.iter().map(|h| (h.protocol, h.external)));
        seen.extend(
            reference
                .policy
                .forwards
                .iter()
                .map(|f| (f.protocol, f.external)),
        );
        let pool = reference.policy.addresses.iter();
        seen.extend(pool.map(|a| (Protocol::Udp, Endpoint::new(a.addr, PORTS[3]))));
        let Some(&(protocol, destination)) = seen.get(usize::from(which) % seen.len().max(1))
        else {
            return Ok(());
        };
        let tuple = Tuple {
            protocol,
            source,
            destination,
        };
        let asks = realm == Realm::Internal;
        let signal = operation::signal(protocol, signal, true, asks);
        self.packet(Packet {
            realm,
            tuple,
            signal,
            length: 1400,
        })
    }

    fn packet(&mut self, packet: Packet) -> Judged {
        let hash = self.nat.hash(&packet.tuple);
        self.nat.prefetch(hash);
        self.nat.candidate(hash);
        let (nat, now) = (&self.nat, self.now());
        let policy = &self.reference.policy;
        let Packet {
            realm,
            tuple,
            signal,
            length,
        } = packet;
        let result = nat.translate(
            policy,
            realm,
            &tuple,
            hash,
            PacketFacts {
                signal,
                length,
                sequence: 0,
                // Of the responder's SYN, whose number is 0.
                acknowledgement: 1,
            },
            now,
            &mut self.random,
        );
        if let Some(story) = &mut self.story {
            let answer = match &result {
                Ok(rewrite) => format!("{} -> {}", rewrite.source, rewrite.destination),
                Err(refusal) => format!("{refusal:?}"),
            };
            story.push(format!(
                "{} ms {realm:?} {tuple} {signal:?}: {answer}",
                now.0
            ));
        }
        let told = |what| format!("{packet:?} gives {result:?}: {what}");
        self.judge(&packet, result).map_err(told)
    }

    fn judge(&mut self, packet: &Packet, result: Result<conntrack::Rewrite, Refusal>) -> Judged {
        let after = self.look();
        let reference = &mut self.reference;
        let hit = reference.find(packet.realm, &packet.tuple);
        let other = match packet.realm {
            Realm::Internal => Realm::External,
            Realm::External => Realm::Internal,
        };
        let made = match (hit, &result) {
            (None, Ok(rewrite)) => Some(rewrite.session.half >> 1),
            _ => None,
        };
        if let Some(hit) = hit {
            reference.judge_hit(hit, packet, result)?;
            reference.reap(&after, None)?;
        } else if reference.find(other, &packet.tuple).is_some() {
            ensure(result == Err(Refusal::NoSession), || {
                "another realm's session".into()
            })?;
            reference.seen("spoofed");
        } else {
            let demand = reference.demand(packet);
            reference.give_way(packet, &after, made)?;
            let expired = reference.reap(&after, made)?;
            if expired > 0 {
                reference.seen("expired session met");
            }
            let worlds = Worlds {
                before: &self.world,
                after: &after,
                demand,
            };
            reference.judge_miss(packet, result, &worlds)?;
        }
        if let Ok(rewrite) = result {
            let number = rewrite.session.half >> 1;
            let session = reference.sessions.iter().find(|s| s.number == number);
            let version = session.map(|s| s.version).ok_or("answered by no session")?;
            self.given.truncate(7);
            self.given.insert(
                0,
                Given {
                    session: rewrite.session,
                    version,
                    sure: true,
                },
            );
        }
        self.finish(after, false)
    }

    pub fn look(&self) -> World {
        World::of(&self.nat, &self.memory.owned, self.size, self.now())
    }

    /// Adopts what is over, and compares everything.
    pub fn finish(&mut self, after: World, changed: bool) -> Judged {
        self.reference.settle(&after, changed)?;
        self.world = after;
        self.reference.compare(&self.world)
    }

    fn embedded(&mut self, which: u8, side: bool, stray: bool) -> Judged {
        let Some((mut tuple, _)) = self.session(which, side) else {
            return Ok(());
        };
        if stray {
            tuple.destination.port ^= 1;
        }
        let result = self.nat.embedded(&tuple.reversed(), self.now());
        let reference = &mut self.reference;
        let found = [Realm::Internal, Realm::External]
            .into_iter()
            .find_map(|realm| reference.find(realm, &tuple));
        match (found, result) {
            (None, Err(Refusal::NoSession)) => reference.seen("embedded without a session"),
            (Some((place, side)), Ok(rewrite)) => {
                let half = &reference.sessions[place].sides[side];
                let is = (rewrite.source, rewrite.destination);
                ensure(is == (half.source, half.destination), || {
                    format!("embedded {tuple}: {rewrite:?}")
                })?;
                check_rewrite(&tuple, &rewrite)?;
                reference.seen("embedded");
            }
            (found, result) => {
                return Err(format!("embedded {tuple}: {found:?}, but {result:?}"));
            }
        }
        let after = self.look();
        self.reference.reap(&after, None)?;
        self.finish(after, false)
    }
}
