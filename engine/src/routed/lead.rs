//! What of the way into the TAP hangs on the external interface, kept in step with it. A rule's `iif`
//! is a name to the kernel, which lets the rule sleep once the interface has another one; proxy
//! entries go when it is brought down, or goes itself.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::info;

use super::{RoutedError, RoutedPlan, settle_proxies, settle_rules, with_netlink};
use crate::netlink::NetworkView;
use crate::undo::{Change, Undo};

/// The way into the TAP. Lives on the control thread.
#[derive(Debug)]
pub struct Lead {
    plan: RoutedPlan,
    undo: Arc<Mutex<Undo>>,
}

impl Lead {
    /// Of what was set up by this plan. New changes are written down in `undo`.
    pub fn new(plan: RoutedPlan, undo: Arc<Mutex<Undo>>) -> Lead {
        Lead { plan, undo }
    }

    /// Sets up again what this view of the host asks for: the external interface is found by its index,
    /// then by its name. Idempotent; nothing while there is no such interface.
    ///
    /// # Errors
    /// The kernel's refusal, or the change cannot be written down.
    pub fn follow(&mut self, view: &NetworkView) -> Result<(), RoutedError> {
        let plan = &mut self.plan;
        let by_index = view
            .interfaces
            .iter()
            .find(|it| it.ifindex == plan.external);
        let by_name = || {
            view.interfaces
                .iter()
                .find(|it| it.name == plan.external_name)
        };
        let Some(there) = by_index.or_else(by_name) else {
            return Ok(());
        };
        if there.name != plan.external_name {
            let (from, to) = (&plan.external_name, &there.name);
            info!(%from, %to, "the external interface has another name");
            plan.external_name.clone_from(&there.name);
        }
        if there.ifindex != plan.external {
            info!(interface = %there.name, "the external interface is another one of its name");
            plan.external = there.ifindex;
            let mut undo = self.undo.lock().unwrap_or_else(PoisonError::into_inner);
            for &addr in &plan.pool {
                let proxy = Change::Proxy(plan.external, addr);
                undo.add(proxy).map_err(|error| RoutedError::Route {
                    step: format!("writing down that ARP for {addr} is answered"),
                    why: error.to_string(),
                })?;
            }
        }
        let is_up = there.up;
        // Beside the control thread's own runtime, which must not wait for another.
        let settle = || {
            with_netlink(async |handle| {
                settle_rules(handle, plan).await?;
                match is_up {
                    true => settle_proxies(handle, plan).await,
                    // The kernel drops them again until then.
                    false => Ok(()),
                }
            })
        };
        std::thread::scope(|scope| scope.spawn(settle).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
