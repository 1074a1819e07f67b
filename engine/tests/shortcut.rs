//! The shortcut and the whole route give the same answer: two gateways that differ in nothing but that
//! get the same frames, and send the same ones, count the same and have the same tables, to the word.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use conntrack::Random;
use engine::neighbour::HopState;
use engine::packet::{self, Body};
use engine::random::WorkerRandom;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, PSH, RST, SYN};
use engine::wire::{checksum, ipv4};
use engine::world::{EXTERNAL, Setup, UPSTREAM, World, repair, unicast_route};
use ipnet::Ipv4Net;

const LAN: usize = 0;
const WAN: usize = 1;

/// Offsets in a frame with a plain header.
const TTL: usize = 14 + ipv4::TTL;
const ADDRESSES: usize = 14 + ipv4::SOURCE;
const PORTS: usize = 34;

const TWO_ARM: &str = "internal = [\"10.77.0.0/24\", \"10.78.0.0/24\"]\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n\
    [pool]\nports = \"20000-29999\"\n";
const ONE_ARM: &str = "internal = [\"10.77.0.0/24\", \"10.78.0.0/24\"]\ninterface = \"eth0\"\n\
    [pool]\naddresses = [\"198.51.100.8\", \"198.51.100.9\"]\n[nat]\nmapping = \"eim\"\n";

/// Two gateways over the same configuration; the second takes no shortcut.
struct Twins {
    worlds: [World; 2],
    random: WorkerRandom,
    /// Frames that were sent outside, to be answered.
    sent: Vec<Vec<u8>>,
    outside: usize,
}

impl Twins {
    fn new(config: &str, seed: u64) -> Twins {
        let setup = Setup {
            seed,
            transport: false,
            sessions_max: 256,
            ..Setup::default()
        };
        let mut worlds = [(); 2].map(|()| World::with(config, setup.clone()).unwrap());
        worlds[1].worker(0).set_whole_route();
        let outside = if config == TWO_ARM { WAN } else { LAN };
        Twins {
            worlds,
            random: WorkerRandom::from_seed(seed),
            sent: Vec::new(),
            outside,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        ((self.random.next_u64() >> 32) * limit) >> 32
    }

    fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }

    fn pick<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.below(N as u64) as usize]
    }

    /// A packet from inside: of few hosts to few servers, so that most find a session.
    fn outbound(&mut self) -> Vec<u8> {
        let host = self.below(6) as u8 + 2;
        let source = Ipv4Addr::new(10, self.pick([77, 78]), 0, host);
        let destination = match self.below(12) {
            0 => EXTERNAL,
            1 => Ipv4Addr::new(198, 51, 100, 8),
            last => Ipv4Addr::new(203, 0, 113, last as u8 % 3),
        };
        let envelope = Envelope {
            flags_offset: self.pick([0, ipv4::DONT_FRAGMENT]),
            identification: self.random.next_u64() as u16,
            ttl: self.pick([64, 64, 64, 64, 2, 1]),
            dscp_ecn: self.pick([0, 0xb8]),
            ..Envelope::new(source, destination)
        };
        let (port, data) = (5000 + self.below(4) as u16, vec![7; self.size()]);
        match self.below(8) {
            0..4 => envelope.udp(port, 53, &data),
            4..7 => {
                let flags = self.pick([SYN, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
                envelope.tcp(port, 443, flags, &data)
            }
            _ => envelope.echo_request(port, &data),
        }
    }

    fn size(&mut self) -> usize {
        let most = self.pick([0, 8, 9, 600, 1400, 1480]);
        self.below(most + 1) as usize
    }

    /// An answer to a frame that left.
    fn inbound(&mut self) -> Option<Vec<u8>> {
        let place = self.below(self.sent.len().max(1) as u64) as usize;
        let mut frame = self.sent.get(place)?.clone();
        if !matches!(packet::parse(&frame).ok()?.body, Body::Flow { .. }) {
            return None;
        }
        let (a, b) = frame[ADDRESSES..ADDRESSES + 8].split_at_mut(4);
        a.swap_with_slice(b);
        if frame[14 + ipv4::PROTOCOL] == 1 {
            frame[34] = 0;
        } else {
            let (a, b) = frame[PORTS..PORTS + 4].split_at_mut(2);
            a.swap_with_slice(b);
        }
        frame[TTL] = self.pick([64, 64, 64, 2, 1]);
        if frame[14 + ipv4::PROTOCOL] == 6 {
            frame[47] = self.pick([SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
        }
        repair(&mut frame);
        Some(frame)
    }

    /// What senders, links and drivers do to a frame.
    fn disturb(&mut self, frame: &mut Vec<u8>) {
        match self.below(24) {
            0 => {
                let at = self.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << self.below(8);
            }
            1 => {
                let at = 14 + self.below(frame.len() as u64 - 14) as usize;
                frame[at] ^= 1 << self.below(8);
                repair(frame);
            }
            2 => frame.truncate(self.below(frame.len() as u64 + 1) as usize),
            3 => frame.resize(frame.len() + self.below(20) as usize, 0),
            4 => self.set_checksum(frame, |_| 0),
            5 => self.set_checksum(frame, |frame| partial(frame).unwrap_or(0xffff)),
            6 => self.set_checksum(frame, |_| 0xffff),
            _ => {}
        }
    }

    fn set_checksum(&self, frame: &mut [u8], value: impl Fn(&[u8]) -> u16) {
        let at = match frame.get(14 + ipv4::PROTOCOL) {
            Some(6) => 50,
            Some(17) => 40,
            _ => return,
        };
        let bytes = value(frame).to_be_bytes();
        if let Some(field) = frame.get_mut(at..at + 2) {
            field.copy_from_slice(&bytes);
        }
    }

    /// What happens beside the packets.
    fn stir(&mut self) {
        let (what, mtu) = (self.below(40), self.pick([1500, 1500, 700]));
        let ms = self.pick([10, 3_000, 200_000]);
        let state = self.pick([HopState::Resolved, HopState::Failed, HopState::Unresolved]);
        let outside = self.outside;
        // As when a link inside is down.
        let astray = Ipv4Net::new(Ipv4Addr::new(10, 77, 0, 0), 30).expect("30 is a length");
        let astray = unicast_route(astray, outside, Some(UPSTREAM));
        for world in &mut self.worlds {
            match what {
                0..5 => world.pass_ms(ms, ms),
                5 => world.set_mtu(outside, mtu),
                6 => world.set_routes(Vec::new()),
                9 | 10 => world.set_routes(vec![astray.clone()]),
                7 => drop(world.set_neighbour(Ipv4Addr::new(203, 0, 113, 1), state)),
                8 => drop(world.set_neighbour(Ipv4Addr::new(10, 77, 0, 3), state)),
                _ => {}
            }
        }
    }

    fn batch(&mut self) {
        for _ in 0..self.below(100) {
            let inside = self.one_in(2);
            let frame = if inside { None } else { self.inbound() };
            let interface = match frame {
                Some(_) => self.outside,
                None => LAN,
            };
            let mut frame = frame.unwrap_or_else(|| self.outbound());
            self.disturb(&mut frame);
            let interface = if self.one_in(50) {
                self.outside
            } else {
                interface
            };
            for world in &mut self.worlds {
                assert!(world.inject(interface, &frame));
            }
        }
        self.worlds.iter_mut().for_each(World::run);
        self.compare();
    }

    fn compare(&mut self) {
        let [one, two] = &mut self.worlds;
        for interface in 0..=self.outside {
            let (ours, theirs) = (one.take_sent(interface), two.take_sent(interface));
            assert_eq!(ours, theirs, "sent on {interface}");
            if interface == self.outside {
                self.sent.extend(ours);
            }
        }
        assert_eq!(one.take_punted(), two.take_punted());
        assert_eq!(one.snapshot(), two.snapshot());
        for (at, (ours, theirs)) in one.words().iter().zip(two.words()).enumerate() {
            assert_eq!(ours.load(Relaxed), theirs.load(Relaxed), "word {at}");
        }
        let excess = self.sent.len().saturating_sub(200);
        self.sent.drain(..excess);
    }
}

/// The sum of the pseudo-header, as a sender leaves it to its device.
fn partial(frame: &[u8]) -> Option<u16> {
    let packet = packet::parse(frame).ok()?;
    let ipv4 = &packet.ipv4;
    let len = packet.payload_len() as u16;
    let sum = checksum::pseudo_header(ipv4.source, ipv4.destination, ipv4.protocol, len);
    Some(checksum::fold(sum))
}

#[test]
fn both_routes_give_the_same_answer() {
    for config in [TWO_ARM, ONE_ARM] {
        let (mut short, mut passed) = (0, 0);
        for seed in 0..20 {
            let mut twins = Twins::new(config, seed);
            for _ in 0..60 {
                twins.batch();
                twins.stir();
            }
            let [one, two] = &mut twins.worlds;
            assert_eq!(two.worker(0).shortcuts(), 0);
            short += one.worker(0).shortcuts();
            passed += twins.worlds[0].snapshot().transmitted.iter().sum::<u64>();
        }
        // So that this test does not compare one route with itself.
        assert!(
            short > 5_000 && passed > 2 * short / 3 * 2,
            "{short} of {passed}"
        );
    }
}
