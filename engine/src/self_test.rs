//! Proves, before the workers start, that a frame which the steering program judges to be ours
//! reaches our socket: binding and attaching succeed on drivers and kernels that then deliver
//! nothing.
//!
//! The kernel runs the program on a frame of ours and really carries out the redirection, from the
//! interface's queue 0 (`BPF_F_TEST_XDP_LIVE_FRAMES`; it has no other queue for this). That proves
//! program, maps and socket; what a driver does with real frames it cannot prove. Nothing is sent:
//! a frame that goes astray has a wrong header checksum, and every IP stack drops it.
//!
//! The kernel writes such a frame into the socket's ring without keeping off a driver that does the
//! same, so it is sent only while none does: before the program is attached, never over the program
//! that a dead engine left at work, and not to zero-copy sockets, whose drivers take from the fill
//! ring by themselves.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use conntrack::Policy;

use crate::config::Config;
use crate::device::tap::TapDevice;
use crate::device::xdp::XdpDevice;
use crate::device::{Device, Frame};
use crate::plan::PlannedInterface;
use crate::punt::Punt;
use crate::steering::{Judgement, Steering, SteeringError};
use crate::wire::build::Envelope;
use crate::wire::{ethernet, ipv4};

/// For how long the frame is sent and looked for; usually it is there at once.
const LIMIT: Duration = Duration::from_millis(200);
/// Wait between two attempts.
const AGAIN: Duration = Duration::from_millis(1);
/// A protocol for experimentation (RFC 3692), which nobody translates.
const PROTOCOL: u8 = 253;
const PAYLOAD: &[u8] = b"test frame of egret: drop it";
/// So many internal prefixes are tried as the source.
const PREFIXES_MAX: usize = 4;
/// Where packets from inside are sent to: documentation and benchmarking (RFC 5737, RFC 2544).
const OUTSIDE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(198, 18, 0, 1),
];

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The frame arrived.
    Passed,
    /// It could not be made or sent, for this reason.
    Impossible(String),
    /// It did not arrive, for this reason.
    Failed(String),
}

/// Sends a test frame to queue 0 of an interface and looks for it in the socket of `device`, which
/// serves that queue and knows the interface by the number `local`, in the network namespace of the
/// calling thread. Other frames that wait in the socket are thrown away. No program is attached to the
/// interface.
pub fn run(
    config: &Config,
    policy: &Policy,
    planned: &PlannedInterface,
    steering: &Steering,
    device: &mut XdpDevice,
    local: usize,
) -> Outcome {
    let frames = candidates(config, policy, planned);
    let frame = match choose(&frames, planned.facts.ifindex, steering) {
        Ok(Some(frame)) => frame,
        Ok(None) => {
            let why = "the program steers none of the test frames to the engine";
            return Outcome::Impossible(why.to_owned());
        }
        Err(outcome) => return outcome,
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Err(error) = steering.deliver(planned.facts.ifindex, frame) {
            return Outcome::Impossible(error.to_string());
        }
        if arrives(device, local, frame) {
            return Outcome::Passed;
        }
        if Instant::now() >= deadline {
            let why = "the program redirects it to the socket, and the kernel does not deliver it";
            return Outcome::Failed(why.to_owned());
        }
        std::thread::sleep(AGAIN);
    }
}

/// Lets a test frame arrive on an interface by its punt device, and looks for it in the queues of its
/// TAP, which the devices know by the number `local`. The program is attached, so other frames that
/// come to the engine meanwhile are lost.
pub fn run_in_tc(
    config: &Config,
    policy: &Policy,
    planned: &PlannedInterface,
    steering: &Steering,
    punt: &Punt,
    devices: &mut [TapDevice],
    local: usize,
) -> Outcome {
    let frames = candidates(config, policy, planned);
    let chosen = |frame: &&Vec<u8>| {
        let judged = steering.judge_tc(planned.facts.ifindex, frame);
        matches!(judged, Ok(Judgement::Engine))
    };
    let Some(frame) = frames.iter().find(chosen) else {
        let why = "the program steers none of the test frames to the engine";
        return Outcome::Impossible(why.to_owned());
    };
    let interface = usize::from(planned.number);
    let deadline = Instant::now() + LIMIT;
    loop {
        if !punt.deliver(interface, frame) {
            let why = "the punt device takes no test frame";
            return Outcome::Impossible(why.to_owned());
        }
        let mut devices = devices.iter_mut();
        if devices.any(|device| arrives(device, local, frame)) {
            return Outcome::Passed;
        }
        if Instant::now() >= deadline {
            let why = "the program redirects it to the TAP, and the kernel does not deliver it";
            return Outcome::Failed(why.to_owned());
        }
        std::thread::sleep(AGAIN);
    }
}

/// The first frame that the program would give to the engine.
fn choose<'a>(
    frames: &'a [Vec<u8>],
    ifindex: u32,
    steering: &Steering,
) -> Result<Option<&'a [u8]>, Outcome> {
    let impossible = |error: SteeringError| Outcome::Impossible(error.to_string());
    let unserved = || steering.counters().map(|counters| counters.unserved);
    let before = unserved().map_err(impossible)?;
    for frame in frames {
        if steering.judge(ifindex, 0, frame).map_err(impossible)? == Judgement::Engine {
            return Ok(Some(frame));
        }
    }
    if unserved().map_err(impossible)? == before {
        return Ok(None);
    }
    let why = "no socket serves the interface's queue 0 in the program's map";
    Err(Outcome::Failed(why.to_owned()))
}

/// Frames that the program should give to the engine, on an interface of this role.
fn candidates(config: &Config, policy: &Policy, planned: &PlannedInterface) -> Vec<Vec<u8>> {
    let inside = config.internal.iter().take(PREFIXES_MAX);
    let inside = inside.map(|prefix| prefix.value);
    // The second address of a prefix: the first may not be a host's.
    let inside = inside.map(|prefix| prefix.hosts().nth(1).unwrap_or(prefix.network()));
    let mut envelopes: Vec<Envelope> = Vec::new();
    if planned.role.is_internal() {
        let pairs = inside.flat_map(|source| OUTSIDE.map(|to| (source, to)));
        envelopes.extend(pairs.map(|(source, to)| Envelope::new(source, to)));
    }
    // To a shared address every fragment is the engine's to judge, to an own one every packet.
    envelopes.extend(policy.addresses.iter().map(|external| Envelope {
        flags_offset: ipv4::MORE_FRAGMENTS,
        ..Envelope::new(OUTSIDE[0], external.addr)
    }));
    let mac = planned.facts.mac.unwrap_or_default();
    envelopes
        .iter_mut()
        .for_each(|envelope| envelope.destination_mac = mac);
    envelopes.iter().map(harmless).collect()
}

/// A frame with a wrong header checksum.
fn harmless(envelope: &Envelope) -> Vec<u8> {
    let mut frame = envelope.frame(PROTOCOL, PAYLOAD);
    frame[ethernet::HEADER_LEN + ipv4::CHECKSUM] ^= 0xff;
    frame
}

/// Is the frame among those that wait? All of them are freed.
fn arrives<D: Device>(device: &mut D, interface: usize, wanted: &[u8]) -> bool {
    let mut found = false;
    let mut frames: Vec<Frame> = Vec::new();
    while device.receive(interface, &mut frames, crate::worker::BATCH) > 0 {
        for frame in frames.drain(..) {
            found |= device.bytes(&frame) == wanted;
            device.free(frame);
        }
    }
    device.flush();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drop_reason::DropReason;
    use crate::packet;

    #[test]
    fn a_test_frame_gone_astray_is_dropped_by_every_stack() {
        for flags_offset in [0, ipv4::MORE_FRAGMENTS] {
            let envelope = Envelope {
                flags_offset,
                ..Envelope::new(OUTSIDE[0], OUTSIDE[1])
            };
            let parsed = packet::parse(&harmless(&envelope));
            assert_eq!(parsed.err(), Some(DropReason::BadChecksum));
        }
    }
}
