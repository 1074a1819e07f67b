//! The external interface's addresses against the internal prefixes, the pool and the forwards.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::facts::{HostFacts, NicFacts};
use crate::config::{Config, Problem, Role};

/// The address of the external interface that the pool has, if it has one: the first that traffic
/// may leave with and that is in no internal prefix.
pub fn shared_address(config: &Config, external: &NicFacts) -> Option<Ipv4Addr> {
    let first = usable_addresses(config, external).next();
    first.filter(|_| config.pool.has_interface())
}

/// The addresses of the external interface that the pool could share.
pub(super) fn usable_addresses(
    config: &Config,
    external: &NicFacts,
) -> impl Iterator<Item = Ipv4Addr> {
    external
        .leaving_addresses()
        .filter(|addr| !config.is_internal(*addr))
}

/// The external address against the internal prefixes (RFC 4787 REQ-7), and against the pool.
pub(super) fn external_address(
    config: &Config,
    host: &HostFacts,
    external: &NicFacts,
    found: &mut Vec<Problem>,
) {
    let shared = shared_address(config, external);
    let internal = external
        .leaving_addresses()
        .next()
        .filter(|_| config.pool.has_interface());
    let span = config.external_interface().name.span;
    if config.pool.has_interface() && shared.is_none() && internal.is_none() {
        let what = format!("\"{}\" has no IPv4 address yet", external.name);
        let why = "its address is in the pool: until it has one, packets from clients are dropped";
        let fix = format!(
            "nothing, if DHCP is about to give one; else: ip address add ADDRESS/24 dev {}",
            external.name
        );
        found.push(
            Problem::warning("no-address", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    }
    if let (None, Some(address)) = (shared, internal) {
        for prefix in config
            .internal
            .iter()
            .filter(|prefix| prefix.contains(&address))
        {
            found.push(clash(config, host, external, address, prefix.value).at(prefix.span));
        }
    }
    if config.external_interface().role == Role::External {
        for address in &external.addresses {
            let subnet = address.trunc();
            let overlaps = |prefix: &Ipv4Net| {
                (subnet.contains(&prefix.network()) || prefix.contains(&subnet.network()))
                    && !prefix.contains(&address.addr())
            };
            let Some(prefix) = config.internal.iter().find(|prefix| overlaps(prefix)) else {
                continue;
            };
            let what = format!(
                "the network {subnet} of \"{}\" overlaps the internal prefix {}",
                external.name, prefix.value
            );
            let why = "outside hosts in the overlap cannot be told from clients (RFC 4787 REQ-7)";
            let fix = "renumber the inside, or narrow `internal` to the clients' addresses";
            let problem = Problem::warning("prefix-clash", what).why(why).fix(fix);
            found.push(problem.at(prefix.span));
        }
    }
    own_addresses(config, host, external, found);
    forwards_on_shared(config, shared, found);
}

fn clash(
    config: &Config,
    host: &HostFacts,
    external: &NicFacts,
    address: Ipv4Addr,
    prefix: Ipv4Net,
) -> Problem {
    let what = format!(
        "the address {address} of \"{}\" lies in the internal prefix {prefix}",
        external.name
    );
    let why = "packets that leave with it would count as untranslated, and outside hosts of that \
               network as clients (RFC 4787 REQ-7)";
    let swapped = config
        .interfaces
        .iter()
        .filter(|interface| interface.role == Role::Internal);
    let mut swapped = swapped.filter_map(|interface| {
        let facts = host
            .interfaces
            .iter()
            .find(|facts| facts.name == interface.name.value)?;
        let addr = facts.leaving_addresses().next()?;
        (!config.is_internal(addr)).then_some(facts.name.as_str())
    });
    let fix = match swapped.next() {
        Some(other) => format!(
            "swap the roles, if the clients are behind \"{}\" and not behind \"{other}\"",
            external.name
        ),
        None => {
            let rest: Vec<String> = without(prefix, address)
                .iter()
                .map(|net| format!("\"{net}\""))
                .collect();
            format!(
                "name only the prefixes that clients have; {prefix} without the address is {}",
                rest.join(", ")
            )
        }
    };
    Problem::error("prefix-clash", what).why(why).fix(fix)
}

/// A prefix without one of its addresses, as prefixes in order.
fn without(prefix: Ipv4Net, addr: Ipv4Addr) -> Vec<Ipv4Net> {
    let mut rest = Vec::new();
    let mut left = prefix;
    while left.prefix_len() < 32 {
        let Ok(halves) = left.subnets(left.prefix_len() + 1) else {
            break;
        };
        for half in halves {
            match half.contains(&addr) {
                true => left = half,
                false => rest.push(half),
            }
        }
    }
    rest.sort();
    rest
}

/// Own addresses must not be the host's, nor the network's.
fn own_addresses(config: &Config, host: &HostFacts, external: &NicFacts, found: &mut Vec<Problem>) {
    let entries = config.all_pools().flat_map(|(_, pool)| &pool.addresses);
    for entry in entries {
        let holder = |addr: Ipv4Addr| {
            let has = |facts: &&NicFacts| facts.addresses.iter().any(|a| a.addr() == addr);
            host.interfaces.iter().find(has)
        };
        let held = entry
            .value
            .own()
            .find_map(|addr| Some((addr, holder(addr)?)));
        if let Some((addr, facts)) = held {
            let what = format!(
                "the pool's {addr} is this host's own address, on \"{}\"",
                facts.name
            );
            let why = "all that is sent to an address of the pool goes to Egret: SSH to it would \
                       no longer reach the host";
            let is_shared = facts.name == external.name
                && external
                    .leaving_addresses()
                    .next()
                    .is_some_and(|first| first == addr);
            let fix = match is_shared {
                true => "write \"interface\" instead: the host and Egret then share it by ports"
                    .to_owned(),
                false => format!(
                    "ip address del {addr} dev {}, or take it out of the pool",
                    facts.name
                ),
            };
            let problem = Problem::error("pool-host-address", what).why(why).fix(fix);
            found.push(problem.at(entry.span));
        }
        for address in &external.addresses {
            let subnet = address.trunc();
            let ends = [subnet.network(), subnet.broadcast()];
            let bad = entry
                .value
                .own()
                .find(|addr| subnet.prefix_len() < 31 && ends.contains(addr));
            let Some(addr) = bad else { continue };
            let what = format!("the pool's {addr} is the network or broadcast address of {subnet}");
            let why = format!(
                "\"{}\" is in that network: nobody would send to it",
                external.name
            );
            let fix = "leave it out of the pool".to_owned();
            let problem = Problem::error("pool-broadcast", what).why(why).fix(fix);
            found.push(problem.at(entry.span));
        }
    }
}

/// Forwards that name an address while the pool has the interface's: it must be that one.
fn forwards_on_shared(config: &Config, shared: Option<Ipv4Addr>, found: &mut Vec<Problem>) {
    if !config.pool.has_interface() {
        return;
    }
    for forward in &config.forwards {
        let Some(addr) = forward.external.addr else {
            continue;
        };
        if config.own_addresses().any(|own| own == addr) {
            continue;
        }
        let Some(port) = forward.external.ports else {
            let what = format!("the whole of {addr} is forwarded, which is not Egret's alone");
            let why =
                "the interface's address is the host's, too, and other addresses are nobody's here";
            let fix = format!("add \"{addr}\" to `pool.addresses` or to a pool, or name the ports");
            let problem = Problem::error("forward-whole", what).why(why).fix(fix);
            found.push(problem.at(forward.external.span));
            continue;
        };
        let only = config.pool.addresses.len() == 1;
        if shared == Some(addr) {
            let what = format!("the forward names {addr}, which is the interface's at the moment");
            let why = "it ends when that address changes";
            let fix = match only {
                true => format!("write external = \"{port}\": it then follows the address"),
                false => String::new(),
            };
            let problem = Problem::note("forward-fixed", what).why(why).fix(fix);
            found.push(problem.at(forward.external.span));
            continue;
        }
        let what = format!("the forward's external address {addr} is not in the pool");
        let why = match shared {
            Some(shared) => format!("the interface's address is {shared}"),
            None => "the interface has no address at the moment".to_owned(),
        };
        let fix = match only {
            true => format!("write external = \"{port}\", or add \"{addr}\" to `pool.addresses`"),
            false => format!("add \"{addr}\" to `pool.addresses`, or name one of its addresses"),
        };
        let problem = Problem::error("forward-outside-pool", what)
            .why(why)
            .fix(fix);
        found.push(problem.at(forward.external.span));
    }
}
