//! What a half is besides its endpoints: protocol, direction, TCP state, and the timeout class that
//! follows from them.

use crate::endpoint::Protocol;
use crate::tcp::State;
use crate::timers::TIMER_SETS;
use crate::verdict::Direction;

/// Index of the timeout that a session is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TimeoutClass {
    /// `udp`
    Udp = 0,
    /// `tcp-trans-open`
    TcpTransOpen = 1,
    /// `tcp-idle`
    TcpIdle = 2,
    /// `tcp-trans-close`
    TcpTransClose = 3,
    /// `icmp`
    Icmp = 4,
}

impl TimeoutClass {
    pub(crate) const ALL: [TimeoutClass; 5] = [
        TimeoutClass::Udp,
        TimeoutClass::TcpTransOpen,
        TimeoutClass::TcpIdle,
        TimeoutClass::TcpTransClose,
        TimeoutClass::Icmp,
    ];
}

/// The lower half of word 0: what a half is, besides its endpoints.
///
/// Bits 0-1 protocol index, 2 valid, 3 initiator's half, 4 opened from outside, 5-6 direction,
/// 7-10 TCP state, 11 under an `eim` mapping, 12 counted in its subscriber's record, 13-17 set of
/// timers, 18-31 the forward that let the outside open it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(pub u32);

impl Meta {
    const VALID: u32 = 1 << 2;
    const INITIATOR: u32 = 1 << 3;
    const OPENED_OUTSIDE: u32 = 1 << 4;
    const STATE_SHIFT: u32 = 7;
    const STATE_MASK: u32 = 0xf << Meta::STATE_SHIFT;
    const SHARED: u32 = 1 << 11;
    const COUNTED: u32 = 1 << 12;
    const TIMERS_SHIFT: u32 = 13;
    const TIMERS_MASK: u32 = (TIMER_SETS as u32 - 1) << Meta::TIMERS_SHIFT;
    const FORWARD_SHIFT: u32 = 18;

    pub fn new(protocol: Protocol, direction: Direction, state: State) -> Meta {
        Meta(
            protocol.index() as u32
                | Meta::VALID
                | (direction as u32) << 5
                | (state as u32) << Meta::STATE_SHIFT,
        )
    }

    /// Marks the half whose packets are the initiator's.
    pub fn with_initiator(self, yes: bool) -> Meta {
        Meta(self.0 | if yes { Meta::INITIATOR } else { 0 })
    }

    pub fn with_opened_outside(self, yes: bool) -> Meta {
        Meta(self.0 | if yes { Meta::OPENED_OUTSIDE } else { 0 })
    }

    /// Marks a half whose mapping is `eim`: shared by sessions, with a stamp of its own.
    pub fn with_shared(self, yes: bool) -> Meta {
        Meta(self.0 | if yes { Meta::SHARED } else { 0 })
    }

    /// Marks a session that counts in its subscriber's record.
    pub fn with_counted(self, yes: bool) -> Meta {
        Meta(self.0 & !Meta::COUNTED | if yes { Meta::COUNTED } else { 0 })
    }

    /// Notes the record of the forward that the session came by, 0 for none.
    pub fn with_forward(self, number: u32) -> Meta {
        let rest = (1 << Meta::FORWARD_SHIFT) - 1;
        Meta(self.0 & rest | number << Meta::FORWARD_SHIFT)
    }

    /// Notes the set of timers, below [`TIMER_SETS`].
    pub fn with_timers(self, number: u8) -> Meta {
        let number = u32::from(number) << Meta::TIMERS_SHIFT & Meta::TIMERS_MASK;
        Meta(self.0 & !Meta::TIMERS_MASK | number)
    }

    pub fn with_state(self, state: State) -> Meta {
        Meta(self.0 & !Meta::STATE_MASK | (state as u32) << Meta::STATE_SHIFT)
    }

    pub fn invalid(self) -> Meta {
        Meta(self.0 & !Meta::VALID)
    }

    #[inline(always)]
    pub fn valid(self) -> bool {
        self.0 & Meta::VALID != 0
    }

    #[inline(always)]
    pub fn initiator(self) -> bool {
        self.0 & Meta::INITIATOR != 0
    }

    #[inline(always)]
    pub fn opened_outside(self) -> bool {
        self.0 & Meta::OPENED_OUTSIDE != 0
    }

    #[inline(always)]
    pub fn shared(self) -> bool {
        self.0 & Meta::SHARED != 0
    }

    #[inline(always)]
    pub fn protocol(self) -> Protocol {
        // Two bits hold 3, too, but nothing writes it; a stray 3 reads as ICMP.
        Protocol::ALL[(self.0 & 3).min(2) as usize]
    }

    pub fn counted(self) -> bool {
        self.0 & Meta::COUNTED != 0
    }

    pub fn forward(self) -> u32 {
        self.0 >> Meta::FORWARD_SHIFT
    }

    /// Opened through a forward by a TCP handshake that is not over.
    pub fn half_open(self) -> bool {
        self.forward() != 0 && self.protocol() == Protocol::Tcp && self.state().is_half_open()
    }

    #[inline(always)]
    pub fn direction(self) -> Direction {
        match self.0 >> 5 & 3 {
            0 => Direction::Outbound,
            1 => Direction::Inbound,
            _ => Direction::Hairpin,
        }
    }

    #[inline(always)]
    pub fn state(self) -> State {
        State::from_bits(self.0 >> Meta::STATE_SHIFT)
    }

    /// The number of the set of timers.
    #[inline(always)]
    pub fn timers(self) -> u8 {
        (self.0 >> Meta::TIMERS_SHIFT) as u8 % TIMER_SETS as u8
    }

    #[inline(always)]
    pub fn class(self) -> TimeoutClass {
        match self.protocol() {
            Protocol::Tcp => self.state().class(),
            Protocol::Udp => TimeoutClass::Udp,
            Protocol::Icmp => TimeoutClass::Icmp,
        }
    }
}

/// A forward's number fits.
const _: () = assert!(crate::forward::FORWARDS_MAX < 1 << (32 - Meta::FORWARD_SHIFT));
