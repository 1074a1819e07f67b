//! Any bytes as a sequence of things that happen to a gateway: packets of clients and servers,
//! errors, fragments, time, changes of policy, address, neighbours and routes, restarts.

use std::net::Ipv4Addr;

use conntrack::Tuple;
use engine::neighbour::HopState;
use engine::packet::{Body, parse};
use engine::route::{RouteFacts, RouteKind};
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, RST, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, Setup, UPSTREAM, World};

use crate::owners::{Owners, flow};

const CLIENTS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 77, 0, 9),
    Ipv4Addr::new(10, 77, 0, 10),
    Ipv4Addr::new(10, 77, 0, 11),
    Ipv4Addr::new(10, 77, 0, 12),
];
const SERVERS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(203, 0, 113, 80),
    Ipv4Addr::new(203, 0, 113, 81),
    Ipv4Addr::new(192, 0, 2, 1),
];
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
const LATER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// Ports of clients and servers, and of the pool among them.
const PORTS: [u16; 8] = [20_000, 20_001, 20_002, 20_005, 443, 8443, 53, 1024];
const FLAGS: [u8; 8] = [SYN, SYN | ACK, ACK, FIN | ACK, RST, ACK, SYN, FIN];
/// Steps of time, around the timers.
const STEPS_MS: [u64; 16] = [
    1, 10, 100, 999, 1_024, 2_000, 2_001, 3_000, 6_000, 10_000, 59_999, 60_000, 120_000, 240_000,
    300_001, 7_440_001,
];

const INTERFACES: [&str; 2] = [
    "interface = \"eth0\"\n",
    "[[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
     [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n",
];
/// Policies to change between; those of one pool kind, since the tables have so many places.
const POLICIES: [&str; 8] = [
    "[pool]\nports = \"20000-20007\"\n",
    "[pool]\nports = \"20000-20007\"\n[nat]\nmapping = \"eim\"\nfiltering = \"adf\"\n",
    "[pool]\nports = \"20000-20003\"\n[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\n\
     target = \"10.77.0.10:443\"\n[[forwards]]\nprotocol = \"udp\"\nexternal = \"20001\"\n\
     target = \"10.77.0.9:20000\"\nallow = [\"203.0.113.80/32\"]\n",
    "[pool]\nports = \"20000-20003\"\n[nat]\nmapping = \"eim\"\n[[forwards]]\nprotocol = \"udp\"\n\
     external = \"20001\"\ntarget = \"10.77.0.11:443\"\n",
    "[pool]\naddresses = [\"198.51.100.20\"]\nports = \"20000-20007\"\n",
    "[pool]\naddresses = [\"198.51.100.20\"]\nports = \"20000-20007\"\n[nat]\nmapping = \"eim\"\n\
     filtering = \"eif\"\n",
    "[pool]\naddresses = [\"198.51.100.20\"]\nports = \"20000-20003\"\n[nat]\nmapping = \"eim\"\n\
     filtering = \"eif\"\npreserve_port = false\ninbound_refresh = true\n[[forwards]]\n\
     protocol = \"tcp\"\nexternal = \"8443\"\ntarget = \"10.77.0.10:443\"\n",
    "[pool]\naddresses = [\"198.51.100.20\"]\nports = \"20000-20003\"\n[timers]\n\
     udp_timeout_s = 1\ntcp_idle_timeout_s = 2\nhold_down_s = 0\n[icmp]\non_refusal = \"silent\"\n",
];
/// The input; zeros when it is used up.
struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first.into()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.byte() % from.len()]
    }
}

struct Play<'d> {
    input: Input<'d>,
    world: World,
    base: &'static str,
    wan: usize,
    /// Own pool or the interface's address: [`POLICIES`] from here.
    policies: &'static [&'static str],
    owners: Owners,
    /// Mappings may have been endpoint-independent.
    eim: bool,
    /// Frames that left, to be quoted and answered.
    recent: Vec<(usize, Vec<u8>)>,
}

/// Plays a sequence; every invariant holds after it, and nothing is left when all has expired.
pub fn operations(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.byte();
    let base = INTERFACES[kind & 1];
    let policies: &'static [&'static str] = if kind & 2 == 0 {
        &POLICIES[..4]
    } else {
        &POLICIES[4..]
    };
    let setup = Setup {
        seed: kind as u64,
        workers: 1 + (kind as u32 >> 2 & 1),
        slots: if kind & 8 == 0 { 64 } else { 12 },
        sessions_max: 64,
        hops_max: 16,
        // The stamps' 32 bits wrap meanwhile.
        start: conntrack::Time((1 << 32) - 100_000),
        ..Setup::default()
    };
    let first = input.byte() % policies.len();
    let text = format!("internal = \"10.77.0.0/24\"\n{base}{}", policies[first]);
    let world = World::with(&text, setup).expect("a valid configuration");
    let mut play = Play {
        input,
        wan: world.config().interfaces.len() - 1,
        world,
        base,
        eim: policies[first].contains("eim"),
        policies,
        owners: Owners::default(),
        recent: Vec::new(),
    };
    while !play.input.0.is_empty() {
        play.step();
        play.world
            .check_frames()
            .unwrap_or_else(|violation| panic!("{violation}"));
    }
    play.end();
}

impl Play<'_> {
    fn step(&mut self) {
        match self.input.byte() % 24 {
            0..=5 => self.outbound(),
            6..=9 => self.inbound(),
            10 => self.answer(),
            11 => self.hairpin(),
            12 | 13 => self.error(),
            14 | 15 => self.fragment(),
            16 | 17 => self.time(),
            18 => self.policy(),
            19 => self.address(),
            20 => self.neighbour(),
            21 => self.troubles(),
            22 => self.routes(),
            _ => self.restart(),
        }
    }

    fn external(&mut self) -> Ipv4Addr {
        let known = [EXTERNAL, OWN, LATER];
        let policy = self.world.policy();
        match policy.addresses.first() {
            Some(own) if !self.input.byte().is_multiple_of(8) => own.addr,
            _ => self.input.pick(&known),
        }
    }

    /// A packet between these, with its true sender written into it.
    fn packet(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let kind = self.input.byte();
        let envelope = Envelope {
            ttl: if kind & 0x38 == 0x38 { 1 } else { 64 },
            flags_offset: if kind & 0x40 == 0 {
                0
            } else {
                ipv4::DONT_FRAGMENT
            },
            ..Envelope::new(source, destination)
        };
        let (from, to) = (self.input.pick(&PORTS), self.input.pick(&PORTS));
        let mut data = source.octets().to_vec();
        let length = if kind & 0x80 == 0 { 6 } else { 700 };
        match kind & 3 {
            0 | 3 => {
                data.extend(from.to_be_bytes());
                data.resize(length, 0xAA);
                envelope.udp(from, to, &data)
            }
            1 => {
                data.extend(from.to_be_bytes());
                data.resize(length, 0xAA);
                let flags = self.input.pick(&FLAGS);
                envelope.tcp(from, to, flags, &data)
            }
            _ => {
                let asks = kind & 4 == 0;
                let identifier = if asks { from } else { to };
                data.extend(identifier.to_be_bytes());
                data.resize(length, 0xAA);
                if asks {
                    envelope.echo_request(identifier, &data)
                } else {
                    envelope.echo_reply(identifier, &data)
                }
            }
        }
    }

    fn outbound(&mut self) {
        let (client, server) = (self.input.pick(&CLIENTS), self.input.pick(&SERVERS));
        let frame = self.packet(client, server);
        self.arrive(0, &frame);
    }

    fn inbound(&mut self) {
        let (server, external) = (self.input.pick(&SERVERS), self.external());
        let frame = self.packet(server, external);
        self.arrive(self.wan, &frame);
    }

    fn hairpin(&mut self) {
        let (client, external) = (self.input.pick(&CLIENTS), self.external());
        let frame = self.packet(client, external);
        self.arrive(0, &frame);
    }

    /// One of the frames that left lately.
    fn left(&mut self) -> Option<(usize, Vec<u8>)> {
        let number = self.input.byte();
        let count = self.recent.len();
        (count > 0).then(|| self.recent[count - 1 - number % count].clone())
    }

    /// The receiver of a frame answers.
    fn answer(&mut self) {
        let flags = self.input.pick(&FLAGS);
        let Some((interface, frame)) = self.left() else {
            return;
        };
        let Ok(packet) = parse(&frame) else { return };
        let Body::Flow { tuple, .. } = packet.body else {
            return;
        };
        let back = Envelope::new(tuple.destination.addr, tuple.source.addr);
        let mut data = tuple.destination.addr.octets().to_vec();
        data.extend(tuple.destination.port.to_be_bytes());
        let frame = match packet.ipv4.protocol {
            6 => back.tcp(tuple.destination.port, tuple.source.port, flags, &data),
            17 => back.udp(tuple.destination.port, tuple.source.port, &data),
            _ => back.echo_reply(tuple.source.port, &data),
        };
        self.arrive(interface, &frame);
    }

    /// The receiver of a frame, or a router on its way, complains about it.
    fn error(&mut self) {
        let kind = self.input.byte();
        let Some((interface, frame)) = self.left() else {
            return;
        };
        let Ok(packet) = parse(&frame) else { return };
        let routers = if interface == self.wan {
            SERVERS
        } else {
            [CLIENTS[0], CLIENTS[1], CLIENTS[3]]
        };
        let source = if kind & 1 == 0 {
            packet.ipv4.destination
        } else {
            self.input.pick(&routers)
        };
        let (icmp_type, code) = match kind >> 1 & 3 {
            0 => (icmp::UNREACHABLE, icmp::CODE_PORT),
            1 => (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED),
            2 => (icmp::TIME_EXCEEDED, icmp::CODE_TTL),
            _ => (icmp::PARAMETER_PROBLEM, 0),
        };
        let quote = if kind & 8 == 0 { 28 } else { 548 };
        let back = Envelope::new(source, packet.ipv4.source);
        self.arrive(interface, &back.icmp_error(icmp_type, code, &frame, quote));
    }

    /// One of three parts of a datagram.
    fn fragment(&mut self) {
        let kind = self.input.byte();
        let inbound = kind & 1 == 1;
        let (client, server) = (self.input.pick(&CLIENTS), self.input.pick(&SERVERS));
        let envelope = if inbound {
            let external = self.external();
            Envelope::new(server, external)
        } else {
            Envelope::new(client, server)
        };
        let (from, to) = if inbound { (53, 20_000) } else { (20_000, 53) };
        let mut data = envelope.source.octets().to_vec();
        data.extend(u16::to_be_bytes(from));
        data.resize(600, 0xAA);
        let datagram = envelope.udp_datagram(from, to, &data);
        let (start, end) = match kind >> 1 & 7 {
            0 | 1 => (0, 208),
            2 | 3 => (208, 408),
            4 | 5 => (408, 608),
            // Too long, and overlapping.
            6 => (200, 408),
            _ => (400, 600),
        };
        let more = if end < 608 { ipv4::MORE_FRAGMENTS } else { 0 };
        let fragment = Envelope {
            identification: (kind >> 4) as u16 & 3,
            flags_offset: (start / 8) as u16 | more,
            ..envelope
        };
        let frame = fragment.frame(17, &datagram[start..end]);
        self.arrive(if inbound { self.wan } else { 0 }, &frame);
    }

    fn time(&mut self) {
        let kind = self.input.byte();
        let step = STEPS_MS[kind & 15];
        if kind & 0x80 == 0 {
            self.world.pass_ms(step, (step / 8).max(1));
        } else {
            // The workers slept.
            self.world.advance_ms(step);
            self.world.run();
        }
        self.forget_sent();
    }

    /// Lets a change of policy reach the tables, before another one comes.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            if self.world.shared().rulebook.is_settled() {
                return;
            }
            self.world.pass_ms(10, 10);
        }
        panic!("a change of policy does not end");
    }

    fn policy(&mut self) {
        self.settle();
        let number = self.input.byte() % self.policies.len();
        self.eim |= self.policies[number].contains("eim");
        let text = format!(
            "internal = \"10.77.0.0/24\"\n{}{}",
            self.base, self.policies[number]
        );
        // It may not fit the address that the host has at the moment.
        self.world.reconfigure(&text);
        self.world.run();
        self.forget_sent();
    }

    fn address(&mut self) {
        self.settle();
        let addresses = match self.input.byte() % 4 {
            0 => Vec::new(),
            1 => vec![(LATER, 24)],
            2 => vec![(LATER, 24), (EXTERNAL, 24)],
            _ => vec![(EXTERNAL, 24)],
        };
        let net = |(addr, len)| ipnet(addr, len);
        self.world
            .set_external(addresses.into_iter().map(net).collect());
        self.world.run();
        self.forget_sent();
    }

    fn neighbour(&mut self) {
        let kind = self.input.byte();
        let known = [UPSTREAM, CLIENTS[0], CLIENTS[1], UPSTREAM];
        let state = [HopState::Resolved, HopState::Unresolved, HopState::Failed][kind / 4 % 3];
        self.world.set_neighbour(known[kind & 3], state);
        self.world.set_answer(kind & 0x80 == 0);
        self.world.run();
        self.forget_sent();
    }

    fn troubles(&mut self) {
        let kind = self.input.byte();
        let rooms = [usize::MAX, 0, 1, usize::MAX];
        self.world.set_transmit_room(rooms[kind & 3]);
        self.world.refuse_punts(kind & 4 != 0);
        let mtu = [1500, 576, 300, 1500][kind >> 3 & 3];
        // What waits was cut for the MTU of before.
        if self.is_quiet() {
            self.world
                .set_mtu(if kind & 0x20 == 0 { 0 } else { self.wan }, mtu);
        }
        // A round in which nothing comes.
        self.world.round();
        self.forget_sent();
    }

    fn routes(&mut self) {
        let route = RouteFacts {
            prefix: ipnet(SERVERS[2], 24).trunc(),
            kind: RouteKind::Unreachable,
            metric: 0,
            mtu: None,
            paths: Vec::new(),
        };
        let routes = if self.input.byte() & 1 == 0 {
            vec![route]
        } else {
            Vec::new()
        };
        self.world.set_routes(routes);
    }

    fn restart(&mut self) {
        if self.input.byte() & 1 == 0 {
            self.world
                .check_invariants()
                .unwrap_or_else(|violation| panic!("{violation}"));
        } else {
            self.world.restart();
            self.forget_sent();
        }
    }

    fn forget_sent(&mut self) {
        for interface in 0..=self.wan {
            for frame in self.world.take_sent(interface) {
                self.remember(interface, frame);
            }
        }
        self.world.take_punted();
    }

    fn remember(&mut self, interface: usize, frame: Vec<u8>) {
        self.recent.push((interface, frame));
        if self.recent.len() > 16 {
            self.recent.remove(0);
        }
    }

    /// A frame comes. If nothing waited before it, what leaves is its own doing.
    fn arrive(&mut self, interface: usize, frame: &[u8]) {
        let quiet = self.is_quiet();
        let worker = self.input.byte() % self.world.workers();
        if !self.world.inject_to(worker, interface, frame) {
            // Every slot is in use: time frees some.
            self.world.pass_ms(3_500, 500);
            self.forget_sent();
            return;
        }
        self.world.run();
        let mut sent = Vec::new();
        for number in 0..=self.wan {
            sent.extend(
                self.world
                    .take_sent(number)
                    .into_iter()
                    .map(|frame| (number, frame)),
            );
        }
        let own = if quiet { sent.as_slice() } else { &[] };
        let own: Vec<Tuple> = own.iter().filter_map(|(_, frame)| flow(frame)).collect();
        if let Some(came) = flow(frame) {
            self.owners.watch(&came, &own, self.eim);
        }
        for (number, frame) in sent {
            self.remember(number, frame);
        }
        for (_, punted) in self.world.take_punted() {
            assert!(!quiet || punted.len() <= frame.len());
        }
    }

    /// Does no frame wait?
    fn is_quiet(&self) -> bool {
        let counters = self.world.snapshot();
        counters.held == counters.released
    }

    /// Everything becomes well again, and all expires.
    fn end(mut self) {
        let check = |world: &mut World| {
            world
                .check_invariants()
                .unwrap_or_else(|violation| panic!("{violation}"));
        };
        check(&mut self.world);
        self.world.set_answer(true);
        self.world.refuse_punts(false);
        self.world.set_transmit_room(usize::MAX);
        self.world.pass_ms(1_000, 100);
        check(&mut self.world);
        self.world.drain();
        self.world
            .check_empty()
            .unwrap_or_else(|violation| panic!("{violation}"));
    }
}

fn ipnet(addr: Ipv4Addr, len: u8) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new(addr, len).expect("at most 32")
}
