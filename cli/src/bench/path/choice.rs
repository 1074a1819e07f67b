//! What can be chosen on the command line: tests, contenders, flow counts.

use clap::ValueEnum;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Test {
    /// 64-byte UDP delivered a second at overload, as frames from a network card
    Udp64Overload,
    /// The highest rate of 64-byte UDP with at most one packet in a thousand lost
    Udp64Ndr,
    /// 64-byte UDP delivered a second at overload, as socket buffers from a pod
    Udp64Skb,
    /// Sessions made a second when every packet is a new flow
    NewSessions,
    /// iperf3, one stream; tcp-1-cpu: CPU time of the gateway's core a KiB
    #[value(name = "tcp-1")]
    Tcp1,
    /// iperf3, eight streams; tcp-8-cpu
    #[value(name = "tcp-8")]
    Tcp8,
    /// Round trips at half of nft's overload rate: rtt-p50, rtt-p99, rtt-p999
    Rtt,
    /// What flows keep while the ports to another destination have run out
    PortsExhausted,
    /// Delivered at 1 to 10 times the capacity: the lowest against the highest
    #[value(name = "overload-10x")]
    Overload10x,
    /// CPU time of the gateway, its kernel threads included, a packet
    Cpu,
}

impl Test {
    /// The flow counts that make a difference to it; none means that it has its own.
    pub fn flow_choices(self) -> &'static [Flows] {
        match self {
            Test::Udp64Overload | Test::Udp64Ndr | Test::Udp64Skb | Test::Cpu => &Flows::ALL,
            _ => &[],
        }
    }

    /// What the contender must be able to do.
    pub fn needs(self) -> Need {
        match self {
            Test::Udp64Overload | Test::Udp64Ndr | Test::Udp64Skb => Need::Forwarding,
            Test::Overload10x | Test::Cpu => Need::Forwarding,
            Test::Tcp1 | Test::Tcp8 | Test::Rtt => Need::BothWays,
            Test::NewSessions | Test::PortsExhausted => Need::Translation,
        }
    }

    /// As on the command line.
    pub fn name(self) -> String {
        value_name(self)
    }
}

/// What a test asks of a contender; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// It carries packets from inside to outside.
    Forwarding,
    /// It carries the answers, too.
    BothWays,
    /// It translates.
    Translation,
}

/// Why a build has no `xsk-rs-forward`, and how to make one that has.
pub const XSK_RS_LEFT_OUT: &str = "it is not in this build: build with `cargo build --release \
     --features xsk-rs`, which needs the Debian packages clang libelf-dev m4 pkg-config zlib1g-dev";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rival {
    /// The kernel's masquerade, nftables
    Nft,
    /// The kernel's forwarding without NAT
    Forward,
    /// A bare AF_XDP forwarder that sets Ethernet addresses: the ceiling of AF_XDP here
    XdpForward,
    /// The same on the rings of the crate xsk-rs (in builds with `--features xsk-rs`)
    XskRsForward,
    /// `egret run` with AF_XDP
    EgretXdp,
    /// `egret run` with the tun driver
    EgretTun,
}

impl Rival {
    /// What it can do.
    pub fn ability(self) -> Need {
        match self {
            Rival::XdpForward | Rival::XskRsForward => Need::Forwarding,
            Rival::Forward => Need::BothWays,
            Rival::Nft | Rival::EgretXdp | Rival::EgretTun => Need::Translation,
        }
    }

    /// What to do to have it, if this build is without it.
    pub fn left_out(self) -> Option<&'static str> {
        let absent = self == Rival::XskRsForward && !cfg!(feature = "xsk-rs");
        absent.then_some(XSK_RS_LEFT_OUT)
    }

    /// As on the command line and in the names of figures.
    pub fn name(self) -> String {
        value_name(self)
    }
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flows {
    /// 256 internal endpoints, 4 remote addresses
    #[value(name = "1k")]
    Thousand,
    /// 16,384 internal endpoints, 4 remote addresses
    #[value(name = "64k")]
    Thousands64,
    /// 32,768 internal endpoints, 32 remote addresses
    #[value(name = "1M")]
    Million,
}

impl Flows {
    /// All, fewest first.
    pub const ALL: [Flows; 3] = [Flows::Thousand, Flows::Thousands64, Flows::Million];

    /// As on the command line and in the names of figures.
    pub fn name(self) -> String {
        value_name(self)
    }
}

/// The name that clap knows a value by.
fn value_name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_figures() {
        let tests: Vec<String> = Test::value_variants().iter().map(|t| t.name()).collect();
        assert_eq!(
            tests,
            [
                "udp64-overload",
                "udp64-ndr",
                "udp64-skb",
                "new-sessions",
                "tcp-1",
                "tcp-8",
                "rtt",
                "ports-exhausted",
                "overload-10x",
                "cpu"
            ]
        );
        let rivals: Vec<String> = Rival::value_variants().iter().map(|r| r.name()).collect();
        assert_eq!(
            rivals,
            [
                "nft",
                "forward",
                "xdp-forward",
                "xsk-rs-forward",
                "egret-xdp",
                "egret-tun"
            ]
        );
        assert_eq!(Flows::ALL.map(Flows::name), ["1k", "64k", "1M"]);
    }

    #[test]
    fn only_who_translates_is_asked_for_sessions() {
        assert!(Rival::Forward.ability() < Test::NewSessions.needs());
        assert!(Rival::Nft.ability() >= Test::PortsExhausted.needs());
        assert!(Rival::XdpForward.ability() < Test::Rtt.needs());
    }

    #[test]
    fn only_what_needs_a_feature_is_left_out() {
        let left_out: Vec<Rival> = Rival::value_variants()
            .iter()
            .copied()
            .filter(|rival| rival.left_out().is_some())
            .collect();
        let expected: &[Rival] = if cfg!(feature = "xsk-rs") {
            &[]
        } else {
            &[Rival::XskRsForward]
        };
        assert_eq!(left_out, expected);
    }
}
