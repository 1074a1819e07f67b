//! Header formats as named offsets and views over bytes.
//!
//! A view (`Header`, `HeaderMut`) borrows a fixed-size array, so the one length check is made when
//! the view is made, by `new`; after it no read or write can fail or panic.

pub mod arp;
pub mod build;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod samples;
pub mod tcp;
pub mod udp;

use std::net::Ipv4Addr;

/// The big-endian 16-bit word at `at`.
#[inline]
pub(crate) fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian 32-bit word at `at`.
#[inline]
pub(crate) fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a big-endian 32-bit word at `at`.
#[inline]
pub(crate) fn put32<const N: usize>(bytes: &mut [u8; N], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// The big-endian 64-bit word at `at`.
#[inline]
pub(crate) fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// Writes a big-endian 64-bit word at `at`.
#[inline]
pub(crate) fn put64<const N: usize>(bytes: &mut [u8; N], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// The IPv4 address at `at`.
#[inline]
pub(crate) fn address<const N: usize>(bytes: &[u8; N], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// Writes a big-endian 16-bit word at `at`.
#[inline]
pub(crate) fn put16<const N: usize>(bytes: &mut [u8; N], at: usize, value: u16) {
    [bytes[at], bytes[at + 1]] = value.to_be_bytes();
}

/// Writes an IPv4 address at `at`.
#[inline]
pub(crate) fn put_address<const N: usize>(bytes: &mut [u8; N], at: usize, value: Ipv4Addr) {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] = value.octets();
}
