//! What a golden test is made of: a configuration, frames at their times, and events.

use std::net::Ipv4Addr;
use std::path::Path;

use engine::device::pcap::{PcapReader, PcapWriter};
use engine::neighbour::HopState;
use engine::route::{RouteFacts, RouteKind};
use engine::wire::build::Envelope;
use engine::world::{World, mac_of, mac_of_interface};

/// A frame that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub at_ms: u64,
    pub interface: usize,
    pub bytes: Vec<u8>,
}

/// Frames and events to run a world through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    pub config: String,
    pub frames: Vec<Arrival>,
    /// Lines `MILLISECONDS WORD ...`; what the words are: [`happen`].
    pub events: Vec<String>,
    now: u64,
}

impl Scenario {
    pub fn new(config: &str) -> Scenario {
        Scenario {
            config: config.to_owned(),
            ..Scenario::default()
        }
    }

    /// The next frames arrive this much later than the one before.
    pub fn after(&mut self, ms: u64) -> &mut Scenario {
        self.now += ms;
        self
    }

    /// Something happens, one millisecond after the frame before.
    pub fn event(&mut self, event: &str) -> &mut Scenario {
        self.now += 1;
        self.events.push(format!("{} {event}", self.now));
        self
    }

    /// A frame arrives, one millisecond after the one before.
    pub fn on(&mut self, interface: usize, bytes: Vec<u8>) -> &mut Scenario {
        self.now += 1;
        self.frames.push(Arrival {
            at_ms: self.now,
            interface,
            bytes,
        });
        self
    }

    pub fn interfaces(&self) -> usize {
        self.config.matches("[[interfaces]]").count().max(1)
    }

    /// Writes what the scenario is made of.
    pub fn save(&self, folder: &Path) {
        std::fs::write(folder.join("config.toml"), &self.config).unwrap();
        for interface in 0..self.interfaces() {
            let frames = self
                .frames
                .iter()
                .filter(|frame| frame.interface == interface);
            let frames: Vec<_> = frames
                .map(|frame| (frame.at_ms, frame.bytes.clone()))
                .collect();
            save_pcap(&folder.join(format!("in-{interface}.pcap")), &frames);
        }
        let events = folder.join("events.txt");
        if self.events.is_empty() {
            let _ = std::fs::remove_file(events);
        } else {
            std::fs::write(events, self.events.join("\n") + "\n").unwrap();
        }
    }

    /// Reads it back.
    pub fn load(folder: &Path) -> Scenario {
        let config = std::fs::read_to_string(folder.join("config.toml")).unwrap();
        let mut scenario = Scenario::new(&config);
        for interface in 0..scenario.interfaces() {
            for (at_ms, bytes) in load_pcap(&folder.join(format!("in-{interface}.pcap"))) {
                scenario.frames.push(Arrival {
                    at_ms,
                    interface,
                    bytes,
                });
            }
        }
        scenario.frames.sort_by_key(|frame| frame.at_ms);
        let events = std::fs::read_to_string(folder.join("events.txt")).unwrap_or_default();
        scenario.events = events.lines().map(str::to_owned).collect();
        scenario.now = scenario.frames.last().map_or(0, |frame| frame.at_ms);
        scenario
    }
}

/// Lets an event happen.
pub fn happen(world: &mut World, event: &str) {
    let words: Vec<&str> = event.split(' ').collect();
    match words[..] {
        ["mtu", interface, mtu] => {
            world.set_mtu(interface.parse().unwrap(), mtu.parse().unwrap());
        }
        ["external", "none"] => world.set_external(Vec::new()),
        ["external", net] => world.set_external(vec![net.parse().unwrap()]),
        ["unreachable", net] => world.set_routes(vec![RouteFacts {
            prefix: net.parse().unwrap(),
            kind: RouteKind::Unreachable,
            metric: 0,
            mtu: None,
            paths: Vec::new(),
        }]),
        ["neighbour", addr, state] => {
            let state = match state {
                "resolved" => HopState::Resolved,
                "unresolved" => HopState::Unresolved,
                "failed" => HopState::Failed,
                other => panic!("no state {other}"),
            };
            world.set_answer(false);
            assert!(world.set_neighbour(addr.parse().unwrap(), state));
        }
        ["config", ref lines @ ..] => {
            let text = format!(
                "{}{}\n",
                world.config().source.text,
                lines.join(" ").replace(';', "\n")
            );
            assert!(world.reconfigure(&text), "{text}");
        }
        _ => panic!("no event {event}"),
    }
}

pub fn save_pcap(path: &Path, frames: &[(u64, Vec<u8>)]) {
    let mut writer = PcapWriter::new(Vec::new()).unwrap();
    for (at_ms, bytes) in frames {
        writer.write(at_ms * 1_000_000, bytes).unwrap();
    }
    std::fs::write(path, writer.finish().unwrap()).unwrap();
}

pub fn load_pcap(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| {
        panic!("{}: {error} (EGRET_REGENERATE=1 makes it)", path.display())
    });
    PcapReader::new(std::io::BufReader::new(file))
        .unwrap()
        .map(|record| record.unwrap())
        .map(|record| (record.time_ns / 1_000_000, record.bytes))
        .collect()
}

/// An envelope of a frame that arrives at an interface of the world from a neighbour's MAC.
pub fn towards(
    interface: usize,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    from: Ipv4Addr,
) -> Envelope {
    Envelope {
        destination_mac: mac_of_interface(interface),
        source_mac: mac_of(from),
        ..Envelope::new(source, destination)
    }
}
