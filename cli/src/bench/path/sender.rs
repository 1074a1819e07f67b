//! Who sends the load: a BPF program that makes frames in the client's kernel, or a packet socket
//! that sends them as socket buffers.

use std::io;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions};
use engine::device::sys::packet::{BATCH_MAX, PacketSocket};

use super::load::{FRAME_BYTES, INTERNAL_BASE, Load, REMOTE_BASE, write_frame};
use super::pin::{self, SENDER_CORE, SENDER_PRIORITY};
use super::program::Object;
use super::stage::{END, Stage};
use crate::lab::{LabError, wait};

/// More frames a second than this machine's generator makes: a run is over when its time is.
const RATE_MAX: f64 = 1.2e7;
/// Turns a second in which a paced run finds nothing to send, at most.
const IDLE_TURNS: f64 = 1e6;
/// How long a run may take to begin.
const BEGIN_LIMIT: Duration = Duration::from_secs(2);

/// How frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As xdp_frames, like a network card.
    Frames,
    /// As socket buffers, like a pod.
    Buffers,
}

/// Sends loads from the client to the gateway.
pub struct Sender {
    plan: Array<MapData, [u64; 11]>,
    progress: Array<MapData, [u64; 3]>,
    object: Object,
    ifindex: u32,
    /// Of the gateway and of the client.
    macs: [[u8; 6]; 2],
}

impl Sender {
    /// Prepares to send from the stage's client.
    ///
    /// # Errors
    /// The generator's program could not be loaded.
    pub fn open(stage: &Stage) -> Result<Sender, LabError> {
        let mut object = Object::load()?;
        object.load_xdp("generate")?;
        Ok(Sender {
            plan: object.array("plan")?,
            progress: object.array("progress")?,
            object,
            ifindex: stage.client.index(END)?,
            macs: [
                stage.mac(&stage.gateway, &stage.inside)?,
                stage.mac(&stage.client, END)?,
            ],
        })
    }

    /// Sends `load` for its time, and meanwhile does `watch`, which begins when the first packet
    /// is sent. Returns when both are over; also how many packets were handed over.
    ///
    /// # Errors
    /// The kernel's refusal, or what `watch` returns.
    pub fn during<T>(
        &mut self,
        stage: &Stage,
        way: Way,
        load: &Load,
        watch: impl FnOnce() -> Result<T, LabError>,
    ) -> Result<(T, u64), LabError> {
        self.prepare(load)?;
        let this = &*self;
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || {
                stage.client.run(|| {
                    pin::own(SENDER_CORE, SENDER_PRIORITY)?;
                    match way {
                        Way::Frames => this.send_frames(load),
                        Way::Buffers => this.send_buffers(load),
                    }
                })
            });
            let begun = way == Way::Buffers
                || wait::until(BEGIN_LIMIT, || this.has_begun() || sending.is_finished());
            let watched = begun.then(watch);
            let sent = match sending.join() {
                Ok(sent) => sent.map_err(LabError::system("sending the load"))?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            let late = || LabError::Gateway("the generator did not begin in time".to_owned());
            Ok((watched.ok_or_else(late)??, sent))
        })
    }

    fn prepare(&mut self, load: &Load) -> Result<(), LabError> {
        let mac = |[a, b, c, d, e, f]: [u8; 6]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        // In 1/1024 ns.
        let gap = load.pace.map_or(0.0, |pace| 1e9 * 1024.0 / pace);
        let plan = [
            u64::from(self.ifindex),
            mac(self.macs[0]),
            mac(self.macs[1]),
            u64::from(load.flows.endpoint_bits),
            u64::from(load.flows.flow_bits),
            u64::from(load.second_bits.unwrap_or(0)),
            u64::from(INTERNAL_BASE.to_bits()),
            u64::from(REMOTE_BASE.to_bits()),
            gap as u64,
            load.duration.as_nanos() as u64,
            load.first,
        ];
        let prepared = self
            .plan
            .set(0, plan, 0)
            .and_then(|()| self.progress.set(0, [0; 3], 0));
        prepared.map_err(LabError::bpf("telling the generator what to send"))
    }

    fn has_begun(&self) -> bool {
        self.progress.get(&0, 0).is_ok_and(|[begun, ..]| begun != 0)
    }

    /// One call of the kernel, which runs the program for frame after frame and carries out what
    /// it decides.
    fn send_frames(&self, load: &Load) -> io::Result<u64> {
        let seconds = load.duration.as_secs_f64();
        let turns = load.pace.map_or(RATE_MAX, |pace| pace + IDLE_TURNS) * seconds;
        let options = TestRunOptions {
            data_in: Some(&[0; FRAME_BYTES]),
            repeat: turns as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(load.burst),
            ..TestRunOptions::default()
        };
        let program = self.object.xdp("generate").map_err(io::Error::other)?;
        program.test_run(options).map_err(io::Error::other)?;
        let [_, _, sent] = self.progress.get(&0, 0).map_err(io::Error::other)?;
        Ok(sent)
    }

    /// Batch after batch through a packet socket.
    fn send_buffers(&self, load: &Load) -> io::Result<u64> {
        let socket = PacketSocket::open(self.ifindex)?;
        let mut frames = [[0; FRAME_BYTES]; BATCH_MAX];
        let mut sent = 0;
        let begun = Instant::now();
        while begun.elapsed() < load.duration {
            for (at, frame) in frames.iter_mut().enumerate() {
                write_frame(frame, self.macs, load.flows, load.first + sent + at as u64);
            }
            match socket.send(&frames) {
                Ok(taken) => sent += taken as u64,
                // The gateway's receive ring was full: the packet was lost on the wire.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}
