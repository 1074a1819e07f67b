//! How frames are exchanged with the drivers: the best way that works, rung by rung, each with its
//! result and reason: zero-copy AF_XDP, AF_XDP with a copy in the driver, generic, the tun driver.

use std::fmt;

use tracing::{info, warn};

use crate::config::{Config, DeviceMode};
use crate::device::queues;
use crate::device::sys::ethtool::{self, Feature};
use crate::device::sys::link::{self, XdpMode};
use crate::device::sys::socket::CopyMode;
use crate::device::tap::TapDevice;
use crate::device::xdp::{XdpConfig, XdpDevice, XdpError, XdpInterface};
use crate::doors::{self, DoorError};
use crate::plan::{NicFacts, Plan, PlannedInterface, XDP_MTU_MAX};
use crate::punt::Punt;
use crate::self_test::{self, Outcome};
use crate::steering::{Steering, SteeringError};

/// Frame slots of one worker at most: 256 MiB.
const SLOTS_MAX: u32 = 65_536;

/// Features by which a card merges segments that it receives.
const MERGING: [&str; 2] = ["rx-gro-hw", "rx-lro"];

/// One way to exchange frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// AF_XDP; the driver writes into our memory.
    ZeroCopy,
    /// AF_XDP; the driver runs the program, the kernel copies.
    Copy,
    /// AF_XDP; the kernel runs the program behind the driver, on what it may have merged already.
    Generic,
    /// The tun driver; the kernel runs the program in tc.
    Tun,
    /// The tun driver; the kernel routes packets into it.
    Routed,
}

impl Way {
    /// How the program is attached and sockets are bound; `None`: not by AF_XDP.
    fn xdp(self) -> Option<(XdpMode, CopyMode)> {
        match self {
            Way::ZeroCopy => Some((XdpMode::Native, CopyMode::ZeroCopy)),
            Way::Copy => Some((XdpMode::Native, CopyMode::Copy)),
            Way::Generic => Some((XdpMode::Generic, CopyMode::Copy)),
            Way::Tun | Way::Routed => None,
        }
    }
}

/// Every worker's device.
pub enum Devices {
    /// Of AF_XDP.
    Xdp(Vec<XdpDevice>),
    /// Of the tun driver.
    Tap(Vec<TapDevice>),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::ZeroCopy => "zero-copy",
            Way::Copy => "copy",
            Way::Generic => "generic",
            Way::Tun => "tun",
            Way::Routed => "routed",
        })
    }
}

/// The rung that was reached, and the ones above that were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// The way in use.
    pub way: Way,
    /// Why the tun driver was tried before AF_XDP, if it was.
    pub tun_first: Option<String>,
    /// The ways that did not work, each with the reason.
    pub refused: Vec<(Way, String)>,
    /// Why no test frame proved that frames reach the sockets of every interface; `None`: proven.
    pub untested: Option<String>,
}

impl Rung {
    /// The kernel routes packets to us, which no ladder leads to.
    pub fn routed() -> Rung {
        Rung {
            way: Way::Routed,
            tun_first: None,
            refused: Vec::new(),
            untested: Some(
                "the kernel routes packets into the TAP; no test frame is sent".to_owned(),
            ),
        }
    }
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
    /// The TAPs could not be made.
    #[error(transparent)]
    Doors(#[from] DoorError),
    /// An interface's frames fit no buffer.
    #[error(
        "the MTU of {interface} is {mtu}: a frame must fit one buffer, which has room for \
         {XDP_MTU_MAX}"
    )]
    Mtu {
        /// Name of the interface.
        interface: String,
        /// Its MTU, bytes.
        mtu: u32,
    },
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

/// The rule of thumb for `auto`: where every interface is a virtual one that is set to hand over big
/// packets, the tun driver comes first. With AF_XDP that setting would be lost, and bulk TCP with it;
/// naming a mode, or turning the merging off, says otherwise. The reason, if it holds.
fn tun_first(mode: DeviceMode, plan: &Plan) -> Option<String> {
    let all = || plan.interfaces.iter().map(|planned| &planned.facts);
    if mode != DeviceMode::Auto || !all().all(|facts| facts.hands_over_big_packets) {
        return None;
    }
    let names: Vec<String> = all()
        .map(|facts| format!("{} ({})", facts.name, facts.driver))
        .collect();
    Some(format!(
        "{} hands over packets of up to 64 KiB (GRO is on), which AF_XDP cannot: for small packets \
         write mode = \"copy\", or turn GRO off",
        names.join(", ")
    ))
}

fn ways(mode: DeviceMode, tun_first: bool) -> &'static [Way] {
    match mode {
        DeviceMode::Auto if tun_first => &[Way::Tun, Way::ZeroCopy, Way::Copy, Way::Generic],
        DeviceMode::Auto => &[Way::ZeroCopy, Way::Copy, Way::Generic, Way::Tun],
        DeviceMode::ZeroCopy => &[Way::ZeroCopy],
        DeviceMode::Copy => &[Way::Copy],
        DeviceMode::Generic => &[Way::Generic],
        DeviceMode::Tun => &[Way::Tun],
        // Set up by `routed`: there is nothing to descend.
        DeviceMode::Routed => &[],
    }
}

/// Opens every worker's device and attaches the program, by the best way that works. `taps` begins
/// the names of TAPs; test frames for them go by the punt devices.
pub fn descend(
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
    taps: &str,
    punt: Option<&Punt>,
) -> Result<(Devices, Rung), LadderError> {
    for planned in &plan.interfaces {
        // Another's program on the interface stands in every way; in tc only another engine's.
        let name = &planned.facts.name;
        steering.may_attach_tc(name)?;
        if config.mode.value != DeviceMode::Tun {
            steering.may_attach(name)?;
        }
    }
    let tun_first = tun_first(config.mode.value, plan);
    if let Some(why) = &tun_first {
        info!(why, "the tun driver is tried first");
    }
    let mut refused = Vec::new();
    for &way in ways(config.mode.value, tun_first.is_some()) {
        let tried = match way.xdp() {
            Some((xdp, copy)) => try_xdp(xdp, copy, config, plan, steering),
            None => try_tun(config, plan, steering, taps, punt),
        };
        match tried {
            Ok((devices, untested)) => {
                match &untested {
                    None => info!(mode = %way, "frames are exchanged; test frames arrived"),
                    Some(why) => {
                        info!(mode = %way, why, "frames are exchanged; no test was possible");
                    }
                }
                let rung = Rung {
                    way,
                    tun_first,
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

/// Goes a way of AF_XDP: the devices, and why they could not be tested, if so.
fn try_xdp(
    xdp: XdpMode,
    copy: CopyMode,
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
) -> Result<(Devices, Option<String>), LadderError> {
    for planned in &plan.interfaces {
        let NicFacts { name, mtu, .. } = &planned.facts;
        if *mtu > XDP_MTU_MAX {
            let (interface, mtu) = (name.clone(), *mtu);
            return Err(LadderError::Mtu { interface, mtu });
        }
    }
    if xdp == XdpMode::Generic {
        look_for_merging(config, plan)?;
    }
    let found = interfaces(plan);
    let mut devices = open(copy, plan, &found, steering)?;
    let untested = test(copy, config, plan, steering, &mut devices)?;
    attach(xdp, plan, steering)?;
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
        devices = open(copy, plan, &now, steering)?;
    }
    Ok((Devices::Xdp(devices), untested))
}

/// Goes the way of the tun driver: the devices, and why they could not be tested, if so.
fn try_tun(
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
    taps: &str,
    punt: Option<&Punt>,
) -> Result<(Devices, Option<String>), LadderError> {
    let mut devices = doors::open(taps, plan, steering, true)?;
    for planned in &plan.interfaces {
        if let Err(error) = steering.attach_tc(&planned.facts.name, true) {
            detach_tc(plan, steering);
            return Err(error.into());
        }
    }
    // The program of an engine before this one, in front of this program.
    for planned in &plan.interfaces {
        if let Err(error) = steering.detach_interface(planned.facts.ifindex) {
            detach_tc(plan, steering);
            return Err(error.into());
        }
    }
    match test_taps(config, plan, steering, punt, &mut devices) {
        Ok(untested) => Ok((Devices::Tap(devices), untested)),
        Err(error) => {
            detach_tc(plan, steering);
            Err(error)
        }
    }
}

/// After a way that did not work. What a dead engine left attached goes on guarding the inside.
fn detach_tc(plan: &Plan, steering: &mut Steering) {
    if steering.is_inherited() {
        return;
    }
    for planned in &plan.interfaces {
        if let Err(error) = steering.detach_tc(planned.facts.ifindex) {
            warn!(interface = planned.facts.name, %error, "detaching the program again");
        }
    }
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
    copy: CopyMode,
    plan: &Plan,
    interfaces: &[XdpInterface],
    steering: &mut Steering,
) -> Result<Vec<XdpDevice>, LadderError> {
    let device = |worker| {
        XdpDevice::open(&XdpConfig {
            interfaces: interfaces.to_vec(),
            worker,
            workers: plan.workers,
            mode: copy,
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
    copy: CopyMode,
    config: &Config,
    plan: &Plan,
    steering: &Steering,
    devices: &mut [XdpDevice],
) -> Result<Option<String>, LadderError> {
    if copy == CopyMode::ZeroCopy {
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

/// Sends a test frame to every interface, through the program at work: why it could not be done, if
/// so. All that comes to the first worker meanwhile is lost.
fn test_taps(
    config: &Config,
    plan: &Plan,
    steering: &Steering,
    punt: Option<&Punt>,
    devices: &mut [TapDevice],
) -> Result<Option<String>, LadderError> {
    let Some(punt) = punt else {
        return Ok(Some(
            "there are no punt devices to send test frames by".to_owned(),
        ));
    };
    let mut untested = None;
    for planned in &plan.interfaces {
        let interface = planned.facts.name.clone();
        match self_test::run_in_tc(config, &plan.policy, planned, steering, punt, devices) {
            Outcome::Passed => {}
            Outcome::Impossible(why) => untested = Some(format!("{interface}: {why}")),
            Outcome::Failed(why) => return Err(LadderError::SelfTest { interface, why }),
        }
    }
    Ok(untested)
}

/// Attaches the program to all interfaces, or to none.
fn attach(xdp: XdpMode, plan: &Plan, steering: &mut Steering) -> Result<(), LadderError> {
    for planned in &plan.interfaces {
        if let Err(error) = steering.attach(&planned.facts.name, xdp) {
            for planned in &plan.interfaces {
                // That the first attempt failed is what matters to the reader.
                if let Err(error) = steering.detach_interface(planned.facts.ifindex) {
                    warn!(interface = planned.facts.name, %error, "detaching the program again");
                }
            }
            return Err(error.into());
        }
    }
    // The program of an engine before this one, behind this program.
    for planned in &plan.interfaces {
        steering.detach_tc(planned.facts.ifindex)?;
    }
    Ok(())
}
