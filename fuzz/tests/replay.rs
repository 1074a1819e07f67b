//! Replays corpora and regressions on stable Rust, and some thousands of seeded random inputs.
//!
//! `EGRET_FUZZ_SECONDS=600 cargo test --release -p egret-fuzz -- --ignored --nocapture` mutates the
//! corpora for that long, without coverage guidance.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzz::TARGETS;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

fn files(kind: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(kind)
        .join(target);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name != "stories.txt"));
    files.sort();
    files
}

/// What the target says of an input that it fails with.
fn complaint(target: fn(&[u8]), data: &[u8]) -> Option<String> {
    let payload = std::panic::catch_unwind(|| target(data)).err()?;
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| {
        payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
    });
    Some(text.unwrap_or_default())
}

fn run(name: &str, target: fn(&[u8]), data: &[u8]) {
    if let Some(what) = complaint(target, data) {
        let small = smaller(target, data.to_vec(), &what);
        let hex: String = small.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{name} fails with {} bytes: {what}\n{hex}", small.len());
    }
}

/// A smaller input with the same kind of complaint.
fn smaller(target: fn(&[u8]), mut data: Vec<u8>, what: &str) -> Vec<u8> {
    let kind = |text: &str| {
        text.chars()
            .filter(|c| c.is_alphabetic())
            .take(20)
            .collect::<String>()
    };
    let fails = |data: &[u8]| complaint(target, data).is_some_and(|text| kind(&text) == kind(what));
    let mut size = data.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < data.len() {
            let mut less = data.clone();
            less.drain(at..(at + size).min(data.len()));
            if fails(&less) {
                data = less
            } else {
                at += size
            }
        }
        size /= 2;
    }
    for at in 0..data.len() {
        let mut less = data.clone();
        less[at] = 0;
        if fails(&less) {
            data = less;
        }
    }
    data
}

#[test]
fn corpora_and_regressions() {
    for &(name, target) in TARGETS {
        let corpus = files("corpus", name);
        assert!(!corpus.is_empty(), "no corpus of {name}");
        for file in corpus.iter().chain(&files("regressions", name)) {
            run(
                &file.display().to_string(),
                target,
                &std::fs::read(file).unwrap(),
            );
        }
    }
}

/// Every regression has its line `FILE: what went wrong`, and every line its file.
#[test]
fn every_regression_has_its_story() {
    for &(name, _) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("regressions")
            .join(name);
        let stories = std::fs::read_to_string(folder.join("stories.txt")).unwrap_or_default();
        let told: BTreeSet<&str> = stories
            .lines()
            .filter_map(|line| Some(line.split_once(": ")?.0))
            .collect();
        let files = files("regressions", name);
        let found: BTreeSet<&str> = files
            .iter()
            .filter_map(|file| file.file_name()?.to_str())
            .collect();
        assert_eq!(told, found, "regressions of {name}");
    }
}

/// A changed member of the corpus, or bytes out of nothing.
fn mutated(random: &mut StdRng, corpus: &[Vec<u8>], longest: usize) -> Vec<u8> {
    let pick = |random: &mut StdRng| corpus[random.random_range(0..corpus.len())].clone();
    let mut data = match random.random_range(0..4) {
        0 => {
            let mut data = vec![0; random.random_range(0..longest)];
            random.fill_bytes(&mut data);
            return data;
        }
        1 => {
            let (mut one, other) = (pick(random), pick(random));
            let cut = random.random_range(0..=one.len());
            one.truncate(cut);
            one.extend(&other[random.random_range(0..=other.len())..]);
            one
        }
        _ => pick(random),
    };
    for _ in 0..random.random_range(0..8) {
        let at = random.random_range(0..=data.len());
        match random.random_range(0..5) {
            0 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
            1 if at < data.len() => data[at] = random.random(),
            2 => data.insert(at, random.random()),
            3 if at < data.len() => drop(data.remove(at)),
            _ => {
                let end = (at + random.random_range(0..16)).min(data.len());
                let part = data[at..end].to_vec();
                let to = random.random_range(0..=data.len());
                data.splice(to..to, part);
            }
        }
    }
    data.truncate(longest);
    data
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let files = files("corpus", name)
        .into_iter()
        .chain(files("regressions", name));
    files.map(|file| std::fs::read(file).unwrap()).collect()
}

fn random_inputs(name: &str, count: u32) {
    let &(_, target) = TARGETS.iter().find(|target| target.0 == name).unwrap();
    let (corpus, mut random) = (corpus(name), StdRng::seed_from_u64(0xe9e7));
    for _ in 0..count {
        run(name, target, &mutated(&mut random, &corpus, 400));
    }
}

#[test]
fn random_frames() {
    random_inputs("frame", 2_000);
}

#[test]
fn random_operations() {
    random_inputs("operations", 2_000);
}

#[test]
fn random_configurations() {
    random_inputs("config", 5_000);
}

#[test]
fn random_errors() {
    random_inputs("errors", 2_000);
}

#[test]
fn random_fragments() {
    random_inputs("fragments", 2_000);
}

#[test]
#[ignore = "runs as long as EGRET_FUZZ_SECONDS says"]
fn explore() {
    let seconds = std::env::var("EGRET_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let only = std::env::var("EGRET_FUZZ_TARGET").ok();
    let seed = std::env::var("EGRET_FUZZ_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut random = StdRng::seed_from_u64(seed.unwrap_or(1));
    for &(name, target) in TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let corpus = corpus(name);
        let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(60));
        let mut runs = 0_u64;
        while Instant::now() < end {
            run(name, target, &mutated(&mut random, &corpus, 1_500));
            runs += 1;
        }
        println!("{name}: {runs} inputs");
    }
}

/// The samples of the frame parser as a corpus: `cargo test -p egret-fuzz -- --ignored samples`.
#[test]
#[ignore = "writes corpus/frame"]
fn samples_become_a_corpus() {
    use engine::wire::samples;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/frame");
    let malformed = samples::malformed().into_iter().map(|(sample, _)| sample);
    for sample in samples::valid().into_iter().chain(malformed) {
        let mut data = vec![0];
        data.extend(sample.frame);
        std::fs::write(folder.join(sample.name), data).unwrap();
    }
}
