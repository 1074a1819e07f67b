//! TCP: megabytes in both directions at once, every byte checked, several clients at once.

use super::check::{Stage, Verdict, at, expect, expect_external, join, summary};
use crate::lab::tcp::{TcpService, exchange};

const PORT: u16 = 5001;
/// Bytes of each direction of each connection.
const LENGTH: u64 = 4 << 20;

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let services = lab
        .servers
        .iter()
        .map(|server| TcpService::start(&server.namespace, PORT))
        .collect::<Result<Vec<_>, _>>()?;
    let seen = std::thread::scope(|scope| {
        let mut transfers = Vec::new();
        for (number, client) in lab.clients.iter().enumerate() {
            for server in 0..lab.servers.len() {
                let seed = (number as u64 + 1) << 8 | server as u64;
                transfers.push(scope.spawn(move || {
                    let to = at(server, PORT);
                    let what = format!("{LENGTH} bytes both ways from {} to {to}", client.address);
                    let seen = expect(what, exchange(&client.namespace, to, LENGTH, seed))?;
                    expect_external(seen).map(|()| seen)
                }));
            }
        }
        transfers
            .into_iter()
            .map(join)
            .collect::<Result<Vec<_>, _>>()
    })?;
    drop(services);
    Ok(summary(&seen))
}
