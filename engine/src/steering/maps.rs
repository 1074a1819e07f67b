//! The steering program's maps: loading, reuse, and making a map hold exactly a wanted set.
//!
//! The layouts of keys and values are those of the structures in `bpf/egret.bpf.c`.

use std::borrow::Borrow;
use std::collections::HashMap as Set;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{
    Array, DevMap, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, XskMap,
};
use aya::{Ebpf, EbpfLoader, Pod, include_bytes_aligned};
use conntrack::AddressKind;
use ipnet::Ipv4Net;

use super::pins::Pins;
use super::tc;
use super::{
    QUEUES_MAX, SteeredAddress, SteeredInterface, SteeringCounters, SteeringError, SteeringSize,
    reason, xdp,
};

static OBJECT: &[u8] = include_bytes_aligned!("../bpf/egret.bpf.o");

/// `BPF_F_NO_PREALLOC` and `BPF_F_MMAPABLE` of linux/bpf.h.
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;
/// `ROLE_INTERNAL`, `ROLE_EXTERNAL`, `KIND_OWN`, `KIND_SHARED` and `COUNTERS` of the program.
const ROLE_INTERNAL: u8 = 1;
const ROLE_EXTERNAL: u8 = 2;
const KIND_OWN: u32 = 0;
const KIND_SHARED: u32 = 1;
const COUNTERS: u32 = 9;

/// What a map must be like to be reused.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

fn shapes(size: SteeringSize) -> [Shape; 12] {
    let interfaces = u32::from(size.interfaces_max);
    let addresses = u32::from(size.addresses_max);
    let shape = |name, kind, key, value, entries: u32, flags| {
        let entries = entries.max(1);
        Shape {
            name,
            kind,
            key,
            value,
            entries,
            flags,
        }
    };
    [
        shape("sockets", MapType::XskMap, 4, 4, interfaces * QUEUES_MAX, 0),
        shape("interfaces", MapType::Hash, 4, 8, interfaces, 0),
        shape("externals", MapType::Hash, 4, 8, addresses, 0),
        shape("locals", MapType::Hash, 4, 4, size.locals_max, 0),
        shape(
            "internals",
            MapType::LpmTrie,
            8,
            4,
            size.prefixes_max,
            NO_PREALLOC,
        ),
        shape(
            "bypasses",
            MapType::LpmTrie,
            8,
            4,
            size.prefixes_max,
            NO_PREALLOC,
        ),
        shape(
            "owned",
            MapType::Array,
            4,
            8,
            addresses * super::OWNED_WORDS as u32,
            MMAPABLE,
        ),
        shape("settings", MapType::Array, 4, 8, 1, 0),
        shape("counters", MapType::PerCpuArray, 4, 8, COUNTERS, 0),
        shape("taps", MapType::Hash, 4, 4, interfaces, 0),
        shape("exits", MapType::Hash, 4, 4, interfaces, 0),
        shape("doors", MapType::DevMap, 4, 8, interfaces, 0),
    ]
}

impl Shape {
    fn fits(&self, info: &MapInfo) -> bool {
        // The kernel itself decides about a device map's flags and, by its version, values.
        let (value, flags) = match self.kind {
            MapType::DevMap => (info.value_size(), info.map_flags()),
            _ => (self.value, self.flags),
        };
        info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() == self.key
            && info.value_size() == value
            && info.max_entries() == self.entries
            && info.map_flags() == flags
    }
}

/// Loads the program. aya opens a map that is pinned at its path whatever its size, so a pin that
/// does not fit is removed first; the old program keeps that map until it is replaced. Call it
/// `at_home`.
pub(super) fn load(pins: &Pins, size: SteeringSize) -> Result<Ebpf, SteeringError> {
    let mut loader = EbpfLoader::new();
    for shape in shapes(size) {
        let path = pins.map(shape.name);
        let fits = MapInfo::from_pin(&path).is_ok_and(|info| shape.fits(&info));
        if path.exists() && !fits {
            std::fs::remove_file(&path).map_err(|source| SteeringError::Pins {
                step: "removing a pinned map of another size",
                source,
            })?;
        }
        loader.map_max_entries(shape.name, shape.entries);
        loader.map_pin_path(shape.name, path);
    }
    let load = |error: &(dyn std::error::Error + 'static)| SteeringError::Load(reason(error));
    let mut ebpf = loader.load(OBJECT).map_err(|error| load(&error))?;
    xdp(&mut ebpf)?.load().map_err(|error| load(&error))?;
    for name in tc::PROGRAMS {
        let program = tc::classifier(&mut ebpf, name)?;
        program.load().map_err(|error| load(&error))?;
    }
    Ok(ebpf)
}

fn failed(map: &'static str) -> impl Fn(MapError) -> SteeringError {
    move |error| SteeringError::Map {
        map,
        why: reason(&error),
    }
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, map: &'static str) -> Result<&'a mut Map, SteeringError> {
    let why = || "missing".to_owned();
    ebpf.map_mut(map)
        .ok_or_else(|| SteeringError::Map { map, why: why() })
}

/// Keeps the mark that is set, or sets this one, made locally administered and unicast.
pub(super) fn settle_mark(ebpf: &mut Ebpf, fresh: [u8; 6]) -> Result<[u8; 6], SteeringError> {
    let failed = failed("settings");
    let mut settings =
        Array::<_, [u8; 8]>::try_from(map_mut(ebpf, "settings")?).map_err(&failed)?;
    let kept = settings.get(&0, 0).map_err(&failed)?;
    if kept[6..] != [0, 0] {
        return Ok([kept[0], kept[1], kept[2], kept[3], kept[4], kept[5]]);
    }
    let mark = [
        fresh[0] & !1 | 2,
        fresh[1],
        fresh[2],
        fresh[3],
        fresh[4],
        fresh[5],
    ];
    let value = [mark[0], mark[1], mark[2], mark[3], mark[4], mark[5], 1, 0];
    settings.set(0, value, 0).map_err(&failed)?;
    Ok(mark)
}

/// Changes that turn what a map holds into what it shall hold: to be set, and to be removed.
/// Removals come first where the map could be full.
fn difference<K: Copy + Eq + std::hash::Hash, V: Copy + PartialEq>(
    held: &Set<K, V>,
    wanted: &Set<K, V>,
) -> (Vec<(K, V)>, Vec<K>) {
    let changed = |(key, value): &(&K, &V)| held.get(*key) != Some(*value);
    let set = wanted
        .iter()
        .filter(changed)
        .map(|(&key, &value)| (key, value))
        .collect();
    let remove = held
        .keys()
        .filter(|key| !wanted.contains_key(*key))
        .copied()
        .collect();
    (set, remove)
}

/// An entry that is gone already is as good as removed.
fn tolerate_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

fn sync_hash<K, V>(
    ebpf: &mut Ebpf,
    map: &'static str,
    wanted: &Set<K, V>,
) -> Result<(), SteeringError>
where
    K: Pod + Copy + Eq + std::hash::Hash,
    V: Pod + Copy + PartialEq,
{
    let failed = failed(map);
    let mut table = HashMap::<_, K, V>::try_from(map_mut(ebpf, map)?).map_err(&failed)?;
    let held = table
        .iter()
        .collect::<Result<Set<K, V>, _>>()
        .map_err(&failed)?;
    let (set, remove) = difference(&held, wanted);
    for key in remove {
        tolerate_missing(table.remove(&key)).map_err(&failed)?;
    }
    for (key, value) in set {
        table.insert(key, value, 0).map_err(&failed)?;
    }
    Ok(())
}

/// An address as the program sees it in a packet.
fn on_wire(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

pub(super) fn set_interfaces(
    ebpf: &mut Ebpf,
    interfaces: &[SteeredInterface],
) -> Result<(), SteeringError> {
    let entry = |(slot, interface): (usize, &SteeredInterface)| {
        let internal = if interface.internal { ROLE_INTERNAL } else { 0 };
        let external = if interface.external { ROLE_EXTERNAL } else { 0 };
        let mac = interface.mac;
        let role = internal | external;
        let value = [
            mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], role, slot as u8,
        ];
        (interface.ifindex, value)
    };
    sync_hash(
        ebpf,
        "interfaces",
        &interfaces.iter().enumerate().map(entry).collect(),
    )
}

pub(super) fn set_externals(
    ebpf: &mut Ebpf,
    addresses: &[SteeredAddress],
) -> Result<(), SteeringError> {
    let entry = |address: &SteeredAddress| {
        let kind = match address.kind {
            AddressKind::Own => KIND_OWN,
            AddressKind::Shared => KIND_SHARED,
        };
        (on_wire(address.addr), [kind, u32::from(address.slot)])
    };
    sync_hash(ebpf, "externals", &addresses.iter().map(entry).collect())
}

/// The addresses that the program steers, each with its slot.
pub(super) fn externals(ebpf: &Ebpf) -> Result<Vec<(u16, Ipv4Addr)>, SteeringError> {
    let failed = failed("externals");
    let map = ebpf.map("externals").ok_or_else(|| SteeringError::Map {
        map: "externals",
        why: "missing".to_owned(),
    })?;
    let map = HashMap::<_, u32, [u32; 2]>::try_from(map).map_err(&failed)?;
    let entry = |entry: Result<(u32, [u32; 2]), MapError>| {
        let (addr, [_, slot]) = entry.map_err(&failed)?;
        Ok((slot as u16, Ipv4Addr::from(addr.to_ne_bytes())))
    };
    map.iter().map(entry).collect()
}

pub(super) fn set_locals(ebpf: &mut Ebpf, addresses: &[Ipv4Addr]) -> Result<(), SteeringError> {
    let wanted = addresses
        .iter()
        .map(|&address| (on_wire(address), 1_u32))
        .collect();
    sync_hash(ebpf, "locals", &wanted)
}

pub(super) fn set_prefixes(
    ebpf: &mut Ebpf,
    map: &'static str,
    prefixes: &[Ipv4Net],
) -> Result<(), SteeringError> {
    let failed = failed(map);
    let mut trie = LpmTrie::<_, u32, u32>::try_from(map_mut(ebpf, map)?).map_err(&failed)?;
    let parts = |key: Key<u32>| ((key.prefix_len(), key.data()), ());
    let held: Set<_, ()> = trie
        .keys()
        .map(|key| key.map(parts))
        .collect::<Result<_, _>>()
        .map_err(&failed)?;
    let entry = |net: &Ipv4Net| ((u32::from(net.prefix_len()), on_wire(net.network())), ());
    let wanted: Set<_, ()> = prefixes.iter().map(entry).collect();
    let (set, remove) = difference(&held, &wanted);
    for (len, address) in remove {
        tolerate_missing(trie.remove(&Key::new(len, address))).map_err(&failed)?;
    }
    for ((len, address), ()) in set {
        trie.insert(&Key::new(len, address), 1, 0)
            .map_err(&failed)?;
    }
    Ok(())
}

fn socket_index(interface: usize, queue: u32) -> Result<u32, SteeringError> {
    if interface > usize::from(u8::MAX) || queue >= QUEUES_MAX {
        let why = format!("interface {interface} queue {queue} is beyond what it holds");
        return Err(SteeringError::Map {
            map: "sockets",
            why,
        });
    }
    Ok(interface as u32 * QUEUES_MAX + queue)
}

pub(super) fn set_socket(
    ebpf: &mut Ebpf,
    interface: usize,
    queue: u32,
    socket: BorrowedFd<'_>,
) -> Result<(), SteeringError> {
    let failed = failed("sockets");
    let mut sockets = XskMap::try_from(map_mut(ebpf, "sockets")?).map_err(&failed)?;
    sockets
        .set(socket_index(interface, queue)?, socket.as_raw_fd(), 0)
        .map_err(&failed)
}

pub(super) fn clear_socket(
    ebpf: &mut Ebpf,
    interface: usize,
    queue: u32,
) -> Result<(), SteeringError> {
    let failed = failed("sockets");
    let mut sockets = XskMap::try_from(map_mut(ebpf, "sockets")?).map_err(&failed)?;
    tolerate_missing(sockets.unset(socket_index(interface, queue)?)).map_err(&failed)
}

pub(super) fn counters(ebpf: &Ebpf) -> Result<SteeringCounters, SteeringError> {
    let failed = failed("counters");
    let map = ebpf.map("counters").ok_or_else(|| SteeringError::Map {
        map: "counters",
        why: "missing".to_owned(),
    })?;
    let map = PerCpuArray::<_, u64>::try_from(map).map_err(&failed)?;
    let sum = |which: u32| sum_of(&map, which).map_err(&failed);
    Ok(SteeringCounters {
        passed: sum(0)?,
        punted: sum(1)?,
        own: sum(2)?,
        shared: sum(3)?,
        fragments: sum(4)?,
        internal: sum(5)?,
        spoofed: sum(6)?,
        unserved: sum(7)?,
        uninvited: sum(8)?,
    })
}

fn sum_of<T: Borrow<MapData>>(map: &PerCpuArray<T, u64>, which: u32) -> Result<u64, MapError> {
    Ok(map.get(&which, 0)?.iter().sum())
}

pub(super) fn add_tap(ebpf: &mut Ebpf, tap: u32, interface: u32) -> Result<(), SteeringError> {
    let failed = failed("taps");
    let mut taps = HashMap::<_, u32, u32>::try_from(map_mut(ebpf, "taps")?).map_err(&failed)?;
    taps.insert(tap, interface, 0).map_err(&failed)
}

pub(super) fn clear_taps(ebpf: &mut Ebpf) -> Result<(), SteeringError> {
    sync_hash::<u32, u32>(ebpf, "taps", &Set::new())
}

pub(super) fn add_exit(ebpf: &mut Ebpf, tap: u32, interface: u32) -> Result<(), SteeringError> {
    let failed = failed("exits");
    let mut exits = HashMap::<_, u32, u32>::try_from(map_mut(ebpf, "exits")?).map_err(&failed)?;
    exits.insert(tap, interface, 0).map_err(&failed)
}

pub(super) fn clear_exits(ebpf: &mut Ebpf) -> Result<(), SteeringError> {
    sync_hash::<u32, u32>(ebpf, "exits", &Set::new())
}

pub(super) fn set_door(ebpf: &mut Ebpf, interface: usize, tap: u32) -> Result<(), SteeringError> {
    let failed = |why: String| SteeringError::Map { map: "doors", why };
    let mut doors = DevMap::try_from(map_mut(ebpf, "doors")?).map_err(|e| failed(reason(&e)))?;
    doors
        .set(interface as u32, tap, None, 0)
        .map_err(|error| failed(reason(&error)))
}
