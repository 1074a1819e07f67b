//! Hairpin: one client reaches another by the gateway's external address.

use super::check::{Stage, Verdict, endpoint, expect, expect_external};
use super::setup::{FORWARD_OPEN, HAIRPIN_TARGET};
use crate::lab::plan::EXTERNAL;
use crate::lab::tcp::{TcpService, exchange};

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let [client, target, ..] = stage.lab.clients.as_slice() else {
        return Err(super::check::Miss::Skipped(
            "it takes two clients".to_owned(),
        ));
    };
    let service = TcpService::start(&target.namespace, HAIRPIN_TARGET)?;
    let to = endpoint(EXTERNAL, FORWARD_OPEN);
    let what = format!("{} reaches {} by {to}", client.address, target.address);
    let seen = expect(what, exchange(&client.namespace, to, 1 << 20, 9))?;
    drop(service);
    // RFC 4787 REQ-9: the packet comes from the external endpoint.
    expect_external(seen)?;
    Ok(seen.to_string())
}
