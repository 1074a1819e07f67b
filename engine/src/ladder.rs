//! How frames are exchanged with the drivers: for each interface the best way that works, rung by
//! rung, each with its result and reason: zero-copy AF_XDP, AF_XDP with a copy in the driver,
//! generic, the tun driver.

mod attempt;
mod device;
mod error;
mod rung;
mod sockets;
mod taps;
mod way;

use tracing::{info, warn};

use crate::config::{Config, DeviceMode};
use crate::plan::Plan;
use crate::punt::Punt;
use crate::steering::{Steering, SteeringError};
use attempt::{Fault, Site};

pub use device::Devices;
pub use error::LadderError;
pub use rung::{Reached, Rung};
pub use way::Way;

/// Where an interface is on its way down.
struct Climber {
    interface: String,
    /// The ways that it may go, the best first.
    ways: &'static [Way],
    /// Place in them of the one that is tried.
    at: usize,
    refused: Vec<(Way, String)>,
}

impl Climber {
    fn way(&self) -> Way {
        self.ways[self.at]
    }

    /// Leaves a way that does not work; no way left is an error.
    fn step_down(&mut self, error: &LadderError) -> Result<(), LadderError> {
        let (way, reason) = (self.way(), error.to_string());
        warn!(mode = %way, interface = self.interface, %error, "does not work here");
        self.refused.push((way, reason));
        self.at += 1;
        if self.at < self.ways.len() {
            return Ok(());
        }
        let told = self.refused.iter();
        let told = told.map(|(way, reason)| format!("{way}: {reason}"));
        Err(LadderError::Bottom {
            interface: self.interface.clone(),
            reasons: told.collect(),
        })
    }
}

/// Opens every worker's device and attaches the program, with each interface by the best way that
/// works. `taps` begins the names of TAPs; test frames for them go by the punt devices.
///
/// An error at one interface leads that one down, and an error at none all that went the way. It ends,
/// as every attempt that fails leads at least one interface down.
///
/// # Errors
/// An interface is left without a way, or has another's program. The program is attached to no
/// interface then, unless it is that of a dead engine, which goes on guarding the inside.
pub fn descend(
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
    taps: &str,
    punt: Option<&Punt>,
) -> Result<(Devices, Reached), LadderError> {
    look_for_others(plan, steering)?;
    let tun_first = way::tun_first(plan);
    if let Some(why) = &tun_first {
        info!(why, "the tun driver is tried first");
    }
    let site = Site {
        config,
        plan,
        taps,
        punt,
    };
    let climber = |planned: &crate::plan::PlannedInterface| Climber {
        interface: planned.facts.name.clone(),
        ways: way::ways(planned.mode, tun_first.is_some()),
        at: 0,
        refused: Vec::new(),
    };
    let mut climbers: Vec<Climber> = plan.interfaces.iter().map(climber).collect();
    loop {
        let ways: Vec<Way> = climbers.iter().map(Climber::way).collect();
        match attempt::make(&site, &ways, steering) {
            Ok((devices, untested)) => {
                let reached = reached(climbers, untested, tun_first);
                reached.tell();
                return Ok((devices, reached));
            }
            Err(fault) => {
                attempt::withdraw(plan, steering);
                if fault.is_final() {
                    return Err(fault.error);
                }
                for number in falling(&fault, &ways, tun_first.is_some()) {
                    climbers[number].step_down(&fault.error)?;
                }
            }
        }
    }
}

/// Another's program on an interface stands in every way; in tc only another engine's.
fn look_for_others(plan: &Plan, steering: &Steering) -> Result<(), SteeringError> {
    for planned in &plan.interfaces {
        let name = &planned.facts.name;
        steering.may_attach_tc(name)?;
        if planned.mode != DeviceMode::Tun {
            steering.may_attach(name)?;
        }
    }
    Ok(())
}

/// The interfaces that step down after a fault. Where the tun driver came first, it did for the sake
/// of big packets, which stay whole only if all interfaces go that way.
fn falling(fault: &Fault, ways: &[Way], tun_first: bool) -> Vec<usize> {
    let tun = |&number: &usize| ways[number] == Way::Tun;
    if tun_first && fault.at.iter().any(tun) {
        return (0..ways.len()).filter(tun).collect();
    }
    fault.at.clone()
}

fn reached(
    climbers: Vec<Climber>,
    untested: Vec<Option<String>>,
    tun_first: Option<String>,
) -> Reached {
    let rung = |(climber, untested): (Climber, Option<String>)| Rung {
        way: climber.way(),
        interface: climber.interface,
        refused: climber.refused,
        untested,
    };
    let rungs = climbers.into_iter().zip(untested).map(rung);
    Reached {
        rungs: rungs.collect(),
        tun_first,
    }
}
