//! Does a frame fit one buffer of the driver?

use super::drivers::known;
use super::facts::InterfaceState;
use super::finding::{Finding, Level};
use crate::plan::XDP_MTU_MAX;

pub(super) fn examine(interface: &InterfaceState, found: &mut Vec<Finding>) {
    let (name, mtu) = (interface.name.as_str(), interface.mtu);
    if mtu == 0 {
        return;
    }
    let of_driver = known(&interface.driver).and_then(|driver| driver.mtu_max);
    // The plan refuses what is above the common limit, whatever the driver takes.
    let max = of_driver.map_or(XDP_MTU_MAX, |max| max.min(XDP_MTU_MAX));
    if mtu <= max {
        let what = format!("the MTU is {mtu}, at most {max} fit XDP");
        found.push(Finding::new(name, "mtu", Level::Ok, mtu, what));
        return;
    }
    let what = format!("the MTU is {mtu}, too large for XDP: at most {max}");
    let why = "a frame must fit one buffer of the driver, which refuses the program otherwise; \
               the hosts behind the gateway must use the smaller MTU, too, or large frames are lost";
    found.push(
        Finding::new(name, "mtu", Level::Problem, mtu, what)
            .why(why)
            .mend(
                format!("ip link set dev {name} mtu {}", max.min(1500)),
                format!("ip link set dev {name} mtu {mtu}"),
            ),
    );
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::*;

    fn found(driver: &str, mtu: u32) -> Vec<Finding> {
        let interface = InterfaceState {
            name: "eth0".to_owned(),
            driver: driver.to_owned(),
            mtu,
            ..InterfaceState::default()
        };
        let mut found = Vec::new();
        examine(&interface, &mut found);
        found
    }

    #[test]
    fn jumbo_frames_are_a_problem_and_the_way_back_is_told() {
        let found = found("ena", 9001);
        let mtu = one(&found, "eth0/mtu");
        assert_eq!(mtu.level, Level::Problem);
        let mend = mtu.mend.as_ref().expect("a way");
        assert_eq!(mend.command, "ip link set dev eth0 mtu 1500");
        assert_eq!(mend.undo.as_deref(), Some("ip link set dev eth0 mtu 9001"));
        assert_eq!(mend.safe, None, "it may cut the operator off");
    }

    #[test]
    fn each_driver_has_its_own_limit() {
        assert_eq!(found("ena", 3498)[0].level, Level::Ok);
        assert_eq!(found("ena", 3499)[0].level, Level::Problem);
        assert_eq!(found("gve", 2032)[0].level, Level::Ok);
        assert_eq!(found("gve", 2033)[0].level, Level::Problem);
        assert_eq!(found("warp", 1500)[0].level, Level::Ok);
        assert_eq!(found("warp", 9000)[0].level, Level::Problem);
    }
}
