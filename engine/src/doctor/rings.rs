//! Receive rings: what a burst meets.

use super::facts::InterfaceState;
use super::finding::{Finding, Level};

/// Entries below which a burst of a millisecond at 500,000 packets a second overflows a ring.
const RECEIVE_MIN: u32 = 512;

pub(super) fn examine(interface: &InterfaceState, found: &mut Vec<Finding>) {
    let name = interface.name.as_str();
    // A driver without rings, or without the question.
    let Some(rings) = interface.rings.filter(|rings| rings.receive > 0) else {
        return;
    };
    let (now, max) = (rings.receive, rings.receive_max);
    let make = |level, what: String| Finding::new(name, "rings", level, now, what);
    if now >= RECEIVE_MIN.min(max) {
        let what = format!("receive rings have {now} entries, at most {max}");
        found.push(make(Level::Ok, what));
        return;
    }
    let what = format!("receive rings have {now} entries, {max} are possible");
    let why = "a burst that comes while a worker is not running is lost. Not done by --fix: most \
               drivers reset the device for it, and the link is down for a moment";
    found.push(make(Level::Warning, what).why(why).mend(
        format!("ethtool -G {name} rx {}", max.min(2048)),
        format!("ethtool -G {name} rx {now}"),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sys::ethtool::Rings;

    fn found(receive: u32, receive_max: u32) -> Vec<Finding> {
        let interface = InterfaceState {
            name: "eth0".to_owned(),
            rings: Some(Rings {
                receive,
                receive_max,
                transmit: 64,
                transmit_max: 64,
            }),
            ..InterfaceState::default()
        };
        let mut found = Vec::new();
        examine(&interface, &mut found);
        found
    }

    #[test]
    fn small_rings_are_told_and_never_changed_by_itself() {
        let small = &found(256, 4096)[0];
        assert_eq!(small.level, Level::Warning);
        let mend = small.mend.as_ref().expect("a way");
        assert_eq!(mend.command, "ethtool -G eth0 rx 2048");
        assert_eq!(mend.undo.as_deref(), Some("ethtool -G eth0 rx 256"));
        assert_eq!(mend.safe, None);
        assert_eq!(found(512, 4096)[0].level, Level::Ok);
        assert_eq!(found(256, 256)[0].level, Level::Ok, "there is no more");
        assert!(found(0, 0).is_empty());
    }
}
