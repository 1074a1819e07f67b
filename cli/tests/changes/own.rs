//! An address that is Egret's alone.

use std::net::Ipv4Addr;

use egret_cli::demo::check::{at, endpoint};
use egret_cli::demo::setup::{
    FORWARD_LISTED, FORWARD_OPEN, FORWARD_TARGET, HAIRPIN_TARGET, Tuning,
};
use egret_cli::demo::unsolicited::gateway_mac;
use egret_cli::lab::icmp::IcmpSocket;
use egret_cli::lab::inject::{Injector, Kind};
use egret_cli::lab::plan::{EXTERNAL, ROUTER_LINK, SERVERS, STRANGER};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{TcpService, connect, exchange};
use egret_cli::lab::{Gateway, LabOptions, Topology, wait};

use crate::kernel::{Stand, ip, snmp};
use crate::{LIMIT, PREFIX, SHORT, drops, expect_pool, neighbour, ready};

/// An address of the external network that is Egret's own.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

fn own_address(topology: Topology, mode: &str) {
    if !ready() {
        return;
    }
    let tuning = Tuning {
        mode: Some(mode.to_owned()),
        more: format!("\n[pool]\naddresses = [\"{OWN}\"]\n"),
        ..Tuning::default()
    };
    let mut stand = Stand::prepare(LabOptions::new(PREFIX, topology), &tuning);
    if mode == "generic" {
        stand.split_for_generic_mode();
    }
    // Gratuitous ARP makes an entry here.
    let accept = format!("ipv4/conf/{ROUTER_LINK}/arp_accept");
    stand
        .lab
        .router
        .set_sysctl(&accept, "1")
        .expect("a setting");
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    expect_pool(&stand, &[OWN]);
    let mac = gateway_mac(&stand.lab).expect("its address");
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    let announced = wait::until(LIMIT, || neighbour(&stand, OWN).contains(&mac));
    assert!(announced, "no gratuitous ARP: {}", neighbour(&stand, OWN));

    traffic_of_own_address(&stand);
    only_ours(&stand);
    // The kernel answers ARP, engine or not.
    for _ in 0..2 {
        ip(
            &stand.lab.router,
            &format!("neighbour flush dev {ROUTER_LINK}"),
        );
        let icmp = IcmpSocket::open(&stand.lab.router).expect("a socket");
        let pinged = icmp.ping(OWN, 1, 1, b"anybody", 1, SHORT);
        assert!(pinged.is_err(), "a pool address answers no ping");
        assert!(
            neighbour(&stand, OWN).contains(&mac),
            "{}",
            neighbour(&stand, OWN)
        );
        stand.engine.kill();
    }
    let service = TcpService::start(&stand.lab.gateway, 22).expect("a server");
    let server = &stand.lab.servers[0].namespace;
    connect(server, endpoint(OWN, 22), SHORT).expect_err("dead, the engine's address is silent");
    exchange(server, endpoint(EXTERNAL, 22), 1024, 5).expect("the host's own is not");
    drop(service);
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    traffic_of_own_address(&stand);
    stand.assert_in_order();
    stand.stop();
}

/// Outbound, by a forward, and hairpin.
fn traffic_of_own_address(stand: &Stand) {
    let [s1, _] = &stand.lab.servers;
    let service = TcpService::start(&s1.namespace, 5001).expect("a server");
    let names = UdpService::start(&s1.namespace, s1.address, [7000]).expect("a server");
    for client in &stand.lab.clients {
        let seen = exchange(&client.namespace, at(0, 5001), 1 << 20, 2).expect("bytes");
        assert_eq!(*seen.ip(), OWN);
        let flow = UdpFlow::open(&client.namespace, 0, at(0, 7000)).expect("a flow");
        assert_eq!(*flow.ask(b"who", 3, SHORT).expect("an answer").ip(), OWN);
        let icmp = IcmpSocket::open(&client.namespace).expect("a socket");
        icmp.ping(s1.address, 7, 1, b"ping", 3, SHORT)
            .expect("an echo");
    }
    let target = &stand.lab.clients[1].namespace;
    let forward = TcpService::start(target, FORWARD_TARGET).expect("a server");
    let hairpin = TcpService::start(target, HAIRPIN_TARGET).expect("a server");
    let seen = exchange(&s1.namespace, endpoint(OWN, FORWARD_LISTED), 1 << 20, 3);
    assert_eq!(*seen.expect("the forward works").ip(), s1.address);
    let client = &stand.lab.clients[0].namespace;
    let seen = exchange(client, endpoint(OWN, FORWARD_OPEN), 1 << 20, 4);
    assert_eq!(*seen.expect("hairpin works").ip(), OWN);
    drop((service, names, forward, hairpin));
}

/// What matches nothing is dropped, and the host's kernel sees none of it; its own address is its
/// own.
fn only_ours(stand: &Stand) {
    const TRIES: u16 = 20;
    let lab = &stand.lab;
    let mac = gateway_mac(lab).expect("its address");
    let injector = Injector::open(&lab.router, ROUTER_LINK, mac).expect("a socket");
    let service = TcpService::start(&lab.gateway, 22).expect("a server");
    let no_ports = || snmp(&lab.gateway, "Udp", "NoPorts").expect("a counter");
    let resets = || snmp(&lab.gateway, "Tcp", "OutRsts").expect("a counter");
    let counted = || drops(stand, "no_session") + drops(stand, "filtered");
    let before = (no_ports(), resets(), counted());
    for number in 0..TRIES {
        let from = endpoint(STRANGER, 30_000 + number);
        for kind in [Kind::Udp, Kind::TcpSyn, Kind::TcpData] {
            injector
                .send(kind, from, endpoint(OWN, 22 + 7 * number))
                .expect("sent");
        }
    }
    let all = u64::from(TRIES) * 3;
    let dropped = wait::until(LIMIT, || counted() >= before.2 + all);
    assert!(dropped, "{} of {all} dropped", counted() - before.2);
    assert_eq!(
        (no_ports(), resets()),
        (before.0, before.1),
        "the kernel saw some of it"
    );
    let server = &lab.servers[0].namespace;
    connect(server, endpoint(OWN, 22), SHORT).expect_err("the host has no part in the address");
    exchange(server, endpoint(EXTERNAL, 22), 64 << 10, 5).expect("the host's own address");
    let names = UdpService::start(server, SERVERS[0], [7005]).expect("a server");
    let own = UdpFlow::open(&lab.gateway, 0, at(0, 7005)).expect("a flow");
    let seen = own.ask(b"host", 3, SHORT).expect("an answer to the host");
    assert_eq!(
        seen,
        endpoint(EXTERNAL, own.local().expect("its port").port())
    );
    drop((service, names));
}

#[test]
fn own_address_copy_two_arm() {
    own_address(Topology::TwoArm, "copy");
}

#[test]
fn own_address_copy_one_arm() {
    own_address(Topology::OneArm, "copy");
}

#[test]
fn own_address_tun_two_arm() {
    own_address(Topology::TwoArm, "tun");
}

#[test]
fn own_address_tun_one_arm() {
    own_address(Topology::OneArm, "tun");
}

#[test]
fn own_address_generic_two_arm() {
    own_address(Topology::TwoArm, "generic");
}

#[test]
fn own_address_generic_one_arm() {
    own_address(Topology::OneArm, "generic");
}
