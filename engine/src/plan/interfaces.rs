//! Is each interface there, and can it carry what the configuration asks of it?

use super::budget::mode_name;
use super::facts::{HostFacts, NicFacts, VlanOffload};
use crate::config::{Config, DeviceMode, InterfaceConfig, Problem};

/// The largest MTU whose frames fit one buffer of every driver that runs XDP: a 4 KiB page less
/// headroom, the kernel's bookkeeping and the Ethernet header.
pub const XDP_MTU_MAX: u32 = 3498;

/// The facts of each interface of the configuration, as far as it exists.
pub(super) fn find<'a>(
    config: &Config,
    host: &'a HostFacts,
    found: &mut Vec<Problem>,
) -> Vec<Option<&'a NicFacts>> {
    let mut result = Vec::new();
    for interface in &config.interfaces {
        let facts = host
            .interfaces
            .iter()
            .find(|facts| facts.name == interface.name.value);
        match facts {
            Some(facts) => single(config, interface, facts, found),
            None => found.push(missing(interface, host)),
        }
        result.push(facts);
    }
    result
}

fn missing(interface: &InterfaceConfig, host: &HostFacts) -> Problem {
    let name = &interface.name.value;
    let others = host.interfaces.iter().filter(|facts| !facts.loopback);
    let names: Vec<&str> = others.map(|facts| facts.name.as_str()).collect();
    let why = match names[..] {
        [] => "there is none but the loopback device".to_owned(),
        _ => format!("there are {}", names.join(", ")),
    };
    let near = crate::config::keys::nearest(name, names.iter().copied());
    let fix = match (near, &names[..]) {
        (Some(near), _) => format!("write \"{near}\""),
        (None, [only]) => format!("write \"{only}\""),
        (None, []) => "give the machine a network interface".to_owned(),
        _ => "write one of these; `ip -brief address` shows which is which".to_owned(),
    };
    let problem = Problem::error(
        "no-such-interface",
        format!("there is no interface \"{name}\""),
    );
    problem.why(why).fix(fix).at(interface.name.span)
}

/// What concerns one interface alone.
fn single(
    config: &Config,
    interface: &InterfaceConfig,
    facts: &NicFacts,
    found: &mut Vec<Problem>,
) {
    let (name, span) = (&facts.name, interface.name.span);
    if facts.loopback || facts.mac.is_none() {
        let what = match facts.loopback {
            true => format!("\"{name}\" is the loopback device"),
            false => format!("\"{name}\" has no Ethernet address"),
        };
        let why = "Egret reads and writes Ethernet frames";
        let fix = "name an Ethernet interface; `ip -brief link` lists them with their addresses";
        found.push(
            Problem::error("not-ethernet", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
        return;
    }
    if !facts.up {
        let problem = Problem::warning(
            "interface-down",
            format!("\"{name}\" is down or has no carrier"),
        );
        let problem = problem.why("nothing comes in or goes out");
        found.push(problem.fix(format!("ip link set {name} up")).at(span));
    }
    xdp(config, interface, facts, found);
    mtu(config, interface, facts, found);
    match facts.vlan_offload {
        // A tag that the NIC took out is seen in tc.
        _ if config.mode_of(interface).value.is_of_tun_driver() => {}
        Some(VlanOffload::Fixed) => {
            let what =
                format!("\"{name}\" takes VLAN tags out of frames and cannot be told not to");
            let why = "frames of another VLAN would look untagged and be translated";
            let fix = "use another NIC, or pass the VLANs to the machine as NICs of their own";
            found.push(
                Problem::error("vlan-offload", what)
                    .why(why)
                    .fix(fix)
                    .at(span),
            );
        }
        Some(VlanOffload::On) => {
            let what = format!("VLAN receive offload of \"{name}\" is on");
            let why = "Egret turns it off while it runs, so that it sees tags, and on again after";
            let fix = format!("to do it for good: ethtool -K {name} rxvlan off");
            found.push(
                Problem::note("vlan-offload", what)
                    .why(why)
                    .fix(fix)
                    .at(span),
            );
        }
        Some(VlanOffload::Off) => {}
        None => {
            let what = format!("VLAN receive offload of \"{name}\" could not be read");
            let problem = Problem::note("unchecked-vlan", what);
            let fix = format!("ethtool -k {name} | grep rx-vlan-offload");
            found.push(problem.why("with it on, tags are hidden").fix(fix).at(span));
        }
    }
}

/// A driver in words: `"eth0" (driver vmxnet3)`.
fn with_driver(facts: &NicFacts) -> String {
    match facts.driver.as_str() {
        "" => format!("\"{}\"", facts.name),
        driver => format!("\"{}\" (driver {driver})", facts.name),
    }
}

/// Where the interface's mode stands, or would.
fn mode_table(interface: &InterfaceConfig) -> &'static str {
    match interface.mode {
        Some(_) => "its [[interfaces]]",
        None => "[device]",
    }
}

fn xdp(config: &Config, interface: &InterfaceConfig, facts: &NicFacts, found: &mut Vec<Problem>) {
    let (who, mode) = (with_driver(facts), config.mode_of(interface));
    let table = mode_table(interface);
    let span = mode.span.or(interface.name.span);
    let named = mode_name(mode.value);
    match (mode.value, facts.xdp_native, facts.xdp_zero_copy) {
        (DeviceMode::Copy | DeviceMode::ZeroCopy, Some(false), _) => {
            let what = format!("{who} has no XDP, and mode = \"{named}\" needs it");
            let why = "only the driver itself can run the program before the kernel's receive path";
            let fix = format!("write mode = \"auto\" or \"generic\" in {table}");
            found.push(Problem::error("no-xdp", what).why(why).fix(fix).at(span));
        }
        (DeviceMode::ZeroCopy, _, Some(false)) => {
            let what = format!("{who} has no zero-copy AF_XDP, and mode = \"zero-copy\" needs it");
            let why = "the driver must write frames into Egret's memory itself";
            let fix = format!("write mode = \"auto\" or \"copy\" in {table}");
            found.push(
                Problem::error("no-zero-copy", what)
                    .why(why)
                    .fix(fix)
                    .at(span),
            );
        }
        (DeviceMode::Auto, Some(false), _) => {
            let what = format!("{who} has no XDP: it will be served in generic mode");
            let why = "the kernel makes a socket buffer of every frame first, which is slower, and \
                       merged packets (GRO, TSO) would be dropped";
            let name = &facts.name;
            let fix = format!(
                "ethtool -K {name} gro off lro off; a NIC with an XDP driver is faster (virtio, \
                 ena, gve, mlx5, ixgbe, i40e, ice)"
            );
            found.push(Problem::warning("no-xdp", what).why(why).fix(fix).at(span));
        }
        (DeviceMode::Auto | DeviceMode::Copy | DeviceMode::ZeroCopy, None, _) => {
            let what = format!("whether {who} has XDP could not be read");
            let why = "the start tells: `egret run` prints the mode that it reached and why";
            found.push(
                Problem::note("unchecked-xdp", what)
                    .why(why)
                    .at(interface.name.span),
            );
        }
        _ => {}
    }
}

fn mtu(config: &Config, interface: &InterfaceConfig, facts: &NicFacts, found: &mut Vec<Problem>) {
    let mode = config.mode_of(interface).value;
    if facts.mtu <= XDP_MTU_MAX || mode.is_of_tun_driver() {
        return;
    }
    let what = format!(
        "the MTU of {} is {}, too large for XDP",
        with_driver(facts),
        facts.mtu
    );
    let why = format!("a frame must fit one buffer: {XDP_MTU_MAX} at most");
    let fix = format!("ip link set {} mtu 1500", facts.name);
    if mode == DeviceMode::Auto {
        let what = format!("{what}: it will be served in tun mode");
        let problem = Problem::warning("mtu-too-large", what).why(why);
        found.push(problem.fix(fix).at(interface.name.span));
        return;
    }
    let table = mode_table(interface);
    let fix = format!("{fix}, or write mode = \"tun\" in {table}");
    found.push(
        Problem::error("mtu-too-large", what)
            .why(why)
            .fix(fix)
            .at(interface.name.span),
    );
}
