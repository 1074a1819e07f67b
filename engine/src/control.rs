//! The control socket: a Unix stream socket of mode 0660. A client sends one line, gets one JSON
//! object, and the connection ends. Requests: `status`, `invariants`, `confirm`.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

/// Longest request in bytes.
const REQUEST_LEN_MAX: u64 = 256;
/// A client that is slower than this is hung up on.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an answer: that to `invariants` takes seconds when the tables are large.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Clients that are served at a time.
const CLIENTS_MAX: usize = 16;

/// Wait after a client that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Answers requests; lives on the control thread.
pub trait Answer {
    /// The answer to `status`.
    fn status(&self) -> Value;
    /// Work that makes the answer to `invariants`: it checks the tables, which takes seconds when
    /// they are large, so it is done beside the control thread. Exact only when no traffic flows.
    fn invariants(&self) -> Box<dyn FnOnce() -> Value + Send>;
    /// Makes a start on trial one for good. The answer to `confirm`.
    fn confirm(&self) -> Value;
}

/// The listening socket; its file goes away with it.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens on `path`. A socket that is there is replaced: the caller holds the instance's lock, in
    /// every mode, so it is a dead engine's, unless two instances were given the same path.
    ///
    /// # Errors
    /// The kernel's refusal, or something other than a socket is there; the path is in the text.
    pub fn listen(path: &Path) -> io::Result<Control> {
        Control::bind(path).map_err(|error| {
            let path = path.display();
            io::Error::new(error.kind(), format!("control socket {path}: {error}"))
        })
    }

    fn bind(path: &Path) -> io::Result<Control> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        if std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Control {
            listener,
            path: path.to_owned(),
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
    pub async fn serve(&self, answer: &impl Answer) {
        let mut clients = FuturesUnordered::new();
        loop {
            let has_room = clients.len() < CLIENTS_MAX;
            let failed = tokio::select! {
                accepted = self.accept(), if has_room => match accepted {
                    Ok(client) => {
                        clients.push(serve_one(client, answer));
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
}

impl Drop for Control {
    fn drop(&mut self) {
        // The file may be gone already; there is nobody left to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Fails with `TimedOut` for a client that is slow to ask, or to take its answer.
async fn serve_one(client: UnixStream, answer: &impl Answer) -> io::Result<()> {
    let peer = client.peer_cred()?;
    let (reader, mut writer) = client.into_split();
    let reply = if may_ask(peer.uid(), peer.gid()) {
        let mut request = String::new();
        let mut reader = BufReader::new(reader.take(REQUEST_LEN_MAX));
        timeout(CLIENT_TIMEOUT, reader.read_line(&mut request)).await??;
        match request.trim() {
            "status" => answer.status(),
            "invariants" => spawn_blocking(answer.invariants())
                .await
                .map_err(io::Error::other)?,
            "confirm" if may_change(peer.uid()) => answer.confirm(),
            "confirm" => json!({ "error": "only root, or the engine's own user, may confirm" }),
            other => json!({
                "error": format!(
                    "unknown request `{other}`; allowed are `status`, `invariants`, `confirm`"
                ),
            }),
        }
    } else {
        json!({ "error": "only root, or the engine's own user or group, may ask" })
    };
    let reply = format!("{reply}\n");
    timeout(CLIENT_TIMEOUT, writer.write_all(reply.as_bytes())).await?
}

fn may_ask(uid: u32, gid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw() || gid == nix::unistd::getegid().as_raw()
}

/// Its group may look, but not decide.
fn may_change(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Sends one request to a running engine and returns its answer. Errors: nobody listens there, or
/// the answer is no JSON.
pub fn ask(path: &Path, request: &str) -> io::Result<Value> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Its check of the tables ends when the test says so.
    struct Slow(std::sync::Mutex<Option<mpsc::Receiver<()>>>);

    impl Answer for Slow {
        fn status(&self) -> Value {
            json!({ "status": "here" })
        }

        fn invariants(&self) -> Box<dyn FnOnce() -> Value + Send> {
            let end = self.0.lock().unwrap().take().expect("asked once");
            Box::new(move || match end.recv() {
                Ok(()) => json!({ "invariants": "ok" }),
                Err(_) => json!({ "invariants": "cut short" }),
            })
        }

        fn confirm(&self) -> Value {
            json!({ "confirmed": true })
        }
    }

    #[test]
    fn others_may_not_confirm() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(may_change(0) && may_change(own));
        assert!(!may_change(own + 1));
    }

    #[test]
    fn a_long_check_keeps_nobody_waiting() {
        let directory = std::env::temp_dir().join(format!("egret-control-{}", std::process::id()));
        let path = directory.join("socket");
        let (end, ended) = mpsc::channel();
        let answer = Slow(std::sync::Mutex::new(Some(ended)));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _context = runtime.enter();
        let control = Control::listen(&path).unwrap();
        let ask_in_thread = |request: &'static str| {
            let path = path.clone();
            std::thread::spawn(move || ask(&path, request).unwrap())
        };
        let clients = std::thread::scope(|scope| {
            let (answer, ask_in_thread) = (&answer, &ask_in_thread);
            let asker = scope.spawn(move || {
                let check = ask_in_thread("invariants");
                while answer.0.lock().unwrap().is_some() {
                    std::thread::yield_now();
                }
                // The check is under way, and only ends after this.
                let status = ask_in_thread("status").join().unwrap();
                end.send(()).unwrap();
                (status, check.join().unwrap())
            });
            let serve = async {
                let asked = async {
                    while !asker.is_finished() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    () = control.serve(answer) => {}
                    () = asked => {}
                }
            };
            runtime.block_on(serve);
            asker.join().unwrap()
        });
        drop(control);
        std::fs::remove_dir(&directory).unwrap();
        assert_eq!(clients.0["status"], "here");
        assert_eq!(clients.1["invariants"], "ok");
    }
}
