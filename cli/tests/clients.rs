//! Real programs through the gateway: curl against nginx, iperf3, dig and the C library's resolver
//! against dnsmasq, ssh, WireGuard; each with two arms and with one. Offloads are as the kernel has
//! them: the engine completes the partial checksums of veth.
//!
//! Debian packages: curl nginx-light iperf3 dnsmasq-base bind9-dnsutils openssh-server
//! openssh-client; wireguard-tools, and wireguard-go where the kernel has no WireGuard.

mod kernel;

use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use egret_cli::demo::setup::{FORWARD_LISTED, FORWARD_TARGET, Tuning};
use egret_cli::lab::content::Content;
use egret_cli::lab::plan::{EXTERNAL, SERVERS, client};
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{Host, LabOptions, Namespace, Topology};
use kernel::wireguard::{TunnelEnd, have_wireguard};
use kernel::{Daemon, Stand, command, have, is_root, run, succeed};

const PREFIX: &str = "egret-tr";
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of what is sent through curl and ssh.
const LENGTH: usize = 8 << 20;

/// A lab whose gateway serves, if the programs are there.
fn stand(topology: Topology, programs: &[(&str, &str)]) -> Option<Stand> {
    let stands = is_root() && have(programs);
    stands.then(|| Stand::start(LabOptions::new(PREFIX, topology), &Tuning::default()))
}

/// Several megabytes that no two runs of bytes look alike in.
fn blob(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    Content::new(seed).fill(&mut bytes);
    bytes
}

// curl and nginx

/// An nginx in a namespace that serves `/blob`; its access log says who came.
struct Nginx {
    log: PathBuf,
    blob: Vec<u8>,
    _daemon: Daemon,
}

impl Nginx {
    fn start(stand: &Stand, namespace: &Namespace, port: u16) -> Nginx {
        let directory = stand
            .lab
            .directory()
            .join(format!("nginx-{}", namespace.name()));
        fs::create_dir_all(directory.join("www")).expect("a directory");
        let blob = blob(u64::from(port));
        fs::write(directory.join("www/blob"), &blob).expect("writing the blob");
        let at = directory.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
             events {{}}\nhttp {{\n{temporary}log_format peer '$remote_addr $remote_port';\n\
             access_log {at}/access.log peer; sendfile on; keepalive_timeout 60;\n\
             server {{ listen {port}; root {at}/www; }}\n}}\n"
        );
        let path = directory.join("nginx.conf");
        fs::write(&path, config).expect("writing the configuration");
        let mut nginx = command("nginx");
        nginx
            .arg("-e")
            .arg(directory.join("error.log"))
            .arg("-p")
            .arg(&directory);
        nginx.arg("-c").arg(&path);
        Nginx {
            log: directory.join("access.log"),
            blob,
            _daemon: Daemon::start(&stand.lab, namespace, &mut nginx, &[port]),
        }
    }

    /// Downloads with one curl process: `count` requests, `parallel` of them at a time. Returns how
    /// many connections that took.
    fn download(
        &self,
        stand: &Stand,
        from: &Host,
        to: SocketAddrV4,
        count: u8,
        parallel: u8,
    ) -> u32 {
        let target = |number| {
            let name = format!("curl-{}-{number}", from.namespace.name());
            stand.lab.directory().join(name)
        };
        let mut curl = command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "20",
            "--noproxy",
            "*",
        ]);
        curl.args(["--write-out", "%{num_connects}\\n"]);
        if parallel > 1 {
            curl.args(["--parallel", "--parallel-immediate", "--parallel-max"]);
            curl.arg(parallel.to_string());
        }
        for number in 0..count {
            curl.arg(format!("http://{to}/blob"))
                .arg("--output")
                .arg(target(number));
        }
        let said = succeed(&from.namespace, &mut curl, LIMIT);
        for number in 0..count {
            let got = fs::read(target(number)).expect("what curl got");
            assert!(got == self.blob, "curl at {} got other bytes", from.address);
            fs::remove_file(target(number)).expect("removing it");
        }
        let lines = said.text();
        lines
            .lines()
            .map(|line| line.parse::<u32>().expect("a count"))
            .sum()
    }

    /// The endpoints that the requests came from.
    fn peers(&self) -> Vec<(String, u16)> {
        let text = fs::read_to_string(&self.log).expect("the access log");
        let peer = |line: &str| {
            let (address, port) = line.split_once(' ').expect("address and port");
            (address.to_owned(), port.parse().expect("a port"))
        };
        text.lines().map(peer).collect()
    }
}

fn curl_and_nginx(topology: Topology) {
    let programs = [("curl", "curl"), ("nginx", "nginx-light")];
    let Some(stand) = stand(topology, &programs) else {
        return;
    };
    let [s1, _] = &stand.lab.servers;
    let outside = Nginx::start(&stand, &s1.namespace, 80);
    let to = SocketAddrV4::new(s1.address, 80);

    let connections = outside.download(&stand, &stand.lab.clients[0], to, 3, 1);
    assert_eq!(
        connections, 1,
        "three requests on one connection that was kept alive"
    );
    std::thread::scope(|scope| {
        for client in &stand.lab.clients {
            scope.spawn(|| {
                let connections = outside.download(&stand, client, to, 6, 6);
                assert!(connections > 1, "parallel downloads");
            });
        }
    });
    let peers = outside.peers();
    assert_eq!(peers.len(), 15);
    assert!(
        peers
            .iter()
            .all(|(address, _)| *address == EXTERNAL.to_string()),
        "{peers:?}"
    );

    let inside = Nginx::start(&stand, &stand.lab.clients[1].namespace, FORWARD_TARGET);
    let forward = SocketAddrV4::new(EXTERNAL, FORWARD_LISTED);
    inside.download(&stand, s1, forward, 4, 4);
    inside.download(&stand, s1, forward, 2, 1);
    let peers = inside.peers();
    assert!(
        peers
            .iter()
            .all(|(address, _)| *address == s1.address.to_string()),
        "{peers:?}"
    );
    stand.finish();
}

#[test]
fn curl_and_nginx_two_arm() {
    curl_and_nginx(Topology::TwoArm);
}

#[test]
fn curl_and_nginx_one_arm() {
    curl_and_nginx(Topology::OneArm);
}

// iperf3

/// Runs an iperf3 client of 8 streams for 2 s and returns its report. No interval may be silent.
fn iperf3(from: &Host, options: &[&str]) -> serde_json::Value {
    let mut iperf3 = command("iperf3");
    let server = SERVERS[0].to_string();
    iperf3.args([
        "--client",
        &server,
        "--json",
        "--time",
        "2",
        "--parallel",
        "8",
    ]);
    let said = run(&from.namespace, iperf3.args(options), LIMIT);
    let text = said.text();
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report");
    assert!(
        report["error"].is_null(),
        "{options:?}: {}",
        report["error"]
    );
    let intervals = report["intervals"].as_array().expect("intervals");
    for interval in intervals {
        let rate = interval["sum"]["bits_per_second"].as_f64().expect("a rate");
        assert!(rate > 0.0, "{options:?}: a silent interval: {text}");
    }
    assert!(!intervals.is_empty());
    report["end"].clone()
}

fn iperf3_streams(topology: Topology) {
    let Some(stand) = stand(topology, &[("iperf3", "iperf3")]) else {
        return;
    };
    let server = &stand.lab.servers[0].namespace;
    let _daemon = Daemon::start(
        &stand.lab,
        server,
        command("iperf3").arg("--server"),
        &[5201],
    );
    let from = &stand.lab.clients[0];
    for direction in [&[][..], &["--reverse"]] {
        let end = iperf3(from, direction);
        let received = end["sum_received"]["bytes"].as_u64().expect("bytes");
        // A tenth of what the gateway must do, since other tests run beside this one.
        assert!(
            received > 25_000_000,
            "TCP {direction:?}: {received} bytes in 2 s"
        );
        let udp = [&["--udp", "--bitrate", "5M", "--length", "1200"], direction].concat();
        let sum = &iperf3(from, &udp)["sum"];
        let lost = sum["lost_percent"].as_f64().expect("a loss");
        let rate = sum["bits_per_second"].as_f64().expect("a rate");
        assert!(lost < 1.0, "UDP {direction:?}: {lost} % lost");
        assert!(rate > 35e6, "UDP {direction:?}: {rate} bit/s of 40 million");
    }
    stand.finish();
}

#[test]
fn iperf3_two_arm() {
    iperf3_streams(Topology::TwoArm);
}

#[test]
fn iperf3_one_arm() {
    iperf3_streams(Topology::OneArm);
}

// Names: dig and the C library against dnsmasq

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

fn names(topology: Topology) {
    let programs = [("dnsmasq", "dnsmasq-base"), ("dig", "bind9-dnsutils")];
    let Some(stand) = stand(topology, &programs) else {
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

#[test]
fn names_two_arm() {
    names(Topology::TwoArm);
}

#[test]
fn names_one_arm() {
    names(Topology::OneArm);
}

// ssh

const SSH_PORT: u16 = 22_022;

/// Makes a key without a passphrase.
fn keygen(path: &Path) {
    let mut keygen = command("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
        .arg(path);
    assert!(keygen.status().expect("ssh-keygen").success());
}

fn ssh_session(topology: Topology) {
    let programs = [
        ("sshd", "openssh-server"),
        ("ssh", "openssh-client"),
        ("ssh-keygen", "openssh-client"),
    ];
    let Some(stand) = stand(topology, &programs) else {
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

#[test]
fn ssh_two_arm() {
    ssh_session(Topology::TwoArm);
}

#[test]
fn ssh_one_arm() {
    ssh_session(Topology::OneArm);
}

// WireGuard

const TUNNEL_PORT: u16 = 51_820;
/// Inside the tunnel: the server, the client.
const TUNNEL: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

fn wireguard(topology: Topology) {
    let Some(stand) = stand(topology, &[("wg", "wireguard-tools")]) else {
        return;
    };
    if !have_wireguard(&stand) {
        return;
    }
    let (server, from) = (&stand.lab.servers[0], &stand.lab.clients[0]);
    let tag = format!("{:x}{}", std::process::id(), &topology.name()[..1]);
    let outside = TunnelEnd::make(&stand, server, format!("wg{tag}s"));
    let inside = TunnelEnd::make(&stand, from, format!("wg{tag}c"));
    let (port, endpoint) = (
        TUNNEL_PORT.to_string(),
        format!("{}:{TUNNEL_PORT}", SERVERS[0]),
    );
    let allowed = TUNNEL.map(|address| format!("{address}/32"));
    let words = [
        "listen-port",
        &port,
        "peer",
        &inside.public_key,
        "allowed-ips",
        &allowed[1],
    ];
    outside.set_up(server, TUNNEL[0], &words);
    let words = [
        "peer",
        &outside.public_key,
        "allowed-ips",
        &allowed[0],
        "endpoint",
        &endpoint,
    ];
    inside.set_up(
        from,
        TUNNEL[1],
        &[&words[..], &["persistent-keepalive", "1"]].concat(),
    );

    let service = TcpService::start(&server.namespace, 5001).expect("a server");
    let to = format!("{}:5001", TUNNEL[0]).parse().expect("an endpoint");
    let seen = exchange(&from.namespace, to, 4 << 20, 51).expect("bytes through the tunnel");
    assert_eq!(seen.ip().to_string(), TUNNEL[1]);
    // And one that the server opens, through the mapping that the client's packets keep.
    let back = TcpService::start(&from.namespace, 5002).expect("a server");
    let to = format!("{}:5002", TUNNEL[1]).parse().expect("an endpoint");
    exchange(&server.namespace, to, 1 << 20, 52).expect("bytes from the server's side");
    let mut show = command("wg");
    let endpoints = succeed(
        &server.namespace,
        show.args(["show", &outside.link, "endpoints"]),
        LIMIT,
    );
    let endpoints = endpoints.text();
    assert!(endpoints.contains(&format!("\t{EXTERNAL}:")), "{endpoints}");
    assert!(!endpoints.contains(&client(1).to_string()), "{endpoints}");
    drop((service, back, outside, inside));
    stand.finish();
}

#[test]
fn wireguard_two_arm() {
    wireguard(Topology::TwoArm);
}

#[test]
fn wireguard_one_arm() {
    wireguard(Topology::OneArm);
}
