//! What the doctor judges: plain data, so that every judgement can be tried on any machine. `None`
//! stands for "could not be seen" everywhere.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::drivers::KernelVersion;
use crate::device::sys::ethtool::{Channels, Feature, Rings};
use crate::plan::{DnatPorts, Listener};
use crate::xdp_features::XdpFeatures;

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The machine and its kernel.
    pub host: HostState,
    /// The interfaces to look at.
    pub interfaces: Vec<InterfaceState>,
    /// What the configuration wants, if there is one.
    pub policy: Option<Policy>,
    /// What could not be looked at.
    pub unseen: Vec<Unseen>,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// What.
    pub what: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// What of a configuration matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The internal prefixes.
    pub internal: Vec<Ipv4Net>,
    /// What is left to the kernel.
    pub bypass: Vec<Ipv4Net>,
    /// Where clients may not go.
    pub deny: Vec<Ipv4Net>,
    /// The pool has the external interface's own address.
    pub shares_address: bool,
    /// The ports of the pool are given, so the host's are not left out by themselves.
    pub has_own_ports: bool,
}

/// The machine and its kernel.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// The kernel's version.
    pub kernel: Option<KernelVersion>,
    /// The options that it was built with: `CONFIG_XDP_SOCKETS` to `y`, `m`, a number.
    pub options: Option<BTreeMap<String, String>>,
    /// AF_XDP sockets are known to it.
    pub has_xdp_sockets: Option<bool>,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u8>,
    /// How much memory may be locked.
    pub memlock: Option<Memlock>,
    /// Reserved huge pages of 2 MiB.
    pub huge_pages: Option<HugePages>,
    /// CPUs that Egret may run on.
    pub cpus: Option<u32>,
    /// All CPUs that there may ever be, which some drivers count by.
    pub cpus_possible: Option<u32>,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<bool>,
    /// Sockets and ports.
    pub listeners: Option<Listeners>,
    /// Rules of nft and iptables that translate sources, in words.
    pub source_rules: Option<Vec<String>>,
    /// Ports that their rules send elsewhere.
    pub dnat: Option<Vec<DnatPorts>>,
    /// Whose virtual machine it is.
    pub cloud: Option<Cloud>,
    /// Disks are reached over the network (iSCSI).
    pub has_network_disk: Option<bool>,
}

/// The host's own use of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// Sockets that receive.
    pub sockets: Vec<Listener>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_range: Option<(u16, u16)>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<(u16, u16)>,
}

/// The limit of locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memlock {
    /// Bytes; none: no limit.
    pub limit_bytes: Option<u64>,
    /// The process may exceed it (CAP_IPC_LOCK).
    pub exempt: bool,
}

/// Reserved huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Reserved.
    pub total: u64,
    /// Of these not in use.
    pub free: u64,
}

/// A cloud, as its machines name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Google,
    /// Oracle Cloud.
    Oracle,
    /// Microsoft Azure.
    Azure,
    /// DigitalOcean.
    DigitalOcean,
}

/// A BPF program that is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its number.
    pub id: u32,
    /// Where it is attached: `native`, `generic`, `ingress`, ...
    pub place: String,
    /// The instance of Egret whose it is.
    pub instance: Option<String>,
}

/// What a virtio device and its driver agreed upon (linux/virtio_net.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioFeatures(pub u128);

impl VirtioFeatures {
    /// The text of `/sys/class/net/IF/device/features`: a digit a bit, the lowest first.
    pub fn parse(text: &str) -> Option<VirtioFeatures> {
        let text = text.trim();
        if text.is_empty() || text.len() > 128 || text.bytes().any(|c| c != b'0' && c != b'1') {
            return None;
        }
        let bits = text.bytes().rev();
        Some(VirtioFeatures(bits.fold(0, |word, digit| {
            word << 1 | u128::from(digit == b'1')
        })))
    }

    fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// The host hands over merged packets or partial checksums (TSO4, TSO6, ECN, UFO, CSUM).
    pub fn offloads_to_guest(self) -> bool {
        [1, 7, 8, 9, 10].into_iter().any(|bit| self.has(bit))
    }

    /// The driver can turn these off while it runs.
    pub fn can_turn_off(self) -> bool {
        self.has(2)
    }

    /// Single queues can be reset, which zero-copy needs.
    pub fn resets_queues(self) -> bool {
        self.has(40)
    }
}

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// Its driver; empty: could not be seen.
    pub driver: String,
    /// It has an Ethernet address.
    pub is_ethernet: bool,
    /// It is up, with carrier.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Queue counts.
    pub channels: Option<Channels>,
    /// Ring sizes.
    pub rings: Option<Rings>,
    /// The queue of each hash value; `None`, too, where the driver has no such table.
    pub spread: Option<Vec<u32>>,
    /// Offloads.
    pub features: Option<Vec<Feature>>,
    /// What the kernel says of the driver's XDP (6.3+).
    pub xdp: Option<XdpFeatures>,
    /// What a virtio device agreed upon.
    pub virtio: Option<VirtioFeatures>,
    /// The XDP program; `Some(None)`: there is none.
    pub program: Option<Option<Program>>,
    /// tc programs.
    pub tc: Option<Vec<Program>>,
    /// The effective `rp_filter`, and that of the interface alone.
    pub rp_filter: Option<(u8, u8)>,
}

impl InterfaceState {
    /// A feature by its name.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.as_ref()?.iter().find(|one| one.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_bits_are_counted_from_the_left() {
        let features = VirtioFeatures::parse("0110000000\n").expect("bits");
        assert_eq!(features.0, 0b110);
        assert!(features.offloads_to_guest() && features.can_turn_off());
        assert!(!features.resets_queues());
        let mut long = "0".repeat(128);
        long.replace_range(40..41, "1");
        assert!(VirtioFeatures::parse(&long).expect("bits").resets_queues());
        for bad in ["", "012", "x", &"0".repeat(129)] {
            assert_eq!(VirtioFeatures::parse(bad), None, "{bad}");
        }
    }
}
