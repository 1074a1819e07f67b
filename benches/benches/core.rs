//! The steps of a frame's route, each alone and then together: parse, checksum, look-up in the table,
//! translation, and the gateway's whole part. Every batch is of 64, as a worker's. A small form of each
//! runs in every CI run (`-- --test`), so that it cannot rot.

use std::hint::black_box;
use std::time::{Duration, Instant};

use benches::fill::Pool;
use benches::flow;
use benches::route::{BATCH, EXTERNAL, Frames, INTERNAL, Route};
use benches::sessions::{Sessions, Visits};
use conntrack::{MappingBehaviour, Protocol, Tuple};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engine::packet;
use engine::wire::checksum;

/// Sessions of the benches that depend on them: in the first cache, in the last, in memory.
const SIZES: [(&str, u32); 3] = [("1k", 1 << 10), ("64k", 1 << 16), ("1M", 1 << 20)];
const A_BATCH: Throughput = Throughput::Elements(BATCH as u64);

fn parse(criterion: &mut Criterion) {
    let frames: Vec<_> = engine::wire::samples::valid();
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(frames.len() as u64));
    group.bench_function("samples", |bencher| {
        bencher.iter(|| {
            for sample in &frames {
                black_box(packet::parse(black_box(&sample.frame))).ok();
            }
        });
    });
}

fn sum(criterion: &mut Criterion) {
    for length in [20, 64, 1500] {
        let bytes = vec![0x5a; length];
        criterion.bench_function(&format!("checksum/{length}"), |bencher| {
            bencher.iter(|| checksum::sum(black_box(&bytes)));
        });
    }
    let ([a, b], [from, to]) = ([[10, 77, 0, 9], [198, 18, 0, 1]], [20_000, 31_000]);
    criterion.bench_function("checksum/incremental", |bencher| {
        bencher.iter(|| {
            let delta = checksum::delta_address(black_box(a.into()), black_box(b.into()))
                + checksum::delta16(black_box(from), black_box(to));
            checksum::apply(black_box(0x1234), checksum::fold(delta))
        });
    });
}

/// Look-ups and hits, over the same tables.
fn full(criterion: &mut Criterion) {
    for (word, count) in SIZES {
        let mut sessions = Sessions::full(count);
        let mut visits = Visits::new(count);
        let mut batch = |offset: u32| -> Vec<Tuple> {
            let numbers = visits.by_ref().take(BATCH);
            numbers.map(|number| flow(number + offset)).collect()
        };
        let mut group = criterion.benchmark_group("table");
        group.throughput(A_BATCH);
        for (name, offset, found) in [("hit", 0, BATCH), ("miss", count, 0)] {
            group.bench_function(format!("{name}/{word}"), |bencher| {
                bencher.iter_batched(
                    || batch(offset),
                    |tuples| {
                        let there = tuples.iter().filter(|tuple| sessions.find(tuple)).count();
                        assert_eq!(there, found);
                        tuples
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
        let mut group = criterion.benchmark_group("translate");
        group.throughput(A_BATCH);
        let mut hashes = Vec::with_capacity(BATCH);
        group.bench_function(format!("hit/{word}"), |bencher| {
            bencher.iter_batched(
                || batch(0),
                |tuples| {
                    assert_eq!(sessions.translate_batch(&tuples, &mut hashes), BATCH);
                    tuples
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn create(criterion: &mut Criterion) {
    const FLOWS: u32 = 1024;
    let tuples: Vec<Tuple> = (0..FLOWS).map(flow).collect();
    let mut sessions = Sessions::empty(2 * FLOWS);
    let mut group = criterion.benchmark_group("translate");
    group.throughput(Throughput::Elements(FLOWS.into()));
    group.bench_function("create", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for _ in 0..count {
                sessions.clear();
                let start = Instant::now();
                for tuple in &tuples {
                    sessions.translate(tuple).expect("there is room");
                }
                spent += start.elapsed();
            }
            spent
        });
    });
}

fn refuse(criterion: &mut Criterion) {
    let mut pool = Pool::filled(MappingBehaviour::EndpointDependent, 100);
    let mut group = criterion.benchmark_group("translate");
    group.throughput(Throughput::Elements(1));
    group.bench_function("refuse", |bencher| {
        bencher.iter(|| pool.open().expect_err("the pool is full"));
    });
}

/// The gateway's part of a round over the same batch again and again, `rounds` times. Putting back the
/// frames that it rewrote is not counted.
fn rounds(route: &mut Route, batch: &Frames, ingress: u8, rounds: u64) -> Duration {
    let (mut frames, mut spent) = (batch.clone(), Duration::ZERO);
    for _ in 0..rounds {
        for (frame, original) in frames.iter_mut().zip(batch) {
            frame.copy_from_slice(original);
        }
        let start = Instant::now();
        let sent = route.judge(black_box(&mut frames), ingress);
        spent += start.elapsed();
        assert_eq!(sent, BATCH);
    }
    spent
}

fn process(criterion: &mut Criterion) {
    const SESSIONS: u32 = 1024;
    let mut group = criterion.benchmark_group("process");
    group.throughput(A_BATCH);
    for (word, protocol) in [("udp", Protocol::Udp), ("tcp", Protocol::Tcp)] {
        let mut route = Route::new(protocol, SESSIONS, 8192);
        let (out, back) = (route.outbound(SESSIONS), route.inbound(SESSIONS));
        for (way, batch, ingress) in [("outbound", out, INTERNAL), ("inbound", back, EXTERNAL)] {
            group.bench_function(format!("{word}/{way}"), |bencher| {
                bencher.iter_custom(|count| rounds(&mut route, &batch, ingress, count));
            });
        }
    }
}

criterion_group!(core, parse, sum, full, create, refuse, process);
criterion_main!(core);
