//! Peers that judge the gateway from outside, or need something of it that no server asks for: STUN
//! clients that name its behaviour, WireGuard between two gateways, traceroute and tracepath, TFTP; each
//! on both backends.
//!
//! Debian packages: coturn stun-client; wireguard-tools, and wireguard-go where the kernel has no
//! WireGuard; traceroute iputils-tracepath; dnsmasq-base tftp-hpa.

#[path = "../kernel/mod.rs"]
mod kernel;
mod path;
mod stun;
mod tftp;
mod tunnel;

use std::net::Ipv4Addr;
use std::time::Duration;

use egret_cli::lab::plan::EXTERNAL;
use egret_cli::lab::{LabOptions, Topology};
use kernel::backend::Backend;
use kernel::{Stand, ip};

const PREFIX: &str = "egret-tp";
const LIMIT: Duration = Duration::from_secs(30);
/// An address that is Egret's alone, in no network of the lab: the router has a route to it.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// The external address that the gateway translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// Its interface's, which its kernel uses, too.
    Shared,
    /// One that is its own.
    Own(Ipv4Addr),
}

impl Pool {
    fn address(self) -> Ipv4Addr {
        match self {
            Pool::Shared => EXTERNAL,
            Pool::Own(address) => address,
        }
    }
}

/// A lab whose gateway serves by this backend with these keys of `[nat]`.
fn stand(topology: Topology, backend: Backend, pool: Pool, nat: &str) -> Stand {
    let mut more = format!("\n[nat]\n{nat}\n");
    if let Pool::Own(address) = pool {
        more += &format!("\n[pool]\naddresses = [\"{address}\"]\n");
    }
    let stand = Stand::start(LabOptions::new(PREFIX, topology), &backend.tuning(&more));
    if let Pool::Own(address) = pool {
        let route = format!("route add {address}/32 via {EXTERNAL}");
        ip(&stand.lab.router, &route);
    }
    stand
}
