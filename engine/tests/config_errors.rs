//! Every way a configuration can be wrong, with the exact message.

use engine::config::Config;

/// Holds the message for a file against what it should be.
#[track_caller]
fn says(text: &str, expected: &str) {
    let error = Config::parse("egret.toml", text).expect_err("no error");
    assert_eq!(error.to_string().trim_end(), expected.trim(), "\n{error}");
}

#[test]
fn an_empty_file() {
    says(
        r#""#,
        r#"
error: `internal` is missing
  = why: it takes a prefix such as "10.77.0.0/24", or a list of them
  = fix: add a line such as internal = "10.77.0.0/24"

error: no interface is given
  = why: Egret serves only the interfaces that the file names
  = fix: add a line such as interface = "eth0"; `ip -brief link` lists the names
"#,
    );
}

#[test]
fn no_interface() {
    says(
        r#"internal = "10.77.0.0/24"
"#,
        r#"
error: no interface is given
  = why: Egret serves only the interfaces that the file names
  = fix: add a line such as interface = "eth0"; `ip -brief link` lists the names
"#,
    );
}

#[test]
fn internal_is_empty() {
    says(
        r#"internal = []
interface = "eth0"
"#,
        r#"
error: `internal` is an empty list
  --> egret.toml:1:12
   |
 1 | internal = []
   |            ^^
   = why: without an internal prefix no packet would be translated
   = fix: write the prefixes that your clients have, such as "10.77.0.0/24"
"#,
    );
}

#[test]
fn text_without_quotes() {
    says(
        r#"internal = 10.77.0.0/24
interface = eth0
"#,
        r#"
error: invalid float, expected nothing
  --> egret.toml:1:17
   |
 1 | internal = 10.77.0.0/24
   |                 ^^^^^^^
   = why: the file is not valid TOML
   = fix: look for a quote or bracket that is missing here or above; text stands in quotes

error: string values must be quoted, expected literal string
  --> egret.toml:2:13
   |
 2 | interface = eth0
   |             ^^^^
   = why: the file is not valid TOML
   = fix: look for a quote or bracket that is missing here or above; text stands in quotes
"#,
    );
}

#[test]
fn a_quote_is_missing() {
    says(
        r#"internal = "10.77.0.0/24
interface = "eth0"
"#,
        r#"
error: invalid basic string, expected `"`
  --> egret.toml:1:25
   |
 1 | internal = "10.77.0.0/24
   |                         ^
   = why: the file is not valid TOML
   = fix: look for a quote or bracket that is missing here or above; text stands in quotes
"#,
    );
}

#[test]
fn a_bracket_is_missing() {
    says(
        r#"internal = [
interface = "eth0"
"#,
        r#"
error: unexpected `=` in array, expected value, `]`
  --> egret.toml:2:11
   |
 2 | interface = "eth0"
   |           ^
   = why: the file is not valid TOML
   = fix: look for a quote or bracket that is missing here or above; text stands in quotes
"#,
    );
}

#[test]
fn a_key_given_twice() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
internal = "10.0.0.0/8"
"#,
        r#"
error: duplicate key
  --> egret.toml:3:1
   |
 3 | internal = "10.0.0.0/8"
   | ^^^^^^^^
   = why: the file is not valid TOML
   = fix: give the key once; several values are written as a list: ["a", "b"]
"#,
    );
}

#[test]
fn a_misspelt_key() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
bypas = "10.42.0.0/16"
"#,
        r#"
error: there is no key `bypas` at the top level
  --> egret.toml:3:1
   |
 3 | bypas = "10.42.0.0/16"
   | ^^^^^
   = why: it has `internal`, `interface`, `bypass`, `deny`, `instance`, `interfaces`, `pool`, `pools`, `rules`, `nat`, `timers`, `services`, `limits`, `forwards`, `icmp`, `tables`, `workers`, `device`, `control`
   = fix: write `bypass`
"#,
    );
}

#[test]
fn keys_in_the_wrong_table() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
udp_timeout_s = 300
[pool]
bypass = "10.42.0.0/16"
"#,
        r#"
error: there is no key `udp_timeout_s` at the top level
  --> egret.toml:3:1
   |
 3 | udp_timeout_s = 300
   | ^^^^^^^^^^^^^
   = why: it has `internal`, `interface`, `bypass`, `deny`, `instance`, `interfaces`, `pool`, `pools`, `rules`, `nat`, `timers`, `services`, `limits`, `forwards`, `icmp`, `tables`, `workers`, `device`, `control`
   = fix: `udp_timeout_s` belongs in [timers]

error: there is no key `bypass` in [pool]
  --> egret.toml:5:1
   |
 5 | bypass = "10.42.0.0/16"
   | ^^^^^^
   = why: it has `addresses`, `ports`, `exclude_ports`, `pairing`, `hold_down_max_percent`
   = fix: `bypass` belongs at the top level: write it above the first [table]
"#,
    );
}

#[test]
fn keys_that_do_not_exist() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[timers]
udp_timeout = 300
foo = 1
"#,
        r#"
error: there is no key `udp_timeout` in [timers]
  --> egret.toml:4:1
   |
 4 | udp_timeout = 300
   | ^^^^^^^^^^^
   = why: it has `profile`, `udp_timeout_s`, `tcp_trans_open_timeout_s`, `tcp_idle_timeout_s`, `tcp_trans_close_timeout_s`, `tcp_in_syn_timeout_s`, `icmp_timeout_s`, `fragment_timeout_s`, `hold_down_s`
   = fix: write `udp_timeout_s`

error: there is no key `foo` in [timers]
  --> egret.toml:5:1
   |
 5 | foo = 1
   | ^^^
   = why: it has `profile`, `udp_timeout_s`, `tcp_trans_open_timeout_s`, `tcp_idle_timeout_s`, `tcp_trans_close_timeout_s`, `tcp_in_syn_timeout_s`, `icmp_timeout_s`, `fragment_timeout_s`, `hold_down_s`
   = fix: remove it, or see egret.sample.toml for every key
"#,
    );
}

#[test]
fn wrong_types() {
    says(
        r#"internal = 10
interface = true
pool = "interface"
[nat]
preserve_port = "true"
[timers]
udp_timeout_s = "300"
icmp_timeout_s = 2.5
"#,
        r#"
error: `internal` is a whole number
  --> egret.toml:1:12
   |
 1 | internal = 10
   |            ^^
   = why: it takes a prefix such as "10.77.0.0/24", or a list of them
   = fix: see `internal` in egret.sample.toml

error: `interface` is true or false
  --> egret.toml:2:13
   |
 2 | interface = true
   |             ^^^^
   = why: it takes the name of one interface, such as "eth0"
   = fix: see `interface` in egret.sample.toml

error: `pool` is a string
  --> egret.toml:3:8
   |
 3 | pool = "interface"
   |        ^^^^^^^^^^^
   = why: it takes a table, written [pool]
   = fix: see `pool` in egret.sample.toml

error: `nat.preserve_port` is a string
  --> egret.toml:5:17
   |
 5 | preserve_port = "true"
   |                 ^^^^^^
   = why: it takes true or false
   = fix: write true without quotes

error: `timers.udp_timeout_s` is a string
  --> egret.toml:7:17
   |
 7 | udp_timeout_s = "300"
   |                 ^^^^^
   = why: it takes whole seconds, 1 to 2147483
   = fix: write 300 without quotes

error: `timers.icmp_timeout_s` is a number with a point
  --> egret.toml:8:18
   |
 8 | icmp_timeout_s = 2.5
   |                  ^^^
   = why: it takes whole seconds, 1 to 2147483
   = fix: see `timers.icmp_timeout_s` in egret.sample.toml
"#,
    );
}

#[test]
fn host_bits() {
    says(
        r#"internal = "10.77.0.1/24"
interface = "eth0"
"#,
        r#"
error: host bits are set in "10.77.0.1/24"
  --> egret.toml:1:12
   |
 1 | internal = "10.77.0.1/24"
   |            ^^^^^^^^^^^^^^
   = why: /24 keeps only the first 24 bits of the address
   = fix: write "10.77.0.0/24" for the network, or "10.77.0.1/32" for the one host
"#,
    );
}

#[test]
fn prefixes_without_a_length() {
    says(
        r#"internal = ["10.77.0.0", "10.0.0.7"]
interface = "eth0"
"#,
        r#"
error: "10.77.0.0" is no IPv4 prefix
  --> egret.toml:1:13
   |
 1 | internal = ["10.77.0.0", "10.0.0.7"]
   |             ^^^^^^^^^^^
   = why: the length is missing
   = fix: write "10.77.0.0/24" for a network of 256 addresses, or what fits

error: "10.0.0.7" is no IPv4 prefix
  --> egret.toml:1:26
   |
 1 | internal = ["10.77.0.0", "10.0.0.7"]
   |                          ^^^^^^^^^^
   = why: the length is missing
   = fix: write "10.0.0.7/32" for the one host
"#,
    );
}

#[test]
fn what_is_no_prefix() {
    says(
        r#"internal = ["fd00::/8", "lan", "10.0.0.0/33"]
interface = "eth0"
"#,
        r#"
error: "fd00::/8" is no IPv4 prefix
  --> egret.toml:1:13
   |
 1 | internal = ["fd00::/8", "lan", "10.0.0.0/33"]
   |             ^^^^^^^^^^
   = why: it is an IPv6 prefix, and Egret translates IPv4 only
   = fix: write an IPv4 prefix, or leave it out

error: "lan" is no IPv4 prefix
  --> egret.toml:1:25
   |
 1 | internal = ["fd00::/8", "lan", "10.0.0.0/33"]
   |                         ^^^^^
   = why: a prefix is an address, a slash and a length from 0 to 32
   = fix: write it as in "10.77.0.0/24"

error: "10.0.0.0/33" is no IPv4 prefix
  --> egret.toml:1:32
   |
 1 | internal = ["fd00::/8", "lan", "10.0.0.0/33"]
   |                                ^^^^^^^^^^^^^
   = why: a prefix is an address, a slash and a length from 0 to 32
   = fix: write it as in "10.77.0.0/24"
"#,
    );
}

#[test]
fn prefixes_that_no_client_has() {
    says(
        r#"internal = ["0.0.0.0/0", "224.0.0.0/8"]
interface = "eth0"
"#,
        r#"
error: "0.0.0.0/0" as an internal prefix is every address
  --> egret.toml:1:13
   |
 1 | internal = ["0.0.0.0/0", "224.0.0.0/8"]
   |             ^^^^^^^^^^^
   = why: then nothing is external, and nothing would be translated
   = fix: write the prefixes that your clients have, such as "10.77.0.0/24"

error: "224.0.0.0/8" reaches into what is a multicast address
  --> egret.toml:1:26
   |
 1 | internal = ["0.0.0.0/0", "224.0.0.0/8"]
   |                          ^^^^^^^^^^^^^
   = why: no client has such an address
   = fix: write the prefixes that your clients have, such as "10.77.0.0/24"
"#,
    );
}

#[test]
fn prefixes_that_overlap() {
    says(
        r#"internal = ["10.77.0.128/25", "10.77.0.0/24", "10.78.0.0/16",
  "10.78.0.0/16"]
interface = "eth0"
"#,
        r#"
error: 10.77.0.128/25 in `internal` lies within 10.77.0.0/24
  --> egret.toml:1:31
   |
 1 | internal = ["10.77.0.128/25", "10.77.0.0/24", "10.78.0.0/16",
   |                               ^^^^^^^^^^^^^^
   = why: the prefixes of a list must not overlap; the other is in line 1
   = fix: remove 10.77.0.128/25

error: 10.78.0.0/16 stands twice in `internal`
  --> egret.toml:2:3
   |
 2 |   "10.78.0.0/16"]
   |   ^^^^^^^^^^^^^^
   = why: the prefixes of a list must not overlap; the other is in line 1
   = fix: remove 10.78.0.0/16
"#,
    );
}

#[test]
fn everything_bypassed() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
bypass = "0.0.0.0/0"
"#,
        r#"
error: "0.0.0.0/0" in `bypass` is every destination
  --> egret.toml:3:10
   |
 3 | bypass = "0.0.0.0/0"
   |          ^^^^^^^^^^^
   = why: then nothing would be translated
   = fix: name only the destinations that are meant
"#,
    );
}

#[test]
fn pool_address_inside() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = ["10.77.0.9", "10.76.255.0-10.77.0.1"]
"#,
        r#"
error: the pool's 10.77.0.9 lies in the internal prefix 10.77.0.0/24
  --> egret.toml:4:14
   |
 4 | addresses = ["10.77.0.9", "10.76.255.0-10.77.0.1"]
   |              ^^^^^^^^^^^
   = why: what leaves with an internal source address counts as untranslated; the prefix is in line 1
   = fix: take the addresses out of the pool, or narrow the prefix to the clients'

error: the pool's 10.76.255.0-10.77.0.1 lies in the internal prefix 10.77.0.0/24
  --> egret.toml:4:27
   |
 4 | addresses = ["10.77.0.9", "10.76.255.0-10.77.0.1"]
   |                           ^^^^^^^^^^^^^^^^^^^^^^^
   = why: what leaves with an internal source address counts as untranslated; the prefix is in line 1
   = fix: take the addresses out of the pool, or narrow the prefix to the clients'

error: the pool has 259 addresses
  --> egret.toml:4:27
   |
 4 | addresses = ["10.77.0.9", "10.76.255.0-10.77.0.1"]
   |                           ^^^^^^^^^^^^^^^^^^^^^^^
   = why: it can have 256: each address costs port tables, used or not
   = fix: choose fewer; one address has 64512 ports to each destination with edm
"#,
    );
}

#[test]
fn what_is_no_pool_address() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = ["eth0", "2001:db8::1", "203.0.113", "203.0.113.1/28"]
"#,
        r#"
error: "eth0" is no address of a pool
  --> egret.toml:4:14
   |
 4 | addresses = ["eth0", "2001:db8::1", "203.0.113", "203.0.113.1/28"]
   |              ^^^^^^
   = why: a pool has "interface" (the external interface's own address), addresses, prefixes and ranges
   = fix: write "interface"

error: "2001:db8::1" is an IPv6 address
  --> egret.toml:4:22
   |
 4 | addresses = ["eth0", "2001:db8::1", "203.0.113", "203.0.113.1/28"]
   |                      ^^^^^^^^^^^^^
   = why: Egret translates IPv4 only
   = fix: write an IPv4 address

error: "203.0.113" is no IPv4 address
  --> egret.toml:4:37
   |
 4 | addresses = ["eth0", "2001:db8::1", "203.0.113", "203.0.113.1/28"]
   |                                     ^^^^^^^^^^^
   = why: an address is four numbers from 0 to 255 with points between
   = fix: write it as in "203.0.113.4"

error: host bits are set in "203.0.113.1/28"
  --> egret.toml:4:50
   |
 4 | addresses = ["eth0", "2001:db8::1", "203.0.113", "203.0.113.1/28"]
   |                                                  ^^^^^^^^^^^^^^^^
   = why: /28 keeps only the first 28 bits of the address
   = fix: write "203.0.113.0/28" for the network, or "203.0.113.1/32" for the one host
"#,
    );
}

#[test]
fn pool_ranges_that_cannot_be() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = ["203.0.113.9-203.0.113.4", "0.0.0.0-255.255.255.255", "126.0.0.0-127.0.0.9"]
"#,
        r#"
error: the range "203.0.113.9-203.0.113.4" is the wrong way round
  --> egret.toml:4:14
   |
 4 | addresses = ["203.0.113.9-203.0.113.4", "0.0.0.0-255.255.255.255", "126.0.0.0-127.0.0.9"]
   |              ^^^^^^^^^^^^^^^^^^^^^^^^^
   = why: the lower address comes first
   = fix: write "203.0.113.4-203.0.113.9"

error: 0.0.0.0 is in 0.0.0.0/8 ("this network")
  --> egret.toml:4:41
   |
 4 | addresses = ["203.0.113.9-203.0.113.4", "0.0.0.0-255.255.255.255", "126.0.0.0-127.0.0.9"]
   |                                         ^^^^^^^^^^^^^^^^^^^^^^^^^
   = why: no host has such an address
   = fix: write a unicast address

error: 127.0.0.9 is a loopback address
  --> egret.toml:4:68
   |
 4 | addresses = ["203.0.113.9-203.0.113.4", "0.0.0.0-255.255.255.255", "126.0.0.0-127.0.0.9"]
   |                                                                    ^^^^^^^^^^^^^^^^^^^^^
   = why: no host has such an address
   = fix: write a unicast address
"#,
    );
}

#[test]
fn pool_addresses_twice() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = ["203.0.113.0/28", "203.0.113.4", "interface", "interface"]
"#,
        r#"
error: 203.0.113.4 stands twice in the pool
  --> egret.toml:4:32
   |
 4 | addresses = ["203.0.113.0/28", "203.0.113.4", "interface", "interface"]
   |                                ^^^^^^^^^^^^^
   = why: an address has one set of ports
   = fix: remove one of the two

error: "interface" stands twice in the pool
  --> egret.toml:4:60
   |
 4 | addresses = ["203.0.113.0/28", "203.0.113.4", "interface", "interface"]
   |                                                            ^^^^^^^^^^^
   = why: an address has one set of ports
   = fix: remove one of the two
"#,
    );
}

#[test]
fn too_many_pool_addresses() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = ["interface", "203.0.112.0/22"]
"#,
        r#"
error: the pool has 1025 addresses
  --> egret.toml:4:27
   |
 4 | addresses = ["interface", "203.0.112.0/22"]
   |                           ^^^^^^^^^^^^^^^^
   = why: it can have 256: each address costs port tables, used or not
   = fix: choose fewer; one address has 64512 ports to each destination with edm
"#,
    );
}

#[test]
fn pool_without_addresses_or_ports() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = []
ports = []
"#,
        r#"
error: `pool.addresses` is an empty list
  --> egret.toml:4:13
   |
 4 | addresses = []
   |             ^^
   = why: without it nothing could be translated
   = fix: leave the key out for its default

error: `pool.ports` is an empty list
  --> egret.toml:5:9
   |
 5 | ports = []
   |         ^^
   = why: without it nothing could be translated
   = fix: leave the key out for its default
"#,
    );
}

#[test]
fn what_is_no_port_range() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
ports = ["65535-1024", "0-100", 0, 70000, "web", true]
"#,
        r#"
error: the range "65535-1024" is the wrong way round
  --> egret.toml:4:10
   |
 4 | ports = ["65535-1024", "0-100", 0, 70000, "web", true]
   |          ^^^^^^^^^^^^
   = why: ports are 1 to 65535, a range is written low-high
   = fix: write "1024-65535"

error: "0-100" contains port 0
  --> egret.toml:4:24
   |
 4 | ports = ["65535-1024", "0-100", 0, 70000, "web", true]
   |                        ^^^^^^^
   = why: ports are 1 to 65535, a range is written low-high
   = fix: write "1-100"

error: "0" contains port 0
  --> egret.toml:4:33
   |
 4 | ports = ["65535-1024", "0-100", 0, 70000, "web", true]
   |                                 ^
   = why: ports are 1 to 65535, a range is written low-high
   = fix: leave it out

error: "70000" is no port and no range of ports
  --> egret.toml:4:36
   |
 4 | ports = ["65535-1024", "0-100", 0, 70000, "web", true]
   |                                    ^^^^^
   = why: ports are 1 to 65535, a range is written low-high
   = fix: write it as in "1024-65535"

error: "web" is no port and no range of ports
  --> egret.toml:4:43
   |
 4 | ports = ["65535-1024", "0-100", 0, 70000, "web", true]
   |                                           ^^^^^
   = why: ports are 1 to 65535, a range is written low-high
   = fix: write it as in "1024-65535"

error: `pool.ports` is true or false
  --> egret.toml:4:50
   |
 4 | ports = ["65535-1024", "0-100", 0, 70000, "web", true]
   |                                                  ^^^^
   = why: it takes a port, a range such as "1024-65535", or a list of them
   = fix: see `pool.ports` in egret.sample.toml
"#,
    );
}

#[test]
fn no_port_left() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
ports = "2000-3000"
exclude_ports = "1000-4000"
"#,
        r#"
error: `pool.exclude_ports` leaves no port in the pool
  --> egret.toml:5:17
   |
 5 | exclude_ports = "1000-4000"
   |                 ^^^^^^^^^^^
   = why: without a port nothing could be translated
   = fix: exclude less
"#,
    );
}

#[test]
fn words_that_do_not_exist() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[nat]
mapping = "apdm"
filtering = "EDF"
[workers]
poll = "sleep"
[device]
mode = "zerocopy"
"#,
        r#"
error: `nat.mapping` is "apdm"
  --> egret.toml:4:11
   |
 4 | mapping = "apdm"
   |           ^^^^^^
   = why: it takes "edm" or "eim"
   = fix: write one of these

error: `nat.filtering` is "EDF"
  --> egret.toml:5:13
   |
 5 | filtering = "EDF"
   |             ^^^^^
   = why: it takes "edf", "adf" or "eif"
   = fix: write "edf"

error: `workers.poll` is "sleep"
  --> egret.toml:7:8
   |
 7 | poll = "sleep"
   |        ^^^^^^^
   = why: it takes "adaptive" or "busy"
   = fix: write one of these

error: `device.mode` is "zerocopy"
  --> egret.toml:9:8
   |
 9 | mode = "zerocopy"
   |        ^^^^^^^^^^
   = why: it takes "auto", "zero-copy", "copy", "generic", "tun" or "routed"
   = fix: write "zero-copy"
"#,
    );
}

#[test]
fn adf_with_edm() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[nat]
filtering = "adf"
"#,
        r#"
error: filtering = "adf" does not go with mapping = "edm"
  --> egret.toml:4:13
   |
 4 | filtering = "adf"
   |             ^^^^^
   = why: with edm one external endpoint serves several clients whose remote endpoints differ, so a packet from another remote endpoint has no one receiver
   = fix: write mapping = "eim" in [nat], or leave out filtering = "adf"
"#,
    );
}

#[test]
fn an_interface_of_no_mode() {
    says(
        r#"internal = "10.77.0.0/24"
[[interfaces]]
name = "lan0"
role = "internal"
mode = "routed"
[[interfaces]]
name = "wan0"
role = "external"
mode = 3
"#,
        r#"
error: `interfaces[].mode` is "routed"
  --> egret.toml:5:8
   |
 5 | mode = "routed"
   |        ^^^^^^^^
   = why: it takes "auto", "zero-copy", "copy", "generic" or "tun"
   = fix: write one of these

error: `interfaces[].mode` is a whole number
  --> egret.toml:9:8
   |
 9 | mode = 3
   |        ^
   = why: it takes "auto", "zero-copy", "copy", "generic" or "tun"
   = fix: see `interfaces[].mode` in egret.sample.toml
"#,
    );
}

#[test]
fn an_interface_with_a_mode_of_its_own_in_routed_mode() {
    says(
        r#"internal = "10.77.0.0/24"
pool.addresses = "203.0.113.4"
device.mode = "routed"
[[interfaces]]
name = "lan0"
role = "internal"
mode = "copy"
[[interfaces]]
name = "wan0"
role = "external"
"#,
        r#"
error: "lan0" has a mode of its own, and device.mode is "routed"
  --> egret.toml:7:8
   |
 7 | mode = "copy"
   |        ^^^^^^
   = why: in routed mode the kernel routes packets to Egret: frames are exchanged with no interface
   = fix: remove one of the two
"#,
    );
}

#[test]
fn a_mode_at_the_top_level() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
mode = "copy"
"#,
        r#"
error: there is no key `mode` at the top level
  --> egret.toml:3:1
   |
 3 | mode = "copy"
   | ^^^^
   = why: it has `internal`, `interface`, `bypass`, `deny`, `instance`, `interfaces`, `pool`, `pools`, `rules`, `nat`, `timers`, `services`, `limits`, `forwards`, `icmp`, `tables`, `workers`, `device`, `control`
   = fix: `mode` belongs in [device]
"#,
    );
}

#[test]
fn routed_mode_on_the_shared_address() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[device]
mode = "routed"
"#,
        r#"
error: mode = "routed" needs pool addresses of Egret's own
  --> egret.toml:4:8
   |
 4 | mode = "routed"
   |        ^^^^^^^^
   = why: the kernel routes whole addresses to Egret; the interface's own stays the host's
   = fix: name addresses in `pool.addresses` that the outside routes to this host
"#,
    );
}

#[test]
fn eif_on_the_shared_address() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[nat]
mapping = "eim"
filtering = "eif"
"#,
        r#"
error: filtering = "eif" is refused on the interface's own address
  --> egret.toml:5:13
   |
 5 | filtering = "eif"
   |             ^^^^^
   = why: the host's kernel uses the same address, any port of it, and replies to the host would be taken for packets to a client
   = fix: give [pool] addresses of its own (addresses = ["203.0.113.4"]), or write filtering = "adf"
"#,
    );
}

#[test]
fn timers_out_of_range() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[timers]
udp_timeout_s = 0
icmp_timeout_s = -1
hold_down_s = 99999999999999999999
"#,
        r#"
error: `timers.udp_timeout_s` is 0
  --> egret.toml:4:17
   |
 4 | udp_timeout_s = 0
   |                 ^
   = why: it takes 1 to 2147483
   = fix: write 1 or more

error: `timers.icmp_timeout_s` is -1
  --> egret.toml:5:18
   |
 5 | icmp_timeout_s = -1
   |                  ^^
   = why: it takes 1 to 2147483
   = fix: write 1 or more

error: `timers.hold_down_s` is 99999999999999999999
  --> egret.toml:6:15
   |
 6 | hold_down_s = 99999999999999999999
   |               ^^^^^^^^^^^^^^^^^^^^
   = why: it takes 0 to 2147483
   = fix: write 2147483 or less
"#,
    );
}

#[test]
fn two_both() {
    says(
        r#"internal = "10.77.0.0/24"
[[interfaces]]
name = "eth0"
role = "both"
[[interfaces]]
name = "eth1"
role = "both"
"#,
        r#"
error: "eth0" and "eth1" both have role = "both"
  --> egret.toml:6:8
   |
 6 | name = "eth1"
   |        ^^^^^^
   = why: one interface leads outside: the pool's "interface" follows its address
   = fix: keep one role = "external" or "both", give the others role = "internal"
"#,
    );
}

#[test]
fn two_external() {
    says(
        r#"internal = "10.77.0.0/24"
[[interfaces]]
name = "eth0"
role = "both"
[[interfaces]]
name = "eth1"
role = "external"
"#,
        r#"
error: "eth0" and "eth1" are both external
  --> egret.toml:6:8
   |
 6 | name = "eth1"
   |        ^^^^^^
   = why: one interface leads outside: the pool's "interface" follows its address
   = fix: keep one role = "external" or "both", give the others role = "internal"
"#,
    );
}

#[test]
fn only_internal() {
    says(
        r#"internal = "10.77.0.0/24"
[[interfaces]]
name = "eth0"
role = "internal"
"#,
        r#"
error: no interface has the outside behind it
  --> egret.toml:3:8
   |
 3 | name = "eth0"
   |        ^^^^^^
   = why: translated packets need a way out
   = fix: add [[interfaces]] with role = "external", or write role = "both" for one arm
"#,
    );
}

#[test]
fn only_external() {
    says(
        r#"internal = "10.77.0.0/24"
[[interfaces]]
name = "eth0"
role = "external"
"#,
        r#"
error: "eth0" is external, and no interface has clients behind it
  --> egret.toml:3:8
   |
 3 | name = "eth0"
   |        ^^^^^^
   = why: nothing would be translated
   = fix: add [[interfaces]] with role = "internal", or write role = "both" for one arm
"#,
    );
}

#[test]
fn interfaces_half_given() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[[interfaces]]
name = "eth0"
[[interfaces]]
name = "a b"
role = "external"
"#,
        r#"
error: both `interface` and [[interfaces]] are given
  --> egret.toml:2:13
   |
 2 | interface = "eth0"
   |             ^^^^^^
   = why: `interface` is short for one [[interfaces]] with role = "both"
   = fix: keep one of the two

error: `interfaces[].role` is missing
  --> egret.toml:3:1
   |
 3 | [[interfaces]]
   | ^^^^^^^^^^^^^^
   = why: it takes "internal", "external" or "both"
   = fix: add a line such as role = "external"

error: "a b" is no name of an interface
  --> egret.toml:6:8
   |
 6 | name = "a b"
   |        ^^^^^
   = why: Linux allows 1 to 15 characters without blanks, "/" and ":"
   = fix: `ip -brief link` lists the names
"#,
    );
}

#[test]
fn an_interface_twice() {
    says(
        r#"internal = "10.77.0.0/24"
[[interfaces]]
name = "eth0"
role = "internal"
[[interfaces]]
name = "eth0"
role = "external"
"#,
        r#"
error: the interface "eth0" is given twice
  --> egret.toml:6:8
   |
 6 | name = "eth0"
   |        ^^^^^^
   = why: an interface has one role; role = "both" serves both sides
   = fix: keep one of the two
"#,
    );
}

#[test]
fn interfaces_as_one_table() {
    says(
        r#"internal = "10.77.0.0/24"
[interfaces]
name = "eth0"
role = "both"
"#,
        r#"
error: `interfaces` is a table
  --> egret.toml:2:1
   |
 2 | [interfaces]
   | ^^^^^^^^^^^^
   = why: it takes tables, written [[interfaces]]
   = fix: see `interfaces` in egret.sample.toml
"#,
    );
}

#[test]
fn a_forward_twice() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[[forwards]]
protocol = "tcp"
external = 8443
target = "10.77.0.5:443"
[[forwards]]
protocol = "tcp"
external = "8443"
target = "10.77.0.6:443"
"#,
        r#"
error: tcp 8443 is forwarded twice
  --> egret.toml:9:12
   |
 9 | external = "8443"
   |            ^^^^^^
   = why: to 10.77.0.5:443 in line 5, and to 10.77.0.6:443
   = fix: remove one of the two
"#,
    );
}

#[test]
fn a_forward_twice_once_by_address() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
pool.addresses = "203.0.113.4"
[[forwards]]
protocol = "tcp"
external = "203.0.113.4:8443"
target = "10.77.0.5:443"
[[forwards]]
protocol = "tcp"
external = "8443"
target = "10.77.0.6:443"
"#,
        r#"
error: tcp 8443 is forwarded twice
   --> egret.toml:10:12
    |
 10 | external = "8443"
    |            ^^^^^^
    = why: to 10.77.0.5:443 in line 6, and to 10.77.0.6:443
    = fix: remove one of the two
"#,
    );
}

#[test]
fn forwards_half_given() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[[forwards]]
protocol = "icmp"
external = "30000-32767"
[[forwards]]
"#,
        r#"
error: `forwards[].target` is missing
  --> egret.toml:3:1
   |
 3 | [[forwards]]
   | ^^^^^^^^^^^^
   = why: it takes an endpoint such as "10.77.0.5:443", an address for the same ports, or a list of them
   = fix: add a line such as target = "10.77.0.5:443"

error: `forwards[].protocol` is "icmp"
  --> egret.toml:4:12
   |
 4 | protocol = "icmp"
   |            ^^^^^^
   = why: it takes "tcp" or "udp"
   = fix: write one of these

error: `forwards[].protocol` is missing
  --> egret.toml:6:1
   |
 6 | [[forwards]]
   | ^^^^^^^^^^^^
   = why: it takes "tcp" or "udp", or both in a list
   = fix: add a line such as protocol = "tcp"

error: `forwards[].external` is missing
  --> egret.toml:6:1
   |
 6 | [[forwards]]
   | ^^^^^^^^^^^^
   = why: it takes a port ("8443"), a range ("30000-32767"), these with an address ("203.0.113.4:8443"), or an address
   = fix: add a line such as external = "8443"

error: `forwards[].target` is missing
  --> egret.toml:6:1
   |
 6 | [[forwards]]
   | ^^^^^^^^^^^^
   = why: it takes an endpoint such as "10.77.0.5:443", an address for the same ports, or a list of them
   = fix: add a line such as target = "10.77.0.5:443"
"#,
    );
}

#[test]
fn what_is_no_endpoint() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[[forwards]]
protocol = "tcp"
external = "0"
target = "10.77.0.5:99999"
allow = "192.0.2.7"
[[forwards]]
protocol = "udp"
external = "10.77.0:1"
target = "10.77.0.5"
allow = []
"#,
        r#"
error: "0" is no external side of a forward
  --> egret.toml:5:12
   |
 5 | external = "0"
   |            ^^^
   = why: it is a port from 1 to 65535, a range of them, an address, or an address, a colon and one of these
   = fix: write it as in "8443", "203.0.113.4:8443" or "30000-32767"

error: "10.77.0.5:99999" is no endpoint
  --> egret.toml:6:10
   |
 6 | target = "10.77.0.5:99999"
   |          ^^^^^^^^^^^^^^^^^
   = why: the port is a number from 1 to 65535
   = fix: write it as in "10.77.0.5:443"

error: "192.0.2.7" is no IPv4 prefix
  --> egret.toml:7:9
   |
 7 | allow = "192.0.2.7"
   |         ^^^^^^^^^^^
   = why: the length is missing
   = fix: write "192.0.2.7/32" for the one host

error: "10.77.0" is no IPv4 address
   --> egret.toml:10:12
    |
 10 | external = "10.77.0:1"
    |            ^^^^^^^^^^^
    = why: an address is four numbers from 0 to 255 with points between
    = fix: write it as in "203.0.113.4"

error: `forwards[].allow` is an empty list
   --> egret.toml:12:9
    |
 12 | allow = []
    |         ^^
    = why: it could be read as nobody, or as everybody
    = fix: leave the key out to let any source in, or remove the forward
"#,
    );
}

#[test]
fn a_forward_to_nowhere() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[[forwards]]
protocol = "tcp"
external = "22"
target = "10.78.0.5:22"
"#,
        r#"
error: the forward's target 10.78.0.5:22 is in no internal prefix
  --> egret.toml:6:10
   |
 6 | target = "10.78.0.5:22"
   |          ^^^^^^^^^^^^^^
   = why: replies from it would not be taken for a client's and would not be translated back
   = fix: add "10.78.0.5/32" to `internal`, or correct the target
"#,
    );
}

#[test]
fn forwards_outside_the_pool() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
addresses = ["203.0.113.4", "203.0.113.5"]
[[forwards]]
protocol = "tcp"
external = "80"
target = "10.77.0.5:80"
[[forwards]]
protocol = "tcp"
external = "203.0.113.6:80"
target = "10.77.0.5:80"
"#,
        r#"
error: the forward of tcp port 80 names no address
  --> egret.toml:7:12
   |
 7 | external = "80"
   |            ^^^^
   = why: the pool has 2 addresses, so it could be any of them
   = fix: write external = "203.0.113.4:80" or another address

error: the forward's external address 203.0.113.6 is not in the pool
   --> egret.toml:11:12
    |
 11 | external = "203.0.113.6:80"
    |            ^^^^^^^^^^^^^^^^
    = why: only packets to addresses of the pool reach the engine
    = fix: add "203.0.113.6" to `pool.addresses`, or write an address of the pool
"#,
    );
}

#[test]
fn names_and_paths() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
instance = "a/b"
[tables]
path = "tables"
[control]
socket = "/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
"#,
        r#"
error: "a/b" is no name of an instance
  --> egret.toml:3:12
   |
 3 | instance = "a/b"
   |            ^^^^^
   = why: it becomes part of paths: 1 to 32 letters, digits, "-" and "_"
   = fix: write it as in "default"

error: "tables" is no absolute path
  --> egret.toml:5:8
   |
 5 | path = "tables"
   |        ^^^^^^^^
   = why: the gateway runs as a service, so a path cannot depend on a current directory
   = fix: write a path that starts with "/"

error: the path of the socket has 111 bytes
  --> egret.toml:7:10
   |
 7 | socket = "/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
   |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = why: the kernel takes at most 107
   = fix: choose a shorter path
"#,
    );
}

#[test]
fn numbers_out_of_range() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[tables]
sessions_max = 5
[workers]
count = 0
cpus = [1, 1, 70000]
priority = 100
[icmp]
errors_per_second = 9999999
"#,
        r#"
error: `tables.sessions_max` is 5
  --> egret.toml:4:16
   |
 4 | sessions_max = 5
   |                ^
   = why: it takes 64 to 16777216
   = fix: write 64 or more

error: `workers.count` is 0
  --> egret.toml:6:9
   |
 6 | count = 0
   |         ^
   = why: it takes 1 to 256
   = fix: write 1 or more

error: CPU 1 is given twice
  --> egret.toml:7:12
   |
 7 | cpus = [1, 1, 70000]
   |            ^
   = why: each worker has a CPU of its own
   = fix: name each CPU once

error: `workers.cpus` is 70000
  --> egret.toml:7:15
   |
 7 | cpus = [1, 1, 70000]
   |               ^^^^^
   = why: it takes 0 to 65535
   = fix: write 65535 or less

error: `workers.priority` is 100
  --> egret.toml:8:12
   |
 8 | priority = 100
   |            ^^^
   = why: it takes 1 to 99
   = fix: write 99 or less

error: `icmp.errors_per_second` is 9999999
   --> egret.toml:10:21
    |
 10 | errors_per_second = 9999999
    |                     ^^^^^^^
    = why: it takes 0 to 1000000
    = fix: write 1000000 or less
"#,
    );
}

#[test]
fn fewer_cpus_than_workers() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[workers]
count = 4
cpus = [1, 2]
"#,
        r#"
error: 4 workers, but 2 in `workers.cpus`
  --> egret.toml:4:9
   |
 4 | count = 4
   |         ^
   = why: each worker has a CPU of its own
   = fix: name as many CPUs, or leave `workers.count` out
"#,
    );
}

#[test]
fn more_forwards_than_the_tables_have_room_for() {
    let forward = |port: u32| {
        format!(
            "[[forwards]]\nprotocol = \"tcp\"\nexternal = \"{port}\"\ntarget = \"10.0.0.9:80\"\n"
        )
    };
    let forwards: String = (1..=8193).map(forward).collect();
    let text = format!("internal = \"10.0.0.0/8\"\ninterface = \"eth0\"\n{forwards}");
    let error = Config::parse("egret.toml", &text).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("error: 8193 forwards are given\n") && text.contains("room for 8192"),
        "{text}"
    );
}

#[test]
fn behaviours_of_one_protocol() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[nat]
mapping = { udp = "eim", sctp = "eim", tcp = "eimm" }
filtering = "adf"
"#,
        r#"
error: there is no protocol `sctp` for `nat.mapping`
  --> egret.toml:4:26
   |
 4 | mapping = { udp = "eim", sctp = "eim", tcp = "eimm" }
   |                          ^^^^
   = why: it takes `tcp`, `udp` or `icmp`
   = fix: write one of these

error: `nat.mapping.tcp` is "eimm"
  --> egret.toml:4:46
   |
 4 | mapping = { udp = "eim", sctp = "eim", tcp = "eimm" }
   |                                              ^^^^^^
   = why: it takes "edm" or "eim"
   = fix: write "eim"

error: filtering = "adf" does not go with mapping = "edm", which tcp and icmp have
  --> egret.toml:5:13
   |
 5 | filtering = "adf"
   |             ^^^^^
   = why: with edm one external endpoint serves several clients whose remote endpoints differ, so a packet from another remote endpoint has no one receiver
   = fix: write tcp and icmp = "eim" in `nat.mapping`, or tcp and icmp = "edf" in `nat.filtering`
"#,
    );
}

#[test]
fn behaviours_that_are_no_words() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[pool]
pairing = "softly"
hold_down_max_percent = 101
[nat]
mapping = { udp = 1 }
filtering = true
preserve_port_class = "keep"
preserve_port_parity = 1
"#,
        r#"
error: `pool.pairing` is "softly"
  --> egret.toml:4:11
   |
 4 | pairing = "softly"
   |           ^^^^^^^^
   = why: it takes "hard", "soft" or "none"
   = fix: write "soft"

error: `pool.hold_down_max_percent` is 101
  --> egret.toml:5:25
   |
 5 | hold_down_max_percent = 101
   |                         ^^^
   = why: it takes 0 to 100
   = fix: write 100 or less

error: `nat.mapping` is a whole number
  --> egret.toml:7:19
   |
 7 | mapping = { udp = 1 }
   |                   ^
   = why: it takes "edm" or "eim", or a table such as { udp = "eim" }
   = fix: see `nat.mapping` in egret.sample.toml

error: `nat.filtering` is true or false
  --> egret.toml:8:13
   |
 8 | filtering = true
   |             ^^^^
   = why: it takes "edf", "adf" or "eif", or a table such as { udp = "adf" }
   = fix: see `nat.filtering` in egret.sample.toml

error: `nat.preserve_port_class` is a string
  --> egret.toml:9:23
   |
 9 | preserve_port_class = "keep"
   |                       ^^^^^^
   = why: it takes true or false
   = fix: see `nat.preserve_port_class` in egret.sample.toml

error: `nat.preserve_port_parity` is a whole number
   --> egret.toml:10:24
    |
 10 | preserve_port_parity = 1
    |                        ^
    = why: it takes true or false
    = fix: see `nat.preserve_port_parity` in egret.sample.toml
"#,
    );
}

#[test]
fn a_group_that_no_machine_has() {
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[control]
group = "net ops"
"#,
        r#"
error: "net ops" is no name of a group
  --> egret.toml:4:9
   |
 4 | group = "net ops"
   |         ^^^^^^^^^
   = why: a group has a name of 1 to 32 characters without blanks, ":", "," and "/"
   = fix: `getent group` lists the names
"#,
    );
    says(
        r#"internal = "10.77.0.0/24"
interface = "eth0"
[control]
group = 1001
"#,
        r#"
error: `control.group` is a whole number
  --> egret.toml:4:9
   |
 4 | group = 1001
   |         ^^^^
   = why: it takes the name of a group, such as "netops"
   = fix: see `control.group` in egret.sample.toml
"#,
    );
}
