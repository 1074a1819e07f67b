//! ssh, both ways of a session.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use egret_cli::lab::Topology;
use egret_cli::lab::plan::EXTERNAL;

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Daemon, command, succeed};
use crate::{LIMIT, blob, stand};

const SSH_PORT: u16 = 22_022;

/// Makes a key without a passphrase.
fn keygen(path: &Path) {
    let mut keygen = command("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
        .arg(path);
    assert!(keygen.status().expect("ssh-keygen").success());
}

fn ssh_session(topology: Topology, backend: Backend) {
    let programs = [
        ("sshd", "openssh-server"),
        ("ssh", "openssh-client"),
        ("ssh-keygen", "openssh-client"),
    ];
    let Some(stand) = stand(topology, backend, &programs) else {
        return;
    };
    // Built into sshd; its package's service makes it at boot.
    fs::create_dir_all("/run/sshd").expect("sshd's empty directory");
    let directory = stand.lab.directory();
    let at = |name: &str| directory.join(name);
    keygen(&at("host-key"));
    keygen(&at("client-key"));
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("permissions");
    let config = format!(
        "Port {SSH_PORT}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
         UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
        at("host-key").display(),
        at("client-key.pub").display()
    );
    fs::write(at("sshd.conf"), config).expect("writing the configuration");
    let mut sshd = command("sshd");
    sshd.args(["-D", "-e", "-f"]).arg(at("sshd.conf"));
    let server = &stand.lab.servers[0];
    let _daemon = Daemon::start(&stand.lab, &server.namespace, &mut sshd, &[SSH_PORT]);

    let sent = blob(22);
    fs::write(at("sent"), &sent).expect("writing what is sent");
    let ssh = |script: &str| {
        let mut ssh = command("ssh");
        ssh.args([
            "-F",
            "/dev/null",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
        ]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
        // New keys now and then, as in a long session.
        ssh.args(["-o", "RekeyLimit=2M", "-o", "ConnectTimeout=10", "-p"]);
        ssh.arg(SSH_PORT.to_string())
            .arg("-i")
            .arg(at("client-key"));
        ssh.arg(format!("root@{}", server.address)).arg(script);
        ssh
    };
    let from = &stand.lab.clients[0].namespace;
    let peer = succeed(from, &mut ssh("echo $SSH_CONNECTION"), LIMIT).text();
    assert!(peer.starts_with(&format!("{EXTERNAL} ")), "{peer}");
    let received = succeed(
        from,
        &mut ssh(&format!("cat {}", at("sent").display())),
        LIMIT,
    );
    assert!(
        received.stdout == sent,
        "what came down the session differs"
    );
    // Up the session: the shell on the client's side feeds it.
    let script = format!("cat > {}", at("arrived").display());
    let line = format!("{} < {}", quoted(&ssh(&script)), at("sent").display());
    succeed(from, Command::new("sh").args(["-c", &line]), LIMIT);
    assert!(
        fs::read(at("arrived")).expect("a file") == sent,
        "what went up differs"
    );
    stand.finish();
}

/// A command as a shell takes it.
fn quoted(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| format!("'{}'", word.to_string_lossy()));
    words.collect::<Vec<_>>().join(" ")
}

on_both_backends! {
    ssh_two_arm: |backend| ssh_session(Topology::TwoArm, backend);
    ssh_one_arm: |backend| ssh_session(Topology::OneArm, backend);
}
