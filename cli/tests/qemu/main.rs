//! Real drivers: the static `egret` on Debian kernels, as a gateway in an emulated machine.
//!
//! EGRET_KERNELS asks for these tests and names the directory where kernel packages are unpacked, one
//! subdirectory each; EGRET_STATIC names the program. `.ci/run qemu` fetches and builds both. They
//! take minutes.

#[path = "../common/binary.rs"]
mod binary;
mod cpio;
mod guest;
#[path = "../kernel/mod.rs"]
mod kernel;
mod linux;
mod network;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egret_cli::lab::plan::{EXTERNAL, GATEWAY_INTERNAL, INTERNAL, ROUTER, TRANSIT, client};
use guest::{Guest, Nic, QEMU};
use kernel::{have, is_root, skip};
use linux::Linux;
use network::{Check, FORWARD, Network, TAPS};
use serde_json::Value;

/// Asks for these tests, and names the directory of the kernels.
const VARIABLE: &str = "EGRET_KERNELS";
const PREFIX: &str = "egret-tq";
/// How long a command in the machine may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until both cards have a link.
const CARRIERS: &str = "n=0; until [ $(cat /sys/class/net/[lw]an0/carrier | tr -d '\\n') = 11 ]; do \
                        n=$((n+1)); [ $n -lt 300 ] || { ip link; false; break; }; usleep 100000; done";

/// A mode that the gateway is run in.
struct Mode {
    /// `device.mode`.
    asked: &'static str,
    /// How frames are exchanged then.
    reached: &'static str,
}

const COPY: Mode = Mode {
    asked: "copy",
    reached: "copy",
};
const GENERIC: Mode = Mode {
    asked: "generic",
    reached: "generic",
};
/// The ladder, on cards whose driver runs programs.
const AUTO_COPY: Mode = Mode {
    asked: "auto",
    reached: "copy",
};
/// The ladder, on cards whose driver does not.
const AUTO_GENERIC: Mode = Mode {
    asked: "auto",
    reached: "generic",
};

/// Says something past the test harness, which would keep it to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Nothing if a condition holds, else why not.
fn holds(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

/// The static busybox, where there is one; `requirements` has looked.
fn busybox() -> PathBuf {
    binary::busybox().unwrap_or_else(|why| panic!("{why}"))
}

/// The kernels and the program, if these tests are asked for and can be run.
fn requirements() -> Option<(Vec<Linux>, Vec<u8>)> {
    let Some(directory) = std::env::var_os(VARIABLE) else {
        say(&format!(
            "not asked for: the tests in an emulated machine take minutes; {VARIABLE} names the \
             directory of unpacked kernel packages and asks for them, `.ci/run qemu` does it all"
        ));
        return None;
    };
    if !is_root() || !have(&[(QEMU, "qemu-system-x86"), ("ip", "iproute2")]) {
        return None;
    }
    let program = binary::busybox().and_then(|_| binary::egret());
    let program = program.map_err(|why| skip(&why)).ok()?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(directory);
    let kernels = Linux::all(&directory);
    if kernels.is_empty() {
        skip(&format!("no kernel is unpacked in {}", directory.display()));
        return None;
    }
    let program = std::fs::read(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    assert_eq!(binary::is_static(&program), Some(true), "egret is static");
    Some((kernels, program))
}

/// One machine at a time: it has as many CPUs as some hosts.
static TURN: Mutex<()> = Mutex::new(());

/// A machine on its network.
struct Stand {
    guest: Guest,
    network: Network,
    /// Kernel and cards, for what is said.
    name: String,
    failed: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Stand {
    /// Boots a machine whose two cards are this device of QEMU's, and gives it its addresses.
    fn start(linux: &Linux, program: &[u8], cards: &str, device: &str, queues: u32) -> Stand {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let network = Network::make(PREFIX);
        network.lay_wires(queues > 1);
        let nics = TAPS.map(|tap| Nic {
            tap,
            device: device.to_owned(),
            queues,
        });
        let directory = network.directory();
        let mut guest = Guest::boot(&network.machine, directory, linux, program, &nics);
        network.plug();
        let sides = [
            ("eth0", "lan0", GATEWAY_INTERNAL, INTERNAL.prefix_len()),
            ("eth1", "wan0", EXTERNAL, TRANSIT.prefix_len()),
        ];
        for (found, name, address, length) in sides {
            guest.succeed(
                &format!(
                    "ip link set {found} name {name} && ip addr add {address}/{length} dev {name} \
                     && ip link set {name} up && echo 1 > /proc/sys/net/ipv4/conf/{name}/rp_filter"
                ),
                LIMIT,
            );
        }
        guest.succeed(CARRIERS, LIMIT);
        guest.succeed(&format!("ip route add default via {ROUTER}"), LIMIT);
        let name = format!("{} {cards}", linux.release);
        say(&format!(
            "{name}: booted in {:.1} s",
            guest.boot_time.as_secs_f64()
        ));
        Stand {
            guest,
            network,
            name,
            failed: Vec::new(),
            _turn: turn,
        }
    }

    /// Says whether something held, and remembers if it did not.
    fn check(&mut self, what: &str, (name, result): Check) {
        let name = format!("{} {what} {name}", self.name);
        match result {
            Ok(()) => say(&format!("check {name} ok")),
            Err(why) => {
                say(&format!("check {name} failed: {why}"));
                self.failed.push(format!("{name}: {why}"));
            }
        }
    }

    /// Writes the configuration and starts the gateway.
    fn launch(&mut self, mode: &str) {
        let [external, internal] = FORWARD;
        let target = client(1);
        self.guest.write(
            "/etc/egret.toml",
            &format!(
                "internal = \"{INTERNAL}\"\n\
                 [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
                 [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n\
                 [[forwards]]\nprotocol = \"tcp\"\nexternal = \"{external}\"\n\
                 target = \"{target}:{internal}\"\n\
                 [tables]\nsessions_max = 16384\n\
                 [device]\nmode = \"{mode}\"\n"
            ),
        );
        let start = "egret run --config /etc/egret.toml >/tmp/log 2>&1 </dev/null & egret=$!";
        self.guest.succeed(start, LIMIT);
    }

    /// Starts the gateway in a mode and waits until it serves.
    fn serve(&mut self, mode: &str) {
        self.launch(mode);
        // Thirty seconds.
        let wait = "n=0; until grep -q 'egret: ready' /tmp/log; do n=$((n+1)); \
                    kill -0 $egret && [ $n -lt 300 ] || { cat /tmp/log; false; break; }; \
                    usleep 100000; done";
        self.guest.succeed(wait, LIMIT);
        // Some drivers reset their card when an offload changes.
        self.guest.succeed(CARRIERS, LIMIT);
    }

    /// The gateway must refuse to start in a mode, with these words.
    fn refuse(&mut self, mode: &str, words: &str) {
        self.launch(mode);
        let ended = self.guest.run("wait $egret", LIMIT);
        let said = self.guest.succeed("cat /tmp/log", LIMIT);
        let right = ended.status == 2 && said.contains(words);
        let status = ended.status;
        let why = || format!("exit status {status}; it said:\n{said}");
        self.check(mode, ("refused", holds(right, why)));
        self.left_clean(mode);
    }

    /// What the gateway says of itself.
    fn status(&mut self) -> Value {
        let text = self.guest.succeed("egret status --json", LIMIT);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs the gateway in a mode, passes traffic, and looks at what it says of itself.
    fn try_mode(&mut self, mode: &Mode) {
        self.serve(mode.asked);
        let failed = self.failed.len();
        for check in self.network.traffic() {
            self.check(mode.asked, check);
        }
        self.look(mode);
        if self.failed.len() > failed {
            let said = self.guest.succeed("cat /tmp/log; egret status", LIMIT);
            self.failed
                .push(format!("{}: it said:\n{said}", mode.asked));
        }
        self.stop(mode.asked);
    }

    /// Is the gateway's own account as it should be?
    fn look(&mut self, mode: &Mode) {
        let Mode { asked, reached } = mode;
        let status = self.status();
        let found = status["mode"].as_str().unwrap_or("none");
        let refused = &status["modes_refused"];
        let why = || format!("{found} instead of {reached}: {refused}");
        self.check(asked, ("mode", holds(found == *reached, why)));
        let tested = &status["self_test"];
        let why = || tested.to_string();
        self.check(asked, ("self-test", holds(tested == "passed", why)));
        let unserved = &status["steering"]["unserved"];
        let why = || format!("{unserved} frames came on queues without a socket");
        self.check(asked, ("queues", holds(unserved == 0, why)));
        if *asked == "auto" {
            self.look_at_ladder(&status);
        }
    }

    /// The log and `egret status` say why each better mode was left.
    fn look_at_ladder(&mut self, status: &Value) {
        let log = self.guest.succeed("cat /tmp/log", LIMIT);
        let text = self.guest.succeed("egret status", LIMIT);
        let refused = status["modes_refused"].as_array();
        let modes = refused.into_iter().flatten();
        let modes: Vec<&str> = modes.filter_map(|step| step["mode"].as_str()).collect();
        let told = modes.iter().all(|mode| {
            log.contains(&format!("does not work here mode={mode}"))
                && text.contains(&format!("not by {mode}: "))
        });
        let right = told && modes.first() == Some(&"zero-copy");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("not by"))
            .collect();
        say(&lines.join("\n"));
        let why = || format!("refused {modes:?}\n{log}\n{text}");
        self.check("auto", ("ladder", holds(right, why)));
    }

    /// Ends the gateway; nothing of it may be left on the cards.
    fn stop(&mut self, what: &str) {
        self.guest.succeed("kill $egret && wait $egret", LIMIT);
        self.left_clean(what);
    }

    fn left_clean(&mut self, what: &str) {
        let links = self.guest.succeed("ip link", LIMIT);
        let clean = !links.contains("xdp") && !links.contains("egret");
        self.check(what, ("left-clean", holds(clean, || links)));
    }

    /// After SIGKILL the program stays and drops internal traffic; the host is reached; the next engine
    /// takes over; `egret detach` takes everything away.
    fn kill_and_restart(&mut self, mode: &Mode) {
        self.serve(mode.asked);
        let kill = "kill -9 $egret; wait $egret";
        self.guest.run(kill, LIMIT);
        let heard = self.network.client_is_heard();
        self.check(
            "killed",
            ("silent", holds(!heard, || "the client is heard".to_owned())),
        );
        self.check("killed", ("host-ping", self.network.ping_machine()));
        self.serve(mode.asked);
        for check in self.network.traffic() {
            self.check("restarted", check);
        }
        self.guest.run(kill, LIMIT);
        self.guest.succeed("egret detach", LIMIT);
        self.left_clean("detached");
    }

    /// Turns the machine off.
    ///
    /// # Panics
    /// If something did not hold.
    fn finish(self) {
        let failed = self.failed.join("\n");
        if !failed.is_empty() {
            panic!("{failed}\n{}", self.guest.console_tail());
        }
        self.guest.power_off(LIMIT);
    }
}

#[test]
fn virtio_with_enough_queues_exchanges_frames_in_the_driver() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        // Two pairs are used, and with a program one more a CPU.
        let device = "virtio-net-pci,mq=on,vectors=10";
        let mut stand = Stand::start(linux, &program, "virtio", device, 4);
        for mode in [GENERIC, COPY, AUTO_COPY] {
            stand.try_mode(&mode);
        }
        stand.kill_and_restart(&COPY);
        stand.finish();
    }
}

#[test]
fn virtio_with_too_few_queues_shares_them_and_serves_all_the_same() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        let mut stand = Stand::start(linux, &program, "virtio-1", "virtio-net-pci", 1);
        stand.try_mode(&AUTO_COPY);
        let said = stand.guest.succeed("dmesg", LIMIT);
        let told = said.contains("slower locked tx mode");
        let why = "the driver does not say that it lacks queues".to_owned();
        stand.check("auto", ("driver-says", holds(told, || why)));
        stand.finish();
    }
}

#[test]
fn virtio_whose_host_merges_segments_is_refused_with_the_reason() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        // The host hands over merged segments, and the driver cannot ask it not to.
        let device = "virtio-net-pci,ctrl_guest_offloads=off";
        let mut stand = Stand::start(linux, &program, "virtio-merging", device, 1);
        stand.refuse("copy", "none with its present offloads (receive merging)");
        stand.refuse(
            "auto",
            "receives segments merged (`ethtool -k lan0`: rx-gro-hw is on",
        );
        // Whoever names it gets it: what is not merged passes.
        stand.serve(GENERIC.asked);
        stand.check("generic", ("udp", stand.network.udp()));
        let log = stand.guest.succeed("cat /tmp/log", LIMIT);
        let told = log.contains("merged packets will be lost");
        stand.check("generic", ("warned", holds(told, || log)));
        stand.stop(GENERIC.asked);
        stand.finish();
    }
}

#[test]
fn e1000e_goes_down_to_generic_and_says_so() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        let mut stand = Stand::start(linux, &program, "e1000e", "e1000e", 1);
        // From 6.3 on the kernel tells before it is tried.
        let told = linux.version() >= vec![6, 3];
        let words = [
            "attaching to lan0 in native mode",
            "(driver e1000e) has no XDP",
        ];
        stand.refuse("copy", words[usize::from(told)]);
        for mode in [GENERIC, AUTO_GENERIC] {
            stand.try_mode(&mode);
        }
        stand.finish();
    }
}
