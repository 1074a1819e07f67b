//! The kernel itself: forwarding, and nftables' masquerade.

use std::io::Write;
use std::process::{Command, Stdio};

use super::Contender;
use crate::bench::path::conntrack;
use crate::bench::path::stage::{INTERNAL, PORTS, Stage};
use crate::lab::LabError;

/// Plain forwarding without NAT.
#[derive(Debug)]
pub struct Forward;

impl Forward {
    /// Turns forwarding on.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn start(stage: &Stage) -> Result<Forward, LabError> {
        stage.forward_by_kernel(true)?;
        Ok(Forward)
    }
}

impl Contender for Forward {
    fn tracked(&self, _: &Stage) -> Result<Option<u64>, LabError> {
        Ok(None)
    }

    fn threads(&self) -> Vec<i32> {
        Vec::new()
    }

    fn fill_rate(&self) -> f64 {
        f64::INFINITY
    }

    fn stop(self: Box<Self>, stage: &Stage) -> Result<(), LabError> {
        stage.forward_by_kernel(false)
    }
}

/// nftables' masquerade, to the ports that Egret has, too.
#[derive(Debug)]
pub struct Nft;

impl Nft {
    /// Loads the rules and turns forwarding on.
    ///
    /// # Errors
    /// The nft tool or the kernel's NAT is missing.
    pub fn start(stage: &Stage) -> Result<Nft, LabError> {
        let (low, high) = PORTS;
        let outside = &stage.outside;
        run_nft(
            stage,
            &format!(
                "table ip path {{\nchain post {{\ntype nat hook postrouting priority srcnat;\n\
                 ip saddr {INTERNAL} oifname \"{outside}\" meta l4proto {{ tcp, udp }} \
                 masquerade to :{low}-{high}\n}}\n}}\n"
            ),
        )?;
        stage.forward_by_kernel(true)?;
        Ok(Nft)
    }
}

impl Contender for Nft {
    fn tracked(&self, stage: &Stage) -> Result<Option<u64>, LabError> {
        conntrack::count(&stage.gateway).map(Some)
    }

    fn threads(&self) -> Vec<i32> {
        Vec::new()
    }

    fn fill_rate(&self) -> f64 {
        1e5
    }

    fn stop(self: Box<Self>, stage: &Stage) -> Result<(), LabError> {
        stage.forward_by_kernel(false)?;
        run_nft(stage, "flush ruleset\n")?;
        conntrack::flush(&stage.gateway)
    }
}

/// Gives commands to nft in the gateway.
fn run_nft(stage: &Stage, commands: &str) -> Result<(), LabError> {
    let run = || {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = stage
        .gateway
        .run(run)
        .map_err(LabError::system("running nft (Debian package nftables)"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Gateway(format!("nft refused:\n{said}")))
}
