//! Random operations on the tables and on a small, slow reference NAT, which must agree step by
//! step: same answers, same refusals, same totals, same listing, same ownership bits.
//!
//! `EGRET_MODEL_OPERATIONS` is about how many operations to do (300,000 by default),
//! `EGRET_MODEL_SEED` the seed of the first run; a failure names the seed of its own run, so that
//! `EGRET_MODEL_SEED=... EGRET_MODEL_OPERATIONS=1` repeats it alone.

#[path = "model/change.rs"]
mod change;
#[path = "model/choice.rs"]
mod choice;
#[path = "model/connection.rs"]
mod connection;
#[path = "model/drive.rs"]
mod drive;
#[path = "model/flow.rs"]
mod flow;
#[path = "model/judge.rs"]
mod judge;
#[path = "model/observe.rs"]
mod observe;
#[path = "model/operation.rs"]
mod operation;
#[path = "model/quota.rs"]
mod quota;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/refuse.rs"]
mod refuse;
#[path = "model/ruling.rs"]
mod ruling;
#[path = "model/upkeep.rs"]
mod upkeep;

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use drive::{Drive, Memory, size_of};
use operation::{Configuration, Operation};

/// Operations of one run, at most.
const RUN: usize = 1500;

/// What a run of the usual length must have tried, else it proves little.
const HAPPENS: &[&str] = &[
    "DestinationDenied from Internal",
    "Filtered from External",
    "Filtered from Internal",
    "ForwardDenied from External",
    "ForwardDenied from Internal",
    "ForwardInboundLimit from External",
    "IcmpUnasked from Internal",
    "InboundLimit from External",
    "MappingInboundLimit from External",
    "MappingsFull from Internal",
    "NoExternalAddress from Internal",
    "NoSession from External",
    "NoSession from Internal",
    "PortsExhausted from External",
    "PortsExhausted from Internal",
    "RuleBypass from Internal",
    "RuleDrop from Internal",
    "SessionsFull from External",
    "SessionsFull from Internal",
    "SubscriberPorts from Internal",
    "SubscriberSessions from Internal",
    "TcpMidstream from Internal",
    "a mapping in each pool",
    "embedded",
    "embedded without a session",
    "ended by a denial",
    "ended by a rule",
    "ended by another pool",
    "expired session met",
    "filtered by a rule's way",
    "half-open evicted",
    "held down",
    "hold-down renewed",
    "last port of a quota",
    "last session of a quota",
    "leaves by another pool",
    "mapping revived",
    "mappings met in one pool",
    "next hop remembered",
    "no room for a hold-down",
    "no way back by a rule",
    "not ended by a denial",
    "not ended by other rules",
    "not the paired address",
    "opened as hairpin",
    "opened by a forward's target",
    "opened through a forward",
    "opened through a mapping",
    "opened with edm",
    "opened with eim",
    "opened without pairing",
    "over by a rule's timers",
    "over by a service's timers",
    "packet Hairpin",
    "packet Inbound",
    "packet Outbound",
    "port like the source port",
    "port overloaded",
    "port preserved",
    "removed by policy",
    "restart",
    "restart with what counts",
    "spoofed",
    "swept",
    "tcp Closing",
    "tcp Established",
    "tcp Init",
    "tcp InitiatorFin",
    "tcp Reset",
    "tcp ResponderFin",
    "tcp SynSeen",
    "timers renewed",
    "translated by a rule",
];

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .replace('_', "")
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}

/// Runs until so many operations agreed. Every kind of run comes up in turn.
fn agree(eim: bool) {
    let operations = number("EGRET_MODEL_OPERATIONS", 300_000) / 2;
    let first = number("EGRET_MODEL_SEED", 1);
    let coverage = RefCell::new(BTreeMap::<String, u64>::new());
    let done = RefCell::new(0);
    for seed in first.. {
        if *done.borrow() >= operations && seed > first {
            break;
        }
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 40_000,
            max_shrink_time: 30_000,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let strategy = (
            operation::configuration(eim, (seed % 3) as u8),
            operation::operations(RUN),
        );
        let result = runner.run(&strategy, |(configuration, operations)| {
            let memory = Memory::new(size_of(&configuration));
            let mut drive = Drive::new(&memory, &configuration);
            let agreed = drive.run(&operations);
            *done.borrow_mut() += operations.len() as u64;
            for (what, count) in &drive.reference.coverage {
                *coverage.borrow_mut().entry(what.clone()).or_default() += count;
            }
            agreed.map_err(TestCaseError::fail)
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(_, (configuration, operations))) => {
                tell(seed, &configuration, &operations)
            }
            Err(TestError::Abort(reason)) => panic!("seed {seed}: {reason}"),
        }
    }
    let (done, coverage) = (done.into_inner(), coverage.into_inner());
    println!("{done} operations agreed: {coverage:#?}");
    if done >= 100_000 {
        let missed = |what: &&&str| !coverage.contains_key(**what);
        let missed: Vec<_> = HAPPENS.iter().filter(missed).collect();
        assert!(missed.is_empty(), "never happened: {missed:?}");
    }
}

/// Leaves out what the failure does not need: halves, quarters, and so on down to single ones.
fn fewer(configuration: &Configuration, operations: &[Operation]) -> Vec<Operation> {
    let memory = Memory::new(size_of(configuration));
    let fails = |some: &[Operation]| Drive::new(&memory, configuration).run(some).is_err();
    let mut kept = operations.to_vec();
    let mut chunk = kept.len().div_ceil(2);
    while chunk > 0 {
        let mut place = 0;
        let mut left_out = false;
        while place < kept.len() {
            let mut some = kept.clone();
            some.drain(place..(place + chunk).min(kept.len()));
            if fails(&some) {
                kept = some;
                left_out = true;
            } else {
                place += chunk;
            }
        }
        chunk = if left_out {
            chunk.min(kept.len())
        } else {
            chunk / 2
        };
    }
    kept
}

/// Runs the smallest failure again and tells its story.
fn tell(seed: u64, configuration: &Configuration, operations: &[Operation]) {
    let operations = &fewer(configuration, operations);
    let memory = Memory::new(size_of(configuration));
    let mut drive = Drive::new(&memory, configuration);
    let start = drive.reference.policy.clone();
    drive.story = Some(Vec::new());
    let error = drive.run(operations);
    for operation in operations {
        println!("{operation:?}");
    }
    println!(
        "{configuration:?}\n{start:?}\n{}",
        drive.story.unwrap_or_default().join("\n")
    );
    panic!("EGRET_MODEL_SEED={seed} EGRET_MODEL_OPERATIONS=1 repeats this: {error:?}");
}

#[test]
fn agrees_on_endpoint_independent_mappings() {
    agree(true);
}

#[test]
fn agrees_on_endpoint_dependent_mappings() {
    agree(false);
}
