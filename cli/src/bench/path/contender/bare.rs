//! The ceiling of AF_XDP: a forwarder that does nothing but set the Ethernet addresses, on the
//! engine's own rings or on another's.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::{MapData, XskMap};
use aya::programs::xdp::XdpMode;
use engine::device::sys::link;
use engine::device::sys::socket::CopyMode;
use engine::device::xdp::{XdpConfig, XdpDevice, XdpInterface};
use engine::device::{Device, Frame};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Contender;
use crate::bench::path::pin::{self, GATEWAY_CORE, WORKER_PRIORITY};
use crate::bench::path::program::Object;
use crate::bench::path::stage::{END, Stage};
use crate::lab::{LabError, Namespace};

/// Frames that are taken at a time, as by the engine.
pub const BATCH: usize = 64;
/// Empty rounds after which it sleeps, as the engine.
const EMPTY_ROUNDS_MAX: u32 = 32;
/// Longest sleep: how soon it sees that it should end.
const SLEEP: Duration = Duration::from_millis(50);
/// Places of the interfaces in the device.
const INSIDE: usize = 0;
const OUTSIDE: usize = 1;

/// Both Ethernet addresses of a frame that goes outside, as they stand in it.
pub type Addresses = [u8; 12];

/// AF_XDP sockets on both of the gateway's interfaces, over one frame memory.
pub trait Rings: Send + 'static {
    /// Takes a batch from inside, gives every frame these addresses, sends it outside, and refills
    /// the rings. Returns how many frames it took.
    ///
    /// # Errors
    /// A system call failed for good.
    fn carry(&mut self, addresses: &Addresses) -> io::Result<usize>;

    /// The sockets, the one that receives from inside first.
    fn sockets(&self) -> [RawFd; 2];
}

/// Forwards from inside to outside on a thread.
pub struct Bare {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
    /// The thread's number.
    worker: i32,
    /// The program that steers, and its map.
    _steering: (Object, XskMap<MapData>),
}

impl Bare {
    /// Steers all frames from inside to these rings, and starts forwarding.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn start(stage: &Stage, rings: impl Rings) -> Result<Bare, LabError> {
        let mut object = Object::load()?;
        let mut sockets = object.sockets("sockets")?;
        let [inside, _] = rings.sockets();
        sockets
            .set(0, inside, 0)
            .map_err(LabError::bpf("giving the socket to the program"))?;
        attach(&mut object, &stage.gateway, &stage.inside)?;
        let mut addresses = Addresses::default();
        addresses[..6].copy_from_slice(&stage.mac(&stage.server, END)?);
        addresses[6..].copy_from_slice(&stage.mac(&stage.gateway, &stage.outside)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = std::sync::mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            pin::own(GATEWAY_CORE, WORKER_PRIORITY)?;
            let _ = tell.send(nix::unistd::gettid().as_raw());
            forward(rings, &addresses, &stopped)
        });
        let mut forwarder = Bare {
            stop,
            thread: Some(thread),
            worker: 0,
            _steering: (object, sockets),
        };
        match told.recv() {
            Ok(worker) => forwarder.worker = worker,
            Err(_) => forwarder.end()?,
        }
        Ok(forwarder)
    }
}

fn attach(object: &mut Object, namespace: &Namespace, link: &str) -> Result<(), LabError> {
    let program = object.load_xdp("to_socket")?;
    let what = format!("attaching to {link}");
    namespace
        .run(|| Ok(program.attach(link, XdpMode::Driver).map(drop)))
        .map_err(LabError::system(what.clone()))?
        .map_err(LabError::bpf(what))
}

/// Forwards until told to stop; the engine's own way to wait for frames.
fn forward(mut rings: impl Rings, addresses: &Addresses, stop: &AtomicBool) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(4);
    for (number, fd) in rings.sockets().iter().enumerate() {
        poll.registry()
            .register(&mut SourceFd(fd), Token(number), Interest::READABLE)?;
    }
    let mut empty_rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        if rings.carry(addresses)? > 0 {
            empty_rounds = 0;
            continue;
        }
        empty_rounds += 1;
        if empty_rounds >= EMPTY_ROUNDS_MAX {
            match poll.poll(&mut events, Some(SLEEP)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => empty_rounds = EMPTY_ROUNDS_MAX - 1,
            }
        }
    }
    Ok(())
}

/// The engine's own rings.
pub struct OwnRings {
    device: XdpDevice,
    /// What is under way; empty between batches.
    frames: Vec<Frame>,
}

impl OwnRings {
    /// Binds a socket on both of the gateway's interfaces, over one frame memory.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open(stage: &Stage) -> Result<OwnRings, LabError> {
        let opened = stage.gateway.run(|| {
            let interface = |name: &str| {
                Ok::<_, io::Error>(XdpInterface {
                    name: name.to_owned(),
                    ifindex: link::index(name)?,
                    queues: 1,
                })
            };
            let config = XdpConfig {
                interfaces: vec![interface(&stage.inside)?, interface(&stage.outside)?],
                worker: 0,
                workers: 1,
                mode: CopyMode::Auto,
                slots_max: 65_536,
            };
            XdpDevice::open(&config).map_err(io::Error::other)
        });
        Ok(OwnRings {
            device: opened.map_err(LabError::system("opening AF_XDP sockets"))?,
            frames: Vec::with_capacity(BATCH),
        })
    }
}

impl Rings for OwnRings {
    fn carry(&mut self, addresses: &Addresses) -> io::Result<usize> {
        let OwnRings { device, frames } = self;
        let taken = device.receive(INSIDE, frames, BATCH);
        for frame in frames.iter() {
            device.bytes_mut(frame)[..12].copy_from_slice(addresses);
        }
        device.transmit(OUTSIDE, frames);
        frames.drain(..).for_each(|frame| device.free(frame));
        device.flush();
        Ok(taken)
    }

    fn sockets(&self) -> [RawFd; 2] {
        let mut sockets = [-1; 2];
        for (interface, _, socket) in self.device.sockets() {
            sockets[interface] = socket.as_raw_fd();
        }
        sockets
    }
}

impl Contender for Bare {
    fn tracked(&self, _: &Stage) -> Result<Option<u64>, LabError> {
        Ok(None)
    }

    fn threads(&self) -> Vec<i32> {
        vec![self.worker]
    }

    fn fill_rate(&self) -> f64 {
        f64::INFINITY
    }

    fn stop(mut self: Box<Self>, _: &Stage) -> Result<(), LabError> {
        self.end()
    }
}

impl Bare {
    fn end(&mut self) -> Result<(), LabError> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended.map_err(LabError::system("forwarding")),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // After `stop` there is nothing left to end; its error was reported there.
        let _ = self.end();
    }
}
