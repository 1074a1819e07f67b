//! The demo's checks through every way that frames can take: native copy and generic mode, the tun
//! driver, one and two queues, one and two workers, one arm and two, and a mode for each interface.

mod kernel;

use egret_cli::demo::check::{CHECKS, Check};
use egret_cli::demo::report::{self, Progress};
use egret_cli::demo::run_checks;
use egret_cli::demo::setup::Tuning;
use egret_cli::lab::{Gateway, LabOptions, Topology};
use kernel::{Stand, is_root};

const PREFIX: &str = "egret-tm";

/// Runs every check of the demo in one lab. The mode may be two: of the inner interface, and of the
/// outer one.
fn demo(topology: Topology, mode: &str, queues: u32, workers: u32) {
    if !is_root() {
        return;
    }
    let options = LabOptions {
        queues,
        routed: mode == "routed",
        ..LabOptions::new(PREFIX, topology)
    };
    let modes: Vec<&str> = mode.split(" to ").collect();
    let tuning = Tuning {
        mode: Some(modes[0].to_owned()),
        external_mode: modes.get(1).map(|&mode| mode.to_owned()),
        workers: Some(workers),
        ..Tuning::default()
    };
    let mut stand = Stand::prepare(options, &tuning);
    if modes.contains(&"generic") {
        stand.split_for_generic_mode();
    }
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let status = stand.status();
    let found = status["interfaces"].as_array().expect("a list").iter();
    let found: Vec<&str> = found
        .map(|one| one["mode"].as_str().unwrap_or(""))
        .collect();
    match modes[..] {
        [one] => {
            assert_eq!(status["mode"], one);
            assert!(found.iter().all(|mode| *mode == one), "{found:?}");
        }
        _ => assert_eq!((&status["mode"], &found), (&"mixed".into(), &modes)),
    }
    assert_eq!(
        status["workers"].as_array().map(Vec::len),
        Some(workers as usize)
    );
    let checks: Vec<&Check> = CHECKS.iter().collect();
    let reports = run_checks(&stand.lab, &mut stand.engine, &checks, &Progress::new());
    let (reports, _) = reports.unwrap_or_else(|error| panic!("{error}"));
    assert!(
        !reports.iter().any(report::Report::failed),
        "{}",
        report::table(&reports, None)
    );
    assert_eq!(
        reports.len(),
        CHECKS.len() + 2,
        "and what is watched all the time"
    );
    stand
        .engine
        .stop()
        .unwrap_or_else(|error| panic!("{error}"));
}

macro_rules! demos {
    ($($name:ident: $topology:ident, $mode:literal, $queues:literal, $workers:literal;)*) => {$(
        #[test]
        fn $name() {
            demo(Topology::$topology, $mode, $queues, $workers);
        }
    )*};
}

demos! {
    copy_two_arm: TwoArm, "copy", 1, 1;
    copy_one_arm: OneArm, "copy", 1, 1;
    copy_two_arm_two_queues: TwoArm, "copy", 2, 1;
    copy_one_arm_two_queues: OneArm, "copy", 2, 1;
    copy_two_arm_two_workers: TwoArm, "copy", 2, 2;
    copy_one_arm_two_workers: OneArm, "copy", 2, 2;
    generic_two_arm: TwoArm, "generic", 1, 1;
    generic_one_arm: OneArm, "generic", 1, 1;
    generic_two_arm_two_queues: TwoArm, "generic", 2, 1;
    generic_one_arm_two_queues: OneArm, "generic", 2, 1;
    generic_two_arm_two_workers: TwoArm, "generic", 2, 2;
    generic_one_arm_two_workers: OneArm, "generic", 2, 2;
    tun_two_arm: TwoArm, "tun", 1, 1;
    tun_one_arm: OneArm, "tun", 1, 1;
    tun_to_copy: TwoArm, "tun to copy", 1, 1;
    copy_to_tun: TwoArm, "copy to tun", 1, 1;
    generic_to_tun: TwoArm, "generic to tun", 1, 1;
    generic_to_copy: TwoArm, "generic to copy", 1, 1;
    tun_to_copy_two_workers: TwoArm, "tun to copy", 2, 2;
    copy_to_tun_two_workers: TwoArm, "copy to tun", 2, 2;
    tun_two_arm_two_workers: TwoArm, "tun", 1, 2;
    tun_one_arm_two_workers: OneArm, "tun", 1, 2;
    routed_two_arm: TwoArm, "routed", 1, 1;
    routed_one_arm: OneArm, "routed", 1, 1;
    routed_two_arm_two_workers: TwoArm, "routed", 1, 2;
}
