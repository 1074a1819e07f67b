//! UDP: many flows to many ports; each keeps its external endpoint, and no two share one.

use std::collections::HashSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::check::{Miss, Stage, Verdict, at, expect, expect_external, join, summary};
use crate::lab::Host;
use crate::lab::service::{UdpFlow, UdpService};

/// The ports that each server answers on.
const PORTS: std::ops::Range<u16> = 7000..7010;
/// Flows of each client.
const FLOWS: u16 = 100;

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let services = lab
        .servers
        .iter()
        .map(|server| UdpService::start(&server.namespace, server.address, PORTS))
        .collect::<Result<Vec<_>, _>>()?;
    let seen = std::thread::scope(|scope| {
        let clients: Vec<_> = lab
            .clients
            .iter()
            .map(|client| scope.spawn(|| flows_of(client)))
            .collect();
        clients.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?
    .concat();
    drop(services);

    let distinct: HashSet<_> = seen.iter().collect();
    if distinct.len() != seen.len() {
        return Err(Miss::failed(
            "no two flows to one remote endpoint share an external endpoint",
            format!("{} flows, {} distinct", seen.len(), distinct.len()),
        ));
    }
    let sources: Vec<SocketAddrV4> = seen.iter().map(|(source, _)| *source).collect();
    Ok(summary(&sources))
}

/// Opens the flows of one client and asks on each twice: (what the server saw, whom was asked).
fn flows_of(client: &Host) -> Result<Vec<(SocketAddrV4, SocketAddrV4)>, Miss> {
    let flows = (0..FLOWS)
        .map(|number| {
            let port = PORTS.start + number % (PORTS.end - PORTS.start);
            // Both clients use the same source ports, so that some must be changed.
            UdpFlow::open(
                &client.namespace,
                20_000 + number,
                at(usize::from(number % 2), port),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let ask = |flow: &UdpFlow, round: u8| {
        let what = format!("{} answers {}", flow.to, client.address);
        let payload = [round, client.address.octets()[3]];
        expect(what, flow.ask(&payload, 3, Duration::from_millis(500)))
    };
    let first = flows
        .iter()
        .map(|flow| ask(flow, 1))
        .collect::<Result<Vec<_>, _>>()?;
    for (flow, first) in flows.iter().zip(&first) {
        expect_external(*first)?;
        let again = ask(flow, 2)?;
        if again != *first {
            return Err(Miss::failed(
                format!("the flow to {} keeps {first}", flow.to),
                format!("the server sees {again}"),
            ));
        }
    }
    Ok(first
        .into_iter()
        .zip(flows.iter().map(|flow| flow.to))
        .collect())
}
