//! The configuration that the demo writes for the engine.

use crate::lab::plan::{EXTERNAL, INTERNAL, SERVER_NETS, Topology, client};
use crate::lab::{EngineProcess, Lab};

/// The external port whose forward has an allow-list.
pub const FORWARD_LISTED: u16 = 8080;
/// Its port on the second client.
pub const FORWARD_TARGET: u16 = 80;
/// The external port whose forward is open to all.
pub const FORWARD_OPEN: u16 = 8081;
/// Its port on the second client.
pub const HAIRPIN_TARGET: u16 = 81;

/// What a test may set beyond the demo's own configuration.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// `device.mode`: `auto`, `copy`, `generic`, `tun`, `routed`; the engine's default if `None`.
    pub mode: Option<String>,
    /// The mode of the outer interface alone, in a lab of two.
    pub external_mode: Option<String>,
    /// `workers.count`; the engine's default if `None`.
    pub workers: Option<u32>,
    /// More tables of the file, as text.
    pub more: String,
}

/// The configuration file of a lab's gateway. The instance is called as the lab, so that what it
/// leaves under /run/egret goes with the lab.
pub fn config(lab: &Lab, tuning: &Tuning) -> String {
    let mut text = format!("internal = \"{INTERNAL}\"\ninstance = \"{}\"\n", lab.name());
    text += &interfaces(lab.topology, tuning.external_mode.as_deref());
    let target = client(2);
    let allowed = SERVER_NETS[0];
    let (at, pool) = match lab.is_routed() {
        true => (
            format!("{EXTERNAL}:"),
            format!("\n[pool]\naddresses = [\"{EXTERNAL}\"]\n"),
        ),
        false => (String::new(), String::new()),
    };
    let control = EngineProcess::control_path(lab);
    text += &format!(
        r#"
[[forwards]]
protocol = "tcp"
external = "{at}{FORWARD_LISTED}"
target = "{target}:{FORWARD_TARGET}"
allow = ["{allowed}"]

[[forwards]]
protocol = "tcp"
external = "{at}{FORWARD_OPEN}"
target = "{target}:{HAIRPIN_TARGET}"

[tables]
sessions_max = 65536

[control]
socket = "{}"
"#,
        control.display(),
    );
    if let Some(mode) = &tuning.mode {
        text += &format!("\n[device]\nmode = \"{mode}\"\n");
    }
    if let Some(workers) = tuning.workers {
        text += &format!("\n[workers]\ncount = {workers}\n");
    }
    text + &pool + &tuning.more
}

/// Which interfaces there are, and on which side.
fn interfaces(topology: Topology, external_mode: Option<&str>) -> String {
    let [internal, external] = [topology.internal_link(), topology.external_link()];
    match topology {
        Topology::OneArm => format!("interface = \"{internal}\"\n"),
        Topology::TwoArm => {
            let tables = [(internal, "internal"), (external, "external")]
                .map(|(name, role)| {
                    format!("\n[[interfaces]]\nname = \"{name}\"\nrole = \"{role}\"\n")
                })
                .concat();
            // The outer interface is the last.
            let mode = external_mode.map(|mode| format!("mode = \"{mode}\"\n"));
            tables + &mode.unwrap_or_default()
        }
    }
}
