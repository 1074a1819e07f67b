//! What tells a session from the one that had its record before: for whoever compares two looks at
//! the tables.

use crate::endpoint::{Endpoint, Protocol};
use crate::half::Snapshot;
use crate::hash::unpack;
use crate::meta::Meta;
use crate::verdict::Direction;

/// Who talks to whom in a session: 32 bytes, equal for two looks at one session. A flow that ended
/// and began again with the same endpoints in the same record has the same mark.
///
/// The words are those of the even half: tuple's addresses, both ports, new addresses; then mapping
/// (upper 32 bits) and, of its meta, what does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark([u64; 4]);

/// The state's bits: they change, so other things stand there.
const STATE: u32 = 0xf << 7;
/// A forward's external endpoint is in use.
const FORWARDED: u32 = 1 << 7;

impl Mark {
    /// No session.
    pub const NONE: Mark = Mark([0; 4]);

    pub(crate) fn of(even: &Snapshot, odd: &Snapshot) -> Mark {
        let forwarded = even.mapping() == 0 || odd.mapping() == 0;
        let meta = even.meta().0 & !STATE | if forwarded { FORWARDED } else { 0 };
        let last = u64::from(even.mapping()) << 32 | u64::from(meta);
        Mark([even.addresses, even.ports, even.new_addresses, last])
    }

    fn meta(&self) -> Meta {
        Meta(self.0[3] as u32)
    }

    /// Transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.meta().protocol()
    }

    /// [`Direction::Outbound`], or [`Direction::Hairpin`] for a session between internal hosts.
    pub fn direction(&self) -> Direction {
        self.meta().direction()
    }

    /// Opened by the external realm.
    pub fn from_outside(&self) -> bool {
        self.meta().opened_outside()
    }

    /// It goes by a forward's external endpoint.
    pub fn forwarded(&self) -> bool {
        self.0[3] as u32 & FORWARDED != 0
    }

    /// The internal endpoint (in a hairpin of the side that opened), and the remote one that it
    /// sends to.
    pub fn tuple(&self) -> (Endpoint, Endpoint) {
        unpack(self.0[0], (self.0[1] >> 32) as u32)
    }

    /// The external endpoint, and where packets go: in a hairpin the other internal endpoint.
    pub fn written(&self) -> (Endpoint, Endpoint) {
        unpack(self.0[2], self.0[1] as u32)
    }
}
