//! Attached on trial: no link is pinned, so the program goes with this process, however it ends.

use std::path::Path;

use aya::programs::ProgramError;
use aya::programs::Xdp;
use aya::programs::links::{FdLink, LinkError, PinnedLink};

use super::pins::{self, Pins, at_home};
use super::{Steering, SteeringError, reason};

/// The links that nothing but this process keeps, by their interfaces' indices; `None`: links are
/// pinned.
#[derive(Default)]
pub(super) struct Trial(Option<Vec<(u32, FdLink)>>);

impl Trial {
    /// Keeps a new link: in this process, or pinned.
    pub fn keep(&mut self, ifindex: u32, link: FdLink, pin: &Path) -> Result<(), String> {
        match &mut self.0 {
            Some(held) => {
                held.push((ifindex, link));
                Ok(())
            }
            None => link.pin(pin).map(drop).map_err(|error| error.to_string()),
        }
    }

    /// Puts the program in the place of the one that the pinned link holds. On trial the pin goes,
    /// and from then on the link is this process's.
    pub fn replace(&mut self, ifindex: u32, program: &mut Xdp, pin: &Path) -> Result<(), String> {
        let pinned = PinnedLink::from_pin(pin).map_err(|error| error.to_string())?;
        let link = FdLink::from(pinned).try_into();
        let link = link.map_err(|error: LinkError| error.to_string())?;
        let replaced = program.attach_to_link(link);
        let id = replaced.map_err(|error: ProgramError| reason(&error))?;
        let link = program.take_link(id).map_err(|error| reason(&error))?;
        if let Some(held) = &mut self.0 {
            let link = FdLink::try_from(link).map_err(|error| error.to_string())?;
            std::fs::remove_file(pin).map_err(|error| error.to_string())?;
            held.push((ifindex, link));
        }
        // Else dropped: the pin keeps the link.
        Ok(())
    }

    /// Lets the link of an interface go, which detaches the program.
    pub fn release(&mut self, ifindex: u32) {
        if let Some(held) = &mut self.0 {
            held.retain(|(other, _)| *other != ifindex);
        }
    }

    /// Lets all links go.
    pub fn release_all(&mut self) {
        if let Some(held) = &mut self.0 {
            held.clear();
        }
    }

    fn pin_all(&mut self, pins: &Pins) -> Result<(), SteeringError> {
        for (ifindex, link) in self.0.take().unwrap_or_default() {
            let pin = pins.link(ifindex);
            pins::detach(&pin)?;
            link.pin(pin).map_err(|error| SteeringError::Pins {
                step: "pinning a link",
                source: std::io::Error::other(error.to_string()),
            })?;
        }
        Ok(())
    }
}

impl Steering {
    /// From now on links are not pinned: the program stays attached only as long as this value
    /// lives, also if the process is killed. Call it before [`Steering::attach`].
    pub fn begin_trial(&mut self) {
        self.trial.0.get_or_insert_default();
    }

    /// Pins the links after all: the program stays attached when the process ends.
    ///
    /// # Errors
    /// A link could not be pinned. The program is then detached from its interface, and perhaps from
    /// others: call [`Steering::detach`].
    pub fn end_trial(&mut self) -> Result<(), SteeringError> {
        let (trial, pins) = (&mut self.trial, &self.pins);
        at_home(|| trial.pin_all(pins))
    }
}
