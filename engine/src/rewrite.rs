//! Edits onto the bytes of a parsed frame, each with its checksum deltas (RFC 1624).
//!
//! Every function takes the frame that [`crate::packet::parse`] accepted and its facts; on bytes
//! that do not fit the facts it changes less, and never fails. A right checksum stays right, a
//! wrong one stays wrong.

use std::net::Ipv4Addr;

use conntrack::{Protocol, Rewrite};

use crate::packet::{Body, Embedded, IP, Packet};
use crate::wire::{be16, checksum, ethernet, icmp, ipv4, put16, tcp, udp};

/// Writes both Ethernet addresses.
#[inline]
pub fn set_ethernet(frame: &mut [u8], destination: [u8; 6], source: [u8; 6]) {
    ethernet::write(frame, destination, source, None);
}

/// Takes one off the TTL and updates the header checksum. The caller has refused a TTL of 0 or 1;
/// 0 stays 0.
#[inline]
pub fn decrement_ttl(frame: &mut [u8], packet: &Packet) {
    let Some(mut header) = frame.get_mut(IP..).and_then(ipv4::HeaderMut::new) else {
        return;
    };
    let ttl = packet.ipv4.ttl;
    if ttl == 0 {
        return;
    }
    // The TTL is the high byte of its word; the low byte cancels out of the delta.
    let delta = checksum::delta16(u16::from(ttl) << 8, u16::from(ttl - 1) << 8);
    let checksum = checksum::apply(header.as_ref().checksum(), checksum::fold(delta));
    header.set_ttl(ttl - 1);
    header.set_checksum(checksum);
}

/// Writes another identification and updates the header checksum.
#[inline]
pub fn set_identification(frame: &mut [u8], identification: u16) {
    if let Some(header) = frame.get_mut(IP..).and_then(ipv4::HeaderMut::new) {
        change_identification(header, identification);
    }
}

/// Rewrites a flow's packet or first fragment: addresses, ports or identifier, and both checksums.
/// Of a later fragment it rewrites the addresses only; of an ICMP error nothing
/// (see [`apply_embedded`]).
#[inline]
pub fn apply(frame: &mut [u8], packet: &Packet, rewrite: &Rewrite) {
    apply_as(frame, packet, rewrite, Field::Checksum);
}

/// [`apply`] for a packet whose transport checksum is partial: it stays the sum of its
/// pseudo-header, which has the addresses in it and not the ports.
pub fn apply_partial(frame: &mut [u8], packet: &Packet, rewrite: &Rewrite) {
    apply_as(frame, packet, rewrite, Field::PseudoHeader);
}

/// What stands in the field of a transport checksum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Checksum,
    PseudoHeader,
}

impl Field {
    /// The field after the rewrite.
    #[inline(always)]
    fn rewritten(self, old: u16, rewrite: &Rewrite) -> u16 {
        match self {
            Field::Checksum => checksum::apply(old, rewrite.l4_delta),
            Field::PseudoHeader => checksum::fold(u64::from(old) + u64::from(rewrite.ip_delta)),
        }
    }
}

#[inline(always)]
fn apply_as(frame: &mut [u8], packet: &Packet, rewrite: &Rewrite, field: Field) {
    let tuple = match &packet.body {
        Body::Flow { tuple, .. } => Some(tuple),
        Body::LaterFragment => None,
        Body::Error { .. } => return,
    };
    let Some(mut header) = frame.get_mut(IP..).and_then(ipv4::HeaderMut::new) else {
        return;
    };
    let checksum = checksum::apply(header.as_ref().checksum(), rewrite.ip_delta);
    header.set_source(rewrite.source.addr);
    header.set_destination(rewrite.destination.addr);
    header.set_checksum(checksum);
    let Some(tuple) = tuple else { return };
    let Some(l4) = frame.get_mut(packet.l4..packet.frame_len()) else {
        return;
    };
    let (source, destination) = (rewrite.source.port, rewrite.destination.port);
    match tuple.protocol {
        Protocol::Tcp => {
            let Some(header) = l4.first_chunk_mut::<{ tcp::HEADER_LEN }>() else {
                return;
            };
            put16(header, tcp::SOURCE_PORT, source);
            put16(header, tcp::DESTINATION_PORT, destination);
            let checksum = field.rewritten(be16(header, tcp::CHECKSUM), rewrite);
            put16(header, tcp::CHECKSUM, checksum);
        }
        Protocol::Udp => {
            let Some(header) = l4.first_chunk_mut::<{ udp::HEADER_LEN }>() else {
                return;
            };
            put16(header, udp::SOURCE_PORT, source);
            put16(header, udp::DESTINATION_PORT, destination);
            let checksum = match (field, be16(header, udp::CHECKSUM)) {
                (Field::Checksum, old) => checksum::apply_udp(old, rewrite.l4_delta),
                (Field::PseudoHeader, old) => field.rewritten(old, rewrite),
            };
            put16(header, udp::CHECKSUM, checksum);
        }
        Protocol::Icmp => {
            let asks = l4.first().is_some_and(|&icmp_type| is_request(icmp_type));
            let identifier = if asks { source } else { destination };
            set_identifier(l4, identifier, rewrite.l4_delta, packet.fragment.is_none());
        }
    }
}

/// Does the query ask, so that its identifier stands in for the source port?
#[inline]
fn is_request(icmp_type: u8) -> bool {
    matches!(icmp_type, icmp::ECHO_REQUEST | icmp::TIMESTAMP)
}

/// Writes a query's identifier. `message`: all of it that the packet holds; `whole`: that is
/// everything under its checksum.
#[inline]
fn set_identifier(message: &mut [u8], identifier: u16, delta: u16, whole: bool) {
    let Some(&header) = message.first_chunk::<{ icmp::HEADER_LEN }>() else {
        return;
    };
    let old = be16(&header, icmp::CHECKSUM);
    let mut new = checksum::apply(old, delta);
    // No pseudo-header makes sure of a nonzero word here: an echo reply may be zero throughout, and
    // only then are 0x0000 (wrong) and 0xFFFF (right) different checksums. 0xFFFF is right wherever
    // 0x0000 is.
    if header[icmp::TYPE] == icmp::ECHO_REPLY {
        new = checksum::never_zero(new);
        if whole && header == [0; icmp::HEADER_LEN] && message.iter().all(|&byte| byte == 0) {
            new = 0; // was wrong
        }
    }
    let Some(header) = message.first_chunk_mut::<{ icmp::HEADER_LEN }>() else {
        return;
    };
    put16(header, icmp::IDENTIFIER, identifier);
    put16(header, icmp::CHECKSUM, new);
}

/// Rewrites an ICMP error. `rewrite` is that of the session's half which carries the embedded
/// tuple reversed, so the embedded source becomes its destination and the other way round. The
/// outer destination becomes the embedded source (RFC 5508 REQ-4, 5 and 7); the outer source
/// changes, to the rewritten source, only when the half changes its source address or port
/// (outbound and hairpin), so that no internal address is shown.
///
/// `original`: the identification to put into the embedded header, if another is to be there.
///
/// Updated checksums: embedded IPv4, embedded transport where the quote holds it, ICMP, outer IPv4.
/// Extensions (RFC 4884) stay as they are.
pub fn apply_embedded(frame: &mut [u8], packet: &Packet, rewrite: &Rewrite, original: Option<u16>) {
    let Body::Error { embedded, .. } = &packet.body else {
        return;
    };
    let Some(quote) = frame.get_mut(embedded.ip..embedded.end) else {
        return;
    };
    let reverted = match (original, ipv4::HeaderMut::new(quote)) {
        (Some(original), Some(header)) => change_identification(header, original),
        _ => 0,
    };
    let delta = checksum::fold(reverted + u64::from(rewrite_quote(quote, embedded, rewrite)));
    let Some(message) = frame.get_mut(packet.l4..) else {
        return;
    };
    let Some(header) = message.first_chunk_mut::<{ icmp::HEADER_LEN }>() else {
        return;
    };
    let checksum = checksum::apply(be16(header, icmp::CHECKSUM), delta);
    put16(header, icmp::CHECKSUM, checksum);

    use conntrack::Direction::{Hairpin, Inbound, Outbound};
    let source = match rewrite.direction {
        Outbound | Hairpin => rewrite.source.addr,
        Inbound => packet.ipv4.source,
    };
    let Some(header) = frame.get_mut(IP..).and_then(ipv4::HeaderMut::new) else {
        return;
    };
    set_addresses(header, source, rewrite.destination.addr);
}

/// Writes both addresses of a header and updates its checksum; the unfolded delta of the addresses
/// and the checksum together, for a checksum that covers the header.
fn set_addresses(mut header: ipv4::HeaderMut, source: Ipv4Addr, destination: Ipv4Addr) -> u64 {
    let old = header.as_ref();
    let delta = checksum::delta_address(old.source(), source)
        + checksum::delta_address(old.destination(), destination);
    let before = old.checksum();
    let after = checksum::apply(before, checksum::fold(delta));
    header.set_source(source);
    header.set_destination(destination);
    header.set_checksum(after);
    delta + checksum::delta16(before, after)
}

/// Writes the identification of a header and updates its checksum; the unfolded delta of both
/// together.
#[inline]
fn change_identification(mut header: ipv4::HeaderMut, identification: u16) -> u64 {
    let old = header.as_ref();
    let delta = checksum::delta16(old.identification(), identification);
    let before = old.checksum();
    let after = checksum::apply(before, checksum::fold(delta));
    header.set_identification(identification);
    header.set_checksum(after);
    delta + checksum::delta16(before, after)
}

/// Rewrites the embedded packet; the folded delta of all its words that changed. Every field lies
/// at an even offset in the ICMP message, so words line up.
fn rewrite_quote(quote: &mut [u8], embedded: &Embedded, rewrite: &Rewrite) -> u16 {
    let tuple = &embedded.tuple;
    let (source, destination) = (rewrite.destination, rewrite.source);
    let Some(header) = ipv4::HeaderMut::new(quote) else {
        return 0xFFFF;
    };
    let header_delta = set_addresses(header, source.addr, destination.addr);
    let Some(l4) = quote.get_mut(embedded.l4 - embedded.ip..) else {
        return checksum::fold(header_delta);
    };
    let pseudo_delta = checksum::delta_address(tuple.source.addr, source.addr)
        + checksum::delta_address(tuple.destination.addr, destination.addr);
    let ports_delta = checksum::delta16(tuple.source.port, source.port)
        + checksum::delta16(tuple.destination.port, destination.port);
    let l4_delta = match tuple.protocol {
        Protocol::Tcp => {
            set_ports(l4, source.port, destination.port);
            let delta = checksum::fold(pseudo_delta + ports_delta);
            ports_delta + set_checksum(l4, tcp::CHECKSUM, |old| checksum::apply(old, delta))
        }
        Protocol::Udp => {
            set_ports(l4, source.port, destination.port);
            let delta = checksum::fold(pseudo_delta + ports_delta);
            ports_delta + set_checksum(l4, udp::CHECKSUM, |old| checksum::apply_udp(old, delta))
        }
        Protocol::Icmp => {
            let Some(&header) = l4.first_chunk::<{ icmp::HEADER_LEN }>() else {
                return checksum::fold(header_delta);
            };
            let asks = is_request(header[icmp::TYPE]);
            let new = if asks { source.port } else { destination.port };
            let old = be16(&header, icmp::IDENTIFIER);
            let delta = checksum::delta16(old, new);
            set_identifier(l4, new, checksum::fold(delta), false);
            let after = l4
                .first_chunk()
                .map_or(0, |header: &[u8; 8]| be16(header, icmp::CHECKSUM));
            delta + checksum::delta16(be16(&header, icmp::CHECKSUM), after)
        }
    };
    checksum::fold(header_delta + l4_delta)
}

/// Writes the ports of a TCP or UDP header.
fn set_ports(l4: &mut [u8], source: u16, destination: u16) {
    let Some(ports) = l4.first_chunk_mut::<4>() else {
        return;
    };
    put16(ports, udp::SOURCE_PORT, source);
    put16(ports, udp::DESTINATION_PORT, destination);
}

/// Changes the checksum at `at` if the quote holds it; its unfolded delta.
fn set_checksum(l4: &mut [u8], at: usize, change: impl Fn(u16) -> u16) -> u64 {
    let Some(field) = l4.get_mut(at..).and_then(|l4| l4.first_chunk_mut::<2>()) else {
        return 0;
    };
    let old = u16::from_be_bytes(*field);
    let new = change(old);
    *field = new.to_be_bytes();
    checksum::delta16(old, new)
}

/// Completes a partial checksum: a sender behind veth or virtio with checksum offload leaves in a
/// TCP or UDP packet only the sum of the pseudo-header, not complemented. Recognised by that value
/// and completed over the bytes; a checksum that is right and has this value by chance comes out
/// right again. Whole packets only, before any rewrite. Was one completed?
#[inline]
pub fn complete_checksum(frame: &mut [u8], packet: &Packet) -> bool {
    let Body::Flow { tuple, .. } = &packet.body else {
        return false;
    };
    if packet.fragment.is_some() {
        return false;
    }
    let Some(l4) = frame.get(packet.l4..packet.frame_len()) else {
        return false;
    };
    let (field, covered) = match tuple.protocol {
        Protocol::Tcp => match tcp::Header::new(l4) {
            Some(header) => (header.checksum(), packet.payload_len() as u16),
            None => return false,
        },
        Protocol::Udp => match udp::Header::new(l4) {
            Some(header) => (header.checksum(), header.len()),
            None => return false,
        },
        Protocol::Icmp => return false,
    };
    let ipv4 = &packet.ipv4;
    let pseudo = checksum::pseudo_header(ipv4.source, ipv4.destination, ipv4.protocol, covered);
    field == checksum::fold(pseudo) && complete(frame, packet.l4, tuple.protocol, covered)
}

/// Completes the checksum of a whole packet that is known to be partial.
pub fn complete_partial(frame: &mut [u8], packet: &Packet) {
    let (Body::Flow { tuple, .. }, None) = (&packet.body, packet.fragment) else {
        return;
    };
    let covered = match frame.get(packet.l4..).and_then(udp::Header::new) {
        Some(header) if tuple.protocol == Protocol::Udp => header.len(),
        _ => packet.payload_len() as u16,
    };
    complete(frame, packet.l4, tuple.protocol, covered);
}

/// Sums the bytes, the pseudo-header's sum in the checksum field among them, into that field.
#[cold]
fn complete(frame: &mut [u8], l4: usize, protocol: Protocol, covered: u16) -> bool {
    let Some(segment) = frame.get_mut(l4..l4 + usize::from(covered)) else {
        return false;
    };
    let sum = !checksum::sum(segment);
    let (at, value) = match protocol {
        Protocol::Udp => (udp::CHECKSUM, checksum::never_zero(sum)),
        _ => (tcp::CHECKSUM, sum),
    };
    set_checksum(segment, at, |_| value);
    true
}
