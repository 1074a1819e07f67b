//! Reads the keys of every table into the configuration; what does not fit is complained about and
//! takes its default, so that one run finds as much as it can.

use std::collections::BTreeSet;
use std::path::PathBuf;

use conntrack::{FilteringBehaviour, Limits, MappingBehaviour, Pairing, Protocol, Quotas};

use super::forwards;
use super::mode::{DEVICE_MODES, INTERFACE_MODES};
use super::problem::{At, Problem, Source};
use super::reader::Reader;
use super::rules;
use super::values::{self, PoolEntry};
use super::{
    Config, DeviceMode, IcmpConfig, InterfaceConfig, MAPPINGS_PER_SECOND_MAX, Midstream, NatConfig,
    OnRefusal, PRIORITY_MAX, Poll, PoolConfig, Role, SESSIONS_MAX, SESSIONS_MIN, TablesConfig,
    Unsolicited, WORKERS_MAX, WorkersConfig, timers,
};

/// Reads every key. None when something is missing without which nothing else can be judged.
pub(super) fn config(root: &Reader<'_, '_>, source: &Source) -> Option<Config> {
    let mut given: BTreeSet<String> = root.given().collect();
    let instance = root.parsed("instance", values::instance_name);
    let instance = instance.map_or_else(|| "default".to_owned(), |name| name.value);
    let internal = root.list("internal", values::internal_prefix);
    match &internal {
        None => root.missing("internal", "add a line such as internal = \"10.77.0.0/24\""),
        Some(prefixes) if prefixes.is_empty() && root.is_empty_list("internal") => {
            let problem = Problem::error("empty-internal", "`internal` is an empty list");
            let problem = problem.why("without an internal prefix no packet would be translated");
            let fix = "write the prefixes that your clients have, such as \"10.77.0.0/24\"";
            root.complain(problem.fix(fix).at(root.span_of("internal")));
        }
        Some(_) => {}
    }
    let interfaces = read_interfaces(root, &mut given);
    let bypass = root
        .list("bypass", values::destination_prefix("bypass"))
        .unwrap_or_default();
    let pool = read_pool(root, &mut given);
    let pools = rules::read_pools(root, &mut given, |table| pool_of(table, None));
    let nat = read_nat(root, &mut given);
    let rules = rules::read_rules(root, &mut given, &nat);
    let services = rules::read_services(root, &mut given);
    let (timer_profile, timers) = timers::read(root, &mut given);
    let limits = read_limits(root, &mut given);
    let forwards = forwards::read(root, &mut given);
    let icmp = read_icmp(root, &mut given);
    let tables = read_tables(root, &instance, &mut given);
    let workers = read_workers(root, &mut given);
    let device = table(root, "device", &mut given);
    let mode = device.and_then(|device| device.choice("mode", DEVICE_MODES));
    let control = table(root, "control", &mut given);
    let control = control.as_ref();
    let control_group = control.and_then(|control| control.parsed("group", values::group_name));
    let socket = control.and_then(|control| control.parsed("socket", values::socket_path));
    let control_socket =
        socket.map_or_else(|| run_path(&instance, "control"), |socket| socket.value);
    Some(Config {
        source: source.clone(),
        internal: internal?,
        interfaces,
        bypass,
        deny: root
            .list("deny", values::destination_prefix("deny"))
            .unwrap_or_default(),
        pool,
        pools,
        rules,
        services,
        nat,
        timer_profile,
        timers,
        limits,
        forwards,
        icmp,
        tables,
        workers,
        mode: mode.unwrap_or(At::default_value(DeviceMode::Auto)),
        control_socket,
        control_group,
        advice: Vec::new(),
        instance,
        given,
    })
}

pub(super) const ROLES: &[(&str, Role)] = &[
    ("internal", Role::Internal),
    ("external", Role::External),
    ("both", Role::Both),
];
pub(super) const MAPPINGS: &[(&str, MappingBehaviour)] = &[
    ("edm", MappingBehaviour::EndpointDependent),
    ("eim", MappingBehaviour::EndpointIndependent),
];
pub(super) const FILTERINGS: &[(&str, FilteringBehaviour)] = &[
    ("edf", FilteringBehaviour::EndpointDependent),
    ("adf", FilteringBehaviour::AddressDependent),
    ("eif", FilteringBehaviour::EndpointIndependent),
];
pub(super) const PAIRINGS: &[(&str, Pairing)] = &[
    ("hard", Pairing::Hard),
    ("soft", Pairing::Soft),
    ("none", Pairing::None),
];
pub(super) const PROTOCOLS: &[(&str, Protocol)] = &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
pub(super) const REFUSALS: &[(&str, OnRefusal)] = &[
    ("host-unreachable", OnRefusal::HostUnreachable),
    ("admin-prohibited", OnRefusal::AdminProhibited),
    ("silent", OnRefusal::Silent),
];
pub(super) const UNSOLICITED: &[(&str, Unsolicited)] = &[
    ("port-unreachable", Unsolicited::PortUnreachable),
    ("silent", Unsolicited::Silent),
];
pub(super) const MIDSTREAMS: &[(&str, Midstream)] =
    &[("drop", Midstream::Drop), ("reset", Midstream::Reset)];
pub(super) const POLLS: &[(&str, Poll)] = &[("adaptive", Poll::Adaptive), ("busy", Poll::Busy)];
/// The word of a value in a list of choices.
pub(super) fn word<T: PartialEq + Copy>(words: &[(&'static str, T)], value: T) -> &'static str {
    words
        .iter()
        .find(|(_, candidate)| *candidate == value)
        .map_or("", |(word, _)| word)
}

fn run_path(instance: &str, file: &str) -> PathBuf {
    [super::RUN_DIR, instance, file].iter().collect()
}

/// A table of the file, if it is there; notes its keys as given.
pub(super) fn table<'a, 'i>(
    root: &Reader<'a, 'i>,
    name: &'static str,
    given: &mut BTreeSet<String>,
) -> Option<Reader<'a, 'i>> {
    let table = root.table(name)?;
    given.extend(table.given());
    Some(table)
}

fn read_interfaces(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> Vec<InterfaceConfig> {
    let mut interfaces = Vec::new();
    if let Some(name) = root.parsed("interface", values::interface_name) {
        interfaces.push(InterfaceConfig {
            name,
            role: Role::Both,
            mode: None,
        });
    }
    if root.has("interface") && root.has("interfaces") {
        let problem = Problem::error(
            "interface-twice",
            "both `interface` and [[interfaces]] are given",
        );
        let problem =
            problem.why("`interface` is short for one [[interfaces]] with role = \"both\"");
        root.complain(
            problem
                .fix("keep one of the two")
                .at(root.span_of("interface")),
        );
    }
    for table in root.tables("interfaces") {
        given.extend(table.given());
        let name = table.parsed("name", values::interface_name);
        let role = table.choice("role", ROLES);
        let mode = table.choice("mode", INTERFACE_MODES);
        if !table.has("name") {
            table.missing("name", "add a line such as name = \"eth0\"");
        }
        if !table.has("role") {
            table.missing("role", "add a line such as role = \"external\"");
        }
        if let (Some(name), Some(role)) = (name, role) {
            interfaces.push(InterfaceConfig {
                name,
                role: role.value,
                mode,
            });
        }
    }
    if !root.has("interface") && (!root.has("interfaces") || root.is_empty_list("interfaces")) {
        let problem = Problem::error("no-interface", "no interface is given");
        let problem = problem.why("Egret serves only the interfaces that the file names");
        let fix = "add a line such as interface = \"eth0\"; `ip -brief link` lists the names";
        root.complain(problem.fix(fix).at(root.span_of("interfaces")));
    }
    interfaces
}

/// Hold-down of a universal 120 s would leave a shared address with `eim` some 86 new mappings a
/// second; a quarter costs a quarter of the rate at most.
const HOLD_DOWN_MAX_PERCENT: u8 = 25;

fn read_pool(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> PoolConfig {
    let default = || vec![At::default_value(PoolEntry::Interface)];
    let table = table(root, "pool", given);
    let pool = table.and_then(|table| pool_of(&table, Some(default())));
    pool.unwrap_or_else(|| PoolConfig {
        addresses: default(),
        ports: None,
        exclude_ports: Vec::new(),
        pairing: None,
        hold_down_max_percent: HOLD_DOWN_MAX_PERCENT,
    })
}

/// What a pool's table says; none where addresses are missing that have no default.
fn pool_of(table: &Reader<'_, '_>, default: Option<Vec<At<PoolEntry>>>) -> Option<PoolConfig> {
    for key in ["addresses", "ports"] {
        if table.is_empty_list(key) {
            let what = format!("`{}` is an empty list", table.path(key));
            let problem = Problem::error("empty-pool", what);
            let problem = problem.why("without it nothing could be translated");
            table.complain(
                problem
                    .fix("leave the key out for its default")
                    .at(table.span_of(key)),
            );
        }
    }
    // Of all pools alike.
    let percent = match table.has_key("hold_down_max_percent") {
        true => table.integer("hold_down_max_percent", 0, 100),
        false => None,
    };
    Some(PoolConfig {
        addresses: table.list("addresses", values::pool_entry).or(default)?,
        ports: table.list_or_numbers("ports", values::port_range),
        exclude_ports: table
            .list_or_numbers("exclude_ports", values::port_range)
            .unwrap_or_default(),
        pairing: table.choice("pairing", PAIRINGS).map(|at| at.value),
        hold_down_max_percent: percent.map_or(HOLD_DOWN_MAX_PERCENT, |at| at.value as u8),
    })
}

fn read_nat(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> NatConfig {
    let table = table(root, "nat", given);
    let table = table.as_ref();
    let (mapping, filtering) = (
        MappingBehaviour::EndpointDependent,
        FilteringBehaviour::EndpointDependent,
    );
    let flag = |key, default| {
        table
            .and_then(|table| table.boolean(key))
            .unwrap_or(default)
    };
    NatConfig {
        mapping: per_protocol(table, "mapping", MAPPINGS, mapping),
        filtering: per_protocol(table, "filtering", FILTERINGS, filtering),
        preserve_port: flag("preserve_port", true),
        preserve_port_class: flag("preserve_port_class", true),
        preserve_port_parity: flag("preserve_port_parity", false),
        inbound_refresh: flag("inbound_refresh", false),
        midstream: table
            .and_then(|table| table.choice("midstream", MIDSTREAMS))
            .map_or(Midstream::Reset, |at| at.value),
    }
}

fn read_limits(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> Limits {
    let table = table(root, "limits", given);
    let table = table.as_ref();
    let number = |key, max| {
        let number = table.and_then(|table| table.integer(key, 1, max));
        number.map(|at| at.value)
    };
    let default = Limits::DEFAULT;
    let per_mapping = number("inbound_sessions_per_mapping", u32::from(u16::MAX));
    Limits {
        inbound_sessions_per_mapping: per_mapping
            .and_then(|value| u16::try_from(value).ok())
            .unwrap_or(default.inbound_sessions_per_mapping),
        inbound_sessions_per_forward: number("inbound_sessions_per_forward", SESSIONS_MAX),
        half_open_per_forward: number("half_open_per_forward", SESSIONS_MAX),
        quotas: read_quotas(table),
    }
}

fn read_quotas(table: Option<&Reader<'_, '_>>) -> Quotas {
    let Some(table) = table else {
        return Quotas::NONE;
    };
    let rate = |key| table.integer(key, 1, MAPPINGS_PER_SECOND_MAX);
    let mappings_per_second = rate("mappings_per_second_per_subscriber");
    let burst = rate("mapping_burst_per_subscriber");
    if burst.is_some() && !table.has("mappings_per_second_per_subscriber") {
        let what = "`limits.mapping_burst_per_subscriber` is set without a rate";
        let problem = Problem::error("burst-without-rate", what);
        let problem = problem.why("a burst is what may come before the rate is felt");
        let fix = "add limits.mappings_per_second_per_subscriber, or remove the burst";
        table.complain(
            problem
                .fix(fix)
                .at(table.span_of("mapping_burst_per_subscriber")),
        );
    }
    Quotas {
        sessions: table.integer_per_protocol("sessions_per_subscriber", 1, SESSIONS_MAX),
        ports: table.integer_per_protocol("ports_per_subscriber", 1, SESSIONS_MAX),
        mappings_per_second: mappings_per_second.map(|at| at.value),
        mapping_burst: burst.or(mappings_per_second).map_or(1, |at| at.value),
    }
}

fn per_protocol<T: Copy>(
    table: Option<&Reader<'_, '_>>,
    key: &str,
    words: &[(&str, T)],
    default: T,
) -> [At<T>; 3] {
    table.map_or([At::default_value(default); 3], |table| {
        table.per_protocol(key, words, default)
    })
}

fn read_icmp(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> IcmpConfig {
    let table = table(root, "icmp", given);
    let table = table.as_ref();
    let rate = table.and_then(|table| table.integer("errors_per_second", 0, 1_000_000));
    let on_refusal = table.and_then(|table| table.choice("on_refusal", REFUSALS));
    IcmpConfig {
        errors_per_second: rate.map_or(1000, |at| at.value),
        on_refusal: on_refusal.map_or(OnRefusal::HostUnreachable, |at| at.value),
        unsolicited: table
            .and_then(|table| table.choice("unsolicited", UNSOLICITED))
            .map_or(Unsolicited::PortUnreachable, |at| at.value),
    }
}

fn read_tables(
    root: &Reader<'_, '_>,
    instance: &str,
    given: &mut BTreeSet<String>,
) -> TablesConfig {
    let table = table(root, "tables", given);
    let table = table.as_ref();
    let path = table.and_then(|table| table.parsed("path", values::absolute_path));
    TablesConfig {
        sessions_max: table
            .and_then(|table| table.integer("sessions_max", SESSIONS_MIN, SESSIONS_MAX)),
        path: path.unwrap_or_else(|| At::default_value(run_path(instance, "tables"))),
    }
}

fn read_workers(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> WorkersConfig {
    let table = table(root, "workers", given);
    let table = table.as_ref();
    let poll = table.and_then(|table| table.choice("poll", POLLS));
    let cpus = table.and_then(|table| table.integers("cpus", 0, u32::from(u16::MAX)));
    let cpus = cpus.unwrap_or_default().into_iter();
    let narrow = |at: At<u32>| {
        let value = u16::try_from(at.value).expect("the reader kept it within u16");
        At {
            value,
            span: at.span,
        }
    };
    WorkersConfig {
        count: table.and_then(|table| table.integer("count", 1, WORKERS_MAX)),
        poll: poll.unwrap_or(At::default_value(Poll::Adaptive)),
        cpus: cpus.map(narrow).collect(),
        priority: table.and_then(|table| table.integer("priority", 1, PRIORITY_MAX)),
    }
}
