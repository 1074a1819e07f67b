//! What the workers get: devices of one kind, or of several.

use crate::device::mixed::{AnyDevice, MixedDevice};
use crate::device::tap::TapDevice;
use crate::device::xdp::XdpDevice;

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
        let mut workers: Vec<Vec<(AnyDevice, Vec<usize>)>> = Vec::new();
        zero_copy.hand_out(&mut workers);
        copy.hand_out(&mut workers);
        taps.hand_out(&mut workers);
        Devices::Mixed(workers.into_iter().map(MixedDevice::new).collect())
    }
}

impl<D: crate::device::Device + Send + 'static> Part<D> {
    /// Gives each worker its own.
    fn hand_out(self, workers: &mut Vec<Vec<(AnyDevice, Vec<usize>)>>) {
        for (worker, device) in self.devices.into_iter().enumerate() {
            if workers.len() == worker {
                workers.push(Vec::new());
            }
            workers[worker].push((Box::new(device), self.interfaces.clone()));
        }
    }
}
