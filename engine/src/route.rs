//! Where a packet goes next: an immutable snapshot of the kernel's main routing table, and
//! [`Forwarding`], which turns a destination into a hop.
//!
//! What of the kernel's routing is followed: the `local` table (only to refuse what the host itself
//! receives), and the `main` table with longest prefix, lowest metric, multipath weights, MTU
//! metric and the `blackhole`, `unreachable`, `prohibit` and `throw` types. What is not: policy
//! rules, routes for a type of service, routes that need an encapsulation or an IPv6 gateway
//! (these count as not served).

use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use conntrack::NextHop;
use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;

use crate::drop_reason::DropReason;
use crate::neighbour::{HopNumber, HopTable, hash};

/// Bits of a [`NextHop`] that hold the hop's number; the rest is the generation's low bits.
const HOP_BITS: u32 = 18;

/// An interface that Egret sends on. Its number is its place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedInterface {
    /// Name, as configured.
    pub name: String,
    /// The kernel's index.
    pub ifindex: u32,
}

/// What a frame sent on a served interface needs, and whether it can be sent at all.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InterfaceState {
    /// Name.
    pub name: String,
    /// The kernel's index.
    pub ifindex: u32,
    /// Source MAC of frames sent on it; zero if it has none.
    pub mac: [u8; 6],
    /// Largest IPv4 packet, bytes (65,535 at most).
    pub mtu: u16,
    /// Administratively up, with carrier.
    pub up: bool,
    /// Neighbours have link-layer addresses (false on point-to-point and TUN devices).
    pub arp: bool,
    /// The host's own addresses on it, in the kernel's order: primary first. For ICMP errors.
    pub addresses: Vec<Ipv4Addr>,
}

/// What the kernel does with packets of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Forwards.
    Unicast,
    /// Receives as the host's own.
    Local,
    /// Receives, too: broadcast, anycast and multicast.
    Broadcast,
    /// `blackhole`, `unreachable` or `prohibit`.
    Unreachable,
    /// Looks on in the next table, which Egret does not follow: as if there were no route.
    Throw,
}

/// One way of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// Egress interface, the kernel's index.
    pub ifindex: u32,
    /// Gateway; `None`: destinations are on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Share of the traffic among a route's paths, 1 to 256.
    pub weight: u16,
    /// The kernel calls it dead or without link.
    pub down: bool,
    /// It needs something Egret does not do: encapsulation, an IPv6 gateway.
    pub foreign: bool,
}

/// One route of the kernel, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteFacts {
    /// Destination.
    pub prefix: Ipv4Net,
    /// What happens to its packets.
    pub kind: RouteKind,
    /// The lowest wins.
    pub metric: u32,
    /// MTU metric, bytes.
    pub mtu: Option<u32>,
    /// Its paths; empty unless the kind is [`RouteKind::Unicast`].
    pub paths: Vec<PathFacts>,
}

/// The answer of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// By a gateway.
    Via {
        /// Number of the egress interface.
        interface: u8,
        /// Address to resolve.
        gateway: Ipv4Addr,
        /// Largest packet, bytes.
        mtu: u16,
    },
    /// The destination is a neighbour.
    OnLink {
        /// Number of the egress interface.
        interface: u8,
        /// Largest packet, bytes.
        mtu: u16,
    },
    /// The operator says so, or every path is down.
    Unreachable,
    /// An address of this host, or a broadcast or multicast address: never forwarded.
    Local,
    /// The route leaves by this interface, which Egret does not serve (or in a way it cannot go).
    NotServed(&'a str),
    /// No route.
    None,
}

/// Why there is no hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoRoute {
    /// No route at all, or one that leads to the host itself.
    None,
    /// An unreachable route, or the link is down.
    Unreachable,
    /// The route leaves by an interface that Egret does not serve.
    NotServed,
    /// The hop table is full for the moment.
    TableFull,
}

impl From<NoRoute> for DropReason {
    fn from(reason: NoRoute) -> DropReason {
        match reason {
            NoRoute::None | NoRoute::Unreachable | NoRoute::NotServed => DropReason::NoRoute,
            NoRoute::TableFull => DropReason::HoldFull,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    interface: u8,
    gateway: Option<Ipv4Addr>,
    mtu: u16,
    weight: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// Never empty.
    Paths(Box<[Path]>),
    NotServed(Box<str>),
    Unreachable,
    Local,
    Throw,
}

/// Order among routes of one prefix, the lowest wins: every path down, metric.
type Rank = (bool, u32);

/// What a snapshot of routes is made of.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RouteInput {
    /// State of the served interfaces, in the order of the configuration.
    pub interfaces: Vec<InterfaceState>,
    /// Names of the others, by index.
    pub other_interfaces: Vec<(u32, String)>,
    /// Routes, in the kernel's order.
    pub routes: Vec<RouteFacts>,
}

/// An immutable snapshot: routes and the state of the served interfaces.
#[derive(Clone)]
pub struct Routes {
    generation: u32,
    interfaces: Arc<[InterfaceState]>,
    entries: Arc<PrefixMap<Ipv4Net, Entry>>,
}

impl Routes {
    /// A snapshot. A path is usable when its interface is served and up; a prefix takes the route
    /// of lowest metric that has a usable path. A prefix with none is unreachable: falling back to
    /// a shorter prefix would send traffic for a link that is down out of another interface.
    pub fn new(generation: u32, input: &RouteInput) -> Routes {
        let mut best: PrefixMap<Ipv4Net, (Rank, Entry)> = PrefixMap::new();
        let (local, others): (Vec<_>, Vec<_>) = input
            .routes
            .iter()
            .partition(|route| route.kind == RouteKind::Local);
        for route in others {
            let entry = entry_of(route, input);
            let down = route.kind == RouteKind::Unicast && entry == Entry::Unreachable;
            let rank = (down, route.metric);
            match best.get_mut(&route.prefix) {
                Some(present) if present.0 <= rank => {}
                Some(present) => *present = (rank, entry),
                None => drop(best.insert(route.prefix, (rank, entry))),
            }
        }
        // The kernel looks into the local table first: what it receives hides every longer prefix.
        for route in local {
            best.remove_children(&route.prefix);
            best.insert(route.prefix, ((false, 0), Entry::Local));
        }
        Routes {
            generation,
            interfaces: input.interfaces.clone().into(),
            entries: Arc::new(
                best.into_iter()
                    .map(|(prefix, (_, entry))| (prefix, entry))
                    .collect(),
            ),
        }
    }

    /// The same routes under another generation.
    pub(crate) fn renewed(&self, generation: u32) -> Routes {
        Routes {
            generation,
            ..self.clone()
        }
    }

    /// Grows (and wraps) whenever anything in the snapshot changes.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Prefixes with a route.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is there no route?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The served interfaces by number.
    pub fn interfaces(&self) -> &[InterfaceState] {
        &self.interfaces
    }

    /// The route of a destination. Of several paths one is chosen by a hash of the destination, so
    /// a destination keeps its path while the paths stay the same.
    pub fn lookup(&self, destination: Ipv4Addr) -> Route<'_> {
        match self.entries.get_lpm(&Ipv4Net::from(destination)) {
            None | Some((_, Entry::Throw)) => Route::None,
            Some((_, Entry::Unreachable)) => Route::Unreachable,
            Some((_, Entry::Local)) => Route::Local,
            Some((_, Entry::NotServed(name))) => Route::NotServed(name),
            Some((_, Entry::Paths(paths))) => {
                let Path {
                    interface,
                    gateway,
                    mtu,
                    ..
                } = choose(paths, destination);
                match gateway {
                    Some(gateway) => Route::Via {
                        interface,
                        gateway,
                        mtu,
                    },
                    None => Route::OnLink { interface, mtu },
                }
            }
        }
    }
}

fn entry_of(route: &RouteFacts, input: &RouteInput) -> Entry {
    match route.kind {
        RouteKind::Local | RouteKind::Broadcast => return Entry::Local,
        RouteKind::Unreachable => return Entry::Unreachable,
        RouteKind::Throw => return Entry::Throw,
        RouteKind::Unicast => {}
    }
    let mut not_served = None;
    let mut paths = Vec::new();
    for path in route.paths.iter().filter(|path| !path.down) {
        let served = input
            .interfaces
            .iter()
            .position(|state| state.ifindex == path.ifindex);
        match served.map(|number| (number, &input.interfaces[number])) {
            Some((number, state)) if !path.foreign => {
                if state.up {
                    let mtu = route.mtu.map_or(state.mtu, |mtu| state.mtu.min(clamp(mtu)));
                    paths.push(Path {
                        interface: number as u8,
                        gateway: path.gateway,
                        mtu,
                        weight: path.weight.max(1),
                    });
                }
            }
            Some((_, state)) => not_served = Some(state.name.as_str()),
            None => {
                let other = input
                    .other_interfaces
                    .iter()
                    .find(|other| other.0 == path.ifindex);
                not_served = Some(other.map_or("?", |other| other.1.as_str()));
            }
        }
    }
    match (paths.is_empty(), not_served) {
        (false, _) => Entry::Paths(paths.into()),
        (true, Some(name)) => Entry::NotServed(name.into()),
        (true, None) => Entry::Unreachable,
    }
}

fn choose(paths: &[Path], destination: Ipv4Addr) -> Path {
    let total: u64 = paths.iter().map(|path| u64::from(path.weight)).sum();
    let mut point = ((hash(u32::from(destination).into()) >> 32) * total) >> 32;
    for path in paths {
        match point.checked_sub(path.weight.into()) {
            Some(rest) => point = rest,
            None => return *path,
        }
    }
    paths[paths.len() - 1]
}

/// An MTU as it fits the tables; loopback has 65,536.
pub(crate) fn clamp(mtu: u32) -> u16 {
    mtu.min(u16::MAX.into()) as u16
}

/// Routes and hops of a gateway, shared by all workers; the netlink thread keeps them up to date.
pub struct Forwarding {
    served: Vec<ServedInterface>,
    routes: ArcSwap<Routes>,
    hops: HopTable,
    gateway: Option<Ipv4Addr>,
}

impl Forwarding {
    /// No routes yet. `served` are at most 256 interfaces in the order of the configuration.
    /// `generation` is where the count begins: a random number keeps next hops that an earlier
    /// process left in the tables from being taken for current ones.
    pub fn new(served: Vec<ServedInterface>, hops_max: u32, generation: u32) -> Forwarding {
        let routes = Routes::new(generation, &RouteInput::default());
        Forwarding {
            served,
            routes: ArcSwap::from_pointee(routes),
            hops: HopTable::new(hops_max),
            gateway: None,
        }
    }

    /// All packets go by this gateway, whatever routes there are: the kernel, which finds the way.
    #[must_use]
    pub fn by(mut self, gateway: Ipv4Addr) -> Forwarding {
        self.gateway = Some(gateway);
        self
    }

    /// The one gateway, if there is one.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.gateway
    }

    /// The current snapshot; workers keep it in an `arc_swap::Cache` and look once a batch.
    pub fn routes(&self) -> &ArcSwap<Routes> {
        &self.routes
    }

    /// The hops.
    pub fn hops(&self) -> &HopTable {
        &self.hops
    }

    /// The served interfaces, in the order of the configuration.
    pub fn served(&self) -> &[ServedInterface] {
        &self.served
    }

    /// The hop towards a destination. Allocates nothing.
    pub fn next_hop(&self, routes: &Routes, destination: Ipv4Addr) -> Result<HopNumber, NoRoute> {
        let (interface, addr, mtu) = match routes.lookup(destination) {
            Route::Via {
                interface,
                gateway,
                mtu,
            } => (interface, gateway, mtu),
            Route::OnLink { interface, mtu } => (interface, destination, mtu),
            Route::Unreachable => return Err(NoRoute::Unreachable),
            Route::NotServed(_) => return Err(NoRoute::NotServed),
            Route::Local | Route::None => return Err(NoRoute::None),
        };
        self.hops
            .number_of(interface, addr, mtu)
            .ok_or(NoRoute::TableFull)
    }

    /// A hop as conntrack remembers it: good for this snapshot's generation.
    pub fn encode(&self, routes: &Routes, number: HopNumber) -> NextHop {
        NextHop(routes.generation << HOP_BITS | number.0 & ((1 << HOP_BITS) - 1))
    }

    /// The hop that conntrack remembered, if it was made under this snapshot's generation (its
    /// low 14 bits).
    pub fn decode_if_current(&self, routes: &Routes, remembered: NextHop) -> Option<HopNumber> {
        let number = self.decode(routes.generation, remembered)?;
        self.hops.contains(number).then_some(number)
    }

    /// As [`Forwarding::decode_if_current`], but a number that no hop has is not refused.
    #[inline]
    pub(crate) fn decode(&self, generation: u32, remembered: NextHop) -> Option<HopNumber> {
        let number = HopNumber(remembered.0 & ((1 << HOP_BITS) - 1));
        let current = remembered.0 >> HOP_BITS == generation & (u32::MAX >> HOP_BITS);
        current.then_some(number)
    }

    /// Publishes a new snapshot under the next generation.
    pub(crate) fn publish(&self, input: &RouteInput) -> u32 {
        let generation = self.routes.load().generation.wrapping_add(1);
        self.routes.store(Arc::new(Routes::new(generation, input)));
        generation
    }

    /// Turns the hop table over: remembered hops are looked up again.
    pub(crate) fn turn_over(&self) {
        self.hops.turn_over();
        let routes = self.routes.load();
        self.routes
            .store(Arc::new(routes.renewed(routes.generation.wrapping_add(1))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn path(ifindex: u32, gateway: Option<&str>) -> PathFacts {
        PathFacts {
            ifindex,
            gateway: gateway.map(ip),
            weight: 1,
            down: false,
            foreign: false,
        }
    }

    fn unicast(prefix: &str, metric: u32, paths: Vec<PathFacts>) -> RouteFacts {
        RouteFacts {
            prefix: net(prefix),
            kind: RouteKind::Unicast,
            metric,
            mtu: None,
            paths,
        }
    }

    fn special(prefix: &str, metric: u32, kind: RouteKind) -> RouteFacts {
        RouteFacts {
            prefix: net(prefix),
            kind,
            metric,
            mtu: None,
            paths: vec![],
        }
    }

    fn interface(name: &str, ifindex: u32, mtu: u16) -> InterfaceState {
        InterfaceState {
            name: name.into(),
            ifindex,
            mtu,
            up: true,
            arp: true,
            ..Default::default()
        }
    }

    fn input(routes: Vec<RouteFacts>) -> RouteInput {
        RouteInput {
            interfaces: vec![interface("ext", 10, 1500), interface("int", 20, 9000)],
            other_interfaces: vec![(30, "docker0".into())],
            routes,
        }
    }

    fn via(interface: u8, gateway: &str, mtu: u16) -> Route<'static> {
        Route::Via {
            interface,
            gateway: ip(gateway),
            mtu,
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let routes = Routes::new(
            1,
            &input(vec![
                unicast("0.0.0.0/0", 0, vec![path(10, Some("192.0.2.1"))]),
                unicast("10.0.0.0/8", 0, vec![path(20, Some("10.0.0.1"))]),
                unicast("10.1.0.0/16", 0, vec![path(20, None)]),
                special("10.1.0.7/32", 0, RouteKind::Local),
                unicast("127.1.0.0/16", 0, vec![path(20, None)]),
                special("127.0.0.0/8", 0, RouteKind::Local),
                special("10.1.255.255/32", 0, RouteKind::Broadcast),
                special("10.2.0.0/16", 0, RouteKind::Unreachable),
                special("10.3.0.0/16", 0, RouteKind::Throw),
                unicast("10.4.0.0/16", 0, vec![path(30, None)]),
            ]),
        );
        assert_eq!(routes.lookup(ip("8.8.8.8")), via(0, "192.0.2.1", 1500));
        assert_eq!(routes.lookup(ip("10.200.0.1")), via(1, "10.0.0.1", 9000));
        assert_eq!(
            routes.lookup(ip("10.1.2.3")),
            Route::OnLink {
                interface: 1,
                mtu: 9000
            }
        );
        assert_eq!(routes.lookup(ip("10.1.0.7")), Route::Local);
        assert_eq!(
            routes.lookup(ip("127.1.0.7")),
            Route::Local,
            "the local table comes first"
        );
        assert_eq!(routes.lookup(ip("10.2.0.7")), Route::Unreachable);
        assert_eq!(routes.lookup(ip("10.3.0.7")), Route::None);
        assert_eq!(routes.lookup(ip("10.4.0.7")), Route::NotServed("docker0"));
        assert_eq!(
            Routes::new(1, &input(vec![])).lookup(ip("8.8.8.8")),
            Route::None
        );
    }

    #[test]
    fn the_lowest_usable_metric_wins_in_any_order() {
        let low = unicast("0.0.0.0/0", 50, vec![path(10, Some("192.0.2.1"))]);
        let high = unicast("0.0.0.0/0", 100, vec![path(20, Some("10.0.0.1"))]);
        for routes in [
            vec![low.clone(), high.clone()],
            vec![high.clone(), low.clone()],
        ] {
            let mut input = input(routes);
            assert_eq!(
                Routes::new(1, &input).lookup(ip("8.8.8.8")),
                via(0, "192.0.2.1", 1500)
            );
            input.interfaces[0].up = false;
            assert_eq!(
                Routes::new(1, &input).lookup(ip("8.8.8.8")),
                via(1, "10.0.0.1", 9000)
            );
            input.interfaces[1].up = false;
            assert_eq!(
                Routes::new(1, &input).lookup(ip("8.8.8.8")),
                Route::Unreachable
            );
        }
        let stop = special("0.0.0.0/0", 10, RouteKind::Unreachable);
        let routes = Routes::new(1, &input(vec![low, stop, high]));
        assert_eq!(routes.lookup(ip("8.8.8.8")), Route::Unreachable);
    }

    #[test]
    fn a_link_that_is_down_does_not_fall_back_to_a_shorter_prefix() {
        let mut input = input(vec![
            unicast("0.0.0.0/0", 0, vec![path(10, Some("192.0.2.1"))]),
            unicast("10.0.0.0/8", 0, vec![path(20, None)]),
        ]);
        input.interfaces[1].up = false;
        assert_eq!(
            Routes::new(1, &input).lookup(ip("10.1.1.1")),
            Route::Unreachable
        );
    }

    #[test]
    fn the_mtu_metric_only_lowers() {
        for (metric, mtu) in [
            (Some(1400), 1400),
            (Some(9000), 1500),
            (Some(1 << 20), 1500),
        ] {
            let mut route = unicast("0.0.0.0/0", 0, vec![path(10, None)]);
            route.mtu = metric;
            let routes = Routes::new(1, &input(vec![route]));
            assert_eq!(
                routes.lookup(ip("8.8.8.8")),
                Route::OnLink { interface: 0, mtu }
            );
        }
    }

    #[test]
    fn multipath_follows_the_weights_and_skips_dead_paths() {
        let mut paths = vec![path(10, Some("192.0.2.1")), path(10, Some("192.0.2.2"))];
        paths[1].weight = 3;
        let count = |paths: &[PathFacts]| {
            let routes = Routes::new(1, &input(vec![unicast("0.0.0.0/0", 0, paths.to_vec())]));
            let first = (0..4000_u32)
                .filter(|n| routes.lookup(Ipv4Addr::from(*n)) == via(0, "192.0.2.1", 1500))
                .count();
            assert_eq!(routes.lookup(ip("9.9.9.9")), routes.lookup(ip("9.9.9.9")));
            first
        };
        let first = count(&paths);
        assert!(
            (800..1200).contains(&first),
            "{first} of 4000 on a path of weight 1 of 4"
        );
        paths[1].down = true;
        assert_eq!(count(&paths), 4000);
        paths[1].down = false;
        paths[1].ifindex = 30;
        assert_eq!(count(&paths), 4000);
        paths[1] = PathFacts {
            foreign: true,
            ..path(10, None)
        };
        assert_eq!(count(&paths), 4000);
    }

    #[test]
    fn a_foreign_path_is_not_served() {
        let foreign = PathFacts {
            foreign: true,
            ..path(10, None)
        };
        let routes = Routes::new(1, &input(vec![unicast("0.0.0.0/0", 0, vec![foreign])]));
        assert_eq!(routes.lookup(ip("8.8.8.8")), Route::NotServed("ext"));
    }

    fn forwarding(generation: u32) -> Forwarding {
        let served = vec![
            ServedInterface {
                name: "ext".into(),
                ifindex: 10,
            },
            ServedInterface {
                name: "int".into(),
                ifindex: 20,
            },
        ];
        Forwarding::new(served, 64, generation)
    }

    #[test]
    fn destinations_become_hops() {
        let forwarding = forwarding(7);
        forwarding.publish(&input(vec![
            unicast("0.0.0.0/0", 0, vec![path(10, Some("192.0.2.1"))]),
            unicast("10.0.0.0/8", 0, vec![path(20, None)]),
            unicast("10.9.0.0/16", 0, vec![path(30, None)]),
            special("10.8.0.0/16", 0, RouteKind::Unreachable),
            special("10.7.0.0/16", 0, RouteKind::Local),
        ]));
        let routes = forwarding.routes().load_full();
        assert_eq!(routes.generation(), 8);
        let hop = |to| forwarding.next_hop(&routes, ip(to));
        let far = hop("8.8.8.8").unwrap();
        assert_eq!(hop("9.9.9.9"), Ok(far), "one hop for all behind a gateway");
        let gateway = forwarding.hops().load(far);
        assert_eq!(
            (gateway.interface, gateway.addr, gateway.mtu),
            (0, ip("192.0.2.1"), 1500)
        );
        let near = forwarding.hops().load(hop("10.0.0.9").unwrap());
        assert_eq!(
            (near.interface, near.addr, near.mtu),
            (1, ip("10.0.0.9"), 9000)
        );
        assert_eq!(hop("10.9.0.1"), Err(NoRoute::NotServed));
        assert_eq!(hop("10.8.0.1"), Err(NoRoute::Unreachable));
        assert_eq!(hop("10.7.0.1"), Err(NoRoute::None));
        for n in 0..64 {
            let _ = forwarding.next_hop(&routes, Ipv4Addr::from(0x0a01_0000 + n));
        }
        assert_eq!(hop("10.1.1.1"), Err(NoRoute::TableFull));
    }

    #[test]
    fn a_remembered_hop_is_good_for_its_generation_only() {
        for start in [0, 5, (1 << 14) - 2, u32::MAX - 1] {
            let forwarding = forwarding(start);
            let all = input(vec![unicast(
                "0.0.0.0/0",
                0,
                vec![path(10, Some("192.0.2.1"))],
            )]);
            forwarding.publish(&all);
            let first = forwarding.routes().load_full();
            let number = forwarding.next_hop(&first, ip("8.8.8.8")).unwrap();
            let remembered = forwarding.encode(&first, number);
            assert_eq!(
                forwarding.decode_if_current(&first, remembered),
                Some(number)
            );
            assert_eq!(forwarding.decode_if_current(&first, NextHop::NONE), None);
            assert_eq!(
                forwarding.decode_if_current(&first, NextHop(remembered.0 + 1)),
                None
            );
            forwarding.publish(&all);
            let second = forwarding.routes().load_full();
            assert_eq!(forwarding.decode_if_current(&second, remembered), None);
            let again = forwarding.next_hop(&second, ip("8.8.8.8")).unwrap();
            assert_eq!(again, number, "hops outlive generations");
            forwarding.turn_over();
            let third = forwarding.routes().load_full();
            assert_eq!(third.lookup(ip("8.8.8.8")), second.lookup(ip("8.8.8.8")));
            let remembered = forwarding.encode(&second, again);
            assert_eq!(forwarding.decode_if_current(&third, remembered), None);
        }
    }
}
