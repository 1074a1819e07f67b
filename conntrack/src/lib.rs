//! Egret's conntrack: mappings, sessions, ports and timeouts in flat tables of atomic words.
//!
//! The crate knows endpoints and time as values; it knows no bytes, frames, devices, files,
//! clocks or threads. Every operation takes `&self`, the current [`Time`] and, where a choice must
//! not be guessed, a [`Random`] source, so the same code runs in a simulated world.

pub mod config;
pub mod endpoint;
pub mod signal;
pub mod time;
pub mod verdict;

pub use config::{
    AddressKind, ExternalAddress, FilteringBehaviour, Forward, MappingBehaviour, Policy, PortSet,
    Timers,
};
pub use endpoint::{Endpoint, Protocol, Tuple};
pub use signal::{Realm, Signal};
pub use time::{Random, Time};
pub use verdict::{Direction, NextHop, Refusal, Rewrite, SessionRef};
