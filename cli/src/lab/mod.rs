//! The lab: a small internet in network namespaces, built over netlink with nothing installed.
//!
//! ```text
//! two-arm                                        one-arm
//!
//! c1 ─┐                                          c1 ─┐
//! c2 ─┤sw├─ lan0 gw wan0 ── rt ── s1             c2 ─┤
//!                           │                    gw ─┤sw├── rt ── s1
//!                     (MTU 1280)                               │
//!                           └─ far ── s2                 (MTU 1280)
//!                                                              └─ far ── s2
//! ```
//!
//! The routers know nothing of the internal prefix: a packet that left the gateway untranslated
//! would never be answered, and [`Capture`] on `rt` sees it.

pub mod capture;
pub mod content;
pub mod error;
pub mod gateway;
pub mod icmp;
pub mod inject;
pub mod link;
pub mod netns;
pub mod owner;
pub mod plan;
pub mod service;
pub mod tcp;
pub mod wait;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use engine::device::sys::ethtool::{self, Offload};
use ipnet::Ipv4Net;

pub use capture::Capture;
pub use error::LabError;
pub use gateway::{EngineProcess, Gateway, Status};
pub use netns::Namespace;
pub use plan::Topology;

use link::{End, Traffic, Wire, connect};
use owner::Owner;

/// What kind of lab to build.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Begins the names of the namespaces; at most some 20 bytes. Leftovers are removed by prefix.
    pub prefix: String,
    /// One or two interfaces on the gateway.
    pub topology: Topology,
    /// Hosts behind the gateway, 2 to 9.
    pub clients: u8,
    /// Receive and transmit queues of the gateway's interfaces.
    pub queues: u32,
    /// MTU of the links, in bytes.
    pub mtu: u32,
    /// MTU of the gateway's external link in bytes (two-arm only), as behind a PPPoE modem.
    pub external_mtu: u32,
    /// MTU of the link between the two routers, in bytes.
    pub far_mtu: u32,
    /// The gateway's kernel forwards, has an external address of its own, and routes
    /// [`plan::EXTERNAL`] to its NAT.
    pub routed: bool,
}

impl LabOptions {
    /// A lab with two clients, single queues, MTU 1500, and smaller ones where they matter.
    pub fn new(prefix: &str, topology: Topology) -> LabOptions {
        LabOptions {
            prefix: prefix.to_owned(),
            topology,
            clients: 2,
            queues: 1,
            mtu: 1500,
            external_mtu: 1492,
            far_mtu: 1280,
            routed: false,
        }
    }
}

/// A host at the edge of the lab.
#[derive(Debug)]
pub struct Host {
    /// Where it lives. Its interface is called `eth0`.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The namespaces of one lab. Dropping it removes them and ends the processes inside.
#[derive(Debug)]
pub struct Lab {
    /// How many interfaces the gateway has.
    pub topology: Topology,
    /// The hosts behind the gateway: c1, c2, ...
    pub clients: Vec<Host>,
    /// Where the gateway runs.
    pub gateway: Namespace,
    /// The router that the gateway's default route points to; [`plan::ROUTER_LINK`] faces it.
    pub router: Namespace,
    /// s1 behind the router, and s2 behind a link of smaller MTU.
    pub servers: [Host; 2],
    /// The switch of the clients' segment.
    switch: Namespace,
    far: Namespace,
    options: LabOptions,
    owner: Owner,
}

impl Lab {
    /// Builds a lab.
    ///
    /// # Errors
    /// The first step that failed. What was built until then is removed.
    pub fn build(options: LabOptions) -> Result<Lab, LabError> {
        let owner = Owner::claim(&options.prefix)?;
        let host = |role: &str, address| {
            owner
                .namespace(role)
                .map(|namespace| Host { namespace, address })
        };
        let clients = (1..=options.clients)
            .map(|number| host(&format!("c{number}"), plan::client(number)))
            .collect::<Result<Vec<_>, _>>()?;
        let lab = Lab {
            topology: options.topology,
            clients,
            gateway: owner.namespace("gw")?,
            router: owner.namespace("rt")?,
            servers: [host("s1", plan::SERVERS[0])?, host("s2", plan::SERVERS[1])?],
            switch: owner.namespace("sw")?,
            far: owner.namespace("far")?,
            options,
            owner,
        };
        lab.set_up_kernels()?;
        lab.lay_inside()?;
        lab.lay_outside()?;
        Ok(lab)
    }

    /// The lab's name: its namespaces are `NAME-c1`, `NAME-gw`, ...
    pub fn name(&self) -> &str {
        self.owner.name()
    }

    /// A directory for the lab's files; it goes with the lab.
    pub fn directory(&self) -> PathBuf {
        self.owner.directory()
    }

    /// Leaves the lab in place when this value goes.
    pub fn keep(&mut self) {
        self.owner.keep();
    }

    /// The hosts that clean-up knows of, with what each is, for the reader.
    pub fn roles(&self) -> Vec<(&str, String)> {
        let mut roles: Vec<_> = self
            .clients
            .iter()
            .map(|client| {
                (
                    client.namespace.name(),
                    format!("client {}", client.address),
                )
            })
            .collect();
        roles.push((self.gateway.name(), "the gateway".to_owned()));
        roles.push((self.router.name(), "the router next to it".to_owned()));
        for server in &self.servers {
            roles.push((
                server.namespace.name(),
                format!("server {}", server.address),
            ));
        }
        roles
    }

    /// The MTUs of the gateway's external link and of the link between the routers, in bytes.
    pub fn small_mtus(&self) -> (u32, u32) {
        (self.options.external_mtu, self.options.far_mtu)
    }

    /// Does the gateway's kernel route to its NAT?
    pub fn is_routed(&self) -> bool {
        self.options.routed
    }

    /// The external address of the gateway's kernel.
    pub fn host_address(&self) -> Ipv4Addr {
        match self.options.routed {
            true => plan::GATEWAY_EXTERNAL,
            false => plan::EXTERNAL,
        }
    }

    /// The switch of the clients' segment; its port `gw` faces the gateway.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// What the gateway's neighbours sent to it and received from it so far.
    ///
    /// # Errors
    /// An interface is gone.
    pub fn gateway_traffic(&self) -> Result<Traffic, LabError> {
        // Seen from it: its own counters depend on how frames are taken from its interfaces.
        let inside = self.switch.traffic("gw")?;
        let outside = match self.topology {
            Topology::OneArm => Traffic::default(),
            Topology::TwoArm => self.router.traffic(plan::ROUTER_LINK)?,
        };
        Ok(Traffic {
            received: inside.sent + outside.sent,
            sent: inside.received + outside.received,
        })
    }

    /// Adds a namespace behind the gateway, linked to it by an interface of the role's name there:
    /// a "pod", whose traffic is the business of the gateway's kernel.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn add_pod(&self, role: &str, net: Ipv4Net) -> Result<Host, LabError> {
        let mut hosts = net.hosts();
        let (Some(gateway), Some(address)) = (hosts.next(), hosts.next()) else {
            return Err(LabError::Gateway(format!("{net} is too small for a pod")));
        };
        let pod = self.owner.namespace(role)?;
        let wire = Wire {
            mtu: self.options.mtu,
            queues: 1,
        };
        connect(
            self.end_gateway(role),
            End {
                namespace: &pod,
                name: "eth0",
            },
            wire,
        )?;
        self.gateway
            .add_address(role, plan::with_length(gateway, net.prefix_len()))?;
        pod.add_address("eth0", plan::with_length(address, net.prefix_len()))?;
        pod.add_route(plan::ANYWHERE, gateway)?;
        Ok(Host {
            namespace: pod,
            address,
        })
    }

    /// Lets the gateway's neighbours cut TCP streams into packets themselves, as over a real wire:
    /// in generic mode the gateway would be handed packets of up to 64 KiB.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn split_towards_gateway(&self) -> Result<(), LabError> {
        let mut links = vec![(&self.switch, "gw")];
        if self.topology == Topology::TwoArm {
            links.push((&self.router, plan::ROUTER_LINK));
        }
        for (namespace, link) in links {
            let off = || {
                for offload in [Offload::Tso, Offload::Gso] {
                    ethtool::set_offload(link, offload, false)?;
                }
                Ok(())
            };
            namespace.run(off).map_err(LabError::system(format!(
                "turning segmentation offload off on {link} in {}",
                namespace.name()
            )))?;
        }
        Ok(())
    }

    fn end_gateway<'a>(&'a self, name: &'a str) -> End<'a> {
        End {
            namespace: &self.gateway,
            name,
        }
    }

    /// Forwarding where there are routers, and only there; no limit on the ICMP errors that the
    /// probes wait for, but on the gateway, which stays as its kernel made it.
    fn set_up_kernels(&self) -> Result<(), LabError> {
        let forwards = if self.options.routed { "1" } else { "0" };
        self.gateway.set_sysctl("ipv4/ip_forward", forwards)?;
        let edges = self
            .clients
            .iter()
            .chain(&self.servers)
            .map(|host| &host.namespace);
        for namespace in edges.chain([&self.router, &self.far]) {
            namespace.set_sysctl("ipv4/icmp_ratelimit", "0")?;
            namespace.set_sysctl("ipv4/conf/all/rp_filter", "0")?;
            namespace.set_sysctl("ipv4/conf/default/rp_filter", "0")?;
        }
        for router in [&self.router, &self.far] {
            router.set_sysctl("ipv4/ip_forward", "1")?;
        }
        Ok(())
    }

    /// The clients' segment and the gateway.
    fn lay_inside(&self) -> Result<(), LabError> {
        let wire = Wire {
            mtu: self.options.mtu,
            queues: 1,
        };
        let gateway_wire = Wire {
            queues: self.options.queues,
            ..wire
        };
        self.switch.add_bridge("br0")?;
        for (number, client) in self.clients.iter().enumerate() {
            let port = format!("c{}", number + 1);
            connect(
                End {
                    namespace: &client.namespace,
                    name: "eth0",
                },
                End {
                    namespace: &self.switch,
                    name: &port,
                },
                wire,
            )?;
            self.switch.join_bridge(&port, "br0")?;
            let address = plan::with_length(client.address, plan::INTERNAL.prefix_len());
            client.namespace.add_address("eth0", address)?;
            client
                .namespace
                .add_route(plan::ANYWHERE, plan::GATEWAY_INTERNAL)?;
        }
        let internal = self.topology.internal_link();
        let port = End {
            namespace: &self.switch,
            name: "gw",
        };
        connect(self.end_gateway(internal), port, gateway_wire)?;
        self.switch.join_bridge("gw", "br0")?;
        let length = plan::INTERNAL.prefix_len();
        self.gateway
            .add_address(internal, plan::with_length(plan::GATEWAY_INTERNAL, length))?;
        let router = End {
            namespace: &self.router,
            name: plan::ROUTER_LINK,
        };
        match self.topology {
            Topology::OneArm => {
                connect(
                    router,
                    End {
                        namespace: &self.switch,
                        name: "rt",
                    },
                    wire,
                )?;
                self.switch.join_bridge("rt", "br0")
            }
            Topology::TwoArm => {
                let wire = Wire {
                    mtu: self.options.external_mtu,
                    ..gateway_wire
                };
                connect(
                    self.end_gateway(self.topology.external_link()),
                    router,
                    wire,
                )
            }
        }
    }

    /// The gateway's external address, the routers and the servers.
    fn lay_outside(&self) -> Result<(), LabError> {
        let [s1, s2] = &self.servers;
        let wire = Wire {
            mtu: self.options.mtu,
            queues: 1,
        };
        let far_wire = Wire {
            mtu: self.options.far_mtu,
            queues: 1,
        };
        let end = |namespace, name| End { namespace, name };
        connect(end(&self.router, "s1"), end(&s1.namespace, "eth0"), wire)?;
        connect(end(&self.router, "far"), end(&self.far, "rt"), far_wire)?;
        connect(end(&self.far, "s2"), end(&s2.namespace, "eth0"), wire)?;

        let transit = plan::TRANSIT.prefix_len();
        let external = self.topology.external_link();
        self.gateway
            .add_address(external, plan::with_length(self.host_address(), transit))?;
        self.router
            .add_address(plan::ROUTER_LINK, plan::with_length(plan::ROUTER, transit))?;
        self.router
            .add_address("s1", plan::with_length(plan::SERVER_ROUTERS[0], 24))?;
        self.router
            .add_address("far", plan::with_length(plan::FAR_LINK[0], 30))?;
        self.far
            .add_address("rt", plan::with_length(plan::FAR_LINK[1], 30))?;
        self.far
            .add_address("s2", plan::with_length(plan::SERVER_ROUTERS[1], 24))?;
        for (server, (address, second)) in self
            .servers
            .iter()
            .zip(plan::SERVERS.into_iter().zip(plan::SECOND_ADDRESSES))
        {
            server
                .namespace
                .add_address("eth0", plan::with_length(address, 24))?;
            server
                .namespace
                .add_address("eth0", plan::with_length(second, 24))?;
        }

        self.gateway.add_route(plan::ANYWHERE, plan::ROUTER)?;
        // Once a server has learned that its own packets must be small, it would ask for small
        // ones, too, and no client's packet would ever be too big.
        let mss = self.options.mtu.saturating_sub(40);
        for (server, router) in [s1, s2].into_iter().zip(plan::SERVER_ROUTERS) {
            server
                .namespace
                .add_route_announcing(plan::ANYWHERE, router, mss)?;
        }
        self.router
            .add_route(plan::SERVER_NETS[1], plan::FAR_LINK[1])?;
        self.far.add_route(plan::ANYWHERE, plan::FAR_LINK[0])
    }
}
