//! What says which flows are translated how: `[[pools]]`, `[[rules]]`, `[[services]]`.

use std::collections::BTreeSet;

use conntrack::{FilteringBehaviour, MappingBehaviour, Protocol, Timers};
use ipnet::Ipv4Net;

use super::problem::{At, Problem, Span};
use super::read::{FILTERINGS, MAPPINGS};
use super::reader::Reader;
use super::timers::{TIMEOUT_MAX_S, TIMERS};
use super::values::{self, PortRange};
use super::{NatConfig, PoolConfig};

/// The name by which rules call `[pool]`.
pub const DEFAULT_POOL: &str = "default";

/// A pool that rules choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPool {
    /// Its name: no two have the same, none is [`DEFAULT_POOL`].
    pub name: At<String>,
    /// Its addresses and ports: never the interface's.
    pub pool: PoolConfig,
}

/// Which flows from inside, and what is done with them. The first rule that fits decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleConfig {
    /// What messages call it.
    pub name: Option<At<String>>,
    /// Where it stands in the file.
    pub span: Span,
    /// Sources; empty: all clients.
    pub sources: Vec<At<Ipv4Net>>,
    /// Destinations; empty: all.
    pub destinations: Vec<At<Ipv4Net>>,
    /// Destination ports; empty: all.
    pub ports: Vec<At<PortRange>>,
    /// Protocols; empty: all.
    pub protocols: Vec<At<Protocol>>,
    /// What is done.
    pub action: RuleAction,
}

/// What a rule does with the flows that fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// They are translated.
    Translate(Box<TranslateConfig>),
    /// They are left to the kernel.
    Bypass,
    /// They are dropped.
    Drop,
}

/// How the flows of a rule are translated, where that is not as for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslateConfig {
    /// The name of the pool that they leave from; none: `[pool]`.
    pub pool: Option<At<String>>,
    /// Mapping behaviour, by [`Protocol::index`].
    pub mapping: [At<MappingBehaviour>; 3],
    /// Filtering behaviour, by [`Protocol::index`].
    pub filtering: [At<FilteringBehaviour>; 3],
    /// Their timers.
    pub timers: TimerChanges,
}

/// Flows to some destination ports, and their timers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The ports.
    pub ports: Vec<At<PortRange>>,
    /// The timers.
    pub timers: TimerChanges,
    /// Where it stands in the file.
    pub span: Span,
}

/// Timers that are other than those for all: a key of `[timers]` and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimerChanges {
    changes: Vec<(&'static str, u32)>,
}

impl TimerChanges {
    /// These timers with the changes.
    #[must_use]
    pub fn of(&self, mut timers: Timers) -> Timers {
        for &(key, seconds) in &self.changes {
            for timer in TIMERS.iter().filter(|timer| timer.key == key) {
                *(timer.field)(&mut timers) = seconds * 1000;
            }
        }
        timers
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Keys and seconds, in the order of the sample file.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.changes.iter().copied()
    }
}

/// The timers of `[timers]` that a flow can have of its own.
pub(super) const FLOW_TIMERS: [&str; 5] = [
    "udp_timeout_s",
    "tcp_trans_open_timeout_s",
    "tcp_idle_timeout_s",
    "tcp_trans_close_timeout_s",
    "icmp_timeout_s",
];

const RULE_PROTOCOLS: &[(&str, Protocol)] = &[
    ("tcp", Protocol::Tcp),
    ("udp", Protocol::Udp),
    ("icmp", Protocol::Icmp),
];

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Translate,
    Bypass,
    Drop,
}

const ACTIONS: &[(&str, Word)] = &[
    ("translate", Word::Translate),
    ("bypass", Word::Bypass),
    ("drop", Word::Drop),
];

/// Reads `[[pools]]`; `pool` reads what a pool has beside its name.
pub(super) fn read_pools(
    root: &Reader<'_, '_>,
    given: &mut BTreeSet<String>,
    pool: impl Fn(&Reader<'_, '_>) -> Option<PoolConfig>,
) -> Vec<NamedPool> {
    let mut pools = Vec::new();
    for table in root.tables("pools") {
        given.extend(table.given());
        for (key, example) in [("name", "\"payments\""), ("addresses", "\"203.0.113.4\"")] {
            if !table.has(key) {
                table.missing(key, &format!("add a line such as {key} = {example}"));
            }
        }
        let name = table.parsed("name", values::pool_name);
        if let (Some(name), Some(pool)) = (name, pool(&table)) {
            pools.push(NamedPool { name, pool });
        }
    }
    pools
}

/// Reads `[[rules]]`; what a rule does not say of its flows is as `[nat]` says.
pub(super) fn read_rules(
    root: &Reader<'_, '_>,
    given: &mut BTreeSet<String>,
    nat: &NatConfig,
) -> Vec<RuleConfig> {
    let mut rules = Vec::new();
    for table in root.tables("rules") {
        given.extend(table.given());
        for key in ["sources", "destinations", "ports", "protocol"] {
            if table.is_empty_list(key) {
                let path = table.path(key);
                let problem = Problem::error("empty-list", format!("`{path}` is an empty list"));
                let problem = problem.why("it could be read as nothing, or as everything");
                let fix = "leave the key out for all, or remove the rule";
                table.complain(problem.fix(fix).at(table.span_of(key)));
            }
        }
        let prefixes = |key| table.list(key, values::prefix).unwrap_or_default();
        let action = table.choice("action", ACTIONS);
        let action = match action.map_or(Word::Translate, |at| at.value) {
            Word::Translate => RuleAction::Translate(Box::new(read_translate(&table, nat))),
            word => {
                only_for_translate(&table);
                match word {
                    Word::Bypass => RuleAction::Bypass,
                    _ => RuleAction::Drop,
                }
            }
        };
        rules.push(RuleConfig {
            name: table.parsed("name", values::pool_name),
            span: table.span(),
            sources: prefixes("sources"),
            destinations: prefixes("destinations"),
            ports: table
                .list_or_numbers("ports", values::port_range)
                .unwrap_or_default(),
            protocols: table
                .choices("protocol", RULE_PROTOCOLS)
                .unwrap_or_default(),
            action,
        });
    }
    rules
}

fn read_translate(table: &Reader<'_, '_>, nat: &NatConfig) -> TranslateConfig {
    TranslateConfig {
        pool: table.parsed("pool", values::pool_name),
        mapping: table.per_protocol_or("mapping", MAPPINGS, nat.mapping),
        filtering: table.per_protocol_or("filtering", FILTERINGS, nat.filtering),
        timers: read_timers(table),
    }
}

/// Complains about keys that say how flows are translated, in a rule that translates none.
fn only_for_translate(table: &Reader<'_, '_>) {
    for key in ["pool", "mapping", "filtering"].iter().chain(&FLOW_TIMERS) {
        if table.has(key) {
            let what = format!(
                "`{}` is set in a rule that does not translate",
                table.path(key)
            );
            let problem = Problem::error("rule-not-translated", what);
            let problem = problem.why("it says how the flows of the rule are translated");
            let fix = "write action = \"translate\", or remove the key";
            table.complain(problem.fix(fix).at(table.span_of(key)));
        }
    }
}

fn read_timers(table: &Reader<'_, '_>) -> TimerChanges {
    let change = |&key| {
        let seconds = table.integer(key, 1, TIMEOUT_MAX_S)?;
        Some((key, seconds.value))
    };
    TimerChanges {
        changes: FLOW_TIMERS
            .iter()
            .filter(|key| table.has_key(key))
            .filter_map(change)
            .collect(),
    }
}

/// Reads `[[services]]`.
pub(super) fn read_services(
    root: &Reader<'_, '_>,
    given: &mut BTreeSet<String>,
) -> Vec<ServiceConfig> {
    let mut services = Vec::new();
    for table in root.tables("services") {
        given.extend(table.given());
        for (key, example) in [("protocol", "\"udp\""), ("ports", "\"53\"")] {
            if !table.has(key) {
                table.missing(key, &format!("add a line such as {key} = {example}"));
            }
        }
        let protocol = table.choice("protocol", super::read::PROTOCOLS);
        let ports = table.list_or_numbers("ports", values::port_range);
        let timers = read_timers(&table);
        let has = |key: &&str| table.has_key(key) && table.has(key);
        if !FLOW_TIMERS.iter().any(has) {
            let problem = Problem::error("service-without-timer", "a service sets no timer");
            let problem = problem.why("a service is a port with timers of its own");
            let fix = "add a line such as udp_timeout_s = 30, or remove the service";
            table.complain(problem.fix(fix).at(table.span()));
        }
        if let (Some(protocol), Some(ports)) = (protocol, ports) {
            services.push(ServiceConfig {
                protocol: protocol.value,
                ports,
                timers,
                span: table.span(),
            });
        }
    }
    services
}
