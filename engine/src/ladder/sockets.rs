//! The ways of AF_XDP: sockets on the interfaces that go one of them, and a test of each.

use tracing::{info, warn};

use super::attempt::{Fault, Site};
use super::device::Part;
use super::{LadderError, Way};
use crate::config::DeviceMode;
use crate::device::queues;
use crate::device::sys::ethtool::{self, Feature};
use crate::device::sys::link;
use crate::device::sys::socket::CopyMode;
use crate::device::xdp::{XdpConfig, XdpDevice, XdpError, XdpInterface};
use crate::plan::{NicFacts, PlannedInterface, XDP_MTU_MAX};
use crate::self_test::{self, Outcome};
use crate::steering::Steering;

/// Frame slots of one worker at most: 256 MiB.
const SLOTS_MAX: u32 = 65_536;

/// Features by which a card merges segments that it receives.
const MERGING: [&str; 2] = ["rx-gro-hw", "rx-lro"];

/// Can an interface go a way of AF_XDP at all? Asked before anything is opened.
pub(super) fn fits(planned: &PlannedInterface, way: Way) -> Result<(), LadderError> {
    let NicFacts { name, mtu, .. } = &planned.facts;
    if *mtu > XDP_MTU_MAX {
        let (interface, mtu) = (name.clone(), *mtu);
        return Err(LadderError::Mtu { interface, mtu });
    }
    match way {
        Way::Generic => look_for_merging(planned),
        _ => Ok(()),
    }
}

/// In generic mode the program gets what the card has merged. The kernel turns that off for the
/// program, if it can: with a mode of the operator's choice a card that cannot is their will.
fn look_for_merging(planned: &PlannedInterface) -> Result<(), LadderError> {
    let interface = planned.facts.name.clone();
    let features = ethtool::features(&interface).unwrap_or_default();
    let stays = |name| {
        let fixed = |one: &Feature| one.name == name && one.on && !one.changeable;
        features.iter().any(fixed)
    };
    let Some(feature) = MERGING.into_iter().find(|name| stays(*name)) else {
        return Ok(());
    };
    if planned.mode == DeviceMode::Auto {
        return Err(LadderError::Merging { interface, feature });
    }
    warn!(
        interface,
        feature, "merged packets will be lost: it cannot be turned off"
    );
    Ok(())
}

/// All workers' sockets on some of the interfaces, over one frame memory a worker. None where there
/// are no interfaces.
pub(super) struct Sockets<'a> {
    copy: CopyMode,
    members: Vec<&'a PlannedInterface>,
    /// The members with the queues that they had when the sockets were opened.
    found: Vec<XdpInterface>,
    devices: Vec<XdpDevice>,
}

impl<'a> Sockets<'a> {
    /// Opens them, known to the program.
    pub fn open(
        copy: CopyMode,
        members: Vec<&'a PlannedInterface>,
        site: &Site<'_>,
        steering: &mut Steering,
    ) -> Result<Sockets<'a>, Fault> {
        let mut sockets = Sockets {
            copy,
            found: interfaces(&members),
            members,
            devices: Vec::new(),
        };
        sockets.bind(site, steering)?;
        Ok(sockets)
    }

    fn bind(&mut self, site: &Site<'_>, steering: &mut Steering) -> Result<(), Fault> {
        if self.members.is_empty() {
            return Ok(());
        }
        let workers = site.plan.workers;
        let device = |worker| {
            XdpDevice::open(&XdpConfig {
                interfaces: self.found.clone(),
                worker,
                workers,
                mode: self.copy,
                slots_max: SLOTS_MAX,
            })
        };
        let devices: Result<Vec<XdpDevice>, XdpError> = (0..workers).map(device).collect();
        self.devices = devices.map_err(Fault::among(&self.members))?;
        for (local, queue, socket) in self.devices.iter().flat_map(XdpDevice::sockets) {
            let number = usize::from(self.members[local].number);
            let known = steering.set_socket(number, queue, socket);
            known.map_err(Fault::among(&self.members))?;
        }
        Ok(())
    }

    /// Sends a test frame to every member, before the program is attached, since a driver at work
    /// would be in its way ([`self_test`]). Notes why one could not be sent, by interface.
    pub fn test(
        &mut self,
        site: &Site<'_>,
        steering: &Steering,
        untested: &mut [Option<String>],
    ) -> Result<(), Fault> {
        // Worker 0 serves queue 0.
        let Some(device) = self.devices.first_mut() else {
            return Ok(());
        };
        for (local, planned) in self.members.iter().enumerate() {
            let NicFacts { name, ifindex, .. } = &planned.facts;
            let untested = &mut untested[usize::from(planned.number)];
            if self.copy == CopyMode::ZeroCopy {
                let why = "a zero-copy driver would be at work on the same rings";
                *untested = Some(why.to_owned());
                continue;
            }
            if !matches!(link::attached_xdp(*ifindex), Ok(None)) {
                let why = format!("the program of the engine before this one is at work on {name}");
                *untested = Some(why);
                continue;
            }
            let (config, policy) = (site.config, &site.plan.policy);
            match self_test::run(config, policy, planned, steering, device, local) {
                Outcome::Passed => {}
                Outcome::Impossible(why) => *untested = Some(why),
                Outcome::Failed(why) => {
                    let interface = name.clone();
                    let error = LadderError::SelfTest { interface, why };
                    return Err(Fault::among(&self.members)(error));
                }
            }
        }
        Ok(())
    }

    /// Opens them again if a driver has more queues now that the program is attached.
    pub fn recount(&mut self, site: &Site<'_>, steering: &mut Steering) -> Result<(), Fault> {
        let now = interfaces(&self.members);
        if now == self.found {
            return Ok(());
        }
        for (before, now) in self.found.iter().zip(&now) {
            let (interface, before, now) = (&now.name, before.queues, now.queues);
            info!(
                interface,
                before, now, "receive queues, now that the program is attached"
            );
        }
        self.found = now;
        // A queue has one socket.
        self.devices.clear();
        self.bind(site, steering)
    }

    /// What the workers get of them.
    pub fn into_part(self) -> Part<XdpDevice> {
        let numbers = self.members.iter();
        Part {
            interfaces: numbers.map(|planned| planned.number.into()).collect(),
            devices: self.devices,
        }
    }
}

/// Interfaces with the queues that they have at the moment.
fn interfaces(members: &[&PlannedInterface]) -> Vec<XdpInterface> {
    let interface = |planned: &&PlannedInterface| {
        let NicFacts { name, ifindex, .. } = &planned.facts;
        let told = u32::from(planned.facts.rx_queues.max(1));
        XdpInterface {
            name: name.clone(),
            ifindex: *ifindex,
            queues: queues::count(name, *ifindex, told),
        }
    };
    members.iter().map(interface).collect()
}
