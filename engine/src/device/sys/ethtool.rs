//! Driver name, queue counts and offloads of an interface (SIOCETHTOOL, linux/ethtool.h).
//!
//! Everything here concerns the network namespace of the calling thread.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use super::link::{control_socket, request};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// Number of the set of feature names.
const ETH_SS_FEATURES: u32 = 4;
/// Features that are asked for at most; the kernel has some sixty.
const FEATURES_MAX: usize = 128;
/// Bytes of a name (`ETH_GSTRING_LEN`).
const NAME_LEN: usize = 32;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;

/// Commands whose first word is the command and that read or write nothing beyond the structure.
///
/// # Safety
/// The structure is the one that its commands mean, in C layout, and any bytes are a value.
unsafe trait Command: Copy {}

/// `struct ethtool_value`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Value {
    cmd: u32,
    data: u32,
}
// SAFETY: two words, as in linux/ethtool.h.
unsafe impl Command for Value {}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawChannels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx_count: u32,
    tx_count: u32,
    other_count: u32,
    combined_count: u32,
}
// SAFETY: nine words, as in linux/ethtool.h.
unsafe impl Command for RawChannels {}

/// `struct ethtool_drvinfo`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 32 + 32 + 32 + 32 + 12 + 5 * 4],
}
// SAFETY: 196 bytes, the parts in the order of linux/ethtool.h.
unsafe impl Command for DriverInfo {}

/// `struct ethtool_sset_info` with room for one count.
#[repr(C)]
#[derive(Clone, Copy)]
struct SetInfo {
    cmd: u32,
    reserved: u32,
    mask: u64,
    count: [u32; 1],
}
// SAFETY: as in linux/ethtool.h; the kernel writes a count for each bit of `mask`, which has one.
unsafe impl Command for SetInfo {}

/// `struct ethtool_gstrings` with room for [`FEATURES_MAX`] names.
#[repr(C)]
#[derive(Clone, Copy)]
struct Names {
    cmd: u32,
    set: u32,
    len: u32,
    names: [[u8; NAME_LEN]; FEATURES_MAX],
}
// SAFETY: as in linux/ethtool.h; only used after the set was seen to have no more names.
unsafe impl Command for Names {}

/// `struct ethtool_gfeatures` with [`FEATURES_MAX`] features.
#[repr(C)]
#[derive(Clone, Copy)]
struct Features {
    cmd: u32,
    /// Blocks that the kernel may write.
    size: u32,
    /// Of 32 features each: available, requested, active, never changed.
    blocks: [[u32; 4]; FEATURES_MAX / 32],
}
// SAFETY: as in linux/ethtool.h; the kernel writes no more than `size` blocks.
unsafe impl Command for Features {}

fn run<T: Command>(name: &str, command: &mut T) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
    let socket = control_socket()?;
    // SAFETY: the request points to a command structure that outlives the call; the kernel reads
    // and writes no more than the structure of that command (`Command`).
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCETHTOOL as _,
            std::ptr::from_mut(&mut request),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Name of the driver, like `veth` or `virtio_net`.
pub fn driver(name: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    run(name, &mut info)?;
    let bytes = info
        .driver
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Queue counts of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Queues that frames may arrive on: receive-only and combined ones.
    pub receive: u32,
    /// Queues that frames can be sent on: transmit-only and combined ones.
    pub transmit: u32,
    /// Largest possible number of receive queues.
    pub receive_max: u32,
    /// Largest possible number of transmit queues.
    pub transmit_max: u32,
    /// Queues are set as pairs of receive and transmit.
    pub combined: bool,
}

/// Queue counts. A driver that does not know the question has one queue of each kind.
pub fn channels(name: &str) -> io::Result<Channels> {
    let mut raw = RawChannels {
        cmd: ETHTOOL_GCHANNELS,
        ..RawChannels::default()
    };
    match run(name, &mut raw) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let combined = true;
            let (receive_max, transmit_max) = (1, 1);
            return Ok(Channels {
                receive: 1,
                transmit: 1,
                receive_max,
                transmit_max,
                combined,
            });
        }
        Err(error) => return Err(error),
    }
    Ok(Channels {
        receive: (raw.rx_count + raw.combined_count).max(1),
        transmit: (raw.tx_count + raw.combined_count).max(1),
        receive_max: (raw.max_rx + raw.max_combined).max(1),
        transmit_max: (raw.max_tx + raw.max_combined).max(1),
        combined: raw.max_combined > 0,
    })
}

/// Sets the number of receive and of transmit queues, as pairs where the driver has pairs.
pub fn set_channels(name: &str, queues: u32) -> io::Result<()> {
    let mut raw = RawChannels {
        cmd: ETHTOOL_GCHANNELS,
        ..RawChannels::default()
    };
    run(name, &mut raw)?;
    if raw.max_combined > 0 {
        raw.combined_count = queues;
    } else {
        (raw.rx_count, raw.tx_count) = (queues, queues);
    }
    raw.cmd = ETHTOOL_SCHANNELS;
    run(name, &mut raw)
}

/// An offload that AF_XDP or a test has an opinion about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Receive checksums (`rx`).
    RxChecksum,
    /// Transmit checksums (`tx`): on, a veth hands over packets with partial checksums.
    TxChecksum,
    /// TCP segmentation (`tso`).
    Tso,
    /// Generic segmentation (`gso`).
    Gso,
    /// Generic receive offload (`gro`).
    Gro,
    /// Large receive offload (`lro`): merged packets cannot be forwarded.
    Lro,
    /// Stripping of VLAN tags (`rxvlan`): hides a tag from the steering program.
    RxVlan,
    /// Insertion of VLAN tags (`txvlan`).
    TxVlan,
}

/// How an offload is read and written.
enum Access {
    /// Own commands: get, set.
    Value(u32, u32),
    /// A bit of the flags word.
    Flag(u32),
}

impl Offload {
    /// Every offload.
    pub const ALL: [Offload; 8] = [
        Offload::RxChecksum,
        Offload::TxChecksum,
        Offload::Tso,
        Offload::Gso,
        Offload::Gro,
        Offload::Lro,
        Offload::RxVlan,
        Offload::TxVlan,
    ];

    /// The name that `ethtool -K` knows.
    pub const fn name(self) -> &'static str {
        match self {
            Offload::RxChecksum => "rx",
            Offload::TxChecksum => "tx",
            Offload::Tso => "tso",
            Offload::Gso => "gso",
            Offload::Gro => "gro",
            Offload::Lro => "lro",
            Offload::RxVlan => "rxvlan",
            Offload::TxVlan => "txvlan",
        }
    }

    const fn access(self) -> Access {
        match self {
            Offload::RxChecksum => Access::Value(0x14, 0x15),
            Offload::TxChecksum => Access::Value(0x16, 0x17),
            Offload::Tso => Access::Value(0x1e, 0x1f),
            Offload::Gso => Access::Value(0x23, 0x24),
            Offload::Gro => Access::Value(0x2b, 0x2c),
            Offload::Lro => Access::Flag(1 << 15),
            Offload::RxVlan => Access::Flag(1 << 8),
            Offload::TxVlan => Access::Flag(1 << 7),
        }
    }
}

fn get(name: &str, cmd: u32) -> io::Result<u32> {
    let mut value = Value { cmd, data: 0 };
    run(name, &mut value)?;
    Ok(value.data)
}

/// Is an offload on?
pub fn offload(name: &str, offload: Offload) -> io::Result<bool> {
    match offload.access() {
        Access::Value(read, _) => Ok(get(name, read)? != 0),
        Access::Flag(bit) => Ok(get(name, ETHTOOL_GFLAGS)? & bit != 0),
    }
}

/// Turns an offload on or off and gives what it was before, so that it can be put back. Fails with
/// `Unsupported` if the driver does not let it change.
pub fn set_offload(name: &str, which: Offload, on: bool) -> io::Result<bool> {
    let before = offload(name, which)?;
    if before == on {
        return Ok(before);
    }
    let mut value = match which.access() {
        Access::Value(_, cmd) => Value {
            cmd,
            data: u32::from(on),
        },
        Access::Flag(bit) => {
            let flags = get(name, ETHTOOL_GFLAGS)?;
            Value {
                cmd: ETHTOOL_SFLAGS,
                data: if on { flags | bit } else { flags & !bit },
            }
        }
    };
    run(name, &mut value)?;
    if offload(name, which)? != on {
        let state = if before { "on" } else { "off" };
        let why = format!(
            "{name}: {} stays {state} (fixed by the driver)",
            which.name()
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    Ok(before)
}

/// A feature of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The name that `ethtool -k` shows, such as `rx-gro-hw`.
    pub name: String,
    /// It is on.
    pub on: bool,
    /// It can be turned on and off.
    pub changeable: bool,
}

/// All features of an interface.
///
/// # Errors
/// The kernel's refusal; `NotFound` if it has more features than this knows to read.
pub fn features(name: &str) -> io::Result<Vec<Feature>> {
    let mut info = SetInfo {
        cmd: ETHTOOL_GSSET_INFO,
        reserved: 0,
        mask: 1 << ETH_SS_FEATURES,
        count: [0],
    };
    run(name, &mut info)?;
    let count = info.count[0] as usize;
    if info.mask == 0 || count > FEATURES_MAX {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut names = Names {
        cmd: ETHTOOL_GSTRINGS,
        set: ETH_SS_FEATURES,
        len: count as u32,
        names: [[0; NAME_LEN]; FEATURES_MAX],
    };
    run(name, &mut names)?;
    let mut bits = Features {
        cmd: ETHTOOL_GFEATURES,
        size: (FEATURES_MAX / 32) as u32,
        blocks: [[0; 4]; FEATURES_MAX / 32],
    };
    run(name, &mut bits)?;
    let feature = |(place, name): (usize, &[u8; NAME_LEN])| {
        let [available, _, active, never_changed] = bits.blocks[place / 32];
        let is_in = |word: u32| word >> (place % 32) & 1 == 1;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        Feature {
            name: String::from_utf8_lossy(name).into_owned(),
            on: is_in(active),
            changeable: is_in(available & !never_changed),
        }
    };
    Ok(names.names[..count]
        .iter()
        .enumerate()
        .map(feature)
        .collect())
}

/// May a feature be turned on and off?
///
/// # Errors
/// The driver or the kernel does not know it (`NotFound`), or the kernel's refusal.
pub fn changeable(name: &str, feature: &str) -> io::Result<bool> {
    let all = features(name)?;
    let found = all.iter().find(|one| one.name == feature);
    Ok(found.ok_or(io::ErrorKind::NotFound)?.changeable)
}
