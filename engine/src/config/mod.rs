//! The configuration: one TOML file, read strictly, checked as far as it can be without the host.
//!
//! `egret.sample.toml` documents every key; [`keys::KEYS`] lists them. What depends on the machine
//! is checked in [`crate::plan`].

mod check;
mod check_rules;
mod forwards;
pub mod keys;
mod mode;
mod per_protocol;
mod problem;
mod read;
mod reader;
mod rfc;
mod rules;
mod settings;
mod timers;
mod values;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use conntrack::{
    Affinity, FilteringBehaviour, Limits, MappingBehaviour, Pairing, Protocol, Timers,
};
use ipnet::Ipv4Net;
use toml::de::DeTable;

pub use mode::DeviceMode;
pub use problem::{At, ConfigError, Level, Place, Problem, Source, Span};
pub use rfc::{Demand, Deviation};
pub use rules::{
    DEFAULT_POOL, NamedPool, RuleAction, RuleConfig, ServiceConfig, TimerChanges, TranslateConfig,
};
pub use settings::Setting;
pub use timers::TimerProfile;
pub use values::{ForwardExternal, ForwardTarget, PoolEntry, PortRange};

use reader::{Problems, Reader};

/// Where instances keep what they share with other processes and what outlives them, each in a
/// directory of its name.
pub const RUN_DIR: &str = "/run/egret";
/// The fewest sessions that a table can be made for.
pub const SESSIONS_MIN: u32 = 64;
/// The most sessions that a table can be made for.
pub const SESSIONS_MAX: u32 = 1 << 24;
/// Largest rate, and burst, of new mappings.
pub const MAPPINGS_PER_SECOND_MAX: u32 = 1_000_000;
/// The most interfaces.
pub const INTERFACES_MAX: usize = 16;
/// The most addresses of a pool: each costs port tables, used or not.
pub const ADDRESSES_MAX: usize = 256;
/// The highest priority of a real-time policy (sched(7)).
pub const PRIORITY_MAX: u32 = 99;
/// The most workers.
pub const WORKERS_MAX: u32 = 256;

/// The sides that an interface serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Clients are behind it.
    Internal,
    /// The outside is behind it.
    External,
    /// One-arm: both.
    Both,
}

impl Role {
    /// May clients be behind it?
    pub fn is_internal(self) -> bool {
        self != Role::External
    }

    /// Is the outside behind it?
    pub fn is_external(self) -> bool {
        self != Role::Internal
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Internal => "internal",
            Role::External => "external",
            Role::Both => "both",
        })
    }
}

/// An interface to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Its name.
    pub name: At<String>,
    /// Its sides.
    pub role: Role,
    /// How frames are exchanged with it, if the file says so of it alone.
    pub mode: Option<At<DeviceMode>>,
}

/// The external addresses and their ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Addresses: the interface's, and own ones. No address twice; at most [`ADDRESSES_MAX`].
    pub addresses: Vec<At<PoolEntry>>,
    /// Ports for TCP and UDP; none: 1024-65535, and on a shared address without what the host uses.
    pub ports: Option<Vec<At<PortRange>>>,
    /// Ports to leave out.
    pub exclude_ports: Vec<At<PortRange>>,
    /// When the paired address has no port left; none: hard with `eim`, soft with `edm`.
    pub pairing: Option<Pairing>,
    /// How much of an address's ports may be in hold-down at once, in percent.
    pub hold_down_max_percent: u8,
}

impl PoolConfig {
    /// Does the pool have the external interface's own address?
    pub fn has_interface(&self) -> bool {
        self.interface_span().is_some()
    }

    /// The place of the entry `"interface"`, if there is one; a default has no place.
    pub fn interface_span(&self) -> Option<Option<Span>> {
        let entry = self
            .addresses
            .iter()
            .find(|entry| entry.value == PoolEntry::Interface);
        entry.map(|entry| entry.span)
    }

    /// The own addresses, in the order of the file.
    pub fn own(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().flat_map(|entry| entry.value.own())
    }
}

/// How packets are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// Mapping behaviour, by [`Protocol::index`].
    pub mapping: [At<MappingBehaviour>; 3],
    /// Filtering behaviour, by [`Protocol::index`]. Other than `edf` only with `eim`.
    pub filtering: [At<FilteringBehaviour>; 3],
    /// Keep the source port where it is free.
    pub preserve_port: bool,
    /// Else keep its class (0-1023 or the rest) where the pool has a port of it.
    pub preserve_port_class: bool,
    /// Else keep a UDP port's parity where the pool has such a port.
    pub preserve_port_parity: bool,
    /// Inbound UDP and ICMP packets refresh their session.
    pub inbound_refresh: bool,
    /// TCP from inside in the middle of a connection that has no session.
    pub midstream: Midstream,
}

/// Static mappings that let the external realm open sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// TCP, UDP or both; of a whole address all three. Not empty.
    pub protocols: Vec<Protocol>,
    /// The external side.
    pub external: At<ForwardExternal>,
    /// The internal hosts: not empty, of a whole address one.
    pub targets: Vec<At<ForwardTarget>>,
    /// Their shares, by place; empty: all have the same.
    pub weights: Vec<At<u32>>,
    /// How one of several is chosen.
    pub affinity: Affinity,
    /// Sources that may use it; empty: any.
    pub allow: Vec<At<Ipv4Net>>,
}

/// What the sender is told when its packet is refused: table or pool full (RFC 6888 REQ-11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnRefusal {
    /// ICMP 3/1, a soft error.
    HostUnreachable,
    /// ICMP 3/13 (RFC 5508 REQ-8).
    AdminProhibited,
    /// Nothing.
    Silent,
}

/// What the sender of a SYN from outside is told that nobody waits for (RFC 5382 REQ-4), on own
/// addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unsolicited {
    /// ICMP 3/3, after `timers.tcp_in_syn_timeout_s`.
    PortUnreachable,
    /// Nothing (REQ-4a).
    Silent,
}

/// What becomes of a TCP segment from inside, other than a SYN, that belongs to no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Midstream {
    /// It is dropped.
    Drop,
    /// It is dropped, and answered with a RST.
    Reset,
}

/// ICMP messages that Egret itself sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpConfig {
    /// How many errors a second all workers together send; 0: none.
    pub errors_per_second: u32,
    /// The answer to a refused packet.
    pub on_refusal: OnRefusal,
    /// The answer to a SYN that nobody waits for.
    pub unsolicited: Unsolicited,
}

/// The tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablesConfig {
    /// How many sessions; none: by RAM.
    pub sessions_max: Option<At<u32>>,
    /// The file that holds them, so that a restarted engine finds its sessions.
    pub path: At<PathBuf>,
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Poll {
    /// It sleeps until a packet comes.
    Adaptive,
    /// It never sleeps: for a core of its own.
    Busy,
}

/// The threads that move packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkersConfig {
    /// How many; none: min(CPUs, queues).
    pub count: Option<At<u32>>,
    /// Sleeping or not.
    pub poll: At<Poll>,
    /// CPUs for them, one each; empty: those that the process may use.
    pub cpus: Vec<At<u16>>,
    /// Their priority under SCHED_FIFO; none: they are scheduled as other threads are.
    pub priority: Option<At<u32>>,
}

/// The checked configuration: every value is within its range and fits the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The text it came from, for messages.
    pub source: Source,
    /// Names the instance in paths.
    pub instance: String,
    /// Internal prefixes: not empty, disjoint.
    pub internal: Vec<At<Ipv4Net>>,
    /// The interfaces: exactly one is external or both.
    pub interfaces: Vec<InterfaceConfig>,
    /// Destinations that the kernel forwards.
    pub bypass: Vec<At<Ipv4Net>>,
    /// Destinations that clients may not reach.
    pub deny: Vec<At<Ipv4Net>>,
    /// External addresses and ports.
    pub pool: PoolConfig,
    /// Pools that rules choose.
    pub pools: Vec<NamedPool>,
    /// Which flows are translated otherwise, or not: the first that fits decides.
    pub rules: Vec<RuleConfig>,
    /// Flows to some ports have timers of their own.
    pub services: Vec<ServiceConfig>,
    /// How packets are translated.
    pub nat: NatConfig,
    /// The profile that timers not given come from.
    pub timer_profile: TimerProfile,
    /// The timers in force.
    pub timers: Timers,
    /// What the outside may fill.
    pub limits: Limits,
    /// Forwards: no two have the same protocol and external side.
    pub forwards: Vec<ForwardConfig>,
    /// ICMP messages that Egret sends.
    pub icmp: IcmpConfig,
    /// Tables.
    pub tables: TablesConfig,
    /// Workers.
    pub workers: WorkersConfig,
    /// How frames are exchanged with the interfaces that have no mode of their own.
    pub mode: At<DeviceMode>,
    /// The control socket.
    pub control_socket: PathBuf,
    /// The group that it belongs to, whose members may change things; none: the engine's, whose
    /// members may only look.
    pub control_group: Option<At<String>>,
    /// Warnings and notes that need no host.
    pub advice: Vec<Problem>,
    given: BTreeSet<String>,
}

impl Config {
    /// The same with one interface for both sides.
    #[must_use]
    pub fn through(&self, interface: &str) -> Config {
        Config {
            interfaces: vec![InterfaceConfig {
                name: At::default_value(interface.to_owned()),
                role: Role::Both,
                mode: None,
            }],
            ..self.clone()
        }
    }

    /// Reads and checks a configuration. `name` is what messages call the file.
    ///
    /// # Errors
    /// Everything that is wrong, as far as it can be told in one go: never an empty list.
    pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
        let source = Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let fail = |mut problems: Vec<Problem>| {
            problems.sort_by_key(|problem| problem.span);
            Err(ConfigError {
                source: source.clone(),
                problems,
            })
        };
        let (root, syntax) = DeTable::parse_recoverable(text);
        if !syntax.is_empty() {
            return fail(syntax_problems(&source, &syntax));
        }
        let problems: Problems = RefCell::default();
        let reader = Reader::new(root.get_ref(), "", root.span().into(), &problems);
        let config = read::config(&reader, &source);
        if let Some(config) = &config {
            check::check(config, &problems);
        }
        let mut problems = problems.into_inner();
        let wrong = problems.iter().any(|problem| problem.level == Level::Error);
        match config {
            Some(mut config) if !wrong => {
                problems.sort_by_key(|problem| problem.span);
                config.advice = problems;
                Ok(config)
            }
            _ => fail(problems),
        }
    }

    /// The interface that the outside is behind.
    pub fn external_interface(&self) -> &InterfaceConfig {
        let external = self
            .interfaces
            .iter()
            .find(|interface| interface.role.is_external());
        external.expect("a checked configuration has one")
    }

    /// All pools by number: 0 is the one of flows that no rule gives another.
    pub fn all_pools(&self) -> impl Iterator<Item = (u16, &PoolConfig)> {
        let named = self.pools.iter().map(|named| &named.pool);
        (0..).zip(std::iter::once(&self.pool).chain(named))
    }

    /// The number of a pool by its name.
    pub fn pool_number(&self, name: &str) -> Option<u16> {
        if name == DEFAULT_POOL {
            return Some(0);
        }
        let place = self.pools.iter().position(|pool| pool.name.value == name)?;
        u16::try_from(place + 1).ok()
    }

    /// Egret's own addresses of all pools, in the order of the file.
    pub fn own_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.all_pools().flat_map(|(_, pool)| pool.own())
    }

    /// How frames are exchanged with one of the interfaces.
    pub fn mode_of(&self, interface: &InterfaceConfig) -> At<DeviceMode> {
        interface.mode.unwrap_or(self.mode)
    }

    /// Does the file set the key (`pool.ports`, `forwards[].allow`)?
    pub fn is_given(&self, key: &str) -> bool {
        self.given.contains(key)
    }

    /// Is the address in an internal prefix?
    pub fn is_internal(&self, addr: Ipv4Addr) -> bool {
        self.internal
            .iter()
            .any(|prefix| prefix.value.contains(&addr))
    }
}

/// What the TOML parser says, one complaint a line: what follows on the same line is mostly its
/// consequence.
fn syntax_problems(source: &Source, errors: &[toml::de::Error]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    let line = |span: Option<Span>| span.map(|span| source.place(span).line);
    for error in errors {
        let span = error.span().map(Span::from);
        if problems
            .last()
            .is_some_and(|last| line(last.span) == line(span))
        {
            continue;
        }
        let what = error.message().trim_end().replace('\n', ", ");
        let fix = match what.as_str() {
            "duplicate key" => {
                "give the key once; several values are written as a list: [\"a\", \"b\"]"
            }
            _ => "look for a quote or bracket that is missing here or above; text stands in quotes",
        };
        let problem = Problem::error("syntax", what).why("the file is not valid TOML");
        problems.push(problem.fix(fix).at(span));
    }
    problems
}
