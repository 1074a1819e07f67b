//! Steering: the BPF program that decides which packets are ours, its maps and its attachment.
//!
//! The program decides in the kernel, before any copy; what is decided by which map is written in
//! `bpf/egret.bpf.c`. Maps and links are pinned, so that the program stays attached when the engine
//! dies: internal traffic is dropped then, host traffic goes on. The next engine reuses the maps and
//! replaces the program in one step.
//!
//! Order of a start: [`Steering::open`], bind the sockets, fill the sets, rebuild
//! [`Steering::owned`], [`Steering::attach`]. Order of a stop: [`Steering::detach`], drain, close.

mod frames;
mod ingress;
mod maps;
mod pins;
mod remains;
mod tc;
mod trial;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicU64;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpMode as AyaMode;
use aya::programs::{ProgramError, Xdp};
use aya::util::KernelVersion;
use conntrack::AddressKind;
use ipnet::Ipv4Net;

use crate::device::sys::bpf;
use crate::device::sys::link::{self, XdpMode};
use crate::device::sys::mapping::Mapping;
pub use pins::InstanceLock;
use pins::{Pins, at_home};
pub use remains::{Remains, detach_all};
use trial::Trial;

/// The XDP program of the object.
const STEER_XDP: &str = "egret_steer";
/// Queues of one interface that can have a socket.
pub const QUEUES_MAX: u32 = 64;
/// Words of the ownership bitmap of one address: 1024 a protocol (TCP, UDP, ICMP).
pub const OWNED_WORDS: usize = 3 * 1024;

/// The first kernel with XDP links. Before it, aya would attach without a link that can be pinned.
const LINKS_SINCE: KernelVersion = KernelVersion::new(5, 9, 0);

/// Why steering failed.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The instance's name cannot be a directory name.
    #[error("{0:?} is no instance name: 1 to 64 of a-z, A-Z, 0-9, - and _")]
    BadInstance(String),
    /// Another engine runs under this name.
    #[error("an engine of the name {0:?} is running")]
    InUse(String),
    /// The program of a dead engine drops what another way would carry.
    #[error(
        "the program of a dead engine of the name {0:?} is still attached and drops what comes from \
         inside: `egret detach --instance {0}`"
    )]
    Guarded(String),
    /// The pin directory failed.
    #[error("{step}: {source}")]
    Pins {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program or a map could not be loaded.
    #[error("loading the steering program: {0}")]
    Load(String),
    /// A map could not be changed or read.
    #[error("map {map}: {why}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel or aya says.
        why: String,
    },
    /// Another XDP program is attached to the interface.
    #[error(
        "{interface} has an XDP program already ({mode}, id {program}): {}",
        remedy(interface, *program, instance.as_deref())
    )]
    Occupied {
        /// Name of the interface.
        interface: String,
        /// Number of the program.
        program: u32,
        /// How it is attached.
        mode: &'static str,
        /// The instance of Egret that it belongs to.
        instance: Option<String>,
    },
    /// Another engine's program is attached to the interface's tc ingress.
    #[error(
        "{interface} has the tc program of another engine already (id {program}): {}",
        remedy_in_tc(instance.as_deref())
    )]
    OccupiedInTc {
        /// Name of the interface.
        interface: String,
        /// Number of the program.
        program: u32,
        /// The instance of Egret that it belongs to, unless that is on trial.
        instance: Option<String>,
    },
    /// The program could not be attached.
    #[error("attaching to {interface} in {mode} mode: {why}")]
    Attach {
        /// Name of the interface.
        interface: String,
        /// The mode that was asked for.
        mode: XdpMode,
        /// What the kernel or aya says.
        why: String,
    },
    /// The program could not be attached to a tc ingress.
    #[error("attaching to the tc ingress of {interface}: {why}")]
    AttachTc {
        /// Name of the interface.
        interface: String,
        /// What the kernel or aya says.
        why: String,
    },
    /// The state of an interface could not be read.
    #[error("{interface}: {source}")]
    Interface {
        /// Name of the interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program could not be run on a frame.
    #[error("running the steering program on a frame: {0}")]
    Judge(String),
}

/// What to do about a program that is in the way.
fn remedy(interface: &str, program: u32, instance: Option<&str>) -> String {
    match instance {
        Some(instance) => stop_the_other(instance),
        None => format!(
            "`bpftool prog show id {program}` names it, `ip link set dev {interface} xdp off` \
             removes it if it is not needed"
        ),
    }
}

/// What to do about another engine's program.
fn stop_the_other(instance: &str) -> String {
    format!(
        "it is that of the engine with `instance = \"{instance}\"`; one interface has one engine: \
         stop that one, or, if it is dead, `egret detach --instance {instance}`"
    )
}

fn remedy_in_tc(instance: Option<&str>) -> String {
    instance.map_or_else(
        || {
            "it is that of an engine on trial (`egret run --confirm`); one interface has one engine: \
             stop that one, or wait for the end of its time"
                .to_owned()
        },
        stop_the_other,
    )
}

/// Sizes of the maps: they cannot grow later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeringSize {
    /// Interfaces, 1 to 255.
    pub interfaces_max: u8,
    /// External addresses, at least 1 (`TableSize::addresses_max`).
    pub addresses_max: u16,
    /// Addresses of the host.
    pub locals_max: u32,
    /// Prefixes, of the internal and of the bypass ones each.
    pub prefixes_max: u32,
}

impl Default for SteeringSize {
    fn default() -> SteeringSize {
        SteeringSize {
            interfaces_max: 16,
            addresses_max: 16,
            locals_max: 4096,
            prefixes_max: 1024,
        }
    }
}

/// An interface that the engine serves. Its number is its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeredInterface {
    /// Index in the network namespace.
    pub ifindex: u32,
    /// Ethernet address: frames to others are left alone.
    pub mac: [u8; 6],
    /// Internal prefixes are behind it.
    pub internal: bool,
    /// The external realm is behind it. Both: one-arm.
    pub external: bool,
}

/// An external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeredAddress {
    /// The address.
    pub addr: Ipv4Addr,
    /// Own or shared with the host.
    pub kind: AddressKind,
    /// Its place in the ownership bitmap, below `addresses_max`.
    pub slot: u16,
}

/// What the program did, in frames since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteeringCounters {
    /// Left to the host.
    pub passed: u64,
    /// Left to the host because the engine had punted them.
    pub punted: u64,
    /// To the engine: to an own address.
    pub own: u64,
    /// To the engine: to an owned endpoint of a shared address.
    pub shared: u64,
    /// To the engine: fragments to a shared address.
    pub fragments: u64,
    /// To the engine: from inside.
    pub internal: u64,
    /// Dropped: internal source on an external interface.
    pub spoofed: u64,
    /// Of those to the engine: no socket served the queue, so dropped or, for fragments, passed.
    pub unserved: u64,
    /// Dropped: from outside straight to an internal address.
    pub uninvited: u64,
}

/// What the program does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Dropped.
    Drop,
    /// Left to the host's kernel.
    Pass,
    /// To the engine's socket.
    Engine,
}

/// The loaded steering program of one instance.
pub struct Steering {
    ebpf: Ebpf,
    pins: Pins,
    owned: &'static [AtomicU64],
    mark: [u8; 6],
    /// Links were pinned already.
    inherited: bool,
    attached: Vec<u32>,
    trial: Trial,
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering")
            .field("pins", &self.pins)
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

impl Steering {
    /// Loads the program and its maps; attaches nothing. Pinned maps of a former engine of this
    /// instance are reused where their type and size still fit and replaced where not. `mark` is
    /// random bytes; a mark that the maps hold already stays.
    pub fn open(
        instance: &str,
        size: SteeringSize,
        mark: [u8; 6],
    ) -> Result<Steering, SteeringError> {
        let (pins, inherited, mut ebpf) = at_home(|| {
            let pins = Pins::open(instance)?;
            let inherited = !pins.links()?.is_empty();
            let ebpf = maps::load(&pins, size)?;
            Ok((pins, inherited, ebpf))
        })?;
        let mark = maps::settle_mark(&mut ebpf, mark)?;
        let words = usize::from(size.addresses_max) * OWNED_WORDS;
        let map_error = |why: String| SteeringError::Map { map: "owned", why };
        let map = ebpf
            .map("owned")
            .ok_or_else(|| map_error("missing".to_owned()))?;
        let aya::maps::Map::Array(data) = map else {
            return Err(map_error("not an array".to_owned()));
        };
        let owned = Mapping::shared(data.fd().as_fd(), words * 8, 0)
            .map_err(|error| map_error(error.to_string()))?
            .leak_words(words);
        Ok(Steering {
            ebpf,
            pins,
            owned,
            mark,
            inherited,
            attached: Vec::new(),
            trial: Trial::default(),
        })
    }

    /// The addresses in force, each with its slot: right after [`Steering::open`] those of an earlier
    /// engine whose maps are still there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn addresses(&self) -> Result<Vec<(u16, Ipv4Addr)>, SteeringError> {
        maps::externals(&self.ebpf)
    }

    /// The ownership bitmap: `addresses_max * 3 * 1024` words. Word
    /// `slot * 3072 + protocol * 1024 + port / 64`, bit `port % 64`; protocol 0 TCP, 1 UDP, 2 ICMP.
    pub fn owned(&self) -> &'static [AtomicU64] {
        self.owned
    }

    /// Source address that marks punted frames: locally administered, unicast, the same over
    /// restarts of the engine.
    pub fn mark(&self) -> [u8; 6] {
        self.mark
    }

    /// Makes `interfaces` the ones that are served; the place in the slice is the number.
    pub fn set_interfaces(&mut self, interfaces: &[SteeredInterface]) -> Result<(), SteeringError> {
        maps::set_interfaces(&mut self.ebpf, interfaces)
    }

    /// Makes `addresses` the external ones.
    pub fn set_externals(&mut self, addresses: &[SteeredAddress]) -> Result<(), SteeringError> {
        maps::set_externals(&mut self.ebpf, addresses)
    }

    /// Makes `addresses` those of the host: its own and its broadcast addresses.
    pub fn set_locals(&mut self, addresses: &[Ipv4Addr]) -> Result<(), SteeringError> {
        maps::set_locals(&mut self.ebpf, addresses)
    }

    /// Makes `prefixes` the internal ones.
    pub fn set_internals(&mut self, prefixes: &[Ipv4Net]) -> Result<(), SteeringError> {
        maps::set_prefixes(&mut self.ebpf, "internals", prefixes)
    }

    /// Makes `prefixes` the ones that the gateway leaves to the kernel.
    pub fn set_bypasses(&mut self, prefixes: &[Ipv4Net]) -> Result<(), SteeringError> {
        maps::set_prefixes(&mut self.ebpf, "bypasses", prefixes)
    }

    /// Gives the frames of an interface's queue to a bound socket. The kernel forgets the socket
    /// when it is closed.
    pub fn set_socket(
        &mut self,
        interface: usize,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), SteeringError> {
        maps::set_socket(&mut self.ebpf, interface, queue, socket)
    }

    /// Takes an interface's queue away from its socket: its frames are dropped or passed.
    pub fn clear_socket(&mut self, interface: usize, queue: u32) -> Result<(), SteeringError> {
        maps::clear_socket(&mut self.ebpf, interface, queue)
    }

    /// What the program did.
    pub fn counters(&self) -> Result<SteeringCounters, SteeringError> {
        maps::counters(&self.ebpf)
    }

    /// Attaches the program to an interface of the calling thread's network namespace and, unless on
    /// trial, pins the link. A program of a former engine of this instance is replaced in one step if
    /// the mode is the same; a program of anybody else is left alone, and that is an error.
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<(), SteeringError> {
        let unknown = |source| SteeringError::Interface {
            interface: interface.to_owned(),
            source,
        };
        let ifindex = link::index(interface).map_err(unknown)?;
        let pin = self.pins.link(ifindex);
        let (ebpf, trial) = (&mut self.ebpf, &mut self.trial);
        trial.release(&pin);
        at_home(|| {
            let there = link::attached_xdp(ifindex).map_err(unknown)?;
            let ours = bpf::open_pin(&pin).and_then(|link| bpf::link_info(link.as_fd()));
            let keeps = there.is_some_and(|there| there.mode == Some(mode));
            let why = |why: String| SteeringError::Attach {
                interface: interface.to_owned(),
                mode,
                why,
            };
            let program = xdp(ebpf)?;
            if keeps && ours.as_ref().is_ok_and(|ours| ours.ifindex == ifindex) {
                let link = replace(program, &pin).map_err(why)?;
                return trial.take_over(link, &pin).map_err(why);
            }
            if ours.is_ok() || pin.exists() {
                // Of another mode, or of an interface that is gone.
                pins::detach(&pin)?;
            }
            if let Some(other) = link::attached_xdp(ifindex).map_err(unknown)? {
                return Err(occupied(interface, ifindex, other));
            }
            if !KernelVersion::current().is_ok_and(|version| version >= LINKS_SINCE) {
                return Err(why("Linux 5.9 or later is needed".to_owned()));
            }
            let mode = match mode {
                XdpMode::Native => AyaMode::Driver,
                XdpMode::Generic => AyaMode::Skb,
            };
            let id = program
                .attach_to_if_index(ifindex, mode)
                .map_err(|e| why(reason(&e) + advice(&e, mode)))?;
            let link = program.take_link(id).map_err(|e| why(reason(&e)))?;
            let link = FdLink::try_from(link)
                .map_err(|_| why("the kernel made no XDP link".to_owned()))?;
            trial.keep(link, &pin).map_err(why)
        })?;
        if !self.attached.contains(&ifindex) {
            self.attached.push(ifindex);
        }
        Ok(())
    }

    /// Is the interface without an XDP program, or with that of this instance? Asked before sockets
    /// are bound, which would fail for another reason.
    pub fn may_attach(&self, interface: &str) -> Result<(), SteeringError> {
        let unknown = |source| SteeringError::Interface {
            interface: interface.to_owned(),
            source,
        };
        let ifindex = link::index(interface).map_err(unknown)?;
        let pin = self.pins.link(ifindex);
        at_home(|| {
            let ours = bpf::open_pin(&pin).and_then(|link| bpf::link_info(link.as_fd()));
            match link::attached_xdp(ifindex).map_err(unknown)? {
                Some(other) if !ours.is_ok_and(|ours| ours.ifindex == ifindex) => {
                    Err(occupied(interface, ifindex, other))
                }
                _ => Ok(()),
            }
        })
    }

    /// Did an earlier engine of this instance leave its program attached?
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Detaches the program from one interface, as when it is to be attached in another mode. One
    /// that it is not attached to is fine.
    pub fn detach_interface(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        self.attached.retain(|&other| other != ifindex);
        let pin = self.pins.link(ifindex);
        self.trial.release(&pin);
        at_home(|| {
            if pin.exists() {
                pins::detach(&pin)
            } else {
                Ok(())
            }
        })
    }

    /// Detaches the program from all interfaces and removes every pin: the interfaces are as they
    /// were found. The maps live on until this value is dropped; drain the sockets now, then close
    /// them. Without this call the program stays attached when the process ends.
    pub fn detach(&mut self) -> Result<(), SteeringError> {
        self.attached.clear();
        self.trial.release_all();
        let pins = &self.pins;
        at_home(|| {
            pins.detach_links()?;
            pins.remove()
        })
    }
}

/// The instance of Egret that attached a program to an interface, if one did, and if the user may
/// see that.
pub fn owner(ifindex: u32, program: u32) -> Option<String> {
    at_home(|| Ok(pins::instance_of(ifindex, program))).ok()?
}

/// Another's program is attached. Call it `at_home`.
fn occupied(interface: &str, ifindex: u32, other: link::AttachedXdp) -> SteeringError {
    SteeringError::Occupied {
        interface: interface.to_owned(),
        program: other.program,
        mode: match other.mode {
            Some(XdpMode::Native) => "native",
            Some(XdpMode::Generic) => "generic",
            None => "hardware",
        },
        instance: pins::instance_of(ifindex, other.program),
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, SteeringError> {
    ebpf.program_mut(STEER_XDP)
        .ok_or_else(|| SteeringError::Load(format!("{STEER_XDP} is missing")))?
        .try_into()
        .map_err(|error: ProgramError| SteeringError::Load(reason(&error)))
}

/// Puts the program in the place of the one that the pinned link holds. The pin stays; the link is
/// another handle of it.
fn replace(program: &mut Xdp, pin: &std::path::Path) -> Result<FdLink, String> {
    let link = PinnedLink::from_pin(pin).map_err(|error| error.to_string())?;
    let link = FdLink::from(link).try_into();
    let link = link.map_err(|error: aya::programs::links::LinkError| error.to_string())?;
    let id = program
        .attach_to_link(link)
        .map_err(|error| reason(&error))?;
    let link = program.take_link(id).map_err(|error| reason(&error))?;
    FdLink::try_from(link).map_err(|error| reason(&error))
}

/// What the kernel does not say of a refusal by the driver.
fn advice(error: &(dyn std::error::Error + 'static), mode: AyaMode) -> &'static str {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let codes = causes.filter_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
    match (mode, codes.last()) {
        (AyaMode::Driver, Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOMEM)) => {
            "; the driver runs no programs, or none with its present offloads (receive merging), MTU \
             or queues"
        }
        _ => "",
    }
}

/// An error with its causes.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
