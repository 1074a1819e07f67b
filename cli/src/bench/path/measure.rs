//! The measurements. Each starts its contender anew, and ends it.

mod cpu;
mod ports;
mod rate;
mod round_trip;
mod tcp;

use std::path::PathBuf;
use std::time::Duration;

use engine::device::sys::ethtool::Offload;

use super::Agenda;
use super::choice::{Flows, Need, Rival, Test};
use super::conntrack;
use super::contender::{self, Contender};
use super::load::{FlowSet, Load};
use super::rounds::Reading;
use super::sender::{Sender, Way};
use super::sink::{Answers, Arrived, Sink};
use super::stage::{END, EXTERNAL, Stage};
use crate::lab::LabError;

/// The share of packets that a rate "without loss" may lose.
pub const LOSS_MAX: f64 = 0.001;
/// How often flows are sent until the contender has them all.
const FILL_PASSES: u32 = 5;
/// The share of the flows that a contender must track at the end: of more, its rate would be that
/// of packets which it let through as they are.
const TRACKED_MIN: f64 = 0.99;

/// What all measurements share.
pub struct Bench {
    stage: Stage,
    sender: Sender,
    sink: Sink,
    answers: Answers,
    program: PathBuf,
    length: Duration,
    receive_on_sender_core: bool,
    has_nft: bool,
    /// Packets a second that nft delivers at overload, once it was needed.
    reference: Option<f64>,
}

impl Bench {
    /// Prepares to measure on a stage; `program` is the `egret` binary.
    ///
    /// # Errors
    /// A program could not be loaded or attached.
    pub fn open(stage: Stage, program: PathBuf, agenda: &Agenda) -> Result<Bench, LabError> {
        let has_nft = prepare_nft(&stage);
        for rival in &agenda.rivals {
            if let Some(why) = rival.left_out() {
                eprintln!("skipped {}: {why}", rival.name());
            }
        }
        Ok(Bench {
            sender: Sender::open(&stage)?,
            sink: Sink::open(&stage.server, END, EXTERNAL)?,
            answers: Answers::open(&stage.client, END)?,
            stage,
            program,
            length: agenda.length,
            receive_on_sender_core: agenda.receive_on_sender_core,
            has_nft,
            reference: None,
        })
    }

    /// Is there everything that a contender needs?
    pub fn can_run(&self, rival: Rival) -> bool {
        rival.left_out().is_none() && (rival != Rival::Nft || self.has_nft)
    }

    /// One contender's turn in one test.
    ///
    /// # Errors
    /// It could not be started or measured.
    pub fn measure(
        &mut self,
        test: Test,
        flows: Option<Flows>,
        rival: Rival,
    ) -> Result<Vec<Reading>, LabError> {
        if matches!(test, Test::Rtt | Test::Cpu) {
            self.find_reference()?;
        }
        self.with(test, rival, |bench, contender| {
            bench.measure_started(test, flows, rival, contender)
        })
    }

    /// Starts a contender, does `work`, and ends the contender, whatever came of it.
    fn with<T>(
        &mut self,
        test: Test,
        rival: Rival,
        work: impl FnOnce(&mut Bench, &dyn Contender) -> Result<T, LabError>,
    ) -> Result<T, LabError> {
        let named = |error: LabError| LabError::Gateway(format!("{}: {error}", rival.name()));
        let stage = &self.stage;
        // Packets of a sender that segments later would go past the gateway's NAPI.
        let tso = matches!(test, Test::Tcp1 | Test::Tcp8);
        for namespace in [&stage.client, &stage.server] {
            stage.set_offload(namespace, END, Offload::Tso, tso)?;
        }
        let contender = contender::start(rival, stage, &self.program).map_err(named)?;
        let pinned = if self.receive_on_sender_core {
            Ok(())
        } else {
            stage.pin_napi()
        };
        let worked = pinned.and_then(|()| work(self, &*contender)).map_err(named);
        let stopped = contender.stop(&self.stage).map_err(named);
        let result = worked?;
        stopped?;
        Ok(result)
    }

    fn measure_started(
        &mut self,
        test: Test,
        flows: Option<Flows>,
        rival: Rival,
        contender: &dyn Contender,
    ) -> Result<Vec<Reading>, LabError> {
        let set = FlowSet::from(flows.unwrap_or(Flows::Thousand));
        // Also where every packet is a new flow: the way to the server must be known by then.
        let fills = !matches!(test, Test::Tcp1 | Test::Tcp8);
        if fills {
            self.fill(contender, set)?;
        }
        let translates = rival.ability() >= Need::Translation;
        let before = self.sink.read()?;
        let readings = match test {
            Test::Udp64Overload => self.overload(test, set, Way::Frames),
            Test::Udp64Skb => self.overload(test, set, Way::Buffers),
            Test::Udp64Ndr => self.without_loss(set),
            Test::Overload10x => self.overload_times_ten(set),
            Test::NewSessions => self.new_sessions(),
            Test::Tcp1 => self.tcp(test, 1),
            Test::Tcp8 => self.tcp(test, 8),
            Test::Rtt => self.round_trips(set),
            Test::PortsExhausted => self.ports_exhausted(contender, set),
            Test::Cpu => self.cpu(contender, set),
        }?;
        if translates {
            self.check_translated(before, self.sink.read()?)?;
        }
        if fills {
            self.check_tracked(contender, set)?;
        }
        Ok(readings)
    }

    /// Sends each flow at a pace that the contender surely takes up, until it has them all.
    fn fill(&mut self, contender: &dyn Contender, set: FlowSet) -> Result<(), LabError> {
        let pace = contender.fill_rate().min(1e6);
        let duration = Duration::from_secs_f64(set.count() as f64 / pace * 1.05 + 0.02);
        let mut first = 0;
        for _ in 0..FILL_PASSES {
            // A sender that was held up has not come to the end: the next pass goes on there.
            let load = Load {
                first,
                ..Load::paced(set, pace, duration)
            };
            let ((), sent) = self.send(Way::Frames, &load, || Ok(()))?;
            first += sent;
            let tracked = contender.tracked(&self.stage)?;
            if tracked.is_none_or(|tracked| tracked >= set.count()) {
                break;
            }
        }
        self.check_tracked(contender, set)
    }

    /// Does the contender, if it tracks flows at all, track these?
    fn check_tracked(&self, contender: &dyn Contender, set: FlowSet) -> Result<(), LabError> {
        match contender.tracked(&self.stage)? {
            Some(tracked) if (tracked as f64) < set.count() as f64 * TRACKED_MIN => {
                let wanted = set.count();
                Err(LabError::Gateway(format!(
                    "it tracks {tracked} of {wanted} flows: its rate would not be that of NAT"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Did everything that arrived have the external address?
    fn check_translated(&self, before: Arrived, after: Arrived) -> Result<(), LabError> {
        let sum = |arrived: Arrived| arrived.untranslated.iter().sum::<u64>();
        match sum(after) - sum(before) {
            0 => Ok(()),
            leaked => Err(LabError::Gateway(format!(
                "{leaked} packets left with another source than {EXTERNAL}"
            ))),
        }
    }

    /// Sends a load and watches meanwhile.
    fn send<T>(
        &mut self,
        way: Way,
        load: &Load,
        watch: impl FnOnce() -> Result<T, LabError>,
    ) -> Result<(T, u64), LabError> {
        self.sender.during(&self.stage, way, load, watch)
    }

    /// What nft delivers at overload with few flows; without nft, half of what plain forwarding
    /// does.
    fn find_reference(&mut self) -> Result<f64, LabError> {
        if let Some(reference) = self.reference {
            return Ok(reference);
        }
        let (rival, share) = if self.has_nft {
            (Rival::Nft, 1.0)
        } else {
            (Rival::Forward, 0.5)
        };
        let set = FlowSet::from(Flows::Thousand);
        let rate = self.with(Test::Udp64Overload, rival, |bench, contender| {
            bench.fill(contender, set)?;
            bench.delivered(Way::Frames, set)
        })?;
        let reference = rate.delivered * share;
        self.reference = Some(reference);
        eprintln!(
            "rtt and cpu are measured at {:.0} packets a second, from the overload rate of {}",
            reference / 2.0,
            rival.name()
        );
        Ok(reference)
    }

    /// The load that contenders are compared under: packets a second.
    fn half_load(&self) -> Result<f64, LabError> {
        let none = || LabError::Gateway("no reference was measured".to_owned());
        Ok(self.reference.ok_or_else(none)? / 2.0)
    }
}

/// Is there what nft needs? Says so if not.
fn prepare_nft(stage: &Stage) -> bool {
    let tried = if find("nft") {
        conntrack::make_room(stage).map_err(|error| error.to_string())
    } else {
        Err("the tool is missing (Debian package nftables)".to_owned())
    };
    if let Err(why) = &tried {
        eprintln!("skipped nft: {why}");
    }
    tried.is_ok()
}

/// Is there what a test needs? Says so if not.
pub fn can_measure(test: Test, receive_on_sender_core: bool) -> bool {
    let why = match test {
        Test::Tcp1 | Test::Tcp8 if !find("iperf3") => {
            "the tool iperf3 is missing (Debian package iperf3)"
        }
        Test::Cpu if receive_on_sender_core => {
            "what receives on the sender's core has no threads whose time could be told"
        }
        _ => return true,
    };
    eprintln!("skipped {}: {why}", test.name());
    false
}

/// Is this program installed?
fn find(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
