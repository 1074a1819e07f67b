//! Egret's packet path: devices, steering, parsing, rewriting, workers, routes and control.
//!
//! The route of one frame is one straight line; `gateway` is the only place that branches.

pub mod config;
pub mod device;
pub mod drop_reason;
pub mod fragment;
pub mod icmp;
pub mod packet;
pub mod rewrite;
pub mod wire;
pub mod host;
pub mod interface;
pub mod neighbour;
pub mod netlink;
pub mod route;
pub mod plan;
pub mod punt;
pub mod steering;
