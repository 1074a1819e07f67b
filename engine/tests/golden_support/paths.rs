//! Scenarios in which packets find their way.

use std::net::Ipv4Addr;

use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, PSH, RST, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, UPSTREAM};

use super::scenario::{Scenario, towards};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// A router beyond the upstream one.
pub const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Own pool addresses.
pub const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

/// Hops that are known when a scenario begins.
pub const NEIGHBOURS: [Ipv4Addr; 3] = [CLIENT, OTHER, UPSTREAM];

/// Interface numbers of the two-arm scenarios.
pub const LAN: usize = 0;
pub const WAN: usize = 1;

pub const ONE_ARM: &str = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";
pub const TWO_ARM: &str = "internal = \"10.77.0.0/24\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";
pub const OWN_POOL: &str = "[pool]\naddresses = \"198.51.100.20\"\n";
pub const EIM: &str = "[nat]\nmapping = \"eim\"\nfiltering = \"edf\"\n";
pub const FORWARD: &str = "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\n\
    target = \"10.77.0.10:443\"\nallow = [\"203.0.113.80/32\", \"198.51.100.2/32\"]\n";

/// From a client, by way of the gateway.
pub fn from_client(client: Ipv4Addr, to: Ipv4Addr) -> Envelope {
    towards(LAN, client, to, client)
}

/// From outside, brought by the upstream router.
pub fn from_outside(source: Ipv4Addr, to: Ipv4Addr) -> Envelope {
    towards(WAN, source, to, UPSTREAM)
}

fn with_df(envelope: Envelope) -> Envelope {
    Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        identification: 0,
        ..envelope
    }
}

/// A connection from its first segment to its last, and the client's port once more.
fn connection(scenario: &mut Scenario, lan: usize, wan: usize) {
    let out = || with_df(towards(lan, CLIENT, SERVER, CLIENT));
    let back = || with_df(towards(wan, SERVER, EXTERNAL, UPSTREAM));
    scenario
        .on(lan, out().tcp(20_000, 80, SYN, b""))
        .on(wan, back().tcp(80, 20_000, SYN | ACK, b""))
        .on(lan, out().tcp(20_000, 80, ACK, b""))
        .on(
            lan,
            out().tcp(20_000, 80, ACK | PSH, b"GET / HTTP/1.0\r\n\r\n"),
        )
        .on(wan, back().tcp(80, 20_000, ACK, &[0xA5; 1460]))
        .on(wan, back().tcp(80, 20_000, ACK | PSH, b"odd"))
        .after(1_000)
        .on(wan, back().tcp(80, 20_000, FIN | ACK, b""))
        .on(lan, out().tcp(20_000, 80, FIN | ACK, b""))
        .on(wan, back().tcp(80, 20_000, ACK, b""))
        // The same endpoints again; this time the server refuses.
        .after(500)
        .on(lan, out().tcp(20_000, 80, SYN, b""))
        .on(wan, back().tcp(80, 20_000, RST | ACK, b""));
}

pub fn tcp_two_arm() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    connection(&mut scenario, LAN, WAN);
    scenario
}

pub fn tcp_one_arm() -> Scenario {
    let mut scenario = Scenario::new(ONE_ARM);
    connection(&mut scenario, 0, 0);
    scenario
}

pub fn udp() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let mut without = from_client(CLIENT, SERVER).udp(20_001, 53, b"no checksum");
    without[14 + 20 + 6..14 + 20 + 8].fill(0);
    let options = Envelope {
        options: vec![1, 7, 7, 4, 0, 0, 0],
        ..from_client(CLIENT, SERVER)
    };
    let marked = Envelope {
        dscp_ecn: 0xB9,
        ..from_client(CLIENT, SERVER)
    };
    let mut padded = from_client(CLIENT, SERVER).udp(20_000, 53, b"x");
    padded.resize(60, 0xEE);
    scenario
        .on(
            LAN,
            from_client(CLIENT, SERVER).udp(20_000, 53, b"question"),
        )
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(53, 20_000, b"answer"),
        )
        .on(LAN, without)
        .on(WAN, from_outside(SERVER, EXTERNAL).udp(53, 20_001, b""))
        // Below 1024: not the pool's, so another port is chosen.
        .on(LAN, from_client(CLIENT, SERVER).udp(123, 123, &[0x23; 48]))
        .on(LAN, options.udp(20_000, 53, b"record route"))
        .on(LAN, marked.udp(20_000, 53, b"marked"))
        .on(LAN, padded)
        // After its time the session is gone: punted, the address is the host's, too.
        .after(300_000)
        .on(WAN, from_outside(SERVER, EXTERNAL).udp(53, 20_000, b"late"));
    scenario
}

pub fn ping() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let stamp =
        |icmp_type| move |envelope: Envelope| envelope.icmp(icmp_type, 0, [0, 9, 0, 1], &[3; 12]);
    scenario
        .on(
            LAN,
            from_client(CLIENT, SERVER).echo_request(7, &[0x10; 56]),
        )
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).echo_reply(7, &[0x10; 56]),
        )
        // The same identifier of another client gets another one outside.
        .on(LAN, from_client(OTHER, SERVER).echo_request(7, b"odd"))
        .on(LAN, stamp(icmp::TIMESTAMP)(from_client(CLIENT, SERVER)))
        .on(
            WAN,
            stamp(icmp::TIMESTAMP_REPLY)(from_outside(SERVER, EXTERNAL)),
        )
        // Somebody pings the host; the host's own ping is answered.
        .on(
            WAN,
            from_outside(STRANGER, EXTERNAL).echo_request(7, b"host?"),
        )
        .on(
            WAN,
            from_outside(STRANGER, EXTERNAL).echo_reply(7, b"host."),
        );
    scenario
}

pub fn forward() -> Scenario {
    let mut scenario = Scenario::new(&format!("{TWO_ARM}{FORWARD}"));
    let back = || from_client(OTHER, SERVER);
    scenario
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(40_000, 8443, SYN, b""),
        )
        .on(LAN, back().tcp(443, 40_000, SYN | ACK, b""))
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(40_000, 8443, ACK, b"hello"),
        )
        .on(LAN, back().tcp(443, 40_000, ACK, b"welcome"))
        .on(
            WAN,
            from_outside(STRANGER, EXTERNAL).tcp(40_000, 8443, SYN, b""),
        )
        // The target's own connections do not use the forward's endpoint.
        .on(LAN, from_client(OTHER, STRANGER).tcp(443, 50_000, SYN, b""))
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(40_000, 8443, RST, b""),
        );
    scenario
}

pub fn hairpin() -> Scenario {
    let mut scenario = Scenario::new(&format!("{TWO_ARM}{FORWARD}"));
    let there = || from_client(CLIENT, EXTERNAL);
    let back = || from_client(OTHER, EXTERNAL);
    let arrived = Envelope::new(EXTERNAL, OTHER).tcp(20_000, 443, ACK, b"to the forward");
    scenario
        .on(LAN, there().tcp(20_000, 8443, SYN, b""))
        .on(LAN, back().tcp(443, 20_000, SYN | ACK, b""))
        .on(LAN, there().tcp(20_000, 8443, ACK, b"to the forward"))
        .on(LAN, back().tcp(443, 20_000, ACK, b"and back"))
        // The target complains about what it got.
        .on(
            LAN,
            back().icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, &arrived, 64),
        )
        // The target uses its own forward.
        .on(
            LAN,
            from_client(OTHER, EXTERNAL).tcp(20_001, 8443, SYN, b""),
        )
        // No forward there, and no mapping: perhaps it is the host's.
        .on(LAN, there().tcp(20_000, 9000, SYN, b""));
    scenario
}

/// What left for the server, as a router outside sees it: one hop further.
fn outside(envelope: Envelope) -> Envelope {
    Envelope {
        source: EXTERNAL,
        ttl: 62,
        ..envelope
    }
}

pub fn icmp_errors_inbound() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = || from_client(CLIENT, SERVER);
    let udp = outside(out()).udp(20_000, 33_434, b"question");
    let tcp = outside(out()).tcp(20_000, 80, SYN, b"");
    let echo = outside(out()).echo_request(7, &[5; 40]);
    let error = |icmp_type, code, about: &[u8], quote| {
        from_outside(BEYOND, EXTERNAL).icmp_error(icmp_type, code, about, quote)
    };
    // RFC 4884: 128 bytes of quote, and an extension after them.
    let long = outside(out()).udp(20_000, 33_434, &[9; 200]);
    let mut extended = long[14..14 + 128].to_vec();
    extended.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0x11, 0x40]);
    let sum = !engine::wire::checksum::sum(&extended[128..]);
    extended[130..132].copy_from_slice(&sum.to_be_bytes());
    let extended =
        from_outside(BEYOND, EXTERNAL).icmp(icmp::TIME_EXCEEDED, 0, [0, 32, 0, 0], &extended);
    scenario
        .on(LAN, out().udp(20_000, 33_434, b"question"))
        .on(LAN, out().tcp(20_000, 80, SYN, b""))
        .on(LAN, out().echo_request(7, &[5; 40]))
        .on(WAN, error(icmp::UNREACHABLE, icmp::CODE_PORT, &udp, 576))
        .on(WAN, error(icmp::UNREACHABLE, icmp::CODE_HOST, &tcp, 28))
        .on(WAN, error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, &tcp, 576))
        .on(WAN, error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, &echo, 28))
        .on(WAN, error(icmp::PARAMETER_PROBLEM, 0, &echo, 576))
        .on(WAN, extended)
        // No error ends a session: the answer still comes through.
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(33_434, 20_000, b"answer"),
        )
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(80, 20_000, SYN | ACK, b""),
        )
        // About nothing of ours: the host may have sent it.
        .on(
            WAN,
            error(
                icmp::UNREACHABLE,
                icmp::CODE_PORT,
                &outside(out()).udp(20_009, 53, b""),
                576,
            ),
        );
    scenario
}

pub fn icmp_errors_outbound() -> Scenario {
    let config = format!("{TWO_ARM}{}", FORWARD.replace("\"tcp\"", "\"udp\""));
    let mut scenario = Scenario::new(&config);
    let arrived = Envelope {
        ttl: 62,
        ..Envelope::new(SERVER, OTHER)
    }
    .udp(40_000, 443, b"hello");
    let reply = Envelope {
        ttl: 62,
        ..Envelope::new(SERVER, CLIENT)
    }
    .udp(53, 20_000, b"answer");
    let error = |client: Ipv4Addr, about: &[u8]| {
        from_client(client, SERVER).icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, about, 576)
    };
    // A router between us and the client: its own address must not be shown outside.
    let within = from_client(Ipv4Addr::new(10, 77, 0, 200), SERVER);
    scenario
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(40_000, 8443, b"hello"),
        )
        .on(LAN, error(OTHER, &arrived))
        .on(
            LAN,
            from_client(CLIENT, SERVER).udp(20_000, 53, b"question"),
        )
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(53, 20_000, b"answer"),
        )
        .on(LAN, error(CLIENT, &reply))
        .on(
            LAN,
            within.icmp_error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, &reply, 28),
        )
        // About nothing that ever came in.
        .on(
            LAN,
            error(CLIENT, &Envelope::new(SERVER, CLIENT).udp(54, 20_000, b"")),
        );
    scenario
}

pub fn traceroute() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let probe = |ttl| Envelope {
        ttl,
        ..from_client(CLIENT, SERVER)
    };
    let seen = |ttl| Envelope {
        ttl,
        source: EXTERNAL,
        ..from_client(CLIENT, SERVER)
    };
    let exceeded = |about: &[u8]| {
        from_outside(BEYOND, EXTERNAL).icmp_error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, about, 576)
    };
    scenario
        .on(LAN, probe(1).udp(20_000, 33_434, &[0x40; 32]))
        .on(LAN, probe(2).udp(20_000, 33_435, &[0x41; 32]))
        .on(WAN, exceeded(&seen(1).udp(20_000, 33_435, &[0x41; 32])))
        .on(LAN, probe(1).echo_request(9, &[0x42; 32]))
        .on(LAN, probe(2).echo_request(9, &[0x43; 32]))
        .on(WAN, exceeded(&seen(1).echo_request(9, &[0x43; 32])));
    scenario
}

pub fn fragmentation_needed() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = || with_df(from_client(CLIENT, SERVER));
    let seen = outside(out()).tcp(20_000, 80, ACK, &[1; 1360]);
    // Next-hop MTU 1280.
    let mut message = Envelope::new(BEYOND, EXTERNAL).icmp_error(
        icmp::UNREACHABLE,
        icmp::CODE_FRAGMENTATION_NEEDED,
        &seen,
        548,
    );
    let needed = from_outside(BEYOND, EXTERNAL).icmp(
        icmp::UNREACHABLE,
        icmp::CODE_FRAGMENTATION_NEEDED,
        [0, 0, 5, 0],
        &message.split_off(14 + 20 + 8),
    );
    scenario
        .event("mtu 1 1400")
        .on(LAN, out().tcp(20_000, 80, SYN, b""))
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(80, 20_000, SYN | ACK, b""),
        )
        // 1400 bytes fit, 1401 do not.
        .on(LAN, out().tcp(20_000, 80, ACK, &[1; 1360]))
        .on(LAN, out().tcp(20_000, 80, ACK, &[1; 1361]))
        .on(LAN, out().udp(20_000, 53, &[2; 1400]))
        // The same from beyond.
        .on(WAN, needed)
        // And towards the inside, where the MTU becomes small.
        .event("mtu 0 1300")
        .on(
            WAN,
            with_df(from_outside(SERVER, EXTERNAL)).tcp(80, 20_000, ACK, &[3; 1360]),
        );
    scenario
}

pub fn port_overloading() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    scenario
        .on(LAN, from_client(CLIENT, SERVER).udp(20_000, 53, b"1"))
        // Another remote endpoint: the port serves both.
        .on(LAN, from_client(OTHER, STRANGER).udp(20_000, 53, b"2"))
        // The same remote endpoint: another port.
        .on(LAN, from_client(OTHER, SERVER).udp(20_000, 53, b"3"))
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(53, 20_000, b"to the first"),
        )
        .on(
            WAN,
            from_outside(STRANGER, EXTERNAL).udp(53, 20_000, b"to the second"),
        )
        .on(
            WAN,
            from_outside(BEYOND, EXTERNAL).udp(53, 20_000, b"to nobody"),
        );
    scenario
}

pub fn eim_own_pool() -> Scenario {
    let mut scenario = Scenario::new(&format!("{TWO_ARM}{OWN_POOL}{EIM}"));
    scenario
        .on(LAN, from_client(CLIENT, SERVER).udp(40_000, 53, b"1"))
        .on(
            LAN,
            from_client(CLIENT, STRANGER).udp(40_000, 53, b"the same endpoint"),
        )
        .on(LAN, from_client(OTHER, SERVER).udp(40_000, 53, b"another"))
        .on(WAN, from_outside(SERVER, OWN).udp(53, 40_000, b"answer"))
        .on(WAN, from_outside(STRANGER, OWN).udp(53, 40_000, b"answer"))
        // A mapping, but not for this sender; then no mapping at all.
        .on(WAN, from_outside(BEYOND, OWN).udp(53, 40_000, b"filtered"))
        .on(
            WAN,
            from_outside(SERVER, OWN).udp(53, 40_009, b"no session"),
        )
        // From one client to the other's external endpoint: filtered, too.
        .on(LAN, from_client(OTHER, OWN).udp(40_000, 40_000, b"hairpin"));
    scenario
}

pub fn address_change() -> Scenario {
    let new = Ipv4Addr::new(198, 51, 100, 9);
    let mut scenario = Scenario::new(TWO_ARM);
    let out = || from_client(CLIENT, SERVER);
    scenario
        .on(LAN, out().tcp(20_000, 80, SYN, b""))
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(80, 20_000, SYN | ACK, b""),
        )
        .on(LAN, out().udp(20_000, 53, b"1"))
        .after(100)
        .event("external 198.51.100.9/24")
        .after(1_000)
        // The old connection ends; nothing of it may leave under the new address.
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(80, 20_000, ACK, b"old"),
        )
        .on(LAN, out().tcp(20_000, 80, ACK, b"old"))
        .on(
            WAN,
            from_outside(SERVER, new).tcp(80, 20_000, ACK, b"never ours"),
        )
        .on(LAN, out().tcp(20_000, 80, SYN, b""))
        .on(
            WAN,
            from_outside(SERVER, new).tcp(80, 20_000, SYN | ACK, b""),
        )
        .on(LAN, out().udp(20_000, 53, b"2"))
        .after(100)
        .event("external none")
        .after(1_000)
        .on(LAN, out().udp(20_001, 53, b"nowhere to go"));
    scenario
}

pub fn forward_change() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = || from_client(OTHER, SERVER);
    scenario
        // A client's own mapping lies where the forward will be.
        .on(LAN, from_client(CLIENT, SERVER).tcp(8443, 80, SYN, b""))
        .on(
            WAN,
            from_outside(STRANGER, EXTERNAL).tcp(40_000, 8443, SYN, b""),
        )
        .after(100)
        .event(&format!("config {}", FORWARD.replace('\n', ";")))
        .after(1_000)
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(40_000, 8443, SYN, b""),
        )
        .on(LAN, out().tcp(443, 40_000, SYN | ACK, b""))
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).tcp(80, 8443, SYN | ACK, b"to the old mapping"),
        )
        .on(
            LAN,
            from_client(CLIENT, SERVER).tcp(8443, 80, SYN, b"again"),
        );
    scenario
}
