//! The lab's addresses, from the ranges for documentation (RFC 5737) and private use (RFC 1918).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// How many interfaces the gateway has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topology {
    /// One interface is both internal and external: the cloud VM with a single NIC.
    OneArm,
    /// An internal and an external interface.
    TwoArm,
}

impl Topology {
    /// Both, in the order in which the demo shows them.
    pub const ALL: [Topology; 2] = [Topology::TwoArm, Topology::OneArm];

    /// As it appears in options and in the names of checks.
    pub fn name(self) -> &'static str {
        match self {
            Topology::OneArm => "one-arm",
            Topology::TwoArm => "two-arm",
        }
    }

    /// The gateway's interface towards the clients.
    pub fn internal_link(self) -> &'static str {
        match self {
            Topology::OneArm => "eth0",
            Topology::TwoArm => "lan0",
        }
    }

    /// The gateway's interface towards the router.
    pub fn external_link(self) -> &'static str {
        match self {
            Topology::OneArm => "eth0",
            Topology::TwoArm => "wan0",
        }
    }
}

/// The prefix behind the gateway.
pub const INTERNAL: Ipv4Net = net([10, 77, 0, 0], 24);
/// The gateway's address in it: the clients' default route.
pub const GATEWAY_INTERNAL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The link between gateway and router.
pub const TRANSIT: Ipv4Net = net([192, 0, 2, 0], 25);
/// The gateway's external address, shared with its kernel.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The gateway's own address where [`EXTERNAL`] is its NAT's alone.
pub const GATEWAY_EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// The router: the gateway's default route.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The router's interface towards the gateway.
pub const ROUTER_LINK: &str = "up0";
/// Both ends of the link of smaller MTU: the router's and the far router's.
pub const FAR_LINK: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 129), Ipv4Addr::new(192, 0, 2, 130)];
/// The servers' networks.
pub const SERVER_NETS: [Ipv4Net; 2] = [net([198, 51, 100, 0], 24), net([203, 0, 113, 0], 24)];
/// The servers' default routes.
pub const SERVER_ROUTERS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(203, 0, 113, 1),
];
/// The servers.
pub const SERVERS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 10),
    Ipv4Addr::new(203, 0, 113, 20),
];
/// Another address of each server, for probes that want a path the clients know nothing of yet.
pub const SECOND_ADDRESSES: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 11),
    Ipv4Addr::new(203, 0, 113, 21),
];
/// An address in the first server's network that nobody has.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// The network of a pod behind the gateway that its kernel masquerades.
pub const POD: Ipv4Net = net([10, 42, 0, 0], 24);
/// The default route's destination.
pub const ANYWHERE: Ipv4Net = net([0, 0, 0, 0], 0);

/// The address of client `number`, counted from 1.
pub fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

const fn net(octets: [u8; 4], length: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

/// An interface's address: the address and the length of its network, at most 32.
pub(crate) fn with_length(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address, length)
}
