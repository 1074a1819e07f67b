//! Routed mode beyond the demo's checks: what it sets up goes with it, nothing leaks without it, and it
//! works without root.

mod kernel;

use std::path::PathBuf;
use std::process::Command;

use egret_cli::demo::setup::Tuning;
use egret_cli::lab::plan::{EXTERNAL, GATEWAY_INTERNAL, INTERNAL, ROUTER, ROUTER_LINK, SERVERS};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::{Capture, Gateway, LabOptions, Topology, capture::Pick, wait};
use kernel::{EGRET, Stand, have, ip, is_root};
use std::net::{SocketAddrV4, UdpSocket};
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

/// Rules and proxies, each line a rule or an address, whatever the order of equals.
fn rules_and_proxies(stand: &Stand) -> Vec<String> {
    let text = ["rule", "neighbour show proxy"].map(|what| ip(&stand.lab.gateway, what));
    let mut lines: Vec<String> = text
        .concat()
        .lines()
        .map(|it| it.trim().to_owned())
        .collect();
    lines.sort();
    lines
}

/// What leaves the gateway untranslated.
fn watch_for_leaks(stand: &Stand) -> Capture {
    let pick = Pick {
        source: Some(INTERNAL),
        ..Pick::default()
    };
    Capture::open(&stand.lab.router, ROUTER_LINK, pick).expect("a capture")
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
    let watch = watch_for_leaks(&stand);
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

/// The kernel lets rules sleep whose interface has another name, and takes proxy entries away when it
/// is brought down.
#[test]
fn the_external_interface_is_followed() {
    if !is_root() || !have(&[("ip", "iproute2")]) {
        return;
    }
    let mut stand = stand(Topology::TwoArm, "");
    let before = rules_and_proxies(&stand);
    start(&mut stand);
    let during = rules_and_proxies(&stand);
    assert!(
        during.iter().any(|line| line.contains("iif wan0")),
        "{during:?}"
    );
    let rename = |from: &str, to: &str| {
        ip(&stand.lab.gateway, &format!("link set {from} down"));
        ip(&stand.lab.gateway, &format!("link set {from} name {to}"));
        ip(&stand.lab.gateway, &format!("link set {to} up"));
        ip(
            &stand.lab.gateway,
            &format!("route add default via {ROUTER}"),
        );
    };
    rename("wan0", "uplink7");
    let wanted: Vec<String> = during
        .iter()
        .map(|line| line.replace("wan0", "uplink7"))
        .collect();
    let followed = wait::until(Duration::from_secs(5), || {
        rules_and_proxies(&stand) == wanted
    });
    assert!(followed, "{wanted:#?}\n{:#?}", rules_and_proxies(&stand));
    let service = UdpService::start(&stand.lab.servers[0].namespace, SERVERS[0], [PORT]);
    let service = service.unwrap_or_else(|error| panic!("{error}"));
    let flow = UdpFlow::open(&stand.lab.clients[0].namespace, 0, to_server()).expect("a flow");
    let seen = flow
        .ask(b"renamed", 3, Duration::from_secs(2))
        .expect("an answer");
    assert_eq!(*seen.ip(), EXTERNAL);
    // What came straight from outside to inside is dropped under the new name, too.
    ip(
        &stand.lab.router,
        &format!("route replace {INTERNAL} via {EXTERNAL}"),
    );
    let client = &stand.lab.clients[0];
    let listener = UdpService::start(&client.namespace, client.address, [PORT]);
    let listener = listener.unwrap_or_else(|error| panic!("{error}"));
    let straight = SocketAddrV4::new(client.address, PORT);
    let stranger = UdpFlow::open(&stand.lab.router, 0, straight).expect("a flow");
    let answer = stranger.ask(b"uninvited", 2, Duration::from_millis(200));
    assert!(answer.is_err(), "came in from outside: {answer:?}");
    drop((service, listener));
    stand
        .engine
        .stop()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rules_and_proxies(&stand), before);
}

/// What the host sends from its own address among the clients is the host's own.
#[test]
fn the_host_s_own_packets_from_inside_are_left_to_the_kernel() {
    if !is_root() {
        return;
    }
    let mut stand = stand(Topology::TwoArm, "");
    start(&mut stand);
    let watch = watch_for_leaks(&stand);
    let send = || {
        let socket = UdpSocket::bind((GATEWAY_INTERNAL, 0))?;
        socket.send_to(b"from the host", to_server())
    };
    stand.lab.gateway.run(send).expect("a datagram");
    let own = |frame: &[u8]| frame[26..30] == GATEWAY_INTERNAL.octets();
    assert!(watch.wait(Duration::from_secs(2), own), "it was translated");
    // And with the clients it speaks straight.
    let service = UdpService::start(&stand.lab.gateway, GATEWAY_INTERNAL, [PORT]);
    let service = service.unwrap_or_else(|error| panic!("{error}"));
    let client = &stand.lab.clients[0];
    let host = SocketAddrV4::new(GATEWAY_INTERNAL, PORT);
    let flow = UdpFlow::open(&client.namespace, 0, host).expect("a flow");
    let seen = flow
        .ask(b"neighbour", 3, Duration::from_secs(1))
        .expect("an answer");
    assert_eq!(*seen.ip(), client.address);
    drop(service);
    stand.stop();
}

/// A dead engine guards the inside by what it left, until the one after it does in its own way.
#[test]
fn an_engine_of_another_mode_takes_over_without_a_leak() {
    if !is_root() || !have(&[("ip", "iproute2")]) {
        return;
    }
    let mut stand = stand(Topology::TwoArm, "");
    let before = kernel_state(&stand);
    let (config, routed) = config_of(&stand);
    let copy = routed.replace("mode = \"routed\"", "mode = \"copy\"");
    assert_ne!(copy, routed);
    let service = UdpService::start(&stand.lab.servers[0].namespace, SERVERS[0], [PORT]);
    let service = service.unwrap_or_else(|error| panic!("{error}"));
    let flow = UdpFlow::open(&stand.lab.clients[0].namespace, 0, to_server()).expect("a flow");
    let watch = watch_for_leaks(&stand);
    let ask = || flow.ask(b"translated", 10, Duration::from_millis(300));
    let lost = || {
        flow.ask(b"lost", 2, Duration::from_millis(100))
            .expect_err("nobody is there")
    };

    start(&mut stand);
    ask().expect("routed");
    stand.engine.kill();
    lost();
    std::fs::write(&config, &copy).expect("a configuration");
    // Traffic goes on all the time.
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| flow.ask(b"meanwhile", 100, Duration::from_millis(50)));
        start(&mut stand);
        asking.join().expect("asked").expect("an answer in the end");
    });
    ask().expect("copy");
    assert_eq!(stand.status()["mode"], "copy");
    let state = kernel_state(&stand);
    for left in ["lookup 231", "table 231", "unreachable", "proxy"] {
        assert!(!state.contains(left), "{left}: {state}");
    }
    assert_eq!(watch.take().len(), 0, "left untranslated");

    stand.engine.kill();
    lost();
    std::fs::write(&config, &routed).expect("a configuration");
    let refused = stand
        .engine
        .start()
        .expect_err("its program drops what is to be routed");
    let told = refused.to_string();
    assert!(told.contains("egret detach --instance"), "{told}");
    lost();
    assert_eq!(watch.take().len(), 0, "left untranslated");
    let mut detach = Command::new(EGRET);
    detach.args(["detach", "--instance", stand.lab.name()]);
    // As a careful operator does: without forwarding nothing leaves meanwhile.
    let forward = |value| stand.lab.gateway.set_sysctl("ipv4/ip_forward", value);
    forward("0").expect("a setting");
    let output = stand.lab.gateway.run(|| detach.output()).expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(kernel_state(&stand), before);
    forward("1").expect("a setting");
    start(&mut stand);
    ask().expect("routed again");
    drop(service);
    stand
        .engine
        .stop()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kernel_state(&stand), before);
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
    let watch = watch_for_leaks(&stand);
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
