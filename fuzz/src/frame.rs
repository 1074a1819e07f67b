//! Any bytes as a frame.

use std::net::Ipv4Addr;

use engine::neighbour::HopState;
use engine::packet;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, SYN};
use engine::world::{EXTERNAL, Setup, UPSTREAM, World, repair, transport_is_right};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

const TWO_ARM: &str = "internal = \"10.0.0.0/8\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";
const ONE_ARM: &str = "internal = \"10.0.0.0/8\"\ninterface = \"eth0\"\n";
const FORWARD: &str = "[[forwards]]\nprotocol = \"udp\"\nexternal = \"8443\"\n\
    target = \"10.0.0.10:443\"\n";

/// Bit 0 of the first byte: from which side it comes. Bit 1: lengths and checksums are made right
/// first, so that more of it comes past the parser. Bit 2: a small MTU, so that it is cut. The rest
/// is the frame; it comes twice, to a two-arm and to a one-arm gateway that have some sessions.
pub fn frame(data: &[u8]) {
    let Some((&flags, frame)) = data.split_first() else {
        return;
    };
    let mut frame = frame.to_vec();
    if flags & 2 != 0 {
        repair(&mut frame);
    }
    for (config, side) in [(TWO_ARM, usize::from(flags & 1)), (ONE_ARM, 0)] {
        let mut world = world(&format!("{config}{FORWARD}"));
        if flags & 4 != 0 {
            (0..world.config().interfaces.len())
                .for_each(|interface| world.set_mtu(interface, 256));
        }
        for _ in 0..2 {
            arrive(&mut world, side, &frame);
        }
        // Whatever waits comes out.
        world.pass_ms(4_000, 500);
        if let Err(violation) = world.check_invariants() {
            panic!("{violation}");
        }
    }
}

fn world(config: &str) -> World {
    let setup = Setup {
        slots: 64,
        sessions_max: 64,
        addresses_max: Some(1),
        hops_max: 16,
        transport: false,
        ..Setup::default()
    };
    let mut world = World::with(config, setup).expect("a valid configuration");
    for known in [CLIENT, UPSTREAM] {
        world.set_neighbour(known, HopState::Resolved);
    }
    let wan = world.config().interfaces.len() - 1;
    let out = Envelope::new(CLIENT, SERVER);
    let back = Envelope::new(SERVER, EXTERNAL);
    for (interface, frame) in [
        (0, out.udp(20_000, 53, b"question")),
        (0, out.tcp(20_000, 80, SYN, b"")),
        (wan, back.tcp(80, 20_000, SYN | ACK, b"")),
        (0, out.echo_request(7, b"ping")),
    ] {
        world.inject(interface, &frame);
    }
    world.run();
    (0..=wan).for_each(|interface| drop(world.take_sent(interface)));
    world
}

/// One frame; a checksum that was right must be right afterwards, and a wrong one wrong.
fn arrive(world: &mut World, side: usize, frame: &[u8]) {
    let before = world.snapshot();
    if !world.inject(side, frame) {
        return;
    }
    world.run();
    let interfaces = world.config().interfaces.len();
    let sent: Vec<Vec<u8>> = (0..interfaces)
        .flat_map(|number| world.take_sent(number))
        .collect();
    let after = world.snapshot();
    let forwarded = after.made == before.made && after.released == before.released;
    let same = after.checksums_completed == before.checksums_completed;
    let whole = packet::parse(frame).is_ok_and(|packet| packet.fragment.is_none());
    if let [sent] = &sent[..]
        && forwarded
        && same
        && whole
    {
        assert_eq!(
            transport_is_right(frame),
            transport_is_right(sent),
            "{sent:02x?}"
        );
    }
    for (interface, punted) in world.take_punted() {
        assert_eq!(usize::from(interface), side);
        let unchanged = punted.get(..12) == frame.get(..12) && punted.len() <= frame.len();
        assert!(
            unchanged || after.released > before.released,
            "{punted:02x?}"
        );
    }
}
