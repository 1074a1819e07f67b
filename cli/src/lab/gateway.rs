//! The gateway under test, and the real one: `egret run` as a process in the gateway's namespace.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use engine::control::request::Request;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Lab;
use super::error::LabError;
use super::netns::Namespace;
use super::owner::open_registry;
use super::wait;

/// What the engine prints once it serves.
const READY: &str = "egret: ready";
/// How long it may take to serve.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long it may take to end in good order.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// What a gateway says about itself.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Status {
    /// Dropped frames by reason.
    pub drops: BTreeMap<String, u64>,
    /// Sessions now.
    pub sessions: u64,
    /// Mappings now.
    pub mappings: u64,
    /// `ok`, or what is wrong with the tables.
    pub invariants: String,
}

/// Something that translates between the lab's realms.
pub trait Gateway {
    /// Starts, and returns when it serves.
    ///
    /// # Errors
    /// It did not.
    fn start(&mut self) -> Result<(), LabError>;

    /// Ends in an instant, without a chance to put anything in order.
    fn kill(&mut self);

    /// Ends in good order.
    ///
    /// # Errors
    /// It ended badly or not in time.
    fn stop(&mut self) -> Result<(), LabError>;

    /// What it says about itself; `None` if this kind says nothing.
    ///
    /// # Errors
    /// It should say something and did not.
    fn status(&self) -> Result<Option<Status>, LabError>;

    /// The last lines of its log.
    fn log_tail(&self) -> String;
}

/// `egret run` in the gateway's namespace. Dropping it ends the process.
#[derive(Debug)]
pub struct EngineProcess {
    program: PathBuf,
    namespace: File,
    directory: PathBuf,
    child: Option<Child>,
}

impl EngineProcess {
    /// Prepares to run `program` (the `egret` binary) with this configuration file's text.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn new(lab: &Lab, program: &Path, config: &str) -> Result<EngineProcess, LabError> {
        EngineProcess::within(&lab.gateway, lab.directory(), program, config)
    }

    /// As [`EngineProcess::new`], in a namespace of any lab, with its files in `directory`.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn within(
        namespace: &Namespace,
        directory: PathBuf,
        program: &Path,
        config: &str,
    ) -> Result<EngineProcess, LabError> {
        let path = config_path(&directory);
        fs::write(&path, config)
            .map_err(LabError::system(format!("writing {}", path.display())))?;
        let namespace = namespace
            .file()
            .try_clone()
            .map_err(LabError::system("keeping the gateway's namespace"))?;
        Ok(EngineProcess {
            program: program.to_owned(),
            namespace,
            directory,
            child: None,
        })
    }

    /// Where the control socket of a lab's engine is.
    pub fn control_path(lab: &Lab) -> PathBuf {
        lab.directory().join("control.sock")
    }

    /// The process's number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Lets the process go on when this value goes (`--keep`).
    pub fn release(mut self) {
        self.child = None;
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("engine.log")
    }

    fn spawn(&self) -> io::Result<Child> {
        // To a file, not to a pipe: a kept gateway goes on printing after we are gone.
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = Command::new(&self.program);
        command
            .args([
                "run".as_ref(),
                "--config".as_ref(),
                config_path(&self.directory).as_os_str(),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for us: we end it in good order.
            .process_group(0);
        // Under the lock: else it could start behind the back of a clean-up that is under way.
        let _registry = open_registry();
        super::netns::inside(&self.namespace, || command.spawn())
    }

    /// Does the log have the line that says that it serves, after its first `skip` bytes?
    fn is_ready(&self, skip: u64) -> bool {
        let read = || -> io::Result<String> {
            let mut log = File::open(self.log_path())?;
            log.seek(SeekFrom::Start(skip))?;
            let mut text = String::new();
            log.read_to_string(&mut text)?;
            Ok(text)
        };
        read().is_ok_and(|text| text.lines().any(|line| line.trim() == READY))
    }

    fn failed(&self, what: &str) -> LabError {
        let program = self.program.display();
        LabError::Gateway(format!(
            "{program} run {what}; it said:\n{}",
            self.log_tail()
        ))
    }

    fn end(&mut self, signal: Signal, limit: Duration) -> Result<(), LabError> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        if let Ok(pid) = i32::try_from(child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        let ended = wait::until(limit, || !matches!(child.try_wait(), Ok(None)));
        if !ended {
            let _ = child.kill();
        }
        let status = child
            .wait()
            .map_err(LabError::system("waiting for the engine"))?;
        if signal == Signal::SIGKILL || (ended && status.success()) {
            return Ok(());
        }
        let what = if ended {
            format!("ended with {status}")
        } else {
            "did not end".to_owned()
        };
        Err(self.failed(&what))
    }
}

fn config_path(directory: &Path) -> PathBuf {
    directory.join("egret.toml")
}

impl Gateway for EngineProcess {
    fn start(&mut self) -> Result<(), LabError> {
        let skip = fs::metadata(self.log_path()).map_or(0, |metadata| metadata.len());
        let mut child = self
            .spawn()
            .map_err(LabError::system("starting the engine"))?;
        let mut ready = false;
        let mut ended = None;
        let answered = wait::until(START_LIMIT, || {
            // Asked first: what a process that ended wrote is complete then.
            ended = child.try_wait().ok().flatten();
            ready = self.is_ready(skip);
            ready || ended.is_some()
        });
        self.child = Some(child);
        if answered && ended.is_none() {
            return Ok(());
        }
        self.kill();
        let seconds = START_LIMIT.as_secs();
        Err(self.failed(&match ended {
            Some(status) => format!("ended with {status}"),
            None => format!("did not serve within {seconds} s"),
        }))
    }

    fn kill(&mut self) {
        // With SIGKILL there is no bad end.
        let _ = self.end(Signal::SIGKILL, STOP_LIMIT);
    }

    fn stop(&mut self) -> Result<(), LabError> {
        self.end(Signal::SIGTERM, STOP_LIMIT)
    }

    fn status(&self) -> Result<Option<Status>, LabError> {
        let path = self.directory.join("control.sock");
        let ask = || -> io::Result<Status> {
            let mut answer = engine::control::ask(&path, &Request::STATUS)?;
            let mut sound = engine::control::ask(&path, &Request::INVARIANTS)?;
            answer["invariants"] = sound["invariants"].take();
            serde_json::from_value(answer).map_err(io::Error::other)
        };
        ask()
            .map(Some)
            .map_err(LabError::system("asking the engine for its status"))
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        if self.stop().is_err() {
            self.kill();
        }
    }
}
