//! Every key of the configuration file: its table, what it takes, its default.
//!
//! The reader accepts no key that is not listed here, and the sample file names every one.

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its table: empty for the top level, else `pool`, `forwards`, ...
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it takes, as a phrase that follows "takes".
    pub takes: &'static str,
    /// The default in words, or "required".
    pub default: &'static str,
}

impl Key {
    /// The key as users write it in a sentence: `pool.ports`, `forwards[].target`.
    pub fn path(&self) -> String {
        path(self.table, self.name)
    }
}

/// A key of a table as users write it in a sentence.
pub fn path(table: &str, name: &str) -> String {
    match table {
        "" => name.to_owned(),
        _ if is_list(table) => format!("{table}[].{name}"),
        _ => format!("{table}.{name}"),
    }
}

/// Are there several tables of this name, written `[[table]]`?
pub fn is_list(table: &str) -> bool {
    ["interfaces", "pools", "rules", "services", "forwards"].contains(&table)
}

const fn key(
    table: &'static str,
    name: &'static str,
    takes: &'static str,
    default: &'static str,
) -> Key {
    Key {
        table,
        name,
        takes,
        default,
    }
}

const QUOTA: &str = "a number, 1 to 16777216, or a table such as { tcp = 1000, udp = 500 }";
const NAME: &str = "a name of 1 to 64 letters, digits, \"-\", \"_\" and \".\"";
const OF_TIMERS: &str = "that of [timers]";
const OF_RULE: &str = "that of the rule, or of [timers]";
const SECONDS: &str = "whole seconds, 1 to 2147483";

/// All keys, in the order of the sample file.
pub const KEYS: &[Key] = &[
    key(
        "",
        "internal",
        "a prefix such as \"10.77.0.0/24\", or a list of them",
        "required",
    ),
    key(
        "",
        "interface",
        "the name of one interface, such as \"eth0\"",
        "required, or [[interfaces]]",
    ),
    key(
        "",
        "bypass",
        "a destination prefix such as \"10.42.0.0/16\", or a list of them",
        "none",
    ),
    key(
        "",
        "deny",
        "a destination prefix such as \"169.254.169.254/32\", or a list of them",
        "none",
    ),
    key(
        "",
        "instance",
        "a name of 1 to 32 letters, digits, \"-\" and \"_\"",
        "\"default\"",
    ),
    key(
        "",
        "interfaces",
        "tables, written [[interfaces]]",
        "the one of `interface`",
    ),
    key(
        "interfaces",
        "name",
        "the name of an interface, such as \"eth0\"",
        "required",
    ),
    key(
        "interfaces",
        "role",
        "\"internal\", \"external\" or \"both\"",
        "required",
    ),
    key(
        "interfaces",
        "mode",
        "\"auto\", \"zero-copy\", \"copy\", \"generic\" or \"tun\"",
        "that of device.mode",
    ),
    key(
        "",
        "pool",
        "a table, written [pool]",
        "the interface's address",
    ),
    key(
        "pool",
        "addresses",
        "\"interface\", addresses, prefixes and ranges such as \"203.0.113.4-203.0.113.9\"",
        "\"interface\"",
    ),
    key(
        "pool",
        "ports",
        "a port, a range such as \"1024-65535\", or a list of them",
        "1024-65535; on the interface's address without what the host uses",
    ),
    key(
        "pool",
        "exclude_ports",
        "a port, a range such as \"5000-5999\", or a list of them",
        "none",
    ),
    key(
        "pool",
        "pairing",
        "\"hard\", \"soft\" or \"none\"",
        "hard with eim, soft with edm",
    ),
    key("pool", "hold_down_max_percent", "a number, 0 to 100", "25"),
    key("", "pools", "tables, written [[pools]]", "none"),
    key("pools", "name", NAME, "required"),
    key(
        "pools",
        "addresses",
        "addresses, prefixes and ranges such as \"203.0.113.4-203.0.113.9\"",
        "required",
    ),
    key(
        "pools",
        "ports",
        "a port, a range such as \"1024-65535\", or a list of them",
        "1024-65535",
    ),
    key(
        "pools",
        "exclude_ports",
        "a port, a range such as \"5000-5999\", or a list of them",
        "none",
    ),
    key("pools", "pairing", "\"hard\", \"soft\" or \"none\"", "hard"),
    key("", "rules", "tables, written [[rules]]", "none"),
    key("rules", "name", NAME, "its number"),
    key(
        "rules",
        "sources",
        "a prefix such as \"10.77.0.0/25\", or a list of them",
        "all clients",
    ),
    key(
        "rules",
        "destinations",
        "a prefix such as \"203.0.113.0/24\", or a list of them",
        "all",
    ),
    key(
        "rules",
        "ports",
        "a destination port, a range such as \"8000-8099\", or a list of them",
        "all",
    ),
    key(
        "rules",
        "protocol",
        "\"tcp\", \"udp\" or \"icmp\", or a list of them",
        "all",
    ),
    key(
        "rules",
        "action",
        "\"translate\", \"bypass\" or \"drop\"",
        "\"translate\"",
    ),
    key(
        "rules",
        "pool",
        "the name of one of [[pools]], or \"default\" for [pool]",
        "\"default\"",
    ),
    key(
        "rules",
        "mapping",
        "\"edm\" or \"eim\", or a table such as { udp = \"eim\" }",
        "that of [nat]",
    ),
    key(
        "rules",
        "filtering",
        "\"edf\", \"adf\" or \"eif\", or a table such as { udp = \"adf\" }",
        "that of [nat]",
    ),
    key("rules", "udp_timeout_s", SECONDS, OF_TIMERS),
    key("rules", "tcp_trans_open_timeout_s", SECONDS, OF_TIMERS),
    key("rules", "tcp_idle_timeout_s", SECONDS, OF_TIMERS),
    key("rules", "tcp_trans_close_timeout_s", SECONDS, OF_TIMERS),
    key("rules", "icmp_timeout_s", SECONDS, OF_TIMERS),
    key("", "nat", "a table, written [nat]", "edm + edf"),
    key(
        "nat",
        "mapping",
        "\"edm\" or \"eim\", or a table such as { udp = \"eim\" }",
        "\"edm\"",
    ),
    key(
        "nat",
        "filtering",
        "\"edf\", \"adf\" or \"eif\", or a table such as { udp = \"adf\" }",
        "\"edf\"",
    ),
    key("nat", "preserve_port", "true or false", "true"),
    key("nat", "preserve_port_class", "true or false", "true"),
    key("nat", "preserve_port_parity", "true or false", "false"),
    key("nat", "inbound_refresh", "true or false", "false"),
    key("nat", "midstream", "\"drop\" or \"reset\"", "\"reset\""),
    key("", "timers", "a table, written [timers]", "the rfc profile"),
    key(
        "timers",
        "profile",
        "\"rfc\", \"conntrack\" or \"cloud\"",
        "\"rfc\"",
    ),
    key("timers", "udp_timeout_s", SECONDS, "300"),
    key("timers", "tcp_trans_open_timeout_s", SECONDS, "240"),
    key("timers", "tcp_idle_timeout_s", SECONDS, "7440"),
    key("timers", "tcp_trans_close_timeout_s", SECONDS, "240"),
    key("timers", "tcp_in_syn_timeout_s", SECONDS, "6"),
    key("timers", "icmp_timeout_s", SECONDS, "60"),
    key("timers", "fragment_timeout_s", SECONDS, "2"),
    key(
        "timers",
        "hold_down_s",
        "whole seconds, 0 to 2147483",
        "120",
    ),
    key("", "services", "tables, written [[services]]", "none"),
    key("services", "protocol", "\"tcp\" or \"udp\"", "required"),
    key(
        "services",
        "ports",
        "a destination port, a range such as \"8000-8099\", or a list of them",
        "required",
    ),
    key("services", "udp_timeout_s", SECONDS, OF_RULE),
    key("services", "tcp_trans_open_timeout_s", SECONDS, OF_RULE),
    key("services", "tcp_idle_timeout_s", SECONDS, OF_RULE),
    key("services", "tcp_trans_close_timeout_s", SECONDS, OF_RULE),
    key("", "limits", "a table, written [limits]", "see its keys"),
    key(
        "limits",
        "inbound_sessions_per_mapping",
        "a number, 1 to 65535",
        "1024",
    ),
    key(
        "limits",
        "inbound_sessions_per_forward",
        "a number, 1 to 16777216",
        "an eighth of sessions_max",
    ),
    key(
        "limits",
        "half_open_per_forward",
        "a number, 1 to 16777216",
        "a 32nd of sessions_max",
    ),
    key("limits", "sessions_per_subscriber", QUOTA, "any number"),
    key("limits", "ports_per_subscriber", QUOTA, "any number"),
    key(
        "limits",
        "mappings_per_second_per_subscriber",
        "a number, 1 to 1000000",
        "any number",
    ),
    key(
        "limits",
        "mapping_burst_per_subscriber",
        "a number, 1 to 1000000",
        "those of a second",
    ),
    key("", "forwards", "tables, written [[forwards]]", "none"),
    key(
        "forwards",
        "protocol",
        "\"tcp\" or \"udp\", or both in a list",
        "required, but for a whole address",
    ),
    key(
        "forwards",
        "external",
        "a port (\"8443\"), a range (\"30000-32767\"), these with an address (\"203.0.113.4:8443\"), or an address",
        "required",
    ),
    key(
        "forwards",
        "target",
        "an endpoint such as \"10.77.0.5:443\", an address for the same ports, or a list of them",
        "required",
    ),
    key(
        "forwards",
        "weights",
        "numbers, 1 to 65535: one a target",
        "the same for all",
    ),
    key(
        "forwards",
        "affinity",
        "\"source\" or \"none\"",
        "\"source\"",
    ),
    key(
        "forwards",
        "allow",
        "a source prefix such as \"198.51.100.0/24\", or a list of them",
        "any source",
    ),
    key("", "icmp", "a table, written [icmp]", "see its keys"),
    key(
        "icmp",
        "errors_per_second",
        "a number, 0 to 1000000",
        "1000",
    ),
    key(
        "icmp",
        "on_refusal",
        "\"host-unreachable\", \"admin-prohibited\" or \"silent\"",
        "\"host-unreachable\"",
    ),
    key(
        "icmp",
        "unsolicited",
        "\"port-unreachable\" or \"silent\"",
        "\"port-unreachable\"",
    ),
    key("", "tables", "a table, written [tables]", "see its keys"),
    key(
        "tables",
        "sessions_max",
        "a number, 64 to 16777216",
        "by RAM",
    ),
    key(
        "tables",
        "path",
        "an absolute path",
        "/run/egret/INSTANCE/tables",
    ),
    key("", "workers", "a table, written [workers]", "see its keys"),
    key(
        "workers",
        "count",
        "a number, 1 to 256",
        "min(CPUs, queues)",
    ),
    key(
        "workers",
        "poll",
        "\"adaptive\" or \"busy\"",
        "\"adaptive\"",
    ),
    key(
        "workers",
        "cpus",
        "a CPU number, or a list of them",
        "those this process may use",
    ),
    key("workers", "priority", "a number, 1 to 99", "none"),
    key("", "device", "a table, written [device]", "see its keys"),
    key(
        "device",
        "mode",
        "\"auto\", \"zero-copy\", \"copy\", \"generic\", \"tun\" or \"routed\"",
        "\"auto\"",
    ),
    key("", "control", "a table, written [control]", "see its keys"),
    key(
        "control",
        "socket",
        "an absolute path of at most 107 bytes",
        "/run/egret/INSTANCE/control",
    ),
    key(
        "control",
        "group",
        "the name of a group, such as \"netops\"",
        "none",
    ),
];

/// The key of that table and name.
pub fn find(table: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.table == table && key.name == name)
}

/// The candidate nearest to `given`, if it is near enough to be what was meant.
pub fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    candidates
        .map(|candidate| (distance(&given, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 1 + candidate.len() / 4)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: the fewest letters to insert, delete or change. Long words count as far.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
