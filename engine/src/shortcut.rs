//! The shortcut: steps 4 to 8 in one go for the common frame. That is a whole UDP or TCP segment with
//! a plain IPv4 header, of a session that lives, to a known next hop that takes it as it is. Any doubt
//! is no verdict: the frame is untouched, nothing is counted, and it goes the whole route, which gives
//! the same answer where there is one (`tests/shortcut.rs` compares the two).

use std::net::Ipv4Addr;

use conntrack::{Candidate, Direction, Hit, Key, PacketFacts, Protocol, Random, Signal, Time};

use crate::device::offload::Offload;
use crate::fragment::Ends;
use crate::gateway::{Gateway, Prepared};
use crate::neighbour::{Hop, HopState};
use crate::packet::{self, Body, IP, Ipv4Facts, Packet};
use crate::wire::{be16, be32, be64, checksum, ethernet, ipv4, put16, put32, put64, tcp, udp};

mod view;

pub use view::View;

/// Offset of the transport header behind a plain IPv4 header.
const L4: usize = IP + ipv4::HEADER_LEN;
/// Bytes of a frame up to the end of its UDP header.
const UDP_END: usize = L4 + udp::HEADER_LEN;
/// Bytes of a frame up to the end of its TCP header without options.
const TCP_END: usize = L4 + tcp::HEADER_LEN;
/// EtherType IPv4, version 4, header length 20: the three bytes from the EtherType on.
const PLAIN: u32 = 0x08_00_45;

/// What a first look at a common frame shows: everything that the other steps need of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    key: Key,
    hash: u64,
    candidate: Candidate,
    sequence: u32,
    total_len: u16,
    identification: u16,
    ip_checksum: u16,
    l4_checksum: u16,
    ttl: u8,
    signal: Signal,
    dont_fragment: bool,
}

impl Glance {
    /// Looks at a frame; none if it is no common one. What is not common may still be right.
    #[inline(always)]
    pub fn of(frame: &[u8]) -> Option<Glance> {
        let head: &[u8; UDP_END] = frame.first_chunk()?;
        let total_len = be16(head, IP + ipv4::TOTAL_LEN);
        let flags_offset = be16(head, IP + ipv4::FLAGS_OFFSET);
        let in_part = flags_offset & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0;
        let plain = be32(head, ethernet::ETHER_TYPE) >> 8 == PLAIN && !in_part;
        let ttl = head[IP + ipv4::TTL];
        let fits = IP + usize::from(total_len) <= frame.len();
        if !plain || !fits || ttl <= 1 || !is_right(head) {
            return None;
        }
        let addresses = be64(head, IP + ipv4::SOURCE);
        let ports = be32(head, L4);
        let forwardable = |address: u64| packet::is_forwardable((address as u32).into());
        if !forwardable(addresses >> 32) || !forwardable(addresses) {
            return None;
        }
        let protocol = Protocol::from_number(head[IP + ipv4::PROTOCOL])?;
        let payload_len = usize::from(total_len).checked_sub(ipv4::HEADER_LEN)?;
        let (sequence, l4_checksum, covered) = match protocol {
            Protocol::Udp => {
                let len = be16(head, L4 + udp::LEN);
                let whole = (udp::HEADER_LEN..=payload_len).contains(&usize::from(len));
                whole.then_some((0, be16(head, L4 + udp::CHECKSUM), len))?
            }
            Protocol::Tcp => {
                let head: &[u8; TCP_END] = frame.first_chunk()?;
                let header_len = usize::from(head[L4 + tcp::DATA_OFFSET] >> 4) * 4;
                let data = head[L4 + tcp::FLAGS] & (tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK);
                let whole = (tcp::HEADER_LEN..=payload_len).contains(&header_len);
                let sequence = be32(head, L4 + tcp::SEQUENCE);
                let checksum = be16(head, L4 + tcp::CHECKSUM);
                (whole && data == tcp::ACK).then_some((sequence, checksum, payload_len as u16))?
            }
            Protocol::Icmp => return None,
        };
        // A partial checksum, the sum of the pseudo-header, is to be completed. That sum is above
        // 0xFFFF, as the addresses are forwardable.
        let pseudo = (addresses >> 32) + (addresses & 0xffff_ffff);
        let pseudo = pseudo + u64::from(protocol.number()) + u64::from(covered);
        if l4_checksum != 0 && checksum::folds_to_ffff(pseudo - u64::from(l4_checksum)) {
            return None;
        }
        Some(Glance {
            key: Key {
                addresses,
                ports,
                protocol,
            },
            hash: 0,
            candidate: Candidate::default(),
            sequence,
            total_len,
            identification: be16(head, IP + ipv4::IDENTIFICATION),
            ip_checksum: be16(head, IP + ipv4::CHECKSUM),
            l4_checksum,
            ttl,
            signal: match protocol {
                Protocol::Tcp => Signal::TcpData,
                _ => Signal::Udp,
            },
            dont_fragment: flags_offset & ipv4::DONT_FRAGMENT != 0,
        })
    }

    /// Bytes of the frame without Ethernet padding.
    #[inline(always)]
    pub fn frame_len(&self) -> usize {
        IP + usize::from(self.total_len)
    }

    /// What [`Gateway::prepare`] makes of the frame that this is a glance of.
    pub(crate) fn prepared(&self, frame: &[u8]) -> Option<Prepared> {
        let header = ipv4::Header::new(frame.get(IP..)?)?;
        let segment = || tcp::Header::new(frame.get(L4..)?);
        let acknowledgement = match self.key.protocol {
            Protocol::Tcp => segment()?.acknowledgement(),
            _ => 0,
        };
        let packet = Packet {
            ipv4: Ipv4Facts::of(header),
            l4: L4,
            fragment: None,
            body: Body::Flow {
                tuple: self.key.tuple(),
                signal: self.signal,
                sequence: self.sequence,
                acknowledgement,
            },
        };
        Some(Prepared {
            parsed: Ok(packet),
            offload: Offload::NONE,
            hash: Some(self.hash),
        })
    }

    fn facts(&self) -> PacketFacts {
        PacketFacts {
            signal: self.signal,
            length: u32::from(self.total_len),
            sequence: self.sequence,
            acknowledgement: 0,
        }
    }
}

/// Is the checksum of the IPv4 header right?
#[inline(always)]
fn is_right(head: &[u8; UDP_END]) -> bool {
    let (words, _) = head[IP..L4].as_chunks::<4>();
    // Whichever byte comes first: the remainder is only multiplied by 256.
    let sum = words
        .iter()
        .map(|&word| u64::from(u32::from_ne_bytes(word)));
    checksum::folds_to_ffff(sum.sum())
}

impl<R: Random> Gateway<R> {
    /// Step 4 of the shortcut: looks at a frame, and asks for the index lines of its flow.
    #[inline(always)]
    pub fn glance(&self, frame: &[u8]) -> Option<Glance> {
        let mut glance = Glance::of(frame)?;
        let nat = &self.shared().nat;
        glance.hash = nat.hash_key(&glance.key);
        nat.prefetch(glance.hash);
        Some(glance)
    }

    /// Between [`Gateway::glance`] and [`Gateway::shortcut`] of a batch: asks for the session.
    #[inline(always)]
    pub fn look_ahead(&self, glance: &mut Glance) {
        let nat = &self.shared().nat;
        glance.candidate = nat.candidate(glance.hash);
        if glance.candidate.is_none() {
            self.prefetch_new(&glance.key);
        }
    }

    /// Steps 6 to 8 of the shortcut: the egress interface of a frame that was translated, or none and
    /// the frame as it came.
    #[inline(always)]
    pub fn shortcut(
        &self,
        frame: &mut [u8],
        glance: &Glance,
        ingress: u8,
        now: Time,
    ) -> Option<u8> {
        let nat = &self.shared().nat;
        let policy = self.policy();
        let realm = self.view().realm(policy, &glance.key, ingress)?;
        let hit = nat.seek(
            policy,
            realm,
            &glance.key,
            glance.candidate,
            glance.signal,
            now,
        )?;
        let hop = self.known_hop(&hit)?;
        let source_mac = self.view().source_mac(&hop, hit.direction())?;
        if glance.total_len > hop.mtu {
            return None;
        }
        nat.count(policy, &hit, glance.facts(), now);
        let identification = self.new_identification(glance, &hit);
        write(frame, glance, &hit, identification)?;
        ethernet::write(frame, hop.mac, source_mac, None);
        Some(hop.interface)
    }

    /// The next hop that the session remembers, if its MAC is known.
    #[inline(always)]
    fn known_hop(&self, hit: &Hit) -> Option<Hop> {
        let forwarding = &self.shared().forwarding;
        let number = forwarding.decode(self.view().generation, hit.next_hop())?;
        let hop = forwarding.hops().known(number)?;
        (hop.state == HopState::Resolved).then_some(hop)
    }

    /// The identification that the datagram leaves with, if not its own (RFC 6864).
    #[inline(always)]
    fn new_identification(&self, glance: &Glance, hit: &Hit) -> Option<u16> {
        if glance.dont_fragment || hit.direction() == Direction::Inbound {
            return None;
        }
        let ends = Ends {
            source: Ipv4Addr::from((hit.new_addresses() >> 32) as u32),
            destination: Ipv4Addr::from(hit.new_addresses() as u32),
            protocol: glance.key.protocol.number(),
        };
        let identifications = &self.shared().identifications;
        Some(identifications.replace(&ends, glance.identification))
    }
}

/// Writes what the session changes, and the TTL, with one update of each checksum.
#[inline(always)]
fn write(frame: &mut [u8], glance: &Glance, hit: &Hit, identification: Option<u16>) -> Option<()> {
    // The TTL is the high byte of its word; the low byte cancels out of the delta.
    let ttl_delta = checksum::delta16(u16::from(glance.ttl) << 8, u16::from(glance.ttl - 1) << 8);
    let mut delta = u64::from(hit.ip_delta()) + ttl_delta;
    let l4_delta = hit.l4_delta();
    match glance.key.protocol {
        Protocol::Tcp => {
            let head: &mut [u8; TCP_END] = frame.first_chunk_mut()?;
            let checksum = checksum::apply(glance.l4_checksum, l4_delta);
            put16(head, L4 + tcp::CHECKSUM, checksum);
        }
        _ => {
            let head: &mut [u8; UDP_END] = frame.first_chunk_mut()?;
            let checksum = checksum::apply_udp(glance.l4_checksum, l4_delta);
            put16(head, L4 + udp::CHECKSUM, checksum);
        }
    }
    let head: &mut [u8; UDP_END] = frame.first_chunk_mut()?;
    if let Some(identification) = identification {
        delta += checksum::delta16(glance.identification, identification);
        put16(head, IP + ipv4::IDENTIFICATION, identification);
    }
    let ip_checksum = !checksum::fold(u64::from(!glance.ip_checksum) + delta);
    head[IP + ipv4::TTL] = glance.ttl - 1;
    put16(head, IP + ipv4::CHECKSUM, ip_checksum);
    put64(head, IP + ipv4::SOURCE, hit.new_addresses());
    put32(head, L4, hit.ports());
    Some(())
}
