//! Becoming root, or root of a user namespace: network namespaces need it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

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

/// Makes this process root of a user namespace of its own, with network interfaces, /run and sysctls
/// that are nobody else's. Call it before any thread is started.
///
/// # Errors
/// What to tell the user: user namespaces are not allowed here, or /dev/net/tun is not open.
pub fn enter_user_namespace() -> Result<(), String> {
    let tun = "/dev/net/tun";
    fs::File::options()
        .read(true)
        .write(true)
        .open(tun)
        .map_err(|error| {
            format!(
                "{tun}: {error}. Without root only the tun driver can carry packets: let root say \
                 `modprobe tun; chmod 666 {tun}`, or give the container `--device {tun}`"
            )
        })?;
    let (user, group) = (geteuid(), getegid());
    let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(all).map_err(|error| {
        format!(
            "the kernel makes no user namespace for this user ({error}). Let root say `sysctl -w \
             user.max_user_namespaces=10000`; Debian and Ubuntu also have \
             kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0"
        )
    })?;
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|error| format!("{path}: {error}"))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {user} 1"))?;
    write("/proc/self/gid_map", format!("0 {group} 1"))?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let made = mount(none, "/", none, private, none)
        .and_then(|()| mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none));
    made.map_err(|error| format!("a /run of its own could not be mounted: {error}"))
}
