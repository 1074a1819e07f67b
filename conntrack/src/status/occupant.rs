//! Who is behind an external endpoint, or why nobody is.

use crate::age::time_of;
use crate::config::Policy;
use crate::endpoint::{Endpoint, Protocol};
use crate::nat::Nat;
use crate::port::{Cell, Place};
use crate::time::Time;
use crate::word::Word;

/// What an external endpoint is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Its address is none of the pool.
    NotPool,
    /// It is not given to clients: the host's, or left out of the pool's ports.
    NotGiven,
    /// Nobody's: the next one may get it.
    Free,
    /// Of this `eim` mapping alone ([`Nat::mapping`]).
    Mapping(u32),
    /// Of so many `edm` mappings, each with another remote endpoint.
    Overloaded(u32),
    /// A forward's.
    Forward {
        /// Sessions that the outside opened through it.
        sessions: u32,
        /// Of these, TCP handshakes that are not over.
        half_open: u32,
    },
    /// In hold-down until about then.
    Held(Time),
}

impl<W: Word> Nat<'_, W> {
    /// What an external endpoint is used for at the moment.
    pub fn occupant(&self, policy: &Policy, protocol: Protocol, external: Endpoint) -> Occupant {
        let address = policy.address(external.addr);
        let Some(address) = address.filter(|address| address.slot < self.ports.slots()) else {
            return Occupant::NotPool;
        };
        let cell = self.ports.cell(Place {
            slot: address.slot,
            protocol,
            port: external.port,
        });
        match cell {
            Cell::Exclusive(mapping) => Occupant::Mapping(mapping),
            Cell::Overloaded(mappings) => Occupant::Overloaded(mappings),
            Cell::Held(until) => Occupant::Held(time_of(until)),
            Cell::Fixed(number) => {
                let (sessions, half_open) = match self.forwards.is_valid(number) {
                    true => self.forwards.counts(number),
                    false => (0, 0),
                };
                Occupant::Forward {
                    sessions,
                    half_open,
                }
            }
            // Changing: for nanoseconds, from free or to it.
            Cell::Free | Cell::Changing => {
                match address.ports[protocol.index()].contains(external.port) {
                    true => Occupant::Free,
                    false => Occupant::NotGiven,
                }
            }
        }
    }
}
