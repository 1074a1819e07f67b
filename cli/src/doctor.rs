//! `egret doctor`: what speaks against running Egret here, or against running it fast.

mod page;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine::config::Config;
use engine::doctor::{self, Changes, Facts, Finding, Level, Restored};
use serde_json::json;

use page::Page;

/// Arguments of `egret doctor`.
#[derive(clap::Args, Clone, Debug)]
pub struct DoctorArgs {
    /// The interface to look at [default: those of the configuration, else all that look like
    /// hardware]
    pub interface: Option<String>,
    /// The configuration file: more can be judged with it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Do what is safe: loosen rp_filter, compile BPF programs, turn off LRO and GRO-HW where the
    /// driver does that without a reset; nothing that takes a link down or may cut anybody off
    #[arg(long, conflicts_with = "undo")]
    pub fix: bool,
    /// Put back what --fix has changed
    #[arg(long)]
    pub undo: bool,
    /// Print one JSON object a line, for machines
    #[arg(long)]
    pub json: bool,
}

/// Looks, and prints what it finds. Exit status: 0 nothing above a note, 1 warnings or problems (or
/// something could not be put back), 2 it could not be run.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let result = match args.undo {
        true => undo(args.json),
        false => look(args),
    };
    result.unwrap_or_else(|message| {
        eprintln!("egret doctor: {message}");
        ExitCode::from(2)
    })
}

fn look(args: &DoctorArgs) -> Result<ExitCode, String> {
    let config = args.config.as_deref().map(read_config).transpose()?;
    let interfaces = interfaces(args.interface.as_deref(), config.as_ref())?;
    let read = || {
        doctor::read(&interfaces, config.as_ref())
            .map_err(|error| format!("reading this machine: {error}"))
    };
    let mut facts = read()?;
    let mut done = Vec::new();
    if args.fix {
        done = fix(&doctor::examine(&facts))?;
        facts = read()?;
    }
    let found = doctor::examine(&facts);
    let text = match args.json {
        true => lines(&facts, &found, &done),
        false => Page::of_terminal().text(&facts, &found, &done),
    };
    // A reader that stops reading (`| head`) changes nothing about the result.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let bad = found.iter().any(|one| one.level > Level::Note);
    let failed = done.iter().any(|one| one.error.is_some());
    Ok(ExitCode::from(u8::from(bad || failed)))
}

fn read_config(path: &Path) -> Result<Config, String> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{name}: {error}; give the path of a configuration file"))?;
    Config::parse(&name, &text).map_err(|error| error.to_string().trim_end().to_owned())
}

fn interfaces(named: Option<&str>, config: Option<&Config>) -> Result<Vec<String>, String> {
    match (named, config) {
        (Some(name), _) => Ok(vec![name.to_owned()]),
        (None, Some(config)) => Ok(of_config(config)),
        (None, None) => {
            doctor::served_by_default().map_err(|error| format!("listing the interfaces: {error}"))
        }
    }
}

fn of_config(config: &Config) -> Vec<String> {
    let interfaces = config.interfaces.iter();
    interfaces.map(|one| one.name.value.clone()).collect()
}

/// What `--fix` did about a finding.
struct Done {
    /// The finding's name.
    name: String,
    /// What was set, and to which value.
    what: String,
    /// Why not.
    error: Option<String>,
}

fn fix(found: &[Finding]) -> Result<Vec<Done>, String> {
    let mut changes = open_changes("--fix")?;
    let mut done = Vec::new();
    for finding in found.iter().filter(|one| one.level > Level::Ok) {
        let Some((setting, value)) = finding.mend.as_ref().and_then(|mend| mend.safe.as_ref())
        else {
            continue;
        };
        let error = changes.apply(setting, value).err();
        done.push(Done {
            name: finding.name.clone(),
            what: format!("{setting} = {value}"),
            error: error.map(|error| error.to_string()),
        });
    }
    Ok(done)
}

fn open_changes(option: &str) -> Result<Changes, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err(format!(
            "{option} changes settings of the kernel: run it as root"
        ));
    }
    Changes::open().map_err(|error| format!("the list of changes: {error}"))
}

fn undo(as_json: bool) -> Result<ExitCode, String> {
    let mut changes = open_changes("--undo")?;
    let restored = changes
        .restore()
        .map_err(|error| format!("the list of changes: {error}"))?;
    if restored.is_empty() && !as_json {
        println!("nothing to put back: --fix has changed nothing here");
    }
    let mut left = false;
    for (change, how) in &restored {
        let (setting, before) = (&change.setting, &change.before);
        let told = match how {
            Restored::Done => format!("{setting} = {before}, as before"),
            Restored::Changed(now) => {
                left = true;
                format!("{setting} is {now}: somebody else has changed it, it is left so")
            }
            Restored::Failed(error) => {
                left = true;
                format!("{setting} could not be set back to {before}: {error}")
            }
        };
        if as_json {
            let name = format!("doctor/undo/{setting}");
            let value = matches!(how, Restored::Done);
            println!("{}", json!({"name": name, "value": value, "what": told}));
        } else {
            println!("{told}");
        }
    }
    Ok(ExitCode::from(u8::from(left)))
}

/// For machines: one object a line.
fn lines(facts: &Facts, found: &[Finding], done: &[Done]) -> String {
    let mut lines: Vec<_> = found.iter().map(Finding::json).collect();
    for unseen in &facts.unseen {
        let name = "doctor/unseen";
        lines.push(json!({"name": name, "value": unseen.what, "why": unseen.why}));
    }
    for one in done {
        let name = format!("doctor/fix/{}", one.name);
        let mut line = json!({"name": name, "value": one.error.is_none(), "what": one.what});
        if let Some(error) = &one.error {
            line["error"] = json!(error);
        }
        lines.push(line);
    }
    for level in Level::ALL {
        let count = found.iter().filter(|one| one.level == level).count();
        lines.push(json!({"name": format!("doctor/{level}s"), "value": count}));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The warnings and problems of the interfaces of a configuration, for other commands to tell.
/// Nothing if this machine cannot be read.
pub fn concerns(config: &Config) -> Vec<Finding> {
    let Ok(facts) = doctor::read(&of_config(config), Some(config)) else {
        return Vec::new();
    };
    let mut found = doctor::examine(&facts);
    found.retain(|one| one.level > Level::Note);
    found
}

/// What the doctor warns of, in short, after the report of `egret check`; nothing for a file that is
/// no configuration.
pub fn tell_after_check(file: &Path, as_json: bool) {
    let Ok(config) = read_config(file) else {
        return;
    };
    for finding in concerns(&config) {
        let line = match as_json {
            true => finding.json().to_string(),
            false => {
                let (level, name, what) = (finding.level, &finding.name, &finding.what);
                format!("doctor: {level}: {name}: {what}")
            }
        };
        // As above.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}
