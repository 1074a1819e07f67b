//! The gateway as a process: started, ended and killed; and nothing of a demo outlives it.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use egret_cli::lab::netns::NETNS_DIR;
use egret_cli::lab::owner::remove_leftovers;
use egret_cli::lab::{EngineProcess, Gateway, Lab, LabOptions, Topology, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PREFIX: &str = "egret-tp";
const LIMIT: Duration = Duration::from_secs(10);

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        common::skip("network namespaces need root");
    }
    root
}

/// A program that stands in for `egret run`.
fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("gateway");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writing the script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("making it executable");
    path
}

fn lab() -> Lab {
    remove_leftovers(PREFIX);
    Lab::build(LabOptions::new(PREFIX, Topology::OneArm)).expect("the lab")
}

fn namespaces(infix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(infix))
        .collect()
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_gateway_that_says_so_is_ready_and_lives_in_its_namespace() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let program = script(&lab.directory(), "echo; echo egret: ready; exec sleep 1000");
    let mut engine = EngineProcess::new(&lab, &program, "x = 1\n").expect("prepared");
    for _ in 0..2 {
        engine.start().expect("it is ready");
        let pid = engine.pid().expect("it runs");
        let inside = fs::read_link(format!("/proc/{pid}/ns/net")).expect("its namespace");
        let own = fs::read_link("/proc/self/ns/net").expect("our namespace");
        assert_ne!(inside, own);
        engine.kill();
        assert!(!is_alive(pid));
    }
    let error = engine
        .status()
        .expect_err("nobody serves the control socket");
    assert!(error.to_string().contains("status"), "{error}");
}

#[test]
fn a_gateway_that_ends_at_once_is_reported_with_what_it_said() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let program = script(&lab.directory(), "echo no such interface >&2; exit 3");
    let mut engine = EngineProcess::new(&lab, &program, "").expect("prepared");
    let error = engine.start().expect_err("it ended").to_string();
    assert!(
        error.contains("no such interface") && error.contains("exit status: 3"),
        "{error}"
    );
}

#[test]
fn a_bad_end_is_an_error_and_a_good_one_is_not() {
    if !is_root() {
        return;
    }
    let lab = lab();
    for (status, good) in [(0, true), (5, false)] {
        let text =
            format!("trap 'exit {status}' TERM; echo egret: ready; while :; do sleep 0.01; done");
        let program = script(&lab.directory(), &text);
        let mut engine = EngineProcess::new(&lab, &program, "").expect("prepared");
        engine.start().expect("it is ready");
        assert_eq!(engine.stop().is_ok(), good);
    }
}

#[test]
fn a_lab_takes_its_processes_and_files_along() {
    if !is_root() {
        return;
    }
    let lab = lab();
    let mut child = lab
        .gateway
        .run(|| Command::new("sleep").arg("1000").spawn())
        .expect("a process in the namespace");
    let (name, directory) = (lab.name().to_owned(), lab.directory());
    assert_eq!(namespaces(&format!("{name}-")).len(), 8);
    drop(lab);
    assert!(namespaces(&format!("{name}-")).is_empty());
    assert!(!directory.exists());
    assert!(wait::until(LIMIT, || matches!(
        child.try_wait(),
        Ok(Some(_))
    )));
}

/// Starts a demo whose gateway never becomes ready; waits until its lab is there.
fn start_demo(directory: &Path) -> std::process::Child {
    let program = script(directory, "exec sleep 1000");
    let demo = Command::new(env!("CARGO_BIN_EXE_egret"))
        .args(["demo", "--gateway-program"])
        .arg(program)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the demo");
    let infix = format!("egret-demo-{}-", demo.id());
    assert!(
        wait::until(LIMIT, || namespaces(&infix).len() == 8),
        "no lab appeared"
    );
    demo
}

#[test]
fn ctrl_c_leaves_nothing_and_a_killed_demo_is_tidied_up_later() {
    if !is_root() {
        return;
    }
    let directory = std::env::temp_dir().join(format!("{PREFIX}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let mut demo = start_demo(&directory);
    let infix = format!("egret-demo-{}-", demo.id());
    let pid = Pid::from_raw(i32::try_from(demo.id()).expect("a process number"));
    let begun = Instant::now();
    kill(pid, Signal::SIGINT).expect("the demo lives");
    assert_eq!(demo.wait().expect("it ends").code(), Some(130));
    assert!(begun.elapsed() < LIMIT);
    assert_eq!(namespaces(&infix), Vec::<String>::new());

    let mut demo = start_demo(&directory);
    let infix = format!("egret-demo-{}-", demo.id());
    demo.kill().expect("killing it");
    demo.wait().expect("it ends");
    assert!(!namespaces(&infix).is_empty(), "killed, it cannot tidy up");
    let tidied = Command::new(env!("CARGO_BIN_EXE_egret"))
        .args(["demo", "--clean"])
        .output()
        .expect("tidying up");
    assert!(tidied.status.success());
    assert!(String::from_utf8_lossy(&tidied.stderr).contains(&infix));
    assert_eq!(namespaces(&infix), Vec::<String>::new());
    fs::remove_dir_all(&directory).expect("the directory goes");
}
