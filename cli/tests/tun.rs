//! The tun driver's own: big packets stay whole from end to end, and links that AF_XDP has no
//! buffers for.

mod kernel;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use egret_cli::demo::check::at;
use egret_cli::demo::setup::Tuning;
use egret_cli::lab::capture::Pick;
use egret_cli::lab::content::Content;
use egret_cli::lab::plan::{EXTERNAL, ROUTER_LINK};
use egret_cli::lab::tcp::{TcpService, exchange};
use egret_cli::lab::{Capture, LabOptions, Topology, wait};
use ipnet::Ipv4Net;
use kernel::{Stand, is_root};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

const PREFIX: &str = "egret-tg";
/// Counters are told once a second.
const TOLD: Duration = Duration::from_secs(3);
/// Bytes in each direction.
const BULK: u64 = 96 << 20;

fn tuning(mode: &str) -> Tuning {
    Tuning {
        mode: Some(mode.to_owned()),
        ..Tuning::default()
    }
}

/// Bytes that came to the gateway, and how many of them in packets above 32 KiB.
fn bytes(stand: &Stand) -> (u64, u64) {
    let status = stand.status();
    let sockets = status["sockets"].as_object().expect("sockets").values();
    let sum = |name: &str| {
        let sockets = sockets.clone();
        sockets.filter_map(|counters| counters[name].as_u64()).sum()
    };
    (sum("bytes"), sum("bytes_big"))
}

fn bulk(topology: Topology) {
    if !is_root() {
        return;
    }
    let options = LabOptions {
        external_mtu: 1500,
        ..LabOptions::new(PREFIX, topology)
    };
    let stand = Stand::start(options, &tuning("tun"));
    let service = TcpService::start(&stand.lab.servers[0].namespace, 5001).expect("a server");
    let client = &stand.lab.clients[0].namespace;
    exchange(client, at(0, 5001), BULK, 77).expect("every byte as it was sent");
    drop(service);
    let all = || bytes(&stand).0 >= 2 * BULK;
    assert!(wait::until(TOLD, all), "{:?} bytes", bytes(&stand));
    let (all, big) = bytes(&stand);
    println!("{big} of {all} bytes in big packets");
    assert!(big as f64 >= 0.9 * all as f64, "{big} of {all} bytes");
    let counters = &stand.status()["counters"];
    assert_eq!(counters["checksums_completed"], 0, "the kernel does that");
    assert_eq!(counters["split"], 0);
    stand.finish();
}

#[test]
fn bulk_goes_in_big_packets_two_arm() {
    bulk(Topology::TwoArm);
}

#[test]
fn bulk_goes_in_big_packets_one_arm() {
    bulk(Topology::OneArm);
}

/// What a QUIC server sends: many datagrams in one call, cut by whoever puts them on a wire.
#[test]
fn datagrams_that_are_sent_together_come_apart_at_the_end() {
    if !is_root() {
        return;
    }
    const EACH: usize = 1200;
    const COUNT: usize = 40;
    let options = LabOptions {
        external_mtu: 1500,
        ..LabOptions::new(PREFIX, Topology::TwoArm)
    };
    let stand = Stand::start(options, &tuning("tun"));
    let server = &stand.lab.servers[0];
    let bind = |address: Ipv4Addr, port| move || UdpSocket::bind((address, port));
    let receiver = server.namespace.run(bind(server.address, 7100));
    let receiver = receiver.expect("a socket");
    receiver
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a limit");
    let client = &stand.lab.clients[0];
    let sender = client
        .namespace
        .run(bind(client.address, 0))
        .expect("a socket");
    let mut content = Content::new(5);
    let mut sent = vec![0; EACH * COUNT];
    content.fill(&mut sent);
    // The first finds the way.
    sender.send_to(b"hello", at(0, 7100)).expect("a datagram");
    let mut buffer = [0; 2048];
    assert_eq!(receiver.recv(&mut buffer).expect("it arrives"), 5);
    setsockopt(&sender, UdpGsoSegment, &(EACH as i32)).expect("Linux 4.18");
    let together = sender.send_to(&sent, at(0, 7100)).expect("all in one call");
    assert_eq!(together, sent.len());
    for datagram in sent.chunks(EACH) {
        let len = receiver.recv(&mut buffer).expect("every datagram");
        assert!(buffer[..len] == *datagram, "{len} bytes, or others");
    }
    let whole = || bytes(&stand).1 >= (EACH * COUNT) as u64;
    if has_udp_segments() {
        assert!(wait::until(TOLD, whole), "{:?} bytes", bytes(&stand));
    }
    stand.finish();
}

/// Without DF the kernel that cuts a super-packet numbers what it makes of it from the super-packet's
/// identification on: none of these may be given out again (RFC 6864).
#[test]
fn what_the_kernel_cuts_has_identifications_of_its_own() {
    if !is_root() || !kernel::have(&[("ethtool", "ethtool")]) {
        return;
    }
    let options = LabOptions {
        external_mtu: 1500,
        ..LabOptions::new(PREFIX, Topology::TwoArm)
    };
    let stand = Stand::start(options, &tuning("tun"));
    let mut cut = kernel::command("ethtool");
    cut.args(["-K", "wan0", "tso", "off", "gso", "off"]);
    cut.args(["tx-udp-segmentation", "off"]);
    let said = kernel::run(&stand.lab.gateway, &mut cut, TOLD);
    assert!(said.status.success(), "{said:?}");
    let client = &stand.lab.clients[0];
    // TCP sends without DF then, and so do datagrams.
    let df = client.namespace.set_sysctl("ipv4/ip_no_pmtu_disc", "1");
    df.unwrap_or_else(|error| panic!("{error}"));
    let pick = Pick {
        source: Some(Ipv4Net::from(EXTERNAL)),
        ..Pick::default()
    };
    let watch = Capture::open(&stand.lab.router, ROUTER_LINK, pick).expect("a capture");
    let send = || {
        let service = TcpService::start(&stand.lab.servers[0].namespace, 5001).expect("a server");
        exchange(&client.namespace, at(0, 5001), 4 << 20, 79).expect("every byte");
        drop(service);
        let bind = || UdpSocket::bind((client.address, 0));
        let sender = client.namespace.run(bind).expect("a socket");
        sender.send_to(b"hello", at(0, 7100)).expect("a datagram");
        setsockopt(&sender, UdpGsoSegment, &1000).expect("Linux 4.18");
        for _ in 0..5 {
            let together = sender.send_to(&[7; 40_000], at(0, 7100));
            assert_eq!(together.expect("all in one call"), 40_000);
        }
    };
    let mut frames = Vec::new();
    std::thread::scope(|scope| {
        let sending = scope.spawn(send);
        wait::until(10 * TOLD, || {
            // Before it is asked, so that the last ones are taken.
            let sent = sending.is_finished();
            frames.extend(watch.take());
            sent && frames.iter().filter(|frame| frame[23] == 17).count() > 100
        });
        sending.join().expect("all is sent");
    });
    for (protocol, enough) in [(6, 500), (17, 100)] {
        let half = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let of_it = frames.iter().filter(|frame| frame[23] == protocol);
        let loose: Vec<_> = of_it
            .filter(|frame| half(frame, 20) & 0x4000 == 0)
            .collect();
        assert!(loose.iter().all(|frame| half(frame, 16) <= 1500), "not cut");
        let different: BTreeSet<u16> = loose.iter().map(|frame| half(frame, 18)).collect();
        assert!(
            loose.len() >= enough,
            "{} packets of {protocol}",
            loose.len()
        );
        assert_eq!(
            different.len(),
            loose.len(),
            "identifications of {protocol}"
        );
    }
    let big = || bytes(&stand).1 > 1 << 20;
    assert!(
        wait::until(TOLD, big),
        "few super-packets: {:?}",
        bytes(&stand)
    );
    stand.finish();
}

/// Does the kernel hand over datagrams that were sent together as one packet (6.2)?
fn has_udp_segments() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a version");
    let mut numbers = release
        .split('.')
        .map(|word| word.parse::<u32>().unwrap_or(0));
    let has = (numbers.next(), numbers.next()) >= (Some(6), Some(2));
    if !has {
        kernel::skip("before Linux 6.2 the kernel cuts UDP itself: not seen whole");
    }
    has
}
