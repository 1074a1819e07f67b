//! A host on which the minimal configuration has nothing to say, and ways to make it differ.
#![allow(dead_code)] // Each test file uses a part.

use conntrack::Protocol;
use engine::plan::{Capabilities, HostFacts, Listener, NicFacts, VlanOffload};

pub const MINIMAL: &str = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";
pub const TWO_ARM: &str = "internal = \"10.77.0.0/24\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"eth0\"\nrole = \"external\"\n";

pub fn nic(name: &str, address: Option<&str>) -> NicFacts {
    NicFacts {
        name: name.into(),
        ifindex: 2,
        mac: Some([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        up: true,
        addresses: address.iter().map(|text| text.parse().unwrap()).collect(),
        driver: "virtio_net".into(),
        rx_queues: 2,
        xdp_native: Some(true),
        xdp_zero_copy: Some(false),
        vlan_offload: Some(VlanOffload::Off),
        rp_filter: Some(0),
        ..NicFacts::default()
    }
}

/// A host on which the minimal configuration has nothing to say.
pub fn host() -> HostFacts {
    let lo = NicFacts {
        name: "lo".into(),
        loopback: true,
        up: true,
        ..NicFacts::default()
    };
    HostFacts {
        interfaces: vec![
            lo,
            nic("eth0", Some("203.0.113.5/24")),
            nic("lan0", Some("10.77.0.1/24")),
        ],
        local_port_range: Some((32768, 60999)),
        listeners: Some(Vec::new()),
        dnat: Some(Vec::new()),
        ip_forward: Some(false),
        capabilities: Some(Capabilities {
            net_admin: true,
            net_raw: true,
            sys_admin: true,
        }),
        ram_bytes: Some(4 << 30),
        cpus: vec![0, 1],
        ..HostFacts::default()
    }
}

/// A host that differs from [`host`].
pub fn host_with(change: impl FnOnce(&mut HostFacts)) -> HostFacts {
    let mut host = host();
    change(&mut host);
    host
}

/// A host whose eth0 differs.
pub fn eth0_with(change: impl FnOnce(&mut NicFacts)) -> HostFacts {
    host_with(|host| change(&mut host.interfaces[1]))
}

pub fn listener(protocol: Protocol, addr: [u8; 4], port: u16) -> Listener {
    Listener {
        protocol,
        addr: addr.into(),
        port,
    }
}
