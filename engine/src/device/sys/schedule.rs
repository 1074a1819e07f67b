//! Under which policy the kernel schedules a thread (sched(7)).
#![allow(unsafe_code)]

use std::io;

/// Lets the calling thread run before all threads of ordinary policies, and before those of lower
/// priority (SCHED_FIFO, 1 to 99), until it sleeps. Threads and processes that it starts later are
/// ordinary ones.
///
/// # Errors
/// The kernel's refusal: `PermissionDenied` without CAP_SYS_NICE and above RLIMIT_RTPRIO, or in a
/// control group without real-time time; `InvalidInput` for another priority. Nothing has changed.
pub fn set_fifo(priority: u32) -> io::Result<()> {
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // The kernel's `struct sched_param` is one int; that of some C libraries is longer.
    let param = libc::c_int::try_from(priority).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads one int, which outlives the call. 0 is the calling thread. The system
    // call itself, as musl's function of this name only fails.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const param) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_that_there_is_not_is_refused() {
        for priority in [0, 100, u32::MAX] {
            let error = set_fifo(priority).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{priority}");
        }
    }
}
