//! Counts the instructions of a worker's steps and holds them against `benches/instructions.toml`;
//! with `--update` it writes the counts there. Exit status: 0 all held, 1 a limit did not, 2 nothing
//! could be counted.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use benches::instructions::{Counts, Limits, UPDATE, counted};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check(),
        ["--update"] => update().map(|()| true),
        _ => Err("it takes --update, or nothing".to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::from(2)
        }
    }
}

/// Do all limits hold?
fn check() -> Result<bool, String> {
    let text = std::fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}"))?;
    let limits = Limits::parse(&text).map_err(|error| format!("{FILE}: {error}"))?;
    let machine = std::env::consts::ARCH;
    if limits.machine != machine {
        println!(
            "skipped: the limits are for {}, this is {machine}",
            limits.machine
        );
        return Ok(true);
    }
    let judgement = limits.judge(&count()?);
    print!("{}", judgement.text);
    for broken in &judgement.broken {
        println!("error: {broken}");
    }
    if !judgement.broken.is_empty() {
        println!(
            "  fix: find what the change costs (callgrind_annotate target/gungraun/*/*/*/*/*.out), or if \
             it is worth it: {UPDATE}\n  the limits were counted with {}, this is {}",
            limits.compiler,
            compiler()?
        );
    }
    Ok(judgement.broken.is_empty())
}

fn update() -> Result<(), String> {
    let limits = Limits {
        machine: std::env::consts::ARCH.to_owned(),
        compiler: compiler()?,
        counts: count()?,
    };
    std::fs::write(FILE, limits.to_toml()).map_err(|error| format!("{FILE}: {error}"))?;
    print!("{}", limits.to_toml());
    Ok(())
}

/// Runs the bench.
fn count() -> Result<Counts, String> {
    let fix = "`.ci/run bench` installs what it needs";
    said(Command::new("valgrind").arg("--version"), fix)?;
    said(Command::new("gungraun-runner").arg("--version"), fix)?;
    let mut bench = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    bench
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["bench", "--locked", "--profile", "instructions"])
        .args(["-p", "egret-benches", "--bench", "instructions"])
        .args(["--", "--output-format=json"]);
    counted(&said(&mut bench, "see its own message above")?)
}

fn compiler() -> Result<String, String> {
    let said = said(Command::new("rustc").arg("--version"), "install Rust")?;
    // Without hash and date.
    Ok(said.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

/// What a program prints, which must succeed.
fn said(command: &mut Command, fix: &str) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{name}: {error}; fix: {fix}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}; fix: {fix}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
