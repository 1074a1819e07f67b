//! TCP as RFC 7857 section 2, figure 1 has it, kept as what was seen instead of as a state.
//!
//! Beyond the figure: a connection opened from outside is open with the initiator's first segment
//! after the responder's SYN; a RST before it is open changes nothing; a RST after one FIN counts
//! like one before; the initiator's SYN after the end starts anew.

use conntrack::tcp::State;
use conntrack::{Signal, Timers};

/// What a connection's segments have shown.
#[derive(Clone, Debug)]
pub struct Connection {
    from_outside: bool,
    responder_syn: bool,
    initiator_ack: bool,
    fins: [bool; 2],
    reset: bool,
}

impl Connection {
    /// The initiator's SYN was seen.
    pub fn new(from_outside: bool) -> Connection {
        Connection {
            from_outside,
            responder_syn: false,
            initiator_ack: false,
            fins: [false; 2],
            reset: false,
        }
    }

    fn open(&self) -> bool {
        self.responder_syn && (self.initiator_ack || !self.from_outside)
    }

    fn over(&self) -> bool {
        self.reset || self.fins == [true; 2]
    }

    /// Opened from outside, and the handshake is not over.
    pub fn half_open(&self) -> bool {
        self.from_outside && !self.open()
    }

    /// A segment of the initiator (side 0) or the responder (side 1).
    pub fn see(&mut self, side: usize, signal: Signal) {
        let syn = matches!(signal, Signal::TcpSyn | Signal::TcpSynAck);
        if !self.open() {
            // Of the initiator everything but SYN and RST acknowledges the responder's SYN.
            let acks = !matches!(signal, Signal::TcpSyn | Signal::TcpRst);
            if side == 0 && self.responder_syn && acks {
                self.initiator_ack = true;
            } else if side == 1 && syn {
                self.responder_syn = true;
            }
            if !self.open() {
                return;
            }
        }
        if self.over() {
            if side == 0 && signal == Signal::TcpSyn {
                *self = Connection::new(self.from_outside);
            } else if self.reset && signal == Signal::TcpData {
                self.reset = false;
                self.fins = [false; 2];
            }
            return;
        }
        match signal {
            Signal::TcpFin => self.fins[side] = true,
            Signal::TcpRst => self.reset = true,
            _ => {}
        }
    }

    /// How long it may be silent, in ms.
    pub fn timeout_ms(&self, timers: &Timers) -> u32 {
        if !self.open() {
            timers.tcp_trans_open_timeout_ms
        } else if self.over() {
            timers.tcp_trans_close_timeout_ms
        } else {
            timers.tcp_idle_timeout_ms
        }
    }

    /// The name that the listing gives it.
    pub fn state(&self) -> State {
        if !self.open() {
            return match (self.from_outside, self.responder_syn) {
                (false, _) => State::Init,
                (true, false) => State::InitOutside,
                (true, true) => State::SynSeen,
            };
        }
        match (self.reset, self.fins) {
            (true, _) => State::Reset,
            (_, [true, true]) => State::Closing,
            (_, [true, false]) => State::InitiatorFin,
            (_, [false, true]) => State::ResponderFin,
            _ => State::Established,
        }
    }
}
