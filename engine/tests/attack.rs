//! What an attacker, or a link that fails, tries on a gateway in memory.

use std::net::Ipv4Addr;

use engine::drop_reason::DropReason;
use engine::wire::build::Envelope;
use engine::wire::{ethernet, icmp, ipv4, tcp};
use engine::world::{EXTERNAL, UPSTREAM, World, unicast_route};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const INSIDE: usize = 0;
const OUTSIDE: usize = 1;

const TWO_ARM: &str = r#"
internal = "10.77.0.0/24"
[[interfaces]]
name = "lan0"
role = "internal"
[[interfaces]]
name = "wan0"
role = "external"
"#;

fn two_arm(more: &str) -> World {
    World::new(&format!("{TWO_ARM}{more}")).unwrap()
}

fn ports_of(frame: &[u8]) -> (u16, u16) {
    let at = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (at(34), at(36))
}

fn header(frame: &[u8]) -> ipv4::Header<'_> {
    ipv4::Header::new(&frame[ethernet::HEADER_LEN..]).unwrap()
}

/// The client speaks to the server; the external port that it got.
fn open(world: &mut World) -> u16 {
    world.inject(INSIDE, &Envelope::new(CLIENT, SERVER).udp(5000, 53, b"ask"));
    world.run();
    ports_of(&world.take_sent(OUTSIDE)[0]).0
}

#[test]
fn what_is_for_inside_never_leaves_outside() {
    let mut world = two_arm("");
    let port = open(&mut world);
    // As when the link inside goes down: the client falls to the default route.
    world.set_routes(vec![unicast_route(CLIENT.into(), OUTSIDE, Some(UPSTREAM))]);
    world.inject(
        OUTSIDE,
        &Envelope::new(SERVER, EXTERNAL).udp(53, port, b"answer"),
    );
    let about = Envelope::new(EXTERNAL, SERVER).udp(port, 53, b"ask");
    let error = Envelope::new(UPSTREAM, EXTERNAL).icmp_error(icmp::UNREACHABLE, 1, &about, 64);
    world.inject(OUTSIDE, &error);
    world.run();
    let sent = world.take_sent(OUTSIDE);
    assert!(
        sent.iter()
            .all(|frame| header(frame).destination() != CLIENT),
        "{sent:?}"
    );
    assert_eq!(sent.len(), 1, "the server is told");
    assert_eq!(header(&sent[0]).destination(), SERVER);
    assert!(world.take_sent(INSIDE).is_empty());
    world.check_invariants().unwrap();
}

#[test]
fn an_icmp_error_from_outside_about_an_answer_is_not_sent_on() {
    let mut world = two_arm("[pool]\naddresses = [\"198.51.100.77\"]");
    open(&mut world);
    // It quotes the answer as only the inside sees it; to be sent on in the pool address's name.
    let about = Envelope::new(SERVER, CLIENT).udp(53, 5000, b"answer");
    let forged = Envelope::new(UPSTREAM, OWN).icmp_error(icmp::UNREACHABLE, 3, &about, 64);
    world.inject(OUTSIDE, &forged);
    world.run();
    assert!(world.take_sent(OUTSIDE).is_empty());
    assert!(world.take_sent(INSIDE).is_empty());
}

#[test]
fn an_icmp_error_from_inside_reaches_no_other_client() {
    let mut world = two_arm("");
    let port = open(&mut world);
    let about = Envelope::new(EXTERNAL, SERVER).udp(port, 53, b"ask");
    let forged = Envelope::new(NEIGHBOUR, SERVER).icmp_error(icmp::UNREACHABLE, 3, &about, 64);
    world.inject(INSIDE, &forged);
    world.run();
    assert!(world.take_sent(INSIDE).is_empty());
    assert!(world.take_sent(OUTSIDE).is_empty());
}

#[test]
fn a_flood_that_provokes_errors_does_not_stop_path_mtu_discovery() {
    let mut world = two_arm("[icmp]\nerrors_per_second = 40");
    let expiring = Envelope {
        ttl: 1,
        ..Envelope::new(CLIENT, SERVER)
    }
    .udp(5000, 53, b"x");
    for _ in 0..200 {
        world.inject(INSIDE, &expiring);
        world.run();
    }
    assert!(world.take_sent(INSIDE).len() <= 40);
    world.set_mtu(OUTSIDE, 1280);
    let envelope = Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        ..Envelope::new(CLIENT, SERVER)
    };
    world.inject(INSIDE, &envelope.udp(5000, 53, &[0; 1400]));
    world.run();
    let sent = world.take_sent(INSIDE);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0][34..36], [icmp::UNREACHABLE, 4]);
}

#[test]
fn fragments_to_the_host_reach_it_from_a_network_that_is_not_served() {
    let mut world = two_arm("");
    let first = Envelope {
        flags_offset: ipv4::MORE_FRAGMENTS,
        ..Envelope::new(Ipv4Addr::new(10, 88, 0, 5), EXTERNAL)
    };
    let later = Envelope {
        flags_offset: 3,
        ..first.clone()
    };
    world.inject(INSIDE, &first.udp(4000, 53, &[1; 16]));
    world.inject(INSIDE, &later.frame(17, &[2; 16]));
    world.run();
    assert_eq!(world.take_punted().len(), 2);
}

const OWN_POOL: &str = "[pool]\naddresses = [\"198.51.100.77\"]\n";

fn syn(port: u16) -> Vec<u8> {
    Envelope::new(SERVER, OWN).tcp(443, port, tcp::SYN, b"")
}

fn dropped(world: &World, reason: DropReason) -> u64 {
    world.snapshot().dropped[reason as usize]
}

/// Lets so much time pass, with rounds in between.
fn pass(world: &mut World, ms: u64) {
    world.pass_ms(ms, 100);
}

#[test]
fn rfc5382_4_an_unsolicited_syn_is_answered_after_six_seconds() {
    let mut world = two_arm(OWN_POOL);
    world.inject(OUTSIDE, &syn(7000));
    world.run();
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::NoSession, 1)]);
    pass(&mut world, 5_900);
    assert!(world.take_sent(OUTSIDE).is_empty(), "not before its time");
    pass(&mut world, 200);
    let sent = world.take_sent(OUTSIDE);
    assert_eq!(sent.len(), 1);
    let error = &sent[0];
    assert_eq!(error[34..36], [icmp::UNREACHABLE, icmp::CODE_PORT]);
    assert_eq!(
        (header(error).source(), header(error).destination()),
        (OWN, SERVER)
    );
    // It quotes the packet and goes back the way it came.
    assert_eq!(error[42..82], syn(7000)[14..54]);
    assert_eq!(
        (&error[..6], &error[6..12]),
        (&syn(7000)[6..12], &syn(7000)[..6])
    );
    engine::packet::parse(error).expect("right checksums");
    pass(&mut world, 10_000);
    assert!(world.take_sent(OUTSIDE).is_empty(), "once");
    assert_eq!(world.snapshot().dropped.iter().sum::<u64>(), 1);
    world.check_invariants().unwrap();
}

#[test]
fn rfc5382_4_nothing_is_said_if_the_inside_opens_meanwhile() {
    let mut world = two_arm(OWN_POOL);
    world.inject(OUTSIDE, &syn(7000));
    world.run();
    pass(&mut world, 3_000);
    // The client's SYN crosses, from the same external port (it keeps its own).
    let client = |flags| Envelope::new(CLIENT, SERVER).tcp(7000, 443, flags, b"");
    let server = |flags| Envelope::new(SERVER, OWN).tcp(443, 7000, flags, b"");
    for (interface, frame, leaves) in [
        (INSIDE, client(tcp::SYN), OUTSIDE),
        (OUTSIDE, server(tcp::SYN), INSIDE),
        (INSIDE, client(tcp::SYN | tcp::ACK), OUTSIDE),
        (OUTSIDE, server(tcp::SYN | tcp::ACK), INSIDE),
        (INSIDE, client(tcp::ACK), OUTSIDE),
    ] {
        world.inject(interface, &frame);
        world.run();
        assert_eq!(world.take_sent(leaves).len(), 1, "the connection completes");
    }
    pass(&mut world, 10_000);
    assert!(
        world.take_sent(OUTSIDE).is_empty(),
        "and nothing else is said"
    );
    world.check_invariants().unwrap();
}

#[test]
fn rfc5382_4a_silence_where_it_is_asked_for_or_the_hosts_to_break() {
    let forward = "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"7000\"\n\
                   target = \"10.77.0.11:80\"\nallow = [\"192.0.2.0/24\"]\n";
    for (more, to) in [
        (format!("{OWN_POOL}[icmp]\nunsolicited = \"silent\"\n"), OWN),
        (format!("{OWN_POOL}[icmp]\nerrors_per_second = 0\n"), OWN),
        (format!("{OWN_POOL}{forward}"), OWN),
        // The interface's address: punted, not ours to answer.
        (String::new(), EXTERNAL),
    ] {
        let mut world = two_arm(&more);
        world.inject(
            OUTSIDE,
            &Envelope::new(SERVER, to).tcp(443, 7000, tcp::SYN, b""),
        );
        // Segments that open nothing are never answered.
        world.inject(
            OUTSIDE,
            &Envelope::new(SERVER, to).tcp(443, 7000, tcp::ACK, b""),
        );
        world.run();
        pass(&mut world, 20_000);
        assert!(world.take_sent(OUTSIDE).is_empty(), "{more}");
        world.check_invariants().unwrap();
    }
}

#[test]
fn rfc5382_4_the_waiting_time_is_configurable() {
    let mut world = two_arm(&format!("{OWN_POOL}[timers]\ntcp_in_syn_timeout_s = 20\n"));
    world.inject(OUTSIDE, &syn(7000));
    world.run();
    pass(&mut world, 19_900);
    assert!(world.take_sent(OUTSIDE).is_empty());
    pass(&mut world, 200);
    assert_eq!(world.take_sent(OUTSIDE).len(), 1);
}

#[test]
fn a_scan_is_answered_within_the_rate_limit_and_the_ring() {
    let mut world = two_arm(&format!("{OWN_POOL}[icmp]\nerrors_per_second = 40\n"));
    for port in 1..=5_000 {
        world.inject(OUTSIDE, &syn(port));
        world.run();
    }
    pass(&mut world, 7_000);
    let sent = world.take_sent(OUTSIDE);
    assert!((1..=20).contains(&sent.len()), "{}", sent.len());
    let snapshot = world.snapshot();
    assert_eq!(snapshot.errors_suppressed + sent.len() as u64, 1024);
    assert_eq!(dropped(&world, DropReason::NoSession), 5_000);
    world.check_invariants().unwrap();
}

#[test]
fn a_segment_without_a_session_is_answered_with_a_reset() {
    let mut world = two_arm("");
    let segment = |flags| Envelope::new(CLIENT, SERVER).tcp(5000, 443, flags, b"data");
    world.inject(INSIDE, &segment(tcp::ACK));
    world.run();
    let sent = world.take_sent(INSIDE);
    assert_eq!(sent.len(), 1);
    let packet = engine::packet::parse(&sent[0]).unwrap();
    assert_eq!(
        (packet.ipv4.source, packet.ipv4.destination),
        (SERVER, CLIENT)
    );
    assert_eq!(ports_of(&sent[0]), (443, 5000));
    let tcp_header = tcp::Header::new(&sent[0][packet.l4..]).unwrap();
    // It acknowledged 2.
    assert_eq!((tcp_header.flags(), tcp_header.sequence()), (tcp::RST, 2));
    assert_eq!(dropped(&world, DropReason::TcpMidstream), 1);
    // A RST is never answered, and nothing from outside is.
    world.inject(INSIDE, &segment(tcp::RST | tcp::ACK));
    world.inject(
        OUTSIDE,
        &Envelope::new(SERVER, EXTERNAL).tcp(443, 5000, tcp::ACK, b""),
    );
    world.run();
    assert!(world.take_sent(INSIDE).is_empty() && world.take_sent(OUTSIDE).is_empty());
    world.check_invariants().unwrap();
}

#[test]
fn resets_keep_to_the_rate_limit_and_can_be_turned_off() {
    let segment = |port| Envelope::new(CLIENT, SERVER).tcp(port, 443, tcp::ACK, b"");
    for (more, most) in [
        ("[icmp]\nerrors_per_second = 40\n", 10),
        ("[nat]\nmidstream = \"drop\"\n", 0),
    ] {
        let mut world = two_arm(more);
        for port in 1..=200 {
            world.inject(INSIDE, &segment(port));
            world.run();
        }
        assert_eq!(world.take_sent(INSIDE).len(), most, "{more}");
        assert_eq!(dropped(&world, DropReason::TcpMidstream), 200);
        world.check_invariants().unwrap();
    }
}

#[test]
fn a_flood_of_forged_syns_stops_nobody_else() {
    let forwards = "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8080\"\n\
                    target = \"10.77.0.11:80\"\n[[forwards]]\nprotocol = \"tcp\"\n\
                    external = \"8443\"\ntarget = \"10.77.0.11:443\"\n";
    let mut world = two_arm(&format!(
        "{OWN_POOL}{}",
        forwards.replace("external = \"", "external = \"198.51.100.77:")
    ));
    for i in 0..20_000_u32 {
        let forged = Ipv4Addr::from(0x2000_0000 + i * 77);
        world.inject(
            OUTSIDE,
            &Envelope::new(forged, OWN).tcp(4000, 8080, tcp::SYN, b""),
        );
        world.run();
        if i % 100 == 0 {
            let port = 10_000 + (i / 100) as u16;
            world.inject(
                OUTSIDE,
                &Envelope::new(SERVER, OWN).tcp(port, 8443, tcp::SYN, b""),
            );
            let inside = Envelope::new(NEIGHBOUR, SERVER);
            world.inject(INSIDE, &inside.udp(port, 53, b"ask"));
            world.run();
        }
    }
    let snapshot = world.snapshot();
    assert_eq!(
        snapshot.drops().count(),
        0,
        "{:?}",
        snapshot.drops().collect::<Vec<_>>()
    );
    let totals = world.totals();
    // 1024 sessions: a 32nd for each of the two forwards, and all from inside.
    assert_eq!((totals.sessions_half_open, totals.sessions), (64, 264));
    world.check_invariants().unwrap();
}

/// A fragment of a protocol that is not translated goes to the host unless its source is forged.
#[test]
fn a_fragment_with_an_internal_source_does_not_come_in_from_outside() {
    let mut world = two_arm("");
    for (source, reaches_host) in [(SERVER, true), (CLIENT, false)] {
        let envelope = Envelope {
            flags_offset: ipv4::MORE_FRAGMENTS,
            ..Envelope::new(source, EXTERNAL)
        };
        world.inject(OUTSIDE, &envelope.frame(47, &[0; 64]));
        world.run();
        assert_eq!(world.take_punted().len(), usize::from(reaches_host));
    }
    let drops: Vec<_> = world.snapshot().drops().collect();
    assert_eq!(drops, [(DropReason::Spoofed, 1)]);
}

/// What clients send to the host itself and no session knows is the host's to answer.
#[test]
fn segments_and_replies_to_the_host_are_left_to_it() {
    let mut world = two_arm("");
    let to_host = Envelope::new(CLIENT, EXTERNAL);
    for frame in [
        to_host.tcp(5000, 22, tcp::ACK, b"data"),
        to_host.echo_reply(7, b"pong"),
    ] {
        world.inject(INSIDE, &frame);
        world.run();
        assert_eq!(world.take_punted().len(), 1);
        assert!(world.take_sent(INSIDE).is_empty(), "no answer in its name");
    }
}
