//! A gateway that has nothing more to give, on a real kernel: new sessions are refused with their
//! own counter and told so, what is open loses no packet, and the host's own traffic goes on; on both
//! backends.

mod kernel;

use std::time::Duration;

use egret_cli::demo::check::{at, endpoint};
use egret_cli::demo::setup;
use egret_cli::lab::icmp::{IcmpSocket, Message};
use egret_cli::lab::plan::EXTERNAL;
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::tcp::{EchoConnection, TcpService};
use egret_cli::lab::{LabOptions, Topology};
use etherparse::Icmpv4Type;
use etherparse::icmpv4::DestUnreachableHeader;
use kernel::backend::{Backend, on_both_backends};
use kernel::{Stand, build, is_root};

const PREFIX: &str = "egret-tf";
const TCP_PORT: u16 = 5010;
const UDP_PORT: u16 = 7010;
const HOST_PORT: u16 = 22;
/// An answer that takes longer is a lost packet.
const LIMIT: Duration = Duration::from_millis(700);
/// How long the refusal of a new flow is waited for.
const SHORT: Duration = Duration::from_millis(50);
/// Refused flows that prove that there is nothing left.
const REFUSED: usize = 5;
/// Rounds of traffic while there is nothing left.
const ROUNDS: usize = 50;

/// What there is too little of, and what a new flow is told.
struct Shortage {
    topology: Topology,
    sessions_max: u32,
    /// Tables of the configuration.
    more: &'static str,
    /// The counter of what is refused.
    reason: &'static str,
    told: DestUnreachableHeader,
    /// Flows of one client that find room at least, and at most.
    room: (usize, usize),
    /// Another client still finds room.
    others: bool,
}

/// What is open before: a TCP connection and a UDP flow of each client, a connection to the host.
struct Open {
    tcp: Vec<EchoConnection>,
    udp: Vec<UdpFlow>,
    host: EchoConnection,
}

impl Open {
    fn new(stand: &Stand) -> Open {
        let lab = &stand.lab;
        let host = EchoConnection::open(&lab.servers[0].namespace, endpoint(EXTERNAL, HOST_PORT));
        let mut open = Open {
            tcp: Vec::new(),
            udp: Vec::new(),
            host: host.expect("a connection to the host"),
        };
        for client in &lab.clients {
            let tcp = EchoConnection::open(&client.namespace, at(0, TCP_PORT));
            open.tcp.push(tcp.expect("a connection"));
            let udp = UdpFlow::open(&client.namespace, 0, at(0, UDP_PORT)).expect("a flow");
            udp.ask(b"before", 3, LIMIT).expect("an answer");
            open.udp.push(udp);
        }
        open
    }

    /// One packet each way on everything, none of which may be lost.
    fn go_on(&mut self, round: usize) {
        let bytes = format!("round {round}");
        for tcp in self.tcp.iter_mut().chain([&mut self.host]) {
            tcp.send(bytes.as_bytes()).expect("an open connection");
        }
        for tcp in self.tcp.iter_mut().chain([&mut self.host]) {
            let echo = tcp.expect(bytes.as_bytes(), LIMIT);
            echo.unwrap_or_else(|error| panic!("{} in {bytes}: {error}", tcp.seen));
        }
        for udp in &self.udp {
            let seen = udp.ask(bytes.as_bytes(), 1, LIMIT);
            seen.unwrap_or_else(|error| panic!("UDP in {bytes}: {error}"));
        }
    }
}

fn new_flow(stand: &Stand, client: usize) -> UdpFlow {
    let namespace = &stand.lab.clients[client].namespace;
    UdpFlow::open(namespace, 0, at(0, UDP_PORT)).expect("a socket")
}

/// New flows of the first client, until some are refused.
fn use_up(stand: &Stand, shortage: &Shortage) -> Vec<UdpFlow> {
    let mut flows = Vec::new();
    let mut refused = 0;
    while refused < REFUSED {
        assert!(flows.len() <= shortage.room.1, "room for {}", flows.len());
        let flow = new_flow(stand, 0);
        match flow.ask(b"room?", 1, if refused == 0 { LIMIT } else { SHORT }) {
            Ok(_) => flows.push(flow),
            Err(_) => refused += 1,
        }
    }
    let room = flows.len();
    assert!(room >= shortage.room.0, "room for {room} only");
    flows
}

fn holds(backend: Backend, shortage: &Shortage) {
    if !is_root() {
        return;
    }
    let lab = build(LabOptions::new(PREFIX, shortage.topology));
    let sessions_max = format!("sessions_max = {}", shortage.sessions_max);
    let config = setup::config(&lab, &backend.tuning(shortage.more))
        .replace("sessions_max = 65536", &sessions_max);
    let mut stand = Stand::with_config(lab, &config);
    egret_cli::lab::Gateway::start(&mut stand.engine).unwrap_or_else(|error| panic!("{error}"));
    let server = &stand.lab.servers[0];
    let services = (
        TcpService::start(&server.namespace, TCP_PORT).expect("a server"),
        UdpService::start(&server.namespace, server.address, [UDP_PORT]).expect("a server"),
        TcpService::start(&stand.lab.gateway, HOST_PORT).expect("a server"),
    );
    let mut open = Open::new(&stand);
    let client = &stand.lab.clients[0];
    let icmp = IcmpSocket::open(&client.namespace).expect("a socket");

    let flows = use_up(&stand, shortage);
    let before = stand.drops(&[shortage.reason]);
    assert!(before >= REFUSED as u64, "{before} {}", shortage.reason);
    for round in 0..ROUNDS {
        new_flow(&stand, 0).send(b"more?").expect("sent");
        open.go_on(round);
        flows[round % flows.len()]
            .ask(b"still?", 1, LIMIT)
            .expect("what found room goes on");
    }
    let refused = stand.drops(&[shortage.reason]) - before;
    assert_eq!(refused, ROUNDS as u64, "{}", shortage.reason);
    let told = |message: &Message| {
        let about = message.about.expect("the refused packet");
        assert_eq!(*about.0.ip(), client.address);
        assert!(message.checksum_right);
        message.kind == Icmpv4Type::DestinationUnreachable(shortage.told.clone())
    };
    let messages = icmp.take().expect("messages");
    let count = messages.iter().filter(|message| told(message)).count();
    assert!(count >= ROUNDS, "told {count} times: {messages:?}");

    let other = new_flow(&stand, 1).ask(b"and I?", 1, LIMIT);
    assert_eq!(other.is_ok(), shortage.others);
    drop((services, flows, open));
    stand.finish();
}

on_both_backends! {
    the_table: |backend| {
        holds(backend, &Shortage {
            topology: Topology::OneArm,
            sessions_max: 256,
            more: "",
            reason: "sessions_full",
            told: DestUnreachableHeader::Host,
            room: (240, 256),
            others: false,
        });
    };
    the_pool: |backend| {
        holds(backend, &Shortage {
            topology: Topology::TwoArm,
            sessions_max: 65_536,
            more: "[pool]\nports = \"20000-20049\"\n[icmp]\non_refusal = \"admin-prohibited\"\n",
            reason: "ports_exhausted",
            told: DestUnreachableHeader::FilterProhibited,
            room: (40, 50),
            others: false,
        });
    };
    the_quota_of_a_subscriber: |backend| {
        holds(backend, &Shortage {
            topology: Topology::TwoArm,
            sessions_max: 65_536,
            more: "[limits]\nsessions_per_subscriber = { udp = 30, tcp = 1 }\n",
            reason: "subscriber_sessions",
            told: DestUnreachableHeader::Host,
            room: (29, 29),
            others: true,
        });
    };
}
