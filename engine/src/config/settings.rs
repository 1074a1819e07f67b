//! The effective configuration: every key with its value, and whether the file set it.

use conntrack::{Affinity, Pairing, Protocol};

use super::forwards::AFFINITIES;
use super::mode::DEVICE_MODES;
use super::read::{FILTERINGS, MAPPINGS, MIDSTREAMS, PAIRINGS, POLLS, REFUSALS, UNSOLICITED, word};
use super::rules::{DEFAULT_POOL, NamedPool, RuleAction};
use super::timers::TIMERS;
use super::{At, Config};

/// One key of the effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key as in the file: `pool.ports`, `forwards[0].target`.
    pub key: String,
    /// Its value as one would write it in the file.
    pub value: String,
    /// Is it the default?
    pub default: bool,
}

impl Config {
    /// Every key with its value in force, in the order of the sample file. Values that depend on
    /// the host are shown in words.
    pub fn settings(&self) -> Vec<Setting> {
        let mut list = Settings {
            config: self,
            list: Vec::new(),
        };
        list.add("instance", quoted(&self.instance));
        list.add("internal", quoted_list(&self.internal));
        self.interface_settings(&mut list);
        list.add("bypass", quoted_list(&self.bypass));
        list.add("deny", quoted_list(&self.deny));
        let pool = &self.pool;
        list.add("pool.addresses", quoted_list(&pool.addresses));
        let ports = match &pool.ports {
            Some(ranges) => quoted_list(ranges),
            None if pool.has_interface() => "1024-65535 without what the host uses".to_owned(),
            None => "1024-65535".to_owned(),
        };
        list.add("pool.ports", ports);
        list.add("pool.exclude_ports", quoted_list(&pool.exclude_ports));
        let pairing = match pool.pairing {
            Some(pairing) => quoted(word(PAIRINGS, pairing)),
            None => "hard with eim, soft with edm".to_owned(),
        };
        list.add("pool.pairing", pairing);
        let percent = pool.hold_down_max_percent.to_string();
        list.add("pool.hold_down_max_percent", percent);
        self.pool_settings(&mut list);
        self.rule_settings(&mut list);
        let nat = &self.nat;
        list.add("nat.mapping", by_protocol(MAPPINGS, &nat.mapping));
        list.add("nat.filtering", by_protocol(FILTERINGS, &nat.filtering));
        for (key, value) in [
            ("nat.preserve_port", nat.preserve_port),
            ("nat.preserve_port_class", nat.preserve_port_class),
            ("nat.preserve_port_parity", nat.preserve_port_parity),
            ("nat.inbound_refresh", nat.inbound_refresh),
        ] {
            list.add(key, value.to_string());
        }
        list.add("nat.midstream", quoted(word(MIDSTREAMS, nat.midstream)));
        list.add("timers.profile", quoted(self.timer_profile));
        let mut timers = self.timers;
        for timer in TIMERS {
            let seconds = *(timer.field)(&mut timers) / 1000;
            list.add(&format!("timers.{}", timer.key), seconds.to_string());
        }
        self.service_settings(&mut list);
        let limits = self.limits;
        list.add(
            "limits.inbound_sessions_per_mapping",
            limits.inbound_sessions_per_mapping.to_string(),
        );
        for (key, limit, default) in [
            (
                "limits.inbound_sessions_per_forward",
                limits.inbound_sessions_per_forward,
                "an eighth of sessions_max",
            ),
            (
                "limits.half_open_per_forward",
                limits.half_open_per_forward,
                "a 32nd of sessions_max",
            ),
        ] {
            list.add(key, number_or(limit, default));
        }
        let quotas = limits.quotas;
        for (key, by_protocol) in [
            ("limits.sessions_per_subscriber", &quotas.sessions),
            ("limits.ports_per_subscriber", &quotas.ports),
        ] {
            list.add(key, numbers_by_protocol(by_protocol));
        }
        list.add(
            "limits.mappings_per_second_per_subscriber",
            number_or(quotas.mappings_per_second, "any number"),
        );
        let burst = quotas.mappings_per_second.map(|_| quotas.mapping_burst);
        list.add(
            "limits.mapping_burst_per_subscriber",
            number_or(burst, "those of a second"),
        );
        for (number, forward) in self.forwards.iter().enumerate() {
            let mut put = |key: &str, value: String, default| {
                list.push(format!("forwards[{number}].{key}"), value, default);
            };
            let protocols: Vec<_> = forward
                .protocols
                .iter()
                .copied()
                .map(At::default_value)
                .collect();
            if forward.external.ports.is_some() {
                put("protocol", quoted_list(&protocols), false);
            }
            put("external", quoted(forward.external.value), false);
            put("target", quoted_list(&forward.targets), false);
            let weights: Vec<String> = forward
                .weights
                .iter()
                .map(|at| at.value.to_string())
                .collect();
            put(
                "weights",
                format!("[{}]", weights.join(", ")),
                weights.is_empty(),
            );
            let affinity = quoted(word(AFFINITIES, forward.affinity));
            put("affinity", affinity, forward.affinity == Affinity::Source);
            put(
                "allow",
                quoted_list(&forward.allow),
                forward.allow.is_empty(),
            );
        }
        list.add(
            "icmp.errors_per_second",
            self.icmp.errors_per_second.to_string(),
        );
        list.add(
            "icmp.on_refusal",
            quoted(word(REFUSALS, self.icmp.on_refusal)),
        );
        let unsolicited = self.icmp.unsolicited;
        list.add("icmp.unsolicited", quoted(word(UNSOLICITED, unsolicited)));
        let sessions = self.tables.sessions_max.map(|at| at.value);
        list.add("tables.sessions_max", number_or(sessions, "by RAM"));
        list.add("tables.path", quoted(self.tables.path.value.display()));
        list.add(
            "workers.count",
            number_or(self.workers.count.map(|at| at.value), "min(CPUs, queues)"),
        );
        list.add("workers.poll", quoted(word(POLLS, self.workers.poll.value)));
        let cpus: Vec<String> = self
            .workers
            .cpus
            .iter()
            .map(|cpu| cpu.value.to_string())
            .collect();
        list.add("workers.cpus", format!("[{}]", cpus.join(", ")));
        let priority = self.workers.priority.map(|at| at.value);
        list.add("workers.priority", number_or(priority, "none"));
        list.add("device.mode", quoted(word(DEVICE_MODES, self.mode.value)));
        list.add("control.socket", quoted(self.control_socket.display()));
        let group = self.control_group.as_ref();
        let group = group.map_or("none".to_owned(), |group| quoted(&group.value));
        list.add("control.group", group);
        list.list
    }

    fn pool_settings(&self, list: &mut Settings<'_>) {
        for (number, NamedPool { name, pool }) in self.pools.iter().enumerate() {
            let mut put = |key: &str, value: String, default| {
                list.push(format!("pools[{number}].{key}"), value, default);
            };
            put("name", quoted(&name.value), false);
            put("addresses", quoted_list(&pool.addresses), false);
            let ports = pool.ports.as_deref().map(quoted_list);
            let default = ports.is_none();
            put(
                "ports",
                ports.unwrap_or_else(|| "1024-65535".to_owned()),
                default,
            );
            let excluded = &pool.exclude_ports;
            put("exclude_ports", quoted_list(excluded), excluded.is_empty());
            let pairing = pool.pairing.unwrap_or(Pairing::Hard);
            put(
                "pairing",
                quoted(word(PAIRINGS, pairing)),
                pool.pairing.is_none(),
            );
        }
    }

    fn rule_settings(&self, list: &mut Settings<'_>) {
        for (number, rule) in self.rules.iter().enumerate() {
            let mut put = |key: &str, value: String, default| {
                list.push(format!("rules[{number}].{key}"), value, default);
            };
            let name = rule.name.as_ref().map(|name| quoted(&name.value));
            let unnamed = name.is_none();
            put(
                "name",
                name.unwrap_or_else(|| format!("{}", number + 1)),
                unnamed,
            );
            put(
                "sources",
                quoted_list(&rule.sources),
                rule.sources.is_empty(),
            );
            let destinations = &rule.destinations;
            put(
                "destinations",
                quoted_list(destinations),
                destinations.is_empty(),
            );
            put("ports", quoted_list(&rule.ports), rule.ports.is_empty());
            put(
                "protocol",
                quoted_list(&rule.protocols),
                rule.protocols.is_empty(),
            );
            let translate = match &rule.action {
                RuleAction::Translate(translate) => translate,
                RuleAction::Bypass => {
                    put("action", quoted("bypass"), false);
                    continue;
                }
                RuleAction::Drop => {
                    put("action", quoted("drop"), false);
                    continue;
                }
            };
            put("action", quoted("translate"), true);
            let pool = translate.pool.as_ref().map(|pool| pool.value.as_str());
            put("pool", quoted(pool.unwrap_or(DEFAULT_POOL)), pool.is_none());
            let (mapping, filtering) = (&translate.mapping, &translate.filtering);
            put(
                "mapping",
                by_protocol(MAPPINGS, mapping),
                *mapping == self.nat.mapping,
            );
            let as_all = *filtering == self.nat.filtering;
            put("filtering", by_protocol(FILTERINGS, filtering), as_all);
            for (key, seconds) in translate.timers.iter() {
                put(key, seconds.to_string(), false);
            }
        }
    }

    fn service_settings(&self, list: &mut Settings<'_>) {
        for (number, service) in self.services.iter().enumerate() {
            let mut put = |key: &str, value: String| {
                list.push(format!("services[{number}].{key}"), value, false);
            };
            put("protocol", quoted(service.protocol));
            put("ports", quoted_list(&service.ports));
            for (key, seconds) in service.timers.iter() {
                put(key, seconds.to_string());
            }
        }
    }

    fn interface_settings(&self, list: &mut Settings<'_>) {
        if self.is_given("interface") {
            list.add("interface", quoted(&self.external_interface().name.value));
            return;
        }
        for (number, interface) in self.interfaces.iter().enumerate() {
            let key = |key: &str| format!("interfaces[{number}].{key}");
            list.push(key("name"), quoted(&interface.name.value), false);
            list.push(key("role"), quoted(interface.role), false);
            let mode = word(DEVICE_MODES, self.mode_of(interface).value);
            list.push(key("mode"), quoted(mode), interface.mode.is_none());
        }
    }
}

struct Settings<'a> {
    config: &'a Config,
    list: Vec<Setting>,
}

impl Settings<'_> {
    fn add(&mut self, key: &str, value: String) {
        self.push(key.to_owned(), value, !self.config.is_given(key));
    }

    fn push(&mut self, key: String, value: String, default: bool) {
        self.list.push(Setting {
            key,
            value,
            default,
        });
    }
}

fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

fn quoted_list<T: std::fmt::Display>(values: &[At<T>]) -> String {
    let values: Vec<String> = values.iter().map(|at| quoted(&at.value)).collect();
    match &values[..] {
        [one] => one.clone(),
        _ => format!("[{}]", values.join(", ")),
    }
}

/// One word if it is the same for all protocols, else a table.
fn by_protocol<T: PartialEq + Copy>(words: &[(&'static str, T)], values: &[At<T>; 3]) -> String {
    let one = values.map(|at| quoted(word(words, at.value)));
    if one.iter().all(|word| *word == one[0]) {
        return one[0].clone();
    }
    let each = Protocol::ALL.map(|protocol| format!("{protocol} = {}", one[protocol.index()]));
    format!("{{ {} }}", each.join(", "))
}

/// One number if it is the same for all protocols, else a table of those that are set.
fn numbers_by_protocol(values: &[Option<u32>; 3]) -> String {
    if values.iter().all(|number| *number == values[0]) {
        return number_or(values[0], "any number");
    }
    let some = Protocol::ALL.into_iter().zip(values);
    let each = some.filter_map(|(protocol, number)| Some(format!("{protocol} = {}", (*number)?)));
    format!("{{ {} }}", each.collect::<Vec<_>>().join(", "))
}

fn number_or(number: Option<u32>, words: &str) -> String {
    number.map_or(words.to_owned(), |number| number.to_string())
}
