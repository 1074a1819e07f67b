//! `egret lookup`: who is behind an external endpoint, or why nobody is.

use std::io::{self, Write};
use std::process::ExitCode;

use conntrack::Endpoint;
use engine::control::answer::Answer;
use engine::control::filter::{ProtocolName, parse_endpoint};
use engine::control::request::{Lookup, Request};

use crate::filters::word;
use crate::rows::Rows;
use crate::target::Target;

/// Arguments of `egret lookup`.
#[derive(clap::Args, Clone, Debug)]
pub struct LookupArgs {
    /// The external endpoint, as in 198.51.100.1:5000; the port may be an ICMP identifier
    #[arg(value_name = "EXTERNAL:PORT", value_parser = parse_endpoint)]
    pub external: Endpoint,
    /// Only of this protocol: tcp, udp or icmp
    #[arg(long, value_parser = word::<ProtocolName>)]
    pub protocol: Option<ProtocolName>,
    /// Which gateway
    #[command(flatten)]
    pub target: Target,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Asks and prints. Exit status: 0 somebody is behind it, 1 nobody is, 2 it could not be asked.
pub fn run(args: &LookupArgs) -> ExitCode {
    let request = Request::Lookup(Lookup {
        external: args.external,
        protocol: args.protocol,
    });
    let mut rows = Rows::new(io::stdout().lock());
    let mut taken = false;
    let listed = args.target.list("lookup", &request, |line| {
        if let Answer::Endpoint(occupied) = serde_json::from_slice(line)? {
            taken |= occupied.used.is_taken();
        }
        match args.json {
            true => writeln!(io::stdout(), "{}", String::from_utf8_lossy(line)),
            false => rows.show(line),
        }
    });
    match listed {
        Ok(_) if taken => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(status) => status,
    }
}
