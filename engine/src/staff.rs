//! The worker threads: what each of them gets, how they start and how they end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use mio::Waker;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tracing::{error, warn};

use crate::clock;
use crate::config::{Config, Poll};
use crate::device::Device;
use crate::device::offload::Offload;
use crate::device::sys::schedule;
use crate::gateway::{Gateway, Shared};
use crate::plan::Plan;
use crate::poll::{self, Bed, PollMode};
use crate::punt::Punt;
use crate::random::WorkerRandom;
use crate::stats::WorkerStats;
use crate::worker::{Host, Worker};

/// The host's kernel, reached through the punt TAPs.
struct Kernel(Arc<Punt>);

impl Host for Kernel {
    fn punt(&mut self, interface: u8, frame: &mut [u8], offload: Offload) -> bool {
        self.0.punt(usize::from(interface), frame, offload)
    }
}

/// What one worker counts.
pub(crate) type Stats = Arc<crossbeam_utils::CachePadded<WorkerStats>>;

/// The worker threads, and what each of them gets. Dropping it ends them.
pub(crate) struct Staff {
    shared: Arc<Shared>,
    punt: Arc<Punt>,
    stop: Arc<AtomicBool>,
    /// A thread has ended by itself.
    pub failed: Arc<AtomicBool>,
    mode: PollMode,
    errors_per_second: u32,
    cpus: Vec<u16>,
    priority: Option<u32>,
    threads: Vec<JoinHandle<()>>,
    wakers: Vec<Waker>,
}

impl Staff {
    pub fn new(shared: &Arc<Shared>, punt: Punt, config: &Config, plan: &Plan) -> Staff {
        Staff {
            shared: Arc::clone(shared),
            punt: Arc::new(punt),
            stop: Arc::new(AtomicBool::new(false)),
            failed: Arc::new(AtomicBool::new(false)),
            mode: match config.workers.poll.value {
                Poll::Adaptive => PollMode::Adaptive,
                Poll::Busy => PollMode::Busy,
            },
            errors_per_second: config.icmp.errors_per_second.div_ceil(plan.workers),
            cpus: plan.cpus.clone(),
            priority: config.workers.priority.map(|at| at.value),
            threads: Vec::new(),
            wakers: Vec::new(),
        }
    }

    /// Starts a thread for each device; returns what each counts.
    pub fn hire<D: Device + Send + 'static>(&mut self, devices: Vec<D>) -> io::Result<Vec<Stats>> {
        let mut all_stats = Vec::new();
        for (number, device) in devices.into_iter().enumerate() {
            let interfaces = self.shared.links.load().links.len();
            let stats = Arc::new(WorkerStats::new(interfaces));
            let (bed, waker) = Bed::new(&device.wait_fds())?;
            let gateway = Gateway::new(
                Arc::clone(&self.shared),
                number,
                WorkerRandom::from_system(),
            );
            let worker = Worker::new(
                device,
                Kernel(Arc::clone(&self.punt)),
                gateway,
                Arc::clone(&stats),
                self.errors_per_second,
            );
            self.threads.push(self.spawn(number, worker, bed)?);
            self.wakers.push(waker);
            all_stats.push(stats);
        }
        Ok(all_stats)
    }

    /// Lets every worker finish its round, and waits for it.
    pub fn dismiss(&mut self) {
        self.stop.store(true, Ordering::Release);
        for waker in self.wakers.drain(..) {
            if let Err(error) = waker.wake() {
                warn!(%error, "waking a worker");
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a worker panicked");
            }
        }
    }

    fn spawn<D: Device + Send + 'static>(
        &self,
        number: usize,
        mut worker: Worker<D, Kernel, WorkerRandom>,
        mut bed: Bed,
    ) -> io::Result<JoinHandle<()>> {
        let (mode, priority) = (self.mode, self.priority);
        let cpu = self.cpus.get(number).copied();
        let (stop, failed) = (Arc::clone(&self.stop), Arc::clone(&self.failed));
        std::thread::Builder::new()
            .name(format!("egret-worker{number}"))
            .spawn(move || {
                if let Some(cpu) = cpu {
                    pin(cpu);
                }
                if let Some(priority) = priority {
                    outrank(priority);
                }
                let guard = FailureGuard {
                    failed: &failed,
                    asked: &stop,
                };
                if let Err(error) = poll::run(&mut worker, &mut bed, mode, clock::now, &stop) {
                    error!(worker = number, %error, "a worker cannot wait for frames");
                }
                drop(guard);
            })
    }
}

impl Drop for Staff {
    fn drop(&mut self) {
        self.dismiss();
    }
}

/// Tells of a thread that ends before it was asked to, also by a panic.
pub(crate) struct FailureGuard<'a> {
    pub failed: &'a AtomicBool,
    /// It was asked to end.
    pub asked: &'a AtomicBool,
}

impl Drop for FailureGuard<'_> {
    fn drop(&mut self) {
        if !self.asked.load(Ordering::Acquire) {
            self.failed.store(true, Ordering::Release);
        }
    }
}

/// Puts the calling worker before all threads without a priority, such as those of NAPI on its CPU:
/// else at overload these take all the time, and fill rings that nobody empties.
fn outrank(priority: u32) {
    if let Err(error) = schedule::set_fifo(priority) {
        warn!(
            priority,
            %error,
            "a worker runs without its priority: `egret check` says what `workers.priority` needs"
        );
    }
}

fn pin(cpu: u16) {
    let mut set = CpuSet::new();
    let pinned = set
        .set(usize::from(cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        warn!(cpu, %error, "a worker could not be pinned to its CPU");
    }
}
