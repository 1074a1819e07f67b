//! `egret run --confirm TIME` starts on trial; `egret confirm` makes it for good.

pub mod countdown;
pub mod guard;

use std::process::ExitCode;
use std::time::Duration;

use engine::control::request::Request;

use crate::target::Target;

/// Shorter than this nobody can look whether the gateway is right, and type; longer is no trial.
const LIMITS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// Arguments of `egret confirm`.
#[derive(clap::Args, Clone, Debug)]
pub struct ConfirmArgs {
    /// Which gateway
    #[command(flatten)]
    pub target: Target,
}

/// Confirms. Exit status: 0 the gateway stays, 1 it refused, 2 it could not be asked.
pub fn run(args: &ConfirmArgs) -> ExitCode {
    match args.target.ask("confirm", &Request::CONFIRM, 1) {
        Ok(_) => {
            println!("confirmed: the gateway stays until it is stopped");
            ExitCode::SUCCESS
        }
        Err(status) => status,
    }
}

/// A time as an operator writes it: `30s`, `2m`.
///
/// # Errors
/// It is none, or out of bounds; names the value.
pub fn parse_limit(text: &str) -> Result<Duration, String> {
    let parsed = match text.strip_suffix('s') {
        Some(seconds) => seconds.parse::<u32>().ok(),
        None => text
            .strip_suffix('m')
            .and_then(|minutes| minutes.parse::<u32>().ok()?.checked_mul(60)),
    };
    let limit = parsed.map(|seconds| Duration::from_secs(seconds.into()));
    limit.filter(|limit| LIMITS.contains(limit)).ok_or_else(|| {
        format!("{text:?} is no time from 1s to 60m; write seconds or minutes, as in 30s or 2m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_minutes() {
        assert_eq!(parse_limit("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_limit("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_limit("60m"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "s",
            "60",
            "0s",
            "61m",
            "1h",
            "-5s",
            "1.5m",
            "5 s",
            "99999999999m",
        ] {
            let error = parse_limit(bad).expect_err(bad);
            assert!(
                error.contains(&format!("{bad:?}")) && error.contains("30s"),
                "{error}"
            );
        }
    }
}
