//! RFC 7857: updates of the behavioural requirements.

mod common;
use common::*;
use conntrack::Signal::{TcpData, TcpFin, TcpRst, TcpSyn, TcpSynAck, Udp};
use conntrack::tcp::State;
use conntrack::{Random, Realm, Refusal, Signal, TimeoutClass, Tuple};
use std::collections::HashSet;

#[test]
fn rfc7857_2_2_a_reset_leaves_four_minutes_and_data_revives() {
    let mut rig = Rig::new(policy(EDM, EDF));
    let external = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    rig.back(TcpRst, "203.0.113.1:80", external).unwrap();
    rig.wait(200_000);
    rig.out(TcpData, "10.0.0.1:5000", "203.0.113.1:80").unwrap();
    assert_eq!(
        rig.nat.sessions(rig.now).next().unwrap().class,
        TimeoutClass::TcpIdle
    );
    rig.out(TcpRst, "10.0.0.1:5000", "203.0.113.1:80").unwrap();
    rig.wait(240_000);
    let late = rig.back(TcpData, "203.0.113.1:80", external);
    assert_eq!(late, Err(Refusal::NoSession));
}

/// What a side of a connection sends, by its flags.
const SIGNALS: [(&str, Signal); 5] = [
    ("SYN", TcpSyn),
    ("SYN+ACK", TcpSynAck),
    ("FIN", TcpFin),
    ("RST", TcpRst),
    ("data", TcpData),
];

/// The figure, edge by edge: state, initiator's (`>`) or responder's (`<`) segment, new state.
/// `opening` stands for the state that a first SYN leads to. What is not listed stays.
const EDGES: &[(&str, &str, &str)] = &[
    // Opened from inside.
    ("Init", "< SYN+ACK", "Established"),
    ("Init", "< SYN", "Established"),
    // Opened from outside.
    ("InitOutside", "< SYN+ACK", "SynSeen"),
    ("InitOutside", "< SYN", "SynSeen"),
    ("SynSeen", "> data", "Established"),
    ("SynSeen", "> SYN+ACK", "Established"),
    ("SynSeen", "> FIN", "InitiatorFin"),
    // Both.
    ("Established", "> FIN", "InitiatorFin"),
    ("Established", "< FIN", "ResponderFin"),
    ("Established", "> RST", "Reset"),
    ("Established", "< RST", "Reset"),
    ("InitiatorFin", "< FIN", "Closing"),
    ("InitiatorFin", "> RST", "Reset"),
    ("InitiatorFin", "< RST", "Reset"),
    ("ResponderFin", "> FIN", "Closing"),
    ("ResponderFin", "> RST", "Reset"),
    ("ResponderFin", "< RST", "Reset"),
    ("Closing", "> SYN", "opening"),
    ("Reset", "> SYN", "opening"),
    ("Reset", "> data", "Established"),
    ("Reset", "< data", "Established"),
];

/// Segments of the initiator and the responder that lead to a state.
fn way_to(state: State) -> &'static [(char, Signal)] {
    match state {
        State::Init | State::InitOutside => &[],
        State::SynSeen => &[('<', TcpSynAck)],
        State::Established => &[('<', TcpSynAck), ('>', TcpData)],
        State::InitiatorFin => &[('<', TcpSynAck), ('>', TcpData), ('>', TcpFin)],
        State::ResponderFin => &[('<', TcpSynAck), ('>', TcpData), ('<', TcpFin)],
        State::Closing => &[('<', TcpSynAck), ('>', TcpFin), ('<', TcpFin)],
        State::Reset => &[('<', TcpSynAck), ('>', TcpData), ('<', TcpRst)],
    }
}

/// A connection between an internal host and a remote one, opened by either.
struct Pair {
    rig: Rig,
    outbound: Tuple,
    inbound: Tuple,
    from_outside: bool,
}

impl Pair {
    fn open(from_outside: bool) -> Pair {
        let mut policy = policy(EDM, EDF);
        let (inside, remote) = (ep("10.0.0.1:80"), ep("203.0.113.1:5000"));
        policy.forwards = vec![forward(TCP, "198.51.100.1:80", "10.0.0.1:80", &[])].into();
        if !from_outside {
            policy.forwards.edit(Vec::clear);
        }
        let mut pair = Pair {
            rig: Rig::new(policy),
            outbound: tuple(TCP, inside, remote),
            inbound: tuple(TCP, remote, ep("198.51.100.1:80")),
            from_outside,
        };
        if from_outside {
            pair.send('>', TcpSyn);
        } else {
            let made = pair.rig.packet(Realm::Internal, pair.outbound, TcpSyn);
            pair.inbound = tuple(TCP, remote, made.unwrap().source);
        }
        pair
    }

    fn send(&mut self, side: char, signal: Signal) {
        let sent = if (side == '>') == self.from_outside {
            self.rig.packet(Realm::External, self.inbound, signal)
        } else {
            self.rig.packet(Realm::Internal, self.outbound, signal)
        };
        sent.unwrap_or_else(|refusal| panic!("{side} {signal:?}: {refusal:?}"));
    }

    fn view(&self) -> conntrack::SessionView {
        self.rig.nat.sessions(self.rig.now).next().unwrap()
    }
}

#[test]
fn rfc7857_2_every_edge_of_the_figure() {
    let mut walked = HashSet::new();
    for from_outside in [false, true] {
        let opening = match from_outside {
            false => State::Init,
            true => State::InitOutside,
        };
        let other = match from_outside {
            false => [State::InitOutside, State::SynSeen],
            true => [State::Init; 2],
        };
        for state in State::ALL.into_iter().filter(|s| !other.contains(s)) {
            for side in ['>', '<'] {
                for (name, signal) in SIGNALS {
                    let segment = format!("{side} {name}");
                    let from = format!("{state:?}");
                    let mut pair = Pair::open(from_outside);
                    for &(side, signal) in way_to(state) {
                        pair.send(side, signal);
                    }
                    assert_eq!(pair.view().state, Some(state));
                    pair.send(side, signal);
                    let edge = EDGES.iter().position(|e| (e.0, e.1) == (&from, &segment));
                    let to = match edge.map(|edge| EDGES[edge].2) {
                        None => from.clone(),
                        Some("opening") => format!("{opening:?}"),
                        Some(to) => to.to_owned(),
                    };
                    walked.extend(edge);
                    let view = pair.view();
                    let is = format!("{:?}", view.state.unwrap());
                    assert_eq!(is, to, "{from} {segment}, from outside: {from_outside}");
                    let class = match &to[..] {
                        "Init" | "InitOutside" | "SynSeen" => TimeoutClass::TcpTransOpen,
                        "Closing" | "Reset" => TimeoutClass::TcpTransClose,
                        _ => TimeoutClass::TcpIdle,
                    };
                    assert_eq!(view.class, class, "{to}");
                    pair.rig.check();
                }
            }
        }
    }
    assert_eq!(walked.len(), EDGES.len(), "an edge that nothing walks");
}

/// Each state ends by its own timer: open and closing have one each (section 2.1).
#[test]
fn rfc7857_2_1_opening_and_closing_have_timers_of_their_own() {
    for from_outside in [false, true] {
        for state in [State::Init, State::SynSeen, State::Closing, State::Reset] {
            if from_outside != (state == State::SynSeen) {
                continue;
            }
            let mut pair = Pair::open(from_outside);
            pair.rig.policy.timers.tcp_trans_open_timeout_ms = 250_000;
            pair.rig.policy.timers.tcp_trans_close_timeout_ms = 260_000;
            for &(side, signal) in way_to(state) {
                pair.send(side, signal);
            }
            let timeout_ms = match state {
                State::Init | State::SynSeen => 250_000,
                _ => 260_000,
            };
            pair.rig.wait(timeout_ms - 1);
            pair.rig.sweep();
            assert_eq!(pair.rig.nat.totals().sessions, 1, "{state:?}");
            pair.rig.wait(1);
            pair.rig.sweep();
            assert_eq!(pair.rig.nat.totals().sessions, 0, "{state:?}");
        }
    }
}

/// A connection from inside whose two sides begin with these sequence numbers.
struct Wired {
    rig: Rig,
    there: Tuple,
    back: Tuple,
}

impl Wired {
    fn new(client: u32, server: u32) -> Wired {
        let mut rig = Rig::new(policy(EDM, EDF));
        let there = tuple(TCP, ep("10.0.0.1:5000"), ep("203.0.113.1:80"));
        let made = rig.segment(Realm::Internal, there, TcpSyn, client).unwrap();
        let back = tuple(TCP, ep("203.0.113.1:80"), made.source);
        let mut wired = Wired { rig, there, back };
        wired.answer(TcpSynAck, server);
        wired.ask(TcpData, client.wrapping_add(1));
        assert_eq!(wired.state(), State::Established);
        wired
    }

    fn ask(&mut self, signal: Signal, sequence: u32) {
        let sent = self
            .rig
            .segment(Realm::Internal, self.there, signal, sequence);
        sent.expect("what matches a session is always translated");
    }

    fn answer(&mut self, signal: Signal, sequence: u32) {
        let sent = self
            .rig
            .segment(Realm::External, self.back, signal, sequence);
        sent.expect("what matches a session is always translated");
    }

    fn state(&self) -> State {
        let session = self.rig.nat.sessions(self.rig.now).next().unwrap();
        session.state.unwrap()
    }
}

const MIB: u32 = 1 << 20;

#[test]
fn rfc7857_2_2_a_wild_reset_is_translated_and_changes_nothing() {
    let (client, server) = (0xffff_0000, 0x4000_0000);
    let mut wired = Wired::new(client, server);
    for far in [17 * MIB, 1 << 30, 1 << 31, 0_u32.wrapping_sub(17 * MIB)] {
        wired.answer(TcpRst, server.wrapping_add(far));
        wired.ask(TcpRst, client.wrapping_add(far));
        assert_eq!(wired.state(), State::Established, "{far:#x}");
    }
    // As far as windows go it is believed, over the wrap of the numbers, too.
    for near in [0, 1, 6 * MIB, 15 * MIB, 0_u32.wrapping_sub(15 * MIB)] {
        wired.answer(TcpRst, server.wrapping_add(near));
        assert_eq!(wired.state(), State::Reset, "{near:#x}");
        wired.ask(TcpData, client.wrapping_add(2));
        wired.ask(TcpRst, client.wrapping_add(near));
        assert_eq!(wired.state(), State::Reset, "{near:#x}");
        wired.ask(TcpData, client.wrapping_add(2));
        wired.answer(TcpData, server + 1);
        assert_eq!(wired.state(), State::Established);
    }
    wired.rig.check();
}

#[test]
fn rfc7857_2_2_a_forger_cannot_move_the_mark_first() {
    let mut wired = Wired::new(1, 0x4000_0000);
    for _ in 0..3 {
        wired.answer(TcpData, 0x9000_0000);
        wired.answer(TcpSynAck, 0x9000_0000);
        wired.answer(TcpSyn, 0x9000_0000);
        wired.answer(TcpRst, 0x9000_0000);
    }
    assert_eq!(wired.state(), State::Established);
    wired.answer(TcpRst, 0x4000_0001);
    assert_eq!(wired.state(), State::Reset);
}

#[test]
fn rfc7857_2_2_the_mark_follows_the_data_round_the_numbers() {
    let mut wired = Wired::new(7, 0xf000_0000);
    let mut sequence = 0xf000_0000_u32;
    // 6 GiB in steps of a window.
    for _ in 0..1536 {
        sequence = sequence.wrapping_add(4 * MIB);
        wired.answer(TcpData, sequence);
    }
    wired.answer(TcpRst, 0xf000_0000_u32.wrapping_add(1 << 30));
    assert_eq!(wired.state(), State::Established);
    wired.answer(TcpRst, sequence);
    assert_eq!(wired.state(), State::Reset);
}

#[test]
fn rfc7857_2_2_a_new_connection_begins_new_numbers() {
    let mut wired = Wired::new(7, 9);
    // A SYN that was lost and came again with other numbers, as after a reboot.
    wired.answer(TcpRst, 10);
    let (client, server) = (0x5000_0000, 0x9000_0000);
    wired.ask(TcpSyn, 0x2000_0000);
    assert_eq!(wired.state(), State::Init);
    wired.ask(TcpSyn, client);
    wired.answer(TcpSynAck, server);
    wired.answer(TcpRst, 10);
    wired.ask(TcpRst, 0x2000_0000);
    assert_eq!(wired.state(), State::Established);
    wired.ask(TcpRst, client + 1);
    assert_eq!(wired.state(), State::Reset);
    wired.ask(TcpData, client + 1);
    wired.answer(TcpRst, server + 1);
    assert_eq!(wired.state(), State::Reset);
}

#[test]
fn rfc7857_2_2_few_of_random_resets_are_believed() {
    let mut random = Seeded(5);
    let mut wired = Wired::new(7, 0x1234_5678);
    let mut believed = 0;
    for _ in 0..100_000 {
        wired.answer(TcpRst, random.next_u64() as u32);
        if wired.state() == State::Reset {
            believed += 1;
            wired.ask(TcpData, 8);
        }
    }
    // 513 of 65,536.
    println!("{believed} of 100,000");
    assert!((680..890).contains(&believed), "{believed}");
}

#[test]
fn rfc7857_2_2_the_mark_survives_a_restart() {
    let mut wired = Wired::new(7, 0x4000_0000);
    let rig = &mut wired.rig;
    rig.nat = conntrack::Nat::open(rig.words, rig.owned, rig.size, IDENTITY).unwrap();
    rig.apply();
    wired.answer(TcpRst, 0x9000_0000);
    assert_eq!(wired.state(), State::Established);
    wired.answer(TcpRst, 0x4000_0001);
    assert_eq!(wired.state(), State::Reset);
}

#[test]
fn rfc7857_3_overloading_for_different_remotes_only() {
    let mut policy = policy(EDM, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2002)].into();
    let mut rig = Rig::new(policy);
    for remote in 1..=200 {
        let remote = format!("203.0.113.{remote}:53");
        let mut used = HashSet::new();
        for host in 1..=3 {
            let inside = format!("10.0.0.{host}:2001");
            let external = rig.udp(&inside, &remote);
            assert!(used.insert(external), "{external} twice to {remote}");
            let back = rig.back(Udp, &remote, external).unwrap();
            assert_eq!(back.destination, ep(&inside));
        }
        let fourth = rig.out(Udp, "10.0.0.4:2001", &remote);
        assert_eq!(fourth, Err(Refusal::PortsExhausted));
    }
    assert_eq!(rig.nat.totals().ports_in_use, [0, 3, 0]);
    assert_eq!(rig.nat.totals().sessions, 600);
    rig.check();
}

#[test]
fn rfc7857_3_a_released_port_is_found_again() {
    let mut policy = policy(EDM, EDF);
    policy.addresses = vec![external("198.51.100.1", 0, 2000, 2999)].into();
    let mut rig = Rig::new(policy);
    for host in 0..1000 {
        rig.udp(
            &format!("10.0.{}.{}:7", host / 250, host % 250),
            "203.0.113.1:53",
        );
        rig.wait(1);
    }
    let refused = Err(Refusal::PortsExhausted);
    let knock = |rig: &mut Rig| rig.out(Udp, "10.9.0.1:7", "203.0.113.1:53").map(|_| ());
    assert_eq!(knock(&mut rig), refused);
    rig.udp("10.9.0.1:7", "203.0.113.2:53");
    // The first session's last millisecond.
    rig.wait(300_000 - 1000 - 1);
    assert!(
        rig.now.0 % 1024 < 1023,
        "the next millisecond is in the same tick"
    );
    assert_eq!(knock(&mut rig), refused);
    assert_eq!(knock(&mut rig), refused, "by the memo");
    rig.wait(1);
    rig.sweep();
    assert_eq!(rig.nat.totals().sessions, 1000);
    assert_eq!(knock(&mut rig), Ok(()), "released in the tick of the memo");
    assert_eq!(
        rig.out(Udp, "10.9.0.2:7", "203.0.113.1:53").map(|_| ()),
        refused
    );
    rig.check();
}

#[test]
fn rfc7857_4_in_edm_the_pairing_is_soft() {
    let mut policy = policy(EDM, EDF);
    policy.addresses = vec![
        external("198.51.100.1", 0, 2000, 2009),
        external("198.51.100.2", 1, 2000, 2009),
    ]
    .into();
    let mut rig = Rig::new(policy);
    let mut first = None;
    for port in 1..=20 {
        let external = rig.udp(&format!("10.0.0.1:{port}"), "203.0.113.1:53");
        let paired = *first.get_or_insert(external.addr);
        assert_eq!(external.addr == paired, port <= 10, "port {port}");
    }
    assert_eq!(
        rig.out(Udp, "10.0.0.1:21", "203.0.113.1:53"),
        Err(Refusal::PortsExhausted)
    );
    rig.check();
}

#[test]
fn rfc7857_5_and_6_protocols_have_mappings_of_their_own() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.connect("10.0.0.1:5000", "203.0.113.1:80");
    assert_eq!(
        rig.back(Udp, "203.0.113.2:9", external),
        Err(Refusal::NoSession)
    );
    assert!(rig.back(TcpSyn, "203.0.113.2:9", external).is_ok());
    rig.check();
}

#[test]
fn rfc7857_7_refused_packets_refresh_nothing() {
    let mut rig = Rig::new(policy(EIM, EDF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    for _ in 0..310 {
        rig.wait(1_000);
        assert!(rig.back(Udp, "203.0.113.9:53", external).is_err());
    }
    rig.sweep();
    rig.sweep();
    rig.assert_empty();
}

/// A packet from inside that finds its endpoints taken goes nowhere, and keeps nothing open.
#[test]
fn rfc7857_7_refused_packets_from_inside_refresh_nothing() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(100_000);
    // A host inside has the remote endpoint of another: their tuples to the mapping are one.
    let inside = rig.out(Udp, "203.0.113.2:53", &external.to_string());
    assert!(inside.is_ok());
    rig.wait(150_000);
    assert_eq!(
        rig.out(Udp, "10.0.0.1:5000", "203.0.113.2:53"),
        Err(Refusal::PortsExhausted)
    );
    rig.wait(60_000);
    assert_eq!(
        rig.back(Udp, "203.0.113.3:1", external),
        Err(Refusal::NoSession)
    );
    rig.check();
}

/// Packets that `eif` admits keep the mapping open no longer than its host's silence allows.
#[test]
fn rfc7857_7_inbound_alone_does_not_keep_a_mapping_open() {
    let mut rig = Rig::new(policy(EIM, EIF));
    let external = rig.udp("10.0.0.1:5000", "203.0.113.1:53");
    rig.wait(290_000);
    assert!(rig.back(Udp, "203.0.113.2:1", external).is_ok());
    rig.wait(20_000);
    assert_eq!(
        rig.back(Udp, "203.0.113.3:1", external),
        Err(Refusal::NoSession)
    );
    assert!(
        rig.back(Udp, "203.0.113.2:1", external).is_ok(),
        "its session lives on"
    );
    rig.check();
}

#[test]
fn rfc7857_9_without_preservation_ports_are_spread() {
    let mut policy = policy(EDM, EDF);
    policy.profile.preserve_port = false;
    let mut rig = Rig::new(policy);
    let mut blocks = HashSet::new();
    for i in 0..200 {
        let external = rig.udp(&format!("10.0.0.{i}:5000"), &format!("203.0.113.{i}:53"));
        blocks.insert(external.port / 1024);
    }
    assert!(blocks.len() > 50, "{} of 63 blocks", blocks.len());
}
