//! The packet path in memory, without devices: what a packet costs by what becomes of it, by how many
//! sessions there are, and against yardsticks of the same run. `egret bench core` prints it.
//!
//! A packet's time is that of its whole route: parse, conntrack, next hop, rewrite. Frames are written
//! anew between the timed slices. Rounds of all tests are interleaved, so that a noisy neighbour does
//! not befall one of them alone; a figure is the median of its rounds.

pub mod bed;
pub mod flows;
pub mod memory;
mod pauses;
pub mod yardstick;

mod rounds;

pub use rounds::{Options, run};
