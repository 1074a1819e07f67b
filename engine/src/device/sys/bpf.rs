//! The few bpf(2) calls that aya does not offer, and the mount namespace that pins live in.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chroot, fchdir};

/// Commands of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Runs a command of bpf(2) whose attributes are `attributes`.
///
/// # Safety
/// Every pointer among the attributes is valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are a live value of the stated size; the caller answers for pointers
    // in them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Opens the map, program or link that is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the path is a live string that ends in a zero byte.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: a descriptor just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes an array map of 8-byte values that can be mapped into memory (`BPF_F_MMAPABLE`, 5.5).
pub fn mappable_array(words: usize) -> io::Result<OwnedFd> {
    /// Start of the attributes of `BPF_MAP_CREATE`.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
        flags: u32,
    }
    const ARRAY: u32 = 2;
    const MMAPABLE: u32 = 1 << 10;
    let mut attributes = Attributes {
        kind: ARRAY,
        key_bytes: 4,
        value_bytes: 8,
        entries: u32::try_from(words).map_err(io::Error::other)?,
        flags: MMAPABLE,
    };
    // SAFETY: no pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: a descriptor just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What an XDP or tcx link connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The interface; 0 if it was removed or the link detached.
    pub ifindex: u32,
    /// Number of the program.
    pub program: u32,
}

/// What an XDP or tcx link connects. Fails with `InvalidData` for a link of another kind.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    /// Start of `struct bpf_link_info`, with the XDP part of its union.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        hole: u32,
        ifindex: u32,
        rest: [u32; 11],
    }
    #[repr(C)]
    struct Attributes {
        fd: u32,
        len: u32,
        info: u64,
    }
    const XDP: u32 = 6;
    const TCX: u32 = 11;
    let mut info = Info::default();
    let mut attributes = Attributes {
        fd: link.as_raw_fd() as u32,
        len: size_of::<Info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes to `info`, which is that long; any bytes are a
    // value of it.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    // The interface comes first in both parts of the union.
    if info.kind != XDP && info.kind != TCX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "neither an XDP link nor one of tcx",
        ));
    }
    Ok(LinkInfo {
        ifindex: info.ifindex,
        program: info.program,
    })
}

/// Detaches a link from its interface at once, whoever else holds it.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Runs `work` in the host's mount namespace: mounts that are made there outlive this process, even
/// if it was started by `ip netns exec`. The network namespace stays.
///
/// The host's is that of the machine's first process. Where that one is closed to us it is that of
/// the nearest ancestor that has both another network and another mount namespace: `ip netns exec`
/// changes these two. Where there is none, or it is ours already, `work` runs in place.
pub fn in_host_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(host) = Mounts::of(1).or_else(temporary_home) else {
        return Ok(work());
    };
    if host.namespace.is_own("mnt") {
        return Ok(work());
    }
    // A thread of its own, because a thread that shares its working directory with others must not
    // change its mount namespace.
    let entered = || {
        unshare(CloneFlags::CLONE_FS)?;
        setns(&host.namespace.0, CloneFlags::CLONE_NEWNS)?;
        fchdir(&host.root)?;
        chroot(".")?;
        Ok(work())
    };
    let result = std::thread::scope(|scope| scope.spawn(entered).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A namespace, held open.
struct Namespace(File);

impl Namespace {
    fn of(process: &str, kind: &str) -> io::Result<Namespace> {
        File::open(format!("/proc/{process}/ns/{kind}")).map(Namespace)
    }

    /// Is it that of the calling thread? An unreadable one is not.
    fn is_own(&self, kind: &str) -> bool {
        let identity = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
        let own = Namespace::of("thread-self", kind)
            .ok()
            .and_then(|own| identity(&own.0));
        own.is_some() && own == identity(&self.0)
    }
}

/// The mount namespace of a process, and its root there.
struct Mounts {
    namespace: Namespace,
    root: File,
}

impl Mounts {
    /// Of a process; `None` if they are closed to us.
    fn of(process: u32) -> Option<Mounts> {
        let namespace = Namespace::of(&process.to_string(), "mnt").ok()?;
        Some(Mounts {
            namespace,
            root: File::open(format!("/proc/{process}/root")).ok()?,
        })
    }
}

/// The mounts of the nearest ancestor that has another network and another mount namespace.
fn temporary_home() -> Option<Mounts> {
    let mut process = std::os::unix::process::parent_id();
    while process > 0 {
        let network = Namespace::of(&process.to_string(), "net").ok()?;
        let mounts = Mounts::of(process)?;
        if !network.is_own("net") && !mounts.namespace.is_own("mnt") {
            return Some(mounts);
        }
        process = parent_of(process)?;
    }
    None
}

/// Number of a process's parent.
fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // "NUMBER (NAME) STATE PARENT ...", where the name may hold anything.
    let behind = stat.rsplit_once(')')?.1;
    behind.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_found() {
        assert_eq!(
            parent_of(std::process::id()),
            Some(std::os::unix::process::parent_id())
        );
        assert_eq!(parent_of(u32::MAX), None);
    }

    #[test]
    fn own_namespaces_are_known() {
        let own = |kind| Namespace::of("thread-self", kind).unwrap().is_own(kind);
        assert!(own("mnt") && own("net"));
        assert!(!Namespace::of("thread-self", "net").unwrap().is_own("mnt"));
    }

    #[test]
    fn other_links_and_files_are_refused() {
        let file = File::open("/dev/null").unwrap();
        use std::os::fd::AsFd;
        assert!(link_info(file.as_fd()).is_err() && detach_link(file.as_fd()).is_err());
        assert!(open_pin(Path::new("/dev/null")).is_err());
    }
}
