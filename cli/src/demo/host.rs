//! The gateway host's own traffic, on the address and the ports that it shares with the clients.

use std::time::Duration;

use super::check::{Miss, Stage, Verdict, at, endpoint, expect};
use crate::lab::Lab;
use crate::lab::icmp::IcmpSocket;
use crate::lab::service::{UdpFlow, UdpService};
use crate::lab::tcp::{TcpService, exchange};

/// A server on the gateway itself, as its SSH daemon. Below the pool: a port that a client has
/// already could not be the host's as well.
const HOST_PORT: u16 = 22;
/// A UDP server on the gateway itself.
const HOST_UDP_PORT: u16 = 53;
/// A port of the servers that answers like a name server.
const NAME_PORT: u16 = 53;
/// A port that a client and the gateway use as source at the same time. It lies outside of the
/// kernel's range for such ports, so that Egret gives it to the client as it is.
const SHARED_PORT: u16 = 21_000;
/// An identifier that a client and the gateway use at the same time.
const SHARED_ID: u16 = 0x4745;
/// Bytes of a datagram that goes in several fragments.
const LARGE: usize = 8000;
const LIMIT: Duration = Duration::from_millis(700);

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let services = lab
        .servers
        .iter()
        .map(|server| UdpService::start(&server.namespace, server.address, [NAME_PORT]))
        .collect::<Result<Vec<_>, _>>()?;
    server_on_the_gateway(lab)?;
    shared_identifier(lab)?;
    let seen = shared_port(lab)?;
    name_queries(lab)?;
    fragments(lab)?;
    drop(services);
    Ok(format!("{seen} is the gateway's own"))
}

/// A TCP server on the gateway, used from outside.
fn server_on_the_gateway(lab: &Lab) -> Result<(), Miss> {
    let service = TcpService::start(&lab.gateway, HOST_PORT)?;
    for server in &lab.servers {
        let what = format!("{} uses the gateway's own port {HOST_PORT}", server.address);
        let to = endpoint(lab.host_address(), HOST_PORT);
        let seen = expect(what, exchange(&server.namespace, to, 256 << 10, 21))?;
        if *seen.ip() != server.address {
            let expected = format!("the gateway's server sees {}", server.address);
            return Err(Miss::failed(expected, format!("it sees {seen}")));
        }
    }
    drop(service);
    Ok(())
}

/// The gateway pings while a client has a session with the same identifier to another server.
fn shared_identifier(lab: &Lab) -> Result<(), Miss> {
    let client = IcmpSocket::open(&lab.clients[0].namespace)?;
    let gateway = IcmpSocket::open(&lab.gateway)?;
    let [s1, s2] = &lab.servers;
    let what = format!(
        "the client pings {} with identifier {SHARED_ID}",
        s1.address
    );
    expect(
        what,
        client.ping(s1.address, SHARED_ID, 1, b"client", 3, LIMIT),
    )?;
    let what = format!("the gateway pings {} with the same identifier", s2.address);
    expect(
        what,
        gateway.ping(s2.address, SHARED_ID, 1, b"gateway", 3, LIMIT),
    )?;
    let what = "the client's ping goes on";
    expect(
        what,
        client.ping(s1.address, SHARED_ID, 2, b"client", 3, LIMIT),
    )
}

/// The gateway asks from a port that a client's session has, too; the endpoint the server saw.
fn shared_port(lab: &Lab) -> Result<std::net::SocketAddrV4, Miss> {
    let client = UdpFlow::open(&lab.clients[0].namespace, SHARED_PORT, at(0, NAME_PORT))?;
    expect("the client asks s1", client.ask(b"client", 3, LIMIT))?;
    let gateway = UdpFlow::open(&lab.gateway, SHARED_PORT, at(1, NAME_PORT))?;
    let what = format!("the gateway asks s2 from its port {SHARED_PORT}");
    let seen = expect(what, gateway.ask(b"gateway", 3, LIMIT))?;
    if seen != endpoint(lab.host_address(), SHARED_PORT) {
        let own = lab.host_address();
        let expected = format!("s2 sees {own}:{SHARED_PORT}, not translated");
        return Err(Miss::failed(expected, format!("it sees {seen}")));
    }
    expect(
        "the client asks s1 again",
        client.ask(b"client again", 3, LIMIT),
    )?;
    Ok(seen)
}

/// Short questions from ports of the kernel's choice, as a resolver asks them.
fn name_queries(lab: &Lab) -> Result<(), Miss> {
    for number in 0..40u8 {
        let to = at(usize::from(number % 2), NAME_PORT);
        let flow = UdpFlow::open(&lab.gateway, 0, to)?;
        let seen = expect(
            format!("{to} answers the gateway"),
            flow.ask(&[number], 3, LIMIT),
        )?;
        if seen != endpoint(lab.host_address(), flow.local()?.port()) {
            let expected = format!("{to} sees the gateway's own {}", flow.local()?);
            return Err(Miss::failed(expected, format!("it sees {seen}")));
        }
    }
    Ok(())
}

/// Datagrams that go in fragments, asked by the gateway and asked of it.
fn fragments(lab: &Lab) -> Result<(), Miss> {
    let payload: Vec<u8> = (0..LARGE).map(|place| (place % 251) as u8).collect();
    for server in 0..lab.servers.len() {
        let flow = UdpFlow::open(&lab.gateway, 0, at(server, NAME_PORT))?;
        let what = format!("{} answers {LARGE} bytes with as many", flow.to);
        expect(what, flow.ask(&payload, 3, LIMIT))?;
    }
    let service = UdpService::start(&lab.gateway, lab.host_address(), [HOST_UDP_PORT])?;
    for server in &lab.servers {
        let flow = UdpFlow::open(
            &server.namespace,
            0,
            endpoint(lab.host_address(), HOST_UDP_PORT),
        )?;
        let what = format!("the gateway answers {LARGE} bytes from {}", server.address);
        expect(what, flow.ask(&payload, 3, LIMIT))?;
    }
    drop(service);
    Ok(())
}
