//! Unsolicited SYNs from outside that are answered late (RFC 5382 REQ-4): whoever sent one may be
//! opening at the same time as a host inside, and an error at once would end both attempts.
//!
//! Kept is what the error will quote, not the frame: that one was dropped and counted when it came.

use std::collections::VecDeque;

use conntrack::{Endpoint, Protocol, Time, Tuple};

use crate::packet::{IP, Ipv4Facts, Packet};
use crate::wire::{ethernet, ipv4, tcp};

/// SYNs that one worker remembers. When more come within the waiting time, the oldest are forgotten:
/// the rate limit would suppress most of their errors anyhow.
pub const UNANSWERED_MAX: usize = 1024;
/// Bytes of a SYN that are kept: IPv4 header and at least 8 bytes of TCP's (RFC 792).
pub const QUOTE_LEN_MAX: usize = 64;
/// What of TCP's header an error has to quote.
const TCP_QUOTE_MIN: usize = 8;

/// A SYN that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    since: Time,
    /// The interface that it came by.
    pub interface: u8,
    /// Bytes in `frame`.
    len: u8,
    frame: [u8; ethernet::HEADER_LEN + QUOTE_LEN_MAX],
}

impl Syn {
    /// The Ethernet header and the first bytes of the packet.
    pub fn frame(&self) -> &[u8] {
        &self.frame[..usize::from(self.len)]
    }

    /// Its IPv4 header and tuple.
    pub fn parse(&self) -> Option<(Ipv4Facts, Tuple)> {
        let ip = self.frame().get(IP..)?;
        let facts = Ipv4Facts::of(ipv4::Header::new(ip)?);
        let ports = ip.get(facts.header_len..)?.first_chunk::<TCP_QUOTE_MIN>()?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        let tuple = Tuple {
            protocol: Protocol::Tcp,
            source: Endpoint::new(facts.source, port(tcp::SOURCE_PORT)),
            destination: Endpoint::new(facts.destination, port(tcp::DESTINATION_PORT)),
        };
        Some((facts, tuple))
    }
}

/// One worker's unanswered SYNs, in order of arrival.
#[derive(Debug)]
pub struct Unanswered(VecDeque<Syn>);

impl Default for Unanswered {
    fn default() -> Unanswered {
        Unanswered(VecDeque::with_capacity(UNANSWERED_MAX))
    }
}

impl Unanswered {
    /// Remembers a SYN that came by `interface`. One with so many IPv4 options that its ports would
    /// not fit is left out.
    pub fn remember(&mut self, frame: &[u8], packet: &Packet, interface: u8, now: Time) {
        let len = packet.frame_len().min(IP + QUOTE_LEN_MAX).min(frame.len());
        if len < packet.l4 + TCP_QUOTE_MIN {
            return;
        }
        if self.0.len() >= UNANSWERED_MAX {
            self.0.pop_front();
        }
        let mut syn = Syn {
            since: now,
            interface,
            len: len as u8,
            frame: [0; ethernet::HEADER_LEN + QUOTE_LEN_MAX],
        };
        syn.frame[..len].copy_from_slice(&frame[..len]);
        self.0.push_back(syn);
    }

    /// Takes out the oldest SYN if it has waited for `timeout_ms`.
    pub fn take_due(&mut self, now: Time, timeout_ms: u32) -> Option<Syn> {
        let oldest = self.0.front()?;
        let due = now.0.saturating_sub(oldest.since.0) >= u64::from(timeout_ms);
        due.then(|| self.0.pop_front()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use crate::wire::build::Envelope;
    use std::net::Ipv4Addr;

    fn syn(port: u16, options: usize) -> Vec<u8> {
        let envelope = Envelope {
            options: vec![1; options],
            ..Envelope::new(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2))
        };
        envelope.tcp(port, 80, tcp::SYN, b"")
    }

    #[test]
    fn the_oldest_are_forgotten_when_the_ring_is_full() {
        let mut unanswered = Unanswered::default();
        for port in 1..=UNANSWERED_MAX as u16 + 3 {
            let frame = syn(port, 0);
            unanswered.remember(&frame, &parse(&frame).unwrap(), 1, Time(u64::from(port)));
        }
        let mut ports = Vec::new();
        while let Some(syn) = unanswered.take_due(Time(10_000), 6_000) {
            ports.push(syn.parse().unwrap().1.source.port);
        }
        assert_eq!(ports, (4..=UNANSWERED_MAX as u16 + 3).collect::<Vec<_>>());
    }

    #[test]
    fn a_syn_waits_its_time_and_keeps_what_is_quoted() {
        let mut unanswered = Unanswered::default();
        for options in [0, 36, 40] {
            let frame = syn(9, options);
            unanswered.remember(&frame, &parse(&frame).unwrap(), 1, Time(5));
        }
        assert!(unanswered.take_due(Time(6_004), 6_000).is_none());
        let first = unanswered.take_due(Time(6_005), 6_000).unwrap();
        assert_eq!(first.frame(), &syn(9, 0)[..IP + 40]);
        let second = unanswered.take_due(Time(6_005), 6_000).unwrap();
        assert_eq!(second.frame(), &syn(9, 36)[..IP + 64]);
        let (facts, tuple) = second.parse().unwrap();
        assert_eq!((facts.total_len, tuple.destination.port), (76, 80));
        assert!(unanswered.take_due(Time(6_005), 6_000).is_none());
    }
}
