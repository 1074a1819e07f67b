//! AF_XDP devices between veth pairs: the real kernel, both modes, one and more queues.

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Instance, Net, eventually, privileged, veth};
use conntrack::AddressKind;
use engine::device::queues;
use engine::device::sys::ethtool::{self, Offload};
use engine::device::sys::link::{self, XdpMode};
use engine::device::sys::socket::CopyMode;
use engine::device::xdp::{XdpConfig, XdpDevice, XdpError, XdpInterface};
use engine::device::{Device, Frame};
use engine::steering::{SteeredAddress, SteeredInterface, Steering, SteeringSize};

const ALICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BOB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Alice and Bob on one subnet, with a gateway between them that is a wire.
struct Wire {
    alice: Net,
    gateway: Net,
    bob: Net,
    queues: u32,
}

impl Wire {
    fn new(queues: u32) -> Wire {
        let (alice, gateway, bob) = (Net::new("alice"), Net::new("gw"), Net::new("bob"));
        veth(&gateway, "ga", &alice, "a0", queues);
        veth(&gateway, "gb", &bob, "b0", queues);
        alice.ip(&format!("addr add {ALICE}/24 dev a0"));
        bob.ip(&format!("addr add {BOB}/24 dev b0"));
        let mac = |name: &str| gateway.enter(|| text(link::mac(name).unwrap()));
        alice.ip(&format!("neigh add {BOB} lladdr {} dev a0", mac("ga")));
        bob.ip(&format!("neigh add {ALICE} lladdr {} dev b0", mac("gb")));
        Wire {
            alice,
            gateway,
            bob,
            queues,
        }
    }

    fn config(&self, worker: u32, workers: u32) -> XdpConfig {
        let interface = |name: &str| XdpInterface {
            name: name.to_owned(),
            ifindex: link::index(name).unwrap(),
            queues: self.queues,
        };
        let interfaces = vec![interface("ga"), interface("gb")];
        XdpConfig {
            interfaces,
            worker,
            workers,
            mode: CopyMode::Auto,
            slots_max: 65_536,
        }
    }

    /// A program that gives everything between Alice and Bob to the engine. Call it inside the
    /// gateway.
    fn steering(&self, instance: &str) -> Steering {
        let mut steering = Steering::open(instance, SteeringSize::default(), [7; 6]).unwrap();
        let interface = |name: &str| SteeredInterface {
            ifindex: link::index(name).unwrap(),
            mac: link::mac(name).unwrap(),
            internal: true,
            external: true,
        };
        steering
            .set_interfaces(&[interface("ga"), interface("gb")])
            .unwrap();
        let own = |addr, slot| SteeredAddress {
            addr,
            kind: AddressKind::Own,
            slot,
        };
        steering
            .set_externals(&[own(ALICE, 0), own(BOB, 1)])
            .unwrap();
        steering
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Carries frames between the two interfaces until told to stop; gives the device back, drained.
fn carry(
    mut device: XdpDevice,
    macs: [[u8; 6]; 2],
    stop: &AtomicBool,
    carried: &AtomicU64,
) -> XdpDevice {
    let mut frames: Vec<Frame> = Vec::with_capacity(256);
    let round = |device: &mut XdpDevice, frames: &mut Vec<Frame>| {
        for from in 0..2 {
            let got = device.receive(from, frames, 64);
            carried.fetch_add(got as u64, Ordering::Relaxed);
            for frame in frames.iter() {
                let bytes = device.bytes_mut(frame);
                let (destination, rest) = bytes.split_at_mut(6);
                rest[..6].copy_from_slice(destination);
                destination.copy_from_slice(&macs[1 - from]);
            }
            device.transmit(1 - from, frames);
            frames.drain(..).for_each(|frame| device.free(frame));
        }
        device.flush();
        assert!(device.places().balanced(), "{:?}", device.places());
    };
    while !stop.load(Ordering::Relaxed) {
        round(&mut device, &mut frames);
        std::thread::yield_now();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while device.sending() > 0 && Instant::now() < deadline {
        round(&mut device, &mut frames);
    }
    device
}

/// Bob answers what Alice sends, over `flows` flows of ten datagrams of several sizes.
fn talk(wire: &Wire, flows: u16) {
    let bob = wire.bob.udp(BOB, 7000);
    let echo = |socket: &UdpSocket| {
        let mut buffer = [0; 2000];
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).unwrap();
        }
    };
    for flow in 0..flows {
        let alice = wire.alice.udp(ALICE, 20_000 + flow);
        alice.connect((BOB, 7000)).unwrap();
        for size in [0, 1, 17, 100, 500, 1000, 1471, 1472, 64, 8] {
            let sent: Vec<u8> = (0..size)
                .map(|at| (at * 7 + usize::from(flow)) as u8)
                .collect();
            alice.send(&sent).unwrap();
            let mut buffer = [0; 2000];
            let mut got = None;
            eventually("an answer from Bob", || {
                echo(&bob);
                got = alice.recv(&mut buffer).ok();
                got.is_some()
            });
            assert_eq!(buffer[..got.unwrap()], sent, "flow {flow}, {size} bytes");
        }
    }
}

/// Ends the workers when the test ends, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn between_veths(test: &str, mode: XdpMode, queues: u32, workers: u32) {
    if !privileged(test) {
        return;
    }
    let wire = Wire::new(queues);
    let instance = Instance::new();
    let (stop, carried) = (
        AtomicBool::new(false),
        [AtomicU64::new(0), AtomicU64::new(0)],
    );
    let macs = [
        wire.alice.enter(|| link::mac("a0").unwrap()),
        wire.bob.enter(|| link::mac("b0").unwrap()),
    ];
    let (mut steering, devices) = wire.gateway.enter(|| {
        let mut steering = wire.steering(&instance.0);
        let devices: Vec<_> = (0..workers)
            .map(|worker| {
                // So few that every slot goes round several times.
                let slots_max = 200 * queues / workers;
                let config = XdpConfig {
                    slots_max,
                    ..wire.config(worker, workers)
                };
                XdpDevice::open(&config).unwrap()
            })
            .collect();
        for device in &devices {
            assert_eq!(device.wait_fds().len() as u32, 2 * queues / workers);
            assert!(!device.zero_copy().unwrap(), "veth copies");
            for (interface, queue, socket) in device.sockets() {
                steering.set_socket(interface, queue, socket).unwrap();
            }
        }
        steering.attach("ga", mode).unwrap();
        steering.attach("gb", mode).unwrap();
        (steering, devices)
    });
    std::thread::scope(|scope| {
        let running = Stop(&stop);
        let workers: Vec<_> = devices
            .into_iter()
            .zip(&carried)
            .map(|(device, carried)| scope.spawn(|| carry(device, macs, &stop, carried)))
            .collect();
        talk(&wire, if queues > 1 { 24 } else { 12 });
        wire.gateway.enter(|| steering.detach().unwrap());
        drop(running);
        for worker in workers {
            let device = worker.join().unwrap();
            let places = device.places();
            assert_eq!((places.sending, places.worker), (0, 0), "{places:?}");
            for interface in 0..2 {
                let statistics = device.socket_counters(interface).unwrap();
                let faults = statistics.rx_invalid
                    + statistics.tx_invalid
                    + statistics.ring_invalid
                    + statistics.wake_errors;
                assert_eq!(faults, 0, "{statistics:?}");
            }
        }
    });
    // In generic mode a veth tells no receive queue, so all is on queue 0.
    let busy = if mode == XdpMode::Native {
        workers as usize
    } else {
        1
    };
    for carried in &carried[..busy] {
        assert!(
            carried.load(Ordering::Relaxed) > 20,
            "every worker carries its share"
        );
    }
    let counters = steering.counters().unwrap();
    assert_eq!(counters.unserved, 0, "every queue is served: {counters:?}");
}

#[test]
fn native_mode_one_queue() {
    between_veths("native_mode_one_queue", XdpMode::Native, 1, 1);
}

#[test]
fn generic_mode_one_queue() {
    between_veths("generic_mode_one_queue", XdpMode::Generic, 1, 1);
}

#[test]
fn native_mode_two_queues_of_one_worker() {
    between_veths(
        "native_mode_two_queues_of_one_worker",
        XdpMode::Native,
        2,
        1,
    );
}

#[test]
fn generic_mode_two_queues_of_one_worker() {
    between_veths(
        "generic_mode_two_queues_of_one_worker",
        XdpMode::Generic,
        2,
        1,
    );
}

#[test]
fn native_mode_two_queues_of_two_workers() {
    between_veths(
        "native_mode_two_queues_of_two_workers",
        XdpMode::Native,
        2,
        2,
    );
}

#[test]
fn generic_mode_two_queues_of_two_workers() {
    between_veths(
        "generic_mode_two_queues_of_two_workers",
        XdpMode::Generic,
        2,
        2,
    );
}

#[test]
fn frames_of_our_own_are_sent_in_bursts_beyond_the_ring() {
    if !privileged("frames_of_our_own") {
        return;
    }
    let wire = Wire::new(1);
    wire.gateway.enter(|| {
        let mut device = XdpDevice::open(&wire.config(0, 1)).unwrap();
        let total = device.places().total;
        let mut frames = Vec::new();
        while let Some(mut frame) = device.allocate() {
            let offset = device.offset(&frame);
            device.resize(&mut frame, offset, 60)[offset..offset + 60].fill(0xff);
            frames.push(frame);
        }
        assert_eq!((device.free_count(), device.allocate()), (0, None));
        let made = frames.len();
        assert!(made > 4096);
        assert_eq!(device.transmit(0, &mut frames), 2048, "a full ring");
        assert_eq!(device.transmit(0, &mut frames), 0);
        assert_eq!(frames.len(), made - 2048, "what does not fit stays");
        eventually("all frames sent", || {
            device.flush();
            device.transmit(0, &mut frames);
            assert!(device.places().balanced());
            frames.is_empty() && device.sending() == 0
        });
        let places = device.places();
        assert_eq!((places.total, places.worker), (total, 0));
        // An empty frame has nothing to send, and must not be lost.
        let empty = device.allocate().unwrap();
        assert_eq!(device.transmit(0, &mut vec![empty]), 1);
        assert_eq!(device.places(), places);
    });
    let received = wire.alice.ip("-s -j link show a0");
    let packets = received.split("\"packets\":").nth(1).unwrap();
    let packets: u32 = packets.split(',').next().unwrap().trim().parse().unwrap();
    assert!(packets > 4096, "{received}");
}

#[test]
fn an_interface_may_go_down_and_come_back() {
    if !privileged("an_interface_may_go_down") {
        return;
    }
    let wire = Wire::new(1);
    let mut device = wire
        .gateway
        .enter(|| XdpDevice::open(&wire.config(0, 1)).unwrap());
    wire.gateway.ip("link set gb down");
    let mut frame = device.allocate().unwrap();
    let offset = device.offset(&frame);
    device.resize(&mut frame, offset, 60)[offset..offset + 60].fill(0xff);
    device.transmit(1, &mut vec![frame]);
    for _ in 0..10 {
        device.flush();
        assert!(device.places().balanced());
    }
    let wake_errors = |device: &XdpDevice| device.socket_counters(1).unwrap().wake_errors;
    assert_eq!((device.sending(), wake_errors(&device)), (1, 0), "it waits");
    wire.gateway.ip("link set gb up");
    eventually("the frame to go out", || {
        device.flush();
        device.sending() == 0
    });
    // Gone for good: no panic, an error that is counted.
    wire.gateway.ip("link del gb");
    let frame = device.allocate().unwrap();
    let mut frames = vec![frame];
    device.resize(&mut frames[0], 256, 60).fill(0xff);
    device.transmit(1, &mut frames);
    device.flush();
    assert!(device.places().balanced() && wake_errors(&device) > 0);
    assert_eq!(device.socket_counters(0).unwrap().wake_errors, 0);
}

#[test]
fn a_queue_that_is_being_freed_is_waited_for() {
    if !privileged("a_queue_that_is_being_freed") {
        return;
    }
    let wire = Wire::new(1);
    wire.gateway.enter(|| {
        for _ in 0..5 {
            // Closed and bound again at once: the kernel frees the queue in the background.
            drop(XdpDevice::open(&wire.config(0, 1)).unwrap());
        }
        let first = XdpDevice::open(&wire.config(0, 1)).unwrap();
        let waiting = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                waiting.store(true, Ordering::SeqCst);
                XdpDevice::open(&wire.config(0, 1)).map(|_| Instant::now())
            });
            eventually("the second one to start", || waiting.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(100));
            let closed = Instant::now();
            drop(first);
            assert!(
                second.join().unwrap().unwrap() > closed,
                "bound while it was taken"
            );
        });
    });
}

#[test]
fn errors_name_the_queue_and_what_to_do() {
    if !privileged("errors_name_the_queue") {
        return;
    }
    let wire = Wire::new(1);
    let open = |change: fn(&mut XdpConfig)| {
        wire.gateway.enter(|| {
            let mut config = wire.config(0, 1);
            change(&mut config);
            XdpDevice::open(&config).map(drop).unwrap_err().to_string()
        })
    };
    let no_queue = open(|config| config.interfaces[1].queues = 3);
    assert!(
        no_queue.contains("gb queue 1") && no_queue.contains("no such queue"),
        "{no_queue}"
    );
    let zero_copy = open(|config| config.mode = CopyMode::ZeroCopy);
    assert!(
        zero_copy.contains("ga queue 0") && zero_copy.contains("copy mode"),
        "{zero_copy}"
    );
    let gone = open(|config| config.interfaces[0].ifindex = 12_345);
    assert!(gone.contains("does not exist"), "{gone}");
    let few = wire.gateway.enter(|| {
        XdpDevice::open(&XdpConfig {
            slots_max: 10,
            ..wire.config(0, 1)
        })
        .map(drop)
        .unwrap_err()
    });
    assert!(matches!(few, XdpError::TooFewSlots { .. }), "{few}");
}

#[test]
fn interfaces_tell_their_driver_queues_and_offloads() {
    if !privileged("interfaces_tell") {
        return;
    }
    let wire = Wire::new(2);
    wire.gateway.enter(|| {
        assert_eq!(ethtool::driver("ga").unwrap(), "veth");
        let channels = ethtool::channels("ga").unwrap();
        assert_eq!((channels.receive, channels.transmit), (2, 2));
        ethtool::set_channels("ga", 1).unwrap();
        assert_eq!(ethtool::channels("ga").unwrap().receive, 1);
        assert_eq!(
            ethtool::channels("lo").unwrap().receive,
            1,
            "a driver that does not say"
        );
        assert!(
            !ethtool::offload("ga", Offload::TxChecksum).unwrap(),
            "turned off by the test"
        );
        for which in [
            Offload::TxChecksum,
            Offload::Gro,
            Offload::Gso,
            Offload::RxVlan,
        ] {
            let before = ethtool::offload("ga", which).unwrap();
            assert_eq!(
                ethtool::set_offload("ga", which, !before).unwrap(),
                before,
                "{which:?}"
            );
            assert_eq!(ethtool::offload("ga", which).unwrap(), !before, "{which:?}");
            assert_eq!(
                ethtool::set_offload("ga", which, before).unwrap(),
                !before,
                "{which:?}"
            );
        }
        assert!(!ethtool::offload("ga", Offload::Lro).unwrap());
        assert!(
            ethtool::set_offload("ga", Offload::Lro, true).is_err(),
            "veth has no LRO"
        );
        assert_eq!(link::mtu("ga").unwrap(), 1500);
        link::set_mtu("ga", 1400).unwrap();
        assert_eq!(link::mtu("ga").unwrap(), 1400);
        assert!(link::is_up("ga").unwrap());
        assert!(ethtool::driver("none").is_err());
    });
}

#[test]
fn queues_that_the_driver_does_not_tell_of_are_found() {
    if !privileged("queues_that_the_driver_does_not_tell_of_are_found") {
        return;
    }
    let wire = Wire::new(3);
    wire.gateway.enter(|| {
        let ifindex = link::index("ga").unwrap();
        let count = |told| queues::count("ga", ifindex, told);
        assert_eq!([1, 2, 3].map(count), [3; 3]);
        // Refused while the sockets that were bound to see are torn down.
        eventually("the third queue goes", || {
            ethtool::set_channels("ga", 2).is_ok()
        });
        assert_eq!([1, 2].map(count), [2; 2]);
    });
}
