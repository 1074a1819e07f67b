//! Timers: a profile, and what the file sets otherwise; with the least that the RFCs allow.

use std::collections::BTreeSet;

use conntrack::Timers;

use super::problem::{At, Problem};
use super::read::table;
use super::reader::Reader;
use super::rfc::Demand;

/// Where timers that the file does not set come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimerProfile {
    /// What the RFCs recommend.
    Rfc,
    /// netfilter's defaults.
    Conntrack,
    /// What managed cloud gateways do.
    Cloud,
}

impl TimerProfile {
    /// The profile's timers.
    pub fn timers(self) -> Timers {
        match self {
            TimerProfile::Rfc => Timers::RFC,
            TimerProfile::Conntrack => Timers::CONNTRACK,
            TimerProfile::Cloud => Timers::CLOUD,
        }
    }
}

impl std::fmt::Display for TimerProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TimerProfile::Rfc => "rfc",
            TimerProfile::Conntrack => "conntrack",
            TimerProfile::Cloud => "cloud",
        })
    }
}

const PROFILES: &[(&str, TimerProfile)] = &[
    ("rfc", TimerProfile::Rfc),
    ("conntrack", TimerProfile::Conntrack),
    ("cloud", TimerProfile::Cloud),
];

/// One timer: its key and the requirement that bounds it from below.
pub(super) struct Timer {
    /// The key in `[timers]`.
    pub(super) key: &'static str,
    /// The field that it sets.
    pub(super) field: fn(&mut Timers) -> &mut u32,
    /// The least that the RFCs allow, in seconds.
    pub(super) rfc_min_s: u32,
    /// Where they say so.
    pub(super) clause: &'static str,
    /// The same as in COMPLIANCE.md, and how it is asked for.
    pub(super) requirement: (&'static str, Demand),
    /// What a shorter one breaks.
    pub(super) breaks: &'static str,
}

pub(super) const TIMERS: &[Timer] = &[
    Timer {
        key: "udp_timeout_s",
        field: |timers| &mut timers.udp_timeout_ms,
        rfc_min_s: 120,
        clause: "RFC 4787 REQ-5",
        requirement: ("4787-5", Demand::Must),
        breaks: "UDP applications that send keep-alives less often lose their session",
    },
    Timer {
        key: "tcp_trans_open_timeout_s",
        field: |timers| &mut timers.tcp_trans_open_timeout_ms,
        rfc_min_s: 240,
        clause: "RFC 5382 REQ-5 (RFC 7857 section 2.1 lets an operator choose less)",
        requirement: ("7857-2.1", Demand::Should),
        breaks: "slow connection attempts are forgotten",
    },
    Timer {
        key: "tcp_idle_timeout_s",
        field: |timers| &mut timers.tcp_idle_timeout_ms,
        rfc_min_s: 7440,
        clause: "RFC 5382 REQ-5",
        requirement: ("5382-5", Demand::Must),
        breaks: "connections with the usual TCP keep-alive of 2 hours break while idle",
    },
    Timer {
        key: "tcp_trans_close_timeout_s",
        field: |timers| &mut timers.tcp_trans_close_timeout_ms,
        rfc_min_s: 240,
        clause: "RFC 5382 REQ-5 (RFC 7857 section 2.1 lets an operator choose less)",
        requirement: ("7857-2.1", Demand::Should),
        breaks: "late segments of closed connections are refused",
    },
    Timer {
        key: "tcp_in_syn_timeout_s",
        field: |timers| &mut timers.tcp_in_syn_timeout_ms,
        rfc_min_s: 6,
        clause: "RFC 5382 REQ-4",
        requirement: ("5382-4", Demand::Must),
        breaks: "hosts that open a connection to each other at the same time are told it failed",
    },
    Timer {
        key: "icmp_timeout_s",
        field: |timers| &mut timers.icmp_timeout_ms,
        rfc_min_s: 60,
        clause: "RFC 5508 REQ-2",
        requirement: ("5508-2", Demand::Must),
        breaks: "late echo replies are lost",
    },
    Timer {
        key: "fragment_timeout_s",
        field: |timers| &mut timers.fragment_timeout_ms,
        rfc_min_s: 2,
        clause: "RFC 6146 section 4 (FRAGMENT_MIN)",
        requirement: ("4787-14", Demand::Must),
        breaks: "datagrams whose fragments come out of order are lost",
    },
    Timer {
        key: "hold_down_s",
        field: |timers| &mut timers.hold_down_ms,
        rfc_min_s: 120,
        clause: "RFC 6888 REQ-8",
        requirement: ("6888-8", Demand::Should),
        breaks: "with filtering = \"eif\" a new client may get the packets of the last one",
    },
];

/// Whole milliseconds must fit 31 bits.
pub(super) const TIMEOUT_MAX_S: u32 = (i32::MAX / 1000) as u32;

/// Reads `[timers]`; warns of timers below the least that the RFCs allow.
pub(super) fn read(root: &Reader<'_, '_>, given: &mut BTreeSet<String>) -> (TimerProfile, Timers) {
    let table = table(root, "timers", given);
    let profile = table
        .as_ref()
        .and_then(|table| table.choice("profile", PROFILES));
    let chosen = profile.unwrap_or(At::default_value(TimerProfile::Rfc));
    let mut timers = chosen.value.timers();
    let mut low_in_profile = Vec::new();
    for timer in TIMERS {
        let min = u32::from(timer.key != "hold_down_s");
        let set = table
            .as_ref()
            .and_then(|table| table.integer(timer.key, min, TIMEOUT_MAX_S));
        let field = (timer.field)(&mut timers);
        if let Some(seconds) = set {
            *field = seconds.value * 1000;
        }
        if *field >= timer.rfc_min_s * 1000 {
            continue;
        }
        let Some(seconds) = set else {
            low_in_profile.push(format!(
                "{} {} ({})",
                timer.key,
                *field / 1000,
                timer.clause
            ));
            continue;
        };
        let what = format!("`timers.{}` is {} s", timer.key, seconds.value);
        let why = format!(
            "{} asks for {} s: {}",
            timer.clause, timer.rfc_min_s, timer.breaks
        );
        let problem = Problem::warning("timer-below-rfc", what).why(why);
        let fix = format!(
            "write {} or more, if nothing speaks against it",
            timer.rfc_min_s
        );
        root.complain(problem.fix(fix).at(seconds.span));
    }
    if !low_in_profile.is_empty() {
        let what = format!(
            "the timer profile \"{}\" is below what the RFCs ask for",
            chosen.value
        );
        let why = low_in_profile.join(", ");
        let problem = Problem::note("timer-below-rfc", what).why(why);
        let fix = "profile = \"rfc\" keeps to them";
        root.complain(problem.fix(fix).at(chosen.span));
    }
    (chosen.value, timers)
}
