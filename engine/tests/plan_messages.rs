//! What a plan says of a configuration and a host, word for word.

use conntrack::Protocol;
use engine::config::Config;
use engine::plan::{Capabilities, DnatPorts, HostFacts, Plan, VlanOffload};
use support::{MINIMAL, TWO_ARM, eth0_with, host, host_with, listener};

mod support;

const FORWARD: &str = "[[forwards]]\nprotocol = \"tcp\"\ntarget = \"10.77.0.5:443\"\n";

/// Holds what the plan says against what it should say.
#[track_caller]
fn says(text: &str, host: &HostFacts, expected: &str) {
    let config = Config::parse("egret.toml", text).unwrap_or_else(|error| panic!("{error}"));
    let problems = match Plan::make(&config, host) {
        Ok(plan) => plan.problems,
        Err(problems) => problems,
    };
    let shown: Vec<String> = problems
        .iter()
        .map(|problem| problem.render(&config.source))
        .collect();
    assert_eq!(
        shown.join("\n").trim_end(),
        expected.trim(),
        "\n{}",
        shown.join("\n")
    );
}

#[test]
fn no_such_interface() {
    let host = host();
    says(
        "internal = \"10.77.0.0/24\"\ninterface = \"eht0\"\n",
        &host,
        r#"
error: there is no interface "eht0"
  --> egret.toml:2:13
   |
 2 | interface = "eht0"
   |             ^^^^^^
   = why: there are eth0, lan0
   = fix: write "eth0"
"#,
    );
}

#[test]
fn only_loopback() {
    let host = host_with(|host| host.interfaces.truncate(1));
    says(
        MINIMAL,
        &host,
        r#"
error: there is no interface "eth0"
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: there is none but the loopback device
   = fix: give the machine a network interface
"#,
    );
}

#[test]
fn not_ethernet() {
    let host = eth0_with(|nic| nic.mac = None);
    says(
        MINIMAL,
        &host,
        r#"
error: "eth0" has no Ethernet address
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: Egret reads and writes Ethernet frames
   = fix: name an Ethernet interface; `ip -brief link` lists them with their addresses
"#,
    );
}

#[test]
fn loopback() {
    let host =
        host_with(|host| host.interfaces[0].addresses = vec!["127.0.0.1/8".parse().unwrap()]);
    says(
        &MINIMAL.replace("eth0", "lo"),
        &host,
        r#"
error: "lo" is the loopback device
  --> egret.toml:2:13
   |
 2 | interface = "lo"
   |             ^^^^
   = why: Egret reads and writes Ethernet frames
   = fix: name an Ethernet interface; `ip -brief link` lists them with their addresses
"#,
    );
}

#[test]
fn interface_down() {
    let host = eth0_with(|nic| nic.up = false);
    says(
        MINIMAL,
        &host,
        r#"
warning: "eth0" is down or has no carrier
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: nothing comes in or goes out
   = fix: ip link set eth0 up
"#,
    );
}

#[test]
fn no_address() {
    let host = eth0_with(|nic| nic.addresses.clear());
    says(
        MINIMAL,
        &host,
        r#"
warning: "eth0" has no IPv4 address yet
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: its address is in the pool: until it has one, packets from clients are dropped
   = fix: nothing, if DHCP is about to give one; else: ip address add ADDRESS/24 dev eth0
"#,
    );
}

#[test]
fn prefix_clash_one_arm() {
    let host = eth0_with(|nic| nic.addresses = vec!["10.77.0.6/24".parse().unwrap()]);
    says(
        MINIMAL,
        &host,
        r#"
error: the address 10.77.0.6 of "eth0" lies in the internal prefix 10.77.0.0/24
  --> egret.toml:1:12
   |
 1 | internal = "10.77.0.0/24"
   |            ^^^^^^^^^^^^^^
   = why: packets that leave with it would count as untranslated, and outside hosts of that network as clients (RFC 4787 REQ-7)
   = fix: name only the prefixes that clients have; 10.77.0.0/24 without the address is "10.77.0.0/30", "10.77.0.4/31", "10.77.0.7/32", "10.77.0.8/29", "10.77.0.16/28", "10.77.0.32/27", "10.77.0.64/26", "10.77.0.128/25"
"#,
    );
}

#[test]
fn prefix_clash_swapped_roles() {
    let host = host();
    says(
        &TWO_ARM
            .replace("lan0", "x")
            .replace("eth0", "lan0")
            .replace("\"x\"", "\"eth0\""),
        &host,
        r#"
error: the address 10.77.0.1 of "lan0" lies in the internal prefix 10.77.0.0/24
  --> egret.toml:1:12
   |
 1 | internal = "10.77.0.0/24"
   |            ^^^^^^^^^^^^^^
   = why: packets that leave with it would count as untranslated, and outside hosts of that network as clients (RFC 4787 REQ-7)
   = fix: swap the roles, if the clients are behind "lan0" and not behind "eth0"
"#,
    );
}

#[test]
fn prefix_clash_of_the_network() {
    let host = host();
    says(
        &TWO_ARM.replace("10.77.0.0/24", "203.0.113.128/25"),
        &host,
        r#"
warning: the network 203.0.113.0/24 of "eth0" overlaps the internal prefix 203.0.113.128/25
  --> egret.toml:1:12
   |
 1 | internal = "203.0.113.128/25"
   |            ^^^^^^^^^^^^^^^^^^
   = why: outside hosts in the overlap cannot be told from clients (RFC 4787 REQ-7)
   = fix: renumber the inside, or narrow `internal` to the clients' addresses
"#,
    );
}

#[test]
fn missing_privilege() {
    let host = host_with(|host| {
        host.capabilities = Some(Capabilities {
            net_raw: true,
            ..Capabilities::default()
        })
    });
    says(
        MINIMAL,
        &host,
        r#"
error: this process lacks CAP_NET_ADMIN (attach programs, mirror routes), CAP_SYS_ADMIN (load programs, mount the BPF file system)
  = why: without it the kernel lets nobody take packets past netfilter
  = fix: run it as root (sudo egret run ...), or in the systemd unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN; in a container: --cap-add for each
"#,
    );
}

#[test]
fn no_xdp_auto() {
    let host = eth0_with(|nic| {
        nic.xdp_native = Some(false);
        nic.driver = "e1000".into();
    });
    says(
        MINIMAL,
        &host,
        r#"
warning: "eth0" (driver e1000) has no XDP: it will be served in generic mode
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: the kernel makes a socket buffer of every frame first, which is slower, and merged packets (GRO, TSO) would be dropped
   = fix: ethtool -K eth0 gro off lro off; a NIC with an XDP driver is faster (virtio, ena, gve, mlx5, ixgbe, i40e, ice)
"#,
    );
}

#[test]
fn no_xdp_copy() {
    let host = eth0_with(|nic| {
        nic.xdp_native = Some(false);
        nic.driver = "e1000".into();
    });
    says(
        &format!("{MINIMAL}device.mode = \"copy\"\n"),
        &host,
        r#"
error: "eth0" (driver e1000) has no XDP, and mode = "copy" needs it
  --> egret.toml:3:15
   |
 3 | device.mode = "copy"
   |               ^^^^^^
   = why: only the driver itself can run the program before the kernel's receive path
   = fix: write mode = "auto" or "generic" in [device]
"#,
    );
}

#[test]
fn no_zero_copy() {
    let host = host();
    says(
        &format!("{MINIMAL}device.mode = \"zero-copy\"\n"),
        &host,
        r#"
error: "eth0" (driver virtio_net) has no zero-copy AF_XDP, and mode = "zero-copy" needs it
  --> egret.toml:3:15
   |
 3 | device.mode = "zero-copy"
   |               ^^^^^^^^^^^
   = why: the driver must write frames into Egret's memory itself
   = fix: write mode = "auto" or "copy" in [device]
"#,
    );
}

#[test]
fn mtu_too_large() {
    let host = eth0_with(|nic| {
        nic.mtu = 9001;
        nic.driver = "ena".into();
    });
    says(
        MINIMAL,
        &host,
        r#"
warning: the MTU of "eth0" (driver ena) is 9001, too large for XDP: it will be served in tun mode
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: a frame must fit one buffer: 3498 at most
   = fix: ip link set eth0 mtu 1500
"#,
    );
    says(
        &format!("{MINIMAL}device.mode = \"copy\"\n"),
        &host,
        r#"
error: the MTU of "eth0" (driver ena) is 9001, too large for XDP
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: a frame must fit one buffer: 3498 at most
   = fix: ip link set eth0 mtu 1500, or write mode = "tun" in [device]
"#,
    );
    says(&format!("{MINIMAL}device.mode = \"tun\"\n"), &host, "");
}

/// Each worker makes queues of its own, and tags are seen in tc.
#[test]
fn tun_mode_asks_nothing_of_the_card() {
    let host = eth0_with(|nic| {
        nic.rx_queues = 1;
        nic.xdp_native = Some(false);
        nic.vlan_offload = Some(VlanOffload::Fixed);
    });
    let text = format!("{MINIMAL}device.mode = \"tun\"\nworkers.count = 2\n");
    says(&text, &host, "");
    // Also where that is one of two, and the other has the queues.
    let host = host_with(|host| {
        host.interfaces[1] = eth0_with(|nic| {
            nic.rx_queues = 1;
            nic.mtu = 9001;
            nic.xdp_native = Some(false);
            nic.vlan_offload = Some(VlanOffload::Fixed);
        })
        .interfaces
        .remove(1);
        host.interfaces[2].rx_queues = 2;
    });
    let two = format!("{TWO_ARM}mode = \"tun\"\n[workers]\ncount = 2\n");
    says(&two, &host, "");
}

/// What is said of a mode says where that mode stands.
#[test]
fn a_mode_of_one_interface_that_it_cannot_have() {
    let host = eth0_with(|nic| nic.mtu = 9001);
    says(
        &format!("{TWO_ARM}mode = \"copy\"\n"),
        &host,
        r#"
error: the MTU of "eth0" (driver virtio_net) is 9001, too large for XDP
  --> egret.toml:6:8
   |
 6 | name = "eth0"
   |        ^^^^^^
   = why: a frame must fit one buffer: 3498 at most
   = fix: ip link set eth0 mtu 1500, or write mode = "tun" in its [[interfaces]]
"#,
    );
    let host = eth0_with(|nic| nic.xdp_native = Some(false));
    says(
        &format!("{TWO_ARM}mode = \"copy\"\n[device]\nmode = \"generic\"\n"),
        &host,
        r#"
error: "eth0" (driver virtio_net) has no XDP, and mode = "copy" needs it
  --> egret.toml:8:8
   |
 8 | mode = "copy"
   |        ^^^^^^
   = why: only the driver itself can run the program before the kernel's receive path
   = fix: write mode = "auto" or "generic" in its [[interfaces]]
"#,
    );
}

#[test]
fn vlan_offload_on() {
    let host = eth0_with(|nic| nic.vlan_offload = Some(VlanOffload::On));
    says(
        MINIMAL,
        &host,
        r#"
note: VLAN receive offload of "eth0" is on
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: Egret turns it off while it runs, so that it sees tags, and on again after
   = fix: to do it for good: ethtool -K eth0 rxvlan off
"#,
    );
}

#[test]
fn vlan_offload_fixed() {
    let host = eth0_with(|nic| nic.vlan_offload = Some(VlanOffload::Fixed));
    says(
        MINIMAL,
        &host,
        r#"
error: "eth0" takes VLAN tags out of frames and cannot be told not to
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: frames of another VLAN would look untagged and be translated
   = fix: use another NIC, or pass the VLANs to the machine as NICs of their own
"#,
    );
}

#[test]
fn ip_forward() {
    let host = host_with(|host| host.ip_forward = Some(true));
    says(
        MINIMAL,
        &host,
        r#"
warning: ip_forward is 1: detached from Egret, the kernel would forward 10.77.0.0/24 untranslated
  --> egret.toml:1:12
   |
 1 | internal = "10.77.0.0/24"
   |            ^^^^^^^^^^^^^^
   = why: while Egret runs, or is killed, nothing leaks: its program stays attached until `egret detach`; and nothing here needs ip_forward
   = fix: sysctl -w net.ipv4.ip_forward=0, or iptables -I FORWARD -s 10.77.0.0/24 -o eth0 -j DROP
"#,
    );
}

#[test]
fn ip_forward_with_bypass() {
    let host = host_with(|host| host.ip_forward = Some(true));
    says(
        &format!("{MINIMAL}bypass = \"10.42.0.0/16\"\n"),
        &host,
        r#"
warning: ip_forward is 1: detached from Egret, the kernel would forward 10.77.0.0/24 untranslated
  --> egret.toml:1:12
   |
 1 | internal = "10.77.0.0/24"
   |            ^^^^^^^^^^^^^^
   = why: bypassed packets need it; while Egret runs, or is killed, nothing leaks: its program stays attached until `egret detach`
   = fix: let only bypassed packets through, for each such prefix: iptables -I FORWARD -s 10.77.0.0/24 -o eth0 ! -d 10.42.0.0/16 -j DROP
"#,
    );
}

#[test]
fn bypass_not_forwarded() {
    let host = host();
    says(
        &format!("{MINIMAL}bypass = \"10.42.0.0/16\"\n"),
        &host,
        r#"
warning: `bypass` is given, and ip_forward is 0
  --> egret.toml:3:10
   |
 3 | bypass = "10.42.0.0/16"
   |          ^^^^^^^^^^^^^^
   = why: the kernel forwards no packet that Egret leaves to it: bypassed destinations that are not on this host cannot be reached
   = fix: sysctl -w net.ipv4.ip_forward=1
"#,
    );
}

#[test]
fn rp_filter() {
    let host = host_with(|host| {
        host.ip_forward = None;
        host.interfaces[1].rp_filter = Some(1);
    });
    says(
        &format!("{MINIMAL}bypass = \"10.42.0.0/16\"\n"),
        &host,
        r#"
note: ip_forward could not be read
  = why: with 1, detaching Egret would let internal sources out

note: rp_filter is 1 (strict) on eth0
  --> egret.toml:3:10
   |
 3 | bypass = "10.42.0.0/16"
   |          ^^^^^^^^^^^^^^
   = why: translated packets do not meet it; bypassed ones are dropped where the way back leads over another interface
   = fix: if so: sysctl -w net.ipv4.conf.eth0.rp_filter=2
"#,
    );
}

#[test]
fn pool_in_the_ephemeral_range() {
    let host = host();
    says(
        &format!("{MINIMAL}pool.ports = \"20000-40000\"\n"),
        &host,
        r#"
error: the pool's ports 20000-40000 reach into the host's own range 32768-60999
  --> egret.toml:3:14
   |
 3 | pool.ports = "20000-40000"
   |              ^^^^^^^^^^^^^
   = why: on the interface's address the kernel would give the same ports to the host's own connections, whose replies would then be taken for a client's
   = fix: reserve them: sysctl -w net.ipv4.ip_local_reserved_ports=32768-40000 (with what it has already), or choose ports outside 32768-60999
"#,
    );
}

#[test]
fn pool_on_listening_ports() {
    let host = host_with(|host| {
        let tcp = |port| listener(Protocol::Tcp, [0, 0, 0, 0], port);
        host.listeners = Some(vec![tcp(80), tcp(22), tcp(443), tcp(6443), tcp(22)]);
        host.dnat = Some(vec![DnatPorts {
            protocol: Protocol::Udp,
            first: 9000,
            last: 9010,
        }]);
    });
    says(
        &format!("{MINIMAL}pool.ports = \"1-10000\"\n"),
        &host,
        r#"
error: the host uses ports of the pool's 1-10000: tcp 22, tcp 80, tcp 443, tcp 6443, udp 9000-9010 (a DNAT rule)
  --> egret.toml:3:14
   |
 3 | pool.ports = "1-10000"
   |              ^^^^^^^^^
   = why: what is sent to them on the interface's address is the host's; `ss -lntu` shows who listens
   = fix: add to `pool.exclude_ports`: "22", "80", "443", "6443", "9000-9010"; or choose other ports
"#,
    );
}

#[test]
fn forward_on_a_listening_port() {
    let host = host_with(|host| {
        host.listeners = Some(vec![listener(Protocol::Tcp, [203, 0, 113, 5], 443)])
    });
    says(
        &format!("{MINIMAL}{FORWARD}external = 443\n"),
        &host,
        r#"
error: the host itself listens on tcp 443, which is forwarded
  --> egret.toml:6:12
   |
 6 | external = 443
   |            ^^^
   = why: the forward would take the port from the host's own service
   = fix: choose another external port, or stop the service: `ss -lntup sport = :443` names it
"#,
    );
}

#[test]
fn forward_on_a_dnat_port() {
    let host = host_with(|host| {
        host.dnat = Some(vec![DnatPorts {
            protocol: Protocol::Tcp,
            first: 443,
            last: 443,
        }])
    });
    says(
        &format!("{MINIMAL}{FORWARD}external = 443\n"),
        &host,
        r#"
error: a DNAT rule of the host takes tcp 443, which is forwarded
  --> egret.toml:6:12
   |
 6 | external = 443
   |            ^^^
   = why: the forward would take the port from it
   = fix: choose another external port, or remove the rule: `nft list ruleset` shows it
"#,
    );
}

#[test]
fn forward_in_the_ephemeral_range() {
    let host = host();
    says(
        &format!("{MINIMAL}{FORWARD}external = 50000\n"),
        &host,
        r#"
warning: the forwarded tcp 50000 lies in the host's own range 32768-60999
  --> egret.toml:6:12
   |
 6 | external = 50000
   |            ^^^^^
   = why: the kernel may give the port to a connection of the host, which then gets no reply
   = fix: sysctl -w net.ipv4.ip_local_reserved_ports=50000 (with what it has already)
"#,
    );
}

#[test]
fn forward_names_the_shared_address() {
    let host = host();
    says(
        &format!("{MINIMAL}{FORWARD}external = \"203.0.113.5:443\"\n"),
        &host,
        r#"
note: the forward names 203.0.113.5, which is the interface's at the moment
  --> egret.toml:6:12
   |
 6 | external = "203.0.113.5:443"
   |            ^^^^^^^^^^^^^^^^^
   = why: it ends when that address changes
   = fix: write external = "443": it then follows the address
"#,
    );
}

#[test]
fn forward_outside_the_pool() {
    let host = host();
    says(
        &format!("{MINIMAL}{FORWARD}external = \"203.0.113.9:443\"\n"),
        &host,
        r#"
error: the forward's external address 203.0.113.9 is not in the pool
  --> egret.toml:6:12
   |
 6 | external = "203.0.113.9:443"
   |            ^^^^^^^^^^^^^^^^^
   = why: the interface's address is 203.0.113.5
   = fix: write external = "443", or add "203.0.113.9" to `pool.addresses`
"#,
    );
}

#[test]
fn pool_has_the_hosts_address() {
    let host = host();
    says(
        &format!("{MINIMAL}pool.addresses = \"203.0.113.5\"\n"),
        &host,
        r#"
error: the pool's 203.0.113.5 is this host's own address, on "eth0"
  --> egret.toml:3:18
   |
 3 | pool.addresses = "203.0.113.5"
   |                  ^^^^^^^^^^^^^
   = why: all that is sent to an address of the pool goes to Egret: SSH to it would no longer reach the host
   = fix: write "interface" instead: the host and Egret then share it by ports
"#,
    );
}

#[test]
fn pool_has_another_address_of_the_host() {
    let host = host_with(|host| {
        host.interfaces[2]
            .addresses
            .push("198.51.100.1/24".parse().unwrap())
    });
    says(
        &format!("{MINIMAL}pool.addresses = \"198.51.100.1\"\n"),
        &host,
        r#"
error: the pool's 198.51.100.1 is this host's own address, on "lan0"
  --> egret.toml:3:18
   |
 3 | pool.addresses = "198.51.100.1"
   |                  ^^^^^^^^^^^^^^
   = why: all that is sent to an address of the pool goes to Egret: SSH to it would no longer reach the host
   = fix: ip address del 198.51.100.1 dev lan0, or take it out of the pool
"#,
    );
}

#[test]
fn pool_has_the_broadcast_address() {
    let host = host();
    says(
        &format!("{MINIMAL}pool.addresses = \"203.0.113.248/29\"\n"),
        &host,
        r#"
error: the pool's 203.0.113.255 is the network or broadcast address of 203.0.113.0/24
  --> egret.toml:3:18
   |
 3 | pool.addresses = "203.0.113.248/29"
   |                  ^^^^^^^^^^^^^^^^^^
   = why: "eth0" is in that network: nobody would send to it
   = fix: leave it out of the pool
"#,
    );
}

#[test]
fn no_port_left() {
    let host = host_with(|host| host.local_port_range = Some((1024, 65535)));
    says(
        MINIMAL,
        &host,
        r#"
error: no tcp port of 203.0.113.5 is left for clients
  = why: the host takes the others: 1024-65535 for its own connections, 30000-32767 for node ports, and what listens or is forwarded
  = fix: give the host fewer (sysctl -w net.ipv4.ip_local_port_range="32768 60999"), or name some in `pool.ports` and in net.ipv4.ip_local_reserved_ports
"#,
    );
}

#[test]
fn tables_too_large() {
    let host = host();
    says(
        &format!("{MINIMAL}tables.sessions_max = 16000000\n"),
        &host,
        r#"
error: the tables for 16000000 sessions take 2818 MiB, more than half of the 4096 MiB RAM
  --> egret.toml:3:23
   |
 3 | tables.sessions_max = 16000000
   |                       ^^^^^^^^
   = why: they are allocated at the start, and frames and the rest of the host need memory, too
   = fix: write sessions_max = 1048576 in [tables], or less
"#,
    );
}

#[test]
fn default_tables_too_large_for_a_tiny_machine() {
    let host = host_with(|host| host.ram_bytes = Some(64 << 20));
    says(
        MINIMAL,
        &host,
        r#"
error: the tables for 262144 sessions take 48 MiB, more than half of the 64 MiB RAM
  = why: they are allocated at the start, and frames and the rest of the host need memory, too
  = fix: write sessions_max = 131072 in [tables], or less
"#,
    );
}

#[test]
fn tables_have_no_room() {
    let host = host_with(|host| host.tables_free_bytes = Some(100 << 20));
    says(
        MINIMAL,
        &host,
        r#"
error: the tables for 1048576 sessions take 187 MiB, but /run/egret/default/tables has room for 100 MiB
  = why: the file system is full or limited in size
  = fix: enlarge it (mount -o remount,size=...), or choose another `tables.path` or a smaller `tables.sessions_max`
"#,
    );
}

#[test]
fn tables_small() {
    let host = host();
    says(
        &format!("{MINIMAL}tables.sessions_max = 100\n"),
        &host,
        r#"
warning: `tables.sessions_max` is 100
  --> egret.toml:3:23
   |
 3 | tables.sessions_max = 100
   |                       ^^^
   = why: one web page opens dozens of sessions; new ones are refused when it is full
   = fix: write 1048576 or leave the key out
"#,
    );
}

#[test]
fn too_many_workers() {
    let host = host();
    says(
        &format!("{MINIMAL}workers.count = 3\n"),
        &host,
        r#"
error: 3 workers, but an interface has 2 receive queues
  --> egret.toml:3:17
   |
 3 | workers.count = 3
   |                 ^
   = why: each worker serves queues of its own, so some would have nothing to do
   = fix: write count = 2, or add queues: ethtool -L IF combined 3
"#,
    );
}

#[test]
fn few_cpus() {
    let host = host_with(|host| host.cpus = vec![0]);
    says(
        &format!("{MINIMAL}workers.count = 2\n"),
        &host,
        r#"
warning: 2 workers, but only 1 of the CPUs
  --> egret.toml:3:17
   |
 3 | workers.count = 2
   |                 ^
   = why: workers that share a CPU wait for each other
   = fix: write count = 1, or leave it out
"#,
    );
}

#[test]
fn busy_on_every_cpu() {
    let host = host();
    says(
        &format!("{MINIMAL}workers.poll = \"busy\"\n"),
        &host,
        r#"
warning: poll = "busy" with 2 workers on 2 CPUs
  --> egret.toml:3:16
   |
 3 | workers.poll = "busy"
   |                ^^^^^^
   = why: workers that never sleep leave no CPU to the host: SSH may hang
   = fix: write poll = "adaptive", or a smaller `workers.count`
"#,
    );
}

#[test]
fn a_priority_that_the_kernel_refuses() {
    let host = host_with(|host| {
        host.real_time.refusal = Some("Operation not permitted (os error 1)".to_owned());
    });
    says(
        &format!("{MINIMAL}workers.priority = 5\n"),
        &host,
        r#"
warning: `workers.priority` is 5
  --> egret.toml:3:20
   |
 3 | workers.priority = 5
   |                    ^
   = why: the kernel refuses it to this process (Operation not permitted (os error 1)): the workers run as if there were no such key
   = fix: run it as root; or in the systemd unit: AmbientCapabilities=CAP_SYS_NICE or LimitRTPRIO=99; if root is refused, too, its CPU control group has no real-time time (cpu.rt_runtime_us); or leave the key out
"#,
    );
}

#[test]
fn a_priority_that_nothing_limits() {
    let limited = host_with(|host| host.real_time.runtime_us = Some(950_000));
    let text = format!("{MINIMAL}workers.priority = 5\n");
    says(&text, &limited, "");
    let unlimited = host_with(|host| host.real_time.runtime_us = Some(-1));
    says(
        &text,
        &unlimited,
        r#"
warning: `workers.priority` is 5, and sched_rt_runtime_us is -1
  --> egret.toml:3:20
   |
 3 | workers.priority = 5
   |                    ^
   = why: workers that have work all the time leave nothing of their CPUs to the kernel and the host: with 950000 these keep a twentieth
   = fix: sysctl -w kernel.sched_rt_runtime_us=950000
"#,
    );
}

#[test]
fn busy_with_a_priority() {
    let host = host_with(|host| host.cpus = vec![0, 1, 2, 3]);
    let text = |cpus: &str| {
        format!("{MINIMAL}[workers]\ncount = 1\npoll = \"busy\"\npriority = 1\n{cpus}")
    };
    says(
        &text(""),
        &host,
        r#"
error: `workers.priority` is 1, and poll = "busy"
  --> egret.toml:6:12
   |
 6 | priority = 1
   |            ^
   = why: a worker that never sleeps and outranks all others leaves nothing of its CPU to the kernel and the host
   = fix: write poll = "adaptive", or leave the priority out, or name CPUs for the workers alone in `workers.cpus`
"#,
    );
    says(
        &text("cpus = 3\n"),
        &host,
        r#"
warning: `workers.priority` is 1, and poll = "busy"
  --> egret.toml:6:12
   |
 6 | priority = 1
   |            ^
   = why: nothing else runs on these CPUs, the kernel's own threads included, but while the kernel stops the workers: 50 ms of each second by default (sched_rt_runtime_us)
   = fix: write poll = "adaptive", or leave the priority out
"#,
    );
    let only = host_with(|host| host.cpus = vec![3]);
    says(
        &text("cpus = 3\n"),
        &only,
        r#"
error: `workers.priority` is 1, and poll = "busy" on 1 of 1 CPUs
  --> egret.toml:6:12
   |
 6 | priority = 1
   |            ^
   = why: nothing would be left to the host and to Egret's own other threads
   = fix: write poll = "adaptive", or leave the priority out, or leave a CPU out of `workers.cpus`

warning: poll = "busy" with 1 workers on 1 CPUs
  --> egret.toml:5:8
   |
 5 | poll = "busy"
   |        ^^^^^^
   = why: workers that never sleep leave no CPU to the host: SSH may hang
   = fix: write poll = "adaptive", or a smaller `workers.count`
"#,
    );
}

#[test]
fn no_such_cpu() {
    let host = host();
    says(
        &format!("{MINIMAL}workers.cpus = [7]\n"),
        &host,
        r#"
error: CPU 7 cannot be used
  --> egret.toml:3:17
   |
 3 | workers.cpus = [7]
   |                 ^
   = why: this process may run on 0, 1
   = fix: name CPUs from these, or start Egret with others (taskset, AllowedCPUs=)
"#,
    );
}

#[test]
fn timer_below_rfc() {
    let host = host();
    says(
        &format!("{MINIMAL}timers.udp_timeout_s = 30\n"),
        &host,
        r#"
warning: `timers.udp_timeout_s` is 30 s
  --> egret.toml:3:24
   |
 3 | timers.udp_timeout_s = 30
   |                        ^^
   = why: RFC 4787 REQ-5 asks for 120 s: UDP applications that send keep-alives less often lose their session
   = fix: write 120 or more, if nothing speaks against it
"#,
    );
}

#[test]
fn profile_below_rfc() {
    let host = host();
    says(
        &format!("{MINIMAL}timers.profile = \"cloud\"\n"),
        &host,
        r#"
note: the timer profile "cloud" is below what the RFCs ask for
  --> egret.toml:3:18
   |
 3 | timers.profile = "cloud"
   |                  ^^^^^^^
   = why: udp_timeout_s 30 (RFC 4787 REQ-5), tcp_trans_open_timeout_s 30 (RFC 5382 REQ-5 (RFC 7857 section 2.1 lets an operator choose less)), tcp_idle_timeout_s 1200 (RFC 5382 REQ-5), tcp_trans_close_timeout_s 120 (RFC 5382 REQ-5 (RFC 7857 section 2.1 lets an operator choose less)), icmp_timeout_s 30 (RFC 5508 REQ-2)
   = fix: profile = "rfc" keeps to them
"#,
    );
}

#[test]
fn a_group_that_is_not_there() {
    let text = format!("{MINIMAL}\n[control]\ngroup = \"netops\"\n");
    let line = text.lines().count();
    let expected = format!(
        r#"
error: there is no group "netops"
  --> egret.toml:{line}:9
   |
 {line} | group = "netops"
   |         ^^^^^^^^
   = why: /etc/group does not have it, so the control socket cannot be given to it
   = fix: make it (`sudo groupadd --system netops`), write another name, or the number of a group that comes from a directory (`getent group`)
"#
    );
    says(&text, &host(), &expected);
    let there = host_with(|host| host.control_gid = Some(1001));
    says(&text, &there, "");
}
