//! What an engine left behind in the kernel when it died, held under the instance's lock while it is
//! cleared away.

use super::SteeringError;
use super::pins::{Pins, at_home};

/// The pins of an instance whose engine is dead. Nobody can start it as long as this lives.
#[derive(Debug)]
pub struct Remains(Pins);

impl Remains {
    /// Those of an instance; `None` if it has no directory.
    ///
    /// # Errors
    /// The engine is running, or the kernel's refusal.
    pub fn find(instance: &str) -> Result<Option<Remains>, SteeringError> {
        at_home(|| Ok(Pins::find(instance)?.map(Remains)))
    }

    /// Detaches the programs: how many interfaces were freed.
    ///
    /// # Errors
    /// The kernel's refusal; the others are detached all the same.
    pub fn detach(&self) -> Result<usize, SteeringError> {
        at_home(|| self.0.detach_links())
    }

    /// Removes pins, number and lock, and the directory unless something else is in it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(self) -> Result<(), SteeringError> {
        at_home(|| self.0.remove())
    }
}

/// Removes programs, pins and the BPF file system that an engine of this instance left behind. How many
/// interfaces were freed.
///
/// # Errors
/// The engine is running, or the kernel's refusal.
pub fn detach_all(instance: &str) -> Result<usize, SteeringError> {
    let Some(remains) = Remains::find(instance)? else {
        return Ok(0);
    };
    let count = remains.detach()?;
    remains.remove()?;
    Ok(count)
}
