//! The world around a running gateway: an address of its own, addresses, routes and neighbours that
//! change while traffic flows, and frames that are none of its business; all on both backends.

mod external;
mod foreign;
#[path = "../kernel/mod.rs"]
mod kernel;
mod mac;
mod own;
mod route;
mod vanished;

use std::net::Ipv4Addr;
use std::time::Duration;

use egret_cli::lab::plan::ROUTER_LINK;
use egret_cli::lab::wait;
use kernel::{Stand, have, ip, is_root};

const PREFIX: &str = "egret-tc";
const LIMIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

fn ready() -> bool {
    is_root() && have(&[("ip", "iproute2")])
}

/// How many frames were dropped for a reason.
fn drops(stand: &Stand, reason: &str) -> u64 {
    stand.status()["drops"][reason].as_u64().unwrap_or(0)
}

/// The external addresses in use.
fn pool(stand: &Stand) -> Vec<String> {
    let pool = stand.status()["pool"].clone();
    let addresses = pool.as_array().expect("a list").iter();
    addresses
        .map(|own| own["address"].as_str().expect("an address").to_owned())
        .collect()
}

/// Waits until these are the external addresses.
fn expect_pool(stand: &Stand, addresses: &[Ipv4Addr]) {
    let wanted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert!(
        wait::until(LIMIT, || pool(stand) == wanted),
        "{:?}, not {wanted:?}",
        pool(stand)
    );
}

/// The neighbour entry of an address, as the router has it.
fn neighbour(stand: &Stand, address: Ipv4Addr) -> String {
    ip(
        &stand.lab.router,
        &format!("neighbour show {address} dev {ROUTER_LINK}"),
    )
}
