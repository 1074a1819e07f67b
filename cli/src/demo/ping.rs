//! Ping: two clients use one identifier towards one server, and each gets its own answers.

use std::collections::BTreeSet;
use std::time::Duration;

use super::check::{Miss, Stage, Verdict, expect, join};
use crate::lab::icmp::IcmpSocket;
use crate::lab::plan::EXTERNAL;

/// The identifier that every client uses.
const ID: u16 = 0x4547;
const LIMIT: Duration = Duration::from_millis(700);

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let lab = stage.lab;
    let server = &lab.servers[0];
    let observer = IcmpSocket::open(&server.namespace)?;
    std::thread::scope(|scope| {
        let pings: Vec<_> = lab
            .clients
            .iter()
            .map(|client| {
                scope.spawn(|| {
                    let socket = IcmpSocket::open(&client.namespace)?;
                    for (seq, length) in [16, 56, 333, 1200, 1400].into_iter().enumerate() {
                        // Whose it is: an answer that went to the other client would not match.
                        let payload = vec![client.address.octets()[3]; length];
                        let seq = seq as u16;
                        let what = format!(
                            "{} answers {}, {length} bytes",
                            server.address, client.address
                        );
                        expect(
                            what,
                            socket.ping(server.address, ID, seq, &payload, 3, LIMIT),
                        )?;
                    }
                    Ok(())
                })
            })
            .collect();
        pings.into_iter().try_for_each(join)
    })?;

    let requests: Vec<_> = observer
        .take()?
        .into_iter()
        .filter_map(|message| Some((message.source, message.echo_request()?.0)))
        .collect();
    if let Some((source, _)) = requests.iter().find(|(source, _)| *source != EXTERNAL) {
        return Err(Miss::failed(
            format!("the server sees {EXTERNAL} as source"),
            format!("it sees {source}"),
        ));
    }
    let ids: BTreeSet<u16> = requests.into_iter().map(|(_, id)| id).collect();
    if ids.len() != lab.clients.len() {
        let expected = format!("an identifier for each of {} clients", lab.clients.len());
        return Err(Miss::failed(expected, format!("{ids:?}")));
    }
    let ids: Vec<String> = ids.iter().map(u16::to_string).collect();
    Ok(format!("{EXTERNAL} id {}", ids.join(", ")))
}
