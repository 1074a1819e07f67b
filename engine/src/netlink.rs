//! The thread that follows the kernel: routes, interfaces, addresses and neighbours of one network
//! namespace, read once and then kept up to date by what rtnetlink announces.
//!
//! Announcements about interfaces, addresses and routes only trigger a new reading of all three
//! (bursts are gathered): IPv4 routes vanish without an announcement when an interface goes down or
//! loses an address, and a replaced route is announced as if it were added. Announcements about
//! neighbours are applied one by one. When announcements were lost, everything is read again. What
//! was announced while a reading was under way is applied after it; the last word about an object
//! is always the kernel's latest.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::interface::InterfaceFacts;
use crate::neighbour::{HopNumber, TURN_MIN};
use crate::route::{
    Forwarding, InterfaceState, PathFacts, RouteFacts, RouteInput, RouteKind, ServedInterface,
    clamp,
};

pub(crate) mod dump;
mod mirror;

use dump::{NeighbourFacts, NeighbourRequest, Network, Requests, neighbour_of};
use mirror::{Key, Mirror};

/// How long a burst of announcements is gathered.
const GATHER: Duration = Duration::from_millis(10);

/// Reading again takes at most one part in this many of the time.
const REST: u32 = 10;

/// How long a worker's further requests for a hop are ignored.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Wait before a broken socket is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Receive buffer of the announcements, bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Interfaces and addresses of the network namespace at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NetworkView {
    /// All interfaces.
    pub interfaces: Vec<InterfaceFacts>,
    /// Every address that the host receives packets for: those of its interfaces, and single
    /// addresses routed to it (`local ADDR/32`). Sorted, each once.
    pub locals: Vec<Ipv4Addr>,
}

impl NetworkView {
    pub(crate) fn of(network: &Network) -> NetworkView {
        let own = network.interfaces.iter().flat_map(|facts| &facts.addresses);
        let mut locals: Vec<Ipv4Addr> = own.map(|net| net.addr()).collect();
        let routed = network
            .routes
            .iter()
            .filter(|route| route.kind == RouteKind::Local);
        let single = routed.filter(|route| route.prefix.prefix_len() == 32);
        locals.extend(single.map(|route| route.prefix.addr()));
        locals.sort_unstable();
        locals.dedup();
        NetworkView {
            interfaces: network.interfaces.clone(),
            locals,
        }
    }

    /// Own addresses of an interface, primary first; empty while it has none or is absent.
    pub fn addresses(&self, ifindex: u32) -> Vec<Ipv4Addr> {
        self.interfaces
            .iter()
            .filter(|facts| facts.ifindex == ifindex)
            .flat_map(|facts| facts.addresses.iter().map(|net| net.addr()))
            .collect()
    }
}

/// The running thread. Dropping it stops the thread.
pub struct NetlinkHandle {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    view: watch::Receiver<Arc<NetworkView>>,
}

impl NetlinkHandle {
    /// Interfaces and addresses, and the news of their changes.
    pub fn view(&self) -> watch::Receiver<Arc<NetworkView>> {
        self.view.clone()
    }

    /// Stops the thread and takes our marks off the kernel's neighbour entries.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the netlink thread panicked");
        }
    }
}

impl Drop for NetlinkHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads everything, publishes it, and starts the thread that keeps it up to date, in the network
/// namespace of the calling thread.
///
/// # Errors
/// The thread or the sockets cannot be made, or the kernel refuses a reading.
pub fn start(forwarding: Arc<Forwarding>) -> io::Result<NetlinkHandle> {
    let (stop, stopped) = oneshot::channel();
    let (started, result) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("egret-netlink".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async move {
                match Follower::open(forwarding, RECEIVE_BUFFER).await {
                    Ok((mut follower, view)) => {
                        let _ = started.send(Ok(view));
                        follower.run(stopped).await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        })?;
    let view = result
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("netlink thread ended")))?;
    Ok(NetlinkHandle {
        stop: Some(stop),
        thread: Some(thread),
        view,
    })
}

type Announcement = NetlinkMessage<RouteNetlinkMessage>;

/// The socket of the announcements.
struct Announcements {
    messages: Pin<Box<dyn Stream<Item = Announcement>>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Announcements {
    fn open(receive_buffer: usize) -> io::Result<Announcements> {
        let (mut connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ])?;
        let socket = connection.socket_mut().socket_mut();
        // Without CAP_NET_ADMIN the buffer stays at the system's limit; then losses are likelier.
        if nix::sys::socket::setsockopt(
            &std::os::fd::AsFd::as_fd(socket),
            nix::sys::socket::sockopt::RcvBufForce,
            &receive_buffer,
        )
        .is_err()
        {
            socket.set_rx_buf_sz(receive_buffer as i32)?;
        }
        let messages = Box::pin(messages.map(|(message, _)| message));
        Ok(Announcements {
            messages,
            connection: tokio::spawn(connection),
        })
    }
}

impl Drop for Announcements {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// State of the thread.
struct Follower {
    forwarding: Arc<Forwarding>,
    requests: Requests,
    announcements: Announcements,
    mirror: Mirror,
    input: RouteInput,
    view: watch::Sender<Arc<NetworkView>>,
    /// When to read interfaces, addresses and routes again.
    read_at: Option<Instant>,
    /// Not before this.
    rested_at: Instant,
    /// Neighbours, too: announcements were lost.
    lost: bool,
    allow: VecDeque<(Instant, HopNumber)>,
    turned_at: Option<Instant>,
}

impl Follower {
    async fn open(
        forwarding: Arc<Forwarding>,
        receive_buffer: usize,
    ) -> io::Result<(Follower, watch::Receiver<Arc<NetworkView>>)> {
        let (view, receiver) = watch::channel(Arc::default());
        let mut follower = Follower {
            forwarding,
            // Announcements first, so that nothing between the two is missed.
            announcements: Announcements::open(receive_buffer)?,
            requests: Requests::open()?,
            mirror: Mirror::default(),
            input: RouteInput::default(),
            view,
            read_at: None,
            rested_at: Instant::now(),
            lost: false,
            allow: VecDeque::new(),
            turned_at: None,
        };
        follower.read_network().await?;
        follower.read_neighbours().await?;
        Ok((follower, receiver))
    }

    async fn run(&mut self, mut stopped: oneshot::Receiver<()>) {
        let forwarding = self.forwarding.clone();
        loop {
            let read_at = self.read_at.map(|at| at.max(self.rested_at));
            let allow_at = self.allow.front().map(|first| first.0);
            let result = tokio::select! {
                _ = &mut stopped => break,
                message = self.announcements.messages.next() => match message {
                    Some(message) => self.announced(message).await,
                    None => Err(io::Error::other("the socket of the announcements closed")),
                },
                () = forwarding.hops().requested() => self.asked().await,
                () = until(allow_at) => {
                    self.allow_requests();
                    Ok(())
                }
                () = until(read_at) => self.read_again().await,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "rtnetlink failed; reading everything again");
                if !self.reopen(&mut stopped).await {
                    break;
                }
            }
        }
        self.release_all().await;
    }

    /// Handles one announcement.
    async fn announced(&mut self, message: Announcement) -> io::Result<()> {
        use RouteNetlinkMessage as M;
        match message.payload {
            NetlinkPayload::InnerMessage(M::NewNeighbour(message)) => {
                if let Some((key, facts)) = self.known(neighbour_of(&message)) {
                    let follow = self.mirror.changed(self.forwarding.hops(), key, &facts);
                    self.send(key, follow).await;
                }
            }
            NetlinkPayload::InnerMessage(M::DelNeighbour(message)) => {
                if let Some((key, _)) = self.known(neighbour_of(&message)) {
                    self.mirror.removed(self.forwarding.hops(), key);
                }
            }
            NetlinkPayload::InnerMessage(
                M::NewLink(_)
                | M::DelLink(_)
                | M::NewAddress(_)
                | M::DelAddress(_)
                | M::NewRoute(_)
                | M::DelRoute(_),
            ) => self.read_soon(),
            NetlinkPayload::Overrun(_) => {
                tracing::warn!("rtnetlink announcements were lost; reading everything again");
                self.lost = true;
                self.read_soon();
            }
            _ => {}
        }
        Ok(())
    }

    fn read_soon(&mut self) {
        self.read_at.get_or_insert_with(|| Instant::now() + GATHER);
    }

    async fn read_again(&mut self) -> io::Result<()> {
        self.read_at = None;
        let begin = Instant::now();
        self.read_network().await?;
        if self.lost {
            self.read_neighbours().await?;
            self.lost = false;
        }
        // A table of a million routes takes seconds to read; a flapping one must not take a core.
        self.rested_at = Instant::now() + begin.elapsed() * REST;
        Ok(())
    }

    async fn read_network(&mut self) -> io::Result<()> {
        let network = self.requests.network().await?;
        let view = NetworkView::of(&network);
        let input = self.input_of(network);
        if input != self.input {
            let generation = self.forwarding.publish(&input);
            tracing::debug!(generation, routes = input.routes.len(), "routes changed");
            self.input = input;
        }
        self.view.send_if_modified(|present| {
            let changed = **present != view;
            if changed {
                *present = Arc::new(view);
            }
            changed
        });
        Ok(())
    }

    fn input_of(&self, network: Network) -> RouteInput {
        let served = self.forwarding.served();
        let state = |ifindex: u32, name: &str| {
            let absent = InterfaceState {
                name: name.into(),
                ifindex,
                ..Default::default()
            };
            let facts = network
                .interfaces
                .iter()
                .find(|facts| facts.ifindex == ifindex);
            facts.map_or(absent, |facts| InterfaceState {
                name: facts.name.clone(),
                ifindex,
                mac: facts.mac.unwrap_or_default(),
                mtu: clamp(facts.mtu),
                up: facts.up,
                arp: facts.arp,
                addresses: facts.addresses.iter().map(|net| net.addr()).collect(),
            })
        };
        RouteInput {
            interfaces: served
                .iter()
                .map(|one| state(one.ifindex, &one.name))
                .collect(),
            other_interfaces: network
                .interfaces
                .iter()
                .filter(|facts| served.iter().all(|one| one.ifindex != facts.ifindex))
                .map(|facts| (facts.ifindex, facts.name.clone()))
                .collect(),
            routes: match self.forwarding.gateway() {
                Some(gateway) => served.iter().map(|one| by_gateway(one, gateway)).collect(),
                None => network.routes,
            },
        }
    }

    async fn read_neighbours(&mut self) -> io::Result<()> {
        let list = self.requests.neighbours().await?;
        let list: Vec<_> = list
            .into_iter()
            .filter_map(|facts| self.known(Some(facts)))
            .collect();
        for (key, what) in self.mirror.replaced(self.forwarding.hops(), &list) {
            self.send(key, Some(what)).await;
        }
        Ok(())
    }

    /// A neighbour on a served interface, with its key.
    fn known(&self, facts: Option<NeighbourFacts>) -> Option<(Key, NeighbourFacts)> {
        let facts = facts?;
        let served = self.forwarding.served();
        let number = served.iter().position(|one| one.ifindex == facts.ifindex)?;
        Some(((number as u8, facts.addr), facts))
    }

    /// Handles the requests of the workers.
    async fn asked(&mut self) -> io::Result<()> {
        let forwarding = self.forwarding.clone();
        while let Some(number) = forwarding.hops().next_request() {
            self.allow.push_back((Instant::now() + ASK_AGAIN, number));
            if !forwarding.hops().contains(number) {
                continue;
            }
            let interface = usize::from(forwarding.hops().load(number).interface);
            // As the kernel: whoever is behind an interface without ARP has its own address.
            let state = self.input.interfaces.get(interface);
            let fixed = state.filter(|state| !state.arp).map(|state| state.mac);
            let (key, follow) = self.mirror.ask(forwarding.hops(), number, fixed);
            self.send(key, follow).await;
        }
        self.turn_over().await;
        Ok(())
    }

    /// Makes room in a crowded hop table.
    async fn turn_over(&mut self) {
        let hops = self.forwarding.hops();
        let early = self.turned_at.is_some_and(|at| at.elapsed() < TURN_MIN);
        if !hops.is_crowded() || early {
            return;
        }
        let released = self.mirror.forget(|number| hops.survives_turn(number));
        self.forwarding.turn_over();
        self.turned_at = Some(Instant::now());
        tracing::debug!("the hop table was crowded and is filled anew");
        for key in released {
            self.send(key, Some(NeighbourRequest::Release)).await;
        }
    }

    fn allow_requests(&mut self) {
        let now = Instant::now();
        while let Some((at, number)) = self.allow.front().copied()
            && at <= now
        {
            self.allow.pop_front();
            self.forwarding.hops().allow_request(number);
        }
    }

    /// Sends what follows from an event. A refusal is no reason to stop: the hop stays as it is,
    /// and traffic asks again.
    async fn send(&mut self, (interface, addr): Key, what: Option<NeighbourRequest>) {
        let Some(what) = what else { return };
        let Some(served) = self.forwarding.served().get(usize::from(interface)) else {
            return;
        };
        if let Err(error) = self.requests.neighbour(served.ifindex, addr, what).await {
            tracing::debug!(%error, %addr, interface = served.name, ?what, "neighbour refused");
        }
    }

    /// Opens the sockets again after a failure; false when told to stop meanwhile.
    async fn reopen(&mut self, stopped: &mut oneshot::Receiver<()>) -> bool {
        loop {
            tokio::select! {
                _ = &mut *stopped => return false,
                () = tokio::time::sleep(REOPEN) => {}
            }
            match (Announcements::open(RECEIVE_BUFFER), Requests::open()) {
                (Ok(announcements), Ok(requests)) => {
                    (self.announcements, self.requests) = (announcements, requests);
                    self.lost = true;
                    self.read_soon();
                    return true;
                }
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(%error, "rtnetlink cannot be opened");
                }
            }
        }
    }

    async fn release_all(&mut self) {
        for key in self.mirror.forget(|_| false) {
            self.send(key, Some(NeighbourRequest::Release)).await;
        }
    }
}

/// The route of all packets where the kernel finds the way itself.
fn by_gateway(served: &ServedInterface, gateway: Ipv4Addr) -> RouteFacts {
    RouteFacts {
        prefix: Ipv4Net::default(),
        kind: RouteKind::Unicast,
        metric: 0,
        mtu: None,
        paths: vec![PathFacts {
            ifindex: served.ifindex,
            gateway: Some(gateway),
            weight: 1,
            down: false,
            foreign: false,
        }],
    }
}

/// Sleeps until then; for ever if there is nothing to wait for.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::neighbour::HopState;
    use crate::route::{Route, ServedInterface};

    fn run(program: &str, arguments: &str) {
        let output = Command::new(program)
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "{program} {arguments}: {output:?}");
    }

    /// Runs a test in a network namespace of its own, if that is allowed.
    fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                let strict = std::env::var_os("EGRET_TESTS_NO_SKIP").is_some();
                assert!(!strict, "no network namespace: {error}");
                println!("skipped: no network namespace: {error}");
                return;
            }
            test();
        });
        thread.join().unwrap();
    }

    #[test]
    fn lost_announcements_lead_to_a_new_reading() {
        in_a_namespace(|| {
            run("ip", "link add v0 type veth peer name v1");
            run("ip", "addr add 10.0.0.1/24 dev v0");
            run("ip", "link set v0 up");
            run("ip", "link set v1 up");
            let ifindex = nix::net::if_::if_nametoindex("v0").unwrap();
            let served = vec![ServedInterface {
                name: "v0".into(),
                ifindex,
            }];
            let forwarding = Arc::new(Forwarding::new(served, 64, 0));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (mut follower, _) = Follower::open(forwarding.clone(), 1).await.unwrap();
                let number = forwarding
                    .hops()
                    .number_of(0, Ipv4Addr::new(10, 0, 0, 9), 1500);
                let number = number.unwrap();
                follower.asked().await.unwrap();
                let hops = forwarding.hops();
                assert_ne!(hops.load(number).state, HopState::Resolved);
                // The runtime stands still meanwhile, so the buffer of one message overflows.
                for n in 0..50 {
                    run("ip", &format!("route add 9.0.{n}.0/24 via 10.0.0.2"));
                }
                run(
                    "ip",
                    "neigh replace 10.0.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent",
                );
                loop {
                    let message = follower.announcements.messages.next().await.unwrap();
                    let overrun = matches!(message.payload, NetlinkPayload::Overrun(_));
                    follower.announced(message).await.unwrap();
                    if overrun {
                        break;
                    }
                }
                assert!(follower.lost);
                let (stop, stopped) = oneshot::channel();
                let reading = tokio::time::timeout(Duration::from_secs(10), async {
                    let mut ticks = tokio::time::interval(Duration::from_millis(5));
                    while hops.load(number).state != HopState::Resolved {
                        ticks.tick().await;
                    }
                    drop(stop);
                });
                let (read, ()) = tokio::join!(reading, follower.run(stopped));
                read.expect("the hop resolves");
                let routes = forwarding.routes().load();
                let last = routes.lookup(Ipv4Addr::new(9, 0, 49, 1));
                assert!(matches!(last, Route::Via { .. }), "{last:?}");
            });
        });
    }
}
