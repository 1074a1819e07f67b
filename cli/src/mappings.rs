//! `egret mappings`: which external endpoint each internal one has.

use std::process::ExitCode;

use engine::control::request::{List, Request};

use crate::filters::CommonFilters;
use crate::sessions::print;
use crate::target::Target;

/// Arguments of `egret mappings`.
#[derive(clap::Args, Clone, Debug)]
pub struct MappingsArgs {
    /// Which gateway
    #[command(flatten)]
    pub target: Target,
    /// Which mappings
    #[command(flatten)]
    pub filters: CommonFilters,
    /// No more than so many
    #[arg(long)]
    pub limit: Option<u64>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Asks and prints. Exit status: 0 that were all, 2 it could not be asked or was cut off.
pub fn run(args: &MappingsArgs) -> ExitCode {
    let request = Request::Mappings(List {
        filter: args.filters.filter(),
        limit: args.limit,
    });
    print(&args.target, "mappings", &request, args.json)
}
