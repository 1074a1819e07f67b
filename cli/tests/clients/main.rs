//! Real programs through the gateway: curl against nginx, iperf3, dig and the C library's resolver
//! against dnsmasq, ssh, WireGuard; each with two arms and with one, on both backends. Offloads are as
//! the kernel has them: with AF_XDP the engine completes the partial checksums of veth, with the tun
//! driver the kernel does.
//!
//! Debian packages: curl nginx-light iperf3 dnsmasq-base bind9-dnsutils openssh-server
//! openssh-client; wireguard-tools, and wireguard-go where the kernel has no WireGuard.

mod iperf3;
#[path = "../kernel/mod.rs"]
mod kernel;
mod names;
mod ssh;
mod tunnel;
mod web;

use std::time::Duration;

use egret_cli::lab::content::Content;
use egret_cli::lab::{LabOptions, Topology};
use kernel::backend::Backend;
use kernel::{Stand, have, is_root};

const PREFIX: &str = "egret-tr";
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of what is sent through curl and ssh.
const LENGTH: usize = 8 << 20;

/// A lab whose gateway serves, if the programs are there.
fn stand(topology: Topology, backend: Backend, programs: &[(&str, &str)]) -> Option<Stand> {
    let stands = is_root() && have(programs);
    stands.then(|| Stand::start(LabOptions::new(PREFIX, topology), &backend.tuning("")))
}

/// Several megabytes that no two runs of bytes look alike in.
fn blob(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    Content::new(seed).fill(&mut bytes);
    bytes
}
