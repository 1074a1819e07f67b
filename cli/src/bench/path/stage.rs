//! Where the contenders run: a client, a gateway and a server, each a namespace, two veth pairs.
//!
//! ```text
//! client eth0 ── inside  gateway  outside ── eth0 server
//! 10.77.0.2   10.77.0.1          192.0.2.2   192.0.2.1
//! ```

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use engine::device::sys::ethtool::{self, Offload};
use ipnet::Ipv4Net;

use super::pin;
use crate::lab::link::{End, Wire, connect};
use crate::lab::owner::Owner;
use crate::lab::plan::{ANYWHERE, with_length};
use crate::lab::{LabError, Namespace};

/// Begins the names of the namespaces; leftovers are found by it.
pub const PREFIX: &str = "egret-path";
/// The prefix that clients have.
pub const INTERNAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 16);
/// The client, who is also the router to all other internal addresses.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The gateway's internal address.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The gateway's external address: what everything is translated to.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The server, who is also the router to everything outside.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The ports of the external address that are for clients: all others stay the gateway's own.
pub const PORTS: (u16, u16) = (1024, 64_999);
/// The interface of client and server.
pub const END: &str = "eth0";

/// The namespaces and links of one run. Dropping it removes them.
#[derive(Debug)]
pub struct Stage {
    /// Where packets come from.
    pub client: Namespace,
    /// Where the contender runs.
    pub gateway: Namespace,
    /// Where packets go to.
    pub server: Namespace,
    /// The gateway's interface towards the client. No other one on the machine is called so.
    pub inside: String,
    /// The gateway's interface towards the server.
    pub outside: String,
    owner: Owner,
}

impl Stage {
    /// Builds it.
    ///
    /// # Errors
    /// The first step that failed. What was built until then is removed.
    pub fn build() -> Result<Stage, LabError> {
        let owner = Owner::claim(PREFIX)?;
        // Kernel threads are named by interface, in five bytes at most.
        let tag = std::process::id() % 0x1000;
        let stage = Stage {
            client: owner.namespace("client")?,
            gateway: owner.namespace("gateway")?,
            server: owner.namespace("server")?,
            inside: format!("i{tag:x}"),
            outside: format!("o{tag:x}"),
            owner,
        };
        stage.lay()?;
        stage.set_up_kernels()?;
        Ok(stage)
    }

    /// The stage's name, which its namespaces' names begin with.
    pub fn name(&self) -> &str {
        self.owner.name()
    }

    /// A directory for files; it goes with the stage.
    pub fn directory(&self) -> PathBuf {
        self.owner.directory()
    }

    /// Sets something of the whole machine until the stage goes.
    ///
    /// # Errors
    /// There is no such setting.
    pub fn set_machine(&self, path: &str, value: &str) -> Result<(), LabError> {
        self.owner.set_machine(Path::new(path), value)
    }

    fn lay(&self) -> Result<(), LabError> {
        let wire = Wire {
            mtu: 1500,
            queues: 1,
        };
        let end = |namespace, name| End { namespace, name };
        connect(
            end(&self.client, END),
            end(&self.gateway, &self.inside),
            wire,
        )?;
        connect(
            end(&self.gateway, &self.outside),
            end(&self.server, END),
            wire,
        )?;
        let near = |address| with_length(address, 24);
        self.client.add_address(END, near(CLIENT))?;
        self.gateway.add_address(&self.inside, near(GATEWAY))?;
        self.gateway.add_address(&self.outside, near(EXTERNAL))?;
        self.server.add_address(END, near(SERVER))?;
        self.client.add_route(ANYWHERE, GATEWAY)?;
        self.gateway.add_route(ANYWHERE, SERVER)?;
        self.gateway.add_route(INTERNAL, CLIENT)?;
        self.server.add_route(INTERNAL, EXTERNAL)
    }

    fn set_up_kernels(&self) -> Result<(), LabError> {
        for namespace in [&self.client, &self.gateway, &self.server] {
            for scope in ["all", "default"] {
                namespace.set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
            }
        }
        for link in [&self.inside, &self.outside] {
            let key = format!("ipv4/conf/{link}/rp_filter");
            self.gateway.set_sysctl(&key, "0")?;
        }
        self.gateway.set_sysctl("ipv4/ip_forward", "0")?;
        let own = format!("{} 65535", PORTS.1 + 1);
        self.gateway.set_sysctl("ipv4/ip_local_port_range", &own)
    }

    /// Turns an offload of an interface on or off.
    ///
    /// # Errors
    /// No such interface, or the kernel's refusal.
    pub fn set_offload(
        &self,
        namespace: &Namespace,
        link: &str,
        offload: Offload,
        on: bool,
    ) -> Result<(), LabError> {
        namespace
            .run(|| ethtool::set_offload(link, offload, on).map(drop))
            .map_err(LabError::system(format!("setting {offload:?} of {link}")))
    }

    /// Gives what receives for the gateway threads of its own, on its core. Interfaces have their
    /// NAPI only since the contender has started.
    ///
    /// # Errors
    /// A kernel before 5.12, or there is no such thread: the figures would not be those of a core.
    pub fn pin_napi(&self) -> Result<(), LabError> {
        for link in [&self.inside, &self.outside] {
            pin::use_napi_threads(&self.gateway, link)?;
            pin::napi_to_core(link, pin::GATEWAY_CORE)?;
        }
        Ok(())
    }

    /// Lets what has no NAPI be received where it belongs, the gateway's on its core and that of the
    /// ends on theirs; or again wherever it was sent.
    ///
    /// # Errors
    /// A kernel without receive packet steering.
    pub fn receive_on_own_cores(&self, on: bool) -> Result<(), LabError> {
        for (namespace, link, core) in [
            (&self.gateway, &*self.inside, pin::GATEWAY_CORE),
            (&self.gateway, &*self.outside, pin::GATEWAY_CORE),
            (&self.client, END, pin::SENDER_CORE),
            (&self.server, END, pin::SENDER_CORE),
        ] {
            pin::receive_on(namespace, link, on.then_some(core))?;
        }
        Ok(())
    }

    /// Lets the kernel receive as with NAPI, or no longer.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn receive_by_kernel(&self, on: bool) -> Result<(), LabError> {
        for link in [&self.inside, &self.outside] {
            // With GRO a veth has NAPI; without it, frames that are redirected into it are lost.
            self.set_offload(&self.gateway, link, Offload::Gro, on)?;
        }
        Ok(())
    }

    /// Lets a kernel forward and receive as a router with NAPI does, or no longer.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn forward_by_kernel(&self, on: bool) -> Result<(), LabError> {
        self.receive_by_kernel(on)?;
        let value = if on { "1" } else { "0" };
        self.gateway.set_sysctl("ipv4/ip_forward", value)
    }

    /// The Ethernet address of an interface.
    ///
    /// # Errors
    /// No such interface.
    pub fn mac(&self, namespace: &Namespace, link: &str) -> Result<[u8; 6], LabError> {
        Ok(namespace.link_address(link)?.addr().unwrap_or_default())
    }
}
