//! What happens in a world: who talks, who attacks, what fails and is mended.

use std::net::Ipv4Addr;

use engine::neighbour::HopState;
use engine::route::{RouteFacts, RouteKind};
use engine::world::{EXTERNAL, UPSTREAM};
use ipnet::Ipv4Net;

use super::hosts::{Flow, Goodbye};
use super::network::{Event, Trouble};
use super::oracle::Side;
use super::packet::{End, Proto, Sum};
use super::play::{Course, Play};
use super::rules::{DENIED, Forward, LATER};

pub const SERVERS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(203, 0, 113, 80),
    Ipv4Addr::new(203, 0, 113, 81),
    DENIED,
];
/// A host that nobody else's conversations are with, and that takes what it can get.
pub const GREEDY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);
/// Ports of clients: the same for all hosts, and some of the pool.
pub const PORTS: [u16; 6] = [20_000, 20_001, 20_002, 40_000, 40_001, 5000];
/// A network that loses its route at times.
const LOST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);

impl Play<'_> {
    /// The flows of a world, and how much happens beside.
    pub fn populate(&mut self) {
        for _ in 0..self.dice.between(3, 14) {
            let proto = self
                .dice
                .pick(&[Proto::Udp, Proto::Tcp, Proto::Tcp, Proto::Icmp]);
            let side = if self.dice.chance(250) {
                Side::Outside
            } else {
                Side::Inside
            };
            self.add_flow(side, proto);
        }
        let happenings = if self.calm {
            self.dice.below(6)
        } else {
            self.dice.between(3, 30)
        };
        let mut at = self.now;
        for _ in 0..happenings {
            at += self.dice.pick(&[0, 20, 700, 3_000, 20_000]);
            at += self.dice.below(1_000);
            self.network.at(at, Event::Happen);
        }
    }

    /// A host begins a conversation. From outside, and at times inside, it is with a forward, if
    /// there is any.
    pub fn add_flow(&mut self, side: Side, proto: Proto) {
        let id = self.flows.len() as u32;
        let forwards: Vec<Forward> = self.rules.forwards.clone();
        let wanted = side == Side::Outside || self.dice.chance(100);
        let forward = (wanted && !forwards.is_empty()).then(|| self.dice.pick(&forwards));
        let forward = forward.and_then(|f| Some((f.proto, self.rules.external_of(&f)?, f)));
        let mut traces = false;
        let (side, proto, remote) = match forward {
            Some((proto, external, forward)) => {
                // In all calm nobody asks who is not allowed to.
                let refused = self.calm && side == Side::Inside && forward.guarded;
                if refused {
                    (side, proto, self.server(proto))
                } else {
                    (side, proto, external)
                }
            }
            None => {
                traces = proto == Proto::Udp && self.dice.chance(150);
                (Side::Inside, proto, self.server(proto))
            }
        };
        let Some(local) = self.client(side, proto, remote) else {
            return;
        };
        let mut flow = Flow::new(id, side, proto, local, remote, &mut self.dice);
        (flow.traces, flow.turns) = (traces, self.dice.between(1, 7) as u32);
        self.shape(&mut flow);
        let start = self.now + self.dice.pick(&[0, 5, 300, 2_000]);
        flow.wake_at = Some(start);
        self.network.at(start, Event::Wake(id as usize));
        self.flows.push(flow);
    }

    pub fn server(&mut self, proto: Proto) -> End {
        let port = match proto {
            Proto::Icmp => 0,
            Proto::Udp => 53,
            Proto::Tcp => self.dice.pick(&[80, 443]),
        };
        // In all calm nobody asks in vain.
        let denied = self.calm && self.rules.denies;
        let count = SERVERS.len() - usize::from(denied);
        End::new(self.dice.pick(&SERVERS[..count]), port)
    }

    /// A local endpoint that has no flow with this remote one yet.
    fn client(&mut self, side: Side, proto: Proto, remote: End) -> Option<End> {
        for _ in 0..20 {
            let addr = match side {
                Side::Inside => self.dice.pick(&self.hosts),
                // In all calm only those ask who are allowed to.
                Side::Outside if self.calm => SERVERS[0],
                Side::Outside => self.dice.pick(&SERVERS),
            };
            let local = End::new(addr, self.dice.pick(&PORTS));
            let same =
                |flow: &Flow| (flow.proto, flow.local, flow.remote) == (proto, local, remote);
            let target = self
                .rules
                .forward_at(proto, remote)
                .is_some_and(|f| f.target.ip() == local.ip());
            // A forward's target has the forward's endpoint: nobody else can be found there.
            let taken = self.rules.is_target(proto, local);
            if !(target || self.flows.iter().any(same) || self.calm && taken) {
                return Some(local);
            }
        }
        None
    }

    /// How a flow behaves.
    fn shape(&mut self, flow: &mut Flow) {
        let timers = self.rules.timers;
        let timeout = match flow.proto {
            Proto::Udp => timers.udp,
            Proto::Icmp => timers.icmp,
            Proto::Tcp => timers.idle,
        };
        let near = (timeout * 7 / 10, timeout * 97 / 100);
        let over = (timeout + 10, timeout * 2);
        let pauses = [(10, 500), (10, 500), (timeout / 4, timeout / 2), near];
        flow.pause_ms = self.dice.pick(&pauses);
        if flow.proto != Proto::Tcp && self.dice.chance(150) {
            flow.pause_ms = over;
        }
        flow.goodbye = self
            .dice
            .pick(&[Goodbye::Fin, Goodbye::Fin, Goodbye::Reset, Goodbye::None]);
        if flow.proto != Proto::Tcp && !flow.traces {
            flow.size = self.dice.pick(&[0, 13, 600, 1400, 2900]);
            flow.dont_fragment = flow.size < 1400 && self.dice.chance(300);
        }
        flow.sum = match self.dice.below(12) {
            0 if flow.proto != Proto::Tcp && flow.size < 1400 => Sum::Wrong,
            1 | 2 if flow.proto == Proto::Udp => Sum::Absent,
            _ => Sum::Right,
        };
    }

    /// The next thing of the script.
    pub fn happen(&mut self) -> Course {
        self.tally.happenings += 1;
        if self.calm {
            return match self.dice.below(6) {
                4 => self.trespass(),
                5 => self.hoard(),
                0 => self.router_complains(),
                1 => self.knock(),
                2 => self.port_scan(),
                _ => {
                    let proto = self.dice.pick(&[Proto::Udp, Proto::Tcp, Proto::Icmp]);
                    self.add_flow(Side::Inside, proto);
                    Ok(())
                }
            };
        }
        match self.dice.below(22) {
            20 => self.trespass(),
            21 => self.hoard(),
            0 | 1 => self.new_rules(),
            2 | 3 => self.restart(),
            4 => self.begin(Trouble::Neighbours),
            5 => self.begin(Trouble::Route),
            6 => self.begin(Trouble::Mtu),
            7 => self.begin(Trouble::Rings),
            8 => self.begin(Trouble::Punts),
            9 | 10 => self.begin(Trouble::Address),
            11 if self.dice.chance(500) => self.nag(),
            11 => self.knock(),
            12 => self.lie(),
            13 => self.port_scan(),
            14 => self.crowd(),
            15 => self.router_complains(),
            16 => self.stray_fragments(),
            17 => self.suspend(),
            _ => {
                let proto = self.dice.pick(&[Proto::Udp, Proto::Tcp, Proto::Icmp]);
                let side = self.dice.pick(&[Side::Inside, Side::Outside]);
                self.add_flow(side, proto);
                Ok(())
            }
        }
    }

    /// Others rules are wanted.
    fn new_rules(&mut self) -> Course {
        let before = self.rules.clone();
        let hosts = self.hosts.clone();
        self.rules.redraw(&mut self.dice, &hosts);
        if !self.world.reconfigure(&self.text()) {
            // Without an address there is nothing to plan for.
            self.rules = before;
            return Ok(());
        }
        self.journal
            .say(self.now, format!("new rules: {:?}", self.rules));
        self.rules_changed();
        Ok(())
    }

    fn rules_changed(&mut self) {
        self.oracle.change(self.now, self.rules.clone());
    }

    fn restart(&mut self) -> Course {
        self.dies_after = Some(self.dice.below(3));
        if self.dice.chance(300) {
            self.work()
        } else {
            Ok(())
        }
    }

    fn begin(&mut self, trouble: Trouble) -> Course {
        if self.troubles.contains(&trouble)
            || trouble == Trouble::Address && !self.rules.own.is_empty()
        {
            return Ok(());
        }
        self.journal
            .say(self.now, format!("trouble begins: {trouble:?}"));
        match trouble {
            Trouble::Neighbours => {
                self.world.set_answer(false);
                let state = self.dice.pick(&[HopState::Unresolved, HopState::Failed]);
                let inside = self.dice.pick(&self.hosts);
                for whom in [inside, UPSTREAM] {
                    if self.dice.chance(700) {
                        self.world.set_neighbour(whom, state);
                    }
                }
            }
            Trouble::Route => {
                let (kind, paths) = (RouteKind::Unreachable, Vec::new());
                let route = RouteFacts {
                    prefix: LOST,
                    kind,
                    metric: 0,
                    mtu: None,
                    paths,
                };
                self.world.set_routes(vec![route]);
            }
            Trouble::Mtu => self.set_mtus(),
            Trouble::Rings => self.world.set_transmit_room(self.dice.below(2) as usize),
            Trouble::Punts => self.world.refuse_punts(true),
            Trouble::Address => {
                let addresses = self
                    .dice
                    .pick(&[vec![], vec![LATER], vec![LATER, EXTERNAL]]);
                self.readdress(addresses);
                return self.heal_later(trouble);
            }
        }
        self.troubles.push(trouble);
        self.heal_later(trouble)
    }

    fn heal_later(&mut self, trouble: Trouble) -> Course {
        let ms = self.dice.pick(&[30, 500, 2_500, 6_000]);
        self.network.at(self.now + ms, Event::Heal(trouble));
        Ok(())
    }

    fn set_mtus(&mut self) {
        for interface in 0..=usize::from(self.two_arm) {
            let mtu = self.dice.pick(&[1500, 576, 300]);
            self.world.set_mtu(interface, mtu);
        }
    }

    /// The external interface has other addresses now.
    fn readdress(&mut self, addresses: Vec<Ipv4Addr>) {
        self.journal
            .say(self.now, format!("the interface has {addresses:?}"));
        let nets = addresses.iter().map(|addr| Ipv4Net::new_assert(*addr, 24));
        self.world.set_external(nets.collect());
        if self.present.is_empty() && !addresses.is_empty() {
            self.connected_at = self.now;
        }
        self.present = addresses;
        let before = self.rules.shared;
        self.rules.follow(&self.present);
        self.note_trouble_over();
        if before != self.rules.shared {
            self.rules_changed();
        }
    }

    pub fn heal(&mut self, trouble: Trouble) -> Course {
        self.journal
            .say(self.now, format!("trouble ends: {trouble:?}"));
        self.troubles.retain(|other| *other != trouble);
        self.note_trouble_over();
        match trouble {
            Trouble::Neighbours => self.world.set_answer(true),
            Trouble::Route => self.world.set_routes(Vec::new()),
            Trouble::Mtu => {
                for interface in 0..=usize::from(self.two_arm) {
                    self.world.set_mtu(interface, 1500);
                }
            }
            Trouble::Rings => self.world.set_transmit_room(usize::MAX),
            Trouble::Punts => self.world.refuse_punts(false),
            Trouble::Address => {
                let addresses =
                    self.dice
                        .pick(&[vec![EXTERNAL], vec![EXTERNAL], vec![LATER, EXTERNAL]]);
                self.readdress(addresses);
            }
        }
        if !self.troubles.contains(&Trouble::Neighbours) {
            // With each change of links and routes there may be other hops.
            for whom in self.hosts.clone().into_iter().chain([UPSTREAM]) {
                self.world.set_neighbour(whom, HopState::Resolved);
            }
        }
        Ok(())
    }

    /// The machine sleeps; what was on the wires is lost.
    fn suspend(&mut self) -> Course {
        self.work()?;
        let ms = self
            .dice
            .pick(&[1_000, 30_000, 200_000, 4_000_000, 9_000_000]);
        self.journal
            .say(self.now, format!("the machine sleeps for {} s", ms / 1000));
        self.network.forget_frames();
        self.now += ms;
        self.world.advance_ms(ms);
        self.world.round();
        Ok(())
    }
}
