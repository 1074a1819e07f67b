//! Interfaces that do not exchange frames the same way: what goes from one to the other arrives as it
//! would otherwise, and each is left or taken over by its own way.

mod kernel;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::demo::setup::{self, Tuning};
use egret_cli::lab::content::Content;
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{Gateway, Lab, LabOptions, Namespace, Topology, wait};
use engine::device::sys::ethtool::{self, Offload};
use kernel::found::{difference, snapshot};
use kernel::{EGRET, Stand, have, ip, is_root, run};
use nix::fcntl::{Flock, FlockArg};

const PREFIX: &str = "egret-tx";
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes in each direction.
const BULK: u64 = 64 << 20;
/// Bytes of a datagram that is several frames everywhere but on the large link.
const BIG: usize = 8000;

fn tuning(internal: &str, external: Option<&str>) -> Tuning {
    Tuning {
        mode: Some(internal.to_owned()),
        external_mode: external.map(str::to_owned),
        ..Tuning::default()
    }
}

/// How frames are exchanged with either interface.
fn modes(stand: &Stand) -> Vec<String> {
    let status = stand.status();
    let interfaces = status["interfaces"].as_array().expect("a list").iter();
    interfaces
        .map(|one| one["mode"].as_str().unwrap_or("none").to_owned())
        .collect()
}

/// A number of a socket's, summed over the interfaces.
fn counted(stand: &Stand, name: &str) -> u64 {
    let status = stand.status();
    let sockets = status["sockets"].as_object().expect("sockets").values();
    sockets.filter_map(|counters| counters[name].as_u64()).sum()
}

/// Big datagrams there and back, without DF: whoever finds them too large cuts them.
fn big_datagrams(lab: &Lab) {
    let (client, server) = (&lab.clients[0], &lab.servers[0]);
    let bind = |namespace: &Namespace, address, port| {
        let set = namespace.set_sysctl("ipv4/ip_no_pmtu_disc", "1");
        set.unwrap_or_else(|error| panic!("{error}"));
        let socket = namespace.run(move || UdpSocket::bind((address, port)));
        let socket = socket.expect("a socket");
        socket.set_read_timeout(Some(LIMIT / 10)).expect("a limit");
        socket
    };
    let there = bind(&server.namespace, server.address, 7200);
    let here = bind(&client.namespace, client.address, 0);
    let (mut sent, mut buffer) = (vec![0; BIG], vec![0; 2 * BIG]);
    let mut content = Content::new(9);
    // The first may wait for a neighbour.
    here.send_to(b"hello", at(0, 7200)).expect("a datagram");
    assert_eq!(there.recv(&mut buffer).expect("it arrives"), 5);
    for _ in 0..10 {
        content.fill(&mut sent);
        here.send_to(&sent, at(0, 7200)).expect("a datagram");
        let (len, from) = there.recv_from(&mut buffer).expect("it arrives outside");
        assert!(buffer[..len] == *sent, "{len} bytes, or others");
        content.fill(&mut sent);
        there.send_to(&sent, from).expect("a datagram");
        let len = here.recv(&mut buffer).expect("it arrives inside");
        assert!(buffer[..len] == *sent, "{len} bytes, or others");
    }
}

/// Bulk in both directions at once, by ends whose offloads are on, and big datagrams.
fn carries(mtu: u32, internal: &str, external: Option<&str>, expected: [&str; 2]) -> Option<Stand> {
    if !is_root() {
        return None;
    }
    let options = LabOptions {
        mtu,
        external_mtu: 1500,
        ..LabOptions::new(PREFIX, Topology::TwoArm)
    };
    let stand = Stand::start(options, &tuning(internal, external));
    assert_eq!(modes(&stand), expected);
    assert_eq!(stand.status()["mode"], "mixed");
    assert_eq!(stand.status()["self_test"], "passed");
    // First: TCP would teach the client the smallest MTU of the path.
    big_datagrams(&stand.lab);
    let service = TcpService::start(&stand.lab.servers[0].namespace, 5001).expect("a server");
    let client = &stand.lab.clients[0].namespace;
    let begun = std::time::Instant::now();
    exchange(client, at(0, 5001), BULK, 77).expect("every byte as it was sent");
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{expected:?}: {:.2} Gbit/s in both directions together",
        2.0 * BULK as f64 * 8e-9 / seconds
    );
    drop(service);
    // Counters are told once a second.
    wait::until(LIMIT / 10, || counted(&stand, "bytes") > BULK);
    assert!(counted(&stand, "bytes") > BULK, "by the tun driver");
    assert_eq!(
        counted(&stand, "bytes_big"),
        0,
        "the kernel cuts them first"
    );
    let full = counted(&stand, "rx_ring_full");
    println!("{full} frames found a queue full");
    for nothing in ["tx_invalid", "rx_invalid", "ring_invalid", "wake_errors"] {
        assert_eq!(counted(&stand, nothing), 0, "{nothing}");
    }
    Some(stand)
}

#[test]
fn bulk_and_big_datagrams_tun_to_copy() {
    let stand = carries(1500, "tun", Some("copy"), ["tun", "copy"]);
    stand.into_iter().for_each(Stand::finish);
}

#[test]
fn bulk_and_big_datagrams_copy_to_tun() {
    let stand = carries(1500, "copy", Some("tun"), ["copy", "tun"]);
    stand.into_iter().for_each(Stand::finish);
}

/// AF_XDP has no buffers for frames of 9000 bytes: a matter of that interface alone.
#[test]
fn where_frames_fit_no_buffer_the_tun_driver_is_found_for_that_interface() {
    let Some(stand) = carries(9000, "auto", None, ["tun", "copy"]) else {
        return;
    };
    assert!(stand.drops(&["fragmentation-needed"]) < 100);
    let split = stand.status()["counters"]["split"].as_u64();
    assert!(
        split >= Some(10),
        "{split:?} of the datagrams were cut here"
    );
    let status = stand.status();
    let refused = &status["interfaces"][0]["modes_refused"];
    let refused = refused.as_array().expect("a list");
    assert_eq!(refused.len(), 3, "{refused:?}");
    for refused in refused {
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(
            reason.contains("lan0") && reason.contains("9000"),
            "{reason}"
        );
    }
    let outer = &status["interfaces"][1]["modes_refused"];
    let modes: Vec<_> = outer.as_array().expect("a list").iter().collect();
    assert!(
        modes.len() == 1 && modes[0]["mode"] == "zero-copy",
        "{outer}"
    );
    let all = status["modes_refused"].as_array().map(Vec::len);
    assert_eq!(all, Some(4), "of either");

    let socket = egret_cli::lab::EngineProcess::control_path(&stand.lab);
    let mut command = Command::new(EGRET);
    command.args(["status", "--socket"]).arg(socket);
    let said = run(&stand.lab.gateway, &mut command, LIMIT).text();
    for words in [
        "frames exchanged by mixed modes",
        "lan0 (internal)",
        "by tun\n  not by zero-copy: the MTU of lan0 is 9000",
        "by copy\n  not by zero-copy: wan0",
    ] {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    let log = fs::read_to_string(stand.lab.directory().join("engine.log")).expect("a log");
    for words in [
        "does not work here mode=generic interface=\"lan0\"",
        "copied",
    ] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    stand.finish();
}

/// Offloads as an engine finds them that wants some off.
fn with_offloads(stand: &Stand) {
    let on = || {
        for link in ["lan0", "wan0"] {
            ethtool::set_offload(link, Offload::Gro, true)?;
            ethtool::set_offload(link, Offload::RxVlan, true)?;
        }
        Ok(())
    };
    stand.lab.gateway.run(on).expect("turning offloads on");
    wait::until(LIMIT, || {
        !ip(&stand.lab.gateway, "address").contains("tentative")
    });
}

/// Which offloads of lan0 and wan0 are on: merging, and taking VLAN tags out.
fn offloads(stand: &Stand) -> [(bool, bool); 2] {
    let is_on = |link, which| ethtool::offload(link, which);
    let read = || {
        let mut on = [(false, false); 2];
        for (on, link) in on.iter_mut().zip(["lan0", "wan0"]) {
            *on = (is_on(link, Offload::Gro)?, is_on(link, Offload::RxVlan)?);
        }
        Ok(on)
    };
    stand.lab.gateway.run(read).expect("asking about offloads")
}

fn is_attached(stand: &Stand) -> [bool; 2] {
    ["lan0", "wan0"].map(|link| {
        let shown = ip(&stand.lab.gateway, &format!("link show {link}"));
        shown.contains("prog/xdp")
    })
}

fn some_traffic(lab: &Lab) {
    let service = TcpService::start(&lab.servers[0].namespace, 5002).expect("a server");
    let client = &lab.clients[0].namespace;
    exchange(client, at(0, 5002), 1 << 20, 3).expect("bytes through the gateway");
    drop(service);
}

/// Does somebody hold the instance? A child that a killed engine was about to make does so until it is
/// another program.
fn is_locked(stand: &Stand) -> bool {
    let path = format!("/run/egret/{}/lock", stand.lab.name());
    let file = fs::File::open(path).expect("a lock");
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// One engine after the other, each killed, each taking over what the one before it left.
#[test]
fn engines_of_one_mode_and_of_two_take_over_from_each_other() {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    let options = LabOptions::new(PREFIX, Topology::TwoArm);
    let mut stand = Stand::prepare(options, &Tuning::default());
    with_offloads(&stand);
    let before = snapshot(&stand.lab);
    for (internal, external) in [
        ("copy", "copy"),
        ("tun", "copy"),
        ("copy", "tun"),
        ("tun", "tun"),
        ("tun", "copy"),
        ("copy", "copy"),
        ("generic", "tun"),
    ] {
        let config = setup::config(&stand.lab, &tuning(internal, Some(external)));
        let path = stand.lab.directory().join("egret.toml");
        fs::write(path, config).expect("a configuration");
        let started = stand.engine.start();
        started.unwrap_or_else(|error| panic!("{internal} to {external}: {error}"));
        assert_eq!(modes(&stand), [internal, external]);
        if internal != "generic" {
            some_traffic(&stand.lab);
        }
        let xdp = [internal, external].map(|mode| mode != "tun");
        assert_eq!(is_attached(&stand), xdp, "{internal} to {external}");
        let off = offloads(&stand);
        assert_eq!(
            off.map(|(_, vlan)| !vlan),
            xdp,
            "VLAN, {internal} to {external}"
        );
        let merging = [internal, external].map(|mode| mode != "generic");
        assert_eq!(off.map(|(gro, _)| gro), merging, "{internal} to {external}");
        stand.engine.kill();
        assert!(
            wait::until(LIMIT, || !is_locked(&stand)),
            "{internal} to {external}"
        );
    }
    let mut detach = Command::new(EGRET);
    detach.args(["detach", "--instance", stand.lab.name()]);
    let detached = run(&stand.lab.gateway, &mut detach, LIMIT);
    assert!(detached.status.success(), "{detached:?}");
    let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
    assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));
}

#[test]
fn sigterm_leaves_the_host_as_found() {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    for (internal, external) in [("tun", "copy"), ("generic", "tun")] {
        let options = LabOptions::new(PREFIX, Topology::TwoArm);
        let mut stand = Stand::prepare(options, &tuning(internal, Some(external)));
        with_offloads(&stand);
        let before = snapshot(&stand.lab);
        for _ in 0..2 {
            let started = stand.engine.start();
            started.unwrap_or_else(|error| panic!("{error}"));
            let during = difference(&before, &snapshot(&stand.lab));
            for sign in ["xdp", "link_tc_"] {
                assert!(during.contains(sign), "no sign of {sign}:\n{during}");
            }
            let tags_taken_out = [internal, external].map(|mode| mode == "tun");
            assert_eq!(offloads(&stand).map(|(_, vlan)| vlan), tags_taken_out);
            let stopped = stand.engine.stop();
            stopped.unwrap_or_else(|error| panic!("{error}"));
            let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
            assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));
        }
    }
}
