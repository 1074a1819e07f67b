//! The number that tells an instance's names and routes from those of others in its network namespace:
//! names of TAPs, policy rules and routing tables have no room for a name of 64 characters.
//!
//! It is recorded in `/run/egret/INSTANCE/number` as long as the instance has anything here, also after
//! a crash, and nobody else gets it meanwhile.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::config::RUN_DIR;

/// Name of the file, in the instance's directory.
pub const FILE: &str = "number";
/// How many instances one machine can have at a time.
pub const INSTANCES_MAX: u16 = 5000;

/// An instance's number, below [`INSTANCES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(u16);

impl Number {
    /// The number of an instance: the one that it has already, else a free one, recorded from now on.
    /// The caller holds the instance's lock.
    ///
    /// # Errors
    /// All are taken, or the record cannot be written.
    pub fn take(instance: &str) -> io::Result<Number> {
        Number::take_in(Path::new(RUN_DIR), instance)
    }

    /// The number by which what an instance left is found: the recorded one, else, as after the record
    /// was lost, the one that it gets first, unless that is another's. `None`: nothing can be its.
    pub fn of_remains(instance: &str) -> Option<Number> {
        Number::of_remains_in(Path::new(RUN_DIR), instance)
    }

    fn of_remains_in(root: &Path, instance: &str) -> Option<Number> {
        let first = first(instance);
        read(&root.join(instance)).or_else(|| (!taken(root).contains(&first)).then_some(first))
    }

    fn take_in(root: &Path, instance: &str) -> io::Result<Number> {
        let own = root.join(instance);
        fs::create_dir_all(&own)?;
        if let Some(number) = read(&own) {
            return Ok(number);
        }
        // One at a time. It ends with the file.
        let _lock = Flock::lock(File::open(root)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| io::Error::from(error))?;
        let taken = taken(root);
        // The same one again where it is free, so that an operator's scripts find it.
        let first = first(instance).0;
        let numbers = (0..INSTANCES_MAX).map(|step| (first + step) % INSTANCES_MAX);
        let free = numbers.map(Number).find(|number| !taken.contains(number));
        let number = free.ok_or_else(|| {
            io::Error::other(format!(
                "{INSTANCES_MAX} instances are recorded in {}, no more are possible: `egret detach \
                 --instance NAME` forgets a dead one",
                root.display()
            ))
        })?;
        fs::write(own.join(FILE), format!("{}\n", number.0))?;
        Ok(number)
    }

    /// It as an index.
    pub fn index(self) -> u32 {
        self.0.into()
    }

    /// Begins the names of TAPs of one kind: 10 characters of the 15 that a name may have.
    pub fn taps(self, kind: char) -> String {
        format!("egret{:04x}{kind}", self.0)
    }
}

#[cfg(test)]
impl Number {
    /// One for tests.
    pub(crate) fn of(number: u16) -> Number {
        Number(number)
    }
}

/// What is recorded in an instance's directory.
fn read(directory: &Path) -> Option<Number> {
    let text = fs::read_to_string(directory.join(FILE)).ok()?;
    let number = text.trim().parse().ok()?;
    (number < INSTANCES_MAX).then_some(Number(number))
}

/// The numbers that are recorded.
fn taken(root: &Path) -> Vec<Number> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter_map(|entry| read(&entry.path())).collect()
}

/// The number that an instance gets unless it is taken.
fn first(instance: &str) -> Number {
    Number((hash(instance) % u32::from(INSTANCES_MAX)) as u16)
}

/// FNV-1a.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two names with the same hash modulo the count of numbers.
    fn alike() -> (String, String) {
        let names = (0..).map(|n| format!("node-{n}"));
        let other = names.skip(1).find(|name| first(name) == first("node-0"));
        ("node-0".to_owned(), other.expect("there are more names"))
    }

    #[test]
    fn names_that_hash_alike_get_numbers_of_their_own() {
        let root = std::env::temp_dir().join(format!("egret-instance-{}", std::process::id()));
        let (one, other) = alike();
        assert_eq!(Number::of_remains_in(&root, &one), Some(first(&one)));
        let first = Number::take_in(&root, &one).unwrap();
        // What is another's is never taken for remains.
        assert_eq!(Number::of_remains_in(&root, &other), None);
        let second = Number::take_in(&root, &other).unwrap();
        assert_eq!(second.0, (first.0 + 1) % INSTANCES_MAX);
        assert_ne!(first.taps('t'), second.taps('t'));
        // Whatever comes and goes meanwhile.
        assert_eq!(Number::take_in(&root, &one).unwrap(), first);
        fs::remove_file(root.join(&one).join(FILE)).unwrap();
        assert_eq!(Number::take_in(&root, &other).unwrap(), second);
        assert_eq!(
            Number::take_in(&root, "third").unwrap(),
            read(&root.join("third")).unwrap()
        );
        assert_eq!(Number::take_in(&root, &one).unwrap(), first);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn names_of_taps_have_room_for_a_number_behind_them() {
        assert_eq!(Number(INSTANCES_MAX - 1).taps('p').len(), 10);
    }
}
