//! `egret bench`: figures instead of promises, side by side and in one run.

pub mod core;
pub mod output;
pub mod path;

use std::process::ExitCode;

use clap::Subcommand;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The packet path in memory, without devices: what a packet costs, by number of sessions
    Core(core::CoreArgs),
    /// Compare gateways side by side: the kernel's NAT, plain forwarding, bare AF_XDP, and Egret
    Path(path::PathArgs),
}

/// Measures and prints.
pub fn run(command: BenchCommand) -> ExitCode {
    match command {
        BenchCommand::Core(arguments) => core::run(&arguments),
        BenchCommand::Path(arguments) => path::run(arguments),
    }
}
