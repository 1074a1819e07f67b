//! The ways to exchange frames with an interface, and in which order they are tried.

use std::fmt;

use crate::config::DeviceMode;
use crate::device::sys::link::XdpMode;
use crate::device::sys::socket::CopyMode;
use crate::plan::Plan;

/// One way to exchange frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// AF_XDP; the driver writes into our memory.
    ZeroCopy,
    /// AF_XDP; the driver runs the program, the kernel copies.
    Copy,
    /// AF_XDP; the kernel runs the program behind the driver, on what it may have merged already.
    Generic,
    /// The tun driver; the kernel runs the program in tc.
    Tun,
    /// The tun driver; the kernel routes packets into it.
    Routed,
}

impl Way {
    /// How the program is attached; `None`: not by XDP.
    pub(super) fn program(self) -> Option<XdpMode> {
        match self {
            Way::ZeroCopy | Way::Copy => Some(XdpMode::Native),
            Way::Generic => Some(XdpMode::Generic),
            Way::Tun | Way::Routed => None,
        }
    }

    /// How sockets are bound; `None`: there are none.
    pub(super) fn copy(self) -> Option<CopyMode> {
        match self {
            Way::ZeroCopy => Some(CopyMode::ZeroCopy),
            Way::Copy | Way::Generic => Some(CopyMode::Copy),
            Way::Tun | Way::Routed => None,
        }
    }

    /// Are frames exchanged by AF_XDP?
    pub fn is_xdp(self) -> bool {
        self.copy().is_some()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::ZeroCopy => "zero-copy",
            Way::Copy => "copy",
            Way::Generic => "generic",
            Way::Tun => "tun",
            Way::Routed => "routed",
        })
    }
}

/// The rule of thumb for `auto`: where every interface is a virtual one that is set to hand over big
/// packets, the tun driver comes first. With AF_XDP that setting would be lost, and bulk TCP with it,
/// and so it is where one interface alone has AF_XDP; naming another mode for any of them, or turning
/// the merging off, says otherwise. The reason, if it holds.
pub(super) fn tun_first(plan: &Plan) -> Option<String> {
    let all = || plan.interfaces.iter();
    let modes = [DeviceMode::Auto, DeviceMode::Tun];
    let undecided = all().any(|planned| planned.mode == DeviceMode::Auto);
    let fits =
        all().all(|planned| modes.contains(&planned.mode) && planned.facts.hands_over_big_packets);
    if !undecided || !fits {
        return None;
    }
    let facts = all().map(|planned| &planned.facts);
    let names: Vec<String> = facts
        .map(|facts| format!("{} ({})", facts.name, facts.driver))
        .collect();
    Some(format!(
        "{} hands over packets of up to 64 KiB (GRO is on), which AF_XDP cannot: for small packets \
         write mode = \"copy\", or turn GRO off",
        names.join(", ")
    ))
}

/// The ways that a mode stands for, the best first.
pub(super) fn ways(mode: DeviceMode, tun_first: bool) -> &'static [Way] {
    match mode {
        DeviceMode::Auto if tun_first => &[Way::Tun, Way::ZeroCopy, Way::Copy, Way::Generic],
        DeviceMode::Auto => &[Way::ZeroCopy, Way::Copy, Way::Generic, Way::Tun],
        DeviceMode::ZeroCopy => &[Way::ZeroCopy],
        DeviceMode::Copy => &[Way::Copy],
        DeviceMode::Generic => &[Way::Generic],
        DeviceMode::Tun => &[Way::Tun],
        // Set up by `routed`: there is nothing to descend.
        DeviceMode::Routed => &[Way::Routed],
    }
}
