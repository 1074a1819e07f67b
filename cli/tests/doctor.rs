//! `egret doctor` on a real kernel: it finds what was set wrong, mends what is safe, and puts every
//! value back.

mod kernel;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use egret_cli::demo::setup::Tuning;
use egret_cli::lab::{Gateway, Lab, LabOptions, Topology};
use engine::device::sys::ethtool;
use engine::doctor::{Changes, Restored, Setting};
use kernel::{EGRET, Said, Stand, build, have, ip, is_root, run};
use serde_json::Value;

const PREFIX: &str = "egret-td";
const LIMIT: Duration = Duration::from_secs(20);

fn lab() -> Option<Lab> {
    (is_root() && have(&[("ip", "iproute2")]))
        .then(|| build(LabOptions::new(PREFIX, Topology::TwoArm)))
}

fn doctor(lab: &Lab, words: &[&str]) -> Said {
    let mut command = Command::new(EGRET);
    command.arg("doctor").args(words);
    run(&lab.gateway, &mut command, LIMIT)
}

/// The lines for machines, by their names.
fn lines(said: &Said) -> BTreeMap<String, Value> {
    let one = |line: &str| {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let name = object["name"].as_str().expect("a name").to_owned();
        assert!(object.get("value").is_some(), "{line}");
        assert!(name.starts_with("doctor/"), "{line}");
        (name, object)
    };
    said.text().lines().map(one).collect()
}

/// Every parameter of the namespace's interfaces and every feature of the gateway's.
fn values(lab: &Lab) -> BTreeMap<String, String> {
    let read = || {
        let mut values = BTreeMap::new();
        read_all(Path::new("/proc/sys/net/ipv4"), &mut values);
        read_all(Path::new("/proc/sys/net/core"), &mut values);
        for name in ["lan0", "wan0"] {
            for feature in ethtool::features(name)? {
                values.insert(format!("{name} {}", feature.name), feature.on.to_string());
            }
        }
        Ok(values)
    };
    lab.gateway.run(read).expect("reading values")
}

fn read_all(directory: &Path, values: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, values);
        } else if let Ok(text) = fs::read_to_string(&path) {
            values.insert(path.display().to_string(), text);
        }
    }
}

fn set_rp_filter(lab: &Lab, value: &str) {
    let set = lab.gateway.set_sysctl("ipv4/conf/lan0/rp_filter", value);
    set.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn fix_changes_what_is_safe_and_undo_puts_every_value_back() {
    let Some(lab) = lab() else { return };
    set_rp_filter(&lab, "1");
    let before = values(&lab);
    assert!(before.len() > 100, "{}", before.len());

    let looked = lines(&doctor(&lab, &["lan0", "--json"]));
    assert_eq!(looked["doctor/lan0/rp-filter"]["value"], 1);
    assert_eq!(looked["doctor/lan0/rp-filter"]["safe"], true);
    assert_eq!(looked["doctor/lan0/driver"]["value"], "veth");
    for name in [
        "lan0/mtu",
        "lan0/queues",
        "lan0/xdp-program",
        "lan0/tc-programs",
        "host/kernel",
    ] {
        assert_eq!(
            looked[&format!("doctor/{name}")]["level"],
            "ok",
            "{name}: {looked:#?}"
        );
    }
    assert!(
        !looked.contains_key("doctor/wan0/mtu"),
        "only what was asked for"
    );
    assert_eq!(values(&lab), before, "looking changes nothing");

    let fixed = lines(&doctor(&lab, &["lan0", "--fix", "--json"]));
    assert_eq!(fixed["doctor/fix/lan0/rp-filter"]["value"], true);
    assert_eq!(fixed["doctor/lan0/rp-filter"]["value"], 2);
    let during = values(&lab);
    let changed: Vec<&String> = before
        .keys()
        .filter(|key| before[*key] != during[*key])
        .collect();
    assert_eq!(changed, ["/proc/sys/net/ipv4/conf/lan0/rp_filter"]);
    let again = doctor(&lab, &["lan0", "--fix", "--json"]);
    assert!(!again.text().contains("doctor/fix"), "{}", again.text());

    let undone = doctor(&lab, &["--undo"]);
    assert_eq!(undone.status.code(), Some(0), "{undone:?}");
    assert_eq!(values(&lab), before);
    let nothing = doctor(&lab, &["--undo"]);
    assert!(
        nothing.text().contains("nothing to put back"),
        "{nothing:?}"
    );
}

#[test]
fn what_somebody_else_has_changed_since_is_left_alone() {
    let Some(lab) = lab() else { return };
    set_rp_filter(&lab, "1");
    doctor(&lab, &["lan0", "--fix"]);
    set_rp_filter(&lab, "0");
    let undone = doctor(&lab, &["--undo"]);
    assert_eq!(undone.status.code(), Some(1), "{undone:?}");
    assert!(undone.text().contains("somebody else"), "{undone:?}");
    let now = lab.gateway.sysctl("ipv4/conf/lan0/rp_filter");
    assert_eq!(now.unwrap_or_else(|error| panic!("{error}")), "0");
}

#[test]
fn a_feature_is_changed_and_put_back() {
    let Some(lab) = lab() else { return };
    let before = values(&lab);
    let setting = Setting::Feature {
        interface: "lan0".to_owned(),
        feature: "rx-gro".to_owned(),
    };
    let was = before["lan0 rx-gro"] == "true";
    let wanted = if was { "off" } else { "on" };
    let work = || {
        assert!(Changes::open()?.apply(&setting, wanted)?);
        // Another process reads the list.
        let mut changes = Changes::open()?;
        let during = setting.read()?;
        Ok((during, changes.restore()?))
    };
    let (during, restored) = lab.gateway.run(work).expect("changing a feature");
    assert_eq!(during, wanted);
    assert!(
        matches!(restored[..], [(_, Restored::Done)]),
        "{restored:?}"
    );
    assert_eq!(values(&lab), before);
}

#[test]
fn traps_are_found_and_told_with_the_command_that_mends_them() {
    let Some(lab) = lab() else { return };
    ip(&lab.gateway, "link set dev lan0 mtu 9000");
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/src/bpf/egret.bpf.o");
    ip(
        &lab.gateway,
        &format!("link set dev wan0 xdp object {object} section xdp"),
    );
    let config = lab.directory().join("doctor.toml");
    let text = "internal = \"169.254.8.0/24\"\n[[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
                [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";
    fs::write(&config, text).expect("a file");
    let path = config.display().to_string();
    let said = doctor(&lab, &["--config", &path, "--json"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let found = lines(&said);
    let mtu = &found["doctor/lan0/mtu"];
    assert_eq!(
        (&mtu["level"], &mtu["value"]),
        (&"problem".into(), &9000.into())
    );
    assert_eq!(mtu["mend"], "ip link set dev lan0 mtu 1500");
    assert_eq!(mtu["undo"], "ip link set dev lan0 mtu 9000");
    assert_eq!(found["doctor/wan0/xdp-program"]["level"], "problem");
    assert_eq!(found["doctor/host/link-local"]["level"], "problem");
    let page = doctor(&lab, &["--config", &path]);
    for words in [
        "problem  mtu: ",
        "fix:  ip link set dev lan0 mtu 1500",
        "3 problems",
    ] {
        assert!(page.text().contains(words), "{words}: {}", page.text());
    }
    let unknown = doctor(&lab, &["lan7"]);
    assert_eq!(unknown.status.code(), Some(2));
    for word in ["lan7", "lan0", "wan0"] {
        assert!(unknown.stderr.contains(word), "{word}: {}", unknown.stderr);
    }
}

#[test]
fn a_running_gateways_own_program_is_no_trap() {
    if lab().is_none() {
        return;
    }
    let options = LabOptions::new(PREFIX, Topology::TwoArm);
    let mut stand = Stand::prepare(options, &Tuning::default());
    stand
        .engine
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let found = lines(&doctor(&stand.lab, &["wan0", "--json"]));
    let program = &found["doctor/wan0/xdp-program"];
    assert_eq!(program["level"], "ok", "{program}");
    assert!(
        program["what"]
            .as_str()
            .is_some_and(|what| what.contains(stand.lab.name()))
    );
    stand.stop();
}

#[test]
fn without_privilege_it_says_what_it_could_not_see() {
    let Some(lab) = lab() else { return };
    // Where nobody may read it.
    let copy = std::env::temp_dir().join(format!("egret-doctor-{}", std::process::id()));
    fs::copy(EGRET, &copy).expect("a copy");
    let mut command = Command::new(&copy);
    command.args(["doctor", "lan0"]).uid(65_534).gid(65_534);
    let said = run(&lab.gateway, &mut command, LIMIT);
    command.arg("--fix");
    let refused = run(&lab.gateway, &mut command, LIMIT);
    fs::remove_file(&copy).expect("removing the copy");
    assert!(matches!(said.status.code(), Some(0 | 1)), "{said:?}");
    for words in [
        "not seen",
        "sudo",
        "mtu: the MTU is 1500",
        "rules of nft and iptables",
    ] {
        assert!(said.text().contains(words), "{words}: {}", said.text());
    }
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("root"), "{refused:?}");
}
