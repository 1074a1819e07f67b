//! External addresses and ports that come and go.

use std::net::Ipv4Addr;
use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::demo::unsolicited::{gateway_mac, watch_clients};
use egret_cli::lab::inject::{Injector, Kind};
use egret_cli::lab::plan::{EXTERNAL, ROUTER_LINK};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{EchoConnection, TcpService, exchange};
use egret_cli::lab::{LabOptions, Topology, wait};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Stand, ip};
use crate::{LIMIT, PREFIX, SHORT, expect_pool, ready};

/// What the external interface's address is changed to.
const NEW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

fn changed_address(topology: Topology, backend: Backend) {
    if !ready() {
        return;
    }
    let stand = Stand::start(LabOptions::new(PREFIX, topology), &backend.tuning(""));
    let link = topology.external_link();
    let server = &stand.lab.servers[0];
    let tcp = TcpService::start(&server.namespace, 5003).expect("a server");
    let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
    let [first, second] = &stand.lab.clients[..] else {
        panic!("two clients")
    };
    let flow = UdpFlow::open(&second.namespace, 0, at(0, 7002)).expect("a flow");
    let old = flow.ask(b"first", 3, SHORT).expect("an answer");
    assert_eq!(*old.ip(), EXTERNAL);
    let mut echo = EchoConnection::open(&first.namespace, at(0, 5003)).expect("a connection");
    echo.send(b"one").expect("sent");
    echo.expect(b"one", LIMIT).expect("an echo");

    // Without an address nothing leaves.
    ip(
        &stand.lab.gateway,
        &format!("address del {EXTERNAL}/25 dev {link}"),
    );
    expect_pool(&stand, &[]);
    flow.ask(b"nobody", 2, SHORT)
        .expect_err("there is no external address");
    ip(
        &stand.lab.gateway,
        &format!("address add {NEW}/25 dev {link}"),
    );
    // With one arm it has stayed, with two it went with the network's last address.
    ip(&stand.lab.gateway, "route replace default via 192.0.2.1");
    expect_pool(&stand, &[NEW]);
    let new = flow.ask(b"second", 10, SHORT).expect("the flow goes on");
    assert_eq!(*new.ip(), NEW, "with the new address");
    let seen = exchange(&first.namespace, at(0, 5003), 1 << 20, 9).expect("new connections");
    assert_eq!(*seen.ip(), NEW);
    let _ = echo.send(b"two");
    echo.expect(b"two", SHORT)
        .expect_err("the old address's connection has ended");
    // What is still sent to the old endpoint reaches nobody.
    let watched = watch_clients(&stand.lab).expect("watching");
    let mac = gateway_mac(&stand.lab).expect("its address");
    let injector = Injector::open(&stand.lab.router, ROUTER_LINK, mac).expect("a socket");
    injector.send(Kind::Udp, at(0, 7002), old).expect("sent");
    let seen = flow.ask(b"third", 3, SHORT).expect("it goes on");
    assert_eq!(seen, new);
    for watcher in &watched {
        let frames = watcher.take();
        let stray = frames
            .iter()
            .any(|frame| frame.windows(8).any(|bytes| bytes == b"stranger"));
        assert!(!stray, "a packet to the lost endpoint came in");
    }
    // As a renewed lease does it: the new one comes before the old one goes.
    let promote = format!("ipv4/conf/{link}/promote_secondaries");
    stand
        .lab
        .gateway
        .set_sysctl(&promote, "1")
        .expect("a setting");
    ip(
        &stand.lab.gateway,
        &format!("address add {EXTERNAL}/25 dev {link}"),
    );
    assert_eq!(
        flow.ask(b"fourth", 3, SHORT).expect("it goes on"),
        new,
        "the old one still stands"
    );
    ip(
        &stand.lab.gateway,
        &format!("address del {NEW}/25 dev {link}"),
    );
    expect_pool(&stand, &[EXTERNAL]);
    let seen = flow.ask(b"fifth", 10, SHORT).expect("it goes on");
    assert_eq!(*seen.ip(), EXTERNAL);
    stand.assert_in_order();
    drop((tcp, udp));
    stand.stop();
}

on_both_backends! {
    changed_address_two_arm: |backend| changed_address(Topology::TwoArm, backend);
    changed_address_one_arm: |backend| changed_address(Topology::OneArm, backend);
}

/// A daemon of the host begins to listen on a port of the shared address's pool: no client gets that
/// port any more.
fn a_listening_port_leaves_the_pool_by(backend: Backend) {
    if !ready() {
        return;
    }
    let stand = Stand::start(
        LabOptions::new(PREFIX, Topology::OneArm),
        &backend.tuning(""),
    );
    const PORT: u16 = 20_200;
    let server = &stand.lab.servers[0];
    let services =
        UdpService::start(&server.namespace, server.address, 7100..7230).expect("servers");
    let flow = |to: u16| {
        let client = &stand.lab.clients[0].namespace;
        let flow = UdpFlow::open(client, PORT, at(0, to)).expect("a flow");
        flow.ask(b"which port?", 3, SHORT)
            .expect("an answer")
            .port()
    };
    assert_eq!(flow(7100), PORT, "the port of the client is kept");
    let daemon = UdpService::start(&stand.lab.gateway, EXTERNAL, [PORT]).expect("a server");
    let mut ports = 7101..7230;
    let left = wait::until(2 * LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        flow(ports.next().expect("in time")) != PORT
    });
    assert!(left, "the port is still given away");
    drop((daemon, services));
    stand.stop();
}

on_both_backends! {
    a_listening_port_leaves_the_pool: a_listening_port_leaves_the_pool_by;
}
