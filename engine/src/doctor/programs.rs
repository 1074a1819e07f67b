//! Programs of others on an interface.

use super::facts::{InterfaceState, Program};
use super::finding::{Finding, Level};

pub(super) fn examine(interface: &InterfaceState, found: &mut Vec<Finding>) {
    let name = interface.name.as_str();
    match &interface.program {
        None => {
            let what = "whether an XDP program is attached cannot be seen";
            found.push(Finding::unseen(name, "xdp-program", what));
        }
        Some(None) => {
            let what = "no XDP program is attached";
            found.push(Finding::new(name, "xdp-program", Level::Ok, 0, what));
        }
        Some(Some(program)) => found.push(attached(name, program)),
    }
    let Some(tc) = &interface.tc else {
        let what = "whether tc programs are attached cannot be seen";
        found.push(Finding::unseen(name, "tc-programs", what));
        return;
    };
    let make = |level, what| Finding::new(name, "tc-programs", level, tc.len(), what);
    if tc.is_empty() {
        found.push(make(Level::Ok, "no tc program is attached".to_owned()));
        return;
    }
    let places: Vec<&str> = tc.iter().map(|program| program.place.as_str()).collect();
    let what = format!("tc programs are attached ({})", places.join(", "));
    let why = "frames that Egret takes by XDP never meet them: filters, shaping or address changes \
               of such a program do not apply to translated traffic";
    found.push(make(Level::Note, what).why(why));
}

fn attached(name: &str, program: &Program) -> Finding {
    let (id, place) = (program.id, program.place.as_str());
    if let Some(instance) = &program.instance {
        let what = format!("the program of Egret's instance {instance} is attached ({place})");
        return Finding::new(name, "xdp-program", Level::Ok, id, what);
    }
    let what = format!("another XDP program is attached ({place}, id {id})");
    let off = match place {
        "generic" => "xdpgeneric",
        _ => "xdp",
    };
    Finding::new(name, "xdp-program", Level::Problem, id, what)
        .why(format!(
            "Egret never replaces a program of others; `bpftool prog show id {id}` names it, \
             `bpftool link` whoever holds it"
        ))
        .mend(
            format!("ip link set dev {name} {off} off  # if it is not needed"),
            "",
        )
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::*;

    fn found(program: Option<Program>, tc: Vec<Program>) -> Vec<Finding> {
        let interface = InterfaceState {
            name: "eth0".to_owned(),
            program: Some(program),
            tc: Some(tc),
            ..InterfaceState::default()
        };
        let mut found = Vec::new();
        examine(&interface, &mut found);
        found
    }

    fn program(place: &str, instance: Option<&str>) -> Program {
        Program {
            id: 7,
            place: place.to_owned(),
            instance: instance.map(str::to_owned),
        }
    }

    #[test]
    fn a_program_of_others_stands_in_the_way() {
        let others = found(
            Some(program("generic", None)),
            vec![program("ingress", None)],
        );
        let xdp = one(&others, "eth0/xdp-program");
        assert_eq!((xdp.level, &xdp.value), (Level::Problem, &7.into()));
        let command = &xdp.mend.as_ref().expect("a way").command;
        assert!(command.contains("xdpgeneric off"), "{command}");
        assert_eq!(one(&others, "eth0/tc-programs").level, Level::Note);
    }

    #[test]
    fn our_own_does_not() {
        let own = found(Some(program("native", Some("default"))), Vec::new());
        assert_eq!(one(&own, "eth0/xdp-program").level, Level::Ok);
        assert!(own[0].what.contains("default"));
        assert_eq!(
            one(&found(None, Vec::new()), "eth0/xdp-program").level,
            Level::Ok
        );
        assert_eq!(
            one(&found(None, Vec::new()), "eth0/tc-programs").level,
            Level::Ok
        );
    }
}
