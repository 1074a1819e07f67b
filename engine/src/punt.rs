//! Punting: giving a frame that the steering program sent to us back to the host's kernel.
//!
//! The frame is written to a TAP device, and a classifier on the TAP's ingress redirects it into the
//! ingress of the interface that it came from: to the kernel it arrives there, at every setting of
//! `rp_filter`. Its source address becomes the mark that the steering program passes first.

use std::io::IoSlice;
use std::os::fd::AsFd;

use nix::sys::uio::writev;

use crate::device::offload::{Offload, VIRTIO_HEADER_LEN};
use crate::device::sys::link;
use crate::device::sys::tap::{Tap, TapError};
use crate::steering::{Steering, SteeringError};

/// Where the source address lies in an Ethernet header.
const SOURCE: std::ops::Range<usize> = 6..12;
/// Bytes of an Ethernet header.
const ETHERNET_HEADER: usize = 14;

/// Why punting could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum PuntError {
    /// The TAP device could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The classifier could not be attached.
    #[error(transparent)]
    Steering(#[from] SteeringError),
}

/// One TAP an interface. Shared by all workers; the TAPs disappear with it, also after a crash.
#[derive(Debug)]
pub struct Punt {
    taps: Vec<Tap>,
    mark: [u8; 6],
}

impl Punt {
    /// None: nothing can be given back.
    pub fn none() -> Punt {
        Punt {
            taps: Vec::new(),
            mark: [0; 6],
        }
    }

    /// Makes the TAPs `PREFIX0`, `PREFIX1`, ... for the interfaces named, in their order, in the
    /// network namespace of the calling thread. At most 15 characters a name.
    pub fn open(
        steering: &mut Steering,
        prefix: &str,
        interfaces: &[&str],
    ) -> Result<Punt, PuntError> {
        Punt::open_with(steering, prefix, interfaces, true)
    }

    /// As [`Punt::open`], with classifiers as before Linux 6.6 (no tcx links).
    pub fn open_without_tcx(
        steering: &mut Steering,
        prefix: &str,
        interfaces: &[&str],
    ) -> Result<Punt, PuntError> {
        Punt::open_with(steering, prefix, interfaces, false)
    }

    fn open_with(
        steering: &mut Steering,
        prefix: &str,
        interfaces: &[&str],
        tcx: bool,
    ) -> Result<Punt, PuntError> {
        steering.clear_taps()?;
        let mut taps = Vec::with_capacity(interfaces.len());
        for (number, interface) in interfaces.iter().enumerate() {
            let name = format!("{prefix}{number}");
            let fail = |step| TapError::at(&name, step);
            let ifindex = link::index(interface).map_err(fail("finding its interface"))?;
            let mtu = link::mtu(interface).map_err(fail("reading the interface's MTU"))?;
            let tap = Tap::create(&name).map_err(fail("making it"))?;
            silence(&name);
            link::set_mtu(&name, mtu).map_err(fail("setting its MTU"))?;
            // Before the TAP is up, so that no frame is delivered on the TAP itself.
            steering.attach_tap(&tap, ifindex, tcx)?;
            link::set_up(&name).map_err(fail("bringing it up"))?;
            taps.push(tap);
        }
        Ok(Punt {
            taps,
            mark: steering.mark(),
        })
    }

    /// Gives an Ethernet frame to the host's kernel as if it had just arrived on the interface.
    /// Never blocks; false if it could not be given.
    pub fn punt(&self, interface: usize, frame: &[u8], offload: Offload) -> bool {
        self.write(interface, frame, &self.mark, offload)
    }

    /// Lets a frame arrive on the interface as it is: without the mark, so that it is steered.
    pub fn deliver(&self, interface: usize, frame: &[u8]) -> bool {
        let source = frame.get(SOURCE).and_then(|source| source.first_chunk());
        source.is_some_and(|source| self.write(interface, frame, source, Offload::WHOLE))
    }

    fn write(&self, interface: usize, frame: &[u8], source: &[u8; 6], offload: Offload) -> bool {
        let Some(tap) = self.taps.get(interface) else {
            return false;
        };
        if frame.len() < ETHERNET_HEADER {
            return false;
        }
        let mut header = [0; VIRTIO_HEADER_LEN];
        offload.encode(&mut header);
        let parts = [
            IoSlice::new(&header),
            IoSlice::new(&frame[..SOURCE.start]),
            IoSlice::new(source),
            IoSlice::new(&frame[SOURCE.end..]),
        ];
        writev(tap.as_fd(), &parts).is_ok_and(|written| written == VIRTIO_HEADER_LEN + frame.len())
    }
}

/// Keeps the kernel from speaking on a TAP by itself. Where that is not allowed (a read-only
/// /proc/sys, no IPv6) nothing is lost: nobody reads what it says.
pub(crate) fn silence(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}
