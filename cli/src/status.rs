//! `egret status`: what a running gateway tells of itself.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use engine::control::request::Request;
use serde_json::Value;

use crate::target::Target;

/// Arguments of `egret status`.
#[derive(clap::Args, Clone, Debug)]
pub struct StatusArgs {
    /// Which gateway
    #[command(flatten)]
    pub target: Target,
    /// Print the answer as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Asks and prints. Exit status: 0 it answered, 2 it could not be asked.
pub fn run(args: &StatusArgs) -> ExitCode {
    let status = match args.target.ask("status", &Request::STATUS, 2) {
        Ok(status) => status,
        Err(exit) => return exit,
    };
    if args.json {
        println!("{status}");
    } else {
        print!("{}", text(&status));
    }
    ExitCode::SUCCESS
}

/// What went wrong below the workers, by the counter's name. That the kernel found a transmit ring
/// empty is nothing wrong, so it has no row.
const SOCKET_ROWS: [(&str, &str); 7] = [
    ("rx_ring_full", "kernel dropped at {}: receive ring full"),
    ("fill_ring_empty", "kernel dropped at {}: no free frame"),
    ("rx_dropped", "kernel dropped at {}: other reasons"),
    ("rx_invalid", "kernel dropped at {}: bad fill entry"),
    ("tx_invalid", "kernel refused at {}: bad transmit entry"),
    ("ring_invalid", "bad ring entries of the kernel at {}"),
    ("wake_errors", "kernel refused a wake-up at {}"),
];

/// A number with thousands set apart.
fn number(value: &Value) -> String {
    let digits = value.as_u64().unwrap_or(0).to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn sum(value: &Value) -> Value {
    let parts = value.as_array().into_iter().flatten();
    parts.filter_map(Value::as_u64).sum::<u64>().into()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

fn text(status: &Value) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let counters = &status["counters"];
    let _ = writeln!(
        out,
        "egret {}, up {} s, frames exchanged by {}",
        string(&status["version"]),
        status["uptime_s"],
        match status["mode"].as_str() {
            Some("mixed") => "mixed modes".to_owned(),
            _ => string(&status["mode"]),
        }
    );
    if let Some(left_s) = status["confirm_within_s"].as_u64() {
        let _ = writeln!(
            out,
            "  on trial: detaches in {left_s} s unless `egret confirm` is run"
        );
    }
    if let Some(why) = status["tun_first"].as_str() {
        let _ = writeln!(out, "  tun was tried first: {why}");
    }
    for interface in status["interfaces"].as_array().into_iter().flatten() {
        let addresses: Vec<String> = interface["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .map(string)
            .collect();
        let _ = writeln!(
            out,
            "{} ({}): {}, MTU {}, {}, by {}",
            string(&interface["name"]),
            string(&interface["role"]),
            string(&interface["mac"]),
            interface["mtu"],
            addresses.join(", "),
            string(&interface["mode"])
        );
        for refused in interface["modes_refused"].as_array().into_iter().flatten() {
            let (mode, reason) = (string(&refused["mode"]), string(&refused["reason"]));
            let _ = writeln!(out, "  not by {mode}: {reason}");
        }
        if let Some(why) = interface["self_test"]
            .as_str()
            .filter(|&why| why != "passed")
        {
            let _ = writeln!(out, "  no test frame was sent: {why}");
        }
        if interface["present"] == false {
            let _ = writeln!(
                out,
                "  gone: bring it back, then restart egret to serve it again"
            );
        }
    }
    for own in status["pool"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "pool: {} ({})",
            string(&own["address"]),
            string(&own["kind"])
        );
    }
    let ports = &status["ports_in_use"];
    let _ = writeln!(
        out,
        "sessions {} of {} ({} opened from outside), mappings {}, ports in use: tcp {}, udp {}, icmp {}",
        number(&status["sessions"]),
        number(&status["sessions_max"]),
        number(&status["sessions_inbound"]),
        number(&status["mappings"]),
        number(&ports["tcp"]),
        number(&ports["udp"]),
        number(&ports["icmp"])
    );
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_header(["frames", "count"]);
    table.add_row(["received".to_owned(), number(&sum(&counters["received"]))]);
    table.add_row(["sent".to_owned(), number(&sum(&counters["transmitted"]))]);
    table.add_row(["made by Egret".to_owned(), number(&counters["made"])]);
    table.add_row(["given to the host".to_owned(), number(&counters["punted"])]);
    for (reason, count) in status["drops"].as_object().into_iter().flatten() {
        table.add_row([format!("dropped: {reason}"), number(count)]);
    }
    let unserved = &status["steering"]["unserved"];
    if unserved.as_u64().is_some_and(|count| count > 0) {
        table.add_row(["on queues without a socket".to_owned(), number(unserved)]);
    }
    for (interface, counters) in status["sockets"].as_object().into_iter().flatten() {
        for (name, what) in SOCKET_ROWS {
            if counters[name].as_u64().is_some_and(|count| count > 0) {
                let row = what.replace("{}", interface);
                table.add_row([row, number(&counters[name])]);
            }
        }
    }
    let _ = writeln!(out, "{table}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(&7.into()), "7");
        assert_eq!(number(&1234.into()), "1,234");
        assert_eq!(number(&1_234_567.into()), "1,234,567");
    }

    #[test]
    fn what_the_kernel_dropped_is_shown_where_it_is_not_zero() {
        let sockets = serde_json::json!({
            "sockets": {
                "eth0": { "rx_ring_full": 1234, "fill_ring_empty": 0, "tx_ring_empty": 9 },
                "eth1": { "wake_errors": 5 },
            }
        });
        let text = text(&sockets);
        let row = |what: &str| text.lines().find(|line| line.contains(what));
        let full = row("kernel dropped at eth0: receive ring full").expect("a row");
        assert!(full.contains("1,234"), "{full}");
        assert!(row("wake-up at eth1").is_some_and(|row| row.contains('5')));
        assert_eq!(text.matches("eth").count(), 2, "{text}");
    }

    #[test]
    fn an_interface_that_is_gone_is_pointed_out() {
        let of = |present| {
            let interface = serde_json::json!({ "name": "eth0", "present": present });
            text(&serde_json::json!({ "interfaces": [interface] }))
        };
        assert!(of(false).contains("gone") && !of(true).contains("gone"));
    }

    #[test]
    fn each_interface_says_how_and_why_not_better() {
        let refused = serde_json::json!([{ "mode": "copy", "reason": "no room" }]);
        let lan = serde_json::json!({ "name": "lan0", "mode": "tun", "modes_refused": refused,
            "self_test": "passed" });
        let wan = serde_json::json!({ "name": "wan0", "mode": "copy", "self_test": "not now" });
        let text = text(&serde_json::json!({ "mode": "mixed", "interfaces": [lan, wan] }));
        assert!(text.contains("frames exchanged by mixed modes\n"), "{text}");
        assert!(
            text.contains("by tun\n  not by copy: no room\nwan0"),
            "{text}"
        );
        assert!(
            text.contains("by copy\n  no test frame was sent: not now\n"),
            "{text}"
        );
    }

    #[test]
    fn a_status_without_fields_still_prints() {
        assert!(text(&Value::Null).contains("sessions 0 of 0"));
    }
}
