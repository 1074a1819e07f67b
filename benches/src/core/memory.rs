//! Memory for tables: in huge pages, in small ones, in a BPF array.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use conntrack::TableSize;
use engine::device::sys::memfile::MemFile;
use engine::world::Memory;

/// Bytes of a small page, in words.
const PAGE_WORDS: usize = 512;

/// What pages the tables lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// As large as the machine gives without being told to: reserved huge pages, transparent ones.
    Huge,
    /// 4 KiB.
    Small,
    /// A memory-mappable BPF array: 4 KiB pages, too.
    BpfArray,
}

impl Pages {
    /// What figures in other than huge pages have behind the test's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Pages::Huge => "",
            Pages::Small => "-small-pages",
            Pages::BpfArray => "-bpf-array",
        }
    }

    /// Memory for tables of this size, touched once so that no measured packet meets a page fault.
    ///
    /// # Errors
    /// There is not so much memory; no privilege to make a BPF array.
    pub fn allocate(self, size: TableSize) -> io::Result<Memory> {
        let words = |count| {
            let memory = match self {
                Pages::Huge => MemFile::anonymous(count),
                Pages::Small => MemFile::small(count),
                Pages::BpfArray => MemFile::bpf_array(count),
            }?;
            for word in memory.words().iter().step_by(PAGE_WORDS) {
                word.store(0, Relaxed);
            }
            Ok::<_, io::Error>(memory.words())
        };
        Ok(Memory {
            words: words(size.words())?,
            owned: words(size.owned_words())?,
        })
    }
}

/// Bytes of this process that lie in huge pages at the moment; 0 where the kernel does not tell.
pub fn huge_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kib = |line: &str| -> Option<u64> {
        let (key, rest) = line.split_once(':')?;
        let counted = matches!(
            key,
            "AnonHugePages" | "ShmemPmdMapped" | "Shared_Hugetlb" | "Private_Hugetlb"
        );
        counted.then(|| rest.trim().trim_end_matches(" kB").parse().ok())?
    };
    rollup.lines().filter_map(kib).sum::<u64>() << 10
}
