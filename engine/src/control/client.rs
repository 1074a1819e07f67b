//! The client's side of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::request::Request;

/// Longest wait for an answer: that to `invariants` takes seconds when the tables are large.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest wait for a flush: a bit longer than the gateway allows it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(310);
/// Longest wait for the request to be taken.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How a line begins that ends a listing.
const END: &[u8] = br#"{"type":"end","#;
/// How a line begins that says why there is no other answer.
const ERROR: &[u8] = br#"{"type":"error","#;

/// The lines of an answer, as they come.
pub struct Lines {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
}

/// What a line is, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// One of the answer.
    Answer(&'a [u8]),
    /// The last one of a listing, which is complete.
    End(&'a [u8]),
    /// There is no (further) answer.
    Error(&'a [u8]),
}

impl Lines {
    /// The next line, without its newline. `None`: the connection has ended; a listing that has no
    /// [`Line::End`] by then was cut off.
    ///
    /// # Errors
    /// The connection failed, or nothing came for too long.
    pub fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        if self.reader.read_until(b'\n', &mut self.line)? == 0 || !self.line.ends_with(b"\n") {
            return Ok(None);
        }
        self.line.pop();
        let line = self.line.as_slice();
        Ok(Some(match line {
            line if line.starts_with(END) => Line::End(line),
            line if line.starts_with(ERROR) => Line::Error(line),
            line => Line::Answer(line),
        }))
    }
}

/// Sends a request to a running engine.
///
/// # Errors
/// Nobody listens there, or it does not take the request.
pub fn open(path: &Path, request: &Request) -> io::Result<Lines> {
    let mut stream = UnixStream::connect(path)?;
    // What is watched may be silent for as long as it likes.
    let timeout = match request {
        Request::Watch(_) => None,
        Request::Flush(_) => Some(FLUSH_TIMEOUT),
        _ => Some(ANSWER_TIMEOUT),
    };
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let sent = stream.write_all(format!("{}\n", request.to_line()).as_bytes());
    match sent {
        // It has hung up already, on somebody who may not ask: its answer says so.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent?,
    }
    Ok(Lines {
        reader: BufReader::with_capacity(1 << 16, stream),
        line: Vec::new(),
    })
}

/// Sends a request that is answered by one line to a running engine.
///
/// # Errors
/// Nobody listens there, or the answer is no JSON.
pub fn ask(path: &Path, request: &Request) -> io::Result<Value> {
    match open(path, request)?.next_line()? {
        Some(Line::Answer(line) | Line::End(line) | Line::Error(line)) => {
            serde_json::from_slice(line).map_err(io::Error::from)
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
