//! `egret sessions`: the sessions of a running gateway, and with `--watch` those that begin and end.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use engine::control::request::{List, Request, Watch};

use crate::filters::SessionFilters;
use crate::rows::Rows;
use crate::target::Target;

/// Arguments of `egret sessions`.
#[derive(clap::Args, Clone, Debug)]
pub struct SessionsArgs {
    /// Which gateway
    #[command(flatten)]
    pub target: Target,
    /// Which sessions
    #[command(flatten)]
    pub filters: SessionFilters,
    /// No more than so many
    #[arg(long, conflicts_with = "watch")]
    pub limit: Option<u64>,
    /// Show sessions that begin and end from now on, once a second; those that live shorter are
    /// counted
    #[arg(long, conflicts_with_all = ["state", "older_than", "younger_than"])]
    pub watch: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Asks and prints. Exit status: 0 that were all, 2 it could not be asked or was cut off.
pub fn run(args: &SessionsArgs) -> ExitCode {
    let filter = args.filters.filter();
    let request = match args.watch {
        true => Request::Watch(Watch {
            filter,
            interval_ms: None,
        }),
        false => Request::Sessions(List {
            filter,
            limit: args.limit,
        }),
    };
    print(&args.target, "sessions", &request, args.json)
}

/// Prints a listing as it comes.
pub(crate) fn print(target: &Target, command: &str, request: &Request, json: bool) -> ExitCode {
    let at_once = matches!(request, Request::Watch(_));
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let listed = if json {
        target.list(command, request, |line| {
            out.write_all(line)?;
            out.write_all(b"\n")?;
            if at_once { out.flush() } else { Ok(()) }
        })
    } else {
        let mut rows = Rows::new(&mut out);
        target.list(command, request, |line| {
            rows.show(line)?;
            if at_once { rows.flush() } else { Ok(()) }
        })
    };
    // Who reads no further has seen enough.
    let _ = out.flush();
    match listed {
        Ok(end) => {
            if end.limited && !json {
                eprintln!("egret {command}: there are more than {}", end.count);
            }
            ExitCode::SUCCESS
        }
        Err(status) => status,
    }
}
