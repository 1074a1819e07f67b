//! The external addresses of all pools, and what is asked of them for every new session: is an address
//! one of them, and from which of a pool's does a flow leave? Both cost the same for one address and
//! for hundreds.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::OnceLock;

use crate::config::ExternalAddress;
use crate::endpoint::Tuple;
use crate::hash::mix;
use crate::profile::{Pairing, Profile};

/// Groups of internal addresses that are paired alike: with 256 external addresses the busiest has
/// some 20 % more than its share.
const GROUPS: u32 = 1 << 16;
/// Up to so many addresses a pair is computed each time; for more it is kept in a table.
const COMPUTED_MAX: usize = 4;

/// External addresses, in an order that does not matter but stays. Made from a `Vec`; changed by
/// [`Addresses::edit`].
#[derive(Default)]
pub struct Addresses {
    list: Vec<ExternalAddress>,
    /// Open addressing, at most a quarter full: an address and its place in the list. Address 0 is an
    /// empty place.
    places: Vec<(u32, u32)>,
    /// By slot: a place in the list, or one beyond it.
    slots: Vec<u32>,
    /// By number.
    pools: Vec<Pool>,
}

/// The addresses of one pool.
#[derive(Clone, Default)]
struct Pool {
    /// Those that have ports, with their places in the list.
    usable: Vec<(u32, u32)>,
    /// By group of internal addresses: a place in `usable`.
    pairs: OnceLock<Box<[u16]>>,
}

/// The addresses that a flow may leave from, the best one first.
pub(crate) struct Choices<'a> {
    list: &'a [ExternalAddress],
    usable: &'a [(u32, u32)],
    next: usize,
    left: usize,
}

impl<'a> Iterator for Choices<'a> {
    type Item = &'a ExternalAddress;

    fn next(&mut self) -> Option<&'a ExternalAddress> {
        self.left = self.left.checked_sub(1)?;
        let (_, place) = self.usable.get(self.next % self.usable.len().max(1))?;
        self.next += 1;
        self.list.get(*place as usize)
    }
}

impl Addresses {
    /// The external address with this value.
    #[inline(always)]
    pub fn find(&self, addr: Ipv4Addr) -> Option<&ExternalAddress> {
        let addr = addr.to_bits();
        let last = self.places.len().wrapping_sub(1);
        let mut place = hash(addr) & last;
        while let Some(&(found, number)) = self.places.get(place) {
            if found == addr && addr != 0 {
                return self.list.get(number as usize);
            }
            if found == 0 {
                return None;
            }
            place = (place + 1) & last;
        }
        None
    }

    /// The external address in this slot.
    pub(crate) fn in_slot(&self, slot: u16) -> Option<&ExternalAddress> {
        let place = *self.slots.get(usize::from(slot))?;
        self.list.get(place as usize)
    }

    /// The addresses that a flow from inside may leave from: none if its pool has no ports. An internal
    /// address is paired with one for all protocols (RFC 4787 REQ-2); without pairing that goes by
    /// flow, in `eim` by internal endpoint.
    pub(crate) fn choices(&self, profile: &Profile, flow: &Tuple) -> Choices<'_> {
        let none = Choices {
            list: &self.list,
            usable: &[],
            next: 0,
            left: 0,
        };
        let Some(pool) = self.pools.get(usize::from(profile.pool)) else {
            return none;
        };
        let (pairing, count) = (profile.pairing[flow.protocol.index()], pool.usable.len());
        let first = match pairing {
            Pairing::Hard | Pairing::Soft => pool.paired(group_of(flow.source.addr)),
            Pairing::None => pool.paired(group_of_flow(profile, flow)),
        };
        first.map_or(none, |next| Choices {
            list: &self.list,
            usable: &pool.usable,
            next,
            left: if pairing == Pairing::Hard { 1 } else { count },
        })
    }

    /// Computes what would be computed when it is first asked for: some milliseconds for hundreds of
    /// addresses, which no packet should wait for.
    pub fn prepare(&self) {
        for pool in &self.pools {
            if pool.usable.len() > COMPUTED_MAX {
                pool.pairs();
            }
        }
    }

    /// Changes the list.
    pub fn edit(&mut self, change: impl FnOnce(&mut Vec<ExternalAddress>)) {
        let mut list = std::mem::take(&mut self.list);
        change(&mut list);
        *self = list.into();
    }
}

impl Pool {
    /// The place of the address that a group of internal ones is paired with; none if no address has
    /// ports. Rendezvous hashing: a change of the pool moves only those whose address went away or
    /// whose new one came.
    #[inline]
    fn paired(&self, group: u32) -> Option<usize> {
        if self.usable.len() <= COMPUTED_MAX {
            return self.pair_of(group);
        }
        let pair = self.pairs().get(group as usize)?;
        Some(usize::from(*pair))
    }

    fn pairs(&self) -> &[u16] {
        self.pairs.get_or_init(|| {
            let pair = |group| self.pair_of(group).unwrap_or_default() as u16;
            (0..GROUPS).map(pair).collect()
        })
    }

    fn pair_of(&self, group: u32) -> Option<usize> {
        let weight =
            |&(_, &(addr, _)): &(usize, &(u32, u32))| mix(u64::from(group) << 32 | u64::from(addr));
        let heaviest = self.usable.iter().enumerate().max_by_key(weight)?;
        Some(heaviest.0)
    }
}

fn group_of(internal: Ipv4Addr) -> u32 {
    mix(u64::from(internal.to_bits())) as u32 % GROUPS
}

fn group_of_flow(profile: &Profile, flow: &Tuple) -> u32 {
    let (internal, remote) = (flow.source, flow.destination);
    let mut group = mix(u64::from(internal.addr.to_bits()) << 16 | u64::from(internal.port));
    if !profile.is_independent(flow.protocol) {
        group = mix(group ^ (u64::from(remote.addr.to_bits()) << 16 | u64::from(remote.port)));
    }
    group as u32 % GROUPS
}

fn hash(addr: u32) -> usize {
    (addr.wrapping_mul(0x9e37_79b1) >> 12) as usize
}

impl From<Vec<ExternalAddress>> for Addresses {
    fn from(list: Vec<ExternalAddress>) -> Addresses {
        let mut places = vec![(0, 0); (4 * list.len()).next_power_of_two()];
        let last = places.len() - 1;
        let mut slots = Vec::new();
        let mut pools: Vec<Pool> = Vec::new();
        for (number, address) in (0..).zip(&list) {
            let addr = address.addr.to_bits();
            let mut place = hash(addr) & last;
            while places[place].0 != 0 {
                place = (place + 1) & last;
            }
            places[place] = (addr, number);
            let slot = usize::from(address.slot);
            slots.resize(slots.len().max(slot + 1), u32::MAX);
            // Of two in one slot, which only tests make, the first is found.
            slots[slot] = slots[slot].min(number);
            let pool = usize::from(address.pool);
            pools.resize_with(pools.len().max(pool + 1), Pool::default);
            if address.ports.iter().any(|ports| !ports.is_empty()) {
                pools[pool].usable.push((addr, number));
            }
        }
        Addresses {
            list,
            places,
            slots,
            pools,
        }
    }
}

impl FromIterator<ExternalAddress> for Addresses {
    fn from_iter<I: IntoIterator<Item = ExternalAddress>>(addresses: I) -> Addresses {
        addresses.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Addresses {
    type Target = [ExternalAddress];

    fn deref(&self) -> &[ExternalAddress] {
        &self.list
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a ExternalAddress;
    type IntoIter = std::slice::Iter<'a, ExternalAddress>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

impl Clone for Addresses {
    fn clone(&self) -> Addresses {
        Addresses {
            list: self.list.clone(),
            places: self.places.clone(),
            slots: self.slots.clone(),
            pools: self.pools.clone(),
        }
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Addresses) -> bool {
        self.list == other.list
    }
}

impl Eq for Addresses {}

impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.list.fmt(f)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::config::AddressKind;
    use crate::endpoint::{Endpoint, Protocol};
    use crate::port_set::PortSet;

    fn pool(numbers: impl Iterator<Item = u32>) -> Addresses {
        let address = |number: u32| {
            let mut ports = PortSet::empty();
            ports.insert_range(2000, 2001);
            ExternalAddress {
                addr: Ipv4Addr::from_bits(0xc633_6400 + number),
                slot: number as u16,
                kind: AddressKind::Own,
                pool: 0,
                ports: [ports.clone(), ports.clone(), ports],
            }
        };
        numbers.map(address).collect()
    }

    fn flow(internal: Ipv4Addr, port: u16, remote: u16) -> Tuple {
        Tuple {
            protocol: Protocol::Udp,
            source: Endpoint::new(internal, port),
            destination: Endpoint::new([203, 0, 113, 7].into(), remote),
        }
    }

    fn profile(pairing: Pairing) -> Profile {
        Profile {
            pairing: [pairing; 3],
            ..crate::check::tests::policy().profile
        }
    }

    /// The place of the first choice.
    fn paired(addresses: &Addresses, internal: Ipv4Addr) -> Option<usize> {
        let flow = flow(internal, 1, 1);
        let first = addresses.choices(&profile(Pairing::Hard), &flow).next()?;
        addresses.iter().position(|address| address == first)
    }

    #[test]
    fn addresses_are_found_and_others_are_not() {
        for count in [0, 1, 2, 5, 24, 300] {
            let addresses = pool(0..count);
            for address in &addresses {
                assert_eq!(addresses.find(address.addr), Some(address));
            }
            for other in [0, 0xc633_6400 + count, 0xc633_63ff, u32::MAX] {
                assert_eq!(addresses.find(Ipv4Addr::from_bits(other)), None, "{count}");
            }
        }
    }

    /// With the table and without, and across the border between them.
    #[test]
    fn a_change_of_the_pool_moves_only_those_that_it_must() {
        for count in [1, 4, 5, 24] {
            let (before, after) = (pool(0..count), pool(0..count + 1));
            let mut moved = 0;
            for internal in (0..20_000).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n)) {
                let old = paired(&before, internal).unwrap();
                let new = paired(&after, internal).unwrap();
                assert!(new == old || new == count as usize);
                moved += u32::from(new != old);
            }
            let fair = 20_000 / (count + 1);
            assert!(
                (fair * 8 / 10..fair * 12 / 10).contains(&moved),
                "{moved} of {fair}"
            );
        }
    }

    #[test]
    fn many_addresses_share_evenly() {
        let addresses = pool(0..256);
        let mut hosts = [0; 256];
        for n in 0..256 * 400 {
            hosts[paired(&addresses, Ipv4Addr::from_bits(0x0a00_0000 + n)).unwrap()] += 1;
        }
        let (least, most) = (hosts.iter().min().unwrap(), hosts.iter().max().unwrap());
        assert!(*least > 280 && *most < 520, "{least} to {most} of 400");
    }

    #[test]
    fn what_has_no_ports_is_nobodys_pair() {
        let mut addresses = pool(0..2);
        addresses.edit(|list| {
            list[1].ports = [PortSet::empty(), PortSet::empty(), PortSet::empty()];
        });
        for internal in (0..100).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n)) {
            assert_eq!(paired(&addresses, internal), Some(0));
        }
        assert_eq!(paired(&pool(0..0), Ipv4Addr::LOCALHOST), None);
    }

    #[test]
    fn a_flow_leaves_by_its_pool_only() {
        let mut addresses = pool(0..9);
        addresses.edit(|list| list.iter_mut().for_each(|one| one.pool = one.slot % 3));
        for (pairing, count) in [(Pairing::Hard, 1), (Pairing::Soft, 3), (Pairing::None, 3)] {
            for number in 0..3 {
                let profile = Profile {
                    pool: number,
                    ..profile(pairing)
                };
                let flow = flow([10, 0, 0, 5].into(), 7, 8);
                let choices: Vec<u16> =
                    addresses.choices(&profile, &flow).map(|a| a.slot).collect();
                let distinct: std::collections::HashSet<_> = choices.iter().collect();
                assert_eq!((choices.len(), distinct.len()), (count, count));
                assert!(choices.iter().all(|slot| slot % 3 == number));
            }
        }
        let beyond = Profile {
            pool: 3,
            ..profile(Pairing::Soft)
        };
        assert!(
            addresses
                .choices(&beyond, &flow([10, 0, 0, 5].into(), 7, 8))
                .next()
                .is_none()
        );
    }

    /// In `eim` an internal endpoint has one address all the same.
    #[test]
    fn without_pairing_a_host_has_many_addresses() {
        let addresses = pool(0..8);
        let seen = |mapping, ports: [u16; 2]| {
            let profile = Profile {
                mapping: [mapping; 3],
                ..profile(Pairing::None)
            };
            let first = |n: u16| {
                let flow = flow([10, 0, 0, 5].into(), 7 + ports[0] * n, 8 + ports[1] * n);
                addresses.choices(&profile, &flow).next().unwrap().slot
            };
            (0..200)
                .map(first)
                .collect::<std::collections::HashSet<_>>()
                .len()
        };
        use crate::profile::MappingBehaviour::{EndpointDependent, EndpointIndependent};
        assert_eq!(seen(EndpointIndependent, [1, 0]), 8);
        assert_eq!(seen(EndpointIndependent, [0, 1]), 1);
        assert_eq!(seen(EndpointDependent, [0, 1]), 8);
    }
}
