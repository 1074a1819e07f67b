//! What a client may ask, and how its line becomes a [`Request`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{ErrorCode, Refusal};
use super::filter::{Filter, ProtocolName};

/// Version of the protocol. Another one may have other requests, fields and answers.
pub const VERSION: u64 = 1;

/// Longest request in bytes.
pub const REQUEST_LEN_MAX: usize = 4096;

/// The time between two looks of `watch`, unless the request says otherwise.
pub const WATCH_INTERVAL_MS: u64 = 1000;
/// The bounds of that time.
pub const WATCH_INTERVALS_MS: std::ops::RangeInclusive<u64> = 100..=60_000;

/// A request without fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {}

/// `sessions` and `mappings`: which, and how many at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct List {
    /// Those that are meant.
    pub filter: Filter,
    /// No more than so many.
    pub limit: Option<u64>,
}

/// `watch`: sessions that begin and end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Those that are meant, by endpoints and protocol.
    pub filter: Filter,
    /// Time between two looks in milliseconds, within [`WATCH_INTERVALS_MS`].
    pub interval_ms: Option<u64>,
}

/// `lookup`: who is behind an external endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// The external endpoint.
    #[serde(with = "super::record::endpoint")]
    pub external: conntrack::Endpoint,
    /// Only of this protocol.
    #[serde(default)]
    pub protocol: Option<ProtocolName>,
}

/// `flush`: ends sessions and their mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flush {
    /// Those that are meant.
    pub filter: Filter,
    /// Every one. Needed where no filter is given.
    pub all: bool,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What the gateway tells of itself.
    Status(Plain),
    /// Whether the tables are sound.
    Invariants(Plain),
    /// Sessions.
    Sessions(List),
    /// Mappings.
    Mappings(List),
    /// Sessions that begin and end from now on.
    Watch(Watch),
    /// Who is behind an external endpoint.
    Lookup(Lookup),
    /// Ends sessions.
    Flush(Flush),
    /// Makes a start on trial one for good.
    Confirm(Plain),
}

/// The names of all requests.
pub const NAMES: [&str; 8] = [
    "status",
    "invariants",
    "sessions",
    "mappings",
    "watch",
    "lookup",
    "flush",
    "confirm",
];

impl Request {
    /// `status`.
    pub const STATUS: Request = Request::Status(Plain {});
    /// `invariants`.
    pub const INVARIANTS: Request = Request::Invariants(Plain {});
    /// `confirm`.
    pub const CONFIRM: Request = Request::Confirm(Plain {});

    /// Does it change anything? Then fewer may ask it.
    pub fn changes(&self) -> bool {
        matches!(self, Request::Flush(_) | Request::Confirm(_))
    }

    /// The line that asks it, without the newline.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_value(self).expect("a request is JSON");
        line["egret"] = VERSION.into();
        line.to_string()
    }

    /// Reads a line.
    ///
    /// # Errors
    /// It is no request; names the value and what is allowed.
    pub fn parse(line: &str) -> Result<Request, Refusal> {
        let mut fields: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            let what = format!(
                "the request is no JSON object ({error}); one looks like {}",
                r#"{"egret": 1, "request": "status"}"#
            );
            Refusal::new(ErrorCode::BadRequest, what)
        })?;
        match fields.remove("egret") {
            Some(version) if version == VERSION => {}
            given => {
                let given = given.map_or("missing".to_owned(), |given| given.to_string());
                let what = format!(
                    "`egret`, the version of the protocol, is {given}; allowed is {VERSION}: use \
                     the `egret` that belongs to the running gateway"
                );
                return Err(Refusal::new(ErrorCode::BadVersion, what));
            }
        }
        let name = fields.remove("request").unwrap_or_default();
        let request = match name.as_str() {
            Some("status") => Request::Status(read(fields)?),
            Some("invariants") => Request::Invariants(read(fields)?),
            Some("sessions") => Request::Sessions(read(fields)?),
            Some("mappings") => Request::Mappings(read(fields)?),
            Some("watch") => Request::Watch(read(fields)?),
            Some("lookup") => Request::Lookup(read(fields)?),
            Some("flush") => Request::Flush(read(fields)?),
            Some("confirm") => Request::Confirm(read(fields)?),
            _ => {
                let what = format!("unknown request {name}; allowed are {}", NAMES.join(", "));
                return Err(Refusal::new(ErrorCode::UnknownRequest, what));
            }
        };
        request.check().map(|()| request)
    }

    /// What no type says.
    fn check(&self) -> Result<(), Refusal> {
        let wrong = |what: String| Err(Refusal::new(ErrorCode::BadField, what));
        match self {
            Request::Mappings(list) if list.filter.is_for_sessions() => wrong(
                "`filter.remote` and `filter.state` are of sessions, and a mapping has none; ask \
                 for `sessions`, or leave them out"
                    .to_owned(),
            ),
            Request::Watch(watch) if watch.filter.is_for_more_than_endpoints() => wrong(
                "`watch` tells sessions apart by their endpoints: of `filter`, `internal`, \
                 `external`, `remote`, `address`, `port` and `protocol` are allowed"
                    .to_owned(),
            ),
            Request::Watch(Watch {
                interval_ms: Some(interval_ms),
                ..
            }) if !WATCH_INTERVALS_MS.contains(interval_ms) => {
                let (first, last) = (WATCH_INTERVALS_MS.start(), WATCH_INTERVALS_MS.end());
                wrong(format!(
                    "`interval_ms` is {interval_ms}; allowed are {first} to {last}"
                ))
            }
            Request::Flush(flush) if flush.all != flush.filter.is_empty() => wrong(
                "`flush` takes a filter, or `all`: true and no filter, so that nobody ends every \
                 session by mistake"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

/// Reads the fields of a request; a complaint names the field.
fn read<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        let what = match path.as_str() {
            "." => error.to_string(),
            path => format!("`{path}`: {error}"),
        };
        Refusal::new(ErrorCode::BadField, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code and text of the refusal of a line.
    fn refused(line: &str) -> (ErrorCode, String) {
        let refusal = Request::parse(line).expect_err(line);
        (refusal.code, refusal.error)
    }

    #[track_caller]
    fn says(line: &str, code: ErrorCode, parts: &[&str]) {
        let (found, text) = refused(line);
        assert_eq!(found, code, "{text}");
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text:?}");
        }
    }

    #[test]
    fn every_name_is_known_and_the_others_are_named() {
        for name in NAMES {
            let line = match name {
                "lookup" => {
                    r#"{"egret":1,"request":"lookup","external":"198.51.100.1:5"}"#.to_owned()
                }
                "flush" => r#"{"egret":1,"request":"flush","all":true}"#.to_owned(),
                name => format!(r#"{{"egret":1,"request":"{name}"}}"#),
            };
            let request = Request::parse(&line).expect(name);
            assert_eq!(Request::parse(&request.to_line()), Ok(request));
        }
        let unknown = r#"{"egret":1,"request":"sesions"}"#;
        let unknown_request = ErrorCode::UnknownRequest;
        says(
            unknown,
            unknown_request,
            &["\"sesions\"", "status, invariants, sessions"],
        );
        says(r#"{"egret":1}"#, unknown_request, &["null"]);
        says(
            r#"{"egret":1,"request":7}"#,
            unknown_request,
            &["request 7"],
        );
    }

    #[test]
    fn another_version_is_refused() {
        for (given, named) in [("2", "is 2"), ("\"1\"", "is \"1\""), ("1.5", "is 1.5")] {
            let line = format!(r#"{{"egret":{given},"request":"status"}}"#);
            says(&line, ErrorCode::BadVersion, &[named, "allowed is 1"]);
        }
        says(
            r#"{"request":"status"}"#,
            ErrorCode::BadVersion,
            &["missing"],
        );
        for line in ["status", "", "[1]", "{", "\u{0}"] {
            says(
                line,
                ErrorCode::BadRequest,
                &["no JSON object", "\"egret\": 1"],
            );
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_what_is_allowed() {
        for (fields, parts) in [
            (
                r#""request":"sessions","limits":1"#,
                &["unknown field `limits`", "`limit`"][..],
            ),
            (
                r#""request":"sessions","limit":"x""#,
                &["`limit`", "\"x\"", "u64"],
            ),
            (r#""request":"sessions","limit":-1"#, &["`limit`", "-1"]),
            (
                r#""request":"sessions","filter":{"port":70000}"#,
                &["`filter.port`", "70000", "u16"],
            ),
            (
                r#""request":"sessions","filter":{"protocol":"sctp"}"#,
                &["`filter.protocol`", "`sctp`", "`tcp`, `udp`, `icmp`"],
            ),
            (
                r#""request":"sessions","filter":{"state":"open"}"#,
                &["`filter.state`", "`open`", "`half-open`"],
            ),
            (
                r#""request":"sessions","filter":{"internal":"10.0.0.300"}"#,
                &["`filter.internal`", "`10.0.0.300`", "10.0.0.0/8"],
            ),
            (
                r#""request":"status","verbose":true"#,
                &["unknown field `verbose`"],
            ),
            (r#""request":"lookup""#, &["missing field `external`"]),
            (
                r#""request":"lookup","external":"198.51.100.1""#,
                &["`external`", "`198.51.100.1`", "a colon and a port"],
            ),
            (r#""request":"flush""#, &["`all`", "filter"]),
            (
                r#""request":"flush","all":true,"filter":{"port":5}"#,
                &["`all`", "no filter"],
            ),
            (
                r#""request":"mappings","filter":{"state":"init"}"#,
                &["`filter.state`"],
            ),
            (
                r#""request":"watch","filter":{"older_than_s":5}"#,
                &["`watch`", "`internal`"],
            ),
            (
                r#""request":"watch","interval_ms":5"#,
                &["`interval_ms` is 5", "100 to 60000"],
            ),
        ] {
            says(
                &format!("{{\"egret\":1,{fields}}}"),
                ErrorCode::BadField,
                parts,
            );
        }
    }

    #[test]
    fn what_changes_something_is_known() {
        let changing = NAMES.map(|name| match name {
            "flush" => Request::Flush(Flush::default()).changes(),
            "confirm" => Request::Confirm(Plain {}).changes(),
            _ => false,
        });
        assert_eq!(changing.iter().filter(|&&changes| changes).count(), 2);
        assert!(!Request::Sessions(List::default()).changes());
    }
}
