//! The Internet checksum: whole (RFC 1071) and incremental (RFC 1624).
//!
//! Sums are ones' complement: 0x0000 and 0xFFFF are the same number, written differently. A sum
//! is 0x0000 only if every word added was zero. A message is *right* when the sum of all its
//! words, its checksum included, is 0xFFFF.

use std::net::Ipv4Addr;

/// Adds the carries back in until 16 bits are left (RFC 1071 section 1). Zero only for zero.
#[inline]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + ((sum >> 16) & 0xFFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// The folded sum of the big-endian 16-bit words; an odd last byte is padded with zero. Any
/// length, any alignment.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on byte order, except that its own bytes come out swapped.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words
        .iter()
        .map(|&word| u64::from(u32::from_ne_bytes(word)))
        .sum();
    if !rest.is_empty() {
        let mut word = [0; 4];
        word[..rest.len()].copy_from_slice(rest);
        total += u64::from(u32::from_ne_bytes(word));
    }
    u16::from_be(fold(total))
}

/// The multiplicative inverse of 65,535 modulo 2^64.
const INVERSE: u64 = 0xFFFE_FFFE_FFFE_FFFF;

/// Does an unfolded sum fold to 0xFFFF (or is it 0)? Folding keeps the remainder by 65,535, and a
/// number is a multiple of an odd one exactly if its product with the inverse is small: so this is
/// two instructions.
#[inline]
pub const fn folds_to_ffff(sum: u64) -> bool {
    sum.wrapping_mul(INVERSE) <= u64::MAX / 0xFFFF
}

/// Is the checksum that these bytes contain right? For messages without a pseudo-header.
#[inline]
pub fn is_right(bytes: &[u8]) -> bool {
    sum(bytes) == 0xFFFF
}

/// The unfolded sum of the pseudo-header of TCP and UDP (RFC 793 section 3.1, RFC 768). `len`:
/// bytes of transport header and payload.
#[inline]
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> u64 {
    u64::from(source.to_bits())
        + u64::from(destination.to_bits())
        + u64::from(protocol)
        + u64::from(len)
}

/// What changing a word from `old` to `new` adds to a delta, unfolded (RFC 1624, equation 3).
#[inline]
pub const fn delta16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// What changing an address adds to a delta, unfolded.
#[inline]
pub fn delta_address(old: Ipv4Addr, new: Ipv4Addr) -> u64 {
    u64::from(!old.to_bits()) + u64::from(new.to_bits())
}

/// The checksum after the words under it changed by the folded `delta` (RFC 1624, equation 3).
/// Right stays right and wrong stays wrong, for every checksum whose words are not all zero.
#[inline]
pub const fn apply(checksum: u16, delta: u16) -> u16 {
    let sum = !checksum as u32 + delta as u32;
    !((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// [`apply`] for UDP over IPv4: 0 means "none" and stays 0; a checksum that comes out as 0 is
/// written as 0xFFFF (RFC 768).
#[inline]
pub const fn apply_udp(checksum: u16, delta: u16) -> u16 {
    if checksum == 0 {
        0
    } else {
        never_zero(apply(checksum, delta))
    }
}

/// The other way of writing 0 (RFC 768: a UDP checksum computed as 0 is sent as 0xFFFF).
#[inline]
pub const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xFFFF } else { checksum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 2 in its most literal form.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xFFFF) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn rfc1071_section3_example() {
        assert_eq!(
            sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    #[test]
    fn rfc1624_section4_example() {
        // 0xDD2F is right for a header whose word becomes 0x3285 from 0x5555; the new checksum
        // is 0x0000 and not 0xFFFF, which RFC 1141's equation gives.
        assert_eq!(apply(0xDD2F, fold(delta16(0x5555, 0x3285))), 0x0000);
    }

    #[test]
    fn udp_zero_stays_zero_and_a_computed_zero_becomes_ffff() {
        assert_eq!(apply_udp(0, 0x1234), 0);
        assert_eq!(apply_udp(0xDD2F, fold(delta16(0x5555, 0x3285))), 0xFFFF);
    }

    #[test]
    fn multiples_of_ffff_are_told_apart() {
        assert_eq!(INVERSE.wrapping_mul(0xFFFF), 1);
        for multiple in [1, 2, 3, 0x1_0001, 0x1_0000_0000, u64::MAX / 0xFFFF] {
            let sum = multiple * 0xFFFF;
            assert!(folds_to_ffff(sum) && fold(sum) == 0xFFFF, "{sum:#x}");
            assert!(!folds_to_ffff(sum - 1) && !folds_to_ffff(sum.wrapping_add(1) | 1 << 40));
        }
    }

    #[test]
    fn folding_the_largest_sum_leaves_no_carry() {
        assert_eq!(fold(u64::MAX), 0xFFFF);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0xFFFF_FFFF_FFFF), 0xFFFF);
    }

    proptest! {
        #[test]
        fn a_sum_is_a_multiple_exactly_if_it_folds_so(sum in 1_u64..1 << 40) {
            prop_assert_eq!(folds_to_ffff(sum), fold(sum) == 0xFFFF);
        }

        #[test]
        fn sum_equals_the_literal_form(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum(&bytes), slow_sum(&bytes));
        }

        #[test]
        fn incremental_equals_whole(
            mut words in proptest::collection::vec(any::<u16>(), 2..40),
            at in any::<prop::sample::Index>(),
            new in prop_oneof![any::<u16>(), Just(0), Just(0xFFFF)],
        ) {
            // The first word stays nonzero, as in every header under a checksum but one.
            words[0] |= 1;
            let at = 1 + at.index(words.len() - 1);
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let before = !sum(&bytes(&words));
            let delta = fold(delta16(words[at], new));
            words[at] = new;
            prop_assert_eq!(apply(before, delta), !sum(&bytes(&words)));
        }
    }
}
