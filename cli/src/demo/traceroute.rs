//! Traceroute: the gateway is a hop, and the errors from beyond reach the client they are for.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use etherparse::Icmpv4Type;
use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use socket2::{Domain, Protocol, Socket, Type};

use super::check::{Miss, Stage, Verdict, endpoint, expect, join};
use crate::lab::Host;
use crate::lab::icmp::{IcmpSocket, Message};
use crate::lab::plan::{EXTERNAL, GATEWAY_INTERNAL, ROUTER};

/// The source port of every client: only the external ports tell them apart.
const SOURCE_PORT: u16 = 40_000;
const LIMIT: Duration = Duration::from_millis(700);
const TRIES: u32 = 3;

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let server = lab.servers[0].address;
    // In routed mode a packet passes the gateway's kernel before and after its NAT.
    let own_hops = if lab.is_routed() { 3 } else { 1 };
    let paths = std::thread::scope(|scope| {
        let traces: Vec<_> = lab
            .clients
            .iter()
            .enumerate()
            .map(|(number, client)| {
                let first_port = 33_434 + 100 * number as u16;
                scope.spawn(move || trace(client, server, first_port, own_hops))
            })
            .collect();
        traces.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(format!(
        "hops {}",
        paths.first().map(String::as_str).unwrap_or_default()
    ))
}

/// Traces the path of one client; the hops that answered.
fn trace(client: &Host, server: Ipv4Addr, first_port: u16, own_hops: u16) -> Result<String, Miss> {
    let errors = IcmpSocket::open(&client.namespace)?;
    let own = endpoint(client.address, SOURCE_PORT);
    let mut path = Vec::new();
    for hop in 1..=own_hops + 2 {
        let to = endpoint(server, first_port + hop);
        let what = format!("hop {hop} answers {} about {own} to {to}", client.address);
        let message = expect(what, probe(client, &errors, own, to, u32::from(hop)))?;
        check_hop(hop, own_hops, &message, server)?;
        path.push(message.source.to_string());
    }
    if let Some(stray) = errors.take()?.iter().find(|m| is_stray(m, own, first_port)) {
        return Err(strayed(client, stray));
    }
    Ok(path.join(" "))
}

/// Sends a probe whose time runs out after `ttl` hops, until an error about it comes.
fn probe(
    client: &Host,
    errors: &IcmpSocket,
    own: SocketAddrV4,
    to: SocketAddrV4,
    ttl: u32,
) -> io::Result<Message> {
    let socket = client.namespace.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&own.into())?;
        socket.connect(&to.into())?;
        socket.set_ttl_v4(ttl)?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    })?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    let mut stray = None;
    for _ in 0..TRIES {
        // The first send may report the error of an earlier try.
        let _ = socket.send(b"traceroute");
        let received = errors.receive(LIMIT, |message| {
            if message.about.is_some_and(|(source, _)| source != own) {
                stray = Some(message.clone());
            }
            message.about == Some((own, to)) && message.checksum_right
        });
        if let Some(stray) = &stray {
            return Err(io::Error::other(format!(
                "an error for another client: {stray:?}"
            )));
        }
        match received {
            Ok(message) => return told_the_socket(&socket, &message).map(|()| message),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The client's kernel must have found the socket that the error is for, which it does only if
/// the embedded packet is right. Time exceeded is no hard error, so only unreachable tells.
fn told_the_socket(socket: &Socket, message: &Message) -> io::Result<()> {
    if !matches!(message.kind, Icmpv4Type::DestinationUnreachable(_)) {
        return Ok(());
    }
    let told = crate::lab::wait::until(LIMIT, || {
        socket
            .take_error()
            .ok()
            .flatten()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
    if told {
        Ok(())
    } else {
        Err(io::Error::other(
            "the client's kernel found no socket for it",
        ))
    }
}

/// Is it the hop that should answer, and does it say what it should?
fn check_hop(hop: u16, own_hops: u16, message: &Message, server: Ipv4Addr) -> Result<(), Miss> {
    let exceeded = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);
    let unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    let (expected, sources) = match hop {
        1 => (exceeded, vec![GATEWAY_INTERNAL, EXTERNAL]),
        _ if hop <= own_hops => (exceeded, vec![engine::routed::ADDRESS]),
        _ if hop == own_hops + 1 => (exceeded, vec![ROUTER]),
        _ => (unreachable, vec![server]),
    };
    if message.kind == expected && sources.contains(&message.source) {
        return Ok(());
    }
    Err(Miss::failed(
        format!("hop {hop} is {} and says {expected:?}", sources[0]),
        format!("{} says {:?}", message.source, message.kind),
    ))
}

/// Is it an error about somebody else's packet?
fn is_stray(message: &Message, own: SocketAddrV4, first_port: u16) -> bool {
    message.about.is_some_and(|(source, to)| {
        source != own || !(first_port..first_port + 100).contains(&to.port())
    })
}

fn strayed(client: &Host, stray: &Message) -> Miss {
    Miss::failed(
        format!("{} gets errors about its own packets only", client.address),
        format!("{stray:?}"),
    )
}
