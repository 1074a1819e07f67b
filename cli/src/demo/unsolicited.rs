//! What nobody asked for: from outside to ports of the external address, to the endpoints of
//! other people's sessions, and straight to internal addresses. None of it may enter.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::check::{Miss, Stage, Verdict, at, endpoint, expect};
use crate::lab::capture::Pick;
use crate::lab::inject::{Injector, Kind};
use crate::lab::plan::{EXTERNAL, ROUTER_LINK, SERVERS, STRANGER};
use crate::lab::service::{UdpFlow, UdpService};
use crate::lab::{Capture, Lab, LabError, wait};

const PORT: u16 = 7000;
/// Random ports that are tried, with each kind of packet.
const TRIES: u32 = 60;
const LIMIT: Duration = Duration::from_millis(700);

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let service = UdpService::start(&lab.servers[0].namespace, SERVERS[0], [PORT])?;
    let flow = UdpFlow::open(&lab.clients[0].namespace, 0, at(0, PORT))?;
    let open = expect("s1 answers the client", flow.ask(b"before", 3, LIMIT))?;
    let captures = watch_clients(lab)?;

    let injector = Injector::open(&lab.router, ROUTER_LINK, gateway_mac(lab)?)?;
    let mut sent = 0;
    let mut send = |kind, from, to| {
        sent += 1;
        injector.send(kind, from, to)
    };
    for number in 0..TRIES {
        // Spread over all ports, the same ones in every run; the forwards lie below them.
        let port = 10_000 + (number * 7919 % 55_000) as u16;
        let stranger = endpoint(STRANGER, 10_000 + number as u16);
        for kind in [Kind::Udp, Kind::TcpSyn, Kind::TcpData] {
            send(kind, stranger, endpoint(EXTERNAL, port))?;
        }
        let client = &lab.clients[number as usize % lab.clients.len()];
        for kind in [Kind::Udp, Kind::TcpSyn, Kind::TcpData] {
            send(kind, stranger, endpoint(client.address, port))?;
        }
    }
    // To the client's open external endpoint, from whom it did not ask.
    for from in [endpoint(STRANGER, PORT), at(1, PORT), at(0, PORT + 1)] {
        send(Kind::Udp, from, open)?;
    }
    // And straight to its internal endpoint, from whom it did.
    send(
        Kind::Udp,
        at(0, PORT),
        endpoint(lab.clients[0].address, flow.local()?.port()),
    )?;

    // The answer comes after all that was sent before it, and shows that the watchers see.
    let captured = expect("s1 still answers the client", flow.ask(b"after!", 3, LIMIT));
    let mut frames = Vec::new();
    // The kernel gives a frame to its socket before it gives it to a watcher.
    wait::until(LIMIT, || {
        frames.extend(captures.iter().flat_map(Capture::take));
        captured.is_err() || frames.iter().any(|frame| is_answer(frame))
    });
    captured?;
    drop(service);
    judge(&frames, sent, open)
}

/// Answers carry the client's question behind the endpoint that the server saw.
fn is_answer(frame: &[u8]) -> bool {
    source(frame) == Some(SERVERS[0]) && frame.ends_with(b"after!")
}

/// Only the answers to the client's own question may have come.
fn judge(frames: &[Vec<u8>], sent: u32, open: SocketAddrV4) -> Verdict {
    let expected = "nothing enters that no client asked for";
    let strays: Vec<_> = frames
        .iter()
        .filter(|frame| !is_answer(frame))
        .filter_map(|frame| source(frame))
        .collect();
    if let Some(source) = strays.first() {
        let seen = format!(
            "{} of {sent} packets, the first from {source}",
            strays.len()
        );
        return Err(Miss::failed(expected, seen));
    }
    if !frames.iter().any(|frame| is_answer(frame)) {
        return Err(Miss::failed(
            "the watcher sees the client's answer",
            "it saw nothing",
        ));
    }
    Ok(format!("0 of {sent} entered; {open} answers only its peer"))
}

/// Watches every client's interface.
pub fn watch_clients(lab: &Lab) -> Result<Vec<Capture>, LabError> {
    lab.clients
        .iter()
        .map(|client| Capture::open(&client.namespace, "eth0", Pick::default()))
        .collect()
}

/// The Ethernet address of the gateway's external interface.
pub fn gateway_mac(lab: &Lab) -> Result<[u8; 6], LabError> {
    let link = lab.topology.external_link();
    Ok(lab.gateway.link_address(link)?.addr().unwrap_or_default())
}

/// The source address of an Ethernet frame with an IPv4 packet.
pub fn source(frame: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}
