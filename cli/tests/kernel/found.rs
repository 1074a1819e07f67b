//! How the gateway's host is found, as text: to be compared with how it is left.

use std::fs;
use std::time::Duration;

use egret_cli::lab::plan::ROUTER_LINK;
use egret_cli::lab::{Lab, Namespace, Topology};
use engine::device::sys::ethtool::{self, Offload};

use super::{command, ip, succeed};

const LIMIT: Duration = Duration::from_secs(20);

/// What is set on the gateway and on its neighbours' ends of its links, as text.
pub fn snapshot(lab: &Lab) -> String {
    let gateway = &lab.gateway;
    let mut text = String::new();
    for line in [
        "-d link",
        "address",
        "-4 route show table all",
        "rule",
        "netconf",
    ] {
        text += &format!(
            "ip {line}:\n{}",
            ip(gateway, line).replace(" tentative", "")
        );
    }
    text += &succeed(gateway, command("tc").args(["qdisc", "show"]), LIMIT).text();
    let mut ends = vec![
        (gateway, lab.topology.internal_link()),
        (lab.switch(), "gw"),
    ];
    if lab.topology == Topology::TwoArm {
        ends.extend([
            (gateway, lab.topology.external_link()),
            (&lab.router, ROUTER_LINK),
        ]);
    }
    for (namespace, link) in ends {
        text += &format!(
            "{} {link}: {}\n",
            namespace.name(),
            offloads(namespace, link)
        );
    }
    text += &format!("kept in /run: {:?}\n", kept(lab));
    text
}

/// The offloads that are on.
fn offloads(namespace: &Namespace, link: &str) -> String {
    let on = namespace.run(|| {
        let is_on = |which: &Offload| ethtool::offload(link, *which).unwrap_or(false);
        Ok(Offload::ALL
            .iter()
            .filter(|which| is_on(which))
            .map(|which| which.name())
            .collect())
    });
    let on: Vec<&str> = on.expect("asking about offloads");
    on.join(" ")
}

/// What the instance keeps in /run, but for its tables.
pub fn kept(lab: &Lab) -> Vec<String> {
    let directory = format!("/run/egret/{}", lab.name());
    let names = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect::<Vec<String>>()
    };
    let mut all = names(&directory);
    all.extend(names(&format!("{directory}/bpf")));
    all.retain(|name| name != "tables");
    all
}

/// Differences of two snapshots, a line each.
pub fn difference(before: &str, after: &str) -> String {
    let only = |a: &str, b: &str, sign: char| {
        let missing = a
            .lines()
            .filter(|line| !b.lines().any(|other| other == *line));
        missing
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    only(before, after, '-') + &only(after, before, '+')
}
