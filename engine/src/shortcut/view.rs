//! What the shortcut knows of links and routes, laid out for a packet's few questions. Made
//! anew when one of them is.

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
    /// The routes' generation.
    pub(super) generation: u32,
}

impl View {
    /// The view of these snapshots.
    pub fn new(links: &Links, generation: u32) -> View {
        let prefixes = links.internal.iter();
        let sides = links.links.iter();
        View {
            internal: prefixes
                .map(|prefix| (prefix.netmask().to_bits(), prefix.network().to_bits()))
                .collect(),
            sides: sides.map(|link| (link.role, link.mac)).collect(),
            generation,
        }
    }

    /// The realm that a flow's packet comes from; none where it is not to come from there, or not to
    /// go where it goes.
    #[inline(always)]
    pub(super) fn realm(&self, policy: &Policy, key: &Key, ingress: u8) -> Option<Realm> {
        let &(role, _) = self.sides.get(usize::from(ingress))?;
        let (source, destination) = ((key.addresses >> 32) as u32, key.addresses as u32);
        let inside = |&(mask, network): &(u32, u32)| source & mask == network;
        match (role, self.internal.iter().any(inside)) {
            (Role::External, true) | (Role::Internal, false) => None,
            (_, true) => Some(Realm::Internal),
            (_, false) => policy
                .addresses
                .find(destination.into())
                .map(|_| Realm::External),
        }
    }

    /// The MAC to send by a hop with; none where a packet of this direction may not leave.
    #[inline(always)]
    pub(super) fn source_mac(&self, hop: &Hop, direction: Direction) -> Option<[u8; 6]> {
        let &(role, mac) = self.sides.get(usize::from(hop.interface))?;
        (direction == Direction::Outbound || role.is_internal()).then_some(mac)
    }
}
