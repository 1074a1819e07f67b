//! WireGuard to a server outside.

use egret_cli::lab::Topology;
use egret_cli::lab::plan::{EXTERNAL, SERVERS, client};
use egret_cli::lab::tcp::{TcpService, exchange};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::wireguard::{TunnelEnd, have_wireguard};
use crate::kernel::{command, succeed};
use crate::{LIMIT, stand};

const TUNNEL_PORT: u16 = 51_820;
/// Inside the tunnel: the server, the client.
const TUNNEL: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

fn wireguard(topology: Topology, backend: Backend) {
    let Some(stand) = stand(topology, backend, &[("wg", "wireguard-tools")]) else {
        return;
    };
    if !have_wireguard(&stand) {
        return;
    }
    let (server, from) = (&stand.lab.servers[0], &stand.lab.clients[0]);
    let (arms, mode) = (&topology.name()[..1], &backend.mode()[..1]);
    let tag = format!("{:x}{arms}{mode}", std::process::id());
    let outside = TunnelEnd::make(&stand, server, format!("wg{tag}s"));
    let inside = TunnelEnd::make(&stand, from, format!("wg{tag}c"));
    let (port, endpoint) = (
        TUNNEL_PORT.to_string(),
        format!("{}:{TUNNEL_PORT}", SERVERS[0]),
    );
    let allowed = TUNNEL.map(|address| format!("{address}/32"));
    let words = [
        "listen-port",
        &port,
        "peer",
        &inside.public_key,
        "allowed-ips",
        &allowed[1],
    ];
    outside.set_up(server, TUNNEL[0], &words);
    let words = [
        "peer",
        &outside.public_key,
        "allowed-ips",
        &allowed[0],
        "endpoint",
        &endpoint,
    ];
    inside.set_up(
        from,
        TUNNEL[1],
        &[&words[..], &["persistent-keepalive", "1"]].concat(),
    );

    let service = TcpService::start(&server.namespace, 5001).expect("a server");
    let to = format!("{}:5001", TUNNEL[0]).parse().expect("an endpoint");
    let seen = exchange(&from.namespace, to, 4 << 20, 51).expect("bytes through the tunnel");
    assert_eq!(seen.ip().to_string(), TUNNEL[1]);
    // And one that the server opens, through the mapping that the client's packets keep.
    let back = TcpService::start(&from.namespace, 5002).expect("a server");
    let to = format!("{}:5002", TUNNEL[1]).parse().expect("an endpoint");
    exchange(&server.namespace, to, 1 << 20, 52).expect("bytes from the server's side");
    let mut show = command("wg");
    let endpoints = succeed(
        &server.namespace,
        show.args(["show", &outside.link, "endpoints"]),
        LIMIT,
    );
    let endpoints = endpoints.text();
    assert!(endpoints.contains(&format!("\t{EXTERNAL}:")), "{endpoints}");
    assert!(!endpoints.contains(&client(1).to_string()), "{endpoints}");
    drop((service, back, outside, inside));
    stand.finish();
}

on_both_backends! {
    wireguard_two_arm: |backend| wireguard(Topology::TwoArm, backend);
    wireguard_one_arm: |backend| wireguard(Topology::OneArm, backend);
}
