//! Forwards: read, and held against each other and the pools.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use conntrack::{Affinity, FORWARDS_MAX, Protocol};

use super::check::line_of;
use super::problem::{At, Problem};
use super::read::PROTOCOLS;
use super::reader::Reader;
use super::values::{self, ForwardExternal, PortRange};
use super::{Config, ForwardConfig};

pub(super) const AFFINITIES: &[(&str, Affinity)] =
    &[("source", Affinity::Source), ("none", Affinity::None)];

/// Largest share of a target.
const WEIGHT_MAX: u32 = 65_535;

/// Reads `[[forwards]]`.
pub(super) fn read(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> Vec<ForwardConfig> {
    let mut forwards = Vec::new();
    for table in root.tables("forwards") {
        given.extend(table.given());
        let external = table.parsed_or_number("external", values::forward_external);
        let targets = table.list("target", values::forward_target);
        let allow = table.list("allow", values::prefix).unwrap_or_default();
        for (key, why, fix) in [
            (
                "allow",
                "it could be read as nobody, or as everybody",
                "leave the key out to let any source in, or remove the forward",
            ),
            (
                "target",
                "a forward leads somewhere",
                "write an endpoint such as \"10.77.0.5:443\", or remove the forward",
            ),
        ] {
            if table.is_empty_list(key) {
                let what = format!("`forwards[].{key}` is an empty list");
                let name = if key == "allow" {
                    "empty-allow"
                } else {
                    "empty-target"
                };
                let problem = Problem::error(name, what).why(why);
                table.complain(problem.fix(fix).at(table.span_of(key)));
            }
        }
        let whole = external.is_some_and(|external| external.ports.is_none());
        for (key, example) in [
            ("protocol", "\"tcp\""),
            ("external", "\"8443\""),
            ("target", "\"10.77.0.5:443\""),
        ] {
            if !(table.has(key) || whole && key == "protocol") {
                table.missing(key, &format!("add a line such as {key} = {example}"));
            }
        }
        let protocols = table.choices("protocol", PROTOCOLS);
        let protocols: Vec<Protocol> = match (whole, protocols) {
            (true, Some(_)) => {
                let what = "a forward of a whole address names a protocol";
                let problem = Problem::error("forward-protocol", what);
                let problem =
                    problem.why("it takes TCP, UDP and ICMP, as the address is one host's");
                let fix = "remove `protocol`, or name the ports: external = \"203.0.113.4:8443\"";
                table.complain(problem.fix(fix).at(table.span_of("protocol")));
                continue;
            }
            (true, None) => Protocol::ALL.to_vec(),
            (false, protocols) => protocols.into_iter().flatten().map(|at| at.value).collect(),
        };
        let weights = table.integers("weights", 1, WEIGHT_MAX).unwrap_or_default();
        let affinity = table.choice("affinity", AFFINITIES);
        if let (Some(external), Some(targets)) = (external, targets)
            && !protocols.is_empty()
            && !targets.is_empty()
        {
            forwards.push(ForwardConfig {
                protocols,
                external,
                targets,
                weights,
                affinity: affinity.map_or(Affinity::Source, |at| at.value),
                allow,
            });
        }
    }
    forwards
}

/// The address of a forward, as far as the file tells: none for the interface's.
fn resolved(config: &Config, addr: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
    addr.or_else(|| {
        (!config.pool.has_interface())
            .then(|| config.pool.own().next())
            .flatten()
    })
}

pub(super) fn check(config: &Config, found: &mut Vec<Problem>) {
    let count: usize = config.forwards.iter().map(|f| f.protocols.len()).sum();
    if let (true, Some(last)) = (count > FORWARDS_MAX, config.forwards.last()) {
        let what = format!("{count} forwards are given");
        let problem = Problem::error("too-many", what);
        let why = format!("the tables have room for {FORWARDS_MAX}; one of two protocols is two");
        let fix = "write ports that follow each other as one range, or run a second instance";
        return found.push(problem.why(why).fix(fix).at(last.external.span));
    }
    for (number, forward) in config.forwards.iter().enumerate() {
        unclear_address(config, forward, found);
        let twice = config.forwards[..number]
            .iter()
            .find(|other| overlap(config, other, forward));
        if let Some(other) = twice {
            twice_forwarded(config, forward, other, found);
        }
        // With the interface's address in the pool, whether an address is it shows on the host.
        if let Some(addr) = forward.external.addr
            && !config.pool.has_interface()
            && !config.own_addresses().any(|own| own == addr)
        {
            let what = format!("the forward's external address {addr} is not in the pool");
            let why = "only packets to addresses of the pool reach the engine";
            let fix =
                format!("add \"{addr}\" to `pool.addresses`, or write an address of the pool");
            let problem = Problem::error("forward-outside-pool", what)
                .why(why)
                .fix(fix);
            found.push(problem.at(forward.external.span));
        }
        targets(config, forward, found);
    }
}

fn unclear_address(config: &Config, forward: &ForwardConfig, found: &mut Vec<Problem>) {
    let addresses = config.pool.own().count() + usize::from(config.pool.has_interface());
    let ForwardExternal { addr, ports } = forward.external.value;
    let (None, Some(ports), 2..) = (addr, ports, addresses) else {
        return;
    };
    let protocol = forward.protocols[0];
    let what = format!("the forward of {protocol} port {ports} names no address");
    let why = format!("the pool has {addresses} addresses, so it could be any of them");
    let example = config.pool.own().next().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let fix = format!("write external = \"{example}:{ports}\" or another address");
    let problem = Problem::error("forward-address", what).why(why).fix(fix);
    found.push(problem.at(forward.external.span));
}

/// Have two forwards an external endpoint in common?
fn overlap(config: &Config, one: &ForwardConfig, other: &ForwardConfig) -> bool {
    let all = PortRange {
        first: 0,
        last: u16::MAX,
    };
    let (a, b) = (
        one.external.ports.unwrap_or(all),
        other.external.ports.unwrap_or(all),
    );
    one.protocols
        .iter()
        .any(|protocol| other.protocols.contains(protocol))
        && a.first <= b.last
        && b.first <= a.last
        && resolved(config, one.external.addr) == resolved(config, other.external.addr)
}

fn twice_forwarded(
    config: &Config,
    forward: &ForwardConfig,
    other: &ForwardConfig,
    found: &mut Vec<Problem>,
) {
    let shared = |protocol: &&Protocol| other.protocols.contains(protocol);
    let protocol = forward.protocols.iter().find(shared);
    let protocol = protocol.map_or_else(String::new, ToString::to_string);
    let what = format!("{protocol} {} is forwarded twice", forward.external.value);
    let place = line_of(&config.source, other.external.span);
    let why = format!(
        "to {} in {place}, and to {}",
        other.targets[0].value, forward.targets[0].value
    );
    let problem = Problem::error("forward-twice", what).why(why);
    found.push(
        problem
            .fix("remove one of the two")
            .at(forward.external.span),
    );
}

fn targets(config: &Config, forward: &ForwardConfig, found: &mut Vec<Problem>) {
    let ports = forward.external.ports;
    let weights = &forward.weights;
    if !weights.is_empty() && weights.len() != forward.targets.len() {
        let what = format!(
            "{} weights for {} targets",
            weights.len(),
            forward.targets.len()
        );
        let problem = Problem::error("forward-weights", what).why("each target has its own");
        let fix = "write as many as there are targets, or leave `weights` out";
        found.push(problem.fix(fix).at(weights[0].span));
    }
    if let (None, Some(second)) = (ports, forward.targets.get(1)) {
        let what = "a whole address is forwarded to several targets";
        let why = "what a target sends leaves by the same address: it can be one host's only";
        let fix = "keep one target, or name the ports: external = \"203.0.113.4:8443\"";
        let problem = Problem::error("forward-whole", what).why(why).fix(fix);
        found.push(problem.at(second.span));
    }
    for target in &forward.targets {
        if let (None, Some(port)) = (ports, target.port) {
            let what = format!("a whole address is forwarded to port {port}");
            let problem = Problem::error("forward-whole", what).why("every port stays what it is");
            let fix = format!("write target = \"{}\"", target.addr);
            found.push(problem.fix(fix).at(target.span));
        }
        let last =
            |range: PortRange, port: u16| u32::from(port) + u32::from(range.last - range.first);
        if let (Some(range), Some(port)) = (ports, target.port)
            && last(range, port) > u32::from(u16::MAX)
        {
            let what = format!("the range {range} does not fit above port {port} of the target");
            let problem = Problem::error("forward-range", what).why("ports end at 65535");
            let fix = format!("write target = \"{}\" for the same ports", target.addr);
            found.push(problem.fix(fix).at(target.span));
        }
        if !config.internal.is_empty() && !config.is_internal(target.addr) {
            let what = format!(
                "the forward's target {} is in no internal prefix",
                target.value
            );
            let why = "replies from it would not be taken for a client's and would not be \
                       translated back";
            let fix = format!(
                "add \"{}/32\" to `internal`, or correct the target",
                target.addr
            );
            let problem = Problem::error("forward-target", what).why(why).fix(fix);
            found.push(problem.at(target.span));
        }
    }
    let same = |(at, target): &(usize, &At<values::ForwardTarget>)| {
        forward.targets[..*at]
            .iter()
            .any(|other| other.value == target.value)
    };
    if let Some((_, target)) = forward.targets.iter().enumerate().find(same) {
        let what = format!("the target {} stands twice in a forward", target.value);
        let problem = Problem::error("target-twice", what).why("a share is what `weights` are for");
        found.push(problem.fix("remove one of the two").at(target.span));
    }
}
