//! Which requirements of the RFCs a configuration does not meet, and by which key. What Egret itself
//! does not meet, whatever is configured, is in COMPLIANCE.md.

use conntrack::{FilteringBehaviour, MappingBehaviour, Protocol};

use super::read::{FILTERINGS, MAPPINGS, word};
use super::timers::TIMERS;
use super::{At, Config, OnRefusal, Unsolicited};

/// How an RFC asks for something (RFC 2119).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Demand {
    /// MUST and MUST NOT.
    Must,
    /// SHOULD, SHOULD NOT and RECOMMENDED.
    Should,
}

impl std::fmt::Display for Demand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Demand::Must => "MUST",
            Demand::Should => "SHOULD",
        })
    }
}

/// A requirement that a configuration does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// RFC and number, as in COMPLIANCE.md: `4787-5`.
    pub requirement: &'static str,
    /// How the RFC asks for it.
    pub demand: Demand,
    /// The key that decides, and its value: `timers.udp_timeout_s = 30`.
    pub setting: String,
    /// What follows.
    pub effect: &'static str,
}

impl Config {
    /// The requirements of RFC 4787, 5382, 5508, 6888 and 7857 that this configuration does not
    /// meet: MUST before SHOULD, then by number.
    pub fn deviations(&self) -> Vec<Deviation> {
        let mut found = Vec::new();
        behaviours(self, &mut found);
        timers(self, &mut found);
        icmp(self, &mut found);
        pool(self, &mut found);
        found.sort_by_key(|deviation| (deviation.demand, deviation.requirement));
        found
    }
}

fn behaviours(config: &Config, found: &mut Vec<Deviation>) {
    use Demand::{Must, Should};
    use Protocol::{Icmp, Tcp, Udp};
    let differs = "a client has another external endpoint for each destination: no hole punching";
    let shares = "clients share an external port towards different destinations";
    let queries = "the external identifier of a ping differs by destination";
    let narrow = "only the very endpoint that a client sent to may answer";
    let edm = MappingBehaviour::EndpointDependent;
    for (protocol, requirement, demand, effect) in [
        (Udp, "4787-1", Must, differs),
        (Udp, "4787-3", Must, shares),
        (Tcp, "5382-1", Must, differs),
        (Tcp, "5382-7", Must, shares),
        (Icmp, "5508-1a", Should, queries),
    ] {
        if config.nat.mapping[protocol.index()].value == edm {
            let setting = setting("nat.mapping", MAPPINGS, &config.nat.mapping, protocol);
            found.push(Deviation {
                requirement,
                demand,
                setting,
                effect,
            });
        }
    }
    let edf = FilteringBehaviour::EndpointDependent;
    for (protocol, requirement) in [(Udp, "4787-8"), (Tcp, "5382-3"), (Udp, "6888-7")] {
        if config.nat.filtering[protocol.index()].value == edf {
            let setting = setting("nat.filtering", FILTERINGS, &config.nat.filtering, protocol);
            found.push(Deviation {
                requirement,
                demand: Should,
                setting,
                effect: narrow,
            });
        }
    }
}

/// The key and word of one protocol; short where all have the same.
fn setting<T: PartialEq + Copy>(
    key: &str,
    words: &[(&'static str, T)],
    values: &[At<T>; 3],
    protocol: Protocol,
) -> String {
    let value = values[protocol.index()].value;
    let name = match values.iter().all(|other| other.value == value) {
        true => String::new(),
        false => format!(".{protocol}"),
    };
    format!("{key}{name} = \"{}\"", word(words, value))
}

fn timers(config: &Config, found: &mut Vec<Deviation>) {
    let mut timers = config.timers;
    for timer in TIMERS {
        let timeout_ms = *(timer.field)(&mut timers);
        let (requirement, demand) = timer.requirement;
        if timeout_ms >= timer.rfc_min_s * 1000 {
            continue;
        }
        // RFC 6888 REQ-8 excepts all other filtering.
        let holds = Protocol::ALL
            .iter()
            .any(|&protocol| config.holds_down(protocol));
        if requirement == "6888-8" && !holds {
            continue;
        }
        found.push(Deviation {
            requirement,
            demand,
            setting: format!("timers.{} = {}", timer.key, timeout_ms / 1000),
            effect: timer.breaks,
        });
    }
}

fn icmp(config: &Config, found: &mut Vec<Deviation>) {
    let mut add = |requirement, demand, setting: String, effect| {
        found.push(Deviation {
            requirement,
            demand,
            setting,
            effect,
        });
    };
    if config.icmp.errors_per_second == 0 {
        let setting = || "icmp.errors_per_second = 0".to_owned();
        let lost = "path MTU discovery through the gateway fails silently";
        add("4787-13", Demand::Must, setting(), lost);
        let hidden = "no time exceeded: the gateway is missing from a traceroute";
        add("5508-10a", Demand::Must, setting(), hidden);
        let silent = "a refused client learns it by its own timeout";
        add("6888-11b", Demand::Should, setting(), silent);
        add("5508-8", Demand::Should, setting(), silent);
        let waits = "who connects to a port that nobody has waits for its own timeout";
        add("5382-4", Demand::Should, setting(), waits);
        return;
    }
    if config.icmp.unsolicited == Unsolicited::Silent {
        let setting = "icmp.unsolicited = \"silent\"".to_owned();
        let effect = "who connects to a port that nobody has waits for its own timeout";
        add("5382-4", Demand::Should, setting, effect);
    }
    let silent = match config.icmp.on_refusal {
        OnRefusal::HostUnreachable => return,
        OnRefusal::AdminProhibited => "a refused client takes the error for a final one",
        OnRefusal::Silent => "a refused client learns it by its own timeout",
    };
    let setting = format!(
        "icmp.on_refusal = \"{}\"",
        word(super::read::REFUSALS, config.icmp.on_refusal)
    );
    add("6888-11b", Demand::Should, setting.clone(), silent);
    if config.icmp.on_refusal == OnRefusal::Silent {
        add("5508-8", Demand::Should, setting, silent);
    }
}

fn pool(config: &Config, found: &mut Vec<Deviation>) {
    let holds = Protocol::ALL
        .iter()
        .any(|&protocol| config.holds_down(protocol));
    if holds && config.pool.hold_down_max_percent == 0 {
        found.push(Deviation {
            requirement: "6888-8",
            demand: Demand::Should,
            setting: "pool.hold_down_max_percent = 0".to_owned(),
            effect: "a new client may get the packets of the last one",
        });
    }
    if !config.nat.preserve_port_class {
        found.push(Deviation {
            requirement: "4787-3a",
            demand: Demand::Should,
            setting: "nat.preserve_port_class = false".to_owned(),
            effect: "a client's port below 1024 may become one above",
        });
    }
    if !config.pool.has_interface() {
        return;
    }
    let setting = || "pool.addresses = \"interface\"".to_owned();
    found.push(Deviation {
        requirement: "5382-4",
        demand: Demand::Must,
        setting: setting(),
        effect: "the host's kernel answers an unsolicited SYN at once: its ports and Egret's are \
                 told apart by the session only",
    });
    found.push(Deviation {
        requirement: "4787-3a",
        demand: Demand::Should,
        setting: setting(),
        effect: "ports below 1024 are the host's: a client's low port becomes a high one",
    });
}

impl Config {
    /// Is a released port of this protocol held down (RFC 6888 REQ-8)? TCP has a state machine, and
    /// other filtering than `eif` is excepted.
    pub fn holds_down(&self, protocol: Protocol) -> bool {
        protocol != Protocol::Tcp
            && self.nat.mapping[protocol.index()].value == MappingBehaviour::EndpointIndependent
            && self.nat.filtering[protocol.index()].value == FilteringBehaviour::EndpointIndependent
    }
}
