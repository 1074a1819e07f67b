//! The rate that `egret check` calls sustainable, held against tables under churn: with a bit less
//! nothing is ever refused, with a bit more something is.

use std::sync::atomic::AtomicU64;

use conntrack::{
    Endpoint, Identity, Nat, PacketFacts, Policy, PolicyChange, Protocol, Random, Realm, Refusal,
    Signal, TableSize, Time, Tuple,
};
use engine::config::Config;
use engine::plan::{Plan, sustainable_rate};
use support::{TWO_ARM, host};

mod support;

struct Sequence(u64);

impl Random for Sequence {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }
}

const SIZE: TableSize = TableSize {
    sessions_max: 8192,
    addresses_max: 1,
};

/// Flows of one packet, so many a second for half an hour: how many were refused.
fn refused(policy: &Policy, per_second: f64) -> u32 {
    let words = |count: usize| -> &'static [AtomicU64] {
        Box::leak((0..count).map(|_| AtomicU64::new(0)).collect())
    };
    let (tables, owned) = (words(SIZE.words()), words(SIZE.owned_words()));
    let mut random = Sequence(1);
    let identity = Identity { boot_id: [1; 16] };
    let nat = Nat::create(tables, owned, SIZE, identity, &mut random).unwrap();
    while !nat.apply_policy(policy, &mut PolicyChange::new(policy), Time(0), 1_000_000) {}
    let (mut flows, mut refused) = (0_u32, 0);
    for slice in 1..=18_000_u64 {
        let now = Time(slice * 100);
        nat.sweep(policy, now, 2000);
        while f64::from(flows) < per_second * now.0 as f64 / 1000.0 {
            let [_, a, b, c] = flows.to_be_bytes();
            flows += 1;
            let tuple = Tuple {
                protocol: Protocol::Udp,
                source: Endpoint::new([10, a, b, c].into(), 7000),
                destination: Endpoint::new([203, 0, 113, 200].into(), 53),
            };
            let hash = nat.hash(&tuple);
            let (realm, signal) = (Realm::Internal, Signal::Udp);
            match nat.translate(policy, realm, &tuple, hash, facts(signal), now, &mut random) {
                Ok(_) => {}
                Err(Refusal::PortsExhausted) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    nat.check(policy, Time(1_800_000)).unwrap();
    refused
}

#[test]
fn rfc6888_8_the_sustainable_rate_is_what_the_tables_sustain() {
    let held = "mapping = \"eim\"\nfiltering = \"eif\"\n[timers]\nudp_timeout_s = 120\nhold_down_s";
    let cases = [
        ("[nat]\nmapping = \"eim\"\n".to_owned(), 10.0 / 3.0),
        (format!("[nat]\n{held} = 30\n"), 1000.0 / 150.0),
        (format!("[nat]\n{held} = 120\n"), 750.0 / 120.0),
        (
            format!("hold_down_max_percent = 100\n[nat]\n{held} = 120\n"),
            1000.0 / 240.0,
        ),
    ];
    for (more, expected) in cases {
        let text =
            format!("{TWO_ARM}[pool]\naddresses = \"203.0.113.4\"\nports = \"2000-2999\"\n{more}");
        let config = Config::parse("egret.toml", &text).unwrap_or_else(|error| panic!("{error}"));
        let policy = Plan::make(&config, &host()).expect("a plan").policy;
        let ports = policy.addresses[0].ports[Protocol::Udp.index()].len();
        let rate = sustainable_rate(&config, Protocol::Udp, ports).per_second;
        assert!((rate - expected).abs() < 0.01, "{more}: {rate}");
        // Ends of mappings and hold-downs are rounded up to a second each.
        assert_eq!(refused(&policy, rate * 0.97), 0, "{more}");
        assert!(refused(&policy, rate * 1.05) > 100, "{more}");
    }
}

fn facts(signal: Signal) -> PacketFacts {
    PacketFacts {
        signal,
        length: 64,
        sequence: 0,
        acknowledgement: 0,
    }
}
