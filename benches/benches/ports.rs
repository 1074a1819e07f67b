//! What a new flow costs while the pool of its external ports fills, and what refusing one costs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use benches::fill::Pool;
use conntrack::MappingBehaviour::{EndpointDependent, EndpointIndependent};
use criterion::{Criterion, criterion_group, criterion_main};

/// Flows for each filled pool: few enough to leave 99 % what it is.
const FLOWS: u64 = 128;

fn ports(criterion: &mut Criterion) {
    for (word, mapping) in [("eim", EndpointIndependent), ("edm", EndpointDependent)] {
        for percent in [0, 50, 90, 99, 100] {
            criterion.bench_function(&format!("ports/{word}/{percent}"), |bencher| {
                bencher.iter_custom(|flows| {
                    let (mut left, mut spent) = (flows, Duration::ZERO);
                    while left > 0 {
                        let mut pool = Pool::filled(mapping, percent);
                        let now = left.min(FLOWS);
                        let start = Instant::now();
                        for _ in 0..now {
                            black_box(pool.open()).ok();
                        }
                        spent += start.elapsed();
                        left -= now;
                    }
                    spent
                });
            });
        }
    }
}

criterion_group! {
    name = fill;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(100));
    targets = ports
}
criterion_main!(fill);
