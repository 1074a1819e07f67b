//! What the machine's cards are wired to: a client on the internal side, a server on the external
//! one, each a network namespace with the other end of a wire (a TAP device) in it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use egret_cli::lab::Namespace;
use egret_cli::lab::icmp::IcmpSocket;
use egret_cli::lab::owner::{Owner, remove_leftovers};
use egret_cli::lab::plan::{
    ANYWHERE, EXTERNAL, GATEWAY_INTERNAL, INTERNAL, ROUTER, TRANSIT, client,
};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{TcpService, exchange};
use ipnet::Ipv4Net;

use super::kernel::{ip, snmp};

/// Wires of the internal and the external card.
pub const TAPS: [&str; 2] = ["lan-tap", "wan-tap"];
/// The external port that is forwarded, and the client's port that it leads to.
pub const FORWARD: [u16; 2] = [8081, 81];
/// The server's ports.
const TCP_PORT: u16 = 5001;
const UDP_PORT: u16 = 7000;
/// Bytes of a TCP exchange, each way.
const TCP_BYTES: u64 = 256 << 10;
/// UDP flows.
const FLOWS: u32 = 16;
/// How long an answer may take through an emulated machine.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// How often is asked.
const TRIES: u32 = 6;

/// The namespaces; they go when it is dropped.
pub struct Network {
    /// Where QEMU runs.
    pub machine: Namespace,
    client: Namespace,
    server: Namespace,
    owner: Owner,
}

impl Network {
    /// Makes the namespaces and, in the machine's, TAP devices with several queues.
    pub fn make(prefix: &str) -> Network {
        remove_leftovers(prefix);
        let owner = Owner::claim(prefix).unwrap_or_else(|error| panic!("{error}"));
        let namespace = |role| {
            let made = owner.namespace(role);
            made.unwrap_or_else(|error| panic!("{error}"))
        };
        let [machine, client, server] = ["machine", "client", "server"].map(namespace);
        Network {
            machine,
            client,
            server,
            owner,
        }
    }

    /// Makes the TAP devices that QEMU opens, in its namespace: with room for several queues, or not.
    pub fn lay_wires(&self, multi_queue: bool) {
        let more = if multi_queue { "multi_queue" } else { "" };
        for tap in TAPS {
            ip(
                &self.machine,
                &format!("tuntap add dev {tap} mode tap vnet_hdr {more}"),
            );
        }
    }

    /// Where the files of the machine may lie.
    pub fn directory(&self) -> std::path::PathBuf {
        self.owner.directory()
    }

    /// Gives each wire's end to its host, once QEMU has opened it.
    pub fn plug(&self) {
        let hosts = [
            (&self.client, client(1), INTERNAL, GATEWAY_INTERNAL),
            (&self.server, ROUTER, TRANSIT, EXTERNAL),
        ];
        for (tap, (host, address, net, gateway)) in TAPS.into_iter().zip(hosts) {
            ip(
                &self.machine,
                &format!("link set {tap} netns {}", host.name()),
            );
            let address = Ipv4Net::new_assert(address, net.prefix_len());
            let set = host.add_address(tap, address);
            let set = set.and_then(|()| host.link_up(tap));
            set.unwrap_or_else(|error| panic!("{error}"));
            if host.name() == self.client.name() {
                let route = host.add_route(ANYWHERE, gateway);
                route.unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }

    /// Ping, UDP and TCP from the client through the machine to the server and back, TCP from the
    /// server through a forward to the client, and fragments for the machine's own kernel.
    pub fn traffic(&self) -> Vec<Check> {
        vec![
            ("ping", self.ping(&self.client, ROUTER, 56)),
            ("udp", self.udp()),
            ("tcp", self.tcp()),
            ("forward", self.forward()),
            ("host-ping", self.ping(&self.server, EXTERNAL, 56)),
            ("host-fragments", self.ping(&self.server, EXTERNAL, 3000)),
            ("checksums", self.checksums()),
        ]
    }

    /// Does the server answer the client, on any of its flows?
    pub fn client_is_heard(&self) -> bool {
        (0..FLOWS / 4).any(|_| self.flow(1).is_ok())
    }

    /// Does the machine itself answer the server?
    pub fn ping_machine(&self) -> Result<(), String> {
        self.ping(&self.server, EXTERNAL, 56)
    }

    fn ping(&self, from: &Namespace, to: Ipv4Addr, length: usize) -> Result<(), String> {
        let ask = || {
            let socket = IcmpSocket::open(from)?;
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            socket.ping(to, 77, 1, &payload, TRIES, ANSWER_LIMIT)
        };
        ask().map_err(|error| error.to_string())
    }

    /// Asks the server over many flows, which spread over the queues.
    pub fn udp(&self) -> Result<(), String> {
        (0..FLOWS).try_for_each(|_| self.flow(TRIES))
    }

    fn flow(&self, tries: u32) -> Result<(), String> {
        let ask = || {
            let _service = UdpService::start(&self.server, ROUTER, [UDP_PORT])?;
            let to = SocketAddrV4::new(ROUTER, UDP_PORT);
            let flow = UdpFlow::open(&self.client, 0, to)?;
            flow.ask(b"who am I", tries, ANSWER_LIMIT)
        };
        translated(ask())
    }

    fn tcp(&self) -> Result<(), String> {
        let ask = || {
            let _service = TcpService::start(&self.server, TCP_PORT)?;
            let to = SocketAddrV4::new(ROUTER, TCP_PORT);
            exchange(&self.client, to, TCP_BYTES, 1)
        };
        translated(ask())
    }

    fn forward(&self) -> Result<(), String> {
        let [external, internal] = FORWARD;
        let ask = || {
            let _service = TcpService::start(&self.client, internal)?;
            let to = SocketAddrV4::new(EXTERNAL, external);
            exchange(&self.server, to, TCP_BYTES / 4, 2)
        };
        match ask() {
            Ok(seen) if *seen.ip() == ROUTER => Ok(()),
            Ok(seen) => Err(format!("the client saw {seen} instead of {ROUTER}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Was neither host ever sent a wrong checksum?
    fn checksums(&self) -> Result<(), String> {
        for host in [&self.client, &self.server] {
            for protocol in ["Tcp", "Udp", "Icmp"] {
                let wrong = snmp(host, protocol, "InCsumErrors").map_err(|e| e.to_string())?;
                if wrong > 0 {
                    return Err(format!("{wrong} of {protocol} at {}", host.name()));
                }
            }
        }
        Ok(())
    }
}

/// Something that was looked at: its name, and what was wrong.
pub type Check = (&'static str, Result<(), String>);

/// The server must have seen the gateway's address, not the client's.
fn translated(seen: std::io::Result<SocketAddrV4>) -> Result<(), String> {
    match seen {
        Ok(seen) if *seen.ip() == EXTERNAL => Ok(()),
        Ok(seen) => Err(format!("the server saw {seen} instead of {EXTERNAL}")),
        Err(error) => Err(error.to_string()),
    }
}
