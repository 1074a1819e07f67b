//! What a run does: a configuration and operations, both made by proptest so that they shrink.
//! Few of everything, so that collisions, exhaustion and expiry are frequent.

use std::net::Ipv4Addr;

use conntrack::{
    AddressKind, Endpoint, ExternalAddress, FilteringBehaviour, FlowTimers, Forward, Limits,
    MappingBehaviour, Pairing, Policy, PortSet, Profile, Protocol, Quotas, Rules, Signal,
    TimerSets, Timers,
};
use ipnet::Ipv4Net;
use proptest::prelude::*;

use crate::ruling;

/// All ports that pools and forwards use: borders of 64-bit words among them.
pub const PORTS: &[u16] = &[
    0, 7, 80, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1022, 1023, 1024, 1025,
    2047, 2048, 65535,
];
/// Addresses of all pools with their slots: the first and the third take turns.
pub const ADDRESSES: [(Ipv4Addr, u16); 4] = [
    (Ipv4Addr::new(203, 0, 113, 1), 0),
    (Ipv4Addr::new(203, 0, 113, 2), 1),
    (Ipv4Addr::new(203, 0, 113, 3), 0),
    (Ipv4Addr::new(203, 0, 113, 4), 2),
];
/// What there is of [`ADDRESSES`], by place.
const POOLS: [&[usize]; 16] = [
    &[0],
    &[0, 1],
    &[1, 0],
    &[0, 1],
    &[1],
    &[2, 1],
    &[0],
    &[0, 1, 3],
    &[0],
    &[0, 1],
    &[2],
    &[],
    &[1, 3],
    &[0, 1, 3],
    &[3, 0],
    &[3, 2, 1],
];
/// Ports of a pool by protocol, as first and last places in [`PORTS`].
const POOL_PORTS: [[&[(usize, usize)]; 3]; 7] = [
    [&[(3, 5)], &[(3, 5)], &[(3, 5)]],
    [&[(3, 6), (14, 15)], &[(3, 6), (14, 15)], &[(3, 6)]],
    [&[(0, 19)], &[(0, 19)], &[(0, 19)]],
    [&[(13, 16)], &[(0, 1), (19, 19)], &[(3, 3)]],
    [&[(4, 8)], &[(3, 10)], &[]],
    [&[(4, 4)], &[(4, 4)], &[(4, 4)]],
    [&[(1, 12)], &[(3, 14)], &[(3, 7)]],
];
const FILTERINGS: [FilteringBehaviour; 3] = [
    FilteringBehaviour::EndpointIndependent,
    FilteringBehaviour::AddressDependent,
    FilteringBehaviour::EndpointDependent,
];
const SESSIONS_MAX: [u32; 6] = [3, 4, 8, 12, 24, 64];
const STARTS_MS: [u64; 5] = [
    1_000_000,
    0,
    (1 << 32) - 20_000,
    (1 << 31) - 9_000,
    0x5_0000_1234,
];
const SOURCE_PORTS: [u16; 6] = [1000, 1001, 1002, 7, 5000, 1000];
const REMOTES: [Ipv4Addr; 3] = [
    Ipv4Addr::new(198, 51, 100, 10),
    Ipv4Addr::new(198, 51, 100, 11),
    ADDRESSES[2].0,
];
/// Destinations that clients may not reach: remote ones, and one of the pool's.
const DENIED: [&[Ipv4Addr]; 8] = [
    &[],
    &[REMOTES[1]],
    &[],
    &[REMOTES[0], REMOTES[2]],
    &[],
    &[ADDRESSES[0].0],
    &[],
    &[],
];
const REMOTE_PORTS: [u16; 2] = [53, 1000];

/// Choices that make a policy. All numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    pub eim: bool,
    pub filtering: u8,
    /// Which protocols behave otherwise, if at all.
    pub mix: u8,
    pub preserve: bool,
    pub soft: bool,
    pub class: bool,
    pub parity: bool,
    pub inbound_refresh: bool,
    pub timers: u8,
    pub shared: bool,
    pub pool: u8,
    pub ports: u8,
    /// One bit a forward.
    pub forwards: u8,
    pub quotas: u8,
    pub denied: u8,
    pub rules: u8,
}

/// What a run starts from.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    pub choice: Choice,
    pub sessions_max: u8,
    pub start: u8,
    pub random: u64,
}

/// One step. `which` names one of the things that are there, modulo their number.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// A packet from an internal host to a remote one.
    Out {
        protocol: u8,
        source: u8,
        remote: u8,
        signal: u8,
        length: u8,
    },
    /// A packet of a session in the tables, over or not.
    Of {
        which: u8,
        side: bool,
        signal: u8,
        length: u8,
    },
    /// A packet from a remote host to an external endpoint that was seen.
    In { which: u8, remote: u8, signal: u8 },
    /// A packet from an internal host to an external endpoint that was seen.
    Hairpin { which: u8, source: u8, signal: u8 },
    /// A packet with a session's tuple from the wrong realm.
    Spoofed { which: u8, side: bool, signal: u8 },
    /// An ICMP error about a packet of a session.
    Embedded { which: u8, side: bool, stray: bool },
    /// So many ms pass.
    Pass { ms: u16 },
    /// Time goes to where something ends, or one ms before or after.
    Edge { which: u8, offset: u8 },
    /// One slice.
    Sweep { budget: u8 },
    /// Everything.
    SweepAll,
    /// One thing of the policy changes.
    Change { what: u8, value: u8, budget: u8 },
    /// The process ends, the next one takes over.
    Restart,
    /// A next hop is remembered through a reference that was given out.
    Hop { which: u8, hop: u8 },
}

impl Operation {
    fn decode([kind, a, b, c, d]: [u8; 5]) -> Operation {
        match kind {
            0..70 => Operation::Out {
                protocol: a,
                source: b,
                remote: c,
                signal: d,
                length: a,
            },
            70..144 => Operation::Of {
                which: a,
                side: b & 1 == 1,
                signal: c,
                length: d,
            },
            144..164 => Operation::In {
                which: a,
                remote: b,
                signal: c,
            },
            164..186 => Operation::Hairpin {
                which: a,
                source: b,
                signal: c,
            },
            186..188 => Operation::Spoofed {
                which: a,
                side: b & 1 == 1,
                signal: c,
            },
            188..194 => Operation::Embedded {
                which: a,
                side: b & 1 == 1,
                stray: c < 32,
            },
            194..206 => Operation::Pass {
                ms: u16::from(a) * u16::from(b) / 32,
            },
            206..224 => Operation::Edge {
                which: a,
                offset: b,
            },
            224..241 => Operation::Sweep { budget: a },
            241..243 => Operation::SweepAll,
            243..249 => Operation::Change {
                what: a,
                value: b,
                budget: c,
            },
            249 => Operation::Restart,
            _ => Operation::Hop { which: a, hop: b },
        }
    }
}

/// Any operations, at most so many.
pub fn operations(most: usize) -> impl Strategy<Value = Vec<Operation>> {
    let one = any::<[u8; 5]>().prop_map(Operation::decode);
    proptest::collection::vec(one, 1..=most)
}

/// Any configuration with this mapping and filtering behaviour.
pub fn configuration(eim: bool, filtering: u8) -> impl Strategy<Value = Configuration> {
    let flags = any::<[bool; 6]>();
    (flags, any::<[u8; 10]>(), any::<u64>()).prop_map(move |(flags, numbers, random)| {
        let [preserve, inbound_refresh, shared, class, parity, soft] = flags;
        let [
            timers,
            pool,
            ports,
            forwards,
            sessions_max,
            start,
            mix,
            quotas,
            denied,
            rules,
        ] = numbers;
        Configuration {
            choice: Choice {
                eim,
                filtering,
                mix,
                preserve,
                soft,
                class,
                parity,
                inbound_refresh,
                timers,
                shared,
                pool,
                ports,
                forwards,
                quotas,
                denied,
                rules,
            },
            sessions_max,
            start,
            random,
        }
    })
}

impl Configuration {
    pub fn sessions_max(&self) -> u32 {
        of(&SESSIONS_MAX, self.sessions_max)
    }

    pub fn start_ms(&self) -> u64 {
        of(&STARTS_MS, self.start)
    }
}

impl Choice {
    /// The choice with one thing changed.
    pub fn changed(mut self, what: u8, value: u8) -> Choice {
        match what % 16 {
            0 => (self.eim, self.mix) = (value & 1 == 1, value.rotate_left(2)),
            1 => self.filtering = value,
            2 => {
                let bit = |bit: u8| value >> bit & 1 == 1;
                (self.preserve, self.class, self.parity) = (bit(0), bit(1), bit(2));
            }
            3 => (self.inbound_refresh, self.soft) = (value & 1 == 1, value & 2 == 2),
            4 => self.timers = value,
            5 | 6 => self.pool = value,
            7 => self.ports = value,
            8 => self.quotas = value,
            9 => self.denied = value,
            10 => self.rules = value,
            // Often the same two in turn: mappings come to be in other pools.
            11..=13 => self.rules = if self.rules == 1 { u8::MAX } else { 1 },
            _ => self.forwards = value,
        }
        self
    }

    /// One of six bits; in three of four policies all protocols behave alike.
    fn differs(&self, bit: u8) -> bool {
        self.mix < 64 && self.mix >> bit & 1 == 1
    }

    /// Its timers are numbered after those of the policy before, if one is in the tables.
    pub fn policy(&self, earlier: Option<&TimerSets>) -> Policy {
        let pool = of(&POOLS, self.pool).iter();
        let kind = match self.shared {
            true => AddressKind::Shared,
            false => AddressKind::Own,
        };
        let address = |&place: &usize| ExternalAddress {
            addr: ADDRESSES[place].0,
            slot: ADDRESSES[place].1,
            kind,
            pool: 0,
            ports: of(&POOL_PORTS, self.ports).map(port_set),
        };
        let mut policy = Policy {
            profile: Profile {
                pool: 0,
                mapping: [0, 1, 2].map(|protocol| match self.eim != self.differs(protocol) {
                    true => MappingBehaviour::EndpointIndependent,
                    false => MappingBehaviour::EndpointDependent,
                }),
                filtering: [0, 1, 2].map(|protocol| {
                    let step = u8::from(self.differs(protocol + 3));
                    of(&FILTERINGS, self.filtering.wrapping_add(step))
                }),
                pairing: match self.soft {
                    true => [Pairing::Soft; 3],
                    false => [Pairing::Hard; 3],
                },
                preserve_port: self.preserve,
                preserve_port_class: self.class,
                preserve_port_parity: self.parity,
                timers: FlowTimers::default(),
            },
            others: Vec::new(),
            rules: Rules::default(),
            inbound_refresh: self.inbound_refresh,
            timers: timers(self.timers).into(),
            limits: limits(self.timers.wrapping_add(self.forwards), self.quotas),
            hold_down_max_percent: of(&[25, 25, 50, 100, 0], self.timers / 6),
            addresses: pool.map(address).collect(),
            denied: of(&DENIED, self.denied)
                .iter()
                .copied()
                .map(host_prefix)
                .collect(),
            forwards: forwards(self.forwards).into(),
        };
        ruling::enact(&mut policy, self.rules, earlier);
        policy
    }
}

fn of<T: Copy>(values: &[T], which: u8) -> T {
    values[usize::from(which) % values.len()]
}

fn port_set(ranges: &[(usize, usize)]) -> PortSet {
    let mut set = PortSet::empty();
    for &(first, last) in ranges {
        for &port in &PORTS[first..=last] {
            set.insert_range(port, port);
        }
    }
    set
}

/// Some timers.
pub fn timers(which: u8) -> Timers {
    // udp, trans-open, idle, trans-close, icmp, hold-down.
    let short = |[udp, open, idle, close, icmp, hold]: [u32; 6]| Timers {
        udp_timeout_ms: udp,
        tcp_trans_open_timeout_ms: open,
        tcp_idle_timeout_ms: idle,
        tcp_trans_close_timeout_ms: close,
        icmp_timeout_ms: icmp,
        hold_down_ms: hold,
        ..Timers::RFC
    };
    match which % 6 {
        0 => short([5_000, 4_000, 12_000, 3_000, 2_000, 6_000]),
        1 => Timers::RFC,
        2 => Timers::CLOUD,
        3 => short([300, 200, 900, 100, 50, 0]),
        4 => short([2_048, 5_000, 2_000, 7_000, 1_024, 1]),
        _ => short([5_000, 4_000, 12_000, 3_000, 2_000, 30_000]),
    }
}

fn limits(which: u8, quotas: u8) -> Limits {
    let [mapping, forward, half_open] = of(&[[2, 3, 1], [9_999; 3], [1, 2, 2]], which);
    Limits {
        inbound_sessions_per_mapping: mapping as u16,
        inbound_sessions_per_forward: Some(forward),
        half_open_per_forward: Some(half_open),
        quotas: self::quotas(quotas),
    }
}

/// Half of the policies have none, some have only large ones.
fn quotas(which: u8) -> Quotas {
    let quotas = |sessions, ports| Quotas {
        sessions,
        ports,
        ..Quotas::NONE
    };
    let (none, many) = ([None; 3], [Some(5000); 3]);
    match which % 14 {
        0 => quotas([Some(2), Some(3), Some(1)], none),
        1 => quotas(none, [Some(2), Some(3), Some(1)]),
        2 => quotas([Some(4), Some(4), Some(2)], [Some(3), Some(2), Some(2)]),
        3 => quotas([Some(3), None, None], [None, Some(2), None]),
        4 => quotas(many, [Some(1), Some(4), Some(1)]),
        5 => quotas(none, many),
        6 => quotas(many, many),
        _ => Quotas::NONE,
    }
}

/// Those of the forwards whose bits are set; of two at one endpoint the first.
fn forwards(bits: u8) -> Vec<Forward> {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let all: [(Protocol, usize, u16, Endpoint, Vec<Ipv4Addr>); 8] = [
        (tcp, 0, 1001, host(0, 1000), vec![]),
        (tcp, 0, 1001, host(2, 1002), vec![]),
        (udp, 0, 1002, host(1, 1001), vec![]),
        (tcp, 0, 80, host(1, 1000), vec![REMOTES[1]]),
        (tcp, 0, 80, host(1, 1000), vec![REMOTES[0], ADDRESSES[1].0]),
        (
            udp,
            1,
            1000,
            host(0, 1000),
            vec![REMOTES[0], ADDRESSES[0].0],
        ),
        (tcp, 1, 1001, host(0, 1000), vec![]),
        (udp, 0, 7, host(2, 7), vec![]),
    ];
    let mut forwards: Vec<Forward> = Vec::new();
    for (i, (protocol, address, port, target, allow)) in all.into_iter().enumerate() {
        let external = Endpoint::new(ADDRESSES[address].0, port);
        let twin = |f: &Forward| f.protocol == protocol && f.external == external;
        if bits >> i & 1 == 1 && !forwards.iter().any(twin) {
            forwards.push(Forward {
                protocol,
                external,
                last_port: port,
                targets: target.into(),
                whole: false,
                allow: allow.into_iter().map(host_prefix).collect(),
            });
        }
    }
    forwards
}

fn host_prefix(addr: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new(addr, 32).expect("a prefix length")
}

fn host(number: u8, port: u16) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(10, 0, 0, 1 + number % 3), port)
}

/// An internal endpoint.
pub fn source(raw: u8) -> Endpoint {
    host(raw, of(&SOURCE_PORTS, raw / 3))
}

/// A remote endpoint.
pub fn remote(raw: u8) -> Endpoint {
    // The third remote is an address that the pool may have, too: rarely.
    let addr = match raw >> 4 {
        15 => REMOTES[2],
        _ => of(&REMOTES[..2], raw),
    };
    Endpoint::new(addr, of(&REMOTE_PORTS, raw / 2))
}

/// One in eight ICMP, the rest half TCP, half UDP.
pub fn protocol(raw: u8) -> Protocol {
    match raw % 8 {
        0 => Protocol::Icmp,
        1..4 => Protocol::Tcp,
        _ => Protocol::Udp,
    }
}

/// A signal of a protocol: from inside ICMP mostly asks, from outside it answers.
pub fn signal(protocol: Protocol, raw: u8, opening: bool, asks: bool) -> Signal {
    match protocol {
        Protocol::Udp => Signal::Udp,
        Protocol::Icmp if asks != raw.is_multiple_of(16) => Signal::IcmpQuery,
        Protocol::Icmp => Signal::IcmpReply,
        Protocol::Tcp if opening && !raw.is_multiple_of(16) => Signal::TcpSyn,
        Protocol::Tcp => of(
            &[
                Signal::TcpData,
                Signal::TcpSynAck,
                Signal::TcpFin,
                Signal::TcpData,
                Signal::TcpSynAck,
                Signal::TcpFin,
                Signal::TcpSyn,
                Signal::TcpRst,
            ],
            raw / 16,
        ),
    }
}
