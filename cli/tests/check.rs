//! `egret check`: the sample file, the report, exit statuses.

use std::process::ExitCode;

use conntrack::Protocol;
use egret_cli::check::{CheckArgs, check, run};
use engine::config::Config;
use engine::config::keys::KEYS;
use engine::plan::{Capabilities, HostFacts, Listener, NicFacts, VlanOffload};

const SAMPLE: &str = include_str!("../egret.sample.toml");
const MINIMAL: &str = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";

fn nic(name: &str, ifindex: u32, address: &str) -> NicFacts {
    NicFacts {
        name: name.into(),
        ifindex,
        mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
        up: true,
        addresses: vec![address.parse().unwrap()],
        driver: "virtio_net".into(),
        rx_queues: 2,
        xdp_native: Some(true),
        xdp_zero_copy: Some(false),
        vlan_offload: Some(VlanOffload::Off),
        rp_filter: Some(0),
        ..NicFacts::default()
    }
}

fn host() -> HostFacts {
    let ssh = Listener {
        protocol: Protocol::Tcp,
        addr: [0, 0, 0, 0].into(),
        port: 2222,
    };
    HostFacts {
        interfaces: vec![
            nic("eth0", 2, "203.0.113.5/24"),
            nic("lan0", 3, "10.77.0.1/24"),
            nic("wan0", 4, "198.51.100.5/24"),
        ],
        local_port_range: Some((32768, 60999)),
        listeners: Some(vec![ssh]),
        dnat: Some(Vec::new()),
        ip_forward: Some(false),
        capabilities: Some(Capabilities {
            net_admin: true,
            net_raw: true,
            sys_admin: true,
        }),
        ram_bytes: Some(1 << 30),
        cpus: vec![0, 1],
        ..HostFacts::default()
    }
}

#[test]
fn the_sample_is_valid_and_shows_the_defaults() {
    let config =
        Config::parse("egret.sample.toml", SAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.advice.is_empty(), "{:?}", config.advice);
    let minimal = Config::parse("minimal", MINIMAL).unwrap();
    // What the sample gives an example of, because there is no default.
    let examples = [
        "internal",
        "interface",
        "bypass",
        "deny",
        "pool.exclude_ports",
        "forwards",
    ];
    let is_example = |key: &str| examples.iter().any(|example| key.starts_with(example));
    let value_of = |key: &str| {
        let settings = config.settings();
        settings
            .into_iter()
            .find(|setting| setting.key == key)
            .map(|setting| setting.value)
    };
    for setting in minimal
        .settings()
        .iter()
        .filter(|setting| !is_example(&setting.key))
    {
        assert_eq!(
            value_of(&setting.key).as_ref(),
            Some(&setting.value),
            "{}",
            setting.key
        );
    }
}

#[test]
fn the_sample_names_every_key() {
    let mut table = String::new();
    let mut named: Vec<(String, String)> = Vec::new();
    for line in SAMPLE.lines() {
        let line = line.trim_start_matches("# ");
        if line.starts_with('[') && line.trim_end().ends_with(']') {
            table = line.trim_matches(['[', ']']).to_owned();
            named.push((String::new(), table.clone()));
        } else if let Some((key, _)) = line.split_once(" = ") {
            named.push((table.clone(), key.to_owned()));
        }
    }
    for key in KEYS {
        let entry = (key.table.to_owned(), key.name.to_owned());
        assert!(
            named.contains(&entry),
            "egret.sample.toml does not name {}",
            key.path()
        );
    }
}

#[test]
fn the_commented_keys_of_the_sample_are_valid_too() {
    let mut text = SAMPLE.replace("# sessions_max", "sessions_max");
    for key in [
        "mode =",
        "ports = [",
        "pairing =",
        "count =",
        "cpus =",
        "priority =",
        "group =",
    ] {
        assert!(text.contains(&format!("# {key}")), "{key}");
        text = text.replace(&format!("# {key}"), key);
    }
    Config::parse("sample", &text).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_report_of_the_minimal_file() {
    let report = check("egret.toml", MINIMAL, |_| Ok(host())).unwrap();
    assert!(report.is_valid());
    let text = report.text();
    for line in [
        "= \"10.77.0.0/24\"",
        "pool.ports",
        "203.0.113.5",
        "shared with the host",
        // 1024-65535 less 30000-32767, less 32768-60999; of TCP the listener on 2222, too.
        "33511",
        "33512",
        "524288 sessions",
        "egret.toml: valid, 0 errors, 0 warnings, 0 notes",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let json = report.json();
    let lines: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let value = |name: &str| {
        let line = lines.iter().find(|line| line["name"] == name);
        line.unwrap_or_else(|| panic!("no {name} in\n{json}"))["value"].clone()
    };
    assert_eq!(value("check/valid"), true);
    assert_eq!(value("check/errors"), 0);
    assert_eq!(value("check/pool/203.0.113.5/tcp/ports"), 33511);
    assert_eq!(value("check/pool/203.0.113.5/udp/ports"), 33512);
    assert_eq!(value("check/pool/203.0.113.5/icmp/ports"), 65536);
    assert_eq!(value("check/interface/0/role"), "both");
    assert_eq!(value("check/workers"), 2);
    assert_eq!(value("check/rate/udp"), 111.71);
    let names: Vec<&str> = lines
        .iter()
        .map(|line| line["name"].as_str().unwrap())
        .collect();
    let unique: std::collections::BTreeSet<&&str> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "a name stands twice:\n{json}");
}

#[test]
fn a_check_without_privileges_warns_and_goes_on() {
    let poor = HostFacts {
        capabilities: Some(Capabilities::default()),
        ..host()
    };
    let report = check("egret.toml", MINIMAL, |_| Ok(poor)).unwrap();
    let text = report.text();
    assert!(report.is_valid(), "{text}");
    assert!(
        text.contains("warning: this process lacks CAP_NET_ADMIN"),
        "{text}"
    );
    assert!(text.contains("33512"), "{text}");
}

#[test]
fn what_is_wrong_on_the_host_makes_the_file_invalid() {
    let text = MINIMAL.replace("eth0", "eth7");
    let report = check("egret.toml", &text, |_| Ok(host())).unwrap();
    assert!(!report.is_valid());
    let shown = report.text();
    assert!(
        shown.contains("error: there is no interface \"eth7\""),
        "{shown}"
    );
    assert!(shown.contains("--> egret.toml:2:13"), "{shown}");
    assert!(
        shown.ends_with("egret.toml: invalid, 1 error, 0 warnings, 0 notes\n"),
        "{shown}"
    );
    let json = report.json();
    assert!(
        json.contains("\"name\":\"check/error/no-such-interface\""),
        "{json}"
    );
    assert!(json.contains("\"line\":2"), "{json}");
}

#[test]
fn exit_statuses() {
    let directory = std::env::temp_dir().join(format!("egret-check-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let status = |name: &str, text: Option<&str>, facts: Result<HostFacts, String>| {
        let file = directory.join(name);
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        run(
            &CheckArgs {
                file,
                rfc: false,
                json: true,
            },
            |_| facts,
        )
    };
    assert_eq!(
        status("valid.toml", Some(MINIMAL), Ok(host())),
        ExitCode::SUCCESS
    );
    assert_eq!(
        status("bad.toml", Some("internal = 3"), Ok(host())),
        ExitCode::from(1)
    );
    assert_eq!(status("none.toml", None, Ok(host())), ExitCode::from(2));
    let unread = Err("netlink: permission denied".to_owned());
    assert_eq!(
        status("unread.toml", Some(MINIMAL), unread),
        ExitCode::from(2)
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

/// The requirements that a configuration breaks, each with the key that does it.
fn deviations(config: &str) -> Vec<(&'static str, String)> {
    let config = Config::parse("egret.toml", config).unwrap_or_else(|error| panic!("{error}"));
    let deviations = config.deviations().into_iter();
    deviations
        .map(|deviation| (deviation.requirement, deviation.setting))
        .collect()
}

#[test]
fn rfc_deviations_name_their_keys() {
    let strict = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n\
        [pool]\naddresses = \"203.0.113.9\"\n[nat]\nmapping = \"eim\"\nfiltering = \"eif\"\n";
    assert_eq!(deviations(strict), []);
    let profiles: [(&str, &[&str]); 2] = [
        ("conntrack", &["5508-2", "7857-2.1", "6888-8"]),
        ("cloud", &["4787-5", "5382-5", "5508-2", "7857-2.1"]),
    ];
    for (profile, broken) in profiles {
        let found = deviations(&format!("{strict}[timers]\nprofile = \"{profile}\"\n"));
        let named: Vec<&str> = found.iter().map(|(requirement, _)| *requirement).collect();
        for requirement in broken {
            assert!(named.contains(requirement), "{profile}: {named:?}");
        }
    }
    let found = deviations(&format!("{strict}[timers]\ntcp_idle_timeout_s = 3600\n"));
    let wanted = ("5382-5", "timers.tcp_idle_timeout_s = 3600".to_owned());
    assert_eq!(found, [wanted]);
    let found = deviations(&format!("{strict}[icmp]\nerrors_per_second = 0\n"));
    assert!(found.contains(&("5508-10a", "icmp.errors_per_second = 0".to_owned())));
    let minimal = deviations(MINIMAL);
    for requirement in ["4787-1", "4787-3", "5382-1", "5382-4", "5382-7", "4787-8"] {
        let named = |(one, _): &(&str, String)| *one == requirement;
        assert!(minimal.iter().any(named), "{requirement}: {minimal:?}");
    }
}

#[test]
fn the_report_tells_deviations_when_asked() {
    let report = || check("egret.toml", MINIMAL, |_| Ok(host())).unwrap();
    assert!(!report().text().contains("5382-4"));
    let asked = report().with_deviations();
    let text = asked.text();
    let line = text
        .lines()
        .find(|line| line.contains("RFC 5382-4"))
        .unwrap();
    assert!(line.contains("MUST") && line.contains("pool.addresses = \"interface\""));
    let json = asked.json();
    assert!(json.contains("\"name\":\"check/rfc/5382-4\""));
    assert!(asked.is_valid(), "a deviation is no error");
}
