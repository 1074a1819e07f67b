//! Invariant 8 from outside: no internal endpoint ever gets what belongs to another one.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use conntrack::{Endpoint, Protocol, Tuple};
use engine::packet::{Body, parse};

/// The tuple of a frame that belongs to a flow.
pub fn flow(frame: &[u8]) -> Option<Tuple> {
    match parse(frame).ok()?.body {
        Body::Flow { tuple, .. } => Some(tuple),
        _ => None,
    }
}

/// Internal endpoints that forwards may lead to.
const TARGETS: [(Ipv4Addr, u16); 3] = [
    (Ipv4Addr::new(10, 77, 0, 10), 443),
    (Ipv4Addr::new(10, 77, 0, 9), 20_000),
    (Ipv4Addr::new(10, 77, 0, 11), 443),
];

fn is_internal(end: Endpoint) -> bool {
    end.addr.octets()[0] == 10
}

/// Who was seen to use which external endpoint.
#[derive(Default)]
pub struct Owners {
    /// Who sent by an external endpoint to a remote one most recently, and to any.
    last: HashMap<(Protocol, Endpoint, Endpoint), Endpoint>,
    last_to_any: HashMap<(Protocol, Endpoint), Endpoint>,
    /// Who ever sent to a remote endpoint, with success or not.
    tried: HashSet<(Protocol, Endpoint, Endpoint)>,
    /// Remote endpoints to which something was sent that did not leave, or not at once: a mapping
    /// may have been made unseen.
    unseen: HashSet<(Protocol, Endpoint)>,
}

impl Owners {
    /// A packet came, and of its own doing these left. `eim`: mappings may be
    /// endpoint-independent.
    pub fn watch(&mut self, came: &Tuple, left: &[Tuple], eim: bool) {
        let protocol = came.protocol;
        let left = left.iter().filter(|left| left.protocol == protocol);
        if is_internal(came.source) {
            let (internal, remote) = (came.source, came.destination);
            self.tried.insert((protocol, internal, remote));
            let mut seen = false;
            for left in left.clone().filter(|left| !is_internal(left.source)) {
                self.last.insert((protocol, left.source, remote), internal);
                self.last_to_any.insert((protocol, left.source), internal);
                seen = true;
            }
            if !seen {
                self.unseen.insert((protocol, remote));
            }
        }
        for left in left.filter(|left| is_internal(left.destination)) {
            self.check(came, left, eim);
        }
    }

    fn check(&self, came: &Tuple, left: &Tuple, eim: bool) {
        let protocol = came.protocol;
        let (external, remote, got) = (came.destination, left.source, left.destination);
        if TARGETS.contains(&(got.addr, got.port)) {
            return;
        }
        let tried = if eim {
            self.tried
                .iter()
                .any(|tried| (tried.0, tried.1) == (protocol, got))
        } else {
            self.tried.contains(&(protocol, got, remote))
        };
        assert!(
            tried,
            "{came} went to {got}, which never sent anything there"
        );
        let last = self.last.get(&(protocol, external, remote)).copied();
        let any = self
            .last_to_any
            .get(&(protocol, external))
            .copied()
            .filter(|_| eim);
        let sure = if eim {
            self.unseen.iter().all(|unseen| unseen.0 != protocol)
        } else {
            !self.unseen.contains(&(protocol, remote))
        };
        let right = last == Some(got) || any == Some(got);
        assert!(
            right || !sure,
            "{came} went to {got}, but belongs to {last:?} or {any:?}"
        );
    }
}
