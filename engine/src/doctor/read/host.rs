//! The machine and its kernel.

use std::collections::BTreeMap;
use std::fs;

use conntrack::Protocol;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::config::PortRange;
use crate::doctor::drivers::KernelVersion;
use crate::doctor::facts::{Cloud, HostState, HugePages, Listeners, Memlock};
use crate::facts;
use crate::host::{self, Host};
use crate::plan::DnatPorts;

/// `CAP_IPC_LOCK` of linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;

pub(super) fn read(host: &Host) -> HostState {
    let root = nix::unistd::geteuid().is_root();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let both = |range: &PortRange| (range.first, range.last);
    let dnat = |&(protocol, range): &(Protocol, PortRange)| DnatPorts {
        protocol,
        first: range.first,
        last: range.last,
    };
    let cpus = facts::cpus();
    HostState {
        kernel: KernelVersion::parse(&release),
        options: options(release.trim()),
        has_xdp_sockets: has_xdp_sockets(),
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        // That of another user says nothing about the gateway, which root runs.
        memlock: root.then(memlock).flatten(),
        huge_pages: huge_pages(),
        cpus: (!cpus.is_empty()).then_some(cpus.len() as u32),
        cpus_possible: cpus_possible(&text("/sys/devices/system/cpu/possible").unwrap_or_default()),
        ip_forward: Some(host.ip_forward),
        listeners: Some(Listeners {
            sockets: host.ports.listeners.clone(),
            local_range: host.ports.local_port_range.as_ref().map(both),
            reserved: host.ports.local_reserved_ports.iter().map(both).collect(),
        }),
        source_rules: root.then(host::read_source_rules).flatten(),
        dnat: root.then(|| host.ports.redirected_ports.iter().map(dnat).collect()),
        cloud: cloud(),
        has_network_disk: fs::read_dir("/sys/class/iscsi_session")
            .ok()
            .map(|mut sessions| sessions.next().is_some()),
    }
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
    text(path)?.trim().parse().ok()
}

/// The options that the running kernel was built with.
fn options(release: &str) -> Option<BTreeMap<String, String>> {
    let unpacked = || host::output("zcat", &["/proc/config.gz"]).filter(|text| !text.is_empty());
    let text = text(&format!("/boot/config-{release}")).or_else(unpacked)?;
    Some(parse_options(&text))
}

fn parse_options(text: &str) -> BTreeMap<String, String> {
    let option = |line: &str| {
        let (name, value) = line.split_once('=')?;
        name.starts_with("CONFIG_")
            .then(|| (name.to_owned(), value.trim_matches('"').to_owned()))
    };
    text.lines().filter_map(option).collect()
}

/// The kernel lists the kinds of sockets that it knows.
fn has_xdp_sockets() -> Option<bool> {
    let protocols = text("/proc/thread-self/net/protocols")?;
    Some(protocols.lines().any(|line| line.starts_with("XDP ")))
}

fn memlock() -> Option<Memlock> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    Some(Memlock {
        limit_bytes: Some(limit).filter(|&limit| limit != RLIM_INFINITY),
        exempt: facts::capability_bits()? >> CAP_IPC_LOCK & 1 == 1,
    })
}

fn huge_pages() -> Option<HugePages> {
    let directory = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    Some(HugePages {
        total: number(&format!("{directory}/nr_hugepages"))?,
        free: number(&format!("{directory}/free_hugepages"))?,
    })
}

/// The highest CPU of a list such as `0-3,8`, and one more.
fn cpus_possible(list: &str) -> Option<u32> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse::<u32>().ok()?.checked_add(1)
}

/// The cloud, by what its firmware says.
fn cloud() -> Option<Cloud> {
    let dmi = |name: &str| text(&format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
    cloud_of(&dmi("sys_vendor"), &dmi("chassis_asset_tag"))
}

fn cloud_of(vendor: &str, tag: &str) -> Option<Cloud> {
    /// The tag of Azure's machines; other Hyper-V machines have another.
    const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";
    match (vendor.trim(), tag.trim()) {
        ("Amazon EC2", _) => Some(Cloud::Aws),
        ("Google", _) => Some(Cloud::Google),
        (_, "OracleCloud.com") => Some(Cloud::Oracle),
        (_, AZURE) => Some(Cloud::Azure),
        ("DigitalOcean", _) => Some(Cloud::DigitalOcean),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_not_set_are_not_there() {
        let text =
            "# Linux\nCONFIG_BPF=y\n# CONFIG_TUN is not set\nCONFIG_HZ=250\nCONFIG_X=\"a\"\n";
        let options = parse_options(text);
        let get = |name: &str| options.get(name).map(String::as_str);
        assert_eq!(get("CONFIG_BPF"), Some("y"));
        assert_eq!(
            (get("CONFIG_HZ"), get("CONFIG_X")),
            (Some("250"), Some("a"))
        );
        assert_eq!(get("CONFIG_TUN"), None);
    }

    #[test]
    fn clouds_by_their_firmware() {
        assert_eq!(cloud_of("Amazon EC2\n", "x"), Some(Cloud::Aws));
        assert_eq!(cloud_of("QEMU", "OracleCloud.com\n"), Some(Cloud::Oracle));
        let azure = "7783-7084-3265-9085-8269-3286-77";
        assert_eq!(cloud_of("Microsoft Corporation", azure), Some(Cloud::Azure));
        assert_eq!(
            cloud_of("Microsoft Corporation", ""),
            None,
            "Hyper-V at home"
        );
        assert_eq!(cloud_of("QEMU", ""), None);
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpus_possible("0-3\n"), Some(4));
        assert_eq!(cpus_possible("0"), Some(1));
        assert_eq!(cpus_possible("0-1,4-7"), Some(8));
        assert_eq!(cpus_possible(""), None);
    }
}
