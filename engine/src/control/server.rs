//! The listening side: takes clients in, as many as it can bear, and answers each.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use conntrack::Time;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nix::unistd::{Gid, chown};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::access::{Access, Group, Peer};
use super::answer::{Answer, ErrorCode, Flushed, Refusal};
use super::listing::Listing;
use super::report::{Soundness, Status};
use super::request::{Flush, Plain, REQUEST_LEN_MAX, Request, WATCH_INTERVAL_MS, Watch};
use super::watch::Watching;
use crate::gateway::Shared;

/// A client that is slower than this to ask is hung up on.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// So is one that takes nothing of its answer for so long: a pager may keep it waiting.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time of a flush: one worker ends some 100,000 sessions a second beside its packets.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of a request that are read at most, and ignored beyond those of the longest one.
const IGNORED_MAX: u64 = 1 << 20;
/// Clients that are served at a time.
const CLIENTS_MAX: usize = 16;
/// Of these, listings.
const LISTINGS_MAX: usize = 8;
/// And watchers, each of which has a copy of the sessions' endpoints.
const WATCHERS_MAX: usize = 2;

/// Wait after a client that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What answers are made of; lives on the control thread.
pub trait Source {
    /// What the gateway tells of itself.
    fn status(&self) -> Status;
    /// Work that tells whether the tables are sound: it takes seconds when they are large, so it is
    /// done beside the control thread. Exact only when no traffic flows.
    fn invariants(&self) -> Box<dyn FnOnce() -> Soundness + Send>;
    /// Makes a start on trial one for good.
    ///
    /// # Errors
    /// Why that cannot be.
    fn confirm(&self) -> Result<(), Refusal>;
    /// The tables, and what the workers share.
    fn shared(&self) -> &Arc<Shared>;
    /// The time.
    fn now(&self) -> Time;
}

/// The listening socket; its file goes away with it.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    access: Access,
    listings: Semaphore,
    watchers: Semaphore,
}

impl Control {
    /// Listens on `path`, for the members of a group, too, if one is given. A file left behind by a
    /// dead engine is replaced; the caller holds the instance's lock, so no living engine listens on
    /// it.
    ///
    /// # Errors
    /// The kernel's refusal, or something other than a socket is there; the path is in the text.
    pub fn listen(path: &Path, group: Option<Group>) -> io::Result<Control> {
        let listener = bind(path, group.as_ref()).map_err(|error| {
            let path = path.display();
            io::Error::new(error.kind(), format!("control socket {path}: {error}"))
        })?;
        Ok(Control {
            listener,
            path: path.to_owned(),
            access: Access::new(group),
            listings: Semaphore::new(LISTINGS_MAX),
            watchers: Semaphore::new(WATCHERS_MAX),
        })
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        match self.listener.accept().await {
            Ok((client, _)) => Ok(client),
            // No free descriptor, say: that does not pass at once.
            Err(error) => {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                Err(error)
            }
        }
    }

    /// Serves until the future is dropped, several clients at a time: one may wait for a long
    /// answer.
    pub async fn serve(&self, source: &impl Source) {
        let mut clients = FuturesUnordered::new();
        loop {
            let has_room = clients.len() < CLIENTS_MAX;
            let failed = tokio::select! {
                accepted = self.accept(), if has_room => match accepted {
                    Ok(client) => {
                        clients.push(self.serve_one(client, source));
                        None
                    }
                    Err(error) => Some(error),
                },
                Some(served) = clients.next() => served.err(),
            };
            if let Some(error) = failed {
                warn!(%error, "control client failed");
            }
        }
    }

    /// Fails with `TimedOut` for a client that is slow to ask, or to take its answer.
    async fn serve_one(&self, client: UnixStream, source: &impl Source) -> io::Result<()> {
        let peer = Peer::of(&client)?;
        let (reader, writer) = client.into_split();
        let mut client = Client { reader, writer };
        let asked = match self.access.may_ask(&peer) {
            Ok(()) => client.request().await?.and_then(|request| {
                self.access.may(&peer, &request)?;
                Ok(request)
            }),
            Err(refusal) => Err(refusal),
        };
        let answered = match asked {
            Ok(request) => self.answer(&mut client, &peer, request, source).await,
            Err(refusal) => client.tell(&refusal.into()).await,
        };
        match answered {
            // Whoever has seen enough hangs up: `egret sessions | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            answered => answered,
        }
    }

    async fn answer(
        &self,
        client: &mut Client,
        peer: &Peer,
        request: Request,
        source: &impl Source,
    ) -> io::Result<()> {
        let shared = source.shared();
        let answer = match request {
            Request::Status(_) => Answer::Status(Box::new(source.status())),
            Request::Invariants(_) => {
                let checked = spawn_blocking(source.invariants()).await;
                Answer::Invariants(checked.map_err(io::Error::other)?)
            }
            Request::Confirm(_) => match source.confirm() {
                Ok(()) => Answer::Confirmed(Plain {}),
                Err(refusal) => refusal.into(),
            },
            Request::Flush(flush) => self.flush(peer, flush, shared).await,
            Request::Sessions(list) => {
                return self
                    .list(client, Listing::sessions(shared, list), source)
                    .await;
            }
            Request::Mappings(list) => {
                return self
                    .list(client, Listing::mappings(shared, list), source)
                    .await;
            }
            Request::Lookup(lookup) => {
                return self
                    .list(client, Listing::lookup(shared, lookup), source)
                    .await;
            }
            Request::Watch(watch) => return self.watch(client, watch, source).await,
        };
        client.tell(&answer).await
    }

    async fn list(
        &self,
        client: &mut Client,
        mut listing: Listing,
        source: &impl Source,
    ) -> io::Result<()> {
        let _seat = match seat(&self.listings, "listings", LISTINGS_MAX) {
            Ok(seat) => seat,
            Err(refusal) => return client.tell(&refusal.into()).await,
        };
        let (mut lines, mut over) = (Vec::new(), false);
        while !over {
            let now = source.now();
            lines.clear();
            let slice = spawn_blocking(move || {
                let over = listing.slice(now, &mut lines);
                (listing, lines, over)
            });
            (listing, lines, over) = slice.await.map_err(io::Error::other)?;
            client.send(&lines).await?;
        }
        Ok(())
    }

    /// Ends when the client hangs up.
    async fn watch(
        &self,
        client: &mut Client,
        watch: Watch,
        source: &impl Source,
    ) -> io::Result<()> {
        let _seat = match seat(&self.watchers, "watchers", WATCHERS_MAX) {
            Ok(seat) => seat,
            Err(refusal) => return client.tell(&refusal.into()).await,
        };
        let interval = Duration::from_millis(watch.interval_ms.unwrap_or(WATCH_INTERVAL_MS));
        let mut watching = Watching::new(source.shared(), watch.filter);
        let mut lines = Vec::new();
        loop {
            let mut over = false;
            while !over {
                let now = source.now();
                lines.clear();
                let slice = spawn_blocking(move || {
                    let over = watching.slice(now, &mut lines);
                    (watching, lines, over)
                });
                (watching, lines, over) = slice.await.map_err(io::Error::other)?;
                client.send(&lines).await?;
            }
            if timeout(interval, client.hung_up()).await.is_ok() {
                return Ok(());
            }
        }
    }

    async fn flush(&self, peer: &Peer, flush: Flush, shared: &Arc<Shared>) -> Answer {
        let Some(asked) = shared.flushes.begin(flush.filter.clone()) else {
            let what = "another flush is under way; ask again when it is through";
            return Refusal::new(ErrorCode::Busy, what).into();
        };
        match timeout(FLUSH_TIMEOUT, asked).await {
            Ok(Ok(removal)) => {
                let what = Request::Flush(flush).to_line();
                info!(
                    user = peer.uid,
                    sessions = removal.sessions,
                    "flushed: {what}"
                );
                Answer::Flushed(Flushed {
                    sessions: removal.sessions,
                    mappings: removal.mappings,
                    left: removal.left,
                })
            }
            _ => {
                let what = format!(
                    "the workers were not through within {} s; what they ended stays ended: ask \
                     again to end the rest",
                    FLUSH_TIMEOUT.as_secs()
                );
                Refusal::new(ErrorCode::Refused, what).into()
            }
        }
    }
}

/// A place among those that have a listing, or watch.
fn seat<'a>(seats: &'a Semaphore, of: &str, max: usize) -> Result<SemaphorePermit<'a>, Refusal> {
    seats.try_acquire().map_err(|_| {
        let what = format!("{max} {of} are under way, which is the most; ask again later");
        Refusal::new(ErrorCode::Busy, what)
    })
}

fn bind(path: &Path, group: Option<&Group>) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    if let Some(Group { name, gid }) = group {
        chown(path, None, Some(Gid::from_raw(*gid))).map_err(|error| {
            let error = io::Error::from(error);
            let what = format!(
                "giving it to the group `{name}` (`control.group`): {error}; run egret as root or \
                 as a member of that group"
            );
            io::Error::new(error.kind(), what)
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

impl Drop for Control {
    fn drop(&mut self) {
        // The file may be gone already; there is nobody left to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One connection.
struct Client {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

impl Client {
    /// The request, or what is wrong with it.
    async fn request(&mut self) -> io::Result<Result<Request, Refusal>> {
        let line = timeout(REQUEST_TIMEOUT, self.line()).await??;
        if line.len() > REQUEST_LEN_MAX {
            let what = format!("the request is longer than {REQUEST_LEN_MAX} bytes");
            return Ok(Err(Refusal::new(ErrorCode::BadRequest, what)));
        }
        let text = String::from_utf8_lossy(&line);
        Ok(Request::parse(text.trim()))
    }

    /// A line, or what is kept of one that is too long. Its rest is read, too: the kernel would tell
    /// the client of a broken connection before it tells of our answer.
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut reader = BufReader::new((&mut self.reader).take(IGNORED_MAX));
        loop {
            let part = reader.fill_buf().await?;
            let end = part.iter().position(|&byte| byte == b'\n');
            let len = end.map_or(part.len(), |end| end + 1);
            let room = (REQUEST_LEN_MAX + 1).saturating_sub(line.len());
            line.extend_from_slice(&part[..len.min(room)]);
            reader.consume(len);
            if end.is_some() || len == 0 {
                return Ok(line);
            }
        }
    }

    async fn tell(&mut self, answer: &Answer) -> io::Result<()> {
        self.send(&answer.to_line()).await
    }

    /// Sends lines as fast as they are taken.
    async fn send(&mut self, mut lines: &[u8]) -> io::Result<()> {
        while !lines.is_empty() {
            let sent = timeout(STALL_TIMEOUT, self.writer.write(lines)).await??;
            lines = &lines[sent..];
        }
        Ok(())
    }

    /// Waits until the client has closed its end. What it says meanwhile is not heard.
    async fn hung_up(&mut self) {
        let mut ignored = [0; 256];
        while matches!(self.reader.read(&mut ignored).await, Ok(1..)) {}
    }
}
