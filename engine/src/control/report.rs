//! What the gateway answers about itself as a whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::device::SocketCounters;
use crate::stats::Snapshot;
use crate::steering::SteeringCounters;

/// Whether the tables are sound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Soundness {
    /// `ok`, or what is wrong.
    pub invariants: String,
}

/// A way to exchange frames with an interface that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WayRefused {
    /// The way.
    pub mode: String,
    /// Why not.
    pub reason: String,
}

/// The same, with the interface's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRefused {
    /// The interface.
    pub interface: String,
    /// The way.
    pub mode: String,
    /// Why not.
    pub reason: String,
}

/// A served interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `internal`, `external` or `both`.
    pub role: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// It is there.
    pub present: bool,
    /// How frames are exchanged with it.
    pub mode: String,
    /// Better ways, and why they were not taken.
    pub modes_refused: Vec<WayRefused>,
    /// `passed`, or why no test frame was sent.
    pub self_test: String,
    /// Its addresses, each with the length of its prefix.
    pub addresses: Vec<String>,
}

/// An external address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolAddress {
    /// The address.
    pub address: String,
    /// `own` or `shared`.
    pub kind: String,
}

/// External ports of dynamic mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortsInUse {
    /// TCP ports.
    pub tcp: u64,
    /// UDP ports.
    pub udp: u64,
    /// ICMP identifiers.
    pub icmp: u64,
}

/// What the steering program counted, or why that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SteeringStatus {
    /// The counts.
    Counts(SteeringCounters),
    /// The kernel's refusal.
    Unread(Unread),
}

/// Why something cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unread {
    /// The kernel's words.
    pub error: String,
}

/// What the gateway tells of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// On trial: seconds until it detaches, unless it is confirmed.
    pub confirm_within_s: Option<u64>,
    /// How frames are exchanged: `mixed` if that differs by interface.
    pub mode: String,
    /// Why the tun driver was tried first, if it was.
    pub tun_first: Option<String>,
    /// Better ways, and why they were not taken, of all interfaces.
    pub modes_refused: Vec<ModeRefused>,
    /// `passed`, or why no test frame was sent.
    pub self_test: String,
    /// The served interfaces.
    pub interfaces: Vec<Interface>,
    /// The external addresses.
    pub pool: Vec<PoolAddress>,
    /// Sessions, expired but not yet swept ones included.
    pub sessions: u64,
    /// Of these, opened from outside.
    pub sessions_inbound: u64,
    /// And of these, connections of forwards whose handshake is not over.
    pub sessions_half_open: u64,
    /// Half-open connections that gave way to newer ones.
    pub sessions_evicted: u64,
    /// How many the tables have room for.
    pub sessions_max: u32,
    /// Dynamic mappings.
    pub mappings: u64,
    /// Their external ports.
    pub ports_in_use: PortsInUse,
    /// The workers' counters, added up.
    pub counters: Snapshot,
    /// Frames that are not accounted for: 0, but for those in a worker's hands.
    pub imbalance: i64,
    /// Dropped frames by reason, where there are any.
    pub drops: BTreeMap<String, u64>,
    /// The steering program; `null` where the kernel's routes steer.
    pub steering: Option<SteeringStatus>,
    /// What the sockets count, by interface.
    pub sockets: BTreeMap<String, SocketCounters>,
    /// Each worker's counters.
    pub workers: Vec<Snapshot>,
}
