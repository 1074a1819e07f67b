//! What the gateway answers: every kind of line.

use serde::{Deserialize, Serialize};

use super::record::{Flow, Mapping, Occupied, Session};
use super::report::{Soundness, Status};
use super::request::Plain;

/// What a flush did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flushed {
    /// Sessions that were ended.
    pub sessions: u64,
    /// Mappings that ended with them, or had no session.
    pub mappings: u64,
    /// Sessions that kept changing and were left.
    pub left: u64,
}

/// The last line of a listing: without it, the listing was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Lines before this one.
    pub count: u64,
    /// The limit was reached; there may be more.
    pub limited: bool,
}

/// Why there is no other answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The line is no request.
    BadRequest,
    /// The protocol's version is another one.
    BadVersion,
    /// There is no such request.
    UnknownRequest,
    /// A field is unknown, of the wrong type, or has a value that is not allowed.
    BadField,
    /// The client may not ask that.
    Forbidden,
    /// Too many ask the same at a time.
    Busy,
    /// It cannot be done as things are.
    Refused,
}

/// Why there is no other answer, in words: names the value, what is allowed, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub error: String,
}

impl Refusal {
    /// A refusal in these words.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Refusal {
        let error = error.into();
        Refusal { code, error }
    }
}

/// One line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Answer {
    /// To `status`.
    Status(Box<Status>),
    /// To `invariants`.
    Invariants(Soundness),
    /// To `confirm`.
    Confirmed(Plain),
    /// A session.
    Session(Session),
    /// A mapping.
    Mapping(Mapping),
    /// To `lookup`, for each protocol.
    Endpoint(Occupied),
    /// To `watch`: the first look is over.
    Watching(Begun),
    /// To `watch`: a session began.
    New(Flow),
    /// To `watch`: a session ended.
    Ended(Flow),
    /// To `watch`: at least so many sessions began and ended between two looks.
    Missed(Missed),
    /// To `flush`.
    Flushed(Flushed),
    /// The end of a listing.
    End(End),
    /// There is no other answer.
    Error(Refusal),
}

impl Answer {
    /// Puts the line behind others.
    pub fn write(&self, lines: &mut Vec<u8>) {
        serde_json::to_writer(&mut *lines, self).expect("an answer is JSON");
        lines.push(b'\n');
    }

    /// The line with its newline.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = Vec::new();
        self.write(&mut line);
        line
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        Answer::Error(refusal)
    }
}

/// What a watcher's first look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// How many sessions.
    pub sessions: u64,
}

/// Sessions that no look saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missed {
    /// How many, at least.
    pub count: u64,
}
