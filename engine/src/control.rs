//! The control socket: a Unix stream socket of mode 0660. A client sends one line, gets one JSON
//! object, and the connection ends. Requests: `status`, `invariants`.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// Longest request in bytes.
const REQUEST_LEN_MAX: u64 = 256;
/// A client that is slower than this is hung up on.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait after a client that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Answers requests; lives on the control thread.
pub trait Answer {
    /// The answer to `status`.
    fn status(&self) -> Value;
    /// The answer to `invariants`: checks the tables; exact only when no traffic flows.
    fn invariants(&self) -> Value;
}

/// The listening socket; its file goes away with it.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens on `path`. A file left behind by a dead engine is replaced; the caller holds the
    /// instance's lock, so no living engine listens on it.
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

    /// Serves until the future is dropped; one client after the other: answers are short.
    pub async fn serve(&self, answer: &impl Answer) {
        loop {
            let served = match self.listener.accept().await {
                Ok((client, _)) => {
                    match tokio::time::timeout(CLIENT_TIMEOUT, serve_one(client, answer)).await {
                        Ok(result) => result,
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                // No free descriptor, say: that does not pass at once.
                Err(error) => {
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    Err(error)
                }
            };
            if let Err(error) = served {
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

async fn serve_one(client: UnixStream, answer: &impl Answer) -> io::Result<()> {
    let peer = client.peer_cred()?;
    let (reader, mut writer) = client.into_split();
    let reply = if may_ask(peer.uid(), peer.gid()) {
        let mut request = String::new();
        BufReader::new(reader.take(REQUEST_LEN_MAX))
            .read_line(&mut request)
            .await?;
        match request.trim() {
            "status" => answer.status(),
            "invariants" => answer.invariants(),
            other => json!({
                "error": format!("unknown request `{other}`; allowed are `status`, `invariants`"),
            }),
        }
    } else {
        json!({ "error": "only root, or the engine's own user or group, may ask" })
    };
    writer.write_all(format!("{reply}\n").as_bytes()).await
}

fn may_ask(uid: u32, gid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw() || gid == nix::unistd::getegid().as_raw()
}

/// Sends one request to a running engine and returns its answer. Errors: nobody listens there, or
/// the answer is no JSON.
pub fn ask(path: &Path, request: &str) -> io::Result<Value> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::from)
}
