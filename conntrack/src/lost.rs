//! After a loss of state: what is known of the ports that were in use is held down (RFC 6888 REQ-8,
//! which excepts neither TCP nor any filtering behaviour then). Packets of the lost sessions still
//! arrive there, and must not reach another host.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use crate::age::At;
use crate::config::Policy;
use crate::endpoint::Protocol;
use crate::layout::{PORT_WORDS, PROTOCOLS};
use crate::nat::Nat;
use crate::port::Place;
use crate::time::Time;
use crate::word::Word;

/// The owned ports of tables that cannot be taken over, by address.
#[derive(Clone, Debug, Default)]
pub struct LostPorts {
    addresses: Vec<(Ipv4Addr, Vec<u64>)>,
}

impl LostPorts {
    /// What an ownership bitmap says before [`Nat::create`] clears it. `placed` are the addresses of
    /// its slots; what lies beyond the bitmap is left out.
    pub fn of<W: Word>(owned: &[W], placed: &[(u16, Ipv4Addr)]) -> LostPorts {
        const SLOT_WORDS: usize = PROTOCOLS * PORT_WORDS;
        let of_slot = |&(slot, addr): &(u16, Ipv4Addr)| {
            let words = owned.get(usize::from(slot) * SLOT_WORDS..)?;
            let words: Vec<u64> = words
                .get(..SLOT_WORDS)?
                .iter()
                .map(|word| word.load(Relaxed))
                .collect();
            words.iter().any(|&word| word != 0).then_some((addr, words))
        };
        LostPorts {
            addresses: placed.iter().filter_map(of_slot).collect(),
        }
    }
}

impl<W: Word> Nat<'_, W> {
    /// Holds lost ports of the pool down, as long and as many as the policy allows; returns how many.
    /// After [`Nat::create`] and [`Nat::apply_policy`], before any worker is at work.
    pub fn hold_lost(&self, policy: &Policy, lost: &LostPorts, now: Time) -> u32 {
        let at = At { policy, now };
        if policy.timers.hold_down_ms == 0 {
            return 0;
        }
        let mut held = 0;
        for (addr, words) in &lost.addresses {
            for protocol in Protocol::ALL {
                let words = &words[protocol.index() * PORT_WORDS..][..PORT_WORDS];
                held += self.hold_words(&at, *addr, protocol, words);
            }
        }
        held
    }

    fn hold_words(&self, at: &At, addr: Ipv4Addr, protocol: Protocol, words: &[u64]) -> u32 {
        let address = at.policy.address(addr);
        let Some(address) = address.filter(|address| address.slot < self.ports.slots()) else {
            return 0;
        };
        let (slot, set) = (address.slot, &address.ports[protocol.index()]);
        let room = at.policy.held_max(address, protocol);
        let room = room.saturating_sub(self.ports.held(slot, protocol));
        let ports = words.iter().enumerate().flat_map(|(word, &owned)| {
            let bits = owned & set.word(word);
            let ports = (0..64).filter(move |bit| bits >> bit & 1 == 1);
            ports.map(move |bit| (word * 64 + bit) as u16)
        });
        let until = at.hold_end();
        let hold = |&port: &u16| {
            let place = Place {
                slot,
                protocol,
                port,
            };
            self.ports.hold(place, until)
        };
        ports.filter(hold).take(room as usize).count() as u32
    }
}
