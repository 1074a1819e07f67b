//! The gateway is killed and started again: nothing leaves untranslated meanwhile, and what was
//! open before goes on afterwards.

use std::time::{Duration, Instant};

use super::check::{Miss, Stage, Verdict, at, endpoint, expect, expect_external};
use crate::lab::Lab;
use crate::lab::plan::SERVERS;
use crate::lab::service::{UdpFlow, UdpService};
use crate::lab::tcp::{EchoConnection, TcpService, exchange};

const TCP_PORT: u16 = 5003;
const UDP_PORT: u16 = 7002;
/// Below the pool: a port that a client has already could not be the host's as well.
const HOST_PORT: u16 = 22;
/// Rounds of traffic while the gateway is dead.
const ROUNDS: u32 = 10;
const LIMIT: Duration = Duration::from_millis(700);
/// How long TCP may take to notice that its path works again: its timer doubles meanwhile.
const RECOVERY: Duration = Duration::from_secs(8);

/// What is open while the gateway dies.
struct Open {
    tcp: Vec<EchoConnection>,
    udp: Vec<UdpFlow>,
    /// What the server saw of each UDP flow.
    seen: Vec<std::net::SocketAddrV4>,
}

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let server = &lab.servers[0];
    let tcp_service = TcpService::start(&server.namespace, TCP_PORT)?;
    let udp_service = UdpService::start(&server.namespace, SERVERS[0], [UDP_PORT])?;
    let host_service = TcpService::start(&lab.gateway, HOST_PORT)?;
    let mut open = open_all(lab)?;

    stage.note_drops("before the restart")?;
    let killed = Instant::now();
    stage.gateway.kill();
    let meanwhile = while_dead(lab, &mut open);
    // The gateway serves again before the check ends, whatever came of it.
    stage.gateway.start()?;
    let away = killed.elapsed();
    meanwhile?;
    goes_on(lab, &mut open)?;
    drop((tcp_service, udp_service, host_service));
    Ok(format!(
        "{} after {} ms away",
        open.seen[0],
        away.as_millis()
    ))
}

/// A TCP connection and a UDP flow of every client.
fn open_all(lab: &Lab) -> Result<Open, Miss> {
    let mut open = Open {
        tcp: Vec::new(),
        udp: Vec::new(),
        seen: Vec::new(),
    };
    for client in &lab.clients {
        let what = format!("{} connects to {}", client.address, at(0, TCP_PORT));
        let mut tcp = expect(
            what,
            EchoConnection::open(&client.namespace, at(0, TCP_PORT)),
        )?;
        expect_external(tcp.seen)?;
        tcp.send(b"before")?;
        expect("the echo before", tcp.expect(b"before", LIMIT))?;
        let udp = UdpFlow::open(&client.namespace, 0, at(0, UDP_PORT))?;
        let seen = expect("the answer before", udp.ask(b"before", 3, LIMIT))?;
        open.tcp.push(tcp);
        open.udp.push(udp);
        open.seen.push(seen);
    }
    Ok(open)
}

/// Clients go on sending; nothing answers, but the host's own traffic goes on.
fn while_dead(lab: &Lab, open: &mut Open) -> Result<(), Miss> {
    for tcp in &mut open.tcp {
        tcp.send(b"meanwhile")?;
    }
    for client in &lab.clients {
        // A new flow is what a kernel that forwards would let out as it is.
        UdpFlow::open(&client.namespace, 0, at(0, UDP_PORT))?.send(b"new meanwhile")?;
    }
    for _ in 0..ROUNDS {
        for udp in &open.udp {
            // An ICMP error for an earlier one may be reported here.
            let _ = udp.send(b"meanwhile");
            let answered = udp.receive(b"meanwhile", Duration::from_millis(5));
            if let Ok(seen) = answered {
                let expected = "nothing is translated while the gateway is dead";
                return Err(Miss::failed(expected, format!("an answer to {seen}")));
            }
        }
    }
    let what = "the gateway host's own traffic goes on while the gateway is dead";
    let to = endpoint(lab.host_address(), HOST_PORT);
    expect(what, exchange(&lab.servers[0].namespace, to, 64 << 10, 31)).map(drop)
}

/// The connections and flows of before, and new ones.
fn goes_on(lab: &Lab, open: &mut Open) -> Result<(), Miss> {
    for ((udp, before), client) in open.udp.iter().zip(&open.seen).zip(&lab.clients) {
        let what = format!("the UDP flow of {} goes on", client.address);
        let now = expect(what, udp.ask(b"after", 5, LIMIT))?;
        if now != *before {
            let expected = format!("the flow of {} keeps {before}", client.address);
            return Err(Miss::failed(expected, format!("the server sees {now}")));
        }
    }
    for (tcp, client) in open.tcp.iter_mut().zip(&lab.clients) {
        let what = format!("the TCP connection of {} goes on", client.address);
        tcp.send(b"after")?;
        expect(what, tcp.expect(b"meanwhileafter", RECOVERY))?;
    }
    for client in &lab.clients {
        let what = format!("{} opens a new connection", client.address);
        let seen = exchange(&client.namespace, at(0, TCP_PORT), 64 << 10, 33);
        expect_external(expect(what, seen)?)?;
    }
    Ok(())
}
