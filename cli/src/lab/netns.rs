//! Named network namespaces, bind-mounted where `ip netns` looks for them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::LabError;
use super::wait;

/// Where `ip netns` keeps its namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// How long processes may take to end after a signal.
const PATIENCE: Duration = Duration::from_secs(2);

/// A network namespace with a name. Dropping the value leaves the namespace: [`remove`] ends it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace, with its loopback interface up and mounted as [`NETNS_DIR`]`/name`.
    ///
    /// # Errors
    /// The kernel's refusal: commonly a missing privilege, or a name that exists.
    pub fn create(name: &str) -> Result<Namespace, LabError> {
        let path = Path::new(NETNS_DIR).join(name);
        share_directory()?;
        File::create_new(&path).map_err(LabError::system(format!("making {}", path.display())))?;
        let made = thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                none,
                MsFlags::MS_BIND,
                none,
            )
        });
        if let Err(errno) = made {
            let _ = fs::remove_file(&path);
            return Err(LabError::errno(format!(
                "making the network namespace {name}"
            ))(errno));
        }
        let file = File::open(&path).map_err(LabError::system(format!(
            "opening the network namespace {name}"
        )))?;
        let namespace = Namespace {
            name: name.to_owned(),
            file,
        };
        namespace.link_up("lo")?;
        Ok(namespace)
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace itself: an open file of the kernel's nsfs.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `f` on a thread of its own inside the namespace. Sockets that `f` opens belong to the
    /// namespace for good, whichever thread uses them later, and so do processes that it starts.
    ///
    /// # Errors
    /// The namespace could not be entered, or what `f` returns.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        inside(&self.file, f)
    }

    /// Reads a `net` sysctl of the namespace, e.g. `ipv4/ip_forward`.
    ///
    /// # Errors
    /// No such setting.
    pub fn sysctl(&self, key: &str) -> Result<String, LabError> {
        self.run(|| fs::read_to_string(format!("/proc/sys/net/{key}")))
            .map(|text| text.trim().to_owned())
            .map_err(LabError::system(format!(
                "reading net/{key} in {}",
                self.name
            )))
    }

    /// Writes a `net` sysctl of the namespace.
    ///
    /// # Errors
    /// No such setting, or the kernel's refusal.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.run(|| fs::write(format!("/proc/sys/net/{key}"), value))
            .map_err(LabError::system(format!(
                "setting net/{key} in {}",
                self.name
            )))
    }
}

/// Runs `f` on a thread of its own inside the namespace that the file stands for.
pub(super) fn inside<T: Send>(
    namespace: &File,
    f: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        f()
    })
}

/// Runs `f` on a thread of its own, and passes a panic on.
fn thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes [`NETNS_DIR`] a shared mount, as `ip netns add` does: else a namespace that is removed in
/// one mount namespace lives on in the others.
fn share_directory() -> Result<(), LabError> {
    let fail = || LabError::errno(format!("preparing {NETNS_DIR}"));
    fs::create_dir_all(NETNS_DIR).map_err(LabError::system(format!("making {NETNS_DIR}")))?;
    let none: Option<&str> = None;
    let share = || {
        mount(
            none,
            NETNS_DIR,
            none,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )
    };
    match share() {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NETNS_DIR), NETNS_DIR, none, bind, none).map_err(fail())?;
            share().map_err(fail())
        }
        Err(errno) => Err(fail()(errno)),
    }
}

/// Removes the namespaces whose names begin with `prefix`, and ends the processes inside them:
/// first with SIGTERM, two seconds later with SIGKILL. Missing ones are no error.
pub fn remove(prefix: &str) {
    let paths = with_prefix(prefix);
    end_processes(&paths);
    for path in &paths {
        // Not mounted when its maker died between the two steps.
        let _ = umount2(path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(path);
    }
}

/// The namespace files whose names begin with `prefix`.
fn with_prefix(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Ends every process that lives in one of the namespaces.
fn end_processes(namespaces: &[PathBuf]) {
    let inodes: Vec<u64> = namespaces
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| metadata.ino())
        .collect();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in processes_in(&inodes) {
            let _ = kill(pid, signal);
        }
        if wait::until(PATIENCE, || processes_in(&inodes).is_empty()) {
            return;
        }
    }
}

/// The processes whose network namespace is one of `inodes`, but this one and those that are dead
/// already and only wait for their parent (they have no namespace any more).
fn processes_in(inodes: &[u64]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != Pid::this().as_raw())
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|metadata| inodes.contains(&metadata.ino()))
        })
        .map(Pid::from_raw)
        .collect()
}
