//! What speaks against running Egret here, or against running it fast: [`Facts`] in, [`Finding`]s
//! out, one file a theme. Nothing here touches the machine but `read` and `changes`.

mod changes;
mod cloud;
mod drivers;
mod facts;
mod finding;
mod kernel;
mod memory;
mod mtu;
mod network;
mod offloads;
mod ports;
mod programs;
mod queues;
mod read;
mod rings;
mod xdp;

pub use changes::{Change, Changes, Restored};
pub use drivers::{Driver, KernelVersion, QueueRule, known};
pub use facts::{
    Cloud, Facts, HostState, HugePages, InterfaceState, Listeners, Memlock, Policy, Program,
    Unseen, VirtioFeatures,
};
pub use finding::{Finding, Level, Mend, Setting};
pub use read::{read, served_by_default};

/// Looks at everything. The host's findings come first, then each interface's.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    kernel::examine(&facts.host, &mut found);
    memory::examine(&facts.host, &mut found);
    network::examine(facts, &mut found);
    ports::examine(facts, &mut found);
    cloud::examine(facts, &mut found);
    for interface in &facts.interfaces {
        xdp::examine(interface, &facts.host, &mut found);
        mtu::examine(interface, &mut found);
        queues::examine(interface, &facts.host, &mut found);
        rings::examine(interface, &mut found);
        offloads::examine(interface, &mut found);
        programs::examine(interface, &mut found);
        network::examine_interface(interface, &mut found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_can_be_seen_nothing_is_called_wrong() {
        let facts = Facts {
            interfaces: vec![InterfaceState::default()],
            ..Facts::default()
        };
        let found = examine(&facts);
        let bad: Vec<_> = found.iter().filter(|one| one.level > Level::Note).collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }

    #[test]
    fn names_are_unique_and_fit_a_path() {
        let facts = Facts {
            interfaces: vec![InterfaceState {
                name: "eth0".to_owned(),
                ..InterfaceState::default()
            }],
            ..Facts::default()
        };
        let found = examine(&facts);
        let mut names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-.".contains(c);
        assert!(
            names.iter().all(|name| name.chars().all(plain)),
            "{names:?}"
        );
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
