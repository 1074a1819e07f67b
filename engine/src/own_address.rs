//! Pool addresses that are Egret's own: the kernel answers ARP for them because of a local route,
//! engine or not, and the engine announces them.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use conntrack::AddressKind;
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tracing::warn;

use crate::gateway::Shared;
use crate::undo::{Change, Undo};
use crate::wire::arp;

/// The kernel's table of local addresses (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;
/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;
/// Marks our routes, so that they are told from the administrator's (`ip route ... proto 231`): a
/// number that nothing in iproute2's table of routing protocols has.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(231);

fn route(addr: Ipv4Addr) -> rtnetlink::packet_route::route::RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(addr, 32)
        .output_interface(LOOPBACK)
        .table_id(TABLE_LOCAL)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .protocol(PROTOCOL)
        .build()
}

/// Adds `local ADDR/32 dev lo`. One that is there already, of an earlier engine, is fine.
async fn add(handle: &Handle, addr: Ipv4Addr) -> io::Result<()> {
    match handle.route().add(route(addr)).execute().await {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => {
            Ok(())
        }
        Err(error) => Err(io::Error::other(format!(
            "adding the local route for {addr}: {error}"
        ))),
    }
}

/// Takes our local route away; one that is gone already is fine.
async fn remove(handle: &Handle, addr: Ipv4Addr) -> io::Result<()> {
    match handle.route().del(route(addr)).execute().await {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ESRCH => {
            Ok(())
        }
        Err(error) => Err(io::Error::other(format!(
            "removing the local route for {addr}: {error}"
        ))),
    }
}

/// Takes away local routes of a dead engine, in the network namespace of the calling thread.
///
/// # Errors
/// The first one that is still there.
pub fn remove_all(addrs: &[Ipv4Addr]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        for &addr in addrs {
            remove(&handle, addr).await?;
        }
        Ok(())
    })
}

/// How often the announcements of a burst go out, and how many there are: one may be lost, and
/// switches forget.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
const ANNOUNCE_COUNT: u32 = 5;

/// A frame that a worker shall send as it is.
#[derive(Clone, Copy, Debug)]
pub struct Announcement {
    /// Egress interface.
    pub interface: u8,
    /// The frame: a gratuitous ARP message.
    pub frame: [u8; arp::FRAME_LEN],
}

/// Answers for own addresses (through the kernel) and announces them: in a burst at the start, and
/// again whenever an address or a MAC has changed.
pub struct Announcer {
    handle: Handle,
    /// Addresses with a local route of ours.
    routed: Vec<Ipv4Addr>,
    /// Those that could not be given one; it was told.
    refused: Vec<Ipv4Addr>,
    /// Those with one of a dead engine before us.
    inherited: Vec<Ipv4Addr>,
    undo: Arc<Mutex<Undo>>,
    announced: Vec<(u8, [u8; 6], Ipv4Addr)>,
    left: u32,
}

impl Announcer {
    /// Opens its netlink connection, in the network namespace of the calling thread.
    pub fn open(undo: Arc<Mutex<Undo>>) -> io::Result<Announcer> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let inherited = lock(&undo).routes();
        Ok(Announcer {
            handle,
            routed: Vec::new(),
            refused: Vec::new(),
            inherited,
            undo,
            announced: Vec::new(),
            left: 0,
        })
    }

    /// Routes the pool's own addresses to the host, and puts the next round of announcements into
    /// the workers' queue. Called every [`ANNOUNCE_INTERVAL`].
    pub async fn tick(&mut self, shared: &Shared) {
        let wanted: Vec<Ipv4Addr> = {
            let policy = shared.rulebook.load();
            let own = policy
                .addresses
                .iter()
                .filter(|own| own.kind == AddressKind::Own);
            own.map(|own| own.addr).collect()
        };
        self.follow(&wanted).await;
        let links = shared.links.load_full();
        let external = links
            .links
            .iter()
            .zip(0u8..)
            .filter(|(link, _)| link.role.is_external() && link.present);
        let now: Vec<_> = external
            .flat_map(|(link, number)| wanted.iter().map(move |&addr| (number, link.mac, addr)))
            .collect();
        if now != self.announced {
            self.announced = now;
            self.left = ANNOUNCE_COUNT;
        }
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        for &(interface, mac, addr) in &self.announced {
            for operation in [arp::REQUEST, arp::REPLY] {
                let frame = arp::announcement(mac, addr, operation);
                // A full queue loses this round's rest; the next round comes.
                let _ = shared.announcements.push(Announcement { interface, frame });
            }
        }
    }

    /// Routes exactly these addresses to the host.
    async fn follow(&mut self, wanted: &[Ipv4Addr]) {
        let inherited = std::mem::take(&mut self.inherited);
        let there = inherited.iter().chain(&self.routed);
        for &addr in there.filter(|addr| !wanted.contains(addr)) {
            match remove(&self.handle, addr).await {
                Ok(()) => lock(&self.undo).remove(&Change::Route(addr)),
                Err(error) => warn!(%addr, %error, "a local route is left behind"),
            }
        }
        self.routed.retain(|addr| wanted.contains(addr));
        for &addr in wanted {
            if self.routed.contains(&addr) {
                continue;
            }
            let noted = lock(&self.undo).add(Change::Route(addr));
            // Before the wait for the answer, which an end may cut short.
            self.routed.push(addr);
            let added = match noted {
                Ok(()) => add(&self.handle, addr).await,
                Err(error) => Err(error),
            };
            let Err(error) = added else {
                self.refused.retain(|&other| other != addr);
                continue;
            };
            // Tried again with every tick, but told once.
            self.routed.retain(|&other| other != addr);
            if !self.refused.contains(&addr) {
                warn!(%addr, %error, "nobody answers ARP for this pool address");
                self.refused.push(addr);
            }
        }
    }

    /// Takes the local routes away.
    pub async fn stop(&mut self) {
        self.follow(&[]).await;
    }
}

/// The list, whatever happened to a thread that held it.
fn lock(undo: &Mutex<Undo>) -> MutexGuard<'_, Undo> {
    undo.lock().unwrap_or_else(PoisonError::into_inner)
}
