//! Any text is parsed without a panic, and what is valid survives being written out again.

use std::collections::BTreeMap;

use conntrack::{FilteringBehaviour, Limits, MappingBehaviour, Pairing, Quotas, Timers};
use engine::config::{
    Config, DeviceMode, Level, Midstream, OnRefusal, Poll, Role, Setting, Unsolicited,
};
use engine::plan::Plan;
use proptest::prelude::*;
use support::{MINIMAL, TWO_ARM, host};

mod support;

const SAMPLE: &str = include_str!("../../cli/egret.sample.toml");

/// Parses and plans; every answer must hold what it promises.
fn try_out(text: &str) {
    match Config::parse("egret.toml", text) {
        Ok(config) => {
            assert!(!config.internal.is_empty());
            assert_eq!(
                config
                    .interfaces
                    .iter()
                    .filter(|i| i.role.is_external())
                    .count(),
                1
            );
            assert!(
                config
                    .advice
                    .iter()
                    .all(|problem| problem.level != Level::Error)
            );
            let _ = config.settings();
            match Plan::make(&config, &host()) {
                Ok(plan) => assert_eq!(plan.interfaces.len(), config.interfaces.len()),
                Err(problems) => assert_eq!(problems[0].level, Level::Error),
            }
        }
        Err(error) => {
            assert!(
                error
                    .problems
                    .iter()
                    .any(|problem| problem.level == Level::Error)
            );
            assert!(!error.to_string().is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_text(text in "\\PC*") {
        try_out(&text);
    }

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        try_out(&String::from_utf8_lossy(&bytes));
    }

    /// Every string of the sample, replaced by another.
    #[test]
    fn any_value_of_any_key(number in 0..60usize, value in "[0-9a-f:./,-]{0,20}|\\PC{0,8}|[0-9]{1,20}") {
        let quotes: Vec<usize> = without_comments().match_indices('"').map(|(at, _)| at).collect();
        let text = without_comments();
        let pair = 2 * (number % (quotes.len() / 2));
        let value: String = value.chars().filter(|c| !"\"\\\n\r".contains(*c)).collect();
        let (start, end) = (quotes[pair] + 1, quotes[pair + 1]);
        try_out(&format!("{}{value}{}", &text[..start], &text[end..]));
    }

    #[test]
    fn a_damaged_sample(at in 0..SAMPLE.len(), cut in 0..40usize, put in "[\"\\[\\]{}=.,#0-9a-z\n-]{0,6}") {
        let text = without_comments();
        let at = at % text.len();
        let end = (at + cut).min(text.len());
        try_out(&format!("{}{put}{}", &text[..at], &text[end..]));
    }

    #[test]
    fn what_is_valid_can_be_written_out_and_read_again(text in valid_text()) {
        let config = Config::parse("egret.toml", &text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let written = written(&config.settings());
        let again = Config::parse("egret.toml", &written);
        let again = again.unwrap_or_else(|error| panic!("{written}\n{error}"));
        let values = |config: &Config| -> Vec<(String, String)> {
            config.settings().into_iter().map(|setting| (setting.key, setting.value)).collect()
        };
        prop_assert_eq!(values(&config), values(&again));
        prop_assert_eq!(&config.forwards, &again.forwards);
        prop_assert_eq!(&config.pool, &again.pool);
        prop_assert_eq!(config.timers, again.timers);
        use engine::plan::Translation;
        prop_assert_eq!(Translation::of(&config, None).ok(), Translation::of(&again, None).ok());
    }
}

fn without_comments() -> String {
    let lines = SAMPLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

prop_compose! {
    fn valid_text()(
        length in 8u8..=32, minutes in 1u32..1000, ports in any::<(u16, u16)>(),
        addresses in 1u8..9, eim: bool, forwards in 0u16..5, errors in 0u32..1_000_001,
        sessions in 64u32..(1 << 24), allow: bool, busy: bool, rules in 0u16..5,
    ) -> String {
        let internal: ipnet::Ipv4Net = format!("10.0.0.0/{length}").parse().unwrap();
        let (low, high) = (ports.0.min(ports.1).max(1), ports.0.max(ports.1).max(1));
        let behaviour = if eim { "mapping = \"eim\"\nfiltering = \"adf\"" } else { "" };
        let mut text = format!(
            "internal = \"{internal}\"\ninterface = \"eth0\"\n[pool]\n\
             addresses = \"203.0.113.1-203.0.113.{addresses}\"\nports = [\"{low}-{high}\", 70]\n\
             [nat]\n{behaviour}\n[timers]\nudp_timeout_s = {minutes}\n[icmp]\n\
             errors_per_second = {errors}\n[tables]\nsessions_max = {sessions}\n[workers]\npoll = \"{}\"\n",
            if busy { "busy" } else { "adaptive" },
        );
        for number in 0..forwards {
            text += &format!(
                "[[forwards]]\nprotocol = \"udp\"\nexternal = \"203.0.113.1:{}\"\n\
                 target = \"10.0.0.0:{}\"\n{}\n",
                number + 1, number + 9, if allow { "allow = \"192.0.2.0/24\"" } else { "" }
            );
        }
        if rules > 0 {
            text += "[[pools]]\nname = \"p\"\naddresses = \"198.51.100.1\"\n\
                     [[services]]\nprotocol = \"udp\"\nports = 53\nudp_timeout_s = 3\n";
        }
        for number in 0..rules {
            let action = match number % 3 {
                0 => format!("pool = \"p\"\ntcp_idle_timeout_s = {}", number + 1),
                1 => "action = \"drop\"\nprotocol = [\"tcp\", \"icmp\"]".to_owned(),
                _ => "mapping = { udp = \"eim\" }".to_owned(),
            };
            text += &format!(
                "[[rules]]\nsources = \"10.0.0.0/32\"\n\
                 destinations = [\"192.0.{number}.0/24\"]\nports = {}\n{action}\n",
                number + 1
            );
        }
        text
    }
}

/// Settings as a file.
fn written(settings: &[Setting]) -> String {
    let mut top = String::new();
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    for setting in settings {
        // Defaults that depend on the host are shown in words, and an empty list is no list.
        let in_words = setting.default && !setting.value.starts_with(['"', '[']);
        if in_words || setting.value == "[]" {
            continue;
        }
        let line = |key: &str| format!("{key} = {}\n", setting.value);
        match setting.key.split_once("].") {
            Some((table, key)) => *tables.entry(table.to_owned()).or_default() += &line(key),
            None => top += &line(&setting.key),
        }
    }
    for (table, lines) in tables {
        let name = table.split('[').next().unwrap();
        top += &format!("[[{name}]]\n{lines}");
    }
    top
}

#[test]
fn the_minimal_file_has_the_defaults() {
    let config = Config::parse("egret.toml", MINIMAL).unwrap();
    assert_eq!(config.interfaces[0].role, Role::Both);
    let edm = [MappingBehaviour::EndpointDependent; 3];
    assert_eq!(config.nat.mapping.map(|at| at.value), edm);
    let edf = [FilteringBehaviour::EndpointDependent; 3];
    assert_eq!(config.nat.filtering.map(|at| at.value), edf);
    assert!(config.nat.preserve_port && !config.nat.inbound_refresh);
    assert!(config.nat.preserve_port_class && !config.nat.preserve_port_parity);
    assert_eq!(config.pool.pairing, None);
    assert_eq!(config.pool.hold_down_max_percent, 25);
    assert_eq!(config.timers, Timers::RFC);
    assert_eq!(config.limits, Limits::DEFAULT);
    assert!(config.pool.has_interface() && config.pool.ports.is_none());
    assert_eq!(config.icmp.errors_per_second, 1000);
    assert_eq!(config.icmp.on_refusal, OnRefusal::HostUnreachable);
    assert_eq!(config.icmp.unsolicited, Unsolicited::PortUnreachable);
    assert_eq!(config.nat.midstream, Midstream::Reset);
    assert_eq!(config.mode.value, DeviceMode::Auto);
    assert_eq!(config.workers.poll.value, Poll::Adaptive);
    assert_eq!(
        config.tables.path.value.to_str(),
        Some("/run/egret/default/tables")
    );
    assert_eq!(
        config.control_socket.to_str(),
        Some("/run/egret/default/control")
    );
    assert!(config.advice.is_empty());
    let given = |key| config.is_given(key);
    assert!(given("internal") && given("interface") && !given("pool.addresses"));
}

#[test]
fn every_key_has_its_effect() {
    let two_arm = TWO_ARM.replacen("role", "mode = \"tun\"\nrole", 1);
    let text = format!(
        "bypass = [\"10.42.0.0/16\"]\ndeny = \"169.254.169.254/32\"\ninstance = \"two\"\n{two_arm}\
         [pool]\naddresses = [\"203.0.113.8/31\"]\nports = [5, \"7-9\"]\nexclude_ports = 8\n\
         pairing = \"soft\"\nhold_down_max_percent = 40\n\
         [nat]\nmapping = \"eim\"\nfiltering = {{ udp = \"eif\", tcp = \"adf\" }}\n\
         preserve_port = false\npreserve_port_class = false\npreserve_port_parity = true\n\
         inbound_refresh = true\n\
         midstream = \"drop\"\n\
         [timers]\nprofile = \"conntrack\"\nudp_timeout_s = 1\ntcp_trans_open_timeout_s = 2\n\
         tcp_idle_timeout_s = 3\ntcp_trans_close_timeout_s = 4\n\
         tcp_in_syn_timeout_s = 5\nicmp_timeout_s = 6\nfragment_timeout_s = 7\nhold_down_s = 0\n\
         [limits]\ninbound_sessions_per_mapping = 5\ninbound_sessions_per_forward = 6\n\
         half_open_per_forward = 7\n\
         sessions_per_subscriber = {{ tcp = 8, icmp = 9 }}\nports_per_subscriber = 10\n\
         mappings_per_second_per_subscriber = 11\nmapping_burst_per_subscriber = 12\n\
         [icmp]\nerrors_per_second = 0\non_refusal = \"silent\"\n\
         unsolicited = \"silent\"\n\
         [tables]\nsessions_max = 1_000\npath = \"/dev/shm/t\"\n\
         [workers]\ncount = 1\npoll = \"busy\"\ncpus = [0x1]\npriority = 7\n\
         [device]\nmode = \"generic\"\n[control]\nsocket = \"/run/s\"\n\
         [[pools]]\nname = \"red\"\naddresses = \"203.0.113.64/31\"\nports = 6\nexclude_ports = []\n\
         pairing = \"none\"\n\
         [[rules]]\nname = \"first\"\nsources = \"10.77.0.7/32\"\ndestinations = \"192.0.2.0/24\"\n\
         ports = [1, \"3-4\"]\nprotocol = \"udp\"\naction = \"translate\"\npool = \"red\"\n\
         mapping = \"edm\"\nfiltering = \"edf\"\nudp_timeout_s = 11\ntcp_trans_open_timeout_s = 12\n\
         tcp_idle_timeout_s = 13\ntcp_trans_close_timeout_s = 14\nicmp_timeout_s = 15\n\
         [[rules]]\naction = \"drop\"\n\
         [[services]]\nprotocol = \"tcp\"\nports = \"22\"\nudp_timeout_s = 21\n\
         tcp_trans_open_timeout_s = 22\ntcp_idle_timeout_s = 23\ntcp_trans_close_timeout_s = 24\n"
    );
    let config = Config::parse("egret.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.bypass[0].value.to_string(), "10.42.0.0/16");
    assert_eq!(config.deny[0].value.to_string(), "169.254.169.254/32");
    assert_eq!(config.instance, "two");
    let roles: Vec<Role> = config
        .interfaces
        .iter()
        .map(|interface| interface.role)
        .collect();
    assert_eq!(roles, [Role::Internal, Role::External]);
    assert_eq!(config.pool.own().count(), 2);
    let ports: Vec<String> = config
        .pool
        .ports
        .iter()
        .flatten()
        .map(|p| p.to_string())
        .collect();
    assert_eq!(ports, ["5", "7-9"]);
    let eim = [MappingBehaviour::EndpointIndependent; 3];
    assert_eq!(config.nat.mapping.map(|at| at.value), eim);
    let filtering = [
        FilteringBehaviour::AddressDependent,
        FilteringBehaviour::EndpointIndependent,
        FilteringBehaviour::EndpointDependent,
    ];
    assert_eq!(config.nat.filtering.map(|at| at.value), filtering);
    assert_eq!(config.pool.pairing, Some(Pairing::Soft));
    assert_eq!(config.pool.hold_down_max_percent, 40);
    assert!(!config.nat.preserve_port && config.nat.inbound_refresh);
    assert!(!config.nat.preserve_port_class && config.nat.preserve_port_parity);
    let timers = Timers {
        udp_timeout_ms: 1000,
        tcp_trans_open_timeout_ms: 2000,
        tcp_idle_timeout_ms: 3000,
        tcp_trans_close_timeout_ms: 4000,
        tcp_in_syn_timeout_ms: 5000,
        icmp_timeout_ms: 6000,
        fragment_timeout_ms: 7000,
        hold_down_ms: 0,
    };
    assert_eq!(config.timers, timers);
    let limits = Limits {
        inbound_sessions_per_mapping: 5,
        inbound_sessions_per_forward: Some(6),
        half_open_per_forward: Some(7),
        quotas: Quotas {
            sessions: [Some(8), None, Some(9)],
            ports: [Some(10); 3],
            mappings_per_second: Some(11),
            mapping_burst: 12,
        },
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.icmp.on_refusal, OnRefusal::Silent);
    assert_eq!(config.icmp.unsolicited, Unsolicited::Silent);
    assert_eq!(config.nat.midstream, Midstream::Drop);
    assert_eq!(
        config.tables.sessions_max.map(|sessions| sessions.value),
        Some(1000)
    );
    assert_eq!(config.workers.cpus[0].value, 1);
    assert_eq!(config.workers.priority.map(|at| at.value), Some(7));
    assert_eq!(config.mode.value, DeviceMode::Generic);
    let modes = config
        .interfaces
        .iter()
        .map(|one| config.mode_of(one).value);
    let modes: Vec<DeviceMode> = modes.collect();
    assert_eq!(modes, [DeviceMode::Tun, DeviceMode::Generic]);
    assert_eq!(config.control_socket.to_str(), Some("/run/s"));
    rules_have_their_effect(&config);
    // Every timer below what the RFCs ask for but the one of 7 s has its warning.
    assert_eq!(config.advice.len(), 7, "{:#?}", config.advice);
}

fn rules_have_their_effect(config: &Config) {
    let own: Vec<String> = config
        .own_addresses()
        .map(|addr| addr.to_string())
        .collect();
    assert_eq!(
        own,
        ["203.0.113.8", "203.0.113.9", "203.0.113.64", "203.0.113.65"]
    );
    let translation = engine::plan::Translation::of(config, None).unwrap();
    let [first] = &translation.others[..] else {
        panic!("{:?}", translation.others);
    };
    let of_edm = (
        MappingBehaviour::EndpointDependent,
        FilteringBehaviour::EndpointDependent,
    );
    assert_eq!((first.mapping[1], first.filtering[1]), of_edm);
    assert_eq!((first.pool, first.pairing), (1, [Pairing::None; 3]));
    let own = translation.timers.get(first.timers.base);
    let seconds = [
        own.udp_timeout_ms,
        own.tcp_trans_open_timeout_ms,
        own.tcp_idle_timeout_ms,
        own.tcp_trans_close_timeout_ms,
        own.icmp_timeout_ms,
        own.fragment_timeout_ms,
    ];
    assert_eq!(seconds, [11_000, 12_000, 13_000, 14_000, 15_000, 7000]);
    let ssh = translation.timers.get(first.timers.services[0].timers);
    let seconds = [
        ssh.udp_timeout_ms,
        ssh.tcp_trans_open_timeout_ms,
        ssh.tcp_idle_timeout_ms,
        ssh.tcp_trans_close_timeout_ms,
        ssh.icmp_timeout_ms,
    ];
    assert_eq!(seconds, [21_000, 22_000, 23_000, 24_000, 15_000]);
    let [red, drop] = translation.rules.list() else {
        panic!("two rules are given");
    };
    assert_eq!(red.sources, ["10.77.0.7/32".parse().unwrap()]);
    assert_eq!(red.destinations, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(
        (&red.ports[..], red.protocols),
        (&[(1, 1), (3, 4)][..], [false, true, false])
    );
    assert_eq!(red.action, conntrack::Action::Translate(1));
    assert_eq!(
        (drop.action, drop.protocols),
        (conntrack::Action::Drop, [true; 3])
    );
}
