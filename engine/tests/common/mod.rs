//! What tests that need the kernel share: network namespaces, and skipping where they cannot be
//! made.
#![allow(dead_code, missing_docs)]

pub mod frames;

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// Can namespaces and interfaces be made here? If not, says so, unless EGRET_TESTS_NO_SKIP=1 makes
/// that a failure.
pub fn privileged(test: &str) -> bool {
    let probe = format!("egt-probe-{}-{}", std::process::id(), unique());
    let made = nix::unistd::geteuid().is_root()
        && Command::new("ip")
            .args(["netns", "add", &probe])
            .output()
            .is_ok_and(|o| o.status.success());
    if made {
        let _ = Command::new("ip").args(["netns", "del", &probe]).output();
        return true;
    }
    skip(
        test,
        "network namespaces cannot be made (root and iproute2 are needed)",
    );
    false
}

/// Says that a test is skipped; a failure if EGRET_TESTS_NO_SKIP=1.
pub fn skip(test: &str, why: &str) {
    let allowed = std::env::var_os("EGRET_TESTS_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "{test}: {why}");
    // Past the test harness, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {why}");
}

/// A number that no other call in this process has got.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs a command and gives its output; panics if it fails.
pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A network namespace, removed when dropped.
pub struct Net {
    pub name: String,
}

impl Net {
    pub fn new(label: &str) -> Net {
        let name = format!("egt-{}-{}-{label}", std::process::id(), unique());
        run(&format!("ip netns add {name}"));
        let net = Net { name };
        net.ip("link set lo up");
        net
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Runs a command in the namespace, in mounts of its own, as `ip netns exec` does.
    pub fn exec(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Runs `work` on a thread in the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let inside = || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A UDP socket bound in the namespace, with a read timeout of 50 ms.
    pub fn udp(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        self.enter(|| {
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            socket
        })
    }

    /// Sets a network sysctl of the namespace.
    pub fn sysctl(&self, path: &str, value: &str) {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Connects two namespaces by a veth pair with `queues` queues each, both ends up, transmit
/// checksums computed in software at both ends.
pub fn veth(a: &Net, a_if: &str, b: &Net, b_if: &str, queues: u32) {
    let q = format!("numrxqueues {queues} numtxqueues {queues}");
    a.ip(&format!(
        "link add {a_if} {q} type veth peer name {b_if} netns {} {q}",
        b.name
    ));
    for (net, interface) in [(a, a_if), (b, b_if)] {
        net.enter(|| {
            std::fs::write(
                format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"),
                "1",
            )
            .ok();
        });
        net.exec(&format!("ethtool -K {interface} tx off"));
        net.ip(&format!("link set {interface} up"));
    }
}

/// Polls a condition for at most 5 s.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A name for an instance of the steering, and what it left behind removed when dropped.
pub struct Instance(pub String);

impl Instance {
    pub fn new() -> Instance {
        Instance(format!("egt-{}-{}", std::process::id(), unique()))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = engine::steering::detach_all(&self.0);
    }
}
