//! How frames are exchanged with the drivers: the best way that works, rung by rung, each with its
//! result and reason. Zero-copy, copy in the driver, generic.

use std::fmt;

use tracing::{info, warn};

use crate::config::{Config, DeviceMode};
use crate::device::queues;
use crate::device::sys::ethtool::{self, Feature};
use crate::device::sys::link::{self, XdpMode};
use crate::device::sys::socket::CopyMode;
use crate::device::xdp::{XdpConfig, XdpDevice, XdpError, XdpInterface};
use crate::plan::{NicFacts, Plan, PlannedInterface};
use crate::self_test::{self, Outcome};
use crate::steering::{Steering, SteeringError};

/// Frame slots of one worker at most: 256 MiB.
const SLOTS_MAX: u32 = 65_536;

/// Features by which a card merges segments that it receives.
const MERGING: [&str; 2] = ["rx-gro-hw", "rx-lro"];

/// One way to exchange frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    xdp: XdpMode,
    copy: CopyMode,
}

impl Way {
    /// Does the program run behind the driver, on what the kernel may have merged already?
    pub fn is_generic(self) -> bool {
        self.xdp == XdpMode::Generic
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.xdp, self.copy) {
            (XdpMode::Generic, _) => "generic",
            (XdpMode::Native, CopyMode::ZeroCopy) => "zero-copy",
            (XdpMode::Native, _) => "copy",
        })
    }
}

/// The rung that was reached, and the ones above that were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// The way in use.
    pub way: Way,
    /// The ways that did not work, each with the reason.
    pub refused: Vec<(Way, String)>,
    /// Why no test frame proved that frames reach the sockets of every interface; `None`: proven.
    pub untested: Option<String>,
}

/// Why a way does not work here.
#[derive(Debug, thiserror::Error)]
pub enum LadderError {
    /// A socket could not be bound.
    #[error(transparent)]
    Device(#[from] XdpError),
    /// The program could not be attached.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// The card hands over merged segments, which fit no frame, and cannot be told not to.
    #[error(
        "{interface} receives segments merged (`ethtool -k {interface}`: {feature} is on and fixed), \
         which are lost here: turn that off where the card is made (QEMU: `guest_tso4=off,\
         guest_tso6=off`), or name `mode = \"generic\"` to lose them"
    )]
    Merging {
        /// Name of the interface.
        interface: String,
        /// The feature, as ethtool names it.
        feature: &'static str,
    },
    /// A frame for the engine does not reach it.
    #[error("a test frame for {interface} did not reach its socket: {why}")]
    SelfTest {
        /// Name of the interface.
        interface: String,
        /// What is known about the cause.
        why: String,
    },
    /// No way worked.
    #[error("no way to exchange frames works: {}", .0.join("; "))]
    Bottom(Vec<String>),
}

fn ways(mode: DeviceMode) -> &'static [Way] {
    const ZERO_COPY: Way = Way {
        xdp: XdpMode::Native,
        copy: CopyMode::ZeroCopy,
    };
    const COPY: Way = Way {
        xdp: XdpMode::Native,
        copy: CopyMode::Copy,
    };
    const GENERIC: Way = Way {
        xdp: XdpMode::Generic,
        copy: CopyMode::Copy,
    };
    match mode {
        DeviceMode::Auto => &[ZERO_COPY, COPY, GENERIC],
        DeviceMode::ZeroCopy => &[ZERO_COPY],
        DeviceMode::Copy => &[COPY],
        DeviceMode::Generic => &[GENERIC],
    }
}

/// Opens every worker's device and attaches the program, by the best way that works.
pub fn descend(
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
) -> Result<(Vec<XdpDevice>, Rung), LadderError> {
    for planned in &plan.interfaces {
        // Another's program on the interface stands in every way.
        steering.may_attach(&planned.facts.name)?;
    }
    let mut refused = Vec::new();
    for &way in ways(config.mode.value) {
        match try_way(way, config, plan, steering) {
            Ok((devices, untested)) => {
                match &untested {
                    None => info!(mode = %way, "frames are exchanged; test frames arrived"),
                    Some(why) => {
                        info!(mode = %way, why, "frames are exchanged; no test was possible");
                    }
                }
                let rung = Rung {
                    way,
                    refused,
                    untested,
                };
                return Ok((devices, rung));
            }
            Err(error @ LadderError::Steering(SteeringError::Occupied { .. })) => {
                return Err(error);
            }
            Err(error) => {
                warn!(mode = %way, %error, "does not work here");
                refused.push((way, error.to_string()));
            }
        }
    }
    let told = refused
        .iter()
        .map(|(way, reason)| format!("{way}: {reason}"));
    Err(LadderError::Bottom(told.collect()))
}

/// Goes one way: the devices, and why they could not be tested, if so.
fn try_way(
    way: Way,
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
) -> Result<(Vec<XdpDevice>, Option<String>), LadderError> {
    if way.is_generic() {
        look_for_merging(config, plan)?;
    }
    let found = interfaces(plan);
    let mut devices = open(way, plan, &found, steering)?;
    let untested = test(way, config, plan, steering, &mut devices)?;
    attach(way, plan, steering)?;
    // The driver may have more queues now.
    let now = interfaces(plan);
    if now != found {
        for (before, now) in found.iter().zip(&now) {
            let (interface, before, now) = (&now.name, before.queues, now.queues);
            info!(
                interface,
                before, now, "receive queues, now that the program is attached"
            );
        }
        drop(devices);
        devices = open(way, plan, &now, steering)?;
    }
    Ok((devices, untested))
}

/// In generic mode the program gets what the card has merged. The kernel turns that off for the
/// program, if it can: with a mode of the operator's choice a card that cannot is their will.
fn look_for_merging(config: &Config, plan: &Plan) -> Result<(), LadderError> {
    for planned in &plan.interfaces {
        let features = ethtool::features(&planned.facts.name).unwrap_or_default();
        let stays = |name| {
            let fixed = |one: &Feature| one.name == name && one.on && !one.changeable;
            features.iter().any(fixed)
        };
        let Some(feature) = MERGING.into_iter().find(|name| stays(*name)) else {
            continue;
        };
        let interface = planned.facts.name.clone();
        if config.mode.value == DeviceMode::Auto {
            return Err(LadderError::Merging { interface, feature });
        }
        warn!(
            interface,
            feature, "merged packets will be lost: it cannot be turned off"
        );
    }
    Ok(())
}

/// The interfaces with the queues that they have at the moment.
fn interfaces(plan: &Plan) -> Vec<XdpInterface> {
    let interface = |planned: &PlannedInterface| {
        let NicFacts { name, ifindex, .. } = &planned.facts;
        let told = u32::from(planned.facts.rx_queues.max(1));
        XdpInterface {
            name: name.clone(),
            ifindex: *ifindex,
            queues: queues::count(name, *ifindex, told),
        }
    };
    plan.interfaces.iter().map(interface).collect()
}

/// Every worker's device, its sockets known to the program.
fn open(
    way: Way,
    plan: &Plan,
    interfaces: &[XdpInterface],
    steering: &mut Steering,
) -> Result<Vec<XdpDevice>, LadderError> {
    let device = |worker| {
        XdpDevice::open(&XdpConfig {
            interfaces: interfaces.to_vec(),
            worker,
            workers: plan.workers,
            mode: way.copy,
            slots_max: SLOTS_MAX,
        })
    };
    let devices: Result<Vec<XdpDevice>, XdpError> = (0..plan.workers).map(device).collect();
    let devices = devices?;
    for (interface, queue, socket) in devices.iter().flat_map(XdpDevice::sockets) {
        steering.set_socket(interface, queue, socket)?;
    }
    Ok(devices)
}

/// Sends a test frame to every interface: why it could not be done, if so. Before the program is
/// attached, since a driver at work would be in its way ([`self_test`]).
fn test(
    way: Way,
    config: &Config,
    plan: &Plan,
    steering: &Steering,
    devices: &mut [XdpDevice],
) -> Result<Option<String>, LadderError> {
    if way.copy == CopyMode::ZeroCopy {
        let why = "a zero-copy driver would be at work on the same rings";
        return Ok(Some(why.to_owned()));
    }
    for planned in &plan.interfaces {
        let NicFacts { name, ifindex, .. } = &planned.facts;
        if !matches!(link::attached_xdp(*ifindex), Ok(None)) {
            let why = format!("the program of the engine before this one is at work on {name}");
            return Ok(Some(why));
        }
    }
    // Worker 0 serves queue 0.
    let Some(device) = devices.first_mut() else {
        return Ok(None);
    };
    let mut untested = None;
    for planned in &plan.interfaces {
        let interface = planned.facts.name.clone();
        match self_test::run(config, &plan.policy, planned, steering, device) {
            Outcome::Passed => {}
            Outcome::Impossible(why) => untested = Some(format!("{interface}: {why}")),
            Outcome::Failed(why) => return Err(LadderError::SelfTest { interface, why }),
        }
    }
    Ok(untested)
}

/// Attaches the program to all interfaces, or to none.
fn attach(way: Way, plan: &Plan, steering: &mut Steering) -> Result<(), LadderError> {
    for planned in &plan.interfaces {
        if let Err(error) = steering.attach(&planned.facts.name, way.xdp) {
            for planned in &plan.interfaces {
                // That the first attempt failed is what matters to the reader.
                if let Err(error) = steering.detach_interface(planned.facts.ifindex) {
                    warn!(interface = planned.facts.name, %error, "detaching the program again");
                }
            }
            return Err(error.into());
        }
    }
    Ok(())
}
