//! Interfaces that vanish.

use egret_cli::demo::check::at;
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::{Gateway, LabOptions, Topology, wait};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Stand, ip};
use crate::{LIMIT, PREFIX, SHORT, ready};

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

fn an_interface_that_vanishes_is_told_and_the_others_are_served_by(backend: Backend) {
    if !ready() {
        return;
    }
    let spare = "\n[[interfaces]]\nname = \"spare0\"\nrole = \"internal\"\n";
    let tuning = backend.tuning(spare);
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

on_both_backends! {
    an_interface_that_vanishes_is_told_and_the_others_are_served: an_interface_that_vanishes_is_told_and_the_others_are_served_by;
}
