//! An internal source that arrives on the external interface is a forgery.

use std::time::Duration;

use super::check::{Miss, Stage, Verdict, at, endpoint, expect};
use super::unsolicited::{gateway_mac, source, watch_clients};
use crate::lab::capture::Pick;
use crate::lab::inject::{Injector, Kind};
use crate::lab::plan::{EXTERNAL, INTERNAL, ROUTER_LINK, SERVERS, Topology};
use crate::lab::service::{UdpFlow, UdpService};
use crate::lab::{Capture, Gateway, wait};

const PORT: u16 = 7001;
/// A port that only the forged packets go to.
const FORGED_PORT: u16 = 4999;
/// Packets of each kind of forgery.
const COUNT: u64 = 10;
const LIMIT: Duration = Duration::from_millis(700);

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    if lab.topology == Topology::OneArm {
        return Err(Miss::Skipped("one interface serves both sides".to_owned()));
    }
    let [client, victim, ..] = lab.clients.as_slice() else {
        return Err(Miss::Skipped("it takes two clients".to_owned()));
    };
    let service = UdpService::start(&lab.servers[1].namespace, SERVERS[1], [PORT])?;
    let flow = UdpFlow::open(&client.namespace, 0, at(1, PORT))?;
    let open = expect("s2 answers the client", flow.ask(b"before", 3, LIMIT))?;
    let clients = watch_clients(lab)?;
    let server = Capture::open(&lab.servers[1].namespace, "eth0", Pick::default())?;
    let counted = dropped_as_spoofed(stage.gateway)?;

    let injector = Injector::open(&lab.router, ROUTER_LINK, gateway_mac(lab)?)?;
    let forged = endpoint(victim.address, 4000);
    let targets = [at(1, FORGED_PORT), open, endpoint(client.address, 4000)];
    for _ in 0..COUNT {
        for to in targets {
            injector.send(Kind::Udp, forged, to)?;
        }
    }
    expect("s2 still answers the client", flow.ask(b"after", 3, LIMIT))?;
    drop(service);

    let entered = clients
        .iter()
        .flat_map(Capture::take)
        .filter(|frame| source(frame).is_some_and(|address| INTERNAL.contains(&address)))
        .count();
    let left = server
        .take()
        .iter()
        .filter(|frame| destination_port(frame) == FORGED_PORT)
        .count();
    if entered + left > 0 {
        return Err(Miss::failed(
            format!("no packet from {forged} by way of {EXTERNAL}'s interface"),
            format!("{entered} entered, {left} went out again"),
        ));
    }
    let sent = COUNT * targets.len() as u64;
    // In routed mode the kernel's rules drop them.
    let Some(before) = counted.filter(|_| !stage.lab.is_routed()) else {
        return Ok(format!("0 of {sent} passed"));
    };
    let mut now = before;
    let reached = wait::until(Duration::from_secs(2), || {
        now = dropped_as_spoofed(stage.gateway)
            .ok()
            .flatten()
            .unwrap_or(now);
        now - before >= sent
    });
    if !reached {
        let expected = format!("{sent} drops with reason `spoofed`");
        return Err(Miss::failed(expected, format!("{}", now - before)));
    }
    Ok(format!("0 of {sent} passed, all counted"))
}

/// The gateway's counter of such drops, if it has one.
fn dropped_as_spoofed(gateway: &dyn Gateway) -> Result<Option<u64>, Miss> {
    let status = gateway.status()?;
    Ok(status.map(|status| status.drops.get("spoofed").copied().unwrap_or(0)))
}

/// The UDP or TCP destination port of an Ethernet frame with an IPv4 packet without options.
fn destination_port(frame: &[u8]) -> u16 {
    match frame.get(36..38) {
        Some([high, low]) => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}
