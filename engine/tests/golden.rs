//! Golden tests: captures in, captures out, and all counters, for every path of the gateway.
//!
//! `tests/golden/NAME/` holds `config.toml`, `in-N.pcap` (N: the interface; a frame's timestamp is
//! the virtual time of its arrival), `events.txt` where something else happens meanwhile, and what
//! is expected: `out-N.pcap`, `host.pcap` (punted frames), `counters.json`, and `trace.txt`, the
//! same for reading. `EGRET_REGENERATE=1 cargo test -p egret-engine --test golden` writes them all
//! anew from the functions in `golden_support`: read the difference of the traces then.
//!
//! Where a device tells what is still to be done for a frame, `offloads.txt` has what it tells. Every
//! scenario is played once more with the checksums of all frames left partial that can be: what leaves,
//! finished, must be the same.

mod golden_support;

use std::path::{Path, PathBuf};

use engine::device::tap::SLOT_SIZE;
use engine::stats::Snapshot;
use engine::world::{Setup, World};
use golden_support::scenario::{Scenario, happen, leave_partial, load_pcap, save_pcap, words};
use golden_support::{faulty, fragments, oracle, paths, unfinished};
use serde_json::{Value, json};

/// How long the world goes on after the last frame: longer than anything is held.
const AFTERWARDS_MS: u64 = 5_000;

/// What came out of a world.
#[derive(Default)]
struct Outcome {
    sent: Vec<Vec<(u64, Vec<u8>)>>,
    punted: Vec<(u64, Vec<u8>)>,
    counters: Value,
    trace: String,
}

impl Outcome {
    fn collect(&mut self, world: &mut World, at_ms: u64) {
        for interface in 0..self.sent.len() {
            for bytes in world.take_sent(interface) {
                self.trace += &format!("{at_ms:>6} out {interface} {}\n", oracle::line(&bytes));
                self.sent[interface].push((at_ms, bytes));
            }
        }
        for (interface, bytes) in world.take_punted() {
            self.trace += &format!("{at_ms:>6} host {interface} {}\n", oracle::line(&bytes));
            self.punted.push((at_ms, bytes));
        }
    }
}

/// Runs a scenario; frames and events of one time happen in this order: events, then frames by
/// interface.
fn play(scenario: &Scenario) -> Outcome {
    let setup = match scenario.is_told() {
        true => Setup {
            slot_size: SLOT_SIZE,
            slots: 256,
            ..Setup::default()
        },
        false => Setup::default(),
    };
    let start = setup.start.0;
    let mut world = World::with(&scenario.config, setup).unwrap_or_else(|error| panic!("{error}"));
    for known in paths::NEIGHBOURS {
        assert!(world.set_neighbour(known, engine::neighbour::HopState::Resolved));
    }
    let mut outcome = Outcome {
        sent: vec![Vec::new(); scenario.interfaces()],
        ..Outcome::default()
    };
    let pass = |world: &mut World, outcome: &mut Outcome, until: u64| {
        while world.now().0 < start + until {
            let left = start + until - world.now().0;
            world.pass_ms(left.min(10), 10);
            outcome.collect(world, world.now().0 - start);
        }
    };
    let mut events: Vec<(u64, &str)> = Vec::new();
    for event in &scenario.events {
        let (at, what) = event.split_once(' ').unwrap();
        events.push((at.parse().unwrap(), what));
    }
    let mut events = events.into_iter().peekable();
    for frame in &scenario.frames {
        while let Some((at, event)) = events.next_if(|event| event.0 <= frame.at_ms) {
            pass(&mut world, &mut outcome, at);
            outcome.trace += &format!("{at:>6} {event}\n");
            happen(&mut world, event);
        }
        pass(&mut world, &mut outcome, frame.at_ms);
        let (at, line) = (frame.at_ms, oracle::line(&frame.bytes));
        let left = match frame.offload.is_pending() {
            true => format!(" ({})", words(&frame.offload)),
            false => String::new(),
        };
        outcome.trace += &format!("{at:>6} in {} {line}{left}\n", frame.interface);
        assert!(world.inject_unfinished(frame.interface, &frame.bytes, frame.offload));
        world.run();
        outcome.collect(&mut world, frame.at_ms);
        world.check_frames().unwrap();
    }
    for (at, event) in events {
        pass(&mut world, &mut outcome, at);
        outcome.trace += &format!("{at:>6} {event}\n");
        happen(&mut world, event);
    }
    let last = world.now().0 - start;
    pass(&mut world, &mut outcome, last + AFTERWARDS_MS);
    world.check_invariants().unwrap();
    outcome.counters = counters(&world);
    outcome
}

fn counters(world: &World) -> Value {
    let snapshot: Snapshot = world.snapshot();
    let drops: serde_json::Map<String, Value> = snapshot
        .drops()
        .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
        .collect();
    let totals = world.totals();
    json!({
        "counters": snapshot,
        "drops": drops,
        "tables": {
            "sessions": totals.sessions,
            "sessions_inbound": totals.sessions_inbound,
            "mappings": totals.mappings,
            "ports_in_use": totals.ports_in_use,
            "created": totals.created,
            "expired": totals.expired,
            "removed": totals.removed,
        },
    })
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn golden(name: &str, scenario: &Scenario, checksums_right: bool) {
    let folder = folder(name);
    let regenerate = std::env::var_os("EGRET_REGENERATE").is_some();
    if regenerate {
        std::fs::create_dir_all(&folder).unwrap();
        scenario.save(&folder);
    }
    let saved = Scenario::load(&folder);
    assert_eq!(
        saved.config, scenario.config,
        "config.toml is not the scenario's"
    );
    assert_eq!(
        saved.frames, scenario.frames,
        "the frames are not the scenario's"
    );
    assert_eq!(
        saved.events, scenario.events,
        "events.txt is not the scenario's"
    );
    let outcome = play(&saved);
    let counters = serde_json::to_string_pretty(&outcome.counters).unwrap() + "\n";

    let out = outcome.sent.iter().flatten().map(|(_, bytes)| &bytes[..]);
    let all = out.chain(outcome.punted.iter().map(|(_, bytes)| &bytes[..]));
    if checksums_right {
        oracle::check(all).unwrap_or_else(|what| panic!("{what}\n{}", outcome.trace));
    }
    if regenerate {
        for (interface, frames) in outcome.sent.iter().enumerate() {
            save_pcap(&folder.join(format!("out-{interface}.pcap")), frames);
        }
        save_pcap(&folder.join("host.pcap"), &outcome.punted);
        std::fs::write(folder.join("counters.json"), &counters).unwrap();
        std::fs::write(folder.join("trace.txt"), &outcome.trace).unwrap();
        return;
    }
    let expected = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    // The trace first: its difference can be read.
    assert!(
        expected("trace.txt") == outcome.trace,
        "{name}: the trace is now\n{}",
        outcome.trace
    );
    compare(name, &outcome);
}

/// Compares what left, what was punted and the counters with what is expected.
fn compare(name: &str, outcome: &Outcome) {
    let folder = folder(name);
    for (interface, frames) in outcome.sent.iter().enumerate() {
        let wanted = load_pcap(&folder.join(format!("out-{interface}.pcap")));
        assert!(
            wanted == *frames,
            "{name}: other bytes left by interface {interface}\n{}",
            outcome.trace
        );
    }
    assert!(
        load_pcap(&folder.join("host.pcap")) == outcome.punted,
        "{name}: other bytes punted\n{}",
        outcome.trace
    );
    let counters = std::fs::read_to_string(folder.join("counters.json")).unwrap();
    let wanted: Value = serde_json::from_str(&counters).unwrap();
    assert_eq!(wanted, outcome.counters, "{name}: counters");
}

/// Plays a saved scenario with all checksums partial that can be; how many those are.
fn golden_left_partial(name: &str) -> usize {
    let mut saved = Scenario::load(&folder(name));
    let frames = saved.frames.iter_mut();
    let left = frames.filter_map(|frame| leave_partial(frame).then_some(()));
    let count = left.count();
    compare(name, &play(&saved));
    count
}

macro_rules! goldens {
    ($($name:ident: $scenario:path;)*) => {
        $(#[test]
        fn $name() {
            golden(&stringify!($name).replace('_', "-"), &$scenario(), stringify!($name) != "malformed");
        })*

        mod with_partial_checksums {
            $(#[test]
            fn $name() {
                super::golden_left_partial(&stringify!($name).replace('_', "-"));
            })*
        }

        /// If hardly any were left partial, the tests above would prove nothing.
        #[test]
        fn many_checksums_can_be_left_partial() {
            let names = [$(stringify!($name).replace('_', "-")),*];
            let counts = names.iter().map(|name| golden_left_partial(name));
            let counts: Vec<usize> = counts.collect();
            let (all, some) = (counts.iter().sum::<usize>(), counts.iter().filter(|&&count| count > 0));
            assert!(all >= 120 && some.count() >= 20, "{counts:?}");
        }

        /// A folder that no test reads would be dead.
        #[test]
        fn every_folder_has_a_test() {
            let tests = [$(stringify!($name).replace('_', "-")),*];
            for entry in std::fs::read_dir(folder("")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(tests.contains(&name), "{name} has no test");
            }
        }
    };
}

goldens! {
    tcp_two_arm: paths::tcp_two_arm;
    tcp_one_arm: paths::tcp_one_arm;
    udp: paths::udp;
    ping: paths::ping;
    forward: paths::forward;
    hairpin: paths::hairpin;
    icmp_errors_inbound: paths::icmp_errors_inbound;
    icmp_errors_outbound: paths::icmp_errors_outbound;
    traceroute: paths::traceroute;
    fragmentation_needed: paths::fragmentation_needed;
    port_overloading: paths::port_overloading;
    eim_own_pool: paths::eim_own_pool;
    address_change: paths::address_change;
    forward_change: paths::forward_change;
    fragments_outbound: fragments::outbound;
    fragments_inbound: fragments::inbound;
    split: fragments::split;
    fragments_of_the_host: fragments::of_the_host;
    fragments_to_own_address: fragments::to_own_address;
    punt: faulty::punt;
    own_address: faulty::own_address;
    spoofed: faulty::spoofed;
    ttl_one: faulty::ttl_one;
    no_route: faulty::no_route;
    neighbour_held: faulty::neighbour_held;
    neighbour_failed: faulty::neighbour_failed;
    ports_exhausted: faulty::ports_exhausted;
    partial_checksum: faulty::partial_checksum;
    malformed: faulty::malformed;
    unfinished_checksums: unfinished::checksums;
    unfinished_errors: unfinished::errors;
    super_packets: unfinished::super_packets;
    super_packets_narrow: unfinished::narrow;
    super_packets_punted: unfinished::punted;
    contradicting_headers: unfinished::contradicting;
}
