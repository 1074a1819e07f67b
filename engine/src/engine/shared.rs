//! What all workers share: conntrack, policy, routes and links, as they are at the start.

use std::sync::Arc;

use conntrack::{Nat, TableSize};
use crossbeam_queue::ArrayQueue;

use super::entrance::Entrance;
use crate::config::Config;
use crate::control::flush::Flushes;
use crate::fragment::{FragmentLimits, FragmentTable, Identifications};
use crate::gateway::Shared;
use crate::netlink::NetworkView;
use crate::plan::Plan;
use crate::random::WorkerRandom;
use crate::route::{Forwarding, ServedInterface};
use crate::routed;
use crate::rulebook::Rulebook;
use crate::steward::links_of;

/// Next hops that a gateway knows at the same time.
const HOPS_MAX: u32 = 65_536;

/// Announcements of own addresses that wait for a worker.
const ANNOUNCEMENTS_MAX: usize = 512;

/// Puts it together around tables of this size.
pub(super) fn shared(
    config: &Config,
    plan: &Plan,
    (nat, size): (Nat<'static>, TableSize),
    forwarding: Arc<Forwarding>,
    view: &NetworkView,
) -> Arc<Shared> {
    Arc::new(Shared {
        nat,
        size,
        rulebook: Rulebook::new(plan.policy.clone(), plan.workers as usize),
        links: arc_swap::ArcSwap::from_pointee(links_of(config, plan, view)),
        forwarding,
        fragments: fragments(config),
        identifications: Identifications::new(unpredictable()),
        on_refusal: config.icmp.on_refusal,
        unsolicited: config.icmp.unsolicited,
        midstream: config.nat.midstream,
        flushes: Flushes::default(),
        announcements: ArrayQueue::new(ANNOUNCEMENTS_MAX),
    })
}

/// The view of routes and neighbours, empty yet.
pub(super) fn forwarding(plan: &Plan, entrance: &Entrance) -> Arc<Forwarding> {
    let served = plan.interfaces.iter().map(|planned| ServedInterface {
        name: planned.facts.name.clone(),
        ifindex: planned.facts.ifindex,
    });
    let generation = unpredictable() as u32;
    let forwarding = Forwarding::new(served.collect(), HOPS_MAX, generation);
    Arc::new(match entrance {
        Entrance::Steered(_) => forwarding,
        Entrance::Routed(..) => forwarding.by(routed::GATEWAY),
    })
}

fn fragments(config: &Config) -> FragmentTable {
    let limits = FragmentLimits {
        timeout_ms: config.timers.fragment_timeout_ms,
        ..FragmentLimits::default()
    };
    FragmentTable::new(&limits, unpredictable())
}

fn unpredictable() -> u64 {
    conntrack::Random::next_u64(&mut WorkerRandom::from_system())
}
