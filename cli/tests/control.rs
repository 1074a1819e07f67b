//! The commands that ask a running gateway, against a real one: what they tell, what they end, and
//! who may.

mod kernel;

use std::io::{BufRead, BufReader};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::demo::setup::{self, FORWARD_OPEN, Tuning};
use egret_cli::lab::plan::{EXTERNAL, SERVERS};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{EchoConnection, TcpService};
use egret_cli::lab::{EngineProcess, Gateway, Lab, LabOptions, Topology};
use kernel::{EGRET, Said, Stand, build, command, have, is_root, run};
use serde_json::Value;

const PREFIX: &str = "egret-tc";
const LIMIT: Duration = Duration::from_secs(20);

/// A user and groups that nobody has.
const USER: &str = "--reuid=54320";
const OPERATORS: &str = "54321";

/// A gateway whose socket lies where every user could reach it, and that directory.
fn stand(group: Option<&str>) -> (Stand, PathBuf) {
    let lab = build(LabOptions::new(PREFIX, Topology::TwoArm));
    let directory = std::env::temp_dir().join(format!("{}-control", lab.name()));
    let socket = directory.join("socket");
    let config = setup::config(&lab, &Tuning::default());
    let control = format!("\"{}\"", EngineProcess::control_path(&lab).display());
    let mut ours = format!("\"{}\"", socket.display());
    if let Some(group) = group {
        ours += &format!("\ngroup = \"{group}\"");
    }
    assert!(config.contains(&control), "{config}");
    let mut stand = Stand::with_config(lab, &config.replace(&control, &ours));
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    (stand, directory)
}

/// `egret` with these words at the gateway's socket, as a user that `setpriv` makes, or as root.
fn egret(lab: &Lab, socket: &str, user: &[&str], words: &[&str]) -> Said {
    let mut command = match user {
        [] => Command::new(EGRET),
        user => {
            let mut command = command("setpriv");
            command.args(user).arg(EGRET);
            command
        }
    };
    run(
        &lab.gateway,
        command.args(words).args(["--socket", socket]),
        LIMIT,
    )
}

/// Its lines as JSON; it must have ended well.
fn told(said: &Said) -> Vec<Value> {
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let text = said.text();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// What a watcher says, line by line.
struct Watcher {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watcher {
    fn start(socket: &str) -> Watcher {
        let mut command = Command::new(EGRET);
        command.args([
            "sessions",
            "--watch",
            "--json",
            "--protocol",
            "udp",
            "--socket",
            socket,
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a watcher");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Watcher { child, lines }
    }

    fn next(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).expect("JSON")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_command_tells_of_a_real_gateway() {
    if !is_root() {
        return;
    }
    let (stand, directory) = stand(None);
    let socket = directory.join("socket").display().to_string();
    let ask = |words: &[&str]| egret(&stand.lab, &socket, &[], words);
    let mut watcher = Watcher::start(&socket);
    assert_eq!(watcher.next()["type"], "watching");

    let server = &stand.lab.servers[0].namespace;
    let tcp = TcpService::start(server, 5001).expect("a server");
    let udp = UdpService::start(server, SERVERS[0], [7000]).expect("a server");
    let client = &stand.lab.clients[0].namespace;
    let flow = UdpFlow::open(client, 0, at(0, 7000)).expect("a flow");
    let seen = flow.ask(b"question", 3, LIMIT / 20).expect("an answer");
    let mut echo = EchoConnection::open(client, at(0, 5001)).expect("a connection");
    echo.send(b"word")
        .and_then(|()| echo.expect(b"word", LIMIT))
        .expect("an echo");

    let begun = watcher.next();
    assert_eq!(
        (&begun["type"], &begun["external"]),
        (&"new".into(), &seen.to_string().into())
    );
    shown(&ask, seen, echo.seen);
    looked_up(&ask, seen);

    // Ended sessions: UDP begins anew, TCP is reset.
    let flushed = told(&ask(&[
        "flush",
        "--json",
        "--remote",
        &SERVERS[0].to_string(),
    ]));
    assert!(flushed[0]["sessions"].as_u64() >= Some(2), "{flushed:?}");
    let ended = watcher.next();
    assert_eq!(
        (&ended["type"], &ended["external"]),
        (&"ended".into(), &seen.to_string().into())
    );
    let gone = told(&ask(&["sessions", "--json", "--state", "established"]));
    assert!(gone.is_empty(), "{gone:?}");
    flow.ask(b"again", 3, LIMIT / 20).expect("a new session");
    assert_eq!(watcher.next()["type"], "new");
    let broken = echo
        .send(b"more")
        .and_then(|()| echo.expect(b"more", LIMIT));
    broken.expect_err("it was reset");
    let nothing = ask(&["flush"]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(nothing.stderr.contains("--all"), "{}", nothing.stderr);
    assert!(ask(&["flush", "--all"]).text().starts_with("ended "));

    let status = ask(&["status"]);
    assert!(status.text().contains("sessions"), "{status:?}");
    let confirmed = ask(&["confirm"]);
    assert_eq!(confirmed.status.code(), Some(1));
    assert!(
        confirmed.stderr.contains("nothing to confirm"),
        "{}",
        confirmed.stderr
    );
    drop((watcher, tcp, udp));
    over(stand, directory);
}

/// What listings tell of a UDP flow and a TCP connection, by their external endpoints.
fn shown(ask: &impl Fn(&[&str]) -> Said, udp: SocketAddrV4, tcp: SocketAddrV4) {
    let established = ask(&["sessions", "--state", "established", "--port", "5001"]);
    let text = established.text();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(
        text.contains(&tcp.to_string()) && text.contains("outbound"),
        "{text}"
    );
    let sessions = told(&ask(&[
        "sessions",
        "--json",
        "--external",
        &udp.to_string(),
    ]));
    let [session] = sessions.as_slice() else {
        panic!("{sessions:?}");
    };
    assert_eq!(
        (&session["type"], &session["protocol"]),
        (&"session".into(), &"udp".into())
    );
    assert_eq!(
        (&session["packets_out"], &session["packets_in"]),
        (&1.into(), &1.into())
    );
    let mappings = told(&ask(&[
        "mappings",
        "--json",
        "--external",
        &udp.to_string(),
    ]));
    assert_eq!(
        (mappings.len(), &mappings[0]["behaviour"]),
        (1, &"edm".into())
    );
    let fixed = ask(&["mappings"]).text();
    assert!(
        fixed.contains("static") && fixed.contains(&FORWARD_OPEN.to_string()),
        "{fixed}"
    );
    let one = ask(&["sessions", "--limit", "1"]);
    assert!(one.stderr.contains("more than 1"), "{one:?}");
    let wrong = ask(&["sessions", "--internal", "10.77.0.300"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("10.77.0.300"), "{}", wrong.stderr);
}

fn looked_up(ask: &impl Fn(&[&str]) -> Said, udp: SocketAddrV4) {
    let behind = ask(&["lookup", &udp.to_string(), "--protocol", "udp"]);
    assert_eq!(behind.status.code(), Some(0));
    assert!(behind.text().contains("shared by 1 mappings"), "{behind:?}");
    let forward = ask(&[
        "lookup",
        &format!("{EXTERNAL}:{FORWARD_OPEN}"),
        "--protocol",
        "tcp",
    ]);
    assert!(forward.text().contains("a forward's"), "{forward:?}");
    let host = ask(&["lookup", &format!("{EXTERNAL}:22"), "--protocol", "tcp"]);
    assert_eq!(host.status.code(), Some(1));
    assert!(host.text().contains("left to the host"), "{host:?}");
    let elsewhere = ask(&["lookup", "203.0.113.250:22", "--json"]);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(elsewhere.text().contains("not-pool"), "{elsewhere:?}");
}

#[test]
fn only_root_and_the_named_group_may_change_something() {
    if !is_root() || !have(&[("setpriv", "util-linux")]) {
        return;
    }
    let mut may_read = command("setpriv");
    may_read.args([USER, "--clear-groups", "test", "-x", EGRET]);
    if !may_read.status().is_ok_and(|status| status.success()) {
        return kernel::skip(&format!("an ordinary user may not read {EGRET}"));
    }
    let primary: &[&str] = &[USER, "--regid=54321", "--clear-groups"];
    let member: &[&str] = &[USER, "--regid=54329", "--groups=54321"];
    let stranger: &[&str] = &[USER, "--regid=54329", "--clear-groups"];
    let own_group: &[&str] = &[USER, "--regid=0", "--clear-groups"];
    // A status: it may. None: it may not even ask.
    let (nobody, refused, done) = (Some(2), Some(1), Some(0));
    for (group, allowed) in [
        (
            None,
            [(stranger, nobody), (member, nobody), (own_group, refused)],
        ),
        (
            Some(OPERATORS),
            [(stranger, nobody), (member, done), (primary, done)],
        ),
    ] {
        let (stand, directory) = stand(group);
        let socket = directory.join("socket").display().to_string();
        for (user, expected) in allowed {
            let sessions = egret(&stand.lab, &socket, user, &["sessions"]);
            let may_ask = if expected == nobody { nobody } else { done };
            assert_eq!(sessions.status.code(), may_ask, "{user:?}: {sessions:?}");
            let flush = egret(&stand.lab, &socket, user, &["flush", "--all"]);
            assert_eq!(flush.status.code(), expected, "{user:?}: {flush:?}");
            let why = match expected {
                Some(2) => "permission denied",
                Some(1) => "`control.group`",
                _ => "",
            };
            assert!(flush.stderr.contains(why), "{flush:?}");
        }
        assert_eq!(
            egret(&stand.lab, &socket, &[], &["flush", "--all"])
                .status
                .code(),
            done
        );
        over(stand, directory);
    }
}

#[test]
fn a_group_that_is_not_there_is_no_start() {
    let text = "internal = \"10.77.0.0/24\"\ninterface = \"lo\"\n[control]\n\
                group = \"egret-no-such-group\"\n";
    let path = std::env::temp_dir().join(format!("egret-group-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("writing a configuration");
    let said = Command::new(EGRET).arg("check").arg(&path).output();
    std::fs::remove_file(&path).expect("removing it");
    let said = said.expect("egret check");
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success());
    assert!(
        text.contains("there is no group \"egret-no-such-group\""),
        "{text}"
    );
}

/// In order until the end; the socket goes with the gateway.
fn over(mut stand: Stand, directory: PathBuf) {
    let socket = directory.join("socket");
    let request = engine::control::request::Request::INVARIANTS;
    let sound = engine::control::ask(&socket, &request).expect("an answer");
    assert_eq!(sound["invariants"], "ok");
    let stopped = stand.engine.stop();
    stopped.unwrap_or_else(|error| panic!("{error}"));
    assert!(!socket.exists());
    std::fs::remove_dir(&directory).expect("nothing else is there");
}
