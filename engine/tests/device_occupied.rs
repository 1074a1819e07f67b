//! One interface has one engine: the program of another one is noticed before anything is attached,
//! however that one attached it.

mod common;

use common::{Instance, Net, privileged, veth};
use engine::device::sys::link::XdpMode;
use engine::steering::{Steering, SteeringError, SteeringSize};

const SIZE: SteeringSize = SteeringSize {
    interfaces_max: 4,
    addresses_max: 1,
    locals_max: 16,
    prefixes_max: 16,
};

fn open(instance: &Instance) -> Steering {
    Steering::open(&instance.0, SIZE, [0x5a; 6]).unwrap()
}

/// How the first engine attaches its program.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Link,
    Filter,
    Xdp,
}

#[test]
fn another_engine_on_the_interface_is_noticed() {
    if !privileged("another_engine_on_the_interface_is_noticed") {
        return;
    }
    let (gateway, peer) = (Net::new("gw"), Net::new("peer"));
    veth(&gateway, "in0", &peer, "p0", 1);
    gateway.enter(|| {
        for way in [Way::Link, Way::Filter, Way::Xdp] {
            for trial in [false, true] {
                noticed(way, trial);
            }
        }
    });
}

fn noticed(way: Way, trial: bool) {
    let (first, second) = (Instance::new(), Instance::new());
    let (mut there, other) = (open(&first), open(&second));
    other.may_attach_tc("in0").unwrap();
    if trial {
        there.begin_trial();
    }
    match way {
        Way::Link => there.attach_tc("in0", true).unwrap(),
        Way::Filter => there.attach_tc("in0", false).unwrap(),
        Way::Xdp => there.attach("in0", XdpMode::Generic).unwrap(),
    }
    let error = other.may_attach_tc("in0").expect_err("it is there");
    let text = error.to_string();
    let is_occupied = match way {
        Way::Xdp => matches!(error, SteeringError::Occupied { .. }),
        _ => matches!(error, SteeringError::OccupiedInTc { .. }),
    };
    assert!(is_occupied && text.contains("in0"), "{way:?}: {text}");
    // A filter is pinned in any case, so that its end can be found.
    if !trial || way == Way::Filter {
        assert!(text.contains(&first.0), "{way:?}: {text}");
    } else if way == Way::Link {
        assert!(text.contains("on trial"), "{text}");
    }
    // Its own is no hindrance, neither to it nor to its successor.
    if way != Way::Xdp || !trial {
        there.may_attach_tc("in0").unwrap();
    }
    if !trial {
        drop(there);
        there = open(&first);
        there.may_attach_tc("in0").unwrap();
    }
    there.detach().unwrap();
    other.may_attach_tc("in0").unwrap();
}
