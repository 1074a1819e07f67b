//! How pools, rules and services fit each other and the rest of the file.

use std::collections::{HashMap, HashSet};

use conntrack::{Action, Protocol, Rule, Rules};
use ipnet::Ipv4Net;

use super::check::{line_of, overlap};
use super::keys;
use super::problem::{At, Problem};
use super::rules::{DEFAULT_POOL, RuleAction, RuleConfig, ServiceConfig};
use super::values::{PoolEntry, PortRange};
use super::{Config, DeviceMode};

/// `complete`: everything in the file could be read.
pub(super) fn check(config: &Config, complete: bool, found: &mut Vec<Problem>) {
    pools(config, found);
    services(config, found);
    rules(config, found);
    if complete {
        unused_pools(config, found);
        never_reached(config, found);
    }
}

fn pools(config: &Config, found: &mut Vec<Problem>) {
    let mut names = HashMap::new();
    for named in &config.pools {
        let name = &named.name;
        if name.value == DEFAULT_POOL {
            let what = format!("a pool is called \"{DEFAULT_POOL}\"");
            let problem = Problem::error("pool-name", what).why("that is what rules call [pool]");
            found.push(problem.fix("choose another name").at(name.span));
        }
        if let Some(other) = names.insert(name.value.as_str(), name) {
            let what = format!("there are two pools \"{}\"", name.value);
            let place = line_of(&config.source, other.span);
            let problem = Problem::error("pool-name", what).why(format!("the other is in {place}"));
            let fix = "give one another name, or write its addresses into the other";
            found.push(problem.fix(fix).at(name.span));
        }
        let interface = |entry: &&At<PoolEntry>| entry.value == PoolEntry::Interface;
        if let Some(entry) = named.pool.addresses.iter().find(interface) {
            let what = format!("the pool \"{}\" has the interface's address", name.value);
            let why = "an address is in one pool, and the interface's is in [pool]";
            let fix = format!(
                "name [pool] in the rules instead: pool = \"{DEFAULT_POOL}\", or no pool at all"
            );
            let problem = Problem::error("pool-interface", what).why(why).fix(fix);
            found.push(problem.at(entry.span));
        }
    }
}

/// No port may be in two services of a protocol.
fn services(config: &Config, found: &mut Vec<Problem>) {
    let mut ports: Vec<(&ServiceConfig, &At<PortRange>)> = config
        .services
        .iter()
        .flat_map(|service| service.ports.iter().map(move |ports| (service, ports)))
        .collect();
    ports.sort_by_key(|(service, ports)| (service.protocol.index(), ports.first));
    for pair in ports.windows(2) {
        let [(before, one), (service, other)] = pair else {
            continue;
        };
        if before.protocol == service.protocol && other.first <= one.last {
            let what = format!("{} {} is in two services", service.protocol, other.value);
            let place = line_of(&config.source, one.span);
            let problem = Problem::error("service-twice", what);
            let problem = problem.why(format!("the other is in {place}"));
            found.push(problem.fix("keep one of the two").at(other.span));
        }
    }
}

fn rules(config: &Config, found: &mut Vec<Problem>) {
    for rule in &config.rules {
        if let RuleAction::Translate(translate) = &rule.action
            && let Some(pool) = &translate.pool
            && config.pool_number(&pool.value).is_none()
        {
            let what = format!("there is no pool \"{}\"", pool.value);
            let names = || config.pools.iter().map(|pool| pool.name.value.as_str());
            let near = keys::nearest(&pool.value, names());
            let fix = match near {
                Some(near) => format!("write pool = \"{near}\""),
                None => format!("add [[pools]] with name = \"{}\"", pool.value),
            };
            let quoted: Vec<String> = names().map(|name| format!("\"{name}\"")).collect();
            let why = match quoted.is_empty() {
                true => "the file has no [[pools]]".to_owned(),
                false => format!("the file has {}, and \"{DEFAULT_POOL}\"", quoted.join(", ")),
            };
            let problem = Problem::error("unknown-pool", what).why(why).fix(fix);
            found.push(problem.at(pool.span));
        }
        for source in &rule.sources {
            if !config
                .internal
                .iter()
                .any(|net| overlap(&net.value, &source.value))
            {
                let what = format!(
                    "the rule's source {} is in no internal prefix",
                    source.value
                );
                let why = "rules are for what comes from clients";
                let fix = format!(
                    "add \"{}\" to `internal`, or correct the source",
                    source.value
                );
                let problem = Problem::error("rule-source", what).why(why).fix(fix);
                found.push(problem.at(source.span));
            }
        }
        let only_icmp = |rule: &RuleConfig| {
            !rule.protocols.is_empty() && rule.protocols.iter().all(|p| p.value == Protocol::Icmp)
        };
        if let Some(ports) = rule.ports.first().filter(|_| only_icmp(rule)) {
            let what = "the rule names ports, and only ICMP";
            let problem =
                Problem::error("rule-ports", what).why("ICMP has no ports: it fits nothing");
            let fix = "remove `ports`, or name tcp or udp";
            found.push(problem.fix(fix).at(ports.span));
        }
        if config.mode.value == DeviceMode::Routed && rule.action == RuleAction::Bypass {
            let what = "a rule bypasses, and mode is \"routed\"";
            let why = "there the kernel's rules decide what comes to Egret, by destination only";
            let fix = "name the destinations in `bypass`";
            let problem = Problem::error("rule-routed", what).why(why).fix(fix);
            found.push(problem.at(Some(rule.span)));
        }
    }
}

fn unused_pools(config: &Config, found: &mut Vec<Problem>) {
    let used = config.rules.iter().filter_map(|rule| match &rule.action {
        RuleAction::Translate(translate) => translate.pool.as_ref(),
        _ => None,
    });
    let used: HashSet<&str> = used.map(|name| name.value.as_str()).collect();
    // Forwards may be all that its addresses are for.
    let forwarded = |pool: &super::PoolConfig| {
        let addr = config.forwards.iter().filter_map(|f| f.external.addr);
        addr.into_iter()
            .any(|addr| pool.own().any(|own| own == addr))
    };
    for named in &config.pools {
        if !used.contains(named.name.value.as_str()) && !forwarded(&named.pool) {
            let what = format!("no rule names the pool \"{}\"", named.name.value);
            let problem = Problem::warning("unused-pool", what).why("nothing leaves from it");
            let fix = "name it in a rule: pool = \"...\", or remove it";
            found.push(problem.fix(fix).at(named.name.span));
        }
    }
}

/// Warns of rules that an earlier one leaves nothing for. Asked is the first flow of each pair of a
/// rule's prefixes, by protocol and range of ports: it goes to an earlier rule, and that one takes the
/// whole pair. (Several earlier ones that take a pair together are not seen.)
fn never_reached(config: &Config, found: &mut Vec<Problem>) {
    let entered = |rule: &RuleConfig| Rule {
        sources: nets(&rule.sources),
        destinations: nets(&rule.destinations),
        ports: ranges(rule),
        protocols: Protocol::ALL.map(|protocol| fits(rule, protocol)),
        action: Action::Drop,
    };
    // Too many to be entered: the plan says so.
    let Ok(rules) = Rules::new(config.rules.iter().map(entered).collect()) else {
        return;
    };
    for (number, rule) in config.rules.iter().enumerate() {
        let pieces = rules.list()[number].pieces();
        let mut takers = pieces.map(|piece| {
            let (taker, _) = rules.find(&piece.first())?;
            let taker = (taker < number).then_some(taker)?;
            rules.list()[taker].takes(&piece).then_some(taker)
        });
        let Some(Some(first)) = takers.next() else {
            continue;
        };
        if takers.all(|taker| taker.is_some()) {
            let what = format!("{} is never reached", called(config, number));
            let taker = &config.rules[first];
            let place = line_of(&config.source, Some(taker.span));
            let why = format!(
                "{} in {place} comes first and takes its flows",
                called(config, first)
            );
            let problem = Problem::warning("rule-never-reached", what).why(why);
            let fix = "write it before that one, or remove it";
            found.push(problem.fix(fix).at(Some(rule.span)));
        }
    }
}

/// What messages call a rule.
fn called(config: &Config, number: usize) -> String {
    match &config.rules[number].name {
        Some(name) => format!("the rule \"{}\"", name.value),
        None => format!("rule {}", number + 1),
    }
}

fn nets(given: &[At<Ipv4Net>]) -> Vec<Ipv4Net> {
    given.iter().map(|at| at.value).collect()
}

fn ranges(rule: &RuleConfig) -> Vec<(u16, u16)> {
    rule.ports.iter().map(|at| (at.first, at.last)).collect()
}

fn fits(rule: &RuleConfig, protocol: Protocol) -> bool {
    rule.protocols.is_empty() || rule.protocols.iter().any(|at| at.value == protocol)
}
