//! The only `unsafe` of this crate: asking the processor to load a cache line early.
#![allow(unsafe_code)]

/// Asks for the cache line at the start of `line`. A hint: it reads nothing and cannot fault.
#[inline(always)]
pub fn prefetch<T: ?Sized>(line: &T) {
    let address = std::ptr::from_ref(line).cast::<u8>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of every x86-64 and only hints; the address is of a live
    // reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM only hints, changes no register or flag, and the address is of a live reference.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
