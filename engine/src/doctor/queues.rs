//! Queues: how many the driver lets XDP use, whether frames are spread over them, and how many CPUs
//! can work.

use super::drivers::{QueueRule, known};
use super::facts::{HostState, InterfaceState};
use super::finding::{Finding, Level};
use crate::device::sys::ethtool::Channels;

pub(super) fn examine(interface: &InterfaceState, host: &HostState, found: &mut Vec<Finding>) {
    let name = interface.name.as_str();
    let Some(channels) = interface.channels else {
        let what = "the number of queues cannot be seen";
        found.push(Finding::unseen(name, "queues", what));
        return;
    };
    found.push(rule(interface, channels, host));
    found.extend(cpus(name, channels, host));
    found.extend(spread(interface, channels));
}

/// The command that sets the number of queues.
fn set(name: &str, channels: Channels, queues: u32) -> String {
    match channels.combined {
        true => format!("ethtool -L {name} combined {queues}"),
        false => format!("ethtool -L {name} rx {queues} tx {queues}"),
    }
}

fn rule(interface: &InterfaceState, channels: Channels, host: &HostState) -> Finding {
    let name = interface.name.as_str();
    let queues = channels.receive;
    let max = channels.receive_max;
    let make = |level, what: String| Finding::new(name, "queues", level, queues, what);
    let rule = known(&interface.driver).map_or(QueueRule::Any, |driver| driver.queues);
    let half = (max / 2).max(1);
    match (rule, host.cpus_possible) {
        (QueueRule::Half, _) if max < 2 => {
            let what = "there is one queue, and the driver needs a second one for XDP".to_owned();
            make(Level::Problem, what)
                .why("it takes as many queues again to send; generic mode is left")
                .advise("use a larger machine type: it has more queues")
        }
        (QueueRule::Half, _) if queues > half => {
            let what =
                format!("{queues} of {max} queues are in use; the driver allows {half} with XDP");
            make(Level::Problem, what)
                .why("it takes as many queues again to send, and refuses the program otherwise")
                .mend(set(name, channels, half), set(name, channels, queues))
        }
        (QueueRule::SparePerCpu, Some(cpus)) if queues + cpus > max => {
            let what =
                format!("{queues} of {max} queues are in use, {cpus} CPUs want one more each");
            let why = "without a spare queue a CPU the driver takes a lock to send";
            let finding = make(Level::Note, what).why(why);
            match max.checked_sub(cpus).filter(|&fewer| fewer > 0) {
                Some(fewer) => {
                    finding.mend(set(name, channels, fewer), set(name, channels, queues))
                }
                None => finding,
            }
        }
        _ => make(Level::Ok, format!("{queues} of {max} queues are in use")),
    }
}

/// The letter of several.
fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A worker serves whole queues, so what is missing is CPUs or queues.
fn cpus(name: &str, channels: Channels, host: &HostState) -> Option<Finding> {
    let (cpus, queues) = (host.cpus?, channels.receive);
    let make = |level, what: String| Finding::new(name, "cpus", level, cpus, what);
    if queues >= cpus {
        let what = format!(
            "{queues} queue{} for {cpus} CPU{}",
            plural(queues),
            plural(cpus)
        );
        return Some(make(Level::Ok, what));
    }
    let what = format!(
        "with {queues} queue{} only {queues} of {cpus} CPUs can translate",
        plural(queues)
    );
    let finding = make(Level::Note, what).why("a queue is served by one worker, on one CPU");
    let more = channels.receive_max.min(cpus);
    Some(match more > queues {
        true => finding.mend(set(name, channels, more), set(name, channels, queues)),
        false => finding,
    })
}

/// Are received frames spread over all queues?
fn spread(interface: &InterfaceState, channels: Channels) -> Option<Finding> {
    let name = interface.name.as_str();
    let table = interface
        .spread
        .as_ref()
        .filter(|table| !table.is_empty())?;
    let mut used = table.clone();
    used.sort_unstable();
    used.dedup();
    let (used, queues) = (used.len() as u32, channels.receive);
    let make = |level, what: String| Finding::new(name, "rss", level, used, what);
    if used >= queues {
        let what = format!("frames are spread over all {queues} queues");
        return Some(make(Level::Ok, what));
    }
    let what = format!("frames are spread over {used} of {queues} queues");
    let why = "the workers of the others have nothing to do";
    let old = table.iter().max().map_or(1, |last| last + 1);
    let mend = (
        format!("ethtool -X {name} equal {queues}"),
        format!("ethtool -X {name} equal {old}"),
    );
    Some(make(Level::Warning, what).why(why).mend(mend.0, mend.1))
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::*;

    fn nic(driver: &str, receive: u32, receive_max: u32) -> InterfaceState {
        InterfaceState {
            name: "eth0".to_owned(),
            driver: driver.to_owned(),
            channels: Some(Channels {
                receive,
                transmit: receive,
                receive_max,
                transmit_max: receive_max,
                combined: true,
            }),
            ..InterfaceState::default()
        }
    }

    fn found(interface: &InterfaceState, cpus: u32) -> Vec<Finding> {
        let host = HostState {
            cpus: Some(cpus),
            cpus_possible: Some(cpus),
            ..HostState::default()
        };
        let mut found = Vec::new();
        examine(interface, &host, &mut found);
        found
    }

    #[test]
    fn ena_and_gve_want_at_most_half() {
        for driver in ["ena", "gve"] {
            let all = found(&nic(driver, 4, 4), 4);
            let queues = one(&all, "eth0/queues");
            assert_eq!(queues.level, Level::Problem);
            let mend = queues.mend.as_ref().expect("a way");
            assert_eq!(mend.command, "ethtool -L eth0 combined 2");
            assert_eq!(mend.undo.as_deref(), Some("ethtool -L eth0 combined 4"));
            assert_eq!(
                one(&found(&nic(driver, 2, 4), 2), "eth0/queues").level,
                Level::Ok
            );
            assert_eq!(
                one(&found(&nic(driver, 1, 1), 1), "eth0/queues").level,
                Level::Problem
            );
        }
        assert_eq!(
            one(&found(&nic("ice", 4, 4), 4), "eth0/queues").level,
            Level::Ok
        );
    }

    #[test]
    fn virtio_wants_a_spare_queue_a_cpu() {
        let tight = found(&nic("virtio_net", 4, 4), 2);
        let queues = one(&tight, "eth0/queues");
        assert_eq!(queues.level, Level::Note);
        assert_eq!(
            queues.mend.as_ref().expect("a way").command,
            "ethtool -L eth0 combined 2"
        );
        assert!(
            one(&found(&nic("virtio_net", 1, 1), 2), "eth0/queues")
                .mend
                .is_none()
        );
        assert_eq!(
            one(&found(&nic("virtio_net", 2, 4), 2), "eth0/queues").level,
            Level::Ok
        );
    }

    #[test]
    fn more_cpus_than_queues_are_told() {
        let few = found(&nic("ice", 2, 8), 4);
        let cpus = one(&few, "eth0/cpus");
        assert_eq!(cpus.level, Level::Note);
        assert_eq!(
            cpus.mend.as_ref().expect("a way").command,
            "ethtool -L eth0 combined 4"
        );
        assert!(
            one(&found(&nic("ice", 1, 1), 4), "eth0/cpus")
                .mend
                .is_none()
        );
        assert_eq!(
            one(&found(&nic("ice", 4, 8), 4), "eth0/cpus").level,
            Level::Ok
        );
    }

    #[test]
    fn a_queue_that_gets_nothing_is_told() {
        let mut interface = nic("ice", 4, 8);
        interface.spread = Some(vec![0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(one(&found(&interface, 4), "eth0/rss").level, Level::Ok);
        interface.spread = Some(vec![0, 1, 0, 1]);
        let uneven = found(&interface, 4);
        let rss = one(&uneven, "eth0/rss");
        assert_eq!((rss.level, &rss.value), (Level::Warning, &2.into()));
        assert_eq!(
            rss.mend.as_ref().expect("a way").command,
            "ethtool -X eth0 equal 4"
        );
        interface.spread = None;
        assert!(
            found(&interface, 4)
                .iter()
                .all(|one| one.name != "eth0/rss")
        );
    }

    #[test]
    fn separate_channels_have_another_command() {
        let mut interface = nic("ena", 4, 4);
        if let Some(channels) = &mut interface.channels {
            channels.combined = false;
        }
        let all = found(&interface, 4);
        let mend = one(&all, "eth0/queues").mend.as_ref().expect("a way");
        assert_eq!(mend.command, "ethtool -L eth0 rx 2 tx 2");
    }
}
