//! The self-test frame: it arrives where all is well, and a way whose frame does not arrive is
//! refused with the reason.

mod common;

use common::{Instance, Net, privileged, veth};
use engine::config::{Config, DeviceMode};
use engine::device::sys::link;
use engine::device::xdp::{XdpConfig, XdpDevice, XdpInterface};
use engine::ladder::{self, Devices, LadderError, Reached, Way};
use engine::plan::Plan;
use engine::punt::Punt;
use engine::self_test::{self, Outcome};
use engine::steering::{SteeredAddress, SteeredInterface, Steering, SteeringSize};

/// A gateway between an inside and an outside that nobody lives in.
struct Stand {
    gateway: Net,
    inside: Net,
    outside: Net,
    instance: Instance,
}

impl Stand {
    fn new() -> Stand {
        let (gateway, inside, outside) = (Net::new("gw"), Net::new("in"), Net::new("out"));
        veth(&gateway, "lan0", &inside, "far0", 2);
        veth(&gateway, "wan0", &outside, "far0", 2);
        gateway.ip("addr add 10.9.0.1/24 dev lan0");
        gateway.ip("addr add 192.0.2.1/24 dev wan0");
        gateway.ip("route add default via 192.0.2.2");
        gateway.sysctl("ipv4/ip_forward", "1");
        Stand {
            gateway,
            inside,
            outside,
            instance: Instance::new(),
        }
    }

    /// Frames that the neighbours got.
    fn sent(&self) -> Vec<String> {
        let count = |net: &Net| net.exec("cat /sys/class/net/far0/statistics/rx_packets");
        [&self.inside, &self.outside].map(count).to_vec()
    }

    /// A configuration and the plan for it, and a program that knows it. Call it inside.
    fn prepare(&self, mode: &str) -> (Config, Plan, Steering) {
        self.prepare_each(mode, ["", ""])
    }

    /// As [`Stand::prepare`], with more lines for either interface.
    fn prepare_each(&self, mode: &str, [lan, wan]: [&str; 2]) -> (Config, Plan, Steering) {
        let text = format!(
            "internal = \"10.9.0.0/24\"\ninstance = \"{}\"\n\
             [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n{lan}\
             [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n{wan}\
             [device]\nmode = \"{mode}\"\n[tables]\nsessions_max = 1024\n",
            self.instance.0
        );
        let config = Config::parse("egret.toml", &text).unwrap();
        let host = engine::facts::read(&config).unwrap();
        let plan = Plan::make(&config, &host).unwrap();
        let size = SteeringSize {
            addresses_max: plan.addresses_max,
            ..SteeringSize::default()
        };
        let mut steering = Steering::open(&self.instance.0, size, [7; 6]).unwrap();
        let internals: Vec<_> = config.internal.iter().map(|prefix| prefix.value).collect();
        steering.set_internals(&internals).unwrap();
        let locals = ["10.9.0.1", "192.0.2.1"].map(|addr| addr.parse().unwrap());
        steering.set_locals(&locals).unwrap();
        let steered = plan.policy.addresses.iter().map(|own| SteeredAddress {
            addr: own.addr,
            kind: own.kind,
            slot: own.slot,
        });
        steering
            .set_externals(&steered.collect::<Vec<_>>())
            .unwrap();
        steering.set_interfaces(&steered_interfaces(&plan)).unwrap();
        (config, plan, steering)
    }
}

fn steered_interfaces(plan: &Plan) -> Vec<SteeredInterface> {
    let steered = plan.interfaces.iter().map(|planned| SteeredInterface {
        ifindex: planned.facts.ifindex,
        mac: planned.facts.mac.unwrap(),
        internal: planned.role.is_internal(),
        external: planned.role.is_external(),
    });
    steered.collect()
}

/// Which interface is an XDP program attached to?
fn attached_each(plan: &Plan) -> Vec<bool> {
    let there = |ifindex| link::attached_xdp(ifindex).unwrap().is_some();
    plan.interfaces
        .iter()
        .map(|planned| there(planned.facts.ifindex))
        .collect()
}

/// Is one attached to either?
fn attached(plan: &Plan) -> bool {
    attached_each(plan).contains(&true)
}

fn descend(
    config: &Config,
    plan: &Plan,
    steering: &mut Steering,
) -> Result<(Devices, Reached), LadderError> {
    let names: Vec<&str> = plan
        .interfaces
        .iter()
        .map(|planned| planned.facts.name.as_str())
        .collect();
    let punt = Punt::open(steering, "egretsp", &names).unwrap();
    ladder::descend(config, plan, steering, "egretst", Some(&punt))
}

fn arrives(test: &str, mode: &str) {
    if !privileged(test) {
        return;
    }
    let stand = Stand::new();
    let before = stand.sent();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare(mode);
        let (devices, reached) = descend(&config, &plan, &mut steering).unwrap();
        let Devices::Xdp(devices) = devices else {
            panic!("{reached:?}");
        };
        assert_eq!((reached.mode().as_str(), reached.untested()), (mode, None));
        for device in &devices {
            // Nothing of it is left for the workers.
            assert_eq!((device.ready(), device.places().worker), (0, 0));
            assert!(device.places().balanced());
        }
        steering.detach().unwrap();
    });
    assert_eq!(stand.sent(), before, "nothing went onto a wire");
}

#[test]
fn test_frames_arrive_before_native_mode_is_taken() {
    arrives("test_frames_arrive_before_native_mode", "copy");
}

#[test]
fn test_frames_arrive_before_generic_mode_is_taken() {
    arrives("test_frames_arrive_before_generic_mode", "generic");
}

#[test]
fn test_frames_arrive_in_tun_mode() {
    if !privileged("test_frames_arrive_in_tun_mode") {
        return;
    }
    let stand = Stand::new();
    let before = stand.sent();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare("tun");
        let (devices, reached) = descend(&config, &plan, &mut steering).unwrap();
        assert_eq!((reached.way(), reached.untested()), (Some(Way::Tun), None));
        let Devices::Tap(devices) = devices else {
            panic!("not the tun driver's devices");
        };
        assert_eq!(devices.len(), plan.workers as usize);
        steering.detach().unwrap();
    });
    assert_eq!(stand.sent(), before, "nothing went onto a wire");
}

/// How each interface was reached: its way, and which ways were refused.
fn ways(reached: &Reached) -> Vec<(Way, Vec<Way>)> {
    let refused = |refused: &[(Way, String)]| refused.iter().map(|(way, _)| *way).collect();
    let rungs = reached.rungs.iter();
    rungs
        .map(|rung| (rung.way, refused(&rung.refused)))
        .collect()
}

const ALL_XDP: [Way; 3] = [Way::ZeroCopy, Way::Copy, Way::Generic];

/// What no buffer of AF_XDP has room for is no hindrance to the tun driver, and no concern of the
/// other interface.
#[test]
fn a_large_mtu_leads_its_interface_down_to_the_tun_driver_and_no_other() {
    if !privileged("a_large_mtu_leads_its_interface_down") {
        return;
    }
    let stand = Stand::new();
    stand.gateway.ip("link set wan0 mtu 9000");
    let before = stand.sent();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare("auto");
        let (devices, reached) = descend(&config, &plan, &mut steering).unwrap();
        assert!(matches!(devices, Devices::Mixed(_)), "{reached:?}");
        assert_eq!((reached.way(), reached.mode().as_str()), (None, "mixed"));
        let expected = [
            (Way::Copy, vec![Way::ZeroCopy]),
            (Way::Tun, ALL_XDP.to_vec()),
        ];
        assert_eq!(ways(&reached), expected);
        assert_eq!(reached.untested(), None);
        let [lan, wan] = reached.rungs.as_slice() else {
            panic!("{reached:?}");
        };
        assert_eq!(
            (lan.interface.as_str(), wan.interface.as_str()),
            ("lan0", "wan0")
        );
        assert!(lan.refused[0].1.contains("lan0"), "{}", lan.refused[0].1);
        for (way, why) in &wan.refused {
            assert!(why.contains("9000") && why.contains("wan0"), "{way}: {why}");
        }
        assert_eq!(attached_each(&plan), [true, false]);
        steering.detach().unwrap();
    });
    assert_eq!(stand.sent(), before, "nothing went onto a wire");
}

/// One interface's mode is named, the other's is not.
#[test]
fn a_mode_of_one_interface_is_taken_or_refused_alone() {
    if !privileged("a_mode_of_one_interface_is_taken") {
        return;
    }
    let stand = Stand::new();
    stand.gateway.enter(|| {
        let reached = |mode: &str, lines| {
            let (config, plan, mut steering) = stand.prepare_each(mode, lines);
            let reached = descend(&config, &plan, &mut steering);
            let attached = attached_each(&plan);
            steering.detach().unwrap();
            (reached.map(|(_, reached)| reached), attached)
        };
        for (mode, lines, expected, xdp) in [
            (
                "auto",
                ["mode = \"tun\"\n", ""],
                [Way::Tun, Way::Copy],
                [false, true],
            ),
            (
                "tun",
                ["", "mode = \"copy\"\n"],
                [Way::Tun, Way::Copy],
                [false, true],
            ),
            // These two share one device: neither is copied to the other.
            (
                "copy",
                ["mode = \"generic\"\n", ""],
                [Way::Generic, Way::Copy],
                [true, true],
            ),
            (
                "generic",
                ["", "mode = \"tun\"\n"],
                [Way::Generic, Way::Tun],
                [true, false],
            ),
        ] {
            let (reached, attached) = reached(mode, lines);
            let reached = reached.unwrap();
            let found: Vec<Way> = reached.rungs.iter().map(|rung| rung.way).collect();
            assert_eq!(
                (found.as_slice(), attached),
                (&expected[..], xdp.to_vec()),
                "{mode} {lines:?}"
            );
            assert_eq!(reached.untested(), None, "{mode} {lines:?}");
        }
        // No veth has it, and nothing else may be tried there.
        let (config, mut plan, mut steering) = stand.prepare("auto");
        plan.interfaces[1].mode = DeviceMode::ZeroCopy;
        let refused = descend(&config, &plan, &mut steering).err();
        let attached = attached_each(&plan);
        steering.detach().unwrap();
        let Some(LadderError::Bottom { interface, reasons }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(
            (interface.as_str(), reasons.len()),
            ("wan0", 1),
            "{reasons:?}"
        );
        assert_eq!(attached, [false, false]);
    });
}

/// Whose test frame fails decides who steps down: the program knows the outer interface by a number
/// without a socket, and without a TAP.
#[test]
fn only_the_interface_whose_frames_do_not_arrive_steps_down() {
    if !privileged("only_the_interface_whose_frames_do_not_arrive") {
        return;
    }
    let stand = Stand::new();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare("auto");
        let mut interfaces = steered_interfaces(&plan);
        let mut stranger = interfaces[1];
        stranger.ifindex = 0xffff;
        interfaces.insert(1, stranger);
        steering.set_interfaces(&interfaces).unwrap();
        let (_devices, reached) = descend(&config, &plan, &mut steering).unwrap();
        let expected = [
            (Way::Copy, vec![Way::ZeroCopy]),
            (Way::Tun, ALL_XDP.to_vec()),
        ];
        assert_eq!(ways(&reached), expected);
        for (_, why) in &reached.rungs[1].refused[1..] {
            assert!(why.contains("wan0") && why.contains("no socket"), "{why}");
        }
        // The one is proven, and the other said not to be.
        assert_eq!(reached.rungs[0].untested, None);
        let why = reached.untested().expect("no test frame could be sent");
        assert!(why.starts_with("wan0: "), "{why}");
        assert_eq!(attached_each(&plan), [true, false]);
        steering.detach().unwrap();
    });
}

/// The rule of thumb, and what says otherwise.
#[test]
fn links_that_are_set_to_merge_get_the_tun_driver_first() {
    if !privileged("links_that_are_set_to_merge") {
        return;
    }
    let stand = Stand::new();
    let reached = |mode: &str| {
        stand.gateway.enter(|| {
            let (config, plan, mut steering) = stand.prepare(mode);
            let (devices, reached) = descend(&config, &plan, &mut steering).unwrap();
            steering.detach().unwrap();
            drop(devices);
            (reached.way().expect("one way"), reached.tun_first)
        })
    };
    assert_eq!(reached("auto"), (Way::Copy, None));
    for interface in ["lan0", "wan0"] {
        stand
            .gateway
            .exec(&format!("ethtool -K {interface} gro on"));
    }
    let (way, why) = reached("auto");
    assert_eq!(way, Way::Tun);
    let why = why.expect("a reason");
    for word in ["lan0 (veth)", "wan0 (veth)", "GRO", "mode = \"copy\""] {
        assert!(why.contains(word), "no {word} in {why}");
    }
    assert_eq!(reached("copy"), (Way::Copy, None));
    // Both have to be.
    stand.gateway.exec("ethtool -K wan0 gro off");
    assert_eq!(reached("auto"), (Way::Copy, None));
}

/// The program knows the interfaces by other numbers than the sockets' map: what it redirects, the
/// kernel does not deliver.
#[test]
fn a_way_whose_frames_do_not_arrive_is_refused() {
    if !privileged("a_way_whose_frames_do_not_arrive") {
        return;
    }
    let stand = Stand::new();
    let before = stand.sent();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare("auto");
        let mut interfaces = steered_interfaces(&plan);
        interfaces.reverse();
        steering.set_interfaces(&interfaces).unwrap();
        let error = descend(&config, &plan, &mut steering).err();
        let Some(LadderError::Bottom { interface, reasons }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(interface, "lan0");
        let [_, copy, generic, tun] = reasons.as_slice() else {
            panic!("{reasons:?}");
        };
        for (mode, reason) in [("copy", copy), ("generic", generic), ("tun", tun)] {
            for word in [mode, "test frame for lan0", "does not deliver"] {
                assert!(reason.contains(word), "no {word} in {reason}");
            }
        }
        assert!(!attached(&plan));
        steering.detach().unwrap();
    });
    assert_eq!(stand.sent(), before, "nothing went onto a wire");
}

#[test]
fn a_socket_that_is_not_in_the_map_is_noticed() {
    if !privileged("a_socket_that_is_not_in_the_map") {
        return;
    }
    let stand = Stand::new();
    let before = stand.sent();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare("copy");
        let mut device = device(&plan);
        for (interface, queue, socket) in device.sockets() {
            steering.set_socket(interface, queue, socket).unwrap();
        }
        let mut run = |steering: &Steering| {
            let interfaces = plan.interfaces.iter();
            let outcomes = interfaces.map(|planned| {
                let local = usize::from(planned.number);
                self_test::run(&config, &plan.policy, planned, steering, &mut device, local)
            });
            outcomes.collect::<Vec<_>>()
        };
        assert_eq!(run(&steering), [Outcome::Passed, Outcome::Passed]);
        for interface in 0..2 {
            steering.clear_socket(interface, 0).unwrap();
        }
        for outcome in run(&steering) {
            let Outcome::Failed(why) = outcome else {
                panic!("{outcome:?}");
            };
            assert!(why.contains("no socket"), "{why}");
        }
        // What is to be left to the kernel says nothing about sockets.
        steering.set_internals(&[]).unwrap();
        steering.set_externals(&[]).unwrap();
        for outcome in run(&steering) {
            assert!(matches!(outcome, Outcome::Impossible(_)), "{outcome:?}");
        }
        steering.detach().unwrap();
    });
    assert_eq!(stand.sent(), before, "nothing went onto a wire");
}

/// Real frames and the test's would be written into one ring at the same time.
#[test]
fn no_test_frame_is_sent_over_a_program_at_work() {
    if !privileged("no_test_frame_is_sent_over_a_program") {
        return;
    }
    let stand = Stand::new();
    stand.gateway.enter(|| {
        let (config, plan, mut steering) = stand.prepare("copy");
        let descend =
            |steering: &mut Steering| -> Reached { descend(&config, &plan, steering).unwrap().1 };
        assert_eq!(descend(&mut steering).untested(), None);
        let sent = steering.counters().unwrap().internal;
        // As after a crash: the sockets are gone, the program is not.
        let again = descend(&mut steering);
        let why = again.untested().expect("it was not tested");
        assert!(why.contains("lan0"), "{why}");
        assert_eq!(steering.counters().unwrap().internal, sent);
        steering.detach().unwrap();
    });
}

/// The device of the only worker.
fn device(plan: &Plan) -> XdpDevice {
    let interfaces = plan.interfaces.iter().map(|planned| XdpInterface {
        name: planned.facts.name.clone(),
        ifindex: planned.facts.ifindex,
        queues: 2,
    });
    let config = XdpConfig {
        interfaces: interfaces.collect(),
        worker: 0,
        workers: 1,
        mode: engine::device::sys::socket::CopyMode::Copy,
        slots_max: 65_536,
    };
    XdpDevice::open(&config).unwrap()
}
