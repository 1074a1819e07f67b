//! TCP through the gateway, by iperf3: how much arrives, and what it costs the gateway's core.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Bench;
use crate::bench::path::choice::Test;
use crate::bench::path::pin::{self, CoreTime, GATEWAY_CORE, SENDER_CORE};
use crate::bench::path::rounds::Reading;
use crate::bench::path::stage::SERVER;
use crate::lab::{LabError, Namespace, wait};

/// How much longer than its measurement iperf3 may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// iperf3's port, in hexadecimal as in /proc/net/tcp.
const PORT: &str = "1451";

/// A process that ends with this value.
struct Process(Child);

impl Process {
    fn start(namespace: &Namespace, arguments: &[&str]) -> Result<Process, LabError> {
        let mut command = Command::new("iperf3");
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        namespace
            .run(|| command.spawn())
            .map(Process)
            .map_err(LabError::system("running iperf3"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What arrived in one run of iperf3.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Arrived {
    bytes: f64,
    bits_per_second: f64,
}

impl Bench {
    /// Gbit/s that arrive over some streams, MTU 1500, offloads as the kernel has them; and in a run
    /// of its own the CPU time that this takes.
    pub(super) fn tcp(&mut self, test: Test, streams: u32) -> Result<Vec<Reading>, LabError> {
        let rate = self.iperf3(streams)?.bits_per_second / 1e9;
        let mut readings = vec![Reading::new(test.name(), "Gbit/s", rate)];
        // What receives on the sender's core is not the gateway core's.
        if !self.receive_on_sender_core {
            readings.push(self.tcp_cpu(test, streams)?);
        }
        Ok(readings)
    }

    /// CPU time of the gateway's core for each KiB that arrives. The ends have the other core, and
    /// the gateway's own receives for it, as with a network card whose interrupts come there. A packet
    /// that its sender leaves to be segmented goes past NAPI and its threads: so it is the time in
    /// which the core is not idle that counts, whoever runs there.
    fn tcp_cpu(&self, test: Test, streams: u32) -> Result<Reading, LabError> {
        let measure = || {
            let before = CoreTime::read(GATEWAY_CORE)?;
            let arrived = self.iperf3(streams);
            Ok((before, arrived, CoreTime::read(GATEWAY_CORE)?))
        };
        self.stage.receive_on_own_cores(true)?;
        let measured = pin::while_on_core(SENDER_CORE, || {
            measure().map_err(LabError::system("reading a core's time"))
        });
        self.stage.receive_on_own_cores(false)?;
        let (before, arrived, after) = measured?;
        let ns = after.busy_since(before).as_secs_f64() * 1e9;
        let kib = (arrived?.bytes / 1024.0).max(1.0);
        let name = format!("{}-cpu", test.name());
        Ok(Reading::new(name, "ns/KiB", ns / kib))
    }

    /// One run.
    fn iperf3(&self, streams: u32) -> Result<Arrived, LabError> {
        let _server = Process::start(&self.stage.server, &["--server", "--one-off"])?;
        if !wait::until(PATIENCE, || is_listening(&self.stage.server)) {
            return Err(LabError::Gateway("iperf3 does not listen".to_owned()));
        }
        let seconds = self.length.as_secs_f64().ceil();
        let mut client = Process::start(
            &self.stage.client,
            &[
                "--client",
                &SERVER.to_string(),
                "--json",
                "--time",
                &seconds.to_string(),
                "--parallel",
                &streams.to_string(),
            ],
        )?;
        let limit = Duration::from_secs_f64(seconds) + PATIENCE;
        // Its report is shorter than a pipe is long.
        if !wait::until(limit, || !matches!(client.0.try_wait(), Ok(None))) {
            return Err(LabError::Gateway("iperf3 did not end in time".to_owned()));
        }
        let stdout = client.0.stdout.take();
        let report = stdout.map(std::io::read_to_string).transpose();
        let report = report.map_err(LabError::system("reading iperf3's report"))?;
        received(&report.unwrap_or_default())
    }
}

/// Does anything listen on iperf3's port?
fn is_listening(namespace: &Namespace) -> bool {
    let listens = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        text.is_ok_and(|text| {
            text.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words
                    .get(1)
                    .is_some_and(|local| local.ends_with(&format!(":{PORT}")))
                    && words.get(3) == Some(&"0A")
            })
        })
    };
    namespace
        .run(|| Ok(listens("tcp") || listens("tcp6")))
        .unwrap_or(false)
}

/// What arrived, from iperf3's report.
fn received(report: &str) -> Result<Arrived, LabError> {
    let value: serde_json::Value = serde_json::from_str(report).unwrap_or_default();
    let sum = &value["end"]["sum_received"];
    let numbers = sum["bytes"].as_f64().zip(sum["bits_per_second"].as_f64());
    let (bytes, bits_per_second) = numbers.ok_or_else(|| {
        let error = value["error"].as_str().unwrap_or("no report");
        LabError::Gateway(format!("iperf3: {error}"))
    })?;
    Ok(Arrived {
        bytes,
        bits_per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_arrived_or_what_went_wrong() {
        let good = r#"{"end":{"sum_received":{"bytes":7e8,"bits_per_second":2.5e9}}}"#;
        let arrived = Arrived {
            bytes: 7e8,
            bits_per_second: 2.5e9,
        };
        assert_eq!(received(good).unwrap(), arrived);
        let refused = received(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(refused.to_string().contains("unable to connect"));
        assert!(received("").is_err());
    }
}
