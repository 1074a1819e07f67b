//! Reads the facts from the machine, as far as the user may.

mod host;
mod interface;

use std::io;

use super::facts::{Facts, Policy, Unseen};
use crate::config::Config;
use crate::host::Host;
use crate::interface::InterfaceFacts;

/// Reads what concerns these interfaces of the calling thread's network namespace; blocks for as long
/// as programs that list rules take (seconds at most).
///
/// # Errors
/// The interfaces cannot be listed, or one of the names is none of them; says which there are.
pub fn read(interfaces: &[String], config: Option<&Config>) -> io::Result<Facts> {
    let host = Host::read()?;
    let mut unseen = Vec::new();
    let mut states = Vec::new();
    for name in interfaces {
        let facts = host.interfaces.iter().find(|facts| facts.name == *name);
        let facts = facts.ok_or_else(|| no_such(name, &host))?;
        states.push(interface::read(facts, &host));
    }
    if !nix::unistd::geteuid().is_root() {
        unseen.push(Unseen {
            what: "rules of nft and iptables, tc programs, whose an XDP program is, the limit of \
                   locked memory"
                .to_owned(),
            why: "only root may see them: run `sudo egret doctor`".to_owned(),
        });
    }
    Ok(Facts {
        host: host::read(&host),
        interfaces: states,
        policy: config.map(policy),
        unseen,
    })
}

fn no_such(name: &str, host: &Host) -> io::Error {
    let names: Vec<&str> = host
        .interfaces
        .iter()
        .map(|facts| facts.name.as_str())
        .collect();
    let why = format!(
        "there is no interface {name:?}; there are {}",
        names.join(", ")
    );
    io::Error::new(io::ErrorKind::NotFound, why)
}

/// The interfaces to look at where none is named: those that look like hardware; if there are none,
/// Ethernet ones that are no part of a bridge, as a container has.
///
/// # Errors
/// The interfaces cannot be listed.
pub fn served_by_default() -> io::Result<Vec<String>> {
    let host = Host::read()?;
    let names = |wanted: fn(&InterfaceFacts) -> bool| -> Vec<String> {
        let ethernet = |facts: &&InterfaceFacts| facts.mac.is_some() && !facts.loopback;
        let found = host.interfaces.iter().filter(ethernet);
        found
            .filter(|facts| wanted(facts))
            .map(|facts| facts.name.clone())
            .collect()
    };
    let hardware = names(|facts| facts.kind.is_empty());
    if !hardware.is_empty() {
        return Ok(hardware);
    }
    Ok(names(|facts| {
        facts.controller.is_none() && ["veth", "macvlan", "ipvlan"].contains(&facts.kind.as_str())
    }))
}

fn policy(config: &Config) -> Policy {
    let plain =
        |list: &[crate::config::At<ipnet::Ipv4Net>]| list.iter().map(|at| at.value).collect();
    Policy {
        internal: plain(&config.internal),
        bypass: plain(&config.bypass),
        deny: plain(&config.deny),
        shares_address: config.pool.has_interface(),
        has_own_ports: config.pool.ports.is_some(),
    }
}
