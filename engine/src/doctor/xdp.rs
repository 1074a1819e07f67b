//! Does the driver run XDP programs, and does it exchange frames without copying?

use super::drivers::{Driver, KernelVersion, known};
use super::facts::{HostState, InterfaceState};
use super::finding::{Finding, Level};

pub(super) fn examine(interface: &InterfaceState, host: &HostState, found: &mut Vec<Finding>) {
    let name = interface.name.as_str();
    if !interface.is_ethernet && interface.mtu > 0 {
        let what = format!("{name} has no Ethernet address");
        let problem = Finding::new(
            name,
            "driver",
            Level::Problem,
            interface.driver.as_str(),
            what,
        );
        found.push(problem.why("Egret reads and writes Ethernet frames"));
        return;
    }
    let driver = known(&interface.driver);
    found.push(native(interface, driver, host));
    found.push(zero_copy(interface, driver, host));
}

/// The driver in words: `ena (Amazon Elastic Network Adapter)`.
fn in_words(interface: &InterfaceState, driver: Option<&Driver>) -> String {
    match (driver, interface.driver.as_str()) {
        (_, "") => "an unknown driver".to_owned(),
        (Some(driver), name) => format!("{name} ({})", driver.title),
        (None, name) => name.to_owned(),
    }
}

/// What the kernel says of a driver, or, before Linux 6.3, what the table does: `first` is the
/// kernel that brought it.
fn has(
    said: Option<bool>,
    driver: Option<&Driver>,
    first: Option<KernelVersion>,
    host: &HostState,
) -> Option<bool> {
    match (said, driver, first) {
        (Some(said), _, _) => Some(said),
        (None, None, _) => None,
        (None, Some(_), None) => Some(false),
        (None, Some(_), Some(first)) => host.kernel.map(|kernel| kernel >= first),
    }
}

fn native(interface: &InterfaceState, driver: Option<&Driver>, host: &HostState) -> Finding {
    let name = interface.name.as_str();
    let words = in_words(interface, driver);
    let said = interface.xdp.map(|xdp| xdp.native);
    let first = driver.and_then(|driver| driver.native_since);
    let notes = driver.map_or("", |driver| driver.notes.as_str());
    let seen = interface.driver.as_str();
    match has(said, driver, first, host) {
        Some(true) => {
            let what = format!("{words} runs XDP programs itself");
            Finding::new(name, "driver", Level::Ok, seen, what).why(notes)
        }
        Some(false) => {
            let what = format!("{words} does not run XDP programs here");
            let why = "generic mode is slower (the kernel makes a socket buffer of every frame \
                       first) and drops merged packets";
            let finding = Finding::new(name, "driver", Level::Warning, seen, what).why(why);
            match first {
                Some(version) => finding.advise(format!("use Linux {version} or later")),
                None => finding.advise(
                    "use a NIC whose driver does: virtio_net, ena, gve, mlx5, ixgbe, i40e, ice",
                ),
            }
        }
        None => {
            let what = format!("{words}: whether it runs XDP programs cannot be seen");
            Finding::unseen(name, "driver", what)
                .why("the start tells: `egret run` prints the mode that it reached and why")
        }
    }
}

fn zero_copy(interface: &InterfaceState, driver: Option<&Driver>, host: &HostState) -> Finding {
    let name = interface.name.as_str();
    let said = interface.xdp.map(|xdp| xdp.zero_copy);
    let first = driver.and_then(|driver| driver.zero_copy_since);
    let stuck = interface.virtio.is_some_and(|bits| !bits.resets_queues());
    let make =
        |level, value: bool, what: String| Finding::new(name, "zero-copy", level, value, what);
    match has(said, driver, first, host) {
        Some(true) if stuck => {
            let what = "the driver exchanges frames without copying, the virtual device does not";
            let why = "zero-copy resets single queues, which the host must offer \
                       (VIRTIO_F_RING_RESET); frames are copied, some 100 ns each";
            make(Level::Note, false, what.to_owned()).why(why)
        }
        Some(true) => make(Level::Ok, true, "frames need not be copied".to_owned()),
        Some(false) => {
            let since = first
                .map(|first| format!(" before Linux {first}"))
                .unwrap_or_default();
            let what = format!("frames are copied: the driver has no zero-copy{since}");
            make(Level::Note, false, what)
                .why("some 100 ns a frame; a NAT gateway can live with it")
        }
        None => Finding::unseen(
            name,
            "zero-copy",
            "whether frames are copied cannot be seen",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::VirtioFeatures;
    use super::super::finding::one;
    use super::*;
    use crate::xdp_features::XdpFeatures;

    fn nic(driver: &str) -> InterfaceState {
        InterfaceState {
            name: "eth0".to_owned(),
            driver: driver.to_owned(),
            is_ethernet: true,
            mtu: 1500,
            ..InterfaceState::default()
        }
    }

    fn found(interface: &InterfaceState, kernel: Option<KernelVersion>) -> Vec<Finding> {
        let host = HostState {
            kernel,
            ..HostState::default()
        };
        let mut found = Vec::new();
        examine(interface, &host, &mut found);
        found
    }

    #[test]
    fn the_table_judges_where_the_kernel_does_not_tell() {
        let old = found(&nic("gve"), Some(KernelVersion(6, 1)));
        let driver = one(&old, "eth0/driver");
        assert_eq!(driver.level, Level::Warning);
        assert!(driver.mend.as_ref().expect("a way").command.contains("6.4"));
        let new = found(&nic("gve"), Some(KernelVersion(6, 12)));
        assert_eq!(one(&new, "eth0/driver").level, Level::Ok);
        assert_eq!(one(&new, "eth0/zero-copy").level, Level::Note);
        let ice = found(&nic("ice"), Some(KernelVersion(6, 1)));
        assert_eq!(one(&ice, "eth0/zero-copy").value, true);
        let none = found(&nic("e1000e"), Some(KernelVersion(6, 12)));
        assert_eq!(one(&none, "eth0/driver").level, Level::Warning);
    }

    #[test]
    fn the_kernel_knows_better_than_the_table() {
        let mut interface = nic("e1000e");
        interface.xdp = Some(XdpFeatures {
            native: true,
            zero_copy: true,
        });
        let found = found(&interface, Some(KernelVersion(9, 0)));
        assert_eq!(one(&found, "eth0/driver").level, Level::Ok);
        assert_eq!(one(&found, "eth0/zero-copy").level, Level::Ok);
    }

    #[test]
    fn an_unknown_driver_of_an_old_kernel_is_not_judged() {
        let found = found(&nic("warp"), Some(KernelVersion(6, 1)));
        assert_eq!(one(&found, "eth0/driver").level, Level::Note);
        assert!(one(&found, "eth0/driver").value.is_null());
    }

    #[test]
    fn a_virtual_device_must_play_along() {
        let mut interface = nic("virtio_net");
        interface.virtio = Some(VirtioFeatures(1 << 40));
        let new = Some(KernelVersion(6, 18));
        assert_eq!(
            one(&found(&interface, new), "eth0/zero-copy").level,
            Level::Ok
        );
        interface.virtio = Some(VirtioFeatures(0));
        let stuck = found(&interface, new);
        assert_eq!(one(&stuck, "eth0/zero-copy").value, false);
        assert!(one(&stuck, "eth0/zero-copy").why.contains("RING_RESET"));
    }

    #[test]
    fn a_device_without_ethernet_cannot_be_served() {
        let mut interface = nic("tun");
        interface.is_ethernet = false;
        let found = found(&interface, None);
        assert_eq!(one(&found, "eth0/driver").level, Level::Problem);
        assert_eq!(found.len(), 1);
    }
}
