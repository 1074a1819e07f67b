//! traceroute and tracepath: the gateway is a hop like any other (RFC 5508 REQ-10a), and the errors
//! from beyond it come to the client they are for.

use egret_cli::lab::plan::{FAR_LINK, GATEWAY_INTERNAL, ROUTER, SERVERS};
use egret_cli::lab::{Host, Topology};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{command, have, is_root, succeed};
use crate::{LIMIT, Pool, stand};

/// The hops of a traceroute, each with its address or `*`.
fn traceroute(from: &Host, options: &[&str]) -> Vec<String> {
    let mut traceroute = command("traceroute");
    traceroute.args(["-n", "-m", "8", "-w", "2", "-q", "1"]);
    traceroute.args(options).arg(SERVERS[1].to_string());
    let said = succeed(&from.namespace, &mut traceroute, LIMIT).text();
    // " 1  10.77.0.1  0.042 ms", after a line of its own.
    let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    said.lines().skip(1).filter_map(hop).collect()
}

/// What tracepath found: each path MTU that it learned, in bytes and in order, and its last line.
fn tracepath(from: &Host) -> (Vec<u32>, String) {
    let mut tracepath = command("tracepath");
    tracepath.args(["-n", "-m", "8", &SERVERS[1].to_string()]);
    let said = succeed(&from.namespace, &mut tracepath, LIMIT).text();
    let last = said.lines().last().unwrap_or_default().trim().to_owned();
    let mtu = |line: &str| {
        line.split_once("pmtu ")?
            .1
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let hops = said.lines().filter(|line| !line.contains("Resume"));
    (hops.filter_map(mtu).collect(), last)
}

fn paths(topology: Topology, backend: Backend) {
    let programs = [
        ("traceroute", "traceroute"),
        ("tracepath", "iputils-tracepath"),
    ];
    if !is_root() || !have(&programs) {
        return;
    }
    let stand = stand(topology, backend, Pool::Shared, "");
    let path = [GATEWAY_INTERNAL, ROUTER, FAR_LINK[1], SERVERS[1]];
    let path = path.map(|address| address.to_string());
    let (external, far) = stand.lab.small_mtus();
    let mtus = match topology {
        Topology::TwoArm => vec![1500, external, far],
        Topology::OneArm => vec![1500, far],
    };
    std::thread::scope(|scope| {
        for client in &stand.lab.clients {
            scope.spawn(|| {
                // UDP to a new port each, echo requests, SYN to a closed port.
                for options in [&[][..], &["-I"], &["-T", "-p", "5001"]] {
                    let hops = traceroute(client, options);
                    assert_eq!(hops, path, "traceroute {options:?} at {}", client.address);
                }
                let (found, last) = tracepath(client);
                assert_eq!(found, mtus, "tracepath at {}", client.address);
                let wanted = format!("Resume: pmtu {far} hops {}", path.len());
                assert!(last.starts_with(&wanted), "not {wanted:?}: {last}");
            });
        }
    });
    stand.finish();
}

on_both_backends! {
    paths_two_arm: |backend| paths(Topology::TwoArm, backend);
    paths_one_arm: |backend| paths(Topology::OneArm, backend);
}
