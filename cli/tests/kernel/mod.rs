//! What the tests on a real kernel have in common: a lab with the real engine in it, programs in
//! its namespaces, and a word about what is skipped.
#![allow(dead_code)] // Every test file uses its own part.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use egret_cli::demo::setup::{self, Tuning};
use egret_cli::lab::owner::remove_leftovers;
use egret_cli::lab::{EngineProcess, Gateway, Lab, LabOptions, Namespace, wait};
use nix::sys::socket::bind;
use socket2::{Domain, Protocol, Socket, Type};

#[path = "../common/mod.rs"]
mod common;
pub use common::skip;
pub mod backend;
pub mod found;
pub mod wireguard;

/// The program under test.
pub const EGRET: &str = env!("CARGO_BIN_EXE_egret");

/// How long a server may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// May this user make namespaces?
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("network namespaces and AF_XDP need root");
    }
    root
}

/// Are these programs there? Each with the Debian package that has it.
pub fn have(programs: &[(&str, &str)]) -> bool {
    let missing: Vec<String> = programs
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("{program} (Debian package {package})"))
        .collect();
    if !missing.is_empty() {
        skip(&format!("missing: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Where a program is. Servers lie where an ordinary user's PATH does not lead.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// A command of a program that [`have`] has found.
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// A lab whose gateway serves.
pub struct Stand {
    /// The gateway. Before the lab, so that it ends before its namespace goes.
    pub engine: EngineProcess,
    /// The lab.
    pub lab: Lab,
}

impl Stand {
    /// Builds a lab, writes the demo's configuration with this tuning, and starts the gateway.
    pub fn start(options: LabOptions, tuning: &Tuning) -> Stand {
        let mut stand = Stand::prepare(options, tuning);
        stand.engine.start().unwrap_or_else(|e| panic!("{e}"));
        let mode = match tuning.external_mode {
            Some(_) => Some("mixed"),
            None => tuning.mode.as_deref(),
        };
        let wanted = mode.filter(|&mode| mode != "auto");
        assert!(
            wanted.is_none_or(|mode| stand.status()["mode"] == mode),
            "not {wanted:?}: {}",
            stand.status()["mode"]
        );
        stand
    }

    /// As [`Stand::start`], without starting the gateway.
    pub fn prepare(options: LabOptions, tuning: &Tuning) -> Stand {
        let lab = build(options);
        let config = setup::config(&lab, tuning);
        Stand::with_config(lab, &config)
    }

    /// A gateway with a configuration of its own in a lab.
    pub fn with_config(lab: Lab, config: &str) -> Stand {
        let engine =
            EngineProcess::new(&lab, EGRET.as_ref(), config).unwrap_or_else(|e| panic!("{e}"));
        Stand { engine, lab }
    }

    /// Generic mode gets merged packets as they are, too big for a frame: the gateway's neighbours
    /// send single ones. (Attached natively, the program does that to a veth by itself.)
    pub fn split_for_generic_mode(&self) {
        self.lab
            .split_towards_gateway()
            .unwrap_or_else(|e| panic!("{e}"));
    }

    /// What the control socket answers to `status`.
    pub fn status(&self) -> serde_json::Value {
        let path = EngineProcess::control_path(&self.lab);
        engine::control::ask(&path, &engine::control::request::Request::STATUS)
            .expect("the gateway answers")
    }

    /// The gateway's tables and counters are in order, as it says itself.
    pub fn assert_in_order(&self) {
        let ok = wait::until(
            Duration::from_secs(2),
            || matches!(self.engine.status(), Ok(Some(status)) if status.invariants == "ok"),
        );
        assert!(ok, "{:?}", self.engine.status());
    }

    /// No host at the edge was sent a wrong checksum, and the gateway is in order; ends it.
    pub fn finish(self) {
        let hosts = self.lab.clients.iter().chain(&self.lab.servers);
        for host in hosts {
            for protocol in ["Tcp", "Udp", "Icmp"] {
                let wrong = snmp(&host.namespace, protocol, "InCsumErrors").expect("a counter");
                assert_eq!(wrong, 0, "{protocol} checksums at {}", host.address);
            }
        }
        self.assert_in_order();
        self.stop();
    }

    /// How many frames were dropped for these reasons.
    pub fn drops(&self, reasons: &[&str]) -> u64 {
        let drops = &self.status()["drops"];
        let counts = reasons
            .iter()
            .map(|&reason| drops[reason].as_u64().unwrap_or(0));
        counts.sum()
    }

    /// Ends the gateway in good order.
    pub fn stop(mut self) {
        let ended = self.engine.stop();
        ended.unwrap_or_else(|e| panic!("{e}"));
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gateway's log ends with\n{}", self.engine.log_tail());
        }
    }
}

/// Builds a lab, once what an earlier, killed test of this prefix left is gone.
pub fn build(options: LabOptions) -> Lab {
    remove_leftovers(&options.prefix);
    Lab::build(options).unwrap_or_else(|e| panic!("the lab: {e}"))
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a program in a namespace to its end, or for `limit` at most (then it is an error).
pub fn run(namespace: &Namespace, command: &mut Command, limit: Duration) -> Said {
    let what = format!("{command:?} in {}", namespace.name());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = namespace.run(|| command.spawn());
    let mut child = child.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut said = std::thread::scope(|scope| {
        let out = scope.spawn(|| read_all(stdout));
        let err = scope.spawn(|| read_all(stderr));
        let ended = wait::until(limit, || !matches!(child.try_wait(), Ok(None)));
        if !ended {
            let _ = child.kill();
        }
        let status = child.wait().expect("waiting for a child");
        let said = Said {
            status,
            stdout: out.join().expect("reading"),
            stderr: String::from_utf8_lossy(&err.join().expect("reading")).into_owned(),
        };
        (ended, said)
    });
    assert!(said.0, "{what} did not end within {limit:?}: {:?}", said.1);
    said.1.stderr.truncate(4000);
    said.1
}

/// As [`run`], of a program that must succeed.
pub fn succeed(namespace: &Namespace, command: &mut Command, limit: Duration) -> Said {
    let said = run(namespace, command, limit);
    assert!(
        said.status.success(),
        "{command:?} in {}: {}\n{}{}",
        namespace.name(),
        said.status,
        said.text(),
        said.stderr
    );
    said
}

/// `ip` in a namespace: words of one command line.
pub fn ip(namespace: &Namespace, line: &str) -> String {
    let mut command = command("ip");
    command.args(line.split_whitespace());
    succeed(namespace, &mut command, Duration::from_secs(5)).text()
}

fn read_all(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// A server that runs until it is dropped.
pub struct Daemon(Child);

impl Daemon {
    /// Starts a server that stays in the foreground; returns once it listens on these TCP ports.
    /// What it prints goes to a file of the lab.
    pub fn start(lab: &Lab, namespace: &Namespace, command: &mut Command, ports: &[u16]) -> Daemon {
        let what = format!("{command:?} in {}", namespace.name());
        let log = lab.directory().join(format!("{}.log", namespace.name()));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.expect("a log file");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log file"))
            .stderr(file);
        let child = namespace.run(|| command.spawn());
        let mut daemon = Daemon(child.unwrap_or_else(|error| panic!("{what}: {error}")));
        let mut ended = None;
        let listens = wait::until(LISTEN_LIMIT, || {
            ended = daemon.0.try_wait().ok().flatten();
            ended.is_some() || ports.iter().all(|&port| is_listening(namespace, port))
        });
        let said = || fs::read_to_string(&log).unwrap_or_default();
        assert!(ended.is_none(), "{what} ended with {ended:?}: {}", said());
        assert!(listens, "{what} does not listen: {}", said());
        daemon
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does a socket of the namespace listen on this TCP port?
pub fn is_listening(namespace: &Namespace, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    let listens = |text: String| {
        // Local address, remote address, state: 0A is listening.
        text.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words
                .next()
                .is_some_and(|at| format!("{at} ").ends_with(&wanted));
            local && words.nth(1) == Some("0A")
        })
    };
    let tables = namespace.run(|| {
        let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok([read("tcp").ok(), read("tcp6").ok()])
    });
    tables.is_ok_and(|tables| tables.into_iter().flatten().any(listens))
}

/// Is this UDP port of the namespace taken?
pub fn has_udp_port(namespace: &Namespace, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/udp"));
    table.is_ok_and(|text| text.contains(&wanted))
}

/// A counter of a namespace's `/proc/net/snmp`, as `Tcp InCsumErrors`.
pub fn snmp(namespace: &Namespace, protocol: &str, counter: &str) -> io::Result<u64> {
    let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{protocol}: ")));
    let (names, values) = (lines.next(), lines.next());
    let found = names.zip(values).and_then(|(names, values)| {
        let mut columns = names.split_whitespace().zip(values.split_whitespace());
        columns.find(|(name, _)| *name == counter)?.1.parse().ok()
    });
    found.ok_or_else(|| io::Error::other(format!("no {protocol} {counter}")))
}

/// Whole frames on one interface, of every EtherType, as they are.
pub struct Frames(Socket);

impl Frames {
    /// Opens an interface; begins to see what it receives.
    pub fn open(namespace: &Namespace, link: &str) -> Frames {
        let address = namespace.link_address(link).expect("a link");
        let opened = namespace.run(|| {
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
            bind(socket.as_raw_fd(), &address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        Frames(opened.expect("a packet socket"))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        (&self.0).write_all(frame).expect("the frame is sent");
    }

    /// Does a frame with these bytes in it come within `limit`?
    pub fn see(&self, marker: &[u8], limit: Duration) -> bool {
        self.see_all(marker, marker, limit, &mut Vec::new())
    }

    /// Collects what follows `any` in frames until one has `last` in it; does that come within
    /// `limit`?
    pub fn see_all(
        &self,
        any: &[u8],
        last: &[u8],
        limit: Duration,
        seen: &mut Vec<String>,
    ) -> bool {
        let mut buffer = [0; 2048];
        let place = |frame: &[u8], marker: &[u8]| {
            frame
                .windows(marker.len())
                .position(|bytes| bytes == marker)
        };
        wait::until(limit, || {
            while let Ok(length) = (&self.0).read(&mut buffer) {
                let frame = &buffer[..length];
                if place(frame, last).is_some() {
                    return true;
                }
                if let Some(at) = place(frame, any) {
                    seen.push(String::from_utf8_lossy(&frame[at..]).into_owned());
                }
            }
            false
        })
    }
}
