//! Keeps what the packet path is told in step with the host: links, policy and steering follow the
//! interfaces and addresses of the network namespace. Lives on the control thread.

use std::net::Ipv4Addr;
use std::sync::Arc;

use conntrack::{AddressKind, Policy};
use ipnet::Ipv4Net;
use tracing::{error, info, warn};

use crate::config::{Config, Problem};
use crate::facts;
use crate::gateway::Shared;
use crate::host::HostPorts;
use crate::link::{Link, Links};
use crate::netlink::NetworkView;
use crate::plan::{HostFacts, Plan, Slots, policy_for, port_clashes};
use crate::presence::Presence;
use crate::routed::Lead;
use crate::steering::{SteeredAddress, SteeredInterface, Steering, SteeringError};

/// The served interfaces as they are in this view. An interface that vanished keeps its last facts.
pub fn links_of(config: &Config, plan: &Plan, view: &NetworkView) -> Links {
    let links = plan.interfaces.iter().map(|planned| {
        let facts = view
            .interfaces
            .iter()
            .find(|facts| facts.ifindex == planned.facts.ifindex);
        Link {
            name: planned.facts.name.clone(),
            role: planned.role,
            mac: facts
                .and_then(|facts| facts.mac)
                .or(planned.facts.mac)
                .unwrap_or_default(),
            mtu: u16::try_from(facts.map_or(planned.facts.mtu, |facts| facts.mtu))
                .unwrap_or(u16::MAX),
            addresses: facts
                .map(|facts| facts.addresses.clone())
                .unwrap_or_default(),
            present: facts.is_some(),
        }
    });
    Links {
        links: links.collect(),
        internal: config.internal.iter().map(|prefix| prefix.value).collect(),
    }
}

/// The host's side of the packet path's settings.
pub struct Steward {
    config: Config,
    plan: Plan,
    host: HostFacts,
    slots: Slots,
    /// Clashes of ports that were told.
    clashes: Vec<Problem>,
    /// `None`: the kernel's routes steer.
    steering: Option<Steering>,
    /// In routed mode: the way into the TAP.
    lead: Option<Lead>,
    shared: Arc<Shared>,
    presence: Presence,
}

impl Steward {
    /// A steward that has told the steering program everything that does not change.
    pub fn new(
        config: Config,
        plan: Plan,
        host: HostFacts,
        mut steering: Option<Steering>,
        shared: Arc<Shared>,
    ) -> Result<Steward, SteeringError> {
        let prefixes = |given: &[crate::config::At<Ipv4Net>]| -> Vec<Ipv4Net> {
            given.iter().map(|prefix| prefix.value).collect()
        };
        if let Some(steering) = &mut steering {
            steering.set_internals(&prefixes(&config.internal))?;
            steering.set_bypasses(&prefixes(&config.bypass))?;
        }
        let slots = plan.slots.clone();
        let clashes = port_clashes(&config, &host, plan.shared_address);
        let served = plan.interfaces.iter();
        let presence = Presence::new(served.map(|planned| {
            let facts = &planned.facts;
            (facts.name.clone(), facts.ifindex, planned.role)
        }));
        Ok(Steward {
            clashes,
            config,
            plan,
            host,
            slots,
            steering,
            lead: None,
            shared,
            presence,
        })
    }

    /// Keeps the way into the TAP in step with the host, too.
    #[must_use]
    pub fn leading(self, lead: Lead) -> Steward {
        Steward {
            lead: Some(lead),
            ..self
        }
    }

    /// The steering program; `None` where the kernel's routes steer.
    pub fn steering(&mut self) -> Option<&mut Steering> {
        self.steering.as_mut()
    }

    /// The steering program, to read.
    pub fn steering_ref(&self) -> Option<&Steering> {
        self.steering.as_ref()
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The plan that the engine was started by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes up the host's ports as they are now: what it uses of a shared address leaves the pool
    /// with the next [`Steward::follow`]. Mappings that have such a port keep it to their end. Tells
    /// of new clashes with ports that the configuration names.
    pub fn take_up_ports(&mut self, ports: &HostPorts) {
        facts::put_ports(&mut self.host, ports);
        let shared = self.shared.rulebook.load();
        let shared = shared.addresses.iter();
        let shared = shared.filter(|own| own.kind == AddressKind::Shared);
        let shared = shared.map(|own| own.addr).next();
        let clashes = port_clashes(&self.config, &self.host, shared);
        for clash in clashes.iter().filter(|clash| !self.clashes.contains(clash)) {
            warn!(why = clash.why, fix = clash.fix, "{}", clash.what);
        }
        self.clashes = clashes;
    }

    /// Tells the packet path what this view says. Idempotent.
    pub fn follow(&mut self, view: &NetworkView) -> Result<(), SteeringError> {
        let events = self.presence.follow(view);
        self.presence.tell(&events);
        if let Some(lead) = &mut self.lead
            && let Err(error) = lead.follow(view)
        {
            error!(%error, "packets from outside to inside may pass by; tried again at the next change");
        }
        let mut links = links_of(&self.config, &self.plan, view);
        for (number, link) in links.links.iter_mut().enumerate() {
            link.present = self.presence.is_present(number);
        }
        let steered = self.steered(&links);
        if let Some(steering) = &mut self.steering {
            steering.set_interfaces(&steered)?;
            steering.set_locals(&view.locals)?;
        }
        if links != **self.shared.links.load() {
            self.shared.links.store(Arc::new(links));
        }
        let policy = policy_for(
            &self.config,
            &self.plan.translation,
            self.shared_address(view),
            &self.host,
            &mut self.slots,
        );
        let before = Arc::clone(&self.shared.rulebook.load());
        if policy == *before {
            return self.steer(&steered_addresses(&policy));
        }
        announce_change(&before, &policy);
        // New addresses are steered before anything is mapped onto them, old ones until nothing
        // more is. What comes to those afterwards is no longer ours, though their sessions end only
        // in the slices that follow.
        let both: Vec<SteeredAddress> = steered_addresses(&policy)
            .into_iter()
            .chain(steered_addresses(&before).into_iter().filter(|old| {
                policy
                    .addresses
                    .iter()
                    .all(|new| new.slot != old.slot && new.addr != old.addr)
            }))
            .collect();
        self.steer(&both)?;
        self.shared.rulebook.publish(policy.clone());
        self.steer(&steered_addresses(&policy))
    }

    fn steer(&mut self, addresses: &[SteeredAddress]) -> Result<(), SteeringError> {
        match &mut self.steering {
            Some(steering) => steering.set_externals(addresses),
            None => Ok(()),
        }
    }

    /// Looks whether the kernel still serves the sockets: `wake_errors` are the wake-ups that have
    /// failed so far, by interface number. Called about once a second.
    pub fn look(&mut self, wake_errors: impl IntoIterator<Item = u64>) {
        let events = self.presence.look(wake_errors);
        self.presence.tell(&events);
    }

    fn steered(&self, links: &Links) -> Vec<SteeredInterface> {
        let planned = self.plan.interfaces.iter().zip(&links.links);
        planned
            .map(|(planned, link)| SteeredInterface {
                ifindex: planned.facts.ifindex,
                mac: link.mac,
                internal: link.role.is_internal(),
                external: link.role.is_external(),
            })
            .collect()
    }

    /// The external interface's own address: the one in force while it is still there, else the
    /// first global one outside the internal prefixes.
    fn shared_address(&self, view: &NetworkView) -> Option<Ipv4Addr> {
        let external = &self.plan.interfaces[usize::from(self.plan.external)];
        let present = view.addresses(external.facts.ifindex);
        let policy = self.shared.rulebook.load();
        let current = policy
            .addresses
            .iter()
            .find(|own| own.kind == AddressKind::Shared);
        if let Some(current) = current
            && present.contains(&current.addr)
        {
            return Some(current.addr);
        }
        let usable = |addr: &&Ipv4Addr| !self.config.is_internal(**addr) && !addr.is_loopback();
        let global = present
            .iter()
            .filter(usable)
            .find(|addr| !addr.is_link_local());
        global.or_else(|| present.iter().find(usable)).copied()
    }
}

fn steered_addresses(policy: &Policy) -> Vec<SteeredAddress> {
    let steered = |own: &conntrack::ExternalAddress| SteeredAddress {
        addr: own.addr,
        kind: own.kind,
        slot: own.slot,
    };
    policy.addresses.iter().map(steered).collect()
}

fn announce_change(before: &Policy, after: &Policy) {
    let lost = before
        .addresses
        .iter()
        .filter(|old| after.addresses.iter().all(|a| a.addr != old.addr));
    for old in lost {
        warn!(address = %old.addr, "external address lost: its sessions end");
    }
    let gained = after
        .addresses
        .iter()
        .filter(|new| before.addresses.iter().all(|a| a.addr != new.addr));
    for new in gained {
        info!(address = %new.addr, kind = ?new.kind, "external address gained");
    }
}
