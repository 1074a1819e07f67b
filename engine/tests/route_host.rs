//! The snapshot of the host, read in a network namespace of a test's own. Needs root; without, the
//! test says so and passes, unless `EGRET_TESTS_NO_SKIP=1`.

use std::process::{Command, Stdio};

use conntrack::Protocol;
use engine::config::PortRange;
use engine::host::Host;

fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

fn sysctl(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/{key}"), value).unwrap();
}

/// Loads rules; false where the machine has no nft.
fn nft(rules: &str) -> bool {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return false };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    true
}

fn in_a_namespace() {
    run("ip", "link set lo up");
    run("ip", "link add v0 type veth peer name v1");
    run("ip", "addr add 10.9.0.1/24 dev v0");
    run("ip", "link set v0 up");
    sysctl("ip_local_port_range", "40000 50000");
    sysctl("ip_local_reserved_ports", "8080,9000-9100");
    sysctl("ip_forward", "1");
    sysctl("conf/all/rp_filter", "1");
    sysctl("conf/v0/rp_filter", "2");
    let tcp = std::net::TcpListener::bind("10.9.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let with_nft = nft("table ip t {
            map ports { type inet_service : ipv4_addr; elements = { 7000 : 10.0.0.7 } }
            chain sub { dnat to 10.0.0.5; }
            chain pre {
                type nat hook prerouting priority dstnat;
                tcp dport 8081 dnat to 10.0.0.5:80
                udp dport { 53, 500-510 } redirect to :5353
                tcp dport vmap { 443 : jump sub, 444 : accept }
                dnat to tcp dport map @ports
            }
        }");

    let host = Host::read().unwrap();
    let v0 = host
        .interfaces
        .iter()
        .find(|facts| facts.name == "v0")
        .unwrap();
    assert_eq!((v0.kind.as_str(), v0.mtu), ("veth", 1500));
    assert_eq!(v0.addresses, ["10.9.0.1/24".parse().unwrap()]);
    assert!(host.locals.contains(&"10.9.0.1".parse().unwrap()));
    assert_eq!(
        host.ports.local_port_range,
        Some(PortRange {
            first: 40000,
            last: 50000
        })
    );
    let reserved = [
        PortRange {
            first: 8080,
            last: 8080,
        },
        PortRange {
            first: 9000,
            last: 9100,
        },
    ];
    assert_eq!(host.ports.local_reserved_ports, reserved);
    assert!(host.ip_forward);
    assert!(host.rp_filter.contains(&("v0".into(), 2)));
    assert!(host.rp_filter.contains(&("v1".into(), 1)));
    let ports = |protocol| -> Vec<_> {
        let of = host
            .ports
            .listeners
            .iter()
            .filter(|listener| listener.protocol == protocol);
        of.map(|listener| (listener.addr, listener.port)).collect()
    };
    let (tcp, udp) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    assert_eq!(
        ports(Protocol::Tcp),
        [("10.9.0.1".parse().unwrap(), tcp.port())]
    );
    assert_eq!(
        ports(Protocol::Udp),
        [("0.0.0.0".parse().unwrap(), udp.port())]
    );
    if with_nft {
        let range = |protocol, first, last| (protocol, PortRange { first, last });
        let mut wanted = [
            range(Protocol::Tcp, 443, 443),
            range(Protocol::Tcp, 444, 444),
            range(Protocol::Tcp, 7000, 7000),
            range(Protocol::Tcp, 8081, 8081),
            range(Protocol::Udp, 53, 53),
            range(Protocol::Udp, 500, 510),
        ];
        wanted.sort_unstable();
        assert_eq!(host.ports.redirected_ports, wanted);
    }
}

#[test]
fn a_snapshot_of_the_host() {
    std::thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            let strict = std::env::var_os("EGRET_TESTS_NO_SKIP").is_some();
            assert!(!strict, "no network namespace: {error}");
            {
                use std::io::Write;
                // Past the test harness, which would keep it to itself.
                let _ = writeln!(std::io::stderr(), "skipped: no network namespace: {error}");
            }
            return;
        }
        in_a_namespace();
    })
    .join()
    .unwrap();
}
