//! The report of `egret check`, as text and as JSON lines.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use conntrack::{AddressKind, MappingBehaviour, Protocol};
use engine::config::{Config, ConfigError, DEFAULT_POOL, Deviation, Level, Problem, Source};
use engine::plan::{Plan, sustainable_rate};
use serde_json::{Value, json};

/// What `egret check` found.
pub struct Report {
    source: Source,
    config: Option<Config>,
    plan: Option<Plan>,
    problems: Vec<Problem>,
    /// Deviations from the RFCs, where they were asked for.
    deviations: Option<Vec<Deviation>>,
}

impl Report {
    /// Of a file that is no configuration.
    pub fn invalid(error: ConfigError) -> Report {
        Report {
            source: error.source,
            config: None,
            plan: None,
            problems: error.problems,
            deviations: None,
        }
    }

    /// Of a configuration; no plan where errors speak against it. Problems in the order to show.
    pub fn new(config: Config, plan: Option<Plan>, problems: Vec<Problem>) -> Report {
        Report {
            source: config.source.clone(),
            config: Some(config),
            plan,
            problems,
            deviations: None,
        }
    }

    /// With the requirements of the RFCs that the configuration does not meet.
    pub fn with_deviations(mut self) -> Report {
        self.deviations = self.config.as_ref().map(Config::deviations);
        self
    }

    /// Can the gateway run so?
    pub fn is_valid(&self) -> bool {
        self.count(Level::Error) == 0
    }

    fn count(&self, level: Level) -> usize {
        self.problems
            .iter()
            .filter(|problem| problem.level == level)
            .count()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if let Some(config) = &self.config {
            out.push_str("Configuration (* default)\n");
            let mut table = plain_table();
            for setting in config.settings() {
                let mark = if setting.default { "*" } else { "" };
                table.add_row([setting.key, format!("= {}", setting.value), mark.to_owned()]);
            }
            let _ = writeln!(out, "{table}\n");
        }
        if let (Some(config), Some(plan)) = (&self.config, &self.plan) {
            out.push_str(&interfaces_text(plan));
            out.push_str(&pool_text(config, plan));
            out.push_str(&rates_text(config, plan));
            out.push_str(&size_text(plan));
        }
        if let Some(deviations) = &self.deviations {
            out.push_str(&deviations_text(deviations));
        }
        for problem in &self.problems {
            let _ = writeln!(out, "{}", problem.render(&self.source));
        }
        let counts =
            [Level::Error, Level::Warning, Level::Note].map(|level| match self.count(level) {
                1 => format!("1 {level}"),
                count => format!("{count} {level}s"),
            });
        let verdict = if self.is_valid() { "valid" } else { "invalid" };
        let _ = writeln!(
            out,
            "{}: {verdict}, {}",
            self.source.name,
            counts.join(", ")
        );
        out
    }

    /// For machines: one object a line.
    pub fn json(&self) -> String {
        let mut lines = Vec::new();
        if let Some(config) = &self.config {
            for setting in config.settings() {
                let name = format!("check/config/{}", setting.key);
                lines.push(
                    json!({"name": name, "value": setting.value, "default": setting.default}),
                );
            }
        }
        if let (Some(config), Some(plan)) = (&self.config, &self.plan) {
            plan_json(config, plan, &mut lines);
        }
        if let Some(deviations) = &self.deviations {
            lines.extend(deviations.iter().map(deviation_json));
            lines.push(json!({"name": "check/rfc/deviations", "value": deviations.len()}));
        }
        for (number, problem) in self.problems.iter().enumerate() {
            let same =
                |other: &&Problem| other.name == problem.name && other.level == problem.level;
            let before = self.problems[..number].iter().filter(same).count();
            lines.push(problem_json(problem, before, &self.source));
        }
        let levels = [
            (Level::Error, "errors"),
            (Level::Warning, "warnings"),
            (Level::Note, "notes"),
        ];
        for (level, name) in levels {
            lines.push(json!({"name": format!("check/{name}"), "value": self.count(level)}));
        }
        lines.push(json!({"name": "check/valid", "value": self.is_valid()}));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn interfaces_text(plan: &Plan) -> String {
    let mut table = plain_table();
    table.set_header([
        "#",
        "interface",
        "role",
        "driver",
        "queues",
        "MTU",
        "addresses",
    ]);
    for interface in &plan.interfaces {
        let facts = &interface.facts;
        let addresses: Vec<String> = facts.addresses.iter().map(|net| net.to_string()).collect();
        let unknown = |text: String, known: bool| if known { text } else { "?".to_owned() };
        table.add_row([
            interface.number.to_string(),
            facts.name.clone(),
            interface.role.to_string(),
            unknown(facts.driver.clone(), !facts.driver.is_empty()),
            unknown(facts.rx_queues.to_string(), facts.rx_queues > 0),
            facts.mtu.to_string(),
            unknown(addresses.join(" "), true),
        ]);
    }
    format!("Interfaces\n{table}\n\n")
}

/// "own" or "shared", for a reader who does not know the words.
fn kind_text(kind: AddressKind) -> &'static str {
    match kind {
        AddressKind::Own => "Egret's own",
        AddressKind::Shared => "shared with the host",
    }
}

/// What rules call a pool.
fn pool_name(config: &Config, number: u16) -> &str {
    let named = usize::from(number).checked_sub(1);
    let named = named.and_then(|place| config.pools.get(place));
    named.map_or(DEFAULT_POOL, |pool| pool.name.value.as_str())
}

fn pool_text(config: &Config, plan: &Plan) -> String {
    let mut table = plain_table();
    table.set_header([
        "address",
        "pool",
        "",
        "tcp ports",
        "udp ports",
        "icmp identifiers",
    ]);
    for address in &plan.policy.addresses {
        let count = |protocol: Protocol| address.ports[protocol.index()].len().to_string();
        table.add_row([
            address.addr.to_string(),
            pool_name(config, address.pool).to_owned(),
            kind_text(address.kind).to_owned(),
            count(Protocol::Tcp),
            count(Protocol::Udp),
            count(Protocol::Icmp),
        ]);
    }
    let none = match plan.policy.addresses.is_empty() {
        true => "  no address yet: it is taken from the interface as soon as it has one\n",
        false => "",
    };
    format!("Pool\n{table}\n{none}\n")
}

/// Ports of one protocol on all addresses of the pool that rules call the default.
fn pool_ports(plan: &Plan, protocol: Protocol) -> u32 {
    plan.policy
        .addresses
        .iter()
        .filter(|address| address.pool == 0)
        .map(|address| address.ports[protocol.index()].len())
        .sum()
}

fn rates_text(config: &Config, plan: &Plan) -> String {
    let edm = config
        .nat
        .mapping
        .map(|at| at.value == MappingBehaviour::EndpointDependent);
    let reach = |edm: bool| match edm {
        true => ", to one remote endpoint",
        false => ", to all destinations together",
    };
    let alike = edm == [edm[0]; 3];
    let mut out = format!(
        "New flows a second that can go on for ever{}{}\n",
        if config.pools.is_empty() {
            ""
        } else {
            " from [pool]"
        },
        if alike { reach(edm[0]) } else { "" }
    );
    for protocol in Protocol::ALL {
        let ports = pool_ports(plan, protocol);
        let rate = sustainable_rate(config, protocol, ports);
        let held = match protocol {
            Protocol::Tcp => "after a short connection",
            _ => "after the last packet",
        };
        let hold_down = match rate.hold_down_s {
            0 => String::new(),
            seconds => format!(" and up to {seconds} s of hold-down"),
        };
        let _ = writeln!(
            out,
            "  {protocol:<5} {:>8.0}  = {ports} ports / {} s {held}{hold_down}{}",
            rate.per_second,
            rate.held_s,
            if alike {
                ""
            } else {
                reach(edm[protocol.index()])
            }
        );
    }
    if edm[Protocol::Udp.index()] {
        let udp = f64::from(plan.sessions_max) / f64::from(config.timers.udp_timeout_ms) * 1000.0;
        let _ = writeln!(
            out,
            "  To many destinations the ports serve again and the table is the limit: {} sessions, \
             {udp:.0} new UDP flows a second",
            plan.sessions_max
        );
    }
    out.push('\n');
    out
}

/// Bytes of the tables for each session, all in.
fn bytes_per_session(plan: &Plan) -> f64 {
    plan.table_bytes as f64 / f64::from(plan.sessions_max)
}

fn size_text(plan: &Plan) -> String {
    let cpus: Vec<String> = plan.cpus.iter().map(u16::to_string).collect();
    let on = if cpus.is_empty() {
        String::new()
    } else {
        format!(" on CPU {}", cpus.join(", "))
    };
    let rules = match plan.translation.rules.list().len() {
        0 => String::new(),
        count => format!(
            "Rules    {count}, {} bytes to look them up\n",
            plan.translation.rules.bytes()
        ),
    };
    format!(
        "{rules}Tables   {} sessions, {} bytes ({:.0} MiB), {:.1} bytes a session\nWorkers  {}{on}\n\n",
        plan.sessions_max,
        plan.table_bytes,
        plan.table_bytes as f64 / f64::from(1 << 20),
        bytes_per_session(plan),
        plan.workers,
    )
}

fn deviations_text(deviations: &[Deviation]) -> String {
    if deviations.is_empty() {
        return "RFC 4787, 5382, 5508, 6888, 7857: the configuration keeps to all that \
                COMPLIANCE.md says is met\n\n"
            .to_owned();
    }
    let mut table = plain_table();
    table.set_header(["requirement", "", "because of", "so"]);
    for deviation in deviations {
        table.add_row([
            format!("RFC {}", deviation.requirement),
            deviation.demand.to_string(),
            deviation.setting.clone(),
            deviation.effect.to_owned(),
        ]);
    }
    format!("Requirements that the configuration does not meet\n{table}\n\n")
}

fn deviation_json(deviation: &Deviation) -> Value {
    json!({
        "name": format!("check/rfc/{}", deviation.requirement),
        "value": false,
        "demand": deviation.demand.to_string(),
        "setting": deviation.setting,
        "effect": deviation.effect,
    })
}

fn plan_json(config: &Config, plan: &Plan, lines: &mut Vec<Value>) {
    for interface in &plan.interfaces {
        let (number, facts) = (interface.number, &interface.facts);
        let addresses: Vec<String> = facts.addresses.iter().map(|net| net.to_string()).collect();
        let values = [
            ("name", json!(facts.name)),
            ("role", json!(interface.role.to_string())),
            ("driver", json!(facts.driver)),
            ("queues", json!(facts.rx_queues)),
            ("mtu", json!(facts.mtu)),
            ("addresses", json!(addresses)),
        ];
        for (name, value) in values {
            lines.push(json!({"name": format!("check/interface/{number}/{name}"), "value": value}));
        }
    }
    for address in &plan.policy.addresses {
        let kind = if address.kind == AddressKind::Own {
            "own"
        } else {
            "shared"
        };
        lines.push(json!({"name": format!("check/pool/{}/kind", address.addr), "value": kind}));
        let (name, pool) = (format!("check/pool/{}/name", address.addr), address.pool);
        lines.push(json!({"name": name, "value": pool_name(config, pool)}));
        for protocol in Protocol::ALL {
            let name = format!("check/pool/{}/{protocol}/ports", address.addr);
            let ports = address.ports[protocol.index()].len();
            lines.push(json!({"name": name, "value": ports}));
        }
    }
    for protocol in Protocol::ALL {
        let rate = sustainable_rate(config, protocol, pool_ports(plan, protocol)).per_second;
        let rate = (rate * 100.0).round() / 100.0;
        let name = format!("check/rate/{protocol}");
        lines.push(json!({"name": name, "value": rate, "unit": "1/s"}));
    }
    let per_session = (bytes_per_session(plan) * 100.0).round() / 100.0;
    lines.push(json!({"name": "check/tables/sessions-max", "value": plan.sessions_max}));
    lines.push(json!({"name": "check/tables/bytes", "value": plan.table_bytes, "unit": "B"}));
    lines
        .push(json!({"name": "check/tables/bytes-per-session", "value": per_session, "unit": "B"}));
    let rules = &plan.translation.rules;
    lines.push(json!({"name": "check/rules", "value": rules.list().len()}));
    lines.push(json!({"name": "check/rules/bytes", "value": rules.bytes(), "unit": "B"}));
    lines.push(json!({"name": "check/workers", "value": plan.workers}));
    lines.push(json!({"name": "check/cpus", "value": plan.cpus}));
}

/// `before` problems of the same name came before: names stay unique.
fn problem_json(problem: &Problem, before: usize, source: &Source) -> Value {
    let number = if before == 0 {
        String::new()
    } else {
        format!("/{}", before + 1)
    };
    let mut line = json!({
        "name": format!("check/{}/{}{number}", problem.level, problem.name),
        "value": problem.what,
        "why": problem.why,
        "fix": problem.fix,
    });
    if let Some(span) = problem.span {
        let place = source.place(span);
        line["line"] = json!(place.line);
        line["column"] = json!(place.column);
    }
    line
}
