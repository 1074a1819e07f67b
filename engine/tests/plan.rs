//! Plans: what comes of a configuration on a host, and what is said about it.

use std::net::Ipv4Addr;

use conntrack::{AddressKind, Endpoint, Policy, Protocol};
use engine::config::{Config, Problem};
use engine::plan::{DnatPorts, HostFacts, Plan, Slots, policy_for, sustainable_rate};
use support::{MINIMAL, TWO_ARM, eth0_with, host, host_with, listener};

mod support;

fn config(text: &str) -> Config {
    Config::parse("egret.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn plan(text: &str, host: &HostFacts) -> Plan {
    Plan::make(&config(text), host).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// Every problem, each as its level, name and what.
fn problems(text: &str, host: &HostFacts) -> Vec<Problem> {
    match Plan::make(&config(text), host) {
        Ok(plan) => plan.problems,
        Err(problems) => problems,
    }
}

fn ports(policy: &Policy, address: usize, protocol: Protocol) -> &conntrack::PortSet {
    &policy.addresses[address].ports[protocol.index()]
}

#[test]
fn the_minimal_file_is_a_masquerade() {
    let plan = plan(MINIMAL, &host());
    assert_eq!(plan.problems, []);
    assert_eq!(plan.interfaces.len(), 1);
    assert_eq!((plan.external, plan.workers), (0, 2));
    assert_eq!(plan.cpus, [0, 1]);
    assert_eq!(plan.shared_address, Some(Ipv4Addr::new(203, 0, 113, 5)));
    // 4 GiB / 8 / 192 = 2.79 million, but no more than a million by default.
    assert_eq!(plan.sessions_max, 1 << 20);
    let policy = &plan.policy;
    assert_eq!(policy.addresses.len(), 1);
    assert_eq!(policy.addresses[0].kind, AddressKind::Shared);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let set = ports(policy, 0, protocol);
        for port in [1024, 29999, 61000, 65535] {
            assert!(set.contains(port), "{protocol} {port}");
        }
        for port in [0, 1, 1023, 30000, 32767, 32768, 60999] {
            assert!(!set.contains(port), "{protocol} {port}");
        }
    }
    assert_eq!(ports(policy, 0, Protocol::Icmp).len(), 65536);
}

#[test]
fn two_arms_are_numbered_in_the_order_of_the_file() {
    let plan = plan(TWO_ARM, &host());
    assert_eq!(plan.problems, []);
    let names: Vec<&str> = plan
        .interfaces
        .iter()
        .map(|i| i.facts.name.as_str())
        .collect();
    assert_eq!(names, ["lan0", "eth0"]);
    assert_eq!(plan.external, 1);
    assert_eq!(plan.interfaces[1].number, 1);
}

#[test]
fn listeners_dnat_rules_and_forwards_are_left_out_of_a_shared_pool() {
    let host = host_with(|host| {
        host.listeners = Some(vec![
            listener(Protocol::Tcp, [0, 0, 0, 0], 6443),
            listener(Protocol::Udp, [203, 0, 113, 5], 8472),
            listener(Protocol::Tcp, [127, 0, 0, 1], 9999),
        ]);
        host.dnat = Some(vec![DnatPorts {
            protocol: Protocol::Tcp,
            first: 8080,
            last: 8081,
        }]);
    });
    let text = format!(
        "{MINIMAL}[[forwards]]\nprotocol = \"udp\"\nexternal = 5000\ntarget = \"10.77.0.5:53\"\n"
    );
    let policy = plan(&text, &host).policy;
    let free = |protocol, port| ports(&policy, 0, protocol).contains(port);
    assert!(!free(Protocol::Tcp, 6443) && free(Protocol::Udp, 6443));
    assert!(!free(Protocol::Udp, 8472) && free(Protocol::Tcp, 8472));
    assert!(
        free(Protocol::Tcp, 9999),
        "a loopback listener takes nothing from outside"
    );
    assert!(!free(Protocol::Tcp, 8080) && !free(Protocol::Tcp, 8081) && free(Protocol::Udp, 8080));
    assert!(!free(Protocol::Udp, 5000) && free(Protocol::Tcp, 5000));
    let external = Endpoint::new([203, 0, 113, 5].into(), 5000);
    assert_eq!(policy.forwards[0].external, external);
}

#[test]
fn own_addresses_have_all_ports_whatever_the_host_uses() {
    let host = host_with(|host| {
        host.listeners = Some(vec![listener(Protocol::Tcp, [0, 0, 0, 0], 6443)]);
    });
    let text = format!(
        "{MINIMAL}[pool]\naddresses = [\"203.0.113.8-203.0.113.9\", \"203.0.113.16/31\"]\n\
         exclude_ports = 5060\n"
    );
    let policy = plan(&text, &host).policy;
    let addrs: Vec<String> = policy
        .addresses
        .iter()
        .map(|a| a.addr.to_string())
        .collect();
    assert_eq!(
        addrs,
        ["203.0.113.8", "203.0.113.9", "203.0.113.16", "203.0.113.17"]
    );
    for (number, address) in policy.addresses.iter().enumerate() {
        assert_eq!(address.kind, AddressKind::Own);
        assert_eq!(usize::from(address.slot), number);
        assert_eq!(address.ports[Protocol::Tcp.index()].len(), 65536 - 1024 - 1);
        assert_eq!(address.ports[Protocol::Icmp.index()].len(), 65536);
    }
}

#[test]
fn a_changed_address_gets_another_slot_and_forwards_follow() {
    let text = format!(
        "{MINIMAL}[[forwards]]\nprotocol = \"tcp\"\nexternal = 8443\ntarget = \"10.77.0.5:443\"\n"
    );
    let (config, host) = (config(&text), host());
    let mut plan = Plan::make(&config, &host).unwrap();
    let first = plan.policy.addresses[0].slot;
    let policy = policy_for(&config, &plan.translation, None, &host, &mut plan.slots);
    assert!(policy.addresses.is_empty() && policy.forwards.is_empty());
    let mut seen = vec![first];
    for last in 6..6 + plan.addresses_max as u8 - 1 {
        let addr = Ipv4Addr::new(203, 0, 113, last);
        let policy = policy_for(
            &config,
            &plan.translation,
            Some(addr),
            &host,
            &mut plan.slots,
        );
        assert_eq!(policy.addresses[0].addr, addr);
        assert_eq!(policy.forwards[0].external, Endpoint::new(addr, 8443));
        assert!(
            !seen.contains(&policy.addresses[0].slot),
            "a slot was used again too early"
        );
        seen.push(policy.addresses[0].slot);
    }
}

#[test]
fn slots_stay_with_their_addresses() {
    let addr = |last: u8| Ipv4Addr::new(203, 0, 113, last);
    let mut slots = Slots::new(3);
    assert!(slots.seed(2, addr(9)));
    assert!(!slots.seed(2, addr(8)) && !slots.seed(1, addr(9)) && !slots.seed(3, addr(7)));
    assert_eq!(slots.assign(&[addr(1), addr(9)]), [0, 2]);
    assert_eq!(slots.assign(&[addr(9), addr(5)]), [2, 1]);
    assert_eq!(slots.assign(&[addr(6), addr(5)]), [0, 1]);
    assert_eq!((slots.of(addr(9)), slots.of(addr(6))), (None, Some(0)));
}

#[test]
fn an_address_outside_the_internal_prefixes_is_taken() {
    let host = eth0_with(|nic| {
        nic.addresses = ["169.254.3.1/16", "10.77.0.1/24", "203.0.113.9/24"]
            .map(|text| text.parse().unwrap())
            .to_vec();
    });
    let plan = plan(MINIMAL, &host);
    assert_eq!(plan.shared_address, Some(Ipv4Addr::new(203, 0, 113, 9)));
}

#[test]
fn own_ranges_of_the_host_may_be_used_when_reserved() {
    let text = format!("{MINIMAL}[pool]\nports = \"40000-49999\"\n");
    let reserved = host_with(|host| host.reserved_ports = vec![(40000, 45000), (45001, 50000)]);
    assert_eq!(plan(&text, &reserved).problems, []);
    assert_eq!(
        ports(&plan(&text, &reserved).policy, 0, Protocol::Udp).len(),
        10000
    );
    let partly = host_with(|host| host.reserved_ports = vec![(40000, 45000)]);
    let found = problems(&text, &partly);
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .fix
            .contains("ip_local_reserved_ports=45001-49999 "),
        "{}",
        found[0].fix
    );
    let excluded = format!("{text}exclude_ports = \"45001-49999\"\n");
    assert_eq!(plan(&excluded, &partly).problems, []);
}

#[test]
fn workers_are_as_many_as_cpus_and_queues_allow() {
    let many = host_with(|host| host.cpus = vec![2, 4, 6, 8]);
    assert_eq!(plan(MINIMAL, &many).workers, 2);
    assert_eq!(plan(MINIMAL, &many).cpus, [2, 4]);
    let pinned = format!("{MINIMAL}[workers]\ncpus = 6\n");
    assert_eq!(
        (plan(&pinned, &many).workers, plan(&pinned, &many).cpus),
        (1, vec![6])
    );
    let unknown = host_with(|host| {
        host.cpus.clear();
        host.interfaces[1].rx_queues = 0;
    });
    assert_eq!(
        (
            plan(MINIMAL, &unknown).workers,
            plan(MINIMAL, &unknown).cpus
        ),
        (1, vec![])
    );
}

#[test]
fn tables_are_sized_by_ram() {
    let sessions =
        |ram: Option<u64>| plan(MINIMAL, &host_with(|host| host.ram_bytes = ram)).sessions_max;
    assert_eq!(sessions(Some(128 << 20)), 1 << 18);
    assert_eq!(sessions(Some(1 << 30)), 1 << 19);
    assert_eq!(sessions(Some(1 << 40)), 1 << 20);
    assert_eq!(sessions(None), 1 << 18);
    let given = format!("{MINIMAL}[tables]\nsessions_max = 100000\n");
    assert_eq!(plan(&given, &host()).sessions_max, 100_000);
}

#[test]
fn the_sustainable_rate_follows_ports_timers_and_hold_down() {
    let rate = |text: &str, protocol| sustainable_rate(&config(text), protocol, 36000).per_second;
    assert_eq!(rate(MINIMAL, Protocol::Udp), 120.0);
    assert_eq!(rate(MINIMAL, Protocol::Tcp), 150.0);
    assert_eq!(rate(MINIMAL, Protocol::Icmp), 600.0);
    let eif = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\npool.addresses = \"203.0.113.9\"\n\
               nat = { mapping = \"eim\", filtering = \"eif\" }\n";
    // 36000 / 420 s would be 86; but hold-down takes a quarter of the pool at most.
    assert_eq!(rate(eif, Protocol::Udp), 90.0);
    let short = format!("{eif}timers.hold_down_s = 60\n");
    assert_eq!(rate(&short, Protocol::Udp), 100.0);
    assert_eq!(rate(eif, Protocol::Tcp), 150.0);
}

#[test]
fn what_could_not_be_read_is_said() {
    let blind = host_with(|host| {
        *host = HostFacts {
            interfaces: std::mem::take(&mut host.interfaces),
            ..HostFacts::default()
        };
        host.interfaces[1].xdp_native = None;
        host.interfaces[1].vlan_offload = None;
    });
    let plan = plan(MINIMAL, &blind);
    let names: Vec<&str> = plan.problems.iter().map(|problem| problem.name).collect();
    assert_eq!(
        names,
        [
            "unchecked-privilege",
            "unchecked-ports",
            "unchecked-forward",
            "unchecked-memory",
            "unchecked-xdp",
            "unchecked-vlan",
        ]
    );
    assert!(
        !ports(&plan.policy, 0, Protocol::Udp).contains(40000),
        "the kernel's default range"
    );
}

#[test]
fn a_session_costs_at_most_192_bytes_whatever_the_ram() {
    for ram in [
        128 << 20,
        256 << 20,
        512 << 20,
        1 << 30,
        8 << 30,
        1_u64 << 40,
    ] {
        let plan = plan(MINIMAL, &host_with(|host| host.ram_bytes = Some(ram)));
        let each = plan.table_bytes as f64 / f64::from(plan.sessions_max);
        assert!(
            each <= 192.0,
            "{each} bytes a session with {} sessions",
            plan.sessions_max
        );
    }
}

/// RFC 6888 REQ-3: single addresses, prefixes and ranges that do not touch make one pool.
#[test]
fn rfc6888_3_a_pool_of_ranges_that_do_not_touch() {
    let text = format!(
        "{TWO_ARM}[pool]\naddresses = [\"203.0.113.4\", \"198.51.100.16/30\", \
         \"192.0.2.7-192.0.2.9\", \"203.0.113.1\"]\nports = [\"2000-2999\", \"40000-40999\"]\n"
    );
    let plan = plan(&text, &host());
    let addresses: Vec<String> = plan
        .policy
        .addresses
        .iter()
        .map(|address| address.addr.to_string())
        .collect();
    let expected = [
        "203.0.113.4",
        "198.51.100.16",
        "198.51.100.17",
        "198.51.100.18",
        "198.51.100.19",
        "192.0.2.7",
        "192.0.2.8",
        "192.0.2.9",
        "203.0.113.1",
    ];
    assert_eq!(addresses, expected);
    for (place, address) in plan.policy.addresses.iter().enumerate() {
        assert_eq!(usize::from(address.slot), place);
        assert_eq!(address.kind, AddressKind::Own);
        assert_eq!(ports(&plan.policy, place, Protocol::Tcp).len(), 2000);
    }
}

/// RFC 5382 REQ-3, RFC 7857 section 4: what the file says of each protocol is in the policy, and
/// pairing follows the mapping behaviour unless it is given.
#[test]
fn behaviours_and_pairing_of_each_protocol() {
    use conntrack::{FilteringBehaviour as F, MappingBehaviour as M, Pairing as P};
    let text = |more: &str| {
        format!(
            "{TWO_ARM}[pool]\naddresses = \"203.0.113.4\"\n{more}[nat]\nmapping = {{ udp = \"eim\" }}\nfiltering = {{ udp = \"eif\" }}\n"
        )
    };
    let policy = plan(&text(""), &host()).policy;
    let (edm, edf) = (M::EndpointDependent, F::EndpointDependent);
    assert_eq!(policy.profile.mapping, [edm, M::EndpointIndependent, edm]);
    assert_eq!(policy.profile.filtering, [edf, F::EndpointIndependent, edf]);
    assert_eq!(policy.profile.pairing, [P::Soft, P::Hard, P::Soft]);
    let policy = plan(&text("pairing = \"hard\"\n"), &host()).policy;
    assert_eq!(policy.profile.pairing, [P::Hard; 3]);
}
