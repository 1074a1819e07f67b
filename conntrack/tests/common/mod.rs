//! A gateway's tables in heap memory with a virtual clock: what every test drives.
#![allow(dead_code, missing_docs)]

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use conntrack::{
    AddressKind, Endpoint, ExternalAddress, FilteringBehaviour, FlowTimers, Forward, Forwards,
    Identity, Limits, MappingBehaviour, Nat, PacketFacts, Pairing, Policy, PolicyChange, PortSet,
    Prefixes, Profile, Protocol, Random, Realm, Refusal, Rewrite, Rules, Signal, TableSize, Time,
    Timers, Tuple,
};

pub const EIM: MappingBehaviour = MappingBehaviour::EndpointIndependent;
pub const EDM: MappingBehaviour = MappingBehaviour::EndpointDependent;
pub const EIF: FilteringBehaviour = FilteringBehaviour::EndpointIndependent;
pub const ADF: FilteringBehaviour = FilteringBehaviour::AddressDependent;
pub const EDF: FilteringBehaviour = FilteringBehaviour::EndpointDependent;
pub const TCP: Protocol = Protocol::Tcp;
pub const UDP: Protocol = Protocol::Udp;
pub const ICMP: Protocol = Protocol::Icmp;

pub const IDENTITY: Identity = Identity { boot_id: [7; 16] };

/// A seeded generator (SplitMix64).
pub struct Seeded(pub u64);

impl Random for Seeded {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

impl Seeded {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}

/// `"10.0.0.1:5000"` as an endpoint.
pub fn ep(text: &str) -> Endpoint {
    let (addr, port) = text.split_once(':').unwrap();
    Endpoint::new(addr.parse().unwrap(), port.parse().unwrap())
}

pub fn tuple(protocol: Protocol, source: Endpoint, destination: Endpoint) -> Tuple {
    Tuple {
        protocol,
        source,
        destination,
    }
}

pub fn external(addr: &str, slot: u16, first: u16, last: u16) -> ExternalAddress {
    let mut ports = PortSet::empty();
    ports.insert_range(first, last);
    ExternalAddress {
        addr: addr.parse().unwrap(),
        slot,
        kind: AddressKind::Own,
        pool: 0,
        ports: [ports.clone(), ports.clone(), ports],
    }
}

pub fn policy(mapping: MappingBehaviour, filtering: FilteringBehaviour) -> Policy {
    Policy {
        profile: Profile {
            pool: 0,
            mapping: [mapping; 3],
            filtering: [filtering; 3],
            pairing: match mapping {
                MappingBehaviour::EndpointIndependent => [Pairing::Hard; 3],
                MappingBehaviour::EndpointDependent => [Pairing::Soft; 3],
            },
            preserve_port: true,
            preserve_port_class: true,
            preserve_port_parity: false,
            timers: FlowTimers::default(),
        },
        others: Vec::new(),
        rules: Rules::default(),
        inbound_refresh: false,
        timers: Timers::RFC.into(),
        hold_down_max_percent: 25,
        limits: Limits::DEFAULT,
        addresses: vec![external("198.51.100.1", 0, 1024, 65535)].into(),
        denied: Prefixes::default(),
        forwards: Forwards::default(),
    }
}

pub fn forward(protocol: Protocol, external: &str, target: &str, allow: &[&str]) -> Forward {
    Forward {
        protocol,
        external: ep(external),
        last_port: ep(external).port,
        targets: ep(target).into(),
        whole: false,
        allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

pub struct Rig {
    pub words: &'static [AtomicU64],
    pub owned: &'static [AtomicU64],
    pub size: TableSize,
    pub nat: Nat<'static>,
    pub policy: Policy,
    pub now: Time,
    pub random: Seeded,
    /// What every segment acknowledges.
    pub acknowledgement: u32,
}

pub fn memory(words: usize) -> &'static [AtomicU64] {
    Box::leak((0..words).map(|_| AtomicU64::new(0)).collect())
}

impl Rig {
    pub fn new(policy: Policy) -> Rig {
        Rig::sized(policy, 10_000)
    }

    pub fn sized(policy: Policy, sessions_max: u32) -> Rig {
        let size = TableSize {
            sessions_max,
            addresses_max: 4,
        };
        let (words, owned) = (memory(size.words()), memory(size.owned_words()));
        let mut random = Seeded(1);
        let nat = Nat::create(words, owned, size, IDENTITY, &mut random).unwrap();
        let mut rig = Rig {
            words,
            owned,
            size,
            nat,
            policy,
            now: Time(1_000_000),
            random,
            acknowledgement: 1,
        };
        rig.apply();
        rig
    }

    /// Puts the policy into the tables, in slices.
    pub fn apply(&mut self) {
        let mut change = PolicyChange::new(&self.policy);
        for _ in 0..100_000 {
            if self
                .nat
                .apply_policy(&self.policy, &mut change, self.now, 1000)
            {
                return;
            }
        }
        panic!("the policy never got into the tables");
    }

    pub fn packet(
        &mut self,
        realm: Realm,
        tuple: Tuple,
        signal: Signal,
    ) -> Result<Rewrite, Refusal> {
        self.segment(realm, tuple, signal, 0)
    }

    /// The same with a TCP sequence number.
    pub fn segment(
        &mut self,
        realm: Realm,
        tuple: Tuple,
        signal: Signal,
        sequence: u32,
    ) -> Result<Rewrite, Refusal> {
        let hash = self.nat.hash(&tuple);
        let facts = PacketFacts {
            signal,
            length: 100,
            sequence,
            acknowledgement: self.acknowledgement,
        };
        let (policy, now) = (&self.policy, self.now);
        self.nat
            .translate(policy, realm, &tuple, hash, facts, now, &mut self.random)
    }

    pub fn out(&mut self, signal: Signal, from: &str, to: &str) -> Result<Rewrite, Refusal> {
        let tuple = tuple(protocol_of(signal), ep(from), ep(to));
        self.packet(Realm::Internal, tuple, signal)
    }

    pub fn back(&mut self, signal: Signal, from: &str, to: Endpoint) -> Result<Rewrite, Refusal> {
        let tuple = tuple(protocol_of(signal), ep(from), to);
        self.packet(Realm::External, tuple, signal)
    }

    /// A UDP packet from inside that must pass: its external endpoint.
    pub fn udp(&mut self, from: &str, to: &str) -> Endpoint {
        self.out(Signal::Udp, from, to).unwrap().source
    }

    /// A TCP handshake from inside: the external endpoint.
    pub fn connect(&mut self, from: &str, to: &str) -> Endpoint {
        let external = self.out(Signal::TcpSyn, from, to).unwrap().source;
        self.back(Signal::TcpSynAck, to, external).unwrap();
        self.out(Signal::TcpData, from, to).unwrap();
        external
    }

    pub fn wait(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    /// Sweeps everything once over.
    pub fn sweep(&mut self) -> u32 {
        let mut ended = 0;
        for pass in 0..2 {
            for _ in 0..1_000_000 {
                let swept = self.nat.sweep(&self.policy, self.now, 500);
                ended += swept.sessions + swept.mappings + swept.ports;
                if swept.wrapped {
                    break;
                }
            }
            let _ = pass;
        }
        ended
    }

    pub fn check(&self) {
        if let Err(violation) = self.nat.check(&self.policy, self.now) {
            panic!("{violation}");
        }
    }

    pub fn owned_bits(&self) -> u32 {
        self.owned
            .iter()
            .map(|w| w.load(Relaxed).count_ones())
            .sum()
    }

    pub fn is_owned(&self, protocol: Protocol, slot: usize, port: u16) -> bool {
        let word = slot * 3072 + protocol.index() * 1024 + usize::from(port) / 64;
        self.owned[word].load(Relaxed) >> (port % 64) & 1 == 1
    }

    /// Everything back to zero.
    pub fn assert_empty(&self) {
        self.check();
        let totals = self.nat.totals();
        assert_eq!(totals.sessions, 0, "{totals:?}");
        assert_eq!(totals.mappings, 0, "{totals:?}");
        assert_eq!(totals.ports_in_use, [0; 3]);
        assert_eq!(totals.ports_held, [0; 3]);
        let ports: usize = self.policy.forwards.iter().map(|f| f.ports().len()).sum();
        assert_eq!(self.owned_bits() as usize, ports);
    }
}

/// A packet of 100 bytes without a sequence number.
pub fn facts(signal: Signal) -> PacketFacts {
    PacketFacts {
        signal,
        length: 100,
        sequence: 0,
        acknowledgement: 1,
    }
}

pub fn protocol_of(signal: Signal) -> Protocol {
    match signal {
        Signal::Udp => UDP,
        Signal::IcmpQuery | Signal::IcmpReply => ICMP,
        _ => TCP,
    }
}

pub fn addr(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
