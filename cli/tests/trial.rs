//! `egret run --confirm`: what is not confirmed goes and leaves everything as it was, however it
//! ends; what is confirmed stays.

mod kernel;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use egret_cli::demo::check::at;
use egret_cli::demo::setup::Tuning;
use egret_cli::lab::plan::{EXTERNAL, INTERNAL, SERVERS, client};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::{EngineProcess, Gateway, Lab, LabOptions, Topology, wait};
use kernel::found::{difference, snapshot};
use kernel::{EGRET, Said, Stand, have, ip, is_root, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PREFIX: &str = "egret-tt";
const LIMIT: Duration = Duration::from_secs(20);
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

/// A lab whose kernel forwards, untranslated, and how it is found.
struct Bench {
    stand: Stand,
    before: String,
    _service: UdpService,
}

/// `egret run --confirm` in it.
struct Trial {
    child: Child,
    log: PathBuf,
}

impl Bench {
    fn new() -> Option<Bench> {
        Bench::of_mode("auto")
    }

    /// The mode may be two: of the inner interface, and of the outer one.
    fn of_mode(mode: &str) -> Option<Bench> {
        if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
            return None;
        }
        let (mode, external) = match mode.split_once(" to ") {
            Some((internal, external)) => (internal, Some(external.to_owned())),
            None => (mode, None),
        };
        let tuning = Tuning {
            mode: Some(mode.to_owned()),
            external_mode: external,
            more: format!("\n[pool]\naddresses = [\"{OWN}\"]\n"),
            ..Tuning::default()
        };
        let stand = Stand::prepare(LabOptions::new(PREFIX, Topology::TwoArm), &tuning);
        let lab = &stand.lab;
        let forward = lab.gateway.set_sysctl("ipv4/ip_forward", "1");
        forward.unwrap_or_else(|error| panic!("{error}"));
        ip(&lab.router, &format!("route add {INTERNAL} via {EXTERNAL}"));
        wait::until(LIMIT, || !ip(&lab.gateway, "address").contains("tentative"));
        let before = snapshot(lab);
        let server = &lab.servers[0].namespace;
        let service = UdpService::start(server, SERVERS[0], [7000]).expect("a server");
        let bench = Bench {
            stand,
            before,
            _service: service,
        };
        assert_eq!(bench.source(), Some(client(1)), "the kernel forwards");
        Some(bench)
    }

    fn lab(&self) -> &Lab {
        &self.stand.lab
    }

    /// The client's address as the server sees it; none if nothing gets through.
    fn source(&self) -> Option<Ipv4Addr> {
        let flow = UdpFlow::open(&self.lab().clients[0].namespace, 0, at(0, 7000)).expect("a flow");
        let seen = flow.ask(b"who am I", 10, Duration::from_millis(200)).ok()?;
        Some(*seen.ip())
    }

    /// Starts on trial; returns once it serves.
    fn start(&self, limit: &str) -> Trial {
        let directory = self.lab().directory();
        let log = directory.join("trial.log");
        let file = File::create(&log).expect("a log");
        let mut command = Command::new(EGRET);
        command
            .args(["run", "--confirm", limit, "--config"])
            .arg(directory.join("egret.toml"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file);
        let child = self.lab().gateway.run(|| command.spawn());
        let trial = Trial {
            child: child.expect("egret"),
            log,
        };
        let ready = wait::until(LIMIT, || trial.said().contains("egret: ready"));
        assert!(ready, "{}", trial.said());
        trial
    }

    fn confirm(&self) -> Said {
        let socket = EngineProcess::control_path(self.lab());
        let mut command = Command::new(EGRET);
        command.args(["confirm", "--socket"]).arg(socket);
        run(&self.lab().gateway, &mut command, LIMIT)
    }

    fn is_attached(&self) -> bool {
        let links =
            ["lan0", "wan0"].map(|link| ip(&self.lab().gateway, &format!("link show {link}")));
        let attached = links.each_ref().map(|link| link.contains("xdp"));
        assert_eq!(attached[0], attached[1], "{links:?}");
        attached[0]
    }

    /// How many links are pinned: the BPF file system shows them.
    fn pinned(&self) -> usize {
        let pins = fs::read_dir(format!("/run/egret/{}/bpf", self.lab().name()));
        let names = pins.into_iter().flatten().flatten();
        names
            .filter(|pin| pin.file_name().to_string_lossy().starts_with("link_"))
            .count()
    }

    /// Everything is as it was, and the kernel forwards again.
    fn assert_as_found(&self) {
        let settled = wait::until(LIMIT / 4, || snapshot(self.lab()) == self.before);
        assert!(
            settled,
            "{}",
            difference(&self.before, &snapshot(self.lab()))
        );
        assert_eq!(self.source(), Some(client(1)));
    }
}

impl Trial {
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process");
        kill(Pid::from_raw(pid), signal).expect("it lives");
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait::until(limit, || {
            status = self.child.try_wait().expect("waiting");
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("it did not end: {}", self.said()))
    }

    /// The process that guards it.
    fn guard(&self) -> Pid {
        let parent = format!("PPid:\t{}\n", self.child.id());
        let of_ours = |entry: fs::DirEntry| {
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            status.contains(&parent).then_some(Pid::from_raw(pid))
        };
        let mut processes = fs::read_dir("/proc").expect("/proc").flatten();
        processes.find_map(of_ours).expect("a guard")
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_not_confirmed_ends_and_leaves_everything_as_it_was() {
    let Some(bench) = Bench::new() else { return };
    let mut trial = bench.start("3s");
    let begin = Instant::now();
    assert_eq!(bench.source(), Some(OWN), "it translates meanwhile");
    assert!(bench.is_attached());
    assert_eq!(bench.pinned(), 0, "nothing outlives the process");
    let left = bench.stand.status()["confirm_within_s"].as_u64();
    assert!(left.is_some_and(|left_s| left_s <= 3), "{left:?}");
    let status = trial.wait(LIMIT);
    assert_eq!(status.code(), Some(1), "{}", trial.said());
    assert!(begin.elapsed() < Duration::from_secs(10));
    let left = PathBuf::from("/run/egret").join(bench.lab().name());
    assert!(!left.exists(), "the tables, too");
    for words in [
        "in 3 s",
        "egret confirm --instance",
        "kill -USR1",
        "not confirmed in time",
    ] {
        assert!(trial.said().contains(words), "{words}: {}", trial.said());
    }
    bench.assert_as_found();
}

#[test]
fn what_is_confirmed_stays() {
    let Some(bench) = Bench::new() else { return };
    for by_signal in [false, true] {
        let mut trial = bench.start("3s");
        let begin = Instant::now();
        let guard = trial.guard();
        if by_signal {
            trial.signal(Signal::SIGUSR1);
        } else {
            let said = bench.confirm();
            assert!(said.status.success(), "{said:?}");
        }
        assert!(
            wait::until(LIMIT, || bench.pinned() == 2),
            "{}",
            trial.said()
        );
        let again = bench.confirm();
        assert_eq!(again.status.code(), Some(1), "{again:?}");
        assert!(again.stderr.contains("nothing to confirm"), "{again:?}");
        // Beyond its time.
        wait::until(LIMIT, || begin.elapsed() > Duration::from_secs(4));
        assert_eq!(trial.child.try_wait().expect("waiting"), None);
        assert_eq!(bench.source(), Some(OWN));
        assert!(bench.stand.status()["confirm_within_s"].is_null());
        assert!(kill(guard, None).is_err(), "the guard has gone");
        trial.signal(Signal::SIGTERM);
        assert_eq!(trial.wait(LIMIT).code(), Some(0), "{}", trial.said());
        bench.assert_as_found();
    }
}

#[test]
fn only_root_and_its_own_user_may_confirm() {
    let Some(bench) = Bench::new() else { return };
    let mut trial = bench.start("5m");
    // Root's group may look at the gateway. A copy, since not everybody may reach the program.
    let copy = std::env::temp_dir().join(format!("egret-trial-{}", std::process::id()));
    fs::copy(EGRET, &copy).expect("a copy");
    let mut command = Command::new(&copy);
    let socket = EngineProcess::control_path(bench.lab());
    command.args(["confirm", "--socket"]).arg(socket);
    command.uid(65_534).gid(0);
    let refused = run(&bench.lab().gateway, &mut command, LIMIT);
    fs::remove_file(&copy).expect("removing the copy");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("only root"), "{refused:?}");
    assert_eq!(bench.pinned(), 0);
    trial.signal(Signal::SIGTERM);
    assert_eq!(trial.wait(LIMIT).code(), Some(0), "{}", trial.said());
    bench.assert_as_found();
}

#[test]
fn killed_on_trial_it_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let mut trial = bench.start("5m");
    assert_eq!(bench.source(), Some(OWN));
    trial.signal(Signal::SIGKILL);
    trial.wait(LIMIT);
    assert!(!bench.is_attached(), "the program goes with the process");
    bench.assert_as_found();

    // Its guard killed before it: what is attached still goes, and `egret detach` does the rest.
    let mut trial = bench.start("5m");
    kill(trial.guard(), Signal::SIGKILL).expect("a guard");
    trial.signal(Signal::SIGKILL);
    trial.wait(LIMIT);
    assert!(!bench.is_attached());
    let mut command = Command::new(EGRET);
    command.args(["detach", "--instance", bench.lab().name()]);
    let detached = run(&bench.lab().gateway, &mut command, LIMIT);
    assert!(detached.status.success(), "{detached:?}");
    bench.assert_as_found();
}

#[test]
fn killed_on_trial_by_way_of_the_tun_driver_it_leaves_nothing() {
    for mode in ["tun", "tun to copy", "copy to tun", "routed"] {
        let Some(bench) = Bench::of_mode(mode) else {
            return;
        };
        let mut trial = bench.start("5m");
        assert_eq!(bench.source(), Some(OWN), "{mode}");
        assert_eq!(bench.pinned(), 0, "{mode}");
        trial.signal(Signal::SIGKILL);
        trial.wait(LIMIT);
        bench.assert_as_found();

        let mut trial = bench.start("5m");
        let said = bench.confirm();
        assert!(said.status.success(), "{mode}: {said:?}");
        let pinned = if mode == "routed" { 0 } else { 2 };
        let kept = wait::until(LIMIT, || bench.pinned() == pinned);
        assert!(kept, "{mode}: {}", trial.said());
        assert_eq!(bench.source(), Some(OWN), "{mode}");
        trial.signal(Signal::SIGTERM);
        assert_eq!(trial.wait(LIMIT).code(), Some(0), "{}", trial.said());
        bench.assert_as_found();
    }
}

#[test]
fn a_dead_engines_program_is_replaced_and_goes_with_the_trial() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    bench.stand.engine.start().unwrap_or_else(|e| panic!("{e}"));
    bench.stand.engine.kill();
    assert!(bench.is_attached() && bench.pinned() == 2);
    assert_eq!(bench.source(), None, "internal traffic is dropped");
    let mut trial = bench.start("5m");
    assert_eq!(bench.source(), Some(OWN));
    assert_eq!(bench.pinned(), 0);
    trial.signal(Signal::SIGKILL);
    trial.wait(LIMIT);
    assert!(!bench.is_attached());
    bench.assert_as_found();
}

#[test]
fn one_that_hangs_is_ended_by_its_guard() {
    let Some(bench) = Bench::new() else { return };
    let mut trial = bench.start("1s");
    trial.signal(Signal::SIGSTOP);
    assert!(bench.is_attached(), "it hangs, and could lock anybody out");
    trial.wait(2 * LIMIT);
    assert!(trial.said().contains("hangs"), "{}", trial.said());
    bench.assert_as_found();
}

#[test]
fn a_start_that_fails_leaves_nothing_either() {
    let Some(bench) = Bench::new() else { return };
    let config = bench.lab().directory().join("egret.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    let file = bench.lab().directory().join("file");
    fs::write(&file, "").expect("a file");
    let socket = EngineProcess::control_path(bench.lab())
        .display()
        .to_string();
    let bad = text.replace(&socket, &file.join("socket").display().to_string());
    fs::write(&config, bad).expect("a configuration");
    let mut command = Command::new(EGRET);
    command
        .args(["run", "--confirm", "5m", "--config"])
        .arg(config);
    let said = run(&bench.lab().gateway, &mut command, LIMIT);
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    assert!(said.stderr.contains("control"), "{}", said.stderr);
    assert!(!said.stderr.contains("died"), "{}", said.stderr);
    bench.assert_as_found();
}

#[test]
fn a_time_that_means_nothing_is_refused() {
    for bad in ["60", "0s", "2h"] {
        let mut command = Command::new(EGRET);
        command.args(["run", "--config", "/nonexistent", "--confirm", bad]);
        let output = command.output().expect("egret");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(bad) && stderr.contains("30s"), "{stderr}");
    }
}
