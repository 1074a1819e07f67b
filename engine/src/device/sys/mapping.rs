//! A memory mapping that is unmapped when it is dropped.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Bytes of a huge page where `MAP_HUGETLB` is tried.
const HUGE_PAGE: usize = 2 << 20;

/// A shared, writable mapping. Owns the address range.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a Mapping is an address range with no thread affinity; whoever reads or writes it through
// `base` argues for the access there.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out addresses only, no access.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn map(len: usize, flags: libc::c_int, fd: libc::c_int, offset: i64) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists;
        // the result is checked before use.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("mmap returned the null page"))?;
        Ok(Mapping { base, len })
    }

    /// Maps `len` bytes of a file or ring at `offset`. An empty mapping is an error (`EINVAL`).
    pub fn shared(fd: BorrowedFd<'_>, len: usize, offset: i64) -> io::Result<Mapping> {
        Mapping::map(
            len,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            offset,
        )
    }

    /// Zeroed memory of at least `len` bytes: from reserved huge pages if there are enough of them,
    /// else ordinary pages with a wish for transparent huge ones.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let huge = len.next_multiple_of(HUGE_PAGE);
        if let Ok(mapping) = Mapping::map(huge, flags | libc::MAP_HUGETLB, -1, 0) {
            return Ok(mapping);
        }
        let mapping = Mapping::map(len, flags, -1, 0)?;
        // SAFETY: the range is the mapping just made; the advice changes no contents. A refusal
        // only means small pages.
        unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(mapping)
    }

    /// Zeroed memory of `len` bytes in ordinary pages, whatever the system's wish for huge ones.
    pub fn small(len: usize) -> io::Result<Mapping> {
        let mapping = Mapping::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        // SAFETY: the range is the mapping just made; the advice changes no contents. A kernel
        // without huge pages refuses it, which is as good.
        unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
        Ok(mapping)
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the mapping for the life of the process and gives its first `words` words.
    ///
    /// # Panics
    /// If the mapping is shorter.
    pub fn leak_words(self, words: usize) -> &'static [AtomicU64] {
        assert!(
            words.checked_mul(8).is_some_and(|bytes| bytes <= self.len),
            "mapping too short"
        );
        let base = self.base.as_ptr().cast::<AtomicU64>();
        std::mem::forget(self);
        // SAFETY: the mapping is page-aligned, at least `words * 8` bytes long (asserted), never
        // unmapped any more, and every access through the slice is atomic, so that other processes
        // and the kernel may change it at any time.
        unsafe { std::slice::from_raw_parts(base, words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of a mapping that only this value owns.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn anonymous_memory_is_zero_and_writable() {
        let words = Mapping::anonymous(3 * 4096).unwrap().leak_words(3 * 512);
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        words[1535].store(7, Ordering::Relaxed);
        assert_eq!(words[1535].load(Ordering::Relaxed), 7);
    }

    #[test]
    #[should_panic(expected = "too short")]
    fn words_beyond_the_mapping_are_refused() {
        let mapping = Mapping::anonymous(4096).unwrap();
        let beyond = mapping.len() / 8 + 1;
        mapping.leak_words(beyond);
    }
}
