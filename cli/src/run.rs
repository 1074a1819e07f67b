//! `egret run --config FILE`: the gateway, until SIGTERM or SIGINT, or, on trial, until its time is
//! over.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::config::{Config, Problem};
use engine::engine::{Engine, StartError};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use tracing::{error, info, warn};

use crate::confirm::countdown::Countdown;
use crate::confirm::guard::Guard;
use crate::confirm::parse_limit;

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
    /// Start on trial: detach and put everything back this time after the start, such as 60s or 2m,
    /// unless `egret confirm` is run before; a start of more than 3 minutes is ended, too
    #[arg(long, value_name = "TIME", value_parser = parse_limit)]
    pub confirm: Option<Duration>,
}

/// Runs the gateway. Exit status: 0 stopped by a signal, 1 it failed while running or was not
/// confirmed in time, 2 it could not be started.
pub fn run(args: &RunArgs) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("EGRET_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
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
    // Before the start: what dies in it must leave nothing behind, either.
    let guard = args
        .confirm
        .map(|limit| Guard::start(&config.instance, limit));
    let mut guard = match guard.transpose() {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("egret run: starting the guard of the trial: {error}");
            return ExitCode::from(2);
        }
    };
    let status = serve(config, args.confirm, &mut guard);
    // All was put back in good order, or there was nothing to.
    if let Some(guard) = guard {
        guard.dismiss();
    }
    status
}

/// What signals say.
#[derive(Default)]
struct Asked {
    end: Arc<AtomicBool>,
    confirm: Arc<AtomicBool>,
}

impl Asked {
    fn listen() -> io::Result<Asked> {
        let asked = Asked::default();
        let flags = [
            (SIGTERM, &asked.end),
            (SIGINT, &asked.end),
            (SIGUSR1, &asked.confirm),
        ];
        for (signal, flag) in flags {
            signal_hook::flag::register(signal, Arc::clone(flag))?;
        }
        Ok(asked)
    }
}

fn serve(config: Config, trial: Option<Duration>, guard: &mut Option<Guard>) -> ExitCode {
    let source = config.source.clone();
    let show = |problems: &[Problem]| {
        for problem in problems {
            eprint!("{}", problem.render(&source));
        }
    };
    // Before the start, so that a signal during it is not lost.
    let asked = match Asked::listen() {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("egret run: handling signals: {error}");
            return ExitCode::from(2);
        }
    };
    let countdown = Countdown::new(&config.instance);
    let (for_doctor, instance) = (config.clone(), config.instance.clone());
    let started = match trial {
        Some(limit) => Engine::start_on_trial(config, limit),
        None => Engine::start(config),
    };
    let engine = match started {
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
    if let Some(guard) = guard {
        guard.begin();
    }
    show(&engine.plan().problems);
    tell_concerns(for_doctor);
    let mut out = io::stdout();
    // Whoever started us may have closed our stdout; the gateway serves all the same.
    let _ = writeln!(out, "{READY}").and_then(|()| out.flush());
    let in_time = attend(&engine, &asked, countdown, guard);
    let (failed, confirmed) = (engine.has_failed(), engine.confirmation().is_given());
    engine.stop();
    if !confirmed {
        put_back(&instance);
    }
    ExitCode::from(u8::from(failed || !in_time))
}

/// The last traces of a trial that was not confirmed: directories, and what a dead engine left.
fn put_back(instance: &str) {
    match engine::engine::put_back(instance) {
        Ok(_) => info!("everything is as it was before the start"),
        Err(error) => {
            let error = with_causes(&error);
            warn!(
                error,
                "something is left behind: `egret detach --instance {instance}`"
            );
        }
    }
}

/// Logs what the doctor warns of, beside the gateway: it lists the host's rules, which may take
/// seconds.
fn tell_concerns(config: Config) {
    let tell = move || {
        for finding in crate::doctor::concerns(&config) {
            let mend = finding.mend.map(|mend| mend.command).unwrap_or_default();
            warn!(
                mend,
                "{}: {} (`egret doctor` explains)", finding.name, finding.what
            );
        }
    };
    // The gateway does as well without it.
    let _ = std::thread::Builder::new()
        .name("egret-doctor".into())
        .spawn(tell);
}

/// Waits until the gateway is to end. False: a trial's time is over.
fn attend(
    engine: &Engine,
    asked: &Asked,
    mut countdown: Countdown,
    guard: &mut Option<Guard>,
) -> bool {
    let confirmation = engine.confirmation();
    while !asked.end.load(Ordering::Acquire) && !engine.has_failed() {
        if asked.confirm.swap(false, Ordering::AcqRel) {
            confirmation.ask();
        }
        if confirmation.expire(Instant::now()) {
            error!("not confirmed in time: the gateway ends, and everything is put back");
            return false;
        }
        match confirmation.left(Instant::now()) {
            Some(left) => countdown.look(left),
            None => {
                if let Some(guard) = guard.take() {
                    guard.dismiss();
                }
            }
        }
        std::thread::sleep(LOOK);
    }
    true
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
