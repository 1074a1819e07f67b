//! TFTP, whose server answers from another port than was asked (RFC 1350 section 4), and no ALG for
//! it: that needs a filter that goes by the address (`adf`) or by nothing (`eif`). With `edf` the
//! answer is from a stranger, and no transfer begins: this is how it is documented to be.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use egret_cli::lab::content::Content;
use egret_cli::lab::plan::SERVERS;
use egret_cli::lab::{Topology, wait};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Daemon, Stand, command, has_udp_port, have, is_root, succeed};
use crate::{LIMIT, OWN, Pool, stand};

const PORT: u16 = 69;
/// Bytes of the file: not a multiple of TFTP's blocks of 512.
const LENGTH: usize = 200_001;

/// How answers from another port are refused: a mapping of `edm` is not for them at all.
const REFUSED: &[&str] = &["filtered", "no_session"];

/// A file that a server has, and the client's copy.
struct Transfer {
    sent: Vec<u8>,
    copy: PathBuf,
    _server: Daemon,
}

impl Transfer {
    /// Starts dnsmasq as a TFTP server, one port for each transfer.
    fn prepare(stand: &Stand) -> Transfer {
        let served = stand.lab.directory().join("tftp");
        fs::create_dir_all(&served).expect("a directory");
        let mut sent = vec![0; LENGTH];
        Content::new(69).fill(&mut sent);
        fs::write(served.join("blob"), &sent).expect("writing the file");
        let mut dnsmasq = command("dnsmasq");
        dnsmasq
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            .args(["--user=root", "--pid-file=", "--bind-interfaces"])
            .args(["--log-facility=-", "--enable-tftp"])
            .arg(format!("--listen-address={}", SERVERS[0]))
            .arg(format!("--tftp-root={}", served.display()));
        let server = &stand.lab.servers[0].namespace;
        let daemon = Daemon::start(&stand.lab, server, &mut dnsmasq, &[]);
        let serves = wait::until(LIMIT, || has_udp_port(server, PORT));
        assert!(serves, "dnsmasq does not serve");
        Transfer {
            sent,
            copy: stand.lab.directory().join("copy"),
            _server: daemon,
        }
    }

    /// The client's command.
    fn get(&self) -> Command {
        let mut tftp = command("tftp");
        tftp.args(["-m", "binary", &SERVERS[0].to_string()]);
        tftp.args(["-c", "get", "blob"]).arg(&self.copy);
        tftp
    }

    /// What came of the file.
    fn received(&self) -> Vec<u8> {
        fs::read(&self.copy).unwrap_or_default()
    }
}

fn ready() -> bool {
    is_root() && have(&[("dnsmasq", "dnsmasq-base"), ("tftp", "tftp-hpa")])
}

fn transfers(topology: Topology, backend: Backend, pool: Pool, nat: &str) {
    if !ready() {
        return;
    }
    let stand = stand(topology, backend, pool, nat);
    let transfer = Transfer::prepare(&stand);
    let client = &stand.lab.clients[0].namespace;
    succeed(client, &mut transfer.get(), LIMIT);
    assert!(transfer.received() == transfer.sent, "other bytes arrived");
    drop(transfer);
    stand.finish();
}

fn fails(backend: Backend, nat: &str) {
    if !ready() {
        return;
    }
    let stand = stand(Topology::TwoArm, backend, Pool::Own(OWN), nat);
    let transfer = Transfer::prepare(&stand);
    let client = &stand.lab.clients[0].namespace;
    assert_eq!(stand.drops(REFUSED), 0);
    let asking = Daemon::start(&stand.lab, client, &mut transfer.get(), &[]);
    // The server has answered, more than once; the client goes on asking.
    let refused = wait::until(LIMIT, || stand.drops(REFUSED) >= 2);
    assert!(refused, "{nat}: {}", stand.status()["drops"]);
    assert!(transfer.received().is_empty(), "{nat}: something arrived");
    drop((asking, transfer));
    stand.finish();
}

on_both_backends! {
    tftp_passes_with_adf_two_arm: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"adf\"";
        transfers(Topology::TwoArm, backend, Pool::Own(OWN), nat);
    };
    tftp_passes_with_adf_one_arm: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"adf\"";
        transfers(Topology::OneArm, backend, Pool::Shared, nat);
    };
    tftp_passes_with_eif: |backend| {
        let nat = "mapping = \"eim\"\nfiltering = \"eif\"";
        transfers(Topology::TwoArm, backend, Pool::Own(OWN), nat);
    };
    tftp_fails_with_edf: |backend| {
        fails(backend, "mapping = \"eim\"\nfiltering = \"edf\"");
    };
    tftp_fails_by_default: |backend| {
        fails(backend, "");
    };
}
