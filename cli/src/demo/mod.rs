//! `egret demo`: real traffic through the real engine, in a lab of its own.

pub mod check;
pub mod clean;
pub mod forward;
pub mod hairpin;
pub mod host;
pub mod mtu;
pub mod ping;
pub mod pod;
pub mod report;
pub mod restart;
pub mod root;
pub mod setup;
pub mod spoofed;
pub mod tcp;
pub mod traceroute;
pub mod udp;
pub mod unsolicited;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::lab::capture::Pick;
use crate::lab::link::End;
use crate::lab::owner::{clean_up_on_signals, remove_leftovers};
use crate::lab::plan::{INTERNAL, ROUTER_LINK};
use crate::lab::{Capture, EngineProcess, Gateway, Lab, LabError, LabOptions, Topology};

use check::{CHECKS, Check, Miss, Stage, Verdict};
use report::{Progress, Report};
use setup::Tuning;

/// How the demo's namespaces are called; leftovers are found by it.
const PREFIX: &str = "egret-demo";

/// What the demo should do.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The topologies, in order.
    pub topologies: Vec<Topology>,
    /// `device.mode` of the gateway.
    pub mode: &'static str,
    /// The checks, by name; empty means all.
    pub only: Vec<String>,
    /// One JSON object a line on standard output, and nothing else.
    pub json: bool,
    /// Leave the labs and their gateways in place at the end.
    pub keep: bool,
    /// The `egret` binary.
    pub program: PathBuf,
}

/// Runs the demo; its exit status: 0 all held, 1 something did not, 2 it could not be run.
pub fn run(options: &DemoOptions) -> u8 {
    let unknown = options
        .only
        .iter()
        .find(|name| CHECKS.iter().all(|check| check.name != *name));
    if let Some(name) = unknown {
        let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        eprintln!(
            "egret demo: no check is called {name}; there are {}",
            names.join(", ")
        );
        return 2;
    }
    match run_topologies(options) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            eprintln!("egret demo: could not be run: {error}");
            2
        }
    }
}

/// Ends every lab that an earlier demo left.
pub fn clean() {
    for name in remove_leftovers(PREFIX) {
        eprintln!("removed the lab {name} of an earlier demo");
    }
}

/// Runs every topology, prints, and says whether all held.
fn run_topologies(options: &DemoOptions) -> Result<bool, LabError> {
    clean_up_on_signals()?;
    clean();
    let begun = Instant::now();
    let progress = Progress::new();
    let mut reports = Vec::new();
    let mut drops = Vec::new();
    let mut standing = Vec::new();
    for &topology in &options.topologies {
        progress.step(&format!("{}: building the lab", topology.name()));
        let lab = Lab::build(LabOptions {
            routed: options.mode == "routed",
            ..LabOptions::new(PREFIX, topology)
        })?;
        if options.mode == "generic" {
            lab.split_towards_gateway()?;
        }
        let tuning = Tuning {
            mode: Some(options.mode.to_owned()),
            ..Tuning::default()
        };
        let config = setup::config(&lab, &tuning);
        let mut engine = EngineProcess::new(&lab, &options.program, &config)?;
        progress.step(&format!("{}: starting the gateway", topology.name()));
        engine.start()?;
        let checks: Vec<&Check> = CHECKS
            .iter()
            .filter(|c| options.only.is_empty() || options.only.iter().any(|name| name == c.name))
            .collect();
        let (ended, counters) = run_checks(&lab, &mut engine, &checks, &progress)?;
        let told =
            |(moment, counters): &(&str, _)| report::drops(topology.name(), moment, counters);
        drops.extend(counters.iter().map(told));
        if ended.iter().any(Report::failed) {
            progress.line(&format!(
                "the gateway's log ends with\n{}",
                engine.log_tail()
            ));
        }
        reports.extend(ended);
        if options.keep {
            standing.push((engine, lab));
        } else {
            let report = stop(&lab, &mut engine);
            progress.ended(&report);
            reports.push(report);
        }
    }
    drop(progress);
    let held = !reports.iter().any(Report::failed);
    print(options.json, &reports, &drops, begun.elapsed());
    for (engine, mut lab) in standing {
        lab.keep();
        engine.release();
        eprintln!("{}", how_to_enter(&lab));
    }
    Ok(held)
}

/// Ends a gateway in good order: it says so by its status, and leaves no program behind.
pub fn stop(lab: &Lab, gateway: &mut dyn Gateway) -> Report {
    let begun = Instant::now();
    let mut verdict = || -> Verdict {
        let expected = "ends in good order after SIGTERM";
        gateway
            .stop()
            .map_err(|error| Miss::failed(expected, error.to_string()))?;
        for name in [lab.topology.internal_link(), lab.topology.external_link()] {
            let link = End {
                namespace: &lab.gateway,
                name,
            };
            if link.facts()?.has_xdp {
                let expected = "the interfaces are left as they were found";
                return Err(Miss::failed(expected, format!("{name} has an XDP program")));
            }
        }
        Ok("interfaces as they were found".to_owned())
    };
    let verdict = verdict();
    let name = format!("demo/{}/stop", lab.topology.name());
    Report {
        name,
        verdict,
        packets: 0,
        elapsed: begun.elapsed(),
    }
}

/// Says on standard output what came of it.
fn print(json: bool, reports: &[Report], drops: &[String], elapsed: Duration) {
    if json {
        for report in reports {
            println!("{}", report.json());
        }
        return;
    }
    let failed = reports.iter().filter(|report| report.failed()).count();
    let result = match failed {
        0 => "Everything held".to_owned(),
        count => format!("{count} of {} did not hold", reports.len()),
    };
    println!(
        "{}\n{}",
        report::table(reports, report::terminal_width()),
        drops.join("\n")
    );
    println!("\n{result}, in {:.1} s", elapsed.as_secs_f64());
}

/// Drop counters by reason, with the moment they were read at.
pub type Drops = Vec<(&'static str, BTreeMap<String, u64>)>;

/// Runs checks on a gateway that serves, watching all the while that nothing untranslated leaves.
///
/// # Errors
/// The lab itself does not work.
pub fn run_checks(
    lab: &Lab,
    gateway: &mut dyn Gateway,
    checks: &[&Check],
    progress: &Progress,
) -> Result<(Vec<Report>, Drops), LabError> {
    let topology = lab.topology.name();
    let mut watch = Watch::begin(lab)?;
    let mut reports = Vec::new();
    let mut stage = Stage {
        lab,
        gateway,
        drops: Vec::new(),
    };
    for check in checks {
        let name = format!("demo/{topology}/{}", check.name);
        progress.step(&format!("{name}: {}", check.about));
        let begun = Instant::now();
        let before = lab.gateway_traffic()?.received;
        let verdict = (check.run)(&mut stage);
        let elapsed = begun.elapsed();
        watch.note(check.name);
        let packets = lab.gateway_traffic()?.received - before;
        reports.push(Report {
            name,
            verdict,
            packets,
            elapsed,
        });
        reports.last().inspect(|report| progress.ended(report));
    }
    // A gateway that is gone by now has failed a check already.
    let _ = stage.note_drops("at the end");
    for (name, verdict) in [
        ("nothing-untranslated", watch.verdict(lab)),
        ("invariants", invariants(stage.gateway)),
    ] {
        let name = format!("demo/{topology}/{name}");
        reports.push(Report {
            name,
            verdict,
            packets: 0,
            elapsed: Duration::ZERO,
        });
        reports.last().inspect(|report| progress.ended(report));
    }
    Ok((reports, stage.drops))
}

/// Are the gateway's own tables in order, as it says itself?
fn invariants(gateway: &dyn Gateway) -> Verdict {
    match gateway.status()? {
        None => Err(Miss::Skipped(
            "this gateway says nothing about itself".to_owned(),
        )),
        Some(status) if status.invariants == "ok" => Ok(format!(
            "{} sessions, {} mappings",
            status.sessions, status.mappings
        )),
        Some(status) => Err(Miss::failed("tables in order", status.invariants)),
    }
}

/// Looks at the external link all the time: invariant 1, nothing leaves with an internal source.
struct Watch {
    capture: Capture,
    received_before: u64,
    /// During which checks something left, and how many packets.
    leaks: Vec<(&'static str, usize)>,
}

impl Watch {
    fn begin(lab: &Lab) -> Result<Watch, LabError> {
        // On one segment a switch may flood what one client sends to the gateway: that is not the
        // gateway's doing, and not addressed to the router.
        let router = lab.router.link_address(ROUTER_LINK)?.addr();
        let pick = Pick {
            source: Some(INTERNAL),
            to: router,
        };
        Ok(Watch {
            capture: Capture::open(&lab.router, ROUTER_LINK, pick)?,
            received_before: lab.router.traffic(ROUTER_LINK)?.received,
            leaks: Vec::new(),
        })
    }

    fn note(&mut self, check: &'static str) {
        let count = self.capture.take().len();
        if count > 0 {
            self.leaks.push((check, count));
        }
    }

    fn verdict(&self, lab: &Lab) -> Verdict {
        if !self.leaks.is_empty() {
            let leaks: Vec<String> = self
                .leaks
                .iter()
                .map(|(check, count)| format!("{count} in {check}"))
                .collect();
            let expected = format!("no packet from {INTERNAL} leaves the gateway");
            return Err(Miss::failed(expected, leaks.join(", ")));
        }
        let received = lab.router.traffic(ROUTER_LINK)?.received - self.received_before;
        Ok(format!("0 of {received} packets from {INTERNAL}"))
    }
}

/// For a lab that stays: how to look around in it.
fn how_to_enter(lab: &Lab) -> String {
    let mut text = format!("The lab {} stays, its gateway running:\n", lab.name());
    for (namespace, what) in lab.roles() {
        text += &format!("  ip netns exec {namespace} sh    # {what}\n");
    }
    let control = EngineProcess::control_path(lab);
    text += &format!("  control socket: {}\n", control.display());
    text += "Without the ip command: nsenter --net=/run/netns/NAME sh\n";
    text + "The next `egret demo`, or `egret demo --clean`, removes it."
}
