//! `egret bench`: measures, side by side and in one run.

pub mod core;
pub mod output;

use std::process::ExitCode;

use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The packet path in memory, without devices: what a packet costs, by number of sessions
    Core(core::CoreArgs),
}

/// Measures.
pub fn run(command: &BenchCommand) -> ExitCode {
    match command {
        BenchCommand::Core(arguments) => core::run(arguments),
    }
}
