//! `egret bench`: figures instead of promises.

pub mod path;

use std::process::ExitCode;

use clap::Subcommand;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Compare gateways side by side: the kernel's NAT, plain forwarding, bare AF_XDP, and Egret
    Path(path::PathArgs),
}

/// Measures and prints.
pub fn run(command: BenchCommand) -> ExitCode {
    match command {
        BenchCommand::Path(arguments) => path::run(arguments),
    }
}
