//! `egret detach`: removes what a dead gateway left attached, and puts back what it changed.

use std::process::ExitCode;

use crate::run::with_causes;

/// Arguments of `egret detach`.
#[derive(clap::Args, Clone, Debug)]
pub struct DetachArgs {
    /// Name of the gateway's instance
    #[arg(long, default_value = "default")]
    pub instance: String,
}

/// Detaches. Exit status: 0 done (or nothing was there), 2 it could not be.
pub fn run(args: &DetachArgs) -> ExitCode {
    match engine::engine::put_back(&args.instance) {
        Ok(0) => println!("nothing was attached for the instance `{}`", args.instance),
        Ok(count) => {
            println!("detached from {count} interface(s); the kernel handles all their traffic now")
        }
        Err(error) => {
            eprintln!("egret detach: {}", with_causes(&error));
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
