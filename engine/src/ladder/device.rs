//! What the workers get: devices of one kind, or of several.

use crate::device::Device;
use crate::device::mixed::{self, AnyDevice, MixedDevice};
use crate::device::tap::TapDevice;
use crate::device::xdp::XdpDevice;

/// Frames of the tun driver's that are left to what comes from other interfaces: as many as one of
/// these may have waiting in a few rounds.
const TAP_RESERVE: usize = 512;

/// Every worker's device.
pub enum Devices {
    /// Of AF_XDP.
    Xdp(Vec<XdpDevice>),
    /// Of the tun driver.
    Tap(Vec<TapDevice>),
    /// Of more than one frame memory.
    Mixed(Vec<MixedDevice<AnyDevice>>),
}

/// The devices of those interfaces that go one way, a worker each, and the interfaces' numbers.
pub(super) struct Part<D> {
    pub devices: Vec<D>,
    pub interfaces: Vec<usize>,
}

impl Devices {
    /// Joins what there is: the pure kind where it is one, so that nothing is paid for others.
    pub(super) fn join(
        zero_copy: Part<XdpDevice>,
        copy: Part<XdpDevice>,
        taps: Part<TapDevice>,
    ) -> Devices {
        let there = [&zero_copy.interfaces, &copy.interfaces, &taps.interfaces];
        match there.map(|interfaces| !interfaces.is_empty()) {
            [true, false, false] => return Devices::Xdp(zero_copy.devices),
            [false, true, false] => return Devices::Xdp(copy.devices),
            [false, false, true] => return Devices::Tap(taps.devices),
            _ => {}
        }
        let mut workers: Vec<Vec<mixed::Part<AnyDevice>>> = Vec::new();
        zero_copy.hand_out(0, &mut workers);
        copy.hand_out(0, &mut workers);
        taps.hand_out(TAP_RESERVE, &mut workers);
        Devices::Mixed(workers.into_iter().map(MixedDevice::new).collect())
    }
}

impl<D: Device + Send + 'static> Part<D> {
    /// Gives each worker its own.
    fn hand_out(self, reserve: usize, workers: &mut Vec<Vec<mixed::Part<AnyDevice>>>) {
        for (worker, device) in self.devices.into_iter().enumerate() {
            if workers.len() == worker {
                workers.push(Vec::new());
            }
            workers[worker].push(mixed::Part {
                device: Box::new(device),
                interfaces: self.interfaces.clone(),
                reserve,
            });
        }
    }
}
