//! Small servers on threads, and a UDP one that tells its clients the endpoint it sees.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netns::Namespace;

/// How often an idle service looks whether it should end, in milliseconds.
const PATIENCE_MS: u8 = 20;

/// A thread that serves sockets until it is dropped.
#[derive(Debug)]
pub struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Calls `serve` whenever the socket is readable.
    pub fn spawn<S: AsFd + Send + 'static>(
        socket: S,
        mut serve: impl FnMut(&S) + Send + 'static,
    ) -> Service {
        Service::spawn_many(vec![socket], move |socket| serve(socket))
    }

    /// Calls `serve` with each of the sockets that is readable.
    pub fn spawn_many<S: AsFd + Send + 'static>(
        sockets: Vec<S>,
        mut serve: impl FnMut(&S) + Send + 'static,
    ) -> Service {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut fds: Vec<PollFd<'_>> = sockets
                    .iter()
                    .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                    .collect();
                if poll(&mut fds, PollTimeout::from(PATIENCE_MS)).is_err() {
                    continue;
                }
                for (socket, fd) in sockets.iter().zip(&fds) {
                    if fd.any().unwrap_or(false) {
                        serve(socket);
                    }
                }
            }
        });
        Service {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was a failed check already.
            let _ = thread.join();
        }
    }
}

/// A UDP server: answers each datagram with the endpoint it came from, in front of its bytes.
#[derive(Debug)]
pub struct UdpService {
    _service: Service,
}

impl UdpService {
    /// Serves ports of a namespace until the value is dropped. It answers from the address that
    /// was asked (each local address has its own sockets).
    ///
    /// # Errors
    /// A port is taken.
    pub fn start(
        namespace: &Namespace,
        address: Ipv4Addr,
        ports: impl IntoIterator<Item = u16> + Send,
    ) -> io::Result<UdpService> {
        let sockets = namespace.run(|| {
            ports
                .into_iter()
                .map(|port| UdpSocket::bind((address, port)))
                .collect()
        });
        let sockets: Vec<UdpSocket> = sockets?;
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        let mut buffer = vec![0; 65_536];
        let service = Service::spawn_many(sockets, move |socket| {
            while let Ok((length, SocketAddr::V4(peer))) = socket.recv_from(&mut buffer[6..]) {
                buffer[..4].copy_from_slice(&peer.ip().octets());
                buffer[4..6].copy_from_slice(&peer.port().to_be_bytes());
                // A lost answer is asked for again.
                let _ = socket.send_to(&buffer[..6 + length], peer);
            }
        });
        Ok(UdpService { _service: service })
    }
}

/// One UDP flow of a client.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
    /// Where it goes.
    pub to: SocketAddrV4,
}

impl UdpFlow {
    /// Opens a flow from a namespace, from a port of the kernel's choice (0) or a given one.
    ///
    /// # Errors
    /// The port is taken.
    pub fn open(from: &Namespace, port: u16, to: SocketAddrV4) -> io::Result<UdpFlow> {
        let socket = from.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        Ok(UdpFlow { socket, to })
    }

    /// The flow's internal endpoint.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn local(&self) -> io::Result<SocketAddrV4> {
        match self.socket.local_addr()? {
            SocketAddr::V4(endpoint) => Ok(endpoint),
            SocketAddr::V6(_) => Err(io::Error::other("not IPv4")),
        }
    }

    /// Sends without waiting for an answer.
    ///
    /// # Errors
    /// The kernel's refusal, or an ICMP error that came for an earlier datagram.
    pub fn send(&self, payload: &[u8]) -> io::Result<()> {
        self.socket.send(payload).map(drop)
    }

    /// Takes an answer to this payload; the endpoint that the server saw.
    ///
    /// # Errors
    /// None came within `limit`.
    pub fn receive(&self, payload: &[u8], limit: Duration) -> io::Result<SocketAddrV4> {
        self.socket.set_read_timeout(Some(limit))?;
        let mut buffer = vec![0; 65_536];
        loop {
            let length = match self.socket.recv(&mut buffer) {
                // A wait with a limit is not taken up again by the kernel after a signal.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length?,
            };
            // An answer to an earlier try, which came late, is none to this one.
            if length == payload.len() + 6 && buffer[6..length] == *payload {
                let address = Ipv4Addr::new(buffer[0], buffer[1], buffer[2], buffer[3]);
                return Ok(SocketAddrV4::new(
                    address,
                    u16::from_be_bytes([buffer[4], buffer[5]]),
                ));
            }
        }
    }

    /// Asks, up to `tries` times with a wait of `limit` each; the endpoint that the server saw.
    ///
    /// # Errors
    /// No answer to any.
    pub fn ask(&self, payload: &[u8], tries: u32, limit: Duration) -> io::Result<SocketAddrV4> {
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..tries {
            match self
                .send(payload)
                .and_then(|()| self.receive(payload, limit))
            {
                Ok(seen) => return Ok(seen),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
