//! Interfaces, addresses and routes of a namespace, over netlink.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::LinkAddr;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkXdp, XdpAttached};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::error::LabError;
use super::netns::Namespace;

/// One end of a veth pair: where it is and what it is called there.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The namespace.
    pub namespace: &'a Namespace,
    /// The interface's name there, at most 15 bytes.
    pub name: &'a str,
}

/// What the kernel says of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Receive queues.
    pub receive_queues: u32,
    /// Transmit queues.
    pub transmit_queues: u32,
    /// Is an XDP program attached?
    pub has_xdp: bool,
}

impl End<'_> {
    /// What the kernel says of this interface.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn facts(self) -> Result<Facts, LabError> {
        let index = self.namespace.index(self.name)?;
        let what = format!("asking about {}", self.name);
        let message = self.namespace.netlink(what, async move |handle| {
            handle
                .link()
                .get()
                .match_index(index)
                .execute()
                .try_next()
                .await
        })?;
        let mut facts = Facts::default();
        for attribute in message.into_iter().flat_map(|message| message.attributes) {
            match attribute {
                LinkAttribute::Mtu(mtu) => facts.mtu = mtu,
                LinkAttribute::NumRxQueues(count) => facts.receive_queues = count,
                LinkAttribute::NumTxQueues(count) => facts.transmit_queues = count,
                LinkAttribute::Xdp(programs) => {
                    let none = LinkXdp::Attached(XdpAttached::None);
                    facts.has_xdp = !programs.contains(&none);
                }
                _ => {}
            }
        }
        Ok(facts)
    }
}

/// What both ends of a veth pair have in common.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Receive and transmit queues of either end.
    pub queues: u32,
}

/// What went through an interface, in packets since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
}

/// Lays a veth pair between two namespaces. Both ends stay down.
///
/// # Errors
/// The kernel's refusal.
pub fn connect(a: End<'_>, b: End<'_>, wire: Wire) -> Result<(), LabError> {
    let queues = |side: u32| {
        [
            LinkAttribute::NumTxQueues(side),
            LinkAttribute::NumRxQueues(side),
        ]
        .into_iter()
    };
    let mut peer = LinkUnspec::new_with_name(b.name)
        .mtu(wire.mtu)
        .setns_by_fd(b.namespace.file().as_raw_fd())
        .build();
    peer.attributes.extend(queues(wire.queues));
    let mut link = LinkVeth::new(a.name, b.name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(wire.mtu)
        .build();
    link.attributes.extend(queues(wire.queues));
    a.namespace.netlink(
        format!("adding the link {}-{}", a.name, b.name),
        async move |handle| handle.link().add(link).execute().await,
    )
}

impl Namespace {
    /// Runs netlink requests in the namespace.
    ///
    /// # Errors
    /// The first request's that fails; `what` names it.
    pub fn netlink<T, F, Answer>(&self, what: String, requests: F) -> Result<T, LabError>
    where
        T: Send,
        F: FnOnce(Handle) -> Answer + Send,
        Answer: Future<Output = Result<T, rtnetlink::Error>>,
    {
        let what = format!("{what} in {}", self.name());
        let answer = self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                Ok(requests(handle).await)
            })
        });
        answer
            .map_err(LabError::system(what.clone()))?
            .map_err(LabError::netlink(what))
    }

    /// The kernel's number of an interface.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn index(&self, link: &str) -> Result<u32, LabError> {
        self.run(|| Ok(if_nametoindex(link)?))
            .map_err(LabError::system(format!(
                "looking for {link} in {}",
                self.name()
            )))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// There is none of that name, or the kernel's refusal.
    pub fn link_up(&self, link: &str) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(link)?).up().build();
        self.netlink(format!("setting {link} up"), async move |handle| {
            handle.link().set(message).execute().await
        })
    }

    /// Makes a bridge that is up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_bridge(&self, bridge: &str) -> Result<(), LabError> {
        let message = LinkBridge::new(bridge).build();
        self.netlink(format!("adding the bridge {bridge}"), async move |handle| {
            handle.link().add(message).execute().await
        })
    }

    /// Puts an interface into a bridge, and sets it up.
    ///
    /// # Errors
    /// One of them is missing, or the kernel's refusal.
    pub fn join_bridge(&self, link: &str, bridge: &str) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(link)?)
            .controller(self.index(bridge)?)
            .up()
            .build();
        self.netlink(
            format!("putting {link} into {bridge}"),
            async move |handle| handle.link().set(message).execute().await,
        )
    }

    /// Gives an interface an address, and sets it up.
    ///
    /// # Errors
    /// There is none of that name, or the kernel's refusal.
    pub fn add_address(&self, link: &str, address: Ipv4Net) -> Result<(), LabError> {
        let index = self.index(link)?;
        self.netlink(format!("giving {link} {address}"), async move |handle| {
            let net = address;
            handle
                .address()
                .add(index, IpAddr::V4(net.addr()), net.prefix_len())
                .execute()
                .await?;
            handle
                .link()
                .set(LinkUnspec::new_with_index(index).up().build())
                .execute()
                .await
        })
    }

    /// Adds a route by way of a gateway that is on a connected link.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_route(&self, destination: Ipv4Net, gateway: Ipv4Addr) -> Result<(), LabError> {
        self.add_route_metrics(destination, gateway, Vec::new())
    }

    /// Adds a route whose connections always announce segments of up to `mss` bytes, whatever the
    /// kernel has learned of the path to its peer.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_route_announcing(
        &self,
        destination: Ipv4Net,
        gateway: Ipv4Addr,
        mss: u32,
    ) -> Result<(), LabError> {
        self.add_route_metrics(destination, gateway, vec![RouteMetric::Advmss(mss)])
    }

    fn add_route_metrics(
        &self,
        destination: Ipv4Net,
        gateway: Ipv4Addr,
        metrics: Vec<RouteMetric>,
    ) -> Result<(), LabError> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .gateway(gateway)
            .build();
        if !metrics.is_empty() {
            route.attributes.push(RouteAttribute::Metrics(metrics));
        }
        self.netlink(
            format!("adding the route to {destination}"),
            async move |handle| handle.route().add(route).execute().await,
        )
    }

    /// Changes an interface's MTU, in bytes.
    ///
    /// # Errors
    /// There is none of that name, or the kernel's refusal.
    pub fn set_mtu(&self, link: &str, mtu: u32) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(link)?)
            .mtu(mtu)
            .build();
        self.netlink(format!("setting the MTU of {link}"), async move |handle| {
            handle.link().set(message).execute().await
        })
    }

    /// An interface's link-layer address, together with its number.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn link_address(&self, link: &str) -> Result<LinkAddr, LabError> {
        let found = self.run(|| {
            getifaddrs()?
                .filter(|interface| interface.interface_name == link)
                .find_map(|interface| interface.address?.as_link_addr().copied())
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        });
        found.map_err(LabError::system(format!(
            "looking for {link} in {}",
            self.name()
        )))
    }

    /// What went through an interface so far.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn traffic(&self, link: &str) -> Result<Traffic, LabError> {
        self.run(|| {
            // The thread's own: /proc/net would be the whole process's namespace.
            let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            parse_traffic(&text, link).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        })
        .map_err(LabError::system(format!(
            "counting packets of {link} in {}",
            self.name()
        )))
    }
}

/// Finds an interface's packet counters in the text of `/proc/net/dev`.
fn parse_traffic(text: &str, link: &str) -> Option<Traffic> {
    let (_, counters) = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == link)?;
    let counters: Vec<u64> = counters
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // bytes packets errs drop fifo frame compressed multicast | bytes packets ...
    Some(Traffic {
        received: *counters.get(1)?,
        sent: *counters.get(9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_from_the_packet_columns() {
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets\n    \
                    lo:       1       2    3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                    up0: 100 20 0 0 0 0 0 0 300 40 0 0 0 0 0 0\n";
        assert_eq!(
            parse_traffic(text, "up0"),
            Some(Traffic {
                received: 20,
                sent: 40
            })
        );
        assert_eq!(parse_traffic(text, "up"), None);
    }
}
