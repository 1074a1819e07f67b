//! Where the load ends: a program on the server's ingress counts and drops it.

use std::net::Ipv4Addr;
use std::time::Instant;

use aya::maps::{MapData, PerCpuArray};

use super::program::Object;
use crate::lab::{LabError, Namespace};

/// Counts what arrives at the far end, as socket buffers at tc ingress: the cheapest place for what
/// a veth hands over, whichever way the gateway sent it.
pub struct Sink {
    counts: PerCpuArray<MapData, u64>,
    _object: Object,
}

/// What has arrived, in packets.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// When this was read.
    pub at: Instant,
    /// Of the first and second kind, from the gateway's external address.
    pub translated: [u64; 2],
    /// Of the first and second kind, from anybody else.
    pub untranslated: [u64; 2],
}

impl Arrived {
    /// Packets of all kinds.
    pub fn total(self) -> u64 {
        self.translated.iter().chain(&self.untranslated).sum()
    }

    /// Packets a second since an earlier reading, of everything that `pick` counts.
    pub fn rate_since(self, before: Arrived, pick: impl Fn(Arrived) -> u64) -> f64 {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        (pick(self) - pick(before)) as f64 / seconds
    }
}

impl Sink {
    /// Begins to count on an interface. Other traffic is left alone.
    ///
    /// # Errors
    /// The program could not be attached.
    pub fn open(namespace: &Namespace, link: &str, external: Ipv4Addr) -> Result<Sink, LabError> {
        let mut object = Object::load()?;
        let mut wanted = object.array::<u32>("wanted")?;
        wanted
            .set(0, u32::from_ne_bytes(external.octets()), 0)
            .map_err(LabError::bpf("telling the sink the external address"))?;
        object.attach_classifier("sink", namespace, link)?;
        Ok(Sink {
            counts: object.counters("counts")?,
            _object: object,
        })
    }

    /// What has arrived so far.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read(&self) -> Result<Arrived, LabError> {
        let count = |which| total(&self.counts, which);
        Ok(Arrived {
            at: Instant::now(),
            translated: [count(0)?, count(1)?],
            untranslated: [count(2)?, count(3)?],
        })
    }
}

/// Counts ICMP errors that come back to the client, which ends them.
pub struct Answers {
    counts: PerCpuArray<MapData, u64>,
    _object: Object,
}

impl Answers {
    /// Begins to count on an interface.
    ///
    /// # Errors
    /// The program could not be attached.
    pub fn open(namespace: &Namespace, link: &str) -> Result<Answers, LabError> {
        let mut object = Object::load()?;
        object.attach_classifier("errors", namespace, link)?;
        Ok(Answers {
            counts: object.counters("counts")?,
            _object: object,
        })
    }

    /// ICMP "unreachable" errors so far.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read(&self) -> Result<u64, LabError> {
        total(&self.counts, 4)
    }
}

fn total(counts: &PerCpuArray<MapData, u64>, which: u32) -> Result<u64, LabError> {
    let values = counts
        .get(&which, 0)
        .map_err(LabError::bpf("reading the sink's counters"))?;
    Ok(values.iter().sum())
}
