//! The world around a running gateway: an address of its own, addresses, routes and neighbours that
//! change while traffic flows, and frames that are none of its business.

mod kernel;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use egret_cli::demo::check::{at, endpoint};
use egret_cli::demo::setup::{
    FORWARD_LISTED, FORWARD_OPEN, FORWARD_TARGET, HAIRPIN_TARGET, Tuning,
};
use egret_cli::demo::unsolicited::{gateway_mac, watch_clients};
use egret_cli::lab::capture::Pick;
use egret_cli::lab::icmp::IcmpSocket;
use egret_cli::lab::inject::{Injector, Kind};
use egret_cli::lab::plan::{EXTERNAL, INTERNAL, ROUTER_LINK, SERVERS, STRANGER};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{EchoConnection, TcpService, connect, exchange};
use egret_cli::lab::{Capture, Gateway, LabOptions, Topology, wait};
use engine::device::sys::ethtool::{self, Offload};
use etherparse::PacketBuilder;
use kernel::{Frames, Stand, have, ip, is_root, snmp};

const PREFIX: &str = "egret-tc";
const LIMIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);
/// An address of the external network that is Egret's own.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// What the external interface's address is changed to.
const NEW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// The router's second address, on a second interface.
const ROUTER_TOO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);

fn ready() -> bool {
    is_root() && have(&[("ip", "iproute2")])
}

/// How many frames were dropped for a reason.
fn drops(stand: &Stand, reason: &str) -> u64 {
    stand.status()["drops"][reason].as_u64().unwrap_or(0)
}

/// The external addresses in use.
fn pool(stand: &Stand) -> Vec<String> {
    let pool = stand.status()["pool"].clone();
    let addresses = pool.as_array().expect("a list").iter();
    addresses
        .map(|own| own["address"].as_str().expect("an address").to_owned())
        .collect()
}

/// Waits until these are the external addresses.
fn expect_pool(stand: &Stand, addresses: &[Ipv4Addr]) {
    let wanted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert!(
        wait::until(LIMIT, || pool(stand) == wanted),
        "{:?}, not {wanted:?}",
        pool(stand)
    );
}

/// The neighbour entry of an address, as the router has it.
fn neighbour(stand: &Stand, address: Ipv4Addr) -> String {
    ip(
        &stand.lab.router,
        &format!("neighbour show {address} dev {ROUTER_LINK}"),
    )
}

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

fn changed_address(topology: Topology) {
    if !ready() {
        return;
    }
    let stand = Stand::start(LabOptions::new(PREFIX, topology), &Tuning::default());
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

#[test]
fn changed_address_two_arm() {
    changed_address(Topology::TwoArm);
}

#[test]
fn changed_address_one_arm() {
    changed_address(Topology::OneArm);
}

/// A daemon of the host begins to listen on a port of the shared address's pool: no client gets that
/// port any more.
#[test]
fn a_listening_port_leaves_the_pool() {
    if !ready() {
        return;
    }
    let stand = Stand::start(
        LabOptions::new(PREFIX, Topology::OneArm),
        &Tuning::default(),
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

/// The default route moves to another router on the same segment, and back.
#[test]
fn changed_route() {
    if !ready() {
        return;
    }
    let stand = Stand::start(
        LabOptions::new(PREFIX, Topology::OneArm),
        &Tuning::default(),
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

/// The addresses of both neighbours change in the midst of a transfer, and the gateway's own.
fn changed_mac(topology: Topology) {
    if !ready() {
        return;
    }
    let stand = Stand::start(LabOptions::new(PREFIX, topology), &Tuning::default());
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

#[test]
fn changed_mac_two_arm() {
    changed_mac(Topology::TwoArm);
}

#[test]
fn changed_mac_one_arm() {
    changed_mac(Topology::OneArm);
}

/// A neighbour whose address changes without a word is found again by the kernel's probes: they
/// are made quicker here than by default.
#[test]
fn changed_mac_without_a_word() {
    if !ready() {
        return;
    }
    let stand = Stand::prepare(
        LabOptions::new(PREFIX, Topology::TwoArm),
        &Tuning::default(),
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

/// A UDP frame with a marker as payload.
fn udp_frame(
    source: [u8; 6],
    to: [u8; 6],
    from: SocketAddrV4,
    at: SocketAddrV4,
    marker: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(source, to)
        .ipv4(from.ip().octets(), at.ip().octets(), 64)
        .udp(from.port(), at.port())
        .write(&mut frame, marker)
        .expect("a frame");
    frame
}

/// The frame with these bytes between its addresses and its EtherType.
fn tagged(frame: &[u8], tag: &[u8]) -> Vec<u8> {
    [&frame[..12], tag, &frame[12..]].concat()
}

/// The frame with another EtherType.
fn typed(frame: &[u8], ether_type: u16) -> Vec<u8> {
    [&frame[..12], &ether_type.to_be_bytes(), &frame[14..]].concat()
}

/// Frames that are left to the host even though their addresses and ports are those of a session:
/// from outside and from inside. Each carries a marker of its own.
fn foreign_frames(mode: &str) {
    if !ready() {
        return;
    }
    let tuning = Tuning {
        mode: Some(mode.to_owned()),
        ..Tuning::default()
    };
    let stand = Stand::start(LabOptions::new(PREFIX, Topology::TwoArm), &tuning);
    let lab = &stand.lab;
    // A veth end hands a bridge's tags over beside the frame, where XDP does not see them; in tc
    // they are seen.
    let switch = lab.switch();
    let in_band = switch.run(|| ethtool::set_offload("gw", Offload::TxVlan, mode == "tun"));
    in_band.expect("tags in the frames");
    let (server, client) = (&lab.servers[0], &lab.clients[0]);
    let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
    let flow = UdpFlow::open(&client.namespace, 0, at(0, 7002)).expect("a flow");
    let seen = flow.ask(b"first", 3, SHORT).expect("an answer");
    let mac_of = |namespace: &egret_cli::lab::Namespace, link| {
        namespace
            .link_address(link)
            .expect("a link")
            .addr()
            .expect("its address")
    };
    // Where it is sent, where it must be seen by the host, and where it would come out.
    let outside = Side {
        name: "outside",
        sender: Frames::open(&lab.router, ROUTER_LINK),
        host: Frames::open(&lab.gateway, "wan0"),
        host_sees_all: mode == "tun",
        beyond: Frames::open(&client.namespace, "eth0"),
        macs: (
            mac_of(&lab.router, ROUTER_LINK),
            mac_of(&lab.gateway, "wan0"),
        ),
        endpoints: (at(0, 7002), seen),
    };
    outside.check();
    // Only now: it would see what the other side has sent from the same interface.
    let inside = Side {
        name: "inside",
        sender: Frames::open(&client.namespace, "eth0"),
        host: Frames::open(&lab.gateway, "lan0"),
        host_sees_all: mode == "tun",
        beyond: Frames::open(&lab.router, ROUTER_LINK),
        macs: (
            mac_of(&client.namespace, "eth0"),
            mac_of(&lab.gateway, "lan0"),
        ),
        endpoints: (
            flow.local()
                .map(|local| endpoint(client.address, local.port()))
                .expect("its port"),
            at(0, 7002),
        ),
    };
    let watch = Capture::open(
        &lab.router,
        ROUTER_LINK,
        Pick {
            source: Some(INTERNAL),
            to: Some(mac_of(&lab.router, ROUTER_LINK)),
        },
    );
    inside.check();
    assert!(
        watch.expect("watching").take().is_empty(),
        "something left untranslated"
    );
    assert_eq!(flow.ask(b"last", 3, SHORT).expect("it goes on"), seen);
    // ARP and IPv6 as the kernels themselves speak them.
    ip(&lab.router, &format!("neighbour flush dev {ROUTER_LINK}"));
    assert_eq!(
        flow.ask(b"after", 5, SHORT)
            .expect("the router asks for us"),
        seen
    );
    drop(udp);
    stand.assert_in_order();
    stand.stop();
}

/// One side of the gateway.
struct Side {
    name: &'static str,
    sender: Frames,
    host: Frames,
    /// A packet socket sees what comes before tc does, and all of it.
    host_sees_all: bool,
    beyond: Frames,
    /// Of the sender and of the gateway.
    macs: ([u8; 6], [u8; 6]),
    /// Of a session's packet from this side.
    endpoints: (SocketAddrV4, SocketAddrV4),
}

impl Side {
    fn frame(&self, to: [u8; 6], marker: &[u8]) -> Vec<u8> {
        udp_frame(self.macs.0, to, self.endpoints.0, self.endpoints.1, marker)
    }

    fn frame_of_ipv6(&self, marker: &[u8]) -> Vec<u8> {
        let (source, to) = self.macs;
        let address = |last| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
        let (from, at) = self.endpoints;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(source, to)
            .ipv6(address(1), address(2), 64)
            .udp(from.port(), at.port())
            .write(&mut frame, marker)
            .expect("a frame");
        frame
    }

    fn check(&self) {
        let ours = self.macs.1;
        let to_us = |marker: &str| self.frame(ours, marker.as_bytes());
        // The same packet, plain, is ours: so what follows is not left alone for another reason.
        self.sender.send(&to_us("marker: plain"));
        assert!(
            self.beyond.see(b"marker: plain", LIMIT),
            "{}: a plain frame",
            self.name
        );
        assert!(
            self.host.see(b"marker: plain", Duration::ZERO) == self.host_sees_all,
            "{}: seen twice",
            self.name
        );
        let cases: [(&str, Vec<u8>); 8] = [
            (
                "marker: broadcast",
                self.frame([0xff; 6], b"marker: broadcast"),
            ),
            (
                "marker: multicast",
                self.frame([1, 0, 0x5e, 0, 0, 1], b"marker: multicast"),
            ),
            (
                "marker: other MAC",
                self.frame([2, 9, 9, 9, 9, 9], b"marker: other MAC"),
            ),
            (
                "marker: 802.1Q",
                tagged(&to_us("marker: 802.1Q"), &[0x81, 0, 0, 5]),
            ),
            (
                "marker: 802.1ad",
                tagged(
                    &to_us("marker: 802.1ad"),
                    &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
                ),
            ),
            ("marker: ARP", typed(&to_us("marker: ARP"), 0x0806)),
            ("marker: IPv6", self.frame_of_ipv6(b"marker: IPv6")),
            ("marker: LLDP", typed(&to_us("marker: LLDP"), 0x88cc)),
        ];
        for (marker, frame) in cases {
            self.sender.send(&frame);
            assert!(
                self.host.see(marker.as_bytes(), LIMIT),
                "{}: {marker}: not left to the host",
                self.name
            );
        }
        // Sent after all of them, so that none is still on its way.
        self.sender.send(&to_us("marker: end"));
        let mut strays = Vec::new();
        let ended = self
            .beyond
            .see_all(b"marker: ", b"marker: end", LIMIT, &mut strays);
        // The server's answer to the plain one may be seen, too.
        strays.retain(|marker| marker != "marker: plain");
        assert!(
            ended && strays.is_empty(),
            "{}: came out on the other side: {strays:?}",
            self.name
        );
    }
}

#[test]
fn foreign_frames_are_left_to_the_host_copy() {
    foreign_frames("copy");
}

#[test]
fn foreign_frames_are_left_to_the_host_tun() {
    foreign_frames("tun");
}

#[test]
fn foreign_frames_are_left_to_the_host_generic() {
    foreign_frames("generic");
}

/// A pair of interfaces within the gateway, both up, with an address.
fn add_pair(stand: &Stand, name: &str, address: &str) {
    let gateway = &stand.lab.gateway;
    ip(
        gateway,
        &format!("link add {name} type veth peer name {name}-far"),
    );
    ip(gateway, &format!("address add {address} dev {name}"));
    ip(gateway, &format!("link set {name} up"));
    ip(gateway, &format!("link set {name}-far up"));
}

/// The engine's log, and how many lines of it have all these words.
fn said(stand: &Stand, words: &[&str]) -> usize {
    let log = std::fs::read_to_string(stand.lab.directory().join("engine.log"));
    let log = log.expect("the engine's log");
    log.lines()
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .count()
}

/// Which interfaces are there, as the gateway says.
fn present(stand: &Stand) -> Vec<bool> {
    let status = stand.status();
    let interfaces = status["interfaces"].as_array().expect("a list").iter();
    interfaces
        .map(|interface| interface["present"].as_bool().expect("a word"))
        .collect()
}

#[test]
fn an_interface_that_vanishes_is_told_and_the_others_are_served() {
    if !ready() {
        return;
    }
    let tuning = Tuning {
        mode: Some("copy".to_owned()),
        more: "\n[[interfaces]]\nname = \"spare0\"\nrole = \"internal\"\n".to_owned(),
        ..Tuning::default()
    };
    let mut stand = Stand::prepare(LabOptions::new(PREFIX, Topology::TwoArm), &tuning);
    add_pair(&stand, "spare0", "10.77.0.129/32");
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(present(&stand), [true, true, true]);
    let server = &stand.lab.servers[0];
    let service = UdpService::start(&server.namespace, server.address, [7050]).expect("a server");
    let flow = UdpFlow::open(&stand.lab.clients[0].namespace, 0, at(0, 7050)).expect("a flow");
    let seen = flow.ask(b"before", 3, LIMIT / 20).expect("an answer");

    ip(&stand.lab.gateway, "link del spare0");
    let told = wait::until(LIMIT, || present(&stand) == [true, true, false]);
    assert!(told, "{:?}", present(&stand));
    assert_eq!(
        said(
            &stand,
            &["ERROR", "spare0", "nothing of it", "restart egret"]
        ),
        1
    );
    let again = flow.ask(b"after", 3, LIMIT / 20).expect("the others");
    assert_eq!(again, seen, "the same session");

    // One of its name is another interface.
    add_pair(&stand, "spare0", "10.77.0.129/32");
    let returned = ["ERROR", "spare0", "there again", "restart egret"];
    assert!(wait::until(LIMIT, || said(&stand, &returned) == 1));
    assert_eq!(present(&stand), [true, true, false]);

    ip(&stand.lab.gateway, "link del wan0");
    let told = wait::until(LIMIT, || present(&stand) == [true, false, false]);
    assert!(told, "{:?}", present(&stand));
    assert_eq!(said(&stand, &["ERROR", "wan0", "nothing of it"]), 1);
    assert_eq!(said(&stand, &["ERROR", "no external interface is left"]), 1);
    assert_eq!(said(&stand, &["no internal interface is left"]), 0);
    assert!(flow.ask(b"nowhere", 1, SHORT).is_err());
    assert_eq!(
        said(&stand, &["ERROR", "spare0", "nothing of it"]),
        1,
        "told once"
    );
    stand.assert_in_order();
    drop(service);
    // It ends in good order.
    stand
        .engine
        .stop()
        .unwrap_or_else(|error| panic!("{error}"));
}
