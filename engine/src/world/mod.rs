//! A gateway in memory, for tests, fuzzing, benches and simulation: the real workers, gateway and
//! conntrack over a device in memory, a host that records what is punted, a made-up routing table,
//! a virtual clock and seeded randomness. The same calls give the same bytes.
//!
//! Not for the packet path: it allocates, and panics when it is used wrongly.

mod check;
mod facts;
mod finish;
mod inspect;
mod setup;

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use conntrack::{AddressKind, Identity, LostPorts, Nat, Policy, Random, TableSize, Time, Totals};
use crossbeam_queue::ArrayQueue;
use ipnet::Ipv4Net;

use crate::config::Config;
use crate::control::flush::Flushes;
use crate::device::fault::{FaultDevice, Faults};
use crate::device::memory::MemoryDevice;
use crate::device::offload::Offload;
use crate::fragment::{FragmentLimits, FragmentTable, Identifications};
use crate::gateway::{Gateway, Shared};
use crate::invariants::Violation;
use crate::link::{Link, Links};
use crate::neighbour::HopState;
use crate::plan::{Earlier, HostFacts, Plan, Slots, Translation, policy_for};
use crate::random::WorkerRandom;
use crate::route::{Forwarding, RouteFacts, ServedInterface};
use crate::rulebook::{Rulebook, settle};
use crate::stats::{Snapshot, WorkerStats};
use crate::worker::{Host, Worker};

pub use facts::{
    Arm, EXTERNAL, UPSTREAM, host_for, mac_of, mac_of_interface, routes_for, unicast_route,
};
pub use finish::{finish, unfinish};
pub use inspect::{inspect, repair, transport_is_right};
pub use setup::{Memory, Setup, WorldError};

/// Every world's tables are of one boot.
const IDENTITY: Identity = Identity {
    boot_id: *b"world in memory.",
};

/// The host beside the gateway: keeps what is punted to it.
#[derive(Debug, Default)]
pub struct Recorder {
    punted: Vec<(u8, Vec<u8>)>,
    /// It takes nothing.
    refuses: bool,
    /// It throws away what it gets.
    forgets: bool,
}

impl Host for Recorder {
    fn punt(&mut self, interface: u8, frame: &mut [u8], offload: Offload) -> bool {
        if !self.refuses && !self.forgets {
            let frames = finish(frame, offload).into_iter();
            self.punted.extend(frames.map(|frame| (interface, frame)));
        }
        !self.refuses
    }
}

/// A worker of a world.
pub type WorldWorker = Worker<FaultDevice<MemoryDevice>, Recorder, WorkerRandom>;

/// A gateway in memory. See the module.
pub struct World {
    setup: Setup,
    config: Config,
    translation: Translation,
    arms: Vec<Arm>,
    host: HostFacts,
    places: Slots,
    words: &'static [AtomicU64],
    owned: &'static [AtomicU64],
    shared: Arc<Shared>,
    workers: Vec<WorldWorker>,
    now: Time,
    sent: Vec<Vec<Vec<u8>>>,
    /// By worker and interface.
    before: Vec<Vec<Before>>,
    violation: Option<Violation>,
    restarts: u64,
}

/// Frames that were in a transmit queue when the link's MTU changed. They were cut for the one
/// before, as those are that are in a ring already; no router looks at them again.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    /// How many of them have not left yet: they leave first.
    frames: usize,
    /// The largest MTU that any of them may have been cut for.
    mtu: u16,
}

/// Words of worlds that are gone, to be used again: they live as long as the process.
static WORDS: Mutex<Vec<&'static [AtomicU64]>> = Mutex::new(Vec::new());

fn words(len: usize) -> &'static [AtomicU64] {
    let mut free = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    match free.iter().position(|words| words.len() == len) {
        Some(place) => free.swap_remove(place),
        None => (0..len)
            .map(|_| AtomicU64::new(0))
            .collect::<Vec<_>>()
            .leak(),
    }
}

impl World {
    /// The usual world for a configuration.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: &str) -> Result<World, WorldError> {
        World::with(config, Setup::default())
    }

    /// A world that differs from the usual one.
    ///
    /// # Errors
    /// What is wrong with the configuration, or does not fit the host.
    pub fn with(config: &str, setup: Setup) -> Result<World, WorldError> {
        let config = Config::parse("world.toml", config)?;
        let internal: Vec<Ipv4Net> = config.internal.iter().map(|prefix| prefix.value).collect();
        let usual = || {
            config
                .interfaces
                .iter()
                .map(|i| Arm::of(i.role, &internal))
                .collect()
        };
        let arms: Vec<Arm> = setup.arms.clone().unwrap_or_else(usual);
        let host = host_for(&config, &arms);
        let plan = Plan::make(&config, &host).map_err(WorldError::Plan)?;
        let size = TableSize {
            sessions_max: config
                .tables
                .sessions_max
                .map_or(setup.sessions_max, |max| max.value),
            addresses_max: setup.addresses_max.unwrap_or(plan.addresses_max),
        };
        let mut places = Slots::new(size.addresses_max);
        let policy = policy_for(
            &config,
            &plan.translation,
            plan.shared_address,
            &host,
            &mut places,
        );
        let Memory { words, owned } = setup.memory.unwrap_or_else(|| Memory {
            words: words(size.words()),
            owned: words(size.owned_words()),
        });
        let mut random = WorkerRandom::from_seed(setup.seed);
        let nat = Nat::create(words, owned, size, IDENTITY, &mut random)
            .expect("the words are of this size");
        assert!(
            settle(&nat, &policy, setup.start),
            "new tables take a policy"
        );
        let count = config
            .workers
            .count
            .map_or(setup.workers, |count| count.value)
            .max(1);
        let interfaces = config.interfaces.len();
        let shared = shared(&setup, &config, &arms, nat, size, policy, count);
        let now = setup.start;
        let mut world = World {
            setup,
            config,
            translation: plan.translation,
            arms,
            host,
            places,
            words,
            owned,
            shared,
            workers: Vec::new(),
            now,
            sent: vec![Vec::new(); interfaces],
            before: Vec::new(),
            violation: None,
            restarts: 0,
        };
        world.hire(count);
        Ok(world)
    }

    /// Makes the workers.
    fn hire(&mut self, count: u32) {
        let interfaces = self.sent.len();
        let errors_per_second = self.config.icmp.errors_per_second.div_ceil(count);
        self.workers.clear();
        self.before = vec![vec![Before::default(); interfaces]; count as usize];
        for number in 0..count as usize {
            let seed = self.setup.seed.wrapping_add(1 + number as u64);
            let mut memory =
                MemoryDevice::with_slots_of(self.setup.slot_size, interfaces, self.setup.slots);
            memory.set_forgetful(!self.setup.record);
            let device = FaultDevice::new(memory, interfaces, self.setup.faults, seed);
            let host = Recorder {
                forgets: !self.setup.record,
                ..Recorder::default()
            };
            let random = WorkerRandom::from_seed(seed);
            let gateway = Gateway::new(Arc::clone(&self.shared), number, random);
            let stats = Arc::new(WorkerStats::new(interfaces));
            self.workers
                .push(Worker::new(device, host, gateway, stats, errors_per_second));
        }
    }

    /// Kills the gateway and starts it again over the same tables, with the policy in force. Frames
    /// in its hands are lost, counters begin anew.
    ///
    /// # Panics
    /// When the tables cannot be taken over.
    pub fn restart(&mut self) {
        let nat = Nat::open(self.words, self.owned, self.shared.size, IDENTITY);
        self.start_over(nat.expect("tables of this process"));
    }

    /// As [`World::restart`], but its tables are lost, too: it starts with empty ones, and holds the
    /// lost sessions' ports down as the engine does.
    ///
    /// # Panics
    /// Never: the words were enough before.
    pub fn restart_empty(&mut self) {
        let policy = self.policy();
        let placed: Vec<(u16, Ipv4Addr)> = policy
            .addresses
            .iter()
            .map(|own| (own.slot, own.addr))
            .collect();
        let lost = LostPorts::of(self.owned, &placed);
        let mut random = WorkerRandom::from_seed(self.setup.seed.wrapping_add(self.now.0));
        let (size, words, owned) = (self.shared.size, self.words, self.owned);
        let nat = Nat::create(words, owned, size, IDENTITY, &mut random);
        self.start_over(nat.expect("the words are of this size"));
        self.shared
            .nat
            .hold_lost(&self.shared.rulebook.load(), &lost, self.now);
    }

    fn start_over(&mut self, nat: Nat<'static>) {
        let count = self.workers.len() as u32;
        let policy = Policy::clone(&self.policy());
        let size = self.shared.size;
        assert!(
            settle(&nat, &policy, self.now),
            "the tables do not take the policy"
        );
        // Another run draws other numbers, of identifications for one.
        self.restarts += 1;
        let setup = Setup {
            seed: self.setup.seed.wrapping_add(1000 * self.restarts),
            ..self.setup.clone()
        };
        self.shared = shared(&setup, &self.config, &self.arms, nat, size, policy, count);
        self.hire(count);
    }

    /// Lets a frame arrive at the first worker. False if that has no free slot.
    pub fn inject(&mut self, interface: usize, frame: &[u8]) -> bool {
        self.inject_to(0, interface, frame)
    }

    /// Lets a frame arrive at any worker. False if that has no free slot.
    pub fn inject_to(&mut self, worker: usize, interface: usize, frame: &[u8]) -> bool {
        self.device(worker).inject(interface, frame)
    }

    /// Lets a frame arrive at the first worker that is still to be finished by whoever sends it.
    /// False if that has no free slot.
    pub fn inject_unfinished(&mut self, interface: usize, frame: &[u8], offload: Offload) -> bool {
        self.inject_unfinished_to(0, interface, frame, offload)
    }

    /// As [`World::inject_unfinished`], at any worker.
    pub fn inject_unfinished_to(
        &mut self,
        worker: usize,
        interface: usize,
        frame: &[u8],
        offload: Offload,
    ) -> bool {
        self.device(worker)
            .inject_unfinished(interface, frame, offload)
    }

    /// One round of every worker, and then (unless the setup says otherwise) the neighbours' answers:
    /// what is held for them leaves with the next round. How many frames were received.
    pub fn round(&mut self) -> usize {
        let now = self.now;
        let mut received = 0;
        for worker in &mut self.workers {
            received += worker.round(now);
        }
        if self.setup.record {
            self.collect();
        }
        if self.setup.answer {
            self.answer_all();
        }
        received
    }

    /// Rounds until every frame that came is through.
    pub fn run(&mut self) {
        while self.round() > 0 {}
        self.round();
    }

    /// Moves the clock, with no round.
    pub fn advance_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    /// Lets time pass, with a round every `step_ms`.
    pub fn pass_ms(&mut self, ms: u64, step_ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = Time(self.now.0.saturating_add(step_ms.max(1)).min(end.0));
            self.round();
        }
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// What was sent on an interface since the last call, in order.
    pub fn take_sent(&mut self, interface: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sent[interface])
    }

    /// What was given to the host since the last call, with the interface that it came by.
    pub fn take_punted(&mut self) -> Vec<(u8, Vec<u8>)> {
        let workers = self.workers.iter_mut();
        workers
            .flat_map(|worker| std::mem::take(&mut worker.host().punted))
            .collect()
    }

    /// Sum of all workers' counters.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::sum(self.workers.iter().map(|worker| worker.stats().snapshot()))
    }

    /// The tables' counts.
    pub fn totals(&self) -> Totals {
        self.shared.nat.totals()
    }

    /// What the workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A worker, to look at.
    pub fn worker(&mut self, number: usize) -> &mut WorldWorker {
        &mut self.workers[number]
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The words of the tables, to break them in tests.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    fn device(&mut self, worker: usize) -> &mut MemoryDevice {
        self.workers[worker].device().inner_mut()
    }

    /// The host takes no punted frame, or takes them again.
    pub fn refuse_punts(&mut self, refuses: bool) {
        for worker in &mut self.workers {
            worker.host().refuses = refuses;
        }
    }

    /// Bounds the frames that a transmit ring takes in a round.
    pub fn set_transmit_room(&mut self, frames: usize) {
        for worker in 0..self.workers.len() {
            self.device(worker).set_transmit_room(frames);
        }
    }

    /// Changes what befalls received frames.
    pub fn set_faults(&mut self, faults: Faults) {
        self.setup.faults = faults;
        for worker in &mut self.workers {
            worker.device().set_faults(faults);
        }
    }

    /// Neighbours answer as soon as they are asked for, or not at all.
    pub fn set_answer(&mut self, answer: bool) {
        self.setup.answer = answer;
    }

    fn answer_all(&self) {
        let hops = self.shared.forwarding.hops();
        while let Some(number) = hops.next_request() {
            hops.set(number, mac_of(hops.load(number).addr), HopState::Resolved);
            hops.allow_request(number);
        }
    }

    /// Makes the next hop towards a destination, in this state. False if there is no route, or the
    /// hop table is full.
    pub fn set_neighbour(&self, destination: Ipv4Addr, state: HopState) -> bool {
        let forwarding = &self.shared.forwarding;
        let routes = forwarding.routes().load();
        let Ok(number) = forwarding.next_hop(&routes, destination) else {
            return false;
        };
        let hops = forwarding.hops();
        hops.set(number, mac_of(hops.load(number).addr), state);
        while let Some(asked) = hops.next_request() {
            hops.allow_request(asked);
        }
        true
    }

    /// Gives the host other routes beside those of [`routes_for`].
    pub fn set_routes(&mut self, routes: Vec<RouteFacts>) {
        self.setup.routes = routes;
        self.publish_routes();
    }

    fn publish_routes(&self) {
        let input = routes_for(&self.config, &self.arms, &self.setup.routes);
        self.shared.forwarding.publish(&input);
    }

    /// Gives the external interface other addresses, or none; conntrack follows.
    pub fn set_external(&mut self, addresses: Vec<Ipv4Net>) {
        let external = self
            .config
            .interfaces
            .iter()
            .position(|i| i.role.is_external());
        let external = external.expect("a checked configuration has one");
        let kept = |net: &Ipv4Net| self.config.is_internal(net.addr());
        let inside: Vec<Ipv4Net> = self.arms[external]
            .addresses
            .iter()
            .copied()
            .filter(kept)
            .collect();
        self.arms[external].addresses = addresses.into_iter().chain(inside).collect();
        self.follow();
    }

    /// Gives an interface another MTU.
    pub fn set_mtu(&mut self, interface: usize, mtu: u16) {
        let was = std::mem::replace(&mut self.arms[interface].mtu, mtu);
        for (worker, before) in self.workers.iter().zip(&mut self.before) {
            let before = &mut before[interface];
            let earlier = if before.frames > 0 { before.mtu } else { 0 };
            before.mtu = was.max(earlier);
            before.frames = worker.frames_queued(interface);
        }
        self.follow();
    }

    /// Takes up another configuration for the same interfaces. False, and nothing changes, when it
    /// has others, does not fit the host, or asks for more pool addresses or timers than there is room for.
    pub fn reconfigure(&mut self, text: &str) -> bool {
        let Ok(config) = Config::parse("world.toml", text) else {
            return false;
        };
        let host = host_for(&config, &self.arms);
        if config.interfaces != self.config.interfaces {
            return false;
        }
        match Plan::make(&config, &host) {
            Ok(plan) if plan.addresses_max <= self.shared.size.addresses_max => {}
            _ => return false,
        }
        let settled = self.shared.rulebook.is_settled();
        let earlier = Earlier {
            timers: &self.policy().timers,
            settled,
        };
        let Ok(translation) = Translation::of(&config, Some(earlier)) else {
            return false;
        };
        (self.config, self.host) = (config, host);
        self.translation = translation;
        self.follow();
        true
    }

    /// Links, routes and policy as arms and configuration say.
    fn follow(&mut self) {
        self.host = host_for(&self.config, &self.arms);
        self.shared
            .links
            .store(Arc::new(links_of(&self.config, &self.arms)));
        self.publish_routes();
        let policy = policy_for(
            &self.config,
            &self.translation,
            self.external_address(),
            &self.host,
            &mut self.places,
        );
        if policy != *self.policy() {
            self.shared.rulebook.publish(policy);
        }
    }

    /// As the steward chooses it: the one in force while the interface has it.
    fn external_address(&self) -> Option<Ipv4Addr> {
        let external = self
            .config
            .interfaces
            .iter()
            .position(|i| i.role.is_external())?;
        let present: Vec<Ipv4Addr> = self.arms[external]
            .addresses
            .iter()
            .map(Ipv4Net::addr)
            .collect();
        let policy = self.policy();
        let current = policy
            .addresses
            .iter()
            .find(|own| own.kind == AddressKind::Shared);
        let outside = present
            .iter()
            .find(|addr| !self.config.is_internal(**addr))
            .copied();
        current
            .map(|own| own.addr)
            .filter(|addr| present.contains(addr))
            .or(outside)
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.shared.rulebook.load())
    }

    /// Takes what was sent out of the devices, and looks at it.
    fn collect(&mut self) {
        let links = self.shared.links.load_full();
        let transport = self.setup.transport;
        for (worker, before) in self.workers.iter_mut().zip(&mut self.before) {
            for (interface, sent) in self.sent.iter_mut().enumerate() {
                let before = &mut before[interface];
                let frames = worker.device().inner_mut().take_unfinished(interface);
                let finish = |(frame, offload): (Vec<u8>, Offload)| finish(&frame, offload);
                let frames: Vec<Vec<u8>> = frames.into_iter().flat_map(finish).collect();
                for frame in &frames {
                    let links = before.links_for_next(&links, interface);
                    if let Err(what) = inspect(frame, interface as u8, &links, transport) {
                        let start = &frame[..frame.len().min(80)];
                        let what = format!("{what} (interface {interface}): {start:02x?}");
                        self.violation.get_or_insert(Violation(what));
                    }
                }
                sent.extend(frames);
            }
        }
    }
}

impl Before {
    /// The links that the next frame may have been made for.
    fn links_for_next<'a>(&mut self, links: &'a Links, interface: usize) -> Cow<'a, Links> {
        if self.frames == 0 {
            return Cow::Borrowed(links);
        }
        self.frames -= 1;
        let mut links = links.clone();
        let mtu = &mut links.links[interface].mtu;
        *mtu = self.mtu.max(*mtu);
        Cow::Owned(links)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.clear();
        // Somebody may still use the tables.
        if Arc::strong_count(&self.shared) == 1 && self.setup.memory.is_none() {
            let mut free = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
            free.extend([self.words, self.owned]);
        }
    }
}

fn links_of(config: &Config, arms: &[Arm]) -> Links {
    let links = config.interfaces.iter().zip(arms).enumerate();
    let links = links.map(|(number, (interface, arm))| Link {
        name: interface.name.value.clone(),
        role: interface.role,
        mac: mac_of_interface(number),
        mtu: arm.mtu,
        addresses: arm.addresses.clone(),
        present: true,
    });
    Links {
        links: links.collect(),
        internal: config.internal.iter().map(|prefix| prefix.value).collect(),
    }
}

/// What workers share, over tables that have the policy already.
fn shared(
    setup: &Setup,
    config: &Config,
    arms: &[Arm],
    nat: Nat<'static>,
    size: TableSize,
    policy: Policy,
    workers: u32,
) -> Arc<Shared> {
    let mut random = WorkerRandom::from_seed(!setup.seed);
    let served = config.interfaces.iter().zip(10..);
    let served = served.map(|(interface, ifindex)| ServedInterface {
        name: interface.name.value.clone(),
        ifindex,
    });
    let forwarding = Forwarding::new(served.collect(), setup.hops_max, random.next_u64() as u32);
    forwarding.publish(&routes_for(config, arms, &setup.routes));
    let limits = FragmentLimits {
        timeout_ms: config.timers.fragment_timeout_ms,
        ..setup.fragments
    };
    Arc::new(Shared {
        nat,
        size,
        rulebook: Rulebook::new(policy, workers as usize),
        links: ArcSwap::from_pointee(links_of(config, arms)),
        forwarding: Arc::new(forwarding),
        fragments: FragmentTable::new(&limits, random.next_u64()),
        identifications: Identifications::new(random.next_u64()),
        on_refusal: config.icmp.on_refusal,
        unsolicited: config.icmp.unsolicited,
        midstream: config.nat.midstream,
        flushes: Flushes::default(),
        announcements: ArrayQueue::new(64),
    })
}
