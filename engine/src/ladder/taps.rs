//! The way of the tun driver: TAPs for the interfaces that go it, and a test of each.

use super::LadderError;
use super::attempt::{Fault, Site};
use super::device::Part;
use crate::device::sys::tap::Packets;
use crate::device::tap::TapDevice;
use crate::doors;
use crate::plan::PlannedInterface;
use crate::self_test::{self, Outcome};
use crate::steering::Steering;

/// All workers' queues of the TAPs of some interfaces. None where there are no interfaces.
pub(super) struct Taps<'a> {
    members: Vec<&'a PlannedInterface>,
    devices: Vec<TapDevice>,
}

impl<'a> Taps<'a> {
    /// Makes them, known to the program. Where other interfaces go another way, packets are finished
    /// by the kernel before they come: the other side could not say what is left to be done.
    pub fn open(
        members: Vec<&'a PlannedInterface>,
        site: &Site<'_>,
        steering: &mut Steering,
    ) -> Result<Taps<'a>, Fault> {
        if members.is_empty() {
            let devices = Vec::new();
            return Ok(Taps { members, devices });
        }
        let packets = match members.len() == site.plan.interfaces.len() {
            true => Packets::Unfinished,
            false => Packets::Whole,
        };
        let devices = doors::open(site.taps, &members, site.plan.workers, packets, steering);
        let devices = devices.map_err(Fault::among(&members))?;
        Ok(Taps { members, devices })
    }

    /// Sends a test frame to every member, through the program at work. Notes why one could not be
    /// sent, by interface. All that comes to these interfaces meanwhile is lost.
    pub fn test(
        &mut self,
        site: &Site<'_>,
        steering: &Steering,
        untested: &mut [Option<String>],
    ) -> Result<(), Fault> {
        for (local, planned) in self.members.iter().enumerate() {
            let untested = &mut untested[usize::from(planned.number)];
            let Some(punt) = site.punt else {
                let why = "there are no punt devices to send test frames by";
                *untested = Some(why.to_owned());
                continue;
            };
            let (config, policy) = (site.config, &site.plan.policy);
            let devices = &mut self.devices;
            let outcome =
                self_test::run_in_tc(config, policy, planned, steering, punt, devices, local);
            match outcome {
                Outcome::Passed => {}
                Outcome::Impossible(why) => *untested = Some(why),
                Outcome::Failed(why) => {
                    let interface = planned.facts.name.clone();
                    let error = LadderError::SelfTest { interface, why };
                    return Err(Fault::among(&self.members)(error));
                }
            }
        }
        Ok(())
    }

    /// What the workers get of them.
    pub fn into_part(self) -> Part<TapDevice> {
        let numbers = self.members.iter();
        Part {
            interfaces: numbers.map(|planned| planned.number.into()).collect(),
            devices: self.devices,
        }
    }
}
