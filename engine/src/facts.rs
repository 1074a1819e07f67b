//! Reads what a plan depends on from the machine, as far as the user may.

use std::io;
use std::path::Path;

use conntrack::Protocol;
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;

use crate::config::{Config, PortRange};
use crate::device::sys::ethtool::{self, Offload};
use crate::device::sys::link;
use crate::device::sys::schedule;
use crate::host::{Host, HostPorts};
use crate::plan::{Capabilities, DnatPorts, HostFacts, NicFacts, RealTime, VlanOffload};
use crate::xdp_features;

/// Numbers of the capabilities in `/proc/self/status` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

/// Reads the facts of the current thread's network namespace. What may not be read is `None`, and
/// the plan says what it could not check.
///
/// # Errors
/// The interfaces cannot be listed.
pub fn read(config: &Config) -> io::Result<HostFacts> {
    let host = Host::read()?;
    let served = |name: &str| {
        config
            .interfaces
            .iter()
            .any(|given| given.name.value == name)
    };
    let interfaces = host.interfaces.iter().map(|facts| {
        let rp_filter = host.rp_filter.iter().find(|(name, _)| *name == facts.name);
        interface(
            facts,
            rp_filter.map(|&(_, value)| value),
            served(&facts.name),
        )
    });
    let mut facts = HostFacts {
        interfaces: interfaces.collect(),
        ip_forward: Some(host.ip_forward),
        capabilities: capabilities(),
        ram_bytes: ram_bytes(),
        tables_free_bytes: free_bytes(&config.tables.path.value),
        cpus: cpus(),
        real_time: real_time(config),
        control_gid: config
            .control_group
            .as_ref()
            .and_then(|name| gid(&name.value)),
        ..HostFacts::default()
    };
    put_ports(&mut facts, &host.ports);
    Ok(facts)
}

/// Puts the host's ports, read again, into the facts. Rules can be listed by root only.
pub fn put_ports(facts: &mut HostFacts, ports: &HostPorts) {
    let both = |range: &PortRange| (range.first, range.last);
    let dnat = |&(protocol, range): &(Protocol, PortRange)| DnatPorts {
        protocol,
        first: range.first,
        last: range.last,
    };
    facts.local_port_range = ports.local_port_range.as_ref().map(both);
    facts.reserved_ports = ports.local_reserved_ports.iter().map(both).collect();
    facts.listeners = Some(ports.listeners.clone());
    let root = nix::unistd::geteuid().is_root();
    facts.dnat = root.then(|| ports.redirected_ports.iter().map(dnat).collect());
}

fn interface(
    facts: &crate::interface::InterfaceFacts,
    rp_filter: Option<u8>,
    served: bool,
) -> NicFacts {
    let name = &facts.name;
    let features = served
        .then(|| xdp_features::read(facts.ifindex).ok())
        .flatten();
    NicFacts {
        name: name.clone(),
        ifindex: facts.ifindex,
        mac: facts.mac,
        mtu: facts.mtu,
        up: facts.up,
        loopback: facts.loopback,
        addresses: facts.addresses.clone(),
        driver: ethtool::driver(name).unwrap_or_default(),
        rx_queues: ethtool::channels(name).map_or(0, |channels| {
            u16::try_from(channels.receive).unwrap_or(u16::MAX)
        }),
        xdp_native: features.map(|features| features.native),
        xdp_zero_copy: features.map(|features| features.zero_copy),
        vlan_offload: served.then(|| vlan_offload(name)).flatten(),
        hands_over_big_packets: served && hands_over_big_packets(name, facts.ifindex),
        rp_filter,
    }
}

/// Is it set to merge what it receives? On virtio that is also what the host never cut. A program in
/// XDP changes both settings by itself: then they say nothing.
fn hands_over_big_packets(name: &str, ifindex: u32) -> bool {
    let feature = match ethtool::driver(name).as_deref() {
        Ok("veth") => "rx-gro",
        Ok("virtio_net") => "rx-gro-hw",
        _ => return false,
    };
    let without_xdp = matches!(link::attached_xdp(ifindex), Ok(None));
    without_xdp && ethtool::active(name, feature).unwrap_or(false)
}

fn vlan_offload(name: &str) -> Option<VlanOffload> {
    if !ethtool::offload(name, Offload::RxVlan).ok()? {
        return Some(VlanOffload::Off);
    }
    // What cannot be read may be changeable: the start tries.
    let changeable = ethtool::changeable(name, "rx-vlan-hw-parse").unwrap_or(true);
    Some(if changeable {
        VlanOffload::On
    } else {
        VlanOffload::Fixed
    })
}

/// The effective capabilities, a bit each.
pub(crate) fn capability_bits() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn capabilities() -> Option<Capabilities> {
    let bits = capability_bits()?;
    let has = |capability: u32| bits >> capability & 1 == 1;
    Some(Capabilities {
        net_admin: has(CAP_NET_ADMIN),
        net_raw: has(CAP_NET_RAW),
        sys_admin: has(CAP_SYS_ADMIN),
    })
}

/// The machine's memory, or the control group's limit if that is less.
fn ram_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    Some(limit.map_or(kib * 1024, |limit| limit.min(kib * 1024)))
}

/// Free space where the tables' file is or will be, and what the file takes already.
fn free_bytes(path: &Path) -> Option<u64> {
    let there = path
        .ancestors()
        .skip(1)
        .find(|directory| directory.exists())?;
    let space = nix::sys::statvfs::statvfs(there).ok()?;
    let existing = std::fs::metadata(path).map_or(0, |file| file.len());
    Some(space.blocks_available() * space.fragment_size() + existing)
}

/// CPUs that this process may run on; empty: not known.
pub(crate) fn cpus() -> Vec<u16> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..nix::sched::CpuSet::count() as u16)
        .filter(|&cpu| set.is_set(usize::from(cpu)).unwrap_or(false))
        .collect()
}

/// The number of a group, given by name or number. Read from the file: what a static program may not
/// have is the C library's way to other sources, and a number does for those.
fn gid(name: &str) -> Option<u32> {
    let file = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let mut groups = file.lines().map(|line| line.split(':'));
    let named = groups.find_map(|mut fields| {
        let found = fields.next() == Some(name);
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    named.or_else(|| name.parse().ok())
}

/// Tries the workers' priority, if they shall have one, on a thread that does nothing else.
fn real_time(config: &Config) -> RealTime {
    let wanted = config.workers.priority.map(|at| at.value);
    let tried = wanted.map(|priority| {
        std::thread::scope(|scope| {
            let tried = scope.spawn(|| schedule::set_fifo(priority)).join();
            tried.unwrap_or_else(|_| Err(io::Error::other("the attempt failed")))
        })
    });
    let limit = std::fs::read_to_string("/proc/sys/kernel/sched_rt_runtime_us").ok();
    RealTime {
        refusal: tried.and_then(Result::err).map(|error| error.to_string()),
        runtime_us: limit.and_then(|text| text.trim().parse().ok()),
    }
}

/// Identifies this boot of the machine: tables of another boot are not reused, since time began
/// anew and every neighbour has forgotten us. Zeroes where it cannot be read.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map_or([0; 16], u128::to_be_bytes)
}
