//! The start in routed mode: the kernel routes to us, so there is no steering program to attach.

use std::sync::Arc;

use tracing::warn;

use super::entrance::Entrance;
use super::{Engine, StartError, at};
use crate::config::Config;
use crate::confirmation::Confirmation;
use crate::facts;
use crate::instance::Number;
use crate::plan::Plan;
use crate::routed::{self, RoutedPlan};
use crate::steering::InstanceLock;
use crate::undo::{Change, Undo};

impl Engine {
    /// With a TAP in the place of the interfaces.
    pub(super) fn start_routed(
        config: &Config,
        outer: &Plan,
        confirmation: Arc<Confirmation>,
    ) -> Result<Engine, StartError> {
        let step = "setting up routed mode";
        let external = &outer.interfaces[usize::from(outer.external)].facts;
        let lock = InstanceLock::take(&config.instance).map_err(at(step))?;
        let number = Number::take(&config.instance).map_err(at(step))?;
        let entrance = RoutedPlan {
            tap: number.taps('r'),
            number,
            mtu: outer.mtu_min(),
            queues: outer.workers,
            internal: config.internal.iter().map(|prefix| prefix.value).collect(),
            bypass: config.bypass.iter().map(|prefix| prefix.value).collect(),
            pool: config.own_addresses().collect(),
            external: external.ifindex,
            external_name: external.name.clone(),
            one_arm: outer.interfaces.len() == 1,
        };
        let inherited = routed::stands(number).map_err(at(step))?;
        let mut undo = Undo::open(&config.instance);
        let start = |undo: &mut Undo| {
            let proxy = |&addr| Change::Proxy(external.ifindex, addr);
            let proxies: Vec<Change> = entrance.pool.iter().map(proxy).collect();
            undo.end_proxies(&proxies);
            for proxy in proxies {
                undo.add(proxy).map_err(at(step))?;
            }
            let taps = routed::open(&entrance).map_err(at(step))?;
            let config = config.through(&entrance.tap);
            let host = facts::read(&config).map_err(at("reading the interfaces"))?;
            let plan = Plan::make(&config, &host).map_err(StartError::Plan)?;
            let plan = Plan {
                workers: outer.workers,
                cpus: outer.cpus.clone(),
                problems: outer.problems.clone(),
                ..plan
            };
            let entrance = Entrance::Routed(taps, entrance.clone());
            Engine::start_at(config, host, plan, entrance, confirmation)
        };
        let instance = &config.instance;
        match start(&mut undo) {
            Ok(engine) => Ok(Engine {
                lock: Some(lock),
                ..engine
            }),
            Err(error) if inherited => {
                warn!(
                    "the rules of the dead engine before this one go on holding internal traffic \
                     back; `egret detach --instance {instance}` ends that"
                );
                Err(error)
            }
            Err(error) => {
                Undo::open(instance).end_proxies(&[]);
                if let Err(error) = routed::remove_all(number) {
                    warn!(%error, "something is left behind: `egret detach --instance {instance}`");
                }
                // It says more than that the lock's file is left.
                let _ = lock.give_back();
                Err(error)
            }
        }
    }
}
