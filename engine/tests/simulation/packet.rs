//! Packets as the ends see them, made and read without the gateway's own parser. Each carries a
//! tag that says who sent it, and for whom.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use engine::wire::build::Envelope;

/// An address and a port; the identifier of an ICMP query on the side that asks, 0 on the other.
pub type End = SocketAddrV4;

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const DONT_FRAGMENT: u16 = 0x4000;
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Where the IP packet begins in a frame.
pub const IP: usize = 14;
pub const TAG_LEN: usize = 28;
const MAGIC: u16 = 0xE64E;
/// An experimental TCP option (RFC 6994) carries the tag.
const OPTION: u8 = 253;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    Icmp = 1,
    Tcp = 6,
    Udp = 17,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Reply,
    /// Nobody asked for it; its sender may be a lie.
    Attack,
}

/// The transport checksum, as it is or as it is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Right,
    Wrong,
    Absent,
}

/// What every packet of the ends says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Of this packet alone (but for copies that the network makes).
    pub number: u32,
    pub flow: u32,
    pub turn: u32,
    pub kind: Kind,
    /// The rest of what is asked or replied is in packets that follow.
    pub more: bool,
    pub sum: Sum,
    /// Its sender as the sender knows itself.
    pub sender: End,
    /// For whom: of a request the endpoint that its sender knows, of a reply the true asker.
    pub receiver: End,
}

impl Tag {
    fn write(&self) -> [u8; TAG_LEN] {
        let mut bytes = [0; TAG_LEN];
        bytes[..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2..6].copy_from_slice(&self.number.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.flow.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.turn.to_be_bytes());
        bytes[14] = self.kind as u8 | u8::from(self.more) << 7;
        bytes[15] = self.sum as u8;
        for (end, at) in [(self.sender, 16), (self.receiver, 22)] {
            bytes[at..at + 4].copy_from_slice(&end.ip().octets());
            bytes[at + 4..at + 6].copy_from_slice(&end.port().to_be_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Tag> {
        let bytes: &[u8; TAG_LEN] = bytes.first_chunk()?;
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let end = |at: usize| End::new(word(at).into(), be16(bytes, at + 4));
        (be16(bytes, 0) == MAGIC).then(|| Tag {
            number: word(2),
            flow: word(6),
            turn: word(10),
            kind: [Kind::Request, Kind::Reply, Kind::Attack][usize::from(bytes[14] & 0x7f) % 3],
            more: bytes[14] & 0x80 != 0,
            sum: [Sum::Right, Sum::Wrong, Sum::Absent][usize::from(bytes[15]) % 3],
            sender: end(16),
            receiver: end(22),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
}

/// A packet to send.
#[derive(Clone, Debug)]
pub struct Draft {
    pub proto: Proto,
    pub source: End,
    pub destination: End,
    pub tag: Tag,
    pub segment: Option<Segment>,
    /// The tag of a segment is in its data, not in an option: the segments of a super-packet have
    /// the same options.
    pub tag_in_data: bool,
    /// Bytes behind the tag.
    pub fill: usize,
    pub ttl: u8,
    pub dont_fragment: bool,
}

impl Draft {
    /// A packet of usual form; the tag's number is given when it is sent.
    pub fn new(proto: Proto, source: End, destination: End, kind: Kind) -> Draft {
        let tag = Tag {
            number: 0,
            flow: 0,
            turn: 0,
            kind,
            more: false,
            sum: Sum::Right,
            sender: source,
            receiver: destination,
        };
        Draft {
            proto,
            source,
            destination,
            tag,
            segment: None,
            tag_in_data: false,
            fill: 0,
            ttl: 64,
            dont_fragment: false,
        }
    }

    /// The frame, however long.
    pub fn frame(&self, identification: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (from, to) = (self.source.port(), self.destination.port());
        let checksum_at = match self.proto {
            Proto::Tcp => {
                let Segment { seq, ack, flags } = self.segment.expect("TCP has a segment");
                bytes.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
                bytes.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
                let words = if self.tag_in_data { 5 } else { 13 };
                bytes.extend([words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
                if self.tag_in_data {
                    bytes.extend(self.tag.write());
                } else {
                    bytes.extend([OPTION, TAG_LEN as u8 + 2]);
                    bytes.extend(self.tag.write());
                    bytes.extend([1, 1]);
                }
                16
            }
            Proto::Udp => {
                let len = (8 + TAG_LEN + self.fill) as u16;
                bytes.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
                bytes.extend([len.to_be_bytes(), [0, 0]].concat());
                bytes.extend(self.tag.write());
                6
            }
            Proto::Icmp => {
                let asks = self.tag.kind == Kind::Request;
                let (kind, identifier) = if asks { (8, from) } else { (0, to) };
                bytes.extend([kind, 0, 0, 0]);
                bytes.extend(
                    [
                        identifier.to_be_bytes(),
                        (self.tag.turn as u16).to_be_bytes(),
                    ]
                    .concat(),
                );
                bytes.extend(self.tag.write());
                2
            }
        };
        bytes.extend((0..self.fill).map(|i| (i * 7 + self.tag.number as usize) as u8));
        if self.tag.sum != Sum::Absent {
            let mut sum = self.sum_of(&bytes);
            if self.tag.sum == Sum::Wrong {
                // Not the sum of the pseudo header alone: that one means "to be completed".
                let partial = !self.pseudo_sum(bytes.len());
                sum = [0x0101, 0x0202]
                    .map(|x| sum ^ x)
                    .into_iter()
                    .find(|&s| s != !partial && s != 0)
                    .unwrap();
            }
            bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let envelope = Envelope {
            ttl: self.ttl,
            identification,
            flags_offset: if self.dont_fragment { DONT_FRAGMENT } else { 0 },
            ..Envelope::new(*self.source.ip(), *self.destination.ip())
        };
        envelope.frame(self.proto as u8, &bytes)
    }

    /// Folded, not complemented.
    fn pseudo_sum(&self, len: usize) -> u16 {
        match self.proto {
            Proto::Icmp => 0,
            _ => pseudo_sum(*self.source.ip(), *self.destination.ip(), self.proto, len),
        }
    }

    fn sum_of(&self, bytes: &[u8]) -> u16 {
        let sum = !fold(u32::from(self.pseudo_sum(bytes.len())) + u32::from(sum16(bytes)));
        if sum == 0 && self.proto == Proto::Udp {
            0xFFFF
        } else {
            sum
        }
    }
}

/// What an ICMP error says, and of what.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    pub kind: u8,
    pub code: u8,
    pub mtu: u16,
    pub proto: Proto,
    pub source: End,
    pub destination: End,
    pub tag: Option<Tag>,
    /// The quoted IPv4 header's checksum is right.
    pub header_right: bool,
    /// The transport checksum, if the whole packet is quoted.
    pub sum: Option<Sum>,
}

/// A packet as somebody on its way reads it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub proto: Proto,
    pub source: End,
    pub destination: End,
    pub tag: Option<Tag>,
    pub segment: Option<Segment>,
    /// Bytes of data that the segment has.
    pub data: u32,
    pub quote: Option<Quote>,
    /// Of fragments not to be told.
    pub sum: Sum,
    pub ttl: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    /// Offset in bytes, and whether more follow; none for a whole packet.
    pub fragment: Option<(usize, bool)>,
    /// Bytes of the IP packet.
    pub len: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} > {}", self.proto, self.source, self.destination)?;
        if let Some(tag) = self.tag {
            write!(
                f,
                ", {:?} {} of flow {}, packet {}",
                tag.kind, tag.turn, tag.flow, tag.number
            )?;
        }
        if let Some(Segment { seq, ack, flags }) = self.segment {
            let names = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (ACK, '.')];
            let names: String = names
                .iter()
                .filter(|(bit, _)| flags & bit != 0)
                .map(|n| n.1)
                .collect();
            write!(f, " [{names}] seq {seq} ack {ack}")?;
        }
        if let Some((offset, more)) = self.fragment {
            write!(
                f,
                " (fragment at {offset}{})",
                if more { ", more" } else { "" }
            )?;
        }
        if let Some(quote) = self.quote {
            let Quote {
                kind,
                code,
                proto,
                source,
                destination,
                ..
            } = quote;
            write!(
                f,
                " (error {kind}/{code} about {proto:?} {source} > {destination})"
            )?;
        }
        Ok(())
    }
}

/// Reads a frame; `None` if it is not one that ends send.
pub fn read(frame: &[u8]) -> Option<Seen> {
    if be16(frame.get(..IP)?, 12) != 0x0800 {
        return None;
    }
    let ip = &frame[IP..];
    let flags = be16(ip.get(..20)?, 6);
    let offset = usize::from(flags & 0x1fff) * 8;
    let more = flags & MORE_FRAGMENTS != 0;
    let len = usize::from(be16(ip, 2));
    let l4 = ip.get(usize::from(ip[0] & 15) * 4..len)?;
    let mut seen = Seen {
        proto: proto_of(ip[9])?,
        source: End::new(address(ip, 12), 0),
        destination: End::new(address(ip, 16), 0),
        tag: None,
        segment: None,
        data: 0,
        quote: None,
        sum: Sum::Right,
        ttl: ip[8],
        identification: be16(ip, 4),
        dont_fragment: flags & DONT_FRAGMENT != 0,
        fragment: (offset > 0 || more).then_some((offset, more)),
        len,
    };
    if offset > 0 {
        return Some(seen);
    }
    if seen.proto == Proto::Icmp && matches!(l4.first(), Some(3 | 11 | 12)) {
        seen.quote = Some(quote(l4)?);
    } else {
        transport(&mut seen, l4)?;
    }
    if seen.fragment.is_none() {
        seen.sum = sum_state(&seen, l4);
    }
    Some(seen)
}

/// Ports and tag; as much as is there.
fn transport(seen: &mut Seen, l4: &[u8]) -> Option<()> {
    l4.get(..8)?;
    let tag_at = match seen.proto {
        Proto::Icmp => {
            let (asks, identifier) = (l4[0] == 8, be16(l4, 4));
            let end = if asks {
                &mut seen.source
            } else {
                &mut seen.destination
            };
            end.set_port(identifier);
            8
        }
        _ => {
            seen.source.set_port(be16(l4, 0));
            seen.destination.set_port(be16(l4, 2));
            match l4.get(12) {
                _ if seen.proto == Proto::Udp => 8,
                Some(&words) if words >> 4 == 13 => 22,
                _ => 20,
            }
        }
    };
    if seen.proto == Proto::Tcp && l4.len() >= 20 {
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| l4[at + i]));
        seen.segment = Some(Segment {
            seq: word(4),
            ack: word(8),
            flags: l4[13],
        });
        seen.data = (l4.len() as u32).saturating_sub(u32::from(l4[12] >> 4) * 4);
    }
    seen.tag = l4.get(tag_at..).and_then(Tag::read);
    Some(())
}

fn quote(message: &[u8]) -> Option<Quote> {
    let ip = message.get(8..)?;
    let header_len = usize::from(ip.first()? & 15) * 4;
    let l4 = ip.get(header_len..)?;
    let mut inner = Seen {
        proto: proto_of(ip[9])?,
        source: End::new(address(ip, 12), 0),
        destination: End::new(address(ip, 16), 0),
        tag: None,
        segment: None,
        data: 0,
        quote: None,
        sum: Sum::Right,
        ttl: ip[8],
        identification: 0,
        dont_fragment: false,
        fragment: None,
        len: usize::from(be16(ip, 2)),
    };
    transport(&mut inner, l4)?;
    let whole = be16(ip, 6) & 0x3fff == 0 && ip.len() >= inner.len;
    Some(Quote {
        kind: message[0],
        code: message[1],
        mtu: be16(message, 6),
        proto: inner.proto,
        source: inner.source,
        destination: inner.destination,
        tag: inner.tag,
        header_right: sum16(&ip[..header_len]) == 0xFFFF,
        sum: whole.then(|| sum_state(&inner, &ip[header_len..inner.len])),
    })
}

fn sum_state(seen: &Seen, l4: &[u8]) -> Sum {
    let sum = u32::from(sum16(l4));
    let (source, destination) = (*seen.source.ip(), *seen.destination.ip());
    let right = match seen.proto {
        Proto::Icmp => sum == 0xFFFF,
        Proto::Udp if l4[6..8] == [0, 0] => return Sum::Absent,
        proto => fold(sum + u32::from(pseudo_sum(source, destination, proto, l4.len()))) == 0xFFFF,
    };
    if right { Sum::Right } else { Sum::Wrong }
}

pub fn proto_of(number: u8) -> Option<Proto> {
    [Proto::Icmp, Proto::Tcp, Proto::Udp]
        .into_iter()
        .find(|proto| *proto as u8 == number)
}

pub fn address(ip: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from([0, 1, 2, 3].map(|i| ip[at + i]))
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

pub fn sum16(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    fold(bytes.chunks(2).map(word).sum())
}

pub fn pseudo_sum(source: Ipv4Addr, destination: Ipv4Addr, proto: Proto, len: usize) -> u16 {
    let addresses = [source.octets(), destination.octets()].concat();
    fold(u32::from(sum16(&addresses)) + proto as u32 + len as u32)
}
