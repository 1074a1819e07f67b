//! Hold-down: RFC 6888 REQ-8, its limits, and what a loss of state leaves.

mod common;
use common::*;
use conntrack::{LostPorts, Nat, Signal};
use std::sync::atomic::AtomicU64;

#[test]
fn rfc6888_8x_how_much_may_be_held_is_configurable() {
    for (percent, held) in [(0, 0), (25, 10), (50, 20), (100, 40)] {
        let mut policy = policy(EIM, EIF);
        policy.addresses = vec![external("198.51.100.1", 0, 2000, 2039)].into();
        policy.hold_down_max_percent = percent;
        policy.timers.hold_down_ms = 30_000;
        let mut rig = Rig::new(policy);
        for host in 1..=40 {
            rig.udp(&format!("10.0.0.{host}:1000"), "203.0.113.1:53");
        }
        rig.wait(302_000);
        rig.sweep();
        assert_eq!(rig.nat.totals().ports_held, [0, held, 0], "{percent} %");
        rig.wait(32_000);
        rig.sweep();
        assert_eq!(rig.nat.totals().ports_held, [0; 3], "{percent} %: 30 s");
        rig.check();
    }
}

/// Tables that are gone while the ownership bitmap is not: what it says was in use is held down,
/// TCP too and whatever the filtering, at the address where it was, within the limit.
#[test]
fn rfc6888_8_lost_state_holds_down_what_was_in_use() {
    let two = |slots: [u16; 2]| {
        let mut two = policy(EDM, EDF);
        two.addresses = vec![
            external("198.51.100.1", slots[0], 2000, 2099),
            external("198.51.100.2", slots[1], 2000, 2099),
        ]
        .into();
        two.forwards = vec![forward(TCP, "198.51.100.1:443", "10.0.0.9:443", &[])].into();
        two
    };
    let mut rig = Rig::new(two([0, 1]));
    let mut used = Vec::new();
    for host in 1..=12 {
        let tcp = rig.connect(&format!("10.0.0.{host}:2050"), "203.0.113.1:80");
        let udp = rig.udp(&format!("10.0.0.{host}:2050"), "203.0.113.1:53");
        used.extend([(TCP, tcp), (UDP, udp)]);
    }
    let placed = [(0, addr("198.51.100.1")), (1, addr("198.51.100.2"))];
    let lost = LostPorts::of(rig.owned, &placed);
    let other = conntrack::Identity { boot_id: [8; 16] };
    assert!(Nat::open(rig.words, rig.owned, rig.size, other).is_err());
    rig.nat = Nat::create(rig.words, rig.owned, rig.size, other, &mut rig.random).unwrap();
    assert_eq!(rig.owned_bits(), 0);
    // The next engine gives the addresses other slots.
    rig.policy = two([1, 0]);
    rig.apply();
    let held = rig.nat.hold_lost(&rig.policy, &lost, rig.now);
    assert_eq!(held, 24);
    assert_eq!(rig.nat.totals().ports_held, [12, 12, 0]);
    rig.check();
    for host in 1..=88 {
        for (protocol, signal) in [(TCP, Signal::TcpSyn), (UDP, Signal::Udp)] {
            let from = format!("10.0.1.{host}:2050");
            let external = rig.out(signal, &from, "203.0.113.1:80").unwrap().source;
            assert!(!used.contains(&(protocol, external)), "{external}");
        }
    }
    rig.wait(122_000);
    rig.sweep();
    assert_eq!(rig.nat.totals().ports_held, [0; 3]);
    rig.check();

    // No hold-down asked for, a full pool, and addresses that are gone.
    rig.policy.timers.hold_down_ms = 0;
    assert_eq!(rig.nat.hold_lost(&rig.policy, &lost, rig.now), 0);
    let mut rig = Rig::new(two([0, 1]));
    let full: Vec<AtomicU64> = (0..6144).map(|_| AtomicU64::new(u64::MAX)).collect();
    let lost = LostPorts::of(&full, &placed);
    // A quarter of 100 TCP and UDP ports and of the identifiers, at each address.
    assert_eq!(rig.nat.hold_lost(&rig.policy, &lost, rig.now), 2 * 3 * 25);
    rig.check();
    rig.policy.addresses.edit(|list| list.truncate(1));
    rig.apply();
    assert_eq!(rig.nat.hold_lost(&rig.policy, &lost, rig.now), 0);
    rig.check();
}
