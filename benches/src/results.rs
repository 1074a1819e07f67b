//! Figures as a section of a page of Markdown, with the machine that they were measured on.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use crate::date::Date;
use crate::figure::{Figure, digits};
use crate::plot::{Bar, Chart, Group, group_figures, is_charted};

/// What figures depend on. What cannot be read is "unknown".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The processor's name, and the architecture.
    pub cpu: String,
    /// Processors online, as the kernel counts them: hardware threads.
    pub cores: usize,
    /// It is a virtual machine, as far as the processor says.
    pub is_virtual: bool,
    /// The first processor's caches, such as "L1 data 32K, L2 1024K".
    pub caches: String,
    /// The kernel's release.
    pub kernel: String,
    /// Memory, bytes; 0: unknown.
    pub memory_bytes: u64,
    /// Reserved huge pages, and the kernel's transparent ones.
    pub huge_pages: String,
}

impl Machine {
    /// Reads this machine's facts from `/proc` and `/sys`.
    pub fn read() -> Machine {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Machine {
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            kernel: known(text("/proc/sys/kernel/osrelease").trim()),
            ..Machine::parse(
                &text("/proc/cpuinfo"),
                &text("/proc/meminfo"),
                &text("/sys/kernel/mm/transparent_hugepage/enabled"),
            )
        }
    }

    /// What these files say; the rest is unknown.
    fn parse(cpuinfo: &str, meminfo: &str, transparent: &str) -> Machine {
        let model = value(cpuinfo, "model name").unwrap_or("unknown");
        let flags = value(cpuinfo, "flags").unwrap_or_default();
        let number = |key: &str| {
            let words = value(meminfo, key)?.split_whitespace();
            words.take(1).find_map(|word| word.parse::<u64>().ok())
        };
        let reserved = number("HugePages_Total").unwrap_or(0);
        let kib = number("Hugepagesize").unwrap_or(0);
        // The word in brackets is the one in force.
        let chosen = transparent.split(['[', ']']).nth(1);
        Machine {
            cpu: format!("{model} ({})", std::env::consts::ARCH),
            cores: cpuinfo
                .lines()
                .filter(|line| key(line) == "processor")
                .count(),
            is_virtual: flags.split(' ').any(|flag| flag == "hypervisor"),
            caches: known(""),
            kernel: known(""),
            memory_bytes: number("MemTotal").unwrap_or(0) * 1024,
            huge_pages: format!(
                "{reserved} reserved of {kib} KiB, transparent: {}",
                chosen.unwrap_or("unknown")
            ),
        }
    }
}

/// The part of a line `key : value` before the colon.
fn key(line: &str) -> &str {
    line.split(':').next().unwrap_or_default().trim()
}

/// The value of the first line `key : value` with this key.
fn value<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| key(line) == wanted)?;
    line.split_once(':').map(|(_, value)| value.trim())
}

fn known(text: &str) -> String {
    let text = if text.is_empty() { "unknown" } else { text };
    text.to_owned()
}

/// The caches that a directory of sysfs has, one `indexN` each.
fn caches(directory: &Path) -> String {
    let cache = |number: u32| {
        let at = directory.join(format!("index{number}"));
        let text = |file: &str| fs::read_to_string(at.join(file)).ok();
        let (level, kind, size) = (text("level")?, text("type")?, text("size")?);
        let kind = match kind.trim() {
            "Unified" => String::new(),
            kind => format!(" {}", kind.to_lowercase()),
        };
        Some(format!("L{}{kind} {}", level.trim(), size.trim()))
    };
    let all: Vec<String> = (0..).map_while(cache).collect();
    known(&all.join(", "))
}

/// A section with the machine, the command that measured, the day, and every figure: those of a chart
/// in a table as the chart has them, the others in a list. `title`: of the section, which is for a page
/// with a title of its own.
pub fn markdown(
    title: &str,
    machine: &Machine,
    command: &str,
    date: Date,
    figures: &[Figure],
) -> String {
    let mut text = format!(
        "## {title}\n\nMeasured on {date} with\n\n```sh\n{command}\n```\n\nMedian of the rounds of one \
         run, and in brackets the lowest and the highest round.\n\n"
    );
    // Writing to a string does not fail.
    let _ = write_machine(&mut text, machine).and_then(|()| write_figures(&mut text, figures));
    text
}

fn write_figures(text: &mut String, figures: &[Figure]) -> fmt::Result {
    for chart in group_figures(figures) {
        write_chart(text, &chart)?;
    }
    let others: Vec<&Figure> = figures
        .iter()
        .filter(|figure| !is_charted(figure))
        .collect();
    if !others.is_empty() {
        writeln!(
            text,
            "\n### Others\n\n| figure | median | lowest | highest | unit |\n| --- | --- | --- | --- | --- |"
        )?;
    }
    for figure in others {
        let [value, low, high] = [figure.value, figure.low, figure.high].map(digits);
        let name = cell(&figure.name);
        writeln!(
            text,
            "| {name} | {value} | {low} | {high} | {} |",
            figure.unit
        )?;
    }
    Ok(())
}

fn write_machine(text: &mut String, machine: &Machine) -> fmt::Result {
    let cores = match machine.is_virtual {
        true => format!("{}, virtual", machine.cores),
        false => machine.cores.to_string(),
    };
    let memory = match machine.memory_bytes {
        0 => known(""),
        bytes => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    };
    writeln!(text, "| | |\n| --- | --- |")?;
    for (what, is) in [
        ("CPU", &machine.cpu),
        ("CPUs", &cores),
        ("caches", &machine.caches),
        ("kernel", &machine.kernel),
        ("memory", &memory),
        ("huge pages", &machine.huge_pages),
    ] {
        writeln!(text, "| {what} | {} |", cell(is))?;
    }
    Ok(())
}

/// Columns of a table beside its first at most, if its rows can be fewer.
const COLUMNS_MAX: usize = 6;

/// A table with a row for each group and a column for each bar's name, or the other way round where
/// that is narrower.
fn write_chart(text: &mut String, chart: &Chart) -> fmt::Result {
    let names = chart.names();
    let value = |group: &Group, name: &str| match group.bars.iter().find(|bar| bar.label == name) {
        Some(Bar {
            value, low, high, ..
        }) => format!("{} ({} to {})", digits(*value), digits(*low), digits(*high)),
        None => "-".to_owned(),
    };
    let (title, unit) = (cell(&chart.title), cell(&chart.unit));
    writeln!(text, "\n### {title}, {unit}\n")?;
    let upright = names.len() > COLUMNS_MAX.max(chart.groups.len());
    let labels = chart.groups.iter().map(|group| cell(&group.label));
    let titles: Vec<String> = match upright {
        true => labels.collect(),
        false => names.iter().map(|name| cell(name)).collect(),
    };
    writeln!(text, "| | {} |", titles.join(" | "))?;
    writeln!(text, "| --- |{}", " --- |".repeat(titles.len()))?;
    let mut row = |label: &str, values: Vec<String>| {
        writeln!(text, "| {} | {} |", cell(label), values.join(" | "))
    };
    if upright {
        for name in &names {
            let values = chart.groups.iter().map(|group| value(group, name));
            row(name, values.collect())?;
        }
    } else {
        for group in &chart.groups {
            let values = names.iter().map(|name| value(group, name));
            row(&group.label, values.collect())?;
        }
    }
    Ok(())
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some CPU @ 2.50GHz\n\
        flags\t\t: fpu hypervisor sse\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2.50GHz\n";
    const MEMINFO: &str = "MemTotal:        4194304 kB\nMemFree:         100 kB\n\
        HugePages_Total:      12\nHugepagesize:       2048 kB\n";

    fn machine() -> Machine {
        Machine::parse(CPUINFO, MEMINFO, "always [madvise] never\n")
    }

    #[test]
    fn a_machine_is_read() {
        let machine = machine();
        assert!(
            machine.cpu.starts_with("Some CPU @ 2.50GHz ("),
            "{}",
            machine.cpu
        );
        assert_eq!((machine.cores, machine.is_virtual), (2, true));
        assert_eq!(machine.memory_bytes, 4 << 30);
        assert_eq!(
            machine.huge_pages,
            "12 reserved of 2048 KiB, transparent: madvise"
        );
        let nothing = Machine::parse("", "", "");
        assert!(nothing.cpu.starts_with("unknown"), "{nothing:?}");
    }

    #[test]
    fn this_machine_is_read() {
        let here = Machine::read();
        assert!(here.cores > 0 && here.memory_bytes > 0 && here.kernel != "unknown");
    }

    #[test]
    fn every_figure_is_on_the_page_once() {
        let figure = |name: &str, unit, values: [f64; 3]| Figure::of(name, unit, values.into());
        let figures: Vec<Figure> = [
            figure("path/udp-64/1k/egret", "Mpps", [1.0, 1.84, 2.0]),
            figure("path/udp-64/1k/nftables", "Mpps", [0.8, 0.9, 1.0]),
            figure("path/udp-64/1M/egret", "Mpps", [12.0, 12.5, 13.0]),
            figure("idle/a|b", "percent", [0.25; 3]),
        ]
        .into_iter()
        .flatten()
        .collect();
        let (date, command) = (Date::today(), "egret bench path --json");
        let text = markdown("Gateways", &machine(), command, date, &figures);
        let measured = format!("Measured on {date} with");
        for line in [
            "## Gateways",
            &measured,
            command,
            "| CPUs | 2, virtual |",
            "| memory | 4.0 GiB |",
            "### path: udp-64, Mpps",
            "| | egret | nftables |",
            "| 1k flows | 1.84 (1.00 to 2.00) | 0.900 (0.800 to 1.00) |",
            "| 1M flows | 12.5 (12.0 to 13.0) | - |",
            "| idle/a\\|b | 0.250 | 0.250 | 0.250 | percent |",
        ] {
            assert_eq!(
                text.lines().filter(|l| *l == line).count(),
                1,
                "{line}\n{text}"
            );
        }
    }
}
