//! Who runs where: NAPI threads and workers on the gateway's core, everything else on the other; and
//! the CPU time that they take there.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::device::sys::schedule::set_fifo;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::lab::{LabError, Namespace};

/// The core of the generator, the sink's counters and the bench itself.
pub const SENDER_CORE: usize = 0;
/// The core of the gateway: its worker, and the kernel threads that receive for it.
pub const GATEWAY_CORE: usize = 1;
/// Priority of a worker (SCHED_FIFO): above the NAPI threads it shares the core with, or it gets
/// nothing done while frames keep arriving.
pub const WORKER_PRIORITY: u32 = 50;
/// Priority of the thread that reads the counters: it must do so while the load lasts.
const WATCHER_PRIORITY: u32 = 60;
/// Priority of the sender: other programs do not make gaps in its pace.
pub const SENDER_PRIORITY: u32 = 1;

/// Milliseconds of a clock tick in /proc, whatever the kernel's own are (USER_HZ).
const TICK_MS: u64 = 10;

/// Are there both cores?
///
/// # Errors
/// One of them is missing, or this process may not use it.
pub fn check_cores() -> Result<(), LabError> {
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .map_err(LabError::errno("asking which cores there are"))?;
    for core in [SENDER_CORE, GATEWAY_CORE] {
        if !allowed.is_set(core).unwrap_or(false) {
            return Err(LabError::Gateway(format!(
                "CPU {core} is needed, and this process may not use it: the sender has CPU \
                 {SENDER_CORE} and the gateway CPU {GATEWAY_CORE}"
            )));
        }
    }
    Ok(())
}

/// Keeps a thread on one core; 0 is the calling one.
fn to_core(thread: i32, core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(thread), &set)?)
}

/// Does something with the calling thread, and with what it starts meanwhile, on one core.
///
/// # Errors
/// There is no such core, or that of `work`.
pub fn while_on_core<T>(
    core: usize,
    work: impl FnOnce() -> Result<T, LabError>,
) -> Result<T, LabError> {
    let anywhere = sched_getaffinity(Pid::from_raw(0))
        .map_err(LabError::errno("asking which cores there are"))?;
    to_core(0, core).map_err(LabError::system(format!("going to core {core}")))?;
    let done = work();
    sched_setaffinity(Pid::from_raw(0), &anywhere)
        .map_err(LabError::errno("leaving a core again"))?;
    done
}

/// Puts the calling thread on a core, where it runs before all ordinary threads (SCHED_FIFO) and
/// before those of lower priority: what else the machine does should not show in the figures.
///
/// # Errors
/// There is no such core, or the kernel's refusal.
pub fn own(core: usize, priority: u32) -> io::Result<()> {
    to_core(0, core)?;
    set_fifo(priority)
}

/// Lets the calling thread, but no thread or process that it starts, read counters in time.
///
/// # Errors
/// The kernel's refusal.
pub fn watch() -> Result<(), LabError> {
    set_fifo(WATCHER_PRIORITY).map_err(LabError::system("going before the load"))
}

/// Lets a kernel thread go before ordinary programs of other sessions. Not more: what it leaves to
/// the kernel's softirq thread would never be done.
fn favour(thread: i32) -> Result<(), LabError> {
    let mut renice = Command::new("renice");
    renice
        .args(["--priority", "-20", "--pid", &thread.to_string()])
        .stdout(Stdio::null());
    let status = renice
        .status()
        .map_err(LabError::system("running renice (Debian package bsdutils)"))?;
    if status.success() {
        return Ok(());
    }
    Err(LabError::Gateway(format!(
        "renice could not change the priority of thread {thread}"
    )))
}

/// The threads of a process whose name begins so.
pub fn threads_of(process: u32, name: &str) -> Vec<i32> {
    named(&format!("/proc/{process}/task"), name)
}

/// Gives the NAPI of an interface threads of their own. One without NAPI is left alone.
///
/// # Errors
/// No such interface, or a kernel before 5.12.
pub fn use_napi_threads(namespace: &Namespace, link: &str) -> Result<(), LabError> {
    match set_attribute(namespace, link, "threaded", "1") {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        set => set.map_err(LabError::system(format!("giving {link} NAPI threads"))),
    }
}

/// Lets what arrives at an interface without NAPI be received on this core (receive packet
/// steering), or again on the core that it was sent from.
///
/// # Errors
/// No such interface, or a kernel without CONFIG_RPS.
pub fn receive_on(namespace: &Namespace, link: &str, core: Option<usize>) -> Result<(), LabError> {
    let cores = core.map_or(0, |core| 1 << core);
    set_attribute(
        namespace,
        link,
        "queues/rx-0/rps_cpus",
        &format!("{cores:x}"),
    )
    .map_err(LabError::system(format!(
        "choosing the core that receives for {link}"
    )))
}

/// Writes an attribute of an interface in /sys.
fn set_attribute(namespace: &Namespace, link: &str, name: &str, value: &str) -> io::Result<()> {
    namespace.run(|| {
        // /sys shows the interfaces of the namespace it was mounted in: this thread gets its own.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
        fs::write(format!("/sys/class/net/{link}/{name}"), value)
    })
}

/// The NAPI threads of an interface, whose name must be the only one of its kind on the machine.
pub fn napi_threads(link: &str) -> Vec<i32> {
    named("/proc", &format!("napi/{link}-"))
}

/// Puts the NAPI threads of an interface on a core, where they go before other programs.
///
/// # Errors
/// The kernel's refusal.
pub fn napi_to_core(link: &str, core: usize) -> Result<(), LabError> {
    for thread in napi_threads(link) {
        to_core(thread, core).map_err(LabError::system(format!(
            "putting the NAPI thread of {link} on core {core}"
        )))?;
        favour(thread)?;
    }
    Ok(())
}

/// CPU time that a thread of this number, a kernel's or a process's, has used.
///
/// # Errors
/// There is no such thread.
pub fn cpu_time(thread: i32) -> io::Result<Duration> {
    // /proc knows every thread by its number, though it lists processes only.
    let text = fs::read_to_string(format!("/proc/{thread}/task/{thread}/schedstat"))?;
    let ns = text.split_whitespace().next();
    ns.and_then(|word| word.parse().ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other("schedstat has no CPU time"))
}

/// How long a core had done nothing at some time.
#[derive(Clone, Copy, Debug)]
pub struct CoreTime {
    at: Instant,
    rest: Duration,
}

impl CoreTime {
    /// Reads it. What the host of a virtual machine took away counts as rest.
    ///
    /// # Errors
    /// There is no such core.
    pub fn read(core: usize) -> io::Result<CoreTime> {
        let text = fs::read_to_string("/proc/stat")?;
        let ticks = rest_of(&text, core)
            .ok_or_else(|| io::Error::other(format!("/proc/stat has no rest of core {core}")))?;
        Ok(CoreTime {
            at: Instant::now(),
            rest: Duration::from_millis(ticks * TICK_MS),
        })
    }

    /// How long the core was busy since `earlier`, with interrupts and with any thread.
    pub fn busy_since(self, earlier: CoreTime) -> Duration {
        let rest = self.rest.saturating_sub(earlier.rest);
        (self.at - earlier.at).saturating_sub(rest)
    }
}

/// The clock ticks that a core was idle, waited for a disk, or was not this machine's, from the text
/// of /proc/stat: the fourth, fifth and eighth number of its line.
fn rest_of(stat: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core}");
    let of_core = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.map(|word| word.parse().ok()).collect())?
    };
    let ticks: Vec<u64> = stat.lines().find_map(of_core)?;
    [3, 4, 7].iter().map(|&at| ticks.get(at)).sum()
}

/// The thread that does what interrupts on a core leave for later.
pub fn softirq_threads(core: usize) -> Vec<i32> {
    named("/proc", &format!("ksoftirqd/{core}"))
}

/// The processes or threads in a directory of /proc whose name begins so.
fn named(directory: &str, name: &str) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|id| {
            fs::read_to_string(format!("{directory}/{id}/comm"))
                .is_ok_and(|comm| comm.starts_with(name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_found_by_name() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (up, is_up) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("bench-pin-test".to_owned())
            .spawn(move || {
                up.send(nix::unistd::gettid().as_raw()).ok();
                told.recv().ok();
            })
            .unwrap();
        let id = is_up.recv().unwrap();
        assert_eq!(threads_of(std::process::id(), "bench-pin-"), [id]);
        assert!(threads_of(std::process::id(), "no-such-thread").is_empty());
        drop(tell);
        thread.join().unwrap();
    }

    #[test]
    fn a_busy_thread_uses_cpu_time() {
        let own = nix::unistd::gettid().as_raw();
        let before = cpu_time(own).unwrap();
        let begun = Instant::now();
        while cpu_time(own).unwrap() == before {
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        assert!(cpu_time(i32::MAX).is_err());
    }

    #[test]
    fn a_core_that_is_not_there_is_an_error() {
        assert!(to_core(0, 1_000_000).is_err());
        assert!(while_on_core(1_000_000, || Ok(())).is_err());
        assert!(CoreTime::read(1_000_000).is_err());
    }

    #[test]
    fn the_rest_of_a_core_is_found_in_its_line() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 1 2 3 400 50 6 7 8 0 0\n\
                    cpu10 0 0 0 1 0 0 0 0 0 0\nintr 7\n";
        assert_eq!(rest_of(text, 1), Some(458));
        assert_eq!(rest_of(text, 10), Some(1));
        assert_eq!(rest_of(text, 0), None);
        assert_eq!(rest_of("cpu0 1 2 3 4 5", 0), None);
    }

    #[test]
    fn a_core_on_which_a_thread_spins_is_busy() {
        let busy = while_on_core(SENDER_CORE, || {
            let before = CoreTime::read(SENDER_CORE).map_err(LabError::system("reading"))?;
            while before.at.elapsed() < Duration::from_millis(300) {}
            let after = CoreTime::read(SENDER_CORE).map_err(LabError::system("reading"))?;
            Ok(after.busy_since(before))
        });
        let busy = busy.unwrap();
        // Some of it may be the host's.
        assert!(busy > Duration::from_millis(100), "{busy:?}");
        assert!(busy < Duration::from_millis(2_000), "{busy:?}");
        let anywhere = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cores = (0..CpuSet::count()).filter(|&core| anywhere.is_set(core).unwrap_or(false));
        let all = std::thread::available_parallelism().unwrap().get();
        assert_eq!(cores.count(), all, "the thread may run anywhere again");
    }
}
