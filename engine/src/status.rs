//! What the gateway tells of itself: the answers of the control socket.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use serde_json::{Map, Value, json};
use tracing::{error, info};

use crate::clock;
use crate::confirmation::Confirmation;
use crate::control::Answer;
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
            self.confirm();
        }
    }

    fn interfaces(&self) -> Vec<Value> {
        let links = self.shared.links.load();
        let describe = |(link, rung): (&crate::link::Link, &Rung)| {
            let octets = link.mac.map(|octet| format!("{octet:02x}"));
            let refused = rung.refused.iter();
            json!({
                "name": link.name,
                "role": link.role.to_string(),
                "mac": octets.join(":"),
                "mtu": link.mtu,
                "present": link.present,
                "mode": rung.way.to_string(),
                "modes_refused": refused
                    .map(|(way, reason)| json!({ "mode": way.to_string(), "reason": reason }))
                    .collect::<Vec<_>>(),
                "self_test": rung.untested.as_deref().unwrap_or("passed"),
                "addresses": link.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        };
        let rungs = links.links.iter().zip(&self.reached.rungs);
        rungs.map(describe).collect()
    }

    fn steering(&self) -> Value {
        let steward = self.steward.borrow();
        let Some(steering) = steward.steering_ref() else {
            return Value::Null;
        };
        match steering.counters() {
            Ok(counters) => json!({
                "passed": counters.passed,
                "punted": counters.punted,
                "own": counters.own,
                "shared": counters.shared,
                "fragments": counters.fragments,
                "internal": counters.internal,
                "spoofed": counters.spoofed,
                "unserved": counters.unserved,
                "uninvited": counters.uninvited,
            }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }
}

/// The ways that an interface could not go, of all interfaces.
fn modes_refused(reached: &Reached) -> Vec<Value> {
    let one = |rung: &Rung| {
        let interface = rung.interface.clone();
        let refused = rung.refused.iter();
        let told = refused.map(move |(way, reason)| {
            json!({ "interface": interface, "mode": way.to_string(), "reason": reason })
        });
        told.collect::<Vec<_>>()
    };
    reached.rungs.iter().flat_map(one).collect()
}

/// What the sockets count, by the interface's name: frames that the kernel dropped before a worker
/// saw them, and faults. At most a second old.
pub fn sockets(total: &Snapshot, links: &Links) -> Value {
    let names = links.links.iter().map(|link| link.name.clone());
    let by_name = names.zip(&total.sockets);
    Value::Object(
        by_name
            .map(|(name, counters)| (name, json!(counters)))
            .collect(),
    )
}

impl Answer for Status<'_> {
    fn status(&self) -> Value {
        let total = Snapshot::sum(self.stats.iter().map(|stats| stats.snapshot()));
        let mut drops: Map<String, Value> = total
            .drops()
            .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
            .collect();
        // The steering program drops these before any copy is made.
        let steering = self.steering();
        if let Some(spoofed) = steering["spoofed"].as_u64().filter(|&count| count > 0) {
            let here = drops.get("spoofed").and_then(Value::as_u64).unwrap_or(0);
            drops.insert("spoofed".to_owned(), json!(here + spoofed));
        }
        let tables = self.shared.nat.totals();
        let pool = self.shared.rulebook.load();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs(),
            "confirm_within_s": self.confirmation.left(Instant::now()).map(|left| left.as_secs()),
            "mode": self.reached.mode(),
            "tun_first": self.reached.tun_first,
            "modes_refused": modes_refused(&self.reached),
            "self_test": self.reached.untested().as_deref().unwrap_or("passed"),
            "interfaces": self.interfaces(),
            "pool": pool.addresses.iter()
                .map(|own| json!({ "address": own.addr.to_string(), "kind": format!("{:?}", own.kind).to_lowercase() }))
                .collect::<Vec<_>>(),
            "sessions": tables.sessions,
            "sessions_inbound": tables.sessions_inbound,
            "sessions_half_open": tables.sessions_half_open,
            "sessions_evicted": tables.evicted,
            "sessions_max": self.shared.size.sessions_max,
            "mappings": tables.mappings,
            "ports_in_use": { "tcp": tables.ports_in_use[0], "udp": tables.ports_in_use[1], "icmp": tables.ports_in_use[2] },
            "counters": total,
            "imbalance": total.imbalance(),
            "drops": drops,
            "steering": steering,
            "sockets": sockets(&total, &self.shared.links.load()),
            "workers": self.stats.iter().map(|stats| stats.snapshot()).collect::<Vec<_>>(),
        })
    }

    fn invariants(&self) -> Box<dyn FnOnce() -> Value + Send> {
        let (shared, stats) = (Arc::clone(&self.shared), self.stats.clone());
        Box::new(move || {
            let counters: Vec<Snapshot> = stats.iter().map(|stats| stats.snapshot()).collect();
            match crate::invariants::check(&shared, &counters, clock::now()) {
                Ok(()) => json!({ "invariants": "ok" }),
                Err(why) => json!({ "invariants": why.to_string() }),
            }
        })
    }

    fn confirm(&self) -> Value {
        if !self.confirmation.give() {
            info!("asked to confirm, and there is nothing to");
            return json!({ "error": "there is nothing to confirm: the start was for good, was \
                                     confirmed already, or its time is over" });
        }
        let mut steward = self.steward.borrow_mut();
        let kept = steward.steering().map(|steering| steering.end_trial());
        match kept.unwrap_or(Ok(())) {
            Ok(()) => {
                info!("confirmed: the gateway stays");
                json!({ "confirmed": true })
            }
            Err(error) => {
                error!(%error, "confirmed, but the program cannot be kept attached: the gateway ends");
                self.failed.store(true, Ordering::Release);
                json!({ "error": format!("{error}; the gateway ends") })
            }
        }
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
        assert_eq!(nothing["eth0"]["rx_ring_full"], 0);
        set(&mut world, counted(7));
        world.pass_ms(990, 10);
        assert_eq!(told(&world), nothing, "not before a second is over");
        world.pass_ms(10, 10);
        assert_eq!(told(&world)["eth0"], json!(counted(7)));
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
