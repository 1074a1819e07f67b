//! Static programs: the `egret` that needs no shared library, and busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the static program, or says `build`.
pub const VARIABLE: &str = "EGRET_STATIC";

/// The type of a program header that names a dynamic linker (elf.h).
const PT_INTERP: u32 = 3;
/// The type of one that lists what is linked dynamically.
const PT_DYNAMIC: u32 = 2;
/// A shared library that is needed, among what is linked dynamically.
const DT_NEEDED: u64 = 1;

/// Bytes `at..` of a 64-bit little-endian ELF file as a number.
fn number<const LEN: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(LEN)?)?;
    let digits = part.iter().rev();
    Some(digits.fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

/// Does a program run without a dynamic linker and shared libraries? `None`: it is no 64-bit
/// little-endian ELF file.
pub fn is_static(program: &[u8]) -> Option<bool> {
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = number::<8>(program, 32)? as usize;
    let size = number::<2>(program, 54)? as usize;
    let count = number::<2>(program, 56)? as usize;
    for header in (0..count).map(|index| headers + index * size) {
        let kind = number::<4>(program, header)? as u32;
        let (offset, bytes) = (
            number::<8>(program, header + 8)? as usize,
            number::<8>(program, header + 32)? as usize,
        );
        let mut entries = (offset..offset + bytes).step_by(16);
        if kind == PT_INTERP
            || kind == PT_DYNAMIC && entries.any(|at| number::<8>(program, at) == Some(DT_NEEDED))
        {
            return Some(false);
        }
    }
    Some(true)
}

/// The static `egret`: the file that EGRET_STATIC names, or, if it says `build`, one that is built
/// now, for minutes. An error says why there is none.
pub fn egret() -> Result<PathBuf, String> {
    match std::env::var_os(VARIABLE) {
        Some(word) if word == "build" => build(),
        Some(path) => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
            let found = root.canonicalize();
            found.map_err(|error| format!("{VARIABLE}: {}: {error}", root.display()))
        }
        None => Err(format!(
            "{VARIABLE} is not set: give it the path of a static egret, or `build`, which takes \
             minutes"
        )),
    }
}

/// Builds the static program as README says, without optimization, beside the other build output.
fn build() -> Result<PathBuf, String> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--locked", "--package", "egret", "--bin", "egret"])
        .args(["--target", &target, "--target-dir"])
        .arg(&folder)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status();
    match status {
        Ok(status) if status.success() => Ok(folder.join(target).join("debug").join("egret")),
        Ok(status) => Err(format!("building the static egret: {status}")),
        Err(error) => Err(format!("building the static egret: {error}")),
    }
}

/// A busybox that needs no shared library, or why there is none.
pub fn busybox() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join("busybox"))
        .find(|file| fs::read(file).is_ok_and(|bytes| is_static(&bytes) == Some(true)));
    found.ok_or_else(|| "missing: a static busybox (Debian package busybox-static)".to_owned())
}
