//! Smaller MTUs on the way: fragmentation needed comes back to the right client, and the transfer
//! completes. Beyond the gateway a router says so, on its own external link the gateway itself.

use std::net::Ipv4Addr;

use super::check::{Miss, Stage, Verdict, endpoint, expect, expect_external};
use crate::lab::icmp::IcmpSocket;
use crate::lab::plan::{SECOND_ADDRESSES, Topology};
use crate::lab::tcp::{TcpService, exchange};
use crate::lab::{Lab, Namespace};

const PORT: u16 = 5002;

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let (external_mtu, far_mtu) = lab.small_mtus();
    let [near, far] = &lab.servers;
    let mut seen = shrink(lab, &far.namespace, SECOND_ADDRESSES[1], far_mtu)?;
    if lab.topology == Topology::TwoArm {
        let own = shrink(lab, &near.namespace, SECOND_ADDRESSES[0], external_mtu)?;
        seen = format!("{seen}; {own}");
    }
    Ok(seen)
}

/// Sends full-size segments to an address the client knows no path to yet.
fn shrink(lab: &Lab, server: &Namespace, to: Ipv4Addr, mtu: u32) -> Verdict {
    let client = &lab.clients[0];
    let others = &lab.clients[1..];
    let listen = |namespace| IcmpSocket::open(namespace);
    let own = listen(&client.namespace)?;
    let other = others
        .iter()
        .map(|o| listen(&o.namespace))
        .collect::<Result<Vec<_>, _>>()?;
    let service = TcpService::start(server, PORT)?;
    let to = endpoint(to, PORT);
    let what = format!("1 MiB both ways over a path of MTU {mtu} to {to}");
    let seen = expect(what, exchange(&client.namespace, to, 1 << 20, 11))?;
    drop(service);
    expect_external(seen)?;

    let told = own.take()?;
    let right = told.iter().find(|message| {
        message.next_hop_mtu().map(u32::from) == Some(mtu)
            && message.checksum_right
            && message
                .about
                .is_some_and(|(from, dest)| *from.ip() == client.address && dest == to)
    });
    let Some(message) = right else {
        return Err(Miss::failed(
            format!("{} is told of MTU {mtu} on its way to {to}", client.address),
            format!("ICMP messages: {told:?}"),
        ));
    };
    for socket in other {
        if let Some(stray) = socket.take()?.iter().find(|m| m.next_hop_mtu().is_some()) {
            let expected = "only the client whose packet was too big is told";
            return Err(Miss::failed(expected, format!("another got {stray:?}")));
        }
    }
    Ok(format!("{seen}, {} said {mtu}", message.source))
}
