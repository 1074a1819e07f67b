//! Ports of an address that Egret shares with its host.

use conntrack::Protocol;

use super::facts::{Facts, Listeners};
use super::finding::{Finding, Level};
use crate::plan::{DEFAULT_PORTS, DnatPorts, NODE_PORTS};

const HOST: &str = "host";

/// Fewer ports than these for each protocol are soon used up.
const ROOM_MIN: usize = 16_384;

pub(super) fn examine(facts: &Facts, found: &mut Vec<Finding>) {
    let Some(listeners) = &facts.host.listeners else {
        found.push(Finding::unseen(
            HOST,
            "ports",
            "the host's sockets cannot be seen",
        ));
        return;
    };
    found.push(sockets(listeners));
    found.push(redirections(facts.host.dnat.as_deref()));
    let shares = facts
        .policy
        .as_ref()
        .is_none_or(|policy| policy.shares_address);
    let counts = facts
        .policy
        .as_ref()
        .is_none_or(|policy| !policy.has_own_ports);
    if shares && counts {
        found.push(reserved(listeners));
        found.push(room(
            listeners,
            facts.host.dnat.as_deref().unwrap_or_default(),
        ));
    }
}

fn sockets(listeners: &Listeners) -> Finding {
    let outside = listeners
        .sockets
        .iter()
        .filter(|one| !one.addr.is_loopback());
    let mut ports: Vec<(u16, &str)> = outside.map(|one| (one.port, short(one.protocol))).collect();
    ports.sort_unstable();
    ports.dedup();
    let shown: Vec<String> = ports
        .iter()
        .take(8)
        .map(|(port, protocol)| format!("{port}/{protocol}"))
        .collect();
    let more = if ports.len() > shown.len() {
        ", ..."
    } else {
        ""
    };
    let what = match ports.len() {
        0 => "the host listens on no port".to_owned(),
        _ => format!("the host listens on, and keeps, {}{more}", shown.join(", ")),
    };
    Finding::new(HOST, "listeners", Level::Ok, ports.len(), what)
}

fn short(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    }
}

fn redirections(dnat: Option<&[DnatPorts]>) -> Finding {
    let Some(dnat) = dnat else {
        let what = "ports that rules of the host send elsewhere cannot be seen";
        return Finding::unseen(HOST, "redirections", what);
    };
    let make = |level, what| Finding::new(HOST, "redirections", level, dnat.len(), what);
    if dnat.is_empty() {
        return make(
            Level::Ok,
            "no rule of the host sends ports elsewhere".to_owned(),
        );
    }
    let what = format!(
        "rules of the host send {} port ranges elsewhere",
        dnat.len()
    );
    let why = "on an address that is shared with the host they are left out of the pool";
    make(Level::Note, what).why(why)
}

/// Ports that somebody keeps free for a program which does not listen at the moment.
fn reserved(listeners: &Listeners) -> Finding {
    let local = listeners.local_range.unwrap_or((1, 0));
    let left_out = |port: u16| {
        !(DEFAULT_PORTS.first..=DEFAULT_PORTS.last).contains(&port)
            || (NODE_PORTS.first..=NODE_PORTS.last).contains(&port)
            || (local.0..=local.1).contains(&port)
    };
    let ranges = listeners.reserved.iter();
    let lost = ranges.filter(|(first, last)| !(*first..=*last).all(left_out));
    let lost: Vec<String> = lost
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    let make = |level, what| Finding::new(HOST, "reserved-ports", level, lost.len(), what);
    if lost.is_empty() {
        return make(
            Level::Ok,
            "no reserved port may be given to clients".to_owned(),
        );
    }
    let list = lost
        .iter()
        .map(|range| format!("\"{range}\""))
        .collect::<Vec<_>>();
    let what = format!(
        "reserved ports may be given to clients: {}",
        lost.join(", ")
    );
    let why = "`ip_local_reserved_ports` keeps them for programs of the host; those that do not \
               listen cannot be seen";
    let command = format!("write exclude_ports = [{}] into [pool]", list.join(", "));
    make(Level::Note, what).why(why).advise(command)
}

/// What is left for clients, for the protocol that has less.
fn room(listeners: &Listeners, dnat: &[DnatPorts]) -> Finding {
    let free = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let mut free = vec![false; 1 << 16];
        free[DEFAULT_PORTS.first.into()..=DEFAULT_PORTS.last.into()].fill(true);
        let mut take = |first: u16, last: u16| free[first.into()..=last.into()].fill(false);
        take(NODE_PORTS.first, NODE_PORTS.last);
        if let Some((first, last)) = listeners.local_range {
            take(first, last);
        }
        let sockets = listeners.sockets.iter();
        for socket in sockets.filter(|socket| socket.protocol == protocol) {
            take(socket.port, socket.port);
        }
        for range in dnat.iter().filter(|range| range.protocol == protocol) {
            take(range.first, range.last);
        }
        free.iter().filter(|&&free| free).count()
    });
    let room = free[0].min(free[1]);
    let make = |level, what| Finding::new(HOST, "ports", level, room, what);
    if room >= ROOM_MIN {
        let what = format!("{room} ports of a shared address are left for clients");
        return make(Level::Ok, what);
    }
    let what = format!("only {room} ports of a shared address are left for clients");
    let why = "what the host uses itself is left out: most of it is `ip_local_port_range`. An \
               address of Egret's own has 64,512";
    let finding = make(Level::Warning, what).why(why);
    match listeners.local_range {
        Some((first, last)) if usize::from(last - first) >= ROOM_MIN => finding.mend(
            format!(
                "sysctl -w net.ipv4.ip_local_port_range=\"{} {last}\"",
                last - 16_383
            ),
            format!("sysctl -w net.ipv4.ip_local_port_range=\"{first} {last}\""),
        ),
        _ => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::super::{HostState, Policy};
    use super::*;
    use crate::plan::Listener;

    fn facts(local_range: (u16, u16)) -> Facts {
        let listener = |addr: [u8; 4], port| Listener {
            protocol: Protocol::Tcp,
            addr: addr.into(),
            port,
        };
        Facts {
            host: HostState {
                listeners: Some(Listeners {
                    sockets: vec![listener([0; 4], 22), listener([127, 0, 0, 1], 631)],
                    local_range: Some(local_range),
                    reserved: Vec::new(),
                }),
                dnat: Some(vec![DnatPorts {
                    protocol: Protocol::Tcp,
                    first: 8000,
                    last: 8009,
                }]),
                ..HostState::default()
            },
            ..Facts::default()
        }
    }

    fn found(facts: &Facts) -> Vec<Finding> {
        let mut found = Vec::new();
        examine(facts, &mut found);
        found
    }

    #[test]
    fn what_is_left_is_counted() {
        let usual = found(&facts((32768, 60999)));
        let ports = one(&usual, "host/ports");
        // 1024-65535 without 30000-32767, 32768-60999 and ten redirected ones.
        assert_eq!(ports.value, 64_512 - 2_768 - 28_232 - 10);
        assert_eq!(ports.level, Level::Ok);
        assert!(one(&usual, "host/listeners").what.contains("22/tcp"));
        assert!(!one(&usual, "host/listeners").what.contains("631"));
        assert_eq!(one(&usual, "host/redirections").level, Level::Note);
    }

    #[test]
    fn a_host_that_takes_nearly_all_is_warned() {
        let greedy = found(&facts((1024, 65535)));
        let ports = one(&greedy, "host/ports");
        assert_eq!((ports.level, &ports.value), (Level::Warning, &0.into()));
        let mend = ports.mend.as_ref().expect("a way");
        assert!(mend.command.contains("\"49152 65535\""), "{}", mend.command);
        assert!(mend.undo.as_ref().expect("back").contains("\"1024 65535\""));
        assert_eq!(mend.safe, None);
    }

    #[test]
    fn reserved_ports_are_to_be_left_out() {
        let mut with = facts((32768, 60999));
        let set = |facts: &mut Facts, reserved: &[(u16, u16)]| {
            if let Some(listeners) = &mut facts.host.listeners {
                listeners.reserved = reserved.to_vec();
            }
        };
        set(&mut with, &[(40000, 40010), (80, 80), (30000, 30100)]);
        assert_eq!(one(&found(&with), "host/reserved-ports").level, Level::Ok);
        set(&mut with, &[(8080, 8080), (9000, 9100)]);
        let lost = found(&with);
        let reserved = one(&lost, "host/reserved-ports");
        assert_eq!(reserved.level, Level::Note);
        let command = &reserved.mend.as_ref().expect("a way").command;
        assert!(command.contains("[\"8080\", \"9000-9100\"]"), "{command}");
    }

    #[test]
    fn an_address_of_its_own_has_no_such_worry() {
        let mut own = facts((1024, 65535));
        own.policy = Some(Policy::default());
        assert!(found(&own).iter().all(|one| one.name != "host/ports"));
    }
}
