//! ICMP errors that Egret makes itself: when it may, how often, and their bytes.

use std::net::Ipv4Addr;

use conntrack::Time;

use crate::packet::{Body, IP, Ipv4Facts, Packet, is_forwardable};
use crate::wire::{checksum, ethernet, icmp, ipv4, put16};

/// Bytes of the longest packet that [`write_error`] makes, IPv4 header included (RFC 1812 section
/// 4.3.2.3).
pub const ERROR_LEN_MAX: usize = 576;
/// Bytes of an error before its quote, IPv4 header included.
pub const QUOTE_OFFSET: usize = ipv4::HEADER_LEN + icmp::HEADER_LEN;
/// Bytes of the offending packet that are quoted at most.
pub const QUOTE_LEN_MAX: usize = ERROR_LEN_MAX - QUOTE_OFFSET;

/// Bytes of the frame before the quote.
const HEADERS_LEN: usize = IP + QUOTE_OFFSET;

/// Which error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 11/0: the TTL ran out here.
    TimeExceeded,
    /// 3/4: too big for the next hop, and DF is set.
    FragmentationNeeded {
        /// Next-hop MTU in bytes (RFC 1191).
        mtu: u16,
    },
    /// 3/1: no mapping could be made (RFC 6888 REQ-11), or the next hop does not answer.
    HostUnreachable,
    /// 3/13: policy forbids it, or no mapping could be made (RFC 5508 REQ-8).
    AdminProhibited,
    /// 3/3: nobody wants this SYN (RFC 5382 REQ-4).
    PortUnreachable,
}

impl ErrorKind {
    /// Type, code and next-hop MTU (0 where there is none).
    const fn fields(self) -> (u8, u8, u16) {
        match self {
            ErrorKind::TimeExceeded => (icmp::TIME_EXCEEDED, icmp::CODE_TTL, 0),
            ErrorKind::FragmentationNeeded { mtu } => {
                (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu)
            }
            ErrorKind::HostUnreachable => (icmp::UNREACHABLE, icmp::CODE_HOST, 0),
            ErrorKind::AdminProhibited => (icmp::UNREACHABLE, icmp::CODE_ADMIN_PROHIBITED, 0),
            ErrorKind::PortUnreachable => (icmp::UNREACHABLE, icmp::CODE_PORT, 0),
        }
    }
}

/// May an error be sent about this packet? Not about ICMP errors, later fragments, packets to a
/// group address of the link or the network, and packets from what is not a single host (RFC 1812
/// section 4.3.2.7). Directed broadcasts are told by [`crate::link::Links::is_broadcast`].
pub fn may_answer(frame: &[u8], packet: &Packet) -> bool {
    let to_group = ethernet::Header::new(frame).is_none_or(|header| header.is_group());
    // Neither an error nor a later fragment is a flow.
    matches!(packet.body, Body::Flow { .. })
        && !to_group
        && is_forwardable(packet.ipv4.source)
        && is_forwardable(packet.ipv4.destination)
}

/// Turns the offending frame into the ICMP error about it, within its slot: the bytes move if there
/// is no headroom. The reply goes back to the packet's source, from `source`, to the Ethernet
/// address it came from; it carries the packet's DS field (RFC 5508 section 7.7) and quotes it
/// as it is in the slot, so call this before any rewrite. `offset` and `len`: where the frame
/// lies in the slot. `about`: what was parsed from it. `identification`: of the new packet.
///
/// Where the new frame lies: offset and length. The slot must have [`ERROR_LEN_MAX`] bytes and
/// 14 more; in a shorter one less is quoted, and the length is 0 if not even the headers fit.
pub fn write_error(
    slot: &mut [u8],
    offset: usize,
    len: usize,
    about: &Ipv4Facts,
    kind: ErrorKind,
    source: Ipv4Addr,
    identification: u16,
) -> (usize, usize) {
    let old = offset + IP;
    let frame = slot
        .get(offset..offset + len)
        .and_then(|frame| frame.split_at_checked(IP));
    let Some((old_ethernet, old_packet)) = frame else {
        return (offset, 0);
    };
    let Some(old_ethernet) = ethernet::Header::new(old_ethernet) else {
        return (offset, 0);
    };
    let (back_to, back_from) = (old_ethernet.source(), old_ethernet.destination());
    if slot.len() < HEADERS_LEN {
        return (offset, 0);
    }
    let quote_len = old_packet
        .len()
        .min(usize::from(about.total_len))
        .min(QUOTE_LEN_MAX)
        .min(slot.len() - HEADERS_LEN);
    // The new headers end where the quote starts; it moves back only if they would not fit.
    let quote = old.max(HEADERS_LEN).min(slot.len() - quote_len);
    slot.copy_within(old..old + quote_len, quote);
    let start = quote - HEADERS_LEN;
    let frame = &mut slot[start..quote + quote_len];

    ethernet::write(frame, back_to, back_from, Some(ethernet::TYPE_IPV4));
    write_message(&mut frame[IP + ipv4::HEADER_LEN..], kind);
    let ip = &mut frame[IP..];
    let dscp_ecn = about.dscp_ecn & ipv4::DS_MASK;
    ipv4::write_made(ip, 1, source, about.source, dscp_ecn, identification);
    (start, HEADERS_LEN + quote_len)
}

/// Writes the ICMP header in front of the quote.
fn write_message(message: &mut [u8], kind: ErrorKind) {
    let Some(header) = message.first_chunk_mut::<{ icmp::HEADER_LEN }>() else {
        return;
    };
    let (icmp_type, code, mtu) = kind.fields();
    *header = [icmp_type, code, 0, 0, 0, 0, 0, 0];
    put16(header, icmp::NEXT_HOP_MTU, mtu);
    let checksum = !checksum::sum(message);
    if let Some(header) = message.first_chunk_mut::<{ icmp::HEADER_LEN }>() {
        put16(header, icmp::CHECKSUM, checksum);
    }
}

/// A token bucket that limits the errors sent (RFC 1812 section 4.3.2.8).
#[derive(Clone, Debug)]
pub struct ErrorLimiter {
    /// Errors a second.
    rate: u64,
    /// Thousandths of an error that the bucket holds at most.
    full: u64,
    /// Thousandths of an error in the bucket.
    tokens: u64,
    /// When it was last filled.
    filled: Time,
}

impl ErrorLimiter {
    /// A full bucket: `rate` errors a second, up to `burst` at once. With a rate or burst of 0 no
    /// error is ever sent.
    pub fn new(rate: u32, burst: u32) -> ErrorLimiter {
        let full = if rate == 0 {
            0
        } else {
            u64::from(burst) * 1000
        };
        ErrorLimiter {
            rate: u64::from(rate),
            full,
            tokens: full,
            filled: Time(0),
        }
    }

    /// May one more error be sent? Counts it if so.
    pub fn allow(&mut self, now: Time) -> bool {
        let elapsed_ms = now.0.saturating_sub(self.filled.0);
        if elapsed_ms > 0 {
            // `rate` a second is `rate` thousandths a millisecond.
            let earned = elapsed_ms.saturating_mul(self.rate);
            self.tokens = self.tokens.saturating_add(earned).min(self.full);
            self.filled = now;
        }
        if self.tokens < 1000 {
            return false;
        }
        self.tokens -= 1000;
        true
    }
}

/// The limits of a worker's errors. Each interface has a share of its own, and there fragmentation
/// needed another: whoever provokes errors of one kind on one side must not stop those that path
/// MTU discovery lives by.
#[derive(Clone, Debug)]
pub struct Limiters(Vec<[ErrorLimiter; 2]>);

impl Limiters {
    /// Shares of `rate` errors a second, rounded up, for `interfaces` interfaces.
    pub fn new(rate: u32, interfaces: usize) -> Limiters {
        let shares = u32::try_from(2 * interfaces.max(1)).unwrap_or(u32::MAX);
        let share = rate.div_ceil(shares);
        let limiter = ErrorLimiter::new(share, share);
        Limiters(vec![[limiter.clone(), limiter]; interfaces.max(1)])
    }

    /// The limiter of an error that answers a packet of this interface.
    pub fn of(&mut self, interface: u8, kind: ErrorKind) -> &mut ErrorLimiter {
        let at = usize::from(interface).min(self.0.len() - 1);
        &mut self.0[at][usize::from(matches!(kind, ErrorKind::FragmentationNeeded { .. }))]
    }
}
