//! The kernel's part in the gateway namespace: none. No forwarding, no rule.

use super::check::{Miss, Stage, Verdict};
use super::pod::{nft, nft_present};
use crate::lab::Lab;

/// Runs the check.
pub fn run(stage: &mut Stage<'_>) -> Verdict {
    let (forwarding, rules) = facts(stage.lab)?;
    let seen = describe(&forwarding, rules.as_deref());
    // In routed mode the kernel forwards, but translates nothing.
    let wanted = if stage.lab.is_routed() { "1" } else { "0" };
    if forwarding == wanted && rules.as_deref().unwrap_or("").is_empty() {
        return Ok(seen);
    }
    let expected = format!("ip_forward = {wanted} and no rule");
    Err(Miss::failed(expected, seen))
}

/// The gateway namespace's `ip_forward`, and its nft rules if nft is there to list them.
fn facts(lab: &Lab) -> Result<(String, Option<String>), Miss> {
    let forwarding = lab.gateway.sysctl("ipv4/ip_forward")?;
    let rules = match nft_present() {
        true => Some(nft(&lab.gateway, &["list", "ruleset"])?.trim().to_owned()),
        false => None,
    };
    Ok((forwarding, rules))
}

fn describe(forwarding: &str, rules: Option<&str>) -> String {
    let rules = match rules {
        None => "no nft binary to list rules".to_owned(),
        Some("") => "nft ruleset empty".to_owned(),
        Some(rules) => format!("nft ruleset of {} lines", rules.lines().count()),
    };
    format!("ip_forward = {forwarding}, {rules}")
}
