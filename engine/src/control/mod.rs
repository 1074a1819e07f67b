//! The control socket: a Unix stream socket that answers JSON. A client sends one line, a
//! [`request::Request`], gets lines, and the connection ends. `protocol.schema.json` has every kind
//! of line.

pub mod access;
pub mod answer;
pub mod client;
pub mod filter;
pub mod flush;
pub mod listing;
pub mod record;
pub mod report;
pub mod request;
pub mod server;
pub mod watch;

pub use access::Group;
pub use client::{Lines, ask, open};
pub use server::{Control, Source};
