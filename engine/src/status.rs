//! What the gateway tells of itself: the answers of the control socket.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use conntrack::Time;
use crossbeam_utils::CachePadded;
use tracing::{error, info};

use crate::clock;
use crate::confirmation::Confirmation;
use crate::control::Source;
use crate::control::answer::{ErrorCode, Refusal};
use crate::control::report::{
    Interface, ModeRefused, PoolAddress, PortsInUse, Soundness, Status as Report, SteeringStatus,
    Unread, WayRefused,
};
use crate::device::SocketCounters;
use crate::gateway::Shared;
use crate::ladder::{Reached, Rung};
use crate::link::Links;
use crate::stats::{Snapshot, WorkerStats};
use crate::steward::Steward;

/// Everything that answers are made of.
pub struct Status<'a> {
    /// How frames are exchanged.
    pub reached: Reached,
    /// Conntrack and the snapshots in force.
    pub shared: Arc<Shared>,
    /// The workers' counters.
    pub stats: Vec<Arc<CachePadded<WorkerStats>>>,
    /// When the engine was started.
    pub started: Instant,
    /// The steering program's owner.
    pub steward: &'a RefCell<Steward>,
    /// Whether the start is for good.
    pub confirmation: Arc<Confirmation>,
    /// Set when the gateway cannot go on.
    pub failed: Arc<AtomicBool>,
}

impl Status<'_> {
    /// Confirms the start as often as somebody in this process asks; what comes of it is logged.
    pub(crate) async fn confirm_when_asked(&self) {
        loop {
            self.confirmation.asked().await;
            // What comes of it is logged.
            let _ = self.confirm();
        }
    }

    fn interfaces(&self) -> Vec<Interface> {
        let links = self.shared.links.load();
        let describe = |(link, rung): (&crate::link::Link, &Rung)| {
            let octets = link.mac.map(|octet| format!("{octet:02x}"));
            let refused = rung.refused.iter().map(|(way, reason)| WayRefused {
                mode: way.to_string(),
                reason: reason.clone(),
            });
            Interface {
                name: link.name.clone(),
                role: link.role.to_string(),
                mac: octets.join(":"),
                mtu: link.mtu,
                present: link.present,
                mode: rung.way.to_string(),
                modes_refused: refused.collect(),
                self_test: rung.untested.as_deref().unwrap_or("passed").to_owned(),
                addresses: link.addresses.iter().map(ToString::to_string).collect(),
            }
        };
        let rungs = links.links.iter().zip(&self.reached.rungs);
        rungs.map(describe).collect()
    }

    fn steering(&self) -> Option<SteeringStatus> {
        let steward = self.steward.borrow();
        let counters = steward.steering_ref()?.counters();
        Some(match counters {
            Ok(counters) => SteeringStatus::Counts(counters),
            Err(error) => SteeringStatus::Unread(Unread {
                error: error.to_string(),
            }),
        })
    }
}

/// The ways that an interface could not go, of all interfaces.
fn modes_refused(reached: &Reached) -> Vec<ModeRefused> {
    let of = |rung: &'_ Rung| -> Vec<ModeRefused> {
        let refused = rung.refused.iter().map(|(way, reason)| ModeRefused {
            interface: rung.interface.clone(),
            mode: way.to_string(),
            reason: reason.clone(),
        });
        refused.collect()
    };
    reached.rungs.iter().flat_map(of).collect()
}

/// What the sockets count, by the interface's name: frames that the kernel dropped before a worker
/// saw them, and faults. At most a second old.
pub fn sockets(total: &Snapshot, links: &Links) -> BTreeMap<String, SocketCounters> {
    let names = links.links.iter().map(|link| link.name.clone());
    names.zip(total.sockets.iter().copied()).collect()
}

/// What a gateway tells of itself, made of what there is.
pub fn report(
    shared: &Shared,
    workers: Vec<Snapshot>,
    reached: &Reached,
    interfaces: Vec<Interface>,
    steering: Option<SteeringStatus>,
) -> Report {
    let total = Snapshot::sum(workers.iter().cloned());
    let drops = total.drops();
    let mut drops: BTreeMap<String, u64> = drops
        .map(|(reason, count)| (reason.name().to_owned(), count))
        .collect();
    // The steering program drops these before any copy is made.
    if let Some(SteeringStatus::Counts(counts)) = &steering
        && counts.spoofed > 0
    {
        *drops.entry("spoofed".to_owned()).or_default() += counts.spoofed;
    }
    let policy = shared.rulebook.load();
    let pool = policy.addresses.iter().map(|own| PoolAddress {
        address: own.addr.to_string(),
        kind: format!("{:?}", own.kind).to_lowercase(),
    });
    let tables = shared.nat.totals();
    let [tcp, udp, icmp] = tables.ports_in_use;
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: 0,
        confirm_within_s: None,
        mode: reached.mode(),
        tun_first: reached.tun_first.clone(),
        modes_refused: modes_refused(reached),
        self_test: reached.untested().unwrap_or_else(|| "passed".to_owned()),
        interfaces,
        pool: pool.collect(),
        sessions: tables.sessions,
        sessions_inbound: tables.sessions_inbound,
        sessions_half_open: tables.sessions_half_open,
        sessions_evicted: tables.evicted,
        sessions_max: shared.size.sessions_max,
        mappings: tables.mappings,
        ports_in_use: PortsInUse { tcp, udp, icmp },
        imbalance: total.imbalance(),
        drops,
        steering,
        sockets: sockets(&total, &shared.links.load()),
        workers,
        counters: total,
    }
}

impl Source for Status<'_> {
    fn status(&self) -> Report {
        let workers = self.stats.iter().map(|stats| stats.snapshot()).collect();
        let (interfaces, steering) = (self.interfaces(), self.steering());
        let left = self.confirmation.left(Instant::now());
        Report {
            uptime_s: self.started.elapsed().as_secs(),
            confirm_within_s: left.map(|left| left.as_secs()),
            ..report(&self.shared, workers, &self.reached, interfaces, steering)
        }
    }

    fn invariants(&self) -> Box<dyn FnOnce() -> Soundness + Send> {
        let (shared, stats) = (Arc::clone(&self.shared), self.stats.clone());
        Box::new(move || {
            let counters: Vec<Snapshot> = stats.iter().map(|stats| stats.snapshot()).collect();
            let checked = crate::invariants::check(&shared, &counters, clock::now());
            let invariants = checked.map_or_else(|why| why.to_string(), |()| "ok".to_owned());
            Soundness { invariants }
        })
    }

    fn confirm(&self) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::new(ErrorCode::Refused, why));
        if !self.confirmation.give() {
            info!("asked to confirm, and there is nothing to");
            return refuse(
                "there is nothing to confirm: the start was for good, was confirmed already, or \
                 its time is over"
                    .to_owned(),
            );
        }
        let mut steward = self.steward.borrow_mut();
        let kept = steward.steering().map(|steering| steering.end_trial());
        match kept.unwrap_or(Ok(())) {
            Ok(()) => {
                info!("confirmed: the gateway stays");
                Ok(())
            }
            Err(error) => {
                error!(%error, "confirmed, but the program cannot be kept attached: the gateway ends");
                self.failed.store(true, Ordering::Release);
                refuse(format!("{error}; the gateway ends"))
            }
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn now(&self) -> Time {
        clock::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SocketCounters;
    use crate::world::World;

    #[test]
    fn what_sockets_count_is_told_by_interface_and_at_most_once_a_second() {
        let text = "interface = \"eth0\"\ninternal = \"10.0.0.0/24\"\n";
        let mut world = World::new(text).unwrap();
        let counted = |rx_ring_full| SocketCounters {
            rx_ring_full,
            wake_errors: 2,
            ..SocketCounters::default()
        };
        let set = |world: &mut World, counters| {
            let device = world.worker(0).device().inner_mut();
            device.set_socket_counters(0, counters);
        };
        let told = |world: &World| sockets(&world.snapshot(), &world.shared().links.load());
        // The first round looks at once.
        world.pass_ms(10, 10);
        let nothing = told(&world);
        assert_eq!(nothing["eth0"].rx_ring_full, 0);
        set(&mut world, counted(7));
        world.pass_ms(990, 10);
        assert_eq!(told(&world), nothing, "not before a second is over");
        world.pass_ms(10, 10);
        assert_eq!(told(&world)["eth0"], counted(7));
    }

    #[test]
    fn workers_add_up_and_every_number_has_its_place() {
        let words = std::array::from_fn(|at| at as u64 + 1);
        let counters = SocketCounters::from_words(words);
        assert_eq!(counters.to_words(), words);
        assert_eq!((counters.rx_dropped, counters.wake_errors), (1, 8));
        let stats = [WorkerStats::new(1), WorkerStats::new(1)];
        stats
            .iter()
            .for_each(|stats| stats.sockets[0].publish(counters));
        let total = Snapshot::sum(stats.iter().map(|stats| stats.snapshot()));
        assert_eq!(total.sockets[0].to_words(), words.map(|word| 2 * word));
        assert_eq!(total.imbalance(), 0);
    }
}
