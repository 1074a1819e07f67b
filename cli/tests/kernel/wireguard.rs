//! WireGuard in the lab's namespaces: the kernel's, or wireguard-go's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use egret_cli::lab::{Host, wait};

use super::{Daemon, Stand, command, find, ip, run, skip, succeed};

const LIMIT: Duration = Duration::from_secs(30);

/// One end of a tunnel: its interface and public key.
pub struct TunnelEnd {
    pub link: String,
    pub public_key: String,
    private_key: PathBuf,
    daemon: Option<Daemon>,
}

impl TunnelEnd {
    /// Makes the interface: the kernel's, else a process's. The latter's control socket has the
    /// interface's name, for all namespaces: so it must be unique.
    pub fn make(stand: &Stand, host: &Host, link: String) -> TunnelEnd {
        let mut add = command("ip");
        add.args(["link", "add", &link, "type", "wireguard"]);
        let in_kernel = run(&host.namespace, &mut add, LIMIT).status.success();
        let start = || {
            let mut process = command("wireguard-go");
            process.args(["--foreground", &link]);
            Daemon::start(&stand.lab, &host.namespace, &mut process, &[])
        };
        let is_there = || {
            wait::until(LIMIT / 3, || {
                // Each question is a process.
                std::thread::sleep(Duration::from_millis(50));
                let mut show = command("wg");
                let shown = run(&host.namespace, show.args(["show", &link]), LIMIT);
                shown.status.success()
            })
        };
        let mut daemon = (!in_kernel).then(start);
        if !is_there() {
            // On a first start two of them may be in each other's way, making one directory.
            drop(daemon.take());
            daemon = (!in_kernel).then(start);
            assert!(is_there(), "{link} does not appear");
        }
        let private = succeed(&host.namespace, command("wg").arg("genkey"), LIMIT).text();
        let private_key = stand.lab.directory().join(format!("{link}.key"));
        fs::write(&private_key, private.trim()).expect("writing a key");
        let line = format!("wg pubkey < {}", private_key.display());
        let public = succeed(
            &host.namespace,
            Command::new("sh").args(["-c", &line]),
            LIMIT,
        );
        let public_key = public.text().trim().to_owned();
        TunnelEnd {
            link,
            public_key,
            private_key,
            daemon,
        }
    }

    pub fn set_up(&self, host: &Host, address: &str, words: &[&str]) {
        let mut wg = command("wg");
        wg.args(["set", &self.link, "private-key"])
            .arg(&self.private_key)
            .args(words);
        succeed(&host.namespace, &mut wg, LIMIT);
        ip(
            &host.namespace,
            &format!("address add {address}/24 dev {}", self.link),
        );
        ip(&host.namespace, &format!("link set {} up", self.link));
    }
}

impl Drop for TunnelEnd {
    /// A process that is killed leaves its control socket.
    fn drop(&mut self) {
        if self.daemon.take().is_some() {
            let _ = fs::remove_file(format!("/var/run/wireguard/{}.sock", self.link));
        }
    }
}

/// Can WireGuard be had, in the kernel or as a process?
pub fn have_wireguard(stand: &Stand) -> bool {
    let mut probe = command("ip");
    probe.args(["link", "add", "probe", "type", "wireguard"]);
    let in_kernel = run(&stand.lab.router, &mut probe, LIMIT).status.success();
    if in_kernel {
        ip(&stand.lab.router, "link del probe");
    }
    if !in_kernel && find("wireguard-go").is_none() {
        skip("no WireGuard in this kernel, and no wireguard-go (Debian package wireguard-go)");
        return false;
    }
    true
}
