//! Forwards: static mappings that let the external realm open sessions, and which of them an endpoint
//! belongs to.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::Ipv4Addr;
use std::ops::Deref;

use ipnet::Ipv4Net;

use crate::endpoint::{Endpoint, Protocol};
use crate::hash::{MixHasher, mix};

/// Forwards that a policy may have.
pub const FORWARDS_MAX: usize = 8192;

/// Static mappings of a range of ports, or of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP; ICMP for a whole address only.
    pub protocol: Protocol,
    /// The external endpoint: of a range, that of its first port.
    pub external: Endpoint,
    /// The last port; not below the first.
    pub last_port: u16,
    /// Where it leads.
    pub targets: Targets,
    /// It is part of a whole address that stands for its one target: what the target sends leaves by
    /// it, too, whatever the mapping behaviour (1:1).
    pub whole: bool,
    /// Sources that may use it; empty: any.
    pub allow: Vec<Ipv4Net>,
}

/// The internal endpoints that a forward leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// At least one. Of a range, the endpoint of its first port.
    pub list: Vec<Target>,
    /// How one of several is chosen.
    pub affinity: Affinity,
}

/// One of the endpoints that a forward leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The internal endpoint.
    pub endpoint: Endpoint,
    /// Its share of the sessions beside the others': 1 to 65,535.
    pub weight: u16,
}

/// What has the same target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// All sessions of a source address.
    Source,
    /// Each session for itself.
    None,
}

impl From<Endpoint> for Targets {
    fn from(endpoint: Endpoint) -> Targets {
        Targets {
            list: vec![Target {
                endpoint,
                weight: 1,
            }],
            affinity: Affinity::Source,
        }
    }
}

impl Forward {
    /// May this source use it?
    pub(crate) fn allows(&self, source: Ipv4Addr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&source))
    }

    /// Is it the forward of this external endpoint?
    pub fn has(&self, protocol: Protocol, external: Endpoint) -> bool {
        self.protocol == protocol
            && self.external.addr == external.addr
            && (self.external.port..=self.last_port).contains(&external.port)
    }

    /// External ports.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = u16> {
        let count = u32::from(self.last_port) + 1 - u32::from(self.external.port);
        let first = self.external.port;
        (0..count as usize).map(move |at| first + at as u16)
    }

    /// The endpoint of a target that stands behind an external port.
    fn behind(&self, target: &Target, port: u16) -> Endpoint {
        let offset = port.wrapping_sub(self.external.port);
        let Endpoint { addr, port } = target.endpoint;
        Endpoint::new(addr, port.wrapping_add(offset))
    }

    /// Where a session of this remote endpoint to one of its ports leads. Rendezvous hashing by
    /// weights: a target that comes or goes moves only its own share of the others' sources.
    pub(crate) fn target(&self, external: Endpoint, remote: Endpoint) -> Option<Endpoint> {
        let target = match &self.targets.list[..] {
            [only] => only,
            several => {
                let remote_port = match self.targets.affinity {
                    Affinity::Source => 0,
                    Affinity::None => remote.port,
                };
                let source = mix(u64::from(remote.addr.to_bits()) << 16 | u64::from(remote_port));
                let length = |target: &&Target| {
                    let Endpoint { addr, port } = target.endpoint;
                    let own = u64::from(addr.to_bits()) << 16 | u64::from(port);
                    let drawn = (mix(source ^ mix(own)) >> 11) as f64 + 0.5;
                    // Exponentially distributed with the weight as its rate: the shortest wins.
                    -(drawn / (1_u64 << 53) as f64).ln() / f64::from(target.weight)
                };
                several
                    .iter()
                    .min_by(|a, b| length(a).total_cmp(&length(b)))?
            }
        };
        Some(self.behind(target, external.port))
    }

    /// Does an external port of it lead to this internal endpoint?
    pub(crate) fn leads(&self, external: Endpoint, internal: Endpoint) -> bool {
        let mut targets = self.targets.list.iter();
        targets.any(|target| self.behind(target, external.port) == internal)
    }

    /// The external endpoint that an internal one has by this forward: where it is the only target.
    fn external_of(&self, internal: Endpoint) -> Option<Endpoint> {
        let [Target { endpoint, .. }] = self.targets.list[..] else {
            return None;
        };
        let port = internal
            .port
            .wrapping_sub(endpoint.port)
            .wrapping_add(self.external.port);
        let external = Endpoint::new(self.external.addr, port);
        let fits = endpoint.addr == internal.addr && self.has(self.protocol, external);
        fits.then_some(external)
    }
}

/// The forwards of a policy, in an order that does not matter but stays. Made from a `Vec`; changed by
/// [`Forwards::edit`].
#[derive(Clone, Default)]
pub struct Forwards {
    list: Vec<Forward>,
    /// Sorted by protocol, address and first port: these, the last port, and the place in the list.
    by_external: Vec<(Side, u16, u32)>,
    /// Places in the list, by address of the only target.
    by_target: HashMap<u32, Vec<u32>, BuildHasherDefault<MixHasher>>,
    /// Is one of them of a whole address?
    has_whole: bool,
}

/// Protocol, address and port, to be compared in this order.
type Side = (usize, u32, u16);

fn side(protocol: Protocol, endpoint: Endpoint) -> Side {
    (protocol.index(), endpoint.addr.to_bits(), endpoint.port)
}

impl Forwards {
    /// The forward of an external endpoint, and its place in the list.
    pub fn find(&self, protocol: Protocol, external: Endpoint) -> Option<(u32, &Forward)> {
        let key = side(protocol, external);
        let after = self
            .by_external
            .partition_point(|&(first, ..)| first <= key);
        let &(_, _, place) = self.by_external.get(after.checked_sub(1)?)?;
        let forward = self.list.get(place as usize)?;
        forward.has(protocol, external).then_some((place, forward))
    }

    /// The external endpoints that an internal one has, each with its forward, in the list's order.
    pub(crate) fn externals_of(
        &self,
        protocol: Protocol,
        internal: Endpoint,
    ) -> impl Iterator<Item = (Endpoint, &Forward)> {
        let none = self.by_target.is_empty();
        let key = internal.addr.to_bits();
        let places = if none { None } else { self.by_target.get(&key) };
        let forwards = places.into_iter().flatten();
        let forwards = forwards.filter_map(|&place| self.list.get(place as usize));
        let forwards = forwards.filter(move |forward| forward.protocol == protocol);
        forwards.filter_map(move |forward| Some((forward.external_of(internal)?, forward)))
    }

    /// Is one of them of a whole address?
    pub(crate) fn has_whole(&self) -> bool {
        self.has_whole
    }

    /// Changes the list.
    pub fn edit(&mut self, change: impl FnOnce(&mut Vec<Forward>)) {
        let mut list = std::mem::take(&mut self.list);
        change(&mut list);
        *self = list.into();
    }
}

impl From<Vec<Forward>> for Forwards {
    fn from(list: Vec<Forward>) -> Forwards {
        let mut by_external = Vec::with_capacity(list.len());
        let mut by_target: HashMap<u32, Vec<u32>, _> = HashMap::default();
        for (place, forward) in (0..).zip(&list) {
            let first = side(forward.protocol, forward.external);
            by_external.push((first, forward.last_port, place));
            if let [only] = &forward.targets.list[..] {
                let key = only.endpoint.addr.to_bits();
                by_target.entry(key).or_default().push(place);
            }
        }
        by_external.sort_unstable();
        Forwards {
            has_whole: list.iter().any(|forward| forward.whole),
            list,
            by_external,
            by_target,
        }
    }
}

impl FromIterator<Forward> for Forwards {
    fn from_iter<I: IntoIterator<Item = Forward>>(forwards: I) -> Forwards {
        forwards.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Forwards {
    type Target = [Forward];

    fn deref(&self) -> &[Forward] {
        &self.list
    }
}

impl PartialEq for Forwards {
    fn eq(&self, other: &Forwards) -> bool {
        self.list == other.list
    }
}

impl Eq for Forwards {}

impl std::fmt::Debug for Forwards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.list.fmt(f)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        let (addr, port) = text.split_once(':').unwrap();
        Endpoint::new(addr.parse().unwrap(), port.parse().unwrap())
    }

    fn forward(external: &str, last_port: u16, targets: &[(&str, u16)]) -> Forward {
        let target = |&(text, weight): &(&str, u16)| Target {
            endpoint: endpoint(text),
            weight,
        };
        Forward {
            protocol: Protocol::Tcp,
            external: endpoint(external),
            last_port,
            targets: Targets {
                list: targets.iter().map(target).collect(),
                affinity: Affinity::Source,
            },
            whole: false,
            allow: Vec::new(),
        }
    }

    #[test]
    fn a_range_is_found_by_each_of_its_ports_and_by_no_other() {
        let list = vec![
            forward("198.51.100.1:30000", 32767, &[("10.0.0.2:30000", 1)]),
            forward("198.51.100.1:80", 80, &[("10.0.0.3:8080", 1)]),
            forward("198.51.100.2:1", u16::MAX, &[("10.0.0.4:1", 1)]),
        ];
        let forwards = Forwards::from(list);
        let find = |text| Some(forwards.find(Protocol::Tcp, endpoint(text))?.0);
        let cases = [
            ("198.51.100.1:29999", None),
            ("198.51.100.1:30000", Some(0)),
            ("198.51.100.1:32767", Some(0)),
            ("198.51.100.1:32768", None),
            ("198.51.100.1:79", None),
            ("198.51.100.1:80", Some(1)),
            ("198.51.100.1:81", None),
            ("198.51.100.2:0", None),
            ("198.51.100.2:65535", Some(2)),
            ("198.51.100.3:80", None),
        ];
        for (external, place) in cases {
            assert_eq!(find(external), place, "{external}");
        }
        assert!(
            forwards
                .find(Protocol::Udp, endpoint("198.51.100.1:80"))
                .is_none()
        );
        let externals = |text| -> Vec<Endpoint> {
            let all = forwards.externals_of(Protocol::Tcp, endpoint(text));
            all.map(|(external, _)| external).collect()
        };
        assert_eq!(
            externals("10.0.0.2:30007"),
            [endpoint("198.51.100.1:30007")]
        );
        assert_eq!(externals("10.0.0.3:8080"), [endpoint("198.51.100.1:80")]);
        assert!(externals("10.0.0.3:80").is_empty() && externals("10.0.0.2:32768").is_empty());
    }

    #[test]
    fn weights_and_affinity_decide_among_targets() {
        let targets = [("10.0.0.1:80", 1), ("10.0.0.2:80", 3)];
        let mut one = forward("198.51.100.1:80", 80, &targets);
        let external = one.external;
        let remote = |n: u32, port| Endpoint::new((0xcb00_0000 + n).into(), port);
        let second = endpoint("10.0.0.2:80");
        let share = |one: &Forward, port: fn(u32) -> u16, host: fn(u32) -> u32| {
            let to = |n: &u32| one.target(external, remote(host(*n), port(*n))) == Some(second);
            (0..10_000).filter(to).count()
        };
        let by_host = share(&one, |_| 7, |n| n);
        assert!((7300..7700).contains(&by_host), "{by_host}");
        let of_one = share(&one, |n| n as u16, |_| 7);
        assert!(of_one == 0 || of_one == 10_000);
        one.targets.affinity = Affinity::None;
        let by_port = share(&one, |n| n as u16, |_| 7);
        assert!((7300..7700).contains(&by_port), "{by_port}");
    }

    #[test]
    fn a_target_that_goes_moves_its_own_sources_only() {
        let three = [("10.0.0.1:80", 2), ("10.0.0.2:80", 2), ("10.0.0.3:80", 2)];
        let before = forward("198.51.100.1:80", 80, &three);
        let after = forward("198.51.100.1:80", 80, &three[..2]);
        let gone = endpoint("10.0.0.3:80");
        for n in 0..5000 {
            let remote = Endpoint::new((0xcb00_0000_u32 + n).into(), 9);
            let old = before.target(before.external, remote).unwrap();
            let new = after.target(after.external, remote).unwrap();
            assert!(old == new || old == gone);
        }
    }
}
