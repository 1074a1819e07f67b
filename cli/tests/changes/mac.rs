//! Ethernet addresses that change.

use egret_cli::demo::check::at;
use egret_cli::lab::plan::ROUTER_LINK;
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{Gateway, LabOptions, Topology};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Stand, ip};
use crate::{PREFIX, SHORT, ready};

/// The addresses of both neighbours change in the midst of a transfer, and the gateway's own.
fn changed_mac(topology: Topology, backend: Backend) {
    if !ready() {
        return;
    }
    let stand = Stand::start(LabOptions::new(PREFIX, topology), &backend.tuning(""));
    let lab = &stand.lab;
    let client = &lab.clients[0];
    for namespace in [&lab.router, &lab.gateway, &client.namespace] {
        namespace
            .set_sysctl("ipv4/conf/all/arp_notify", "1")
            .expect("a setting");
    }
    let server = &lab.servers[0];
    let tcp = TcpService::start(&server.namespace, 5003).expect("a server");
    let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
    let flow = UdpFlow::open(&client.namespace, 0, at(0, 7002)).expect("a flow");
    let seen = flow.ask(b"first", 3, SHORT).expect("an answer");
    let change = |namespace, link: &str, mac: &str| {
        ip(namespace, &format!("link set {link} address {mac}"));
        let goes_on = flow.ask(mac.as_bytes(), 10, SHORT);
        assert_eq!(
            goes_on.unwrap_or_else(|e| panic!("{link} {mac}: {e}")),
            seen
        );
    };
    for (namespace, link, mac) in [
        (&lab.router, ROUTER_LINK, "02:00:5e:00:53:01"),
        (&client.namespace, "eth0", "02:00:5e:00:53:02"),
    ] {
        std::thread::scope(|scope| {
            let transfer = scope.spawn(|| exchange(&client.namespace, at(0, 5003), 24 << 20, 13));
            change(namespace, link, mac);
            let transferred = transfer.join().expect("no panic");
            transferred.unwrap_or_else(|error| panic!("{link} {mac}: {error}"));
        });
    }
    // The gateway's own: until the steering program knows the new one, the host's kernel gets what
    // is sent to it, and would reset a connection. Datagrams and new connections go on.
    for (link, mac) in [
        (topology.external_link(), "02:00:5e:00:53:03"),
        (topology.internal_link(), "02:00:5e:00:53:04"),
    ] {
        change(&lab.gateway, link, mac);
        exchange(&client.namespace, at(0, 5003), 1 << 20, 14).expect("a new connection");
    }
    drop((tcp, udp));
    stand.assert_in_order();
    stand.stop();
}

on_both_backends! {
    changed_mac_two_arm: |backend| changed_mac(Topology::TwoArm, backend);
    changed_mac_one_arm: |backend| changed_mac(Topology::OneArm, backend);
}

/// A neighbour whose address changes without a word is found again by the kernel's probes: they
/// are made quicker here than by default.
fn changed_mac_without_a_word_by(backend: Backend) {
    if !ready() {
        return;
    }
    let stand = Stand::prepare(
        LabOptions::new(PREFIX, Topology::TwoArm),
        &backend.tuning(""),
    );
    let lab = &stand.lab;
    for (key, value) in [
        ("base_reachable_time_ms", "500"),
        ("delay_first_probe_time", "1"),
        ("interval_probe_time_ms", "500"),
    ] {
        lab.gateway
            .set_sysctl(&format!("ipv4/neigh/wan0/{key}"), value)
            .expect("a setting");
    }
    let mut stand = stand;
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let lab = &stand.lab;
    let server = &lab.servers[0];
    let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
    let flow = UdpFlow::open(&lab.clients[0].namespace, 0, at(0, 7002)).expect("a flow");
    let seen = flow.ask(b"first", 3, SHORT).expect("an answer");
    ip(
        &lab.router,
        &format!("link set {ROUTER_LINK} address 02:00:5e:00:53:05"),
    );
    let again = flow
        .ask(b"second", 60, SHORT)
        .expect("the router is found again");
    assert_eq!(again, seen);
    drop(udp);
    stand.stop();
}

on_both_backends! {
    changed_mac_without_a_word: changed_mac_without_a_word_by;
}
