//! Routed mode beyond the demo's checks: what it sets up goes with it, nothing leaks without it, and it
//! works without root.

mod kernel;

use std::path::PathBuf;
use std::process::Command;

use egret_cli::demo::setup::Tuning;
use egret_cli::lab::plan::{INTERNAL, ROUTER_LINK, SERVERS};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::{Capture, Gateway, LabOptions, Topology, capture::Pick};
use kernel::{EGRET, Stand, have, is_root};
use std::net::SocketAddrV4;
use std::time::Duration;

const PREFIX: &str = "egret-tr";
const PORT: u16 = 7100;

fn stand(topology: Topology, more: &str) -> Stand {
    let options = LabOptions {
        routed: true,
        ..LabOptions::new(PREFIX, topology)
    };
    let tuning = Tuning {
        mode: Some("routed".to_owned()),
        more: more.to_owned(),
        ..Tuning::default()
    };
    Stand::prepare(options, &tuning)
}

/// Rules, routes, proxies and interfaces of the gateway's kernel.
fn kernel_state(stand: &Stand) -> String {
    let list = |arguments: &[&str]| {
        let mut ip = Command::new("ip");
        ip.args(arguments);
        let output = stand.lab.gateway.run(|| ip.output()).expect("ip runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    [
        &["rule"][..],
        &["-4", "route", "show", "table", "all"],
        &["neighbour", "show", "proxy"],
        &["-brief", "link"],
    ]
    .map(list)
    .concat()
}

/// The gateway's configuration file and its text.
fn config_of(stand: &Stand) -> (PathBuf, String) {
    let path = stand.lab.directory().join("egret.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    (path, text)
}

fn start(stand: &mut Stand) {
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
}

fn to_server() -> SocketAddrV4 {
    SocketAddrV4::new(SERVERS[0], PORT)
}

#[test]
fn what_is_set_up_goes_with_the_gateway() {
    if !is_root() || !have(&[("ip", "iproute2")]) {
        return;
    }
    let mut stand = stand(Topology::TwoArm, "");
    let before = kernel_state(&stand);
    start(&mut stand);
    let during = kernel_state(&stand);
    assert!(
        during.contains("proto 231") && during.contains("proxy"),
        "{during}"
    );
    assert_eq!(stand.status()["mode"], "routed");
    stand
        .engine
        .stop()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kernel_state(&stand), before);
}

/// The TAP dies with its engine: the kernel must not send out what comes from inside instead.
#[test]
fn nothing_leaks_when_the_engine_is_killed_and_detach_removes_the_rest() {
    if !is_root() || !have(&[("ip", "iproute2")]) {
        return;
    }
    let mut stand = stand(Topology::TwoArm, "");
    let before = kernel_state(&stand);
    start(&mut stand);
    let service = UdpService::start(&stand.lab.servers[0].namespace, SERVERS[0], [PORT]);
    let service = service.unwrap_or_else(|error| panic!("{error}"));
    let client = &stand.lab.clients[0].namespace;
    let flow = UdpFlow::open(client, 0, to_server()).expect("a flow");
    flow.ask(b"alive", 3, Duration::from_secs(2))
        .expect("an answer");
    let pick = Pick {
        source: Some(INTERNAL),
        ..Pick::default()
    };
    let watch = Capture::open(&stand.lab.router, ROUTER_LINK, pick).expect("a capture");
    let detach = || {
        let mut detach = Command::new(EGRET);
        detach.args(["detach", "--instance", stand.lab.name()]);
        stand.lab.gateway.run(|| detach.output()).expect("it runs")
    };
    let output = detach();
    assert!(
        !output.status.success(),
        "detached a living one: {output:?}"
    );
    flow.ask(b"still", 3, Duration::from_secs(2))
        .expect("an answer");
    stand.engine.kill();
    let refused = flow.ask(b"dead", 3, Duration::from_millis(300));
    assert!(refused.is_err(), "answered without a gateway: {refused:?}");
    assert_eq!(watch.take().len(), 0, "left untranslated");
    // The next start fails: what holds the inside back stays.
    let (config, text) = config_of(&stand);
    let bad = text.replace("control.sock", "egret.toml/control.sock");
    assert_ne!(bad, text);
    std::fs::write(&config, bad).expect("a configuration");
    let mut run = Command::new(EGRET);
    run.args(["run", "--config"]).arg(&config);
    let output = stand.lab.gateway.run(|| run.output()).expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let _ = flow.ask(b"dead", 1, Duration::from_millis(300));
    assert_eq!(
        watch.take().len(),
        0,
        "left untranslated after a failed start"
    );
    assert_ne!(kernel_state(&stand), before);
    let output = detach();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(kernel_state(&stand), before);
    drop(service);
}

/// What is bypassed is the kernel's, with its own source address.
#[test]
fn bypassed_destinations_are_left_to_the_kernel() {
    if !is_root() {
        return;
    }
    let options = LabOptions {
        routed: true,
        ..LabOptions::new(PREFIX, Topology::TwoArm)
    };
    let lab = egret_cli::lab::Lab::build(options).unwrap_or_else(|error| panic!("{error}"));
    let tuning = Tuning {
        mode: Some("routed".to_owned()),
        ..Tuning::default()
    };
    let config = egret_cli::demo::setup::config(&lab, &tuning);
    let config = format!("bypass = [\"{}/32\"]\n{config}", SERVERS[0]);
    let mut stand = Stand::with_config(lab, &config);
    start(&mut stand);
    let pick = Pick {
        source: Some(INTERNAL),
        ..Pick::default()
    };
    let watch = Capture::open(&stand.lab.router, ROUTER_LINK, pick).expect("a capture");
    let client = &stand.lab.clients[0].namespace;
    let flow = UdpFlow::open(client, 0, to_server()).expect("a flow");
    // The server's router does not know the way back.
    let _ = flow.ask(b"bypassed", 1, Duration::from_millis(300));
    assert!(!watch.take().is_empty(), "it did not come by the kernel");
}

/// The whole demo as an ordinary user: /dev/net/tun is open to it, as on most distributions.
#[test]
fn the_demo_runs_without_root() {
    if !is_root() || !have(&[("unshare", "util-linux"), ("setpriv", "util-linux")]) {
        return;
    }
    let directory = tempfile();
    let script = "set -e
        chmod 755 $0
        cp \"$1\" $0/egret
        mknod -m 666 $0/tun c 10 200
        mount --bind $0/tun /dev/net/tun
        exec setpriv --reuid 65534 --regid 65534 --clear-groups $0/egret demo --unprivileged --json";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(&directory)
        .arg(EGRET);
    let output = command.output().expect("it runs");
    let (told, problem) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    std::fs::remove_dir_all(&directory).expect("the directory goes");
    if problem.contains("makes no user namespace") {
        kernel::skip(&problem);
        return;
    }
    assert!(output.status.success(), "{told}\n{problem}");
    assert!(
        told.contains("demo/two-arm/tcp") && told.contains("demo/one-arm/tcp"),
        "{told}"
    );
}

fn tempfile() -> PathBuf {
    let path = std::env::temp_dir().join(format!("egret-unprivileged-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory");
    path
}
