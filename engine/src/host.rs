//! What the host does with the network namespace that Egret works in: a snapshot as plain data, for
//! choosing the ports of a shared address, for the steering program and for `egret check`.

use std::io::{self, BufRead, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use conntrack::Protocol;

use crate::config::PortRange;
use crate::interface::InterfaceFacts;
use crate::netlink::{NetworkView, dump::Requests};
use crate::plan::Listener;

mod rules;
mod sources;

pub use rules::{iptables_ports, nft_ports};
pub use sources::source_rules;

/// Longest wait for a program that lists rules.
const PROGRAM_MAX: Duration = Duration::from_secs(3);

/// Most text taken from such a program, bytes.
const TEXT_MAX: u64 = 64 << 20;

/// States in the tables of `/proc/net` (linux/tcp_states.h): listening, and not connected.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// Ports that the host uses itself, or sends elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostPorts {
    /// `net.ipv4.ip_local_port_range`: ports that the host's own sockets are given.
    pub local_port_range: Option<PortRange>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub local_reserved_ports: Vec<PortRange>,
    /// Sockets that receive, sorted.
    pub listeners: Vec<Listener>,
    /// Ports that nft or iptables rules send elsewhere (best effort: rules that name a destination
    /// port), sorted.
    pub redirected_ports: Vec<(Protocol, PortRange)>,
}

impl HostPorts {
    /// Those of the current thread's network namespace; what cannot be read is left empty. Blocks for
    /// as long as the programs that list rules take (3 s each at most).
    pub fn read() -> HostPorts {
        let mut ports = HostPorts::default();
        ports.read_sockets();
        ports.read_rules();
        ports
    }

    /// Reads all but the rules again: some files in /proc.
    pub fn read_sockets(&mut self) {
        let mut listeners = Vec::new();
        for (file, protocol) in [
            ("tcp", Protocol::Tcp),
            ("tcp6", Protocol::Tcp),
            ("udp", Protocol::Udp),
            ("udp6", Protocol::Udp),
        ] {
            let path = format!("/proc/thread-self/net/{file}");
            listeners.extend(parse_sockets(protocol, &receiving_part(protocol, &path)));
        }
        listeners.sort_unstable();
        listeners.dedup();
        self.listeners = listeners;
        self.local_port_range = parse_port_range(&sysctl("ip_local_port_range"));
        self.local_reserved_ports = parse_port_list(&sysctl("ip_local_reserved_ports"));
    }

    /// Reads the rules again.
    pub fn read_rules(&mut self) {
        let nft = output("nft", &["-j", "list", "ruleset"]);
        // Without a table's name only tables that exist are listed; naming one would create it.
        let iptables = output("iptables-save", &[]);
        // A list that could not be had says nothing: what was known stays.
        let (Some(nft), Some(iptables)) = (nft, iptables) else {
            return;
        };
        let mut ports = nft_ports(&nft);
        ports.extend(iptables_ports(&iptables));
        ports.sort_unstable();
        ports.dedup();
        self.redirected_ports = ports;
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Host {
    /// All interfaces.
    pub interfaces: Vec<InterfaceFacts>,
    /// Every address that the host receives packets for, see [`NetworkView::locals`].
    pub locals: Vec<Ipv4Addr>,
    /// Its ports.
    pub ports: HostPorts,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: bool,
    /// The effective `rp_filter` of each interface, by name: the larger of its own and `all`.
    pub rp_filter: Vec<(String, u8)>,
}

impl Host {
    /// Takes a snapshot of the current thread's network namespace. Works inside an asynchronous
    /// runtime, too, but blocks for as long as the listing programs take (3 s each at most).
    ///
    /// # Errors
    /// rtnetlink refuses; everything else that cannot be read is left empty.
    pub fn read() -> io::Result<Host> {
        // A thread of its own, because a runtime cannot be started within another one. It inherits
        // the network namespace.
        std::thread::scope(|scope| {
            let thread = scope.spawn(Host::read_here);
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("reading the host panicked")))
        })
    }

    fn read_here() -> io::Result<Host> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let network = runtime.block_on(async { Requests::open()?.network().await })?;
        let view = NetworkView::of(&network);
        let filter = |name: &str| {
            let text = sysctl(&format!("conf/{name}/rp_filter"));
            text.trim().parse().unwrap_or(0_u8)
        };
        Ok(Host {
            ports: HostPorts::read(),
            ip_forward: sysctl("ip_forward").trim() == "1",
            rp_filter: view
                .interfaces
                .iter()
                .map(|facts| (facts.name.clone(), filter("all").max(filter(&facts.name))))
                .collect(),
            interfaces: view.interfaces,
            locals: view.locals,
        })
    }
}

/// The rules of nft and iptables that translate sources, in words; `None` if they cannot be listed,
/// as for all but root.
pub fn read_source_rules() -> Option<Vec<String>> {
    let nft = output("nft", &["-j", "list", "ruleset"])?;
    let iptables = output("iptables-save", &[])?;
    Some(source_rules(&nft, &iptables))
}

fn sysctl(key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).unwrap_or_default()
}

/// Two numbers, as in `ip_local_port_range`.
fn parse_port_range(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some(PortRange { first, last })
}

/// Ports and ranges between commas, as in `ip_local_reserved_ports`: `8080,9000-9100`.
fn parse_port_list(text: &str) -> Vec<PortRange> {
    let one = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(PortRange { first, last })
    };
    text.trim().split(',').filter_map(one).collect()
}

/// The part of a table of `/proc/net` that has the receiving sockets: of TCP's, the kernel lists
/// those first, and a busy host has a hundred thousand others behind them.
fn receiving_part(protocol: Protocol, path: &str) -> String {
    let Ok(file) = std::fs::File::open(path) else {
        return String::new();
    };
    let mut lines = io::BufReader::new(file).lines().map_while(Result::ok);
    let mut text = lines.next().unwrap_or_default();
    for line in lines {
        if protocol == Protocol::Tcp && line.split_whitespace().nth(3) != Some(TCP_LISTEN) {
            break;
        }
        text.push('\n');
        text.push_str(&line);
    }
    text
}

/// The receiving sockets in a table of `/proc/net`: `tcp`, `tcp6`, `udp` or `udp6`. Of the IPv6
/// tables those that receive IPv4, too (whether a socket is for IPv6 only is not told).
fn parse_sockets(protocol: Protocol, text: &str) -> Vec<Listener> {
    let wanted = if protocol == Protocol::Tcp {
        TCP_LISTEN
    } else {
        UDP_UNCONNECTED
    };
    let one = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (addr, port) = words.next()?.split_once(':')?;
        let state = words.nth(1)?;
        if state != wanted {
            return None;
        }
        let port = u16::from_str_radix(port, 16).ok()?;
        Some(Listener {
            protocol,
            addr: parse_proc_address(addr)?,
            port,
        })
    };
    text.lines().filter_map(one).collect()
}

/// An address of `/proc/net`: 32-bit words in the machine's byte order, in hexadecimal.
fn parse_proc_address(text: &str) -> Option<Ipv4Addr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            let addr = Ipv6Addr::from(bytes);
            if addr.is_unspecified() {
                Some(Ipv4Addr::UNSPECIFIED)
            } else {
                addr.to_ipv4_mapped()
            }
        }
        _ => None,
    }
}

/// What a program prints; empty if it is absent, `None` if it fails or takes too long.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    // The directories of administrators' programs are not in every PATH.
    ["", "/usr/sbin/", "/sbin/"]
        .iter()
        .find_map(|folder| output_within(&format!("{folder}{program}"), arguments, PROGRAM_MAX))
        .unwrap_or_else(|| Some(String::new()))
}

/// `None`: it cannot be started. `Some(None)`: it failed, or took too long.
fn output_within(program: &str, arguments: &[&str], limit: Duration) -> Option<Option<String>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let (done, result) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stdout.take(TEXT_MAX).read_to_end(&mut bytes);
            let _ = done.send(read.map(|_| bytes));
        });
    }
    let bytes = result.recv_timeout(limit);
    if bytes.is_err() {
        tracing::warn!(program, "took too long; its rules are not known");
        let _ = child.kill();
    }
    let success = child.wait().is_ok_and(|status| status.success());
    match bytes {
        Ok(Ok(bytes)) if success => Some(Some(String::from_utf8_lossy(&bytes).into_owned())),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn ranges_and_lists() {
        assert_eq!(
            parse_port_range("32768\t60999\n"),
            Some(range(32768, 60999))
        );
        assert_eq!(parse_port_range("9 1"), None);
        assert_eq!(parse_port_range(""), None);
        let list = [range(8080, 8080), range(9000, 9100)];
        assert_eq!(parse_port_list("8080,9000-9100\n"), list);
        assert_eq!(parse_port_list("\n"), []);
        assert_eq!(parse_port_list("70000,5-4,7"), [range(7, 7)]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn sockets() {
        let listener = |protocol, addr: [u8; 4], port| Listener {
            protocol,
            addr: addr.into(),
            port,
        };
        let tcp = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1525
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1526
   2: 0200A8C0:0016 0100A8C0:C350 01 00000000:00000000 00:00000000 00000000     0        0 1527
";
        let wanted = [
            listener(Protocol::Tcp, [127, 0, 0, 1], 22),
            listener(Protocol::Tcp, [0; 4], 8080),
        ];
        assert_eq!(parse_sockets(Protocol::Tcp, tcp), wanted);
        let tcp6 = "\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00
   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 00000000:00
   2: 000080FE00000000FF565002BD69B1FE:0052 00000000000000000000000000000000:0000 0A 00000000:00
";
        let wanted = [
            listener(Protocol::Tcp, [0; 4], 80),
            listener(Protocol::Tcp, [127, 0, 0, 1], 81),
        ];
        assert_eq!(parse_sockets(Protocol::Tcp, tcp6), wanted);
        let udp = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  100: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2
  101: 0100007F:0035 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 98 2
";
        assert_eq!(
            parse_sockets(Protocol::Udp, udp),
            [listener(Protocol::Udp, [0; 4], 8472)]
        );
        for nonsense in [
            "",
            "x",
            " 0: zz:zz yy 0A",
            " 0: 00:16 00 0A",
            " 0: 0100007Fé:1 0 0A",
        ] {
            assert_eq!(parse_sockets(Protocol::Tcp, nonsense), []);
        }
    }

    #[test]
    fn programs_are_bounded() {
        assert_eq!(output_within("/nonexistent/nft", &[], PROGRAM_MAX), None);
        assert_eq!(
            output_within("echo", &["a"], PROGRAM_MAX),
            Some(Some("a\n".to_owned()))
        );
        assert_eq!(output_within("false", &[], PROGRAM_MAX), Some(None));
        let begin = std::time::Instant::now();
        assert_eq!(output_within("sleep", &["60"], Duration::ZERO), Some(None));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
