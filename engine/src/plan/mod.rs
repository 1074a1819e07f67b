//! The plan: a configuration and the facts of a host become what will be run, with warnings.
//!
//! Pure: nothing here reads the host or changes it, so a plan can be made for any machine.

mod addresses;
mod budget;
mod control;
mod facts;
mod interfaces;
mod ports;
mod priority;
mod slots;
mod translation;

use std::net::Ipv4Addr;

use conntrack::{Policy, Protocol};

pub use addresses::shared_address;
pub use budget::{default_sessions, table_bytes};
pub use facts::{Capabilities, DnatPorts, HostFacts, Listener, NicFacts, RealTime, VlanOffload};
pub use interfaces::XDP_MTU_MAX;
pub use ports::{DEFAULT_PORTS, NODE_PORTS, Rate, policy_for, port_clashes, sustainable_rate};
pub use slots::Slots;
pub use translation::{Earlier, Translation};

use crate::config::{Config, DeviceMode, Level, Problem, Role};
use addresses::usable_addresses;

/// Spare places in the port tables for an interface's address that changes: the sessions of the
/// old ones end while new ones are made.
const SPARE_SLOTS: u16 = 1;

/// An interface of the plan; its number is its place in [`Plan::interfaces`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInterface {
    /// Its number, as in `[[interfaces]]`, from 0.
    pub number: u8,
    /// Its sides.
    pub role: Role,
    /// How frames are to be exchanged with it.
    pub mode: DeviceMode,
    /// What the host says of it.
    pub facts: NicFacts,
}

/// What will be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The interfaces in the order of the configuration.
    pub interfaces: Vec<PlannedInterface>,
    /// The number of the one that leads outside.
    pub external: u8,
    /// Its address, when the pool has it; none also while it has none.
    pub shared_address: Option<Ipv4Addr>,
    /// Places in the port tables, with the addresses of `policy` in them.
    pub slots: Slots,
    /// What the configuration says of flows.
    pub translation: Translation,
    /// The policy to start with.
    pub policy: Policy,
    /// Sessions that the tables are made for.
    pub sessions_max: u32,
    /// Places in the port tables, spare ones included.
    pub addresses_max: u16,
    /// Bytes of the tables.
    pub table_bytes: u64,
    /// How many workers.
    pub workers: u32,
    /// A CPU for each worker; empty: not pinned.
    pub cpus: Vec<u16>,
    /// Warnings first, then notes.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Makes the plan.
    ///
    /// # Errors
    /// Everything that speaks against running, and the warnings and notes: errors first.
    pub fn make(config: &Config, host: &HostFacts) -> Result<Plan, Vec<Problem>> {
        let mut found = config.advice.clone();
        privileges(config, host, &mut found);
        let facts = interfaces::find(config, host, &mut found);
        let external = config
            .interfaces
            .iter()
            .position(|interface| interface.role.is_external());
        let external = external.expect("a checked configuration has one");
        let mut shared = None;
        if let Some(facts) = facts[external] {
            addresses::external_address(config, host, facts, &mut found);
            shared = shared_address(config, facts);
        }
        found.extend(port_clashes(config, host, shared));
        unchecked_ports(config, host, &mut found);
        kernel_settings(config, &facts, host, &mut found);

        let addresses_max = addresses_max(config);
        let mut slots = Slots::new(addresses_max);
        let translation = match Translation::of(config, None) {
            Ok(translation) => translation,
            Err(problem) => {
                found.push(problem);
                return Err(errors_first(found));
            }
        };
        let policy = policy_for(config, &translation, shared, host, &mut slots);
        empty_pool(config, &policy, host, &mut found);
        let sessions = config.tables.sessions_max.map(|sessions| sessions.value);
        let sessions_max = sessions.unwrap_or_else(|| default_sessions(host.ram_bytes));
        let table_bytes = table_bytes(sessions_max, addresses_max);
        budget::check_memory(config, host, table_bytes, sessions_max, &mut found);
        budget::subscribers(config, sessions_max, &mut found);
        // A TAP has as many queues as there are workers.
        let of_xdp = config.interfaces.iter().zip(&facts);
        let of_xdp = of_xdp.filter(|(interface, _)| {
            let mode = config.mode_of(interface).value;
            !mode.is_of_tun_driver()
        });
        let queues = of_xdp.filter_map(|(_, facts)| Some((*facts)?.rx_queues));
        let queues = queues.filter(|&queues| queues > 0).min();
        let (workers, cpus) = budget::workers(config, host, queues, &mut found);
        priority::priority(config, host, workers, &mut found);
        control::group(config, host, &mut found);

        let found = errors_first(found);
        if found.iter().any(|problem| problem.level == Level::Error) {
            return Err(found);
        }
        let planned = config.interfaces.iter().zip(&facts).zip(0u8..);
        let planned = planned.filter_map(|((interface, facts), number)| {
            let facts = (*facts)?.clone();
            Some(PlannedInterface {
                number,
                role: interface.role,
                mode: config.mode_of(interface).value,
                facts,
            })
        });
        Ok(Plan {
            interfaces: planned.collect(),
            external: external as u8,
            shared_address: shared,
            slots,
            translation,
            policy,
            sessions_max,
            addresses_max,
            table_bytes,
            workers,
            cpus,
            problems: found,
        })
    }
}

impl Plan {
    /// The smallest MTU of the interfaces, bytes.
    pub fn mtu_min(&self) -> u32 {
        let mtus = self.interfaces.iter().map(|planned| planned.facts.mtu);
        mtus.min().unwrap_or(1500)
    }

    /// Gives addresses the places that they have in tables taken over from an earlier run, and lets
    /// the interface's address that was in force stay so while it is there. `config` and `host` are
    /// those that the plan was made from.
    pub fn reseat(&mut self, config: &Config, host: &HostFacts, placed: &[(u16, Ipv4Addr)]) {
        let external = &self.interfaces[usize::from(self.external)].facts;
        let mut usable = usable_addresses(config, external);
        let in_force = usable.find(|addr| placed.iter().any(|(_, there)| there == addr));
        self.shared_address = in_force
            .filter(|_| config.pool.has_interface())
            .or(self.shared_address);
        let mut slots = Slots::new(self.addresses_max);
        for &(slot, addr) in placed {
            slots.seed(slot, addr);
        }
        self.policy = policy_for(
            config,
            &self.translation,
            self.shared_address,
            host,
            &mut slots,
        );
        self.slots = slots;
    }
}

fn errors_first(mut found: Vec<Problem>) -> Vec<Problem> {
    found.sort_by_key(|problem| (problem.level, problem.span));
    found
}

/// Places in the port tables that a configuration needs.
fn addresses_max(config: &Config) -> u16 {
    // At most ADDRESSES_MAX own ones: checked.
    let own = config.own_addresses().count() as u16;
    match config.pool.has_interface() {
        true => own + 1 + SPARE_SLOTS,
        false => own,
    }
}

fn privileges(config: &Config, host: &HostFacts, found: &mut Vec<Problem>) {
    let Some(has) = host.capabilities else {
        let problem = Problem::note("unchecked-privilege", "privileges were not checked");
        found.push(problem.why("`egret run` needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN"));
        return;
    };
    let needs = [
        (
            has.net_admin,
            "CAP_NET_ADMIN (attach programs, mirror routes)",
        ),
        (has.net_raw, "CAP_NET_RAW (AF_XDP sockets)"),
        (
            has.sys_admin,
            "CAP_SYS_ADMIN (load programs, mount the BPF file system)",
        ),
    ];
    // Routed mode loads nothing and opens no socket.
    let count = match config.mode.value {
        DeviceMode::Routed => 1,
        _ => needs.len(),
    };
    let lacks: Vec<&str> = needs[..count]
        .iter()
        .filter(|(has, _)| !has)
        .map(|&(_, name)| name)
        .collect();
    if lacks.is_empty() {
        return;
    }
    let what = format!("this process lacks {}", lacks.join(", "));
    let why = "without it the kernel lets nobody take packets past netfilter";
    let fix = "run it as root (sudo egret run ...), or in the systemd unit: AmbientCapabilities=\
               CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN; in a container: --cap-add for each";
    found.push(Problem::error("missing-privilege", what).why(why).fix(fix));
}

/// Says which ports of the host could not be read.
fn unchecked_ports(config: &Config, host: &HostFacts, found: &mut Vec<Problem>) {
    if !config.pool.has_interface() {
        return;
    }
    let unread = [
        (
            host.local_port_range.is_none(),
            "ip_local_port_range (32768-60999 is assumed)",
        ),
        (host.listeners.is_none(), "the sockets that listen"),
        (
            host.dnat.is_none(),
            "the DNAT rules of nftables and iptables",
        ),
    ];
    let unread: Vec<&str> = unread
        .iter()
        .filter(|(un, _)| *un)
        .map(|&(_, what)| what)
        .collect();
    if unread.is_empty() {
        return;
    }
    let what = format!("could not be read: {}", unread.join(", "));
    let why = "ports that the host uses are left out of the pool of the address that it shares";
    let fix = "run the check as root";
    found.push(Problem::note("unchecked-ports", what).why(why).fix(fix));
}

fn empty_pool(config: &Config, policy: &Policy, host: &HostFacts, found: &mut Vec<Problem>) {
    let whole = |addr| {
        let mut forwards = policy.forwards.iter();
        forwards.any(|forward| forward.whole && forward.external.addr == addr)
    };
    let pool = policy.addresses.iter();
    for address in pool.filter(|address| !whole(address.addr)) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if !address.ports[protocol.index()].is_empty() {
                continue;
            }
            let what = format!("no {protocol} port of {} is left for clients", address.addr);
            let (first, last) = host.local_port_range.unwrap_or((0, 0));
            let why = format!(
                "the host takes the others: {first}-{last} for its own connections, {NODE_PORTS} \
                 for node ports, and what listens or is forwarded"
            );
            let fix = "give the host fewer (sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"), \
                       or name some in `pool.ports` and in net.ipv4.ip_local_reserved_ports";
            let span = config
                .pool
                .exclude_ports
                .first()
                .and_then(|range| range.span);
            found.push(
                Problem::error("empty-pool", what)
                    .why(why)
                    .fix(fix)
                    .at(span),
            );
            break;
        }
    }
}

/// What the kernel does with packets that Egret leaves to it.
fn kernel_settings(
    config: &Config,
    facts: &[Option<&NicFacts>],
    host: &HostFacts,
    found: &mut Vec<Problem>,
) {
    let first = config.internal.first().and_then(|prefix| prefix.span);
    let bypass = config.bypass.first();
    let routed = config.mode.value == DeviceMode::Routed;
    match host.ip_forward {
        // Rules lead all that comes from inside to Egret, alive or dead.
        Some(true) if routed => {}
        Some(false) if routed => {
            let what = "mode = \"routed\" is given, and ip_forward is 0";
            let why = "the kernel carries every packet between the interfaces and Egret";
            let fix = "sysctl -w net.ipv4.ip_forward=1";
            let problem = Problem::error("routed-not-forwarded", what).why(why);
            found.push(problem.fix(fix).at(config.mode.span));
        }
        Some(true) => {
            let prefixes: Vec<String> = config.internal.iter().map(|net| net.to_string()).collect();
            let what = format!(
                "ip_forward is 1: detached from Egret, the kernel would forward {} untranslated",
                prefixes.join(", ")
            );
            let out = &config.external_interface().name.value;
            let why = match bypass {
                Some(_) => {
                    "bypassed packets need it; while Egret runs, or is killed, nothing leaks: \
                            its program stays attached until `egret detach`"
                }
                None => {
                    "while Egret runs, or is killed, nothing leaks: its program stays attached \
                         until `egret detach`; and nothing here needs ip_forward"
                }
            };
            let rules: Vec<String> = prefixes
                .iter()
                .map(|net| format!("iptables -I FORWARD -s {net} -o {out} -j DROP"))
                .collect();
            let fix = match bypass {
                Some(bypass) => format!(
                    "let only bypassed packets through, for each such prefix: iptables -I FORWARD -s {} -o \
                     {out} ! -d {} -j DROP",
                    prefixes[0], bypass.value
                ),
                None => format!("sysctl -w net.ipv4.ip_forward=0, or {}", rules.join("; ")),
            };
            found.push(
                Problem::warning("ip-forward", what)
                    .why(why)
                    .fix(fix)
                    .at(first),
            );
        }
        Some(false) => {
            if let Some(bypass) = bypass {
                let what = "`bypass` is given, and ip_forward is 0";
                let why = "the kernel forwards no packet that Egret leaves to it: bypassed \
                           destinations that are not on this host cannot be reached";
                let fix = "sysctl -w net.ipv4.ip_forward=1";
                let problem = Problem::warning("bypass-not-forwarded", what)
                    .why(why)
                    .fix(fix);
                found.push(problem.at(bypass.span));
            }
        }
        None => {
            let problem = Problem::note("unchecked-forward", "ip_forward could not be read");
            found.push(problem.why("with 1, detaching Egret would let internal sources out"));
        }
    }
    let strict = facts
        .iter()
        .flatten()
        .filter(|facts| facts.rp_filter == Some(1));
    let strict: Vec<&str> = strict.map(|facts| facts.name.as_str()).collect();
    if let (Some(bypass), [first_strict, ..]) = (bypass, &strict[..]) {
        let what = format!("rp_filter is 1 (strict) on {}", strict.join(", "));
        let why = "translated packets do not meet it; bypassed ones are dropped where the way back \
                   leads over another interface";
        let fix = format!("if so: sysctl -w net.ipv4.conf.{first_strict}.rp_filter=2");
        found.push(
            Problem::note("rp-filter", what)
                .why(why)
                .fix(fix)
                .at(bypass.span),
        );
    }
}
