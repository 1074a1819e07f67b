//! Words in a file of a memory file system: tables that outlive the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use nix::fcntl::{Flock, FlockArg, posix_fallocate};

use super::bpf;
use super::mapping::Mapping;

/// What the file was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There was none, or an empty one: all words are 0.
    Created,
    /// It had the right size: the words are what the last owner left.
    Kept,
    /// It had another size and was emptied: all words are 0.
    Resized,
}

/// Why the words cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemFileError {
    /// Another process holds the file.
    #[error("{0} is in use by another engine")]
    InUse(PathBuf),
    /// The path is something that is not a file of ours.
    #[error("{0} is not a regular file of this user")]
    NotOurs(PathBuf),
    /// There is not so much memory.
    #[error("{path}: {bytes} bytes: {source}; choose smaller tables or enlarge the tmpfs")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another system call failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Words in a locked file. The words stay mapped for the life of the process; the lock is held until
/// this value is dropped, so keep it as long as the words are used.
#[derive(Debug)]
pub struct MemFile {
    words: &'static [AtomicU64],
    found: Found,
    _lock: Option<Flock<File>>,
}

impl MemFile {
    /// Opens or creates the file (mode 0600), locks it, and maps `words` words of it. The memory is
    /// reserved at once, so that a full file system is an error here and not a signal later.
    pub fn open(path: &Path, words: usize) -> Result<MemFile, MemFileError> {
        let io = |source| MemFileError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(io)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::Error::EWOULDBLOCK)) => return Err(MemFileError::InUse(path.to_owned())),
            Err((_, error)) => return Err(io(error.into())),
        };
        let metadata = lock.metadata().map_err(io)?;
        if !metadata.is_file() || metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(MemFileError::NotOurs(path.to_owned()));
        }
        let bytes = words as u64 * 8;
        let found = match metadata.len() {
            0 => Found::Created,
            len if len == bytes => Found::Kept,
            _ => Found::Resized,
        };
        if found == Found::Resized {
            lock.set_len(0).map_err(io)?;
        }
        posix_fallocate(&*lock, 0, bytes as i64).map_err(|error| {
            // A file of the wrong size must not look like a kept one next time.
            let _ = lock.set_len(0);
            MemFileError::NoSpace {
                path: path.to_owned(),
                bytes,
                source: error.into(),
            }
        })?;
        let mapping = Mapping::shared(lock.as_fd(), words * 8, 0).map_err(io)?;
        Ok(MemFile {
            words: mapping.leak_words(words),
            found,
            _lock: Some(lock),
        })
    }

    /// Words in ordinary memory, for tests and where nothing shall outlive the process.
    pub fn anonymous(words: usize) -> io::Result<MemFile> {
        let words = Mapping::anonymous(words * 8)?.leak_words(words);
        Ok(MemFile {
            words,
            found: Found::Created,
            _lock: None,
        })
    }

    /// Words in ordinary memory of small pages, to compare with.
    pub fn small(words: usize) -> io::Result<MemFile> {
        let words = Mapping::small(words * 8)?.leak_words(words);
        Ok(MemFile {
            words,
            found: Found::Created,
            _lock: None,
        })
    }

    /// Words in a memory-mappable BPF array, which a program in the kernel could read. The map lives
    /// as long as the mapping: until the process ends.
    pub fn bpf_array(words: usize) -> io::Result<MemFile> {
        let map = bpf::mappable_array(words)?;
        let words = Mapping::shared(map.as_fd(), words * 8, 0)?.leak_words(words);
        Ok(MemFile {
            words,
            found: Found::Created,
            _lock: None,
        })
    }

    /// The words.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// What the file was when it was opened.
    pub fn found(&self) -> Found {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(PathBuf::from(format!(
                "/dev/shm/egret-test-{name}-{}",
                std::process::id()
            )))
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn words_outlive_the_owner() {
        let path = Scratch::new("kept");
        let first = MemFile::open(&path.0, 1000).unwrap();
        assert_eq!((first.found(), first.words().len()), (Found::Created, 1000));
        first.words()[999].store(42, Ordering::Relaxed);
        drop(first);
        let second = MemFile::open(&path.0, 1000).unwrap();
        assert_eq!(second.found(), Found::Kept);
        assert_eq!(second.words()[999].load(Ordering::Relaxed), 42);
        assert_eq!(std::fs::metadata(&path.0).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn another_size_starts_from_zero() {
        let path = Scratch::new("resized");
        MemFile::open(&path.0, 1000).unwrap().words()[0].store(42, Ordering::Relaxed);
        let second = MemFile::open(&path.0, 999).unwrap();
        assert_eq!(second.found(), Found::Resized);
        assert!(
            second
                .words()
                .iter()
                .all(|word| word.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn two_owners_are_refused() {
        let path = Scratch::new("locked");
        let _first = MemFile::open(&path.0, 10).unwrap();
        assert!(matches!(
            MemFile::open(&path.0, 10),
            Err(MemFileError::InUse(_))
        ));
    }

    #[test]
    fn links_and_too_much_are_refused() {
        let path = Scratch::new("link");
        std::os::unix::fs::symlink("/dev/null", &path.0).unwrap();
        assert!(MemFile::open(&path.0, 10).is_err());
        let path = Scratch::new("huge");
        let error = MemFile::open(&path.0, 1 << 50).unwrap_err();
        assert!(matches!(error, MemFileError::NoSpace { .. }), "{error}");
    }
}
