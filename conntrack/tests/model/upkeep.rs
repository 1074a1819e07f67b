//! The operations that are not packets: time, sweeps, policies, restarts, next hops, the end.

use conntrack::{Nat, NextHop, Policy, PolicyChange, Time};

use crate::drive::{Drive, IDENTITY};
use crate::observe::{Judged, ensure};
use crate::reference::TICK_MS;

impl Drive<'_> {
    pub fn pass(&mut self, to_ms: u64) -> Judged {
        self.reference.now_ms = to_ms;
        Ok(())
    }

    /// To a moment at which something ends.
    pub fn edge(&mut self, which: u8, offset: u8) -> Judged {
        let reference = &self.reference;
        let tick = TICK_MS;
        let mut edges: Vec<u64> = Vec::new();
        edges.extend(reference.sessions.iter().map(|s| reference.ends_ms(s)));
        edges.extend(
            reference
                .mappings
                .iter()
                .map(|m| reference.mapping_ends_ms(m)),
        );
        edges.extend(reference.holds.iter().flat_map(|h| [h.from_ms, h.until_ms]));
        edges.push((reference.now_ms / tick + 1) * tick);
        edges.retain(|&edge| edge > reference.now_ms);
        let Some(&edge) = edges.get(usize::from(which) % edges.len().max(1)) else {
            return Ok(());
        };
        self.pass(
            (edge + u64::from(offset % 3))
                .saturating_sub(1)
                .max(reference.now_ms),
        )
    }

    pub fn sweep(&mut self, budget: u32) -> Result<bool, String> {
        let swept = self.nat.sweep(&self.reference.policy, self.now(), budget);
        let after = self.look();
        let reaped = self.reference.reap(&after, None)?;
        ensure(u64::from(swept.sessions) == reaped, || {
            format!("{swept:?}, but {reaped} sessions are gone")
        })?;
        if reaped > 0 {
            self.reference.seen("swept");
        }
        self.finish(after, false)?;
        Ok(swept.wrapped)
    }

    /// After two rounds nothing that is over is left.
    pub fn sweep_all(&mut self) -> Judged {
        let mut rounds = 0;
        for _ in 0..1000 {
            rounds += u32::from(self.sweep(100_000)?);
            if rounds == 2 {
                break;
            }
        }
        ensure(rounds == 2, || "the sweep does not come round".into())?;
        let reference = &self.reference;
        let session = reference.sessions.iter().find(|s| !reference.lives(s));
        ensure(session.is_none(), || format!("not swept: {session:?}"))?;
        let mut mappings = reference.mappings.iter();
        let mapping = mappings.find(|m| !reference.mapping_lives(m));
        ensure(mapping.is_none(), || format!("not swept: {mapping:?}"))?;
        let hold = reference
            .holds
            .iter()
            .find(|h| h.until_ms <= reference.now_ms);
        ensure(hold.is_none(), || format!("not swept: {hold:?}"))
    }

    pub fn restart(&mut self) -> Judged {
        let (words, owned) = (&self.memory.words[..], &self.memory.owned[..]);
        self.nat = Nat::open(words, owned, self.size, IDENTITY)
            .map_err(|error| format!("not opened: {error}"))?;
        // References and next hops are of the process that is gone.
        self.given.clear();
        for session in &mut self.reference.sessions {
            for side in &mut session.sides {
                side.hops.push(NextHop::NONE);
            }
        }
        self.reference.seen("restart");
        if self.reference.sessions.iter().any(|s| s.counted) {
            self.reference.seen("restart with what counts");
        }
        // The new process numbers timers anew.
        self.change(self.choice.policy(None), 255)
    }

    pub fn hop(&mut self, which: u8, hop: u8) -> Judged {
        let len = self.given.len().max(1);
        let Some(given) = self.given.get(usize::from(which) % len) else {
            return Ok(());
        };
        let hop = NextHop(1 + u32::from(hop));
        self.nat.set_next_hop(given.session, hop);
        let (half, version, sure) = (given.session.half, given.version, given.sure);
        let mut sessions = self.reference.sessions.iter_mut();
        let session = sessions.find(|s| s.number == half >> 1);
        if let Some(session) = session.filter(|s| s.version >> 32 == version >> 32) {
            let hops = &mut session.sides[(half & 1) as usize].hops;
            if session.version == version && sure {
                *hops = vec![hop];
                self.reference.seen("next hop remembered");
            } else {
                hops.push(hop);
            }
            for given in &mut self.given {
                given.sure &= given.session.half != half;
            }
        }
        let after = self.look();
        self.finish(after, false)
    }

    /// When traffic ends, all ends (invariant 6), except what forwards need.
    pub fn drain(&mut self) -> Judged {
        let longest = 2 * 7_440_000 + 1_000_000;
        self.pass(self.reference.now_ms + longest)?;
        self.sweep_all()?;
        self.pass(self.reference.now_ms + longest)?;
        self.sweep_all()?;
        let totals = self.nat.totals();
        let left = (
            totals.sessions,
            totals.mappings,
            totals.ports_in_use,
            totals.ports_held,
        );
        ensure(left == (0, 0, [0; 3], [0; 3]), || {
            format!("left: {totals:?}")
        })?;
        self.check()
    }
}

/// Puts a policy into the tables in slices.
pub fn put(nat: &Nat, policy: &Policy, now_ms: u64, budget: u8) {
    let budget = match budget {
        255 => 1_000_000,
        budget => 16 + u32::from(budget),
    };
    let mut change = PolicyChange::new(policy);
    let mut slices = 0;
    while !nat.apply_policy(policy, &mut change, Time(now_ms), budget) {
        slices += 1;
        assert!(slices < 10_000, "the policy never gets into the tables");
    }
}
