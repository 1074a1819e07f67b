//! The tun driver's own: big packets stay whole from end to end, and links that AF_XDP has no
//! buffers for.

mod kernel;

use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::demo::setup::Tuning;
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{LabOptions, Topology, wait};
use kernel::{Stand, is_root};

const PREFIX: &str = "egret-tg";
/// Counters are told once a second.
const TOLD: Duration = Duration::from_secs(3);
/// Bytes in each direction.
const BULK: u64 = 96 << 20;

fn tuning(mode: &str) -> Tuning {
    Tuning {
        mode: Some(mode.to_owned()),
        ..Tuning::default()
    }
}

/// Bytes that came to the gateway, and how many of them in packets above 32 KiB.
fn bytes(stand: &Stand) -> (u64, u64) {
    let status = stand.status();
    let sockets = status["sockets"].as_object().expect("sockets").values();
    let sum = |name: &str| {
        let sockets = sockets.clone();
        sockets.filter_map(|counters| counters[name].as_u64()).sum()
    };
    (sum("bytes"), sum("bytes_big"))
}

fn bulk(topology: Topology) {
    if !is_root() {
        return;
    }
    let options = LabOptions {
        external_mtu: 1500,
        ..LabOptions::new(PREFIX, topology)
    };
    let stand = Stand::start(options, &tuning("tun"));
    let service = TcpService::start(&stand.lab.servers[0].namespace, 5001).expect("a server");
    let client = &stand.lab.clients[0].namespace;
    exchange(client, at(0, 5001), BULK, 77).expect("every byte as it was sent");
    drop(service);
    let all = || bytes(&stand).0 >= 2 * BULK;
    assert!(wait::until(TOLD, all), "{:?} bytes", bytes(&stand));
    let (all, big) = bytes(&stand);
    println!("{big} of {all} bytes in big packets");
    assert!(big as f64 >= 0.9 * all as f64, "{big} of {all} bytes");
    let counters = &stand.status()["counters"];
    assert_eq!(counters["checksums_completed"], 0, "the kernel does that");
    assert_eq!(counters["split"], 0);
    stand.finish();
}

#[test]
fn bulk_goes_in_big_packets_two_arm() {
    bulk(Topology::TwoArm);
}

#[test]
fn bulk_goes_in_big_packets_one_arm() {
    bulk(Topology::OneArm);
}

#[test]
fn where_frames_fit_no_buffer_the_tun_driver_is_found() {
    if !is_root() {
        return;
    }
    let options = LabOptions {
        mtu: 9001,
        external_mtu: 1500,
        ..LabOptions::new(PREFIX, Topology::TwoArm)
    };
    let stand = Stand::start(options, &tuning("auto"));
    let status = stand.status();
    assert_eq!(
        (&status["mode"], &status["self_test"]),
        (&"tun".into(), &"passed".into())
    );
    let refused = status["modes_refused"].as_array().expect("a list");
    assert_eq!(refused.len(), 3, "{refused:?}");
    for refused in refused {
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(
            reason.contains("lan0") && reason.contains("9001"),
            "{reason}"
        );
    }
    let service = TcpService::start(&stand.lab.servers[0].namespace, 5001).expect("a server");
    let client = &stand.lab.clients[0].namespace;
    exchange(client, at(0, 5001), 8 << 20, 78).expect("from big frames to small ones");
    drop(service);
    stand.finish();
}
