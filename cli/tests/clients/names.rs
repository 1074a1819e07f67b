//! Names: dig and the C library's resolver against dnsmasq.

use std::fs;
use std::path::Path;
use std::process::Command;

use egret_cli::lab::plan::{EXTERNAL, SERVERS};
use egret_cli::lab::{Host, Topology};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Daemon, Stand, command, succeed};
use crate::{LIMIT, stand};

const NAME: &str = "egret.test";
const NAME_ADDRESS: &str = "192.0.2.77";
const NAME_ADDRESS6: &str = "2001:db8::77";
/// A name with more text than fits a datagram.
const BIG: &str = "big.egret.test";
const BIG_STRINGS: usize = 30;

fn dnsmasq(stand: &Stand, log: &Path) -> Daemon {
    let mut dnsmasq = command("dnsmasq");
    dnsmasq
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
        ])
        .args([
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
            "--log-queries=extra",
        ])
        .arg(format!("--listen-address={}", SERVERS[0]))
        .arg(format!("--log-facility={}", log.display()))
        .arg(format!(
            "--host-record={NAME},{NAME_ADDRESS},{NAME_ADDRESS6}"
        ));
    let strings = (0..BIG_STRINGS).map(|number| format!(",{number:0>200}"));
    dnsmasq.arg(format!("--txt-record={BIG}{}", strings.collect::<String>()));
    Daemon::start(
        &stand.lab,
        &stand.lab.servers[0].namespace,
        &mut dnsmasq,
        &[53],
    )
}

fn dig(from: &Host, words: &[&str]) -> String {
    let mut dig = command("dig");
    dig.arg(format!("@{}", SERVERS[0]))
        .args(["+tries=3", "+time=2"])
        .args(words);
    succeed(&from.namespace, &mut dig, LIMIT).text()
}

/// Asks as a program does: A and AAAA at once, from one socket. /etc/resolv.conf is a private one.
fn getent(stand: &Stand, from: &Host) -> String {
    let resolv = stand.lab.directory().join("resolv.conf");
    fs::write(
        &resolv,
        format!("nameserver {}\noptions timeout:2\n", SERVERS[0]),
    )
    .expect("a file");
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec getent --no-addrconfig ahosts {NAME}",
        resolv.display()
    );
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", &script]);
    succeed(&from.namespace, &mut shell, LIMIT).text()
}

fn names(topology: Topology, backend: Backend) {
    let programs = [("dnsmasq", "dnsmasq-base"), ("dig", "bind9-dnsutils")];
    let Some(stand) = stand(topology, backend, &programs) else {
        return;
    };
    let log = stand.lab.directory().join("dnsmasq.log");
    let daemon = dnsmasq(&stand, &log);
    for client in &stand.lab.clients {
        // Two questions, one source port.
        let port = format!("{}#5353", client.address);
        let both = dig(client, &["-b", &port, "+short", NAME, "A", NAME, "AAAA"]);
        assert_eq!(both.trim(), format!("{NAME_ADDRESS}\n{NAME_ADDRESS6}"));
        let tcp = dig(client, &["+tcp", "+short", NAME]);
        assert_eq!(tcp.trim(), NAME_ADDRESS);
        let big = dig(client, &["+bufsize=512", "TXT", BIG]);
        assert!(big.contains("Truncated, retrying in TCP mode"), "{big}");
        assert_eq!(
            big.matches("IN\tTXT").count(),
            2,
            "question and answer: {big}"
        );
        assert!(big.contains(&format!("{:0>200}", BIG_STRINGS - 1)));
        for _ in 0..10 {
            let found = getent(&stand, client);
            assert!(
                found.contains(NAME_ADDRESS) && found.contains(NAME_ADDRESS6),
                "{found}"
            );
        }
    }
    drop(daemon);
    let log = fs::read_to_string(log).expect("the server's log");
    assert!(log.contains(&format!("from {EXTERNAL}")), "{log}");
    assert!(!log.contains("from 10."), "{log}");
    assert!(pairs_of_one_socket(&log) >= 20, "{log}");
    stand.finish();
}

/// How many times A and AAAA were asked for from one external port, one right after the other.
fn pairs_of_one_socket(log: &str) -> usize {
    // "... dnsmasq[5]: 7 192.0.2.2/40000 query[A] egret.test from 192.0.2.2"
    let queries: Vec<(&str, &str)> = log
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" query[")?;
            Some((before.rsplit(' ').next()?, after.split_once(']')?.0))
        })
        .collect();
    let is_pair = |pair: &&[(&str, &str)]| {
        let kinds = (pair[0].1, pair[1].1);
        pair[0].0 == pair[1].0 && (kinds == ("A", "AAAA") || kinds == ("AAAA", "A"))
    };
    queries.windows(2).filter(is_pair).count()
}

on_both_backends! {
    names_two_arm: |backend| names(Topology::TwoArm, backend);
    names_one_arm: |backend| names(Topology::OneArm, backend);
}
