//! `egret flush`: ends sessions and their mappings.

use std::process::ExitCode;

use engine::control::request::{Flush, Request};

use crate::filters::SessionFilters;
use crate::target::Target;

/// Arguments of `egret flush`.
#[derive(clap::Args, Clone, Debug)]
pub struct FlushArgs {
    /// Which gateway
    #[command(flatten)]
    pub target: Target,
    /// Which sessions
    #[command(flatten)]
    pub filters: SessionFilters,
    /// Every session; needed where nothing else says which
    #[arg(long)]
    pub all: bool,
    /// Print the answer as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Asks and tells what was ended. Exit status: 0 all that was meant, 1 some are left or it was
/// refused, 2 it could not be asked.
pub fn run(args: &FlushArgs) -> ExitCode {
    let filter = args.filters.filter();
    if args.all != filter.is_empty() {
        eprintln!(
            "egret flush: say which sessions (`--internal 10.77.0.5`, say), or `--all` for every \
             one, but not both; `egret sessions` with the same options shows them"
        );
        return ExitCode::from(2);
    }
    let all = args.all;
    let request = Request::Flush(Flush { filter, all });
    let answer = match args.target.ask("flush", &request, 1) {
        Ok(answer) => answer,
        Err(status) => return status,
    };
    let left = answer["left"].as_u64().unwrap_or(0);
    if args.json {
        println!("{answer}");
    } else {
        let (sessions, mappings) = (&answer["sessions"], &answer["mappings"]);
        println!("ended {sessions} sessions and {mappings} mappings");
    }
    if left > 0 {
        eprintln!("egret flush: {left} sessions kept changing and are left; run it again");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
