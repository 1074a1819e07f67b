//! The values that strings of the configuration stand for: prefixes, addresses, ports, endpoints.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::problem::Problem;

/// Ports `first..=last`, first at most last, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// One entry of `pool.addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolEntry {
    /// `"interface"`: the external interface's own primary address, shared with the host.
    Interface,
    /// Addresses `first..=last`, Egret's alone.
    Own {
        /// The lowest.
        first: Ipv4Addr,
        /// The highest.
        last: Ipv4Addr,
    },
}

impl PoolEntry {
    /// The own addresses of this entry; none for the interface's.
    pub fn own(self) -> impl Iterator<Item = Ipv4Addr> {
        let (first, last) = match self {
            PoolEntry::Interface => (1, 0),
            PoolEntry::Own { first, last } => (u32::from(first), u32::from(last)),
        };
        (first..=last).map(Ipv4Addr::from)
    }
}

impl std::fmt::Display for PoolEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PoolEntry::Interface => f.write_str("interface"),
            PoolEntry::Own { first, last } if first == last => write!(f, "{first}"),
            PoolEntry::Own { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// The external side of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardExternal {
    /// The address; none: the only address of the pool, whichever it is at the moment.
    pub addr: Option<Ipv4Addr>,
    /// The ports; none: the whole address, which is then given.
    pub ports: Option<PortRange>,
}

impl std::fmt::Display for ForwardExternal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.addr, self.ports) {
            (Some(addr), Some(ports)) => write!(f, "{addr}:{ports}"),
            (Some(addr), None) => write!(f, "{addr}"),
            (None, Some(ports)) => write!(f, "{ports}"),
            (None, None) => f.write_str("nothing"),
        }
    }
}

/// An internal host that a forward leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardTarget {
    /// Its address.
    pub addr: Ipv4Addr,
    /// Its port, of a range that of the first; none: the same as outside.
    pub port: Option<u16>,
}

impl std::fmt::Display for ForwardTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.addr),
            None => write!(f, "{}", self.addr),
        }
    }
}

/// An IPv4 address that one host can have.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, Problem> {
    let bad = |why: &str| {
        let problem = Problem::error("bad-address", format!("\"{text}\" is no IPv4 address"));
        problem.why(why).fix("write it as in \"203.0.113.4\"")
    };
    let addr: Ipv4Addr = match text.parse() {
        Ok(addr) => addr,
        Err(_) if text.parse::<Ipv6Addr>().is_ok() => {
            let problem = Problem::error("bad-address", format!("\"{text}\" is an IPv6 address"));
            return Err(problem
                .why("Egret translates IPv4 only")
                .fix("write an IPv4 address"));
        }
        Err(_) => {
            return Err(bad(
                "an address is four numbers from 0 to 255 with points between",
            ));
        }
    };
    match unusable(addr) {
        None => Ok(addr),
        Some(what) => {
            let what = format!("{addr} is {what}");
            let problem = Problem::error("bad-address", what).why("no host has such an address");
            Err(problem.fix("write a unicast address"))
        }
    }
}

/// What an address is that no host on a network can have.
fn unusable(addr: Ipv4Addr) -> Option<&'static str> {
    match addr.octets() {
        [0, ..] => Some("in 0.0.0.0/8 (\"this network\")"),
        [127, ..] => Some("a loopback address"),
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("in the reserved block 240.0.0.0/4"),
        _ => None,
    }
}

/// A prefix without host bits.
pub(super) fn prefix(text: &str) -> Result<Ipv4Net, Problem> {
    if let Ok(net) = text.parse::<Ipv4Net>() {
        if net.trunc() == net {
            return Ok(net);
        }
        let problem = Problem::error("host-bits", format!("host bits are set in \"{text}\""));
        let why = format!(
            "/{} keeps only the first {0} bits of the address",
            net.prefix_len()
        );
        return Err(problem.why(why).fix(format!(
            "write \"{}\" for the network, or \"{}/32\" for the one host",
            net.trunc(),
            net.addr()
        )));
    }
    let problem = Problem::error("bad-prefix", format!("\"{text}\" is no IPv4 prefix"));
    if let Ok(addr) = text.parse::<Ipv4Addr>() {
        let why = "the length is missing";
        let fix = match addr.octets()[3] {
            0 => format!("write \"{addr}/24\" for a network of 256 addresses, or what fits"),
            _ => format!("write \"{addr}/32\" for the one host"),
        };
        return Err(problem.why(why).fix(fix));
    }
    if text.parse::<ipnet::Ipv6Net>().is_ok() {
        let why = "it is an IPv6 prefix, and Egret translates IPv4 only";
        return Err(problem
            .why(why)
            .fix("write an IPv4 prefix, or leave it out"));
    }
    let why = "a prefix is an address, a slash and a length from 0 to 32";
    Err(problem.why(why).fix("write it as in \"10.77.0.0/24\""))
}

/// A prefix of hosts that can be clients.
pub(super) fn internal_prefix(text: &str) -> Result<Ipv4Net, Problem> {
    let net = prefix(text)?;
    let problem = |what: String| {
        let problem = Problem::error("bad-prefix", what);
        problem.fix("write the prefixes that your clients have, such as \"10.77.0.0/24\"")
    };
    if net.prefix_len() == 0 {
        let problem = problem(format!("\"{text}\" as an internal prefix is every address"));
        return Err(problem.why("then nothing is external, and nothing would be translated"));
    }
    match unusable(net.network()).or(unusable(net.broadcast())) {
        None => Ok(net),
        Some(what) => {
            let problem = problem(format!("\"{text}\" reaches into what is {what}"));
            Err(problem.why("no client has such an address"))
        }
    }
}

/// A destination prefix of this list, which must not be all destinations.
pub(super) fn destination_prefix(list: &str) -> impl Fn(&str) -> Result<Ipv4Net, Problem> {
    move |text| {
        let net = prefix(text)?;
        if net.prefix_len() == 0 {
            let what = format!("\"{text}\" in `{list}` is every destination");
            let problem = Problem::error("bad-prefix", what);
            let problem = problem.why("then nothing would be translated");
            return Err(problem.fix("name only the destinations that are meant"));
        }
        Ok(net)
    }
}

/// The name of a pool or a rule.
pub(super) fn pool_name(text: &str) -> Result<String, Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    let problem = Problem::error("bad-name", format!("\"{text}\" is no name"));
    let why = "a name has 1 to 64 letters, digits, \"-\", \"_\" and \".\"";
    Err(problem.why(why).fix("choose another one"))
}

/// A port or a range of ports.
pub(super) fn port_range(text: &str) -> Result<PortRange, Problem> {
    let problem = |what: String| {
        let problem = Problem::error("bad-ports", what);
        problem.why("ports are 1 to 65535, a range is written low-high")
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) else {
        let what = format!("\"{text}\" is no port and no range of ports");
        return Err(problem(what).fix("write it as in \"1024-65535\""));
    };
    if first > last {
        let what = format!("the range \"{text}\" is the wrong way round");
        return Err(problem(what).fix(format!("write \"{last}-{first}\"")));
    }
    if first == 0 {
        let fix = if last == 0 {
            "leave it out".into()
        } else {
            format!("write \"1-{last}\"")
        };
        return Err(problem(format!("\"{text}\" contains port 0")).fix(fix));
    }
    Ok(PortRange { first, last })
}

/// An entry of the pool: the word `interface`, an address, a prefix, or a range.
pub(super) fn pool_entry(text: &str) -> Result<PoolEntry, Problem> {
    if text == "interface" {
        return Ok(PoolEntry::Interface);
    }
    let (first, last) = if text.contains('/') {
        let net = prefix(text)?;
        (net.network(), net.broadcast())
    } else if let Some((first, last)) = text.split_once('-') {
        (address(first.trim())?, address(last.trim())?)
    } else if text.starts_with(|c: char| c.is_ascii_digit()) || text.contains(':') {
        let addr = address(text)?;
        (addr, addr)
    } else {
        let what = format!("\"{text}\" is no address of a pool");
        let why = "a pool has \"interface\" (the external interface's own address), addresses, \
                   prefixes and ranges";
        return Err(Problem::error("bad-pool", what)
            .why(why)
            .fix("write \"interface\""));
    };
    if first > last {
        let problem = Problem::error(
            "bad-pool",
            format!("the range \"{text}\" is the wrong way round"),
        );
        let fix = format!("write \"{last}-{first}\"");
        return Err(problem.why("the lower address comes first").fix(fix));
    }
    if let Some(what) = unusable(first).or(unusable(last)) {
        let problem = Problem::error(
            "bad-pool",
            format!("\"{text}\" reaches into what is {what}"),
        );
        let why = "no packet from outside can be sent to such an address";
        return Err(problem
            .why(why)
            .fix("write public addresses that are routed to this machine"));
    }
    Ok(PoolEntry::Own { first, last })
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port != 0)
}

/// The external side of a forward: ports, an address with ports, or an address.
pub(super) fn forward_external(text: &str) -> Result<ForwardExternal, Problem> {
    let (addr, ports) = match text.split_once(':') {
        Some((addr, ports)) => (Some(address(addr)?), Some(ports)),
        None if text.contains('.') => (Some(address(text)?), None),
        None => (None, Some(text)),
    };
    let ports = match ports {
        None => None,
        Some(ports) => Some(port_range(ports).map_err(|_| {
            let what = format!("\"{text}\" is no external side of a forward");
            let why = "it is a port from 1 to 65535, a range of them, an address, or an address, a \
                       colon and one of these";
            let fix = "write it as in \"8443\", \"203.0.113.4:8443\" or \"30000-32767\"";
            Problem::error("bad-endpoint", what).why(why).fix(fix)
        })?),
    };
    Ok(ForwardExternal { addr, ports })
}

/// An internal host that a forward leads to: an address, or one with a port.
pub(super) fn forward_target(text: &str) -> Result<ForwardTarget, Problem> {
    let (addr, port_text) = match text.split_once(':') {
        Some((addr, port)) => (addr, Some(port)),
        None => (text, None),
    };
    let addr = address(addr)?;
    let port = match port_text.map(port) {
        Some(None) => {
            let problem = Problem::error("bad-endpoint", format!("\"{text}\" is no endpoint"));
            let problem = problem.why("the port is a number from 1 to 65535");
            return Err(problem.fix("write it as in \"10.77.0.5:443\""));
        }
        port => port.flatten(),
    };
    Ok(ForwardTarget { addr, port })
}

/// A name of an instance: it becomes part of paths.
pub(super) fn instance_name(text: &str) -> Result<String, Problem> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=32).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    let what = format!("\"{text}\" is no name of an instance");
    let why = "it becomes part of paths: 1 to 32 letters, digits, \"-\" and \"_\"";
    Err(Problem::error("bad-name", what)
        .why(why)
        .fix("write it as in \"default\""))
}

/// A name that Linux allows for an interface.
pub(super) fn interface_name(text: &str) -> Result<String, Problem> {
    let fits = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if (1..=15).contains(&text.len()) && text.chars().all(fits) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    let what = format!("\"{text}\" is no name of an interface");
    let why = "Linux allows 1 to 15 characters without blanks, \"/\" and \":\"";
    Err(Problem::error("bad-name", what)
        .why(why)
        .fix("`ip -brief link` lists the names"))
}

/// A name that a group can have, or a group's number.
pub(super) fn group_name(text: &str) -> Result<String, Problem> {
    let fits = |c: char| c.is_ascii_graphic() && c != ':' && c != ',' && c != '/';
    if (1..=32).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    let what = format!("\"{text}\" is no name of a group");
    let why = "a group has a name of 1 to 32 characters without blanks, \":\", \",\" and \"/\"";
    Err(Problem::error("bad-name", what)
        .why(why)
        .fix("`getent group` lists the names"))
}

/// A path from the root.
pub(super) fn absolute_path(text: &str) -> Result<std::path::PathBuf, Problem> {
    if text.starts_with('/') && text.len() <= 4000 && !text.contains('\0') {
        return Ok(text.into());
    }
    let what = format!("\"{text}\" is no absolute path");
    let why = "the gateway runs as a service, so a path cannot depend on a current directory";
    Err(Problem::error("bad-path", what)
        .why(why)
        .fix("write a path that starts with \"/\""))
}

/// The path of a Unix socket.
pub(super) fn socket_path(text: &str) -> Result<std::path::PathBuf, Problem> {
    if text.len() > 107 {
        let what = format!("the path of the socket has {} bytes", text.len());
        let problem = Problem::error("bad-path", what);
        return Err(problem
            .why("the kernel takes at most 107")
            .fix("choose a shorter path"));
    }
    absolute_path(text)
}
