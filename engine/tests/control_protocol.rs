//! Every kind of line that crosses the control socket, held against its schema.

mod control_stand;

use control_stand::{CLIENT, EIM, FORWARD, LAN, OTHER, OWN, SERVER, Stand, WAN, kinds};
use engine::control::answer::Answer;
use engine::control::filter::Filter;
use engine::control::request::{Flush, List, Lookup, NAMES, Request, Watch};
use engine::control::{self, client::Line};
use engine::wire::build::Envelope;
use engine::wire::tcp::SYN;
use jsonschema::Validator;
use serde_json::{Map, Value, json};

const SCHEMA: &str = include_str!("../src/control/protocol.schema.json");

/// A part of the schema.
fn schema_of(part: &str) -> Validator {
    let mut schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let rules = schema.as_object_mut().unwrap();
    rules.remove("anyOf");
    rules.insert("$ref".to_owned(), format!("#/$defs/{part}").into());
    jsonschema::draft202012::new(&schema).unwrap()
}

#[track_caller]
fn fits(schema: &Validator, line: &Value) {
    let errors: Vec<String> = schema
        .iter_errors(line)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{line}: {errors:?}");
}

/// Every object in a value, the value itself and those in it: the same with one more field there.
fn with_one_more_field(value: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    match value {
        Value::Object(fields) => {
            let mut more: Map<String, Value> = fields.clone();
            more.insert("one_more".to_owned(), 1.into());
            found.push(Value::Object(more));
            for (name, field) in fields {
                // Maps by name: any name is one.
                if name != "drops" && name != "sockets" {
                    for changed in with_one_more_field(field) {
                        let mut fields = fields.clone();
                        fields.insert(name.clone(), changed);
                        found.push(Value::Object(fields));
                    }
                }
            }
        }
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                for changed in with_one_more_field(item) {
                    let mut items = items.clone();
                    items[place] = changed;
                    found.push(Value::Array(items));
                }
            }
        }
        _ => {}
    }
    found
}

fn full_filter() -> Filter {
    Filter {
        internal: Some("10.0.0.0/8".parse().unwrap()),
        external: Some("198.51.100.20:5000".parse().unwrap()),
        remote: Some("203.0.113.80".parse().unwrap()),
        address: Some("10.77.0.9".parse().unwrap()),
        port: Some(5000),
        protocol: Some(control::filter::ProtocolName::Tcp),
        state: Some(control::filter::StateName::HalfOpen),
        older_than_s: Some(1),
        younger_than_s: Some(100),
    }
}

/// Each request, with every field that it can have.
fn requests() -> Vec<Request> {
    let list = List {
        filter: full_filter(),
        limit: Some(3),
    };
    let lookup = Lookup {
        external: conntrack::Endpoint::new(OWN, 5000),
        protocol: Some(control::filter::ProtocolName::Udp),
    };
    vec![
        Request::STATUS,
        Request::INVARIANTS,
        Request::Sessions(list.clone()),
        Request::Mappings(list),
        Request::Watch(Watch {
            filter: full_filter(),
            interval_ms: Some(100),
        }),
        Request::Lookup(lookup),
        Request::Flush(Flush {
            filter: Filter::default(),
            all: true,
        }),
        Request::CONFIRM,
    ]
}

#[test]
fn every_request_fits_the_schema_and_none_with_another_field() {
    let schema = schema_of("request");
    let all: Vec<Value> = requests()
        .iter()
        .map(|request| serde_json::from_str(&request.to_line()).unwrap())
        .collect();
    let names: Vec<&str> = all
        .iter()
        .map(|line| line["request"].as_str().unwrap())
        .collect();
    assert_eq!(names, NAMES);
    for line in &all {
        fits(&schema, line);
        for more in with_one_more_field(line) {
            assert!(!schema.is_valid(&more), "{more}");
        }
    }
    // The parser and the schema refuse the same.
    for wrong in [
        json!({"egret": 2, "request": "status"}),
        json!({"egret": 1, "request": "sesions"}),
        json!({"egret": 1, "request": "sessions", "limit": "x"}),
        json!({"egret": 1, "request": "sessions", "filter": {"internal": "host"}}),
        json!({"egret": 1, "request": "sessions", "filter": {"port": 65536}}),
        json!({"egret": 1, "request": "lookup"}),
        json!({"egret": 1, "request": "watch", "interval_ms": 99}),
    ] {
        assert!(!schema.is_valid(&wrong), "{wrong}");
        assert!(Request::parse(&wrong.to_string()).is_err(), "{wrong}");
    }
}

/// A line of each kind, as the gateway makes it.
fn answers() -> Vec<Value> {
    let mut stand = Stand::new(&format!("{EIM}{FORWARD}"));
    stand.udp(CLIENT, 5000);
    stand.tcp(CLIENT, 6000, SYN);
    let from_outside = Envelope::new(SERVER, OWN).tcp(7000, 8443, SYN, b"");
    stand.send(WAN, &from_outside);
    let hairpin = Envelope::new(CLIENT, OWN).tcp(6001, 8443, SYN, b"");
    stand.send(LAN, &hairpin);
    stand.pass_ms(2_000);
    let mut all = stand.ask(&Request::Sessions(List::default()));
    assert_eq!(
        kinds(&all),
        ["session", "session", "session", "session", "end"]
    );
    all.extend(stand.ask(&Request::Mappings(List::default())));
    for port in [5000, 8443, 80] {
        all.extend(stand.ask(&Request::Lookup(Lookup {
            external: conntrack::Endpoint::new(OWN, port),
            protocol: None,
        })));
    }
    all.push(stand.one(&Request::STATUS));
    all.push(stand.one(&Request::INVARIANTS));
    all.push(stand.one(&Request::CONFIRM));
    // A second time there is nothing to confirm.
    all.push(stand.one(&Request::CONFIRM));
    all.extend(watched(&mut stand));
    all.push(stand.one(&Request::Flush(Flush {
        all: true,
        ..Flush::default()
    })));
    all.extend(stand.ask(&Request::Lookup(Lookup {
        external: conntrack::Endpoint::new(OWN, 5000),
        protocol: None,
    })));
    all
}

/// What a watcher is told of a session that begins, of one that ends, and of one that does both
/// between two looks.
fn watched(stand: &mut Stand) -> Vec<Value> {
    use engine::control::watch::Watching;
    let mut watching = Watching::new(stand.world.shared(), Filter::default());
    let mut lines = Vec::new();
    assert!(watching.slice(stand.world.now(), &mut lines));
    stand.udp(OTHER, 5001);
    assert!(watching.slice(stand.world.now(), &mut lines));
    stand.udp(OTHER, 5002);
    stand.pass_ms(400_000);
    assert!(watching.slice(stand.world.now(), &mut lines));
    let text = String::from_utf8(lines).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_answer_fits_the_schema_and_none_with_another_field() {
    let schema = schema_of("answer");
    let all = answers();
    for line in &all {
        fits(&schema, line);
        for more in with_one_more_field(line) {
            assert!(!schema.is_valid(&more), "{more}");
        }
        for name in line.as_object().unwrap().keys() {
            let mut less = line.clone();
            less.as_object_mut().unwrap().remove(name);
            assert!(!schema.is_valid(&less), "{name} is required in {line}");
        }
        // The types read it, too.
        let read: Answer = serde_json::from_value(line.clone()).unwrap();
        let written: Value = serde_json::from_slice(&read.to_line()).unwrap();
        assert_eq!(&written, line);
    }
    let mut kinds = kinds(&all);
    kinds.sort_unstable();
    kinds.dedup();
    let known = [
        "confirmed",
        "end",
        "ended",
        "endpoint",
        "error",
        "flushed",
        "invariants",
        "mapping",
        "missed",
        "new",
        "session",
        "status",
        "watching",
    ];
    assert_eq!(kinds, known);
}

#[test]
fn the_schema_describes_every_field() {
    fn look(rules: &Value, path: &str, found: &mut Vec<String>) {
        if let Some(fields) = rules["properties"].as_object() {
            for (name, field) in fields {
                let path = format!("{path}/{name}");
                let told = field["description"].is_string() || field["$ref"].is_string();
                if !told && field["const"].is_null() {
                    found.push(path.clone());
                }
                look(field, &path, found);
            }
        }
        look_in_array(&rules["anyOf"], path, found);
        if rules["items"].is_object() {
            look(&rules["items"], path, found);
        }
    }
    fn look_in_array(rules: &Value, path: &str, found: &mut Vec<String>) {
        for rules in rules.as_array().into_iter().flatten() {
            look(rules, path, found);
        }
    }
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut found = Vec::new();
    for (name, rules) in schema["$defs"].as_object().unwrap() {
        assert!(rules["description"].is_string(), "{name}");
        look(rules, name, &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn what_is_no_request_is_answered_by_an_error_line() {
    use std::io::{Read, Write};
    let stand = Stand::new("");
    let schema = schema_of("answer_error");
    let long = format!("{{\"egret\":1,\"request\":\"{}\"}}", "x".repeat(5000));
    for (line, code) in [
        ("status", "bad-request"),
        ("{\"egret\":7,\"request\":\"status\"}", "bad-version"),
        ("{\"egret\":1,\"request\":\"stats\"}", "unknown-request"),
        ("{\"egret\":1,\"request\":\"status\",\"x\":1}", "bad-field"),
        (&long, "bad-request"),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(stand.path()).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        fits(&schema, &answer);
        assert_eq!(answer["code"], code, "{line}: {answer}");
    }
}

#[test]
fn a_client_tells_a_whole_listing_from_one_that_was_cut_off() {
    let mut stand = Stand::new("");
    stand.udp(CLIENT, 5000);
    let request = Request::Sessions(List::default());
    let mut lines = control::open(stand.path(), &request).unwrap();
    assert!(matches!(lines.next_line().unwrap(), Some(Line::Answer(_))));
    assert!(matches!(lines.next_line().unwrap(), Some(Line::End(_))));
    assert!(lines.next_line().unwrap().is_none());
    // A server that dies in the middle of a line.
    let path = stand.path().with_file_name("half");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut client, _) = listener.accept().unwrap();
        client
            .write_all(b"{\"type\":\"session\"}\n{\"type\":\"se")
            .unwrap();
    });
    let mut lines = control::open(&path, &request).unwrap();
    assert!(matches!(lines.next_line().unwrap(), Some(Line::Answer(_))));
    assert!(!matches!(lines.next_line(), Ok(Some(_))));
    server.join().unwrap();
    std::fs::remove_file(&path).unwrap();
}
