//! Requests to rtnetlink, and what their answers say, as plain data.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::StreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, new_connection, new_connection_with_strict_check};
use tokio::task::JoinHandle;

use crate::interface::{InterfaceFacts, address_of};
use crate::route::{PathFacts, RouteFacts, RouteKind};

/// The routing tables that are read: `local` and `main`.
const TABLES: [u8; 2] = [255, 254];

/// How often a dump that changed under way is repeated before it is taken as it is; the change
/// itself is announced and leads to another one.
const DUMP_TRIES: u32 = 5;

/// Longest wait for one answer of the kernel.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Interfaces and routes of a network namespace at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Network {
    pub(crate) interfaces: Vec<InterfaceFacts>,
    pub(crate) routes: Vec<RouteFacts>,
}

/// A neighbour entry of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeighbourFacts {
    pub(crate) ifindex: u32,
    pub(crate) addr: Ipv4Addr,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) state: NeighbourState,
    pub(crate) managed: bool,
}

/// What to do to a neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NeighbourRequest {
    /// Resolve or confirm it, once; takes a managed mark away.
    Use,
    /// Keep it resolved from now on (`NTF_EXT_MANAGED`, Linux 5.16; older kernels ignore the mark).
    Manage,
    /// Take the managed mark away without sending anything.
    Release,
}

/// A socket for requests; its answers never mix with announcements.
pub(crate) struct Requests {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Requests {
    /// A socket in the network namespace of the current thread.
    pub(crate) fn open() -> io::Result<Requests> {
        // Strict checks make the kernel filter dumps by table (4.20); without, filtering is here.
        let (mut connection, handle, _) =
            new_connection_with_strict_check().or_else(|_| new_connection())?;
        connection.set_forward_done(true);
        Ok(Requests {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Reads interfaces, addresses and routes.
    pub(crate) async fn network(&mut self) -> io::Result<Network> {
        let mut network = Network::default();
        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        for message in self.dump(RouteNetlinkMessage::GetLink(link)).await? {
            if let RouteNetlinkMessage::NewLink(message) = message {
                network.interfaces.push(InterfaceFacts::of(&message));
            }
        }
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        for message in self.dump(RouteNetlinkMessage::GetAddress(address)).await? {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                continue;
            };
            let Some((ifindex, net)) = address_of(&message) else {
                continue;
            };
            let facts = network
                .interfaces
                .iter_mut()
                .find(|facts| facts.ifindex == ifindex);
            if let Some(facts) = facts {
                facts.addresses.push(net);
            }
        }
        for table in TABLES {
            let mut route = RouteMessage::default();
            route.header.address_family = AddressFamily::Inet;
            route.header.table = table;
            let messages = match self.dump(RouteNetlinkMessage::GetRoute(route)).await {
                // A table that never had a route does not exist.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            network
                .routes
                .extend(messages.iter().filter_map(|message| match message {
                    RouteNetlinkMessage::NewRoute(message) if message.header.table == table => {
                        route_of(message)
                    }
                    _ => None,
                }));
        }
        Ok(network)
    }

    /// Reads the neighbour entries.
    pub(crate) async fn neighbours(&mut self) -> io::Result<Vec<NeighbourFacts>> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        let messages = self
            .dump(RouteNetlinkMessage::GetNeighbour(request))
            .await?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => neighbour_of(message),
                _ => None,
            })
            .collect())
    }

    /// Changes a neighbour entry, which is created if need be (not by `Release`).
    pub(crate) async fn neighbour(
        &mut self,
        ifindex: u32,
        addr: Ipv4Addr,
        what: NeighbourRequest,
    ) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = ifindex;
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
                addr,
            )));
        let mut flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE;
        match what {
            NeighbourRequest::Use => {
                message.header.flags = NeighbourFlags::Use;
                flags |= NLM_F_CREATE;
            }
            NeighbourRequest::Manage => {
                message.header.flags = NeighbourFlags::Use;
                flags |= NLM_F_CREATE;
                message
                    .attributes
                    .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
            }
            NeighbourRequest::Release => message.header.state = NeighbourState::Stale,
        }
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = flags;
        let mut answers = self.handle.request(request).map_err(io::Error::other)?;
        while let Some(answer) = within(answers.next()).await? {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.code {
                    None => Ok(()),
                    Some(_) => Err(error.to_io()),
                };
            }
        }
        Ok(())
    }

    async fn dump(&mut self, what: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 1..DUMP_TRIES {
            let (messages, whole) = self.dump_once(what.clone()).await?;
            if whole {
                return Ok(messages);
            }
        }
        Ok(self.dump_once(what).await?.0)
    }

    /// A dump, and whether nothing changed while it was made.
    async fn dump_once(
        &mut self,
        what: RouteNetlinkMessage,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut request = NetlinkMessage::from(what);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.request(request).map_err(io::Error::other)?;
        let mut messages = Vec::new();
        let mut whole = true;
        while let Some(answer) = within(answers.next()).await? {
            whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok((messages, whole)),
                _ => {}
            }
        }
        Err(io::Error::other("the netlink socket closed within a dump"))
    }
}

async fn within<T>(answer: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(ANSWER_MAX, answer)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer from rtnetlink"))
}

/// The route in a message; `None` for what is not followed (cached routes, types of service).
pub(crate) fn route_of(message: &RouteMessage) -> Option<RouteFacts> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet
        || header.tos != 0
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => RouteKind::Broadcast,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
            RouteKind::Unreachable
        }
        RouteType::Throw => RouteKind::Throw,
        _ => return None,
    };
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut facts = RouteFacts {
        prefix: Ipv4Net::default(),
        kind,
        metric: 0,
        mtu: None,
        paths: Vec::new(),
    };
    let mut ifindex = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => destination = *addr,
            RouteAttribute::Priority(metric) => facts.metric = *metric,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                facts.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) if kind == RouteKind::Unicast => {
                facts.paths.extend(hops.iter().map(|hop| {
                    let down = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                    PathFacts {
                        ifindex: hop.interface_index,
                        weight: u16::from(hop.hops) + 1,
                        down: hop.flags.intersects(down),
                        ..way(&hop.attributes)
                    }
                }));
            }
            _ => {}
        }
    }
    if kind == RouteKind::Unicast && facts.paths.is_empty() {
        let down = header
            .flags
            .intersects(RouteFlags::Dead | RouteFlags::Linkdown);
        // Without an interface the next hop is an object that the kernel did not spell out.
        let foreign = ifindex.is_none();
        let mut path = PathFacts {
            ifindex: ifindex.unwrap_or(0),
            down,
            ..way(&message.attributes)
        };
        path.foreign |= foreign;
        facts.paths.push(path);
    }
    facts.prefix = Ipv4Net::new(destination, header.destination_prefix_length)
        .ok()?
        .trunc();
    Some(facts)
}

/// Gateway and needs of a path.
fn way(attributes: &[RouteAttribute]) -> PathFacts {
    let mut path = PathFacts {
        ifindex: 0,
        gateway: None,
        weight: 1,
        down: false,
        foreign: false,
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => path.gateway = Some(*gateway),
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::EncapType(_) => path.foreign = true,
            _ => {}
        }
    }
    path
}

/// The IPv4 neighbour in a message; `None` for proxies and other families (bridges).
pub(crate) fn neighbour_of(message: &NeighbourMessage) -> Option<NeighbourFacts> {
    let header = &message.header;
    if header.family != AddressFamily::Inet || header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut addr = None;
    let mut mac = None;
    let mut managed = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(dst)) => addr = Some(*dst),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => {
                managed = flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    Some(NeighbourFacts {
        ifindex: header.ifindex,
        addr: addr?,
        mac,
        state: header.state,
        managed,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteNextHop, RouteVia};

    use super::*;

    fn message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = kind;
        message.header.table = 254;
        message.header.destination_prefix_length = 8;
        message.attributes = attributes;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(
                Ipv4Addr::new(10, 0, 0, 0),
            )));
        message
    }

    fn gateway(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, last)))
    }

    #[test]
    fn a_route_by_a_gateway() {
        let facts = route_of(&message(
            RouteType::Unicast,
            vec![
                RouteAttribute::Oif(7),
                gateway(1),
                RouteAttribute::Priority(100),
                RouteAttribute::Metrics(vec![RouteMetric::Advmss(1), RouteMetric::Mtu(1400)]),
            ],
        ))
        .unwrap();
        assert_eq!(facts.prefix, "10.0.0.0/8".parse().unwrap());
        assert_eq!((facts.metric, facts.mtu), (100, Some(1400)));
        let [path] = &facts.paths[..] else {
            panic!("{facts:?}")
        };
        assert_eq!(
            (path.ifindex, path.gateway),
            (7, Some(Ipv4Addr::new(192, 0, 2, 1)))
        );
        assert!(!path.down && !path.foreign);
    }

    #[test]
    fn a_multipath_route() {
        let mut first = RouteNextHop::default();
        first.interface_index = 7;
        first.hops = 2;
        first.attributes = vec![gateway(1)];
        let mut second = RouteNextHop::default();
        second.interface_index = 8;
        second.flags = RouteNextHopFlags::Linkdown;
        let facts = route_of(&message(
            RouteType::Unicast,
            vec![RouteAttribute::MultiPath(vec![first, second])],
        ))
        .unwrap();
        let paths: Vec<_> = facts
            .paths
            .iter()
            .map(|path| (path.ifindex, path.weight, path.down))
            .collect();
        assert_eq!(paths, [(7, 3, false), (8, 1, true)]);
        assert_eq!(facts.paths[0].gateway, Some(Ipv4Addr::new(192, 0, 2, 1)));
    }

    #[test]
    fn what_cannot_be_forwarded_is_marked() {
        let foreign = |attributes| {
            route_of(&message(RouteType::Unicast, attributes))
                .unwrap()
                .paths[0]
                .foreign
        };
        assert!(!foreign(vec![RouteAttribute::Oif(7)]));
        assert!(
            foreign(vec![RouteAttribute::NhId(3)]),
            "an object that is not spelled out"
        );
        assert!(foreign(vec![
            RouteAttribute::Oif(7),
            RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())),
        ]));
    }

    #[test]
    fn kinds_and_what_is_left_out() {
        let kind = |kind| route_of(&message(kind, vec![])).map(|facts| facts.kind);
        assert_eq!(kind(RouteType::Local), Some(RouteKind::Local));
        assert_eq!(kind(RouteType::Broadcast), Some(RouteKind::Broadcast));
        assert_eq!(kind(RouteType::BlackHole), Some(RouteKind::Unreachable));
        assert_eq!(kind(RouteType::Prohibit), Some(RouteKind::Unreachable));
        assert_eq!(kind(RouteType::Throw), Some(RouteKind::Throw));
        let mut for_service = message(RouteType::Unicast, vec![]);
        for_service.header.tos = 8;
        assert_eq!(route_of(&for_service), None);
        let mut cached = message(RouteType::Unicast, vec![]);
        cached.header.flags = RouteFlags::Cloned;
        assert_eq!(route_of(&cached), None);
    }
}
