//! What the demo says: progress while it works, then a table or one JSON object a line.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::{Cell, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use super::check::{Miss, Verdict};

/// How one check ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// `demo/TOPOLOGY/CHECK`.
    pub name: String,
    /// What was seen, or why it did not hold.
    pub verdict: Verdict,
    /// Packets that the gateway was sent meanwhile, from either side.
    pub packets: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// Did something not hold?
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Err(Miss::Failed { .. }))
    }

    fn result(&self) -> &'static str {
        match &self.verdict {
            Ok(_) => "held",
            Err(Miss::Failed { .. }) => "FAILED",
            Err(Miss::Skipped(_)) => "skipped",
        }
    }

    /// One line for machines. A skipped check has no value.
    pub fn json(&self) -> String {
        let value = match &self.verdict {
            Ok(_) => serde_json::json!({"name": self.name, "value": true}),
            Err(Miss::Failed { expected, seen }) => serde_json::json!({
                "name": self.name, "value": false, "expected": expected, "seen": seen
            }),
            Err(Miss::Skipped(why)) => {
                serde_json::json!({"name": self.name, "value": null, "skipped": why})
            }
        };
        value.to_string()
    }

    fn row(&self) -> Vec<Cell> {
        let seen = match &self.verdict {
            Ok(seen) => seen.as_str(),
            Err(Miss::Failed { .. }) => "see below",
            Err(Miss::Skipped(why)) => why.as_str(),
        };
        vec![
            Cell::new(self.name.trim_start_matches("demo/")),
            Cell::new(seen),
            Cell::new(self.packets.to_string()),
            Cell::new(format!("{} ms", self.elapsed.as_millis())),
            Cell::new(self.result()),
        ]
    }
}

/// The table of all checks, and below it what failed and how; at most `width` columns wide, if
/// there is a limit.
pub fn table(reports: &[Report], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width);
    }
    table.set_header(["check", "seen as source", "packets", "time", "result"]);
    for report in reports {
        table.add_row(report.row());
    }
    let mut text = format!("{table}\n");
    for report in reports {
        if let Err(Miss::Failed { expected, seen }) = &report.verdict {
            text += &format!(
                "\n{}\n  expected: {expected}\n  seen:     {seen}\n",
                report.name
            );
        }
    }
    text
}

/// Columns of the terminal that standard output is; none if it is no terminal.
pub fn terminal_width() -> Option<u16> {
    console::Term::stdout()
        .size_checked()
        .map(|(_rows, columns)| columns)
}

/// The drop counters of one topology's gateway, as they were read at some moment.
pub fn drops(topology: &str, moment: &str, drops: &BTreeMap<String, u64>) -> String {
    let counted: Vec<String> = drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let counted = match counted.as_slice() {
        [] => "none".to_owned(),
        reasons => reasons.join(", "),
    };
    format!("drops, {topology}, {moment}: {counted}")
}

/// Says on standard error what goes on: a spinner on a terminal, else plain lines.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<ProgressBar>,
}

impl Progress {
    /// Begins.
    pub fn new() -> Progress {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed:>3} {msg}");
            let bar = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { spinner }
    }

    /// What is being done now.
    pub fn step(&self, what: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(what.to_owned()),
            None => eprintln!("{what}"),
        }
    }

    /// Something that stays on the screen.
    pub fn line(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// A check ended.
    pub fn ended(&self, report: &Report) {
        self.line(&format!("  {:8} {}", report.result(), report.name));
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdict: Verdict) -> Report {
        Report {
            name: "demo/one-arm/tcp".to_owned(),
            verdict,
            packets: 7,
            elapsed: Duration::from_millis(12),
        }
    }

    #[test]
    fn a_line_for_machines_has_name_and_value() {
        let held = report(Ok("192.0.2.2:4000".to_owned()));
        assert_eq!(held.json(), r#"{"name":"demo/one-arm/tcp","value":true}"#);
        let failed = report(Err(Miss::failed("this", "that")));
        assert!(failed.failed());
        assert!(failed.json().contains(r#""value":false"#));
        let skipped = report(Err(Miss::Skipped("no nft".to_owned())));
        assert!(!skipped.failed());
        assert!(skipped.json().contains(r#""value":null"#));
    }

    #[test]
    fn the_table_fits_the_terminal() {
        let long = "0 of 364 entered; 192.0.2.2:61051 answers only its peer";
        let reports = [report(Ok(long.to_owned()))];
        let widest = |width| {
            let text = table(&reports, width);
            text.lines()
                .map(|line| line.chars().count())
                .max()
                .unwrap_or(0)
        };
        assert!(widest(None) > 80);
        assert!(widest(Some(80)) <= 80);
    }

    #[test]
    fn the_table_says_what_was_expected_and_what_was_seen() {
        let text = table(&[report(Err(Miss::failed("this", "that")))], None);
        assert!(text.contains("FAILED") && text.contains("expected: this"));
        assert!(text.contains("seen:     that"));
    }
}
