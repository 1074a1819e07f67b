//! The kernel's neighbour entries on the served interfaces, and what has to follow from them for
//! the hops that workers asked for.
//!
//! With the kernel out of the path nobody else confirms these neighbours. So a hop that resolved is
//! marked managed; on kernels without the mark it is probed again whenever it goes stale. An
//! address that never answered is not managed (a scan would leave the kernel asking for ever);
//! traffic asks for it, once a second at most.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use rtnetlink::packet_route::neighbour::NeighbourState;

use super::dump::{NeighbourFacts, NeighbourRequest};
use crate::neighbour::{HopNumber, HopState, HopTable};

/// Interface number and address.
pub(crate) type Key = (u8, Ipv4Addr);

/// A request to the kernel that follows from an event.
pub(crate) type Follow = Option<NeighbourRequest>;

struct Entry {
    mac: Option<[u8; 6]>,
    state: NeighbourState,
    managed: bool,
}

struct Asked {
    numbers: Vec<HopNumber>,
    state: HopState,
    mac: [u8; 6],
    /// We asked the kernel to manage it, since it last resolved or vanished.
    managed: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Mirror {
    kernel: HashMap<Key, Entry>,
    asked: HashMap<Key, Asked>,
}

impl Mirror {
    /// A worker asked for a hop.
    /// `fixed`: the address that everybody has on an interface without ARP.
    pub(crate) fn ask(
        &mut self,
        hops: &HopTable,
        number: HopNumber,
        fixed: Option<[u8; 6]>,
    ) -> (Key, Follow) {
        let hop = hops.load(number);
        let key = (hop.interface, hop.addr);
        let asked = self.asked.entry(key).or_insert(Asked {
            numbers: Vec::new(),
            state: HopState::Unresolved,
            mac: [0; 6],
            managed: false,
        });
        if !asked.numbers.contains(&number) {
            asked.numbers.push(number);
            hops.set(number, asked.mac, asked.state);
        }
        if let Some(mac) = fixed {
            asked.set(hops, HopState::Resolved, mac);
            return (key, None);
        }
        match self.kernel.get(&key) {
            Some(entry) if entry.is_valid() => (key, self.settle(hops, key)),
            _ => (key, Some(NeighbourRequest::Use)),
        }
    }

    /// The kernel announced an entry.
    pub(crate) fn changed(&mut self, hops: &HopTable, key: Key, facts: &NeighbourFacts) -> Follow {
        let entry = Entry {
            mac: facts.mac,
            state: facts.state,
            managed: facts.managed,
        };
        self.kernel.insert(key, entry);
        self.settle(hops, key)
    }

    /// The kernel removed an entry. Traffic asks for it again.
    pub(crate) fn removed(&mut self, hops: &HopTable, key: Key) {
        self.kernel.remove(&key);
        if let Some(asked) = self.asked.get_mut(&key) {
            asked.managed = false;
            if asked.state == HopState::Resolved {
                asked.set(hops, HopState::Unresolved, [0; 6]);
            }
        }
    }

    /// Takes over a complete list of entries: those not in it are gone.
    pub(crate) fn replaced(
        &mut self,
        hops: &HopTable,
        list: &[(Key, NeighbourFacts)],
    ) -> Vec<(Key, NeighbourRequest)> {
        let present: HashMap<Key, ()> = list.iter().map(|(key, _)| (*key, ())).collect();
        let gone: Vec<Key> = self
            .kernel
            .keys()
            .filter(|key| !present.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            self.removed(hops, key);
        }
        let mut follow = Vec::new();
        for (key, facts) in list {
            follow.extend(self.changed(hops, *key, facts).map(|what| (*key, what)));
        }
        follow
    }

    /// Forgets the numbers for which `keep` is false; the keys that have none left and were
    /// managed by us.
    pub(crate) fn forget(&mut self, keep: impl Fn(HopNumber) -> bool) -> Vec<Key> {
        let mut released = Vec::new();
        self.asked.retain(|key, asked| {
            asked.numbers.retain(|number| keep(*number));
            if asked.numbers.is_empty() && asked.managed {
                released.push(*key);
            }
            !asked.numbers.is_empty()
        });
        released
    }

    /// Brings the hops of a key in line with the kernel's entry.
    fn settle(&mut self, hops: &HopTable, key: Key) -> Follow {
        let (Some(entry), Some(asked)) = (self.kernel.get(&key), self.asked.get_mut(&key)) else {
            return None;
        };
        if entry.is_valid() {
            asked.set(hops, HopState::Resolved, entry.mac.unwrap_or_default());
            let fixed = matches!(
                entry.state,
                NeighbourState::Permanent | NeighbourState::Noarp
            );
            // Also a mark that an earlier process of ours left behind.
            asked.managed |= entry.managed;
            if fixed || entry.managed {
                return None;
            }
            if !asked.managed {
                asked.managed = true;
                return Some(NeighbourRequest::Manage);
            }
            return (entry.state == NeighbourState::Stale).then_some(NeighbourRequest::Manage);
        }
        match (entry.state, asked.state) {
            // One more try before giving up: a neighbour whose MAC changed does not answer probes
            // sent to the old one, but does answer a broadcast.
            (NeighbourState::Failed, HopState::Resolved) => {
                asked.set(hops, HopState::Unresolved, [0; 6]);
                Some(if asked.managed {
                    NeighbourRequest::Manage
                } else {
                    NeighbourRequest::Use
                })
            }
            (NeighbourState::Failed, _) => {
                asked.set(hops, HopState::Failed, [0; 6]);
                // Without this the kernel would broadcast for a vanished host for ever.
                std::mem::take(&mut asked.managed).then_some(NeighbourRequest::Use)
            }
            // A failed one stays failed while it is tried again.
            (_, HopState::Failed) => None,
            _ => {
                asked.set(hops, HopState::Unresolved, [0; 6]);
                None
            }
        }
    }
}

impl Entry {
    fn is_valid(&self) -> bool {
        match self.state {
            NeighbourState::Noarp => true,
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent => self.mac.is_some(),
            _ => false,
        }
    }
}

impl Asked {
    fn set(&mut self, hops: &HopTable, state: HopState, mac: [u8; 6]) {
        (self.state, self.mac) = (state, mac);
        for number in &self.numbers {
            hops.set(*number, mac, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (1, Ipv4Addr::new(10, 0, 0, 9));
    const OLD: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const NEW: [u8; 6] = [2, 0, 0, 0, 0, 2];

    struct World {
        hops: HopTable,
        mirror: Mirror,
        number: HopNumber,
    }

    impl World {
        fn new() -> World {
            let hops = HopTable::new(8);
            let number = hops.number_of(KEY.0, KEY.1, 1500).unwrap();
            World {
                hops,
                mirror: Mirror::default(),
                number,
            }
        }

        fn event(&mut self, state: NeighbourState, mac: Option<[u8; 6]>, managed: bool) -> Follow {
            let facts = NeighbourFacts {
                ifindex: 7,
                addr: KEY.1,
                mac,
                state,
                managed,
            };
            self.mirror.changed(&self.hops, KEY, &facts)
        }

        fn ask(&mut self) -> Follow {
            self.mirror.ask(&self.hops, self.number, None).1
        }

        fn hop(&self) -> (HopState, [u8; 6]) {
            let hop = self.hops.load(self.number);
            (hop.state, hop.mac)
        }
    }

    #[test]
    fn a_hop_resolves_and_is_managed_then() {
        let mut world = World::new();
        assert_eq!(world.ask(), Some(NeighbourRequest::Use));
        assert_eq!(world.event(NeighbourState::Incomplete, None, false), None);
        assert_eq!(world.hop().0, HopState::Unresolved);
        let follow = world.event(NeighbourState::Reachable, Some(OLD), false);
        assert_eq!(follow, Some(NeighbourRequest::Manage));
        assert_eq!(world.hop(), (HopState::Resolved, OLD));
        assert_eq!(
            world.event(NeighbourState::Reachable, Some(OLD), true),
            None
        );
        assert_eq!(world.event(NeighbourState::Stale, Some(OLD), true), None);
        assert_eq!(
            world.event(NeighbourState::Reachable, Some(NEW), true),
            None
        );
        assert_eq!(
            world.hop(),
            (HopState::Resolved, NEW),
            "a new MAC takes effect at once"
        );
    }

    #[test]
    fn a_known_neighbour_resolves_a_new_hop_at_once() {
        let mut world = World::new();
        assert_eq!(
            world.event(NeighbourState::Stale, Some(OLD), false),
            None,
            "not ours yet"
        );
        assert_eq!(world.ask(), Some(NeighbourRequest::Manage));
        assert_eq!(world.hop(), (HopState::Resolved, OLD));
        let other = world.hops.number_of(KEY.0, KEY.1, 1400).unwrap();
        world.mirror.ask(&world.hops, other, None);
        assert_eq!(world.hops.load(other).mac, OLD);
    }

    #[test]
    fn a_permanent_entry_is_left_alone() {
        let mut world = World::new();
        assert_eq!(
            world.event(NeighbourState::Permanent, Some(OLD), false),
            None
        );
        assert_eq!(
            world.ask(),
            None,
            "a request would turn it into an ordinary one"
        );
        assert_eq!(world.hop(), (HopState::Resolved, OLD));
    }

    #[test]
    fn a_kernel_without_the_mark_is_asked_whenever_the_entry_goes_stale() {
        let mut world = World::new();
        world.ask();
        world.event(NeighbourState::Reachable, Some(OLD), false);
        assert_eq!(
            world.event(NeighbourState::Reachable, Some(OLD), false),
            None
        );
        let follow = world.event(NeighbourState::Stale, Some(OLD), false);
        assert_eq!(follow, Some(NeighbourRequest::Manage));
    }

    #[test]
    fn failing_is_retried_once_and_then_final() {
        let mut world = World::new();
        world.ask();
        world.event(NeighbourState::Reachable, Some(OLD), false);
        world.event(NeighbourState::Reachable, Some(OLD), true);
        let follow = world.event(NeighbourState::Failed, None, true);
        assert_eq!(follow, Some(NeighbourRequest::Manage));
        assert_eq!(world.hop().0, HopState::Unresolved);
        let follow = world.event(NeighbourState::Failed, None, true);
        assert_eq!(follow, Some(NeighbourRequest::Use), "no longer managed");
        assert_eq!(world.hop().0, HopState::Failed);
        assert_eq!(world.event(NeighbourState::Incomplete, None, false), None);
        assert_eq!(world.hop().0, HopState::Failed, "held frames would pile up");
        assert_eq!(world.event(NeighbourState::Failed, None, false), None);
        assert_eq!(
            world.ask(),
            Some(NeighbourRequest::Use),
            "traffic may ask again"
        );
        let follow = world.event(NeighbourState::Reachable, Some(NEW), false);
        assert_eq!(follow, Some(NeighbourRequest::Manage));
        assert_eq!(world.hop(), (HopState::Resolved, NEW));
    }

    #[test]
    fn a_neighbour_that_never_answered_fails_and_is_not_managed() {
        let mut world = World::new();
        world.ask();
        assert_eq!(world.event(NeighbourState::Failed, None, false), None);
        assert_eq!(world.hop().0, HopState::Failed);
        assert!(world.mirror.forget(|_| false).is_empty());
    }

    #[test]
    fn a_removed_entry_is_unresolved() {
        let mut world = World::new();
        world.ask();
        world.event(NeighbourState::Reachable, Some(OLD), true);
        world.mirror.removed(&world.hops, KEY);
        assert_eq!(world.hop().0, HopState::Unresolved);
        world.event(NeighbourState::Reachable, Some(OLD), true);
        assert!(world.mirror.replaced(&world.hops, &[]).is_empty());
        assert_eq!(
            world.hop().0,
            HopState::Unresolved,
            "missing from a complete list"
        );
    }

    #[test]
    fn without_arp_a_hop_needs_no_neighbour() {
        let mut world = World::new();
        assert_eq!(
            world.mirror.ask(&world.hops, world.number, Some([9; 6])).1,
            None
        );
        assert_eq!(world.hop(), (HopState::Resolved, [9; 6]));
    }

    #[test]
    fn forgetting_the_last_number_releases_the_neighbour() {
        let mut world = World::new();
        world.ask();
        world.event(NeighbourState::Reachable, Some(OLD), false);
        assert!(world.mirror.forget(|_| true).is_empty());
        assert_eq!(world.mirror.forget(|_| false), [KEY]);
        assert!(world.mirror.forget(|_| false).is_empty());
    }
}
