//! `egret run --config FILE`: the gateway, until SIGTERM or SIGINT.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::config::{Config, Problem};
use engine::engine::{Engine, StartError};
use signal_hook::consts::{SIGINT, SIGTERM};

/// What is printed on stdout once traffic is served; scripts wait for this line.
pub const READY: &str = "egret: ready";

/// How often the main thread looks whether a signal came or a worker failed.
const LOOK: Duration = Duration::from_millis(50);

/// Arguments of `egret run`.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs the gateway. Exit status: 0 stopped by a signal, 1 it failed while running, 2 it could not
/// be started.
pub fn run(args: &RunArgs) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("EGRET_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let name = args.config.display().to_string();
    let text = match std::fs::read_to_string(&args.config) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("egret run: {name}: {error}; give the path of a configuration file");
            return ExitCode::from(2);
        }
    };
    let config = match Config::parse(&name, &text) {
        Ok(config) => config,
        Err(error) => {
            eprint!("{error}");
            return ExitCode::from(2);
        }
    };
    serve(config)
}

fn serve(config: Config) -> ExitCode {
    let source = config.source.clone();
    let show = |problems: &[Problem]| {
        for problem in problems {
            eprint!("{}", problem.render(&source));
        }
    };
    // Before the start, so that a signal during it is not lost.
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&ended)) {
            eprintln!("egret run: handling signals: {error}");
            return ExitCode::from(2);
        }
    }
    let engine = match Engine::start(config) {
        Ok(engine) => engine,
        Err(StartError::Plan(problems)) => {
            show(&problems);
            return ExitCode::from(2);
        }
        Err(error) => {
            eprintln!("egret run: {}", with_causes(&error));
            return ExitCode::from(2);
        }
    };
    show(&engine.plan().problems);
    let mut out = std::io::stdout();
    // Whoever started us may have closed our stdout; the gateway serves all the same.
    let _ = writeln!(out, "{READY}").and_then(|()| out.flush());
    while !ended.load(Ordering::Acquire) && !engine.has_failed() {
        std::thread::sleep(LOOK);
    }
    let failed = engine.has_failed();
    engine.stop();
    ExitCode::from(u8::from(failed))
}

/// An error with its causes, each once.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}
