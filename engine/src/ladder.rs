//! How frames are exchanged with the drivers: the best way that works, rung by rung, each with its
//! result and reason. Zero-copy, copy in the driver, generic.

use std::fmt;

use tracing::{info, warn};

use crate::config::{Config, DeviceMode};
use crate::device::sys::link::XdpMode;
use crate::device::sys::socket::CopyMode;
use crate::device::xdp::{XdpConfig, XdpDevice, XdpError, XdpInterface};
use crate::plan::Plan;
use crate::steering::{Steering, SteeringError};

/// Frame slots of one worker at most: 256 MiB.
const SLOTS_MAX: u32 = 65_536;

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
        match try_way(way, plan, steering) {
            Ok(devices) => {
                info!(mode = %way, "frames are exchanged");
                return Ok((devices, Rung { way, refused }));
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

fn try_way(way: Way, plan: &Plan, steering: &mut Steering) -> Result<Vec<XdpDevice>, LadderError> {
    let interfaces = plan.interfaces.iter().map(|planned| XdpInterface {
        name: planned.facts.name.clone(),
        ifindex: planned.facts.ifindex,
        queues: u32::from(planned.facts.rx_queues.max(1)),
    });
    let interfaces: Vec<XdpInterface> = interfaces.collect();
    let mut devices = Vec::new();
    for worker in 0..plan.workers {
        devices.push(XdpDevice::open(&XdpConfig {
            interfaces: interfaces.clone(),
            worker,
            workers: plan.workers,
            mode: way.copy,
            slots_max: SLOTS_MAX,
        })?);
    }
    for (interface, queue, socket) in devices.iter().flat_map(XdpDevice::sockets) {
        steering.set_socket(interface, queue, socket)?;
    }
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
    Ok(devices)
}
