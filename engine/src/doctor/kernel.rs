//! The kernel: its version, what it was built with, and whether it compiles programs.

use super::drivers::KernelVersion;
use super::facts::HostState;
use super::finding::{Finding, Level, Setting};

const HOST: &str = "host";

/// Links that hold an XDP program, which Egret attaches by.
const LINKS_SINCE: KernelVersion = KernelVersion(5, 9);
/// Programs can be run on a test frame that takes its way (`BPF_F_TEST_XDP_LIVE_FRAMES`).
const TEST_FRAMES_SINCE: KernelVersion = KernelVersion(5, 18);

/// Options that AF_XDP needs, and those that serving by TAP or TUN needs.
const NEEDED: [&str; 4] = ["BPF", "BPF_SYSCALL", "NET", "XDP_SOCKETS"];
const NEEDED_BY_TAP: [&str; 4] = ["NET_CLS_ACT", "NET_CLS_BPF", "NET_SCH_INGRESS", "TUN"];

pub(super) fn examine(host: &HostState, found: &mut Vec<Finding>) {
    found.push(version(host.kernel));
    found.push(sockets(host));
    found.push(options(host));
    found.push(jit(host));
}

fn version(kernel: Option<KernelVersion>) -> Finding {
    let Some(kernel) = kernel else {
        return Finding::unseen(HOST, "kernel", "the kernel's version cannot be seen");
    };
    let make = |level, what| Finding::new(HOST, "kernel", level, kernel.to_string(), what);
    if kernel < LINKS_SINCE {
        let what = format!("Linux {kernel} is too old: {LINKS_SINCE} or later is needed");
        return make(Level::Problem, what)
            .why("programs are attached by links, which older kernels do not have")
            .advise(format!("boot Linux {LINKS_SINCE} or later"));
    }
    if kernel < TEST_FRAMES_SINCE {
        let what = format!("Linux {kernel} cannot send a test frame");
        let why = format!(
            "from {TEST_FRAMES_SINCE} on the start proves that frames reach the sockets; before, \
             look at `egret status` after the start (`egret run --confirm 60s` helps)"
        );
        return make(Level::Note, what).why(why);
    }
    make(Level::Ok, format!("Linux {kernel} has all that is used"))
}

fn sockets(host: &HostState) -> Finding {
    match host.has_xdp_sockets {
        None => Finding::unseen(
            HOST,
            "xdp-sockets",
            "whether there are AF_XDP sockets cannot be seen",
        ),
        Some(true) => Finding::new(
            HOST,
            "xdp-sockets",
            Level::Ok,
            true,
            "AF_XDP sockets are there",
        ),
        Some(false) => Finding::new(
            HOST,
            "xdp-sockets",
            Level::Problem,
            false,
            "the kernel has no AF_XDP sockets",
        )
        .why("frames reach Egret by them")
        .advise("boot a kernel with CONFIG_XDP_SOCKETS=y (those of Debian, Ubuntu, RHEL have it)"),
    }
}

fn options(host: &HostState) -> Finding {
    let Some(options) = &host.options else {
        let what = "the kernel's options cannot be seen (no /proc/config.gz, no /boot/config)";
        return Finding::unseen(HOST, "options", what);
    };
    let missing = |wanted: &[&str]| -> Vec<String> {
        let is_missing = |option: &&&str| !options.contains_key(&format!("CONFIG_{option}"));
        let missing = wanted.iter().filter(is_missing);
        missing.map(|option| format!("CONFIG_{option}")).collect()
    };
    let make = |level, missing: Vec<String>, what: &str| {
        let told = format!("{what}: {}", missing.join(", "));
        Finding::new(HOST, "options", level, missing, told).advise("boot a kernel that has them")
    };
    let (needed, by_tap) = (missing(&NEEDED), missing(&NEEDED_BY_TAP));
    if !needed.is_empty() {
        return make(Level::Problem, needed, "the kernel was built without")
            .why("no program can be loaded, or no frame can reach Egret");
    }
    if !by_tap.is_empty() {
        return make(Level::Warning, by_tap, "the kernel was built without")
            .why("what is punted to the host goes by a TAP and tc, and so does the TAP backend");
    }
    let none: Vec<String> = Vec::new();
    Finding::new(
        HOST,
        "options",
        Level::Ok,
        none,
        "the kernel was built with all that is used",
    )
}

fn jit(host: &HostState) -> Finding {
    let built_in = host
        .options
        .as_ref()
        .is_some_and(|options| options.contains_key("CONFIG_BPF_JIT_ALWAYS_ON"));
    match host.jit {
        // The parameter shows in the machine's first network namespace only.
        None if built_in => Finding::new(
            HOST,
            "jit",
            Level::Ok,
            true,
            "programs are compiled, always",
        ),
        None => Finding::unseen(HOST, "jit", "whether programs are compiled cannot be seen"),
        Some(0) => Finding::new(
            HOST,
            "jit",
            Level::Warning,
            false,
            "BPF programs are interpreted",
        )
        .why("the steering program sees every frame; compiled it takes a fraction of the time")
        .mend(
            "sysctl -w net.core.bpf_jit_enable=1",
            "sysctl -w net.core.bpf_jit_enable=0",
        )
        .safe(
            Setting::Sysctl {
                key: "net/core/bpf_jit_enable".to_owned(),
            },
            "1",
        ),
        Some(_) => Finding::new(HOST, "jit", Level::Ok, true, "BPF programs are compiled"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::*;

    fn found(host: &HostState) -> Vec<Finding> {
        let mut found = Vec::new();
        examine(host, &mut found);
        found
    }

    fn built_with(names: &[&str]) -> HostState {
        let option = |name: &&str| (format!("CONFIG_{name}"), "y".to_owned());
        HostState {
            options: Some(names.iter().map(option).collect()),
            ..HostState::default()
        }
    }

    #[test]
    fn old_kernels() {
        let level = |kernel| {
            let host = HostState {
                kernel: Some(kernel),
                ..HostState::default()
            };
            one(&found(&host), "host/kernel").level
        };
        assert_eq!(level(KernelVersion(5, 4)), Level::Problem);
        assert_eq!(level(KernelVersion(5, 10)), Level::Note);
        assert_eq!(level(KernelVersion(6, 1)), Level::Ok);
    }

    #[test]
    fn missing_options_are_named() {
        let all: Vec<&str> = NEEDED.into_iter().chain(NEEDED_BY_TAP).collect();
        assert_eq!(
            one(&found(&built_with(&all)), "host/options").level,
            Level::Ok
        );
        let bare = found(&built_with(&NEEDED));
        assert_eq!(one(&bare, "host/options").level, Level::Warning);
        assert!(one(&bare, "host/options").what.contains("CONFIG_TUN"));
        let none = found(&built_with(&["BPF", "NET"]));
        assert_eq!(one(&none, "host/options").level, Level::Problem);
        assert!(
            one(&none, "host/options")
                .what
                .contains("CONFIG_XDP_SOCKETS")
        );
    }

    #[test]
    fn a_kernel_without_sockets() {
        for (has, level) in [(false, Level::Problem), (true, Level::Ok)] {
            let host = HostState {
                has_xdp_sockets: Some(has),
                ..HostState::default()
            };
            assert_eq!(one(&found(&host), "host/xdp-sockets").level, level);
        }
    }

    #[test]
    fn interpreted_programs_can_be_mended_safely() {
        let with = |jit| HostState {
            jit: Some(jit),
            ..HostState::default()
        };
        let slow = found(&with(0));
        let jit = one(&slow, "host/jit");
        assert_eq!(jit.level, Level::Warning);
        assert!(jit.mend.as_ref().is_some_and(|mend| mend.safe.is_some()));
        assert_eq!(one(&found(&with(1)), "host/jit").level, Level::Ok);
        let always = built_with(&["BPF_JIT_ALWAYS_ON"]);
        assert_eq!(one(&found(&always), "host/jit").level, Level::Ok);
    }
}
