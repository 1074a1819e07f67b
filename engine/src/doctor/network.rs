//! What the kernel does with packets that Egret leaves to it.

use super::facts::{Facts, InterfaceState, Policy};
use super::finding::{Finding, Level, Setting};

const HOST: &str = "host";

pub(super) fn examine(facts: &Facts, found: &mut Vec<Finding>) {
    found.push(forwarding(facts));
    found.push(source_rules(facts));
}

pub(super) fn examine_interface(interface: &InterfaceState, found: &mut Vec<Finding>) {
    found.extend(rp_filter(interface));
}

fn forwarding(facts: &Facts) -> Finding {
    let bypasses = |policy: &Policy| !policy.bypass.is_empty();
    let make = |level, on: bool, what: &str| Finding::new(HOST, "ip-forward", level, on, what);
    match (facts.host.ip_forward, &facts.policy) {
        (None, _) => Finding::unseen(HOST, "ip-forward", "ip_forward cannot be seen"),
        (Some(false), Some(policy)) if bypasses(policy) => make(
            Level::Warning,
            false,
            "ip_forward is 0, and the configuration has a bypass",
        )
        .why("the kernel forwards nothing that is bypassed")
        .mend(
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv4.ip_forward=0",
        ),
        (Some(false), _) => make(
            Level::Ok,
            false,
            "ip_forward is 0: without Egret nothing gets through",
        ),
        (Some(true), _) => make(
            Level::Note,
            true,
            "ip_forward is 1: without Egret the kernel forwards",
        )
        .why(
            "after `egret detach` or the end of `egret run` clients' packets leave untranslated, \
             unless a rule of the host stops them; needed for what is bypassed (pods)",
        ),
    }
}

fn source_rules(facts: &Facts) -> Finding {
    let Some(rules) = &facts.host.source_rules else {
        let what = "rules of nft and iptables cannot be seen";
        return Finding::unseen(HOST, "nat-rules", what);
    };
    let make = |level, what| Finding::new(HOST, "nat-rules", level, rules.len(), what);
    if rules.is_empty() {
        return make(
            Level::Ok,
            "no rule of the host translates sources".to_owned(),
        );
    }
    let shown = rules.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    let more = match rules.len() {
        0..=3 => String::new(),
        count => format!("; and {} more", count - 3),
    };
    let what = format!("rules of the host translate sources, too: {shown}{more}");
    let why = "what Egret takes never meets them (nor FORWARD and INPUT rules); what they translate \
               shares the address: its replies are handed back to the kernel. A rule for Egret's \
               clients works again when Egret is detached";
    make(Level::Note, what).why(why)
}

fn rp_filter(interface: &InterfaceState) -> Option<Finding> {
    let (effective, own) = interface.rp_filter?;
    let name = interface.name.as_str();
    let make = |level, what: &str| Finding::new(name, "rp-filter", level, effective, what);
    if effective != 1 {
        return Some(make(
            Level::Ok,
            "replies may come by another way than requests go",
        ));
    }
    // Of an interface whose name has a dot, only the form with slashes is clear.
    let key = format!("net/ipv4/conf/{name}/rp_filter");
    let shown = match name.contains('.') {
        true => key.clone(),
        false => key.replace('/', "."),
    };
    let finding = make(Level::Note, "rp_filter is 1 (strict)")
        .why(
            "what is translated does not meet it; bypassed packets, and all in TUN mode, are \
             dropped where the way back leads over another interface",
        )
        .mend(
            format!("sysctl -w {shown}=2"),
            format!("sysctl -w {shown}={own}"),
        );
    Some(finding.safe(Setting::Sysctl { key }, "2"))
}

#[cfg(test)]
mod tests {
    use super::super::HostState;
    use super::super::finding::one;
    use super::*;

    fn found(facts: &Facts) -> Vec<Finding> {
        let mut found = Vec::new();
        examine(facts, &mut found);
        for interface in &facts.interfaces {
            examine_interface(interface, &mut found);
        }
        found
    }

    fn forwards(ip_forward: bool, bypass: &[&str]) -> Facts {
        Facts {
            host: HostState {
                ip_forward: Some(ip_forward),
                ..HostState::default()
            },
            policy: Some(Policy {
                bypass: bypass.iter().map(|net| net.parse().unwrap()).collect(),
                ..Policy::default()
            }),
            ..Facts::default()
        }
    }

    #[test]
    fn forwarding_is_needed_for_a_bypass_only() {
        let level = |facts| one(&found(&facts), "host/ip-forward").level;
        assert_eq!(level(forwards(false, &["10.42.0.0/16"])), Level::Warning);
        assert_eq!(level(forwards(false, &[])), Level::Ok);
        assert_eq!(level(forwards(true, &[])), Level::Note);
    }

    #[test]
    fn rules_that_translate_are_told() {
        let with = |rules: &[&str]| Facts {
            host: HostState {
                source_rules: Some(rules.iter().map(|&rule| rule.to_owned()).collect()),
                ..HostState::default()
            },
            ..Facts::default()
        };
        let level = |rules: &[&str]| one(&found(&with(rules)), "host/nat-rules").level;
        assert_eq!(level(&[]), Level::Ok);
        assert_eq!(level(&["a", "b", "c", "d"]), Level::Note);
        assert!(
            one(&found(&with(&["a", "b", "c", "d"])), "host/nat-rules")
                .what
                .contains("1 more")
        );
    }

    #[test]
    fn a_strict_filter_is_loosened_and_put_back_to_the_interfaces_own_value() {
        let with = |name: &str, effective, own| Facts {
            interfaces: vec![InterfaceState {
                name: name.to_owned(),
                rp_filter: Some((effective, own)),
                ..InterfaceState::default()
            }],
            ..Facts::default()
        };
        let strict = found(&with("eth0.5", 1, 0));
        let filter = one(&strict, "eth0.5/rp-filter");
        let mend = filter.mend.as_ref().expect("a way");
        assert_eq!(mend.command, "sysctl -w net/ipv4/conf/eth0.5/rp_filter=2");
        assert_eq!(
            mend.undo.as_deref(),
            Some("sysctl -w net/ipv4/conf/eth0.5/rp_filter=0")
        );
        assert!(mend.safe.is_some());
        for effective in [0, 2] {
            let loose = found(&with("eth0", effective, effective));
            assert_eq!(one(&loose, "eth0/rp-filter").level, Level::Ok);
        }
    }
}
