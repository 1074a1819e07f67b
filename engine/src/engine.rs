//! The running gateway: what is started in which order, which threads there are, and how it all
//! ends. Everything here happens before the first frame or after the last one.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conntrack::{Identity, LostPorts, Nat, TableSize};
use crossbeam_queue::ArrayQueue;
use mio::Waker;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::clock;
use crate::config::{Config, Poll, Problem};
use crate::control::Control;
use crate::device::sys::ethtool::Offload;
use crate::device::sys::memfile::{Found, MemFile};
use crate::device::xdp::XdpDevice;
use crate::facts;
use crate::fragment::{FragmentLimits, FragmentTable, Identifications};
use crate::gateway::{Gateway, Shared};
use crate::host::HostPorts;
use crate::ladder::{self, Rung};
use crate::netlink::{self, NetlinkHandle, NetworkView};
use crate::own_address::{self, Announcer};
use crate::plan::{HostFacts, Plan};
use crate::poll::{self, Bed, PollMode};
use crate::punt::Punt;
use crate::random::WorkerRandom;
use crate::route::{Forwarding, ServedInterface};
use crate::rulebook::{self, Rulebook};
use crate::stats::{Snapshot, WorkerStats};
use crate::status::Status;
use crate::steering::{self, Steering, SteeringSize};
use crate::steward::{Steward, links_of};
use crate::undo::{self, Undo};
use crate::worker::{Host, Worker};

/// Next hops that a gateway knows at the same time.
const HOPS_MAX: u32 = 65_536;

/// Announcements of own addresses that wait for a worker.
const ANNOUNCEMENTS_MAX: usize = 512;

/// How often the host's sockets are looked at: a daemon that listens on a shared address from now
/// on gets its port left out of the pool.
const PORTS_INTERVAL: Duration = Duration::from_secs(5);

/// Every so manieth time its rules are listed, too, which takes programs.
const RULES_EVERY: u32 = 12;

/// Why the gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not fit this host.
    #[error("the configuration does not fit this host")]
    Plan(Vec<Problem>),
    /// A step of the start failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Names a step in its error.
fn at<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: &'static str,
) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Step {
        step,
        source: source.into(),
    }
}

/// The host's kernel, reached through the punt TAPs.
struct Kernel(Arc<Punt>);

impl Host for Kernel {
    fn punt(&mut self, interface: u8, frame: &mut [u8]) -> bool {
        self.0.punt(usize::from(interface), frame)
    }
}

/// A running gateway. End it with [`Engine::stop`]: dropped without, its parts end in no good order.
pub struct Engine {
    plan: Plan,
    rung: Rung,
    staff: Staff,
    control: Option<(oneshot::Sender<()>, JoinHandle<Steward>)>,
    netlink: NetlinkHandle,
    tables: MemFile,
    undo: Arc<Mutex<Undo>>,
}

impl Engine {
    /// Starts the gateway in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What speaks against it, or the step that failed; the host is then as it was found: also the
    /// program of a dead engine goes on dropping internal traffic.
    pub fn start(config: Config) -> Result<Engine, StartError> {
        let host = facts::read(&config).map_err(at("reading the interfaces"))?;
        let plan = Plan::make(&config, &host).map_err(StartError::Plan)?;
        let instance = config.instance.clone();
        let size = SteeringSize {
            addresses_max: plan.addresses_max,
            ..SteeringSize::default()
        };
        let steering = Steering::open(&instance, size, random_mac())
            .map_err(at("loading the steering program"))?;
        let inherited = steering.is_inherited();
        // With an error all that was made is dropped, the instance's lock, too.
        Engine::start_steered(config, host, plan, steering).inspect_err(|_| {
            if inherited {
                warn!(
                    "the program of the dead engine before this one goes on dropping internal \
                     traffic; `egret detach --instance {instance}` ends that"
                );
            } else if let Err(error) = put_back(&instance) {
                let error: &dyn std::error::Error = &error;
                warn!(
                    error,
                    "something is left behind: `egret detach --instance {instance}`"
                );
            }
        })
    }

    /// The rest of the start, with the instance's lock held.
    fn start_steered(
        config: Config,
        host: HostFacts,
        mut plan: Plan,
        mut steering: Steering,
    ) -> Result<Engine, StartError> {
        let instance = config.instance.clone();
        let size = TableSize {
            sessions_max: plan.sessions_max,
            addresses_max: plan.addresses_max,
        };

        if let Some(directory) = config.tables.path.value.parent() {
            std::fs::create_dir_all(directory).map_err(at("making the tables' directory"))?;
        }
        let tables = MemFile::open(&config.tables.path.value, size.words())
            .map_err(at("opening the tables"))?;
        let unused = UnusedFile::of(&tables, &config.tables.path.value);
        let (nat, lost) = open_nat(&tables, &steering, size)?;
        plan.reseat(&config, &host, &nat.placed());
        if !rulebook::settle(&nat, &plan.policy, clock::now()) {
            let path = config.tables.path.value.display();
            let what = format!("they are broken; remove {path} and start again");
            return Err(at("putting the policy into the tables")(what));
        }

        let held = nat.hold_lost(&plan.policy, &lost, clock::now());
        if held > 0 {
            warn!(ports = held, "ports that lost sessions had are held down");
        }

        let forwarding = forwarding(&plan);
        let netlink =
            netlink::start(Arc::clone(&forwarding)).map_err(at("following the routes"))?;
        let view = netlink.view().borrow().clone();

        let names: Vec<&str> = plan
            .interfaces
            .iter()
            .map(|planned| planned.facts.name.as_str())
            .collect();
        let punt = Punt::open(&mut steering, &punt_prefix(&instance), &names)
            .map_err(at("making the punt devices"))?;
        let shared = Arc::new(Shared {
            nat,
            size,
            rulebook: Rulebook::new(plan.policy.clone(), plan.workers as usize),
            links: arc_swap::ArcSwap::from_pointee(links_of(&config, &plan, &view)),
            forwarding,
            fragments: fragments(&config),
            identifications: Identifications::new(unpredictable()),
            on_refusal: config.icmp.on_refusal,
            unsolicited: config.icmp.unsolicited,
            midstream: config.nat.midstream,
            announcements: ArrayQueue::new(ANNOUNCEMENTS_MAX),
        });
        let mut steward = Steward::new(
            config.clone(),
            plan.clone(),
            host,
            steering,
            Arc::clone(&shared),
        )
        .map_err(at("telling the steering program its settings"))?;
        steward
            .follow(&view)
            .map_err(at("telling the steering program its settings"))?;

        let undo = Undo::open(&instance);
        let undo = Arc::new(Mutex::new(undo));
        turn_vlan_offload_off(&plan, &undo)?;
        let (devices, rung) = ladder::descend(&config, &plan, steward.steering())
            .map_err(at("binding AF_XDP sockets and attaching the program"))?;
        if rung.way.is_generic() {
            turn_merging_off(&plan, &undo);
        }

        let mut staff = Staff::new(&shared, punt, &config, &plan);
        let stats = staff.hire(devices).map_err(at("starting the workers"))?;
        let governor = Governor {
            shared,
            stats,
            rung: rung.clone(),
            view: netlink.view(),
            control_socket: config.control_socket.clone(),
            undo: Arc::clone(&undo),
            failed: Arc::clone(&staff.failed),
        };
        let control = governor
            .start(steward)
            .map_err(at("starting the control thread"))?;
        unused.keep();
        Ok(Engine {
            plan,
            rung,
            staff,
            control: Some(control),
            netlink,
            tables,
            undo,
        })
    }

    /// The plan that it runs by, with its warnings.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How frames are exchanged, and why not better.
    pub fn rung(&self) -> &Rung {
        &self.rung
    }

    /// Has a worker or the control thread ended by itself? The gateway should then be stopped.
    pub fn has_failed(&self) -> bool {
        self.staff.failed.load(Ordering::Acquire)
    }

    /// Stops: detaches the program, lets the workers finish, and leaves the interfaces as they were
    /// found. The tables stay in their file.
    pub fn stop(mut self) {
        // Detach, drain, close: in this order no frame is redirected to a socket that is gone.
        let steward = self.control.take().and_then(|(end, thread)| {
            let _ = end.send(());
            thread.join().ok()
        });
        if steward.is_none() {
            error!("the control thread panicked: `egret detach` takes its program away");
        }
        self.staff.dismiss();
        drop(steward);
        self.netlink.stop();
        lock(&self.undo).restore_offloads();
        drop(self.tables);
    }
}

/// Takes a tables' file that was made for a start away, if that start fails.
struct UnusedFile(Option<PathBuf>);

impl UnusedFile {
    fn of(tables: &MemFile, path: &Path) -> UnusedFile {
        UnusedFile((tables.found() == Found::Created).then(|| path.to_owned()))
    }

    fn keep(mut self) {
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

/// The view of routes and neighbours, empty yet.
fn forwarding(plan: &Plan) -> Arc<Forwarding> {
    let served = plan.interfaces.iter().map(|planned| ServedInterface {
        name: planned.facts.name.clone(),
        ifindex: planned.facts.ifindex,
    });
    let generation = unpredictable() as u32;
    Arc::new(Forwarding::new(served.collect(), HOPS_MAX, generation))
}

fn fragments(config: &Config) -> FragmentTable {
    let limits = FragmentLimits {
        timeout_ms: config.timers.fragment_timeout_ms,
        ..FragmentLimits::default()
    };
    FragmentTable::new(&limits, unpredictable())
}

fn unpredictable() -> u64 {
    conntrack::Random::next_u64(&mut WorkerRandom::from_system())
}

/// Takes away all that a dead engine left, or one whose start failed: program, pins, changes.
/// How many interfaces were freed.
///
/// # Errors
/// It runs, or the kernel's refusal.
pub fn put_back(instance: &str) -> Result<usize, StartError> {
    let count = steering::detach_all(instance).map_err(at("detaching the steering program"))?;
    undo::everything(instance).map_err(at("putting settings back"))?;
    Ok(count)
}

/// Names of the punt TAPs begin with this; instances of one namespace are told apart by a hash,
/// since a name has at most 15 characters.
fn punt_prefix(instance: &str) -> String {
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("egret{:04x}p", hash & 0xffff)
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, f, ..] =
        conntrack::Random::next_u64(&mut WorkerRandom::from_system()).to_ne_bytes();
    [a & 0xfc | 0x02, b, c, d, e, f]
}

/// Takes over the tables of an earlier engine if they fit, else makes new ones; and the ports that
/// the steering program still sends to a lost engine's sessions.
fn open_nat(
    tables: &MemFile,
    steering: &Steering,
    size: TableSize,
) -> Result<(Nat<'static>, LostPorts), StartError> {
    let identity = Identity {
        boot_id: facts::boot_id(),
    };
    if tables.found() == Found::Kept {
        match Nat::open(tables.words(), steering.owned(), size, identity) {
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
    let placed = steering
        .addresses()
        .map_err(at("reading the addresses of an earlier engine"))?;
    let lost = LostPorts::of(steering.owned(), &placed);
    let mut random = WorkerRandom::from_system();
    let nat = Nat::create(
        tables.words(),
        steering.owned(),
        size,
        identity,
        &mut random,
    )
    .map_err(at("making the tables"))?;
    Ok((nat, lost))
}

/// A hidden VLAN tag would make a tagged frame look untagged.
fn turn_vlan_offload_off(plan: &Plan, undo: &Mutex<Undo>) -> Result<(), StartError> {
    for planned in &plan.interfaces {
        let name = &planned.facts.name;
        lock(undo)
            .turn_off(name, Offload::RxVlan)
            .map_err(|error| {
                at("turning VLAN receive offload off")(format!(
                    "{name}: {error}; with it on, tagged frames would be taken for untagged ones; \
                 use an interface whose driver can turn it off (`ethtool -k {name}`)"
                ))
            })?;
    }
    Ok(())
}

/// In generic mode the program gets what the kernel has merged, and that fits no frame.
fn turn_merging_off(plan: &Plan, undo: &Mutex<Undo>) {
    for name in plan.interfaces.iter().map(|planned| &planned.facts.name) {
        for which in [Offload::Gro, Offload::Lro] {
            if let Err(error) = lock(undo).turn_off(name, which) {
                let offload = which.name();
                warn!(interface = %name, offload, %error, "merged packets will be lost");
            }
        }
    }
}

/// The list, whatever happened to a thread that held it.
fn lock(undo: &Mutex<Undo>) -> MutexGuard<'_, Undo> {
    undo.lock().unwrap_or_else(PoisonError::into_inner)
}

type Stats = Arc<crossbeam_utils::CachePadded<WorkerStats>>;

/// The worker threads, and what each of them gets. Dropping it ends them.
struct Staff {
    shared: Arc<Shared>,
    punt: Arc<Punt>,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    mode: PollMode,
    errors_per_second: u32,
    cpus: Vec<u16>,
    threads: Vec<JoinHandle<()>>,
    wakers: Vec<Waker>,
}

impl Staff {
    fn new(shared: &Arc<Shared>, punt: Punt, config: &Config, plan: &Plan) -> Staff {
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
            threads: Vec::new(),
            wakers: Vec::new(),
        }
    }

    /// Starts a thread for each device; returns what each counts.
    fn hire(&mut self, devices: Vec<XdpDevice>) -> io::Result<Vec<Stats>> {
        let mut all_stats = Vec::new();
        for (number, device) in devices.into_iter().enumerate() {
            let interfaces = self.shared.links.load().links.len();
            let stats = Arc::new(WorkerStats::new(interfaces));
            let (bed, waker) = Bed::new(&crate::device::Device::wait_fds(&device))?;
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
    fn dismiss(&mut self) {
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

    fn spawn(
        &self,
        number: usize,
        mut worker: Worker<XdpDevice, Kernel, WorkerRandom>,
        mut bed: Bed,
    ) -> io::Result<JoinHandle<()>> {
        let (mode, cpu) = (self.mode, self.cpus.get(number).copied());
        let (stop, failed) = (Arc::clone(&self.stop), Arc::clone(&self.failed));
        std::thread::Builder::new()
            .name(format!("egret-worker{number}"))
            .spawn(move || {
                if let Some(cpu) = cpu {
                    pin(cpu);
                }
                let guard = FailureGuard(&failed, &stop);
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
struct FailureGuard<'a>(&'a AtomicBool, &'a AtomicBool);

impl Drop for FailureGuard<'_> {
    fn drop(&mut self) {
        if !self.1.load(Ordering::Acquire) {
            self.0.store(true, Ordering::Release);
        }
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

/// The control thread: follows the host, answers the control socket, announces own addresses; at
/// its end it detaches the program.
struct Governor {
    shared: Arc<Shared>,
    stats: Vec<Stats>,
    rung: Rung,
    view: watch::Receiver<Arc<NetworkView>>,
    control_socket: PathBuf,
    undo: Arc<Mutex<Undo>>,
    failed: Arc<AtomicBool>,
}

impl Governor {
    fn start(self, steward: Steward) -> io::Result<(oneshot::Sender<()>, JoinHandle<Steward>)> {
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // The checks of the tables: one at a time, so that they take one core at most.
            .max_blocking_threads(1)
            .build()?;
        let (control, announcer) = {
            let _context = runtime.enter();
            (
                Control::listen(&self.control_socket)?,
                Announcer::open(self.undo.clone())?,
            )
        };
        let failed = Arc::clone(&self.failed);
        let thread = std::thread::Builder::new()
            .name("egret-control".into())
            .spawn(move || {
                let asked = AtomicBool::new(false);
                let guard = FailureGuard(&failed, &asked);
                let steward = RefCell::new(steward);
                runtime.block_on(self.govern(&steward, control, announcer, ended));
                // A check of the tables or a listing of rules under way is not waited for.
                runtime.shutdown_background();
                asked.store(true, Ordering::Release);
                drop(guard);
                steward.into_inner()
            })?;
        Ok((end, thread))
    }

    async fn govern(
        mut self,
        steward: &RefCell<Steward>,
        control: Control,
        mut announcer: Announcer,
        ended: oneshot::Receiver<()>,
    ) {
        let status = Status {
            rung: self.rung,
            shared: Arc::clone(&self.shared),
            stats: self.stats,
            started: Instant::now(),
            steward,
        };
        let view = self.view.clone();
        let follow = async {
            while self.view.changed().await.is_ok() {
                let view = self.view.borrow_and_update().clone();
                follow_view(steward, &view);
            }
            // The sender is gone with its thread, which lives as long as we do.
            error!("nobody follows the routes and addresses any more");
            self.failed.store(true, Ordering::Release);
            std::future::pending::<()>().await;
        };
        let watch_ports = async {
            let mut ports = HostPorts::default();
            let mut taken_up = HostPorts::default();
            for round in 0_u32.. {
                let before = ports.clone();
                let read = tokio::task::spawn_blocking(move || {
                    ports.read_sockets();
                    if round % RULES_EVERY == 0 {
                        ports.read_rules();
                    }
                    ports
                });
                ports = read.await.unwrap_or_else(|_| before.clone());
                // A socket that is gone at the next look is no daemon.
                let mut lasting = ports.clone();
                lasting
                    .listeners
                    .retain(|listener| before.listeners.contains(listener));
                if lasting != taken_up {
                    steward.borrow_mut().take_up_ports(&lasting);
                    taken_up = lasting;
                    let view = view.borrow().clone();
                    follow_view(steward, &view);
                }
                tokio::time::sleep(PORTS_INTERVAL).await;
            }
        };
        let announce = async {
            let mut tick = tokio::time::interval(own_address::ANNOUNCE_INTERVAL);
            loop {
                tick.tick().await;
                announcer.tick(&self.shared).await;
                let total = Snapshot::sum(status.stats.iter().map(|stats| stats.snapshot()));
                let wake_errors = total.sockets.iter().map(|counters| counters.wake_errors);
                steward.borrow_mut().look(wake_errors);
            }
        };
        tokio::select! {
            _ = ended => {}
            () = follow => {}
            () = watch_ports => {}
            () = announce => {}
            () = control.serve(&status) => {}
        }
        if let Err(error) = steward.borrow_mut().steering().detach() {
            error!(%error, "detaching the steering program");
        }
        announcer.stop().await;
    }
}

fn follow_view(steward: &RefCell<Steward>, view: &NetworkView) {
    if let Err(error) = steward.borrow_mut().follow(view) {
        error!(%error, "the steering program's settings are out of date");
    }
}
