//! A gateway on a machine, on its network: what is done with it and looked at.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egret_cli::lab::plan::{EXTERNAL, GATEWAY_INTERNAL, INTERNAL, ROUTER, TRANSIT, client};
use serde_json::Value;

use super::guest::{Guest, Nic};
use super::linux::Linux;
use super::network::{Check, FORWARD, Network, TAPS};
use super::say;

const PREFIX: &str = "egret-tq";
/// How long a command in the machine may take.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Waits until both cards have a link.
const CARRIERS: &str = "n=0; until [ $(cat /sys/class/net/[lw]an0/carrier | tr -d '\\n') = 11 ]; do \
                        n=$((n+1)); [ $n -lt 300 ] || { ip link; false; break; }; usleep 100000; done";

/// A mode that the gateway is run in.
pub struct Mode {
    /// `device.mode`.
    pub asked: &'static str,
    /// How frames are exchanged then.
    pub reached: &'static str,
}

/// In the driver.
pub const COPY: Mode = Mode {
    asked: "copy",
    reached: "copy",
};
/// Behind the driver.
pub const GENERIC: Mode = Mode {
    asked: "generic",
    reached: "generic",
};
/// By the tun driver.
pub const TUN: Mode = Mode {
    asked: "tun",
    reached: "tun",
};
/// The ladder, on virtual cards that hand over big packets.
pub const AUTO_TUN: Mode = Mode {
    asked: "auto",
    reached: "tun",
};
/// The ladder, on cards whose driver runs programs.
pub const AUTO_COPY: Mode = Mode {
    asked: "auto",
    reached: "copy",
};
/// The ladder, on cards whose driver does not.
pub const AUTO_GENERIC: Mode = Mode {
    asked: "auto",
    reached: "generic",
};

/// Nothing if a condition holds, else why not.
pub fn holds(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}

/// One machine at a time: it has as many CPUs as some hosts.
static TURN: Mutex<()> = Mutex::new(());

/// A machine on its network.
pub struct Stand {
    /// The machine.
    pub guest: Guest,
    /// What it is wired to.
    pub network: Network,
    /// Kernel and cards, for what is said.
    name: String,
    failed: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Stand {
    /// Boots a machine whose two cards are this device of QEMU's, and gives it its addresses.
    pub fn start(linux: &Linux, program: &[u8], cards: &str, device: &str, queues: u32) -> Stand {
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
        Stand::new(guest, network, format!("{} {cards}", linux.release), turn)
    }

    /// Boots a machine without cards.
    pub fn without_cards(linux: &Linux, program: &[u8]) -> Stand {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let network = Network::make(PREFIX);
        let guest = Guest::boot(&network.machine, network.directory(), linux, program, &[]);
        Stand::new(guest, network, linux.release.clone(), turn)
    }

    fn new(guest: Guest, network: Network, name: String, turn: MutexGuard<'static, ()>) -> Stand {
        let boot_s = guest.boot_time.as_secs_f64();
        say(&format!("{name}: booted in {boot_s:.1} s"));
        Stand {
            guest,
            network,
            name,
            failed: Vec::new(),
            _turn: turn,
        }
    }

    /// Says whether something held, and remembers if it did not.
    pub fn check(&mut self, what: &str, (name, result): Check) {
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
    pub fn serve(&mut self, mode: &str) {
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
    pub fn refuse(&mut self, mode: &str, words: &str) {
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
    pub fn try_mode(&mut self, mode: &Mode) {
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

    /// The log and `egret status` say why each better mode was left, or why tun came first.
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
        let tun_first = status["tun_first"].is_string()
            && log.contains("the tun driver is tried first")
            && text.contains("tun was tried first");
        let right = told && (tun_first || modes.first() == Some(&"zero-copy"));
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("not by"))
            .collect();
        say(&lines.join("\n"));
        let why = || format!("refused {modes:?}\n{log}\n{text}");
        self.check("auto", ("ladder", holds(right, why)));
    }

    /// Ends the gateway; nothing of it may be left on the cards.
    pub fn stop(&mut self, what: &str) {
        self.guest.succeed("kill $egret && wait $egret", LIMIT);
        self.left_clean(what);
    }

    /// Are TAPs and pins gone? A program without a pin goes with the process that attached it.
    fn left_clean(&mut self, what: &str) {
        let left = self.guest.succeed("ip link; cat /proc/mounts", LIMIT);
        let clean = !left.contains("egret") && !left.contains("bpf");
        self.check(what, ("left-clean", holds(clean, || left)));
    }

    /// After SIGKILL the program stays and drops internal traffic; the host is reached; the next engine
    /// takes over; `egret detach` takes everything away.
    pub fn kill_and_restart(&mut self, mode: &Mode) {
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
    pub fn finish(self) {
        let failed = self.failed.join("\n");
        if !failed.is_empty() {
            panic!("{failed}\n{}", self.guest.console_tail());
        }
        self.guest.power_off(LIMIT);
    }
}
