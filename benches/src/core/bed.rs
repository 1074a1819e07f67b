//! What a run works on: a gateway in memory with its tables, and a worker's hands to feed it.

use std::hint::black_box;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conntrack::{Candidate, Endpoint, Key, PacketFacts, Realm, Signal, TableSize, Time, Tuple};
use crossbeam_utils::CachePadded;
use engine::batch::Batch;
use engine::control::listing::Listing;
use engine::control::request::List;
use engine::device::{FRAME_SIZE, HEADROOM};
use engine::gateway::{Gateway, Shared, Verdict};
use engine::packet::{self, Body};
use engine::random::WorkerRandom;
use engine::stats::WorkerStats;
use engine::worker::BATCH;
use engine::world::{Setup, World, mac_of_interface};

use super::flows::{FRAME_BYTES, Flows, FrameWriter};
use super::memory::Pages;

/// Frames that are written, then timed, at once: a quarter of a usual ring, and no more than the
/// second cache keeps at the distance of frame slots.
pub const SLICE: usize = 256;

/// Interface numbers.
const INSIDE: u8 = 0;
const OUTSIDE: u8 = 1;

/// Which way the packets of a run go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the internal endpoints.
    Outbound,
    /// From the remote ones, to what they see.
    Inbound,
}

/// A gateway in memory with two interfaces and a pool of its own addresses.
pub struct Bed {
    world: World,
    flows: Flows,
    /// The external endpoint of each flow.
    externals: Vec<Endpoint>,
    dont_fragment: bool,
}

impl Bed {
    /// Empty tables with room for all flows, and `addresses` external addresses of which each has the
    /// ports `ports`.
    ///
    /// # Errors
    /// There is no memory for the tables.
    pub fn new(
        flows: Flows,
        addresses: u8,
        ports: &str,
        pages: Pages,
        workers: u32,
    ) -> io::Result<Bed> {
        let size = TableSize {
            sessions_max: flows.count().max(1024),
            addresses_max: u16::from(addresses) + 1,
        };
        let config = format!(
            r#"
            internal = "10.77.0.0/16"
            [[interfaces]]
            name = "lan0"
            role = "internal"
            [[interfaces]]
            name = "wan0"
            role = "external"
            [pool]
            addresses = ["198.18.0.1-198.18.0.{addresses}"]
            ports = ["{ports}"]
            "#
        );
        let setup = Setup {
            memory: Some(pages.allocate(size)?),
            sessions_max: size.sessions_max,
            addresses_max: Some(size.addresses_max),
            hops_max: 8192,
            slots: 64,
            record: false,
            workers,
            ..Setup::default()
        };
        let world = World::with(&config, setup).map_err(io::Error::other)?;
        Ok(Bed {
            world,
            flows,
            externals: vec![Endpoint::new(Ipv4Addr::UNSPECIFIED, 0); flows.count() as usize],
            dont_fragment: true,
        })
    }

    /// Bytes of all tables for each session that they have room for.
    pub fn bytes_per_session(&self) -> f64 {
        self.world.shared().size.bytes_per_session()
    }

    /// Sessions at the moment.
    pub fn sessions(&self) -> u64 {
        self.world.totals().sessions
    }

    /// The world's time.
    pub fn now(&self) -> Time {
        self.world.now()
    }

    /// What the workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        self.world.shared()
    }

    /// A round of the first worker with a packet of each of these flows, at most [`BATCH`]: how long it
    /// took. The other workers have one, too.
    pub fn round(&mut self, way: Way, numbers: &[u32], now: Time) -> Duration {
        let mut frame = [0; FRAME_BYTES];
        let interface = ingress(way);
        let mac = mac_of_interface(usize::from(interface));
        let writer = FrameWriter::new(mac, self.dont_fragment);
        for &number in numbers {
            writer.write(&mut frame, &self.tuple(way, number));
            self.world.inject(usize::from(interface), &frame);
        }
        let started = Instant::now();
        self.world.worker(0).round(now);
        let took = started.elapsed();
        for other in 1..self.world.workers() {
            self.world.worker(other).round(now);
        }
        took
    }

    /// Moves the clock.
    pub fn advance_ms(&mut self, ms: u64) {
        self.world.advance_ms(ms);
    }

    /// Frames from now on have DF set, or not.
    pub fn set_dont_fragment(&mut self, dont_fragment: bool) {
        self.dont_fragment = dont_fragment;
    }

    /// A worker's hands.
    pub fn hands(&self, worker: usize) -> Hands {
        let shared = Arc::clone(self.world.shared());
        let writer = |interface| {
            FrameWriter::new(mac_of_interface(usize::from(interface)), self.dont_fragment)
        };
        Hands {
            gateway: Gateway::new(shared, worker, WorkerRandom::from_seed(worker as u64)),
            memory: vec![0; SLICE * FRAME_SIZE],
            batch: Batch::with_capacity(BATCH),
            stats: WorkerStats::new(2),
            writers: [INSIDE, OUTSIDE].map(writer),
        }
    }

    /// Notes the external endpoints of these flows, which have sessions, and lets the sessions get to
    /// know their next hops.
    pub fn learn(&mut self, numbers: &[u32]) {
        self.resolve();
        let mut hands = self.hands(0);
        for numbers in numbers.chunks(SLICE) {
            self.send(&mut hands, Way::Outbound, numbers);
            for (slot, &number) in numbers.iter().enumerate() {
                let sent = packet::parse(hands.frame(slot));
                if let Ok(Body::Flow { tuple, .. }) = sent.map(|packet| packet.body) {
                    self.externals[number as usize] = tuple.source;
                }
            }
            self.send(&mut hands, Way::Inbound, numbers);
        }
        self.resolve();
    }

    /// Lets every next hop that was asked for answer.
    pub fn resolve(&mut self) {
        self.world.round();
    }

    /// Ends all sessions, which are over: how many there were, and the time that it took.
    pub fn expire(&mut self) -> (u64, Duration) {
        let sessions = self.sessions();
        let mut hands = self.hands(0);
        let now = self.now();
        let started = Instant::now();
        while self.sessions() > 0 {
            hands.gateway.sweep(now, 4096);
        }
        (sessions, started.elapsed())
    }

    /// Lists all sessions, as `egret sessions --json` gets them: how many lines, and the time that it
    /// took.
    pub fn list(&self) -> (u64, Duration) {
        let shared = self.world.shared();
        let started = Instant::now();
        let mut listing = Listing::sessions(shared, List::default());
        let (mut slice, mut lines) = (Vec::new(), 0);
        let mut over = false;
        while !over {
            slice.clear();
            over = listing.slice(self.now(), &mut slice);
            lines += black_box(&slice)
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count() as u64;
        }
        (lines - 1, started.elapsed())
    }

    /// Looks these flows up and stamps their sessions, in batches: conntrack's part of a hit.
    pub fn look_up(&self, flows: &[Key]) -> Duration {
        let nat = &self.world.shared().nat;
        let (policy, now) = (self.world.policy(), self.now());
        let facts = PacketFacts {
            signal: Signal::Udp,
            length: 46,
            sequence: 0,
            acknowledgement: 0,
        };
        let mut random = WorkerRandom::from_seed(1);
        let started = Instant::now();
        let mut looked = [(0, Candidate::default()); BATCH];
        for batch in flows.chunks(BATCH) {
            for ((hash, _), key) in looked.iter_mut().zip(batch) {
                *hash = nat.hash_key(key);
                nat.prefetch(*hash);
            }
            for (hash, candidate) in &mut looked {
                *candidate = nat.candidate(*hash);
            }
            for ((hash, candidate), key) in looked.iter().zip(batch) {
                let realm = Realm::Internal;
                let hit = nat.seek(&policy, realm, key, *candidate, Signal::Udp, now);
                if let Some(hit) = hit {
                    nat.count(&policy, &hit, facts, now);
                    black_box(hit.new_addresses());
                    continue;
                }
                // The index named another one first.
                let (tuple, random) = (key.tuple(), &mut random);
                let found = nat.translate(&policy, realm, &tuple, *hash, facts, now, random);
                black_box(found.expect("every flow has a session"));
            }
        }
        started.elapsed()
    }

    fn tuple(&self, way: Way, number: u32) -> Tuple {
        let outbound = self.flows.outbound(number);
        match way {
            Way::Outbound => outbound,
            Way::Inbound => Tuple {
                source: outbound.destination,
                destination: self.externals[number as usize],
                ..outbound
            },
        }
    }

    /// Sends a packet of each of these flows, at most [`SLICE`]: the time that the gateway took, and
    /// how many it translated.
    pub fn send(&self, hands: &mut Hands, way: Way, numbers: &[u32]) -> (Duration, u64) {
        for (slot, &number) in numbers.iter().enumerate() {
            let tuple = self.tuple(way, number);
            hands.write(slot, way, &tuple);
        }
        hands.work(way, numbers.len(), self.now())
    }
}

/// One worker's gateway, frame memory and counters.
pub struct Hands {
    gateway: Gateway<WorkerRandom>,
    memory: Vec<u8>,
    batch: Batch,
    stats: CachePadded<WorkerStats>,
    writers: [FrameWriter; 2],
}

impl Hands {
    fn frame(&self, slot: usize) -> &[u8] {
        &self.memory[slot * FRAME_SIZE + HEADROOM..][..FRAME_BYTES]
    }

    fn write(&mut self, slot: usize, way: Way, tuple: &Tuple) {
        let bytes = &mut self.memory[slot * FRAME_SIZE + HEADROOM..];
        self.writers[usize::from(ingress(way))].write(bytes, tuple);
    }

    /// The route of the first `count` frames, in batches as a worker takes them.
    fn work(&mut self, way: Way, count: usize, now: Time) -> (Duration, u64) {
        let ingress = ingress(way);
        let mut translated = 0;
        let Hands {
            gateway,
            memory,
            batch,
            stats,
            ..
        } = self;
        let frame = HEADROOM..HEADROOM + FRAME_BYTES;
        let started = Instant::now();
        for memory in memory[..count * FRAME_SIZE].chunks_mut(BATCH * FRAME_SIZE) {
            let slots = memory.chunks_exact(FRAME_SIZE);
            batch.look(gateway, slots.map(|slot| &slot[frame.clone()]));
            for (place, slot) in memory.chunks_exact_mut(FRAME_SIZE).enumerate() {
                let bytes = &mut slot[frame.clone()];
                let verdict = batch.judge(gateway, place, bytes, ingress, now, stats);
                let sent = matches!(verdict, Verdict::Transmit { .. } | Verdict::Hold { .. });
                translated += u64::from(sent);
            }
        }
        (started.elapsed(), translated)
    }
}

fn ingress(way: Way) -> u8 {
    match way {
        Way::Outbound => INSIDE,
        Way::Inbound => OUTSIDE,
    }
}
