//! Why a way does not work here.

use crate::device::xdp::XdpError;
use crate::doors::DoorError;
use crate::plan::XDP_MTU_MAX;
use crate::steering::SteeringError;

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
    /// No way of an interface worked.
    #[error("no way to exchange frames with {interface} works: {}", reasons.join("; "))]
    Bottom {
        /// Name of the interface.
        interface: String,
        /// Each way with its reason.
        reasons: Vec<String>,
    },
}

impl LadderError {
    /// The interface at fault, if it is one alone: its name, or that of the TAP that stands for it.
    pub(super) fn interface(&self) -> Option<&str> {
        match self {
            LadderError::Device(error) => of_socket(error),
            LadderError::Steering(error) | LadderError::Doors(DoorError::Steering(error)) => {
                of_steering(error)
            }
            LadderError::Doors(DoorError::Tap(_)) => None,
            LadderError::Mtu { interface, .. }
            | LadderError::Merging { interface, .. }
            | LadderError::SelfTest { interface, .. }
            | LadderError::Bottom { interface, .. } => Some(interface),
        }
    }

    /// Would it be the same on every way, and for the operator to decide?
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            LadderError::Steering(
                SteeringError::Occupied { .. } | SteeringError::OccupiedInTc { .. }
            )
        )
    }
}

fn of_socket(error: &XdpError) -> Option<&str> {
    match error {
        XdpError::Socket(error) => Some(&error.interface),
        XdpError::NoQueue { interface, .. } => Some(interface),
        XdpError::Memory { .. } | XdpError::NoInterface | XdpError::TooFewSlots { .. } => None,
    }
}

fn of_steering(error: &SteeringError) -> Option<&str> {
    match error {
        SteeringError::Occupied { interface, .. }
        | SteeringError::OccupiedInTc { interface, .. }
        | SteeringError::Attach { interface, .. }
        | SteeringError::AttachTc { interface, .. }
        | SteeringError::Interface { interface, .. } => Some(interface),
        SteeringError::BadInstance(_)
        | SteeringError::InUse(_)
        | SteeringError::Guarded(_)
        | SteeringError::Pins { .. }
        | SteeringError::Load(_)
        | SteeringError::Map { .. }
        | SteeringError::Judge(_) => None,
    }
}
