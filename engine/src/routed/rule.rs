//! The policy rules of routed mode: which packets are routed into the TAP, which go the kernel's own
//! way, and which are dropped.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, RuleAddRequest};

use super::{PROTOCOL, RANKS, RoutedPlan, TABLE_MAIN, numbers};

/// One policy rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Below [`RANKS`]: the lowest is asked first.
    rank: u32,
    /// Packets that came in here only.
    by: Option<String>,
    pub from: Ipv4Net,
    pub to: Ipv4Net,
    /// The table that knows the way; `None`: dropped.
    table: Option<u32>,
}

/// The rules of a plan. What the steering program drops on an external interface is dropped here, too:
/// internal sources (not one-arm: there they are the clients), and packets straight to internal
/// addresses.
pub(super) fn rules(plan: &RoutedPlan) -> Vec<Rule> {
    let anywhere = Ipv4Net::default();
    let rule = |rank, by: Option<&String>, from, to, table| Rule {
        rank,
        by: by.cloned(),
        from,
        to,
        table,
    };
    let outside = &plan.external_name;
    let mut rules = Vec::new();
    for &inside in &plan.internal {
        // The host's own packets, from its address there.
        let host = "lo".to_owned();
        rules.push(rule(1, Some(&host), inside, anywhere, Some(TABLE_MAIN)));
        if !plan.one_arm {
            rules.push(rule(0, Some(outside), inside, anywhere, None));
        }
        for &other in plan.internal.iter().chain(&plan.bypass) {
            for (from, to) in [(inside, other), (other, inside)] {
                let direct = rule(1, None, from, to, Some(TABLE_MAIN));
                if !rules.contains(&direct) {
                    rules.push(direct);
                }
            }
        }
        rules.push(rule(2, Some(outside), anywhere, inside, None));
        let (table, _) = numbers(plan.number);
        rules.push(rule(2, None, inside, anywhere, Some(table)));
    }
    rules
}

impl Rule {
    /// One that the kernel has.
    pub fn of(message: &RuleMessage, first: u32) -> Rule {
        let net = |addr: Option<IpAddr>, len| match addr {
            Some(IpAddr::V4(addr)) => Ipv4Net::new(addr, len).unwrap_or_default(),
            _ => Ipv4Net::default(),
        };
        let mut rule = Rule {
            rank: u32::MAX,
            by: None,
            from: Ipv4Net::default(),
            to: Ipv4Net::default(),
            table: None,
        };
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.rank = priority.wrapping_sub(first),
                RuleAttribute::Iifname(name) => rule.by = Some(name.clone()),
                RuleAttribute::Source(addr) => {
                    rule.from = net(Some(*addr), message.header.src_len);
                }
                RuleAttribute::Destination(addr) => {
                    rule.to = net(Some(*addr), message.header.dst_len);
                }
                RuleAttribute::Table(id) => table = *id,
                _ => {}
            }
        }
        rule.table = (message.header.action == RuleAction::ToTable).then_some(table);
        rule
    }

    pub fn request(&self, handle: &Handle, first: u32) -> RuleAddRequest<Ipv4Addr> {
        let mut request = handle.rule().add().v4().priority(first + self.rank);
        request = match self.table {
            Some(table) => request.table_id(table).action(RuleAction::ToTable),
            None => request.action(RuleAction::Blackhole),
        };
        if let Some(by) = &self.by {
            request = request.input_interface(by);
        }
        if self.from.prefix_len() > 0 {
            request = request.source_prefix(self.from.network(), self.from.prefix_len());
        }
        if self.to.prefix_len() > 0 {
            request = request.destination_prefix(self.to.network(), self.to.prefix_len());
        }
        let protocol = RuleAttribute::Protocol(PROTOCOL);
        request.message_mut().attributes.push(protocol);
        request
    }
}

/// Is it one of the instance whose priorities begin at `first`?
pub(super) fn is_ours(rule: &RuleMessage, first: u32) -> bool {
    let has = |wanted: &dyn Fn(&RuleAttribute) -> bool| rule.attributes.iter().any(wanted);
    has(&|one| matches!(one, RuleAttribute::Protocol(protocol) if *protocol == PROTOCOL))
        && has(
            &|one| matches!(one, RuleAttribute::Priority(p) if (first..first + RANKS).contains(p)),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{INSTANCES_MAX, Number};
    use rtnetlink::packet_route::route::RouteProtocol;

    #[test]
    fn only_rules_of_the_instance_are_its_own() {
        let (_, priority) = numbers(Number::of(7));
        let rule = |protocol, priority| {
            let mut rule = RuleMessage::default();
            rule.attributes = vec![
                RuleAttribute::Protocol(protocol),
                RuleAttribute::Priority(priority),
            ];
            rule
        };
        assert!(is_ours(&rule(PROTOCOL, priority), priority));
        assert!(is_ours(&rule(PROTOCOL, priority + 1), priority));
        assert!(!is_ours(&rule(PROTOCOL, priority + RANKS), priority));
        assert!(!is_ours(&rule(RouteProtocol::Static, priority), priority));
    }

    #[test]
    fn internal_sources_are_dropped_outside_unless_clients_are_there() {
        let plan = |one_arm| RoutedPlan {
            tap: "egret0".to_owned(),
            number: Number::of(7),
            mtu: 1500,
            queues: 1,
            internal: vec!["10.0.0.0/24".parse().unwrap()],
            bypass: vec!["10.42.0.0/16".parse().unwrap()],
            pool: vec![],
            external: 2,
            external_name: "eth0".to_owned(),
            one_arm,
        };
        let told = |one_arm| -> Vec<String> {
            let tell = |rule: &Rule| {
                let by = rule.by.as_deref().unwrap_or("any");
                let table = rule.table.map_or("drop", |table| match table {
                    TABLE_MAIN => "main",
                    _ => "own",
                });
                format!("{} {by} {} {} {table}", rule.rank, rule.from, rule.to)
            };
            rules(&plan(one_arm)).iter().map(tell).collect()
        };
        let one_arm = [
            "1 lo 10.0.0.0/24 0.0.0.0/0 main",
            "1 any 10.0.0.0/24 10.0.0.0/24 main",
            "1 any 10.0.0.0/24 10.42.0.0/16 main",
            "1 any 10.42.0.0/16 10.0.0.0/24 main",
            "2 eth0 0.0.0.0/0 10.0.0.0/24 drop",
            "2 any 10.0.0.0/24 0.0.0.0/0 own",
        ];
        assert_eq!(told(true), one_arm);
        let two_arm = told(false);
        assert_eq!(two_arm[1], "0 eth0 10.0.0.0/24 0.0.0.0/0 drop");
        assert_eq!(two_arm[2..], one_arm[1..]);
    }

    #[test]
    fn priorities_come_before_those_of_the_kernel_s_tables() {
        for number in [0, 7, INSTANCES_MAX - 1] {
            let (table, priority) = numbers(Number::of(number));
            assert!(
                table > 255 && (1..32_765 - RANKS).contains(&priority),
                "{number}"
            );
        }
    }
}
