//! `egret bench core`: the packet path in memory.

use std::io;
use std::process::ExitCode;

use benches::core::flows::Flows;
use benches::core::memory::huge_bytes;
use benches::core::{Options, run as measure};
use benches::figure::Figure;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use thiserror::Error;

use super::output::{OutputArgs, OutputError};

/// What the command calls itself.
const NAME: &str = "egret bench core";
/// Rounds without `--rounds`: an odd number, so that the median is one of them.
const ROUNDS: usize = 5;

/// Arguments of `egret bench core`.
#[derive(Debug, Args)]
pub struct CoreArgs {
    /// Numbers of sessions
    #[arg(long, value_delimiter = ',', default_value = "1k,64k,1M", value_parser = size)]
    sessions: Vec<Flows>,
    /// Rounds of each test; the figure is their median
    #[arg(long, default_value_t = ROUNDS, value_parser = rounds)]
    rounds: usize,
    /// With the tables in small pages and in a BPF array (as root), too
    #[arg(long)]
    all_pages: bool,
    /// With one worker only
    #[arg(long)]
    one_worker: bool,
    #[command(flatten)]
    output: OutputArgs,
}

fn size(text: &str) -> Result<Flows, String> {
    let known = Flows::SIZES.into_iter().find(|size| size.label() == text);
    known.ok_or_else(|| {
        let labels: Vec<String> = Flows::SIZES.iter().map(|size| size.label()).collect();
        format!("write one of {}", labels.join(", "))
    })
}

fn rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rounds @ 1..=1000) => Ok(rounds),
        _ => Err("write a number from 1 to 1000".to_owned()),
    }
}

/// Measures and prints. Exit status: 0 all was measured and written, 2 not.
pub fn run(arguments: &CoreArgs) -> ExitCode {
    match measure_and_tell(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::from(2)
        }
    }
}

/// Why there are no figures, or they could not be written.
#[derive(Debug, Error)]
enum CoreError {
    #[error(transparent)]
    Measure(#[from] io::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
}

fn measure_and_tell(arguments: &CoreArgs) -> Result<(), CoreError> {
    let options = Options {
        sizes: arguments.sessions.clone(),
        rounds: arguments.rounds,
        all_pages: arguments.all_pages,
        two_workers: !arguments.one_worker,
    };
    let output = &arguments.output;
    output.prepare(NAME)?;
    let mut figures = Vec::new();
    let mut huge = 0;
    measure(&options, |figure| {
        huge = huge.max(huge_bytes());
        output.tell(&figure);
        figures.push(figure);
    })?;
    if !output.json {
        println!("{}", table(&figures));
        for line in comparisons(&figures) {
            println!("{line}");
        }
        match huge >> 20 {
            0 => println!("No huge pages: the kernel gave 4 KiB pages only."),
            mib => println!("Huge pages: {mib} MiB of the process's memory."),
        }
    }
    output.write(NAME, &figures)?;
    Ok(())
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["test", "Mpps", "lowest", "highest", "ns a packet"]);
    for figure in figures.iter().filter(|figure| figure.unit == "Mpps") {
        table.add_row([
            figure.name.trim_start_matches("core/").to_owned(),
            format!("{:.2}", figure.value),
            format!("{:.2}", figure.low),
            format!("{:.2}", figure.high),
            format!("{:.1}", 1000.0 / figure.value),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The ratios that matter, one a line.
fn comparisons(figures: &[Figure]) -> Vec<String> {
    let value = |name: &str| {
        let figure = figures.iter().find(|figure| figure.name == name);
        figure.map(|figure| figure.value)
    };
    let mut lines = Vec::new();
    for label in Flows::SIZES.map(Flows::label) {
        let of = |test: &str, workers: &str| value(&format!("core/{test}/{label}/{workers}"));
        let mut ratio = |what: &str, of: Option<f64>, to: Option<f64>| {
            if let (Some(of), Some(to)) = (of, to) {
                lines.push(format!("{label}: {what}: {:.2}", of / to));
            }
        };
        let hit = of("hit-outbound", "1w");
        ratio(
            "time of a hit in times of its cache lines alone",
            of("limit", "1w"),
            hit,
        );
        ratio(
            "two workers against one, hits",
            of("hit-outbound", "2w"),
            hit,
        );
        ratio(
            "two workers against one, new sessions",
            of("create", "2w"),
            of("create", "1w"),
        );
        ratio(
            "look-ups against dashmap",
            of("lookup", "1w"),
            of("dashmap", "1w"),
        );
        ratio(
            "look-ups against papaya",
            of("lookup", "1w"),
            of("papaya", "1w"),
        );
        for pages in ["small-pages", "bpf-array"] {
            let other = of(&format!("hit-outbound-{pages}"), "1w");
            ratio(&format!("{pages} against huge ones, hits"), other, hit);
        }
        if let Some(bytes) = of("memory", "1w") {
            lines.push(format!("{label}: bytes a session, all in: {bytes:.0}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_known_by_their_labels() {
        assert_eq!(size("64k").map(Flows::count), Ok(65_536));
        assert_eq!(size("1M").map(Flows::count), Ok(1 << 20));
        assert!(size("2M").is_err_and(|error| error.contains("1k, 64k, 1M, 4M")));
        assert!(rounds("0").is_err());
    }

    #[test]
    fn ratios_are_told_where_both_sides_were_measured() {
        let figure = |name: &str, value| Figure::of(name, "Mpps", vec![value]).unwrap();
        let figures = [
            figure("core/lookup/1M/1w", 30.0),
            figure("core/dashmap/1M/1w", 5.0),
            figure("core/papaya/64k/1w", 5.0),
        ];
        assert_eq!(
            comparisons(&figures),
            ["1M: look-ups against dashmap: 6.00"]
        );
    }
}
