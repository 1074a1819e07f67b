//! The figures of the bench `ports` as ratios to the empty pool: `cargo test --release -p
//! egret-benches --test fill -- --nocapture`. Bounds hold for release builds only.

use std::time::{Duration, Instant};

use benches::fill::Pool;
use conntrack::MappingBehaviour::{EndpointDependent, EndpointIndependent};

const FLOWS: u32 = 256;
const ROUNDS: usize = 5;

/// The best of some rounds: what the machine does beside only adds.
fn a_flow(mapping: conntrack::MappingBehaviour, percent: u32) -> Duration {
    let rounds = (0..ROUNDS).map(|_| {
        let mut pool = Pool::filled(mapping, percent);
        let start = Instant::now();
        for _ in 0..FLOWS {
            assert_eq!(pool.open().is_ok(), percent < 100);
        }
        start.elapsed() / FLOWS
    });
    rounds.min().expect("some rounds")
}

#[test]
fn a_port_costs_at_most_twice_as_much_in_a_full_pool() {
    for (word, mapping) in [("eim", EndpointIndependent), ("edm", EndpointDependent)] {
        let empty = a_flow(mapping, 0);
        for (percent, most) in [(50, 2.0), (90, 2.0), (99, 2.0), (100, 1.0)] {
            let filled = a_flow(mapping, percent);
            let ratio = filled.as_secs_f64() / empty.as_secs_f64();
            println!(
                r#"{{"name": "ports/{word}/{percent}", "value": {:.0}, "unit": "ns", "ratio": {ratio:.2}}}"#,
                filled.as_secs_f64() * 1e9
            );
            assert!(
                ratio < most || cfg!(debug_assertions),
                "{word} at {percent} %: {ratio:.2} times the {empty:?} of an empty pool"
            );
        }
    }
}
