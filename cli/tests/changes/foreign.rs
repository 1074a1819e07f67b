//! Frames that are none of the gateway's business.

use std::net::SocketAddrV4;
use std::time::Duration;

use egret_cli::demo::check::{at, endpoint};
use egret_cli::demo::setup::Tuning;
use egret_cli::lab::capture::Pick;
use egret_cli::lab::plan::{INTERNAL, ROUTER_LINK};
use egret_cli::lab::service::{UdpFlow, UdpService};
use egret_cli::lab::{Capture, LabOptions, Topology};
use engine::device::sys::ethtool::{self, Offload};
use etherparse::PacketBuilder;

use crate::kernel::{Frames, Stand, ip};
use crate::{LIMIT, PREFIX, SHORT, ready};

/// A UDP frame with a marker as payload.
fn udp_frame(
    source: [u8; 6],
    to: [u8; 6],
    from: SocketAddrV4,
    at: SocketAddrV4,
    marker: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(source, to)
        .ipv4(from.ip().octets(), at.ip().octets(), 64)
        .udp(from.port(), at.port())
        .write(&mut frame, marker)
        .expect("a frame");
    frame
}

/// The frame with these bytes between its addresses and its EtherType.
fn tagged(frame: &[u8], tag: &[u8]) -> Vec<u8> {
    [&frame[..12], tag, &frame[12..]].concat()
}

/// The frame with another EtherType.
fn typed(frame: &[u8], ether_type: u16) -> Vec<u8> {
    [&frame[..12], &ether_type.to_be_bytes(), &frame[14..]].concat()
}

/// Frames that are left to the host even though their addresses and ports are those of a session:
/// from outside and from inside. Each carries a marker of its own.
fn foreign_frames(mode: &str) {
    if !ready() {
        return;
    }
    let tuning = Tuning {
        mode: Some(mode.to_owned()),
        ..Tuning::default()
    };
    let stand = Stand::start(LabOptions::new(PREFIX, Topology::TwoArm), &tuning);
    let lab = &stand.lab;
    // A veth end hands a bridge's tags over beside the frame, where XDP does not see them; in tc
    // they are seen.
    let switch = lab.switch();
    let in_band = switch.run(|| ethtool::set_offload("gw", Offload::TxVlan, mode == "tun"));
    in_band.expect("tags in the frames");
    let (server, client) = (&lab.servers[0], &lab.clients[0]);
    let udp = UdpService::start(&server.namespace, server.address, [7002]).expect("a server");
    let flow = UdpFlow::open(&client.namespace, 0, at(0, 7002)).expect("a flow");
    let seen = flow.ask(b"first", 3, SHORT).expect("an answer");
    let mac_of = |namespace: &egret_cli::lab::Namespace, link| {
        namespace
            .link_address(link)
            .expect("a link")
            .addr()
            .expect("its address")
    };
    // Where it is sent, where it must be seen by the host, and where it would come out.
    let outside = Side {
        name: "outside",
        sender: Frames::open(&lab.router, ROUTER_LINK),
        host: Frames::open(&lab.gateway, "wan0"),
        host_sees_all: mode == "tun",
        beyond: Frames::open(&client.namespace, "eth0"),
        macs: (
            mac_of(&lab.router, ROUTER_LINK),
            mac_of(&lab.gateway, "wan0"),
        ),
        endpoints: (at(0, 7002), seen),
    };
    outside.check();
    // Only now: it would see what the other side has sent from the same interface.
    let inside = Side {
        name: "inside",
        sender: Frames::open(&client.namespace, "eth0"),
        host: Frames::open(&lab.gateway, "lan0"),
        host_sees_all: mode == "tun",
        beyond: Frames::open(&lab.router, ROUTER_LINK),
        macs: (
            mac_of(&client.namespace, "eth0"),
            mac_of(&lab.gateway, "lan0"),
        ),
        endpoints: (
            flow.local()
                .map(|local| endpoint(client.address, local.port()))
                .expect("its port"),
            at(0, 7002),
        ),
    };
    let watch = Capture::open(
        &lab.router,
        ROUTER_LINK,
        Pick {
            source: Some(INTERNAL),
            to: Some(mac_of(&lab.router, ROUTER_LINK)),
        },
    );
    inside.check();
    assert!(
        watch.expect("watching").take().is_empty(),
        "something left untranslated"
    );
    assert_eq!(flow.ask(b"last", 3, SHORT).expect("it goes on"), seen);
    // ARP and IPv6 as the kernels themselves speak them.
    ip(&lab.router, &format!("neighbour flush dev {ROUTER_LINK}"));
    assert_eq!(
        flow.ask(b"after", 5, SHORT)
            .expect("the router asks for us"),
        seen
    );
    drop(udp);
    stand.assert_in_order();
    stand.stop();
}

/// One side of the gateway.
struct Side {
    name: &'static str,
    sender: Frames,
    host: Frames,
    /// A packet socket sees what comes before tc does, and all of it.
    host_sees_all: bool,
    beyond: Frames,
    /// Of the sender and of the gateway.
    macs: ([u8; 6], [u8; 6]),
    /// Of a session's packet from this side.
    endpoints: (SocketAddrV4, SocketAddrV4),
}

impl Side {
    fn frame(&self, to: [u8; 6], marker: &[u8]) -> Vec<u8> {
        udp_frame(self.macs.0, to, self.endpoints.0, self.endpoints.1, marker)
    }

    fn frame_of_ipv6(&self, marker: &[u8]) -> Vec<u8> {
        let (source, to) = self.macs;
        let address = |last| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
        let (from, at) = self.endpoints;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(source, to)
            .ipv6(address(1), address(2), 64)
            .udp(from.port(), at.port())
            .write(&mut frame, marker)
            .expect("a frame");
        frame
    }

    fn check(&self) {
        let ours = self.macs.1;
        let to_us = |marker: &str| self.frame(ours, marker.as_bytes());
        // The same packet, plain, is ours: so what follows is not left alone for another reason.
        self.sender.send(&to_us("marker: plain"));
        assert!(
            self.beyond.see(b"marker: plain", LIMIT),
            "{}: a plain frame",
            self.name
        );
        assert!(
            self.host.see(b"marker: plain", Duration::ZERO) == self.host_sees_all,
            "{}: seen twice",
            self.name
        );
        let cases: [(&str, Vec<u8>); 8] = [
            (
                "marker: broadcast",
                self.frame([0xff; 6], b"marker: broadcast"),
            ),
            (
                "marker: multicast",
                self.frame([1, 0, 0x5e, 0, 0, 1], b"marker: multicast"),
            ),
            (
                "marker: other MAC",
                self.frame([2, 9, 9, 9, 9, 9], b"marker: other MAC"),
            ),
            (
                "marker: 802.1Q",
                tagged(&to_us("marker: 802.1Q"), &[0x81, 0, 0, 5]),
            ),
            (
                "marker: 802.1ad",
                tagged(
                    &to_us("marker: 802.1ad"),
                    &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
                ),
            ),
            ("marker: ARP", typed(&to_us("marker: ARP"), 0x0806)),
            ("marker: IPv6", self.frame_of_ipv6(b"marker: IPv6")),
            ("marker: LLDP", typed(&to_us("marker: LLDP"), 0x88cc)),
        ];
        for (marker, frame) in cases {
            self.sender.send(&frame);
            assert!(
                self.host.see(marker.as_bytes(), LIMIT),
                "{}: {marker}: not left to the host",
                self.name
            );
        }
        // Sent after all of them, so that none is still on its way.
        self.sender.send(&to_us("marker: end"));
        let mut strays = Vec::new();
        let ended = self
            .beyond
            .see_all(b"marker: ", b"marker: end", LIMIT, &mut strays);
        // The server's answer to the plain one may be seen, too.
        strays.retain(|marker| marker != "marker: plain");
        assert!(
            ended && strays.is_empty(),
            "{}: came out on the other side: {strays:?}",
            self.name
        );
    }
}

#[test]
fn foreign_frames_are_left_to_the_host_copy() {
    foreign_frames("copy");
}

#[test]
fn foreign_frames_are_left_to_the_host_tun() {
    foreign_frames("tun");
}

#[test]
fn foreign_frames_are_left_to_the_host_generic() {
    foreign_frames("generic");
}
