//! Scenarios of frames that are still to be finished, as the tun driver hands them over: partial
//! checksums, and super-packets. What leaves them is finished as the kernel does it.

use engine::device::offload::{Checksum, Offload, SegmentKind, Segments};
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, PSH, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, unfinish};

use super::paths::{
    BEYOND, CLIENT, FORWARD, LAN, ONE_ARM, OTHER, SERVER, STRANGER, TWO_ARM, WAN, from_client,
    from_outside,
};
use super::scenario::{Scenario, towards};

/// Payload of a full segment behind an MTU of 1500 bytes, without options.
const SEGMENT: u16 = 1460;

fn df(envelope: Envelope) -> Envelope {
    Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        ..envelope
    }
}

/// Bytes in which every place can be told.
fn payload(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 17) as u8)
        .collect()
}

/// Opens a connection of the client's from port 20,000 to the server's 80.
fn connect(scenario: &mut Scenario) {
    let out = || df(from_client(CLIENT, SERVER));
    let back = || df(from_outside(SERVER, EXTERNAL));
    scenario
        .unfinished(LAN, out().tcp(20_000, 80, SYN, b""), None)
        .unfinished(WAN, back().tcp(80, 20_000, SYN | ACK, b""), None)
        .unfinished(LAN, out().tcp(20_000, 80, ACK, b""), None);
}

/// Outbound, inbound and hairpin, by mappings whose port is another and whose port is the same.
pub fn checksums() -> Scenario {
    let mut scenario = Scenario::told(&format!("{TWO_ARM}{FORWARD}"));
    connect(&mut scenario);
    let out = || from_client(CLIENT, SERVER);
    let back = || from_outside(SERVER, EXTERNAL);
    let (first, later) = fragments(&out().udp(20_000, 53, &payload(1_200)));
    scenario
        .unfinished(LAN, df(out()).tcp(20_000, 80, ACK | PSH, b"odd"), None)
        .unfinished(WAN, df(back()).tcp(80, 20_000, ACK, &payload(1_460)), None)
        .unfinished(LAN, out().udp(20_000, 53, b"question"), None)
        .unfinished(WAN, back().udp(53, 20_000, b"answer"), None)
        // The second client of that port to the server gets another one.
        .unfinished(LAN, from_client(OTHER, SERVER).udp(20_000, 53, b""), None)
        // To the forward, from a client and from outside.
        .unfinished(
            LAN,
            from_client(CLIENT, EXTERNAL).tcp(20_001, 8443, SYN, b""),
            None,
        )
        .unfinished(
            LAN,
            from_client(OTHER, EXTERNAL).tcp(443, 20_001, SYN | ACK, b""),
            None,
        )
        .unfinished(WAN, back().tcp(40_000, 8443, SYN, b""), None)
        .unfinished(
            LAN,
            from_client(OTHER, SERVER).tcp(443, 40_000, SYN | ACK, b""),
            None,
        )
        // Of fragments and of ICMP everything is done already.
        .on(LAN, first)
        .on(LAN, later)
        .on(LAN, out().echo_request(7, b"ping"))
        .on(WAN, back().echo_reply(7, b"ping"));
    scenario
}

/// A datagram in two fragments.
fn fragments(whole: &[u8]) -> (Vec<u8>, Vec<u8>) {
    const FIRST: usize = 600;
    let part = |flags_offset, bytes: &[u8]| {
        Envelope {
            identification: 77,
            flags_offset,
            ..from_client(CLIENT, SERVER)
        }
        .frame(17, bytes)
    };
    let bytes = &whole[34..];
    (
        part(ipv4::MORE_FRAGMENTS, &bytes[..FIRST]),
        part(FIRST as u16 / 8, &bytes[FIRST..]),
    )
}

/// ICMP errors about packets that were not finished when they came, and between them.
pub fn errors() -> Scenario {
    let mut scenario = Scenario::told(TWO_ARM);
    connect(&mut scenario);
    let last_hop = || Envelope {
        ttl: 1,
        ..df(from_client(CLIENT, SERVER))
    };
    let mut seen = from_client(CLIENT, SERVER);
    // The first has the number before it, and the client knows this one as its second.
    (seen.source, seen.ttl, seen.identification) = (EXTERNAL, 1, 10_620);
    let exceeded = |about: &[u8]| {
        from_outside(BEYOND, EXTERNAL).icmp_error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, about, 576)
    };
    scenario
        // Our own: they quote a packet, and it has its whole checksum.
        .unfinished(LAN, last_hop().udp(20_000, 33_434, &payload(32)), None)
        .unfinished(
            LAN,
            last_hop().tcp(20_000, 80, ACK, &payload(5_000)),
            Some(SEGMENT),
        )
        .unfinished(
            LAN,
            last_hop().udp(20_000, 53, &payload(3_000)),
            Some(1_200),
        )
        // A router's, about a datagram of several that left together: its second one.
        .unfinished(
            LAN,
            from_client(CLIENT, SERVER).udp(20_000, 53, &payload(64)),
            Some(32),
        )
        .on(WAN, exceeded(&seen.udp(20_000, 53, &payload(64)[32..])))
        // Of no session: reset, for the length of all segments.
        .unfinished(
            LAN,
            df(from_client(OTHER, SERVER)).tcp(20_009, 80, ACK, &payload(5_000)),
            Some(SEGMENT),
        );
    scenario
}

/// Both directions and hairpin; each is one frame to the gateway.
pub fn super_packets() -> Scenario {
    let mut scenario = Scenario::told(&format!("{TWO_ARM}{FORWARD}"));
    connect(&mut scenario);
    let out = || df(from_client(CLIENT, SERVER));
    let back = || df(from_outside(SERVER, EXTERNAL));
    let both = |from, to| df(from_client(from, to));
    scenario
        .unfinished(
            LAN,
            out().tcp(20_000, 80, ACK | PSH, &payload(5_000)),
            Some(SEGMENT),
        )
        .unfinished(
            WAN,
            back().tcp(80, 20_000, ACK | FIN, &payload(2 * 1_460)),
            Some(SEGMENT),
        )
        .unfinished(
            LAN,
            out().tcp(20_000, 80, ACK, &payload(20_000)),
            Some(SEGMENT),
        )
        .unfinished(LAN, out().udp(20_000, 443, &payload(3_601)), Some(1_200))
        .unfinished(WAN, back().udp(443, 20_000, &payload(3_600)), Some(1_200))
        .unfinished(
            LAN,
            both(CLIENT, EXTERNAL).tcp(20_001, 8443, SYN, b""),
            None,
        )
        .unfinished(
            LAN,
            both(OTHER, EXTERNAL).tcp(443, 20_001, SYN | ACK, b""),
            None,
        )
        .unfinished(
            LAN,
            both(CLIENT, EXTERNAL).tcp(20_001, 8443, ACK, &payload(4_000)),
            Some(SEGMENT),
        )
        .unfinished(
            LAN,
            both(OTHER, EXTERNAL).tcp(443, 20_001, ACK, &payload(4_000)),
            Some(SEGMENT),
        );
    scenario
}

/// The way out has a smaller MTU: it is the segments that must fit.
pub fn narrow() -> Scenario {
    let mut scenario = Scenario::told(TWO_ARM);
    connect(&mut scenario);
    let atomic = || df(from_client(CLIENT, SERVER));
    let free = || from_client(CLIENT, SERVER);
    scenario
        .event("mtu 1 1400")
        // 1360 bytes of data and 40 of headers fit, one more does not.
        .unfinished(
            LAN,
            atomic().tcp(20_000, 80, ACK, &payload(4_000)),
            Some(1_360),
        )
        .unfinished(
            LAN,
            atomic().tcp(20_000, 80, ACK, &payload(4_000)),
            Some(1_361),
        )
        // A stream may be cut anew, a datagram may be cut up.
        .unfinished(
            LAN,
            free().tcp(20_000, 80, ACK | FIN, &payload(4_000)),
            Some(SEGMENT),
        )
        .unfinished(LAN, free().udp(20_000, 53, &payload(3_000)), Some(1_450))
        // Each of them had numbers of its own: so has this one.
        .unfinished(LAN, free().udp(20_000, 53, b"next"), None)
        .unfinished(LAN, atomic().udp(20_000, 53, &payload(3_000)), Some(1_450))
        // No super-packet, just too long.
        .unfinished(LAN, free().udp(20_000, 53, &payload(3_000)), None);
    scenario
}

/// What is the host's goes there as it came.
pub fn punted() -> Scenario {
    let mut scenario = Scenario::told(ONE_ARM);
    let host = || df(from_outside(STRANGER, EXTERNAL));
    scenario
        .on(
            0,
            towards(0, CLIENT, SERVER, CLIENT).udp(20_000, 53, b"a session of ours"),
        )
        .unfinished(0, host().tcp(4_000, 22, SYN, b""), None)
        .unfinished(
            0,
            host().tcp(4_000, 22, ACK, &payload(5_000)),
            Some(SEGMENT),
        )
        .unfinished(0, host().udp(53, 20_000, &payload(3_000)), Some(1_200));
    scenario
}

/// What the device says speaks of another packet: the kernel would write a checksum elsewhere.
pub fn contradicting() -> Scenario {
    let mut scenario = Scenario::told(TWO_ARM);
    let out = || df(from_client(CLIENT, SERVER));
    let udp = || out().udp(20_000, 53, &payload(400));
    let partial = |start, at| Offload {
        checksum: Checksum::Partial { start, at },
        segments: None,
    };
    let mut stream = out().tcp(20_000, 80, ACK, &payload(4_000));
    let right = unfinish(&mut stream, Some(SEGMENT));
    let segments = |kind, headers_len| Offload {
        segments: Some(Segments {
            kind,
            headers_len,
            payload_len: 100,
        }),
        ..right
    };
    let (first, _) = fragments(&from_client(CLIENT, SERVER).udp(20_000, 53, &payload(1_200)));
    scenario
        // The ports, the place of the other protocol, the payload.
        .described(LAN, udp(), partial(34, 0))
        .described(LAN, udp(), partial(34, 16))
        .described(LAN, udp(), partial(42, 6))
        // Datagrams in a stream; a checksum that ICMP and fragments have none of.
        .described(LAN, stream.clone(), segments(SegmentKind::Udp, 42))
        .described(LAN, out().echo_request(7, &payload(400)), partial(34, 2))
        .described(LAN, first, partial(34, 6))
        // And from outside.
        .described(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(53, 20_000, &payload(400)),
            partial(34, 2),
        )
        // The right word for it, and it leaves.
        .unfinished(LAN, udp(), None);
    scenario
}
