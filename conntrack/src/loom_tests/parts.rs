//! Each structure alone.

use super::*;
use crate::choose::Kind;
use crate::half::{Half, Side, being_written};
use crate::mapping::{Mapping, NewMapping};
use crate::memo::Remote;
use crate::meta::Meta;
use crate::port::Cell;
use crate::tcp::State;
use crate::verdict::Direction;
use std::sync::atomic::Ordering::{Acquire, Release};

fn nothing(_: &Memory) {}

fn index(memory: &Memory) -> Index<'_, AtomicU64> {
    Index::new(&memory.indexes[0], &memory.header[header::STRAYS], 4)
}

fn has(memory: &Memory, number: u32) -> bool {
    let found = index(memory).find(9, |found| (found == number).then_some(()));
    found.is_some()
}

fn side(byte: u8) -> Side {
    let end = Endpoint::new([byte; 4].into(), byte.into());
    Side {
        tuple: Tuple {
            protocol: PROTOCOL,
            source: end,
            destination: end,
        },
        source: end,
        destination: end,
        direction: Direction::Outbound,
        mapping: byte.into(),
        shared: false,
    }
}

fn rewrite_half(half: Half<'_, AtomicU64>, byte: u8) {
    let free = || Some(half.words[0].load(Relaxed)).filter(|&control| !being_written(control));
    while !free().is_some_and(|control| half.lock(control)) {
        loom::thread::yield_now();
    }
    half.fill(&side(byte));
    half.unlock(Meta::new(PROTOCOL, Direction::Outbound, State::Init));
}

/// A reader next to a writer sees the old record or the new one, never a mixture.
#[test]
fn loom_a_reader_never_sees_a_torn_half() {
    race(
        None,
        |memory| rewrite_half(memory.nat().half(2), 1),
        |memory| rewrite_half(memory.nat().half(2), 2),
        |memory| {
            let seen = memory.nat().half(2).read().unwrap();
            let whole = side(seen.mapping() as u8);
            assert_eq!(seen.tuple(), whole.tuple);
            assert_eq!(seen.written(), (whole.source, whole.destination));
            // One write is two steps of the sequence.
            assert_eq!(seen.sequence(), 2 * seen.mapping());
        },
        |_, (), ()| {},
    );
}

/// Whoever takes the write bit sees all that its holder before wrote.
#[test]
fn loom_a_writer_sees_the_writer_before() {
    race(
        None,
        |memory| rewrite_half(memory.nat().half(2), 1),
        |memory| rewrite_half(memory.nat().half(2), 2),
        |memory| {
            let half = memory.nat().half(2);
            let control = half.words[0].load(Relaxed);
            if !being_written(control) && half.lock(control) {
                let held = half.read_held();
                assert_eq!(held.tuple(), side(held.mapping() as u8).tuple);
                assert_eq!(u64::from(held.mapping()), control >> 33);
                half.unlock_unchanged(control);
            }
        },
        |_, (), ()| {},
    );
}

/// Two writers with the same view: exactly one gets the write bit.
#[test]
fn loom_one_of_two_writers_wins() {
    let lock = |memory: &Memory| memory.nat().half(2).lock(0);
    race(None, nothing, lock, lock, |_, left, right| {
        assert!(left ^ right)
    });
}

/// Whoever finds an entry sees the record that was written before it was entered.
#[test]
fn loom_an_entry_is_found_after_its_record() {
    let create = |memory: &Memory| {
        memory.extra.store(7, Relaxed);
        assert!(index(memory).insert(9, 1));
    };
    let look_up = |memory: &Memory| {
        index(memory).find(9, |number| {
            assert_eq!((number, memory.extra.load(Relaxed)), (1, 7));
            Some(())
        });
    };
    race(None, nothing, create, look_up, |_, (), ()| {});
}

/// Two entries share a word: neither insertion nor removal loses the other one's.
#[test]
fn loom_entries_of_one_word_do_not_disturb_each_other() {
    let insert = |memory: &Memory| {
        assert!(index(memory).insert(9, 2));
        assert!(has(memory, 2));
    };
    race(
        Some(3),
        |memory| assert!(index(memory).insert(9, 1)),
        |memory| assert!(index(memory).remove(9, 1)),
        insert,
        |memory, (), ()| {
            assert!(!has(memory, 1) && has(memory, 2));
            assert!(index(memory).remove(9, 2) && index(memory).entries().count() == 0);
        },
    );
}

/// Entry 12 shares its word with tags: an insertion there and a removal beside it do not disturb each
/// other, and neither do the ways of one entry 12 out and another one in.
#[test]
fn loom_the_entry_without_a_tag_and_the_tags_of_its_word() {
    fn fill(memory: &Memory) {
        for hash in 100..112 {
            assert!(index(memory).insert(hash, 3));
        }
    }
    let insert = |memory: &Memory| {
        assert!(index(memory).insert(9, 1));
        assert!(has(memory, 1));
    };
    let beside = |memory: &Memory| assert!(index(memory).remove(108, 3));
    race(Some(3), fill, insert, beside, |memory, (), ()| {
        assert!(has(memory, 1) && index(memory).entries().count() == 12);
    });
    let full = |memory: &Memory| {
        fill(memory);
        assert!(index(memory).insert(9, 2));
    };
    let replace = |memory: &Memory| assert!(index(memory).remove(9, 2));
    let try_insert = |memory: &Memory| index(memory).insert(9, 1);
    race(Some(3), full, replace, try_insert, |memory, (), entered| {
        assert!(!has(memory, 2) && has(memory, 1) == entered);
    });
}

/// Stripes that are asked for in two orders exclude each other and never lock for good.
#[test]
fn loom_stripes_exclude() {
    fn count(memory: &Memory, hashes: [u64; 2]) {
        let held = memory.nat().locks.hold(hashes);
        assert!(held.is_ok());
        memory.extra.store(memory.extra.load(Relaxed) + 1, Relaxed);
    }
    race(
        None,
        nothing,
        |memory| count(memory, [1 << 16, 0]),
        |memory| count(memory, [0, 1 << 16]),
        |memory, (), ()| assert_eq!(memory.extra.load(Relaxed), 2),
    );
}

/// A free list gives no number to two, though numbers come back to it meanwhile.
#[test]
fn loom_a_pool_gives_no_number_twice() {
    race(
        None,
        |memory| {
            let pool = memory.nat().sessions;
            assert_eq!([pool.pop(), pool.pop()], [Some(1), Some(2)]);
            pool.push(2);
            pool.push(1);
        },
        |memory| {
            let pool = memory.nat().sessions;
            let (first, second) = (pool.pop(), pool.pop());
            first.into_iter().for_each(|number| pool.push(number));
            second
        },
        |memory| memory.nat().sessions.pop(),
        |memory, theirs, mine| {
            let rest = memory.nat().sessions.pop();
            let mut all: Vec<u32> = [mine, theirs, rest].into_iter().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, [1, 2]);
        },
    );
}

fn new_mapping(byte: u8) -> NewMapping {
    NewMapping {
        protocol: PROTOCOL,
        internal: Endpoint::new([byte; 4].into(), byte.into()),
        external: Endpoint::new([byte; 4].into(), byte.into()),
        slot: byte.into(),
        shared: true,
        counted: false,
        open: false,
        timers: 0,
    }
}

fn mapping(memory: &Memory) -> Mapping {
    memory.nat().mappings.read(1).unwrap()
}

/// The record of a mapping that ends becomes another mapping's: a reader sees one or the other, and
/// what it joins is what it saw.
#[test]
fn loom_a_reader_never_sees_a_torn_mapping() {
    let replace = |memory: &Memory| {
        let mappings = memory.nat().mappings;
        let ended = mappings.kill(&mapping(memory));
        if ended {
            mappings.write(1, &new_mapping(2), 6);
        }
        ended
    };
    let join = |memory: &Memory| {
        let seen = mapping(memory);
        if !seen.alive() {
            return None;
        }
        let expected = new_mapping(seen.slot as u8);
        assert_eq!(seen.internal, expected.internal);
        assert_eq!(seen.external, expected.external);
        let joined = memory.nat().mappings.join(&seen);
        joined.then_some(seen.internal)
    };
    race(
        None,
        |memory| {
            let mappings = memory.nat().mappings;
            mappings.write(1, &new_mapping(1), 5);
            assert_eq!(mappings.leave(1), 0);
        },
        replace,
        join,
        |memory, replaced, joined| {
            let now = mapping(memory);
            assert!(joined.is_none_or(|internal| internal == now.internal));
            let sessions = u32::from(replaced) + u32::from(joined.is_some());
            assert_eq!(now.sessions(), sessions);
        },
    );
}

/// Of a session that joins and the end of the mapping, one comes first: no session is under a dead
/// mapping.
#[test]
fn loom_a_mapping_is_joined_or_ended() {
    race(
        None,
        |memory| memory.nat().mappings.write(1, &new_mapping(1), 5),
        |memory| {
            let (mappings, seen) = (memory.nat().mappings, mapping(memory));
            mappings.leave(1) == 0 && mappings.kill(&seen)
        },
        |memory| memory.nat().mappings.join(&mapping(memory)),
        |memory, ended, joined| {
            assert!(joined ^ ended, "joined {joined}, ended {ended}");
            let now = mapping(memory);
            assert_eq!((now.alive(), now.sessions()), (joined, u32::from(joined)));
        },
    );
}

/// Limits are counted by compare-and-swap: of two who want the last place one gets it.
#[test]
fn loom_a_limit_is_not_passed() {
    let admit = |memory: &Memory| memory.nat().mappings.admit(1, 1);
    race(
        None,
        |memory| memory.nat().mappings.write(1, &new_mapping(1), 5),
        admit,
        admit,
        |memory, left, right| {
            assert!(left ^ right);
            assert_eq!(memory.nat().mappings.inbound(1), 1);
        },
    );
}

fn claim(memory: &Memory, port: u16, mapping: u32) -> bool {
    let claimed = memory
        .nat()
        .ports
        .claim(place(port), Cell::Exclusive(mapping));
    claimed.is_ok()
}

/// A port that one worker gives back and another takes: cell, bit and counts agree, and whoever
/// has it has its bit.
#[test]
fn loom_a_port_is_given_back_and_taken() {
    race(
        None,
        |memory| assert!(claim(memory, 1, 1)),
        |memory| memory.nat().ports.release(place(1), 1, None),
        |memory| {
            let taken = claim(memory, 1, 2);
            let ports = memory.nat().ports;
            let mine =
                || ports.cell(place(1)) == Cell::Exclusive(2) && ports.is_owned(0, PROTOCOL, 1);
            assert!(!taken || mine());
            taken
        },
        |memory, (), taken| memory.assert_ports(u64::from(taken)),
    );
}

/// Two sessions on one overloaded port, and a neighbour in the same word.
#[test]
fn loom_an_overloaded_port_is_shared() {
    race(
        Some(2),
        nothing,
        |memory| {
            let ports = memory.nat().ports;
            ports.join(place(2)).unwrap();
            ports.leave(place(2));
        },
        |memory| {
            let ports = memory.nat().ports;
            assert!(claim(memory, 3, 1));
            ports.join(place(2)).unwrap();
            assert!(ports.is_owned(0, PROTOCOL, 2));
        },
        |memory, (), ()| {
            assert_eq!(memory.nat().ports.cell(place(2)), Cell::Overloaded(1));
            memory.assert_ports(2);
        },
    );
}

/// The last free port is fought for: one gets it.
#[test]
fn loom_the_last_port_is_found_by_one() {
    let find = |memory: &Memory| {
        let ports = memory.nat().ports;
        let set = &policy(EIM).addresses[0].ports[0];
        ports.choose_free(0, PROTOCOL, (set, Kind::ALL), 0, |port| {
            claim(memory, port, 1).then_some(port)
        })
    };
    race(
        Some(2),
        |memory| assert!(claim(memory, 1, 9)),
        find,
        find,
        |memory, left, right| {
            assert!([(None, Some(2)), (Some(2), None)].contains(&(left, right)));
            memory.assert_ports(2);
        },
    );
}

/// A search that found nothing, and a port that was given back meanwhile: it is not forgotten.
#[test]
fn loom_a_port_given_back_ends_exhaustion() {
    race(
        None,
        |memory| assert!(claim(memory, 1, 1)),
        |memory| memory.nat().ports.release(place(1), 1, None),
        |memory| {
            let ports = memory.nat().ports;
            let before = ports.look(0, PROTOCOL).ok().unwrap();
            if !claim(memory, 1, 2) {
                ports.note_exhausted(0, PROTOCOL, &before);
            }
        },
        |memory, (), ()| assert!(memory.nat().ports.look(0, PROTOCOL).is_ok()),
    );
}

fn remote() -> Remote {
    Remote {
        protocol: PROTOCOL,
        endpoint: flow(1).destination,
        slot: 0,
    }
}

/// The same for a remote endpoint in `edm`.
#[test]
fn loom_a_released_remote_is_not_exhausted() {
    race(
        None,
        |memory| memory.extra.store(1, Relaxed),
        |memory| {
            memory.extra.store(0, Release);
            memory.nat().memos.release(&remote(), 1);
        },
        |memory| {
            let memos = memory.nat().memos;
            let before = memos.look(&remote(), 7).ok().unwrap();
            if memory.extra.load(Acquire) == 1 {
                memos.set(&remote(), &before);
            }
        },
        |memory, (), ()| assert!(memory.nat().memos.look(&remote(), 7).is_ok()),
    );
}
