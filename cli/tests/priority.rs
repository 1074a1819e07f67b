//! `workers.priority` on the real kernel: the workers have it, nobody else has, and where the kernel
//! refuses it the gateway serves all the same.

mod kernel;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::demo::setup::{self, Tuning};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::wait;
use egret_cli::lab::{EngineProcess, Gateway, LabOptions, Topology};
use kernel::backend::{Backend, on_both_backends};
use kernel::{EGRET, Stand, build, command, have, is_root, run, skip};

const PREFIX: &str = "egret-tw";
const LIMIT: Duration = Duration::from_secs(20);
/// Policies in `/proc/PID/task/TID/stat` (sched.h).
const ORDINARY: u32 = 0;
const FIFO: u32 = 1;

/// A thread's name, priority and policy.
type Thread = (String, u32, u32);

/// All threads of a process.
fn threads(pid: u32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let thread = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).ok()?;
        let (start, rest) = text.rsplit_once(')')?;
        let name = start.split_once('(')?.1.to_owned();
        // Fields 40 and 41 (proc(5)); the first after the name is 3.
        let mut fields = rest.split_whitespace().skip(37);
        Some((
            name,
            fields.next()?.parse().ok()?,
            fields.next()?.parse().ok()?,
        ))
    };
    tasks.flatten().filter_map(thread).collect()
}

/// May a thread of this process have a priority? Tried by `chrt`, which only asks for one.
fn may_have_priority() -> bool {
    let granted = command("chrt")
        .args(["--fifo", "1", "true"])
        .output()
        .is_ok_and(|said| said.status.success());
    if !granted {
        skip("the kernel grants no real-time priority (CAP_SYS_NICE, cpu.rt_runtime_us)");
    }
    granted
}

fn tuning(backend: Backend) -> Tuning {
    backend.tuning("\n[workers]\npriority = 3\n")
}

fn assert_serves(stand: &Stand) {
    let server = &stand.lab.servers[0];
    let service = UdpService::start(&server.namespace, server.address, [7000]).expect("a server");
    let flow = UdpFlow::open(&stand.lab.clients[0].namespace, 0, at(0, 7000)).expect("a flow");
    flow.ask(b"question", 3, LIMIT / 20).expect("an answer");
    drop(service);
}

fn granted(backend: Backend) {
    if !is_root() || !have(&[("chrt", "util-linux")]) || !may_have_priority() {
        return;
    }
    let options = LabOptions::new(PREFIX, Topology::TwoArm);
    let stand = Stand::start(options, &tuning(backend));
    let pid = stand.engine.pid().expect("it runs");
    let is_worker = |thread: &Thread| thread.0.starts_with("egret-worker");
    let ranked = |thread: &Thread| (thread.1, thread.2);
    // A worker takes its priority first of all, but perhaps a moment after the gateway is ready.
    let all = |workers: Vec<Thread>| {
        !workers.is_empty() && workers.iter().all(|worker| ranked(worker) == (3, FIFO))
    };
    let have_it = wait::until(LIMIT, || {
        all(threads(pid).into_iter().filter(is_worker).collect())
    });
    let threads = threads(pid);
    assert!(have_it, "{threads:?}");
    let mut others = threads.iter().filter(|thread| !is_worker(thread));
    assert!(
        others.clone().count() > 0 && others.all(|other| ranked(other) == (0, ORDINARY)),
        "{threads:?}"
    );
    assert_serves(&stand);
    stand.finish();
}

fn refused(backend: Backend) {
    if !is_root() || !have(&[("setpriv", "util-linux")]) {
        return;
    }
    let lab = build(LabOptions::new(PREFIX, Topology::TwoArm));
    let config = setup::config(&lab, &tuning(backend));
    let program = lab.directory().join("without-nice");
    let text = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-sys_nice --inh-caps=-sys_nice {EGRET} \"$@\"\n"
    );
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("an executable one");
    let engine = EngineProcess::new(&lab, &program, &config).unwrap_or_else(|e| panic!("{e}"));
    let mut stand = Stand { engine, lab };
    stand.engine.start().unwrap_or_else(|e| panic!("{e}"));
    let threads = threads(stand.engine.pid().expect("it runs"));
    assert!(
        threads
            .iter()
            .all(|&(_, rank, policy)| (rank, policy) == (0, ORDINARY))
    );
    assert_serves(&stand);
    let log = fs::read_to_string(stand.lab.directory().join("engine.log")).expect("its log");
    for words in [
        "`workers.priority` is 3",
        "a worker runs without its priority",
    ] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    let file = stand.lab.directory().join("egret.toml");
    let check = |program: &mut Command| {
        let said = run(&stand.lab.gateway, program.arg("check").arg(&file), LIMIT);
        said.text() + &said.stderr
    };
    let refused = check(&mut Command::new(&program));
    assert!(refused.contains("CAP_SYS_NICE"), "{refused}");
    stand.finish();
}

on_both_backends! {
    workers_have_their_priority_and_other_threads_have_none: granted;
    a_refused_priority_is_told_and_the_gateway_serves: refused;
}
