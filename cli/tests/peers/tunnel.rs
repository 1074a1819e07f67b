//! WireGuard between two clients behind a gateway each: both know the other's external endpoint from
//! a server, and both send first (hole punching). That needs `eim`, whatever the filtering: the
//! endpoint that the server saw must be the one that the peer sees (RFC 4787 REQ-1, REQ-8).
//!
//! Two labs are the two sites, with the same private network; a link joins their routers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::lab::link::{End, Wire, connect};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{Topology, wait};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::wireguard::{TunnelEnd, have_wireguard};
use crate::kernel::{Stand, command, have, ip, is_root, succeed};
use crate::{LIMIT, OWN, Pool, stand};

/// Both listen there.
const TUNNEL_PORT: u16 = 51_820;
/// Where the server tells a client its external endpoint.
const NAMES_PORT: u16 = 7000;
/// The sites' external addresses.
const EXTERNALS: [Ipv4Addr; 2] = [OWN, Ipv4Addr::new(192, 0, 2, 201)];
/// The ends of the link between the sites.
const BETWEEN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 209), Ipv4Addr::new(192, 0, 2, 210)];
/// The clients' addresses inside the tunnel.
const TUNNEL: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
/// How a packet from a stranger is refused: a mapping of `edm` is not for it at all.
const REFUSED: &[&str] = &["filtered", "no_session"];

/// Two sites whose gateways serve, joined.
fn sites(topology: Topology, backend: Backend, nat: &str) -> [Stand; 2] {
    // Else the same port outside as inside would do as well.
    let nat = format!("{nat}\npreserve_port = false");
    let sites = EXTERNALS.map(|external| stand(topology, backend, Pool::Own(external), &nat));
    let end = |site: usize| End {
        namespace: &sites[site].lab.router,
        name: "peer",
    };
    let wire = Wire {
        mtu: 1500,
        queues: 1,
    };
    connect(end(0), end(1), wire).expect("a link between the sites");
    for (site, stand) in sites.iter().enumerate() {
        let (own, other) = (BETWEEN[site], BETWEEN[1 - site]);
        let router = &stand.lab.router;
        ip(router, &format!("address add {own}/30 dev peer"));
        ip(router, "link set peer up");
        let external = EXTERNALS[1 - site];
        // The other end must be up first: so the route says by which link.
        ip(
            router,
            &format!("route add {external}/32 via {other} dev peer onlink"),
        );
    }
    sites
}

/// The external endpoint of WireGuard's port on the first client, as a server sees it.
fn learn(stand: &Stand) -> SocketAddrV4 {
    let [server, _] = &stand.lab.servers;
    let names = UdpService::start(&server.namespace, server.address, [NAMES_PORT]);
    let _names = names.expect("a server");
    let client = &stand.lab.clients[0].namespace;
    let flow = UdpFlow::open(client, TUNNEL_PORT, at(0, NAMES_PORT)).expect("a flow");
    let seen = flow.ask(b"who", 5, Duration::from_millis(500));
    seen.expect("an answer")
}

/// The two ends of a tunnel: made, and not yet told of each other.
struct Punch {
    sites: [Stand; 2],
    externals: [SocketAddrV4; 2],
    ends: [TunnelEnd; 2],
}

impl Punch {
    /// `tag` tells this test's interfaces from others'; one letter.
    fn prepare(topology: Topology, backend: Backend, nat: &str, tag: char) -> Option<Punch> {
        if !is_root() || !have(&[("wg", "wireguard-tools")]) {
            return None;
        }
        let sites = sites(topology, backend, nat);
        if !have_wireguard(&sites[0]) {
            return None;
        }
        let externals = [0, 1].map(|site| learn(&sites[site]));
        for (seen, external) in externals.iter().zip(EXTERNALS) {
            assert_eq!(*seen.ip(), external);
        }
        let ends = [0, 1].map(|site| {
            let mode = &backend.mode()[..1];
            let link = format!("wg{:x}{tag}{mode}{site}", std::process::id());
            TunnelEnd::make(&sites[site], &sites[site].lab.clients[0], link)
        });
        Some(Punch {
            sites,
            externals,
            ends,
        })
    }

    /// Tells an end of its peer: it begins to send.
    fn begin(&self, site: usize) {
        let peer = 1 - site;
        let words = [
            "listen-port",
            &TUNNEL_PORT.to_string(),
            "peer",
            &self.ends[peer].public_key,
            "allowed-ips",
            &format!("{}/32", TUNNEL[peer]),
            "endpoint",
            &self.externals[peer].to_string(),
            "persistent-keepalive",
            "1",
        ];
        let host = &self.sites[site].lab.clients[0];
        self.ends[site].set_up(host, TUNNEL[site], &words);
    }

    /// Waits until a site's gateway has refused something from its peer.
    fn expect_refusal(&self, site: usize) {
        let stand = &self.sites[site];
        let refused = wait::until(LIMIT, || stand.drops(REFUSED) > 0);
        assert!(refused, "site {site}: {}", stand.status()["drops"]);
    }

    /// Has an end shaken hands with its peer?
    fn is_open(&self, site: usize) -> bool {
        let mut show = command("wg");
        show.args(["show", &self.ends[site].link, "latest-handshakes"]);
        let client = &self.sites[site].lab.clients[0].namespace;
        let said = succeed(client, &mut show, LIMIT).text();
        said.trim().rsplit('\t').next() != Some("0")
    }

    /// Sends bytes through the tunnel, opened by the client of site `from`.
    fn transfer(&self, from: usize, port: u16, length: u64) {
        let client = |site: usize| &self.sites[site].lab.clients[0].namespace;
        let _service = TcpService::start(client(1 - from), port).expect("a server");
        let to = format!("{}:{port}", TUNNEL[1 - from]).parse();
        let seen = exchange(
            client(from),
            to.expect("an endpoint"),
            length,
            u64::from(port),
        );
        let seen = seen.expect("bytes through the tunnel");
        assert_eq!(seen.ip().to_string(), TUNNEL[from]);
    }

    fn finish(self) {
        drop(self.ends);
        self.sites.into_iter().for_each(Stand::finish);
    }
}

fn opens(topology: Topology, backend: Backend, nat: &str, tag: char) {
    let Some(punch) = Punch::prepare(topology, backend, nat, tag) else {
        return;
    };
    punch.begin(0);
    // The peer has sent nothing yet: it is no open door.
    punch.expect_refusal(1);
    punch.begin(1);
    punch.transfer(1, 5001, 4 << 20);
    punch.transfer(0, 5002, 1 << 20);
    assert!(punch.is_open(0) && punch.is_open(1));
    for site in [0, 1] {
        let mut show = command("wg");
        show.args(["show", &punch.ends[site].link, "endpoints"]);
        let client = &punch.sites[site].lab.clients[0].namespace;
        let said = succeed(client, &mut show, LIMIT).text();
        let peer = punch.externals[1 - site].to_string();
        assert!(said.trim().ends_with(&peer), "not {peer}: {said}");
    }
    punch.finish();
}

on_both_backends! {
    wireguard_meets_behind_two_gateways_eim_edf: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"edf\"";
        opens(Topology::TwoArm, backend, nat, 'e');
    };
    wireguard_meets_behind_two_gateways_eim_adf: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"adf\"";
        opens(Topology::OneArm, backend, nat, 'a');
    };
    wireguard_does_not_meet_with_edm: |backend| {
        let nat = "mapping = \"edm\"\nfiltering = \"edf\"";
        let Some(punch) = Punch::prepare(Topology::TwoArm, backend, nat, 'm') else {
            return;
        };
        punch.begin(0);
        punch.expect_refusal(1);
        punch.begin(1);
        // With `eim` this one, from a peer that was sent to, opens the tunnel.
        punch.expect_refusal(0);
        assert!(!punch.is_open(0) && !punch.is_open(1), "a tunnel");
        punch.finish();
    };
}
