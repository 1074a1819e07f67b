//! Ports that the host's nft and iptables rules send elsewhere, read from the text of
//! `nft -j list ruleset` and `iptables-save`.
//!
//! Best effort, and rather too many than too few: of the rules that a received packet can meet
//! before routing, each that names a TCP or UDP destination port and leads to a `dnat` or `redirect`
//! gives its ports, whatever else it asks of the packet. Rules without a port give none.

use std::collections::{HashMap, HashSet};

use conntrack::Protocol;
use serde_json::Value;

use crate::config::PortRange;

type Ports = Vec<(Protocol, PortRange)>;

#[derive(Default)]
struct Rule {
    ports: Ports,
    translates: bool,
    jumps: Vec<String>,
}

/// The rules of every chain, and the chains that received packets enter first.
#[derive(Default)]
struct Chains {
    rules: HashMap<String, Vec<Rule>>,
    roots: Vec<String>,
}

impl Chains {
    fn ports(&self) -> Ports {
        let mut ports = Vec::new();
        let mut leads = HashMap::new();
        for root in &self.roots {
            self.visit(root, &mut leads, &mut ports);
        }
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Collects from a chain and those it jumps to; whether it leads to a translation.
    fn visit(&self, chain: &str, leads: &mut HashMap<String, bool>, ports: &mut Ports) -> bool {
        if let Some(known) = leads.get(chain) {
            return *known;
        }
        // Chains have no loops; a text that claims one ends here.
        leads.insert(chain.to_owned(), false);
        let mut any = false;
        for rule in self.rules.get(chain).into_iter().flatten() {
            let mut translates = rule.translates;
            for target in &rule.jumps {
                translates |= self.visit(target, leads, ports);
            }
            if translates {
                ports.extend_from_slice(&rule.ports);
            }
            any |= translates;
        }
        leads.insert(chain.to_owned(), any);
        any
    }
}

/// Ports in the output of `iptables-save` (the `nat` table, from `PREROUTING` on).
pub fn iptables_ports(text: &str) -> Ports {
    let mut chains = Chains {
        roots: vec!["PREROUTING".into()],
        ..Chains::default()
    };
    let mut nat = false;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            nat = table.trim() == "nat";
        }
        let Some(rest) = line.strip_prefix("-A ").filter(|_| nat) else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let Some(chain) = words.next() else { continue };
        let rule = iptables_rule(words);
        chains.rules.entry(chain.to_owned()).or_default().push(rule);
    }
    chains.ports()
}

fn iptables_rule<'a>(mut words: impl Iterator<Item = &'a str>) -> Rule {
    let mut rule = Rule::default();
    let mut protocols = Protocols::of("th");
    let mut ranges = Vec::new();
    let mut negated = false;
    while let Some(word) = words.next() {
        match word {
            "-p" | "--protocol" => protocols = Protocols::of(words.next().unwrap_or("")),
            "--dport" | "--dports" | "--destination-port" | "--destination-ports" => {
                let list = words.next().unwrap_or("");
                if !negated {
                    ranges.extend(list.split(',').filter_map(|item| {
                        let (first, last) = item.split_once(':').unwrap_or((item, item));
                        range(first.parse().ok()?, last.parse().ok()?)
                    }));
                }
            }
            "-j" | "--jump" | "-g" | "--goto" => match words.next().unwrap_or("") {
                "DNAT" | "REDIRECT" => rule.translates = true,
                target => rule.jumps.push(target.to_owned()),
            },
            _ => {}
        }
        negated = word == "!";
    }
    rule.ports = protocols.with(&ranges);
    rule
}

/// Ports in the output of `nft -j list ruleset` (from `nat` chains of the `prerouting` hook on).
pub fn nft_ports(text: &str) -> Ports {
    let Ok(document) = serde_json::from_str::<Value>(text) else {
        return Vec::new();
    };
    let objects = document["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let mut chains = Chains::default();
    let mut elements = HashMap::new();
    for kind in ["set", "map"] {
        for object in objects
            .iter()
            .map(|object| &object[kind])
            .filter(|one| one.is_object())
        {
            elements.insert(full_name(object, &object["name"]), &object["elem"]);
        }
    }
    for object in objects {
        let chain = &object["chain"];
        if chain["type"] == "nat" && chain["hook"] == "prerouting" {
            chains.roots.push(full_name(chain, &chain["name"]));
        }
        let rule = &object["rule"];
        if let Some(expressions) = rule["expr"].as_array() {
            let mut reader = NftRule {
                object: rule,
                elements: &elements,
                rule: Rule::default(),
            };
            reader.read(expressions);
            let name = full_name(rule, &rule["chain"]);
            chains.rules.entry(name).or_default().push(reader.rule);
        }
    }
    chains.ports()
}

/// A name within its table: nft's names are unique only there.
fn full_name(object: &Value, name: &Value) -> String {
    let part = |value: &Value| value.as_str().unwrap_or("").to_owned();
    [part(&object["family"]), part(&object["table"]), part(name)].join("/")
}

struct NftRule<'a> {
    object: &'a Value,
    elements: &'a HashMap<String, &'a Value>,
    rule: Rule,
}

impl NftRule<'_> {
    fn read(&mut self, expressions: &[Value]) {
        let mut protocols = None;
        for expression in expressions {
            let condition = &expression["match"];
            let equal = condition["op"] == "==" || condition["op"] == "in";
            if equal && condition["left"]["meta"]["key"] == "l4proto" {
                protocols = condition["right"].as_str().map(Protocols::of);
            }
            if equal {
                self.ports(&condition["left"], &condition["right"], protocols);
            }
            for name in ["dnat", "redirect"] {
                let Some(statement) = expression.get(name) else {
                    continue;
                };
                self.rule.translates = true;
                for place in ["addr", "port"] {
                    let map = &statement[place]["map"];
                    self.ports(&map["key"], &map["data"], protocols);
                }
            }
            let map = &expression["vmap"];
            self.ports(&map["key"], &map["data"], protocols);
            self.jumps(&map["data"]);
            self.jumps(expression);
        }
    }

    /// Adds the ports in `values` if `key` is a destination port.
    fn ports(&mut self, key: &Value, values: &Value, protocols: Option<Protocols>) {
        let payload = &key["payload"];
        if payload["field"] != "dport" {
            return;
        }
        let named = Protocols::of(payload["protocol"].as_str().unwrap_or(""));
        let protocols = protocols
            .filter(|_| payload["protocol"] == "th")
            .unwrap_or(named);
        let mut ranges = Vec::new();
        self.ranges(values, &mut ranges, 0);
        self.rule.ports.extend(protocols.with(&ranges));
    }

    /// Ports in a value: a number, a range, a set, the keys of a map, or a named set or map.
    fn ranges(&self, value: &Value, ranges: &mut Vec<PortRange>, depth: u32) {
        let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
        if depth > 4 {
            return;
        }
        if let Some(one) = port(value) {
            ranges.extend(range(one, one));
        } else if let Some(name) = value.as_str().and_then(|name| name.strip_prefix('@')) {
            let name = full_name(self.object, &Value::from(name));
            if let Some(list) = self.elements.get(&name) {
                self.list(list, ranges, depth);
            }
        } else if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
            if let (Some(first), Some(last)) = (port(first), port(last)) {
                ranges.extend(range(first, last));
            }
        } else if value["set"].is_array() {
            self.list(&value["set"], ranges, depth);
        } else if value["elem"]["val"] != Value::Null {
            self.ranges(&value["elem"]["val"], ranges, depth + 1);
        }
    }

    fn list(&self, list: &Value, ranges: &mut Vec<PortRange>, depth: u32) {
        for item in list.as_array().into_iter().flatten() {
            // An element of a map is a pair of key and value.
            let key = item
                .as_array()
                .and_then(|pair| pair.first())
                .unwrap_or(item);
            self.ranges(key, ranges, depth + 1);
        }
    }

    /// Adds the targets of all jumps in a value.
    fn jumps(&mut self, value: &Value) {
        let mut targets = HashSet::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            match value {
                Value::Array(items) => open.extend(items),
                Value::Object(items) => {
                    for kind in ["jump", "goto"] {
                        if items
                            .get(kind)
                            .is_some_and(|jump| jump["target"].is_string())
                        {
                            targets.insert(full_name(self.object, &value[kind]["target"]));
                        }
                    }
                    open.extend(items.values());
                }
                Value::String(name) => {
                    let name = name.strip_prefix('@').map(Value::from);
                    let list =
                        name.and_then(|name| self.elements.get(&full_name(self.object, &name)));
                    open.extend(list.filter(|list| list.to_string().contains("\"target\"")));
                }
                _ => {}
            }
        }
        self.rule.jumps.extend(targets);
    }
}

/// Which of TCP and UDP a rule is about.
#[derive(Clone, Copy)]
struct Protocols(&'static [Protocol]);

impl Protocols {
    /// By name; `th` (any transport header) means both.
    fn of(name: &str) -> Protocols {
        Protocols(match name {
            "tcp" | "6" => &[Protocol::Tcp],
            "udp" | "17" => &[Protocol::Udp],
            "th" | "all" => &[Protocol::Tcp, Protocol::Udp],
            _ => &[],
        })
    }

    fn with(self, ranges: &[PortRange]) -> Ports {
        let both = self
            .0
            .iter()
            .flat_map(|protocol| ranges.iter().map(|range| (*protocol, *range)));
        both.collect()
    }
}

fn range(first: u16, last: u16) -> Option<PortRange> {
    (first <= last).then_some(PortRange { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(first: u16, last: u16) -> (Protocol, PortRange) {
        (Protocol::Tcp, PortRange { first, last })
    }

    fn udp(first: u16, last: u16) -> (Protocol, PortRange) {
        (Protocol::Udp, PortRange { first, last })
    }

    #[test]
    fn iptables_rules() {
        let text = "\
*filter
-A INPUT -p tcp -m tcp --dport 22 -j DNAT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:HOSTPORTS - [0:0]
-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.5:80
-A PREROUTING -p udp -m udp --dport 500:510 -j REDIRECT --to-ports 53
-A PREROUTING ! -i cni0 -m comment --comment \"host ports\" -j HOSTPORTS
-A PREROUTING -p tcp -m tcp ! --dport 99 -j DNAT --to-destination 10.0.0.9
-A PREROUTING -p tcp -m tcp --dport 7 -j RETURN
-A PREROUTING -p tcp -m tcp --dport 8 -j MARKED
-A MARKED -j MARK --set-xmark 0x4000/0x4000
-A HOSTPORTS -p tcp -m multiport --dports 80,443 -j PORT-A
-A PORT-A -d 192.0.2.1/32 -j DNAT --to-destination 10.42.0.8
-A UNUSED -p tcp --dport 4444 -j DNAT --to-destination 10.42.0.8
-A POSTROUTING -p tcp --dport 5555 -j MASQUERADE
COMMIT
";
        let wanted = [tcp(80, 80), tcp(443, 443), tcp(8080, 8080), udp(500, 510)];
        assert_eq!(iptables_ports(text), wanted);
        assert_eq!(iptables_ports(""), []);
        assert_eq!(
            iptables_ports("*nat\n-A\n-A PREROUTING --dport\n-A PREROUTING -j"),
            []
        );
        let circle = "*nat\n-A PREROUTING -j A\n-A A -j B\n-A B -j A\n";
        assert_eq!(iptables_ports(circle), []);
    }

    #[test]
    fn nft_rules() {
        let text = r#"{"nftables": [
          {"metainfo": {"json_schema_version": 1}},
          {"table": {"family": "ip", "name": "n"}},
          {"chain": {"family": "ip", "table": "n", "name": "pre", "type": "nat",
                     "hook": "prerouting", "prio": -100, "policy": "accept"}},
          {"chain": {"family": "ip", "table": "n", "name": "sub"}},
          {"chain": {"family": "ip", "table": "f", "name": "pre", "type": "filter",
                     "hook": "prerouting"}},
          {"map": {"family": "ip", "table": "n", "name": "byport", "type": "inet_service",
                   "map": "ipv4_addr", "elem": [[9000, "10.0.0.1"], [9001, "10.0.0.2"]]}},
          {"rule": {"family": "ip", "table": "n", "chain": "pre", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                       "right": 8080}},
            {"dnat": {"addr": "10.0.0.5", "port": 80}}]}},
          {"rule": {"family": "ip", "table": "n", "chain": "pre", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}},
                       "right": {"set": [53, {"range": [500, 510]}]}}},
            {"redirect": {"port": 5353}}]}},
          {"rule": {"family": "ip", "table": "n", "chain": "pre", "expr": [
            {"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}},
                      "data": {"set": [[443, {"jump": {"target": "sub"}}]]}}}]}},
          {"rule": {"family": "ip", "table": "n", "chain": "sub", "expr": [
            {"dnat": {"addr": "10.0.0.5"}}]}},
          {"rule": {"family": "ip", "table": "n", "chain": "pre", "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}},
            {"dnat": {"addr": {"map": {"key": {"payload": {"protocol": "th", "field": "dport"}},
                                       "data": "@byport"}}}}]}},
          {"rule": {"family": "ip", "table": "n", "chain": "pre", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                       "right": 7}},
            {"accept": null}]}},
          {"rule": {"family": "ip", "table": "n", "chain": "pre", "expr": [
            {"match": {"op": "!=", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                       "right": 8}},
            {"dnat": {"addr": "10.0.0.5"}}]}},
          {"rule": {"family": "ip", "table": "f", "chain": "pre", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                       "right": 9}},
            {"redirect": null}]}}
        ]}"#;
        let wanted = [
            tcp(443, 443),
            tcp(8080, 8080),
            tcp(9000, 9000),
            tcp(9001, 9001),
            udp(53, 53),
            udp(500, 510),
        ];
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        assert_eq!(nft_ports(text), wanted);
        assert_eq!(nft_ports(""), []);
        assert_eq!(nft_ports("{\"nftables\": 3}"), []);
    }
}
