//! What is said of quotas and denied destinations that do nothing, or not what they seem to, word
//! for word.

use engine::config::Config;
use engine::plan::Plan;
use support::{MINIMAL, host_with};

mod support;

/// Errors, or else warnings, of a file that goes on from the smallest one.
fn said(more: &str) -> String {
    let text = format!("{MINIMAL}{more}");
    let config = match Config::parse("egret.toml", &text) {
        Ok(config) => config,
        Err(error) => return error.to_string(),
    };
    let host = host_with(|_| ());
    let problems = match Plan::make(&config, &host) {
        Ok(plan) => plan.problems,
        Err(problems) => problems,
    };
    let shown: Vec<String> = problems
        .iter()
        .map(|problem| problem.render(&config.source))
        .collect();
    shown.join("\n")
}

#[track_caller]
fn says(more: &str, expected: &str) {
    let said = said(more);
    assert_eq!(said.trim(), expected.trim(), "\n{said}");
}

#[test]
fn quotas_that_are_well() {
    says("[limits]\nsessions_per_subscriber = 5\n", "");
    says("[limits]\nports_per_subscriber = { udp = 5 }\n", "");
    says(
        "deny = [\"169.254.169.254/32\"]\n[limits]\nmappings_per_second_per_subscriber = 5000\n",
        "",
    );
}

#[test]
fn a_table_without_a_protocol() {
    says(
        "[limits]\nsessions_per_subscriber = {}\n",
        r#"
error: `limits.sessions_per_subscriber` is an empty table
  --> egret.toml:4:27
   |
 4 | sessions_per_subscriber = {}
   |                           ^^
   = why: it sets nothing
   = fix: write a number for a protocol, or leave the key out
"#,
    );
}

#[test]
fn a_quota_of_nothing() {
    says(
        "[limits]\nports_per_subscriber = { tcp = 0, sctp = 5 }\n",
        r#"
error: `limits.ports_per_subscriber` is 0
  --> egret.toml:4:32
   |
 4 | ports_per_subscriber = { tcp = 0, sctp = 5 }
   |                                ^
   = why: it takes 1 to 16777216
   = fix: write 1 or more

error: there is no protocol `sctp` for `limits.ports_per_subscriber`
  --> egret.toml:4:35
   |
 4 | ports_per_subscriber = { tcp = 0, sctp = 5 }
   |                                   ^^^^
   = why: it takes `tcp`, `udp` or `icmp`
   = fix: write one of these
"#,
    );
}

#[test]
fn a_burst_without_a_rate() {
    says(
        "[limits]\nmapping_burst_per_subscriber = 5\n",
        r#"
error: `limits.mapping_burst_per_subscriber` is set without a rate
  --> egret.toml:4:32
   |
 4 | mapping_burst_per_subscriber = 5
   |                                ^
   = why: a burst is what may come before the rate is felt
   = fix: add limits.mappings_per_second_per_subscriber, or remove the burst
"#,
    );
}

#[test]
fn a_rate_of_nothing_is_one_error() {
    says(
        "[limits]\nmappings_per_second_per_subscriber = 0\nmapping_burst_per_subscriber = 5\n",
        r#"
error: `limits.mappings_per_second_per_subscriber` is 0
  --> egret.toml:4:38
   |
 4 | mappings_per_second_per_subscriber = 0
   |                                      ^
   = why: it takes 1 to 1000000
   = fix: write 1 or more
"#,
    );
}

#[test]
fn a_burst_that_the_clock_does_not_let_the_rate_through() {
    says(
        "[limits]\nmappings_per_second_per_subscriber = 5000\nmapping_burst_per_subscriber = 4\n",
        r#"
warning: `limits.mapping_burst_per_subscriber` is 4, with 5000 a second
  = why: time is counted in milliseconds: the rate is not reached with so small a burst
  = fix: write 5 or more, or leave the key out
"#,
    );
}

#[test]
fn everything_denied() {
    says(
        "deny = \"0.0.0.0/0\"\n",
        r#"
error: "0.0.0.0/0" in `deny` is every destination
  --> egret.toml:3:8
   |
 3 | deny = "0.0.0.0/0"
   |        ^^^^^^^^^^^
   = why: then nothing would be translated
   = fix: name only the destinations that are meant
"#,
    );
}

#[test]
fn denied_where_the_kernel_carries() {
    says(
        "bypass = \"10.42.0.0/16\"\ndeny = [\"10.42.7.0/24\", \"10.77.0.0/16\"]\n",
        r#"
warning: `bypass` is given, and ip_forward is 0
  --> egret.toml:3:10
   |
 3 | bypass = "10.42.0.0/16"
   |          ^^^^^^^^^^^^^^
   = why: the kernel forwards no packet that Egret leaves to it: bypassed destinations that are not on this host cannot be reached
   = fix: sysctl -w net.ipv4.ip_forward=1

warning: 10.42.7.0/24 in `deny` overlaps 10.42.0.0/16 in `bypass`
  --> egret.toml:4:9
   |
 4 | deny = ["10.42.7.0/24", "10.77.0.0/16"]
   |         ^^^^^^^^^^^^^^
   = why: what is bypassed is left to the kernel
   = fix: deny that part in the kernel's FORWARD rules

warning: 10.77.0.0/16 in `deny` overlaps 10.77.0.0/24 in `internal`
  --> egret.toml:4:25
   |
 4 | deny = ["10.42.7.0/24", "10.77.0.0/16"]
   |                         ^^^^^^^^^^^^^^
   = why: what clients send to internal addresses is left to the kernel
   = fix: deny that part in the kernel's FORWARD rules
"#,
    );
}

#[test]
fn more_clients_than_can_be_counted() {
    let large = "internal = [\"10.77.0.0/24\", \"172.16.0.0/12\"]\ninterface = \"eth0\"\n\
                 [limits]\nsessions_per_subscriber = 100\n";
    let config = Config::parse("egret.toml", large).unwrap_or_else(|error| panic!("{error}"));
    let plan = Plan::make(&config, &host_with(|_| ())).expect("a plan");
    let shown: Vec<String> = plan
        .problems
        .iter()
        .map(|p| p.render(&config.source))
        .collect();
    let said = shown.join("\n");
    assert_eq!(said.trim(), r#"
warning: there are quotas, and 1048832 internal addresses
  --> egret.toml:1:13
   |
 1 | internal = ["10.77.0.0/24", "172.16.0.0/12"]
   |             ^^^^^^^^^^^^^^
   = why: 1048576 sessions have room to count for 49152 clients at a time: the others would be refused (subscribers_full)
   = fix: narrow `internal` to the clients that there are, or raise tables.sessions_max: a client for every 22 sessions
"#.trim(), "\n{said}");
}
