//! Why a lab could not be built or used.

use std::io;

/// Why a lab could not be built, or something in it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The kernel refused a step.
    #[error("{what}: {source}")]
    System {
        /// The step, for the reader.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("{what}: {source}")]
    Netlink {
        /// The request, for the reader.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A BPF program could not be loaded, attached or run.
    #[error("{what}: {why}")]
    Bpf {
        /// The step, for the reader.
        what: String,
        /// What the kernel or aya says.
        why: String,
    },
    /// The gateway process did not do what was asked of it.
    #[error("{0}")]
    Gateway(String),
}

impl LabError {
    /// Wraps a system error with the step that failed.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
        let what = what.into();
        move |source| LabError::System { what, source }
    }

    /// Wraps an error around a BPF program with the step that failed, and names its causes.
    pub fn bpf<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> LabError {
        let what = what.into();
        move |error| {
            let mut why = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                why += &format!(": {cause}");
                source = cause.source();
            }
            LabError::Bpf { what, why }
        }
    }

    /// Wraps an errno with the step that failed.
    pub fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> LabError {
        let what = what.into();
        move |errno| LabError::System {
            what,
            source: errno.into(),
        }
    }

    /// Wraps a netlink error with the request that failed.
    pub fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LabError {
        let what = what.into();
        move |source| LabError::Netlink { what, source }
    }
}
