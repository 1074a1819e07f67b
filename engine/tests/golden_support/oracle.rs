//! What another parser (etherparse) says of frames: a line to read, and whether all checksums are
//! right.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use etherparse::{
    Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpNumber, Ipv4Header, NetSlice, SlicedPacket, TcpHeader,
    TcpSlice, UdpHeader, UdpSlice,
};

/// One line about a frame, much as tcpdump puts it.
pub fn line(frame: &[u8]) -> String {
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else {
        return format!("{} bytes that cannot be parsed", frame.len());
    };
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let link = sliced
        .link
        .as_ref()
        .and_then(|link| link.to_header()?.ethernet2());
    let link = link.map_or(String::new(), |link| {
        format!("{} > {}", mac(link.source), mac(link.destination))
    });
    match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            format!(
                "{link} {}",
                packet(&ip.header().to_header(), ip.payload().payload)
            )
        }
        _ => format!("{link} not IPv4, {} bytes", frame.len()),
    }
}

fn packet(ip: &Ipv4Header, payload: &[u8]) -> String {
    let (source, destination) = (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination));
    let fragment = match (ip.fragment_offset.value(), ip.more_fragments) {
        (0, false) => String::new(),
        (offset, more) => format!(" frag {}{}", offset * 8, if more { "+" } else { "" }),
    };
    let df = if ip.dont_fragment { " DF" } else { "" };
    let (ttl, id, len) = (ip.time_to_live, ip.identification, ip.total_len);
    let header = format!("ttl {ttl} id {id}{df}{fragment} len {len}");
    let whole = ip.fragment_offset.value() == 0;
    match ip.protocol {
        IpNumber::TCP if whole => match TcpHeader::from_slice(payload) {
            Ok((tcp, data)) => {
                let flags = [
                    (tcp.syn, 'S'),
                    (tcp.fin, 'F'),
                    (tcp.rst, 'R'),
                    (tcp.ack, '.'),
                ];
                let flags: String = flags
                    .iter()
                    .filter(|flag| flag.0)
                    .map(|flag| flag.1)
                    .collect();
                let (from, to) = (tcp.source_port, tcp.destination_port);
                let data = data.len();
                format!("{source}:{from} > {destination}:{to} tcp [{flags}] {data} data, {header}")
            }
            Err(_) => format!("{source} > {destination} tcp cut short, {header}"),
        },
        IpNumber::UDP if whole => match UdpHeader::from_slice(payload) {
            Ok((udp, data)) => {
                let (from, to) = (udp.source_port, udp.destination_port);
                let data = data.len();
                format!("{source}:{from} > {destination}:{to} udp {data} data, {header}")
            }
            Err(_) => format!("{source} > {destination} udp cut short, {header}"),
        },
        IpNumber::ICMP if whole => {
            let Ok((icmp, quote)) = Icmpv4Header::from_slice(payload) else {
                return format!("{source} > {destination} icmp cut short, {header}");
            };
            let what = match icmp.icmp_type {
                Icmpv4Type::EchoRequest(echo) => format!("echo request {}", echo.id),
                Icmpv4Type::EchoReply(echo) => format!("echo reply {}", echo.id),
                other => match Ipv4Header::from_slice(quote) {
                    Ok((ip, rest)) => format!("{other:?} about <{}>", packet(&ip, rest)),
                    Err(_) => format!("{other:?}"),
                },
            };
            format!("{source} > {destination} icmp {what}, {header}")
        }
        other => format!("{source} > {destination} protocol {} {header}", other.0),
    }
}

/// Source, destination, protocol, identification.
type Datagram = ([u8; 4], [u8; 4], u8, u16);

/// Checks every checksum of the frames: IPv4 headers, TCP, UDP and ICMP, those of datagrams whose
/// fragments are all there, and those that ICMP errors quote.
pub fn check<'f>(frames: impl IntoIterator<Item = &'f [u8]>) -> Result<(), String> {
    let mut datagrams: BTreeMap<Datagram, Vec<(Ipv4Header, Vec<u8>)>> = BTreeMap::new();
    for frame in frames {
        let sliced = SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
            continue;
        };
        let header = ip.header().to_header();
        if header.calc_header_checksum() != header.header_checksum {
            return Err(format!("IPv4 header checksum: {}", line(frame)));
        }
        let payload = ip.payload().payload;
        if header.is_fragmenting_payload() {
            let key = (
                header.source,
                header.destination,
                header.protocol.0,
                header.identification,
            );
            datagrams
                .entry(key)
                .or_default()
                .push((header, payload.to_vec()));
        } else {
            transport(&header, payload).map_err(|what| format!("{what}: {}", line(frame)))?;
        }
    }
    for parts in datagrams.values_mut() {
        parts.sort_by_key(|(header, _)| header.fragment_offset.value());
        let mut bytes = Vec::new();
        let complete = parts.iter().all(|(header, payload)| {
            let fits = usize::from(header.fragment_offset.value()) * 8 == bytes.len();
            bytes.extend_from_slice(payload);
            fits
        });
        if complete
            && parts
                .last()
                .is_some_and(|(header, _)| !header.more_fragments)
        {
            transport(&parts[0].0, &bytes).map_err(|what| format!("{what} of fragments"))?;
        }
    }
    Ok(())
}

fn transport(ip: &Ipv4Header, payload: &[u8]) -> Result<(), String> {
    match ip.protocol {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(payload).map_err(|error| error.to_string())?;
            let right = tcp.calc_checksum_ipv4(ip.source, ip.destination).ok();
            (right == Some(tcp.checksum()))
                .then_some(())
                .ok_or("TCP checksum".to_owned())
        }
        IpNumber::UDP => {
            let udp = UdpSlice::from_slice(payload).map_err(|error| error.to_string())?;
            let header = udp.to_header();
            let right = header.calc_checksum_ipv4(ip, udp.payload()).ok();
            let right = header.checksum == 0 || right == Some(header.checksum);
            right.then_some(()).ok_or("UDP checksum".to_owned())
        }
        IpNumber::ICMP => {
            let icmp = Icmpv4Slice::from_slice(payload).map_err(|error| error.to_string())?;
            // Not etherparse's: it leaves out the count of quoted words (RFC 4884).
            if naive_sum(payload) != 0xFFFF {
                return Err("ICMP checksum".into());
            }
            let asks = matches!(
                icmp.icmp_type(),
                Icmpv4Type::DestinationUnreachable(_) | Icmpv4Type::TimeExceeded(_)
            );
            if asks { quoted(icmp.payload()) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// The ones' complement sum, word by word.
fn naive_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, word| {
        let sum = sum + u32::from(word[0]) * 256 + u32::from(*word.get(1).unwrap_or(&0));
        (sum & 0xFFFF) + (sum >> 16)
    })
}

/// The packet that an error quotes, as far as it is there.
fn quoted(quote: &[u8]) -> Result<(), String> {
    let (ip, rest) = Ipv4Header::from_slice(quote).map_err(|error| error.to_string())?;
    if ip.calc_header_checksum() != ip.header_checksum {
        return Err("embedded IPv4 header checksum".into());
    }
    let len = usize::from(ip.total_len) - ip.header_len();
    match rest.get(..len) {
        Some(whole) if !ip.is_fragmenting_payload() => {
            transport(&ip, whole).map_err(|what| format!("embedded {what}"))
        }
        _ => Ok(()),
    }
}
