//! How long a packet and its answer take through a gateway that has work to do.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Bench;
use crate::bench::path::load::{FlowSet, Load};
use crate::bench::path::pin::{self, SENDER_CORE, WORKER_PRIORITY};
use crate::bench::path::rounds::Reading;
use crate::bench::path::sender::Way;
use crate::bench::path::stage::{SERVER, Stage};
use crate::lab::LabError;

/// The server's port.
const PORT: u16 = 7;
/// A round trip that takes longer counts as long as this: the packet was lost.
const LOST: Duration = Duration::from_millis(20);
/// Between two round trips.
const PAUSE: Duration = Duration::from_micros(50);
/// What is reported, and at which share of the sorted round trips it is found.
const PERCENTILES: [(&str, f64); 3] = [("rtt-p50", 0.5), ("rtt-p99", 0.99), ("rtt-p999", 0.999)];

impl Bench {
    /// Round trips of a client's datagrams, one after the other, while the generator keeps the
    /// gateway busy with half of nft's overload rate.
    pub(super) fn round_trips(&mut self, set: FlowSet) -> Result<Vec<Reading>, LabError> {
        let load = Load {
            // Waiting for others is not the gateway's delay.
            burst: 1,
            ..Load::paced(set, self.half_load()?, self.length)
        };
        let asking = self.length.saturating_sub(self.length / 5);
        let Bench { stage, sender, .. } = self;
        let stage = &*stage;
        let ask = || ask(stage, asking);
        let (mut times, _) = sender.during(stage, Way::Frames, &load, ask)?;
        times.sort_unstable();
        let readings = PERCENTILES.map(|(name, share)| {
            let us = percentile(&times, share).as_secs_f64() * 1e6;
            Reading::new(name, "us", us)
        });
        Ok(readings.to_vec())
    }
}

/// Asks and is answered for a time; how long each round trip took. Both ends run before the
/// generator, whose core they share.
fn ask(stage: &Stage, length: Duration) -> Result<Vec<Duration>, LabError> {
    let open = || UdpSocket::bind((SERVER, PORT));
    let server = stage
        .server
        .run(open)
        .map_err(LabError::system("opening the server's socket"))?;
    let open = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect((SERVER, PORT))?;
        socket.set_read_timeout(Some(LOST))?;
        Ok(socket)
    };
    let client = stage
        .client
        .run(open)
        .map_err(LabError::system("opening the client's socket"))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            before_others()?;
            answer(&server, &over).map_err(LabError::system("answering"))
        });
        let asked = scope
            .spawn(|| {
                before_others()?;
                ask_for(&client, length).map_err(LabError::system("asking"))
            })
            .join();
        over.store(true, Ordering::Relaxed);
        let answered = echo.join();
        let times = asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        answered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(times)
    })
}

/// Puts the calling thread on the generator's core, before the generator.
fn before_others() -> Result<(), LabError> {
    pin::own(SENDER_CORE, WORKER_PRIORITY).map_err(LabError::system("going before the generator"))
}

fn answer(socket: &UdpSocket, over: &AtomicBool) -> io::Result<()> {
    socket.set_read_timeout(Some(LOST))?;
    let mut bytes = [0; 64];
    while !over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..length], from)?;
        }
    }
    Ok(())
}

fn ask_for(socket: &UdpSocket, length: Duration) -> io::Result<Vec<Duration>> {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < length {
        let number = (times.len() as u64).to_ne_bytes();
        let sent = Instant::now();
        socket.send(&number)?;
        let mut answer = [0; 64];
        let took = loop {
            match socket.recv(&mut answer) {
                Ok(8) if answer[..8] == number => break sent.elapsed(),
                // A late answer to an earlier question.
                Ok(_) if sent.elapsed() < LOST => {}
                _ => break LOST,
            }
        };
        times.push(took);
        std::thread::sleep(PAUSE);
    }
    Ok(times)
}

/// The value below which a share of sorted values lies; 0 of none.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let last = sorted.len().saturating_sub(1);
    let at = rank.saturating_sub(1).min(last);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let times: Vec<Duration> = (1..=1000).map(Duration::from_micros).collect();
        let at = |share| percentile(&times, share).as_micros();
        assert_eq!((at(0.5), at(0.99), at(0.999)), (500, 990, 999));
        assert_eq!(percentile(&times[..1], 0.999), Duration::from_micros(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
