//! The served interfaces as the packet path sees them: role, addresses, MTU.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::Role;

/// A served interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name, for messages.
    pub name: String,
    /// Which realms it serves.
    pub role: Role,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// IP MTU in bytes.
    pub mtu: u16,
    /// Its addresses: the source of ICMP errors that Egret sends into the realm.
    pub addresses: Vec<Ipv4Net>,
    /// It is still the interface that the sockets were bound to at the start.
    pub present: bool,
}

/// All served interfaces in the order of their numbers, and the internal prefixes. Immutable; a
/// change is a new value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The interfaces; the index is the interface number.
    pub links: Vec<Link>,
    /// Internal prefixes.
    pub internal: Vec<Ipv4Net>,
}

impl Links {
    /// Is the address internal?
    pub fn is_internal(&self, addr: Ipv4Addr) -> bool {
        self.internal.iter().any(|prefix| prefix.contains(&addr))
    }

    /// Does the address stand for all hosts of a network that an interface is connected to? Both its
    /// last and its first address do (RFC 1812 sections 5.3.5.2 and 4.2.3.1).
    pub fn is_broadcast(&self, addr: Ipv4Addr) -> bool {
        self.links
            .iter()
            .flat_map(|link| &link.addresses)
            .any(|net| net.prefix_len() < 31 && (net.broadcast() == addr || net.network() == addr))
    }

    /// The address that Egret uses towards `peer` on an interface: one of the same subnet, else
    /// one of the peer's realm, else the first. Never an internal one towards outside.
    pub fn source_towards(&self, interface: u8, peer: Ipv4Addr) -> Option<Ipv4Addr> {
        let addresses = &self.links.get(usize::from(interface))?.addresses;
        let inside = self.is_internal(peer);
        let usable = || {
            addresses
                .iter()
                .filter(|net| inside || !self.is_internal(net.addr()))
        };
        let same_realm = |net: &&Ipv4Net| self.is_internal(net.addr()) == inside;
        usable()
            .find(|net| net.contains(&peer))
            .or_else(|| usable().find(same_realm))
            .or_else(|| usable().next())
            .map(Ipv4Net::addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_from_the_address_nearest_to_their_receiver() {
        let links = Links {
            links: vec![Link {
                name: "eth0".into(),
                role: Role::Both,
                mac: [2; 6],
                mtu: 1500,
                addresses: vec![
                    "198.51.100.2/24".parse().unwrap(),
                    "10.7.0.1/24".parse().unwrap(),
                ],
                present: true,
            }],
            internal: vec!["10.0.0.0/8".parse().unwrap()],
        };
        let towards = |peer: [u8; 4]| links.source_towards(0, peer.into()).unwrap().octets();
        assert_eq!(towards([10, 7, 0, 9]), [10, 7, 0, 1]);
        assert_eq!(
            towards([10, 9, 9, 9]),
            [10, 7, 0, 1],
            "same realm, other subnet"
        );
        assert_eq!(towards([203, 0, 113, 1]), [198, 51, 100, 2]);
        assert_eq!(links.source_towards(1, [10, 7, 0, 9].into()), None);
    }

    #[test]
    fn a_network_has_two_addresses_that_mean_all_its_hosts() {
        let links = Links {
            links: vec![Link {
                name: "eth0".into(),
                present: true,
                role: Role::Both,
                mac: [2; 6],
                mtu: 1500,
                addresses: vec![
                    "198.51.100.2/24".parse().unwrap(),
                    "192.0.2.0/31".parse().unwrap(),
                    "192.0.2.9/32".parse().unwrap(),
                ],
            }],
            internal: Vec::new(),
        };
        let all = |last: [u8; 4]| links.is_broadcast(last.into());
        assert!(all([198, 51, 100, 255]) && all([198, 51, 100, 0]));
        assert!(!all([198, 51, 100, 2]) && !all([198, 51, 101, 255]));
        assert!(!all([192, 0, 2, 0]) && !all([192, 0, 2, 1]) && !all([192, 0, 2, 9]));
    }

    #[test]
    fn an_internal_address_is_not_shown_outside() {
        let links = Links {
            links: vec![Link {
                name: "eth0".into(),
                role: Role::Both,
                mac: [2; 6],
                mtu: 1500,
                addresses: vec!["10.7.0.1/24".parse().unwrap()],
                present: true,
            }],
            internal: vec!["10.0.0.0/8".parse().unwrap()],
        };
        assert_eq!(links.source_towards(0, [203, 0, 113, 1].into()), None);
        assert!(links.source_towards(0, [10, 1, 0, 1].into()).is_some());
    }
}
