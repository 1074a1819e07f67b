//! Bytes to facts: one pass over a frame that either finds everything the rest of the route needs,
//! as checked offsets and values, or says why the frame is dropped.

use std::net::Ipv4Addr;

use conntrack::{Endpoint, Protocol, Signal, Tuple};

use crate::drop_reason::DropReason;
use crate::wire::{checksum, ethernet, icmp, ipv4, tcp, udp};

/// Offset of the IPv4 header in a frame.
pub const IP: usize = ethernet::HEADER_LEN;

/// What the IPv4 header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Facts {
    /// Bytes of the header: 20 to 60.
    pub header_len: usize,
    /// Bytes of the packet, header included. What the frame has beyond `14 + total_len` is
    /// Ethernet padding and may be cut off.
    pub total_len: u16,
    /// Time to live as received.
    pub ttl: u8,
    /// DS field and ECN.
    pub dscp_ecn: u8,
    /// DF.
    pub dont_fragment: bool,
    /// Identification.
    pub identification: u16,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
}

impl Ipv4Facts {
    /// What a header says. Nothing is checked.
    #[inline]
    pub fn of(header: ipv4::Header<'_>) -> Ipv4Facts {
        Ipv4Facts {
            header_len: header.header_len(),
            total_len: header.total_len(),
            ttl: header.ttl(),
            dscp_ecn: header.dscp_ecn(),
            dont_fragment: header.flags_offset() & ipv4::DONT_FRAGMENT != 0,
            identification: header.identification(),
            source: header.source(),
            destination: header.destination(),
            protocol: header.protocol(),
        }
    }
}

/// Which part of a datagram a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentFacts {
    /// Bytes of the datagram before this fragment's payload: a multiple of 8; 0: first fragment.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// The packet that an ICMP error is about, as the error quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Offset in the frame of the embedded IPv4 header.
    pub ip: usize,
    /// Offset in the frame of the embedded transport header; at least 8 bytes of it are there.
    pub l4: usize,
    /// Offset in the frame of the first byte after the quote: padding and extensions (RFC 4884)
    /// start here.
    pub end: usize,
    /// The embedded packet's tuple, as it was on the wire.
    pub tuple: Tuple,
    /// Its identification, unless it is atomic (DF set, no fragment: RFC 6864).
    pub identification: Option<u16>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Part of a flow: TCP, UDP or an ICMP query, whole or its first fragment.
    Flow {
        /// Its tuple.
        tuple: Tuple,
        /// What it means to its session.
        signal: Signal,
        /// TCP's sequence number, 0 for other protocols.
        sequence: u32,
        /// TCP's acknowledgement number, 0 without one.
        acknowledgement: u32,
    },
    /// An ICMP error (destination unreachable, time exceeded, parameter problem) with a right ICMP
    /// checksum; never a fragment.
    Error {
        /// ICMP type.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
        /// The packet it is about.
        embedded: Embedded,
    },
    /// A fragment without a transport header. The tuple is its first fragment's.
    LaterFragment,
}

/// A frame's facts. They hold for the bytes that were parsed, until these are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The IPv4 header.
    pub ipv4: Ipv4Facts,
    /// Offset in the frame of the first byte after the IPv4 header.
    pub l4: usize,
    /// Which part it is, if the packet is a fragment.
    pub fragment: Option<FragmentFacts>,
    /// What it carries.
    pub body: Body,
}

impl Packet {
    /// Bytes of the frame without Ethernet padding.
    #[inline]
    pub fn frame_len(&self) -> usize {
        IP + usize::from(self.ipv4.total_len)
    }

    /// Is it certain that nobody puts the packet together from fragments, so that its identification
    /// means nothing (RFC 6864 section 4)?
    #[inline]
    pub fn is_atomic(&self) -> bool {
        self.ipv4.dont_fragment && self.fragment.is_none()
    }

    /// Bytes after the IPv4 header.
    #[inline]
    pub fn payload_len(&self) -> usize {
        usize::from(self.ipv4.total_len) - self.ipv4.header_len
    }
}

/// Parses an Ethernet frame. The transport checksum is not verified (a rewrite keeps right ones
/// right and wrong ones wrong), except that of an ICMP error (RFC 5508 REQ-3).
///
/// # Errors
/// Why the frame is dropped: everything from [`DropReason::Truncated`] to
/// [`DropReason::IcmpBadEmbedded`], [`DropReason::SourceRoute`] and [`DropReason::FragmentBad`].
#[inline]
pub fn parse(frame: &[u8]) -> Result<Packet, DropReason> {
    let Some(header) = frame.get(IP..).and_then(ipv4::Header::new) else {
        return Err(no_header(frame));
    };
    if ethernet::Header::new(frame).is_none_or(|h| h.ether_type() != ethernet::TYPE_IPV4) {
        return Err(DropReason::NotIpv4);
    }
    let header_len = header.header_len();
    if header.version() != 4 || header_len < ipv4::HEADER_LEN {
        return Err(DropReason::BadHeader);
    }
    let total_len = usize::from(header.total_len());
    let Some(header_bytes) = frame.get(IP..IP + header_len) else {
        return Err(DropReason::Truncated);
    };
    let l4 = IP + header_len;
    let Some(payload) = frame.get(l4..IP + total_len) else {
        return Err(DropReason::BadLength);
    };
    // A sum over a length known at compile time has no loop.
    let right = match <&[u8; ipv4::HEADER_LEN]>::try_from(header_bytes) {
        Ok(fixed) => checksum::is_right(fixed),
        Err(_) => checksum::is_right(header_bytes),
    };
    if !right {
        return Err(DropReason::BadChecksum);
    }
    if header_len > ipv4::HEADER_LEN {
        check_options(&header_bytes[ipv4::HEADER_LEN..])?;
    }
    let (source, destination) = (header.source(), header.destination());
    if !is_forwardable(source) || !is_forwardable(destination) {
        return Err(DropReason::BadAddress);
    }
    let Some(protocol) = Protocol::from_number(header.protocol()) else {
        return Err(DropReason::UnsupportedProtocol);
    };
    let flags_offset = header.flags_offset();
    let fragment = if flags_offset & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0 {
        None
    } else {
        Some(fragment_facts(
            flags_offset,
            header_len,
            payload.len(),
            protocol,
        )?)
    };
    let body = match (protocol, fragment) {
        (_, Some(FragmentFacts { offset: 1.., .. })) => Body::LaterFragment,
        (Protocol::Tcp, _) => tcp_body(payload, source, destination, fragment)?,
        (Protocol::Udp, _) => udp_body(payload, source, destination, fragment)?,
        (Protocol::Icmp, _) => icmp_body(payload, l4, source, destination, fragment)?,
    };
    let ipv4 = Ipv4Facts::of(header);
    Ok(Packet {
        ipv4,
        l4,
        fragment,
        body,
    })
}

/// Why a frame has no room for an IPv4 header.
#[cold]
fn no_header(frame: &[u8]) -> DropReason {
    match ethernet::Header::new(frame) {
        Some(header) if header.ether_type() != ethernet::TYPE_IPV4 => DropReason::NotIpv4,
        _ => DropReason::Truncated,
    }
}

/// May a packet from or to this address be forwarded? Not 0/8, 127/8, multicast 224/4, the reserved
/// 240/4 and limited broadcast (RFC 1812 sections 5.3.7 and 4.2.2.11).
#[inline]
pub(crate) fn is_forwardable(addr: Ipv4Addr) -> bool {
    !matches!(addr.octets()[0], 0 | 127 | 224..)
}

/// Source routing is refused (RFC 7126 sections 4.3 and 4.4); other options pass.
#[cold]
fn check_options(options: &[u8]) -> Result<(), DropReason> {
    for option in ipv4::Options::new(options) {
        match option {
            Ok([ipv4::OPTION_LSRR | ipv4::OPTION_SSRR, ..]) => return Err(DropReason::SourceRoute),
            Ok(_) => {}
            Err(ipv4::BadOption) => return Err(DropReason::BadHeader),
        }
    }
    Ok(())
}

/// A fragment's place, unless it is one that no honest sender makes.
#[cold]
fn fragment_facts(
    flags_offset: u16,
    header_len: usize,
    payload_len: usize,
    protocol: Protocol,
) -> Result<FragmentFacts, DropReason> {
    let offset = (flags_offset & ipv4::OFFSET_MASK) * 8;
    let more = flags_offset & ipv4::MORE_FRAGMENTS != 0;
    let past_the_end = header_len + usize::from(offset) + payload_len > usize::from(u16::MAX);
    let bad_len = payload_len == 0 || more && !payload_len.is_multiple_of(8);
    // First fragments hold the whole TCP header, so one that starts below its 20 bytes overlaps it
    // (RFC 3128; RFC 1858 section 3.2).
    let over_header = protocol == Protocol::Tcp && matches!(offset, 1..20);
    if past_the_end || bad_len || over_header {
        return Err(DropReason::FragmentBad);
    }
    Ok(FragmentFacts { offset, more })
}

/// The reason for a transport header that is not all there: in a first fragment it is an attempt
/// to hide it (RFC 1858 section 3.1).
#[cold]
fn incomplete(fragment: Option<FragmentFacts>) -> DropReason {
    if fragment.is_some() {
        DropReason::FragmentBad
    } else {
        DropReason::Truncated
    }
}

#[inline]
fn flow(protocol: Protocol, source: Endpoint, destination: Endpoint, signal: Signal) -> Body {
    Body::Flow {
        tuple: Tuple {
            protocol,
            source,
            destination,
        },
        signal,
        sequence: 0,
        acknowledgement: 0,
    }
}

#[inline]
fn tcp_body(
    payload: &[u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    fragment: Option<FragmentFacts>,
) -> Result<Body, DropReason> {
    let Some(header) = tcp::Header::new(payload) else {
        return Err(incomplete(fragment));
    };
    let header_len = header.header_len();
    if header_len < tcp::HEADER_LEN {
        return Err(DropReason::BadTransport);
    }
    if header_len > payload.len() {
        return Err(match fragment {
            Some(_) => DropReason::FragmentBad,
            None => DropReason::BadTransport,
        });
    }
    let Some(signal) = tcp_signal(header.flags()) else {
        return Err(DropReason::BadTransport);
    };
    let source = Endpoint::new(source, header.source_port());
    let destination = Endpoint::new(destination, header.destination_port());
    Ok(Body::Flow {
        tuple: Tuple {
            protocol: Protocol::Tcp,
            source,
            destination,
        },
        signal,
        sequence: header.sequence(),
        acknowledgement: match header.flags() & tcp::ACK {
            0 => 0,
            _ => header.acknowledgement(),
        },
    })
}

/// What the flags mean; none for a combination that no TCP sends: no flag at all, or SYN with FIN
/// or RST.
#[inline]
fn tcp_signal(flags: u8) -> Option<Signal> {
    use tcp::{ACK, FIN, PSH, RST, SYN, URG};
    if flags & (SYN | FIN | RST) == 0 {
        return (flags & (ACK | PSH | URG) != 0).then_some(Signal::TcpData);
    }
    match flags & (SYN | FIN | RST) {
        SYN if flags & ACK != 0 => Some(Signal::TcpSynAck),
        SYN => Some(Signal::TcpSyn),
        FIN => Some(Signal::TcpFin),
        combined if combined & SYN == 0 => Some(Signal::TcpRst),
        _ => None,
    }
}

#[inline]
fn udp_body(
    payload: &[u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    fragment: Option<FragmentFacts>,
) -> Result<Body, DropReason> {
    let Some(header) = udp::Header::new(payload) else {
        return Err(incomplete(fragment));
    };
    let len = usize::from(header.len());
    // A datagram may be shorter than the packet (trailing bytes), never longer.
    if len < udp::HEADER_LEN || fragment.is_none() && len > payload.len() {
        return Err(DropReason::BadTransport);
    }
    let source = Endpoint::new(source, header.source_port());
    let destination = Endpoint::new(destination, header.destination_port());
    Ok(flow(Protocol::Udp, source, destination, Signal::Udp))
}

/// The ends of an ICMP query's tuple, and whether it asks; none for other types.
#[inline]
fn query(
    icmp_type: u8,
    identifier: u16,
    source: Ipv4Addr,
    destination: Ipv4Addr,
) -> Option<(Endpoint, Endpoint, Signal)> {
    let end = Endpoint::new;
    match icmp_type {
        icmp::ECHO_REQUEST | icmp::TIMESTAMP => Some((
            end(source, identifier),
            end(destination, 0),
            Signal::IcmpQuery,
        )),
        icmp::ECHO_REPLY | icmp::TIMESTAMP_REPLY => Some((
            end(source, 0),
            end(destination, identifier),
            Signal::IcmpReply,
        )),
        _ => None,
    }
}

fn icmp_body(
    payload: &[u8],
    l4: usize,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    fragment: Option<FragmentFacts>,
) -> Result<Body, DropReason> {
    let Some(header) = icmp::Header::new(payload) else {
        return Err(incomplete(fragment));
    };
    let icmp_type = header.icmp_type();
    if let Some((source, destination, signal)) =
        query(icmp_type, header.identifier(), source, destination)
    {
        return Ok(flow(Protocol::Icmp, source, destination, signal));
    }
    if !matches!(
        icmp_type,
        icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM
    ) {
        return Err(DropReason::UnsupportedIcmp);
    }
    // An error is at most 576 bytes (RFC 1812 section 4.3.2.3): nothing makes it a fragment. Its
    // checksum could not be verified either.
    if fragment.is_some() {
        return Err(DropReason::FragmentBad);
    }
    if !checksum::is_right(payload) {
        return Err(DropReason::IcmpBadChecksum);
    }
    let embedded = embedded(payload, l4, header.quoted_len())?;
    Ok(Body::Error {
        icmp_type,
        code: header.code(),
        embedded,
    })
}

/// The quoted packet of an ICMP error at `at` in its frame (RFC 5508 REQ-3). It must have a right
/// IPv4 header, be no later fragment and be of a flow, and 8 bytes of transport header must be
/// there. Its transport checksum is not looked at (REQ-3 c).
#[cold]
fn embedded(message: &[u8], at: usize, quoted_len: usize) -> Result<Embedded, DropReason> {
    let quote = message.get(icmp::HEADER_LEN..).unwrap_or_default();
    let bytes = embedded_header(quote).ok_or(DropReason::IcmpBadEmbedded)?;
    if !checksum::is_right(bytes) {
        return Err(DropReason::IcmpBadEmbeddedChecksum);
    }
    embedded_flow(quote, at + icmp::HEADER_LEN, bytes.len(), quoted_len)
        .ok_or(DropReason::IcmpBadEmbedded)
}

/// The bytes of the quoted IPv4 header with its options (REQ-3 b), if they are all there.
fn embedded_header(quote: &[u8]) -> Option<&[u8]> {
    let header = ipv4::Header::new(quote)?;
    let header_len = header.header_len();
    let valid = header.version() == 4 && header_len >= ipv4::HEADER_LEN;
    quote.get(..header_len).filter(|_| valid)
}

/// The quoted packet at `ip` in its frame, after its header was found good.
fn embedded_flow(
    quote: &[u8],
    ip: usize,
    header_len: usize,
    quoted_len: usize,
) -> Option<Embedded> {
    let header = ipv4::Header::new(quote)?;
    if header.flags_offset() & ipv4::OFFSET_MASK > 0 {
        return None;
    }
    // The packet is not longer than it says; after RFC 4884's count come extensions.
    let mut end = quote.len().min(usize::from(header.total_len()));
    if quoted_len > 0 {
        end = end.min(quoted_len);
    }
    let l4 = quote.get(header_len..end)?;
    let ports = icmp::Header::new(l4)?;
    let protocol = Protocol::from_number(header.protocol())?;
    let (source, destination) = match protocol {
        Protocol::Icmp => {
            let (source, destination, _) = query(
                ports.icmp_type(),
                ports.identifier(),
                header.source(),
                header.destination(),
            )?;
            (source, destination)
        }
        // TCP and UDP have their ports at the same place.
        Protocol::Tcp | Protocol::Udp => {
            let ports = udp::Header::new(l4)?;
            (
                Endpoint::new(header.source(), ports.source_port()),
                Endpoint::new(header.destination(), ports.destination_port()),
            )
        }
    };
    let flags = header.flags_offset() & (ipv4::DONT_FRAGMENT | ipv4::MORE_FRAGMENTS);
    Some(Embedded {
        ip,
        l4: ip + header_len,
        end: ip + end,
        tuple: Tuple {
            protocol,
            source,
            destination,
        },
        identification: (flags != ipv4::DONT_FRAGMENT).then(|| header.identification()),
    })
}
