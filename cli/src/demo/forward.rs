//! A port forward: used from outside by a source on the allow-list, refused to another.

use std::io;
use std::time::Duration;

use super::check::{Miss, Stage, Verdict, endpoint, expect};
use super::setup::{FORWARD_LISTED, FORWARD_TARGET};
use crate::lab::plan::EXTERNAL;
use crate::lab::tcp::{TcpService, connect, exchange};

/// How long the refused source tries. What reaches the target does so within a millisecond.
const REFUSED_LIMIT: Duration = Duration::from_millis(400);

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let [allowed, refused] = &stage.lab.servers;
    let target = TcpService::start(&stage.lab.clients[1].namespace, FORWARD_TARGET)?;
    let to = endpoint(EXTERNAL, FORWARD_LISTED);

    let what = format!("{} reaches the target by {to}", allowed.address);
    let seen = expect(what, exchange(&allowed.namespace, to, 256 << 10, 5))?;
    if *seen.ip() != allowed.address {
        let expected = format!("the target sees {} as source", allowed.address);
        return Err(Miss::failed(expected, format!("it sees {seen}")));
    }
    target.take_peers();

    let expected = format!("{} is refused at {to}", refused.address);
    match connect(&refused.namespace, to, REFUSED_LIMIT) {
        Ok(_) => return Err(Miss::failed(expected, "it got a connection")),
        Err(error) if is_refusal(&error) => {}
        Err(error) => return Err(Miss::failed(expected, error.to_string())),
    }
    // The path still works, so the silence was a refusal.
    let again = exchange(&allowed.namespace, to, 1024, 6);
    expect(
        format!("{} reaches the target again", allowed.address),
        again,
    )?;
    let strangers: Vec<_> = target
        .take_peers()
        .into_iter()
        .filter(|peer| *peer.ip() != allowed.address)
        .collect();
    if let Some(stranger) = strangers.first() {
        return Err(Miss::failed(expected, format!("the target saw {stranger}")));
    }
    Ok(format!("{seen}; {} refused", refused.address))
}

/// Silence, a reset, or an ICMP error: all are ways to refuse.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied
    )
}
