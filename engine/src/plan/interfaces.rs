//! Is each interface there, and can it carry what the configuration asks of it?

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::budget::mode_name;
use super::facts::{HostFacts, NicFacts, VlanOffload};
use crate::config::{Config, DeviceMode, InterfaceConfig, Problem, Role};

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

fn xdp(config: &Config, interface: &InterfaceConfig, facts: &NicFacts, found: &mut Vec<Problem>) {
    let (who, mode) = (with_driver(facts), config.mode);
    let span = mode.span.or(interface.name.span);
    let named = mode_name(mode.value);
    match (mode.value, facts.xdp_native, facts.xdp_zero_copy) {
        (DeviceMode::Copy | DeviceMode::ZeroCopy, Some(false), _) => {
            let what = format!("{who} has no XDP, and mode = \"{named}\" needs it");
            let why = "only the driver itself can run the program before the kernel's receive path";
            let fix = "write mode = \"auto\" or \"generic\" in [device]";
            found.push(Problem::error("no-xdp", what).why(why).fix(fix).at(span));
        }
        (DeviceMode::ZeroCopy, _, Some(false)) => {
            let what = format!("{who} has no zero-copy AF_XDP, and mode = \"zero-copy\" needs it");
            let why = "the driver must write frames into Egret's memory itself";
            let fix = "write mode = \"auto\" or \"copy\" in [device]";
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
    let native = config.mode.value != DeviceMode::Generic && facts.xdp_native != Some(false);
    let max = facts.xdp_mtu_max.filter(|_| native).unwrap_or(XDP_MTU_MAX);
    if facts.mtu <= max {
        return;
    }
    let what = format!(
        "the MTU of {} is {}, too large for XDP",
        with_driver(facts),
        facts.mtu
    );
    let why = format!("a frame must fit one buffer: {max} at most");
    let fix = format!(
        "ip link set {} mtu {}",
        facts.name,
        if max >= 1500 { 1500 } else { max }
    );
    found.push(
        Problem::error("mtu-too-large", what)
            .why(why)
            .fix(fix)
            .at(interface.name.span),
    );
}

/// The address of the external interface that the pool has, if it has one: the first that traffic
/// may leave with and that is in no internal prefix.
pub fn shared_address(config: &Config, external: &NicFacts) -> Option<Ipv4Addr> {
    let mut outside = external
        .leaving_addresses()
        .filter(|addr| !config.is_internal(*addr));
    outside.next().filter(|_| config.pool.has_interface())
}

/// The external address against the internal prefixes (RFC 4787 REQ-7), and against the pool.
pub(super) fn external_address(
    config: &Config,
    host: &HostFacts,
    external: &NicFacts,
    found: &mut Vec<Problem>,
) {
    let shared = shared_address(config, external);
    let internal = external
        .leaving_addresses()
        .next()
        .filter(|_| config.pool.has_interface());
    let span = config.external_interface().name.span;
    if config.pool.has_interface() && shared.is_none() && internal.is_none() {
        let what = format!("\"{}\" has no IPv4 address yet", external.name);
        let why = "its address is in the pool: until it has one, packets from clients are dropped";
        let fix = format!(
            "nothing, if DHCP is about to give one; else: ip address add ADDRESS/24 dev {}",
            external.name
        );
        found.push(
            Problem::warning("no-address", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    }
    if let (None, Some(address)) = (shared, internal) {
        for prefix in config
            .internal
            .iter()
            .filter(|prefix| prefix.contains(&address))
        {
            found.push(clash(config, host, external, address, prefix.value).at(prefix.span));
        }
    }
    if config.external_interface().role == Role::External {
        for address in &external.addresses {
            let subnet = address.trunc();
            let overlaps = |prefix: &Ipv4Net| {
                (subnet.contains(&prefix.network()) || prefix.contains(&subnet.network()))
                    && !prefix.contains(&address.addr())
            };
            let Some(prefix) = config.internal.iter().find(|prefix| overlaps(prefix)) else {
                continue;
            };
            let what = format!(
                "the network {subnet} of \"{}\" overlaps the internal prefix {}",
                external.name, prefix.value
            );
            let why = "outside hosts in the overlap cannot be told from clients (RFC 4787 REQ-7)";
            let fix = "renumber the inside, or narrow `internal` to the clients' addresses";
            let problem = Problem::warning("prefix-clash", what).why(why).fix(fix);
            found.push(problem.at(prefix.span));
        }
    }
    own_addresses(config, host, external, found);
    forwards_on_shared(config, shared, found);
}

fn clash(
    config: &Config,
    host: &HostFacts,
    external: &NicFacts,
    address: Ipv4Addr,
    prefix: Ipv4Net,
) -> Problem {
    let what = format!(
        "the address {address} of \"{}\" lies in the internal prefix {prefix}",
        external.name
    );
    let why = "packets that leave with it would count as untranslated, and outside hosts of that \
               network as clients (RFC 4787 REQ-7)";
    let swapped = config
        .interfaces
        .iter()
        .filter(|interface| interface.role == Role::Internal);
    let swapped = swapped.filter_map(|interface| {
        let facts = host
            .interfaces
            .iter()
            .find(|facts| facts.name == interface.name.value)?;
        let addr = facts.leaving_addresses().next()?;
        (!config.is_internal(addr)).then_some(facts.name.as_str())
    });
    let fix = match swapped.last() {
        Some(other) => format!(
            "swap the roles, if the clients are behind \"{}\" and not behind \"{other}\"",
            external.name
        ),
        None => {
            let rest: Vec<String> = without(prefix, address)
                .iter()
                .map(|net| format!("\"{net}\""))
                .collect();
            format!(
                "name only the prefixes that clients have; {prefix} without the address is {}",
                rest.join(", ")
            )
        }
    };
    Problem::error("prefix-clash", what).why(why).fix(fix)
}

/// A prefix without one of its addresses, as prefixes in order.
fn without(prefix: Ipv4Net, addr: Ipv4Addr) -> Vec<Ipv4Net> {
    let mut rest = Vec::new();
    let mut left = prefix;
    while left.prefix_len() < 32 {
        let Ok(halves) = left.subnets(left.prefix_len() + 1) else {
            break;
        };
        for half in halves {
            match half.contains(&addr) {
                true => left = half,
                false => rest.push(half),
            }
        }
    }
    rest.sort();
    rest
}

/// Own addresses must not be the host's, nor the network's.
fn own_addresses(config: &Config, host: &HostFacts, external: &NicFacts, found: &mut Vec<Problem>) {
    for entry in &config.pool.addresses {
        let holder = |addr: Ipv4Addr| {
            let has = |facts: &&NicFacts| facts.addresses.iter().any(|a| a.addr() == addr);
            host.interfaces.iter().find(has)
        };
        let held = entry
            .value
            .own()
            .find_map(|addr| Some((addr, holder(addr)?)));
        if let Some((addr, facts)) = held {
            let what = format!(
                "the pool's {addr} is this host's own address, on \"{}\"",
                facts.name
            );
            let why = "all that is sent to an address of the pool goes to Egret: SSH to it would \
                       no longer reach the host";
            let is_shared = facts.name == external.name
                && external
                    .leaving_addresses()
                    .next()
                    .is_some_and(|first| first == addr);
            let fix = match is_shared {
                true => "write \"interface\" instead: the host and Egret then share it by ports"
                    .to_owned(),
                false => format!(
                    "ip address del {addr} dev {}, or take it out of the pool",
                    facts.name
                ),
            };
            let problem = Problem::error("pool-host-address", what).why(why).fix(fix);
            found.push(problem.at(entry.span));
        }
        for address in &external.addresses {
            let subnet = address.trunc();
            let ends = [subnet.network(), subnet.broadcast()];
            let bad = entry
                .value
                .own()
                .find(|addr| subnet.prefix_len() < 31 && ends.contains(addr));
            let Some(addr) = bad else { continue };
            let what = format!("the pool's {addr} is the network or broadcast address of {subnet}");
            let why = format!(
                "\"{}\" is in that network: nobody would send to it",
                external.name
            );
            let fix = "leave it out of the pool".to_owned();
            let problem = Problem::error("pool-broadcast", what).why(why).fix(fix);
            found.push(problem.at(entry.span));
        }
    }
}

/// Forwards that name an address while the pool has the interface's: it must be that one.
fn forwards_on_shared(config: &Config, shared: Option<Ipv4Addr>, found: &mut Vec<Problem>) {
    if !config.pool.has_interface() {
        return;
    }
    for forward in &config.forwards {
        let Some(addr) = forward.external.addr else {
            continue;
        };
        if config.pool.own().any(|own| own == addr) {
            continue;
        }
        let port = forward.external.port;
        let only = config.pool.addresses.len() == 1;
        if shared == Some(addr) {
            let what = format!("the forward names {addr}, which is the interface's at the moment");
            let why = "it ends when that address changes";
            let fix = match only {
                true => format!("write external = \"{port}\": it then follows the address"),
                false => String::new(),
            };
            let problem = Problem::note("forward-fixed", what).why(why).fix(fix);
            found.push(problem.at(forward.external.span));
            continue;
        }
        let what = format!("the forward's external address {addr} is not in the pool");
        let why = match shared {
            Some(shared) => format!("the interface's address is {shared}"),
            None => "the interface has no address at the moment".to_owned(),
        };
        let fix = match only {
            true => format!("write external = \"{port}\", or add \"{addr}\" to `pool.addresses`"),
            false => format!("add \"{addr}\" to `pool.addresses`, or name one of its addresses"),
        };
        let problem = Problem::error("forward-outside-pool", what)
            .why(why)
            .fix(fix);
        found.push(problem.at(forward.external.span));
    }
}
