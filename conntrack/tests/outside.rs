//! What the outside may fill: floods and scans, against those who are inside or have connected.

mod common;
use common::*;
use conntrack::Signal::{TcpData, TcpFin, TcpSyn, TcpSynAck, Udp};
use conntrack::{Endpoint, Policy, Realm, Refusal, Rewrite, Signal};

const WEB: &str = "198.51.100.1:80";
const WEB_TARGET: &str = "10.0.0.2:8080";
const MAIL: &str = "198.51.100.1:25";
const MAIL_TARGET: &str = "10.0.0.3:25";

fn two_forwards(sessions_max: u32) -> Rig {
    let mut policy = policy(EDM, EDF);
    policy.forwards = vec![
        forward(TCP, WEB, WEB_TARGET, &[]),
        forward(TCP, MAIL, MAIL_TARGET, &[]),
    ]
    .into();
    rig(policy, sessions_max)
}

fn rig(mut policy: Policy, sessions_max: u32) -> Rig {
    policy.addresses = vec![external("198.51.100.1", 0, 1024, 65535)].into();
    Rig::sized(policy, sessions_max)
}

/// Remote endpoint number `i` of a forger: none comes twice in 2^32.
fn forged(i: u32) -> Endpoint {
    let mixed = i.wrapping_mul(0x9e37_79b1);
    let addr = 0x2000_0000 | mixed >> 8;
    Endpoint::new(addr.into(), 1024 + (mixed & 0xff) as u16)
}

impl Rig {
    fn from(&mut self, remote: Endpoint, signal: Signal, to: &str) -> Result<Rewrite, Refusal> {
        self.packet(
            Realm::External,
            tuple(protocol_of(signal), remote, ep(to)),
            signal,
        )
    }

    fn to(&mut self, target: &str, signal: Signal, remote: Endpoint) -> Result<Rewrite, Refusal> {
        self.packet(
            Realm::Internal,
            tuple(protocol_of(signal), ep(target), remote),
            signal,
        )
    }

    /// A handshake through a forward without delay.
    fn enter(&mut self, remote: Endpoint, forward: &str, target: &str) -> Result<(), Refusal> {
        self.from(remote, TcpSyn, forward)?;
        self.to(target, TcpSynAck, remote)?;
        self.from(remote, TcpData, forward).map(drop)
    }
}

fn client(i: u32) -> Endpoint {
    Endpoint::new((0xcb00_7100 | i & 0xff).into(), 20_000 + (i >> 8) as u16)
}

/// A handshake that takes a round trip, under a flood of so many SYNs a millisecond. Forged ones get
/// their SYN+ACK, too. Returns how many of `tries` handshakes got through at the first SYN.
fn honest_under_flood(rig: &mut Rig, per_ms: u32, round_trip_ms: u64, tries: u32) -> u32 {
    let mut next = rig.now.0 as u32 * 1000;
    let mut flood = |rig: &mut Rig, ms: u64| {
        for _ in 0..ms {
            rig.wait(1);
            for _ in 0..per_ms {
                next += 1;
                rig.from(forged(next), TcpSyn, WEB).unwrap();
                let answer = rig.to(WEB_TARGET, TcpSynAck, forged(next));
                assert!(answer.is_ok());
            }
        }
    };
    let mut entered = 0;
    for i in 0..tries {
        let honest = client(rig.now.0 as u32 + i);
        rig.from(honest, TcpSyn, WEB).unwrap();
        rig.to(WEB_TARGET, TcpSynAck, honest).unwrap();
        flood(rig, round_trip_ms);
        entered += u32::from(rig.from(honest, TcpData, WEB).is_ok());
    }
    entered
}

#[test]
fn a_million_forged_syns_leave_everyone_else_alone() {
    let mut rig = two_forwards(1 << 18);
    rig.enter(client(1), WEB, WEB_TARGET).unwrap();
    rig.enter(client(2), MAIL, MAIL_TARGET).unwrap();
    let inside = rig.connect("10.0.0.9:5000", "203.0.113.1:443");
    let mut state = 0;
    for i in 0..1_000_000 {
        if i % 100 == 0 {
            rig.wait(1);
        }
        rig.from(forged(i), TcpSyn, WEB).unwrap();
        if i % 1000 != 0 {
            continue;
        }
        state += 1;
        // Another forward, a new connection from inside, and those that are open.
        rig.enter(client(state * 256 + 7), MAIL, MAIL_TARGET)
            .unwrap();
        let port = 1024 + state;
        rig.connect(&format!("10.0.0.8:{port}"), "203.0.113.1:443");
        rig.from(client(1), TcpData, WEB).unwrap();
        rig.from(client(2), TcpData, MAIL).unwrap();
        rig.back(TcpData, "203.0.113.1:443", inside).unwrap();
    }
    let totals = rig.nat.totals();
    assert_eq!(totals.sessions_half_open, 8192, "{totals:?}");
    assert_eq!(totals.evicted, 1_000_000 - 8192);
    rig.check();
    // The flood is over: the rest goes with the opening timer.
    rig.wait(240_000);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions_half_open, 0);
    rig.check();
}

#[test]
fn an_honest_handshake_gets_through_the_flooded_forward() {
    // (SYNs a ms, round trip in ms): whether 8192 half-open ones cover it.
    for (per_ms, round_trip_ms, enters) in [
        (10, 200, true),
        (100, 50, true),
        (100, 80, true),
        (100, 90, false),
        (400, 20, true),
    ] {
        let mut rig = two_forwards(1 << 18);
        honest_under_flood(&mut rig, per_ms, 8192 / u64::from(per_ms) + 1, 1);
        let entered = honest_under_flood(&mut rig, per_ms, round_trip_ms, 10);
        println!("{per_ms} SYNs a ms, {round_trip_ms} ms round trip: {entered} of 10 at once");
        assert_eq!(entered, if enters { 10 } else { 0 });
        rig.check();
    }
}

#[test]
fn the_oldest_half_open_gives_way_first() {
    let mut rig = two_forwards(1 << 12);
    let limit = 128;
    for i in 0..limit {
        rig.from(forged(i), TcpSyn, WEB).unwrap();
    }
    // The first to be answered and acknowledged are safe.
    for i in 0..2 {
        rig.to(WEB_TARGET, TcpSynAck, forged(i)).unwrap();
        rig.from(forged(i), TcpData, WEB).unwrap();
    }
    for i in limit..limit + 3 {
        rig.from(forged(i), TcpSyn, WEB).unwrap();
    }
    assert_eq!(rig.nat.totals().evicted, 1);
    let answer = |rig: &mut Rig, i| rig.to(WEB_TARGET, TcpSynAck, forged(i)).map(drop);
    assert_eq!(answer(&mut rig, 2), Err(Refusal::TcpMidstream));
    assert_eq!(answer(&mut rig, 3), Ok(()));
    rig.check();
    // A closed connection that the client opens anew is half-open again, and the newest.
    rig.from(forged(0), TcpFin, WEB).unwrap();
    rig.to(WEB_TARGET, TcpFin, forged(0)).unwrap();
    rig.from(forged(0), TcpSyn, WEB).unwrap();
    assert_eq!(rig.nat.totals().sessions_half_open, u64::from(limit) + 1);
    rig.check();
    rig.from(forged(900), TcpSyn, WEB).unwrap();
    assert_eq!(answer(&mut rig, 0), Ok(()));
    rig.check();
}

#[test]
fn a_forward_that_is_full_of_connections_refuses() {
    let mut rig = two_forwards(1 << 12);
    rig.policy.limits.inbound_sessions_per_forward = Some(100);
    for i in 0..100 {
        rig.enter(forged(i), WEB, WEB_TARGET).unwrap();
    }
    let full = Err(Refusal::ForwardInboundLimit);
    assert_eq!(rig.from(forged(100), TcpSyn, WEB).map(drop), full);
    assert_eq!(
        rig.nat.totals().evicted,
        0,
        "nothing that is open gives way"
    );
    rig.enter(forged(100), MAIL, MAIL_TARGET).unwrap();
    rig.check();
}

#[test]
fn a_flood_at_many_forwards_leaves_room_for_connections() {
    let mut policy = policy(EDM, EDF);
    let ports = 2000..2020;
    let at = |port: u16| format!("198.51.100.1:{port}");
    policy.forwards = ports
        .clone()
        .map(|port| forward(TCP, &at(port), "10.0.0.2:1", &[]))
        .collect();
    let mut rig = rig(policy, 1 << 12);
    for (n, port) in ports.clone().enumerate() {
        for i in 0..200 {
            let made = rig
                .from(forged(n as u32 * 1000 + i), TcpSyn, &at(port))
                .map(drop);
            assert!(made.is_ok(), "{n}: {made:?}");
        }
    }
    assert_eq!(rig.nat.totals().sessions_half_open, 512, "an eighth");
    // They let honest clients in at the cost of forgers.
    for port in ports {
        rig.enter(client(port.into()), &at(port), "10.0.0.2:1")
            .unwrap();
    }
    rig.check();
}

/// While forged SYNs at five forwards use up what half-open connections may have, twenty clients at a
/// time get through their handshakes at a sixth.
#[test]
fn floods_at_some_forwards_leave_others_their_part() {
    let mut policy = policy(EDM, EDF);
    let at = |port: u16| format!("198.51.100.1:{port}");
    policy.forwards = (2000..2006)
        .map(|port| forward(TCP, &at(port), &format!("10.0.0.2:{port}"), &[]))
        .collect();
    let mut rig = rig(policy, 1 << 12);
    let mut next = 0;
    let mut flood = |rig: &mut Rig, syns: u32| {
        for _ in 0..syns {
            next += 1;
            let port = 2000 + (next % 5) as u16;
            rig.from(forged(next), TcpSyn, &at(port)).unwrap();
        }
    };
    for round in 0..10 {
        let clients: Vec<_> = (0..20).map(|n| client(round * 1000 + n)).collect();
        for &remote in &clients {
            flood(&mut rig, 100);
            rig.from(remote, TcpSyn, &at(2005)).unwrap();
            rig.to("10.0.0.2:2005", TcpSynAck, remote).unwrap();
        }
        flood(&mut rig, 1000);
        for &remote in &clients {
            rig.from(remote, TcpData, &at(2005)).unwrap();
        }
    }
    flood(&mut rig, 100);
    assert_eq!(rig.nat.totals().sessions_half_open, 512);
    rig.check();
}

/// The flooded ones are found among a thousand.
#[test]
fn floods_at_four_of_a_thousand_forwards() {
    let mut policy = policy(EDM, EDF);
    let at = |port: u16| format!("198.51.100.1:{port}");
    policy.forwards = (2000..3000)
        .map(|port| forward(TCP, &at(port), &format!("10.0.0.2:{port}"), &[]))
        .collect();
    let mut rig = rig(policy, 1 << 14);
    for i in 0..10_000 {
        let port = 2900 + (i % 4) as u16;
        rig.from(forged(i), TcpSyn, &at(port)).unwrap();
    }
    assert_eq!(rig.nat.totals().sessions_half_open, 2048);
    for port in (2000..2900).step_by(7) {
        let remote = client(port.into());
        rig.enter(remote, &at(port), &format!("10.0.0.2:{port}"))
            .unwrap();
    }
    rig.check();
}

#[test]
fn udp_to_a_forward_stops_at_its_limit() {
    let mut policy = policy(EDM, EDF);
    policy.forwards = vec![
        forward(UDP, "198.51.100.1:53", "10.0.0.2:53", &[]),
        forward(TCP, WEB, WEB_TARGET, &[]),
    ]
    .into();
    let mut rig = rig(policy, 1 << 14);
    let mut refused = 0;
    for i in 0..100_000 {
        match rig.from(forged(i), Udp, "198.51.100.1:53") {
            Ok(_) => assert!(i < 2048),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::ForwardInboundLimit);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 100_000 - 2048);
    rig.from(forged(0), Udp, "198.51.100.1:53").unwrap();
    rig.enter(client(1), WEB, WEB_TARGET).unwrap();
    rig.check();
}

#[test]
fn a_scan_of_one_eif_mapping_stays_within_it() {
    let mut rig = rig(policy(EIM, EIF), 1 << 14);
    let scanned = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    let other = rig.udp("10.0.0.2:5000", "203.0.113.1:53");
    let mut admitted = 0;
    for i in 0..1_000_000_u32 {
        if i % 20_000 == 0 {
            rig.wait(1_000);
            let port = 10_000 + i / 20_000;
            rig.udp(&format!("10.0.0.3:{port}"), "203.0.113.9:53");
            rig.udp("10.0.0.1:5000", "203.0.113.1:53");
            rig.back(Udp, "203.0.113.1:53", scanned).unwrap();
            rig.from(client(i), Udp, &other.to_string()).unwrap();
        }
        match rig.from(forged(i), Udp, &scanned.to_string()) {
            Ok(_) => admitted += 1,
            Err(refusal) => assert_eq!(refusal, Refusal::MappingInboundLimit),
        }
    }
    assert_eq!(admitted, 1024);
    rig.check();
}

#[test]
fn a_scan_of_many_eif_mappings_leaves_the_forwards_their_share() {
    let mut policy = policy(EIM, EIF);
    policy.forwards = vec![forward(TCP, WEB, WEB_TARGET, &[])].into();
    let mut rig = rig(policy, 1 << 14);
    let scanned: Vec<String> = (0..100)
        .map(|port| {
            rig.udp(&format!("10.0.0.1:{}", 5000 + port), "203.0.113.1:53")
                .to_string()
        })
        .collect();
    for i in 0..1_000_000_u32 {
        match rig.from(forged(i), Udp, &scanned[i as usize % 100]) {
            Ok(_) => assert!(i < 2048),
            Err(refusal) => assert_eq!(refusal, Refusal::InboundLimit),
        }
        if i % 10_000 == 0 {
            rig.wait(100);
            let port = 10_000 + i / 10_000;
            rig.udp(&format!("10.0.0.3:{port}"), "203.0.113.9:53");
            rig.connect(&format!("10.0.0.4:{port}"), "203.0.113.9:443");
            rig.enter(client(i), WEB, WEB_TARGET).unwrap();
        }
    }
    assert_eq!(rig.nat.totals().sessions_inbound, 2048 + 100);
    rig.check();
}

#[test]
fn counts_survive_a_change_of_forwards_and_a_restart() {
    let mut rig = two_forwards(1 << 12);
    for i in 0..50 {
        rig.from(forged(i), TcpSyn, WEB).unwrap();
        rig.enter(client(i), MAIL, MAIL_TARGET).unwrap();
    }
    // Another order, and one more in front.
    rig.policy.forwards.edit(|list| list.reverse());
    let more = forward(TCP, "198.51.100.1:443", "10.0.0.2:443", &[]);
    rig.policy.forwards.edit(|list| list.insert(0, more));
    rig.apply();
    rig.check();
    assert_eq!(rig.nat.totals().sessions_half_open, 50);
    rig.nat = conntrack::Nat::open(rig.words, rig.owned, rig.size, IDENTITY).unwrap();
    rig.apply();
    rig.check();
    assert_eq!(rig.nat.totals().sessions_half_open, 50);
    rig.policy.limits.inbound_sessions_per_forward = Some(50);
    let full = Err(Refusal::ForwardInboundLimit);
    assert_eq!(rig.from(client(99), TcpSyn, MAIL).map(drop), full);
    rig.from(client(99), TcpSyn, WEB).unwrap();
    assert_eq!(rig.nat.totals().evicted, 1);
    // Without the forward its sessions end, and its place is another's.
    rig.policy
        .forwards
        .edit(|list| list.retain(|forward| forward.external == ep(MAIL)));
    rig.apply();
    rig.check();
    assert_eq!(rig.nat.totals().sessions_half_open, 0);
    rig.policy
        .forwards
        .edit(|list| list.push(forward(TCP, "198.51.100.1:8443", "10.0.0.2:443", &[])));
    rig.apply();
    rig.from(client(99), TcpSyn, "198.51.100.1:8443").unwrap();
    rig.check();
}

/// SYNs from addresses that are not there, each followed by an ACK that guesses: the server's answer
/// was never seen, so they stay half-open and give way.
#[test]
fn an_acknowledgement_that_guesses_opens_nothing() {
    let mut rig = two_forwards(16_384);
    let server = |i: u32| i.wrapping_mul(0x0101_4567);
    for i in 0..4_000 {
        let (remote, inside) = (forged(i), ep(WEB_TARGET));
        rig.segment(Realm::External, tuple(TCP, remote, ep(WEB)), TcpSyn, i)
            .unwrap();
        rig.segment(
            Realm::Internal,
            tuple(TCP, inside, remote),
            TcpSynAck,
            server(i),
        )
        .unwrap();
        rig.acknowledgement = server(i ^ 0xffff).wrapping_add(1 << 20);
        rig.segment(Realm::External, tuple(TCP, remote, ep(WEB)), TcpData, i + 1)
            .unwrap();
    }
    let open = rig.nat.sessions(rig.now).count() as u64 - rig.nat.totals().sessions_half_open;
    assert!(open <= 4, "{open} of 4,000 guesses");
    // Who has seen the server's number gets in.
    let (remote, inside) = (client(1), ep(WEB_TARGET));
    rig.segment(Realm::External, tuple(TCP, remote, ep(WEB)), TcpSyn, 5)
        .unwrap();
    let half_open = rig.nat.totals().sessions_half_open;
    rig.segment(
        Realm::Internal,
        tuple(TCP, inside, remote),
        TcpSynAck,
        0x1234_ffff,
    )
    .unwrap();
    rig.acknowledgement = 0x1235_0000;
    rig.segment(Realm::External, tuple(TCP, remote, ep(WEB)), TcpData, 6)
        .unwrap();
    assert_eq!(rig.nat.totals().sessions_half_open, half_open - 1);
    rig.check();
}
