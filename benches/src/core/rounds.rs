//! The rounds of a run: which tests, in which order, and their figures.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Barrier;
use std::time::Duration;

use conntrack::Key;

use super::bed::{Bed, SLICE, Way};
use super::flows::Flows;
use super::memory::Pages;
use super::pauses;
use super::yardstick::{HIT_LINES, Map, MapKey, Memory, map_key};
use crate::figure::Figure;
use crate::shuffled;

/// External addresses of a run.
const ADDRESSES: u8 = 24;
/// All ports that Egret gives away by itself.
const PORTS: &str = "1024-65535";
/// Packets of a test in one round: each flow once, but at least and at most so many.
const PACKETS: RangeInclusive<usize> = 1 << 18..=1 << 20;
/// Rounds of a worker that are timed one by one: some hundred milliseconds.
const PAUSE_ROUNDS: usize = 50_000;
/// Longer than any session of a run lives without a packet.
const LONG_MS: u64 = 1_000_000;
/// The pool of the refused flows: one address with so few ports that they are soon in use.
const FEW_PORTS: &str = "1024-2047";
/// Flows to one remote endpoint; all but as many as there are ports are refused.
const REFUSED: Flows = Flows {
    internal: 1 << 16,
    remotes: 1,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The flows of each size.
    pub sizes: Vec<Flows>,
    /// Rounds of each test, at least 1; one more is thrown away.
    pub rounds: usize,
    /// With the tables in small pages and in a BPF array, too.
    pub all_pages: bool,
    /// With two workers, too.
    pub two_workers: bool,
}

/// Measures, and hands out the figures of a size as soon as it is done.
///
/// # Errors
/// There is no memory for the tables, or no BPF array can be made.
pub fn run(options: &Options, mut tell: impl FnMut(Figure)) -> io::Result<()> {
    for &flows in &options.sizes {
        let mut bench = Bench::new(flows, options)?;
        // What is measured first of all meets cold caches and new memory.
        bench.round();
        bench.values.clear();
        for _ in 0..options.rounds {
            bench.round();
        }
        let figures = bench.values.into_iter();
        figures
            .filter_map(|(name, values)| {
                let unit = match name.split('/').nth(1) {
                    Some(test) if test.starts_with("round-") => "us",
                    Some("list") => "M/s",
                    _ => "Mpps",
                };
                Figure::of(name, unit, values)
            })
            .for_each(&mut tell);
        let name = format!("core/memory/{}/1w", flows.label());
        let bytes = bench.beds[0].1.bytes_per_session();
        Figure::of(name, "bytes/session", vec![bytes]).map(&mut tell);
    }
    Ok(())
}

/// Everything that one size is measured with.
struct Bench {
    flows: Flows,
    order: Vec<u32>,
    beds: Vec<(Pages, Bed)>,
    full: Bed,
    memory: Memory,
    maps: [(&'static str, Map); 2],
    workers: usize,
    packets: usize,
    /// Where in the order the next test starts.
    start: usize,
    /// By name of the figure, in the order of the tests.
    values: Vec<(String, Vec<f64>)>,
}

impl Bench {
    fn new(flows: Flows, options: &Options) -> io::Result<Bench> {
        let pages: &[Pages] = match options.all_pages {
            true => &[Pages::Huge, Pages::Small, Pages::BpfArray],
            false => &[Pages::Huge],
        };
        let workers = if options.two_workers { 2 } else { 1 };
        let bed = |&pages| Ok((pages, Bed::new(flows, ADDRESSES, PORTS, pages, workers)?));
        let beds = pages.iter().map(bed).collect::<io::Result<Vec<_>>>()?;
        let order = shuffled(flows.count(), 5);
        let maps = [
            ("dashmap", Map::dashmap(flows)),
            ("papaya", Map::papaya(flows)),
        ];
        for (_, map) in &maps {
            map.fill(flows, &order);
        }
        let mut full = Bed::new(REFUSED, 1, FEW_PORTS, Pages::Huge, 1)?;
        let numbers: Vec<u32> = (0..REFUSED.count()).collect();
        send(&full, Way::Outbound, &numbers, 1);
        full.resolve();
        let bytes = beds[0].1.bytes_per_session() * f64::from(flows.count());
        Ok(Bench {
            flows,
            packets: order.len().clamp(*PACKETS.start(), *PACKETS.end()),
            order,
            beds,
            full,
            memory: Memory::new(bytes as u64)?,
            maps,
            workers: workers as usize,
            start: 0,
            values: Vec::new(),
        })
    }

    /// Every test once.
    fn round(&mut self) {
        for place in 0..self.beds.len() {
            for workers in 1..=self.workers {
                self.life(place, workers);
            }
        }
        let refused: Vec<u32> = (REFUSED.count() / 2..REFUSED.count()).collect();
        let (translated, rate) = send(&self.full, Way::Outbound, &refused, 1);
        assert_eq!(translated, 0, "the pool is full");
        self.note("refuse", Pages::Huge, 1, rate);
        self.yardsticks();
    }

    /// The life of all sessions of a bed: made, used, over.
    fn life(&mut self, place: usize, workers: usize) {
        let (pages, mut bed) = self.beds.swap_remove(place);
        let (translated, made) = send(&bed, Way::Outbound, &self.order, workers);
        // A worker that loses its core in the wrong moment costs others a packet.
        let refused = self.order.len() as u64 - translated;
        assert!(
            refused <= 4 + (translated >> 12),
            "{refused} flows were refused"
        );
        self.note("create", pages, workers, made);
        bed.learn(&self.order);
        for (test, way) in [
            ("hit-outbound", Way::Outbound),
            ("hit-inbound", Way::Inbound),
        ] {
            let numbers = self.next_numbers();
            let (translated, hit) = send(&bed, way, &numbers, workers);
            assert_eq!(
                translated,
                numbers.len() as u64,
                "{test}: all have sessions"
            );
            self.note(test, pages, workers, hit);
        }
        if workers == 1 {
            let numbers = self.next_numbers();
            bed.set_dont_fragment(false);
            let (_, hit) = send(&bed, Way::Outbound, &numbers, workers);
            bed.set_dont_fragment(true);
            self.note("hit-outbound-no-df", pages, workers, hit);
            let keys: Vec<Key> = numbers.iter().map(|&n| self.key(n)).collect();
            let found = in_slices(&keys, |keys| bed.look_up(keys));
            self.note("lookup", pages, workers, found);
        }
        if workers == 1 && pages == Pages::Huge {
            let (listed, spent) = bed.list();
            assert_eq!(listed, bed.sessions(), "all are listed");
            self.note("list", pages, workers, rate(listed, spent));
            self.pauses(&mut bed);
        }
        bed.advance_ms(LONG_MS);
        let (ended, spent) = bed.expire();
        if workers == 1 {
            self.note("expire", pages, workers, rate(ended, spent));
        }
        self.beds.push((pages, bed));
        let last = self.beds.len() - 1;
        self.beds.swap(place, last);
    }

    /// What a worker's round takes while all else goes on.
    fn pauses(&mut self, bed: &mut Bed) {
        let numbers = self.next_numbers();
        let pauses = pauses::measure(bed, &numbers, PAUSE_ROUNDS);
        for (test, share) in [("round-p50", 0.5), ("round-p999", 0.999)] {
            self.note(test, Pages::Huge, 1, pauses.quantile_us(share));
        }
    }

    fn yardsticks(&mut self) {
        let numbers = self.next_numbers();
        let memory = &mut self.memory;
        let limit = in_slices(&numbers, |slice| memory.touch::<HIT_LINES>(slice.len()));
        let line = in_slices(&numbers, |slice| memory.touch::<1>(slice.len()));
        self.note("limit", Pages::Huge, 1, limit);
        self.note("limit-line", Pages::Huge, 1, line);
        let keys: Vec<MapKey> = numbers.iter().map(|&n| map_key(&self.key(n))).collect();
        for place in 0..self.maps.len() {
            let (test, map) = &self.maps[place];
            let (test, found) = (*test, in_slices(&keys, |keys| map.look_up(keys)));
            self.note(test, Pages::Huge, 1, found);
        }
    }

    fn key(&self, number: u32) -> Key {
        Key::of(&self.flows.outbound(number))
    }

    /// The flows of the next test's packets.
    fn next_numbers(&mut self) -> Vec<u32> {
        let start = self.start;
        self.start = (start + self.packets) % self.order.len();
        let numbers = self.order.iter().cycle().skip(start);
        numbers.take(self.packets).copied().collect()
    }

    fn note(&mut self, test: &str, pages: Pages, workers: usize, value: f64) {
        let name = format!(
            "core/{test}{}/{}/{workers}w",
            pages.suffix(),
            self.flows.label()
        );
        match self.values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => self.values.push((name, vec![value])),
        }
    }
}

/// Sends a packet of each of these flows, shared out among workers: how many were translated, and how
/// many the gateway took in a microsecond.
fn send(bed: &Bed, way: Way, numbers: &[u32], workers: usize) -> (u64, f64) {
    let share = |worker: usize, numbers: &[u32], start: &Barrier| {
        let mut hands = bed.hands(worker);
        start.wait();
        let mut translated = 0;
        let rate = in_slices(numbers, |slice| {
            let (spent, sent) = bed.send(&mut hands, way, slice);
            translated += sent;
            spent
        });
        (translated, rate)
    };
    let start = Barrier::new(workers);
    let shares = numbers.chunks(numbers.len().div_ceil(workers));
    std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .enumerate()
            .map(|(worker, numbers)| {
                scope.spawn({
                    let (share, start) = (&share, &start);
                    move || share(worker, numbers, start)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a worker does not panic"))
            .fold((0, 0.0), |(sent, rate), (more, faster)| {
                (sent + more, rate + faster)
            })
    })
}

/// How many a microsecond, if so long a time is measured for each slice: that of the median slice, so
/// that those in which another process had the core do not count.
fn in_slices<T>(items: &[T], mut measure: impl FnMut(&[T]) -> Duration) -> f64 {
    let slices = items.chunks(SLICE);
    let mut rates: Vec<f64> = slices
        .map(|slice| rate(slice.len() as u64, measure(slice)))
        .collect();
    let middle = rates.len() / 2;
    *rates.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Millions a second.
fn rate(count: u64, spent: Duration) -> f64 {
    count as f64 / (spent.as_secs_f64() * 1e6)
}
