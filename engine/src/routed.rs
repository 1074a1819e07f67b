//! Routed mode: the kernel routes what is to be translated into a TAP, and what comes out of it on to
//! where it goes. No BPF program is loaded, so that it works in containers and user namespaces.
//!
//! The TAP has no ARP: the kernel takes its own MAC for everyone's behind it, and so does the engine,
//! for which the TAP is the one interface of a one-arm gateway. Packets from inside come by policy
//! rules and a table of their own, and so do not when their destination is internal or bypassed; packets
//! to a pool address come by a route in the main table. All of this is marked with [`PROTOCOL`]. When
//! the engine dies the TAP goes, and its routes with it; an `unreachable` route stays in the table, so
//! that nothing leaves untranslated.

mod lead;
mod rule;

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use crate::device::sys::link;
use crate::device::sys::tap::{Packets, Tap, TapError};
use crate::instance::Number;
use crate::punt::silence;
pub use lead::Lead;
use rule::{Rule, is_ours, rules};

/// The TAP's own address: the one for hosts that need one to send ICMP errors from (RFC 7600).
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// Where the kernel sends what is ours: an address on the TAP that nobody has, of those for networks
/// between a host and its translator (RFC 7335). One gateway is one neighbour, whatever is behind it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// Marks our rules and routes (`ip rule ... proto 231`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(231);
/// The kernel's table of ordinary routes (`RT_TABLE_MAIN`).
const TABLE_MAIN: u32 = 254;
/// Metric of our routes: one of the operator's for the same destination wins.
const METRIC: u32 = 231;
/// Tables and priorities of instances of one network namespace begin here.
const TABLE_BASE: u32 = 231_000_000;
const PRIORITY_BASE: u32 = 10_000;
/// Priorities of an instance.
const RANKS: u32 = 3;
/// What the TAP is told: packets from anywhere may come out of it, such as ICMP errors from
/// [`ADDRESS`]; those who send through it need no shorter way.
const SETTINGS: [(&str, &str); 3] = [
    ("rp_filter", "2"),
    ("accept_local", "1"),
    ("send_redirects", "0"),
];

/// Why routed mode could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RoutedError {
    /// The TAP could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// /dev/net/tun is not there, or not for this user.
    #[error(
        "/dev/net/tun: {0}; it must be open to this user: `chmod 666 /dev/net/tun` as root (the \
         default of most distributions), `modprobe tun` if it is missing, and in a container \
         `--device /dev/net/tun`"
    )]
    NoTun(#[source] io::Error),
    /// An engine of this name or number is running.
    #[error(
        "the TAP {0} is there and in use: by an engine of this instance's name, or by one that does \
         not share this one's /run/egret; `ip -details link show {0}`, stop it or start in another \
         network namespace"
    )]
    InUse(String),
    /// A rule or route could not be set.
    #[error("{step}: {why}")]
    Route {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        why: String,
    },
    /// A setting of the TAP could not be written.
    #[error("{path}: {source}")]
    Setting {
        /// The file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn at(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> RoutedError {
    move |error| RoutedError::Route {
        step: step.into(),
        why: error.to_string(),
    }
}

/// What routed mode is to carry.
#[derive(Clone, Debug)]
pub struct RoutedPlan {
    /// Name of the TAP, at most 15 characters.
    pub tap: String,
    /// The instance's number.
    pub number: Number,
    /// MTU of the TAP, bytes: the smallest of the served interfaces'. So no packet that the engine lets
    /// through is too big for the interface that it leaves by; the kernel would quote a translated one.
    pub mtu: u32,
    /// Queues of the TAP: as many as there are workers.
    pub queues: u32,
    /// Whose packets are translated.
    pub internal: Vec<Ipv4Net>,
    /// Destinations whose packets are not.
    pub bypass: Vec<Ipv4Net>,
    /// The pool's addresses.
    pub pool: Vec<Ipv4Addr>,
    /// Index of the external interface: there the kernel answers ARP for the pool.
    pub external: u32,
    /// Its name.
    pub external_name: String,
    /// Are clients behind it, too?
    pub one_arm: bool,
}

/// The TAP's queues, one a worker, and the way into it: rules and routes. These go with
/// [`remove_all`] and [`forget_proxies`], the TAP with the queues.
///
/// What a dead engine left is taken over, so that nothing slips through in between.
///
/// # Errors
/// The kernel's refusal; some of it may be set up then.
pub fn open(plan: &RoutedPlan) -> Result<Vec<Tap>, RoutedError> {
    let name = &plan.tap;
    let fail = |step| TapError::at(name, step);
    let taps =
        Tap::create_queues(name, plan.queues, Packets::Unfinished).map_err(|error| match error
            .kind()
        {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                if std::fs::File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/net/tun")
                    .is_err() =>
            {
                RoutedError::NoTun(error)
            }
            io::ErrorKind::ResourceBusy => RoutedError::InUse(name.clone()),
            _ => fail("making it")(error).into(),
        })?;
    silence(name);
    link::set_mtu(name, plan.mtu).map_err(fail("setting its MTU"))?;
    for (key, value) in SETTINGS {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/{key}");
        std::fs::write(&path, value).map_err(|source| RoutedError::Setting { path, source })?;
    }
    let index = link::index(name).map_err(fail("finding it"))?;
    with_netlink(async |handle| lead_in(handle, plan, index).await)?;
    Ok(taps)
}

/// Are rules of an instance there, as those of a dead engine?
///
/// # Errors
/// The kernel's refusal.
pub fn stands(number: Number) -> Result<bool, RoutedError> {
    let (_, priority) = numbers(number);
    with_netlink(async |handle| Ok(!own_rules(handle, priority).await?.is_empty()))
}

/// Takes away the rules and routes of an instance, also those of a dead engine. Those that are gone
/// already are fine.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_all(number: Number) -> Result<(), RoutedError> {
    with_netlink(async |handle| clear(handle, number).await)
}

/// Lets the kernel no longer answer ARP for addresses on the interface of this index. Where it does not
/// that is fine.
///
/// # Errors
/// No netlink connection.
pub fn forget_proxies(external: u32, pool: &[Ipv4Addr]) -> Result<(), RoutedError> {
    with_netlink(async |handle| {
        for &addr in pool {
            let _ = handle
                .neighbours()
                .del(proxy(external, addr))
                .execute()
                .await;
        }
        Ok(())
    })
}

/// Runs `work` with a netlink connection, in the network namespace of the calling thread.
fn with_netlink<T>(
    work: impl AsyncFnOnce(&Handle) -> Result<T, RoutedError>,
) -> Result<T, RoutedError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let system = |error: io::Error| RoutedError::Route {
        step: "opening a netlink connection".to_owned(),
        why: error.to_string(),
    };
    runtime.map_err(system)?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(system)?;
        tokio::spawn(connection);
        work(&handle).await
    })
}

/// An instance's table, and the first of its priorities.
fn numbers(number: Number) -> (u32, u32) {
    let number = number.index();
    (TABLE_BASE + number, PRIORITY_BASE + RANKS * number)
}

async fn lead_in(handle: &Handle, plan: &RoutedPlan, index: u32) -> Result<(), RoutedError> {
    let name = &plan.tap;
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    up.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    let raised = handle.link().set(up).execute().await;
    raised.map_err(at(format!("bringing {name} up without ARP")))?;
    let given = handle
        .address()
        .add(index, IpAddr::V4(ADDRESS), 32)
        .execute();
    given
        .await
        .map_err(at(format!("giving {name} the address {ADDRESS}")))?;

    let (table, _) = numbers(plan.number);
    let anywhere = Ipv4Net::default();
    let fallback = unreachable(anywhere, table, u32::MAX);
    for message in [fallback, route(anywhere, table, index)] {
        let added = there_is(handle.route().add(message).execute().await);
        added.map_err(at(format!("adding a route to table {table}")))?;
    }
    settle_rules(handle, plan).await?;
    let metric = fallback_metric(plan.number);
    for &addr in &plan.pool {
        let fallback = unreachable(addr.into(), TABLE_MAIN, metric);
        for message in [fallback, route(addr.into(), TABLE_MAIN, index)] {
            let added = there_is(handle.route().add(message).execute().await);
            added.map_err(at(format!("routing {addr} to {name}")))?;
        }
    }
    settle_proxies(handle, plan).await
}

/// Makes the instance's rules those of the plan. The new ones first, so that nothing slips through.
async fn settle_rules(handle: &Handle, plan: &RoutedPlan) -> Result<(), RoutedError> {
    let (_, priority) = numbers(plan.number);
    let (wanted, before) = (rules(plan), own_rules(handle, priority).await?);
    for rule in &wanted {
        let added = there_is(rule.request(handle, priority).execute().await);
        added.map_err(at(format!(
            "adding a rule from {} to {}",
            rule.from, rule.to
        )))?;
    }
    // Of a dead engine with other prefixes or interfaces.
    let is_stale = |message: &RuleMessage| !wanted.contains(&Rule::of(message, priority));
    for rule in before.into_iter().filter(is_stale) {
        let removed = handle.rule().del(rule).execute().await;
        removed.map_err(at("removing a rule"))?;
    }
    Ok(())
}

/// Lets the kernel answer ARP for the pool on the external interface.
async fn settle_proxies(handle: &Handle, plan: &RoutedPlan) -> Result<(), RoutedError> {
    for &addr in &plan.pool {
        let answered = handle.neighbours().add(plan.external, addr.into());
        let answered = answered.flags(NeighbourFlags::Proxy).replace().execute();
        answered
            .await
            .map_err(at(format!("answering ARP for {addr}")))?;
    }
    Ok(())
}

fn route(destination: Ipv4Net, table: u32, index: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(destination.addr(), destination.prefix_len())
        .output_interface(index)
        .gateway(GATEWAY)
        .onlink()
        .table_id(table)
        .priority(METRIC)
        .protocol(PROTOCOL)
        .build()
}

/// The metric of what is left of an instance in the main table, by which it is found again.
fn fallback_metric(number: Number) -> u32 {
    u32::MAX - numbers(number).0
}

/// That it is there already, from a dead engine, is fine.
fn there_is(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => {
            Ok(())
        }
        result => result,
    }
}

/// What is left when the TAP goes: no packet falls through to another table, or to the default route
/// and back.
fn unreachable(destination: Ipv4Net, table: u32, metric: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(destination.addr(), destination.prefix_len())
        .table_id(table)
        .kind(RouteType::Unreachable)
        .priority(metric)
        .protocol(PROTOCOL)
        .build()
}

fn proxy(index: u32, addr: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Proxy;
    let destination = NeighbourAttribute::Destination(NeighbourAddress::Inet(addr));
    message.attributes.push(destination);
    message
}

/// Takes the instance's rules away, then its routes.
async fn clear(handle: &Handle, number: Number) -> Result<(), RoutedError> {
    let (table, priority) = numbers(number);
    for rule in own_rules(handle, priority).await? {
        let removed = handle.rule().del(rule).execute().await;
        removed.map_err(at("removing a rule"))?;
    }
    let routes: Vec<RouteMessage> = handle
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute()
        .try_collect()
        .await
        .map_err(at("listing the routes"))?;
    let metric = fallback_metric(number);
    let of_ours = |route: &RouteMessage| {
        let has = |wanted: RouteAttribute| route.attributes.contains(&wanted);
        let fallback = route.header.protocol == PROTOCOL && has(RouteAttribute::Priority(metric));
        fallback || has(RouteAttribute::Table(table))
    };
    for route in routes.into_iter().filter(of_ours) {
        let removed = handle.route().del(route).execute().await;
        removed.map_err(at("removing a route"))?;
    }
    Ok(())
}

/// The rules of an instance that the kernel has.
async fn own_rules(handle: &Handle, first: u32) -> Result<Vec<RuleMessage>, RoutedError> {
    let rules = handle.rule().get(IpVersion::V4).execute();
    let rules: Vec<RuleMessage> = rules.try_collect().await.map_err(at("listing the rules"))?;
    Ok(rules
        .into_iter()
        .filter(|rule| is_ours(rule, first))
        .collect())
}
