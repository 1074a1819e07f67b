//! One attempt: every interface by the way that it has come to, all together or not at all.

use tracing::warn;

use super::device::Devices;
use super::sockets::{self, Sockets};
use super::taps::Taps;
use super::{LadderError, Way};
use crate::config::Config;
use crate::device::sys::socket::CopyMode;
use crate::plan::{Plan, PlannedInterface};
use crate::punt::Punt;
use crate::steering::Steering;

/// What does not change between attempts.
pub(super) struct Site<'a> {
    pub config: &'a Config,
    pub plan: &'a Plan,
    /// Begins the names of TAPs.
    pub taps: &'a str,
    /// What test frames for TAPs go by.
    pub punt: Option<&'a Punt>,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) struct Fault {
    pub error: LadderError,
    /// Numbers of the interfaces that another way may be better for.
    pub at: Vec<usize>,
}

impl Fault {
    /// Of what concerns these interfaces: the error's own one, or else all of them.
    pub fn among<E: Into<LadderError>>(members: &[&PlannedInterface]) -> impl FnOnce(E) -> Fault {
        |error| {
            let error = error.into();
            let named = |planned: &&&PlannedInterface| {
                error.interface() == Some(planned.facts.name.as_str())
            };
            let numbers = |members: &mut dyn Iterator<Item = &&PlannedInterface>| {
                members.map(|planned| planned.number.into()).collect()
            };
            let one: Vec<usize> = numbers(&mut members.iter().filter(named));
            let at = match one.is_empty() {
                true => numbers(&mut members.iter()),
                false => one,
            };
            Fault { error, at }
        }
    }

    /// Does no other way help?
    pub fn is_final(&self) -> bool {
        self.at.is_empty() || self.error.is_final()
    }
}

/// Goes these ways, one an interface: the devices, and why an interface could not be tested, if so.
/// After an error programs may be attached: [`withdraw`].
pub(super) fn make(
    site: &Site<'_>,
    ways: &[Way],
    steering: &mut Steering,
) -> Result<(Devices, Vec<Option<String>>), Fault> {
    let all = || site.plan.interfaces.iter().zip(ways.iter().copied());
    for (planned, way) in all().filter(|(_, way)| way.is_xdp()) {
        sockets::fits(planned, way).map_err(Fault::among(&[planned]))?;
    }
    let of = |copy: Option<CopyMode>| -> Vec<&PlannedInterface> {
        let of = all().filter(|(_, way)| way.copy() == copy);
        of.map(|(planned, _)| planned).collect()
    };
    let mut untested = vec![None; ways.len()];
    let [mut zero_copy, mut copy] = {
        let mut open = |copy| Sockets::open(copy, of(Some(copy)), site, steering);
        [open(CopyMode::ZeroCopy)?, open(CopyMode::Copy)?]
    };
    zero_copy.test(site, steering, &mut untested)?;
    copy.test(site, steering, &mut untested)?;
    let mut taps = Taps::open(of(None), site, steering)?;
    for (planned, way) in all() {
        attach(planned, way, steering).map_err(Fault::among(&[planned]))?;
    }
    // Only now: until all guard the inside, no program of an engine before this one goes.
    for (planned, way) in all() {
        replace(planned, way, steering).map_err(Fault::among(&[planned]))?;
    }
    taps.test(site, steering, &mut untested)?;
    zero_copy.recount(site, steering)?;
    copy.recount(site, steering)?;
    let (zero_copy, copy) = (zero_copy.into_part(), copy.into_part());
    Ok((Devices::join(zero_copy, copy, taps.into_part()), untested))
}

fn attach(
    planned: &PlannedInterface,
    way: Way,
    steering: &mut Steering,
) -> Result<(), LadderError> {
    let name = &planned.facts.name;
    match way.program() {
        Some(mode) => steering.attach(name, mode)?,
        None => steering.attach_tc(name, true)?,
    }
    Ok(())
}

/// Detaches the program that an engine before this one attached the other way: in front of this
/// program, or behind it.
fn replace(
    planned: &PlannedInterface,
    way: Way,
    steering: &mut Steering,
) -> Result<(), LadderError> {
    let ifindex = planned.facts.ifindex;
    match way.is_xdp() {
        true => steering.detach_tc(ifindex)?,
        false => steering.detach_interface(ifindex)?,
    }
    Ok(())
}

/// After an attempt that failed. What a dead engine left attached, or this one in its place, goes on
/// guarding the inside: what reaches no socket and no TAP is dropped.
pub(super) fn withdraw(plan: &Plan, steering: &mut Steering) {
    if steering.is_inherited() {
        return;
    }
    for planned in &plan.interfaces {
        let (interface, ifindex) = (&planned.facts.name, planned.facts.ifindex);
        let detached = [
            steering.detach_interface(ifindex),
            steering.detach_tc(ifindex),
        ];
        for error in detached.into_iter().filter_map(Result::err) {
            // That the attempt failed is what matters to the reader.
            warn!(interface, %error, "detaching the program again");
        }
    }
}
