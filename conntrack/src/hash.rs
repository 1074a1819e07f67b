//! The keyed hash of tuples: two 64-bit multiply-xor rounds, cheap enough for a kernel program that
//! reads the same tables.

use std::hash::Hasher;

use crate::endpoint::{Endpoint, Protocol, Tuple};

/// A tuple as the tables hold it: two words to compare, and the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Source address in the upper 32 bits, destination address in the lower.
    pub addresses: u64,
    /// Source port in the upper 16 bits, destination port in the lower.
    pub ports: u32,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Key {
    /// The key of a tuple.
    #[inline(always)]
    pub fn of(tuple: &Tuple) -> Key {
        Key {
            addresses: pack_addresses(tuple.source, tuple.destination),
            ports: pack_ports(tuple.source, tuple.destination),
            protocol: tuple.protocol,
        }
    }
}

impl Key {
    /// The tuple of the key.
    #[inline]
    pub fn tuple(&self) -> Tuple {
        let (source, destination) = unpack(self.addresses, self.ports);
        Tuple {
            protocol: self.protocol,
            source,
            destination,
        }
    }
}

#[inline(always)]
pub(crate) fn pack_addresses(first: Endpoint, second: Endpoint) -> u64 {
    u64::from(first.addr.to_bits()) << 32 | u64::from(second.addr.to_bits())
}

#[inline(always)]
pub(crate) fn pack_ports(first: Endpoint, second: Endpoint) -> u32 {
    u32::from(first.port) << 16 | u32::from(second.port)
}

#[inline(always)]
pub(crate) fn unpack(addresses: u64, ports: u32) -> (Endpoint, Endpoint) {
    (
        Endpoint::new(((addresses >> 32) as u32).into(), (ports >> 16) as u16),
        Endpoint::new((addresses as u32).into(), ports as u16),
    )
}

/// The keys of one table's hash, drawn when it is created: an outsider cannot aim at one index line.
#[derive(Clone, Copy)]
pub(crate) struct HashKeys(pub [u64; 2]);

impl HashKeys {
    /// Every bit of the result depends on every bit of the tuple.
    #[inline(always)]
    pub fn hash(&self, key: &Key) -> u64 {
        let first = (key.addresses ^ self.0[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let rest = u64::from(key.ports) << 8 | key.protocol as u64;
        mix(first ^ first >> 32 ^ rest ^ self.0[1])
    }
}

/// Spreads every bit over all 64: two rounds of xor-shift and multiply.
#[inline(always)]
pub(crate) fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word = (word ^ word >> 29).wrapping_mul(0xa0d2_3a2f_5b4c_9ad1);
    word ^ word >> 32
}

/// For keys that the configuration chooses, so that no flood can choose them.
#[derive(Default)]
pub(crate) struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }

    fn write_u32(&mut self, word: u32) {
        self.0 = mix(self.0 ^ u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.0 = mix(self.0 ^ u64::from(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_bit_flips_about_half_of_the_output() {
        let keys = HashKeys([0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321]);
        let base = Key {
            addresses: 0x0a00_0001_0808_0808,
            ports: 0x9c40_0035,
            protocol: Protocol::Udp,
        };
        for bit in 0..96 {
            let mut other = base;
            if bit < 64 {
                other.addresses ^= 1 << bit;
            } else {
                other.ports ^= 1 << (bit - 64);
            }
            let flipped = (keys.hash(&base) ^ keys.hash(&other)).count_ones();
            assert!((12..=52).contains(&flipped), "bit {bit} flips {flipped}");
        }
    }

    #[test]
    fn unpack_inverts_pack() {
        let a = Endpoint::new([10, 1, 2, 3].into(), 40000);
        let b = Endpoint::new([203, 0, 113, 9].into(), 53);
        assert_eq!(unpack(pack_addresses(a, b), pack_ports(a, b)), (a, b));
    }
}
