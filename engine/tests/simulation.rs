//! Seeded worlds: hosts, a gateway, a bad network between them, and things that happen; judged by
//! an oracle that knows packets only. The clock is virtual.
//!
//! `EGRET_SIM_SEED=123 cargo test -p egret-engine --test simulation -- --nocapture` plays one world
//! again and prints all of it; `EGRET_SIM_SEEDS=1000` and `EGRET_SIM_FROM=1` say how many are
//! played, and from which seed on.
//!
//! Each world is played twice: with frames as AF_XDP hands them over, and with frames as the tun
//! driver does, whose checksums may be partial and which may stand for several packets.

mod simulation {
    pub mod changes;
    pub mod checks;
    pub mod delivery;
    pub mod dice;
    pub mod fragments;
    pub mod hosts;
    pub mod journal;
    pub mod network;
    pub mod oracle;
    pub mod packet;
    pub mod play;
    pub mod refusals;
    pub mod rules;
    pub mod script;
    pub mod sessions;
    pub mod strangers;
    pub mod together;
}

use std::panic::{AssertUnwindSafe, catch_unwind};

use simulation::journal::Journal;
use simulation::play::{Play, Tally};

/// Worlds in a usual run.
const SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

/// Plays one world, with frames as from the tun driver if it `tells`; what went wrong, in words.
fn play(seed: u64, tells: bool, aloud: bool) -> Result<Tally, String> {
    let mut journal = Journal::new(aloud);
    let played = catch_unwind(AssertUnwindSafe(|| {
        Play::new(seed, tells, &mut journal)?.run()
    }));
    let result = played.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or(panic.downcast_ref::<&str>().map(|words| (*words).into()));
        Err(format!("panic: {}", words.unwrap_or_default()))
    });
    result.map_err(|what| {
        format!(
            "{journal}\nseed {seed}: {what}\nreplay: EGRET_SIM_SEED={seed} \
             cargo test -p egret-engine --test simulation {} -- --exact --nocapture",
            if tells {
                "worlds_of_the_tun_driver"
            } else {
                "worlds"
            }
        )
    })
}

#[test]
fn worlds() {
    play_all(false);
}

#[test]
fn worlds_of_the_tun_driver() {
    let sum = play_all(true);
    let worlds = sum.worlds;
    let dull = sum.together < 10 * worlds || sum.partial < 20 * worlds;
    assert!(worlds < SEEDS || !dull, "the worlds are dull: {sum:?}");
}

/// Plays as many worlds as are wanted; what they were like.
fn play_all(tells: bool) -> Tally {
    if let Some(seed) = number("EGRET_SIM_SEED") {
        let tally = play(seed, tells, true).unwrap_or_else(|what| panic!("{what}"));
        println!("seed {seed}: {tally:?}");
        return tally;
    }
    let from = number("EGRET_SIM_FROM").unwrap_or(1);
    let count = number("EGRET_SIM_SEEDS").unwrap_or(SEEDS);
    let (mut failed, mut sum) = (Vec::new(), Tally::default());
    for seed in from..from + count {
        match play(seed, tells, false) {
            Ok(tally) => sum.add(&tally),
            Err(what) => {
                // A few tell enough.
                if failed.len() < 3 {
                    println!("{what}\n");
                }
                failed.push(seed);
            }
        }
    }
    println!("{count} worlds: {sum:?}");
    assert!(
        failed.is_empty(),
        "{} of {count} worlds failed: {failed:?}",
        failed.len()
    );
    // Worlds in which nothing happens would prove nothing.
    if count >= SEEDS {
        let dull = sum.replies < 20 * count
            || sum.insisted < 20 * count
            || 10 * sum.refused < count
            || sum.calm == 0
            || sum.restarts == 0;
        assert!(!dull, "the worlds are dull: {sum:?}");
    }
    sum
}
