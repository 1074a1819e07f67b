//! What STUN clients say of the gateway: coturn's natdiscovery (RFC 5780) names mapping, filtering
//! and hairpinning; the classic client (RFC 3489) the first two and whether ports are preserved. The
//! server is coturn with two addresses and two ports.

use egret_cli::lab::Topology;
use egret_cli::lab::plan::{SECOND_ADDRESSES, SERVERS};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Daemon, Stand, command, have, is_root, run, succeed};
use crate::{LIMIT, OWN, Pool, stand};

/// The server's port and its alternate one.
const PORTS: [u16; 2] = [3478, 3479];

fn turnserver(stand: &Stand) -> Daemon {
    let directory = stand.lab.directory();
    let mut turnserver = command("turnserver");
    turnserver
        .args(["-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls"])
        .args(["--log-file", "stdout", "--simple-log"])
        .args(["--listening-port", &PORTS[0].to_string()])
        .args(["--alt-listening-port", &PORTS[1].to_string()])
        .arg("--pidfile")
        .arg(directory.join("turnserver.pid"))
        .arg("--userdb")
        .arg(directory.join("turndb"));
    for address in [SERVERS[0], SECOND_ADDRESSES[0]] {
        turnserver.args(["--listening-ip", &address.to_string()]);
        turnserver.args(["--relay-ip", &address.to_string()]);
    }
    let server = &stand.lab.servers[0].namespace;
    Daemon::start(&stand.lab, server, &mut turnserver, &PORTS)
}

/// What the clients are to say.
#[derive(Clone, Copy)]
struct Behaviour {
    mapping: &'static str,
    filtering: &'static str,
    /// Does a packet to another socket's external endpoint arrive, from one it never sent to?
    hairpin: bool,
    /// How the classic client's line begins. Its last word, on hairpinning, is left out: it sends to
    /// its own socket, and one tuple in both directions gets no session.
    rfc3489: &'static str,
}

// Ports are drawn: a preserved one would look the same to every remote endpoint with `edm`, too.

const EIF: Behaviour = Behaviour {
    mapping: "NAT with Endpoint Independent Mapping!",
    filtering: "NAT with Endpoint Independent Filtering!",
    hairpin: true,
    rfc3489: "Independent Mapping, Independent Filter, random port,",
};

const ADF: Behaviour = Behaviour {
    filtering: "NAT with Address Dependent Filtering!",
    hairpin: false,
    rfc3489: "Independent Mapping, Address Dependent Filter, random port,",
    ..EIF
};

const EDF: Behaviour = Behaviour {
    filtering: "NAT with Address and Port Dependent Filtering!",
    rfc3489: "Independent Mapping, Port Dependent Filter, random port,",
    ..ADF
};

const EDM: Behaviour = Behaviour {
    mapping: "NAT with Address and Port Dependent Mapping!",
    rfc3489: "Dependent Mapping, random port,",
    ..EDF
};

/// The source port of the classic client: in every pool. It uses the next one, too.
const SOURCE_PORT: &str = "20000";

fn behaviour(topology: Topology, backend: Backend, pool: Pool, nat: &str, expected: Behaviour) {
    let programs = [
        ("turnserver", "coturn"),
        ("turnutils_natdiscovery", "coturn"),
        ("stun", "stun-client"),
    ];
    if !is_root() || !have(&programs) {
        return;
    }
    let stand = stand(topology, backend, pool, nat);
    let _daemon = turnserver(&stand);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let said = discover(&stand, &["-m", "-f"]);
            for word in [expected.mapping, expected.filtering] {
                assert!(said.contains(word), "{nat}: not {word:?} in {said}");
            }
            let mapped = format!("UDP reflexive addr: {}:", pool.address());
            assert!(said.contains(&mapped), "{nat}: {said}");
            let said = discover(&stand, &["-H"]);
            let arrived = said.contains("Received a request (maybe a successful hairpinning)");
            assert_eq!(arrived, expected.hairpin, "{nat}: {said}");
        });
        scope.spawn(|| {
            let mut stun = command("stun");
            stun.args([&SERVERS[0].to_string(), "-p", SOURCE_PORT]);
            // Its exit status is what it found, in bits.
            let said = run(&stand.lab.clients[1].namespace, &mut stun, LIMIT).text();
            let line = format!("Primary: {}", expected.rfc3489);
            assert!(said.contains(&line), "{nat}: not {line:?} in {said}");
        });
    });
    stand.finish();
}

/// Runs natdiscovery on the first client, from a port of the kernel's choice.
fn discover(stand: &Stand, what: &[&str]) -> String {
    let client = &stand.lab.clients[0];
    let mut discovery = command("turnutils_natdiscovery");
    discovery.args(what);
    discovery.args(["-L", &client.address.to_string(), &SERVERS[0].to_string()]);
    succeed(&client.namespace, &mut discovery, LIMIT).text()
}

on_both_backends! {
    stun_sees_eim_eif: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"eif\"\npreserve_port = false";
        behaviour(Topology::TwoArm, backend, Pool::Own(OWN), nat, EIF);
    };
    stun_sees_eim_eif_with_preserved_ports_one_arm: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"eif\"";
        let expected = Behaviour {
            rfc3489: "Independent Mapping, Independent Filter, preserves ports,",
            ..EIF
        };
        behaviour(Topology::OneArm, backend, Pool::Own(OWN), nat, expected);
    };
    stun_sees_eim_adf: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"adf\"\npreserve_port = false";
        behaviour(Topology::TwoArm, backend, Pool::Own(OWN), nat, ADF);
    };
    stun_sees_eim_edf: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"edf\"\npreserve_port = false";
        behaviour(Topology::TwoArm, backend, Pool::Own(OWN), nat, EDF);
    };
    stun_sees_edm_edf: |backend| {
        let nat = "mapping = \"edm\"\nfiltering = \"edf\"\npreserve_port = false";
        behaviour(Topology::TwoArm, backend, Pool::Own(OWN), nat, EDM);
    };
    /// On the shared address, without any key. A port that the pool has is preserved for every remote
    /// endpoint, and then looks independent of them; one that is the host's shows what it is.
    stun_sees_edm_edf_by_default: |backend| {
        let expected = Behaviour {
            rfc3489: "Independent Mapping, Port Dependent Filter, preserves ports,",
            ..EDM
        };
        behaviour(Topology::OneArm, backend, Pool::Shared, "", expected);
    };
}
