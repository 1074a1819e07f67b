//! The static `egret` needs nothing but a kernel: it runs in a bare Debian and in a root that has
//! busybox and nothing else.
//!
//! EGRET_STATIC asks for these tests: the path of the program, or `build`, which takes minutes.

#[path = "common/binary.rs"]
mod binary;
#[path = "kernel/mod.rs"]
mod kernel;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kernel::{command, have, is_root, skip};

/// What runs inside the root, on a file system tree of its own.
const CONFIG: &str = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";
/// Seconds that a command may take, each.
const LIMIT_S: &str = "240";
/// Words of `egret demo` that show the gateway at work in both directions, on one interface and two.
const DEMO: &str = "demo --json --only ping,udp,tcp,forward";

/// A directory that is the root of what runs, removed when dropped.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Root {
        let name = format!("{name}-{}", std::process::id());
        let root = Root(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        fs::create_dir_all(&root.0).expect("room for a directory");
        root
    }

    /// Puts a program and the directories that a kernel fills into it.
    fn furnish(&self, program: &Path, busybox: Option<&Path>) {
        for directory in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
            fs::create_dir_all(self.0.join(directory)).expect("room for a directory");
        }
        let copied = fs::copy(program, self.0.join("bin/egret"));
        copied.expect("room for the program");
        if let Some(busybox) = busybox {
            fs::copy(busybox, self.0.join("bin/busybox")).expect("room for busybox");
            let shell = std::os::unix::fs::symlink("busybox", self.0.join("bin/sh"));
            shell.expect("a link");
        }
        let config = self.0.join("etc/egret.toml");
        fs::write(&config, CONFIG).expect("room for a file");
        let modes = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.0.join("bin/egret"), modes).expect("may be executed");
    }

    /// Runs `egret` with words in this root, with mounts, processes and a network of its own.
    fn egret(&self, words: &str) -> Output {
        let root = self.0.display();
        // What is mounted goes with the mount namespace.
        let script = format!(
            "set -e; mount --bind {root} {root}; cd {root}; mount -t proc proc proc; \
             mount -t sysfs sys sys; mount --rbind /dev dev; mount -t tmpfs run run; \
             mount -t tmpfs tmp tmp; exec timeout -k 5 {LIMIT_S} chroot . /bin/egret {words}"
        );
        let mut command = command("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child"]);
        command.args(["sh", "-c", &script]).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.output().expect("unshare runs")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The static program, if these tests are asked for and can be run.
fn program() -> Option<PathBuf> {
    if std::env::var_os(binary::VARIABLE).is_none() {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let why = "not asked for: EGRET_STATIC names a static egret, or says `build`";
        let _ = writeln!(std::io::stderr(), "{test} {why}");
        return None;
    }
    if !is_root() || !have(&[("unshare", "util-linux"), ("timeout", "coreutils")]) {
        return None;
    }
    binary::egret().map_err(|why| skip(&why)).ok()
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{out}{err}", output.status)
}

/// `egret --version`, `egret check` and the demo all do in this root what they do elsewhere.
fn everything_runs(root: &Root) {
    let version = root.egret("--version");
    let expected = format!("egret {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.stdout, expected.as_bytes(), "{}", text(&version));

    let check = root.egret("check /etc/egret.toml");
    let said = text(&check);
    assert!(said.contains("no interface \"eth0\""), "{said}");

    let demo = root.egret(DEMO);
    let said = text(&demo);
    assert!(demo.status.success(), "{said}");
    let held = said.matches("\"value\":true").count();
    assert!(held >= 8 && !said.contains("\"value\":false"), "{said}");
}

#[test]
fn it_needs_no_shared_library() {
    let Some(program) = program() else { return };
    let bytes = fs::read(&program).expect("the program can be read");
    assert_eq!(binary::is_static(&bytes), Some(true), "{program:?}");
    // The test is able to tell.
    let shell = fs::read("/bin/sh").expect("a shell");
    assert_eq!(binary::is_static(&shell), Some(false));
}

#[test]
fn it_runs_where_there_is_only_busybox() {
    let Some(program) = program() else { return };
    match binary::busybox() {
        Ok(busybox) => {
            let root = Root::new("busybox");
            root.furnish(&program, Some(&busybox));
            everything_runs(&root);
        }
        Err(why) => skip(&why),
    }
}

#[test]
fn it_runs_where_there_is_nothing_else() {
    let Some(program) = program() else { return };
    let root = Root::new("nothing");
    root.furnish(&program, None);
    everything_runs(&root);
}

#[test]
fn it_runs_in_a_bare_debian() {
    let Some(program) = program() else { return };
    if !have(&[("debootstrap", "debootstrap")]) {
        return;
    }
    let root = Root::new("debian");
    let mut debootstrap = command("debootstrap");
    debootstrap.args(["--variant=minbase", "stable"]);
    let made = Command::output(debootstrap.arg(&root.0)).expect("debootstrap runs");
    if !made.status.success() {
        return skip(&format!("debootstrap: {}", text(&made)));
    }
    root.furnish(&program, None);
    everything_runs(&root);
}
