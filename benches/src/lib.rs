//! What the benches share: tables in memory, a policy, and flows to translate.

pub mod core;
pub mod date;
pub mod figure;
pub mod fill;
pub mod instructions;
pub mod page;
pub mod plot;
pub mod results;
pub mod rings;
pub mod route;
pub mod sessions;

use std::sync::atomic::AtomicU64;

use conntrack::{
    AddressKind, Endpoint, ExternalAddress, FilteringBehaviour, FlowTimers, Identity, Limits,
    MappingBehaviour, Nat, Pairing, Policy, PortSet, Profile, Protocol, Random, Rules, TableSize,
    Timers, Tuple,
};

/// A small fast generator (SplitMix64): the same sequence in every run.
#[derive(Clone, Debug)]
pub struct Sequence(pub u64);

impl Random for Sequence {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// All numbers below `count`, in an order that no cache foresees.
pub fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = Sequence(seed);
    for last in (1..order.len()).rev() {
        let other = ((random.next_u64() >> 32) as usize * (last + 1)) >> 32;
        order.swap(last, other);
    }
    order
}

/// Memory on the heap for tables; it is never given back.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    words: &'static [AtomicU64],
    owned: &'static [AtomicU64],
    size: TableSize,
}

impl Memory {
    /// Memory for so many sessions and external addresses.
    pub fn new(sessions_max: u32, addresses_max: u16) -> Memory {
        let size = TableSize {
            sessions_max,
            addresses_max,
        };
        let words = |count: usize| -> &'static [AtomicU64] {
            Vec::leak((0..count).map(|_| AtomicU64::new(0)).collect())
        };
        Memory {
            words: words(size.words()),
            owned: words(size.owned_words()),
            size,
        }
    }

    /// Empty tables in it, whatever was there.
    pub fn tables(&self) -> Nat<'static> {
        let identity = Identity { boot_id: [1; 16] };
        let mut random = Sequence(7);
        Nat::create(self.words, self.owned, self.size, identity, &mut random)
            .expect("the sizes are in range and the memory is large enough")
    }
}

/// Empty tables in memory of their own.
pub fn tables(sessions_max: u32, addresses_max: u16) -> Nat<'static> {
    Memory::new(sessions_max, addresses_max).tables()
}

/// The two-line file's behaviour over `addresses` own addresses.
pub fn policy(addresses: u16) -> Policy {
    let mut ports = PortSet::empty();
    ports.insert_range(1024, 65535);
    let own = |slot: u16| ExternalAddress {
        addr: [198, 18, (slot >> 8) as u8, slot as u8].into(),
        slot,
        kind: AddressKind::Own,
        pool: 0,
        ports: [ports.clone(), ports.clone(), ports.clone()],
    };
    Policy {
        profile: Profile {
            pool: 0,
            mapping: [MappingBehaviour::EndpointDependent; 3],
            filtering: [FilteringBehaviour::EndpointDependent; 3],
            pairing: [Pairing::Soft; 3],
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
        addresses: (0..addresses).map(own).collect(),
        denied: conntrack::Prefixes::default(),
        forwards: conntrack::Forwards::default(),
    }
}

/// UDP flow number `number`: 16,384 internal endpoints to as many remotes as it takes.
pub fn flow(number: u32) -> Tuple {
    let (internal, remote) = (number % 16_384, number / 16_384);
    let addr = |base: [u8; 2], low: u32| [base[0], base[1], (low >> 8) as u8, low as u8].into();
    Tuple {
        protocol: Protocol::Udp,
        source: Endpoint::new(
            addr([10, 77], internal / 64),
            10_000 + (internal % 64) as u16,
        ),
        destination: Endpoint::new(addr([203, 0], remote), 53),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffled_order_has_each_number_once() {
        let mut order = shuffled(60_000, 1);
        let sorted: Vec<u32> = (0..60_000).collect();
        assert_ne!(order, sorted);
        order.sort_unstable();
        assert_eq!(order, sorted);
    }
}
