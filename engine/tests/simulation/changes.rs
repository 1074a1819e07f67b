//! What the oracle makes of changes: other rules, and gateways that die.

use std::net::Ipv4Addr;

use super::oracle::Oracle;
use super::rules::Rules;
use super::sessions::{Pair, Session};

/// The gateway lost its tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    pub at: u64,
    /// The last packet before.
    pub number: u32,
    /// Until then nobody else gets a lost session's port (RFC 6888 REQ-8); at once, if that is not
    /// wanted or cannot be.
    pub held_until: u64,
}

impl Oracle {
    pub(super) fn all_rules(&self) -> impl Iterator<Item = &Rules> {
        self.earlier.iter().chain([&self.rules])
    }

    /// Rules that the gateway acted by at this time or since.
    pub(super) fn rules_since(&self, at: u64) -> impl Iterator<Item = &Rules> {
        let past = self.past.iter().filter(move |(until, _)| *until >= at);
        past.map(|(_, rules)| rules).chain(self.all_rules())
    }

    pub(super) fn in_pool(&self, addr: Ipv4Addr) -> bool {
        self.all_rules().any(|rules| rules.pool().contains(&addr))
    }

    /// Packets in the gateway's hands are lost.
    pub fn killed(&mut self) {
        self.due.clear();
        self.untold.clear();
    }

    /// The gateway has lost its tables.
    pub fn forget_sessions(&mut self, now: u64) {
        // A quarter of the pool is held down at most: that is all that was in use, or far less.
        let (low, high) = self.rules.ports;
        let holds = if high - low > 4096 {
            self.rules.timers.hold_down
        } else {
            0
        };
        self.loss = Some(Loss {
            at: now,
            number: self.entered.keys().next_back().copied().unwrap_or(0),
            held_until: now + holds,
        });
        self.sessions.clear();
        self.wire.clear();
        self.trials.values_mut().for_each(|trial| trial.at = 0);
    }

    /// The rules change; the gateway follows by and by.
    pub fn change(&mut self, now: u64, rules: Rules) {
        let mut ended = self.ended_by_time(now);
        let old = std::mem::replace(&mut self.rules, rules);
        ended.extend(self.ended_by_time(now));
        ended.extend(self.ended_by_change(&old));
        for key in ended {
            self.sessions.remove(&key);
        }
        // Packets of this step may still be judged by the new rules.
        self.refused.clear();
        self.untold.clear();
        if old.quota.is_none() || self.rules.quota.is_none() {
            let sessions = self.sessions.values_mut();
            sessions.for_each(|session| session.counted = false);
        }
        // A session from inside that nobody has collected yet goes on if it is young enough by the new
        // rules, and those may count what came from outside.
        if self.rules.inbound_refresh && !old.inbound_refresh {
            for trial in self.trials.values_mut() {
                trial.at = trial.at.max(trial.heard);
            }
        }
        self.earlier.push(old);
        self.ever.extend(self.rules.pool());
    }

    /// Sessions that may not live any more.
    fn ended_by_time(&self, now: u64) -> Vec<Pair> {
        let sessions = self.sessions.iter();
        let ended = sessions.filter(|(key, session)| !self.surely_lives(now, key.0, session));
        ended.map(|(key, _)| *key).collect()
    }

    /// Sessions that may be ended by a change of the rules.
    fn ended_by_change(&self, old: &Rules) -> Vec<Pair> {
        let (old_pool, new_pool) = (old.pool(), self.rules.pool());
        let stays = |(key, session): &(&Pair, &Session)| {
            let address = session.external.ip();
            let forward = |rules: &Rules| rules.forward_at(key.0, session.external).cloned();
            let target = |rules: &Rules| rules.is_target(key.0, key.1);
            let far = |rules: &Rules, pool: &[Ipv4Addr]| {
                (
                    rules.forward_at(key.0, key.2).cloned(),
                    pool.contains(key.2.ip()),
                )
            };
            // Those that the other side opened go on, but that is not known for sure.
            let denied = self.rules.denies(*key.2.ip());
            old_pool.contains(address)
                && new_pool.contains(address)
                && forward(old) == forward(&self.rules)
                && target(old) == target(&self.rules)
                && far(old, &old_pool) == far(&self.rules, &new_pool)
                && !denied
        };
        let ended = self.sessions.iter().filter(|pair| !stays(pair));
        ended.map(|(key, _)| *key).collect()
    }

    /// The gateway acts by the newest rules alone.
    pub fn settle(&mut self, now: u64) {
        self.settled_at = now;
        let ended = self.earlier.drain(..).map(|rules| (now, rules));
        self.past.extend(ended);
        let rules = &self.rules;
        let pool = rules.pool();
        for (key, trial) in &mut self.trials {
            let stays = trial
                .external
                .is_none_or(|external| pool.contains(external.ip()));
            let forward = trial
                .external
                .and_then(|external| rules.forward_at(key.0, external));
            let admitted = forward.is_some_and(|f| f.target == key.1 && f.allows(*key.2.ip()));
            trial.ended |= rules.denies(*key.2.ip()) && !trial.by_outside;
            if !stays || trial.by_forward && !admitted {
                trial.at = 0;
            }
        }
    }

    pub fn is_settled(&self) -> bool {
        self.earlier.is_empty()
    }

    pub fn pool(&self) -> Vec<Ipv4Addr> {
        self.rules.pool()
    }
}
