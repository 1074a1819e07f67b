//! Time and randomness as arguments.

/// A point in time: milliseconds since an epoch that outlives the process (Linux: boot,
/// `CLOCK_BOOTTIME`), so that tables in a file keep their meaning over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

impl Time {
    /// This time and `ms` milliseconds.
    pub const fn plus_ms(self, ms: u64) -> Time {
        Time(self.0 + ms)
    }
}

/// A source of unpredictable numbers (RFC 6056). The caller decides how good it is: a CSPRNG in
/// the gateway, a seeded generator in tests.
pub trait Random {
    /// The next 64 random bits.
    fn next_u64(&mut self) -> u64;
}
