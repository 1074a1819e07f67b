//! Scenarios with fragments.

use engine::wire::build::Envelope;
use engine::wire::ipv4;
use engine::wire::tcp::SYN;
use engine::world::EXTERNAL;

use super::paths::{
    CLIENT, LAN, OTHER, OWN, OWN_POOL, SERVER, STRANGER, TWO_ARM, WAN, from_client, from_outside,
};
use super::scenario::Scenario;

/// The fragments of a UDP datagram, cut after every `size` bytes (a multiple of 8).
fn cut(envelope: &Envelope, id: u16, ports: (u16, u16), data: &[u8], size: usize) -> Vec<Vec<u8>> {
    let datagram = envelope.udp_datagram(ports.0, ports.1, data);
    let parts = datagram.chunks(size);
    let last = parts.len() - 1;
    let fragment = |(number, part): (usize, &[u8])| {
        let more = if number < last {
            ipv4::MORE_FRAGMENTS
        } else {
            0
        };
        let flags_offset = (number * size / 8) as u16 | more;
        Envelope {
            identification: id,
            flags_offset,
            ..envelope.clone()
        }
        .frame(17, part)
    };
    parts.enumerate().map(fragment).collect()
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| b'a' + (n % 26) as u8).collect()
}

/// Puts the fragments in an order.
fn put(scenario: &mut Scenario, interface: usize, parts: &[Vec<u8>], order: &[usize]) {
    for &number in order {
        scenario.on(interface, parts[number].clone());
    }
}

pub fn outbound() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = from_client(CLIENT, SERVER);
    put(
        &mut scenario,
        LAN,
        &cut(&out, 1, (20_000, 53), &text(3000), 1480),
        &[0, 1, 2],
    );
    put(
        &mut scenario,
        LAN,
        &cut(&out, 2, (20_000, 53), &text(3000), 1480),
        &[2, 1, 0],
    );
    put(
        &mut scenario,
        LAN,
        &cut(&out, 3, (20_000, 53), &text(500), 256),
        &[1, 0],
    );
    // Two datagrams of two clients with one identification, mixed.
    let other = cut(&from_client(OTHER, SERVER), 4, (20_000, 53), &text(100), 64);
    let mine = cut(&out, 4, (20_000, 53), &text(100), 64);
    put(&mut scenario, LAN, &mine, &[1]);
    put(&mut scenario, LAN, &other, &[0, 1]);
    put(&mut scenario, LAN, &mine, &[0]);
    // A ping in two pieces, the second first.
    let echo = from_client(CLIENT, SERVER).echo_request(7, &text(200));
    let piece = |flags_offset, bytes: &[u8]| {
        Envelope {
            identification: 5,
            flags_offset,
            ..from_client(CLIENT, SERVER)
        }
        .frame(1, bytes)
    };
    scenario.on(LAN, piece(16, &echo[34 + 128..]));
    scenario.on(LAN, piece(ipv4::MORE_FRAGMENTS, &echo[34..34 + 128]));
    // Overlap: the rest of the datagram is given up.
    let parts = cut(&out, 6, (20_000, 53), &text(300), 128);
    let shifted = Envelope {
        identification: 6,
        flags_offset: 15 | ipv4::MORE_FRAGMENTS,
        ..out.clone()
    };
    put(&mut scenario, LAN, &parts, &[0]);
    scenario.on(LAN, shifted.frame(17, &text(128)));
    put(&mut scenario, LAN, &parts, &[1, 2]);
    // Never a first fragment: dropped when its time is over.
    put(
        &mut scenario,
        LAN,
        &cut(&out, 7, (20_000, 53), &text(300), 128),
        &[2],
    );
    scenario
}

pub fn inbound() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    scenario.on(
        LAN,
        from_client(CLIENT, SERVER).udp(20_000, 53, b"question"),
    );
    let back = from_outside(SERVER, EXTERNAL);
    put(
        &mut scenario,
        WAN,
        &cut(&back, 1, (53, 20_000), &text(4000), 1480),
        &[0, 1, 2],
    );
    put(
        &mut scenario,
        WAN,
        &cut(&back, 2, (53, 20_000), &text(4000), 1480),
        &[1, 2, 0],
    );
    put(
        &mut scenario,
        WAN,
        &cut(&back, 3, (53, 20_000), &text(4000), 1480),
        &[2, 0, 1],
    );
    // A duplicate of a middle fragment.
    put(
        &mut scenario,
        WAN,
        &cut(&back, 4, (53, 20_000), &text(4000), 1480),
        &[0, 1, 1, 2],
    );
    scenario
}

pub fn of_the_host() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    // A session of ours with the same server, so that both kinds meet.
    scenario.on(
        LAN,
        from_client(CLIENT, SERVER).udp(20_000, 53, b"question"),
    );
    let back = from_outside(SERVER, EXTERNAL);
    put(
        &mut scenario,
        WAN,
        &cut(&back, 1, (53, 40_000), &text(3000), 1480),
        &[0, 1, 2],
    );
    put(
        &mut scenario,
        WAN,
        &cut(&back, 2, (53, 40_000), &text(3000), 1480),
        &[2, 0, 1],
    );
    // A tunnel of the host's in fragments.
    let gre = |flags_offset, id| Envelope {
        identification: id,
        flags_offset,
        ..back.clone()
    };
    scenario.on(WAN, gre(ipv4::MORE_FRAGMENTS, 3).frame(47, &text(64)));
    scenario.on(WAN, gre(8, 3).frame(47, &text(64)));
    // No first fragment in time: perhaps the host knows more.
    put(
        &mut scenario,
        WAN,
        &cut(&back, 4, (53, 20_000), &text(300), 128),
        &[1, 2],
    );
    scenario.after(2_500);
    // Too late: it belongs to nothing any more, but is itself whole enough to be judged.
    put(
        &mut scenario,
        WAN,
        &cut(&back, 4, (53, 20_000), &text(300), 128),
        &[0],
    );
    scenario
}

pub fn to_own_address() -> Scenario {
    let mut scenario = Scenario::new(&format!("{TWO_ARM}{OWN_POOL}"));
    let back = from_outside(STRANGER, OWN);
    put(
        &mut scenario,
        WAN,
        &cut(&back, 1, (53, 20_000), &text(300), 128),
        &[0, 1, 2],
    );
    put(
        &mut scenario,
        WAN,
        &cut(&back, 2, (53, 20_000), &text(300), 128),
        &[1, 2, 0],
    );
    put(
        &mut scenario,
        WAN,
        &cut(&back, 3, (53, 20_000), &text(300), 128),
        &[1],
    );
    scenario
}

pub fn split() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = || from_client(CLIENT, SERVER);
    // Record route is not copied into later fragments, the router alert is.
    let options = vec![7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0];
    let with_options = Envelope {
        options,
        identification: 2,
        ..out()
    };
    scenario
        .event("mtu 1 576")
        .on(
            LAN,
            Envelope {
                identification: 1,
                ..out()
            }
            .udp(20_000, 53, &text(1400)),
        )
        .on(LAN, with_options.udp(20_000, 53, &text(1000)))
        .on(
            LAN,
            Envelope {
                identification: 3,
                ..out()
            }
            .tcp(20_000, 80, SYN, &text(1000)),
        )
        .on(
            LAN,
            Envelope {
                identification: 4,
                ..out()
            }
            .echo_request(7, &text(1000)),
        );
    // Fragments that are cut again, in order and not.
    put(
        &mut scenario,
        LAN,
        &cut(&out(), 5, (20_000, 53), &text(2500), 1280),
        &[0, 1],
    );
    put(
        &mut scenario,
        LAN,
        &cut(&out(), 6, (20_000, 53), &text(2500), 1280),
        &[1, 0],
    );
    // While the next hop is not known.
    scenario
        .event("neighbour 198.51.100.1 unresolved")
        .on(
            LAN,
            Envelope {
                identification: 7,
                ..out()
            }
            .udp(20_000, 53, &text(1400)),
        )
        .after(5)
        .event("neighbour 198.51.100.1 resolved");
    scenario
}
