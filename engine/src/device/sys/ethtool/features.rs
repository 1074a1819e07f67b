//! Features by the names that `ethtool -k` shows: every one that the kernel knows.

use std::io;

use super::{Command, run};

const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// Number of the set of feature names.
const ETH_SS_FEATURES: u32 = 4;
/// Features that are asked for at most; the kernel has some sixty.
const FEATURES_MAX: usize = 128;
/// Bytes of a name (`ETH_GSTRING_LEN`).
const NAME_LEN: usize = 32;

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

/// `struct ethtool_sfeatures` with [`FEATURES_MAX`] features.
#[repr(C)]
#[derive(Clone, Copy)]
struct Wanted {
    cmd: u32,
    /// Blocks that the kernel reads: exactly as many as it has.
    size: u32,
    /// Of 32 features each: which to change, and which of these to turn on.
    blocks: [[u32; 2]; FEATURES_MAX / 32],
}
// SAFETY: as in linux/ethtool.h; the kernel reads `size` blocks, of which there are that many
// (`read_bits`), and writes none.
unsafe impl Command for Wanted {}

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
    let names = read_names(name)?;
    let bits = read_bits(name)?;
    let feature = |(place, name): (usize, String)| {
        let [available, _, active, never_changed] = bits.blocks[place / 32];
        let is_in = |word: u32| word >> (place % 32) & 1 == 1;
        Feature {
            name,
            on: is_in(active),
            changeable: is_in(available & !never_changed),
        }
    };
    Ok(names.into_iter().enumerate().map(feature).collect())
}

/// Turns a feature on or off. Fails with `NotFound` for a name that the kernel does not know, with
/// `Unsupported` if the driver does not let it change.
pub fn set_feature(name: &str, feature: &str, on: bool) -> io::Result<()> {
    let names = read_names(name)?;
    let place = names.iter().position(|known| known == feature);
    let place = place.ok_or(io::ErrorKind::NotFound)?;
    let mut wanted = Wanted {
        cmd: ETHTOOL_SFEATURES,
        size: read_bits(name)?.size,
        blocks: [[0; 2]; FEATURES_MAX / 32],
    };
    let bit = 1 << (place % 32);
    wanted.blocks[place / 32] = [bit, if on { bit } else { 0 }];
    run(name, &mut wanted)?;
    let is_so = |now: &Feature| now.name == feature && now.on == on;
    if features(name)?.iter().any(is_so) {
        return Ok(());
    }
    let state = if on { "off" } else { "on" };
    let why = format!("{name}: {feature} stays {state} (fixed by the driver)");
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// May a feature be turned on and off?
///
/// # Errors
/// The driver or the kernel does not know it (`NotFound`), or the kernel's refusal.
pub fn changeable(name: &str, feature: &str) -> io::Result<bool> {
    Ok(find(name, feature)?.changeable)
}

/// Is a feature on?
///
/// # Errors
/// As those of [`changeable`].
pub fn active(name: &str, feature: &str) -> io::Result<bool> {
    Ok(find(name, feature)?.on)
}

fn find(name: &str, feature: &str) -> io::Result<Feature> {
    let found = features(name)?.into_iter().find(|one| one.name == feature);
    found.ok_or(io::ErrorKind::NotFound.into())
}

/// The names, in the order of the bits.
fn read_names(name: &str) -> io::Result<Vec<String>> {
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
    let text = |bytes: &[u8; NAME_LEN]| {
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    Ok(names.names[..count].iter().map(text).collect())
}

/// The bits; `size` is how many blocks the kernel has.
fn read_bits(name: &str) -> io::Result<Features> {
    let mut features = Features {
        cmd: ETHTOOL_GFEATURES,
        size: (FEATURES_MAX / 32) as u32,
        blocks: [[0; 4]; FEATURES_MAX / 32],
    };
    run(name, &mut features)?;
    if features.size as usize > FEATURES_MAX / 32 {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_that_cannot_change() {
        let all = features("lo").unwrap();
        let of_name = |name: &str| all.iter().find(|feature| feature.name == name);
        let loopback = of_name("loopback").expect("a feature of lo");
        assert!(loopback.on && !loopback.changeable);
        assert!(!changeable("lo", "loopback").unwrap());
        let unknown = changeable("lo", "warp-drive").unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::NotFound);
        assert!(set_feature("lo", "warp-drive", true).is_err());
    }
}
