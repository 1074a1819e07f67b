//! Twenty-four hours of virtual time with every kind of traffic; afterwards all is zero.

mod common;
use common::*;
use conntrack::{Direction, Endpoint, Realm, Signal};
use std::sync::atomic::Ordering::Relaxed;

fn day(mapping: conntrack::MappingBehaviour, filtering: conntrack::FilteringBehaviour, seed: u64) {
    let mut policy = policy(mapping, filtering);
    // Small enough to be exhausted now and then.
    policy.addresses = vec![
        external("198.51.100.1", 0, 2000, 2399),
        external("198.51.100.2", 1, 3000, 3199),
    ]
    .into();
    policy.forwards = vec![
        forward(TCP, "198.51.100.1:80", "10.0.0.2:8080", &[]),
        forward(UDP, "198.51.100.2:53", "10.0.0.3:53", &["203.0.113.0/28"]),
    ]
    .into();
    let mut rig = Rig::sized(policy, 1500);
    rig.random = Seeded(seed);
    let end = rig.now.plus_ms(24 * 3_600_000);
    let mut refusals = std::collections::HashMap::new();
    let mut packets = 0_u32;
    let mut random = Seeded(seed + 100);
    while rig.now < end {
        rig.wait(random.below(3000));
        rig.nat.sweep(&rig.policy, rig.now, 40);
        for _ in 0..random.below(8) {
            packets += 1;
            if let Err(refusal) = one_packet(&mut rig, &mut random) {
                *refusals.entry(refusal).or_insert(0_u32) += 1;
            }
        }
        if packets % 20_000 < 4 {
            rig.check();
        }
    }
    rig.check();
    assert!(
        rig.nat.totals().created > 10_000,
        "{:?} {refusals:?}",
        rig.nat.totals()
    );
    assert!(refusals.contains_key(&conntrack::Refusal::PortsExhausted) || mapping == EDM);
    // The longest timer, then what it leaves behind: hold-downs.
    for _ in 0..3 {
        rig.wait(7_440_000 + 2_000);
        rig.sweep();
    }
    rig.assert_empty();
    let forwards: u32 = rig.owned.iter().map(|w| w.load(Relaxed).count_ones()).sum();
    assert_eq!(forwards, 2, "only the forwards are owned");
}

fn one_packet(rig: &mut Rig, random: &mut Seeded) -> Result<(), conntrack::Refusal> {
    let host = [10, 0, 0, random.below(30) as u8];
    let inside = Endpoint::new(host.into(), 2000 + random.below(40) as u16);
    let remote = match random.below(12) {
        0 => ep("198.51.100.1:80"),
        1 => Endpoint::new([198, 51, 100, 1].into(), 2000 + random.below(400) as u16),
        _ => Endpoint::new(
            [203, 0, 113, random.below(20) as u8].into(),
            random.below(3) as u16,
        ),
    };
    let signal = [Signal::TcpSyn, Signal::Udp, Signal::IcmpQuery][random.below(3) as usize];
    let mut flow = tuple(protocol_of(signal), inside, remote);
    if signal == Signal::IcmpQuery {
        flow.destination.port = 0;
    }
    if random.below(8) == 0 {
        let to = if random.below(2) == 0 {
            ep("198.51.100.1:80")
        } else {
            ep("198.51.100.2:53")
        };
        let signal = if to.port == 80 {
            Signal::TcpSyn
        } else {
            Signal::Udp
        };
        rig.packet(
            Realm::External,
            tuple(protocol_of(signal), remote, to),
            signal,
        )?;
        return Ok(());
    }
    let rewrite = rig.packet(Realm::Internal, flow, signal)?;
    let hairpin = rewrite.direction == Direction::Hairpin;
    let realm = if hairpin {
        Realm::Internal
    } else {
        Realm::External
    };
    let back = tuple(flow.protocol, rewrite.destination, rewrite.source);
    // No egress with an internal source unless it stays inside; the answer comes home.
    assert!(rewrite.source.addr.octets()[0] == 198);
    let answers: &[(bool, Signal)] = match (signal, random.below(4)) {
        (Signal::Udp, _) => &[(false, Signal::Udp)],
        (Signal::IcmpQuery, _) => &[(false, Signal::IcmpReply)],
        (_, 0) => &[],
        (_, 1) => &[(false, Signal::TcpSynAck), (true, Signal::TcpData)],
        (_, 2) => &[
            (false, Signal::TcpSynAck),
            (true, Signal::TcpData),
            (false, Signal::TcpRst),
        ],
        _ => &[
            (false, Signal::TcpSynAck),
            (true, Signal::TcpFin),
            (false, Signal::TcpFin),
            (true, Signal::TcpData),
        ],
    };
    for &(forth, signal) in answers {
        if forth {
            assert_eq!(
                rig.packet(Realm::Internal, flow, signal)?.source,
                rewrite.source
            );
        } else {
            let home = rig.packet(realm, back, signal)?;
            assert_eq!(
                (home.source, home.destination),
                (flow.destination, flow.source)
            );
        }
    }
    Ok(())
}

#[test]
fn a_day_of_eim_and_eif() {
    day(EIM, EIF, 1);
}

#[test]
fn a_day_of_eim_and_adf() {
    day(EIM, ADF, 2);
}

#[test]
fn a_day_of_edm() {
    day(EDM, EDF, 3);
}

/// The 32-bit stamps wrap after 49.7 days: sessions across that moment live and end as always.
#[test]
fn stamps_wrap_without_a_trace() {
    for (mapping, start) in [(EIM, (1_u64 << 32) - 100_000), (EDM, (5 << 32) - 1)] {
        let mut rig = Rig::new(policy(mapping, EIF));
        rig.now = conntrack::Time(start);
        let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
        let tcp = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
        rig.wait(299_999);
        assert!(rig.back(Signal::Udp, "203.0.113.1:53", external).is_ok());
        assert_eq!(rig.sweep(), 0);
        rig.wait(1);
        assert_eq!(rig.udp("10.0.0.1:5000", "203.0.113.1:53"), external);
        rig.wait(7_139_999);
        assert!(rig.back(Signal::TcpData, "203.0.113.1:80", tcp).is_ok());
        rig.wait(7_440_000);
        assert!(rig.back(Signal::TcpData, "203.0.113.1:80", tcp).is_err());
        rig.sweep();
        rig.wait(130_000);
        rig.sweep();
        rig.assert_empty();
    }
}
