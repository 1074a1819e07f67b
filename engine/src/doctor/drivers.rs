//! What is known of drivers, from `drivers.toml`.

use std::fmt;
use std::sync::OnceLock;

use serde::Deserialize;

/// A version of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct KernelVersion(pub u16, pub u16);

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl KernelVersion {
    /// The beginning of a release name, as `6.12.41-amd64` or `6.12`.
    pub fn parse(release: &str) -> Option<KernelVersion> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let number = |text: Option<&str>| text?.parse().ok();
        Some(KernelVersion(
            number(numbers.next())?,
            number(numbers.next())?,
        ))
    }
}

impl TryFrom<String> for KernelVersion {
    type Error = String;

    fn try_from(text: String) -> Result<KernelVersion, String> {
        let version = KernelVersion::parse(&text).filter(|version| version.to_string() == text);
        version.ok_or_else(|| format!("{text:?} is no kernel version such as \"5.18\""))
    }
}

/// How many queues a driver lets XDP use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueRule {
    /// Any number.
    Any,
    /// At most half of those that there are: XDP takes as many again to send.
    Half,
    /// One beside the others for every CPU, or sending takes a lock.
    SparePerCpu,
}

/// A driver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Driver {
    /// Its name, as `ethtool -i` shows it.
    pub name: String,
    /// What it drives.
    pub title: String,
    /// The first kernel in which it runs XDP programs; none: it does not.
    pub native_since: Option<KernelVersion>,
    /// The first kernel in which it exchanges frames with AF_XDP sockets without copying.
    pub zero_copy_since: Option<KernelVersion>,
    /// The largest MTU with a program that takes single buffers, with pages of 4 KiB. Bytes.
    pub mtu_max: Option<u32>,
    /// How many queues XDP may use.
    pub queues: QueueRule,
    /// Features that must be off before a program is attached, by their names in `ethtool -k`.
    pub turn_off: Vec<String>,
    /// Features change without a reset of the device: then it is safe to do while traffic flows.
    pub changes_smoothly: bool,
    /// What else one should know; empty: nothing.
    pub notes: String,
    /// Where this is from.
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    driver: Vec<Driver>,
}

fn parse(text: &str) -> Result<Vec<Driver>, toml::de::Error> {
    toml::from_str::<Table>(text).map(|table| table.driver)
}

/// What is known of a driver.
///
/// # Panics
/// Never: a test reads the file.
pub fn known(name: &str) -> Option<&'static Driver> {
    static DRIVERS: OnceLock<Vec<Driver>> = OnceLock::new();
    let drivers =
        DRIVERS.get_or_init(|| parse(include_str!("drivers.toml")).expect("a test reads it"));
    drivers.iter().find(|driver| driver.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let drivers = parse(include_str!("drivers.toml")).unwrap_or_else(|e| panic!("{e}"));
        let mut names: Vec<&str> = drivers.iter().map(|driver| driver.name.as_str()).collect();
        for must in [
            "ena",
            "gve",
            "virtio_net",
            "hv_netvsc",
            "mana",
            "i40e",
            "ixgbe",
            "ice",
            "mlx5_core",
            "veth",
            "bnxt_en",
        ] {
            assert!(names.contains(&must), "{must}");
        }
        assert!(names.is_sorted(), "in the order of their names: {names:?}");
        names.dedup();
        assert_eq!(names.len(), drivers.len(), "one of a name");
        for driver in &drivers {
            let name = &driver.name;
            assert!(
                !driver.title.is_empty() && !driver.source.is_empty(),
                "{name}"
            );
            let (native, zero_copy) = (driver.native_since, driver.zero_copy_since);
            assert!(zero_copy.is_none() || zero_copy >= native, "{name}");
            assert!(native.is_some() || zero_copy.is_none(), "{name}");
            if native.is_none() {
                assert_eq!((driver.mtu_max, driver.turn_off.len()), (None, 0), "{name}");
            }
            for feature in &driver.turn_off {
                assert!(
                    ["rx-lro", "rx-gro-hw"].contains(&feature.as_str()),
                    "{name}: {feature}"
                );
            }
            if let Some(mtu) = driver.mtu_max {
                // No more than a page less the headroom; no driver refuses the standard MTU.
                assert!((1500..=4096 - 256).contains(&mtu), "{name}: {mtu}");
            }
        }
    }

    #[test]
    fn the_table_is_read_strictly() {
        let good = "[[driver]]\nname = \"a\"\ntitle = \"b\"\nqueues = \"any\"\nturn_off = []\n\
                    changes_smoothly = true\nnotes = \"\"\nsource = \"c\"\n";
        assert_eq!(parse(good).expect("good").len(), 1);
        for (from, to) in [
            ("\"any\"", "\"some\""),
            ("notes", "note"),
            ("queues = \"any\"\n", ""),
            ("turn_off = []", "turn_off = []\nnative_since = \"5\""),
            ("turn_off = []", "turn_off = []\nnative_since = \"v5.6\""),
            ("turn_off = []", "turn_off = []\nmtu_max = -1"),
        ] {
            assert!(good.contains(from));
            assert!(parse(&good.replace(from, to)).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(
            KernelVersion::parse("6.12.41+deb13-amd64"),
            Some(KernelVersion(6, 12))
        );
        assert_eq!(KernelVersion::parse("5.4-rc1"), Some(KernelVersion(5, 4)));
        assert_eq!(KernelVersion::parse("linux"), None);
        assert!(KernelVersion(6, 3) > KernelVersion(5, 18));
    }

    #[test]
    fn an_unknown_driver_is_unknown() {
        assert!(known("warp").is_none());
        assert_eq!(
            known("ena").map(|driver| driver.queues),
            Some(QueueRule::Half)
        );
    }
}
