//! Who is at the other end of a Unix socket (unix(7)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// More groups than this no process has (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;

/// The supplementary groups that the peer had when it connected (SO_PEERGROUPS).
///
/// # Errors
/// The kernel's refusal.
pub fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let size = size_of_val(groups.as_slice());
        let mut len = size as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to the vector, which has as many and outlives
        // the call, and the length to `len`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result == 0 {
            groups.truncate(len as usize / size_of::<u32>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        let more = groups.len() * 2;
        if error.raw_os_error() != Some(libc::ERANGE) || more > 2 * GROUPS_MAX {
            return Err(error);
        }
        groups.resize(more, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_has_the_groups_of_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own = nix::unistd::getgroups().unwrap();
        let own: Vec<u32> = own.into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(groups(one.as_fd()).unwrap(), own);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(groups(file.as_fd()).is_err());
    }
}
