//! What a listing looks like to people: a heading for each kind of line, and columns of a fixed width,
//! so that lines can be shown as they come.

use std::io::{self, Write};

use engine::control::answer::Answer;
use engine::control::filter::StateName;
use engine::control::record::{Flow, Mapping, Occupied, Session, Use, Way};
use serde::Serialize;

/// Shows lines of an answer.
pub struct Rows<W> {
    out: W,
    heading: &'static str,
}

const SESSIONS: &str = concat!(
    "proto direction internal              external              remote                ",
    "state             age    idle expires    pkts out   bytes out     pkts in    bytes in",
);
const MAPPINGS: &str = concat!(
    "proto behaviour internal              external              ",
    "sessions  inbound     age refreshed",
);
const EVENTS: &str = "event proto direction internal              external              remote";

impl<W: Write> Rows<W> {
    /// On this output.
    pub fn new(out: W) -> Rows<W> {
        let heading = "";
        Rows { out, heading }
    }

    /// Shows a line of an answer.
    ///
    /// # Errors
    /// The output's; `InvalidData` if it is no line of the protocol.
    pub fn show(&mut self, line: &[u8]) -> io::Result<()> {
        match serde_json::from_slice(line)? {
            Answer::Session(session) => {
                self.head(SESSIONS)?;
                writeln!(self.out, "{}", session_row(&session))
            }
            Answer::Mapping(mapping) => {
                self.head(MAPPINGS)?;
                writeln!(self.out, "{}", mapping_row(&mapping))
            }
            Answer::Watching(begun) => {
                writeln!(self.out, "watching; there are {} sessions", begun.sessions)
            }
            Answer::New(flow) => self.event("new", &flow),
            Answer::Ended(flow) => self.event("ended", &flow),
            Answer::Missed(missed) => {
                let count = missed.count;
                writeln!(
                    self.out,
                    "at least {count} more began and ended between two looks"
                )
            }
            Answer::Endpoint(occupied) => writeln!(self.out, "{}", sentence(&occupied)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Lets it be seen.
    ///
    /// # Errors
    /// The output's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn event(&mut self, event: &str, flow: &Flow) -> io::Result<()> {
        self.head(EVENTS)?;
        let Flow {
            protocol,
            direction,
            internal,
            external,
            remote,
            ..
        } = flow;
        let [internal, external] = [internal, external].map(ToString::to_string);
        let (protocol, direction) = (name(protocol), way(*direction, flow.forward));
        writeln!(
            self.out,
            "{event:<5} {protocol:<5} {direction:<9} {internal:<21} {external:<21} {remote}"
        )
    }

    fn head(&mut self, heading: &'static str) -> io::Result<()> {
        if self.heading == heading {
            return Ok(());
        }
        self.heading = heading;
        writeln!(self.out, "{heading}")
    }
}

/// A value by the protocol's word for it.
fn name(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).unwrap_or_default();
    word.as_str().unwrap_or("-").to_owned()
}

/// A forward's sessions are marked: the external endpoint is not the internal host's own.
fn way(direction: Way, forward: bool) -> String {
    let mark = if forward { "*" } else { "" };
    format!("{direction}{mark}")
}

fn session_row(session: &Session) -> String {
    let state = session
        .state
        .map_or("-".to_owned(), |state: StateName| name(&state));
    let age = session.age_s.map_or("-".to_owned(), time);
    let [internal, external, remote] =
        [session.internal, session.external, session.remote].map(|endpoint| endpoint.to_string());
    format!(
        "{:<5} {:<9} {internal:<21} {external:<21} {remote:<21} {state:<13} {age:>7} {:>7} {:>7} \
         {:>11} {:>11} {:>11} {:>11}",
        name(&session.protocol),
        way(session.direction, session.forward),
        time(u64::from(session.idle_ms) / 1000),
        time(u64::from(session.expires_in_ms) / 1000),
        session.packets_out,
        session.bytes_out,
        session.packets_in,
        session.bytes_in,
    )
}

fn mapping_row(mapping: &Mapping) -> String {
    let or_none = |seconds: Option<u64>| seconds.map_or("-".to_owned(), time);
    let last = mapping.last_port.map(|last| format!("-{last}"));
    let external = format!("{}{}", mapping.external, last.unwrap_or_default());
    let internal = match mapping.other_targets.len() {
        0 => mapping.internal.to_string(),
        others => format!("{} +{others}", mapping.internal),
    };
    format!(
        "{:<5} {:<9} {internal:<21} {external:<21} {:>8} {:>8} {:>7} {:>9}",
        name(&mapping.protocol),
        name(&mapping.behaviour),
        mapping.sessions,
        mapping.sessions_inbound,
        or_none(mapping.age_s),
        or_none(mapping.refreshed_s),
    )
}

/// Seconds with the two largest units that they have.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn sentence(occupied: &Occupied) -> String {
    let (protocol, external) = (name(&occupied.protocol), occupied.external);
    let what = match occupied.used {
        Use::Mapping => "one mapping's".to_owned(),
        Use::Overloaded => format!("shared by {} mappings", occupied.mappings),
        Use::Forward => "a forward's".to_owned(),
        Use::Held => format!(
            "nobody's: held down for {} yet, then free",
            time(occupied.held_s.unwrap_or(0))
        ),
        Use::Free => "nobody's: free".to_owned(),
        Use::Host => "left to the host: no client gets it".to_owned(),
        Use::Excluded => "nobody's: not among the pool's ports".to_owned(),
        Use::NotPool => format!("nobody's: {} is not of the pool", external.addr),
    };
    format!("{protocol} {external} is {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units() {
        let written = [0, 59, 60, 3599, 3600, 86_399, 86_400, 90_000].map(time);
        let expected = [
            "0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h", "1d01h",
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn columns_stand_below_their_headings() {
        let session = r#"{"type":"session","protocol":"icmp","direction":"outbound",
            "internal":"100.100.100.100:65535","external":"100.100.100.100:65535",
            "remote":"100.100.100.100:65535","peer":null,"state":"responder-fin","forward":false,
            "age_s":5,"idle_ms":1500,"expires_in_ms":60000,"packets_out":1,"bytes_out":2,
            "packets_in":3,"bytes_in":44}"#;
        let mapping = r#"{"type":"mapping","protocol":"udp","behaviour":"eim","sessions":1,
            "internal":"100.100.100.100:65535","external":"100.100.100.100:65535",
            "last_port":null,"other_targets":[],
            "sessions_inbound":0,"age_s":null,"refreshed_s":7}"#;
        let mut rows = Rows::new(Vec::new());
        rows.show(session.as_bytes()).unwrap();
        rows.show(session.as_bytes()).unwrap();
        rows.show(mapping.as_bytes()).unwrap();
        let text = String::from_utf8(rows.out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[0].len(), lines[1].len(), "{text}");
        assert_eq!(lines[3].len(), lines[4].len(), "{text}");
        for column in ["internal", "external", "remote", "state"] {
            let at = lines[0].find(column).unwrap();
            assert!(lines[1][at - 1..].starts_with(' ') && !lines[1][at..].starts_with(' '));
        }
    }

    #[test]
    fn a_look_up_is_a_sentence() {
        let line = r#"{"type":"endpoint","protocol":"udp","external":"198.51.100.1:5000",
            "use":"held","mappings":0,"held_s":61}"#;
        let mut rows = Rows::new(Vec::new());
        rows.show(line.as_bytes()).unwrap();
        let text = String::from_utf8(rows.out).unwrap();
        assert_eq!(
            text,
            "udp 198.51.100.1:5000 is nobody's: held down for 1m01s yet, then free\n"
        );
    }
}
