//! Fuzz targets of Egret as plain functions: each takes any bytes and panics when something that
//! must hold does not.
//!
//! `fuzz_targets/` wraps them for libFuzzer; `tests/replay.rs` replays `corpus/` and `regressions/`
//! on stable Rust, and some thousands of random inputs.

mod config;
mod errors;
mod fragments;
mod frame;
mod operations;
mod owners;

pub use config::config;
pub use errors::errors;
pub use fragments::fragments;
pub use frame::frame;
pub use operations::operations;

/// A target, by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("operations", operations),
    ("config", config),
    ("errors", errors),
    ("fragments", fragments),
];
