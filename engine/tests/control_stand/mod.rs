//! A control socket over a gateway in memory: the real server and client, a virtual clock.
#![allow(dead_code, missing_docs)]

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use conntrack::Time;
use engine::control::answer::{ErrorCode, Refusal};
use engine::control::client::Line;
use engine::control::report::{Interface, Soundness, Status, SteeringStatus, WayRefused};
use engine::control::request::Request;
use engine::control::{Control, Source, open};
use engine::gateway::Shared;
use engine::invariants;
use engine::ladder::{Reached, Rung, Way};
use engine::stats::Snapshot;
use engine::status::report;
use engine::steering::SteeringCounters;
use engine::wire::build::Envelope;
use engine::world::{Setup, World};
use serde_json::Value;
use tokio::sync::oneshot;

pub const LAN: usize = 0;
pub const WAN: usize = 1;
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
pub const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

pub const TWO_ARM: &str = "internal = \"10.0.0.0/8\"\n\
    [[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n\
    [pool]\naddresses = \"198.51.100.20\"\n";
pub const FORWARD: &str = "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\n\
    target = \"10.77.0.10:443\"\n";
pub const EIM: &str = "[nat]\nmapping = \"eim\"\nfiltering = \"eif\"\n";

/// Holds the checks of the tables up until it is opened.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 = true;
        self.changed.notify_all();
        while state.0 {
            state = self.changed.wait(state).unwrap();
        }
    }

    pub fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }

    pub fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    /// Waits until somebody stands before it.
    pub fn wait_for_somebody(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// What the answers are made of, on the server's thread.
struct Tables {
    shared: Arc<Shared>,
    now: Arc<AtomicU64>,
    gate: Arc<Gate>,
    on_trial: Cell<bool>,
}

/// One way that was not gone.
fn reached() -> Reached {
    let rung = Rung {
        refused: vec![(Way::Copy, "no reason".to_owned())],
        ..Reached::routed("eth0").rungs.remove(0)
    };
    Reached {
        rungs: vec![rung],
        ..Reached::routed("eth0")
    }
}

impl Source for Tables {
    fn status(&self) -> Status {
        let links = self.shared.links.load();
        let interfaces = links.links.iter().map(|link| Interface {
            name: link.name.clone(),
            role: link.role.to_string(),
            mac: "02:00:00:00:00:01".to_owned(),
            mtu: link.mtu,
            present: link.present,
            mode: "tun".to_owned(),
            modes_refused: vec![WayRefused {
                mode: "copy".to_owned(),
                reason: "no reason".to_owned(),
            }],
            self_test: "passed".to_owned(),
            addresses: link.addresses.iter().map(ToString::to_string).collect(),
        });
        let workers = vec![Snapshot {
            sockets: vec![Default::default(); 2],
            ..Snapshot::default()
        }];
        let counted = SteeringCounters {
            spoofed: 3,
            ..SteeringCounters::default()
        };
        let steering = Some(SteeringStatus::Counts(counted));
        let interfaces = interfaces.collect();
        report(&self.shared, workers, &reached(), interfaces, steering)
    }

    fn invariants(&self) -> Box<dyn FnOnce() -> Soundness + Send> {
        let (shared, now, gate) = (Arc::clone(&self.shared), self.now(), Arc::clone(&self.gate));
        Box::new(move || {
            gate.pass();
            let checked = invariants::check(&shared, &[], now);
            let invariants = checked.map_or_else(|why| why.to_string(), |()| "ok".to_owned());
            Soundness { invariants }
        })
    }

    fn confirm(&self) -> Result<(), Refusal> {
        match self.on_trial.replace(false) {
            true => Ok(()),
            false => Err(Refusal::new(
                ErrorCode::Refused,
                "there is nothing to confirm",
            )),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn now(&self) -> Time {
        Time(self.now.load(Ordering::Relaxed))
    }
}

/// A gateway in memory and its control socket.
pub struct Stand {
    pub world: World,
    pub gate: Arc<Gate>,
    path: PathBuf,
    now: Arc<AtomicU64>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Stand {
    pub fn new(more: &str) -> Stand {
        Stand::with(more, Setup::default())
    }

    pub fn with(more: &str, setup: Setup) -> Stand {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let world = World::with(&format!("{TWO_ARM}{more}"), setup).unwrap();
        let name = format!("egret-control-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name).join("socket");
        let now = Arc::new(AtomicU64::new(world.now().0));
        let gate = Arc::new(Gate::default());
        let (end, ended) = oneshot::channel();
        let (shared, clock, door) = (
            Arc::clone(world.shared()),
            Arc::clone(&now),
            Arc::clone(&gate),
        );
        let (listening, listens) = std::sync::mpsc::channel();
        let socket = path.clone();
        let thread = std::thread::spawn(move || {
            let tables = Tables {
                shared,
                now: clock,
                gate: door,
                on_trial: Cell::new(true),
            };
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            // As the engine's.
            let runtime = runtime
                .enable_all()
                .max_blocking_threads(1)
                .build()
                .unwrap();
            runtime.block_on(async {
                let control = Control::listen(&socket, None).unwrap();
                listening.send(()).unwrap();
                tokio::select! {
                    _ = ended => {}
                    () = control.serve(&tables) => {}
                }
            });
            runtime.shutdown_background();
        });
        listens.recv().unwrap();
        Stand {
            world,
            gate,
            path,
            now,
            server: Some((end, thread)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets a frame through.
    pub fn send(&mut self, interface: usize, frame: &[u8]) {
        assert!(self.world.inject(interface, frame));
        self.world.run();
    }

    /// A UDP packet of a flow from inside.
    pub fn udp(&mut self, client: Ipv4Addr, port: u16) {
        let frame = Envelope::new(client, SERVER).udp(port, 53, b"question");
        self.send(LAN, &frame);
    }

    /// A TCP segment from inside.
    pub fn tcp(&mut self, client: Ipv4Addr, port: u16, flags: u8) {
        let frame = Envelope::new(client, SERVER).tcp(port, 80, flags, b"");
        self.send(LAN, &frame);
    }

    /// Lets time pass.
    pub fn pass_ms(&mut self, ms: u64) {
        self.world.pass_ms(ms, 10);
        self.now.store(self.world.now().0, Ordering::Relaxed);
    }

    /// The lines of an answer. The workers go on meanwhile.
    pub fn ask(&mut self, request: &Request) -> Vec<Value> {
        self.ask_while(request, |_| ())
    }

    /// The same while something is done each round.
    pub fn ask_while(&mut self, request: &Request, mut work: impl FnMut(&mut World)) -> Vec<Value> {
        let (path, request) = (self.path.clone(), request.clone());
        let client = std::thread::spawn(move || lines(&path, &request));
        while !client.is_finished() {
            // Time stands still unless the workers have something to do.
            if self.world.shared().flushes.is_pending() {
                self.pass_ms(10);
                work(&mut self.world);
            }
            std::thread::yield_now();
        }
        client.join().unwrap()
    }

    /// The one line of an answer.
    pub fn one(&mut self, request: &Request) -> Value {
        let lines = self.ask(request);
        let [line] = lines.as_slice() else {
            panic!("{lines:?} is not one line");
        };
        line.clone()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.server.take() {
            let _ = end.send(());
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir(self.path.parent().unwrap());
    }
}

/// All lines of an answer.
pub fn lines(path: &Path, request: &Request) -> Vec<Value> {
    let mut lines = open(path, request).unwrap();
    let mut all = Vec::new();
    while let Some(Line::Answer(line) | Line::End(line) | Line::Error(line)) =
        lines.next_line().unwrap()
    {
        all.push(serde_json::from_slice(line).unwrap());
    }
    all
}

/// The kinds of lines, in order.
pub fn kinds(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect()
}
