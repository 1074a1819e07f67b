//! Egret's packet path: devices, steering, parsing, rewriting, workers, routes and control.
//!
//! The route of one frame is one straight line; `gateway` is the only place that branches.

pub mod batch;
pub mod clock;
pub mod config;
pub mod control;
pub mod device;
mod doors;
pub mod drop_reason;
pub mod engine;
pub mod facts;
pub mod fragment;
pub mod gateway;
mod governor;
pub mod hold;
pub mod host;
pub mod icmp;
pub mod interface;
pub mod invariants;
pub mod ladder;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod own_address;
pub mod packet;
pub mod plan;
pub mod poll;
pub mod presence;
pub mod punt;
pub mod random;
pub mod rewrite;
pub mod route;
pub mod rulebook;
mod segment;
pub mod self_test;
pub mod shortcut;
mod staff;
pub mod stats;
pub mod status;
pub mod steering;
pub mod steward;
mod tables;
pub mod undo;
pub mod wire;
pub mod worker;
pub mod world;
pub mod xdp_features;
