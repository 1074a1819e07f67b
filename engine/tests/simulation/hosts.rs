//! Who talks through a gateway: flows of clients, and servers. A flow asks and waits for its reply,
//! and asks again when none comes; a connection does so after a handshake, and closes in the end.

use std::collections::BTreeMap;

use super::dice::Dice;
use super::oracle::Side;
use super::packet::{ACK, Draft, End, FIN, Kind, Proto, RST, SYN, Seen, Segment, Sum};

/// Bytes of data that a segment of these connections has.
pub const DATA: u32 = 100;
/// How often something is sent in vain.
const TRIES_MAX: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    Fin,
    Reset,
    /// It goes without a word.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    SynSent,
    Open,
    FinSent,
    Done,
}

/// A client's side of a conversation.
#[derive(Clone, Debug)]
pub struct Flow {
    pub id: u32,
    pub side: Side,
    pub proto: Proto,
    pub local: End,
    pub remote: End,
    /// How many requests it has in mind, and how many were replied to.
    pub turns: u32,
    pub answered: u32,
    /// Pauses between a reply and the next request, milliseconds.
    pub pause_ms: (u64, u64),
    pub size: usize,
    pub dont_fragment: bool,
    pub sum: Sum,
    pub goodbye: Goodbye,
    /// Probes with rising TTL instead of requests.
    pub traces: bool,
    /// Routers that told of a probe.
    pub told: u32,
    /// When its timer fires; events of other times are void.
    pub wake_at: Option<u64>,
    turn: u32,
    tries: u32,
    waiting: bool,
    phase: Phase,
    /// The next to send, and the next to get.
    seq: u32,
    ack: u32,
}

impl Flow {
    pub fn new(
        id: u32,
        side: Side,
        proto: Proto,
        local: End,
        remote: End,
        dice: &mut Dice,
    ) -> Flow {
        Flow {
            id,
            side,
            proto,
            local,
            remote,
            turns: 1,
            answered: 0,
            pause_ms: (10, 500),
            size: 0,
            dont_fragment: false,
            sum: Sum::Right,
            goodbye: Goodbye::Fin,
            traces: false,
            told: 0,
            wake_at: None,
            turn: 0,
            tries: 0,
            waiting: false,
            phase: Phase::Closed,
            seq: dice.number() as u32,
            ack: 0,
        }
    }

    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Did it get all that it wanted?
    pub fn is_content(&self) -> bool {
        self.is_done() && (self.answered >= self.turns || self.traces || self.sum == Sum::Wrong)
    }

    fn draft(&self) -> Draft {
        let mut draft = Draft::new(self.proto, self.local, self.remote, Kind::Request);
        (draft.tag.flow, draft.tag.turn, draft.tag.sum) = (self.id, self.turn, self.sum);
        (draft.fill, draft.dont_fragment) = (self.size, self.dont_fragment);
        draft
    }

    fn segment(&self, seq: u32, flags: u8, data: u32) -> Draft {
        let mut draft = self.draft();
        draft.fill = data as usize;
        draft.segment = Some(Segment {
            seq,
            ack: self.ack,
            flags,
        });
        draft
    }

    /// The timer has fired.
    pub fn wake(&mut self, now: u64, dice: &mut Dice) -> Vec<Draft> {
        self.wake_at = None;
        if self.is_done() {
            return Vec::new();
        }
        if self.waiting && self.tries > TRIES_MAX {
            self.give_up();
            if self.proto == Proto::Tcp || self.is_done() {
                self.phase = Phase::Done;
                return Vec::new();
            }
        }
        if self.traces {
            return self.trace(now);
        }
        if !self.waiting {
            self.begin();
        }
        self.tries += 1;
        self.wake_at = Some(now + (1000 << (self.tries - 1)) + dice.below(50));
        let goes = self.phase == Phase::Done;
        if goes {
            self.wake_at = None;
        }
        match (self.proto, self.phase) {
            (Proto::Tcp, Phase::SynSent) => vec![self.segment(self.seq, SYN, 0)],
            (Proto::Tcp, Phase::Open) => vec![self.segment(self.seq, ACK, DATA)],
            (Proto::Tcp, Phase::FinSent) => vec![self.segment(self.seq, FIN | ACK, 0)],
            (Proto::Tcp, _) if self.goodbye == Goodbye::Reset => {
                vec![self.segment(self.seq, RST | ACK, 0)]
            }
            (Proto::Tcp, _) => Vec::new(),
            _ if goes => Vec::new(),
            _ => vec![self.draft()],
        }
    }

    /// The next thing to do.
    fn begin(&mut self) {
        (self.waiting, self.tries) = (true, 0);
        let more = self.turn < self.turns;
        self.phase = match (self.proto, self.phase) {
            (Proto::Tcp, Phase::Closed) => Phase::SynSent,
            (Proto::Tcp, Phase::Open) if !more && self.goodbye == Goodbye::Fin => Phase::FinSent,
            (_, phase) if more => {
                self.turn += 1;
                phase
            }
            _ => Phase::Done,
        };
    }

    fn give_up(&mut self) {
        self.waiting = false;
        if self.turn >= self.turns {
            self.phase = Phase::Done;
        }
    }

    fn trace(&mut self, now: u64) -> Vec<Draft> {
        self.turn += 1;
        if self.turn > self.turns {
            self.phase = Phase::Done;
            return Vec::new();
        }
        self.wake_at = Some(now + 300);
        let mut draft = self.draft();
        draft.ttl = self.turn as u8;
        vec![draft]
    }

    /// A reply to this flow came.
    pub fn hear(&mut self, now: u64, seen: &Seen, dice: &mut Dice) -> Vec<Draft> {
        let turn = seen.tag.map_or(0, |tag| tag.turn);
        match seen.segment {
            None if self.waiting && turn == self.turn => self.be_content(now, dice),
            None => {}
            Some(segment) => return self.hear_segment(now, &segment, seen, dice),
        }
        Vec::new()
    }

    fn be_content(&mut self, now: u64, dice: &mut Dice) {
        self.answered += 1;
        self.pause(now, dice);
    }

    fn pause(&mut self, now: u64, dice: &mut Dice) {
        self.waiting = false;
        self.wake_at = Some(now + dice.between(self.pause_ms.0, self.pause_ms.1));
    }

    fn hear_segment(
        &mut self,
        now: u64,
        segment: &Segment,
        seen: &Seen,
        dice: &mut Dice,
    ) -> Vec<Draft> {
        let turn = seen.tag.map_or(0, |tag| tag.turn);
        let flags = segment.flags & (SYN | ACK | FIN | RST);
        let acknowledges = |len: u32| segment.ack == self.seq.wrapping_add(len);
        if flags & RST != 0 {
            // Of a connection that is no more, if its number is another.
            if matches!(self.phase, Phase::Open | Phase::FinSent) && segment.seq == self.ack {
                self.phase = Phase::Done;
            }
            return Vec::new();
        }
        match self.phase {
            Phase::SynSent if flags == SYN | ACK && acknowledges(1) => {
                self.seq = segment.ack;
                self.ack = segment.seq.wrapping_add(1);
                self.phase = Phase::Open;
                self.waiting = false;
                self.wake_at = Some(now + dice.between(0, 20));
            }
            Phase::Open if flags == ACK && acknowledges(DATA) && is_next(self.ack, seen) => {
                if !self.waiting || turn != self.turn {
                    return Vec::new();
                }
                self.ack = segment.seq.wrapping_add(seen.data);
                if seen.tag.is_some_and(|tag| tag.more) {
                    return Vec::new();
                }
                self.seq = segment.ack;
                self.be_content(now, dice);
            }
            Phase::FinSent if flags & FIN != 0 && acknowledges(1) && segment.seq == self.ack => {
                self.seq = segment.ack;
                self.ack = segment.seq.wrapping_add(1);
                (self.phase, self.wake_at) = (Phase::Done, None);
            }
            // Something again: its acknowledgement was lost.
            Phase::Open | Phase::FinSent | Phase::Done if flags & (SYN | FIN) != 0 => {}
            _ => return Vec::new(),
        }
        vec![self.segment(self.seq, ACK, 0)]
    }

    /// A router, or the receiver, tells that something did not go well.
    pub fn hear_error(&mut self, kind: u8, code: u8, mtu: u16) {
        self.told += u32::from(kind == 11);
        if (kind, code) == (3, 4) {
            self.size = self.size.min(usize::from(mtu).saturating_sub(60));
        }
    }
}

/// Does a segment have what is next of a stream, and maybe something of before?
fn is_next(next: u32, seen: &Seen) -> bool {
    seen.segment
        .is_some_and(|segment| next.wrapping_sub(segment.seq) < seen.data)
}

/// A server's side of a connection.
struct Connection {
    /// What the peer's data began with.
    first: u32,
    /// What is next of it.
    peer_seq: u32,
    seq: u32,
    /// What was sent last, for peers that did not hear it.
    last: Option<Draft>,
}

/// All servers, inside and outside: they answer whatever they are asked.
#[derive(Default)]
pub struct Servers(BTreeMap<(End, End), Connection>);

impl Servers {
    pub fn hear(&mut self, seen: &Seen, dice: &mut Dice) -> Option<Draft> {
        let asked = seen.tag?;
        let mut reply = Draft::new(seen.proto, seen.destination, seen.source, Kind::Reply);
        (reply.tag.flow, reply.tag.turn) = (asked.flow, asked.turn);
        reply.tag.receiver = asked.sender;
        reply.fill = seen.len.saturating_sub(56);
        let Some(segment) = seen.segment else {
            // Echo replies come with the request's data.
            let absent = seen.proto == Proto::Udp && asked.sum == Sum::Absent;
            reply.tag.sum = if absent { Sum::Absent } else { Sum::Right };
            return Some(reply);
        };
        reply.fill = 0;
        let key = (seen.destination, seen.source);
        let flags = segment.flags & (SYN | ACK | FIN | RST);
        let mut answer = |seq, ack, flags| {
            reply.segment = Some(Segment { seq, ack, flags });
            reply.clone()
        };
        if flags & RST != 0 {
            self.0.remove(&key);
            return None;
        }
        let next = segment.seq.wrapping_add(1);
        if flags == SYN {
            // The same SYN again, maybe overtaken by what followed it.
            let known = self.0.get(&key).filter(|known| known.first == next);
            if let Some(known) = known {
                return known.last.clone();
            }
            let seq = dice.number() as u32;
            let last = answer(seq, next, SYN | ACK);
            let connection = Connection {
                first: next,
                peer_seq: next,
                seq: seq.wrapping_add(1),
                last: Some(last.clone()),
            };
            self.0.insert(key, connection);
            return Some(last);
        }
        let Some(connection) = self.0.get_mut(&key) else {
            return Some(answer(segment.ack, 0, RST));
        };
        let advance = seen.data + u32::from(flags & FIN != 0);
        if advance == 0 {
            return None;
        }
        if segment.seq != connection.peer_seq && !is_next(connection.peer_seq, seen) {
            return connection.last.clone();
        }
        connection.peer_seq = segment.seq.wrapping_add(advance);
        if asked.more {
            return None;
        }
        let fin = flags & FIN != 0;
        let mut last = answer(
            connection.seq,
            connection.peer_seq,
            if fin { FIN | ACK } else { ACK },
        );
        last.fill = if fin { 0 } else { DATA as usize };
        connection.seq = connection.seq.wrapping_add(if fin { 1 } else { DATA });
        connection.last = Some(last.clone());
        Some(last)
    }
}
