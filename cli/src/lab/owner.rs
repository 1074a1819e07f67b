//! Who owns a lab, so that nothing of it outlives its owner: not after a panic, not after Ctrl-C,
//! and after SIGKILL only until the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::config::RUN_DIR;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::error::LabError;
use super::netns::{self, Namespace};

/// Where labs keep their files: one directory a lab, with the owner's lock in it.
const LABS_DIR: &str = "/run/egret-lab";

/// In a lab's directory: what it changed of the whole machine, and what was there before.
const MACHINE: &str = "machine";

/// The labs of this process; `None` once a signal has ended them all.
static LABS: Mutex<Option<Vec<String>>> = Mutex::new(Some(Vec::new()));

/// The registry, whatever happened to a thread that held it: clean-up must still work.
fn labs() -> MutexGuard<'static, Option<Vec<String>>> {
    LABS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab's name, its directory and its lock. Dropping it removes the lab, with the namespaces and
/// the processes in them, unless it was told to keep it.
#[derive(Debug)]
pub struct Owner {
    name: String,
    keep: bool,
    /// Held while this process lives: how a later one knows that the lab is in use.
    _lock: Flock<File>,
}

impl Owner {
    /// Takes a name that no other lab has: the prefix, the process and a number.
    ///
    /// # Errors
    /// The directory could not be made, commonly for want of privilege.
    pub fn claim(prefix: &str) -> Result<Owner, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{number}", std::process::id());
        let mut registry = open_registry();
        let lock = lock_new(&name).map_err(LabError::system(format!(
            "making {}",
            directory(&name).display()
        )))?;
        registry.get_or_insert_default().push(name.clone());
        Ok(Owner {
            name,
            keep: false,
            _lock: lock,
        })
    }

    /// The lab's name; its namespaces are called `NAME-ROLE`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the lab's files are.
    pub fn directory(&self) -> PathBuf {
        directory(&self.name)
    }

    /// Makes one of the lab's namespaces.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn namespace(&self, role: &str) -> Result<Namespace, LabError> {
        // Under the lock: else one could appear behind the back of a clean-up that is under way.
        let _registry = open_registry();
        Namespace::create(&format!("{}-{role}", self.name))
    }

    /// Sets something that is the whole machine's and no namespace's, such as a kernel parameter. It
    /// is put back when the lab is removed, whoever does that.
    ///
    /// # Errors
    /// There is no such file, or the kernel's refusal.
    pub fn set_machine(&self, path: &Path, value: &str) -> Result<(), LabError> {
        // Under the lock: a clean-up that is under way has read the list already.
        let _registry = open_registry();
        let set = || {
            let before = fs::read_to_string(path)?;
            if before.trim() == value {
                // Another lab's doing, perhaps, which puts back what was there before it.
                return Ok(());
            }
            let mut list = OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.directory().join(MACHINE))?;
            writeln!(list, "{}\t{}", path.display(), before.trim())?;
            fs::write(path, value)
        };
        set().map_err(LabError::system(format!(
            "setting {} to {value}",
            path.display()
        )))
    }

    /// Leaves the lab in place when this value goes.
    pub fn keep(&mut self) {
        self.keep = true;
        if let Some(names) = labs().as_mut() {
            names.retain(|name| *name != self.name);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // After a signal somebody else removes it; to end before that is done would leave half of it.
        let mut registry = open_registry();
        if let Some(names) = registry.as_mut() {
            names.retain(|name| *name != self.name);
            remove(&self.name);
        }
    }
}

/// The registry, while it is open. After a signal the process is about to exit: waits for that.
/// Whoever holds it while making something in a lab does so before a clean-up, or not at all.
pub(super) fn open_registry() -> MutexGuard<'static, Option<Vec<String>>> {
    loop {
        let registry = labs();
        if registry.is_some() {
            return registry;
        }
        drop(registry);
        std::thread::park();
    }
}

fn directory(name: &str) -> PathBuf {
    Path::new(LABS_DIR).join(name)
}

fn lock_path(name: &str) -> PathBuf {
    directory(name).join("owner")
}

/// Makes a lab's directory and takes its lock.
fn lock_new(name: &str) -> io::Result<Flock<File>> {
    let path = lock_path(name);
    loop {
        fs::create_dir_all(directory(name))?;
        let lock = match File::create(&path) {
            // The last of other labs took the common directory with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            lock => lock?,
        };
        // Another process that removes leftovers may have taken it first, and removes it.
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if fs::metadata(&path)
            .is_ok_and(|there| lock.metadata().is_ok_and(|m| m.ino() == there.ino()))
        {
            return Ok(lock);
        }
    }
}

/// Removes a lab: its processes, its namespaces, its files.
fn remove(name: &str) {
    netns::remove(&format!("{name}-"));
    // A gateway that was killed leaves its directory, with a mount in it.
    let instance = Path::new(RUN_DIR).join(name);
    let _ = umount2(&instance.join("bpf"), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(instance);
    put_back(&directory(name).join(MACHINE));
    let _ = fs::remove_dir_all(directory(name));
    // Only the last lab finds it empty.
    let _ = fs::remove_dir(LABS_DIR);
}

/// Puts back what [`Owner::set_machine`] changed, the last change first.
fn put_back(list: &Path) {
    let text = fs::read_to_string(list).unwrap_or_default();
    for (path, before) in text.lines().rev().filter_map(|line| line.split_once('\t')) {
        let _ = fs::write(path, before);
    }
}

/// Removes labs of this prefix whose owner is gone: those that were kept, and those whose owner
/// was killed. Returns their names.
pub fn remove_leftovers(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(LABS_DIR) else {
        return Vec::new();
    };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_of_prefix(&name, prefix) {
            continue;
        }
        let Ok(lock) = File::open(lock_path(&name)) else {
            continue;
        };
        if let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            remove(&name);
            removed.push(name);
        }
    }
    removed
}

/// Is it `PREFIX-PID-NUMBER`?
fn is_of_prefix(name: &str, prefix: &str) -> bool {
    let number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(pid, count)| number(pid) && number(count))
}

/// From now on SIGINT, SIGTERM and SIGHUP remove this process's labs and end it with status
/// 128 and the signal's number.
///
/// # Errors
/// The handlers could not be installed.
pub fn clean_up_on_signals() -> Result<(), LabError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(LabError::system("installing the signal handlers"))?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let names = labs().take().unwrap_or_default();
            for name in names {
                remove(&name);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_of_prefix;

    #[test]
    fn only_labs_of_the_same_prefix_are_leftovers() {
        assert!(is_of_prefix("egret-demo-12-0", "egret-demo"));
        assert!(!is_of_prefix("egret-demo-x-12-0", "egret-demo"));
        assert!(!is_of_prefix("egret-demo-12", "egret-demo"));
        assert!(!is_of_prefix("egret-demo-12-0", "egret"));
    }
}
