//! What an attacker, or a link that fails, tries on a gateway in memory.

use std::net::Ipv4Addr;

use engine::wire::build::Envelope;
use engine::wire::{ethernet, icmp, ipv4};
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
