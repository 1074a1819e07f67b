//! A running gateway, and asking it by its control socket.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use engine::config::RUN_DIR;
use engine::control::answer::{Answer, End};
use engine::control::client::Line;
use engine::control::request::Request;
use serde_json::Value;

/// Which gateway is asked.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    /// Name of the gateway's instance
    #[arg(long, default_value = "default")]
    pub instance: String,
    /// Its control socket [default: /run/egret/INSTANCE/control]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl Target {
    /// The control socket's path.
    pub fn path(&self) -> PathBuf {
        let default = || [RUN_DIR, &self.instance, "control"].iter().collect();
        self.socket.clone().unwrap_or_else(default)
    }

    /// Says on standard error what went wrong with `egret COMMAND`.
    fn complain(&self, command: &str, what: impl std::fmt::Display) {
        eprintln!("egret {command}: {}: {what}", self.path().display());
    }

    /// Asks what is answered by one line. What went wrong is said on standard error; then exit status
    /// 2 if it could not be asked, `refused` if the gateway refused.
    ///
    /// # Errors
    /// The exit status.
    pub fn ask(&self, command: &str, request: &Request, refused: u8) -> Result<Value, ExitCode> {
        let answer = engine::control::ask(&self.path(), request).map_err(|error| {
            self.complain(command, why(command, &error));
            ExitCode::from(2)
        })?;
        match answer["error"].as_str() {
            Some(refusal) if answer["type"] == "error" => {
                self.complain(command, refusal);
                Err(ExitCode::from(refused))
            }
            _ => Ok(answer),
        }
    }

    /// Asks for a listing, and hands out its lines as they come. What went wrong is said on standard
    /// error; then exit status 2, but 0 where nobody reads our output any more.
    ///
    /// # Errors
    /// The exit status.
    pub fn list(
        &self,
        command: &str,
        request: &Request,
        mut show: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<End, ExitCode> {
        let fail = |what: String| {
            self.complain(command, what);
            ExitCode::from(2)
        };
        let opened = engine::control::open(&self.path(), request);
        let mut lines = opened.map_err(|error| fail(why(command, &error)))?;
        loop {
            let next = lines.next_line();
            match next.map_err(|error| fail(format!("the answer was cut off: {error}")))? {
                Some(Line::Answer(line)) => match show(line) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        return Err(ExitCode::SUCCESS);
                    }
                    shown => shown.map_err(|error| fail(format!("showing the answer: {error}")))?,
                },
                Some(Line::End(line) | Line::Error(line)) => {
                    return match serde_json::from_slice(line) {
                        Ok(Answer::End(end)) => Ok(end),
                        Ok(Answer::Error(refusal)) => Err(fail(refusal.error)),
                        _ => Err(fail("the answer is broken".to_owned())),
                    };
                }
                None => {
                    return Err(fail(
                        "the answer was cut off: the gateway stopped, or waited for this program \
                         for a minute"
                            .to_owned(),
                    ));
                }
            }
        }
    }
}

/// Why nobody answered, and what to do.
fn why(command: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "permission denied; only root, the user or group that `egret run` runs as, or the \
             group that `control.group` names, may ask: use `sudo egret {command}`"
        ),
        io::ErrorKind::UnexpectedEof => "it hung up without an answer".to_owned(),
        _ => format!("{error}; is `egret run` running, and is `instance` the same?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_ask_is_told_who_may() {
        let of = |kind: io::ErrorKind| why("status", &kind.into());
        assert!(of(io::ErrorKind::PermissionDenied).contains("sudo egret status"));
        let absent = of(io::ErrorKind::NotFound);
        assert!(absent.contains("egret run") && !absent.contains("sudo"));
    }
}
