//! Ethernet frames for tests, byte by byte, so that they may be wrong, too.
#![allow(dead_code, missing_docs)]

use std::net::Ipv4Addr;

/// An Ethernet frame.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// An IPv4 packet without options and with a right header checksum. `fragment` is the flags and
/// offset word.
pub fn ipv4(
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    fragment: u16,
    body: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&(20 + body.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[0x12, 0x34]);
    packet.extend_from_slice(&fragment.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

/// Internet checksum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A UDP header without checksum and its payload.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&source.to_be_bytes());
    body.extend_from_slice(&destination.to_be_bytes());
    body.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(payload);
    body
}

/// The ports of a TCP header and nothing behind them that matters.
pub fn tcp(source: u16, destination: u16) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[..2].copy_from_slice(&source.to_be_bytes());
    body[2..4].copy_from_slice(&destination.to_be_bytes());
    body[12] = 0x50;
    body
}

/// An ICMP message with an identifier.
pub fn icmp(kind: u8, code: u8, identifier: u16, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, code, 0, 0];
    body.extend_from_slice(&identifier.to_be_bytes());
    body.extend_from_slice(&[0, 1]);
    body.extend_from_slice(rest);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}
