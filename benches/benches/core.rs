//! The steps of a frame's route, each alone: parse, look-up of a session (hit), making one (create),
//! rewriting. A small form of each runs in every CI run (`-- --test`), so that it cannot rot.

use std::hint::black_box;

use benches::{Sequence, flow, policy, tables};
use conntrack::{PacketFacts, Realm, Signal, Time};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use engine::packet;
use engine::wire::checksum;

const FLOWS: u32 = 1024;
const DATAGRAM: PacketFacts = PacketFacts {
    signal: Signal::Udp,
    length: 64,
    sequence: 0,
    acknowledgement: 0,
};

fn parse(criterion: &mut Criterion) {
    let frames: Vec<_> = engine::wire::samples::valid();
    criterion.bench_function("parse", |bencher| {
        bencher.iter(|| {
            for sample in &frames {
                black_box(packet::parse(black_box(&sample.frame))).ok();
            }
        });
    });
}

fn sum(criterion: &mut Criterion) {
    let bytes = vec![0x5a; 1500];
    criterion.bench_function("checksum/1500", |bencher| {
        bencher.iter(|| checksum::sum(black_box(&bytes)));
    });
}

fn translate(criterion: &mut Criterion) {
    let (nat, policy) = (tables(1 << 16, 1), policy(1));
    let mut random = Sequence(1);
    let mut ask = |number: u32, now: Time| {
        let tuple = flow(number);
        let hash = nat.hash(&tuple);
        nat.translate(
            &policy,
            Realm::Internal,
            &tuple,
            hash,
            DATAGRAM,
            now,
            &mut random,
        )
        .expect("there is room for a thousand flows")
    };
    for number in 0..FLOWS {
        ask(number, Time(1000));
    }
    let mut number = 0;
    criterion.bench_function("translate/hit/1k", |bencher| {
        bencher.iter(|| {
            number = (number + 769) % FLOWS;
            black_box(ask(number, Time(1001)))
        });
    });
}

fn create(criterion: &mut Criterion) {
    let policy = policy(1);
    criterion.bench_function("translate/create/1k", |bencher| {
        bencher.iter_batched(
            || (tables(2048, 1), Sequence(1)),
            |(nat, mut random)| {
                for number in 0..FLOWS {
                    let tuple = flow(number);
                    let hash = nat.hash(&tuple);
                    let made = nat.translate(
                        &policy,
                        Realm::Internal,
                        &tuple,
                        hash,
                        DATAGRAM,
                        Time(1000),
                        &mut random,
                    );
                    black_box(made).ok();
                }
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(core, parse, sum, translate, create);
criterion_main!(core);
