//! The host that a world pretends to run on: interfaces, addresses, routes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::{Config, Role};
use crate::plan::{Capabilities, HostFacts, NicFacts, VlanOffload};
use crate::route::{InterfaceState, PathFacts, RouteFacts, RouteInput, RouteKind};

/// The address of the external interface, unless the setup says otherwise.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The router outside: the gateway of the default route.
pub const UPSTREAM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The kernel's index of an interface number.
fn ifindex(number: usize) -> u32 {
    10 + number as u32
}

/// An interface of the made-up host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// Its addresses with the length of their prefix.
    pub addresses: Vec<Ipv4Net>,
    /// Its MTU, bytes.
    pub mtu: u16,
}

impl Arm {
    /// What an interface of this role has by default: [`EXTERNAL`]/24 towards outside, and the
    /// first address of each internal prefix towards inside; MTU 1500.
    pub fn of(role: Role, internal: &[Ipv4Net]) -> Arm {
        let mut addresses = Vec::new();
        if role.is_external() {
            addresses.extend(Ipv4Net::new(EXTERNAL, 24));
        }
        if role.is_internal() {
            let first = |net: &Ipv4Net| {
                let addr = net.hosts().next().unwrap_or(net.addr());
                Ipv4Net::new(addr, net.prefix_len()).ok()
            };
            addresses.extend(internal.iter().filter_map(first));
        }
        Arm {
            addresses,
            mtu: 1500,
        }
    }
}

/// The MAC of an interface of the world.
pub fn mac_of_interface(number: usize) -> [u8; 6] {
    [0x02, 0xe9, 0, 0, 0, number as u8]
}

/// The MAC that a neighbour with this address answers with.
pub fn mac_of(addr: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = addr.octets();
    [0x02, 0x01, a, b, c, d]
}

/// A host on which a configuration can run: capable, with 4 GB of memory, nothing listening, the
/// kernel's usual port range, and an interface for each that the configuration names.
pub fn host_for(config: &Config, arms: &[Arm]) -> HostFacts {
    let nics = config.interfaces.iter().zip(arms).enumerate();
    let nics = nics.map(|(number, (interface, arm))| NicFacts {
        name: interface.name.value.clone(),
        ifindex: ifindex(number),
        mac: Some(mac_of_interface(number)),
        mtu: arm.mtu.into(),
        up: true,
        addresses: arm.addresses.clone(),
        driver: "veth".into(),
        rx_queues: 256,
        xdp_native: Some(true),
        xdp_zero_copy: Some(false),
        vlan_offload: Some(VlanOffload::Off),
        rp_filter: Some(0),
        ..NicFacts::default()
    });
    HostFacts {
        interfaces: nics.collect(),
        local_port_range: Some((32_768, 60_999)),
        listeners: Some(Vec::new()),
        dnat: Some(Vec::new()),
        ip_forward: Some(false),
        capabilities: Some(Capabilities {
            net_admin: true,
            net_raw: true,
            sys_admin: true,
        }),
        ram_bytes: Some(4 << 30),
        cpus: (0..256).collect(),
        ..HostFacts::default()
    }
}

/// The routing table of that host: its own addresses, the networks on its links, the internal
/// prefixes on the first internal link, the default route to [`UPSTREAM`], and `more`.
pub fn routes_for(config: &Config, arms: &[Arm], more: &[RouteFacts]) -> RouteInput {
    let mut routes = more.to_vec();
    let interfaces = config.interfaces.iter().zip(arms).enumerate();
    let interfaces = interfaces.map(|(number, (interface, arm))| InterfaceState {
        name: interface.name.value.clone(),
        ifindex: ifindex(number),
        mac: mac_of_interface(number),
        mtu: arm.mtu,
        up: true,
        arp: true,
        addresses: arm.addresses.iter().map(Ipv4Net::addr).collect(),
    });
    for (number, arm) in arms.iter().enumerate() {
        for net in &arm.addresses {
            routes.push(local_route(net.addr()));
            routes.push(unicast_route(net.trunc(), number, None));
        }
    }
    let inside = config
        .interfaces
        .iter()
        .position(|interface| interface.role.is_internal());
    if let Some(inside) = inside {
        let internal = config.internal.iter();
        routes.extend(internal.map(|prefix| unicast_route(prefix.value, inside, None)));
    }
    let outside = config
        .interfaces
        .iter()
        .position(|interface| interface.role.is_external());
    if let Some(outside) = outside {
        routes.push(unicast_route(Ipv4Net::default(), outside, Some(UPSTREAM)));
    }
    RouteInput {
        interfaces: interfaces.collect(),
        other_interfaces: Vec::new(),
        routes,
    }
}

fn local_route(addr: Ipv4Addr) -> RouteFacts {
    let kind = RouteKind::Local;
    RouteFacts {
        prefix: addr.into(),
        kind,
        metric: 0,
        mtu: None,
        paths: Vec::new(),
    }
}

/// A route by an interface of the world, given by its number, for [`super::Setup::routes`].
pub fn unicast_route(prefix: Ipv4Net, interface: usize, gateway: Option<Ipv4Addr>) -> RouteFacts {
    let path = PathFacts {
        ifindex: ifindex(interface),
        gateway,
        weight: 1,
        down: false,
        foreign: false,
    };
    RouteFacts {
        prefix,
        kind: RouteKind::Unicast,
        metric: 10,
        mtu: None,
        paths: vec![path],
    }
}
