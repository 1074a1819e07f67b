//! Every way pools, rules and services can be wrong, with the exact message.

use engine::config::Config;

const MINIMAL: &str = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";

/// Holds the message for a file of two lines and these against what it should be.
#[track_caller]
fn says(more: &str, expected: &str) {
    let told = match Config::parse("egret.toml", &format!("{MINIMAL}{more}")) {
        Ok(config) => config
            .advice
            .iter()
            .map(|problem| {
                format!(
                    "{}: {} / {} / {}",
                    problem.level, problem.what, problem.why, problem.fix
                )
            })
            .collect::<Vec<_>>()
            .join("\n"),
        Err(error) => error.to_string(),
    };
    assert_eq!(told.trim_end(), expected.trim(), "\n{told}");
}

#[test]
fn pools_half_given() {
    says(
        r#"[[pools]]
name = "a b"
"#,
        r#"
error: `pools[].addresses` is missing
  --> egret.toml:3:1
   |
 3 | [[pools]]
   | ^^^^^^^^^
   = why: it takes addresses, prefixes and ranges such as "203.0.113.4-203.0.113.9"
   = fix: add a line such as addresses = "203.0.113.4"

error: "a b" is no name
  --> egret.toml:4:8
   |
 4 | name = "a b"
   |        ^^^^^
   = why: a name has 1 to 64 letters, digits, "-", "_" and "."
   = fix: choose another one
"#,
    );
}

#[test]
fn pools_that_clash() {
    says(
        r#"[[pools]]
name = "default"
addresses = "203.0.113.4"
[[pools]]
name = "two"
addresses = ["203.0.113.5", "interface"]
[[pools]]
name = "two"
addresses = "203.0.113.4-203.0.113.6"
exclude_ports = "1-65535"
pairing = "no"
"#,
        r#"
error: a pool is called "default"
  --> egret.toml:4:8
   |
 4 | name = "default"
   |        ^^^^^^^^^
   = why: that is what rules call [pool]
   = fix: choose another name

error: the pool "two" has the interface's address
  --> egret.toml:8:29
   |
 8 | addresses = ["203.0.113.5", "interface"]
   |                             ^^^^^^^^^^^
   = why: an address is in one pool, and the interface's is in [pool]
   = fix: name [pool] in the rules instead: pool = "default", or no pool at all

error: there are two pools "two"
   --> egret.toml:10:8
    |
 10 | name = "two"
    |        ^^^^^
    = why: the other is in line 7
    = fix: give one another name, or write its addresses into the other

error: 203.0.113.4 stands twice in the pool
   --> egret.toml:11:13
    |
 11 | addresses = "203.0.113.4-203.0.113.6"
    |             ^^^^^^^^^^^^^^^^^^^^^^^^^
    = why: an address has one set of ports
    = fix: remove one of the two

error: `pools[].exclude_ports` leaves no port in the pool
   --> egret.toml:12:17
    |
 12 | exclude_ports = "1-65535"
    |                 ^^^^^^^^^
    = why: without a port nothing could be translated
    = fix: exclude less

error: `pools[].pairing` is "no"
   --> egret.toml:13:11
    |
 13 | pairing = "no"
    |           ^^^^
    = why: it takes "hard", "soft" or "none"
    = fix: write "none"
"#,
    );
}

#[test]
fn rules_that_name_what_is_not_there() {
    says(
        r#"[[pools]]
name = "payments"
addresses = "203.0.113.4"
[[rules]]
pool = "payment"
[[rules]]
pool = "other"
sources = ["10.78.0.0/24", "10.77.0.0/24"]
[[rules]]
protocol = "icmp"
ports = 53
[[rules]]
protocol = ["sctp"]
sources = []
action = "deny"
"#,
        r#"
error: there is no pool "payment"
  --> egret.toml:7:8
   |
 7 | pool = "payment"
   |        ^^^^^^^^^
   = why: the file has "payments", and "default"
   = fix: write pool = "payments"

error: there is no pool "other"
  --> egret.toml:9:8
   |
 9 | pool = "other"
   |        ^^^^^^^
   = why: the file has "payments", and "default"
   = fix: add [[pools]] with name = "other"

error: the rule's source 10.78.0.0/24 is in no internal prefix
   --> egret.toml:10:12
    |
 10 | sources = ["10.78.0.0/24", "10.77.0.0/24"]
    |            ^^^^^^^^^^^^^^
    = why: rules are for what comes from clients
    = fix: add "10.78.0.0/24" to `internal`, or correct the source

error: the rule names ports, and only ICMP
   --> egret.toml:13:9
    |
 13 | ports = 53
    |         ^^
    = why: ICMP has no ports: it fits nothing
    = fix: remove `ports`, or name tcp or udp

error: `rules[].protocol` is "sctp"
   --> egret.toml:15:13
    |
 15 | protocol = ["sctp"]
    |             ^^^^^^
    = why: it takes "tcp", "udp" or "icmp"
    = fix: write "icmp"

error: `rules[].sources` is an empty list
   --> egret.toml:16:11
    |
 16 | sources = []
    |           ^^
    = why: it could be read as nothing, or as everything
    = fix: leave the key out for all, or remove the rule

error: `rules[].action` is "deny"
   --> egret.toml:17:10
    |
 17 | action = "deny"
    |          ^^^^^^
    = why: it takes "translate", "bypass" or "drop"
    = fix: write one of these
"#,
    );
}

#[test]
fn what_says_how_in_a_rule_that_does_not_translate() {
    says(
        r#"[[rules]]
action = "drop"
pool = "default"
udp_timeout_s = 3
"#,
        r#"
error: `rules[].pool` is set in a rule that does not translate
  --> egret.toml:5:8
   |
 5 | pool = "default"
   |        ^^^^^^^^^
   = why: it says how the flows of the rule are translated
   = fix: write action = "translate", or remove the key

error: `rules[].udp_timeout_s` is set in a rule that does not translate
  --> egret.toml:6:17
   |
 6 | udp_timeout_s = 3
   |                 ^
   = why: it says how the flows of the rule are translated
   = fix: write action = "translate", or remove the key
"#,
    );
}

#[test]
fn behaviours_of_a_rule() {
    says(
        r#"[[rules]]
filtering = "adf"
[[rules]]
mapping = "eim"
filtering = "eif"
[[rules]]
mapping = { udp = "eim" }
filtering = { tcp = "adf" }
"#,
        r#"
error: filtering = "adf" does not go with mapping = "edm"
  --> egret.toml:4:13
   |
 4 | filtering = "adf"
   |             ^^^^^
   = why: with edm one external endpoint serves several clients whose remote endpoints differ, so a packet from another remote endpoint has no one receiver
   = fix: write mapping = "eim" in the rule, or leave out filtering = "adf"

warning: rule 2 is never reached
  --> egret.toml:5:1
   |
 5 | [[rules]]
   | ^^^^^^^^^
   = why: rule 1 in line 3 comes first and takes its flows
   = fix: write it before that one, or remove it

error: filtering = "eif" is refused on the interface's own address
  --> egret.toml:7:13
   |
 7 | filtering = "eif"
   |             ^^^^^
   = why: the host's kernel uses the same address, any port of it, and replies to the host would be taken for packets to a client
   = fix: give [pool] addresses of its own (addresses = ["203.0.113.4"]), or write filtering = "adf"

warning: rule 3 is never reached
  --> egret.toml:8:1
   |
 8 | [[rules]]
   | ^^^^^^^^^
   = why: rule 1 in line 3 comes first and takes its flows
   = fix: write it before that one, or remove it

error: filtering = "adf" does not go with mapping = "edm", which tcp has
   --> egret.toml:10:21
    |
 10 | filtering = { tcp = "adf" }
    |                     ^^^^^
    = why: with edm one external endpoint serves several clients whose remote endpoints differ, so a packet from another remote endpoint has no one receiver
    = fix: write tcp = "eim" in `rules[].mapping`, or tcp = "edf" in `rules[].filtering`
"#,
    );
}

#[test]
fn services_that_clash() {
    says(
        r#"[[services]]
protocol = "udp"
ports = ["53", "100-200"]
udp_timeout_s = 0
[[services]]
protocol = "udp"
ports = [150]
udp_timeout_s = 3
[[services]]
protocol = "tcp"
ports = 150
icmp_timeout_s = 3
"#,
        r#"
error: `services[].udp_timeout_s` is 0
  --> egret.toml:6:17
   |
 6 | udp_timeout_s = 0
   |                 ^
   = why: it takes 1 to 2147483
   = fix: write 1 or more

error: udp 150 is in two services
  --> egret.toml:9:10
   |
 9 | ports = [150]
   |          ^^^
   = why: the other is in line 5
   = fix: keep one of the two

error: a service sets no timer
   --> egret.toml:11:1
    |
 11 | [[services]]
    | ^^^^^^^^^^^^
    = why: a service is a port with timers of its own
    = fix: add a line such as udp_timeout_s = 30, or remove the service

error: there is no key `icmp_timeout_s` in [services]
   --> egret.toml:14:1
    |
 14 | icmp_timeout_s = 3
    | ^^^^^^^^^^^^^^
    = why: it has `protocol`, `ports`, `udp_timeout_s`, `tcp_trans_open_timeout_s`, `tcp_idle_timeout_s`, `tcp_trans_close_timeout_s`
    = fix: `icmp_timeout_s` belongs in [timers]
"#,
    );
}

#[test]
fn a_rule_in_routed_mode() {
    says(
        r#"[pool]
addresses = "203.0.113.4"
[device]
mode = "routed"
[[rules]]
action = "bypass"
"#,
        r#"
error: a rule bypasses, and mode is "routed"
  --> egret.toml:7:1
   |
 7 | [[rules]]
   | ^^^^^^^^^
   = why: there the kernel's rules decide what comes to Egret, by destination only
   = fix: name the destinations in `bypass`
"#,
    );
}

#[test]
fn rules_that_are_never_reached() {
    says(
        r#"[[pools]]
name = "spare"
addresses = "203.0.113.4"
[[rules]]
name = "all-web"
ports = ["80", "443"]
action = "drop"
[[rules]]
sources = "10.77.0.0/25"
destinations = ["192.0.2.0/24", "198.51.100.0/24"]
protocol = "tcp"
ports = 443
[[rules]]
sources = "10.77.0.0/25"
protocol = "tcp"
ports = "443-444"
[[rules]]
action = "drop"
[[rules]]
protocol = "icmp"
"#,
        r#"
warning: no rule names the pool "spare" / nothing leaves from it / name it in a rule: pool = "...", or remove it
warning: rule 2 is never reached / the rule "all-web" in line 6 comes first and takes its flows / write it before that one, or remove it
warning: rule 5 is never reached / rule 4 in line 19 comes first and takes its flows / write it before that one, or remove it
"#,
    );
}
