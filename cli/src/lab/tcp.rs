//! TCP with checked content in both directions at once, and the endpoint the server saw.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::content::Content;
use super::netns::Namespace;
use super::service::Service;

/// How long a connection may be silent before it counts as broken.
const SILENCE: Duration = Duration::from_secs(5);
/// Bytes of the client's opening: seed and length of what both sides send.
const OPENING: usize = 16;
/// What a server says when all that it received was right.
const ALL_RIGHT: u8 = 1;
/// The length that opens an echo connection.
const ECHO: u64 = u64::MAX;

/// A server that exchanges content, or echoes, with whoever connects.
#[derive(Debug)]
pub struct TcpService {
    peers: Arc<Mutex<Vec<SocketAddrV4>>>,
    _service: Service,
}

impl TcpService {
    /// Listens in a namespace until the value is dropped.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, port: u16) -> io::Result<TcpService> {
        let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        listener.set_nonblocking(true)?;
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let service = Service::spawn(listener, move |listener| {
            while let Ok((stream, SocketAddr::V4(peer))) = listener.accept() {
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(peer);
                // A connection ends by itself: at the latest after SILENCE.
                std::thread::spawn(move || serve(&stream, peer));
            }
        });
        Ok(TcpService {
            peers,
            _service: service,
        })
    }

    /// The endpoints that connections came from, in order, since it was last asked.
    pub fn take_peers(&self) -> Vec<SocketAddrV4> {
        std::mem::take(&mut self.peers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn endpoint_bytes(endpoint: SocketAddrV4) -> [u8; 6] {
    let [a, b, c, d] = endpoint.ip().octets();
    let [high, low] = endpoint.port().to_be_bytes();
    [a, b, c, d, high, low]
}

fn read_endpoint(mut stream: &TcpStream) -> io::Result<SocketAddrV4> {
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes)?;
    let [a, b, c, d, high, low] = bytes;
    Ok(SocketAddrV4::new(
        Ipv4Addr::new(a, b, c, d),
        u16::from_be_bytes([high, low]),
    ))
}

/// The server's side: says whom it sees, then sends and receives at once, then gives its verdict.
fn serve(mut stream: &TcpStream, peer: SocketAddrV4) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut opening = [0; OPENING];
    stream.read_exact(&mut opening)?;
    let (seed, length) = opening.split_at(8);
    let seed = u64::from_le_bytes(seed.try_into().unwrap_or_default());
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    stream.write_all(&endpoint_bytes(peer))?;
    if length == ECHO {
        return echo(stream);
    }
    both_ways(stream, Content::new(!seed), Content::new(seed), length)?;
    stream.write_all(&[ALL_RIGHT])?;
    stream.shutdown(Shutdown::Write)
}

/// Sends back whatever comes, until the other side is done.
fn echo(mut stream: &TcpStream) -> io::Result<()> {
    // The engine may be away for longer than a transfer may be silent.
    stream.set_read_timeout(Some(SILENCE * 4))?;
    let mut buffer = [0; 4096];
    loop {
        match read(stream, &mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Sends `length` bytes of one content while it checks `length` bytes of another.
fn both_ways(
    stream: &TcpStream,
    outgoing: Content,
    incoming: Content,
    length: u64,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || send(stream, outgoing, length));
        let received = receive(stream, incoming, length);
        let sent = sender
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        received.and(sent)
    })
}

fn send(mut stream: &TcpStream, mut content: Content, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let count = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        content.fill(&mut buffer[..count]);
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// Reads what is there. A read with a time limit is not taken up again by the kernel when a signal
/// comes by.
fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn receive(stream: &TcpStream, mut content: Content, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let room = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = read(stream, &mut buffer[..room]).map_err(|error| {
            let done = length - left;
            io::Error::new(
                error.kind(),
                format!("after {done} of {length} bytes: {error}"),
            )
        })?;
        if count == 0 {
            return Err(io::Error::other(format!(
                "ended {left} bytes before {length}"
            )));
        }
        content
            .check(&buffer[..count])
            .map_err(|place| io::Error::other(format!("byte {place} of {length} is wrong")))?;
        left -= count as u64;
    }
    Ok(())
}

/// Connects from a namespace.
///
/// # Errors
/// Refused, or not answered within `limit`.
pub fn connect(from: &Namespace, to: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to.into(), limit))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Opens a connection, exchanges `length` bytes in each direction at once, and checks them at both
/// ends. Returns the endpoint that the server saw.
///
/// # Errors
/// The connection failed, stalled for 5 s, or a byte was wrong.
pub fn exchange(
    from: &Namespace,
    to: SocketAddrV4,
    length: u64,
    seed: u64,
) -> io::Result<SocketAddrV4> {
    let mut stream = connect(from, to, Duration::from_secs(3))
        .map_err(|error| io::Error::new(error.kind(), format!("connecting: {error}")))?;
    open(&stream, seed, length)?;
    let seen = read_endpoint(&stream)?;
    both_ways(&stream, Content::new(seed), Content::new(!seed), length)?;
    let mut verdict = [0];
    stream
        .read_exact(&mut verdict)
        .map_err(|error| io::Error::new(error.kind(), format!("the server's verdict: {error}")))?;
    Ok(seen)
}

fn open(mut stream: &TcpStream, seed: u64, length: u64) -> io::Result<()> {
    let mut opening = [0; OPENING];
    opening[..8].copy_from_slice(&seed.to_le_bytes());
    opening[8..].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&opening)
}

/// A connection that stays open, to a server that echoes.
#[derive(Debug)]
pub struct EchoConnection {
    stream: TcpStream,
    /// The endpoint that the server saw.
    pub seen: SocketAddrV4,
}

impl EchoConnection {
    /// Connects from a namespace.
    ///
    /// # Errors
    /// The connection failed.
    pub fn open(from: &Namespace, to: SocketAddrV4) -> io::Result<EchoConnection> {
        let stream = connect(from, to, Duration::from_secs(3))?;
        open(&stream, 0, ECHO)?;
        let seen = read_endpoint(&stream)?;
        Ok(EchoConnection { stream, seen })
    }

    /// Sends without waiting for the echo.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits for the echo of these bytes.
    ///
    /// # Errors
    /// None for `limit`, or another.
    pub fn expect(&mut self, bytes: &[u8], limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut echo = vec![0; bytes.len()];
        self.stream.read_exact(&mut echo)?;
        if echo == bytes {
            Ok(())
        } else {
            Err(io::Error::other("the echo differs"))
        }
    }
}
