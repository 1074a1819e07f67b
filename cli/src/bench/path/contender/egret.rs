//! The real thing: `egret run` as a process.

use std::fs;
use std::path::Path;

use engine::control::request::Request;

use super::Contender;
use crate::bench::path::pin::{self, GATEWAY_CORE, WORKER_PRIORITY};
use crate::bench::path::stage::{INTERNAL, PORTS, Stage};
use crate::lab::{EngineProcess, Gateway, LabError};

/// Sessions that the tables have room for: as many as the kernel's has.
const SESSIONS_MAX: u32 = 4_194_304;

/// How it exchanges frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// AF_XDP.
    Xdp,
    /// The tun driver.
    Tun,
}

/// `egret run` in the gateway's namespace, with one worker on the gateway's core.
#[derive(Debug)]
pub struct Egret {
    process: EngineProcess,
    backend: Backend,
}

impl Egret {
    /// Starts it with empty tables.
    ///
    /// # Errors
    /// It does not serve; the end of its log tells why.
    pub fn start(stage: &Stage, program: &Path, backend: Backend) -> Result<Egret, LabError> {
        let directory = stage.directory();
        // Sessions would be found again.
        let _ = fs::remove_file(directory.join("tables"));
        let config = config(stage, backend);
        if backend == Backend::Tun {
            stage.receive_by_kernel(true)?;
        }
        let mut process = EngineProcess::within(&stage.gateway, directory, program, &config)?;
        process.start()?;
        Ok(Egret { process, backend })
    }
}

/// The configuration: as few words as on any other machine, but for the table, the ports that the
/// kernel's NAT has, too, the core, and the worker's precedence on it.
fn config(stage: &Stage, backend: Backend) -> String {
    let directory = stage.directory();
    let (name, directory) = (stage.name(), directory.display());
    let (inside, outside) = (&stage.inside, &stage.outside);
    let (low, high) = PORTS;
    let mode = match backend {
        Backend::Xdp => "copy",
        Backend::Tun => "tun",
    };
    format!(
        r#"internal = "{INTERNAL}"
instance = "{name}"

[[interfaces]]
name = "{inside}"
role = "internal"

[[interfaces]]
name = "{outside}"
role = "external"

[pool]
ports = ["{low}-{high}"]

[tables]
sessions_max = {SESSIONS_MAX}
path = "{directory}/tables"

[workers]
count = 1
cpus = [{GATEWAY_CORE}]
priority = {WORKER_PRIORITY}

[device]
mode = "{mode}"

[control]
socket = "{directory}/control.sock"
"#
    )
}

impl Contender for Egret {
    fn tracked(&self, stage: &Stage) -> Result<Option<u64>, LabError> {
        let socket = stage.directory().join("control.sock");
        let status = engine::control::ask(&socket, &Request::STATUS).map_err(|error| {
            let log = self.process.log_tail();
            LabError::Gateway(format!(
                "it does not answer: {error}; its log ends with\n{log}"
            ))
        })?;
        Ok(status["sessions"].as_u64())
    }

    fn threads(&self) -> Vec<i32> {
        pin::threads_of(self.process.pid().unwrap_or(0), "")
    }

    fn fill_rate(&self) -> f64 {
        2.5e5
    }

    fn stop(mut self: Box<Self>, stage: &Stage) -> Result<(), LabError> {
        self.process.stop()?;
        match self.backend {
            Backend::Xdp => Ok(()),
            Backend::Tun => stage.receive_by_kernel(false),
        }
    }
}
