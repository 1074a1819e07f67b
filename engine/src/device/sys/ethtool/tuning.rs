//! Ring sizes, and how received frames are spread over queues.

use std::io;

use super::{Command, run};

const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
/// Entries of an indirection table that are read at most.
const SPREAD_MAX: usize = 4096;

/// `struct ethtool_ringparam`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawRings {
    cmd: u32,
    receive_max: u32,
    mini_max: u32,
    jumbo_max: u32,
    transmit_max: u32,
    receive: u32,
    mini: u32,
    jumbo: u32,
    transmit: u32,
}
// SAFETY: nine words, as in linux/ethtool.h.
unsafe impl Command for RawRings {}

/// `struct ethtool_rxfh_indir` with room for [`SPREAD_MAX`] entries.
#[repr(C)]
#[derive(Clone, Copy)]
struct Indirection {
    cmd: u32,
    size: u32,
    queues: [u32; SPREAD_MAX],
}
// SAFETY: as in linux/ethtool.h; the kernel writes no more than `size` entries.
unsafe impl Command for Indirection {}

/// Entries of an interface's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Of a receive ring.
    pub receive: u32,
    /// At most of a receive ring.
    pub receive_max: u32,
    /// Of a transmit ring.
    pub transmit: u32,
    /// At most of a transmit ring.
    pub transmit_max: u32,
}

/// Ring sizes. Fails with `Unsupported` for a driver without rings.
pub fn rings(name: &str) -> io::Result<Rings> {
    let mut raw = RawRings {
        cmd: ETHTOOL_GRINGPARAM,
        ..RawRings::default()
    };
    run(name, &mut raw)?;
    Ok(Rings {
        receive: raw.receive,
        receive_max: raw.receive_max,
        transmit: raw.transmit,
        transmit_max: raw.transmit_max,
    })
}

/// The receive queues that hashed frames go to (the RSS indirection table), an entry a hash value.
/// Fails with `Unsupported` for a driver without such a table.
pub fn receive_spread(name: &str) -> io::Result<Vec<u32>> {
    let mut table = Box::new(Indirection {
        cmd: ETHTOOL_GRXFHINDIR,
        size: SPREAD_MAX as u32,
        queues: [0; SPREAD_MAX],
    });
    run(name, table.as_mut())?;
    let len = (table.size as usize).min(SPREAD_MAX);
    Ok(table.queues[..len].to_vec())
}
