//! Instructions of a worker's steps, counted by callgrind: the same in every run, on a busy machine,
//! too. `cargo run -p egret-benches --bin instructions` holds them against `instructions.toml`.
#![allow(missing_docs, unused_qualifications)] // In what the macros make.

use std::hint::black_box;

use benches::rings::Rings;
use benches::route::{BATCH, EXTERNAL, Frames, INTERNAL, Route};
use conntrack::Protocol;
use gungraun::Callgrind;
use gungraun::prelude::*;

const SESSIONS: u32 = 1024;
const PORTS: u16 = 8192;

/// A gateway, a batch of frames for it, and the interface that they come by.
type Round = (Route, Frames, u8);

fn outbound(protocol: Protocol) -> Round {
    let route = Route::new(protocol, SESSIONS, PORTS);
    let frames = route.outbound(SESSIONS);
    (route, frames, INTERNAL)
}

fn inbound(protocol: Protocol) -> Round {
    let mut route = Route::new(protocol, SESSIONS, PORTS);
    let frames = route.inbound(SESSIONS);
    (route, frames, EXTERNAL)
}

fn opening(protocol: Protocol) -> Round {
    let route = Route::new(protocol, SESSIONS, PORTS);
    let frames = route.opening_batch(SESSIONS);
    (route, frames, INTERNAL)
}

/// Every port is in use, and that has been proved.
fn full() -> Round {
    let mut route = Route::new(Protocol::Udp, SESSIONS, SESSIONS as u16);
    let mut first = route.opening_batch(SESSIONS);
    assert_eq!(route.judge(&mut first, INTERNAL), 0);
    let frames = route.opening_batch(SESSIONS + BATCH as u32);
    (route, frames, INTERNAL)
}

/// The round and what it sent go out again, so that taking them down is not counted.
fn judge((mut route, mut frames, ingress): Round) -> (usize, Route, Frames) {
    let sent = black_box(&mut route).judge(black_box(&mut frames), ingress);
    (sent, route, frames)
}

fn all_are_sent((sent, ..): (usize, Route, Frames)) {
    assert_eq!(sent, BATCH);
}

fn none_is_sent((sent, ..): (usize, Route, Frames)) {
    assert_eq!(sent, 0);
}

#[library_benchmark(teardown = all_are_sent)]
#[bench::outbound_udp(outbound(Protocol::Udp))]
#[bench::outbound_tcp(outbound(Protocol::Tcp))]
#[bench::inbound_udp(inbound(Protocol::Udp))]
#[bench::inbound_tcp(inbound(Protocol::Tcp))]
fn hit(round: Round) -> (usize, Route, Frames) {
    judge(round)
}

#[library_benchmark(teardown = all_are_sent)]
#[bench::udp(opening(Protocol::Udp))]
#[bench::tcp(opening(Protocol::Tcp))]
fn create(round: Round) -> (usize, Route, Frames) {
    judge(round)
}

#[library_benchmark(teardown = none_is_sent)]
#[bench::full_pool(full())]
fn refuse(round: Round) -> (usize, Route, Frames) {
    judge(round)
}

/// Rings that have gone round once, with a batch received and a batch sent.
fn served() -> Rings {
    let mut rings = Rings::new(4 * BATCH as u32);
    rings.serve(BATCH as u32);
    rings.round();
    rings.serve(BATCH as u32);
    rings
}

fn a_batch_went_round((frames, _): (u32, Rings)) {
    assert_eq!(frames, BATCH as u32);
}

#[library_benchmark(teardown = a_batch_went_round)]
#[bench::round(served())]
fn rings(mut rings: Rings) -> (u32, Rings) {
    let frames = black_box(&mut rings).round();
    (frames, rings)
}

library_benchmark_group!(name = worker, benchmarks = [hit, create, refuse, rings]);
main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = worker
);
