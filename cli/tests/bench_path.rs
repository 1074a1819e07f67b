//! `egret bench path` on the real kernel: its quick form measures every contender, and it leaves
//! nothing behind, however it ends.

mod kernel;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use egret_cli::lab::wait;
use kernel::{EGRET, have, is_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The namespaces that a run with this process number has left.
fn namespaces_of(process: u32) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&format!("egret-path-{process}-")))
        .collect()
}

/// Has this process started `egret run`?
fn has_gateway(process: u32) -> bool {
    let is_gateway = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let runs = command.split(|&byte| byte == 0).any(|word| word == b"run");
        (parent.parse() == Ok(process) && runs).then_some(())
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(is_gateway).next().is_some()
}

/// Two runs at a time would share the machine, and what they set of it.
static ALONE: Mutex<()> = Mutex::new(());

fn can_run() -> bool {
    is_root() && have(&[("nft", "nftables"), ("renice", "bsdutils")]) && has_two_cores()
}

fn has_two_cores() -> bool {
    let two = std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2);
    if !two {
        kernel::skip("the bench needs two cores");
    }
    two
}

#[test]
fn the_quick_form_measures_everybody_and_cleans_up() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !can_run() {
        return;
    }
    let child = Command::new(EGRET)
        .args(["bench", "path", "--quick", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("egret starts");
    let process = child.id();
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let figures: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a figure a line"))
        .collect();
    let value = |name: &str| {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        figure.and_then(|figure| figure["value"].as_f64())
    };
    let yardstick = cfg!(feature = "xsk-rs").then_some("xsk-rs-forward");
    let contenders = ["nft", "forward", "xdp-forward", "egret-xdp", "egret-tun"];
    for contender in contenders.into_iter().chain(yardstick) {
        let rate = value(&format!("path/udp64-overload/1k/{contender}"));
        assert!(
            rate.is_some_and(|mpps| mpps > 0.0),
            "{contender}: {figures:?}"
        );
    }
    for contender in ["nft", "egret-xdp", "egret-tun"] {
        let rate = value(&format!("path/new-sessions/0/{contender}"));
        assert!(
            rate.is_some_and(|rate| rate > 0.0),
            "{contender}: {figures:?}"
        );
    }
    assert!(value("path/udp64-overload/1k/egret-xdp-vs-nft").is_some());
    let left_out = said.matches("skipped xsk-rs-forward: ").count();
    assert_eq!(left_out, usize::from(yardstick.is_none()), "{said}");
    assert_eq!(namespaces_of(process), [""; 0]);
}

/// Beside what TCP carries stands what that costs the gateway's core.
#[test]
fn tcp_is_measured_with_its_cpu_time() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !can_run() || !have(&[("iperf3", "iperf3")]) {
        return;
    }
    let output = Command::new(EGRET)
        .args(["bench", "path", "--json", "--tests=tcp-1", "--rounds=1"])
        .args(["--seconds=0.5", "--contenders=nft,egret-tun"])
        .output()
        .expect("egret starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let figures: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a figure a line"))
        .collect();
    let figure = |name: &str, unit: &str| {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        let figure = figure.unwrap_or_else(|| panic!("no {name}: {figures:?}"));
        assert_eq!(figure["unit"], unit, "{name}");
        figure["value"].as_f64().expect("a number")
    };
    for contender in ["nft", "egret-tun"] {
        let rate = figure(&format!("path/tcp-1/0/{contender}"), "Gbit/s");
        let cost = figure(&format!("path/tcp-1-cpu/0/{contender}"), "ns/KiB");
        assert!(rate > 0.0 && cost > 0.0, "{contender}: {figures:?}");
    }
    let ratio = figure("path/tcp-1-cpu/0/egret-tun-vs-nft", "ratio");
    assert!(ratio > 0.0, "{figures:?}");
}

#[test]
#[cfg(not(feature = "xsk-rs"))]
fn a_contender_that_is_not_built_is_refused_with_how_to_build_it() {
    let output = Command::new(EGRET)
        .args(["bench", "path", "--contenders=nft,xsk-rs-forward"])
        .output()
        .expect("egret starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in ["xsk-rs-forward", "--features xsk-rs", "libelf-dev"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn a_signal_in_the_middle_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !can_run() {
        return;
    }
    let limit = "/proc/sys/net/netfilter/nf_conntrack_max";
    let before = fs::read_to_string(limit).expect("connection tracking");
    let mut child = Command::new(EGRET)
        .args([
            "bench",
            "path",
            "--contenders=egret-xdp",
            "--tests=udp64-overload",
        ])
        .args(["--flows=1k", "--seconds=20"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("egret starts");
    let process = child.id();
    let up = || namespaces_of(process).len() == 3;
    assert!(
        wait::until(Duration::from_secs(10), up),
        "no stage is built"
    );
    let gateway = || has_gateway(process);
    assert!(
        wait::until(Duration::from_secs(20), gateway),
        "no gateway is started"
    );
    kill(Pid::from_raw(process as i32), Signal::SIGINT).expect("it runs");
    let ended = wait::until(Duration::from_secs(20), || {
        !matches!(child.try_wait(), Ok(None))
    });
    assert!(ended, "it goes on after SIGINT");
    assert_eq!(child.wait().expect("it ended").code(), Some(130));
    assert_eq!(namespaces_of(process), [""; 0]);
    assert_eq!(fs::read_to_string(limit).expect("still there"), before);
}
