//! The TAPs that stand for the interfaces in tun mode: a door in and out for each.
//!
//! What the steering program in tc finds to be ours is redirected into the interface's TAP, and what a
//! worker writes into the TAP leaves by the interface. Each worker has a queue of every TAP.

use crate::device::sys::link;
use crate::device::sys::tap::{Packets, Tap, TapError};
use crate::device::tap::TapDevice;
use crate::plan::PlannedInterface;
use crate::punt::silence;
use crate::steering::{Steering, SteeringError};

/// Why the doors could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// A TAP could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A program could not be attached to it.
    #[error(transparent)]
    Steering(#[from] SteeringError),
}

/// Makes the TAPs `PREFIX0`, `PREFIX1`, ... for interfaces of a plan, by their numbers, at most 15
/// characters a name, in the network namespace of the calling thread; each worker's device, with the
/// interfaces in the order given. The TAPs go with the devices, also after a crash.
///
/// # Errors
/// The kernel's refusal. No TAP is left then.
pub fn open(
    prefix: &str,
    interfaces: &[&PlannedInterface],
    workers: u32,
    packets: Packets,
    steering: &mut Steering,
) -> Result<Vec<TapDevice>, DoorError> {
    steering.clear_exits()?;
    let mut queues: Vec<Vec<Tap>> = (0..workers).map(|_| Vec::new()).collect();
    for planned in interfaces {
        let name = format!("{prefix}{}", planned.number);
        let fail = |step| TapError::at(&name, step);
        let taps = Tap::create_queues(&name, workers, packets).map_err(fail("making it"))?;
        silence(&name);
        link::set_mtu(&name, planned.facts.mtu).map_err(fail("setting its MTU"))?;
        if let Some(tap) = taps.first() {
            // Before it is up, so that nothing is delivered on the TAP itself.
            steering.add_exit(tap, planned.facts.ifindex, true)?;
            link::set_up(&name).map_err(fail("bringing it up"))?;
            steering.set_door(usize::from(planned.number), tap)?;
        }
        for (worker, tap) in queues.iter_mut().zip(taps) {
            worker.push(tap);
        }
    }
    let device = |(worker, taps): (usize, Vec<Tap>)| TapDevice::new(taps, worker == 0);
    Ok(queues.into_iter().enumerate().map(device).collect())
}
