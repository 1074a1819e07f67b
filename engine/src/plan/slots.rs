//! Which place in the port tables each pool address has.

use std::net::Ipv4Addr;

/// Places in the port tables. An address keeps its place while it is in the pool; a new one gets
/// the free place that was left longest ago, so that the sessions of the old address are gone by
/// then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    places: Vec<Option<Ipv4Addr>>,
    /// Free places, the one that was left longest ago first.
    free: Vec<u16>,
}

impl Slots {
    /// `addresses_max` places, all free.
    pub fn new(addresses_max: u16) -> Slots {
        let places = vec![None; usize::from(addresses_max)];
        Slots {
            places,
            free: (0..addresses_max).collect(),
        }
    }

    /// Takes a place for an address, for tables that are taken over from an earlier run: what they
    /// say of their addresses. False when the place or the address is taken already.
    pub fn seed(&mut self, slot: u16, addr: Ipv4Addr) -> bool {
        let place = self.free.iter().position(|&free| free == slot);
        match place {
            Some(place) if !self.places.contains(&Some(addr)) => {
                self.free.remove(place);
                self.places[usize::from(slot)] = Some(addr);
                true
            }
            _ => false,
        }
    }

    /// The place of an address, if it has one.
    pub fn of(&self, addr: Ipv4Addr) -> Option<u16> {
        let place = self.places.iter().position(|place| *place == Some(addr))?;
        u16::try_from(place).ok()
    }

    /// Gives these addresses, all different, a place each, and every other its place up.
    ///
    /// # Panics
    /// When there are more addresses than places.
    pub fn assign(&mut self, addresses: &[Ipv4Addr]) -> Vec<u16> {
        for slot in 0..self.places.len() {
            if self.places[slot].is_some_and(|addr| !addresses.contains(&addr)) {
                self.places[slot] = None;
                self.free.push(slot as u16);
            }
        }
        let place = |addr: &Ipv4Addr| match self.of(*addr) {
            Some(slot) => slot,
            None => {
                assert!(!self.free.is_empty(), "more addresses than places");
                let slot = self.free.remove(0);
                self.places[usize::from(slot)] = Some(*addr);
                slot
            }
        };
        addresses.iter().map(place).collect()
    }
}
