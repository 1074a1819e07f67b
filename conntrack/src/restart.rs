//! Making tables, and taking them over after the process that used them is gone.

use std::sync::atomic::Ordering::{Relaxed, Release};

use crate::layout::{MAGIC, TableSize, header, layout_word};
use crate::nat::Nat;
use crate::time::Random;
use crate::word::Word;

/// What ties tables to one boot of one machine: the clock of their stamps restarts with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Linux: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: [u8; 16],
}

impl Identity {
    fn words(&self) -> [u64; 2] {
        let number = u128::from_le_bytes(self.boot_id);
        [number as u64, (number >> 64) as u64]
    }
}

/// Why tables cannot be made or taken over. Where it says so, making new ones helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// `sessions_max` or `addresses_max` is out of range.
    Size,
    /// The memory is smaller than the size needs.
    Memory,
    /// No tables, or half made ones: make new ones.
    Absent,
    /// Made by a version with another layout: make new ones.
    Layout,
    /// Made for another size: make new ones.
    OtherSize,
    /// Made in another boot: make new ones.
    OtherBoot,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OpenError::Size => "sessions_max or addresses_max is out of range",
            OpenError::Memory => "the memory is too small for the tables",
            OpenError::Absent => "there are no complete tables",
            OpenError::Layout => "the tables have another version's layout",
            OpenError::OtherSize => "the tables have another size",
            OpenError::OtherBoot => "the tables are of another boot",
        })
    }
}

impl std::error::Error for OpenError {}

impl<'m, W: Word> Nat<'m, W> {
    /// Makes empty tables in the first words of `words` and `owned` (more are left alone),
    /// whatever was there. Errors: [`OpenError::Size`], [`OpenError::Memory`].
    pub fn create(
        words: &'m [W],
        owned: &'m [W],
        size: TableSize,
        identity: Identity,
        random: &mut impl Random,
    ) -> Result<Nat<'m, W>, OpenError> {
        let (words, owned) = fitting(words, owned, size)?;
        words[header::MAGIC].store(0, Release);
        for word in words.iter().chain(owned) {
            word.store(0, Relaxed);
        }
        for (place, value) in expected(size, identity) {
            words[place].store(value, Relaxed);
        }
        for i in 0..2 {
            words[header::KEYS + i].store(random.next_u64(), Relaxed);
        }
        words[header::MAGIC].store(MAGIC, Release);
        Ok(Nat::over(words, owned, size))
    }
}

/// The words of a header that must be as expected, each with what it says if it is not.
fn expected(size: TableSize, identity: Identity) -> [(usize, u64); 4] {
    let [low, high] = identity.words();
    [
        (header::LAYOUT, layout_word()),
        (
            header::SIZE,
            u64::from(size.sessions_max) << 32 | u64::from(size.addresses_max),
        ),
        (header::BOOT, low),
        (header::BOOT + 1, high),
    ]
}

fn fitting<'m, W>(
    words: &'m [W],
    owned: &'m [W],
    size: TableSize,
) -> Result<(&'m [W], &'m [W]), OpenError> {
    if !size.valid() {
        return Err(OpenError::Size);
    }
    let words = words.get(..size.words()).ok_or(OpenError::Memory)?;
    let owned = owned.get(..size.owned_words()).ok_or(OpenError::Memory)?;
    Ok((words, owned))
}
