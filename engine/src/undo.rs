//! What an engine changed on the host and puts back at its end, written down in
//! `/run/egret/INSTANCE/undo` before it is changed: so a clean end after a crash, or
//! `egret detach`, still knows. One change a line: `offload INTERFACE NAME`, `route ADDRESS`,
//! `proxy INDEX ADDRESS` (the interface's index, as its name may change).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::config::RUN_DIR;
use crate::device::sys::ethtool::{self, Offload};
use crate::own_address;
use crate::routed;

/// Something that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An offload was turned off.
    Offload(String, Offload),
    /// `local ADDRESS/32 dev lo` was added.
    Route(Ipv4Addr),
    /// The kernel answers ARP for an address on the interface of this index.
    Proxy(u32, Ipv4Addr),
}

impl Change {
    fn line(&self) -> String {
        match self {
            Change::Offload(interface, which) => format!("offload {interface} {}\n", which.name()),
            Change::Route(addr) => format!("route {addr}\n"),
            Change::Proxy(index, addr) => format!("proxy {index} {addr}\n"),
        }
    }

    fn parse(line: &str) -> Option<Change> {
        let mut words = line.split(' ');
        let change = match (words.next()?, words.next()?) {
            ("offload", interface) => {
                let name = words.next()?;
                let which = Offload::ALL
                    .into_iter()
                    .find(|which| which.name() == name)?;
                Change::Offload(interface.to_owned(), which)
            }
            ("route", addr) => Change::Route(addr.parse().ok()?),
            ("proxy", index) => Change::Proxy(index.parse().ok()?, words.next()?.parse().ok()?),
            _ => return None,
        };
        words.next().is_none().then_some(change)
    }
}

/// The changes of one instance that are in force, its own and those of a dead engine before it.
#[derive(Debug)]
pub struct Undo {
    path: PathBuf,
    changes: Vec<Change>,
}

impl Undo {
    /// Reads what a dead engine of the instance left. The caller holds the instance's lock:
    /// with the steering program's pins, or in routed mode as an `InstanceLock`.
    pub fn open(instance: &str) -> Undo {
        Undo::at(&Path::new(RUN_DIR).join(instance))
    }

    fn at(directory: &Path) -> Undo {
        let path = directory.join("undo");
        let text = fs::read_to_string(&path).unwrap_or_default();
        Undo {
            path,
            changes: text.lines().filter_map(Change::parse).collect(),
        }
    }

    /// Writes down a change that is about to be made.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, change: Change) -> io::Result<()> {
        if self.changes.contains(&change) {
            return Ok(());
        }
        self.changes.push(change);
        // What is not written down must not be made, now or at the next try.
        self.write().inspect_err(|_| drop(self.changes.pop()))
    }

    /// Forgets a change that was undone.
    pub fn remove(&mut self, change: &Change) {
        self.changes.retain(|other| other != change);
        if let Err(error) = self.write() {
            // At worst something is put back that is back already.
            warn!(path = %self.path.display(), %error, "the list of changes is out of date");
        }
    }

    /// The own addresses that were routed to the host.
    pub fn routes(&self) -> Vec<Ipv4Addr> {
        let route = |change: &Change| match change {
            Change::Route(addr) => Some(*addr),
            Change::Offload(..) | Change::Proxy(..) => None,
        };
        self.changes.iter().filter_map(route).collect()
    }

    /// Ends the answering of ARP for others' addresses, but for those to `keep`.
    pub fn end_proxies(&mut self, keep: &[Change]) {
        for change in self.changes.clone() {
            let Change::Proxy(index, addr) = change else {
                continue;
            };
            if keep.contains(&change) {
                continue;
            }
            // With its interface it has gone itself.
            if let Err(error) = routed::forget_proxies(index, &[addr]) {
                warn!(index, %addr, %error, "the kernel still answers ARP for it");
            }
            self.remove(&change);
        }
    }

    /// Turns an offload off, to be turned on again at the end; nothing if it is off already.
    ///
    /// # Errors
    /// The driver does not let it change, or the change cannot be written down.
    pub fn turn_off(&mut self, interface: &str, which: Offload) -> io::Result<()> {
        if !ethtool::offload(interface, which).unwrap_or(false) {
            return Ok(());
        }
        let change = Change::Offload(interface.to_owned(), which);
        self.add(change.clone())?;
        ethtool::set_offload(interface, which, false)
            .map(drop)
            .inspect_err(|_| self.remove(&change))
    }

    /// Turns offloads on again, but for those to `keep` off.
    pub fn restore_offloads(&mut self, keep: &[Change]) {
        for change in self.changes.clone() {
            let Change::Offload(interface, which) = &change else {
                continue;
            };
            if keep.contains(&change) {
                continue;
            }
            if let Err(error) = ethtool::set_offload(interface, *which, true) {
                // The interface may be gone, or be another one now.
                warn!(%interface, offload = which.name(), %error, "not turned on again");
            }
            self.remove(&change);
        }
    }

    fn write(&self) -> io::Result<()> {
        if self.changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let text: String = self.changes.iter().map(Change::line).collect();
        // In one step: a crash leaves the old list or the new one.
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &self.path)
    }
}

/// Puts back everything that a dead engine of the instance changed in the network namespace of the
/// calling thread. The caller holds the instance's lock, if it has a directory.
///
/// # Errors
/// A route could not be removed.
pub fn everything(instance: &str) -> io::Result<()> {
    let mut undo = Undo::open(instance);
    undo.restore_offloads(&[]);
    undo.end_proxies(&[]);
    let routes = undo.routes();
    own_address::remove_all(&routes)?;
    for addr in routes {
        undo.remove(&Change::Route(addr));
    }
    // Kept while the tables are in it.
    let _ = fs::remove_dir(Path::new(RUN_DIR).join(instance));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("egret-undo-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn changes_outlive_their_maker() {
        let directory = directory("outlive");
        let offload = Change::Offload("eth0".to_owned(), Offload::RxVlan);
        let route = Change::Route([192, 0, 2, 3].into());
        let proxy = Change::Proxy(7, [192, 0, 2, 9].into());
        let mut first = Undo::at(&directory);
        first.add(offload.clone()).unwrap();
        first.add(route.clone()).unwrap();
        first.add(proxy.clone()).unwrap();
        drop(first);
        let mut second = Undo::at(&directory);
        assert_eq!(
            second.changes,
            [offload.clone(), route.clone(), proxy.clone()]
        );
        assert_eq!(second.routes(), [Ipv4Addr::new(192, 0, 2, 3)]);
        second.remove(&offload);
        second.remove(&proxy);
        assert_eq!(Undo::at(&directory).changes, std::slice::from_ref(&route));
        second.remove(&route);
        // Nothing is left, not even the file.
        fs::remove_dir(directory).unwrap();
    }

    #[test]
    fn lines_that_mean_nothing_are_skipped() {
        let bad = [
            "",
            "offload",
            "offload eth0",
            "offload eth0 warp",
            "route",
            "route x",
            "proxy eth0 192.0.2.9",
            "a b",
        ];
        assert!(bad.iter().all(|line| Change::parse(line).is_none()));
        assert_eq!(Change::parse("route 192.0.2.3 more"), None);
    }
}
