//! How the values fit each other: everything that can be judged without the host.

use conntrack::{FilteringBehaviour, MappingBehaviour, Protocol};
use ipnet::Ipv4Net;

use super::check_rules;
use super::forwards;
use super::problem::{At, Level, Problem, Source, Span};
use super::read::{FILTERINGS, word};
use super::reader::Problems;
use super::values::{PoolEntry, PortRange};
use super::{ADDRESSES_MAX, Config, DeviceMode, INTERFACES_MAX, Role, RuleAction};

/// Checks what single values cannot tell.
pub(super) fn check(config: &Config, problems: &Problems) {
    let mut found = Vec::new();
    // What could not be read is missing from the lists: no consequences are drawn from that.
    let complete = problems
        .borrow()
        .iter()
        .all(|problem| problem.level != Level::Error);
    overlapping_prefixes(config, &mut found);
    interfaces(config, &mut found);
    if complete {
        roles(config, &mut found);
    }
    let pool_is_sane = pool(config, &mut found) && complete;
    ports(config, &mut found);
    behaviours(config, &mut found);
    check_rules::check(config, complete, &mut found);
    if pool_is_sane {
        forwards::check(config, &mut found);
    }
    workers(config, &mut found);
    modes(config, &mut found);
    denied_in_vain(config, &mut found);
    bursts(config, &mut found);
    problems.borrow_mut().append(&mut found);
}

/// "line 3" of a span, or "the default".
pub(super) fn line_of(source: &Source, span: Option<Span>) -> String {
    span.map_or("the default".to_owned(), |span| {
        format!("line {}", source.place(span).line)
    })
}

fn overlapping_prefixes(config: &Config, found: &mut Vec<Problem>) {
    for (list, key) in [(&config.internal, "internal"), (&config.bypass, "bypass")] {
        for (number, prefix) in list.iter().enumerate() {
            let other = list[..number]
                .iter()
                .find(|other| overlap(&other.value, &prefix.value));
            let Some(other) = other else { continue };
            let (wide, narrow) = match other.prefix_len() <= prefix.prefix_len() {
                true => (other, prefix),
                false => (prefix, other),
            };
            let what = match wide == narrow {
                true => format!("{} stands twice in `{key}`", prefix.value),
                false => format!("{} in `{key}` lies within {}", narrow.value, wide.value),
            };
            let place = line_of(&config.source, other.span);
            let why = format!("the prefixes of a list must not overlap; the other is in {place}");
            let fix = format!("remove {}", narrow.value);
            let problem = Problem::error("overlapping-prefixes", what)
                .why(why)
                .fix(fix);
            found.push(problem.at(prefix.span));
        }
    }
}

/// What the kernel carries does not come by conntrack.
fn denied_in_vain(config: &Config, found: &mut Vec<Problem>) {
    let others = [(&config.internal, "internal"), (&config.bypass, "bypass")];
    for denied in &config.deny {
        for (list, key) in others {
            let Some(other) = list.iter().find(|o| overlap(&o.value, &denied.value)) else {
                continue;
            };
            let what = format!(
                "{} in `deny` overlaps {} in `{key}`",
                denied.value, other.value
            );
            let why = match key {
                "internal" => "what clients send to internal addresses is left to the kernel",
                _ => "what is bypassed is left to the kernel",
            };
            let problem = Problem::warning("denied-in-vain", what).why(why);
            let fix = "deny that part in the kernel's FORWARD rules";
            found.push(problem.fix(fix).at(denied.span));
        }
    }
}

/// The clock of a worker counts milliseconds: in one of them no more come through than the burst.
fn bursts(config: &Config, found: &mut Vec<Problem>) {
    let quotas = config.limits.quotas;
    let Some(rate) = quotas.mappings_per_second else {
        return;
    };
    if quotas.mapping_burst < rate.div_ceil(1000) {
        let what = format!(
            "`limits.mapping_burst_per_subscriber` is {}, with {rate} a second",
            quotas.mapping_burst
        );
        let why = "time is counted in milliseconds: the rate is not reached with so small a burst";
        let problem = Problem::warning("burst-too-small", what).why(why);
        let fix = format!(
            "write {} or more, or leave the key out",
            rate.div_ceil(1000)
        );
        found.push(problem.fix(fix));
    }
}

pub(super) fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn interfaces(config: &Config, found: &mut Vec<Problem>) {
    let list = &config.interfaces;
    for (number, interface) in list.iter().enumerate() {
        if list[..number]
            .iter()
            .any(|other| other.name == interface.name)
        {
            let what = format!("the interface \"{}\" is given twice", *interface.name);
            let problem = Problem::error("interface-twice", what);
            let why = "an interface has one role; role = \"both\" serves both sides";
            let fix = "keep one of the two".to_owned();
            found.push(problem.why(why).fix(fix).at(interface.name.span));
        }
    }
    let span = list.last().and_then(|interface| interface.name.span);
    if list.len() > INTERFACES_MAX {
        let problem = Problem::error("too-many", format!("{} interfaces are given", list.len()));
        let problem = problem.why(format!("one gateway serves at most {INTERFACES_MAX}"));
        found.push(problem.fix("run a second instance for the others").at(span));
    }
}

/// One interface leads outside, and one inside.
fn roles(config: &Config, found: &mut Vec<Problem>) {
    let list = &config.interfaces;
    let external: Vec<_> = list
        .iter()
        .filter(|interface| interface.role.is_external())
        .collect();
    let span = list.last().and_then(|interface| interface.name.span);
    if external.is_empty() && !list.is_empty() {
        let problem = Problem::error("no-external", "no interface has the outside behind it");
        let why = "translated packets need a way out";
        let fix =
            "add [[interfaces]] with role = \"external\", or write role = \"both\" for one arm";
        found.push(problem.why(why).fix(fix).at(span));
    }
    if let [first, second, ..] = external[..] {
        let both = first.role == Role::Both && second.role == Role::Both;
        let what = match both {
            true => format!(
                "\"{}\" and \"{}\" both have role = \"both\"",
                *first.name, *second.name
            ),
            false => format!(
                "\"{}\" and \"{}\" are both external",
                *first.name, *second.name
            ),
        };
        let why = "one interface leads outside: the pool's \"interface\" follows its address";
        let fix = "keep one role = \"external\" or \"both\", give the others role = \"internal\"";
        let problem = Problem::error("two-external", what).why(why).fix(fix);
        found.push(problem.at(second.name.span));
    }
    if let [only] = external[..]
        && only.role == Role::External
        && list.len() == 1
    {
        let what = format!(
            "\"{}\" is external, and no interface has clients behind it",
            *only.name
        );
        let problem = Problem::error("no-internal", what).why("nothing would be translated");
        let fix =
            "add [[interfaces]] with role = \"internal\", or write role = \"both\" for one arm";
        found.push(problem.fix(fix).at(only.name.span));
    }
}

/// False when the pool is so wrong that forwards cannot be held against it.
fn pool(config: &Config, found: &mut Vec<Problem>) -> bool {
    let before = found.len();
    if let (DeviceMode::Routed, Some(span)) = (config.mode.value, config.pool.interface_span()) {
        let what = "mode = \"routed\" needs pool addresses of Egret's own";
        let why =
            "the kernel routes whole addresses to Egret; the interface's own stays the host's";
        let fix = "name addresses in `pool.addresses` that the outside routes to this host";
        let span = span.or(config.mode.span);
        found.push(
            Problem::error("routed-pool", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    }
    let entries: Vec<&At<PoolEntry>> = config
        .all_pools()
        .flat_map(|(_, pool)| &pool.addresses)
        .collect();
    let mut count = 0u64;
    for (number, entry) in entries.iter().enumerate() {
        let named = number >= config.pool.addresses.len();
        if named && entry.value == PoolEntry::Interface {
            // Told by the check of named pools.
            continue;
        }
        if let Some(twice) = entries[..number]
            .iter()
            .find_map(|other| shared_part(&other.value, &entry.value))
        {
            let problem = Problem::error("pool-twice", format!("{twice} stands twice in the pool"));
            let why = "an address has one set of ports";
            found.push(problem.why(why).fix("remove one of the two").at(entry.span));
        }
        let PoolEntry::Own { first, last } = entry.value else {
            count += 1;
            continue;
        };
        count += u64::from(u32::from(last)) - u64::from(u32::from(first)) + 1;
        let clash = config
            .internal
            .iter()
            .find(|prefix| prefix.network() <= last && prefix.broadcast() >= first);
        if let Some(prefix) = clash {
            let what = format!(
                "the pool's {} lies in the internal prefix {}",
                entry.value, prefix.value
            );
            let problem = Problem::error("pool-internal", what);
            let place = line_of(&config.source, prefix.span);
            let why = format!(
                "what leaves with an internal source address counts as untranslated; the prefix is in {place}"
            );
            let fix = "take the addresses out of the pool, or narrow the prefix to the clients'";
            found.push(problem.why(why).fix(fix).at(entry.span));
        }
    }
    if count > ADDRESSES_MAX as u64 {
        let problem = Problem::error("too-many", format!("the pool has {count} addresses"));
        let why =
            format!("it can have {ADDRESSES_MAX}: each address costs port tables, used or not");
        let span = entries.iter().max_by_key(|entry| match entry.value {
            PoolEntry::Interface => 0,
            PoolEntry::Own { first, last } => u32::from(last) - u32::from(first),
        });
        let fix = "choose fewer; one address has 64512 ports to each destination with edm";
        found.push(
            problem
                .why(why)
                .fix(fix)
                .at(span.and_then(|entry| entry.span)),
        );
    }
    found.len() == before && !entries.is_empty()
}

/// What two entries of the pool have in common, if anything.
fn shared_part(a: &PoolEntry, b: &PoolEntry) -> Option<String> {
    match (*a, *b) {
        (PoolEntry::Interface, PoolEntry::Interface) => Some("\"interface\"".to_owned()),
        (
            PoolEntry::Own { first, last },
            PoolEntry::Own {
                first: from,
                last: to,
            },
        ) => {
            let low = first.max(from);
            (low <= last.min(to)).then(|| low.to_string())
        }
        _ => None,
    }
}

fn ports(config: &Config, found: &mut Vec<Problem>) {
    let default = [At::default_value(PortRange {
        first: 1024,
        last: 65535,
    })];
    for (number, pool) in config.all_pools() {
        let ranges = pool.ports.as_deref().unwrap_or(&default);
        if ranges.is_empty() {
            continue;
        }
        let mut set = conntrack::PortSet::empty();
        for range in ranges {
            set.insert_range(range.first, range.last);
        }
        for range in &pool.exclude_ports {
            set.remove_range(range.first, range.last);
        }
        if set.is_empty() {
            let table = if number == 0 { "pool" } else { "pools[]" };
            let what = format!("`{table}.exclude_ports` leaves no port in the pool");
            let why = "without a port nothing could be translated";
            let span = pool.exclude_ports.last().and_then(|range| range.span);
            let problem = Problem::error("empty-pool", what).why(why);
            found.push(problem.fix("exclude less").at(span));
        }
    }
}

fn behaviours(config: &Config, found: &mut Vec<Problem>) {
    let nat = &config.nat;
    clashing_behaviours("[nat]", "nat", &nat.mapping, &nat.filtering, found);
    open_on_shared(config, &nat.filtering, None, found);
    for rule in &config.rules {
        let RuleAction::Translate(translate) = &rule.action else {
            continue;
        };
        // What is wrong in [nat] is told once.
        let (mapping, filtering) = (&translate.mapping, &translate.filtering);
        if (*mapping, *filtering) != (nat.mapping, nat.filtering) {
            clashing_behaviours("the rule", "rules[]", mapping, filtering, found);
            let pool = translate.pool.as_ref();
            let pool = pool.and_then(|name| config.pool_number(&name.value));
            if pool.unwrap_or(0) == 0 {
                open_on_shared(config, filtering, Some(rule.span), found);
            }
        }
    }
}

/// `table`, called `place` in a sentence, says how packets are translated.
fn clashing_behaviours(
    place: &str,
    table: &str,
    mapping: &[At<MappingBehaviour>; 3],
    filtering_by_protocol: &[At<FilteringBehaviour>; 3],
    found: &mut Vec<Problem>,
) {
    let clashing = |protocol: &Protocol| {
        mapping[protocol.index()].value == MappingBehaviour::EndpointDependent
            && filtering_by_protocol[protocol.index()].value
                != FilteringBehaviour::EndpointDependent
    };
    let mut clashing: Vec<Protocol> = Protocol::ALL.into_iter().filter(clashing).collect();
    while let Some(&first) = clashing.first() {
        let filtering = filtering_by_protocol[first.index()];
        let same: Vec<String> = clashing
            .extract_if(.., |protocol| {
                filtering_by_protocol[protocol.index()] == filtering
            })
            .map(|protocol| protocol.to_string())
            .collect();
        let name = word(FILTERINGS, filtering.value);
        let who = match same.len() {
            3 => String::new(),
            1 => format!(", which {} has", same[0]),
            _ => format!(", which {} have", same.join(" and ")),
        };
        let what = format!("filtering = \"{name}\" does not go with mapping = \"edm\"{who}");
        let why = "with edm one external endpoint serves several clients whose remote endpoints \
                   differ, so a packet from another remote endpoint has no one receiver";
        let fix = match same.len() {
            3 => format!("write mapping = \"eim\" in {place}, or leave out filtering = \"{name}\""),
            _ => format!(
                "write {0} = \"eim\" in `{table}.mapping`, or {0} = \"edf\" in `{table}.filtering`",
                same.join(" and ")
            ),
        };
        let problem = Problem::error("behaviours-clash", what).why(why).fix(fix);
        found.push(problem.at(filtering.span));
    }
}

/// Flows of [pool], of all or of the rule at `rule`.
fn open_on_shared(
    config: &Config,
    filtering: &[At<FilteringBehaviour>; 3],
    rule: Option<Span>,
    found: &mut Vec<Problem>,
) {
    let open = |at: &&At<FilteringBehaviour>| at.value == FilteringBehaviour::EndpointIndependent;
    if let Some(filtering) = filtering.iter().find(open)
        && let Some(span) = config.pool.interface_span()
    {
        let what = "filtering = \"eif\" is refused on the interface's own address";
        let why = "the host's kernel uses the same address, any port of it, and replies to the \
                   host would be taken for packets to a client";
        let fix = "give [pool] addresses of its own (addresses = [\"203.0.113.4\"]), or write \
                   filtering = \"adf\"";
        let problem = Problem::error("eif-shared", what).why(why).fix(fix);
        found.push(problem.at(filtering.span.or(rule).or(span)));
    }
}

fn workers(config: &Config, found: &mut Vec<Problem>) {
    let cpus = &config.workers.cpus;
    for (number, cpu) in cpus.iter().enumerate() {
        if cpus[..number].contains(cpu) {
            let problem = Problem::error("cpu-twice", format!("CPU {} is given twice", cpu.value));
            let problem = problem.why("each worker has a CPU of its own");
            found.push(problem.fix("name each CPU once").at(cpu.span));
        }
    }
    if let Some(count) = config.workers.count
        && !cpus.is_empty()
        && cpus.len() < count.value as usize
    {
        let what = format!(
            "{} workers, but {} in `workers.cpus`",
            count.value,
            cpus.len()
        );
        let problem = Problem::error("too-few-cpus", what).why("each worker has a CPU of its own");
        let fix = "name as many CPUs, or leave `workers.count` out";
        found.push(problem.fix(fix).at(count.span));
    }
}

/// Routed mode has no ways of single interfaces.
fn modes(config: &Config, found: &mut Vec<Problem>) {
    if config.mode.value != DeviceMode::Routed {
        return;
    }
    for interface in &config.interfaces {
        let Some(mode) = interface.mode else { continue };
        let what = format!(
            "\"{}\" has a mode of its own, and device.mode is \"routed\"",
            *interface.name
        );
        let why = "in routed mode the kernel routes packets to Egret: frames are exchanged with no \
                   interface";
        let problem = Problem::error("mode-and-routed", what).why(why);
        found.push(problem.fix("remove one of the two").at(mode.span));
    }
}
