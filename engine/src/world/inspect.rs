//! What every frame that leaves a world must be like, whatever came in.

use crate::config::Role;
use crate::drop_reason::DropReason;
use crate::link::Links;
use crate::packet::{self, Body, IP, Packet};
use crate::wire::{checksum, ethernet, ipv4};

/// Looks at a frame that left by an interface; what is wrong with it, if anything is.
///
/// `transport`: the transport checksums must be right, because those of everything that came in
/// were. Frames other than IPv4 (announcements) are not looked at.
pub fn inspect(frame: &[u8], interface: u8, links: &Links, transport: bool) -> Result<(), String> {
    let is_ipv4 = ethernet::Header::new(frame)
        .is_some_and(|header| header.ether_type() == ethernet::TYPE_IPV4);
    if !is_ipv4 {
        return Ok(());
    }
    let packet = match packet::parse(frame) {
        // An ICMP error that was cut for a tiny MTU; none of ours would be taken for one.
        Err(DropReason::FragmentBad) if frame.get(IP + ipv4::PROTOCOL) == Some(&1) => return Ok(()),
        packet => packet.map_err(|reason| format!("left as {}", reason.name()))?,
    };
    if frame.len() != packet.frame_len() {
        return Err(format!(
            "{} bytes left, the packet has {}",
            frame.len(),
            packet.frame_len()
        ));
    }
    let link = links
        .links
        .get(usize::from(interface))
        .ok_or("left by no interface")?;
    if packet.ipv4.ttl == 0 {
        return Err("left with TTL 0".into());
    }
    if packet.ipv4.total_len > link.mtu {
        return Err(format!(
            "{} bytes left by an MTU of {}",
            packet.ipv4.total_len, link.mtu
        ));
    }
    let header = ethernet::Header::new(frame).ok_or("left without a header")?;
    // Errors of ours go back from where the packet was sent to.
    if header.source() != link.mac && !matches!(packet.body, Body::Error { .. }) {
        return Err(format!("left from {:02x?}", header.source()));
    }
    show_nothing_internal(&packet, link.role, links)?;
    if transport && !right(frame, &packet) {
        return Err("left with a wrong transport checksum".into());
    }
    Ok(())
}

/// Is the transport checksum of a frame right, or absent (UDP)? True for fragments; none for what
/// cannot be parsed.
pub fn transport_is_right(frame: &[u8]) -> Option<bool> {
    packet::parse(frame)
        .ok()
        .map(|packet| right(frame, &packet))
}

/// Invariant 1, and the same of what an ICMP error quotes.
fn show_nothing_internal(packet: &Packet, role: Role, links: &Links) -> Result<(), String> {
    let (source, destination) = (packet.ipv4.source, packet.ipv4.destination);
    let outward = !links.is_internal(destination);
    if outward && role == Role::Internal {
        return Err(format!("{destination} was sent to the internal side"));
    }
    if !outward && role == Role::External {
        return Err(format!("{destination} was sent to the external side"));
    }
    if outward && links.is_internal(source) {
        return Err(format!(
            "the internal source {source} left to {destination}"
        ));
    }
    if let Body::Error { embedded, .. } = &packet.body {
        let quoted = [embedded.tuple.source.addr, embedded.tuple.destination.addr];
        if outward && quoted.iter().any(|&addr| links.is_internal(addr)) {
            return Err(format!(
                "an error about {} left to {destination}",
                embedded.tuple
            ));
        }
    }
    Ok(())
}

fn right(frame: &[u8], packet: &Packet) -> bool {
    let l4 = &frame[packet.l4..packet.frame_len()];
    let ipv4 = &packet.ipv4;
    let with_pseudo = |len: usize| {
        let pseudo =
            checksum::pseudo_header(ipv4.source, ipv4.destination, ipv4.protocol, len as u16);
        checksum::fold(pseudo + u64::from(checksum::sum(&l4[..len]))) == 0xFFFF
    };
    match ipv4.protocol {
        _ if packet.fragment.is_some() => true,
        1 => checksum::is_right(l4),
        6 => with_pseudo(l4.len()),
        _ => {
            let len = usize::from(u16::from_be_bytes([l4[4], l4[5]]));
            l4[6..8] == [0, 0] || with_pseudo(len)
        }
    }
}

/// Writes the right IPv4 length, header checksum and ICMP checksum into a frame whose content is
/// arbitrary, so that more of it comes past the parser.
pub fn repair(frame: &mut [u8]) {
    if frame.len() < IP + 20 {
        return;
    }
    frame[12..14].copy_from_slice(&ethernet::TYPE_IPV4.to_be_bytes());
    let header_len = usize::from(frame[IP] & 15).max(5) * 4;
    frame[IP] = 0x40 | (header_len / 4) as u8;
    let total_len = (frame.len() - IP) as u16;
    frame[IP + 2..IP + 4].copy_from_slice(&total_len.to_be_bytes());
    if frame.len() < IP + header_len {
        return;
    }
    if frame[IP + 9] == 1 && frame.len() >= IP + header_len + 4 {
        let message = &mut frame[IP + header_len..];
        message[2..4].fill(0);
        let sum = !checksum::sum(message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    frame[IP + 10..IP + 12].fill(0);
    let sum = !checksum::sum(&frame[IP..IP + header_len]);
    frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
}
