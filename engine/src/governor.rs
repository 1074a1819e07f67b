//! The control thread: follows the host, answers the control socket, announces own addresses.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::error;

use crate::confirmation::Confirmation;
use crate::control::{Control, Group};
use crate::gateway::Shared;
use crate::host::HostPorts;
use crate::ladder::Reached;
use crate::netlink::NetworkView;
use crate::own_address::{self, Announcer};
use crate::staff::{FailureGuard, Stats};
use crate::stats::Snapshot;
use crate::status::Status;
use crate::steward::Steward;
use crate::undo::Undo;

/// How often the host's sockets are looked at: a daemon that listens on a shared address from now
/// on gets its port left out of the pool.
const PORTS_INTERVAL: Duration = Duration::from_secs(5);

/// Every so manieth time its rules are listed, too, which takes programs.
const RULES_EVERY: u32 = 12;

/// The control thread. At its end it detaches the program.
pub(crate) struct Governor {
    pub shared: Arc<Shared>,
    pub stats: Vec<Stats>,
    pub reached: Reached,
    pub view: watch::Receiver<Arc<NetworkView>>,
    pub control_socket: PathBuf,
    /// Whose members may do what root may.
    pub control_group: Option<Group>,
    pub undo: Arc<Mutex<Undo>>,
    pub failed: Arc<AtomicBool>,
    pub confirmation: Arc<Confirmation>,
}

impl Governor {
    pub fn start(self, steward: Steward) -> io::Result<(oneshot::Sender<()>, JoinHandle<Steward>)> {
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Checks and listings of the tables: one at a time, so that they take one core at most.
            .max_blocking_threads(1)
            .build()?;
        let (control, announcer) = {
            let _context = runtime.enter();
            (
                Control::listen(&self.control_socket, self.control_group.clone())?,
                steward
                    .steering_ref()
                    .map(|_| Announcer::open(self.undo.clone()))
                    .transpose()?,
            )
        };
        let failed = Arc::clone(&self.failed);
        let thread = std::thread::Builder::new()
            .name("egret-control".into())
            .spawn(move || {
                let asked = AtomicBool::new(false);
                let guard = FailureGuard {
                    failed: &failed,
                    asked: &asked,
                };
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
        mut announcer: Option<Announcer>,
        ended: oneshot::Receiver<()>,
    ) {
        let status = Status {
            reached: self.reached,
            shared: Arc::clone(&self.shared),
            stats: self.stats,
            started: Instant::now(),
            steward,
            confirmation: Arc::clone(&self.confirmation),
            failed: Arc::clone(&self.failed),
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
                if let Some(announcer) = &mut announcer {
                    announcer.tick(&self.shared).await;
                }
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
            () = status.confirm_when_asked() => {}
            () = control.serve(&status) => {}
        }
        if let Some(steering) = steward.borrow_mut().steering()
            && let Err(error) = steering.detach()
        {
            error!(%error, "detaching the steering program");
        }
        if let Some(announcer) = &mut announcer {
            announcer.stop().await;
        }
    }
}

fn follow_view(steward: &RefCell<Steward>, view: &NetworkView) {
    if let Err(error) = steward.borrow_mut().follow(view) {
        error!(%error, "the steering program's settings are out of date");
    }
}
