//! Scenarios in which packets do not find their way.

use std::net::Ipv4Addr;

use engine::wire::build::Envelope;
use engine::wire::samples;
use engine::wire::tcp::{ACK, SYN};
use engine::wire::{checksum, icmp, ipv4};
use engine::world::EXTERNAL;

use super::paths::{
    BEYOND, CLIENT, LAN, ONE_ARM, OTHER, OWN, OWN_POOL, SERVER, STRANGER, TWO_ARM, WAN,
    from_client, from_outside,
};
use super::scenario::{Scenario, towards};

/// On an address that is the host's, too, what matches nothing of ours is the host's.
pub fn punt() -> Scenario {
    let mut scenario = Scenario::new(ONE_ARM);
    let host = || from_outside(STRANGER, EXTERNAL);
    let about = Envelope::new(EXTERNAL, STRANGER).tcp(22, 4000, ACK, b"");
    scenario
        .on(
            0,
            towards(0, CLIENT, SERVER, CLIENT).udp(20_000, 53, b"a session of ours"),
        )
        .on(0, host().tcp(4000, 22, SYN, b""))
        .on(0, host().tcp(4000, 22, ACK, b"ssh"))
        .on(0, host().udp(53, 20_000, b"our port, not our remote"))
        .on(0, host().echo_request(1, b"ping"))
        .on(
            0,
            host().icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, &about, 576),
        )
        .on(0, host().frame(47, &[0; 24]))
        .on(0, host().icmp(5, 0, [10, 0, 0, 9], &[0; 28]))
        // A client speaks to the host.
        .on(
            0,
            towards(0, CLIENT, EXTERNAL, CLIENT).tcp(20_000, 22, SYN, b""),
        )
        // TTL 1 is enough for who lives here.
        .on(0, Envelope { ttl: 1, ..host() }.tcp(4000, 22, ACK, b"near"));
    scenario
}

/// On an address of our own it is dropped.
pub fn own_address() -> Scenario {
    let mut scenario = Scenario::new(&format!("{TWO_ARM}{OWN_POOL}"));
    let stranger = || from_outside(STRANGER, OWN);
    let about = Envelope::new(OWN, STRANGER).tcp(20_000, 4000, ACK, b"");
    scenario
        .on(WAN, stranger().tcp(4000, 22, SYN, b""))
        .on(WAN, stranger().udp(53, 20_000, b""))
        .on(WAN, stranger().echo_request(1, b"ping"))
        .on(WAN, stranger().frame(47, &[0; 24]))
        .on(
            WAN,
            stranger().icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, &about, 576),
        )
        // The interface's address is not in the pool: nothing of it comes here.
        .on(
            WAN,
            from_outside(STRANGER, EXTERNAL).tcp(4000, 22, SYN, b""),
        );
    scenario
}

pub fn spoofed() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let spoofed = |to| towards(WAN, CLIENT, to, STRANGER);
    scenario
        .on(WAN, spoofed(SERVER).udp(20_000, 53, b"out"))
        .on(WAN, spoofed(EXTERNAL).tcp(20_000, 80, SYN, b""))
        .on(WAN, spoofed(OTHER).udp(20_000, 53, b"in"))
        // Not internal, on the internal side.
        .on(
            LAN,
            towards(LAN, STRANGER, SERVER, CLIENT).udp(20_000, 53, b"not ours"),
        )
        // Neither end is ours.
        .on(
            WAN,
            from_outside(STRANGER, BEYOND).udp(20_000, 53, b"through"),
        );
    scenario
}

pub fn ttl_one() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = |ttl| Envelope {
        ttl,
        ..from_client(CLIENT, SERVER)
    };
    let back = |ttl| Envelope {
        ttl,
        ..from_outside(SERVER, EXTERNAL)
    };
    let about = Envelope::new(SERVER, CLIENT).udp(53, 20_000, b"answer");
    scenario
        .on(LAN, out(1).tcp(20_000, 80, SYN, b""))
        .on(LAN, out(0).udp(20_000, 53, b"zero"))
        .on(LAN, out(2).udp(20_000, 53, b"two"))
        // Of a session of ours, with nothing left: the answer shows the external address only.
        .on(WAN, back(1).udp(53, 20_000, b"answer"))
        .on(WAN, back(2).udp(53, 20_000, b"answer"))
        // No error about an error, and none about a later fragment.
        .on(
            LAN,
            out(1).icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, &about, 576),
        )
        .on(
            LAN,
            Envelope {
                flags_offset: 8,
                ..out(1)
            }
            .frame(17, &[0; 8]),
        )
        // Nor to a frame that went to all.
        .on(
            LAN,
            Envelope {
                destination_mac: [0xFF; 6],
                ..out(1)
            }
            .udp(20_000, 53, b"all"),
        );
    scenario
}

pub fn no_route() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    scenario
        .event("unreachable 203.0.113.0/24")
        .on(
            LAN,
            from_client(CLIENT, SERVER).udp(20_000, 53, b"blackhole"),
        )
        .on(
            LAN,
            from_client(CLIENT, BEYOND).udp(20_000, 53, b"elsewhere"),
        )
        // The gateway's own internal address is no place to forward to.
        .on(
            LAN,
            from_client(CLIENT, Ipv4Addr::new(10, 77, 0, 1)).udp(20_000, 53, b"gateway"),
        );
    scenario
}

pub fn neighbour_held() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    scenario
        .event("neighbour 198.51.100.1 unresolved")
        .on(LAN, from_client(CLIENT, SERVER).udp(20_000, 53, b"1"))
        .on(LAN, from_client(CLIENT, SERVER).udp(20_000, 53, b"2"))
        .on(LAN, from_client(OTHER, SERVER).tcp(20_000, 80, SYN, b""))
        .after(50)
        .event("neighbour 198.51.100.1 resolved")
        .after(50)
        .on(
            WAN,
            from_outside(SERVER, EXTERNAL).udp(53, 20_000, b"answer"),
        );
    scenario
}

pub fn neighbour_failed() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    scenario
        .event("neighbour 198.51.100.1 unresolved")
        .on(
            LAN,
            from_client(CLIENT, SERVER).udp(20_000, 53, b"waits, and is dropped"),
        )
        .after(10)
        .event("neighbour 198.51.100.1 failed")
        .after(10)
        .on(LAN, from_client(CLIENT, SERVER).udp(20_000, 53, b"is told"))
        .event("neighbour 198.51.100.1 unresolved")
        .on(
            LAN,
            from_client(CLIENT, SERVER).udp(20_000, 53, b"waits three seconds"),
        );
    scenario
}

pub fn ports_exhausted() -> Scenario {
    let mut scenario = Scenario::new(&format!("{TWO_ARM}[pool]\nports = [\"20000-20001\"]\n"));
    let out = |client| from_client(client, SERVER);
    scenario
        .on(LAN, out(CLIENT).udp(20_000, 53, b"1"))
        .on(LAN, out(CLIENT).udp(5_000, 53, b"2"))
        .on(
            LAN,
            out(OTHER).udp(20_000, 53, b"none is left for this server"),
        )
        .on(LAN, out(OTHER).tcp(20_000, 53, SYN, b""))
        .on(
            LAN,
            from_client(OTHER, STRANGER).udp(20_000, 53, b"for another there is"),
        );
    scenario
}

/// The frame as a sender with checksum offload hands it over: only the pseudo-header is summed.
fn partial(mut frame: Vec<u8>, field: usize) -> Vec<u8> {
    let addr = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let len = (frame.len() - 34) as u16;
    let sum = checksum::fold(checksum::pseudo_header(addr(26), addr(30), frame[23], len));
    frame[34 + field..34 + field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

pub fn partial_checksum() -> Scenario {
    let mut scenario = Scenario::new(TWO_ARM);
    let out = || from_client(CLIENT, SERVER);
    scenario
        .on(LAN, partial(out().tcp(20_000, 80, SYN, b""), 16))
        .on(LAN, partial(out().tcp(20_000, 80, ACK, &[0x5A; 1399]), 16))
        .on(LAN, partial(out().udp(20_000, 53, b"odd"), 6))
        .on(
            WAN,
            partial(from_outside(SERVER, EXTERNAL).udp(53, 20_000, b"answer"), 6),
        )
        // The host's: completed as well, for on its way the mark of it is lost.
        .on(
            WAN,
            partial(from_outside(STRANGER, EXTERNAL).tcp(4000, 22, SYN, b""), 16),
        );
    scenario
}

/// Every malformed sample, on the side where its source is a client.
pub fn malformed() -> Scenario {
    let mut scenario = Scenario::new(&TWO_ARM.replace("10.77.0.0/24", "10.0.0.0/8"));
    for (sample, _) in samples::malformed() {
        scenario.on(LAN, sample.frame);
    }
    // Two fragments that disagree about where their datagram ends.
    let part = |flags_offset, bytes: &[u8]| {
        Envelope {
            identification: 99,
            flags_offset,
            ..from_client(CLIENT, SERVER)
        }
        .frame(17, bytes)
    };
    let datagram = from_client(CLIENT, SERVER).udp_datagram(20_000, 53, &[1; 56]);
    scenario
        .on(LAN, part(ipv4::MORE_FRAGMENTS, &datagram[..32]))
        .on(LAN, part(8, &datagram[32..]))
        .on(LAN, part(4, &datagram[32..]));
    scenario
}
