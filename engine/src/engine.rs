//! The running gateway: what is started in which order, and how it all ends. Everything here happens
//! before the first frame or after the last one.

mod entrance;
mod offloads;
mod routing;
mod shared;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conntrack::TableSize;
use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::config::{Config, DeviceMode, Problem};
use crate::confirmation::Confirmation;
use crate::control::Group;
use crate::device::sys::memfile::MemFile;
use crate::facts;
use crate::governor::Governor;
use crate::instance::Number;
use crate::ladder::{Devices, Reached, Way};
use crate::netlink::{self, NetlinkHandle};
use crate::plan::{HostFacts, Plan};
use crate::random::WorkerRandom;
use crate::routed;
use crate::staff::Staff;
use crate::steering::{InstanceLock, Remains, Steering, SteeringSize};
use crate::steward::Steward;
use crate::tables::{Tables, UnusedFile};
use crate::undo::{self, Undo};
use entrance::Entrance;

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
    reached: Reached,
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
        let owned = entrance.owned(&size)?;
        let tables = Tables::take(&config, &host, &mut plan, size, owned)?;
        let Tables { file, unused, nat } = tables;
        let forwarding = shared::forwarding(&plan, &entrance);
        let netlink =
            netlink::start(Arc::clone(&forwarding)).map_err(at("following the routes"))?;
        let view = netlink.view().borrow().clone();
        let shared = shared::shared(&config, &plan, (nat, size), forwarding, &view);
        let control_group = Group::of(&config, &host);
        let undo = Arc::new(Mutex::new(Undo::open(&config.instance)));
        let opened = entrance.open(&config, &plan, host, &shared, &view, &undo)?;

        let mut staff = Staff::new(&shared, opened.punt, &config, &plan);
        let stats = match opened.devices {
            Devices::Xdp(devices) => staff.hire(devices),
            Devices::Tap(devices) => staff.hire(devices),
            Devices::Mixed(devices) => staff.hire(devices),
        };
        let governor = Governor {
            shared,
            stats: stats.map_err(at("starting the workers"))?,
            reached: opened.reached.clone(),
            view: netlink.view(),
            control_socket: config.control_socket.clone(),
            control_group,
            undo: Arc::clone(&undo),
            failed: Arc::clone(&staff.failed),
            confirmation: Arc::clone(&confirmation),
        };
        let control = governor.start(opened.steward);
        let control = control.map_err(at("starting the control thread"))?;
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
            reached: opened.reached,
            staff,
            control: Some(control),
            netlink,
            tables: file,
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
    pub fn reached(&self) -> &Reached {
        &self.reached
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
        undo.restore_offloads(&[]);
        undo.end_proxies(&[]);
        drop(undo);
        if self.reached.way() == Some(Way::Routed)
            && let Some(number) = Number::of_remains(&self.instance)
            && let Err(error) = routed::remove_all(number)
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

/// Takes away all that a dead engine left, or one whose start failed: program, pins, changes.
/// How many interfaces were freed.
///
/// # Errors
/// It runs, or the kernel's refusal.
pub fn put_back(instance: &str) -> Result<usize, StartError> {
    // Locked to the end: whoever starts it meanwhile would have its changes put back.
    let remains = Remains::find(instance).map_err(at("looking for what is left"))?;
    let detached = remains.as_ref().map_or(Ok(0), Remains::detach);
    let count = detached.map_err(at("detaching the steering program"))?;
    if let Some(number) = Number::of_remains(instance) {
        routed::remove_all(number).map_err(at("removing rules and routes"))?;
    }
    undo::everything(instance).map_err(at("putting settings back"))?;
    let removed = remains.map_or(Ok(()), Remains::remove);
    removed.map_err(at("removing the instance's directory"))?;
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

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, f, ..] =
        conntrack::Random::next_u64(&mut WorkerRandom::from_system()).to_ne_bytes();
    [a & 0xfc | 0x02, b, c, d, e, f]
}

/// The list, whatever happened to a thread that held it.
fn lock(undo: &Mutex<Undo>) -> MutexGuard<'_, Undo> {
    undo.lock().unwrap_or_else(PoisonError::into_inner)
}
