//! The contenders: each turns the stage's gateway into one kind of router.

pub mod bare;
pub mod egret;
pub mod kernel;
#[cfg(feature = "xsk-rs")]
pub mod xsk;

use std::path::Path;

use super::choice::Rival;
#[cfg(not(feature = "xsk-rs"))]
use super::choice::XSK_RS_LEFT_OUT;
use super::stage::Stage;
use crate::lab::LabError;

/// A gateway that runs. [`Contender::stop`] leaves the stage as it was found.
pub trait Contender {
    /// Flows that it tracks now; `None` if it tracks none.
    ///
    /// # Errors
    /// It should know and did not say.
    fn tracked(&self, stage: &Stage) -> Result<Option<u64>, LabError>;

    /// The threads that work for it, beside those of the kernel.
    fn threads(&self) -> Vec<i32>;

    /// New flows a second that it surely takes up, for filling its tables.
    fn fill_rate(&self) -> f64;

    /// Ends it.
    ///
    /// # Errors
    /// It ended badly.
    fn stop(self: Box<Self>, stage: &Stage) -> Result<(), LabError>;
}

/// Starts a contender; `program` is the `egret` binary.
///
/// # Errors
/// It could not be started.
pub fn start(rival: Rival, stage: &Stage, program: &Path) -> Result<Box<dyn Contender>, LabError> {
    Ok(match rival {
        Rival::Nft => Box::new(kernel::Nft::start(stage)?),
        Rival::Forward => Box::new(kernel::Forward::start(stage)?),
        Rival::XdpForward => Box::new(bare::Bare::start(stage, bare::OwnRings::open(stage)?)?),
        #[cfg(feature = "xsk-rs")]
        Rival::XskRsForward => Box::new(bare::Bare::start(stage, xsk::XskRings::open(stage)?)?),
        #[cfg(not(feature = "xsk-rs"))]
        Rival::XskRsForward => return Err(LabError::Gateway(XSK_RS_LEFT_OUT.to_owned())),
        Rival::EgretXdp => Box::new(egret::Egret::start(stage, program, egret::Backend::Xdp)?),
        Rival::EgretTun => Box::new(egret::Egret::start(stage, program, egret::Backend::Tun)?),
    })
}
