//! The directory that keeps the steering program attached while no engine runs.
//!
//! `/run/egret/INSTANCE` holds a lock file and `bpf`, a BPF file system of our own with the pinned
//! maps and one pinned link an interface. Paths are those of the host's mount namespace.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use aya::programs::tc::{TcError, qdisc_detach_program};
use aya::programs::{ProgramInfo, TcAttachType};

use super::SteeringError;
use crate::config::RUN_DIR;
use crate::device::sys::bpf;
use crate::instance;

/// Begins the name of a pinned program that is a filter; the interface's index follows.
const FILTER: &str = "filter_tc_";

/// The pin directory of one instance, locked.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// May it be a directory name, and is it short enough for every path?
fn is_name(instance: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=64).contains(&instance.len()) && instance.chars().all(plain)
}

/// Runs `work` where the pins are.
pub(super) fn at_home<T: Send>(
    work: impl FnOnce() -> Result<T, SteeringError> + Send,
) -> Result<T, SteeringError> {
    bpf::in_host_mounts(work).map_err(|source| SteeringError::Pins {
        step: "entering the host's mount namespace",
        source,
    })?
}

fn fail(step: &'static str) -> impl Fn(io::Error) -> SteeringError {
    move |source| SteeringError::Pins { step, source }
}

impl Pins {
    /// Locks the instance's directory and makes it with all that is missing. Call it `at_home`.
    pub fn open(instance: &str) -> Result<Pins, SteeringError> {
        let dir = Pins::path(instance)?;
        fs::create_dir_all(&dir).map_err(fail("making the instance's directory"))?;
        let lock = lock(&dir, instance)?;
        let pins = Pins { dir, _lock: lock };
        let bpf = pins.bpf();
        fs::create_dir_all(&bpf).map_err(fail("making the pin directory"))?;
        if !is_bpffs(&bpf)? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), &bpf, Some("bpf"), flags, Some("mode=0700"))
                .map_err(|error| fail("mounting a BPF file system")(error.into()))?;
        }
        Ok(pins)
    }

    /// Locks the directory of an instance that may have left something behind; `None` if it has
    /// none. Call it `at_home`.
    pub fn find(instance: &str) -> Result<Option<Pins>, SteeringError> {
        let dir = Pins::path(instance)?;
        if !dir.exists() {
            return Ok(None);
        }
        let lock = lock(&dir, instance)?;
        Ok(Some(Pins { dir, _lock: lock }))
    }

    fn path(instance: &str) -> Result<PathBuf, SteeringError> {
        if is_name(instance) {
            Ok(Path::new(RUN_DIR).join(instance))
        } else {
            Err(SteeringError::BadInstance(instance.to_owned()))
        }
    }

    fn bpf(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Path of a pinned map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.bpf().join(format!("map_{name}"))
    }

    /// Path of the pinned link of an interface.
    pub fn link(&self, ifindex: u32) -> PathBuf {
        self.bpf().join(format!("link_{ifindex}"))
    }

    /// Path of the pinned link of an interface's tc ingress.
    pub fn tc_link(&self, ifindex: u32) -> PathBuf {
        self.bpf().join(format!("link_tc_{ifindex}"))
    }

    /// Path of the pinned program that is a filter on an interface's tc ingress.
    pub fn tc_filter(&self, ifindex: u32) -> PathBuf {
        self.bpf().join(format!("{FILTER}{ifindex}"))
    }

    /// Numbers of the programs that are pinned as on an interface's tc ingress. Call it `at_home`.
    pub fn programs_in_tc(&self, ifindex: u32) -> Vec<u32> {
        programs_in_tc(&self.bpf(), ifindex)
    }

    /// Detaches the program from an interface's tc ingress, if it is attached. Call it `at_home`.
    pub fn detach_tc(&self, ifindex: u32) -> Result<(), SteeringError> {
        detach(&self.tc_link(ifindex))?;
        let filter = self.tc_filter(ifindex);
        match filter.exists() {
            true => detach_filter(&filter),
            false => Ok(()),
        }
    }

    /// Detaches every pinned link and removes it; how many. Call it `at_home`.
    pub fn detach_links(&self) -> Result<usize, SteeringError> {
        let links = self.links()?;
        // One that fails does not keep the others attached; the first failure is told.
        let detach = |pin: &PathBuf| match is_filter(pin) {
            true => detach_filter(pin).err(),
            false => detach(pin).err(),
        };
        let failures: Vec<SteeringError> = links.iter().filter_map(detach).collect();
        failures.into_iter().next().map_or(Ok(links.len()), Err)
    }

    /// Paths of the pinned links and filters. Call it `at_home`.
    pub fn links(&self) -> Result<Vec<PathBuf>, SteeringError> {
        if !is_bpffs(&self.bpf()).unwrap_or(false) {
            return Ok(Vec::new());
        }
        let mut links = Vec::new();
        for entry in fs::read_dir(self.bpf()).map_err(fail("reading the pin directory"))? {
            let entry = entry.map_err(fail("reading the pin directory"))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with("link_") || is_filter(&path) {
                links.push(path);
            }
        }
        Ok(links)
    }

    /// Removes the pinned maps, the BPF file system and the directory, unless something else is in
    /// it. Call it `at_home`, after `detach_links`.
    pub fn remove(&self) -> Result<(), SteeringError> {
        let bpf = self.bpf();
        if is_bpffs(&bpf).unwrap_or(false) {
            umount2(&bpf, MntFlags::MNT_DETACH)
                .map_err(|error| fail("unmounting the BPF file system")(error.into()))?;
        }
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        gone(fs::remove_dir(&bpf)).map_err(fail("removing the pin directory"))?;
        gone(fs::remove_file(self.dir.join(instance::FILE)))
            .map_err(fail("removing the instance's number"))?;
        gone(fs::remove_file(self.dir.join("lock"))).map_err(fail("removing the lock"))?;
        // The tables of the engine may be here: then the directory stays.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }
}

/// The instance that attached this program to the interface, if one did. Call it `at_home`.
pub(super) fn instance_of(ifindex: u32, program: u32) -> Option<String> {
    let instances = fs::read_dir(RUN_DIR).ok()?.flatten();
    let attached = |dir: &PathBuf| {
        // Namespaces number their interfaces alike: the program tells them apart.
        let link = bpf::open_pin(&dir.join("bpf").join(format!("link_{ifindex}")));
        let info = link.and_then(|link| bpf::link_info(link.as_fd()));
        info.is_ok_and(|info| (info.ifindex, info.program) == (ifindex, program))
    };
    let dir = instances.map(|entry| entry.path()).find(attached)?;
    Some(dir.file_name()?.to_string_lossy().into_owned())
}

/// The instance that attached this program to the interface's tc ingress, if it is known by a pin. Call
/// it `at_home`.
pub(super) fn owner_in_tc(ifindex: u32, program: u32) -> Option<String> {
    let instances = fs::read_dir(RUN_DIR).ok()?.flatten();
    let attached = |dir: &PathBuf| programs_in_tc(&dir.join("bpf"), ifindex).contains(&program);
    let dir = instances.map(|entry| entry.path()).find(attached)?;
    Some(dir.file_name()?.to_string_lossy().into_owned())
}

/// Numbers of the programs that pins in this directory say are on the interface's tc ingress: by a link,
/// by a filter.
fn programs_in_tc(bpf: &Path, ifindex: u32) -> Vec<u32> {
    let link = bpf::open_pin(&bpf.join(format!("link_tc_{ifindex}")));
    let link = link.and_then(|link| bpf::link_info(link.as_fd()));
    // Namespaces number their interfaces alike: the program tells them apart.
    let link = link.ok().filter(|link| link.ifindex == ifindex);
    let filter = ProgramInfo::from_pin(bpf.join(format!("{FILTER}{ifindex}")));
    let linked = link.map(|link| link.program);
    linked
        .into_iter()
        .chain(filter.ok().map(|program| program.id()))
        .collect()
}

/// Detaches the link that is pinned at `path`, if there is one, and removes the pin. Call it
/// `at_home`.
pub(super) fn detach(path: &Path) -> Result<(), SteeringError> {
    let link = match bpf::open_pin(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(fail("opening a pinned link"))?,
    };
    match bpf::detach_link(link.as_fd()) {
        // ENOLINK: its interface is gone.
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
            return Err(fail("detaching a link")(error));
        }
        _ => {}
    }
    fs::remove_file(path).map_err(fail("removing a pinned link"))
}

fn is_filter(pin: &Path) -> bool {
    pin.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(FILTER))
}

/// Removes the filter that a pinned program is, in the calling thread's network namespace, and the
/// pin. A filter or interface that is gone is fine.
fn detach_filter(pin: &Path) -> Result<(), SteeringError> {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let ifindex = name
        .strip_prefix(FILTER)
        .and_then(|number| number.parse().ok());
    let interface = ifindex.and_then(|ifindex| nix::net::if_::if_indextoname(ifindex).ok());
    if let Some(interface) = interface {
        let interface = interface.to_string_lossy();
        let result = qdisc_detach_program(&interface, TcAttachType::Ingress, super::tc::STEER);
        match result {
            Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.map_err(|error| fail("detaching a filter")(io::Error::other(error)))?;
            }
        }
    }
    fs::remove_file(pin).map_err(fail("removing a pinned program"))
}

fn is_bpffs(path: &Path) -> Result<bool, SteeringError> {
    let found = statfs(path).map_err(|error| fail("looking at the pin directory")(error.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// The lock of an instance that has no pins.
#[derive(Debug)]
pub struct InstanceLock(Pins);

impl InstanceLock {
    /// Takes the lock of an instance without a steering program, and makes its directory.
    ///
    /// # Errors
    /// Another engine of this name runs, or a dead one's program still guards the inside; or the
    /// kernel's refusal.
    pub fn take(instance: &str) -> Result<InstanceLock, SteeringError> {
        let dir = Pins::path(instance)?;
        fs::create_dir_all(&dir).map_err(fail("making the instance's directory"))?;
        let pins = Pins {
            _lock: lock(&dir, instance)?,
            dir,
        };
        match pins.links()?.is_empty() {
            true => Ok(InstanceLock(pins)),
            false => Err(SteeringError::Guarded(instance.to_owned())),
        }
    }

    /// Gives the lock back, and takes the directory away unless something else is in it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn give_back(self) -> Result<(), SteeringError> {
        self.0.remove()
    }
}

/// How often a lock that is held is tried for again, and the time between: half a second in all.
const LOCK_TRIES: u32 = 25;
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Takes the lock that an engine holds as long as it lives.
fn lock(dir: &Path, instance: &str) -> Result<Flock<File>, SteeringError> {
    let path = dir.join("lock");
    let mut tries = 0;
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail("opening the lock"))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            // Of an engine that was killed a child may have it still, between fork and exec.
            Err((_, nix::Error::EWOULDBLOCK)) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_INTERVAL);
                continue;
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {
                return Err(SteeringError::InUse(instance.to_owned()));
            }
            Err((_, error)) => return Err(fail("locking")(error.into())),
        };
        // The last owner may have removed the file between our open and our lock.
        let ours = lock.metadata().map_err(fail("reading the lock"))?.ino();
        if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
            return Ok(lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_the_root() {
        assert!(is_name("egret") && is_name("node-1_b"));
        for bad in ["", ".", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
