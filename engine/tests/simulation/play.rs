//! One world from its beginning to its end: a gateway, the hosts around it, and what happens.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use conntrack::Time;
use engine::device::FRAME_SIZE;
use engine::device::offload::Offload;
use engine::world::{EXTERNAL, Setup, World};

use super::delivery::check_receiver;
use super::dice::Dice;
use super::fragments::{Assembler, cut};
use super::hosts::{Flow, Servers};
use super::journal::Journal;
use super::network::{Event, Network, Quality, Trouble};
use super::oracle::{Oracle, Side, Weather};
use super::packet::{Draft, Proto, Seen, read};
use super::rules::{ADDRESSES_MAX, Rules};
use super::together::{can_be_partial, join, parts};

/// Held frames wait so long for their next hop.
const HELD_MS: u64 = 4_000;
/// The flow of packets that belong to none.
pub const NO_FLOW: u32 = u32::MAX;
/// Routers on the way outside, and the one that quotes.
pub const HOPS: u8 = 3;
/// Bytes of a slot where packets come together.
const BIG_SLOT: usize = 16 << 10;
/// Steps between two looks at the whole tables.
const LOOK_EVERY: u32 = 128;

/// What a world was like, to see that worlds differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub worlds: u64,
    pub packets: u64,
    pub requests: u64,
    pub replies: u64,
    pub happenings: u64,
    /// Packets that had to pass, because their session surely lived.
    pub insisted: u64,
    /// Packets that had to be refused by the policy, and their senders told.
    pub refused: u64,
    /// Sessions that the gateway made.
    pub created: u64,
    pub calm: u64,
    pub restarts: u64,
    /// Frames that came with a partial checksum, and those that stood for several packets.
    pub partial: u64,
    pub together: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.worlds += other.worlds;
        self.packets += other.packets;
        self.requests += other.requests;
        self.replies += other.replies;
        self.happenings += other.happenings;
        self.insisted += other.insisted;
        self.refused += other.refused;
        self.created += other.created;
        self.calm += other.calm;
        self.restarts += other.restarts;
        self.partial += other.partial;
        self.together += other.together;
    }
}

pub struct Play<'j> {
    pub world: World,
    pub dice: Dice,
    /// In a world whose device tells what is still to be done for a frame: what that is.
    offloads: Option<Dice>,
    pub network: Network,
    pub oracle: Oracle,
    pub rules: Rules,
    pub journal: &'j mut Journal,
    pub hosts: Vec<Ipv4Addr>,
    pub flows: Vec<Flow>,
    pub now: u64,
    pub two_arm: bool,
    /// Nothing goes wrong here, and there is room for everybody.
    pub calm: bool,
    pub troubles: Vec<Trouble>,
    pub clear_from: u64,
    /// The addresses of the external interface.
    pub present: Vec<Ipv4Addr>,
    /// Since when it has any, again.
    pub connected_at: u64,
    /// Frames that came by outside lately.
    pub heard: VecDeque<Seen>,
    /// So many of the next packets outside meet a router's complaint.
    pub complaints: u64,
    /// The gateway dies in its next run, after so many rounds.
    pub dies_after: Option<u64>,
    pub tally: Tally,
    pub servers: Servers,
    pub assemblers: [Assembler; 2],
    number: u32,
    /// Frames wait for the gateway's next round.
    pending: bool,
    steps: u32,
}

pub type Course = Result<(), String>;

impl<'j> Play<'j> {
    /// `tells`: frames come as from the tun driver.
    pub fn new(seed: u64, tells: bool, journal: &'j mut Journal) -> Result<Play<'j>, String> {
        let mut dice = Dice::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0xe64e);
        let calm = dice.chance(250);
        let hosts: Vec<Ipv4Addr> = (0..dice.between(2, 4))
            .map(|i| Ipv4Addr::new(10, 77, 0, 9 + i as u8))
            .collect();
        let rules = Rules::draw(&mut dice, &hosts, calm);
        let two_arm = dice.chance(500);
        let start = (1 << 32) - dice.pick(&[100_000, 10_000, 3_000_000_000]);
        let setup = Setup {
            seed,
            start: Time(start),
            workers: dice.between(1, 2) as u32,
            slots: if calm || dice.chance(700) { 512 } else { 96 },
            sessions_max: if calm {
                1024
            } else {
                dice.pick(&[64, 64, 256])
            },
            addresses_max: Some(ADDRESSES_MAX),
            transport: false,
            slot_size: if tells { BIG_SLOT } else { FRAME_SIZE },
            ..Setup::default()
        };
        let quality = match calm {
            true => Quality {
                delay_ms: 40,
                late_permille: 30,
                ..Quality::default()
            },
            false => Quality {
                loss_permille: dice.pick(&[0, 10, 80]),
                copy_permille: dice.pick(&[0, 30]),
                late_permille: dice.pick(&[0, 100]),
                delay_ms: dice.pick(&[1, 40]),
            },
        };
        let path_mtu = if calm {
            1500
        } else {
            dice.pick(&[1500, 1500, 700])
        };
        journal.say(
            start,
            format!(
                "a world with {rules:?}, {setup:?}, {quality:?}, two arms: {two_arm}, calm: {calm}"
            ),
        );
        let text = Play::text_of(two_arm, &rules);
        let world = World::with(&text, setup).map_err(|error| format!("{error}\n{text}"))?;
        Ok(Play {
            world,
            network: Network::new(quality, path_mtu),
            oracle: Oracle::new(rules.clone()),
            rules,
            journal,
            hosts,
            flows: Vec::new(),
            now: start,
            two_arm,
            calm,
            troubles: Vec::new(),
            clear_from: 0,
            present: vec![EXTERNAL],
            connected_at: 0,
            heard: VecDeque::new(),
            complaints: 0,
            dies_after: None,
            tally: Tally {
                worlds: 1,
                calm: calm.into(),
                ..Tally::default()
            },
            servers: Servers::default(),
            assemblers: Default::default(),
            number: 0,
            pending: false,
            steps: 0,
            offloads: tells.then(|| Dice::new(!seed)),
            dice,
        })
    }

    pub fn text(&self) -> String {
        Play::text_of(self.two_arm, &self.rules)
    }

    fn text_of(two_arm: bool, rules: &Rules) -> String {
        let interfaces = match two_arm {
            true => {
                "[[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
                 [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n"
            }
            false => "interface = \"eth0\"\n",
        };
        let (head, tables) = (rules.head(), rules.text());
        format!("internal = \"10.77.0.0/24\"\n{head}{interfaces}{tables}")
    }

    /// Plays to the end.
    pub fn run(mut self) -> Result<Tally, String> {
        self.populate();
        while let Some((at, event)) = self.next_event()? {
            self.pass_to(at)?;
            self.take_place(at, event)?;
            self.steps += 1;
            self.world
                .check_frames()
                .map_err(|violation| violation.to_string())?;
            if self.steps.is_multiple_of(LOOK_EVERY) {
                self.look()?;
            }
        }
        self.end()?;
        self.tally.insisted = self.oracle.insisted;
        self.tally.refused = self.oracle.refusals;
        self.tally.packets = u64::from(self.number);
        Ok(self.tally)
    }

    /// What happens next; first the gateway is through with what came, as its answers may be sooner.
    fn next_event(&mut self) -> Result<Option<(u64, Event)>, String> {
        if self.pending && self.network.peek().is_none_or(|at| at > self.now) {
            self.work()?;
        }
        Ok(self.network.next())
    }

    pub fn look(&mut self) -> Course {
        self.world
            .check_invariants()
            .map_err(|violation| violation.to_string())
    }

    fn take_place(&mut self, at: u64, event: Event) -> Course {
        match event {
            Event::Arrive(side, frame) => self.arrive(side, &[frame]),
            Event::Together(side, frames) => self.arrive(side, &frames),
            Event::Reach(side, frame) => self.reach(side, frame),
            Event::Wake(number) => {
                if self.flows[number].wake_at == Some(at) {
                    let drafts = self.flows[number].wake(self.now, &mut self.dice);
                    self.follow_up(number, drafts);
                }
                Ok(())
            }
            Event::Happen => self.happen(),
            Event::Heal(trouble) => self.heal(trouble),
        }
    }

    /// What a flow does next.
    pub fn follow_up(&mut self, number: usize, drafts: Vec<Draft>) {
        let side = self.flows[number].side;
        if let Some(wake_at) = self.flows[number].wake_at {
            self.network.at(wake_at, Event::Wake(number));
        }
        for draft in drafts {
            self.tally.requests += 1;
            self.send(side, draft);
        }
    }

    /// A host sends: several packets together, where they can stay so, or one.
    pub fn send(&mut self, side: Side, draft: Draft) {
        let mut parts = match &mut self.offloads {
            Some(dice) => parts(draft, dice),
            None => vec![draft],
        };
        if parts.len() > 1 {
            let frames = parts.into_iter().map(|part| self.frame(part)).collect();
            let event = Event::Together(side, frames);
            self.network.carry(self.now, &mut self.dice, &event);
        } else if let Some(draft) = parts.pop() {
            self.send_one(side, draft);
        }
    }

    /// A host sends a packet; one that is too long goes in fragments.
    fn send_one(&mut self, side: Side, draft: Draft) {
        let whole = draft.dont_fragment;
        let frame = self.frame(draft);
        let frames = if whole {
            vec![frame]
        } else {
            cut(&frame, 1500)
        };
        for frame in frames {
            self.network
                .carry(self.now, &mut self.dice, &Event::Arrive(side, frame));
        }
    }

    /// The frame of a packet, however long, with a number of its own.
    pub fn frame(&mut self, mut draft: Draft) -> Vec<u8> {
        self.number += 1;
        draft.tag.number = self.number;
        draft.frame(self.number as u16)
    }

    fn weather(&self) -> Weather {
        let clear = self.troubles.is_empty()
            && self.now >= self.clear_from
            && self.oracle.is_settled()
            && self.dies_after.is_none();
        Weather {
            clear,
            calm: clear && self.calm,
        }
    }

    /// A frame is at the gateway's door, or several that are one.
    pub fn arrive(&mut self, side: Side, frames: &[Vec<u8>]) -> Course {
        let all: Vec<Option<Seen>> = frames.iter().map(|frame| read(frame)).collect();
        for (place, seen) in all.iter().enumerate() {
            let Some(seen) = seen else { continue };
            self.journal.packet(self.now, "comes", side, seen);
            let weather = self.weather();
            self.oracle.enter(self.now, side, seen, weather);
            if let Some(tag) = seen.tag.filter(|_| place > 0) {
                self.oracle.is_told_with_another(tag.number);
            }
        }
        let interface = usize::from(self.two_arm && side == Side::Outside);
        let worker = self.dice.below(self.world.workers() as u64) as usize;
        let (frame, offload) = self.hand_over(frames, all[0].as_ref());
        if !self
            .world
            .inject_unfinished_to(worker, interface, &frame, offload)
        {
            let tags = all.iter().flatten().filter_map(|seen| seen.tag);
            tags.for_each(|tag| self.oracle.turned_away(tag.number));
        }
        self.pending = true;
        // Now and then more than one frame comes in a round.
        let soon = self.network.peek().is_some_and(|next| next == self.now);
        if soon && self.dice.chance(800) {
            Ok(())
        } else {
            self.work()
        }
    }

    /// What the device gives for frames: one frame, and what is still to be done for it.
    fn hand_over(&mut self, frames: &[Vec<u8>], seen: Option<&Seen>) -> (Vec<u8>, Offload) {
        let Some(dice) = &mut self.offloads else {
            return (frames[0].clone(), Offload::NONE);
        };
        if frames.len() > 1 {
            self.tally.together += 1;
            return join(frames);
        }
        if seen.is_some_and(can_be_partial) && dice.chance(600) {
            self.tally.partial += 1;
            return join(frames);
        }
        (frames[0].clone(), Offload::WHOLE)
    }

    /// The gateway works until all that came is through; or dies over it.
    pub fn work(&mut self) -> Course {
        self.pending = false;
        if let Some(rounds) = self.dies_after.take() {
            for _ in 0..rounds {
                self.world.round();
            }
            self.collect()?;
            let empty = self.dice.chance(150);
            let tables = if empty { "empty" } else { "its" };
            let words = format!("the gateway dies, and starts again with {tables} tables");
            self.journal.say(self.now, words);
            self.tally.created += self.world.totals().created;
            self.tally.restarts += 1;
            if empty {
                self.world.restart_empty();
                self.oracle.forget_sessions(self.now);
            } else {
                self.world.restart();
            }
            self.oracle.killed();
            self.look()?;
        } else {
            self.world.run();
            self.collect()?;
        }
        self.oracle.end_step()
    }

    /// Looks at what left the gateway, and sends it on its way.
    fn collect(&mut self) -> Course {
        let mut sent = self.world.take_sent(0);
        if self.two_arm {
            sent.extend(self.world.take_sent(1));
        }
        self.world.take_punted();
        for frame in sent {
            let Some(seen) = read(&frame) else { continue };
            let inside = seen.destination.ip().octets()[0] == 10;
            let to = if inside { Side::Inside } else { Side::Outside };
            self.journal.packet(self.now, "leaves", to, &seen);
            let judged = self.oracle.leave(self.now, to, &seen);
            judged.map_err(|what| format!("{seen}: {what}"))?;
            check_receiver(&seen, &frame, self.is_off_net(&seen))?;
            if inside {
                self.network
                    .carry(self.now, &mut self.dice, &Event::Reach(to, frame));
            } else {
                self.go_outside(seen, frame);
            }
        }
        if self.world.shared().rulebook.is_settled() && !self.oracle.is_settled() {
            self.journal
                .say(self.now, "the new rules are in the tables".into());
            self.oracle.settle(self.now);
        }
        Ok(())
    }

    /// May a packet have been judged while the external interface was connected to no network?
    fn is_off_net(&self, seen: &Seen) -> bool {
        let came_at = seen.tag.and_then(|tag| self.oracle.came_at(tag.number));
        self.present.is_empty() || came_at.unwrap_or(0) < self.connected_at
    }

    /// Time passes, with rounds in between as a worker makes them.
    pub fn pass_to(&mut self, time: u64) -> Course {
        if self.pending && time > self.now {
            self.work()?;
        }
        let busy = |play: &Play| !play.oracle.is_settled() || !play.troubles.is_empty();
        for _ in 0..200 {
            if self.now + 10 >= time || !busy(self) {
                break;
            }
            let step = if self.oracle.is_settled() { 400 } else { 10 };
            self.go_on((self.now + step).min(time))?;
        }
        if time > self.now + 50 {
            for _ in 0..self.dice.below(3) {
                let between = self.dice.between(self.now, time);
                self.go_on(between)?;
            }
        }
        let ms = time.saturating_sub(self.now);
        self.world.advance_ms(ms);
        self.now += ms;
        Ok(())
    }

    /// One round at a later time.
    pub fn go_on(&mut self, time: u64) -> Course {
        self.world.advance_ms(time - self.now);
        self.now = time;
        self.world.round();
        self.collect()
    }

    /// The first moment at which the past troubles cannot matter any more.
    pub fn note_trouble_over(&mut self) {
        self.clear_from = self.now + HELD_MS;
    }

    /// All is well again and everybody leaves; nothing may be left over, and a new host is served.
    fn end(&mut self) -> Course {
        for trouble in std::mem::take(&mut self.troubles) {
            self.heal(trouble)?;
        }
        self.pass_to(self.now + 10_000)?;
        self.go_on(self.now + 1)?;
        self.look()?;
        if !self.oracle.is_settled() {
            return Err("a change of rules does not end".into());
        }
        if self.calm
            && let Some(flow) = self.flows.iter().find(|flow| !flow.is_content())
        {
            return Err(format!(
                "in all calm a flow did not get what it wanted: {flow:?}"
            ));
        }
        let traced = self
            .flows
            .iter()
            .find(|f| f.traces && f.told < u32::from(HOPS) && f.turns > 3);
        if self.calm
            && let Some(flow) = traced
        {
            return Err(format!("no router told of some probes: {flow:?}"));
        }
        self.journal.say(self.now, "everybody leaves".into());
        self.tally.created += self.world.totals().created;
        self.world.drain();
        self.world
            .check_empty()
            .map_err(|violation| violation.to_string())?;
        self.now = self.world.now().0;
        self.collect()?;
        (self.calm, self.clear_from) = (true, 0);
        self.probe()
    }

    /// After everything, a host finds the gateway as good as new.
    fn probe(&mut self) -> Course {
        self.network.quality = Quality::default();
        // With servers, not with each other.
        self.rules.forwards.clear();
        for proto in [Proto::Udp, Proto::Icmp, Proto::Tcp] {
            self.add_flow(Side::Inside, proto);
        }
        let first = self.flows.len() - 3;
        while let Some((at, event)) = self.next_event()? {
            self.pass_to(at)?;
            self.take_place(at, event)?;
        }
        match self.flows[first..].iter().find(|flow| !flow.is_content()) {
            Some(flow) => Err(format!("the gateway is not as good as new: {flow:?}")),
            None => self.look(),
        }
    }
}
