//! iperf3, TCP and UDP, both ways.

use egret_cli::lab::plan::SERVERS;
use egret_cli::lab::{Host, Topology};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{self, Daemon, command};
use crate::{LIMIT, stand};

/// Runs an iperf3 client of 8 streams for 2 s and returns its report. No interval may be silent.
fn iperf3(from: &Host, options: &[&str]) -> serde_json::Value {
    let mut iperf3 = command("iperf3");
    let server = SERVERS[0].to_string();
    iperf3.args([
        "--client",
        &server,
        "--json",
        "--time",
        "2",
        "--parallel",
        "8",
    ]);
    let said = kernel::run(&from.namespace, iperf3.args(options), LIMIT);
    let text = said.text();
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report");
    assert!(
        report["error"].is_null(),
        "{options:?}: {}",
        report["error"]
    );
    let intervals = report["intervals"].as_array().expect("intervals");
    for interval in intervals {
        let rate = interval["sum"]["bits_per_second"].as_f64().expect("a rate");
        assert!(rate > 0.0, "{options:?}: a silent interval: {text}");
    }
    assert!(!intervals.is_empty());
    report["end"].clone()
}

fn iperf3_streams(topology: Topology, backend: Backend) {
    let Some(stand) = stand(topology, backend, &[("iperf3", "iperf3")]) else {
        return;
    };
    // A server of its own for each run: between two of them one listens anew, and resets whoever
    // comes too soon.
    let run = |options: &[&str]| {
        let server = &stand.lab.servers[0].namespace;
        let mut program = command("iperf3");
        let _daemon = Daemon::start(&stand.lab, server, program.arg("--server"), &[5201]);
        iperf3(&stand.lab.clients[0], options)
    };
    for direction in [&[][..], &["--reverse"]] {
        let end = run(direction);
        let received = end["sum_received"]["bytes"].as_u64().expect("bytes");
        // A tenth of what the gateway must do, since other tests run beside this one.
        assert!(
            received > 25_000_000,
            "TCP {direction:?}: {received} bytes in 2 s"
        );
        let udp = [&["--udp", "--bitrate", "5M", "--length", "1200"], direction].concat();
        let sum = &run(&udp)["sum"];
        let lost = sum["lost_percent"].as_f64().expect("a loss");
        let rate = sum["bits_per_second"].as_f64().expect("a rate");
        assert!(lost < 1.0, "UDP {direction:?}: {lost} % lost");
        assert!(rate > 35e6, "UDP {direction:?}: {rate} bit/s of 40 million");
    }
    stand.finish();
}

on_both_backends! {
    iperf3_two_arm: |backend| iperf3_streams(Topology::TwoArm, backend);
    iperf3_one_arm: |backend| iperf3_streams(Topology::OneArm, backend);
}
