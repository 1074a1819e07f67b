//! How a world is made.

use std::sync::atomic::AtomicU64;

use conntrack::Time;

use super::facts::Arm;
use crate::config::{ConfigError, Problem};
use crate::device::FRAME_SIZE;
use crate::device::fault::Faults;
use crate::fragment::FragmentLimits;
use crate::route::RouteFacts;

/// How a world differs from the usual one.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Seed of everything random.
    pub seed: u64,
    /// Where the clock begins.
    pub start: Time,
    /// Workers, unless the configuration says how many.
    pub workers: u32,
    /// Frame slots of each worker.
    pub slots: u32,
    /// Bytes of a slot.
    pub slot_size: usize,
    /// Sessions, unless the configuration says how many.
    pub sessions_max: u32,
    /// Places for pool addresses; none: as many as the plan asks for, which is one more than there
    /// are addresses. Fewer than addresses panic.
    pub addresses_max: Option<u16>,
    /// Memory for the tables; none: the heap. It must be as long as the tables' size asks.
    pub memory: Option<Memory>,
    /// Next hops.
    pub hops_max: u32,
    /// Memory for fragments; their timeout is the configuration's.
    pub fragments: FragmentLimits,
    /// The interfaces, in the order of the configuration; none: [`Arm::of`] their role.
    pub arms: Option<Vec<Arm>>,
    /// Routes beside those of [`routes_for`].
    pub routes: Vec<RouteFacts>,
    /// Every neighbour answers as soon as it is asked for.
    pub answer: bool,
    /// Keep (and look at) what is sent and punted. Without, nothing allocates in a round.
    pub record: bool,
    /// The transport checksums of what is injected are right, so those of what leaves must be.
    pub transport: bool,
    /// What befalls received frames.
    pub faults: Faults,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            seed: 1,
            start: Time(1_000_000),
            workers: 1,
            slots: 1024,
            slot_size: FRAME_SIZE,
            sessions_max: 1024,
            addresses_max: None,
            memory: None,
            hops_max: 256,
            fragments: FragmentLimits {
                datagrams_max: 256,
                copies_max: 64,
                copy_bytes_max: 128 << 10,
                copies_per_source_max: 16,
                timeout_ms: 0,
            },
            arms: None,
            routes: Vec::new(),
            answer: true,
            record: true,
            transport: true,
            faults: Faults::default(),
        }
    }
}

/// Words for the tables of a world, all 0.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// For [`conntrack::TableSize::words`].
    pub words: &'static [AtomicU64],
    /// For [`conntrack::TableSize::owned_words`].
    pub owned: &'static [AtomicU64],
}

/// Why there is no world for a configuration.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The text is no configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It does not fit the host of the world.
    #[error("the plan fails: {0:?}")]
    Plan(Vec<Problem>),
}
