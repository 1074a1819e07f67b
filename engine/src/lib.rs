//! Egret's packet path: devices, steering, parsing, rewriting, workers, routes and control.
//!
//! The route of one frame is one straight line; `gateway` is the only place that branches.

pub mod device;
pub mod drop_reason;
pub mod host;
pub mod interface;
pub mod neighbour;
pub mod netlink;
pub mod route;
