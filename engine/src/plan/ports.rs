//! Which ports of each pool address are Egret's, and where that clashes with what the host uses.

use std::net::Ipv4Addr;

use conntrack::{
    AddressKind, Endpoint, ExternalAddress, Forward, Forwards, Policy, PortSet, Protocol, Target,
    Targets,
};

use super::facts::{HostFacts, Listener};
use super::slots::Slots;
use super::translation::Translation;
use crate::config::{At, Config, ForwardConfig, ForwardTarget, PoolConfig, PortRange, Problem};

/// Kubernetes' default NodePort range: kube-proxy claims ports there that no socket shows.
pub const NODE_PORTS: PortRange = PortRange {
    first: 30000,
    last: 32767,
};
/// The ports of a pool by default.
pub const DEFAULT_PORTS: PortRange = PortRange {
    first: 1024,
    last: 65535,
};

/// The policy for a configuration and what it says of flows, while the external interface's address is `shared`.
///
/// To be called again whenever that address, the host's ports or the configuration change.
/// Addresses keep their slots as long as they stay in the pool. Without a shared address, what
/// depends on it is left out: with nothing else in the pool, nothing can be mapped.
///
/// # Panics
/// When the pool has more addresses than `slots` has room for; [`super::Plan::addresses_max`] of
/// this configuration is enough.
pub fn policy_for(
    config: &Config,
    translation: &Translation,
    shared: Option<Ipv4Addr>,
    host: &HostFacts,
    slots: &mut Slots,
) -> Policy {
    let shared = shared.filter(|_| config.pool.has_interface());
    let own = config.all_pools().flat_map(|(number, pool)| {
        let own = pool.own().filter(|addr| Some(*addr) != shared);
        own.map(move |addr| (addr, AddressKind::Own, number, pool))
    });
    let shared_one = shared.map(|addr| (addr, AddressKind::Shared, 0, &config.pool));
    let wanted: Vec<_> = own.chain(shared_one).collect();
    let numbers = slots.assign(&wanted.iter().map(|one| one.0).collect::<Vec<_>>());
    let forwards = forwards(config, shared);
    let addresses = wanted.into_iter().zip(numbers);
    let addresses = addresses.map(|((addr, kind, number, pool), slot)| ExternalAddress {
        addr,
        slot,
        kind,
        pool: number,
        ports: Protocol::ALL.map(|protocol| port_set(pool, host, addr, kind, protocol, &forwards)),
    });
    let translation = translation.clone();
    Policy {
        profile: translation.profile,
        others: translation.others,
        rules: translation.rules,
        timers: translation.timers,
        inbound_refresh: config.nat.inbound_refresh,
        limits: config.limits,
        hold_down_max_percent: config.pool.hold_down_max_percent,
        addresses: addresses.collect(),
        denied: config.deny.iter().map(|prefix| prefix.value).collect(),
        forwards,
    }
}

/// The forwards whose external address is in a pool at the moment.
fn forwards(config: &Config, shared: Option<Ipv4Addr>) -> Forwards {
    let only = || {
        if config.pool.has_interface() {
            shared
        } else {
            config.pool.own().next()
        }
    };
    let resolve = |forward: &ForwardConfig| -> Vec<Forward> {
        let addr = forward.external.addr.or_else(only);
        let known = |addr: &Ipv4Addr| {
            Some(*addr) == shared || config.own_addresses().any(|own| own == *addr)
        };
        let Some(addr) = addr.filter(known) else {
            return Vec::new();
        };
        let one = |&protocol| forward_of(forward, addr, protocol);
        forward.protocols.iter().map(one).collect()
    };
    config.forwards.iter().flat_map(resolve).collect()
}

fn forward_of(forward: &ForwardConfig, addr: Ipv4Addr, protocol: Protocol) -> Forward {
    let whole = forward.external.ports.is_none();
    let ports = forward.external.ports.unwrap_or(PortRange {
        // Identifiers begin with 0.
        first: u16::from(protocol != Protocol::Icmp),
        last: u16::MAX,
    });
    let targets = forward.targets.iter().enumerate();
    let target = |(place, target): (usize, &At<ForwardTarget>)| Target {
        endpoint: Endpoint::new(target.addr, target.port.unwrap_or(ports.first)),
        weight: forward
            .weights
            .get(place)
            .map_or(1, |weight| weight.value as u16),
    };
    Forward {
        protocol,
        external: Endpoint::new(addr, ports.first),
        last_port: ports.last,
        targets: Targets {
            list: targets.map(target).collect(),
            affinity: forward.affinity,
        },
        whole,
        allow: forward.allow.iter().map(|prefix| prefix.value).collect(),
    }
}

/// Ports, or ICMP identifiers, for dynamic mappings of one protocol on one address.
fn port_set(
    pool: &PoolConfig,
    host: &HostFacts,
    addr: Ipv4Addr,
    kind: AddressKind,
    protocol: Protocol,
    forwards: &[Forward],
) -> PortSet {
    let mut set = PortSet::empty();
    let whole = |forward: &Forward| forward.whole && forward.external.addr == addr;
    if forwards.iter().any(whole) {
        return set;
    }
    if protocol == Protocol::Icmp {
        // Identifiers belong to nobody: the host's own pings that meet one of ours are told apart
        // by their remote address and punted.
        set.insert_range(0, u16::MAX);
        return set;
    }
    let default = [At::default_value(DEFAULT_PORTS)];
    for range in pool.ports.as_deref().unwrap_or(&default) {
        set.insert_range(range.first, range.last);
    }
    for range in &pool.exclude_ports {
        set.remove_range(range.first, range.last);
    }
    if kind == AddressKind::Shared {
        for (first, last) in host_ports(pool, host, addr, protocol) {
            set.remove_range(first, last);
        }
    }
    for forward in forwards {
        if forward.protocol == protocol && forward.external.addr == addr {
            set.remove_range(forward.external.port, forward.last_port);
        }
    }
    set
}

/// Ports of a shared address that stay the host's.
fn host_ports(
    pool: &PoolConfig,
    host: &HostFacts,
    addr: Ipv4Addr,
    protocol: Protocol,
) -> Vec<(u16, u16)> {
    let mut ports = vec![(0, 0)];
    // Ports that the file names were checked against these when the plan was made.
    if pool.ports.is_none() {
        ports.push((NODE_PORTS.first, NODE_PORTS.last));
        ports.extend(Some(host.local_port_range.unwrap_or(KERNEL_PORT_RANGE)));
    }
    let listeners = host.listeners.iter().flatten();
    let listeners =
        listeners.filter(|listener| listener.protocol == protocol && listener.takes(addr));
    ports.extend(listeners.map(|listener| (listener.port, listener.port)));
    let dnat = host
        .dnat
        .iter()
        .flatten()
        .filter(|dnat| dnat.protocol == protocol);
    ports.extend(dnat.map(|dnat| (dnat.first, dnat.last)));
    ports
}

/// The kernel's own default of `ip_local_port_range`.
const KERNEL_PORT_RANGE: (u16, u16) = (32768, 60999);

/// What of `range` lies in the kernel's range for outgoing connections and is not reserved.
fn ephemeral_clash(host: &HostFacts, range: PortRange) -> Option<PortRange> {
    let (first, last) = host.local_port_range?;
    let (first, last) = (first.max(range.first), last.min(range.last));
    let reserved = |port: u16| {
        host.reserved_ports
            .iter()
            .any(|&(first, last)| (first..=last).contains(&port))
    };
    let mut free = (first..=last).filter(|&port| !reserved(port));
    let low = free.next()?;
    Some(PortRange {
        first: low,
        last: free.next_back().unwrap_or(low),
    })
}

/// Ports that the file gives to the pool, or to forwards, and that the host uses on the shared
/// address. `shared` is that address, if it is known.
pub fn port_clashes(config: &Config, host: &HostFacts, shared: Option<Ipv4Addr>) -> Vec<Problem> {
    let mut found = Vec::new();
    if !config.pool.has_interface() {
        return found;
    }
    let addr = shared.unwrap_or(Ipv4Addr::UNSPECIFIED);
    for range in config.pool.ports.iter().flatten() {
        given_range(config, host, addr, *range, &mut found);
    }
    for forward in &config.forwards {
        let external = forward.external.addr;
        if external.is_none_or(|external| external == addr) {
            forward_port(host, addr, forward, &mut found);
        }
    }
    found
}

fn given_range(
    config: &Config,
    host: &HostFacts,
    addr: Ipv4Addr,
    range: At<PortRange>,
    found: &mut Vec<Problem>,
) {
    let excluded = |port: u16| {
        config
            .pool
            .exclude_ports
            .iter()
            .any(|out| (out.first..=out.last).contains(&port))
    };
    let whole = |range: PortRange| (range.first..=range.last).all(excluded);
    if let Some(clash) = ephemeral_clash(host, range.value).filter(|clash| !whole(*clash)) {
        let (first, last) = host.local_port_range.unwrap_or(KERNEL_PORT_RANGE);
        let what = format!(
            "the pool's ports {} reach into the host's own range {first}-{last}",
            range.value
        );
        let why = "on the interface's address the kernel would give the same ports to the host's \
                   own connections, whose replies would then be taken for a client's";
        let fix = format!(
            "reserve them: sysctl -w net.ipv4.ip_local_reserved_ports={clash} (with what it has \
             already), or choose ports outside {first}-{last}"
        );
        let problem = Problem::error("pool-ephemeral", what).why(why).fix(fix);
        found.push(problem.at(range.span));
    }
    let inside = |port: u16| (range.first..=range.last).contains(&port) && !excluded(port);
    let mut used: Vec<(PortRange, String)> = Vec::new();
    for listener in host.listeners.iter().flatten() {
        if listener.takes(addr) && inside(listener.port) {
            let port = PortRange {
                first: listener.port,
                last: listener.port,
            };
            used.push((port, format!("{} {port}", listener.protocol)));
        }
    }
    for dnat in host.dnat.iter().flatten() {
        if (dnat.first..=dnat.last).any(inside) {
            let ports = PortRange {
                first: dnat.first,
                last: dnat.last,
            };
            used.push((ports, format!("{} {ports} (a DNAT rule)", dnat.protocol)));
        }
    }
    used.sort();
    used.dedup();
    if used.is_empty() {
        return;
    }
    let shown: Vec<&str> = used.iter().take(8).map(|(_, text)| text.as_str()).collect();
    let more = if used.len() > 8 {
        format!(" and {} more", used.len() - 8)
    } else {
        String::new()
    };
    let what = format!(
        "the host uses ports of the pool's {}: {}{more}",
        range.value,
        shown.join(", ")
    );
    let why = "what is sent to them on the interface's address is the host's; `ss -lntu` shows who \
               listens";
    let mut ports: Vec<String> = used
        .iter()
        .map(|(ports, _)| format!("\"{ports}\""))
        .collect();
    ports.dedup();
    let fix = format!(
        "add to `pool.exclude_ports`: {}; or choose other ports",
        ports.join(", ")
    );
    let problem = Problem::error("pool-listening", what).why(why).fix(fix);
    found.push(problem.at(range.span));
}

fn forward_port(
    host: &HostFacts,
    addr: Ipv4Addr,
    forward: &ForwardConfig,
    found: &mut Vec<Problem>,
) {
    // Only own addresses are forwarded as a whole.
    let Some(ports) = forward.external.ports else {
        return;
    };
    let has = |port: u16| (ports.first..=ports.last).contains(&port);
    for &protocol in &forward.protocols {
        let mut listeners = host.listeners.iter().flatten();
        let listens = listeners.find(|l| l.protocol == protocol && has(l.port) && l.takes(addr));
        if let Some(Listener { port, .. }) = listens {
            let what = format!("the host itself listens on {protocol} {port}, which is forwarded");
            let why = "the forward would take the port from the host's own service";
            let fix = format!(
                "choose another external port, or stop the service: `ss -lntup sport = :{port}` \
                 names it"
            );
            let problem = Problem::error("forward-listening", what).why(why).fix(fix);
            found.push(problem.at(forward.external.span));
        }
        let mut dnat = host.dnat.iter().flatten();
        let taken =
            dnat.find(|d| d.protocol == protocol && d.first <= ports.last && ports.first <= d.last);
        if let Some(dnat) = taken {
            let port = dnat.first.max(ports.first);
            let what =
                format!("a DNAT rule of the host takes {protocol} {port}, which is forwarded");
            let why = "the forward would take the port from it";
            let fix =
                "choose another external port, or remove the rule: `nft list ruleset` shows it";
            let problem = Problem::error("forward-dnat", what).why(why).fix(fix);
            found.push(problem.at(forward.external.span));
        }
        if let Some(clash) = ephemeral_clash(host, ports) {
            let (first, last) = host.local_port_range.unwrap_or(KERNEL_PORT_RANGE);
            let what = format!(
                "the forwarded {protocol} {clash} lies in the host's own range {first}-{last}"
            );
            let why = "the kernel may give the port to a connection of the host, which then gets no \
                       reply";
            let fix = format!(
                "sysctl -w net.ipv4.ip_local_reserved_ports={clash} (with what it has already)"
            );
            let problem = Problem::warning("forward-ephemeral", what)
                .why(why)
                .fix(fix);
            found.push(problem.at(forward.external.span));
        }
    }
}

/// New mappings that a pool can make for ever, a second, for one protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Mappings a second: with `eim` in all, with `edm` to one remote endpoint.
    pub per_second: f64,
    /// Seconds that a port is taken by a flow of one packet, or one short connection.
    pub held_s: u32,
    /// Seconds of hold-down after that.
    pub hold_down_s: u32,
}

/// The sustainable rate of new mappings: ports divided by the time that each is taken.
pub fn sustainable_rate(config: &Config, protocol: Protocol, ports: u32) -> Rate {
    let timers = &config.timers;
    let held_ms = match protocol {
        Protocol::Udp => timers.udp_timeout_ms,
        Protocol::Tcp => timers.tcp_trans_close_timeout_ms,
        Protocol::Icmp => timers.icmp_timeout_ms,
    };
    let holds = config.holds_down(protocol);
    let hold_down_ms = if holds { timers.hold_down_ms } else { 0 };
    let (ports, held) = (f64::from(ports), f64::from(held_ms) / 1000.0);
    let with_hold_down = ports / (held + f64::from(hold_down_ms) / 1000.0);
    // Hold-down takes only so much of the pool.
    let free = 1.0 - f64::from(config.pool.hold_down_max_percent) / 100.0;
    let at_least = free * ports / held;
    let per_second = if holds {
        with_hold_down.max(at_least)
    } else {
        ports / held
    };
    Rate {
        per_second,
        held_s: held_ms / 1000,
        hold_down_s: hold_down_ms / 1000,
    }
}
