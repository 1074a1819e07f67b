//! `egret`: the command line of the gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use egret_cli::bench::{self, BenchCommand};
use egret_cli::check::{self, CheckArgs};
use egret_cli::confirm::guard::{self, GuardArgs};
use egret_cli::confirm::{self, ConfirmArgs};
use egret_cli::demo::root::{become_root, enter_user_namespace};
use egret_cli::demo::{self, DemoOptions};
use egret_cli::detach::{self, DetachArgs};
use egret_cli::doctor::{self, DoctorArgs};
use egret_cli::flush::{self, FlushArgs};
use egret_cli::lab::Topology;
use egret_cli::lookup::{self, LookupArgs};
use egret_cli::mappings::{self, MappingsArgs};
use egret_cli::run::{self, RunArgs};
use egret_cli::sessions::{self, SessionsArgs};
use egret_cli::status::{self, StatusArgs};

/// A NAT gateway for Linux in userspace: AF_XDP, lock-free conntrack.
#[derive(Debug, Parser)]
#[command(name = "egret", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway that a configuration file describes
    Run(RunArgs),
    /// Explain a configuration file, and what is wrong with it on this machine
    Check(CheckArgs),
    /// Look for what keeps the gateway from running here, or from running fast
    Doctor(DoctorArgs),
    /// Show what a running gateway does
    Status(StatusArgs),
    /// List the sessions of a running gateway, or watch them begin and end
    Sessions(SessionsArgs),
    /// List the mappings of a running gateway: which external endpoint each internal one has
    Mappings(MappingsArgs),
    /// Say who is behind an external endpoint, or why nobody is
    Lookup(LookupArgs),
    /// End sessions and their mappings
    Flush(FlushArgs),
    /// Make a gateway that was started on trial (`run --confirm`) stay
    Confirm(ConfirmArgs),
    /// Watch over a gateway on trial: started by `run --confirm` only
    #[command(hide = true)]
    Guard(GuardArgs),
    /// Remove what a dead gateway left attached
    Detach(DetachArgs),
    /// Send real traffic through the gateway in a lab of its own, and say what held
    Demo(DemoArguments),
    /// Measure the packet path, and compare it with others in one run
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// How many interfaces the gateway has
    #[arg(long, value_enum, default_value_t = TopologyChoice::Both)]
    topology: TopologyChoice,
    /// How the gateway exchanges frames; as `device.mode`
    #[arg(long, value_enum, default_value_t = ModeChoice::Auto)]
    mode: ModeChoice,
    /// Print one JSON object a line, for machines
    #[arg(long)]
    json: bool,
    /// Leave the lab up and say how to enter it
    #[arg(long)]
    keep: bool,
    /// Only these checks, by name
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    only: Vec<String>,
    /// Without root: in a user namespace of its own, in routed mode
    #[arg(long, conflicts_with_all = ["mode", "keep", "clean"])]
    unprivileged: bool,
    /// Run this in place of `egret` as the gateway
    #[arg(long, hide = true, value_name = "FILE")]
    gateway_program: Option<PathBuf>,
    /// Only remove what an earlier `--keep` left
    #[arg(long, conflicts_with_all = ["keep", "only", "json"])]
    clean: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TopologyChoice {
    /// One after the other
    Both,
    /// One interface is internal and external
    OneArm,
    /// An internal and an external interface
    TwoArm,
}

impl TopologyChoice {
    fn topologies(self) -> Vec<Topology> {
        match self {
            TopologyChoice::Both => Topology::ALL.to_vec(),
            TopologyChoice::OneArm => vec![Topology::OneArm],
            TopologyChoice::TwoArm => vec![Topology::TwoArm],
        }
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => {
            let status = check::run(&arguments, |config| {
                let facts = engine::facts::read(config);
                facts.map_err(|error| format!("reading this machine: {error}"))
            });
            doctor::tell_after_check(&arguments.file, arguments.json);
            status
        }
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Sessions(arguments) => sessions::run(&arguments),
        Command::Mappings(arguments) => mappings::run(&arguments),
        Command::Lookup(arguments) => lookup::run(&arguments),
        Command::Flush(arguments) => flush::run(&arguments),
        Command::Confirm(arguments) => confirm::run(&arguments),
        Command::Guard(arguments) => guard::run(&arguments),
        Command::Detach(arguments) => detach::run(&arguments),
        Command::Demo(arguments) => run_demo(arguments),
        Command::Bench(command) => bench::run(command),
    }
}

/// The modes that there are on veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeChoice {
    /// The best that works
    Auto,
    /// AF_XDP, the kernel copies
    Copy,
    /// AF_XDP behind the kernel's receive path
    Generic,
    /// The tun driver
    Tun,
    /// The tun driver, into which the kernel routes
    Routed,
}

impl ModeChoice {
    /// As in the configuration.
    fn name(self) -> &'static str {
        match self {
            ModeChoice::Auto => "auto",
            ModeChoice::Copy => "copy",
            ModeChoice::Generic => "generic",
            ModeChoice::Tun => "tun",
            ModeChoice::Routed => "routed",
        }
    }
}

fn run_demo(arguments: DemoArguments) -> ExitCode {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("egret"));
    let privilege = match arguments.unprivileged {
        true => enter_user_namespace(),
        false => become_root("demo", &program, std::env::args_os().skip(1)),
    };
    if let Err(message) = privilege {
        eprintln!("egret demo: {message}");
        return ExitCode::from(2);
    }
    if arguments.clean {
        demo::clean();
        return ExitCode::SUCCESS;
    }
    ExitCode::from(demo::run(&DemoOptions {
        topologies: arguments.topology.topologies(),
        mode: match arguments.unprivileged {
            true => ModeChoice::Routed.name(),
            false => arguments.mode.name(),
        },
        only: arguments.only,
        json: arguments.json,
        keep: arguments.keep,
        program: arguments.gateway_program.unwrap_or(program),
    }))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The commands, options and arguments from here down that `--help` says nothing about.
    fn undocumented(command: &clap::Command, name: &str) -> Vec<String> {
        let arguments = command.get_arguments();
        let mut found: Vec<String> = arguments
            .filter(|argument| argument.get_help().is_none())
            .map(|argument| format!("{name} {argument}"))
            .collect();
        for below in command.get_subcommands() {
            let name = format!("{name} {}", below.get_name());
            if below.get_about().is_none() {
                found.push(name.clone());
            }
            found.extend(undocumented(below, &name));
        }
        found
    }

    #[test]
    fn every_command_and_every_option_is_documented() {
        let mut command = Cli::command();
        command.build();
        assert_eq!(undocumented(&command, "egret"), [""; 0]);
    }
}
