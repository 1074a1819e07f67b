//! A pod behind the gateway that the kernel itself masquerades onto the same external address,
//! from ports of its own choice, while clients go on through Egret.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::check::{Miss, Stage, Verdict, at, expect, expect_from, join};
use crate::lab::netns::Namespace;
use crate::lab::plan::{EXTERNAL, POD, SERVERS};
use crate::lab::service::{UdpFlow, UdpService};
use crate::lab::tcp::{TcpService, exchange};
use crate::lab::{Host, Lab, LabError};

const TCP_PORT: u16 = 5004;
const UDP_PORT: u16 = 7003;
/// UDP flows of the pod and of each client.
const FLOWS: u16 = 60;
/// Source port of the first of them.
const FIRST_PORT: u16 = 24_000;
const LENGTH: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_millis(700);
/// The pod's interface on the gateway.
const POD_LINK: &str = "pod0";

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    if !nft_present() {
        return Err(Miss::Skipped("no nft binary here".to_owned()));
    }
    let lab = stage.lab;
    let pod = lab.add_pod(POD_LINK, POD)?;
    let _rule = Masquerade::install(lab)?;
    let services = lab
        .servers
        .iter()
        .map(|server| TcpService::start(&server.namespace, TCP_PORT))
        .collect::<Result<Vec<_>, _>>()?;
    let udp = lab
        .servers
        .iter()
        .map(|server| UdpService::start(&server.namespace, server.address, [UDP_PORT]))
        .collect::<Result<Vec<_>, _>>()?;
    let seen = std::thread::scope(|scope| {
        let hosts: Vec<_> = std::iter::once(&pod)
            .chain(&lab.clients)
            .enumerate()
            .map(|(number, host)| {
                // The kernel's masquerade has the host's address.
                let by = if number == 0 {
                    lab.host_address()
                } else {
                    EXTERNAL
                };
                scope.spawn(move || traffic_of(host, at(number.min(1), UDP_PORT), by))
            })
            .collect();
        hosts.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    drop((services, udp));
    Ok(format!("{} is the pod", seen[0]))
}

/// TCP to both servers and many UDP flows to one; one endpoint that a server saw.
///
/// Pod and clients use the same source ports, which both NATs keep. They ask different servers:
/// one external endpoint for one remote endpoint cannot be had by two that do not know each other.
fn traffic_of(host: &Host, asked: SocketAddrV4, by: Ipv4Addr) -> Result<SocketAddrV4, Miss> {
    let who = host.address;
    let mut last = None;
    for server in 0..SERVERS.len() {
        let to = at(server, TCP_PORT);
        let what = format!("{LENGTH} bytes both ways from {who} to {to}");
        let seen = expect(what, exchange(&host.namespace, to, LENGTH, 41))?;
        expect_from(by, seen)?;
        last = Some(seen);
    }
    for number in 0..FLOWS {
        let port = FIRST_PORT + number;
        let flow = UdpFlow::open(&host.namespace, port, asked)?;
        let what = format!("{} answers {who}", flow.to);
        expect_from(by, expect(what, flow.ask(&[number as u8], 3, LIMIT))?)?;
    }
    last.ok_or_else(|| Miss::failed("servers", "none"))
}

/// Is there an nft binary?
pub fn nft_present() -> bool {
    Command::new("nft")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs nft in a namespace; what it printed.
///
/// # Errors
/// It could not be run, or refused.
pub fn nft(namespace: &Namespace, arguments: &[&str]) -> Result<String, LabError> {
    let output = namespace
        .run(|| {
            Command::new("nft")
                .args(arguments)
                .stdin(Stdio::null())
                .output()
        })
        .map_err(LabError::system("running nft"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Gateway(format!(
        "nft {}: {}",
        arguments.join(" "),
        said.trim()
    )))
}

/// The kernel's forwarding and its rule for the pod, for as long as the value lives.
struct Masquerade<'a> {
    lab: &'a Lab,
}

impl Masquerade<'_> {
    fn install(lab: &Lab) -> Result<Masquerade<'_>, LabError> {
        // Made first, so that what follows is undone if it fails halfway.
        let rule = Masquerade { lab };
        let link = lab.topology.external_link();
        nft(&lab.gateway, &["add table ip pod"])?;
        nft(
            &lab.gateway,
            &["add chain ip pod post { type nat hook postrouting priority srcnat ; }"],
        )?;
        let rule_text = format!("add rule ip pod post ip saddr {POD} oifname {link} masquerade");
        nft(&lab.gateway, &[&rule_text])?;
        lab.gateway.set_sysctl("ipv4/ip_forward", "1")?;
        Ok(rule)
    }
}

impl Drop for Masquerade<'_> {
    fn drop(&mut self) {
        // The namespace goes soon; what cannot be undone here goes with it.
        let before = if self.lab.is_routed() { "1" } else { "0" };
        let _ = self.lab.gateway.set_sysctl("ipv4/ip_forward", before);
        let _ = nft(&self.lab.gateway, &["delete table ip pod"]);
    }
}
