//! Attached on trial: no link is pinned, so the program goes with this process, however it ends.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;

use super::pins::{self, at_home};
use super::{Steering, SteeringError};

/// The links that nothing but this process keeps, each with the place where it would be pinned;
/// `None`: links are pinned.
#[derive(Default)]
pub(super) struct Trial(Option<Vec<(PathBuf, FdLink)>>);

impl Trial {
    /// Keeps a new link: in this process, or pinned. Call it `at_home`.
    pub fn keep(&mut self, link: FdLink, pin: &Path) -> Result<(), String> {
        match &mut self.0 {
            Some(held) => {
                held.push((pin.to_owned(), link));
                Ok(())
            }
            None => link.pin(pin).map(drop).map_err(|error| error.to_string()),
        }
    }

    /// Takes over a link that is pinned already: on trial the pin goes, and from then on the link is
    /// this process's. Call it `at_home`.
    pub fn take_over(&mut self, link: FdLink, pin: &Path) -> Result<(), String> {
        if let Some(held) = &mut self.0 {
            std::fs::remove_file(pin).map_err(|error| error.to_string())?;
            held.push((pin.to_owned(), link));
        }
        // Else dropped: the pin keeps the link.
        Ok(())
    }

    /// Lets the link of this pin go, which detaches the program.
    pub fn release(&mut self, pin: &Path) {
        if let Some(held) = &mut self.0 {
            held.retain(|(other, _)| other != pin);
        }
    }

    /// Lets all links go.
    pub fn release_all(&mut self) {
        if let Some(held) = &mut self.0 {
            held.clear();
        }
    }

    fn pin_all(&mut self) -> Result<(), SteeringError> {
        for (pin, link) in self.0.take().unwrap_or_default() {
            pins::detach(&pin)?;
            link.pin(&pin).map_err(|error| SteeringError::Pins {
                step: "pinning a link",
                source: io::Error::other(error.to_string()),
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
        let trial = &mut self.trial;
        at_home(|| trial.pin_all())
    }
}
