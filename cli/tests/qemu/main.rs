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
mod stand;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use guest::QEMU;
use kernel::{have, is_root, skip};
use linux::Linux;
use stand::{AUTO_COPY, AUTO_GENERIC, AUTO_TUN, COPY, GENERIC, LIMIT, Stand, TUN, holds};

/// Asks for these tests, and names the directory of the kernels.
const VARIABLE: &str = "EGRET_KERNELS";
/// Checks of the demo that need nothing but the kernel, at least.
const DEMO_CHECKS: u32 = 25;
/// How long the whole demo may take there.
const DEMO_LIMIT: Duration = Duration::from_secs(240);

/// Says something past the test harness, which would keep it to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
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

#[test]
fn virtio_with_enough_queues_exchanges_frames_in_the_driver() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        // Two pairs are used, and with a program one more a CPU.
        let device = "virtio-net-pci,mq=on,vectors=10";
        let mut stand = Stand::start(linux, &program, "virtio", device, 4);
        // Generic mode last: Linux 6.1 leaves receive merging off after it.
        for mode in [AUTO_TUN, TUN, COPY, GENERIC] {
            stand.try_mode(&mode);
        }
        stand.kill_and_restart(&COPY);
        stand.kill_and_restart(&TUN);
        stand.finish();
    }
}

#[test]
fn virtio_with_too_few_queues_shares_them_and_serves_all_the_same() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        let device = "virtio-net-pci,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
        let mut stand = Stand::start(linux, &program, "virtio-1", device, 1);
        stand.try_mode(&AUTO_COPY);
        let said = stand.guest.succeed("dmesg", LIMIT);
        let told = said.contains("slower locked tx mode");
        let why = "the driver does not say that it lacks queues".to_owned();
        stand.check("auto", ("driver-says", holds(told, || why)));
        stand.finish();
    }
}

#[test]
fn virtio_whose_host_merges_segments_is_served_by_the_tun_driver() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        // The host hands over merged segments, and the driver cannot ask it not to.
        let device = "virtio-net-pci,ctrl_guest_offloads=off";
        let mut stand = Stand::start(linux, &program, "virtio-merging", device, 1);
        stand.refuse("copy", "none with its present offloads (receive merging)");
        stand.try_mode(&AUTO_TUN);
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
        for mode in [GENERIC, TUN, AUTO_GENERIC] {
            stand.try_mode(&mode);
        }
        stand.finish();
    }
}

/// One interface and two, hairpin, ICMP errors, a restart and the rest, between namespaces of a machine.
#[test]
fn the_demo_holds_on_these_kernels() {
    let Some((kernels, program)) = requirements() else {
        return;
    };
    for linux in &kernels {
        let mut stand = Stand::without_cards(linux, &program);
        let said = stand.guest.run("egret demo --json 2>/tmp/log", DEMO_LIMIT);
        let checks = said.text.lines();
        let checks = checks.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut held = 0;
        for check in checks {
            let name = check["name"].as_str().unwrap_or("unnamed");
            match &check["value"] {
                Value::Null => say(&format!("skipped in {}: {check}", linux.release)),
                value => {
                    held += 1;
                    stand.check(name, ("holds", holds(*value == true, || check.to_string())));
                }
            }
        }
        let why = || format!("exit status {}, {held} checks:\n{}", said.status, said.text);
        let right = said.status == 0 && held >= DEMO_CHECKS;
        stand.check("demo", ("ended", holds(right, why)));
        stand.finish();
    }
}
