//! The demo's checks against a stand-in gateway: the kernel's own NAT. They must hold where it is
//! set up right, and each must fail where the thing that it looks for is missing.

mod common;

use std::sync::Mutex;

use egret_cli::demo::check::{CHECKS, Check, Miss};
use egret_cli::demo::pod::{nft, nft_present};
use egret_cli::demo::report::{Progress, Report};
use egret_cli::demo::setup::{FORWARD_LISTED, FORWARD_OPEN, FORWARD_TARGET, HAIRPIN_TARGET};
use egret_cli::demo::{run_checks, stop};
use egret_cli::lab::owner::remove_leftovers;
use egret_cli::lab::plan::{EXTERNAL, INTERNAL, POD, SERVER_NETS, client};
use egret_cli::lab::{Gateway, Lab, LabError, LabOptions, Status, Topology};

/// Begins the names of this test's namespaces.
const PREFIX: &str = "egret-ts";

/// What the stand-in does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Forwards without translating.
    NoTranslation,
    /// Every second new connection leaves untranslated.
    SomeUntranslated,
    /// Drops the ICMP errors that come back.
    NoErrors,
    /// The forward has no allow-list.
    OpenForward,
    /// Connections between clients keep their internal source.
    NoHairpin,
    /// Drops what is for the gateway's own sockets, but pings.
    NoHost,
    /// Lets everything in.
    OpenInside,
    /// Takes internal sources from outside.
    NoSpoofCheck,
    /// Goes on translating while it should be dead.
    Undead,
    /// Does not come back.
    StaysDead,
    /// Forwards untranslated while it is dead.
    LeaksWhenDead,
}

/// The kernel's NAT, with forwarding as its switch.
struct StandIn<'a> {
    lab: &'a Lab,
    fault: Fault,
}

impl StandIn<'_> {
    fn rules(&self) -> String {
        let unless = |fault: Fault, rule: String| match self.fault == fault {
            true => String::new(),
            false => rule,
        };
        let when = |fault: Fault, rule: &str| match self.fault == fault {
            true => rule.to_owned(),
            false => String::new(),
        };
        let target = client(2);
        let allowed = match self.fault {
            Fault::OpenForward => String::new(),
            _ => format!("ip saddr {}", SERVER_NETS[0]),
        };
        let external = self.lab.topology.external_link();
        let spoof = match self.lab.topology {
            Topology::OneArm => String::new(),
            Topology::TwoArm => unless(
                Fault::NoSpoofCheck,
                format!("iifname {external} ip saddr {INTERNAL} drop"),
            ),
        };
        let snat = unless(
            Fault::NoTranslation,
            format!("ip saddr {INTERNAL} ip daddr != {INTERNAL} masquerade"),
        );
        let some = when(Fault::SomeUntranslated, "numgen inc mod 2 0 accept");
        let hairpin = unless(
            Fault::NoHairpin,
            format!("ip saddr {INTERNAL} ip daddr {INTERNAL} ct status dnat snat to {EXTERNAL}"),
        );
        let errors = when(
            Fault::NoErrors,
            "icmp type { destination-unreachable, time-exceeded } drop",
        );
        let inside = when(Fault::OpenInside, "accept");
        let forged = when(Fault::NoSpoofCheck, "accept");
        let host = when(Fault::NoHost, "meta l4proto { tcp, udp } drop");
        format!(
            "table ip standin {{
               chain raw {{ type filter hook prerouting priority raw;
                 {spoof}
               }}
               chain pre {{ type nat hook prerouting priority dstnat;
                 ip daddr {EXTERNAL} tcp dport {FORWARD_LISTED} {allowed} dnat to {target}:{FORWARD_TARGET}
                 ip daddr {EXTERNAL} tcp dport {FORWARD_OPEN} dnat to {target}:{HAIRPIN_TARGET}
               }}
               chain post {{ type nat hook postrouting priority srcnat; {some}
                 {snat}
                 {hairpin}
               }}
               chain input {{ type filter hook input priority filter;
                 {host}
               }}
               chain forward {{ type filter hook forward priority filter; policy drop; {inside}
                 {errors}
                 {forged}
                 ct state invalid drop
                 ct state established,related accept
                 ct status dnat accept
                 ip saddr {INTERNAL} ip daddr != {INTERNAL} accept
                 ip saddr {POD} accept
               }}
             }}"
        )
    }

    fn set_forwarding(&self, on: bool) -> Result<(), LabError> {
        self.lab
            .gateway
            .set_sysctl("ipv4/ip_forward", if on { "1" } else { "0" })
    }
}

impl Gateway for StandIn<'_> {
    fn start(&mut self) -> Result<(), LabError> {
        // On one segment the kernel would tell the clients of the router.
        self.lab
            .gateway
            .set_sysctl("ipv4/conf/all/send_redirects", "0")?;
        let link = self.lab.topology.external_link();
        self.lab
            .gateway
            .set_sysctl(&format!("ipv4/conf/{link}/send_redirects"), "0")?;
        if nft(&self.lab.gateway, &["list", "table", "ip", "standin"]).is_err() {
            nft(&self.lab.gateway, &[&self.rules()])?;
        } else if self.fault == Fault::StaysDead {
            return Ok(());
        }
        self.set_forwarding(true)
    }

    fn kill(&mut self) {
        let dead = match self.fault {
            Fault::Undead => Ok(()),
            Fault::LeaksWhenDead => nft(
                &self.lab.gateway,
                // New connections leave as they are, in front of the translating rule.
                &["insert rule ip standin post accept"],
            )
            .map(drop),
            _ => self.set_forwarding(false),
        };
        dead.expect("the stand-in can be switched");
    }

    fn stop(&mut self) -> Result<(), LabError> {
        self.set_forwarding(false)
    }

    fn status(&self) -> Result<Option<Status>, LabError> {
        Ok(None)
    }

    fn log_tail(&self) -> String {
        String::new()
    }
}

/// The lab takes both cores for itself: one at a time, or timing bounds mean nothing.
static ONE: Mutex<()> = Mutex::new(());

/// May the test run? Says why not.
fn possible() -> bool {
    if !nix::unistd::geteuid().is_root() {
        common::skip("network namespaces need root");
        return false;
    }
    if !nft_present() {
        common::skip("the stand-in gateway needs nft");
        return false;
    }
    remove_leftovers(PREFIX);
    true
}

fn run(topology: Topology, fault: Fault, names: &[&str]) -> Vec<Report> {
    let _one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::build(LabOptions::new(PREFIX, topology)).expect("the lab");
    let mut gateway = StandIn { lab: &lab, fault };
    gateway.start().expect("the stand-in");
    let checks: Vec<&Check> = CHECKS
        .iter()
        .filter(|check| names.contains(&check.name))
        .collect();
    assert_eq!(
        checks.len(),
        names.len(),
        "a check of {names:?} does not exist"
    );
    let (mut reports, _) =
        run_checks(&lab, &mut gateway, &checks, &Progress::new()).expect("the checks run");
    reports.push(stop(&lab, &mut gateway));
    reports
}

fn report<'a>(reports: &'a [Report], name: &str) -> &'a Report {
    reports
        .iter()
        .find(|report| report.name.ends_with(&format!("/{name}")))
        .unwrap_or_else(|| panic!("no report of {name}"))
}

/// Every check holds with the stand-in, but the one that wants no rule at all.
fn all_hold(topology: Topology) {
    if !possible() {
        return;
    }
    let names: Vec<&str> = CHECKS
        .iter()
        .map(|check| check.name)
        .filter(|name| *name != "no-netfilter")
        .collect();
    let reports = run(topology, Fault::None, &names);
    for report in &reports {
        let skipped = matches!(&report.verdict, Err(Miss::Skipped(_)));
        let may_skip = ["spoofed", "invariants"]
            .iter()
            .any(|name| report.name.ends_with(name));
        assert!(
            report.verdict.is_ok() || (skipped && may_skip),
            "{report:?}"
        );
        let idle = report.elapsed.is_zero() || report.name.ends_with("/stop");
        assert!(skipped || report.packets > 0 || idle, "{report:?}");
    }
}

#[test]
fn all_hold_in_two_arms() {
    all_hold(Topology::TwoArm);
}

#[test]
fn all_hold_in_one_arm() {
    all_hold(Topology::OneArm);
}

/// With this fault exactly these checks fail, out of those and `good`.
fn exactly(topology: Topology, fault: Fault, bad: &[&str], good: &[&str]) {
    if !possible() {
        return;
    }
    let watch = ["nothing-untranslated"];
    let all = [bad, good].concat();
    let names: Vec<&str> = all
        .into_iter()
        .filter(|name| !watch.contains(name))
        .collect();
    let reports = run(topology, fault, &names);
    for name in bad {
        assert!(
            report(&reports, name).failed(),
            "{fault:?}: {:?}",
            report(&reports, name)
        );
    }
    for name in good {
        assert!(
            !report(&reports, name).failed(),
            "{fault:?}: {:?}",
            report(&reports, name)
        );
    }
}

#[test]
fn no_translation_is_noticed() {
    let bad = [
        "udp",
        "ping",
        "traceroute",
        "nothing-untranslated",
        "no-netfilter",
    ];
    exactly(Topology::TwoArm, Fault::NoTranslation, &bad, &[]);
    exactly(
        Topology::OneArm,
        Fault::NoTranslation,
        &["tcp", "nothing-untranslated"],
        &[],
    );
}

#[test]
fn a_flow_that_is_left_out_is_noticed() {
    let bad = ["udp", "nothing-untranslated"];
    exactly(Topology::OneArm, Fault::SomeUntranslated, &bad, &[]);
}

#[test]
fn missing_errors_are_noticed() {
    // The gateway's own errors are not forwarded ones; those from beyond are.
    let bad = ["traceroute", "small-mtu"];
    exactly(
        Topology::TwoArm,
        Fault::NoErrors,
        &bad,
        &["ping", "nothing-untranslated"],
    );
}

#[test]
fn a_forward_without_its_list_is_noticed() {
    exactly(
        Topology::TwoArm,
        Fault::OpenForward,
        &["forward"],
        &["hairpin"],
    );
}

#[test]
fn a_hairpin_with_an_internal_source_is_noticed() {
    exactly(
        Topology::TwoArm,
        Fault::NoHairpin,
        &["hairpin"],
        &["forward"],
    );
}

#[test]
fn a_host_cut_off_is_noticed() {
    exactly(Topology::OneArm, Fault::NoHost, &["host"], &["ping"]);
}

#[test]
fn an_open_inside_is_noticed() {
    exactly(
        Topology::TwoArm,
        Fault::OpenInside,
        &["unsolicited"],
        &["ping"],
    );
    exactly(
        Topology::OneArm,
        Fault::OpenInside,
        &["unsolicited"],
        &["ping"],
    );
}

#[test]
fn a_forged_source_is_noticed() {
    exactly(
        Topology::TwoArm,
        Fault::NoSpoofCheck,
        &["spoofed"],
        &["ping"],
    );
}

#[test]
fn a_bad_restart_is_noticed() {
    exactly(
        Topology::TwoArm,
        Fault::Undead,
        &["restart"],
        &["nothing-untranslated"],
    );
    let leak = ["restart", "nothing-untranslated"];
    exactly(Topology::TwoArm, Fault::LeaksWhenDead, &leak, &["ping"]);
    exactly(
        Topology::TwoArm,
        Fault::StaysDead,
        &["restart"],
        &["nothing-untranslated"],
    );
}
