//! What the operator of a world wants: the configuration as drawn, and as its text.

use std::net::Ipv4Addr;

use engine::world::EXTERNAL;

use super::dice::Dice;
use super::packet::{End, Proto};

/// Another address that the interface may get.
pub const LATER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// Addresses of a pool of its own.
const OWN: [Ipv4Addr; 3] = [
    Ipv4Addr::new(198, 51, 100, 20),
    Ipv4Addr::new(198, 51, 100, 21),
    Ipv4Addr::new(198, 51, 100, 22),
];
/// Places for pool addresses: more than there are at a time.
pub const ADDRESSES_MAX: u16 = 4;

/// A server that clients may not reach, where the operator wants that.
pub const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A quota that is more than the usual clients of a world need.
pub const AMPLE_QUOTA: u32 = 24;

/// What a client is told that is refused a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRefusal {
    HostUnreachable,
    AdminProhibited,
    Silent,
}

impl OnRefusal {
    /// Type and code of the ICMP error.
    pub fn answer(self) -> Option<(u8, u8)> {
        match self {
            OnRefusal::HostUnreachable => Some((3, 1)),
            OnRefusal::AdminProhibited => Some((3, 13)),
            OnRefusal::Silent => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    Edf,
    Adf,
    Eif,
}

/// All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    pub udp: u64,
    pub open: u64,
    pub idle: u64,
    pub close: u64,
    pub icmp: u64,
    pub fragment: u64,
    pub hold_down: u64,
}

const RFC: Timers = timers([300, 240, 7440, 240, 60, 2, 120]);
const CONNTRACK: Timers = timers([120, 120, 432_000, 120, 30, 30, 0]);
const CLOUD: Timers = timers([30, 30, 1200, 120, 30, 2, 120]);
const SHORT: Timers = timers([5, 4, 40, 3, 3, 2, 6]);

const fn timers(s: [u64; 7]) -> Timers {
    Timers {
        udp: s[0] * 1000,
        open: s[1] * 1000,
        idle: s[2] * 1000,
        close: s[3] * 1000,
        icmp: s[4] * 1000,
        fragment: s[5] * 1000,
        hold_down: s[6] * 1000,
    }
}

impl Timers {
    fn text(&self) -> String {
        let profile = match *self {
            RFC => "rfc",
            CONNTRACK => "conntrack",
            CLOUD => "cloud",
            _ => {
                let keys = [
                    ("udp_timeout", self.udp),
                    ("tcp_trans_open_timeout", self.open),
                    ("tcp_idle_timeout", self.idle),
                    ("tcp_trans_close_timeout", self.close),
                    ("icmp_timeout", self.icmp),
                    ("fragment_timeout", self.fragment),
                    ("hold_down", self.hold_down),
                ];
                return keys
                    .map(|(key, ms)| format!("{key}_s = {}\n", ms / 1000))
                    .concat();
            }
        };
        format!("profile = \"{profile}\"\n")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub proto: Proto,
    /// None: the interface's address.
    pub addr: Option<Ipv4Addr>,
    pub port: u16,
    pub target: End,
    /// Only remote endpoints of 203.0.113.0/24.
    pub guarded: bool,
}

impl Forward {
    pub fn allows(&self, remote: Ipv4Addr) -> bool {
        !self.guarded || remote.octets()[..3] == [203, 0, 113]
    }
}

/// The policy in force as an outsider may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub eim: bool,
    pub filtering: Filtering,
    pub preserve_port: bool,
    pub inbound_refresh: bool,
    /// The pool's own addresses; empty: the interface's.
    pub own: Vec<Ipv4Addr>,
    /// The interface's address, as long as it has one.
    pub shared: Option<Ipv4Addr>,
    pub ports: (u16, u16),
    pub forwards: Vec<Forward>,
    pub timers: Timers,
    pub on_refusal: OnRefusal,
    /// Sessions that a client may have, of each protocol.
    pub quota: Option<u32>,
    /// [`DENIED`] is not to be reached.
    pub denies: bool,
}

impl Rules {
    /// `ample`: there is room for everybody.
    pub fn draw(dice: &mut Dice, hosts: &[Ipv4Addr], ample: bool) -> Rules {
        let count = if dice.chance(500) {
            0
        } else {
            dice.between(1, 2) as usize
        };
        let mut rules = Rules {
            eim: false,
            filtering: Filtering::Edf,
            preserve_port: true,
            inbound_refresh: false,
            own: OWN[..count].to_vec(),
            shared: (count == 0).then_some(EXTERNAL),
            ports: (20_000, 29_999),
            forwards: Vec::new(),
            timers: dice.pick(&[RFC, CONNTRACK, CLOUD, SHORT, SHORT, SHORT]),
            on_refusal: match dice.below(10) {
                0 | 1 => OnRefusal::Silent,
                2 | 3 => OnRefusal::AdminProhibited,
                _ => OnRefusal::HostUnreachable,
            },
            quota: None,
            denies: dice.chance(250),
        };
        rules.draw_quota(dice, ample);
        if !ample && dice.chance(600) {
            rules.ports.1 = rules.ports.0 + dice.pick(&[1, 3, 7, 31]);
        }
        rules.draw_behaviour(dice);
        rules.draw_forwards(dice, hosts);
        rules
    }

    fn draw_quota(&mut self, dice: &mut Dice, ample: bool) {
        let quota = if ample {
            AMPLE_QUOTA
        } else {
            dice.pick(&[1, 2, 5, 12])
        };
        self.quota = dice.chance(300).then_some(quota);
    }

    /// May nobody inside begin to talk with it?
    pub fn denies(&self, remote: Ipv4Addr) -> bool {
        self.denies && remote == DENIED
    }

    fn draw_behaviour(&mut self, dice: &mut Dice) {
        self.eim = dice.chance(600);
        let choices: &[Filtering] = match (self.eim, self.own.is_empty()) {
            (false, _) => &[Filtering::Edf],
            (true, true) => &[Filtering::Edf, Filtering::Adf],
            (true, false) => &[
                Filtering::Edf,
                Filtering::Adf,
                Filtering::Eif,
                Filtering::Eif,
            ],
        };
        self.filtering = dice.pick(choices);
        self.preserve_port = dice.chance(700);
        self.inbound_refresh = dice.chance(250);
    }

    fn draw_forwards(&mut self, dice: &mut Dice, hosts: &[Ipv4Addr]) {
        let known = [
            (Proto::Tcp, 8443, 443),
            (Proto::Udp, 5000, 20_001),
            (Proto::Tcp, 20_002, 80),
            (Proto::Udp, 20_003, 5000),
        ];
        let wanted: Vec<_> = known.into_iter().filter(|_| dice.chance(400)).collect();
        self.forwards = Vec::new();
        for (proto, port, target_port) in wanted {
            let addr = (!self.own.is_empty()).then(|| dice.pick(&self.own));
            let target = End::new(dice.pick(hosts), target_port);
            let guarded = dice.chance(400);
            self.forwards.push(Forward {
                proto,
                addr,
                port,
                target,
                guarded,
            });
        }
    }

    /// Something else is wanted from now on.
    pub fn redraw(&mut self, dice: &mut Dice, hosts: &[Ipv4Addr]) {
        match dice.below(6) {
            4 => self.draw_quota(dice, false),
            5 => self.denies = !self.denies,
            0 => self.draw_behaviour(dice),
            1 => self.timers = dice.pick(&[RFC, CLOUD, SHORT, SHORT]),
            2 if !self.own.is_empty() => {
                let start = dice.below(2) as usize;
                let count = dice.between(1, OWN.len() as u64 - start as u64) as usize;
                self.own = OWN[start..start + count].to_vec();
                self.draw_forwards(dice, hosts);
            }
            _ => self.draw_forwards(dice, hosts),
        }
    }

    /// The interface has these addresses now: it stays with the one it has while that is there.
    pub fn follow(&mut self, present: &[Ipv4Addr]) {
        if self.own.is_empty() && !self.shared.is_some_and(|addr| present.contains(&addr)) {
            self.shared = present.first().copied();
        }
    }

    pub fn pool(&self) -> Vec<Ipv4Addr> {
        self.own.iter().copied().chain(self.shared).collect()
    }

    /// Where a forward is found from outside, if it is.
    pub fn external_of(&self, forward: &Forward) -> Option<End> {
        forward
            .addr
            .or(self.shared)
            .map(|addr| End::new(addr, forward.port))
    }

    pub fn forward_at(&self, proto: Proto, external: End) -> Option<&Forward> {
        let at = |forward: &&Forward| {
            forward.proto == proto && self.external_of(forward) == Some(external)
        };
        self.forwards.iter().find(at)
    }

    pub fn is_target(&self, proto: Proto, end: End) -> bool {
        self.forwards
            .iter()
            .any(|forward| forward.proto == proto && forward.target == end)
    }

    /// The configuration file's first keys, beside `internal` and the interfaces.
    pub fn head(&self) -> String {
        match self.denies {
            true => format!("deny = [\"{DENIED}/32\"]\n"),
            false => String::new(),
        }
    }

    /// The configuration file's tables, but for the interfaces.
    pub fn text(&self) -> String {
        let mut text = String::from("[pool]\n");
        if !self.own.is_empty() {
            text += &format!(
                "addresses = {:?}\n",
                self.own.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>()
            );
        }
        text += &format!("ports = \"{}-{}\"\n[nat]\n", self.ports.0, self.ports.1);
        if self.eim {
            text += "mapping = \"eim\"\n";
        }
        let filtering = format!("{:?}", self.filtering).to_lowercase();
        text += &format!(
            "filtering = \"{filtering}\"\npreserve_port = {}\n",
            self.preserve_port
        );
        text += &format!(
            // What the gateway says of itself about TCP has tests of its own.
            "inbound_refresh = {}\nmidstream = \"drop\"\n[timers]\n{}",
            self.inbound_refresh,
            self.timers.text()
        );
        text += match self.on_refusal {
            OnRefusal::HostUnreachable => "[icmp]\n",
            OnRefusal::AdminProhibited => "[icmp]\non_refusal = \"admin-prohibited\"\n",
            OnRefusal::Silent => "[icmp]\non_refusal = \"silent\"\n",
        };
        text += "unsolicited = \"silent\"\n";
        if let Some(quota) = self.quota {
            text += &format!("[limits]\nsessions_per_subscriber = {quota}\n");
        }
        for forward in &self.forwards {
            let Forward {
                proto,
                addr,
                port,
                target,
                guarded,
            } = forward;
            let proto = format!("{proto:?}").to_lowercase();
            let external = addr.map_or(port.to_string(), |addr| format!("{addr}:{port}"));
            text += &format!(
                "[[forwards]]\nprotocol = \"{proto}\"\nexternal = \"{external}\"\ntarget = \"{target}\"\n"
            );
            if *guarded {
                text += "allow = [\"203.0.113.0/24\"]\n";
            }
        }
        text
    }
}
