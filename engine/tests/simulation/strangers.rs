//! What strangers do to a gateway, outside and inside.

use std::net::Ipv4Addr;
use std::ops::Range;

use engine::world::EXTERNAL;

use super::fragments::cut;
use super::network::Event;
use super::oracle::Side;
use super::packet::{ACK, Draft, End, FIN, Kind, Proto, RST, SYN, Seen, Segment, Sum};
use super::play::{Course, NO_FLOW, Play};
use super::rules::DENIED;
use super::script::{GREEDY, PORTS, SERVERS};

impl Play<'_> {
    /// Packets of strangers to external endpoints that are in use.
    pub fn knock(&mut self) -> Course {
        for _ in 0..self.dice.between(1, 4) {
            let Some(seen) = self.overheard() else {
                break;
            };
            if self.calm && seen.proto == Proto::Tcp || seen.quote.is_some() {
                continue;
            }
            let stranger = match self.dice.below(3) {
                // Another port of the same host, another host, or (a lie) the same endpoint.
                0 => End::new(*seen.destination.ip(), 9_999),
                1 => End::new(self.dice.pick(&SERVERS), self.dice.pick(&PORTS)),
                _ => seen.destination,
            };
            self.attack(seen.proto, stranger, seen.source);
        }
        Ok(())
    }

    /// The far end of a session goes on and on, whether it is answered or not.
    pub fn nag(&mut self) -> Course {
        let Some(seen) = self.overheard().filter(|seen| seen.quote.is_none()) else {
            return Ok(());
        };
        let timers = self.rules.timers;
        let timeout = if seen.proto == Proto::Icmp {
            timers.icmp
        } else {
            timers.udp
        };
        let after = self.dice.pick(&[timeout / 3, timeout * 6 / 10]);
        for turn in 1..8 {
            let mut draft = Draft::new(seen.proto, seen.destination, seen.source, Kind::Attack);
            draft.tag.flow = NO_FLOW;
            draft.segment = Some(Segment {
                seq: 0,
                ack: 0,
                flags: ACK,
            });
            let frame = self.frame(draft);
            self.network
                .at(self.now + turn * after, Event::Arrive(Side::Outside, frame));
        }
        Ok(())
    }

    pub fn overheard(&mut self) -> Option<Seen> {
        let count = self.heard.len() as u64;
        (count > 0).then(|| self.heard[self.dice.below(count) as usize])
    }

    pub fn attack(&mut self, proto: Proto, from: End, to: End) {
        let mut draft = Draft::new(proto, from, to, Kind::Attack);
        draft.tag.flow = NO_FLOW;
        if proto == Proto::Tcp {
            let flags = self.dice.pick(&[SYN, SYN, ACK, RST, FIN | ACK, SYN | ACK]);
            let (seq, ack) = (self.dice.number() as u32, self.dice.number() as u32);
            draft.segment = Some(Segment { seq, ack, flags });
        }
        self.send(Side::Outside, draft);
    }

    /// Somebody outside claims to be inside.
    pub fn lie(&mut self) -> Course {
        if !self.two_arm {
            return Ok(());
        }
        let liar = End::new(self.dice.pick(&self.hosts), self.dice.pick(&PORTS));
        let pool = self.oracle.pool();
        let external = pool.first().copied().unwrap_or(EXTERNAL);
        let to = [
            self.server(Proto::Udp),
            End::new(external, self.dice.pick(&PORTS)),
            liar,
        ];
        let to = self.dice.pick(&to);
        let proto = self.dice.pick(&[Proto::Udp, Proto::Tcp]);
        self.attack(proto, liar, to);
        Ok(())
    }

    /// Somebody outside tries many ports.
    pub fn port_scan(&mut self) -> Course {
        let pool = self.oracle.pool();
        let Some(external) = pool.first().copied() else {
            return Ok(());
        };
        let from = End::new(self.dice.pick(&SERVERS), 6_666);
        let proto = self.dice.pick(&[Proto::Udp, Proto::Tcp, Proto::Icmp]);
        let first = self.dice.pick(&[1, 8_440, 20_000]);
        for port in first..first + self.dice.between(5, 40) as u16 {
            self.attack(proto, from, End::new(external, port));
        }
        Ok(())
    }

    /// A host inside asks very many at once, and waits for nobody.
    pub fn crowd(&mut self) -> Course {
        let host = self.dice.pick(&self.hosts);
        let count = self.dice.between(10, 90) as u16;
        self.ask_many(host, 0..count)
    }

    /// A host inside opens sessions until it has more than its quota, and goes on.
    pub fn hoard(&mut self) -> Course {
        let Some(quota) = self.rules.quota else {
            return Ok(());
        };
        let host = if self.calm {
            GREEDY
        } else {
            self.dice.pick(&self.hosts)
        };
        let count = quota as u16 + 6;
        self.ask_many(host, 0..count)
    }

    /// A host inside asks one that it may not reach.
    pub fn trespass(&mut self) -> Course {
        let proto = self.dice.pick(&[Proto::Udp, Proto::Tcp, Proto::Icmp]);
        let local = End::new(self.dice.pick(&self.hosts), self.dice.pick(&PORTS));
        for _ in 0..self.dice.between(1, 4) {
            self.ask(proto, local, End::new(DENIED, 7));
        }
        Ok(())
    }

    fn ask_many(&mut self, host: Ipv4Addr, numbers: Range<u16>) -> Course {
        let proto = self.dice.pick(&[Proto::Udp, Proto::Tcp, Proto::Icmp]);
        let (own, remote) = (self.dice.chance(500), self.server(proto));
        for number in numbers {
            let local = End::new(host, 45_000 + if own { number } else { 0 });
            let port = if own { remote.port() } else { 30_000 + number };
            self.ask(proto, local, End::new(*remote.ip(), port));
        }
        Ok(())
    }

    /// One packet from inside that opens a session, and whose answer nobody waits for.
    fn ask(&mut self, proto: Proto, local: End, remote: End) {
        let port = if proto == Proto::Icmp {
            0
        } else {
            remote.port()
        };
        let mut draft = Draft::new(proto, local, End::new(*remote.ip(), port), Kind::Attack);
        draft.tag.flow = NO_FLOW;
        if proto == Proto::Icmp {
            draft.tag.kind = Kind::Request;
            draft.tag.sum = Sum::Wrong;
        }
        if proto == Proto::Tcp {
            draft.segment = Some(Segment {
                seq: 1,
                ack: 0,
                flags: SYN,
            });
        }
        self.send(Side::Inside, draft);
    }

    /// A router outside has something to say of the next packets; no session minds.
    pub fn router_complains(&mut self) -> Course {
        self.complaints += 3;
        Ok(())
    }

    /// Fragments whose first one never comes, or comes alone.
    pub fn stray_fragments(&mut self) -> Course {
        for _ in 0..self.dice.between(1, 6) {
            let inside = self.dice.chance(500);
            let server = self.server(Proto::Udp);
            let external = self.oracle.pool().first().copied().unwrap_or(EXTERNAL);
            let (side, from, to) = match inside {
                true => (
                    Side::Inside,
                    End::new(self.dice.pick(&self.hosts), 20_000),
                    server,
                ),
                false => (Side::Outside, server, End::new(external, 20_000)),
            };
            let mut draft = Draft::new(Proto::Udp, from, to, Kind::Attack);
            (draft.fill, draft.tag.flow) = (2_000, NO_FLOW);
            let parts = cut(&self.frame(draft), 600);
            let part = self.dice.pick(&parts);
            self.network
                .carry(self.now, &mut self.dice, &Event::Arrive(side, part));
        }
        Ok(())
    }
}
