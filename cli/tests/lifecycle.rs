//! Starting and ending: the host is left as it was found, engines keep off each other, a restart is
//! quick, an idle gateway sleeps, and what cannot be run says why.

mod kernel;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use egret_cli::demo::check::{at, endpoint};
use egret_cli::demo::setup::{self, Tuning};
use egret_cli::lab::plan::{EXTERNAL, SERVERS};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{EchoConnection, TcpService, exchange};
use egret_cli::lab::{EngineProcess, Gateway, Lab, LabOptions, Topology, wait};
use engine::device::sys::ethtool::{self, Offload};
use kernel::backend::{Backend, on_both_backends};
use kernel::found::{difference, kept, snapshot};
use kernel::{EGRET, Said, Stand, build, command, have, ip, is_root, run};

const PREFIX: &str = "egret-tl";
const LIMIT: Duration = Duration::from_secs(20);
const OWN: &str = "192.0.2.3";

/// A pool of one address of Egret's own.
fn own_pool() -> String {
    format!("\n[pool]\naddresses = [\"{OWN}\"]\n")
}

/// The neighbours that the kernel keeps resolved for somebody.
fn managed(lab: &Lab) -> usize {
    ip(&lab.gateway, "-d neighbour").matches("managed").count()
}

/// Some TCP and UDP through the gateway.
fn some_traffic(lab: &Lab) {
    let server = &lab.servers[0].namespace;
    let tcp = TcpService::start(server, 5001).expect("a server");
    let udp = UdpService::start(server, SERVERS[0], [7000]).expect("a server");
    for client in &lab.clients {
        exchange(&client.namespace, at(0, 5001), 256 << 10, 1).expect("bytes through the gateway");
        let flow = UdpFlow::open(&client.namespace, 0, at(0, 7000)).expect("a flow");
        flow.ask(b"question", 3, LIMIT / 20).expect("an answer");
    }
    drop((tcp, udp));
}

/// A lab with an engine of this mode and pool that is ready to start, and how it is found.
fn found(topology: Topology, mode: &str, more: String) -> (Stand, String) {
    let tuning = Tuning {
        mode: Some(mode.to_owned()),
        more,
        ..Tuning::default()
    };
    let stand = Stand::prepare(LabOptions::new(PREFIX, topology), &tuning);
    if mode == "generic" {
        stand.split_for_generic_mode();
    }
    // What the engine wants off is on at first.
    let internal = topology.internal_link();
    let on = || {
        ethtool::set_offload(internal, Offload::Gro, true)?;
        ethtool::set_offload(internal, Offload::RxVlan, true)
    };
    stand.lab.gateway.run(on).expect("turning offloads on");
    // IPv6 settles in its own time.
    wait::until(LIMIT, || {
        !ip(&stand.lab.gateway, "address").contains("tentative")
    });
    let before = snapshot(&stand.lab);
    (stand, before)
}

fn left_as_found(topology: Topology, mode: &str, more: String) {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    let (mut stand, before) = found(topology, mode, more);
    for _ in 0..2 {
        stand
            .engine
            .start()
            .unwrap_or_else(|error| panic!("{error}"));
        some_traffic(&stand.lab);
        let during = difference(&before, &snapshot(&stand.lab));
        let signs: &[&str] = match mode {
            "generic" => &["xdp", "egret", "rxvlan", "gro"],
            // In tc tags are seen, and the program is no part of the interface.
            "tun" => &["egret", "link_tc_"],
            _ => &["xdp", "egret", "rxvlan"],
        };
        for &sign in signs {
            assert!(
                during.contains(sign),
                "no sign of {sign} while it runs:\n{during}"
            );
        }
        assert!(managed(&stand.lab) > 0, "it keeps its neighbours resolved");
        stand
            .engine
            .stop()
            .unwrap_or_else(|error| panic!("{error}"));
        // The kernel takes TAPs and programs away in its own time.
        let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
        assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));
        assert_eq!(managed(&stand.lab), 0);
    }
}

#[test]
fn sigterm_leaves_the_host_as_found_copy_two_arm() {
    left_as_found(Topology::TwoArm, "copy", own_pool());
}

#[test]
fn sigterm_leaves_the_host_as_found_copy_one_arm() {
    left_as_found(Topology::OneArm, "copy", String::new());
}

#[test]
fn sigterm_leaves_the_host_as_found_generic_one_arm() {
    left_as_found(Topology::OneArm, "generic", own_pool());
}

#[test]
fn sigterm_leaves_the_host_as_found_generic_two_arm() {
    left_as_found(Topology::TwoArm, "generic", String::new());
}

#[test]
fn sigterm_leaves_the_host_as_found_tun_one_arm() {
    left_as_found(Topology::OneArm, "tun", own_pool());
}

#[test]
fn sigterm_leaves_the_host_as_found_tun_two_arm() {
    left_as_found(Topology::TwoArm, "tun", String::new());
}

/// `egret` with words, in the gateway's namespace.
fn egret(lab: &Lab, words: &[&str]) -> Said {
    run(&lab.gateway, Command::new(EGRET).args(words), LIMIT)
}

#[test]
fn after_sigkill_internal_traffic_stops_until_detach_puts_everything_back() {
    after_sigkill("copy", "xdp");
}

#[test]
fn after_sigkill_in_tun_mode_internal_traffic_stops_until_detach_puts_everything_back() {
    after_sigkill("tun", "link_tc_");
}

/// `sign`: what shows that the program is attached.
fn after_sigkill(mode: &str, sign: &str) {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    let (mut stand, before) = found(Topology::TwoArm, mode, own_pool());
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(stand.status()["self_test"], "passed");
    some_traffic(&stand.lab);
    let name = stand.lab.name().to_owned();
    let refused = egret(&stand.lab, &["detach", "--instance", &name]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("is running"), "{}", refused.stderr);
    some_traffic(&stand.lab);

    stand.engine.kill();
    let server = &stand.lab.servers[0];
    let service = UdpService::start(&server.namespace, server.address, [7001]).expect("a server");
    let flow = UdpFlow::open(&stand.lab.clients[0].namespace, 0, at(0, 7001)).expect("a flow");
    flow.ask(b"anybody", 3, LIMIT / 100)
        .expect_err("nobody translates");
    let now = snapshot(&stand.lab);
    assert!(now.contains(sign), "the program stays: {now}");
    let host = TcpService::start(&stand.lab.gateway, 22).expect("a server");
    exchange(&server.namespace, endpoint(EXTERNAL, 22), 64 << 10, 3).expect("host traffic");
    drop((service, host));

    let detached = egret(&stand.lab, &["detach", "--instance", &name]);
    assert!(detached.status.success(), "{detached:?}");
    assert!(
        detached.text().contains("2 interface"),
        "{}",
        detached.text()
    );
    let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
    assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));
    let again = egret(&stand.lab, &["detach", "--instance", &name]);
    assert!(
        again.status.success() && again.text().contains("nothing"),
        "{again:?}"
    );
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    some_traffic(&stand.lab);
    stand.stop();
}

/// A dead engine's program is replaced by that of the next one, wherever it is attached.
#[test]
fn an_engine_of_another_mode_takes_over_after_sigkill() {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    let (mut stand, before) = found(Topology::TwoArm, "copy", String::new());
    for mode in ["copy", "tun", "copy"] {
        let tuning = Tuning {
            mode: Some(mode.to_owned()),
            ..Tuning::default()
        };
        let config = setup::config(&stand.lab, &tuning);
        let path = stand.lab.directory().join("egret.toml");
        fs::write(path, config).expect("a configuration");
        stand
            .engine
            .start()
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(stand.status()["mode"], mode);
        some_traffic(&stand.lab);
        let now = snapshot(&stand.lab);
        let attached = (now.contains("prog/xdp"), now.contains("clsact"));
        assert_eq!(attached, (mode == "copy", false), "{now}");
        stand.engine.kill();
    }
    let name = stand.lab.name().to_owned();
    let detached = egret(&stand.lab, &["detach", "--instance", &name]);
    assert!(detached.status.success(), "{detached:?}");
    let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
    assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));
}

/// `egret run` with a file of this text, which must not start.
fn refused(lab: &Lab, text: &str) -> Said {
    let path = lab.directory().join("refused.toml");
    fs::write(&path, text).expect("writing a configuration");
    let said = egret(lab, &["run", "--config", &path.display().to_string()]);
    assert_eq!(said.status.code(), Some(2), "{text}\n{said:?}");
    said
}

fn second_engine(backend: Backend) {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    let tuning = backend.tuning("");
    let stand = Stand::start(LabOptions::new(PREFIX, Topology::TwoArm), &tuning);
    let lab = &stand.lab;
    let during = snapshot(lab);
    let config = setup::config(lab, &tuning);
    let other_name = format!("{}-b", lab.name());
    let kept_by_other = PathBuf::from("/run/egret").join(&other_name);
    let other = |text: &str| {
        let (from, to) = (
            format!("instance = \"{}\"", lab.name()),
            format!("instance = \"{other_name}\""),
        );
        text.replace(&from, &to)
            .replace("control.sock", "other.sock")
    };
    let tables = lab.directory().join("shared-tables");
    // By name, by interface, by tables.
    let same = refused(lab, &config);
    assert!(
        same.stderr.contains("running") || same.stderr.contains("in use"),
        "{}",
        same.stderr
    );
    assert!(same.stderr.contains(lab.name()), "{}", same.stderr);
    let interface = refused(lab, &other(&config));
    let program = match backend {
        Backend::Copy => "XDP program already",
        Backend::Tun => "tc program of another engine",
    };
    for word in ["lan0", program, lab.name(), "egret detach"] {
        assert!(
            interface.stderr.contains(word),
            "{word}: {}",
            interface.stderr
        );
    }
    let held = fs::File::create(&tables).expect("a file");
    let _held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).expect("a lock");
    let with_tables = other(&config).replace(
        "sessions_max = 65536",
        &format!("sessions_max = 65536\npath = \"{}\"", tables.display()),
    );
    let in_use = refused(lab, &with_tables);
    for word in ["shared-tables", "in use"] {
        assert!(in_use.stderr.contains(word), "{word}: {}", in_use.stderr);
    }
    assert!(
        !kept_by_other.join("bpf").exists(),
        "what was refused is gone"
    );
    let _ = fs::remove_dir_all(&kept_by_other);
    let after = difference(&during, &snapshot(lab));
    assert!(after.is_empty(), "a refused engine changed\n{after}");
    some_traffic(lab);
    stand.assert_in_order();
    stand.stop();
}

on_both_backends! {
    a_second_engine_is_refused_and_the_first_goes_on: second_engine;
}

#[test]
fn another_xdp_program_is_not_replaced() {
    if !is_root() || !have(&[("ip", "iproute2")]) {
        return;
    }
    for mode in ["auto", "generic"] {
        let tuning = Tuning {
            mode: Some(mode.to_owned()),
            ..Tuning::default()
        };
        let mut stand = Stand::prepare(LabOptions::new(PREFIX, Topology::TwoArm), &tuning);
        let gateway = &stand.lab.gateway;
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/src/bpf/egret.bpf.o");
        ip(
            gateway,
            &format!("link set dev wan0 xdp object {object} section xdp"),
        );
        let before = ip(gateway, "-d link show wan0");
        assert!(before.contains("prog/xdp"), "{before}");
        let error = stand
            .engine
            .start()
            .expect_err("wan0 has a program")
            .to_string();
        for word in ["wan0", "XDP program already", "xdp off", "exit status: 2"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        let gateway = &stand.lab.gateway;
        assert_eq!(ip(gateway, "-d link show wan0"), before);
        let lan = ip(gateway, "-d link show lan0");
        assert!(!lan.contains("xdp"), "a failed start leaves nothing: {lan}");
        assert_eq!(kept(&stand.lab), Vec::<String>::new(), "pins");
        // Once it is gone, the engine starts.
        ip(gateway, "link set dev wan0 xdp off");
        if mode == "auto" {
            stand
                .engine
                .start()
                .unwrap_or_else(|error| panic!("{error}"));
            stand.stop();
        }
    }
}

/// A start that fails after the program was attached, as for a control socket that cannot be made.
fn failed_start(backend: Backend) {
    if !is_root() || !have(&[("ip", "iproute2"), ("tc", "iproute2")]) {
        return;
    }
    let (stand, before) = found(Topology::TwoArm, backend.mode(), String::new());
    let config = setup::config(&stand.lab, &backend.tuning(""));
    let file = stand.lab.directory().join("file");
    fs::write(&file, "").expect("a file");
    let socket = EngineProcess::control_path(&stand.lab)
        .display()
        .to_string();
    let config = config.replace(&socket, &file.join("socket").display().to_string());
    let said = refused(&stand.lab, &config);
    assert!(said.stderr.contains("control"), "{}", said.stderr);
    let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
    assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));

    // After a crash, what drops internal traffic stays, and so does the way back.
    let mut stand = stand;
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    stand.engine.kill();
    let said = refused(&stand.lab, &config);
    let word = format!("egret detach --instance {}", stand.lab.name());
    assert!(said.stderr.contains(&word), "{}", said.stderr);
    let sign = match backend {
        Backend::Copy => "prog/xdp",
        Backend::Tun => "link_tc_",
    };
    let now = snapshot(&stand.lab);
    assert!(now.contains(sign), "the program stays: {now}");
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    some_traffic(&stand.lab);
    stand
        .engine
        .stop()
        .unwrap_or_else(|error| panic!("{error}"));
    let settled = wait::until(LIMIT / 10, || snapshot(&stand.lab) == before);
    assert!(settled, "{}", difference(&before, &snapshot(&stand.lab)));
}

on_both_backends! {
    a_failed_start_leaves_the_host_as_found: failed_start;
}

/// Has the server's kernel an acknowledgement for all that it has sent? The first number of each
/// line's queues is what is still to be acknowledged (proc(5), tcp: `tx_queue`).
fn nothing_unacknowledged(stand: &Stand) -> bool {
    let server = &stand.lab.servers[0].namespace;
    let table = server.run(|| fs::read_to_string("/proc/thread-self/net/tcp"));
    let table = table.expect("the server's connections");
    let queues = table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace().skip(3);
        let (state, queues) = (columns.next()?, columns.next()?);
        (state == "01").then_some(queues)
    });
    queues
        .into_iter()
        .all(|queues| queues.starts_with("00000000:"))
}

fn quick_restarts(backend: Backend) {
    if !is_root() {
        return;
    }
    for topology in Topology::ALL {
        let options = LabOptions {
            queues: 2,
            ..LabOptions::new(PREFIX, topology)
        };
        let mut stand = Stand::start(options, &backend.tuning(""));
        let server = &stand.lab.servers[0];
        let tcp = TcpService::start(&server.namespace, 5003).expect("a server");
        let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
        let open = || EchoConnection::open(&stand.lab.clients[0].namespace, at(0, 5003));
        let mut echo = open().expect("a connection");
        let flow = UdpFlow::open(&stand.lab.clients[1].namespace, 0, at(0, 7002)).expect("a flow");
        let seen = flow.ask(b"first", 3, LIMIT / 20).expect("an answer");
        let mut slowest = Duration::ZERO;
        for round in 0..10u8 {
            let begun = Instant::now();
            for number in 0..50u8 {
                let _ = flow.send(&[round, number]);
            }
            if round % 2 == 0 {
                stand.engine.kill();
            } else {
                stand
                    .engine
                    .stop()
                    .unwrap_or_else(|error| panic!("{error}"));
            }
            for number in 50..100u8 {
                let _ = flow.send(&[round, number]);
            }
            echo.send(&[round]).expect("the connection stands");
            stand
                .engine
                .start()
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            slowest = slowest.max(begun.elapsed());
            let again = flow
                .ask(&[round; 3], 10, LIMIT / 40)
                .expect("the flow goes on");
            assert_eq!(again, seen, "round {round}: with its external endpoint");
            echo.expect(&[round], LIMIT / 2)
                .expect("the connection goes on");
            // Its acknowledgement may take 40 ms. Without it the server would send the echo again, to the
            // host's kernel while nobody else has the address, and that resets what it does not know.
            assert!(
                wait::until(LIMIT, || nothing_unacknowledged(&stand)),
                "round {round}: the echo is not acknowledged"
            );
        }
        println!(
            "{}: slowest restart {} ms",
            topology.name(),
            slowest.as_millis()
        );
        assert!(slowest < Duration::from_secs(3), "{slowest:?}");
        stand.assert_in_order();
        drop((tcp, udp));
        stand.stop();
    }
}

on_both_backends! {
    ten_quick_restarts_under_traffic: quick_restarts;
}

/// What the kernel drops before the engine sees it is counted nowhere but at its sockets, and at the
/// TAPs of the tun driver.
fn kernel_drops(backend: Backend) {
    if !is_root() {
        return;
    }
    let options = LabOptions::new(PREFIX, Topology::TwoArm);
    let stand = Stand::start(options, &backend.tuning(""));
    let lost = || {
        let counters = &stand.status()["sockets"]["lan0"];
        let count = |name: &str| counters[name].as_u64().expect("a counter");
        count("rx_ring_full") + count("fill_ring_empty") + count("rx_dropped")
    };
    assert_eq!(lost(), 0);
    let pid = stand.engine.pid().expect("it runs") as i32;
    let signal = |which| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), which);
    let flow = UdpFlow::open(&stand.lab.clients[0].namespace, 0, at(0, 7003)).expect("a flow");
    signal(nix::sys::signal::Signal::SIGSTOP).expect("stopping it");
    for number in 0..5000_u16 {
        let _ = flow.send(&number.to_be_bytes());
    }
    signal(nix::sys::signal::Signal::SIGCONT).expect("letting it go on");
    let told = wait::until(LIMIT / 4, || lost() > 0);
    assert!(told, "{}", stand.status()["sockets"]);
    let socket = EngineProcess::control_path(&stand.lab);
    let said = egret(
        &stand.lab,
        &["status", "--socket", &socket.display().to_string()],
    );
    let text = said.text();
    assert!(text.contains("kernel dropped at lan0"), "{text}");
    assert!(!text.contains("at wan0"), "{text}");
    stand.assert_in_order();
    stand.stop();
}

on_both_backends! {
    what_the_kernel_drops_is_told: kernel_drops;
}

/// Nanoseconds that a process's threads ran, and its user and system time in clock ticks.
fn run_time(pid: u32) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let ran = tasks.flatten().map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ')
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0)
    });
    let ran = ran.sum();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its times");
    let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|word| word.parse::<u64>().expect("ticks"));
    (ran, ticks.sum())
}

fn idle(mode: &str, sessions: &str) {
    if !is_root() {
        return;
    }
    const WATCHED: Duration = Duration::from_secs(5);
    let lab = build(LabOptions::new(PREFIX, Topology::TwoArm));
    let tuning = Tuning {
        mode: Some(mode.to_owned()),
        ..Tuning::default()
    };
    let config = setup::config(&lab, &tuning).replace("sessions_max = 65536", sessions);
    let mut stand = Stand::with_config(lab, &config);
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    some_traffic(&stand.lab);
    let pid = stand.engine.pid().expect("it runs");
    let table = stand.status()["sessions_max"].clone();
    // Not a wait for something: this is the time over which is measured.
    let (begun, before) = (Instant::now(), run_time(pid));
    std::thread::sleep(WATCHED);
    let (elapsed, after) = (begun.elapsed(), run_time(pid));
    let percent = (after.0 - before.0) as f64 / elapsed.as_nanos() as f64 * 100.0;
    // Ticks of the interface to users: 100 a second (USER_HZ).
    let ticks = (after.1 - before.1) as f64 / elapsed.as_secs_f64();
    println!(
        "{{\"name\": \"gateway/idle-cpu/{table}-sessions\", \"value\": {percent:.3}, \
         \"unit\": \"percent of a core\", \"utime+stime\": {ticks:.2}}}"
    );
    assert!(
        percent < 1.0 && ticks < 1.0,
        "{percent:.3} % ({ticks:.2} % in ticks) with {table}"
    );
    stand.stop();
}

#[test]
fn an_idle_gateway_sleeps() {
    idle("copy", "sessions_max = 65536");
}

#[test]
fn an_idle_gateway_in_tun_mode_sleeps() {
    idle("tun", "sessions_max = 65536");
}

#[test]
fn an_idle_gateway_with_tables_of_the_default_size_sleeps() {
    idle("copy", "");
}

/// Every message names the value, what is allowed, and what to do.
#[test]
fn what_cannot_be_run_says_why() {
    if !is_root() {
        return;
    }
    let lab = build(LabOptions::new(PREFIX, Topology::OneArm));
    let listener = TcpService::start(&lab.gateway, 20_022).expect("a server");
    let start = format!(
        "internal = \"10.77.0.0/24\"\ninstance = \"{}\"\n",
        lab.name()
    );
    let good = format!("{start}interface = \"eth0\"\n");
    let cases: [(&str, String, &[&str]); 8] = [
        (
            "no such interface",
            format!("{start}interface = \"eth9\"\n"),
            &["\"eth9\"", "eth0", "fix"],
        ),
        (
            "prefix clash",
            good.replace("\"10.77.0.0/24\"", "[\"10.77.0.0/24\", \"192.0.2.0/24\"]"),
            &["10.77.0.0/24", "10.77.0.1", "fix"],
        ),
        (
            "eif on a shared address",
            format!("{good}[nat]\nmapping = \"eim\"\nfiltering = \"eif\"\n"),
            &["eif", "adf", "[pool] addresses"],
        ),
        (
            "unknown key",
            format!("{good}intrenal = 1\n"),
            &["`intrenal`", "`internal`"],
        ),
        (
            "a port that listens",
            format!("{good}[pool]\nports = \"20000-20100\"\n"),
            &["20022", "pool.exclude_ports"],
        ),
        (
            "ephemeral ports",
            format!("{good}[pool]\nports = \"40000-50000\"\n"),
            &["40000-50000", "32768-60999", "ip_local_reserved_ports"],
        ),
        (
            "a duplicate forward",
            format!(
                "{good}{0}{0}",
                "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8080\"\ntarget = \"10.77.0.11:80\"\n"
            ),
            &["8080", "tcp"],
        ),
        (
            "no TOML",
            format!("{start}interface = eth0\n"),
            &["eth0", "TOML"],
        ),
    ];
    for (what, text, words) in cases {
        let said = refused(&lab, &text);
        println!("{what}:\n{}", said.stderr);
        for word in words {
            assert!(
                said.stderr.contains(word),
                "{what}: no {word} in\n{}",
                said.stderr
            );
        }
        assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
    }
    drop(listener);
    let nothing = egret(&lab, &["run", "--config", "/nonexistent.toml"]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(
        nothing.stderr.contains("/nonexistent.toml"),
        "{}",
        nothing.stderr
    );
    if have(&[("setpriv", "util-linux")]) {
        unprivileged(&lab, &good);
    }
}

/// An ordinary user, and a root without capabilities as in a container.
fn unprivileged(lab: &Lab, config: &str) {
    let path = lab.directory().join("unprivileged.toml");
    fs::write(&path, config).expect("writing a configuration");
    let users: [&[&str]; 2] = [
        &["--bounding-set=-all", "--inh-caps=-all"],
        &["--reuid=65534", "--regid=65534", "--clear-groups"],
    ];
    for user in users {
        let mut may_read = command("setpriv");
        may_read.args(user).args(["test", "-x", EGRET]);
        if !run(&lab.gateway, &mut may_read, LIMIT).status.success() {
            println!("{user:?} may not read {EGRET}");
            continue;
        }
        let mut setpriv = command("setpriv");
        setpriv
            .args(user)
            .args([EGRET, "run", "--config"])
            .arg(&path);
        let said = run(&lab.gateway, &mut setpriv, LIMIT);
        println!("{}", said.stderr);
        assert_eq!(said.status.code(), Some(2), "{said:?}");
        for word in ["CAP_NET_ADMIN", "CAP_NET_RAW", "sudo egret run"] {
            assert!(said.stderr.contains(word), "no {word} in\n{}", said.stderr);
        }
    }
}
