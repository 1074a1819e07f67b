//! Whether the group of the control socket exists.

use super::facts::HostFacts;
use crate::config::{Config, Problem};

/// Complains about a `control.group` that this machine does not have.
pub(super) fn group(config: &Config, host: &HostFacts, found: &mut Vec<Problem>) {
    let Some(group) = config.control_group.as_ref() else {
        return;
    };
    if host.control_gid.is_some() {
        return;
    }
    let what = format!("there is no group \"{}\"", group.value);
    let why = "/etc/group does not have it, so the control socket cannot be given to it";
    let fix = format!(
        "make it (`sudo groupadd --system {}`), write another name, or the number of a group that \
         comes from a directory (`getent group`)",
        group.value
    );
    found.push(
        Problem::error("no-such-group", what)
            .why(why)
            .fix(fix)
            .at(group.span),
    );
}
