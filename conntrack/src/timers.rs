//! Timeouts. A session and an `eim` mapping note the number of their set of timers, so that flows of
//! different rules, and to different services, end at different times.

use std::ops::{Deref, DerefMut};

use crate::meta::TimeoutClass;

/// Timeouts, all in milliseconds, 1 to 2^31 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// UDP, RFC 4787 REQ-5.
    pub udp_timeout_ms: u32,
    /// TCP before both SYNs (and, opened from outside, the initiator's ACK) were seen.
    pub tcp_trans_open_timeout_ms: u32,
    /// TCP established and idle, RFC 5382 REQ-5.
    pub tcp_idle_timeout_ms: u32,
    /// TCP after both FINs, or a RST.
    pub tcp_trans_close_timeout_ms: u32,
    /// How long an unsolicited inbound SYN goes unanswered, RFC 5382 REQ-4.
    pub tcp_in_syn_timeout_ms: u32,
    /// ICMP queries, RFC 5508 REQ-2.
    pub icmp_timeout_ms: u32,
    /// Fragments waiting for their datagram's ports.
    pub fragment_timeout_ms: u32,
    /// How long a released external endpoint is not assigned again, where RFC 6888 REQ-8 asks
    /// for it.
    pub hold_down_ms: u32,
}

impl Timers {
    /// The `rfc` profile.
    pub const RFC: Timers = Timers {
        udp_timeout_ms: 300_000,
        tcp_trans_open_timeout_ms: 240_000,
        tcp_idle_timeout_ms: 7_440_000,
        tcp_trans_close_timeout_ms: 240_000,
        tcp_in_syn_timeout_ms: 6_000,
        icmp_timeout_ms: 60_000,
        fragment_timeout_ms: 2_000,
        hold_down_ms: 120_000,
    };
    /// The `conntrack` profile: netfilter's defaults.
    pub const CONNTRACK: Timers = Timers {
        udp_timeout_ms: 120_000,
        tcp_trans_open_timeout_ms: 120_000,
        tcp_idle_timeout_ms: 432_000_000,
        tcp_trans_close_timeout_ms: 120_000,
        tcp_in_syn_timeout_ms: 6_000,
        icmp_timeout_ms: 30_000,
        fragment_timeout_ms: 30_000,
        hold_down_ms: 0,
    };
    /// The `cloud` profile: what managed cloud gateways do.
    pub const CLOUD: Timers = Timers {
        udp_timeout_ms: 30_000,
        tcp_trans_open_timeout_ms: 30_000,
        tcp_idle_timeout_ms: 1_200_000,
        tcp_trans_close_timeout_ms: 120_000,
        tcp_in_syn_timeout_ms: 6_000,
        icmp_timeout_ms: 30_000,
        fragment_timeout_ms: 2_000,
        hold_down_ms: 120_000,
    };
}

impl Timers {
    /// The timeout of a class in milliseconds.
    #[inline(always)]
    pub const fn timeout_ms(&self, class: TimeoutClass) -> u32 {
        match class {
            TimeoutClass::Udp => self.udp_timeout_ms,
            TimeoutClass::TcpTransOpen => self.tcp_trans_open_timeout_ms,
            TimeoutClass::TcpIdle => self.tcp_idle_timeout_ms,
            TimeoutClass::TcpTransClose => self.tcp_trans_close_timeout_ms,
            TimeoutClass::Icmp => self.icmp_timeout_ms,
        }
    }
}

/// Sets of timers that a policy has room for.
pub const TIMER_SETS: usize = 32;

/// The sets of timers of a policy, by number. It reads as set 0, which also has what is the same for
/// all: the timers of fragments, hold-downs and unsolicited SYNs.
///
/// Sessions note numbers, and outlive policies: so a number means the same in the policy that follows
/// until that one is in the tables, where every session and mapping gets its new number. A process
/// that takes tables over puts its policy into them before anything else, so it numbers anew.
#[derive(Clone, Copy, Debug)]
pub struct TimerSets {
    sets: [Timers; TIMER_SETS],
    /// Those that the policy wants, one bit each.
    wanted: u32,
    /// Those, and the ones that a session may have that was made under an earlier policy.
    kept: u32,
}

/// More different timers than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyTimers;

impl TimerSets {
    /// The set with this number; of numbers beyond, only the lower bits count.
    #[inline(always)]
    pub fn get(&self, number: u8) -> &Timers {
        &self.sets[usize::from(number) % TIMER_SETS]
    }

    /// Sets for the policy after this one's, `settled` if this one is in the tables: set 0 is `base`,
    /// and the numbers are those of `wanted`, in their order.
    ///
    /// # Errors
    /// With those that sessions may still have there are too many.
    pub fn following(
        &self,
        settled: bool,
        base: Timers,
        wanted: &[Timers],
    ) -> Result<(TimerSets, Vec<u8>), TooManyTimers> {
        let before = if settled { self.wanted } else { self.kept };
        let mut next = TimerSets {
            sets: self.sets,
            wanted: 1,
            kept: before | 1,
        };
        next.sets[0] = base;
        let number = |timers: &Timers| {
            let known = |at: &usize| next.kept >> at & 1 == 1 && next.sets[*at] == *timers;
            let unused = |at: &usize| next.kept >> at & 1 == 0;
            let place = (0..TIMER_SETS).find(known);
            let place = place.or_else(|| (0..TIMER_SETS).find(unused));
            let at = place.ok_or(TooManyTimers)?;
            next.sets[at] = *timers;
            next.wanted |= 1 << at;
            next.kept |= 1 << at;
            Ok(at as u8)
        };
        let numbers = wanted.iter().map(number).collect::<Result<_, _>>()?;
        Ok((next, numbers))
    }
}

impl From<Timers> for TimerSets {
    /// One set, for all.
    fn from(base: Timers) -> TimerSets {
        TimerSets {
            sets: [base; TIMER_SETS],
            wanted: 1,
            kept: 1,
        }
    }
}

impl PartialEq for TimerSets {
    fn eq(&self, other: &TimerSets) -> bool {
        let same = |at: usize| self.wanted >> at & 1 == 0 || self.sets[at] == other.sets[at];
        self.wanted == other.wanted && (0..TIMER_SETS).all(same)
    }
}

impl Eq for TimerSets {}

impl Deref for TimerSets {
    type Target = Timers;

    #[inline(always)]
    fn deref(&self) -> &Timers {
        &self.sets[0]
    }
}

impl DerefMut for TimerSets {
    fn deref_mut(&mut self) -> &mut Timers {
        &mut self.sets[0]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn idle(tcp_idle_timeout_ms: u32) -> Timers {
        Timers {
            tcp_idle_timeout_ms,
            ..Timers::RFC
        }
    }

    #[test]
    fn a_number_means_the_same_until_no_session_can_have_it() {
        let first = TimerSets::from(Timers::RFC);
        let (second, numbers) = first
            .following(true, idle(1), &[idle(2), idle(1), idle(3)])
            .unwrap();
        assert_eq!(numbers, [1, 0, 2]);
        assert_eq!(
            (*second, *second.get(1), *second.get(2)),
            (idle(1), idle(2), idle(3))
        );
        // Not in the tables yet: 1 and 2 keep their meaning, wanted or not.
        let (third, numbers) = second
            .following(false, idle(1), &[idle(3), idle(4)])
            .unwrap();
        assert_eq!(numbers, [2, 3]);
        assert_eq!(*third.get(1), idle(2));
        // In the tables: 1 is free.
        let (fourth, numbers) = third.following(true, idle(1), &[idle(5), idle(4)]).unwrap();
        assert_eq!(numbers, [1, 3]);
        assert_eq!(*fourth.get(1), idle(5));
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let many: Vec<Timers> = (1..TIMER_SETS as u32 + 1).map(idle).collect();
        let first = TimerSets::from(Timers::RFC);
        assert_eq!(
            first.following(true, Timers::RFC, &many),
            Err(TooManyTimers)
        );
        let (full, _) = first.following(true, Timers::RFC, &many[1..]).unwrap();
        // Sessions have all of them until the next policy is in the tables.
        assert!(full.following(true, Timers::RFC, &many[..1]).is_err());
        let (few, _) = full.following(true, Timers::RFC, &many[5..9]).unwrap();
        assert!(few.following(true, Timers::RFC, &many[..1]).is_ok());
        assert!(few.following(false, Timers::RFC, &many[..1]).is_err());
        assert!(full.following(false, Timers::RFC, &many[..1]).is_err());
        assert!(full.following(false, Timers::RFC, &many[5..9]).is_ok());
    }
}
