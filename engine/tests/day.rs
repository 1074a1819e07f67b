//! A day of virtual time with churn, through workers and conntrack: afterwards nothing is left.
//! The clock passes 2^32 ms on the way, where the tables' stamps wrap.

use std::net::Ipv4Addr;

use conntrack::{Random, Time};
use engine::device::fault::Faults;
use engine::random::WorkerRandom;
use engine::wire::build::Envelope;
use engine::wire::tcp::{ACK, FIN, RST, SYN};
use engine::wire::{icmp, ipv4};
use engine::world::{EXTERNAL, Setup, World};

const DAY_S: u64 = 24 * 3600;
const TOP: &str = "internal = \"10.77.0.0/16\"\n";
const BASE: &str = "[tables]\nsessions_max = 4096\n\
    [[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\ntarget = \"10.77.0.5:443\"\n";
const TWO_ARM: &str = "[[interfaces]]\nname = \"lan0\"\nrole = \"internal\"\n\
    [[interfaces]]\nname = \"wan0\"\nrole = \"external\"\n";

/// A made-up population that talks.
struct Churn {
    random: WorkerRandom,
    lan: usize,
    wan: usize,
    /// Where the external realm finds the pool.
    pool: Ipv4Addr,
}

impl Churn {
    fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn client(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(0x0a4d_0005 + self.below(400) as u32)
    }

    fn server(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(0xcb00_7101 + self.below(100) as u32)
    }

    /// Lets a few frames arrive.
    fn act(&mut self, world: &mut World) {
        let (client, server) = (self.client(), self.server());
        let port = 20_000 + self.below(9_000) as u16;
        let out = Envelope::new(client, server);
        let back = Envelope::new(server, self.pool);
        let (lan, wan) = (self.lan, self.wan);
        let frames: Vec<(usize, Vec<u8>)> = match self.below(10) {
            0 | 1 => vec![
                (lan, out.udp(port, 53, b"question")),
                (wan, back.udp(53, port, b"answer")),
            ],
            2 => vec![
                (lan, out.tcp(port, 443, SYN, b"")),
                (wan, back.tcp(443, port, SYN | ACK, b"")),
                (lan, out.tcp(port, 443, ACK, b"hello")),
            ],
            3 => vec![
                (lan, out.tcp(port, 80, SYN, b"")),
                (wan, back.tcp(80, port, SYN | ACK, b"")),
                (lan, out.tcp(port, 80, FIN | ACK, b"")),
                (wan, back.tcp(80, port, FIN | ACK, b"")),
            ],
            4 => vec![
                (lan, out.echo_request(port, b"ping")),
                (wan, back.echo_reply(port, b"ping")),
            ],
            5 => vec![
                (wan, back.tcp(port, 8443, SYN, b"")),
                (
                    lan,
                    Envelope::new(Ipv4Addr::new(10, 77, 0, 5), server).tcp(
                        443,
                        port,
                        SYN | ACK,
                        b"",
                    ),
                ),
                (
                    wan,
                    back.tcp(
                        port,
                        8443,
                        if port.is_multiple_of(2) { ACK } else { RST },
                        b"",
                    ),
                ),
            ],
            6 => vec![(
                lan,
                Envelope::new(client, self.pool).tcp(port, 8443, SYN, b""),
            )],
            7 => {
                let datagram = out.udp_datagram(port, 53, &[7; 56]);
                let part = |flags_offset, bytes: &[u8]| {
                    let fragment = Envelope {
                        identification: port,
                        flags_offset,
                        ..out.clone()
                    };
                    (lan, fragment.frame(17, bytes))
                };
                vec![
                    part(4, &datagram[32..]),
                    part(ipv4::MORE_FRAGMENTS, &datagram[..32]),
                ]
            }
            8 => {
                let sent = Envelope::new(self.pool, server).udp(port, 53, b"question");
                let error = back.icmp_error(icmp::UNREACHABLE, icmp::CODE_PORT, &sent, 64);
                vec![(lan, out.udp(port, 53, b"question")), (wan, error)]
            }
            _ => vec![
                (wan, back.udp(port, port, b"unsolicited")),
                (wan, Envelope::new(client, server).udp(port, 1, b"spoofed")),
                (
                    lan,
                    Envelope { ttl: 1, ..out }.udp(port, 33_434, b"traceroute"),
                ),
            ],
        };
        let worker = self.below(world.workers() as u64) as usize;
        for (interface, frame) in frames {
            assert!(world.inject_to(worker, interface, &frame));
            world.run();
        }
    }
}

fn day(config: &str, workers: u32, pool: Ipv4Addr, faults: Faults) {
    let two_arm = config.contains(TWO_ARM);
    let setup = Setup {
        workers,
        faults,
        hops_max: 2048,
        // Damaged bits are let through: checksums are the ends' concern.
        transport: faults.corrupt_permille == 0,
        start: Time((1 << 32) - 12 * 3_600_000),
        ..Setup::default()
    };
    let mut world = World::with(&format!("{TOP}{config}{BASE}"), setup).unwrap();
    let random = WorkerRandom::from_seed(7);
    let mut churn = Churn {
        random,
        lan: 0,
        wan: usize::from(two_arm),
        pool,
    };
    let mut most = 0;
    for second in 0..DAY_S {
        // The night is quiet, and so every session gets its chance to expire in peace.
        if second % 7_200 < 6_000 {
            churn.act(&mut world);
        }
        world.pass_ms(1_000, 1_000);
        for interface in 0..=churn.wan {
            world.take_sent(interface);
        }
        world.take_punted();
        most = most.max(world.totals().sessions);
        if second % 14_400 == 7_000 {
            world.check_invariants().unwrap();
        }
    }
    let totals = world.totals();
    assert!(
        most > 500 && totals.created > 30_000,
        "{most} at most, {totals:?}"
    );
    assert!(totals.expired > 10_000, "{totals:?}");
    world.set_faults(Faults::default());
    world.drain();
    world.check_empty().unwrap();
}

#[test]
fn two_arm_with_the_default_behaviour() {
    day(TWO_ARM, 1, EXTERNAL, Faults::default());
}

#[test]
fn one_arm_with_eim_and_two_workers() {
    let config = "interface = \"eth0\"\n[nat]\nmapping = \"eim\"\nfiltering = \"adf\"\n";
    day(config, 2, EXTERNAL, Faults::default());
}

#[test]
fn own_pool_with_eif_and_hold_down_and_a_bad_wire() {
    let own = Ipv4Addr::new(198, 51, 100, 20);
    let config = format!(
        "{TWO_ARM}[pool]\naddresses = \"{own}\"\n[nat]\nmapping = \"eim\"\nfiltering = \"eif\"\n"
    );
    let faults = Faults {
        drop_permille: 20,
        duplicate_permille: 20,
        corrupt_permille: 20,
        reorder_permille: 100,
    };
    day(&config, 1, own, faults);
}

/// However long a worker slept, what it left undone is made up for at once, in slices.
#[test]
fn a_long_sleep_is_made_up_for() {
    let config = format!("{TOP}{TWO_ARM}[tables]\nsessions_max = 131072\n");
    let mut world = World::with(&config, Setup::default()).unwrap();
    for n in 0..70_000_u32 {
        let client = Ipv4Addr::from(0x0a4d_0005 + n % 400);
        let server = Ipv4Addr::from(0xcb00_7101 + n / 20_000);
        let port = 20_000 + (n / 400) as u16;
        assert!(world.inject(0, &Envelope::new(client, server).udp(port, 53, b"question")));
        if n % 64 == 63 {
            world.run();
            world.take_sent(1);
        }
    }
    world.run();
    assert_eq!(world.totals().sessions, 70_000);
    world.advance_ms(400_000);
    world.pass_ms(10, 2);
    assert_eq!(world.totals().sessions, 0);
    world.check_invariants().unwrap();
}
