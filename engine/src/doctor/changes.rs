//! What `egret doctor --fix` changed, and the way back: each change is written down before it is
//! made, in `/run/egret/doctor.NAMESPACE`, a JSON object a line. (No instance has a dot in its name.)
//! Changes of other network namespaces have lists of their own.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::finding::Setting;
use crate::config::RUN_DIR;
use crate::device::sys::{ethtool, link};

impl Setting {
    /// What it is now.
    ///
    /// # Errors
    /// There is no such setting, or the kernel's refusal.
    pub fn read(&self) -> io::Result<String> {
        match self {
            Setting::Sysctl { key } => {
                let text = fs::read_to_string(sysctl_path(key)?)?;
                Ok(text.trim().to_owned())
            }
            Setting::Feature { interface, feature } => {
                let all = ethtool::features(interface)?;
                let found = all.iter().find(|one| one.name == *feature);
                let on = found.ok_or(io::ErrorKind::NotFound)?.on;
                Ok(if on { "on" } else { "off" }.to_owned())
            }
        }
    }

    /// Sets it. A feature is `on` or `off`.
    ///
    /// # Errors
    /// The kernel's or the driver's refusal.
    pub fn write(&self, value: &str) -> io::Result<()> {
        match self {
            Setting::Sysctl { key } => fs::write(sysctl_path(key)?, value),
            Setting::Feature { interface, feature } => {
                ethtool::set_feature(interface, feature, value == "on")
            }
        }
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setting::Sysctl { key } => f.write_str(key),
            Setting::Feature { interface, feature } => write!(f, "{feature} of {interface}"),
        }
    }
}

/// A list that somebody has tampered with must not lead elsewhere.
fn sysctl_path(key: &str) -> io::Result<PathBuf> {
    if key.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Path::new("/proc/sys").join(key))
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What was changed.
    pub setting: Setting,
    /// What it was.
    pub before: String,
    /// What it was changed to.
    pub after: String,
}

/// How a change was taken back.
#[derive(Debug)]
pub enum Restored {
    /// It is as it was before.
    Done,
    /// Somebody else has changed it since, to this: it was left alone.
    Changed(String),
    /// It could not be: the interface may be gone.
    Failed(io::Error),
}

/// The changes that are in force.
#[derive(Debug)]
pub struct Changes {
    path: PathBuf,
    list: Vec<Change>,
}

impl Changes {
    /// Those of the calling thread's network namespace.
    ///
    /// # Errors
    /// The list is there and cannot be read.
    pub fn open() -> io::Result<Changes> {
        // An older kernel gives the number of a namespace that is gone to a new one.
        let inode = || fs::metadata("/proc/thread-self/ns/net").map(|there| there.ino());
        let namespace = link::namespace_cookie().or_else(|_| inode())?;
        Changes::at(Path::new(RUN_DIR).join(format!("doctor.{namespace}")))
    }

    fn at(path: PathBuf) -> io::Result<Changes> {
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let list = text.lines().map(serde_json::from_str);
        let list = list.collect::<Result<_, _>>().map_err(|error| {
            let why = format!("{}: {error}; undo by hand and remove it", path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(Changes { path, list })
    }

    /// Those in force, the oldest first.
    pub fn list(&self) -> &[Change] {
        &self.list
    }

    /// Sets something, to be put back by [`Changes::restore`]. False: it was so already.
    ///
    /// # Errors
    /// It cannot be read, written down or set; then it is as it was.
    pub fn apply(&mut self, setting: &Setting, value: &str) -> io::Result<bool> {
        let before = setting.read()?;
        if before == value {
            return Ok(false);
        }
        let old = self.list.clone();
        match self.list.iter_mut().find(|one| one.setting == *setting) {
            // Changed by somebody else since: what was first is what to go back to.
            Some(change) => change.after = value.to_owned(),
            None => self.list.push(Change {
                setting: setting.clone(),
                before,
                after: value.to_owned(),
            }),
        }
        let made = self.write().and_then(|()| setting.write(value));
        if let Err(error) = made {
            self.list = old;
            self.write()?;
            return Err(error);
        }
        Ok(true)
    }

    /// Puts everything back, the latest first; what became of each. What failed stays in the list.
    ///
    /// # Errors
    /// The list cannot be written.
    pub fn restore(&mut self) -> io::Result<Vec<(Change, Restored)>> {
        let mut told = Vec::new();
        let mut failed = Vec::new();
        for change in self.list.drain(..).rev() {
            let restored = match change.setting.read() {
                Ok(now) if now == change.after => match change.setting.write(&change.before) {
                    Ok(()) => Restored::Done,
                    Err(error) => Restored::Failed(error),
                },
                Ok(now) if now == change.before => Restored::Done,
                Ok(now) => Restored::Changed(now),
                Err(error) => Restored::Failed(error),
            };
            if matches!(restored, Restored::Failed(_)) {
                failed.insert(0, change.clone());
            }
            told.push((change, restored));
        }
        self.list = failed;
        self.write()?;
        Ok(told)
    }

    fn write(&self) -> io::Result<()> {
        if self.list.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let lines = self.list.iter().map(serde_json::to_string);
        let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
        // In one step: a crash leaves the old list or the new one.
        let new = self.path.with_extension("new");
        fs::write(&new, lines.join("\n") + "\n")?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str) -> Change {
        Change {
            setting: Setting::Sysctl {
                key: key.to_owned(),
            },
            before: "1".to_owned(),
            after: "2".to_owned(),
        }
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("egret-doctor-{name}-{}", std::process::id()))
    }

    #[test]
    fn the_list_outlives_its_maker() {
        let path = path("outlives");
        let mut changes = Changes::at(path.clone()).unwrap();
        changes.list.push(change("kernel/a"));
        changes.list.push(Change {
            setting: Setting::Feature {
                interface: "eth0".to_owned(),
                feature: "rx-lro".to_owned(),
            },
            ..change("x")
        });
        changes.write().unwrap();
        assert_eq!(Changes::at(path.clone()).unwrap().list, changes.list);
        changes.list.clear();
        changes.write().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_list_that_means_nothing_is_not_undone_in_part() {
        let path = path("nonsense");
        for text in ["x\n", "{\"setting\": 1}\n"] {
            fs::write(&path, text).unwrap();
            let error = Changes::at(path.clone()).unwrap_err();
            assert!(error.to_string().contains("by hand"), "{error}");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_cannot_be_restored_is_kept_and_told() {
        let path = path("kept");
        let mut changes = Changes::at(path.clone()).unwrap();
        changes.list = vec![change("kernel/no-such-thing"), change("../../etc/passwd")];
        let told = changes.restore().unwrap();
        assert!(
            told.iter()
                .all(|(_, how)| matches!(how, Restored::Failed(_)))
        );
        assert_eq!(Changes::at(path.clone()).unwrap().list().len(), 2);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_as_wanted_is_not_changed() {
        let path = path("as-wanted");
        let mut changes = Changes::at(path.clone()).unwrap();
        let setting = Setting::Sysctl {
            key: "kernel/ostype".to_owned(),
        };
        assert!(!changes.apply(&setting, "Linux").unwrap());
        assert!(changes.apply(&setting, "Minix").is_err(), "read-only");
        assert!(!path.exists() && changes.list().is_empty());
        // Somebody else has changed it since.
        changes.list.push(Change {
            setting,
            before: "Multics".to_owned(),
            after: "Unix".to_owned(),
        });
        let told = changes.restore().unwrap();
        assert!(matches!(&told[0].1, Restored::Changed(now) if now == "Linux"));
    }
}
