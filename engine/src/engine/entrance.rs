//! How frames come to the workers: by the steering program, or by the kernel's routes.

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use conntrack::TableSize;
use tracing::warn;

use super::{StartError, at, lock, offloads};
use crate::config::Config;
use crate::device::sys::tap::Tap;
use crate::device::tap::TapDevice;
use crate::gateway::Shared;
use crate::instance::Number;
use crate::ladder::{self, Devices, Reached};
use crate::netlink::NetworkView;
use crate::plan::{HostFacts, Plan};
use crate::punt::Punt;
use crate::routed::{self, Lead, RoutedPlan};
use crate::steering::Steering;
use crate::steward::Steward;
use crate::undo::Undo;

/// An ownership bitmap, and addresses with their places in it.
type Owned = (&'static [AtomicU64], Vec<(u16, Ipv4Addr)>);

/// How frames come to the workers.
pub(super) enum Entrance {
    /// The steering program gives them.
    Steered(Box<Steering>),
    /// The kernel routes them into a TAP, whose queues these are, by what was set up by this plan.
    Routed(Vec<Tap>, RoutedPlan),
}

impl Entrance {
    /// The ownership bitmap, and the addresses that it was left with by an earlier engine, each with
    /// its place.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn owned(&self, size: &TableSize) -> Result<Owned, StartError> {
        match self {
            Entrance::Steered(steering) => {
                let placed = steering.addresses();
                let placed = placed.map_err(at("reading the addresses of an earlier engine"))?;
                Ok((steering.owned(), placed))
            }
            // Nobody else reads it.
            Entrance::Routed(..) => Ok((private_words(size.owned_words()), Vec::new())),
        }
    }

    /// Brings it to work.
    ///
    /// # Errors
    /// The step that failed.
    pub fn open(
        self,
        config: &Config,
        plan: &Plan,
        host: HostFacts,
        shared: &Arc<Shared>,
        view: &NetworkView,
        undo: &Arc<Mutex<Undo>>,
    ) -> Result<Opened, StartError> {
        match self {
            Entrance::Steered(steering) => {
                open_steered(config, plan, host, *steering, shared, view, undo)
            }
            Entrance::Routed(taps, way) => {
                let lead = Lead::new(way, Arc::clone(undo));
                open_routed(config, plan, host, (taps, lead), shared, view)
            }
        }
    }
}

/// What the workers get, and who keeps it in step with the host.
pub(super) struct Opened {
    pub steward: Steward,
    pub punt: Punt,
    pub devices: Devices,
    pub reached: Reached,
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
    let names = plan.interfaces.iter();
    let names: Vec<&str> = names.map(|planned| planned.facts.name.as_str()).collect();
    let number = Number::take(&config.instance).map_err(at("numbering the instance"))?;
    let punt = Punt::open(&mut steering, &number.taps('p'), &names)
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
    offloads::show_tags(plan, undo)?;
    let taps = number.taps('t');
    let steering = steward.steering().expect("it was given one above");
    let (devices, reached) = ladder::descend(config, plan, steering, &taps, Some(&punt))
        .map_err(at("opening a way for frames and attaching the program"))?;
    // Of a dead engine in routed mode: the program guards the inside now.
    if let Err(error) = routed::remove_all(number) {
        warn!(%error, "rules of an earlier engine may be left; they hold no translated packet back");
    }
    lock(undo).end_proxies(&[]);
    offloads::settle(&reached, undo);
    Ok(Opened {
        steward,
        punt,
        devices,
        reached,
    })
}

/// Brings a TAP to work that the kernel routes into.
fn open_routed(
    config: &Config,
    plan: &Plan,
    host: HostFacts,
    (taps, lead): (Vec<Tap>, Lead),
    shared: &Arc<Shared>,
    view: &NetworkView,
) -> Result<Opened, StartError> {
    let interface = config.external_interface().name.value.clone();
    let (config, plan) = (config.clone(), plan.clone());
    let mut steward = Steward::new(config, plan, host, None, Arc::clone(shared))
        .map_err(at("taking up the host's settings"))?
        .leading(lead);
    steward
        .follow(view)
        .map_err(at("taking up the host's settings"))?;
    let device = |(worker, tap)| TapDevice::new(vec![tap], worker == 0);
    Ok(Opened {
        steward,
        punt: Punt::none(),
        devices: Devices::Tap(taps.into_iter().enumerate().map(device).collect()),
        reached: Reached::routed(&interface),
    })
}

/// Zeroed words that live as long as the process.
fn private_words(count: usize) -> &'static [AtomicU64] {
    Vec::leak((0..count).map(|_| AtomicU64::new(0)).collect())
}
