//! The running gateway: what is started in which order, and how it all ends. Everything here happens
//! before the first frame or after the last one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conntrack::TableSize;
use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::clock;
use crate::config::{Config, DeviceMode, Problem};
use crate::confirmation::Confirmation;
use crate::control::Group;
use crate::control::flush::Flushes;
use crate::device::sys::ethtool::Offload;
use crate::device::sys::memfile::MemFile;
use crate::device::sys::tap::Tap;
use crate::device::tap::TapDevice;
use crate::facts;
use crate::fragment::{FragmentLimits, FragmentTable, Identifications};
use crate::gateway::Shared;
use crate::governor::Governor;
use crate::ladder::{self, Devices, Rung, Way};
use crate::netlink::{self, NetlinkHandle, NetworkView};
use crate::plan::{HostFacts, Plan};
use crate::punt::Punt;
use crate::random::WorkerRandom;
use crate::route::{Forwarding, ServedInterface};
use crate::routed::{self, RoutedPlan};
use crate::rulebook::{self, Rulebook};
use crate::staff::Staff;
use crate::steering::{self, InstanceLock, Steering, SteeringSize};
use crate::steward::{Steward, links_of};
use crate::tables::{UnusedFile, open_nat};
use crate::undo::{self, Change, Undo};

/// Next hops that a gateway knows at the same time.
const HOPS_MAX: u32 = 65_536;

/// Announcements of own addresses that wait for a worker.
const ANNOUNCEMENTS_MAX: usize = 512;

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
pub(crate) fn at<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: &'static str,
) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Step {
        step,
        source: source.into(),
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
    confirmation: Arc<Confirmation>,
    /// New tables of a start on trial, which go with it.
    unused: Option<UnusedFile>,
    instance: String,
    /// Of an instance that is not held by its steering program.
    lock: Option<InstanceLock>,
}

/// How frames come to the workers.
enum Entrance {
    /// The steering program gives them.
    Steered(Box<Steering>),
    /// The kernel routes them into a TAP, whose queues these are.
    Routed(Vec<Tap>),
}

impl Engine {
    /// Starts the gateway in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What speaks against it, or the step that failed; the host is then as it was found: also the
    /// program of a dead engine goes on dropping internal traffic.
    pub fn start(config: Config) -> Result<Engine, StartError> {
        Engine::begin(config, Confirmation::given())
    }

    /// As [`Engine::start`], on trial: whoever calls is to stop it when its [`Confirmation`], which
    /// may be given for so long from the end of the start, expires. Until it is given the program
    /// stays attached only as long as this process lives, and so does that of a dead engine, whose
    /// place it takes.
    ///
    /// # Errors
    /// As [`Engine::start`]; but after an error a dead engine's program is detached, too.
    pub fn start_on_trial(config: Config, limit: Duration) -> Result<Engine, StartError> {
        Engine::begin(config, Confirmation::awaited(limit))
    }

    fn begin(config: Config, confirmation: Confirmation) -> Result<Engine, StartError> {
        let host = facts::read(&config).map_err(at("reading the interfaces"))?;
        let plan = Plan::make(&config, &host).map_err(StartError::Plan)?;
        let confirmation = Arc::new(confirmation);
        match config.mode.value {
            DeviceMode::Routed => Engine::start_routed(&config, &plan, confirmation),
            _ => Engine::start_steered(config, host, plan, confirmation),
        }
    }

    /// With the steering program, which the instance's lock comes with.
    fn start_steered(
        config: Config,
        host: HostFacts,
        plan: Plan,
        confirmation: Arc<Confirmation>,
    ) -> Result<Engine, StartError> {
        let instance = config.instance.clone();
        let size = SteeringSize {
            addresses_max: plan.addresses_max,
            ..SteeringSize::default()
        };
        let mut steering = Steering::open(&instance, size, random_mac())
            .map_err(at("loading the steering program"))?;
        if confirmation.is_awaited() {
            steering.begin_trial();
        }
        let inherited = steering.is_inherited() && !confirmation.is_awaited();
        // With an error all that was made is dropped, the instance's lock, too.
        let entrance = Entrance::Steered(Box::new(steering));
        Engine::start_at(config, host, plan, entrance, confirmation).inspect_err(|_| {
            if inherited {
                warn!(
                    "the program of the dead engine before this one goes on dropping internal \
                     traffic; `egret detach --instance {instance}` ends that"
                );
            } else {
                put_back_or_tell(&instance);
            }
        })
    }

    /// With a TAP in the place of the interfaces.
    fn start_routed(
        config: &Config,
        outer: &Plan,
        confirmation: Arc<Confirmation>,
    ) -> Result<Engine, StartError> {
        let step = "setting up routed mode";
        let external = &outer.interfaces[usize::from(outer.external)].facts;
        let entrance = RoutedPlan {
            tap: tap_prefix(&config.instance, 'r'),
            instance: config.instance.clone(),
            mtu: outer.mtu_min(),
            queues: outer.workers,
            internal: config.internal.iter().map(|prefix| prefix.value).collect(),
            bypass: config.bypass.iter().map(|prefix| prefix.value).collect(),
            pool: config.pool.own().collect(),
            external: external.ifindex,
            external_name: external.name.clone(),
            one_arm: outer.interfaces.len() == 1,
        };
        let lock = InstanceLock::take(&config.instance).map_err(at(step))?;
        let inherited = routed::stands(&config.instance).map_err(at(step))?;
        let mut undo = Undo::open(&config.instance);
        let start = |undo: &mut Undo| {
            let proxy = |&addr| Change::Proxy(external.name.clone(), addr);
            let proxies: Vec<Change> = entrance.pool.iter().map(proxy).collect();
            undo.end_proxies(&proxies);
            for proxy in proxies {
                undo.add(proxy).map_err(at(step))?;
            }
            let taps = routed::open(&entrance).map_err(at(step))?;
            let config = config.through(&entrance.tap);
            let host = facts::read(&config).map_err(at("reading the interfaces"))?;
            let plan = Plan::make(&config, &host).map_err(StartError::Plan)?;
            let plan = Plan {
                workers: outer.workers,
                cpus: outer.cpus.clone(),
                problems: outer.problems.clone(),
                ..plan
            };
            Engine::start_at(config, host, plan, Entrance::Routed(taps), confirmation)
        };
        let instance = &config.instance;
        match start(&mut undo) {
            Ok(engine) => Ok(Engine {
                lock: Some(lock),
                ..engine
            }),
            Err(error) if inherited => {
                warn!(
                    "the rules of the dead engine before this one go on holding internal traffic \
                     back; `egret detach --instance {instance}` ends that"
                );
                Err(error)
            }
            Err(error) => {
                Undo::open(instance).end_proxies(&[]);
                if let Err(error) = routed::remove_all(instance) {
                    warn!(%error, "something is left behind: `egret detach --instance {instance}`");
                }
                // It says more than that the lock's file is left.
                let _ = lock.give_back();
                Err(error)
            }
        }
    }

    /// The rest of the start, when nobody else can start this instance.
    fn start_at(
        config: Config,
        host: HostFacts,
        mut plan: Plan,
        entrance: Entrance,
        confirmation: Arc<Confirmation>,
    ) -> Result<Engine, StartError> {
        let size = TableSize {
            sessions_max: plan.sessions_max,
            addresses_max: plan.addresses_max,
        };
        let control_group = Group::of(&config, &host);

        if let Some(directory) = config.tables.path.value.parent() {
            std::fs::create_dir_all(directory).map_err(at("making the tables' directory"))?;
        }
        let tables = MemFile::open(&config.tables.path.value, size.words())
            .map_err(at("opening the tables"))?;
        let unused = UnusedFile::of(&tables, &config.tables.path.value);
        let (owned, placed) = match &entrance {
            Entrance::Steered(steering) => (steering.owned(), steering.addresses()),
            // Nobody else reads it.
            Entrance::Routed(_) => (private_words(size.owned_words()), Ok(Vec::new())),
        };
        let placed = placed.map_err(at("reading the addresses of an earlier engine"))?;
        let (nat, lost) = open_nat(&tables, owned, &placed, size)?;
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

        let forwarding = forwarding(&plan, &entrance);
        let netlink =
            netlink::start(Arc::clone(&forwarding)).map_err(at("following the routes"))?;
        let view = netlink.view().borrow().clone();
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
            flushes: Flushes::default(),
            announcements: ArrayQueue::new(ANNOUNCEMENTS_MAX),
        });
        let undo = Arc::new(Mutex::new(Undo::open(&config.instance)));
        let Opened {
            steward,
            punt,
            devices,
            rung,
        } = match entrance {
            Entrance::Steered(steering) => {
                open_steered(&config, &plan, host, *steering, &shared, &view, &undo)
            }
            Entrance::Routed(taps) => open_routed(&config, &plan, host, taps, &shared, &view),
        }?;

        let mut staff = Staff::new(&shared, punt, &config, &plan);
        let stats = match devices {
            Devices::Xdp(devices) => staff.hire(devices),
            Devices::Tap(devices) => staff.hire(devices),
        };
        let stats = stats.map_err(at("starting the workers"))?;
        let governor = Governor {
            shared,
            stats,
            rung: rung.clone(),
            view: netlink.view(),
            control_socket: config.control_socket.clone(),
            control_group,
            undo: Arc::clone(&undo),
            failed: Arc::clone(&staff.failed),
            confirmation: Arc::clone(&confirmation),
        };
        let control = governor
            .start(steward)
            .map_err(at("starting the control thread"))?;
        let unused = match confirmation.is_given() {
            true => {
                unused.keep();
                None
            }
            false => Some(unused),
        };
        confirmation.begin(Instant::now());
        Ok(Engine {
            plan,
            rung,
            staff,
            control: Some(control),
            netlink,
            tables,
            undo,
            confirmation,
            unused,
            instance: config.instance,
            lock: None,
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

    /// Whether the start is for good.
    pub fn confirmation(&self) -> &Confirmation {
        &self.confirmation
    }

    /// Stops: detaches the program, lets the workers finish, and leaves the interfaces as they were
    /// found. The tables stay in their file, unless they are those of a trial that was not confirmed.
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
        let mut undo = lock(&self.undo);
        undo.restore_offloads();
        undo.end_proxies(&[]);
        drop(undo);
        if self.rung.way == Way::Routed
            && let Err(error) = routed::remove_all(&self.instance)
        {
            error!(%error, "rules or routes are left behind: `egret detach` takes them away");
        }
        if let Some(lock) = self.lock
            && let Err(error) = lock.give_back()
        {
            warn!(%error, "the instance's directory is left behind");
        }
        drop(self.tables);
        if let Some(unused) = self.unused.filter(|_| self.confirmation.is_given()) {
            unused.keep();
        }
    }
}

/// What the workers get, and who keeps it in step with the host.
struct Opened {
    steward: Steward,
    punt: Punt,
    devices: Devices,
    rung: Rung,
}

/// Brings the steering program to work, with the best way for frames that there is.
fn open_steered(
    config: &Config,
    plan: &Plan,
    host: HostFacts,
    mut steering: Steering,
    shared: &Arc<Shared>,
    view: &NetworkView,
    undo: &Mutex<Undo>,
) -> Result<Opened, StartError> {
    let instance = &config.instance;
    let names = plan.interfaces.iter();
    let names: Vec<&str> = names.map(|planned| planned.facts.name.as_str()).collect();
    let punt = Punt::open(&mut steering, &tap_prefix(instance, 'p'), &names)
        .map_err(at("making the punt devices"))?;
    let mut steward = Steward::new(
        config.clone(),
        plan.clone(),
        host,
        Some(steering),
        Arc::clone(shared),
    )
    .map_err(at("telling the steering program its settings"))?;
    steward
        .follow(view)
        .map_err(at("telling the steering program its settings"))?;
    if !config.mode.value.is_of_tun_driver() {
        turn_vlan_offload_off(plan, undo)?;
    }
    let taps = tap_prefix(instance, 't');
    let steering = steward.steering().expect("it was given one above");
    let (devices, rung) = ladder::descend(config, plan, steering, &taps, Some(&punt))
        .map_err(at("opening a way for frames and attaching the program"))?;
    // Of a dead engine in routed mode: the program guards the inside now.
    if let Err(error) = routed::remove_all(instance) {
        warn!(%error, "rules of an earlier engine may be left; they hold no translated packet back");
    }
    match rung.way {
        Way::Generic => turn_merging_off(plan, undo, &[Offload::Gro, Offload::Lro]),
        // What the NIC has merged itself cannot be cut again.
        Way::Tun => turn_merging_off(plan, undo, &[Offload::Lro]),
        Way::ZeroCopy | Way::Copy | Way::Routed => {}
    }
    Ok(Opened {
        steward,
        punt,
        devices,
        rung,
    })
}

/// Brings a TAP to work that the kernel routes into.
fn open_routed(
    config: &Config,
    plan: &Plan,
    host: HostFacts,
    taps: Vec<Tap>,
    shared: &Arc<Shared>,
    view: &NetworkView,
) -> Result<Opened, StartError> {
    let (config, plan) = (config.clone(), plan.clone());
    let mut steward = Steward::new(config, plan, host, None, Arc::clone(shared))
        .map_err(at("taking up the host's settings"))?;
    steward
        .follow(view)
        .map_err(at("taking up the host's settings"))?;
    let device = |(worker, tap)| TapDevice::new(vec![tap], worker == 0);
    Ok(Opened {
        steward,
        punt: Punt::none(),
        devices: Devices::Tap(taps.into_iter().enumerate().map(device).collect()),
        rung: Rung::routed(),
    })
}

/// Zeroed words that live as long as the process.
fn private_words(count: usize) -> &'static [AtomicU64] {
    Vec::leak((0..count).map(|_| AtomicU64::new(0)).collect())
}

/// The view of routes and neighbours, empty yet.
fn forwarding(plan: &Plan, entrance: &Entrance) -> Arc<Forwarding> {
    let served = plan.interfaces.iter().map(|planned| ServedInterface {
        name: planned.facts.name.clone(),
        ifindex: planned.facts.ifindex,
    });
    let generation = unpredictable() as u32;
    let forwarding = Forwarding::new(served.collect(), HOPS_MAX, generation);
    Arc::new(match entrance {
        Entrance::Steered(_) => forwarding,
        Entrance::Routed(_) => forwarding.by(routed::GATEWAY),
    })
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
    routed::remove_all(instance).map_err(at("removing rules and routes"))?;
    undo::everything(instance).map_err(at("putting settings back"))?;
    Ok(count)
}

/// After a start that failed.
fn put_back_or_tell(instance: &str) {
    if let Err(error) = put_back(instance) {
        let error: &dyn std::error::Error = &error;
        warn!(
            error,
            "something is left behind: `egret detach --instance {instance}`"
        );
    }
}

/// Names of TAPs of one kind begin with this; instances of one namespace are told apart by a hash,
/// since a name has at most 15 characters.
fn tap_prefix(instance: &str, kind: char) -> String {
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("egret{:04x}{kind}", hash & 0xffff)
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, f, ..] =
        conntrack::Random::next_u64(&mut WorkerRandom::from_system()).to_ne_bytes();
    [a & 0xfc | 0x02, b, c, d, e, f]
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
fn turn_merging_off(plan: &Plan, undo: &Mutex<Undo>, merging: &[Offload]) {
    for name in plan.interfaces.iter().map(|planned| &planned.facts.name) {
        for &which in merging {
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
