//! The tables of an earlier engine taken over, or new ones made, and their file.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use conntrack::{Identity, LostPorts, Nat, TableSize};
use tracing::{info, warn};

use crate::clock;
use crate::config::Config;
use crate::device::sys::memfile::{Found, MemFile};
use crate::engine::{StartError, at};
use crate::facts;
use crate::plan::{HostFacts, Plan};
use crate::random::WorkerRandom;
use crate::rulebook;

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

/// The tables of a start, with the policy in them.
pub(crate) struct Tables {
    pub file: MemFile,
    pub unused: UnusedFile,
    pub nat: Nat<'static>,
}

impl Tables {
    /// Opens or makes the tables of a plan, and gives the plan's addresses the places that they have
    /// there. `owned` is the ownership bitmap, with the addresses `placed` in it.
    ///
    /// # Errors
    /// The step that failed.
    pub fn take(
        config: &Config,
        host: &HostFacts,
        plan: &mut Plan,
        size: TableSize,
        (owned, placed): (&'static [AtomicU64], Vec<(u16, Ipv4Addr)>),
    ) -> Result<Tables, StartError> {
        let path = &config.tables.path.value;
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(at("making the tables' directory"))?;
        }
        let file = MemFile::open(path, size.words()).map_err(at("opening the tables"))?;
        let unused = UnusedFile::of(&file, path);
        let (nat, lost) = open_nat(&file, owned, &placed, size)?;
        plan.reseat(config, host, &nat.placed());
        if !rulebook::settle(&nat, &plan.policy, clock::now()) {
            let path = path.display();
            let what = format!("they are broken; remove {path} and start again");
            return Err(at("putting the policy into the tables")(what));
        }
        let held = nat.hold_lost(&plan.policy, &lost, clock::now());
        if held > 0 {
            warn!(ports = held, "ports that lost sessions had are held down");
        }
        Ok(Tables { file, unused, nat })
    }
}

/// Takes over the tables of an earlier engine if they fit, else makes new ones; and the ports that
/// the ownership bitmap `owned` still gives to a lost engine's sessions, on the addresses `placed`.
fn open_nat(
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
