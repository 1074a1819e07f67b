//! `egret detach`: removes what a dead gateway left attached.

use std::process::ExitCode;

/// Arguments of `egret detach`.
#[derive(clap::Args, Clone, Debug)]
pub struct DetachArgs {
    /// Name of the gateway's instance
    #[arg(long, default_value = "default")]
    pub instance: String,
}

/// Detaches. Exit status: 0 done (or nothing was there), 2 it could not be.
pub fn run(args: &DetachArgs) -> ExitCode {
    match engine::steering::detach_all(&args.instance) {
        Ok(0) => println!("nothing was attached for the instance `{}`", args.instance),
        Ok(count) => println!(
            "detached from {count} interface(s); the kernel handles all their traffic now"
        ),
        Err(error) => {
            eprintln!("egret detach: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
