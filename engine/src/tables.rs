//! The tables of an earlier engine taken over, or new ones made, and their file.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use conntrack::{Identity, LostPorts, Nat, TableSize};
use tracing::{info, warn};

use crate::device::sys::memfile::{Found, MemFile};
use crate::engine::{StartError, at};
use crate::facts;
use crate::random::WorkerRandom;

/// Takes a tables' file that was made for a start away, if that start fails.
pub(crate) struct UnusedFile(Option<PathBuf>);

impl UnusedFile {
    pub fn of(tables: &MemFile, path: &Path) -> UnusedFile {
        UnusedFile((tables.found() == Found::Created).then(|| path.to_owned()))
    }

    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for UnusedFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // If it cannot be removed it is empty tables, which do no harm.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Takes over the tables of an earlier engine if they fit, else makes new ones; and the ports that
/// the ownership bitmap `owned` still gives to a lost engine's sessions, on the addresses `placed`.
pub(crate) fn open_nat(
    tables: &MemFile,
    owned: &'static [AtomicU64],
    placed: &[(u16, Ipv4Addr)],
    size: TableSize,
) -> Result<(Nat<'static>, LostPorts), StartError> {
    let identity = Identity {
        boot_id: facts::boot_id(),
    };
    if tables.found() == Found::Kept {
        match Nat::open(tables.words(), owned, size, identity) {
            Ok(nat) => {
                let totals = nat.totals();
                info!(
                    sessions = totals.sessions,
                    "took over the sessions of an earlier engine"
                );
                return Ok((nat, LostPorts::default()));
            }
            Err(error) => warn!(%error, "the tables in the file are not used"),
        }
    }
    // The maps outlive the engine, not the boot: after a reboot nothing tells what was in use.
    let lost = LostPorts::of(owned, placed);
    let mut random = WorkerRandom::from_system();
    let nat = Nat::create(tables.words(), owned, size, identity, &mut random)
        .map_err(at("making the tables"))?;
    Ok((nat, lost))
}
