//! Facts about the network interfaces of the current network namespace, as plain data.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

/// What the kernel says of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InterfaceFacts {
    /// Name.
    pub name: String,
    /// The kernel's index.
    pub ifindex: u32,
    /// MAC; `None` on interfaces that are not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Own addresses (`IFA_LOCAL`, never a point-to-point peer's), each with the length of its
    /// prefix, in the kernel's order: primary first. Host bits are kept.
    pub addresses: Vec<Ipv4Net>,
    /// Administratively up, with carrier.
    pub up: bool,
    /// Neighbours are resolved by ARP.
    pub arp: bool,
    /// A loopback interface.
    pub loopback: bool,
    /// Kind of a virtual interface (`veth`, `bridge`, `tun`, ...); empty: a hardware driver's.
    pub kind: String,
    /// Index of the bridge, bond or VRF it is a port of.
    pub controller: Option<u32>,
}

impl InterfaceFacts {
    /// The facts that are in a link message; the addresses come in messages of their own.
    pub(crate) fn of(message: &LinkMessage) -> InterfaceFacts {
        let flags = message.header.flags;
        let mut facts = InterfaceFacts {
            ifindex: message.header.index,
            up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            arp: !flags.contains(LinkFlags::Noarp),
            loopback: flags.contains(LinkFlags::Loopback),
            ..InterfaceFacts::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => facts.name.clone_from(name),
                LinkAttribute::Address(bytes) => facts.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
                LinkAttribute::Controller(index) => facts.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            facts.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        facts.arp &= facts.mac.is_some() && !facts.loopback;
        facts
    }
}

/// The interface and the own address of an IPv4 address message. On a point-to-point interface
/// `IFA_ADDRESS` is the peer; `IFA_LOCAL` is what the host has.
pub(crate) fn address_of(message: &AddressMessage) -> Option<(u32, Ipv4Net)> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let pick = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| -> Option<Ipv4Addr> {
        match message.attributes.iter().find_map(wanted)? {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }
    };
    let local = pick(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    let addr = local.or_else(|| {
        pick(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    })?;
    let net = Ipv4Net::new(addr, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.index = 4;
        message.attributes = attributes;
        message
    }

    #[test]
    fn the_own_address_of_a_point_to_point_link_is_read() {
        let own = AddressAttribute::Local("203.0.113.5".parse().unwrap());
        let peer = AddressAttribute::Address("10.64.64.1".parse().unwrap());
        let wanted = Some((4, "203.0.113.5/32".parse().unwrap()));
        assert_eq!(
            address_of(&address(vec![peer.clone(), own.clone()])),
            wanted
        );
        assert_eq!(address_of(&address(vec![own, peer.clone()])), wanted);
        let only = Some((4, "10.64.64.1/32".parse().unwrap()));
        assert_eq!(address_of(&address(vec![peer])), only);
        assert_eq!(address_of(&address(vec![])), None);
    }

    #[test]
    fn link_facts() {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1400),
        ];
        let facts = InterfaceFacts::of(&message);
        assert_eq!(
            (facts.name.as_str(), facts.ifindex, facts.mtu),
            ("eth0", 9, 1400)
        );
        assert!(facts.up && facts.arp);
        assert_eq!(facts.mac, Some([2, 0, 0, 0, 0, 1]));
        message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        let facts = InterfaceFacts::of(&message);
        assert!(!facts.up, "no carrier");
        assert!(!facts.arp);
    }
}
