//! The external addresses of a pool, and what is asked of them for every new session: is an address
//! one of them, and with which is an internal address paired? Both cost the same for one address and
//! for hundreds.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::OnceLock;

use crate::config::ExternalAddress;
use crate::hash::mix;

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
    /// Those that have ports, with their places.
    usable: Vec<(u32, u32)>,
    /// By group of internal addresses: a place in the list.
    pairs: OnceLock<Box<[u16]>>,
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

    /// The place in the list of the address that an internal one is paired with (RFC 4787 REQ-2), for
    /// all protocols; none if no address has ports. Rendezvous hashing by groups of internal
    /// addresses: a change of the pool moves only those whose address went away or whose new one
    /// came.
    #[inline]
    pub(crate) fn paired(&self, internal: Ipv4Addr) -> Option<usize> {
        let group = mix(u64::from(internal.to_bits())) as u32 % GROUPS;
        if self.usable.len() <= COMPUTED_MAX {
            return self.pair_of(group);
        }
        let pair = self.pairs().get(group as usize)?;
        Some(usize::from(*pair))
    }

    /// Computes what would be computed when it is first asked for: some milliseconds for hundreds of
    /// addresses, which no packet should wait for.
    pub fn prepare(&self) {
        if self.usable.len() > COMPUTED_MAX {
            self.pairs();
        }
    }

    fn pairs(&self) -> &[u16] {
        self.pairs.get_or_init(|| {
            let pair = |group| self.pair_of(group).unwrap_or_default() as u16;
            (0..GROUPS).map(pair).collect()
        })
    }

    fn pair_of(&self, group: u32) -> Option<usize> {
        let weight = |&&(addr, _): &&(u32, u32)| mix(u64::from(group) << 32 | u64::from(addr));
        let heaviest = self.usable.iter().max_by_key(weight)?;
        Some(heaviest.1 as usize)
    }

    /// Changes the list.
    pub fn edit(&mut self, change: impl FnOnce(&mut Vec<ExternalAddress>)) {
        let mut list = std::mem::take(&mut self.list);
        change(&mut list);
        *self = list.into();
    }
}

fn hash(addr: u32) -> usize {
    (addr.wrapping_mul(0x9e37_79b1) >> 12) as usize
}

impl From<Vec<ExternalAddress>> for Addresses {
    fn from(list: Vec<ExternalAddress>) -> Addresses {
        let mut places = vec![(0, 0); (4 * list.len()).next_power_of_two()];
        let last = places.len() - 1;
        let mut usable = Vec::new();
        for (number, address) in (0..).zip(&list) {
            let addr = address.addr.to_bits();
            let mut place = hash(addr) & last;
            while places[place].0 != 0 {
                place = (place + 1) & last;
            }
            places[place] = (addr, number);
            if address.ports.iter().any(|ports| !ports.is_empty()) {
                usable.push((addr, number));
            }
        }
        Addresses {
            list,
            places,
            usable,
            pairs: OnceLock::new(),
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
            usable: self.usable.clone(),
            pairs: self.pairs.clone(),
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
    use crate::config::{AddressKind, PortSet};

    fn pool(numbers: impl Iterator<Item = u32>) -> Addresses {
        let address = |number: u32| {
            let mut ports = PortSet::empty();
            ports.insert_range(2000, 2001);
            ExternalAddress {
                addr: Ipv4Addr::from_bits(0xc633_6400 + number),
                slot: number as u16,
                kind: AddressKind::Own,
                ports: [ports.clone(), ports.clone(), ports],
            }
        };
        numbers.map(address).collect()
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
                let old = before.paired(internal).unwrap();
                let new = after.paired(internal).unwrap();
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
            hosts[addresses
                .paired(Ipv4Addr::from_bits(0x0a00_0000 + n))
                .unwrap()] += 1;
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
            assert_eq!(addresses.paired(internal), Some(0));
        }
        assert_eq!(pool(0..0).paired(Ipv4Addr::LOCALHOST), None);
    }
}
