//! `egret check FILE`: what a configuration means on this machine, and what is wrong with it.

mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use engine::config::{Config, Level};
use engine::plan::{HostFacts, Plan};

pub use report::Report;

/// Arguments of `egret check`.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArgs {
    /// The configuration file
    pub file: PathBuf,
    /// Print the requirements of the RFCs that the configuration does not meet, too
    #[arg(long)]
    pub rfc: bool,
    /// Print one JSON object a line, for machines
    #[arg(long)]
    pub json: bool,
}

/// Checks a file against this machine, and prints what it finds. `facts` reads the machine, as far
/// as the user may.
///
/// Exit status: 0 valid, 1 invalid, 2 could not be checked (no such file, the machine unreadable).
pub fn run(args: &CheckArgs, facts: impl FnOnce(&Config) -> Result<HostFacts, String>) -> ExitCode {
    let name = args.file.display().to_string();
    let text = match std::fs::read_to_string(&args.file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("egret check: {name}: {error}");
            eprintln!("  = fix: give the path of a configuration file; two lines are enough:");
            eprintln!("      internal = \"10.77.0.0/24\"\n      interface = \"eth0\"");
            return ExitCode::from(2);
        }
    };
    let report = match check(&name, &text, facts) {
        Ok(report) if args.rfc => report.with_deviations(),
        Ok(report) => report,
        Err(message) => {
            eprintln!("egret check: {message}");
            return ExitCode::from(2);
        }
    };
    let text = if args.json {
        report.json()
    } else {
        report.text()
    };
    // A reader that stops reading (`| head`) changes nothing about the result.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(!report.is_valid()))
}

/// Checks a text.
///
/// # Errors
/// When the facts could not be read.
pub fn check(
    name: &str,
    text: &str,
    facts: impl FnOnce(&Config) -> Result<HostFacts, String>,
) -> Result<Report, String> {
    let config = match Config::parse(name, text) {
        Ok(config) => config,
        Err(error) => return Ok(Report::invalid(error)),
    };
    let host = facts(&config)?;
    let (plan, mut problems) = match Plan::make(&config, &host) {
        Ok(plan) => (Some(plan.clone()), plan.problems),
        Err(problems) => (None, problems),
    };
    // Whoever checks a file need not be who runs the gateway.
    for problem in &mut problems {
        if problem.name == "missing-privilege" {
            problem.level = Level::Warning;
            problem.why = format!("`egret run` needs them; {}", problem.why);
        }
    }
    let errors = problems.iter().any(|problem| problem.level == Level::Error);
    let plan = match plan {
        None if !errors => {
            let willing = HostFacts {
                capabilities: None,
                ..host
            };
            Plan::make(&config, &willing).ok()
        }
        plan => plan,
    };
    problems.sort_by_key(|problem| (problem.level, problem.span));
    Ok(Report::new(config, plan, problems))
}
