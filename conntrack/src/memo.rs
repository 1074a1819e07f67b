//! Remote endpoints known to be exhausted on an external address, so that refusing the next packet
//! to them costs no scan (`edm` only).
//!
//! A cell of four words, found by the remote's hash:
//! 0 the remote endpoint and the address slot, 1 state (generation << 8 | protocol << 1 | set),
//! 2 the epoch and the tick it was set in, 3 a released port worth trying.
//!
//! A memo holds for the rest of its tick (1.024 s): sessions may expire without being swept. An
//! exhausted remote has a session on every port, so all scans of a tick together look at no more
//! ports than there are sessions.
//!
//! A scan that found nothing may set its memo only if no session of a remote of this cell, and no
//! endpoint outside overloading (the epoch), was released since before the scan. A release bumps
//! the generation, then clears the mark: a memo set in between is cleared as well.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::endpoint::{Endpoint, Protocol};
use crate::hash::mix;
use crate::layout::{MEMO_WORDS, MEMOS};
use crate::word::Word;

/// A remote endpoint on an external address.
#[derive(Clone, Copy)]
pub(crate) struct Remote {
    pub protocol: Protocol,
    pub endpoint: Endpoint,
    pub slot: u16,
}

impl Remote {
    fn key(&self) -> u64 {
        u64::from(self.endpoint.addr.to_bits()) << 32
            | u64::from(self.endpoint.port) << 16
            | u64::from(self.slot)
    }

    fn place(&self) -> usize {
        mix(self.key()) as usize % MEMOS
    }

    fn mark(&self) -> u64 {
        (self.protocol.index() as u64) << 1 | 1
    }
}

/// What a cell looked like before a scan.
pub(crate) struct Before {
    state: u64,
    when: u64,
}

pub(crate) struct Memos<'m, W> {
    pub words: &'m [W],
    pub epoch: &'m W,
}

impl<W: Word> Memos<'_, W> {
    fn cell(&self, remote: &Remote) -> &[W; MEMO_WORDS] {
        &self.words.as_chunks().0[remote.place()]
    }

    /// `Err`: known to be exhausted. `Ok`: what a scan must show to [`Memos::set`].
    pub fn look(&self, remote: &Remote, tick: u32) -> Result<Before, ()> {
        let cell = self.cell(remote);
        let when = self.epoch.load(Acquire) << 32 | u64::from(tick);
        let state = cell[1].load(Acquire);
        let set = state & 0xff == remote.mark()
            && cell[0].load(Relaxed) == remote.key()
            && cell[2].load(Relaxed) == when;
        W::fence(Acquire);
        if set && cell[1].load(Relaxed) == state {
            Err(())
        } else {
            Ok(Before { state, when })
        }
    }

    /// Notes that a scan begun after `before` found nothing.
    pub fn set(&self, remote: &Remote, before: &Before) {
        let cell = self.cell(remote);
        let unset = (before.state >> 8).wrapping_add(1) << 8;
        if cell[1]
            .compare_exchange(before.state, unset, AcqRel, Relaxed)
            .is_err()
        {
            return;
        }
        W::fence(Release);
        cell[0].store(remote.key(), Relaxed);
        cell[2].store(before.when, Relaxed);
        // Fails if a session was released meanwhile: then the scan proves nothing.
        let _ = cell[1].compare_exchange(unset, unset | remote.mark(), AcqRel, Relaxed);
    }

    /// A session with this remote is gone, and `port` is free for it again.
    pub fn release(&self, remote: &Remote, port: u16) {
        let cell = self.cell(remote);
        cell[3].store(hint(remote, port), Relaxed);
        cell[1].fetch_add(1 << 8, AcqRel);
        cell[1].fetch_and(!0xff, AcqRel);
    }

    /// A port that was released for this remote (or one that shares the cell's hint), if any.
    pub fn hint(&self, remote: &Remote) -> Option<u16> {
        let word = self.cell(remote)[3].load(Relaxed);
        (word != 0 && word >> 16 == hint(remote, 0) >> 16).then_some(word as u16)
    }

    /// Voids all memos: an endpoint outside overloading was released, or the pool changed.
    pub fn void(&self) {
        self.epoch.fetch_add(1, AcqRel);
    }
}

fn hint(remote: &Remote, port: u16) -> u64 {
    remote.key() >> 16 << 16 | u64::from(port)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_memo_holds_until_a_release_or_a_new_epoch() {
        let words: Vec<AtomicU64> = (0..MEMOS * MEMO_WORDS).map(|_| AtomicU64::new(0)).collect();
        let epoch = AtomicU64::new(0);
        let memos = Memos {
            words: &words,
            epoch: &epoch,
        };
        let remote = Remote {
            protocol: Protocol::Udp,
            endpoint: Endpoint::new([203, 0, 113, 7].into(), 53),
            slot: 1,
        };
        let set = || memos.set(&remote, &memos.look(&remote, 7).ok().unwrap());
        set();
        assert!(memos.look(&remote, 7).is_err());
        assert!(memos.look(&Remote { slot: 2, ..remote }, 7).is_ok());
        assert!(
            memos
                .look(
                    &Remote {
                        protocol: Protocol::Tcp,
                        ..remote
                    },
                    7
                )
                .is_ok()
        );
        assert!(memos.look(&remote, 8).is_ok(), "another tick");
        memos.release(&remote, 4000);
        assert_eq!(memos.hint(&remote), Some(4000));
        assert!(memos.look(&remote, 7).is_ok());
        set();
        memos.void();
        assert!(memos.look(&remote, 7).is_ok());
        let before = memos.look(&remote, 7).ok().unwrap();
        memos.release(&remote, 4001);
        memos.set(&remote, &before);
        assert!(memos.look(&remote, 7).is_ok(), "released during the scan");
    }
}
