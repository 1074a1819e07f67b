//! Offloads that merge packets, complete checksums or take tags out before the program sees a frame.

use super::drivers::{Driver, known};
use super::facts::InterfaceState;
use super::finding::{Finding, Level, Setting};
use crate::device::sys::ethtool::Feature;

/// Features that merge packets: their names, here and in `ethtool -k`.
const MERGING: [(&str, &str); 2] = [("lro", "rx-lro"), ("gro-hw", "rx-gro-hw")];

pub(super) fn examine(interface: &InterfaceState, found: &mut Vec<Finding>) {
    let name = interface.name.as_str();
    if interface.features.is_none() {
        let what = "the offloads cannot be seen";
        found.push(Finding::unseen(name, "offloads", what));
        return;
    }
    let driver = known(&interface.driver);
    for (short, feature) in MERGING {
        if let Some(feature) = interface.feature(feature) {
            found.push(merging(name, short, feature, driver));
        }
    }
    found.extend(guest(interface));
    found.extend(vlan(interface));
}

fn merging(name: &str, short: &str, feature: &Feature, driver: Option<&Driver>) -> Finding {
    let full = feature.name.as_str();
    if !feature.on {
        return Finding::new(name, short, Level::Ok, false, format!("{full} is off"));
    }
    let refuses = driver.is_some_and(|driver| driver.turn_off.iter().any(|one| one == full));
    // Drivers that let it be on turn it off themselves when a program is attached.
    let level = if refuses { Level::Problem } else { Level::Note };
    let what = format!("{full} is on: the NIC merges packets");
    let why = match refuses {
        true => "a merged packet fits no frame, and the driver refuses the program while it is on",
        false => "a merged packet fits no frame; the driver may refuse the program while it is on",
    };
    let finding = Finding::new(name, short, level, true, what).why(why);
    if !feature.changeable {
        let what = "the driver does not let it be turned off: ask whoever runs the machine, or use \
                    another NIC";
        return finding.advise(what);
    }
    let finding = finding.mend(
        format!("ethtool -K {name} {full} off"),
        format!("ethtool -K {name} {full} on"),
    );
    let setting = Setting::Feature {
        interface: name.to_owned(),
        feature: full.to_owned(),
    };
    match driver.is_some_and(|driver| driver.changes_smoothly) {
        true => finding.safe(setting, "off"),
        false => finding,
    }
}

/// What a virtual machine's host does for the guest.
fn guest(interface: &InterfaceState) -> Option<Finding> {
    let bits = interface.virtio?;
    let name = interface.name.as_str();
    let make = |level, what: &str| {
        Finding::new(
            name,
            "guest-offloads",
            level,
            bits.offloads_to_guest(),
            what,
        )
    };
    Some(match (bits.offloads_to_guest(), bits.can_turn_off()) {
        (false, _) => make(Level::Ok, "the host merges no packets for the guest"),
        (true, true) => make(
            Level::Ok,
            "the host's merging and checksums can be turned off, which the driver does by itself",
        ),
        (true, false) => make(
            Level::Problem,
            "the host merges packets or leaves out checksums, and cannot be told not to",
        )
        .why("the driver refuses the program: \"Can't set XDP while host is implementing GRO_HW/CSUM\"")
        .advise("go on in generic or TAP mode, or have the virtual machine's NIC made with ctrl_guest_offloads=on, or with \
             guest_csum, guest_tso4, guest_tso6, guest_ecn and guest_ufo off"),
    })
}

fn vlan(interface: &InterfaceState) -> Option<Finding> {
    let feature = interface.feature("rx-vlan-hw-parse")?;
    let name = interface.name.as_str();
    let make = |level, what: &str| Finding::new(name, "vlan", level, feature.on, what);
    Some(match (feature.on, feature.changeable) {
        (false, _) => make(Level::Ok, "VLAN tags stay in the frames"),
        (true, true) => make(
            Level::Ok,
            "the NIC takes VLAN tags out; Egret turns that off while it runs",
        ),
        (true, false) => make(
            Level::Problem,
            "the NIC takes VLAN tags out, and cannot be told not to",
        )
        .why("frames of another VLAN would look untagged and be translated: Egret does not start")
        .advise("use another NIC, or have the VLANs passed on as NICs of their own"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::VirtioFeatures;
    use super::super::finding::one;
    use super::*;

    fn nic(driver: &str, features: &[(&str, bool, bool)]) -> InterfaceState {
        let feature = |&(name, on, changeable): &(&str, bool, bool)| Feature {
            name: name.to_owned(),
            on,
            changeable,
        };
        InterfaceState {
            name: "eth0".to_owned(),
            driver: driver.to_owned(),
            features: Some(features.iter().map(feature).collect()),
            ..InterfaceState::default()
        }
    }

    fn found(interface: &InterfaceState) -> Vec<Finding> {
        let mut found = Vec::new();
        examine(interface, &mut found);
        found
    }

    #[test]
    fn merging_is_turned_off_by_itself_only_where_that_is_smooth() {
        let smooth = found(&nic("vmxnet3", &[("rx-lro", true, true)]));
        let lro = one(&smooth, "eth0/lro");
        assert_eq!(lro.level, Level::Problem);
        let mend = lro.mend.as_ref().expect("a way");
        assert_eq!(mend.command, "ethtool -K eth0 rx-lro off");
        let (setting, value) = mend.safe.as_ref().expect("safe");
        assert_eq!(value, "off");
        assert!(matches!(setting, Setting::Feature { feature, .. } if feature == "rx-lro"));
        let reset = found(&nic("ixgbe", &[("rx-lro", true, true)]));
        let mend = one(&reset, "eth0/lro").mend.as_ref().expect("a way");
        assert_eq!(mend.safe, None);
        let fixed = found(&nic("vmxnet3", &[("rx-lro", true, false)]));
        let mend = one(&fixed, "eth0/lro").mend.as_ref().expect("a way");
        assert_eq!(mend.safe, None);
        let off = found(&nic("vmxnet3", &[("rx-lro", false, true)]));
        assert_eq!(one(&off, "eth0/lro").level, Level::Ok);
    }

    #[test]
    fn a_driver_that_turns_it_off_itself_is_no_problem() {
        let on = found(&nic("virtio_net", &[("rx-gro-hw", true, true)]));
        assert_eq!(one(&on, "eth0/gro-hw").level, Level::Note);
    }

    #[test]
    fn a_host_that_insists_on_its_offloads_is_a_problem() {
        let with = |bits| InterfaceState {
            virtio: Some(VirtioFeatures(bits)),
            ..nic("virtio_net", &[])
        };
        let level = |bits| one(&found(&with(bits)), "eth0/guest-offloads").level;
        assert_eq!(level(1 << 1), Level::Problem);
        assert_eq!(level(1 << 1 | 1 << 2), Level::Ok);
        assert_eq!(level(0), Level::Ok);
    }

    #[test]
    fn tags_that_are_always_taken_out_are_a_problem() {
        let level = |on, changeable| {
            let interface = nic("x", &[("rx-vlan-hw-parse", on, changeable)]);
            one(&found(&interface), "eth0/vlan").level
        };
        assert_eq!(level(true, false), Level::Problem);
        assert_eq!(level(true, true), Level::Ok);
        assert_eq!(level(false, false), Level::Ok);
    }
}
