//! Egret's conntrack: mappings, sessions, ports and timeouts in flat tables of atomic words.
//!
//! The crate knows endpoints and time as values; it knows no bytes, frames, devices, files,
//! clocks or threads. Every operation takes `&self`, the current [`Time`] and, where a choice must
//! not be guessed, a [`Random`] source, so the same code runs in a simulated world.
//!
//! Use: [`Nat::create`] or [`Nat::open`], then [`Nat::apply_policy`] until it says done, now and
//! after every change of policy; [`Nat::translate`] for each packet and [`Nat::sweep`] between
//! batches, from any number of threads.
//!
//! Map: `nat` look-up and hit; `open`, `overload` new sessions; `session` making, ending, changing
//! them; `mapping`, `port`, `choose`, `fill`, `filter`, `memo`, `subscriber`, `count` what they need; `age` time; `reload`, `restart`, `lost`
//! change of policy, of process, of state; `status`, `check` what there is, whether it is sound; `half`, `meta`,
//! `index`, `pool`, `lock`, `hash`, `word`, `layout` the memory.

pub mod config;
pub mod endpoint;
pub mod signal;
pub mod tcp;
pub mod time;
pub mod verdict;

mod addresses;
mod age;
mod check;
mod choose;
mod count;
mod fill;
mod filter;
mod forward;
mod half;
mod hash;
mod hit;
mod index;
mod layout;
mod lock;
#[cfg(all(test, loom))]
mod loom_tests;
mod lost;
mod mapping;
mod memo;
mod meta;
mod nat;
mod open;
mod overload;
mod pool;
mod port;
mod port_set;
mod prefetch;
mod prefixes;
mod profile;
mod reload;
mod restart;
mod rules;
mod session;
mod status;
mod subscriber;
mod timers;
mod word;

pub use addresses::Addresses;
pub use age::Swept;
pub use check::Violation;
pub use config::{AddressKind, ExternalAddress, Limits, Policy, Quotas};
pub use endpoint::{Endpoint, Protocol, Tuple};
pub use forward::{Affinity, FORWARDS_MAX, Forward, Forwards, Target, Targets};
pub use hash::Key;
pub use hit::{Candidate, Hit};
pub use layout::TableSize;
pub use lost::LostPorts;
pub use meta::TimeoutClass;
pub use nat::Nat;
pub use port_set::PortSet;
pub use prefetch::prefetch;
pub use prefixes::Prefixes;
pub use profile::{FilteringBehaviour, FlowTimers, MappingBehaviour, Pairing, Profile, Service};
pub use reload::PolicyChange;
pub use restart::{Identity, OpenError};
pub use rules::{Action, RULE_ENTRIES_MAX, Rule, Rules, TooManyEntries};
pub use session::removal::Removal;
pub use signal::{PacketFacts, Realm, Signal};
pub use status::mark::Mark;
pub use status::occupant::Occupant;
pub use status::{HalfView, MappingView, SessionView, Totals};
pub use time::{Random, Time};
pub use timers::{TIMER_SETS, TimerSets, Timers, TooManyTimers};
pub use verdict::{Direction, NextHop, Refusal, Rewrite, SessionRef};
pub use word::Word;
