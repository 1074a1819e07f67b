//! Offloads of the interfaces that are in the way: which are off while the gateway runs.

use std::sync::Mutex;

use tracing::warn;

use super::{StartError, at, lock};
use crate::config::DeviceMode;
use crate::device::sys::ethtool::Offload;
use crate::ladder::{Reached, Way};
use crate::plan::Plan;
use crate::undo::{Change, Undo};

/// What is off where frames are exchanged this way.
fn unwanted(way: Way) -> &'static [Offload] {
    match way {
        // A hidden VLAN tag would make a tagged frame look untagged.
        Way::ZeroCopy | Way::Copy => &[Offload::RxVlan],
        // The program gets what the kernel has merged, and that fits no frame.
        Way::Generic => &[Offload::RxVlan, Offload::Gro, Offload::Lro],
        // What the NIC has merged itself cannot be cut again.
        Way::Tun => &[Offload::Lro],
        Way::Routed => &[],
    }
}

/// Turns VLAN receive offload off on every interface that may get an XDP program, before it does.
///
/// # Errors
/// The driver does not let it change.
pub(super) fn show_tags(plan: &Plan, undo: &Mutex<Undo>) -> Result<(), StartError> {
    let may_be_xdp = plan.interfaces.iter();
    for planned in may_be_xdp.filter(|planned| planned.mode != DeviceMode::Tun) {
        let name = &planned.facts.name;
        let off = lock(undo).turn_off(name, Offload::RxVlan);
        off.map_err(|error| {
            at("turning VLAN receive offload off")(format!(
                "{name}: {error}; with it on, tagged frames would be taken for untagged ones: use \
                 an interface whose driver can turn it off (`ethtool -k {name}`), or mode = \"tun\""
            ))
        })?;
    }
    Ok(())
}

/// Turns off what is in the way of each interface's way, and on again what is not, as what an engine
/// before this one turned off.
pub(super) fn settle(reached: &Reached, undo: &Mutex<Undo>) {
    let mut wanted = Vec::new();
    for rung in &reached.rungs {
        for &which in unwanted(rung.way) {
            let interface = rung.interface.clone();
            if let Err(error) = lock(undo).turn_off(&interface, which) {
                let offload = which.name();
                warn!(%interface, offload, %error, "merged packets will be lost");
            }
            wanted.push(Change::Offload(interface, which));
        }
    }
    lock(undo).restore_offloads(&wanted);
}
