//! A check of the demo: what it works on and how it ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::Drops;
use crate::lab::plan::{EXTERNAL, SERVERS};
use crate::lab::{Gateway, Lab, LabError};

/// What the checks of one topology work on.
pub struct Stage<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// What translates in its gateway namespace; it serves when a check begins and when it ends.
    pub gateway: &'a mut dyn Gateway,
    /// Drop counters, with the moment they were read at: a restart begins some of them anew.
    pub drops: Drops,
}

impl Stage<'_> {
    /// Reads the drop counters, if this gateway has any.
    ///
    /// # Errors
    /// It should have and does not answer.
    pub fn note_drops(&mut self, moment: &'static str) -> Result<(), LabError> {
        if let Some(status) = self.gateway.status()? {
            self.drops.push((moment, status.drops));
        }
        Ok(())
    }
}

/// How a check ends: what was seen, commonly the source endpoint that the servers saw.
pub type Verdict = Result<String, Miss>;

/// Why a check did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Something else was seen than expected.
    Failed {
        /// What should have been.
        expected: String,
        /// What was.
        seen: String,
    },
    /// The check has no meaning here, or its means are missing.
    Skipped(String),
}

impl Miss {
    /// A failure.
    pub fn failed(expected: impl Into<String>, seen: impl Into<String>) -> Miss {
        Miss::Failed {
            expected: expected.into(),
            seen: seen.into(),
        }
    }
}

impl From<LabError> for Miss {
    fn from(error: LabError) -> Miss {
        Miss::failed("the lab works", error.to_string())
    }
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Miss {
        Miss::failed("the lab works", error.to_string())
    }
}

/// A check: its name, and what it does.
pub struct Check {
    /// As in `demo/one-arm/NAME`.
    pub name: &'static str,
    /// What it shows, for the reader.
    pub about: &'static str,
    /// Does it.
    pub run: fn(&mut Stage<'_>) -> Verdict,
}

/// Every check, in the order in which they run.
pub const CHECKS: &[Check] = &[
    Check {
        name: "tcp",
        about: "megabytes both ways, several clients",
        run: super::tcp::run,
    },
    Check {
        name: "udp",
        about: "200 flows, asked twice",
        run: super::udp::run,
    },
    Check {
        name: "ping",
        about: "two clients, one identifier",
        run: super::ping::run,
    },
    Check {
        name: "traceroute",
        about: "errors find their client",
        run: super::traceroute::run,
    },
    Check {
        name: "forward",
        about: "from an allowed source only",
        run: super::forward::run,
    },
    Check {
        name: "hairpin",
        about: "client to client by way of outside",
        run: super::hairpin::run,
    },
    Check {
        name: "small-mtu",
        about: "fragmentation needed comes back",
        run: super::mtu::run,
    },
    Check {
        name: "host",
        about: "the gateway's own traffic",
        run: super::host::run,
    },
    Check {
        name: "unsolicited",
        about: "nothing enters unasked",
        run: super::unsolicited::run,
    },
    Check {
        name: "spoofed",
        about: "internal source from outside",
        run: super::spoofed::run,
    },
    Check {
        name: "restart",
        about: "killed and started again",
        run: super::restart::run,
    },
    Check {
        name: "no-netfilter",
        about: "the kernel takes no part",
        run: super::clean::run,
    },
    Check {
        name: "host-pod",
        about: "beside the kernel's masquerade",
        run: super::pod::run,
    },
];

/// Passes the result of a probe on, as a failure of what was expected of it.
pub fn expect<T>(expected: impl Into<String>, result: io::Result<T>) -> Result<T, Miss> {
    result.map_err(|error| match error.kind() {
        // What a socket says when its time is over.
        io::ErrorKind::WouldBlock => Miss::failed(expected, "no answer in time"),
        _ => Miss::failed(expected, error.to_string()),
    })
}

/// Is it the gateway's external address that the server saw?
pub fn expect_external(seen: SocketAddrV4) -> Result<(), Miss> {
    expect_from(EXTERNAL, seen)
}

/// Is it this address that the server saw?
pub fn expect_from(address: Ipv4Addr, seen: SocketAddrV4) -> Result<(), Miss> {
    if *seen.ip() == address {
        return Ok(());
    }
    Err(Miss::failed(
        format!("the server sees {address} as source"),
        format!("it sees {seen}"),
    ))
}

/// Endpoints in few words: the first, and how many others.
pub fn summary(endpoints: &[SocketAddrV4]) -> String {
    match endpoints {
        [] => "nothing".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// An endpoint of a server: 0 is s1, 1 is s2.
pub fn at(server: usize, port: u16) -> SocketAddrV4 {
    endpoint(SERVERS[server], port)
}

/// An endpoint.
pub fn endpoint(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// Waits for a thread of a check; a panic there is a failure.
pub fn join<T>(handle: std::thread::ScopedJoinHandle<'_, Result<T, Miss>>) -> Result<T, Miss> {
    handle
        .join()
        .unwrap_or_else(|_| Err(Miss::failed("the probe ends", "it panicked")))
}
