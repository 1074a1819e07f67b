//! The configuration that the demo writes for the engine.

use crate::lab::plan::{INTERNAL, SERVER_NETS, Topology, client};
use crate::lab::{EngineProcess, Lab};

/// The external port whose forward has an allow-list.
pub const FORWARD_LISTED: u16 = 8080;
/// Its port on the second client.
pub const FORWARD_TARGET: u16 = 80;
/// The external port whose forward is open to all.
pub const FORWARD_OPEN: u16 = 8081;
/// Its port on the second client.
pub const HAIRPIN_TARGET: u16 = 81;

/// The configuration file of a lab's gateway.
pub fn config(lab: &Lab) -> String {
    let interfaces = match lab.topology {
        Topology::OneArm => format!("interface = \"{}\"\n", lab.topology.internal_link()),
        Topology::TwoArm => String::new(),
    };
    let roles = match lab.topology {
        Topology::OneArm => String::new(),
        Topology::TwoArm => [
            (lab.topology.internal_link(), "internal"),
            (lab.topology.external_link(), "external"),
        ]
        .map(|(name, role)| format!("[[interfaces]]\nname = \"{name}\"\nrole = \"{role}\"\n\n"))
        .concat(),
    };
    let target = client(2);
    let allowed = SERVER_NETS[0];
    let tables = lab.directory().join("tables");
    let control = EngineProcess::control_path(lab);
    format!(
        "internal = [\"{INTERNAL}\"]\n{interfaces}\n{roles}\
         [[forwards]]\nprotocol = \"tcp\"\nexternal = \"{FORWARD_LISTED}\"\n\
         target = \"{target}:{FORWARD_TARGET}\"\nallow = [\"{allowed}\"]\n\n\
         [[forwards]]\nprotocol = \"tcp\"\nexternal = \"{FORWARD_OPEN}\"\n\
         target = \"{target}:{HAIRPIN_TARGET}\"\n\n\
         [tables]\npath = \"{}\"\n\n[control]\nsocket = \"{}\"\n",
        tables.display(),
        control.display(),
    )
}
