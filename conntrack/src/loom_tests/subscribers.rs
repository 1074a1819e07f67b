//! Keys of subscribers: one an address, and nothing that counts under a key is lost when it becomes
//! another address's.

use super::*;
use crate::config::Quotas;
use crate::subscriber::Quota;
use crate::verdict::Refusal;
use std::net::Ipv4Addr;

/// A policy that lets a subscriber have one session, and make two mappings at once.
fn at() -> At<'static> {
    static POLICY: std::sync::OnceLock<Policy> = std::sync::OnceLock::new();
    let policy = POLICY.get_or_init(|| {
        let mut policy = policy_of(EIM);
        policy.limits.quotas = Quotas {
            sessions: [Some(1); 3],
            mappings_per_second: Some(1),
            mapping_burst: 2,
            ..Quotas::NONE
        };
        policy
    });
    At { policy, now: NOW }
}

fn host(number: u8) -> Ipv4Addr {
    internal(number).addr
}

fn enroll(memory: &Memory, number: u8) -> Result<u32, Refusal> {
    memory.nat().enroll(&at(), host(number))
}

/// Leaves one of the eight keys to hosts 1 and 2.
fn crowd(memory: &Memory) {
    for number in 10..10 + LINE_WORDS as u8 - 1 {
        enroll(memory, number).unwrap();
    }
}

/// Opens a session of a host as far as its counts go.
fn charge(memory: &Memory, number: u8) -> Result<u32, Refusal> {
    let nat = memory.nat();
    let subscriber = enroll(memory, number)?;
    let charged = nat.charge(&at(), subscriber, Quota::Sessions, PROTOCOL);
    assert_eq!(charged, Ok(()));
    nat.subscribers.leave(subscriber);
    Ok(subscriber)
}

/// What counts under the keys of a host: of one at most.
fn users(memory: &Memory, number: u8) -> Option<u32> {
    let subscribers = memory.nat().subscribers;
    let keys = subscribers.all();
    let mut users =
        keys.filter_map(|(_, address, users)| (address == host(number)).then_some(users));
    let first = users.next();
    assert_eq!(users.next(), None, "host {number} has two keys");
    first
}

/// Two workers, one new subscriber: one key, in which both count. Its rate is its own from the
/// start, whoever had the key before.
#[test]
fn loom_a_new_subscriber_has_one_key() {
    let admitted = |memory: &Memory| {
        let number = enroll(memory, 1).unwrap();
        let admitted = memory.nat().charge_rate(&at(), number);
        (number, admitted)
    };
    race(
        Some(3),
        |memory| {
            crowd(memory);
            let number = enroll(memory, 2).unwrap();
            let nat = memory.nat();
            for _ in 0..2 {
                assert_eq!(nat.charge_rate(&at(), number), Ok(()));
            }
            let more = nat.charge_rate(&at(), number);
            assert_eq!(more, Err(Refusal::SubscriberRate));
            nat.subscribers.leave(number);
        },
        admitted,
        admitted,
        |memory, left, right| {
            assert_eq!(left, right);
            assert_eq!(left.1, Ok(()), "the rate of another one");
            assert_eq!((users(memory, 1), users(memory, 2)), (Some(2), None));
            let more = memory.nat().charge_rate(&at(), left.0);
            assert_eq!(more, Err(Refusal::SubscriberRate));
        },
    );
}

/// The last that counts under a key ends while another subscriber looks for one: it gets this key
/// with nothing in it, or none.
#[test]
fn loom_a_key_that_is_left_becomes_anothers() {
    race(
        Some(3),
        |memory| {
            crowd(memory);
            charge(memory, 2).unwrap();
        },
        |memory| memory.nat().discharge(host(2), Quota::Sessions, PROTOCOL),
        |memory| charge(memory, 1),
        |memory, (), charged| {
            let counts = match charged {
                Ok(number) => memory.nat().subscribers.counts(number, PROTOCOL),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::SubscribersFull);
                    (0, 0)
                }
            };
            let has = charged.is_ok();
            assert_eq!(counts, (u32::from(has), 0));
            let should = if has {
                (Some(1), None)
            } else {
                (None, Some(0))
            };
            assert_eq!((users(memory, 1), users(memory, 2)), should);
        },
    );
}

/// What a subscriber had ends while it opens something else: both are counted.
#[test]
fn loom_a_key_is_left_and_joined() {
    race(
        None,
        |memory| {
            charge(memory, 1).unwrap();
        },
        |memory| memory.nat().discharge(host(1), Quota::Sessions, PROTOCOL),
        |memory| enroll(memory, 1).unwrap(),
        |memory, (), number| {
            assert_eq!(users(memory, 1), Some(1));
            let counts = memory.nat().subscribers.counts(number, PROTOCOL);
            assert_eq!(counts, (0, 0));
        },
    );
}

/// A subscriber comes back to its key while another one takes it: one of them has it, the other
/// none.
#[test]
fn loom_a_key_is_joined_or_claimed() {
    race(
        Some(3),
        |memory| {
            crowd(memory);
            let number = enroll(memory, 1).unwrap();
            memory.nat().subscribers.leave(number);
        },
        |memory| enroll(memory, 1),
        |memory| enroll(memory, 2),
        |memory, left, right| {
            assert!(left.is_ok() ^ right.is_ok(), "{left:?} {right:?}");
            let should = match left {
                Ok(_) => (Some(1), None),
                Err(_) => (None, Some(1)),
            };
            assert_eq!((users(memory, 1), users(memory, 2)), should);
        },
    );
}
