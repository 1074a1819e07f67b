//! The guard of a start on trial: a process of its own that puts everything back should the gateway
//! die, or hang beyond its time. (The program itself goes with the gateway's process in any case:
//! its links are not pinned. Offloads and routes would stay.)
//!
//! The gateway holds the write end of a pipe to it. One byte says that the start is over, so that the
//! time of the trial begins; another that the guard is not needed any more. The pipe's end without that
//! says that the gateway is gone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use crate::run::with_causes;

/// A start that takes longer hangs: the largest tables are made in seconds, and test frames wait for
/// less than one each.
const START_LIMIT: Duration = Duration::from_secs(180);

/// A gateway on trial that has not ended so long after its time hangs.
const GRACE: Duration = Duration::from_secs(20);

/// The start is over.
const STARTED: u8 = b'+';
/// The guard is not needed any more.
const DISMISSED: u8 = b'.';

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

    /// The start is over: the time of the trial begins.
    pub fn begin(&mut self) {
        self.tell(STARTED);
    }

    /// Ends it: the gateway is confirmed, or has put everything back itself.
    pub fn dismiss(mut self) {
        self.tell(DISMISSED);
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }

    fn tell(&mut self, word: u8) {
        if let Some(pipe) = &mut self.0.stdin {
            // One that is gone already cannot be told, and need not be.
            let _ = pipe.write_all(&[word]);
        }
    }
}

/// When the gateway counts as hung.
#[derive(Debug)]
struct Clock {
    limit: Duration,
    end: Instant,
}

impl Clock {
    /// Of a start that begins now, and of the trial's time after it.
    fn new(now: Instant, limit: Duration) -> Clock {
        Clock {
            limit,
            end: now + START_LIMIT,
        }
    }

    /// The start is over.
    fn begin(&mut self, now: Instant) {
        self.end = now + self.limit + GRACE;
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.end
    }
}

/// The guard. Exit status: 0 everything is as it should be, 1 something could not be put back.
pub fn run(args: &GuardArgs) -> ExitCode {
    let mut clock = Clock::new(Instant::now(), args.limit);
    // Without a buffer: the words are waited for one by one.
    let mut pipe = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(pipe) => File::from(pipe),
        Err(error) => {
            eprintln!("egret: the guard of the trial has no pipe to the gateway: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut word = [0];
    loop {
        if is_readable(&pipe) {
            match pipe.read(&mut word) {
                Ok(1) if word == [STARTED] => clock.begin(Instant::now()),
                Ok(1) => return ExitCode::SUCCESS,
                _ => return put_back(&args.instance),
            }
        }
        let gateway = Pid::from_raw(args.gateway);
        if clock.is_over(Instant::now()) && getppid() == gateway {
            eprintln!("egret: the gateway on trial hangs; it is ended, and everything put back");
            // It may be gone this very moment; then the pipe ends all the same.
            let _ = kill(gateway, Signal::SIGKILL);
        }
    }
}

/// Waits up to a second.
fn is_readable(pipe: &File) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_trial_begins_when_the_start_is_over() {
        let start = Instant::now();
        let limit = Duration::from_secs(1);
        let mut clock = Clock::new(start, limit);
        // A start that takes its time, longer than the trial and its grace.
        assert!(!clock.is_over(start + START_LIMIT - limit));
        // One that hangs is ended all the same.
        assert!(clock.is_over(start + START_LIMIT));
        let begun = start + START_LIMIT / 2;
        clock.begin(begun);
        assert!(!clock.is_over(begun + limit));
        assert!(clock.is_over(begun + limit + GRACE));
    }
}
