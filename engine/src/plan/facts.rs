//! What the plan must know of the host: plain data, so that a plan can be made for any machine.

use std::net::Ipv4Addr;

use conntrack::Protocol;
use ipnet::Ipv4Net;

/// Everything about the host that a plan depends on. `None` stands for "could not be read": the
/// plan then says what it could not check.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// Every interface of this network namespace.
    pub interfaces: Vec<NicFacts>,
    /// `net.ipv4.ip_local_port_range`: ports that the kernel gives to the host's own connections.
    pub local_port_range: Option<(u16, u16)>,
    /// `net.ipv4.ip_local_reserved_ports`: ranges, first and last, that it never gives.
    pub reserved_ports: Vec<(u16, u16)>,
    /// Sockets that listen: TCP in state LISTEN, UDP without a peer.
    pub listeners: Option<Vec<Listener>>,
    /// Ports that DNAT and redirect rules of nftables and iptables match. Reading them takes root.
    pub dnat: Option<Vec<DnatPorts>>,
    /// `net.ipv4.ip_forward` is 1.
    pub ip_forward: Option<bool>,
    /// The effective capabilities of this process.
    pub capabilities: Option<Capabilities>,
    /// Memory of the machine, or of the control group if that is less. Bytes.
    pub ram_bytes: Option<u64>,
    /// Free space where `tables.path` lies, plus what an existing file there occupies. Bytes.
    pub tables_free_bytes: Option<u64>,
    /// CPUs that this process may run on. Empty: could not be read.
    pub cpus: Vec<u16>,
    /// What `workers.priority` meets.
    pub real_time: RealTime,
    /// The number of the group that `control.group` names, if there is one of that name.
    pub control_gid: Option<u32>,
}

/// What the kernel says to threads with a real-time priority.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RealTime {
    /// Its answer, if it refused `workers.priority` to a thread of this process that tried.
    pub refusal: Option<String>,
    /// `kernel.sched_rt_runtime_us`: what they may take of each second; -1: everything. Microseconds.
    pub runtime_us: Option<i64>,
}

/// One interface and what its driver can do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NicFacts {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address; none for a device without one (tun, ppp, wireguard).
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It is administratively up and has a carrier.
    pub up: bool,
    /// It is the loopback device.
    pub loopback: bool,
    /// IPv4 addresses, each with the length of its prefix, in the kernel's order: primary first.
    /// The interface's own ones (`IFA_LOCAL`), not a point-to-point peer's.
    pub addresses: Vec<Ipv4Net>,
    /// The driver's name, as in `/sys/class/net/IF/device/driver` or ethtool; empty: unknown.
    pub driver: String,
    /// Receive queues in use; 0: could not be read.
    pub rx_queues: u16,
    /// The driver runs XDP programs itself.
    pub xdp_native: Option<bool>,
    /// The driver can bind AF_XDP sockets without copying.
    pub xdp_zero_copy: Option<bool>,
    /// VLAN receive offload (`rxvlan`).
    pub vlan_offload: Option<VlanOffload>,
    /// A virtual NIC that hands over packets of up to 64 KiB, merged or never cut, as it is set now.
    pub hands_over_big_packets: bool,
    /// The `rp_filter` in force: the larger of the interface's and `all`.
    pub rp_filter: Option<u8>,
}

impl NicFacts {
    /// The addresses that its traffic may leave with, link-local ones last.
    pub fn leaving_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let all = || self.addresses.iter().map(|net| net.addr());
        let local = all().filter(Ipv4Addr::is_link_local);
        all().filter(|addr| !addr.is_link_local()).chain(local)
    }
}

/// Whether the NIC takes VLAN tags out of received frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VlanOffload {
    /// It does not.
    Off,
    /// It does, and can be told not to.
    On,
    /// It does, and cannot be told otherwise.
    Fixed,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its address; 0.0.0.0 for any, which an IPv6 socket on `::` stands for, too.
    pub addr: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

impl Listener {
    /// Does it take packets sent to this address?
    pub fn takes(&self, addr: Ipv4Addr) -> bool {
        self.addr.is_unspecified() || self.addr == addr
    }
}

/// Ports that a DNAT or redirect rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnatPorts {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// Effective capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// CAP_NET_ADMIN: attaching programs, changing interfaces, routes and neighbours.
    pub net_admin: bool,
    /// CAP_NET_RAW: AF_XDP sockets.
    pub net_raw: bool,
    /// CAP_SYS_ADMIN: loading programs (it stands for CAP_BPF), and mounting the BPF file system
    /// that keeps them.
    pub sys_admin: bool,
}
