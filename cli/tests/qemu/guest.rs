//! A machine in QEMU, without any acceleration: a Linux kernel, busybox and the static `egret`.
//!
//! Its first process takes commands, a line each, on the second serial port, and answers with what
//! they print and a last line with their exit status. The first serial port is the kernel's.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use egret_cli::lab::Namespace;

use super::cpio::Archive;
use super::linux::Linux;

/// The program that is the machine.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long it may take until the first command is taken.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// What begins the line that ends an answer; the exit status follows.
const END: &str = "egret-guest-end ";
/// The first process. Command lines that it reads are run by its shell.
const INIT: &str = include_str!("init.sh");
/// What the kernel must be able to do beyond its image: the cards, TAPs, classifiers on ingress, reading
/// the packet filter's rules, and what labs are made of.
const MODULES: [&str; 11] = [
    "virtio_pci",
    "virtio_net",
    "e1000e",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "crc32c_generic",
    "nf_tables",
    "veth",
    "bridge",
];

/// A network card of the machine, with a TAP device as the other end of its wire.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The TAP device, in the namespace that QEMU runs in.
    pub tap: &'static str,
    /// QEMU's device and its options, as `virtio-net-pci,mq=on`.
    pub device: String,
    /// Queue pairs.
    pub queues: u32,
}

/// What a command in the machine said.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// Both outputs.
    pub text: String,
}

/// A running machine. Dropping it ends it.
pub struct Guest {
    qemu: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    /// From the start of QEMU to the first command taken.
    pub boot_time: Duration,
}

/// The first root of the machine.
fn initramfs(linux: &Linux, egret: &[u8], busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for path in [
        "bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp",
    ] {
        archive.directory(path);
    }
    archive.device("dev/console", [5, 1]);
    archive.file("init", INIT.as_bytes());
    archive.file("bin/busybox", busybox);
    archive.file("bin/egret", egret);
    for (number, (name, content)) in linux.modules(&MODULES).iter().enumerate() {
        // Loaded in the order of their names.
        archive.file(&format!("modules/{number:02}-{name}.ko"), content);
    }
    archive.finish()
}

impl Guest {
    /// Boots a machine with two CPUs and these cards, its files in `directory`; returns once it takes
    /// commands.
    pub fn boot(
        namespace: &Namespace,
        directory: PathBuf,
        linux: &Linux,
        egret: &[u8],
        nics: &[Nic],
    ) -> Guest {
        let busybox = fs::read(super::busybox()).expect("busybox can be read");
        let initrd = directory.join("initrd");
        fs::write(&initrd, initramfs(linux, egret, &busybox)).expect("room for an archive");
        let console = directory.join("console");
        let mut command = super::kernel::command(QEMU);
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "512", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-append"])
            .arg("console=ttyS0 panic=-1 mitigations=off net.ifnames=0")
            .arg("-kernel")
            .arg(&linux.image)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", "stdio,id=commands,signal=off"])
            .args(["-serial", "chardev:commands"]);
        for (number, nic) in nics.iter().enumerate() {
            command.args(nic_arguments(number, nic));
        }
        let log = File::create(directory.join("qemu.log")).expect("a log file");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let started = Instant::now();
        let qemu = namespace.run(|| command.spawn());
        let mut qemu = qemu.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let commands = qemu.stdin.take().expect("a pipe");
        let lines = reader(qemu.stdout.take().expect("a pipe"));
        let mut guest = Guest {
            qemu,
            commands,
            lines,
            console,
            boot_time: Duration::ZERO,
        };
        let hello = guest.answer("booting", BOOT_LIMIT);
        guest.boot_time = started.elapsed();
        assert_eq!(hello.status, 0, "{}", hello.text);
        guest
    }

    /// Runs a line of shell in the machine.
    ///
    /// # Panics
    /// If it does not end within `limit`.
    pub fn run(&mut self, line: &str, limit: Duration) -> Answer {
        assert!(!line.contains('\n'), "one line: {line}");
        let sent = writeln!(self.commands, "{line}");
        sent.unwrap_or_else(|error| panic!("{line}: {error}\n{}", self.console_tail()));
        self.answer(line, limit)
    }

    /// As [`Guest::run`], of a line that must succeed: what it printed.
    pub fn succeed(&mut self, line: &str, limit: Duration) -> String {
        let Answer { status, text } = self.run(line, limit);
        assert_eq!(status, 0, "{line}:\n{text}\n{}", self.console_tail());
        text
    }

    /// Writes a file in the machine.
    pub fn write(&mut self, path: &str, text: &str) {
        let escaped = text.replace('\\', "\\\\").replace('\n', "\\n");
        let escaped = escaped.replace('\'', "'\\''").replace('%', "%%");
        let line = format!("printf '{escaped}' > {path}");
        self.succeed(&line, Duration::from_secs(10));
    }

    /// Turns the machine off and waits for its end.
    pub fn power_off(mut self, limit: Duration) {
        let _ = writeln!(self.commands, "exit");
        let ended = egret_cli::lab::wait::until(
            limit,
            || matches!(self.qemu.try_wait(), Ok(Some(status)) if status.success()),
        );
        assert!(ended, "it does not turn off:\n{}", self.console_tail());
    }

    /// The last lines of the kernel's.
    pub fn console_tail(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn answer(&mut self, what: &str, limit: Duration) -> Answer {
        let deadline = Instant::now() + limit;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix(END) {
                    Some(status) => {
                        let status = status.trim().parse().expect("an exit status");
                        return Answer { status, text };
                    }
                    None => text += &(line + "\n"),
                },
                Err(error) => {
                    let how = match error {
                        RecvTimeoutError::Timeout => format!("did not end within {limit:?}"),
                        RecvTimeoutError::Disconnected => "ended QEMU".to_owned(),
                    };
                    let console = self.console_tail();
                    panic!("{what} {how}; it said:\n{text}\nand the kernel:\n{console}");
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU's words for a card.
fn nic_arguments(number: usize, nic: &Nic) -> [String; 4] {
    let Nic {
        tap,
        device,
        queues,
    } = nic;
    let multi = if *queues > 1 {
        format!(",queues={queues}")
    } else {
        String::new()
    };
    [
        "-netdev".to_owned(),
        format!("tap,id=net{number},ifname={tap},script=no,downscript=no,vhost=off{multi}"),
        "-device".to_owned(),
        format!("{device},netdev=net{number},mac=02:00:00:00:00:{number:02x}"),
    ]
}

/// The lines that come from a pipe, without carriage returns.
fn reader(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).replace('\r', "");
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
