//! The steering program in tc: for socket buffers, on an interface's ingress, with a TAP as the door to
//! the engine. And the small programs on the ingress of the engine's TAPs.
//!
//! From Linux 6.6 on it is attached by a tcx link, which is pinned. Before, it is a filter of fixed
//! priority and handle, which stays by itself until somebody removes it; what is pinned then is the
//! program, to remember where.

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, loaded_programs};

use super::pins::{self, at_home};
use super::{Steering, SteeringError, ingress, maps, reason};
use crate::device::sys::link;
use crate::device::sys::tap::Tap;

/// The program on the interfaces.
pub(super) const STEER: &str = "egret_steer_tc";
/// What is written into a TAP leaves by an interface.
const LEAVE: &str = "egret_leave";
/// What is written into a TAP arrives on an interface.
const PUNT: &str = "egret_punt";
/// All of them.
pub(super) const PROGRAMS: [&str; 3] = [STEER, LEAVE, PUNT];
/// Where a filter stands among others: first.
const PRIORITY: u16 = 1;

fn handle() -> TcHandle {
    TcHandle::new(0, 1)
}

fn filter() -> TcAttachOptions {
    TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: handle(),
        classid: None,
    })
}

impl Steering {
    /// Lets what is written into a TAP arrive on an interface. Without tcx links (before Linux 6.6)
    /// by a filter, which goes away with the TAP.
    pub(crate) fn attach_tap(
        &mut self,
        tap: &Tap,
        ifindex: u32,
        tcx: bool,
    ) -> Result<(), SteeringError> {
        maps::add_tap(&mut self.ebpf, tap.ifindex(), ifindex)?;
        self.attach_to_tap(PUNT, tap, tcx)
    }

    /// Forgets all TAPs, as those of a former engine.
    pub(crate) fn clear_taps(&mut self) -> Result<(), SteeringError> {
        maps::clear_taps(&mut self.ebpf)
    }

    /// Makes a TAP the way out by an interface: what is written into it leaves there.
    pub(crate) fn add_exit(
        &mut self,
        tap: &Tap,
        ifindex: u32,
        tcx: bool,
    ) -> Result<(), SteeringError> {
        maps::add_exit(&mut self.ebpf, tap.ifindex(), ifindex)?;
        self.attach_to_tap(LEAVE, tap, tcx)
    }

    /// Makes a TAP the way to the engine for what is ours of an interface, by its number. The
    /// kernel forgets it when the TAP goes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_door(&mut self, interface: usize, tap: &Tap) -> Result<(), SteeringError> {
        maps::set_door(&mut self.ebpf, interface, tap.ifindex())
    }

    /// Forgets all ways out, as those of a former engine.
    pub(crate) fn clear_exits(&mut self) -> Result<(), SteeringError> {
        maps::clear_exits(&mut self.ebpf)
    }

    /// Attaches the program to an interface's tc ingress in the calling thread's network namespace,
    /// so that it stays when the engine dies. One of a former engine of this instance is replaced in
    /// one step; other programs there stay, and see what this one passes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn attach_tc(&mut self, interface: &str, tcx: bool) -> Result<(), SteeringError> {
        let unknown = |source| SteeringError::Interface {
            interface: interface.to_owned(),
            source,
        };
        let ifindex = link::index(interface).map_err(unknown)?;
        let (link_pin, filter_pin) = (self.pins.tc_link(ifindex), self.pins.tc_filter(ifindex));
        let (program, trial) = (classifier(&mut self.ebpf, STEER)?, &mut self.trial);
        let why = |why: String| SteeringError::AttachTc {
            interface: interface.to_owned(),
            why,
        };
        at_home(|| {
            if let Ok(old) = PinnedLink::from_pin(&link_pin) {
                if let Ok(link) = replace(program, old) {
                    return trial.take_over(link, &link_pin).map_err(why);
                }
                // Of an interface that is gone.
                pins::detach(&link_pin)?;
            }
            if tcx && let Ok(link) = attach_link(program, interface) {
                return trial.keep(link, &link_pin).map_err(why);
            }
            attach_filter(program, interface, &filter_pin).map_err(why)
        })?;
        if !self.attached.contains(&ifindex) {
            self.attached.push(ifindex);
        }
        Ok(())
    }

    /// Is the interface without the program of another engine, in XDP and in tc? Programs that are
    /// nobody's of ours do not hinder one in tc. An engine on trial, whose links are not pinned, is
    /// known by the names of its programs.
    ///
    /// # Errors
    /// It has one, or its state could not be read.
    pub fn may_attach_tc(&self, interface: &str) -> Result<(), SteeringError> {
        match self.may_attach(interface) {
            Err(SteeringError::Occupied {
                instance: None,
                program,
                ..
            }) if !is_steering_xdp(program) => {}
            other => other?,
        }
        let unknown = |source| SteeringError::Interface {
            interface: interface.to_owned(),
            source,
        };
        let ifindex = link::index(interface).map_err(unknown)?;
        let there = ingress::programs(interface, ifindex).map_err(unknown)?;
        let loaded = self.ebpf.program(STEER).and_then(|own| own.info().ok());
        let loaded = loaded.map(|own| own.id());
        at_home(|| {
            let inherited = self.pins.programs_in_tc(ifindex);
            let is_others = |id: &&u32| loaded != Some(**id) && !inherited.contains(id);
            match there.iter().find(is_others) {
                None => Ok(()),
                Some(&program) => Err(SteeringError::OccupiedInTc {
                    interface: interface.to_owned(),
                    program,
                    instance: pins::owner_in_tc(ifindex, program),
                }),
            }
        })
    }

    /// Detaches the program from one interface's tc ingress. One that it is not attached to is fine.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn detach_tc(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        let (pins, trial) = (&self.pins, &mut self.trial);
        trial.release(&pins.tc_link(ifindex));
        at_home(|| pins.detach_tc(ifindex))
    }

    /// Attaches one of the small programs to the ingress of a TAP that is ours; it goes with the TAP.
    fn attach_to_tap(&mut self, name: &str, tap: &Tap, tcx: bool) -> Result<(), SteeringError> {
        let program = classifier(&mut self.ebpf, name)?;
        let why = |why: String| SteeringError::AttachTc {
            interface: tap.name().to_owned(),
            why,
        };
        let (tap_name, ingress) = (tap.name(), TcAttachType::Ingress);
        let order = || TcAttachOptions::TcxOrder(LinkOrder::default());
        if tcx
            && program
                .attach_with_options(tap_name, ingress, order())
                .is_ok()
        {
            return Ok(());
        }
        qdisc_add_clsact(tap_name).map_err(|error| why(reason(&error)))?;
        program
            .attach_with_options(tap_name, ingress, filter())
            .map(drop)
            .map_err(|error| why(reason(&error)))
    }
}

/// Is it the steering program of an engine, whichever?
fn is_steering_xdp(number: u32) -> bool {
    let programs = loaded_programs().filter_map(Result::ok);
    let mut programs = programs.filter(|program| program.id() == number);
    programs.any(|program| program.name() == super::STEER_XDP.as_bytes())
}

/// A tc program of the object.
pub(super) fn classifier<'a>(
    ebpf: &'a mut aya::Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, SteeringError> {
    ebpf.program_mut(name)
        .ok_or_else(|| SteeringError::Load(format!("{name} is missing")))?
        .try_into()
        .map_err(|error: ProgramError| SteeringError::Load(reason(&error)))
}

/// Puts the program in the place of the one that a pinned link holds. The pin stays.
fn replace(program: &mut SchedClassifier, old: PinnedLink) -> Result<FdLink, String> {
    let link: SchedClassifierLink = FdLink::from(old)
        .try_into()
        .map_err(|error: aya::programs::links::LinkError| error.to_string())?;
    let id = program
        .attach_to_link(link)
        .map_err(|error| reason(&error))?;
    let link = program.take_link(id).map_err(|error| reason(&error))?;
    FdLink::try_from(link).map_err(|error| reason(&error))
}

/// Attaches by a link, before all others.
fn attach_link(program: &mut SchedClassifier, interface: &str) -> Result<FdLink, String> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(interface, TcAttachType::Ingress, order)
        .map_err(|error| reason(&error))?;
    let link = program.take_link(id).map_err(|error| reason(&error))?;
    FdLink::try_from(link).map_err(|error| reason(&error))
}

/// Attaches by a filter, in the place of one that a former engine left, and pins the program. On
/// trial, too: after a SIGKILL the guard finds it by the pin.
fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    pin: &std::path::Path,
) -> Result<(), String> {
    let ingress = TcAttachType::Ingress;
    let id = if pin.exists() {
        let old = SchedClassifierLink::attached(interface, ingress, PRIORITY, handle(), None)
            .map_err(|error| reason(&error))?;
        std::fs::remove_file(pin).map_err(|error| error.to_string())?;
        program.attach_to_link(old)
    } else {
        // There already, perhaps, with other programs.
        let _ = qdisc_add_clsact(interface);
        program.attach_with_options(interface, ingress, filter())
    };
    let id = id.map_err(|error| reason(&error))?;
    let link = program.take_link(id).map_err(|error| reason(&error))?;
    // Its end would detach the filter, which is to outlive this process.
    std::mem::forget(link);
    program.pin(pin).map_err(|error| reason(&error))
}
