//! System calls and memory shared with the kernel: all unsafe code of the engine.
//!
//! What these modules export is safe to call: memory is reached through owned tokens, lengths are
//! checked, and file descriptors are owned.

pub mod bpf;
pub mod ethtool;
pub mod link;
pub mod mapping;
pub mod memfile;
pub mod packet;
pub mod peer;
pub mod ring;
pub mod schedule;
pub mod socket;
pub mod tap;
pub mod umem;
