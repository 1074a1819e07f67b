//! What a golden test is made of: a configuration, frames at their times, and events.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use engine::device::offload::{Checksum, Offload, SegmentKind, Segments};
use engine::device::pcap::{PcapReader, PcapWriter};
use engine::neighbour::HopState;
use engine::route::{RouteFacts, RouteKind};
use engine::wire::build::Envelope;
use engine::world::{World, mac_of, mac_of_interface, transport_is_right, unfinish};

/// A frame that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub at_ms: u64,
    pub interface: usize,
    pub bytes: Vec<u8>,
    /// What the device says is still to be done for it.
    pub offload: Offload,
}

/// Frames and events to run a world through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    pub config: String,
    pub frames: Vec<Arrival>,
    /// Lines `MILLISECONDS WORD ...`; what the words are: [`happen`].
    pub events: Vec<String>,
    /// What the device says of frames that nothing is left to do for.
    rest: Offload,
    now: u64,
}

impl Scenario {
    pub fn new(config: &str) -> Scenario {
        Scenario {
            config: config.to_owned(),
            ..Scenario::default()
        }
    }

    /// One whose device tells of every frame what is still to be done for it, as the tun driver does.
    pub fn told(config: &str) -> Scenario {
        Scenario {
            rest: Offload::WHOLE,
            ..Scenario::new(config)
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
        self.described(interface, bytes, self.rest)
    }

    /// As [`Scenario::on`], of a right frame whose checksum is left partial; with `segment` as a
    /// super-packet of packets with so many payload bytes.
    pub fn unfinished(
        &mut self,
        interface: usize,
        mut bytes: Vec<u8>,
        segment: Option<u16>,
    ) -> &mut Scenario {
        let offload = unfinish(&mut bytes, segment);
        self.described(interface, bytes, offload)
    }

    /// As [`Scenario::on`], of a frame that the device says this of.
    pub fn described(
        &mut self,
        interface: usize,
        bytes: Vec<u8>,
        offload: Offload,
    ) -> &mut Scenario {
        self.now += 1;
        self.frames.push(Arrival {
            at_ms: self.now,
            interface,
            bytes,
            offload,
        });
        self
    }

    /// Does the device tell of any frame what is still to be done for it?
    pub fn is_told(&self) -> bool {
        let told = |frame: &Arrival| frame.offload != Offload::NONE;
        self.frames.iter().any(told)
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
        save_lines(&folder.join("events.txt"), &self.events);
        let told = self.frames.iter();
        let told = told.filter(|frame| frame.offload != Offload::NONE);
        let told: Vec<String> = told
            .map(|frame| format!("{} {}", frame.at_ms, words(&frame.offload)))
            .collect();
        save_lines(&folder.join("offloads.txt"), &told);
    }

    /// Reads it back.
    pub fn load(folder: &Path) -> Scenario {
        let config = std::fs::read_to_string(folder.join("config.toml")).unwrap();
        let mut scenario = Scenario::new(&config);
        let lines = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let offloads: BTreeMap<u64, Offload> = lines("offloads.txt").lines().map(parse).collect();
        for interface in 0..scenario.interfaces() {
            for (at_ms, bytes) in load_pcap(&folder.join(format!("in-{interface}.pcap"))) {
                scenario.frames.push(Arrival {
                    at_ms,
                    interface,
                    bytes,
                    offload: offloads.get(&at_ms).copied().unwrap_or_default(),
                });
            }
        }
        scenario.frames.sort_by_key(|frame| frame.at_ms);
        scenario.events = lines("events.txt").lines().map(str::to_owned).collect();
        scenario.now = scenario.frames.last().map_or(0, |frame| frame.at_ms);
        scenario
    }
}

/// Writes a file of lines; none, if there are none.
fn save_lines(path: &Path, lines: &[String]) {
    if lines.is_empty() {
        let _ = std::fs::remove_file(path);
    } else {
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
    }
}

/// What a device says of a frame, in words: `whole`, or `partial START AT`, for a super-packet with
/// `tcp`, `tcp-ecn` or `udp` and the bytes of its headers and of each payload.
pub fn words(offload: &Offload) -> String {
    let Checksum::Partial { start, at } = offload.checksum else {
        return "whole".to_owned();
    };
    let segments = offload.segments.map(|segments| {
        let kind = match segments.kind {
            SegmentKind::Tcp { ecn: false } => "tcp",
            SegmentKind::Tcp { ecn: true } => "tcp-ecn",
            SegmentKind::Udp => "udp",
        };
        format!(" {kind} {} {}", segments.headers_len, segments.payload_len)
    });
    format!("partial {start} {at}{}", segments.unwrap_or_default())
}

/// The reverse of [`words`], after the time.
fn parse(line: &str) -> (u64, Offload) {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<u16>().unwrap();
    let at_ms = words[0].parse().unwrap();
    if words[1] == "whole" {
        return (at_ms, Offload::WHOLE);
    }
    let kind = words.get(4).map(|&kind| match kind {
        "tcp" => SegmentKind::Tcp { ecn: false },
        "tcp-ecn" => SegmentKind::Tcp { ecn: true },
        "udp" => SegmentKind::Udp,
        other => panic!("no kind {other}"),
    });
    let segments = kind.map(|kind| Segments {
        kind,
        headers_len: number(5),
        payload_len: number(6),
    });
    let (start, at) = (number(2), number(3));
    let checksum = Checksum::Partial { start, at };
    (at_ms, Offload { checksum, segments })
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

/// Leaves the checksum of a frame partial, if it is one that a sender may leave so and knows to be
/// right; was it?
pub fn leave_partial(frame: &mut Arrival) -> bool {
    let Ok(packet) = engine::packet::parse(&frame.bytes) else {
        return false;
    };
    let absent = |at: usize| frame.bytes[packet.l4 + at..packet.l4 + at + 2] == [0, 0];
    let has_checksum = match packet.ipv4.protocol {
        6 => true,
        17 => !absent(6),
        _ => false,
    };
    let fits = has_checksum
        && packet.fragment.is_none()
        && !frame.offload.is_pending()
        && transport_is_right(&frame.bytes) == Some(true);
    if fits {
        frame.offload = unfinish(&mut frame.bytes, None);
    }
    fits
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
