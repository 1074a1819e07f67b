//! A pool of 64,512 ports, filled as far as wanted: what an external port costs at every fill.

use conntrack::{
    Endpoint, MappingBehaviour, Nat, PacketFacts, Policy, Protocol, Realm, Refusal, Signal, Time,
    Tuple,
};

use crate::{Sequence, policy, tables};

/// Ports of the pool.
pub const PORTS: u32 = 64_512;

/// The pool; every flow is a new internal endpoint's to one remote endpoint, and gets a random port.
pub struct Pool {
    nat: Nat<'static>,
    policy: Policy,
    random: Sequence,
    opened: u32,
}

impl Pool {
    /// A pool of which so many percent, 0 to 100, are in use. Half of TCP's ports are, too, so that an
    /// empty pool is measured in tables that have been at work. Of a full pool that is known: the
    /// proof, which `edm` has to make again for each remote endpoint each second, is behind it.
    pub fn filled(mapping: MappingBehaviour, percent: u32) -> Pool {
        let mut pool = Pool {
            nat: tables(1 << 17, 1),
            policy: {
                let mut policy = policy(1);
                policy.profile.mapping = [mapping; 3];
                policy.profile.preserve_port = false;
                policy
            },
            random: Sequence(3),
            opened: 0,
        };
        for _ in 0..PORTS / 2 {
            pool.send(Protocol::Tcp, Signal::TcpSyn)
                .expect("there is room");
        }
        for _ in 0..PORTS * percent / 100 {
            pool.open().expect("the pool is not full yet");
        }
        if percent == 100 {
            pool.open().expect_err("the pool is full");
        }
        pool
    }

    /// One more flow.
    pub fn open(&mut self) -> Result<(), Refusal> {
        self.send(Protocol::Udp, Signal::Udp)
    }

    fn send(&mut self, protocol: Protocol, signal: Signal) -> Result<(), Refusal> {
        let [_, a, b, c] = self.opened.to_be_bytes();
        self.opened += 1;
        let tuple = Tuple {
            protocol,
            source: Endpoint::new([10, a, b, c].into(), 7000),
            destination: Endpoint::new([203, 0, 113, 1].into(), 53),
        };
        let hash = self.nat.hash(&tuple);
        let made = self.nat.translate(
            &self.policy,
            Realm::Internal,
            &tuple,
            hash,
            PacketFacts {
                signal,
                length: 64,
                sequence: 0,
                acknowledgement: 0,
            },
            Time(1000),
            &mut self.random,
        );
        made.map(|_| ())
    }
}
