//! The whole route of frames through a gateway in memory, batch by batch as a worker goes it: parse,
//! look-up, next hop, rewrite. Without a device, and without what a worker does with a verdict.

use std::net::Ipv4Addr;

use conntrack::{Protocol, Time};
use engine::gateway::{Gateway, Prepared, Verdict};
use engine::neighbour::HopState;
use engine::random::WorkerRandom;
use engine::stats::WorkerStats;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, SYN};
use engine::wire::{ethernet, ipv4};
use engine::world::{Arm, Setup, World};

use crate::flow;

/// Frames of a batch, as a worker takes them.
pub const BATCH: usize = 64;
/// The interface that clients are behind.
pub const INTERNAL: u8 = 0;
/// The interface that leads outside.
pub const EXTERNAL: u8 = 1;
/// Payload of a UDP frame of 64 bytes, the frame check sequence included.
const PAYLOAD: [u8; 18] = [0x5a; 18];
const TIME: Time = Time(1_000_000);
/// A step through the flows that visits each once, and no neighbours in turn.
const STRIDE: u32 = 769;

/// Frames, one after the other.
pub type Frames = Vec<Vec<u8>>;

/// A gateway with sessions in it; every neighbour is known.
pub struct Route {
    gateway: Gateway<WorkerRandom>,
    stats: WorkerStats,
    prepared: Vec<Prepared>,
    protocol: Protocol,
    /// Its tables live as long as it does.
    _world: World,
}

impl Route {
    /// A gateway with so many sessions of TCP or UDP, all to one remote endpoint. Its one external
    /// address has so many ports.
    ///
    /// # Panics
    /// With more sessions than ports, or more than 16,384.
    pub fn new(protocol: Protocol, sessions: u32, ports: u16) -> Route {
        let mut route = Route::empty(protocol, ports);
        for number in 0..sessions {
            let mut frame = vec![route.opening(number)];
            assert_eq!(route.judge(&mut frame, INTERNAL), 1, "flow {number}");
            if protocol == Protocol::Tcp {
                let (from, to) = endpoints(&frame[0]);
                let answer = whole(to.0, from.0).tcp(to.1, from.1, SYN | ACK, b"");
                assert_eq!(route.judge(&mut [answer], EXTERNAL), 1, "flow {number}");
            }
        }
        route
    }

    fn empty(protocol: Protocol, ports: u16) -> Route {
        let config = format!(
            "internal = \"10.77.0.0/16\"\n[[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
             [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n[pool]\n\
             addresses = \"198.51.100.9\"\nports = \"1024-{}\"\n",
            1023 + ports
        );
        let setup = Setup {
            sessions_max: 32_768,
            hops_max: 1024,
            start: TIME,
            arms: Some(vec![arm("10.77.255.254/16"), arm("198.51.100.2/24")]),
            ..Setup::default()
        };
        let world = World::with(&config, setup).unwrap_or_else(|error| panic!("{error}"));
        for number in (0..16_384).step_by(64) {
            let flow = flow(number);
            for addr in [flow.source.addr, flow.destination.addr] {
                assert!(world.set_neighbour(addr, HopState::Resolved), "{addr}");
            }
        }
        let random = WorkerRandom::from_seed(5);
        Route {
            gateway: Gateway::new(world.shared().clone(), 0, random),
            stats: WorkerStats::new(2).into_inner(),
            prepared: Vec::with_capacity(BATCH),
            protocol,
            _world: world,
        }
    }

    /// The gateway's part of a worker's round: how many of these frames are to be sent.
    #[inline(never)]
    pub fn judge(&mut self, frames: &mut [Vec<u8>], ingress: u8) -> usize {
        self.prepared.clear();
        for frame in &*frames {
            self.prepared.push(self.gateway.prepare(frame));
        }
        for prepared in &self.prepared {
            self.gateway.prefetch(prepared);
        }
        let mut sent = 0;
        for (frame, prepared) in frames.iter_mut().zip(&self.prepared) {
            let verdict = self
                .gateway
                .process(frame, prepared, ingress, TIME, &self.stats);
            sent += usize::from(matches!(verdict, Verdict::Transmit { .. }));
        }
        sent
    }

    /// A batch of packets from inside, of flows among the first `sessions`.
    pub fn outbound(&self, sessions: u32) -> Frames {
        let numbers = (0..BATCH as u32).map(|number| number * STRIDE % sessions);
        numbers.map(|number| self.packet(number, ACK)).collect()
    }

    /// A batch of answers to those packets, of which each session has had one.
    pub fn inbound(&mut self, sessions: u32) -> Frames {
        let mut sent = self.outbound(sessions);
        assert_eq!(self.judge(&mut sent, INTERNAL), BATCH);
        let answer = |frame: &Vec<u8>| {
            let ((external, port), (remote, remote_port)) = endpoints(frame);
            let envelope = whole(remote, external);
            match self.protocol {
                Protocol::Tcp => envelope.tcp(remote_port, port, ACK, b""),
                _ => envelope.udp(remote_port, port, &PAYLOAD),
            }
        };
        let answers: Frames = sent.iter().map(answer).collect();
        assert_eq!(self.judge(&mut answers.clone(), EXTERNAL), BATCH);
        answers
    }

    /// A batch of packets that open flows, from number `first` on.
    pub fn opening_batch(&self, first: u32) -> Frames {
        let numbers = first..first + BATCH as u32;
        numbers.map(|number| self.opening(number)).collect()
    }

    /// The packet that opens a flow.
    fn opening(&self, number: u32) -> Vec<u8> {
        self.packet(number, SYN)
    }

    fn packet(&self, number: u32, flags: u8) -> Vec<u8> {
        let flow = flow(number);
        let envelope = whole(flow.source.addr, flow.destination.addr);
        let (from, to) = (flow.source.port, flow.destination.port);
        match self.protocol {
            Protocol::Tcp => envelope.tcp(from, to, flags, b""),
            _ => envelope.udp(from, to, &PAYLOAD),
        }
    }
}

/// What hosts send as a rule: a datagram that may not be fragmented.
fn whole(source: Ipv4Addr, destination: Ipv4Addr) -> Envelope {
    Envelope {
        flags_offset: ipv4::DONT_FRAGMENT,
        ..Envelope::new(source, destination)
    }
}

/// An interface with this address: none of the flows has it.
fn arm(address: &str) -> Arm {
    Arm {
        addresses: vec![address.parse().expect("a prefix")],
        mtu: 1500,
    }
}

/// Source and destination of a frame without IPv4 options.
fn endpoints(frame: &[u8]) -> ((Ipv4Addr, u16), (Ipv4Addr, u16)) {
    let packet = &frame[ethernet::HEADER_LEN..];
    let header = ipv4::Header::new(packet).expect("a frame of ours");
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let transport = ipv4::HEADER_LEN;
    (
        (header.source(), port(transport)),
        (header.destination(), port(transport + 2)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_sent_both_ways_and_a_full_pool_refuses() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut route = Route::new(protocol, 1024, 1024 + 64);
            let mut out = route.outbound(1024);
            let mut back = route.inbound(1024);
            assert_eq!(route.judge(&mut out, INTERNAL), BATCH);
            assert_eq!(route.judge(&mut back, EXTERNAL), BATCH);
            let mut new = route.opening_batch(1024);
            assert_eq!(route.judge(&mut new, INTERNAL), BATCH);
            let mut refused = route.opening_batch(1024 + 64);
            assert_eq!(route.judge(&mut refused, INTERNAL), 0, "{protocol}");
        }
    }

    #[test]
    fn a_batch_is_of_different_flows_and_64_bytes_a_frame() {
        let route = Route::new(Protocol::Udp, 1024, 2048);
        let mut frames = route.outbound(1024);
        assert!(frames.iter().all(|frame| frame.len() + 4 == 64));
        frames.sort();
        frames.dedup();
        assert_eq!(frames.len(), BATCH);
    }
}
