//! Routes that change.

use std::net::Ipv4Addr;

use egret_cli::demo::check::at;
use egret_cli::lab::plan::ROUTER_LINK;
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{LabOptions, Topology, wait};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Stand, ip};
use crate::{LIMIT, PREFIX, SHORT, drops, ready};

/// The router's second address, on a second interface.
const ROUTER_TOO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);

/// The default route moves to another router on the same segment, and back.
fn changed_route_by(backend: Backend) {
    if !ready() {
        return;
    }
    let stand = Stand::start(
        LabOptions::new(PREFIX, Topology::OneArm),
        &backend.tuning(""),
    );
    let lab = &stand.lab;
    // Each of the router's interfaces answers for its own address only.
    lab.router
        .set_sysctl("ipv4/conf/all/arp_ignore", "1")
        .expect("a setting");
    let switch = lab.switch().name();
    ip(
        &lab.router,
        &format!("link add up1 type veth peer name rt1 netns {switch}"),
    );
    ip(&lab.router, &format!("address add {ROUTER_TOO}/32 dev up1"));
    ip(&lab.router, "link set up1 up");
    lab.switch().join_bridge("rt1", "br0").expect("a port");

    let server = &lab.servers[0];
    let tcp = TcpService::start(&server.namespace, 5003).expect("a server");
    let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
    let client = &lab.clients[0].namespace;
    let flow = UdpFlow::open(client, 0, at(0, 7002)).expect("a flow");
    let seen = flow.ask(b"first", 3, SHORT).expect("an answer");
    let received = |link| lab.router.traffic(link).expect("a counter").received;
    for (router, link, other) in [
        (ROUTER_TOO, "up1", ROUTER_LINK),
        (Ipv4Addr::new(192, 0, 2, 1), ROUTER_LINK, "up1"),
    ] {
        std::thread::scope(|scope| {
            // A transfer that the change hits in its midst.
            let transfer = scope.spawn(|| exchange(client, at(0, 5003), 24 << 20, 12));
            ip(&lab.gateway, &format!("route replace default via {router}"));
            transfer
                .join()
                .expect("no panic")
                .expect("the transfer goes on");
        });
        // On a busy machine the change may be heard of after the transfer.
        let begin = received(link);
        let followed = wait::until(LIMIT, || {
            assert_eq!(flow.ask(b"which way?", 3, SHORT).expect("it goes on"), seen);
            received(link) > begin + 4
        });
        assert!(followed, "the route by {link} is not taken");
        let before = (received(link), received(other));
        for round in 0..20u8 {
            assert_eq!(flow.ask(&[round], 3, SHORT).expect("it goes on"), seen);
        }
        let after = (received(link), received(other));
        assert!(after.0 >= before.0 + 20, "{before:?} {after:?} by {link}");
        assert!(
            after.1 < before.1 + 10,
            "{before:?} {after:?} not by {other}"
        );
    }
    // A route that leads nowhere, and its end.
    ip(&lab.gateway, "route add unreachable 198.51.100.0/24");
    let gone = wait::until(LIMIT, || flow.ask(b"nowhere", 1, SHORT / 10).is_err());
    assert!(
        gone && drops(&stand, "no_route") > 0,
        "{:?}",
        stand.status()["drops"]
    );
    ip(&lab.gateway, "route del unreachable 198.51.100.0/24");
    assert_eq!(flow.ask(b"back", 10, SHORT).expect("it goes on"), seen);
    drop((tcp, udp));
    stand.assert_in_order();
    stand.stop();
}

on_both_backends! {
    changed_route: changed_route_by;
}
