//! How frames are exchanged with the interfaces: what the keys `mode` take.

/// How frames are exchanged with the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceMode {
    /// The best that works: zero-copy, copy, generic, tun.
    Auto,
    /// The driver writes into our memory; no stepping down.
    ZeroCopy,
    /// The driver runs the program, the kernel copies.
    Copy,
    /// The kernel runs the program after its own receive path: every driver can.
    Generic,
    /// The kernel runs the program in tc, and the tun driver exchanges frames: every driver can, and
    /// big packets stay whole.
    Tun,
    /// The kernel routes what is to be translated into the tun driver: needs no BPF and no root, but
    /// pool addresses of Egret's own. For all interfaces or none.
    Routed,
}

impl DeviceMode {
    /// Are frames exchanged by the tun driver only?
    pub fn is_of_tun_driver(self) -> bool {
        matches!(self, DeviceMode::Tun | DeviceMode::Routed)
    }
}

/// What `device.mode` takes.
pub(super) const DEVICE_MODES: &[(&str, DeviceMode)] = &[
    ("auto", DeviceMode::Auto),
    ("zero-copy", DeviceMode::ZeroCopy),
    ("copy", DeviceMode::Copy),
    ("generic", DeviceMode::Generic),
    ("tun", DeviceMode::Tun),
    ("routed", DeviceMode::Routed),
];

/// What `interfaces[].mode` takes: all but the last one.
pub(super) const INTERFACE_MODES: &[(&str, DeviceMode)] =
    DEVICE_MODES.split_at(DEVICE_MODES.len() - 1).0;
