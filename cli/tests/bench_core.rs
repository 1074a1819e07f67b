//! `egret bench core`: the shortest run measures everything, and tells it in every form.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// What one worker is measured with at every size.
const TESTS: [&str; 15] = [
    "create",
    "hit-outbound",
    "hit-inbound",
    "hit-outbound-no-df",
    "lookup",
    "list",
    "expire",
    "refuse",
    "limit",
    "limit-line",
    "dashmap",
    "papaya",
    "memory",
    "round-p50",
    "round-p999",
];

fn bench_core(options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
    command.args([
        "bench",
        "core",
        "--sessions=1k",
        "--rounds=1",
        "--one-worker",
    ]);
    command.args(options).output().expect("egret starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory of this process's own.
fn scratch() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = path.join(format!("bench-core-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory");
    path
}

#[test]
fn every_figure_is_told_as_json_drawn_and_put_on_the_page() {
    let scratch = scratch();
    let (charts, page) = (scratch.join("charts"), scratch.join("RESULTS.md"));
    fs::write(&page, "# Mine\n").expect("a page");
    let output = bench_core(&[
        "--json",
        &format!("--svg={}", charts.display()),
        &format!("--results={}", page.display()),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let figures: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("a figure a line"))
        .collect();
    let mut names: Vec<&str> = figures.iter().filter_map(|f| f["name"].as_str()).collect();
    names.sort_unstable();
    let mut expected = TESTS.map(|test| format!("core/{test}/1k/1w"));
    expected.sort_unstable();
    assert_eq!(names, expected);
    for figure in &figures {
        let number = |key: &str| figure[key].as_f64().expect("a number");
        let (low, value, high) = (number("low"), number("value"), number("high"));
        assert!(
            0.0 < low && low <= value && value <= high && high.is_finite(),
            "{figure}"
        );
    }
    let svg = |name: &str| fs::read_to_string(charts.join(name)).expect("a chart");
    let svg = svg("core-1w-mpps.svg") + &svg("core-yardsticks-1w-mpps.svg");
    let page = fs::read_to_string(&page).expect("the page");
    for test in TESTS {
        let on_chart = !["memory", "list"].contains(&test) && !test.starts_with("round");
        assert_eq!(svg.contains(&format!(">{test}</text>")), on_chart, "{test}");
        assert!(page.contains(&format!(" {test} |")), "{test}\n{page}");
    }
    assert!(page.starts_with("# Mine\n\n<!-- begin egret bench core -->\n"));
    fs::remove_dir_all(&scratch).expect("it is there");
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let output = bench_core(&["--json", "--results=/nonexistent/RESULTS.md"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert!(
        said.contains("egret bench core: --results /nonexistent/RESULTS.md: cannot be"),
        "{said}"
    );
}
