//! Every way a configuration can be wrong, with the exact message.

use engine::config::Config;

/// The message for a file.
fn message(text: &str) -> String {
    match Config::parse("egret.toml", text) {
        Ok(_) => panic!("no error in:\n{text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn print_all() {
    for (text, _) in CASES {
        println!("<<<\n{text}\n---\n{}>>>", message(text));
    }
}

const MINIMAL: &str = "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n";

const CASES: &[(&str, &str)] = &[
    ("", ""),
    ("internal = 10.77.0.0/24\ninterface = eth0", ""),
    ("internal = \"10.77.0.0/24\ninterface = \"eth0\"", ""),
    ("internal = \"10.77.0.0/24\"", ""),
    ("internal = []\ninterface = \"eth0\"", ""),
    ("internal = [\ninterface = \"eth0\"", ""),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\ninternal = \"10.0.0.0/8\"",
        "",
    ),
    ("internal = 10\ninterface = 3\nbypas = \"10.42.0.0/16\"", ""),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\nbypass = \"10.42.0.0/16\"\n[timers]\nudp_timeout = 3\nfoo = 1",
        "",
    ),
    (
        "internal = [\"10.77.0.1/24\", \"10.77.0.0\", \"10.0.0.7\", \"fd00::/8\", \"lan\", \"0.0.0.0/0\", \"224.0.0.0/8\", \"10.0.0.0/33\"]\ninterface = \"eth0\"",
        "",
    ),
    (
        "internal = [\"10.77.0.0/24\", \"10.77.0.128/25\", \"10.77.0.0/24\"]\ninterface = \"eth0\"\nbypass = \"0.0.0.0/0\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\naddresses = \"10.77.0.9\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\naddresses = [\"203.0.113.9-203.0.113.4\", \"eth0\", \"203.0.113.1/28\", \"2001:db8::1\", \"0.0.0.0-255.255.255.255\", \"203.0.113\"]",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\naddresses = [\"203.0.112.0/22\", \"203.0.113.4\", \"interface\", \"interface\"]",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\naddresses = []\nports = [\"65535-1024\", \"0-100\", 0, 70000, \"web\", true]",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\nports = \"2000-3000\"\nexclude_ports = \"1000-4000\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[nat]\nmapping = \"apdm\"\nfiltering = \"EIF\"\npreserve_port = \"true\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[nat]\nfiltering = \"adf\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[nat]\nmapping = \"eim\"\nfiltering = \"eif\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[timers]\nprofile = \"aws\"\nudp_timeout_s = 0\ntcp_idle_timeout_s = \"7440\"\nicmp_timeout_s = -1\nfragment_timeout_s = 2.5\nhold_down_s = 99999999999999999999",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\n[[interfaces]]\nname = \"eth0\"\nrole = \"both\"\n[[interfaces]]\nname = \"eth1\"\nrole = \"both\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\n[[interfaces]]\nname = \"eth0\"\nrole = \"internal\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\n[[interfaces]]\nname = \"eth0\"\nrole = \"external\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[[interfaces]]\nname = \"eth0\"\n[[interfaces]]\nrole = \"external\"\nname=\"a b\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[interfaces]\nname = \"eth0\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[[forwards]]\nprotocol = \"tcp\"\nexternal = 8443\ntarget = \"10.77.0.5:443\"\n[[forwards]]\nprotocol = \"tcp\"\nexternal = \"8443\"\ntarget = \"10.77.0.6:443\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[[forwards]]\nprotocol = \"icmp\"\nexternal = \"30000-32767\"\ntarget = \"10.77.0.5\"\nallow = []\n[[forwards]]",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[[forwards]]\nprotocol = \"tcp\"\nexternal = \"0\"\ntarget = \"10.78.0.5:99999\"\nallow = \"1.2.3.4\"\n[[forwards]]\nprotocol = \"tcp\"\nexternal = \"22\"\ntarget = \"10.78.0.5:22\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[pool]\naddresses = [\"203.0.113.4\", \"203.0.113.5\"]\n[[forwards]]\nprotocol = \"tcp\"\nexternal = \"80\"\ntarget = \"10.77.0.5:80\"\n[[forwards]]\nprotocol = \"tcp\"\nexternal = \"203.0.113.6:80\"\ntarget = \"10.77.0.5:80\"",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\ninstance = \"a/b\"\n[tables]\nsessions_max = 5\npath = \"tables\"\n[workers]\ncount = 0\npoll = \"sleep\"\ncpus = [1, 1, 70000]\n[device]\nmode = \"native\"\n[control]\nsocket = \"x\"\n[icmp]\non_refusal = 3",
        "",
    ),
    (
        "internal = \"10.77.0.0/24\"\ninterface = \"eth0\"\n[workers]\ncount = 4\ncpus = [1, 2]",
        "",
    ),
];
