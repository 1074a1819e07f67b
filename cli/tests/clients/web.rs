//! curl against nginx.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use egret_cli::demo::setup::{FORWARD_LISTED, FORWARD_TARGET};
use egret_cli::lab::plan::EXTERNAL;
use egret_cli::lab::{Host, Namespace, Topology};

use crate::kernel::backend::{Backend, on_both_backends};
use crate::kernel::{Daemon, Stand, command, succeed};
use crate::{LIMIT, blob, stand};

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

fn curl_and_nginx(topology: Topology, backend: Backend) {
    let programs = [("curl", "curl"), ("nginx", "nginx-light")];
    let Some(stand) = stand(topology, backend, &programs) else {
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

on_both_backends! {
    curl_and_nginx_two_arm: |backend| curl_and_nginx(Topology::TwoArm, backend);
    curl_and_nginx_one_arm: |backend| curl_and_nginx(Topology::OneArm, backend);
}
