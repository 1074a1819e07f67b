//! The TCP state machine of RFC 7857 section 2, figure 1, as a pure function.
//!
//! Two departures, both against forged packets: a session opened from outside counts as open only
//! with the initiator's first segment after the responder's SYN, and a RST before the connection
//! is open changes nothing (else SYN, RST, data from one side alone would make an established
//! session). And one that changes no time: the figure's way from *established* to *transitory* by
//! silence, where data leads back, is part of `tcp-idle` (2 h and 4 min, RFC 5382 REQ-5).
//!
//! After the end, the initiator's SYN begins a new connection at once: clients use a port again while
//! the last connection of it is in TIME-WAIT. Sequence numbers are judged by the caller.

use crate::meta::TimeoutClass;
use crate::signal::Signal;

/// Where a TCP session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// The internal side's SYN was seen.
    Init = 0,
    /// The external side's SYN was seen.
    InitOutside = 1,
    /// Opened from outside, both SYNs seen, the initiator's ACK not yet.
    SynSeen = 2,
    /// Open.
    Established = 3,
    /// The initiator has sent a FIN.
    InitiatorFin = 4,
    /// The responder has sent a FIN.
    ResponderFin = 5,
    /// Both have.
    Closing = 6,
    /// A RST was seen; silence ends the session, data revives it.
    Reset = 7,
}

impl State {
    /// All states, in the order of their values.
    pub const ALL: [State; 8] = [
        State::Init,
        State::InitOutside,
        State::SynSeen,
        State::Established,
        State::InitiatorFin,
        State::ResponderFin,
        State::Closing,
        State::Reset,
    ];

    /// The state of a session that its first SYN has just opened.
    pub const fn opening(from_outside: bool) -> State {
        if from_outside {
            State::InitOutside
        } else {
            State::Init
        }
    }

    /// The timeout that a session in this state is under.
    #[inline(always)]
    pub const fn class(self) -> TimeoutClass {
        match self {
            State::Init | State::InitOutside | State::SynSeen => TimeoutClass::TcpTransOpen,
            State::Established | State::InitiatorFin | State::ResponderFin => TimeoutClass::TcpIdle,
            State::Closing | State::Reset => TimeoutClass::TcpTransClose,
        }
    }

    /// Opened from outside, and not yet open.
    pub const fn is_half_open(self) -> bool {
        matches!(self, State::InitOutside | State::SynSeen)
    }

    #[inline(always)]
    pub(crate) const fn from_bits(bits: u32) -> State {
        State::ALL[(bits & 7) as usize]
    }
}

/// The state after a packet. `from_initiator`: the packet is of the side that opened the session;
/// `from_outside`: the session was opened by the external realm.
#[inline]
pub fn next(state: State, from_initiator: bool, from_outside: bool, signal: Signal) -> State {
    use Signal::{TcpData, TcpFin, TcpRst, TcpSyn, TcpSynAck};
    match (state, from_initiator, signal) {
        // The responder's SYN, with ACK or (simultaneous open) without.
        (State::Init, false, TcpSyn | TcpSynAck) => State::Established,
        (State::InitOutside, false, TcpSyn | TcpSynAck) => State::SynSeen,
        // Simultaneous open: the initiator's ACK comes in its SYN|ACK.
        (State::SynSeen, true, TcpData | TcpSynAck) => State::Established,
        (State::SynSeen, true, TcpFin) => State::InitiatorFin,
        (State::Established, true, TcpFin) => State::InitiatorFin,
        (State::Established, false, TcpFin) => State::ResponderFin,
        (State::InitiatorFin, false, TcpFin) | (State::ResponderFin, true, TcpFin) => {
            State::Closing
        }
        (State::Established | State::InitiatorFin | State::ResponderFin, _, TcpRst) => State::Reset,
        (State::Reset, _, TcpData) => State::Established,
        // The same endpoints start a new connection.
        (State::Closing | State::Reset, true, TcpSyn) => State::opening(from_outside),
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Signal::{TcpData, TcpFin, TcpRst, TcpSyn, TcpSynAck};
    use State::*;

    /// Every edge: for each state the row of the initiator's and of the responder's signals.
    #[test]
    fn rfc7857_2_every_edge() {
        let signals = [TcpSyn, TcpSynAck, TcpData, TcpFin, TcpRst];
        let table = [
            (
                Init,
                [Init, Init, Init, Init, Init],
                [Established, Established, Init, Init, Init],
            ),
            (
                InitOutside,
                [InitOutside; 5],
                [SynSeen, SynSeen, InitOutside, InitOutside, InitOutside],
            ),
            (
                SynSeen,
                [SynSeen, Established, Established, InitiatorFin, SynSeen],
                [SynSeen; 5],
            ),
            (
                Established,
                [Established, Established, Established, InitiatorFin, Reset],
                [Established, Established, Established, ResponderFin, Reset],
            ),
            (
                InitiatorFin,
                [
                    InitiatorFin,
                    InitiatorFin,
                    InitiatorFin,
                    InitiatorFin,
                    Reset,
                ],
                [InitiatorFin, InitiatorFin, InitiatorFin, Closing, Reset],
            ),
            (
                ResponderFin,
                [ResponderFin, ResponderFin, ResponderFin, Closing, Reset],
                [
                    ResponderFin,
                    ResponderFin,
                    ResponderFin,
                    ResponderFin,
                    Reset,
                ],
            ),
            (
                Closing,
                [Init, Closing, Closing, Closing, Closing],
                [Closing; 5],
            ),
            (
                Reset,
                [Init, Reset, Established, Reset, Reset],
                [Reset, Reset, Established, Reset, Reset],
            ),
        ];
        for (state, initiator, responder) in table {
            for (i, signal) in signals.into_iter().enumerate() {
                assert_eq!(
                    next(state, true, false, signal),
                    initiator[i],
                    "{state:?} {signal:?}"
                );
                assert_eq!(
                    next(state, false, false, signal),
                    responder[i],
                    "{state:?} {signal:?}"
                );
            }
        }
        assert_eq!(next(Closing, true, true, TcpSyn), InitOutside);
        assert_eq!(next(Reset, true, true, TcpSyn), InitOutside);
    }

    #[test]
    fn classes_follow_states() {
        assert_eq!(SynSeen.class(), TimeoutClass::TcpTransOpen);
        assert_eq!(ResponderFin.class(), TimeoutClass::TcpIdle);
        assert_eq!(Reset.class(), TimeoutClass::TcpTransClose);
    }

    #[test]
    fn bits_round_trip() {
        for state in State::ALL {
            assert_eq!(State::from_bits(state as u32), state);
        }
    }
}
