//! Rules, pools and forwards of a configuration, frame by frame.

use std::net::Ipv4Addr;

use engine::drop_reason::DropReason;
use engine::wire::build::Envelope;
use engine::wire::{ethernet, icmp, ipv4, tcp};
use engine::world::World;

const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
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

/// Three policies, each with an address of its own; who fits none leaves by the interface's.
const POLICIES: &str = r#"
[[pools]]
name = "payments"
addresses = "198.51.100.71"
[[pools]]
name = "partners"
addresses = "198.51.100.72"
ports = "4000-4001"
[[pools]]
name = "backup"
addresses = "198.51.100.73"
[[rules]]
sources = ["10.77.0.16/28", "10.77.0.40/32"]
destinations = "203.0.113.0/24"
pool = "payments"
[[rules]]
sources = "10.77.0.32/28"
ports = 443
protocol = "tcp"
pool = "partners"
[[rules]]
sources = "10.77.0.64/26"
pool = "backup"
udp_timeout_s = 20
[[rules]]
destinations = "192.0.2.128/25"
action = "drop"
[[rules]]
sources = "10.77.0.9/32"
action = "bypass"
"#;

fn client(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

fn header(frame: &[u8]) -> ipv4::Header<'_> {
    ipv4::Header::new(&frame[ethernet::HEADER_LEN..]).unwrap()
}

fn world(more: &str) -> World {
    World::new(&format!("{TWO_ARM}{more}")).unwrap()
}

/// What of a frame from inside leaves outside, if anything does.
fn out(world: &mut World, frame: &[u8]) -> Option<Vec<u8>> {
    assert!(world.inject(INSIDE, frame));
    world.run();
    let mut sent = world.take_sent(OUTSIDE);
    assert!(sent.len() <= 1);
    sent.pop()
}

/// The address that a datagram leaves from.
fn leaves_by(world: &mut World, host: u8, to: Ipv4Addr, port: u16) -> Option<String> {
    let frame = Envelope::new(client(host), to).udp(5000, port, b"ask");
    let sent = out(world, &frame)?;
    Some(header(&sent).source().to_string())
}

fn syn(world: &mut World, host: u8, port: u16, to: Ipv4Addr) -> Option<Vec<u8>> {
    let frame = Envelope::new(client(host), to).tcp(port, 443, tcp::SYN, b"");
    out(world, &frame)
}

fn dropped(world: &World, reason: DropReason) -> u64 {
    world.snapshot().dropped[reason as usize]
}

#[test]
fn every_policy_leaves_by_its_own_address() {
    let mut world = world(POLICIES);
    let own = engine::world::EXTERNAL.to_string();
    let cases = [
        (20, SERVER, Some("198.51.100.71")),
        (20, OTHER, Some(own.as_str())),
        (40, SERVER, Some("198.51.100.71")),
        (33, SERVER, Some(own.as_str())),
        (70, OTHER, Some("198.51.100.73")),
        (5, SERVER, Some(own.as_str())),
    ];
    for (host, to, address) in cases {
        for _ in 0..2 {
            let by = leaves_by(&mut world, host, to, 53);
            assert_eq!(by.as_deref(), address, "{host} {to}");
        }
    }
    world.check_invariants().unwrap();
}

#[test]
fn a_full_pool_refuses_and_tells_the_client() {
    let mut world = world(POLICIES);
    for port in 0..2 {
        let sent = syn(&mut world, 33, 6000 + port, SERVER).unwrap();
        assert_eq!(header(&sent).source().to_string(), "198.51.100.72");
    }
    assert_eq!(syn(&mut world, 33, 6002, SERVER), None);
    let told = world.take_sent(INSIDE);
    assert_eq!(told[0][34..36], [icmp::UNREACHABLE, 1]);
    assert_eq!(dropped(&world, DropReason::PortsExhausted), 1);
    world.check_invariants().unwrap();
}

#[test]
fn what_a_rule_drops_is_dropped_and_what_it_bypasses_is_the_hosts() {
    let mut world = world(POLICIES);
    assert_eq!(
        leaves_by(&mut world, 5, Ipv4Addr::new(192, 0, 2, 200), 53),
        None
    );
    assert_eq!(dropped(&world, DropReason::RuleDrop), 1);
    assert_eq!(world.take_sent(INSIDE).len(), 1, "the client is told");
    // As it came: whole, in the middle of a connection, and in fragments.
    let datagram = Envelope::new(client(9), SERVER).udp(5000, 53, b"ask");
    let segment = Envelope::new(client(9), SERVER).tcp(5000, 80, tcp::ACK, b"data");
    let whole = Envelope::new(client(9), SERVER).udp(5001, 53, &[7; 1400]);
    let mut frames = vec![datagram, segment];
    let bytes = &whole[ethernet::HEADER_LEN + 20..];
    for (offset, more) in [(0, ipv4::MORE_FRAGMENTS), (800, 0)] {
        let fragment = Envelope {
            identification: 99,
            flags_offset: more | (offset / 8) as u16,
            ..Envelope::new(client(9), SERVER)
        };
        let end = if more == 0 { bytes.len() } else { 800 };
        frames.push(fragment.frame(17, &bytes[offset..end]));
    }
    for frame in &frames {
        assert_eq!(out(&mut world, frame), None);
    }
    let punted: Vec<Vec<u8>> = world
        .take_punted()
        .into_iter()
        .map(|(_, frame)| frame)
        .collect();
    assert_eq!(punted, frames);
    assert_eq!(world.totals().sessions, 0);
    world.check_invariants().unwrap();
}

#[test]
fn a_rule_has_timers_of_its_own() {
    let mut world = world(POLICIES);
    leaves_by(&mut world, 70, OTHER, 53);
    leaves_by(&mut world, 5, OTHER, 53);
    world.pass_ms(19_000, 100);
    assert_eq!(world.totals().sessions, 2);
    world.pass_ms(12_000, 100);
    assert_eq!(world.totals().sessions, 1);
    world.pass_ms(330_000, 100);
    world.check_empty().unwrap();
}

/// Sessions that no rule touches lose nothing, and nothing leaks.
#[test]
fn a_thousand_changes_of_the_rules_under_traffic() {
    let file = |number: u32| {
        let mut text = format!("{TWO_ARM}{POLICIES}");
        text += &format!(
            "[[services]]\nprotocol = \"udp\"\nports = 53\nudp_timeout_s = {}\n",
            60 + number % 7
        );
        // First, so that it decides: the last but one client's turns.
        let pool = if number.is_multiple_of(2) {
            "backup"
        } else {
            "payments"
        };
        text.replacen(
            "[[rules]]\n",
            &format!("[[rules]]\nsources = \"10.77.0.98/32\"\npool = \"{pool}\"\n[[rules]]\n"),
            1,
        )
    };
    let mut world = World::new(&file(0)).unwrap();
    let steady = [(20, SERVER), (70, OTHER), (5, SERVER), (33, OTHER)];
    let ports: Vec<Vec<u8>> = steady
        .iter()
        .map(|&(host, to)| {
            let frame = Envelope::new(client(host), to).udp(5000, 99, b"ask");
            out(&mut world, &frame).unwrap()[26..38].to_vec()
        })
        .collect();
    for number in 1..=1000 {
        assert!(world.reconfigure(&file(number)), "{number}");
        // Until it is in the tables, what it contradicts goes on.
        world.pass_ms(500, 10);
        for (&(host, to), before) in steady.iter().zip(&ports) {
            let frame = Envelope::new(client(host), to).udp(5000, 99, b"ask");
            let sent = out(&mut world, &frame).expect("it goes on");
            assert_eq!(sent[26..38], before[..], "{number}");
        }
        let by = leaves_by(&mut world, 98, SERVER, 53).unwrap();
        let pool = if number % 2 == 0 {
            "198.51.100.73"
        } else {
            "198.51.100.71"
        };
        assert_eq!(by, pool);
    }
    world.check_invariants().unwrap();
    assert_eq!(world.totals().sessions, 5);
    world.pass_ms(330_000, 100);
    world.check_empty().unwrap();
}

#[test]
fn a_range_a_whole_address_and_several_targets() {
    let forwards = r#"
[[pools]]
name = "public"
addresses = "198.51.100.80-198.51.100.81"
[[forwards]]
protocol = ["tcp", "udp"]
external = "198.51.100.80:30000-32767"
target = ["10.77.0.10", "10.77.0.11"]
weights = [1, 2]
allow = "203.0.113.0/24"
[[forwards]]
external = "198.51.100.81"
target = "10.77.0.12"
"#;
    let mut world = world(forwards);
    let nodes = Ipv4Addr::new(198, 51, 100, 80);
    let whole = Ipv4Addr::new(198, 51, 100, 81);
    let inside = |world: &mut World, frame: Vec<u8>| {
        world.inject(OUTSIDE, &frame);
        world.run();
        world.take_sent(INSIDE).pop()
    };
    let mut counts = [0; 2];
    for host in 1..=50 {
        let from = Ipv4Addr::new(203, 0, 113, host);
        let there = |port| Envelope::new(from, nodes).udp(4000, port, b"hello");
        let sent = inside(&mut world, there(30_080)).unwrap();
        let target = header(&sent).destination();
        assert_eq!(sent[36..38], 30_080_u16.to_be_bytes());
        let again = inside(&mut world, there(31_000)).unwrap();
        assert_eq!(
            header(&again).destination(),
            target,
            "a source keeps its target"
        );
        counts[usize::from(target == client(11))] += 1;
    }
    assert!(
        (8..28).contains(&counts[0]) && counts[0] + counts[1] == 50,
        "{counts:?}"
    );
    let stranger = Envelope::new(OTHER, nodes).udp(4000, 30_080, b"hello");
    assert_eq!(inside(&mut world, stranger), None);
    assert_eq!(dropped(&world, DropReason::ForwardDenied), 1);
    let ping = Envelope::new(SERVER, whole).echo_request(77, b"ping");
    let sent = inside(&mut world, ping).unwrap();
    assert_eq!(header(&sent).destination(), client(12));
    let answer = Envelope::new(client(12), SERVER).echo_reply(77, b"ping");
    assert_eq!(header(&out(&mut world, &answer).unwrap()).source(), whole);
    let sent = inside(
        &mut world,
        Envelope::new(SERVER, whole).tcp(9, 22, tcp::SYN, b""),
    )
    .unwrap();
    assert_eq!(header(&sent).destination(), client(12));
    let left = syn(&mut world, 12, 6000, OTHER).unwrap();
    assert_eq!(header(&left).source(), whole);
    assert_eq!(left[34..36], 6000_u16.to_be_bytes());
    world.check_invariants().unwrap();
}
