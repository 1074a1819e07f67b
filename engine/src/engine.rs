//! The running gateway: what is started in which order, and how it all ends. Everything here happens before the first frame or after the last one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conntrack::TableSize;
use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::clock;
use crate::config::{Config, Problem};
use crate::confirmation::Confirmation;
use crate::device::sys::ethtool::Offload;
use crate::device::sys::memfile::MemFile;
use crate::facts;
use crate::fragment::{FragmentLimits, FragmentTable, Identifications};
use crate::gateway::Shared;
use crate::governor::Governor;
use crate::ladder::{self, Rung};
use crate::netlink::{self, NetlinkHandle};
use crate::plan::{HostFacts, Plan};
use crate::punt::Punt;
use crate::random::WorkerRandom;
use crate::route::{Forwarding, ServedInterface};
use crate::rulebook::{self, Rulebook};
use crate::staff::Staff;
use crate::steering::{self, Steering, SteeringSize};
use crate::steward::{Steward, links_of};
use crate::tables::{UnusedFile, open_nat};
use crate::undo::{self, Undo};

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
        let confirmation = Arc::new(confirmation);
        Engine::start_steered(config, host, plan, steering, confirmation).inspect_err(|_| {
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
        confirmation: Arc<Confirmation>,
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
        lock(&self.undo).restore_offloads();
        drop(self.tables);
        if let Some(unused) = self.unused.filter(|_| self.confirmation.is_given()) {
            unused.keep();
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
