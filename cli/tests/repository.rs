//! The repository checks itself: what a reviewer would otherwise have to look for every time.

use std::fs;
use std::path::{Path, PathBuf};

use engine::drop_reason::DropReason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("cli/ lies in the root")
        .to_owned()
}

/// Every file below a folder with one of these endings; build output is left out.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != ".git" && name != "corpus" {
                found.extend(files(&path, endings));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lines that satisfy `bad`, as `file:line: text`.
fn offenders(paths: &[PathBuf], bad: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (number, line) in read(path).lines().enumerate() {
            if bad(path, line) {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    found
}

#[test]
fn the_root_is_bare() {
    let allowed = [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "COMPLIANCE.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "benches",
        "cli",
        "clippy.toml",
        "conntrack",
        "deny.toml",
        "engine",
        "fuzz",
        "rustfmt.toml",
        "target",
    ];
    for entry in fs::read_dir(root())
        .expect("the root can be listed")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name} in the root"
        );
    }
}

#[test]
fn the_readme_begins_with_the_two_commands() {
    let text = read(&root().join("README.md"));
    let (_, rest) = text.split_once("```sh\n").expect("a block of commands");
    let (block, _) = rest.split_once("```").expect("its end");
    let commands: Vec<&str> = block.lines().collect();
    assert_eq!(
        commands,
        ["cargo run --release -- demo", "cargo test --workspace"]
    );
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let root = root();
    let allowed = |path: &Path| {
        path.starts_with(root.join("engine/src/device/sys"))
            || path == root.join("conntrack/src/prefetch.rs")
            // A crate's rings as a yardstick; only in builds with the feature `xsk-rs`.
            || path == root.join("cli/src/bench/path/contender/xsk.rs")
    };
    let markers = [
        concat!("unsa", "fe {"),
        concat!("unsa", "fe fn"),
        concat!("unsa", "fe impl"),
    ];
    let found = offenders(&files(&root, &[".rs"]), |path, line| {
        let code = line.split("//").next().unwrap_or_default();
        !allowed(path) && markers.iter().any(|marker| code.contains(marker))
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    let words = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("db", "g!("),
    ];
    let found = offenders(&files(&root(), &[".rs", ".c", ".sh"]), |_, line| {
        words.iter().any(|word| line.contains(word))
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_path_of_one_machine_is_named() {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/tm", "p/wt"),
    ];
    let found = offenders(
        &files(&root(), &[".rs", ".c", ".sh", ".md", ".toml", "run"]),
        |_, line| words.iter().any(|word| line.contains(word)),
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_drop_reason_is_named_in_a_test() {
    let root = root();
    let mut tests = String::new();
    for path in files(&root.join("engine"), &[".rs", ".json"]) {
        let text = read(&path);
        if path.starts_with(root.join("engine/tests")) {
            tests.push_str(&text);
        } else if let Some((_, part)) = text.split_once("#[cfg(test)]") {
            tests.push_str(part);
        }
    }
    let missing: Vec<&str> = DropReason::ALL
        .iter()
        .filter(|reason| !tests.contains(&format!("{reason:?}")) && !tests.contains(reason.name()))
        .map(|reason| reason.name())
        .collect();
    assert!(missing.is_empty(), "no test names {missing:?}");
}

#[test]
fn public_modules_are_on_the_map() {
    let architecture = read(&root().join("ARCHITECTURE.md"));
    for (library, crate_name) in [
        ("engine/src/lib.rs", "engine"),
        ("conntrack/src/lib.rs", "conntrack"),
    ] {
        for line in read(&root().join(library)).lines() {
            let module = line
                .trim_start_matches("pub ")
                .trim_start_matches("(crate) ");
            let Some(module) = module.strip_prefix("mod ") else {
                continue;
            };
            let module = module.trim_end_matches([';', ' ', '{']);
            let small = [
                "time",
                "signal",
                "endpoint",
                "verdict",
                "config",
                "clock",
                "random",
                "instance",
                "tests",
                "loom_tests",
            ];
            assert!(
                small.contains(&module)
                    || architecture.contains(&format!("`{module}`"))
                    || architecture.contains(&format!("`{module}/`")),
                "{crate_name}::{module} is not in ARCHITECTURE.md's map of the code"
            );
        }
    }
}

/// The names of all tests that run by themselves, as `file::function`.
fn tests_by_name() -> Vec<String> {
    let root = root();
    let mut names = Vec::new();
    for folder in ["conntrack/tests", "engine/tests", "cli/tests"] {
        for path in files(&root.join(folder), &[".rs"]) {
            let file = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let text = read(&path);
            let (mut is_test, mut is_ignored) = (false, false);
            for line in text.lines().map(str::trim) {
                if line == "#[test]" {
                    is_test = true;
                } else if line.starts_with("#[ignore") {
                    is_ignored = true;
                } else if let Some(rest) = line.strip_prefix("fn ") {
                    let name = rest.split('(').next().unwrap_or_default();
                    if is_test && !is_ignored {
                        names.push(format!("{file}::{name}"));
                    }
                    (is_test, is_ignored) = (false, false);
                }
            }
        }
    }
    names
}

#[test]
fn every_requirement_has_its_verdict_and_its_test() {
    let text = read(&root().join("COMPLIANCE.md"));
    let tests = tests_by_name();
    let mut wrong = Vec::new();
    let mut ids = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, id, level, verdict, test, note, _] = cells[..] else {
            wrong.push(format!("not five columns: {line}"));
            continue;
        };
        if id == "id" || id.starts_with('-') {
            continue;
        }
        ids.push(id.to_owned());
        let known = ["met", "partly", "not met", "n/a"].contains(&verdict);
        let levels = [
            "MUST",
            "MUST NOT",
            "SHOULD",
            "SHOULD NOT",
            "RECOMMENDED",
            "MAY",
        ];
        if !known || !levels.contains(&level) {
            wrong.push(format!("{id}: level `{level}`, verdict `{verdict}`"));
        }
        if verdict == "met" && test.is_empty() {
            wrong.push(format!("{id}: met, and no test says so"));
        }
        if !test.is_empty() && !tests.iter().any(|name| name == test) {
            wrong.push(format!("{id}: no test {test} runs"));
        }
        if verdict != "met" && note.is_empty() {
            wrong.push(format!("{id}: no reason is given"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let rows = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(rows, ids.len(), "a requirement has two rows");
    assert!(rows > 90, "{rows} rows");
}
