//! Everything between hosts and gateway: time, delay, loss, copies, overtaking.

use std::collections::BTreeMap;

use super::dice::Dice;
use super::oracle::Side;

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A frame comes to the gateway from this side.
    Arrive(Side, Vec<u8>),
    /// Frames of one flow that come to it as one super-packet.
    Together(Side, Vec<Vec<u8>>),
    /// A frame comes to its receiver on this side.
    Reach(Side, Vec<u8>),
    /// A flow's timer fires.
    Wake(usize),
    /// The next thing of the script.
    Happen,
    /// A trouble is over.
    Heal(Trouble),
}

/// What may be wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Neighbours do not answer.
    Neighbours,
    /// There is no route to a network outside.
    Route,
    /// Links have small MTUs.
    Mtu,
    /// The transmit rings have hardly any room.
    Rings,
    /// The host takes no frames.
    Punts,
    /// The interface's address is gone, or is another.
    Address,
}

/// How bad the links are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quality {
    pub loss_permille: u64,
    pub copy_permille: u64,
    pub late_permille: u64,
    pub delay_ms: u64,
}

pub struct Network {
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    pub quality: Quality,
    /// What a path outside lets through, bytes.
    pub path_mtu: usize,
}

impl Network {
    pub fn new(quality: Quality, path_mtu: usize) -> Network {
        Network {
            events: BTreeMap::new(),
            serial: 0,
            quality,
            path_mtu,
        }
    }

    pub fn at(&mut self, time: u64, event: Event) {
        self.serial += 1;
        self.events.insert((time, self.serial), event);
    }

    pub fn next(&mut self) -> Option<(u64, Event)> {
        self.events
            .pop_first()
            .map(|((time, _), event)| (time, event))
    }

    pub fn peek(&self) -> Option<u64> {
        self.events.first_key_value().map(|((time, _), _)| *time)
    }

    /// Everything comes later: the machine was suspended, or all wires were quiet.
    pub fn forget_frames(&mut self) {
        self.events.retain(|_, event| {
            !matches!(
                event,
                Event::Arrive(..) | Event::Together(..) | Event::Reach(..)
            )
        });
    }

    /// A frame sets out; the links do to it what they do.
    pub fn carry(&mut self, now: u64, dice: &mut Dice, event: &Event) {
        let Quality {
            loss_permille,
            copy_permille,
            late_permille,
            delay_ms,
        } = self.quality;
        let copies = 1 + u64::from(dice.chance(copy_permille));
        for _ in 0..copies {
            if dice.chance(loss_permille) {
                continue;
            }
            let late = if dice.chance(late_permille) {
                dice.between(10, 400)
            } else {
                0
            };
            let delay = 1 + dice.below(delay_ms) + late;
            self.at(now + delay, event.clone());
        }
    }
}
