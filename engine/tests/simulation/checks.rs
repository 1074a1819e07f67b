//! What must hold of one packet that leaves the gateway.

use super::oracle::{Oracle, Side, Verdict};
use super::packet::{End, Kind, Proto, Quote, Seen, Sum};
use super::sessions::{Session, at_endpoint};

/// The longest that a request goes to its server, its reply to the gateway, and that to a host.
const ON_THE_WAY_MS: u64 = 1_500;

impl Oracle {
    /// Nobody else has the wire tuple, nor (without overloading) the external endpoint; and the
    /// internal endpoint has no other one. `settled`: the packet was judged by the rules of now, so
    /// that it is known whether these overload.
    pub fn check_unshared(
        &self,
        now: u64,
        settled: bool,
        proto: Proto,
        internal: End,
        external: End,
        remote: End,
        live: &Option<Session>,
    ) -> Verdict {
        if let Some((other, _)) = self.owner(now, proto, external, remote)
            && other != internal
        {
            return Err(format!(
                "{internal} has the wire tuple {external} > {remote} of {other}"
            ));
        }
        let eim = live.as_ref().map_or(
            settled && self.is_eim_now(now, proto, internal, remote),
            |s| s.eim,
        );
        for ((.., far), other) in self.wire.range(at_endpoint(proto, external)) {
            if let Some((_, session)) = self.owner(now, proto, external, *far)
                && *other != internal
                && (eim || session.eim)
            {
                return Err(format!("{internal} and {other} share {external}"));
            }
        }
        if !eim
            || self
                .all_rules()
                .any(|rules| rules.is_target(proto, internal))
        {
            return Ok(());
        }
        for ((.., far), session) in self.sessions.range(at_endpoint(proto, internal)) {
            let lives = self.surely_lives(now, proto, session);
            if lives && session.eim && session.external != external {
                let was = session.external;
                return Err(format!(
                    "{internal} is {external} to {remote}, but {was} to {far}"
                ));
            }
        }
        Ok(())
    }

    /// A port of the pool, or that of a forward to this endpoint.
    pub fn check_allowed(
        &self,
        proto: Proto,
        internal: End,
        external: End,
        known: bool,
    ) -> Verdict {
        let (low, high) = self.rules.ports;
        match self.rules.forward_at(proto, external) {
            Some(forward) if forward.target == internal => Ok(()),
            Some(forward) => Err(format!("{external} is forwarded to {}", forward.target)),
            None if proto == Proto::Icmp || known => Ok(()),
            None if (low..=high).contains(&external.port()) => Ok(()),
            None => Err(format!("{external} is not in the pool")),
        }
    }

    /// Did the packet leave by a session that is lost, and whose external endpoint may be another's by
    /// now? Who is told of it cannot be known then (RFC 6888 REQ-8: without a hold-down).
    fn is_of_lost_session(&self, number: u32) -> bool {
        self.loss
            .is_some_and(|loss| number <= loss.number && self.now >= loss.held_until)
    }

    /// May a reply to a lost session have reached whoever has its external endpoint by now? Such ones
    /// are on their way for a moment only.
    pub fn is_soon_after_loss(&self, now: u64) -> bool {
        self.loss
            .is_some_and(|loss| now >= loss.held_until && now <= loss.at + ON_THE_WAY_MS)
    }

    /// A reply goes to who asked.
    pub fn check_asked(&self, seen: &Seen) -> Verdict {
        let is_for = |receiver| receiver == seen.destination || self.is_soon_after_loss(self.now);
        match seen.tag {
            Some(tag) if tag.kind == Kind::Reply && !is_for(tag.receiver) => {
                Err(format!("it is for {}", tag.receiver))
            }
            _ => Ok(()),
        }
    }

    pub fn check_error(&self, to: Side, seen: &Seen, quote: &Quote) -> Verdict {
        if seen.sum != Sum::Right {
            return Err("an ICMP error has a wrong checksum".into());
        }
        if quote.source.ip() != seen.destination.ip() {
            return Err("an ICMP error does not go to whom it quotes".into());
        }
        if !quote.header_right {
            return Err("the quoted header has a wrong checksum".into());
        }
        if let (Some(sum), Some(tag)) = (quote.sum, quote.tag)
            && sum != tag.sum
        {
            return Err(format!(
                "the quoted checksum was {:?}, and is {sum:?}",
                tag.sum
            ));
        }
        match (to, quote.tag) {
            (Side::Inside, Some(tag))
                if tag.sender != quote.source && !self.is_of_lost_session(tag.number) =>
            {
                Err(format!(
                    "{} is told of a packet of {}",
                    quote.source, tag.sender
                ))
            }
            (Side::Inside, None)
                if !self
                    .trials
                    .contains_key(&(quote.proto, quote.source, quote.destination)) =>
            {
                Err(format!(
                    "{} never sent to {}",
                    quote.source, quote.destination
                ))
            }
            (Side::Outside, _)
                if !self.in_pool(*seen.source.ip()) && seen.source.ip().octets()[0] == 10 =>
            {
                Err("an ICMP error shows an internal address".into())
            }
            _ => Ok(()),
        }
    }
}

/// Checksums are as their sender made them.
pub fn check_sum(seen: &Seen) -> Verdict {
    match seen.tag {
        Some(tag) if tag.sum != seen.sum => Err(format!(
            "its checksum was {:?}, and is {:?}",
            tag.sum, seen.sum
        )),
        _ => Ok(()),
    }
}
