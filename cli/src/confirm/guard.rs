//! The guard of a start on trial: a process of its own that puts everything back should the gateway
//! die, or hang beyond its time. (The program itself goes with the gateway's process in any case:
//! its links are not pinned. Offloads and routes would stay.)
//!
//! The gateway holds the write end of a pipe to it. A byte says that the guard is not needed any
//! more; the pipe's end without one says that the gateway is gone.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use crate::run::with_causes;

/// A gateway on trial that has not ended so long after its time hangs.
const GRACE: Duration = Duration::from_secs(20);

/// How long the dead gateway's lock may take to be free.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `egret guard`, which only `egret run --confirm` starts.
#[derive(clap::Args, Clone, Debug)]
pub struct GuardArgs {
    /// Name of the gateway's instance
    #[arg(long)]
    pub instance: String,
    /// The time of the trial, as of `egret run --confirm`
    #[arg(long, value_parser = super::parse_limit)]
    pub limit: Duration,
    /// The gateway's process
    #[arg(long)]
    pub gateway: i32,
}

/// The gateway's side. Dropping it without a word lets the guard put everything back.
#[derive(Debug)]
pub struct Guard(Child);

impl Guard {
    /// Starts the guard of this process.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn start(instance: &str, limit: Duration) -> io::Result<Guard> {
        let limit = format!("{}s", limit.as_secs());
        let child = Command::new(std::env::current_exe()?)
            .args(["guard", "--instance", instance, "--limit", &limit])
            .args(["--gateway", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What ends the gateway at a terminal must not end its guard.
            .process_group(0)
            .spawn()?;
        Ok(Guard(child))
    }

    /// Ends it: the gateway is confirmed, or has put everything back itself.
    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            // One that is gone already cannot be told, and need not be.
            let _ = pipe.write_all(b".");
        }
        let _ = self.0.wait();
    }
}

/// The guard. Exit status: 0 everything is as it should be, 1 something could not be put back.
pub fn run(args: &GuardArgs) -> ExitCode {
    let end = Instant::now() + args.limit + GRACE;
    let mut pipe = io::stdin();
    while !is_readable(&pipe) {
        let gateway = Pid::from_raw(args.gateway);
        if Instant::now() >= end && getppid() == gateway {
            eprintln!("egret: the gateway on trial hangs; it is ended, and everything put back");
            // It may be gone this very moment; then the pipe ends all the same.
            let _ = kill(gateway, Signal::SIGKILL);
        }
    }
    if matches!(pipe.read(&mut [0]), Ok(1)) {
        return ExitCode::SUCCESS;
    }
    put_back(&args.instance)
}

/// Waits up to a second.
fn is_readable(pipe: &io::Stdin) -> bool {
    let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::from(1000_u16)).is_ok_and(|count| count > 0)
}

fn put_back(instance: &str) -> ExitCode {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        match engine::engine::put_back(instance) {
            Ok(_) => {
                eprintln!("egret: the gateway on trial died; everything is as it was before");
                return ExitCode::SUCCESS;
            }
            Err(error) if Instant::now() >= end => {
                eprintln!("egret: the gateway on trial died; {}", with_causes(&error));
                return ExitCode::FAILURE;
            }
            // Its files close one after the other.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
