//! Who is refused a session by the policy, and what must become of the packet: a denied destination,
//! and a client that has as many sessions as it may.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::oracle::{Oracle, Verdict};
use super::packet::{ACK, End, FIN, Kind, Proto, Quote, RST, SYN, Seen};
use super::sessions::Pair;

impl Oracle {
    /// A packet came in one super-packet with another, whose sender is told for all of them.
    pub fn is_told_with_another(&mut self, number: u32) {
        self.untold.retain(|untold| *untold != number);
    }

    /// Is a packet from inside surely refused by the policy, as it opens a session that may not be?
    pub fn is_refused(&self, now: u64, seen: &Seen) -> bool {
        let (proto, internal, remote) = (seen.proto, seen.source, seen.destination);
        let over = || {
            let quota = self.rules.quota;
            quota.is_some_and(|quota| self.counted(now, proto, *internal.ip()) >= quota)
        };
        self.is_settled()
            && opens(seen)
            && !self.may_live(now, proto, internal, remote)
            && (self.rules.denies(*remote.ip()) || over())
    }

    /// Does the policy surely leave room for a session that a packet from inside opens? Everything
    /// that the client ever began may still count: expired sessions do until they are collected. In
    /// one step the workers may take a client's packets in another order, so this is asked again
    /// when all are through.
    pub fn has_quota(&self, seen: &Seen) -> bool {
        let Some(quota) = self.rules.quota else {
            return true;
        };
        let host = of_host(seen.proto, *seen.source.ip());
        let others = self.trials.range(host).map(|(key, _)| key);
        let others = others.filter(|(_, internal, remote)| {
            (*internal, *remote) != (seen.source, seen.destination)
        });
        others.count() < quota as usize
    }

    /// How many sessions surely count in a client's quota.
    fn counted(&self, now: u64, proto: Proto, host: Ipv4Addr) -> u32 {
        let sessions = self.sessions.range(of_host(proto, host));
        let lives = sessions
            .filter(|(_, session)| session.counted && self.surely_lives(now, proto, session));
        lives.count() as u32
    }

    /// A session began with a packet that went out: does it count, and may it?
    pub fn charge(&mut self, now: u64, key: Pair) -> Verdict {
        let Some(quota) = self.rules.quota else {
            return Ok(());
        };
        let (proto, internal, remote) = key;
        // Else it may be older than the quota, or of the other side's making.
        let counts = self.is_new(now, proto, internal, remote)
            && self.trials.get(&key).is_some_and(|trial| !trial.by_outside);
        if let Some(session) = self.sessions.get_mut(&key) {
            session.counted = counts;
        }
        let host = *internal.ip();
        match self.counted(now, proto, host) {
            count if counts && count > quota => {
                Err(format!("{host} has {count} of {quota} sessions"))
            }
            _ => Ok(()),
        }
    }

    /// A packet went out to an endpoint that clients may not reach: that can only be the answer in a
    /// session that the other side opened.
    pub fn check_denied(&self, proto: Proto, internal: End, remote: End) -> Verdict {
        let trial = self.trials.get(&(proto, internal, remote));
        if self.rules.denies(*remote.ip()) && trial.is_none_or(|trial| !trial.by_outside) {
            return Err(format!("{remote} is denied"));
        }
        Ok(())
    }

    /// Somebody is told of a packet of theirs that was refused: as the operator wants it.
    pub fn check_answer(&mut self, quote: &Quote) -> Verdict {
        let Some(tag) = quote.tag.filter(|tag| self.refused.contains(&tag.number)) else {
            return Ok(());
        };
        let wanted = self.rules.on_refusal.answer();
        if wanted != Some((quote.kind, quote.code)) {
            return Err(format!("it was refused, to be answered with {wanted:?}"));
        }
        self.told.insert(tag.number);
        Ok(())
    }

    /// At the end of a step: who had to be told was.
    pub fn check_told(&mut self) -> Verdict {
        let told = std::mem::take(&mut self.told);
        let untold = std::mem::take(&mut self.untold);
        match untold.iter().find(|number| !told.contains(number)) {
            Some(number) => Err(format!("packet {number} was refused without a word")),
            None => Ok(()),
        }
    }

    /// Notes what must become of a packet from inside. True: it is refused.
    pub fn expect_refusal(&mut self, now: u64, calm: bool, number: u32, seen: &Seen) -> bool {
        let refused = self.is_refused(now, seen);
        if refused {
            self.refused.insert(number);
        } else {
            // A copy of one that was.
            self.refused.remove(&number);
        }
        if refused && calm && self.rules.on_refusal.answer().is_some() {
            self.untold.push(number);
            self.refusals += 1;
        }
        refused
    }
}

/// Would a packet from inside open a session, if it has none?
pub fn opens(seen: &Seen) -> bool {
    match seen.segment {
        Some(segment) => segment.flags & (SYN | ACK | FIN | RST) == SYN,
        None => seen.proto == Proto::Udp || seen.tag.is_some_and(|tag| tag.kind == Kind::Request),
    }
}

/// All endpoints of a host.
fn of_host(proto: Proto, host: Ipv4Addr) -> RangeInclusive<Pair> {
    let first = End::new(Ipv4Addr::UNSPECIFIED, 0);
    let last = End::new(Ipv4Addr::BROADCAST, u16::MAX);
    (proto, End::new(host, 0), first)..=(proto, End::new(host, u16::MAX), last)
}
