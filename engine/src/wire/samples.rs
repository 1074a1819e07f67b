//! Frames of every kind, valid and malformed: what tests, fuzzing and the demo start from.

use std::net::Ipv4Addr;

use super::build::Envelope;
use super::{checksum, ethernet, icmp, ipv4, tcp};
use crate::drop_reason::DropReason;

/// A frame and its name, which is unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What it is.
    pub name: &'static str,
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// The samples' sender.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The samples' receiver.
pub const DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

const IP: usize = ethernet::HEADER_LEN;
const L4: usize = IP + ipv4::HEADER_LEN;

fn envelope() -> Envelope {
    Envelope::new(SOURCE, DESTINATION)
}

/// The envelope of packets in the other direction.
fn back() -> Envelope {
    Envelope::new(DESTINATION, SOURCE)
}

fn with_options(options: &[u8]) -> Envelope {
    Envelope {
        options: options.to_vec(),
        ..envelope()
    }
}

fn fragment(offset: u16, more: bool) -> Envelope {
    let more = if more { ipv4::MORE_FRAGMENTS } else { 0 };
    Envelope {
        flags_offset: (offset / 8) | more,
        ..envelope()
    }
}

/// The frame with a change, and with a right IPv4 header checksum after it.
fn changed(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[IP..]);
    let header_len = usize::from(frame[IP] & 15) * 4;
    frame[IP + ipv4::CHECKSUM..IP + ipv4::SOURCE].fill(0);
    let sum = !checksum::sum(&frame[IP..IP + header_len]);
    frame[IP + ipv4::CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// An ICMP error around any quote.
fn error(icmp_type: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    back().icmp(icmp_type, code, [0; 4], quote)
}

/// Valid frames of every kind that [`crate::packet::parse`] tells apart.
pub fn valid() -> Vec<Sample> {
    let udp = envelope().udp(1000, 53, b"question");
    let tcp = envelope().tcp(1000, 80, tcp::ACK, b"data");
    let echo = envelope().echo_request(77, b"ping");
    let dont = Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        ..envelope()
    };
    let datagram = envelope().udp_datagram(1000, 53, &[7; 40]);
    let mut no_checksum = udp.clone();
    no_checksum[L4 + 6..L4 + 8].fill(0);
    let mut padded = envelope().udp(1, 2, b"");
    padded.resize(60, 0);
    let long_quote = with_options(&[7, 7, 4, 0, 0, 0, 0]).udp(1000, 53, b"question");
    // RFC 4884: 128 quoted bytes, their count in words, one extension object.
    let mut extended = envelope().udp(1000, 53, &[9; 200])[IP..IP + 128].to_vec();
    extended.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0x11, 0x40]);
    let sum = !checksum::sum(&extended[128..]);
    extended[130..132].copy_from_slice(&sum.to_be_bytes());
    let samples = [
        ("udp", udp.clone()),
        ("udp-no-checksum", no_checksum),
        ("udp-padded", padded),
        (
            "udp-options",
            with_options(&[1, 7, 3, 4]).udp(1000, 53, b"question"),
        ),
        ("tcp-syn", dont.tcp(1000, 80, tcp::SYN, b"")),
        (
            "tcp-syn-ack",
            back().tcp(80, 1000, tcp::SYN | tcp::ACK, b""),
        ),
        ("tcp-data", tcp.clone()),
        (
            "tcp-fin",
            envelope().tcp(1000, 80, tcp::FIN | tcp::ACK, b""),
        ),
        ("tcp-rst", envelope().tcp(1000, 80, tcp::RST, b"")),
        ("echo-request", echo.clone()),
        ("echo-reply", back().echo_reply(77, b"ping")),
        (
            "timestamp",
            envelope().icmp(icmp::TIMESTAMP, 0, [0, 77, 0, 1], &[0; 12]),
        ),
        (
            "timestamp-reply",
            back().icmp(icmp::TIMESTAMP_REPLY, 0, [0, 77, 0, 1], &[0; 12]),
        ),
        (
            "udp-first-fragment",
            fragment(0, true).frame(17, &datagram[..24]),
        ),
        (
            "udp-middle-fragment",
            fragment(24, true).frame(17, &datagram[24..40]),
        ),
        (
            "udp-last-fragment",
            fragment(40, false).frame(17, &datagram[40..]),
        ),
        (
            "error-udp",
            error(icmp::UNREACHABLE, icmp::CODE_PORT, &udp[IP..]),
        ),
        (
            "error-udp-8-bytes",
            error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, &udp[IP..L4 + 8]),
        ),
        (
            "error-udp-options",
            error(icmp::UNREACHABLE, icmp::CODE_HOST, &long_quote[IP..]),
        ),
        (
            "error-tcp",
            error(
                icmp::UNREACHABLE,
                icmp::CODE_FRAGMENTATION_NEEDED,
                &tcp[IP..],
            ),
        ),
        (
            "error-tcp-8-bytes",
            error(icmp::TIME_EXCEEDED, icmp::CODE_TTL, &tcp[IP..L4 + 8]),
        ),
        ("error-echo", error(icmp::PARAMETER_PROBLEM, 0, &echo[IP..])),
        (
            "error-extended",
            back().icmp(
                icmp::TIME_EXCEEDED,
                icmp::CODE_TTL,
                [0, 32, 0, 0],
                &extended,
            ),
        ),
    ];
    samples
        .into_iter()
        .map(|(name, frame)| Sample { name, frame })
        .collect()
}

/// Malformed frames of every kind, with the reason for which each is dropped.
pub fn malformed() -> Vec<(Sample, DropReason)> {
    [headers(), transports(), fragments(), errors()]
        .into_iter()
        .flatten()
        .map(|(name, frame, reason)| (Sample { name, frame }, reason))
        .collect()
}

type Malformed = (&'static str, Vec<u8>, DropReason);

fn headers() -> Vec<Malformed> {
    use DropReason::*;
    let udp = || envelope().udp(1000, 53, b"question");
    let from = |a, b, c, d| Envelope {
        source: Ipv4Addr::new(a, b, c, d),
        ..envelope()
    };
    let to = |a, b, c, d| Envelope {
        destination: Ipv4Addr::new(a, b, c, d),
        ..envelope()
    };
    let sent = |envelope: Envelope| envelope.udp(1000, 53, b"question");
    let mut ipv6 = udp();
    ipv6[ethernet::ETHER_TYPE..IP].copy_from_slice(&[0x86, 0xDD]);
    let mut tagged = udp();
    tagged.splice(ethernet::ETHER_TYPE..ethernet::ETHER_TYPE, [0x81, 0, 0, 5]);
    let mut flipped = udp();
    flipped[IP + ipv4::TTL] ^= 1;
    vec![
        ("empty", Vec::new(), Truncated),
        ("half-ethernet", udp()[..13].to_vec(), Truncated),
        ("half-ipv4", udp()[..L4 - 1].to_vec(), Truncated),
        (
            "options-beyond-frame",
            changed_unsummed(udp()[..L4].to_vec(), 0x4F),
            Truncated,
        ),
        ("ipv6", ipv6, NotIpv4),
        ("short-arp", vec![0xFF; 14], NotIpv4),
        ("vlan-tag", tagged, NotIpv4),
        ("version-6", changed(udp(), |ip| ip[0] = 0x65), BadHeader),
        ("header-length-16", changed_unsummed(udp(), 0x44), BadHeader),
        (
            "option-length-0",
            sent(with_options(&[7, 0, 0, 0])),
            BadHeader,
        ),
        (
            "option-length-1",
            sent(with_options(&[7, 1, 0, 0])),
            BadHeader,
        ),
        (
            "option-beyond-header",
            sent(with_options(&[7, 9, 4, 0])),
            BadHeader,
        ),
        ("header-checksum", flipped, BadChecksum),
        (
            "total-length-19",
            changed(udp(), |ip| ip[3] = 19),
            BadLength,
        ),
        (
            "total-length-beyond-frame",
            changed(udp(), |ip| ip[3] += 1),
            BadLength,
        ),
        (
            "loose-source-route",
            sent(with_options(&[131, 7, 4, 1, 2, 3, 4])),
            SourceRoute,
        ),
        (
            "strict-source-route",
            sent(with_options(&[1, 137, 7, 4, 1, 2, 3, 4])),
            SourceRoute,
        ),
        ("source-network-0", sent(from(0, 0, 0, 1)), BadAddress),
        ("source-loopback", sent(from(127, 0, 0, 1)), BadAddress),
        ("source-multicast", sent(from(224, 0, 0, 1)), BadAddress),
        (
            "source-broadcast",
            sent(from(255, 255, 255, 255)),
            BadAddress,
        ),
        ("destination-network-0", sent(to(0, 1, 2, 3)), BadAddress),
        ("destination-loopback", sent(to(127, 9, 9, 9)), BadAddress),
        ("destination-multicast", sent(to(239, 1, 1, 1)), BadAddress),
        ("destination-reserved", sent(to(240, 0, 0, 1)), BadAddress),
        (
            "destination-broadcast",
            sent(to(255, 255, 255, 255)),
            BadAddress,
        ),
        ("gre", envelope().frame(47, &[0; 24]), UnsupportedProtocol),
        ("sctp", envelope().frame(132, &[0; 24]), UnsupportedProtocol),
        (
            "gre-later-fragment",
            fragment(64, false).frame(47, &[0; 24]),
            UnsupportedProtocol,
        ),
    ]
}

/// The frame with another first IPv4 byte; its checksum stays.
fn changed_unsummed(mut frame: Vec<u8>, version_ihl: u8) -> Vec<u8> {
    frame[IP] = version_ihl;
    frame
}

fn transports() -> Vec<Malformed> {
    use DropReason::*;
    let tcp = |flags| envelope().tcp(1000, 80, flags, b"");
    let with_byte = |mut frame: Vec<u8>, at: usize, value: u8| {
        frame[at] = value;
        frame
    };
    let with_data_offset = |words: u8| with_byte(tcp(tcp::ACK), L4 + tcp::DATA_OFFSET, words << 4);
    let udp_len = |len| with_byte(envelope().udp(1000, 53, b"question"), L4 + 5, len);
    vec![
        (
            "tcp-19-bytes",
            envelope().frame(6, &tcp(tcp::ACK)[L4..L4 + 19]),
            Truncated,
        ),
        ("tcp-data-offset-4", with_data_offset(4), BadTransport),
        ("tcp-data-offset-beyond", with_data_offset(6), BadTransport),
        ("tcp-no-flags", tcp(0), BadTransport),
        ("tcp-ecn-flags-only", tcp(0xC0), BadTransport),
        ("tcp-syn-fin", tcp(tcp::SYN | tcp::FIN), BadTransport),
        (
            "tcp-syn-rst",
            tcp(tcp::SYN | tcp::RST | tcp::ACK),
            BadTransport,
        ),
        ("tcp-all-flags", tcp(0x3F), BadTransport),
        ("udp-7-bytes", envelope().frame(17, &[0; 7]), Truncated),
        ("udp-no-payload", envelope().frame(17, &[]), Truncated),
        ("udp-length-7", udp_len(7), BadTransport),
        ("udp-length-beyond", udp_len(17), BadTransport),
        ("icmp-7-bytes", envelope().frame(1, &[8; 7]), Truncated),
        (
            "icmp-source-quench",
            envelope().icmp(4, 0, [0; 4], &[0; 28]),
            UnsupportedIcmp,
        ),
        (
            "icmp-redirect",
            envelope().icmp(5, 0, [10, 0, 0, 9], &[0; 28]),
            UnsupportedIcmp,
        ),
        (
            "icmp-router-advertisement",
            envelope().icmp(9, 0, [0; 4], &[]),
            UnsupportedIcmp,
        ),
        (
            "icmp-router-solicitation",
            envelope().icmp(10, 0, [0; 4], &[]),
            UnsupportedIcmp,
        ),
        (
            "icmp-information",
            envelope().icmp(15, 0, [0; 4], &[]),
            UnsupportedIcmp,
        ),
        (
            "icmp-information-reply",
            envelope().icmp(16, 0, [0; 4], &[]),
            UnsupportedIcmp,
        ),
        (
            "icmp-address-mask",
            envelope().icmp(17, 0, [0; 4], &[0; 4]),
            UnsupportedIcmp,
        ),
        (
            "icmp-address-mask-reply",
            envelope().icmp(18, 0, [0; 4], &[0; 4]),
            UnsupportedIcmp,
        ),
        (
            "icmp-type-255",
            envelope().icmp(255, 0, [0; 4], &[]),
            UnsupportedIcmp,
        ),
    ]
}

fn fragments() -> Vec<Malformed> {
    use DropReason::FragmentBad;
    let tcp = envelope().tcp(1000, 80, tcp::SYN, &[0; 44]);
    let mut long_header = tcp.clone();
    long_header[L4 + tcp::DATA_OFFSET] = 8 << 4;
    let udp = envelope().udp_datagram(1000, 53, &[0; 40]);
    let quote = envelope().udp(1000, 53, b"question");
    let error = error(icmp::UNREACHABLE, icmp::CODE_PORT, &quote[IP..]);
    let error = Envelope {
        flags_offset: ipv4::MORE_FRAGMENTS,
        ..back()
    }
    .frame(1, &error[L4..][..32]);
    [
        ("tiny-tcp-8", fragment(0, true).frame(6, &tcp[L4..L4 + 8])),
        ("tiny-tcp-16", fragment(0, true).frame(6, &tcp[L4..L4 + 16])),
        (
            "tiny-tcp-options",
            fragment(0, true).frame(6, &long_header[L4..L4 + 24]),
        ),
        ("tcp-offset-8", fragment(8, false).frame(6, &tcp[L4 + 8..])),
        (
            "tcp-offset-16",
            fragment(16, true).frame(6, &tcp[L4 + 16..L4 + 40]),
        ),
        ("empty-first-fragment", fragment(0, true).frame(17, &[])),
        ("empty-last-fragment", fragment(8, false).frame(17, &[])),
        (
            "fragment-not-a-multiple-of-8",
            fragment(0, true).frame(17, &udp[..20]),
        ),
        (
            "fragment-beyond-65535",
            fragment(65_528, false).frame(17, &udp[..8]),
        ),
        ("fragmented-icmp-error", error),
    ]
    .into_iter()
    .map(|(name, frame)| (name, frame, FragmentBad))
    .collect()
}

fn errors() -> Vec<Malformed> {
    use DropReason::{IcmpBadChecksum, IcmpBadEmbedded, IcmpBadEmbeddedChecksum};
    let udp = envelope().udp(1000, 53, b"question");
    let unreachable = |quote: &[u8]| error(icmp::UNREACHABLE, icmp::CODE_HOST, quote);
    let quoting = |frame: Vec<u8>| unreachable(&frame[IP..]);
    let mut flipped = unreachable(&udp[IP..]);
    *flipped.last_mut().unwrap_or(&mut 0) ^= 1;
    let mut bad_header = udp[IP..].to_vec();
    bad_header[ipv4::TTL] ^= 1;
    let within = error(icmp::TIME_EXCEEDED, 0, &udp[IP..]);
    vec![
        ("error-checksum", flipped, IcmpBadChecksum),
        ("error-no-quote", unreachable(&[]), IcmpBadEmbedded),
        (
            "error-half-header",
            unreachable(&udp[IP..L4 - 1]),
            IcmpBadEmbedded,
        ),
        (
            "error-7-bytes",
            unreachable(&udp[IP..L4 + 7]),
            IcmpBadEmbedded,
        ),
        (
            "error-embedded-checksum",
            unreachable(&bad_header),
            IcmpBadEmbeddedChecksum,
        ),
        (
            "error-embedded-version",
            quoting(changed(udp.clone(), |ip| ip[0] = 0x55)),
            IcmpBadEmbedded,
        ),
        (
            "error-embedded-header-length",
            quoting(changed_unsummed(udp.clone(), 0x43)),
            IcmpBadEmbedded,
        ),
        (
            "error-embedded-options-beyond",
            unreachable(&changed_unsummed(udp, 0x4F)[IP..]),
            IcmpBadEmbedded,
        ),
        (
            "error-embedded-total-length",
            quoting(changed(quote_udp(), |ip| ip[3] = 27)),
            IcmpBadEmbedded,
        ),
        (
            "error-about-later-fragment",
            quoting(fragment(64, false).frame(17, &[0; 24])),
            IcmpBadEmbedded,
        ),
        (
            "error-about-gre",
            quoting(envelope().frame(47, &[0; 24])),
            IcmpBadEmbedded,
        ),
        ("error-about-error", quoting(within), IcmpBadEmbedded),
        (
            "error-about-redirect",
            quoting(envelope().icmp(5, 0, [0; 4], &[0; 28])),
            IcmpBadEmbedded,
        ),
        (
            "error-quoted-words",
            back().icmp(icmp::TIME_EXCEEDED, 0, [0, 6, 0, 0], &quote_udp()[IP..]),
            IcmpBadEmbedded,
        ),
    ]
}

fn quote_udp() -> Vec<u8> {
    envelope().udp(1000, 53, b"question")
}
