//! Becoming root: network namespaces need it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;

/// Goes on if this is root; else runs the same `egret COMMAND` again through sudo, which replaces this
/// process.
///
/// # Errors
/// What to tell the user when there is no way to become root.
pub fn become_root(
    command: &str,
    program: &Path,
    arguments: impl Iterator<Item = OsString>,
) -> Result<(), String> {
    if geteuid().is_root() {
        return Ok(());
    }
    eprintln!(
        "egret {command}: network namespaces and AF_XDP sockets need root; asking sudo for it. \
         All that it makes lives in namespaces of its own and goes at the end."
    );
    let error = Command::new("sudo")
        .arg("--")
        .arg(program)
        .args(arguments)
        .exec();
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no sudo here".to_owned(),
        _ => format!("sudo could not be run ({error})"),
    };
    Err(format!(
        "{why}. Run it as root: su -c '{} {command}'",
        program.display()
    ))
}
