//! The kernel's connection tracking: room for a million flows, how many it has, and emptying it.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::stage::Stage;
use crate::lab::{LabError, Namespace};

/// Entries: for a million flows, and for a second of new ones at any rate seen.
const ENTRIES_MAX: &str = "4194304";
/// Chains: short ones also with a million flows.
const CHAINS: &str = "1048576";
/// How long a silent UDP flow stays: longer than a measurement.
const TIMEOUT_S: &str = "600";

/// Makes room in the machine's table until the stage goes, and lets flows live through a
/// measurement.
///
/// # Errors
/// The kernel has no connection tracking.
pub fn make_room(stage: &Stage) -> Result<(), LabError> {
    stage.set_machine("/proc/sys/net/netfilter/nf_conntrack_max", ENTRIES_MAX)?;
    stage.set_machine("/sys/module/nf_conntrack/parameters/hashsize", CHAINS)?;
    for timeout in [
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
    ] {
        stage
            .gateway
            .set_sysctl(&format!("netfilter/{timeout}"), TIMEOUT_S)?;
    }
    Ok(())
}

/// How many flows the kernel tracks in a namespace.
///
/// # Errors
/// The kernel has no connection tracking.
pub fn count(namespace: &Namespace) -> Result<u64, LabError> {
    let text = namespace.sysctl("netfilter/nf_conntrack_count")?;
    Ok(text.parse().unwrap_or(0))
}

/// Forgets all flows of a namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn flush(namespace: &Namespace) -> Result<(), LabError> {
    namespace
        .run(request_flush)
        .map_err(LabError::system(format!(
            "emptying the conntrack table of {}",
            namespace.name()
        )))
}

/// Asks ctnetlink to delete every entry: a request without a tuple.
fn request_flush() -> io::Result<()> {
    // NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
    const DELETE: u16 = 1 << 8 | 2;
    const FLAGS: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    const HEADER: usize = 16;
    let mut request = [0; HEADER + 4];
    request[..4].copy_from_slice(&(HEADER as u32 + 4).to_ne_bytes());
    request[4..6].copy_from_slice(&DELETE.to_ne_bytes());
    request[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
    request[HEADER] = libc::AF_INET as u8;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // An acknowledgement is an error message whose number is 0.
    let number: Option<[u8; 4]> = answer[..length]
        .get(HEADER..HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok());
    match number.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("a short answer")),
    }
}
