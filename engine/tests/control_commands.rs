//! What the requests do: listings, look-ups, watching and flushing over a gateway in memory, and many
//! clients at a time.

mod control_stand;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use control_stand::{CLIENT, EIM, FORWARD, LAN, OTHER, OWN, SERVER, Stand, WAN, kinds, lines};
use engine::control::client::Line;
use engine::control::filter::{Filter, parse_endpoint};
use engine::control::request::{Flush, List, Lookup, Request, Watch};
use engine::control::{Lines, open};
use engine::drop_reason::DropReason;
use engine::packet::{self, Body};
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, SYN};
use engine::world::Setup;
use serde_json::{Value, json};

fn filter(fields: Value) -> Filter {
    serde_json::from_value(fields).unwrap()
}

fn sessions(fields: Value) -> Request {
    Request::Sessions(List {
        filter: filter(fields),
        limit: None,
    })
}

fn flush(fields: Value) -> Request {
    let filter = filter(fields);
    let all = filter.is_empty();
    Request::Flush(Flush { filter, all })
}

/// The internal endpoints of a listing, in order.
fn internals(lines: &[Value]) -> Vec<&str> {
    let (end, listed) = lines.split_last().expect("an end");
    assert_eq!(end["type"], "end");
    assert_eq!(end["count"], listed.len());
    listed
        .iter()
        .map(|line| line["internal"].as_str().unwrap())
        .collect()
}

/// A handshake from inside, then one packet on.
fn established(stand: &mut Stand, client: std::net::Ipv4Addr, port: u16) {
    stand.tcp(client, port, SYN);
    let back = Envelope::new(SERVER, OWN).tcp(80, port, SYN | ACK, b"");
    stand.send(WAN, &back);
    stand.tcp(client, port, ACK);
}

#[test]
fn sessions_are_listed_as_they_are() {
    let mut stand = Stand::new(FORWARD);
    established(&mut stand, CLIENT, 6000);
    stand.pass_ms(3_000);
    let inbound = Envelope::new(SERVER, OWN).tcp(7000, 8443, SYN, b"");
    stand.send(WAN, &inbound);
    let lines = stand.ask(&sessions(json!({})));
    let out = &lines[0];
    let timers = stand.world.policy().timers;
    let packet_bytes = 40;
    assert_eq!(
        *out,
        json!({
            "type": "session", "protocol": "tcp", "direction": "outbound",
            "internal": "10.77.0.9:6000", "external": "198.51.100.20:6000",
            "remote": "203.0.113.80:80", "peer": null, "state": "established", "forward": false,
            "age_s": out["age_s"], "idle_ms": 3_000,
            "expires_in_ms": timers.tcp_idle_timeout_ms - 3_000,
            "packets_out": 2, "bytes_out": 2 * packet_bytes,
            "packets_in": 1, "bytes_in": packet_bytes,
        })
    );
    assert!((3..=4).contains(&out["age_s"].as_u64().unwrap()), "{out}");
    let inbound = &lines[1];
    assert_eq!(
        (&inbound["direction"], &inbound["forward"]),
        (&json!("inbound"), &json!(true))
    );
    assert_eq!(inbound["state"], "init-outside");
    assert_eq!(
        (&inbound["internal"], &inbound["age_s"]),
        (&json!("10.77.0.10:443"), &Value::Null)
    );
    assert_eq!(inbound["packets_in"], 1);
}

#[test]
fn each_filter_leaves_what_it_means() {
    let mut stand = Stand::new(FORWARD);
    established(&mut stand, CLIENT, 6000);
    stand.pass_ms(60_000);
    stand.udp(CLIENT, 5000);
    stand.udp(OTHER, 5000);
    let inbound = Envelope::new(SERVER, OWN).tcp(7000, 8443, SYN, b"");
    stand.send(WAN, &inbound);
    let [tcp, udp, other, forwarded] = [
        "10.77.0.9:6000",
        "10.77.0.9:5000",
        "10.77.0.10:5000",
        "10.77.0.10:443",
    ];
    for (fields, expected) in [
        (json!({}), &[tcp, udp, other, forwarded][..]),
        (json!({"internal": "10.77.0.9"}), &[tcp, udp]),
        (json!({"internal": "10.77.0.8/31"}), &[tcp, udp]),
        (json!({"internal": "10.77.0.9:5000"}), &[udp]),
        (json!({"external": "198.51.100.20:8443"}), &[forwarded]),
        (json!({"external": "203.0.113.0/24"}), &[]),
        (json!({"remote": "203.0.113.80:53"}), &[udp, other]),
        (json!({"address": "10.77.0.10"}), &[other, forwarded]),
        (
            json!({"address": "203.0.113.0/24"}),
            &[tcp, udp, other, forwarded],
        ),
        (json!({"port": 53}), &[udp, other]),
        (json!({"port": 8443}), &[forwarded]),
        (json!({"protocol": "udp"}), &[udp, other]),
        (json!({"state": "established"}), &[tcp]),
        (json!({"state": "half-open"}), &[forwarded]),
        (json!({"older_than_s": 50}), &[tcp]),
        (json!({"younger_than_s": 50}), &[udp, other]),
        (
            json!({"protocol": "udp", "internal": "10.77.0.10"}),
            &[other],
        ),
    ] {
        let lines = stand.ask(&sessions(fields.clone()));
        assert_eq!(internals(&lines), expected, "{fields}");
    }
}

#[test]
fn a_limit_says_that_there_is_more() {
    let mut stand = Stand::new("");
    for port in 5000..5005 {
        stand.udp(CLIENT, port);
    }
    let limited = |limit| {
        Request::Sessions(List {
            filter: Filter::default(),
            limit: Some(limit),
        })
    };
    let lines = stand.ask(&limited(3));
    assert_eq!(
        lines.last().unwrap(),
        &json!({"type": "end", "count": 3, "limited": true})
    );
    let lines = stand.ask(&limited(5));
    assert_eq!(
        lines.last().unwrap(),
        &json!({"type": "end", "count": 5, "limited": false})
    );
}

#[test]
fn sessions_that_have_expired_are_not_listed() {
    let mut stand = Stand::new("");
    stand.udp(CLIENT, 5000);
    // No round: nothing has swept it.
    let timeout_ms = u64::from(stand.world.policy().timers.udp_timeout_ms);
    stand.world.advance_ms(timeout_ms);
    stand.pass_ms(0);
    assert_eq!(stand.world.totals().sessions, 1);
    assert_eq!(kinds(&stand.ask(&sessions(json!({})))), ["end"]);
}

#[test]
fn mappings_tell_their_behaviour_and_use() {
    let mappings = Request::Mappings(List::default());
    let mut stand = Stand::new(&format!("{EIM}{FORWARD}"));
    stand.udp(CLIENT, 5000);
    let frame = Envelope::new(CLIENT, OTHER_SERVER).udp(5000, 53, b"");
    stand.send(LAN, &frame);
    stand.pass_ms(10_000);
    let lines = stand.ask(&mappings);
    assert_eq!(kinds(&lines), ["mapping", "mapping", "end"]);
    let [dynamic, fixed] = [&lines[0], &lines[1]];
    assert_eq!(
        (&dynamic["behaviour"], &dynamic["sessions"]),
        (&json!("eim"), &json!(2))
    );
    assert!(dynamic["refreshed_s"].as_u64().unwrap() >= 10, "{dynamic}");
    assert_eq!(
        (&fixed["behaviour"], &fixed["external"]),
        (&json!("static"), &json!("198.51.100.20:8443"))
    );
    let mut stand = Stand::new("");
    stand.udp(CLIENT, 5000);
    let lines = stand.ask(&mappings);
    assert_eq!(
        (&lines[0]["behaviour"], &lines[0]["refreshed_s"]),
        (&json!("edm"), &Value::Null)
    );
}

const OTHER_SERVER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(203, 0, 113, 81);

#[test]
fn a_look_up_says_who_is_behind_or_why_nobody() {
    let mut stand = Stand::new(&format!("{EIM}{FORWARD}"));
    stand.udp(CLIENT, 5000);
    let lookup = |stand: &mut Stand, external: &str| {
        let mut lines = stand.ask(&Request::Lookup(Lookup {
            external: parse_endpoint(external).unwrap(),
            protocol: None,
        }));
        assert_eq!(lines.pop().unwrap()["type"], "end");
        lines
    };
    let lines = lookup(&mut stand, "198.51.100.20:5000");
    assert_eq!(
        kinds(&lines),
        ["endpoint", "endpoint", "endpoint", "mapping", "session"]
    );
    let uses: Vec<&str> = lines[..3]
        .iter()
        .map(|line| line["use"].as_str().unwrap())
        .collect();
    assert_eq!(uses, ["free", "mapping", "free"]);
    assert_eq!(lines[4]["internal"], "10.77.0.9:5000");
    let used = |stand: &mut Stand, external: &str, place: usize| {
        lookup(stand, external)[place]["use"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(used(&mut stand, "198.51.100.20:8443", 0), "forward");
    assert_eq!(used(&mut stand, "198.51.100.20:80", 0), "excluded");
    assert_eq!(used(&mut stand, "198.51.100.77:5000", 0), "not-pool");
    stand.ask(&flush(json!({})));
    let lines = lookup(&mut stand, "198.51.100.20:5000");
    assert_eq!((kinds(&lines).len(), &lines[1]["use"]), (3, &json!("held")));
    let held_s = lines[1]["held_s"].as_u64().unwrap();
    assert!((115..=125).contains(&held_s), "{held_s}");
}

#[test]
fn a_port_of_several_clients_is_shared() {
    let mut stand = Stand::new("ports = [\"5000\"]\n");
    stand.udp(CLIENT, 5000);
    let frame = Envelope::new(OTHER, OTHER_SERVER).udp(5000, 53, b"");
    stand.send(LAN, &frame);
    let lines = stand.ask(&Request::Lookup(Lookup {
        external: conntrack::Endpoint::new(OWN, 5000),
        protocol: Some(engine::control::filter::ProtocolName::Udp),
    }));
    let expected = [
        "endpoint", "mapping", "mapping", "session", "session", "end",
    ];
    assert_eq!(kinds(&lines), expected);
    assert_eq!(
        (&lines[0]["use"], &lines[0]["mappings"]),
        (&json!("overloaded"), &json!(2))
    );
}

#[test]
fn a_flush_ends_what_it_means_while_traffic_flows() {
    for more in ["", EIM] {
        let setup = Setup {
            workers: 2,
            sessions_max: 16_384,
            ..Setup::default()
        };
        let mut stand = Stand::with(more, setup);
        for port in 2000..6000 {
            stand.udp(CLIENT, port);
        }
        established(&mut stand, OTHER, 6000);
        let mut port = 20_000_u16;
        let request = flush(json!({"internal": "10.77.0.9"}));
        let answer = stand.ask_while(&request, |world| {
            // The client goes on, on old flows and new ones; the other one, too.
            for _ in 0..8 {
                port += 1;
                let new = Envelope::new(CLIENT, SERVER).udp(port, 53, b"");
                let old = Envelope::new(CLIENT, SERVER).udp(port - 18_000, 53, b"");
                let other = Envelope::new(OTHER, SERVER).tcp(6000, 80, ACK, b"");
                for frame in [new, old, other] {
                    world.inject_to(usize::from(port % 2), LAN, &frame);
                }
            }
            world.run();
        });
        let [done] = answer.as_slice() else {
            panic!("{answer:?}");
        };
        assert!(done["sessions"].as_u64().unwrap() >= 4000, "{done}");
        assert_eq!(done["left"], 0);
        let drops = stand.world.snapshot();
        let lost = drops
            .drops()
            .find(|(reason, _)| *reason == DropReason::TcpMidstream);
        assert_eq!(lost, None, "the other client goes on");
        stand.world.check_invariants().unwrap();
        // Nothing of the others is gone.
        let others = stand.ask(&sessions(json!({"internal": "10.77.0.10"})));
        assert_eq!(internals(&others), ["10.77.0.10:6000"]);
        // And all of it goes.
        stand.one(&flush(json!({})));
        let totals = stand.world.totals();
        assert_eq!(
            (totals.sessions, totals.mappings, totals.ports_in_use),
            (0, 0, [0; 3])
        );
        stand.world.check_invariants().unwrap();
    }
}

#[test]
fn what_was_flushed_begins_anew_or_gets_a_reset() {
    let mut stand = Stand::new("");
    stand.udp(CLIENT, 5000);
    established(&mut stand, CLIENT, 6000);
    let done = stand.one(&flush(json!({"internal": "10.77.0.9"})));
    assert_eq!(
        done,
        json!({"type": "flushed", "sessions": 2, "mappings": 2, "left": 0})
    );
    stand.world.take_sent(LAN);
    stand.udp(CLIENT, 5000);
    assert_eq!(stand.world.totals().sessions, 1);
    stand.tcp(CLIENT, 6000, ACK);
    assert_eq!(stand.world.totals().sessions, 1);
    let sent = stand.world.take_sent(LAN);
    let reset = packet::parse(&sent[0]).unwrap();
    let Body::Flow { signal, .. } = reset.body else {
        panic!("{reset:?}");
    };
    assert_eq!(signal, conntrack::Signal::TcpRst);
    // From outside nobody is behind the old endpoint.
    let late = Envelope::new(SERVER, OWN).tcp(80, 6000, ACK, b"late");
    stand.send(WAN, &late);
    assert!(stand.world.take_sent(LAN).is_empty());
    stand.world.check_invariants().unwrap();
}

#[test]
fn one_flush_at_a_time_and_one_that_nobody_waits_for_ends() {
    let mut stand = Stand::new("");
    stand.udp(CLIENT, 5000);
    let flushes = &stand.world.shared().flushes;
    let waiting = flushes.begin(Filter::default()).unwrap();
    assert!(flushes.begin(Filter::default()).is_none());
    // No round has been made meanwhile: it is still under way.
    let busy = lines(stand.path(), &flush(json!({})));
    assert_eq!(busy[0]["code"], "busy");
    drop(waiting);
    stand.pass_ms(20);
    assert!(!stand.world.shared().flushes.is_pending());
    assert_eq!(stand.world.totals().sessions, 1, "it was called off");
    assert_eq!(stand.one(&flush(json!({})))["sessions"], 1);
}

#[test]
fn a_watcher_is_told_what_begins_and_ends() {
    let mut stand = Stand::new("");
    stand.udp(CLIENT, 4000);
    let watch = |fields: Value| {
        Request::Watch(Watch {
            filter: filter(fields),
            interval_ms: Some(100),
        })
    };
    let event = |lines: &mut Lines| -> Value {
        match lines.next_line().unwrap() {
            Some(Line::Answer(line) | Line::Error(line)) => serde_json::from_slice(line).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let begin = |path: &Path, fields: Value| {
        let mut lines = open(path, &watch(fields)).unwrap();
        let first = event(&mut lines);
        (lines, first)
    };
    let (mut all, first) = begin(stand.path(), json!({}));
    assert_eq!(first, json!({"type": "watching", "sessions": 1}));
    let (mut some, _) = begin(stand.path(), json!({"protocol": "tcp"}));
    // A third one would cost a third copy of the table.
    assert_eq!(begin(stand.path(), json!({})).1["code"], "busy");
    // Listings do not wait for watchers.
    assert_eq!(
        internals(&stand.ask(&sessions(json!({})))),
        ["10.77.0.9:4000"]
    );
    stand.udp(CLIENT, 5000);
    stand.tcp(CLIENT, 6000, SYN);
    for internal in ["10.77.0.9:5000", "10.77.0.9:6000"] {
        let told = event(&mut all);
        assert_eq!(
            (&told["type"], &told["internal"]),
            (&json!("new"), &json!(internal))
        );
    }
    assert_eq!(event(&mut some)["internal"], "10.77.0.9:6000");
    stand.ask(&flush(json!({"protocol": "tcp"})));
    for told in [event(&mut all), event(&mut some)] {
        assert_eq!(
            (&told["type"], &told["internal"]),
            (&json!("ended"), &json!("10.77.0.9:6000"))
        );
    }
    // Who hangs up leaves room for the next one.
    drop((all, some));
    let seated = (0..10_000).any(|_| begin(stand.path(), json!({})).1["type"] == "watching");
    assert!(seated);
}

#[test]
fn slow_and_silent_clients_hold_nobody_up() {
    let mut stand = Stand::with(
        "",
        Setup {
            sessions_max: 16_384,
            ..Setup::default()
        },
    );
    for port in 2000..12_000 {
        stand.udp(CLIENT, port);
    }
    let silent: Vec<UnixStream> = (0..4)
        .map(|_| UnixStream::connect(stand.path()).unwrap())
        .collect();
    // Asked, but none takes more than the kernel holds for it.
    let slow: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut stream = UnixStream::connect(stand.path()).unwrap();
            let line = sessions(json!({})).to_line();
            stream.write_all(format!("{line}\n").as_bytes()).unwrap();
            let mut first = [0];
            stream.read_exact(&mut first).unwrap();
            stream
        })
        .collect();
    assert_eq!(stand.one(&Request::STATUS)["sessions"], 10_000);
    let refused = stand.one(&sessions(json!({})));
    assert_eq!(refused["code"], "busy");
    assert!(
        refused["error"].as_str().unwrap().contains("8 listings"),
        "{refused}"
    );
    drop((silent, slow));
    let listed = (0..10_000).any(|_| stand.ask(&sessions(json!({}))).len() == 10_001);
    assert!(listed, "who hangs up leaves room");
}

#[test]
fn a_long_check_keeps_nobody_waiting() {
    let mut stand = Stand::new("");
    stand.gate.close();
    let path = stand.path().to_owned();
    let check = std::thread::spawn(move || lines(&path, &Request::INVARIANTS));
    stand.gate.wait_for_somebody();
    // The check is under way, and only ends after this.
    assert_eq!(stand.one(&Request::STATUS)["type"], "status");
    stand.gate.open();
    assert_eq!(
        check.join().unwrap(),
        [json!({"type": "invariants", "invariants": "ok"})]
    );
}

#[test]
fn a_start_is_confirmed_once() {
    let mut stand = Stand::new("");
    assert_eq!(stand.one(&Request::CONFIRM), json!({"type": "confirmed"}));
    assert_eq!(stand.one(&Request::CONFIRM)["code"], "refused");
}
