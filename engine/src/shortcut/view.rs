//! What the shortcut knows of links, policy and routes, laid out for a packet's few questions. Made
//! anew when one of them is.

use std::net::Ipv4Addr;

use conntrack::{Direction, Key, Policy, Realm};

use crate::config::Role;
use crate::link::Links;
use crate::neighbour::Hop;

/// See the module.
#[derive(Clone, Debug)]
pub struct View {
    /// Mask and network of each internal prefix.
    internal: Vec<(u32, u32)>,
    /// By number of the interface.
    sides: Vec<(Role, [u8; 6])>,
    externals: Externals,
    /// The routes' generation.
    pub(super) generation: u32,
}

impl View {
    /// The view of these snapshots.
    pub fn new(links: &Links, policy: &Policy, generation: u32) -> View {
        let prefixes = links.internal.iter();
        let sides = links.links.iter();
        View {
            internal: prefixes
                .map(|prefix| (prefix.netmask().to_bits(), prefix.network().to_bits()))
                .collect(),
            sides: sides.map(|link| (link.role, link.mac)).collect(),
            externals: Externals::new(policy.addresses.iter().map(|own| own.addr)),
            generation,
        }
    }

    /// The realm that a flow's packet comes from; none where it is not to come from there, or not to
    /// go where it goes.
    #[inline(always)]
    pub(super) fn realm(&self, key: &Key, ingress: u8) -> Option<Realm> {
        let &(role, _) = self.sides.get(usize::from(ingress))?;
        let (source, destination) = ((key.addresses >> 32) as u32, key.addresses as u32);
        let inside = |&(mask, network): &(u32, u32)| source & mask == network;
        match (role, self.internal.iter().any(inside)) {
            (Role::External, true) | (Role::Internal, false) => None,
            (_, true) => Some(Realm::Internal),
            (_, false) => self
                .externals
                .contains(destination)
                .then_some(Realm::External),
        }
    }

    /// The MAC to send by a hop with; none where a packet of this direction may not leave.
    #[inline(always)]
    pub(super) fn source_mac(&self, hop: &Hop, direction: Direction) -> Option<[u8; 6]> {
        let &(role, mac) = self.sides.get(usize::from(hop.interface))?;
        (direction == Direction::Outbound || role.is_internal()).then_some(mac)
    }
}

/// A set of addresses: open addressing, at most a quarter full, 0 is an empty place.
#[derive(Clone, Debug)]
struct Externals {
    places: Vec<u32>,
    shift: u32,
}

impl Externals {
    fn new(addresses: impl ExactSizeIterator<Item = Ipv4Addr>) -> Externals {
        let places = (4 * addresses.len()).next_power_of_two().max(2);
        let mut set = Externals {
            places: vec![0; places],
            shift: 32 - places.trailing_zeros(),
        };
        for address in addresses {
            let address = address.to_bits();
            let mut place = set.place(address);
            while set.places[place] != 0 {
                place = (place + 1) % places;
            }
            set.places[place] = address;
        }
        set
    }

    #[inline(always)]
    fn place(&self, address: u32) -> usize {
        (address.wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }

    #[inline(always)]
    fn contains(&self, address: u32) -> bool {
        let mut place = self.place(address);
        loop {
            match self.places.get(place) {
                Some(&found) if found == address => return address != 0,
                Some(0) => return false,
                Some(_) => place += 1,
                None => place = 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_has_what_was_put_in_and_nothing_else() {
        for count in [0_u32, 1, 2, 3, 24, 256] {
            let addresses: Vec<Ipv4Addr> = (0..count)
                .map(|n| Ipv4Addr::from_bits(0xc612_0001 + n * 0x0100_0001))
                .collect();
            let set = Externals::new(addresses.iter().copied());
            assert!(addresses.iter().all(|addr| set.contains(addr.to_bits())));
            let others = (0..10_000).map(|n| n * 0x0003_0007);
            let found = others.filter(|&n| set.contains(n));
            let found: Vec<u32> = found.collect();
            assert!(
                found.iter().all(|&n| addresses.contains(&n.into())),
                "{count}"
            );
        }
    }
}
