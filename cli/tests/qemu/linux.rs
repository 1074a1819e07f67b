//! Linux kernels as Debian packages bring them, and their modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel, unpacked: `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`.
#[derive(Debug)]
pub struct Linux {
    /// As `uname -r` says it.
    pub release: String,
    /// The kernel's image.
    pub image: PathBuf,
    /// Names of the modules that are files, and where.
    files: BTreeMap<String, PathBuf>,
    /// Names of those that are part of the image.
    builtin: Vec<String>,
}

/// One name for a module, however a file or a dependency spells it.
fn plain(name: &str) -> String {
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

impl Linux {
    /// The kernels in a directory's subdirectories, a package each, the oldest version first.
    pub fn all(packages: &Path) -> Vec<Linux> {
        let entries = fs::read_dir(packages).into_iter().flatten().flatten();
        let mut found: Vec<Linux> = entries.flat_map(|entry| unpacked(&entry.path())).collect();
        found.sort_by_key(|linux| linux.version());
        found
    }

    /// The numbers of the release: 6.12.4-1 is `[6, 12, 4, 1]`.
    pub fn version(&self) -> Vec<u32> {
        let numbers = self.release.split(|c: char| !c.is_ascii_digit());
        numbers.filter_map(|number| number.parse().ok()).collect()
    }

    /// The modules with these names and all that they need, in the order in which they can be loaded:
    /// name and content of each file. What is part of the kernel's image is left out.
    pub fn modules(&self, wanted: &[&str]) -> Vec<(String, Vec<u8>)> {
        let mut loaded = Vec::new();
        for name in wanted {
            self.load(&plain(name), &mut loaded);
        }
        loaded
    }

    fn load(&self, name: &str, loaded: &mut Vec<(String, Vec<u8>)>) {
        let there = loaded.iter().any(|(other, _)| other == name);
        if there || self.builtin.iter().any(|other| other == name) {
            return;
        }
        let path = self.files.get(name);
        let path = path.unwrap_or_else(|| panic!("{} has no module {name}", self.release));
        let content = uncompressed(path);
        for needed in dependencies(&content) {
            self.load(&needed, loaded);
        }
        loaded.push((name.to_owned(), content));
    }
}

/// The kernels of one unpacked package; commonly one.
fn unpacked(package: &Path) -> Vec<Linux> {
    let entries = fs::read_dir(package.join("lib/modules"));
    let linux = |release: String| {
        let modules = package.join("lib/modules").join(&release);
        let image = package.join("boot").join(format!("vmlinuz-{release}"));
        let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
        let mut files = BTreeMap::new();
        collect(&modules, &mut files);
        image.is_file().then(|| Linux {
            builtin: builtin.lines().map(module_of).collect(),
            release,
            image,
            files,
        })
    };
    let releases = entries.into_iter().flatten().flatten();
    let releases = releases.map(|entry| entry.file_name().to_string_lossy().into_owned());
    releases.filter_map(linux).collect()
}

/// The module that a path is about.
fn module_of(path: &str) -> String {
    plain(path.rsplit('/').next().unwrap_or_default())
}

/// Collects the modules below a directory.
fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, files);
        } else if name.contains(".ko") {
            files.insert(plain(&name), path);
        }
    }
}

/// A module's bytes; Debian compresses them from Linux 6.12 on.
fn uncompressed(path: &Path) -> Vec<u8> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let output = Command::new("busybox").arg("xzcat").arg(path).output();
    let output = output.expect("busybox runs");
    assert!(output.status.success(), "{}: {output:?}", path.display());
    output.stdout
}

/// What a module says that it needs: `depends=a,b` among the strings of its `.modinfo`, and of the
/// soft ones those that come before it.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for text in module.split(|&byte| byte == 0) {
        if let Some(list) = text.strip_prefix(b"depends=") {
            let list = String::from_utf8_lossy(list);
            let names = list.split(',').filter(|name| !name.is_empty());
            found.extend(names.map(plain));
        }
    }
    found
}
