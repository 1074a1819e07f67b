//! Memory that must be locked, and huge pages.

use super::facts::HostState;
use super::finding::{Finding, Level};

const HOST: &str = "host";
/// Frames of one worker at most: 65,536 slots of 4 KiB.
const FRAMES_BYTES: u64 = 256 << 20;
const HUGE_PAGE_BYTES: u64 = 2 << 20;

pub(super) fn examine(host: &HostState, found: &mut Vec<Finding>) {
    found.push(memlock(host));
    found.push(huge_pages(host));
}

fn memlock(host: &HostState) -> Finding {
    let Some(memlock) = host.memlock else {
        return Finding::unseen(HOST, "memlock", "the limit of locked memory cannot be seen");
    };
    let Some(limit) = memlock.limit_bytes.filter(|_| !memlock.exempt) else {
        let what = "locked memory has no limit here";
        return Finding::new(HOST, "memlock", Level::Ok, "unlimited", what);
    };
    let mebibytes = limit >> 20;
    if limit >= FRAMES_BYTES {
        let what = format!("{mebibytes} MiB may be locked");
        return Finding::new(HOST, "memlock", Level::Ok, limit, what);
    }
    let what = format!("only {mebibytes} MiB may be locked");
    let why = "frames are locked memory, up to 256 MiB a worker: without CAP_IPC_LOCK sockets are \
               refused (\"No buffer space available\")";
    Finding::new(HOST, "memlock", Level::Warning, limit, what)
        .why(why)
        .mend(
            "ulimit -l unlimited  # or, in a systemd unit: LimitMEMLOCK=infinity",
            "",
        )
}

fn huge_pages(host: &HostState) -> Finding {
    let Some(pages) = host.huge_pages else {
        return Finding::unseen(HOST, "huge-pages", "reserved huge pages cannot be seen");
    };
    let workers = u64::from(host.cpus.unwrap_or(1));
    let wanted = workers * FRAMES_BYTES / HUGE_PAGE_BYTES;
    let make = |level, what| Finding::new(HOST, "huge-pages", level, pages.free, what);
    if pages.free >= wanted {
        let what = format!(
            "{} huge pages are free: frames will lie in them",
            pages.free
        );
        return make(Level::Ok, what);
    }
    let what = format!(
        "{} huge pages are free, {wanted} hold all frames",
        pages.free
    );
    let why = "in ordinary pages a few percent of the time go into page walks. Not done by --fix: \
               what is reserved is lost to all else";
    let total = pages.total + wanted - pages.free;
    make(Level::Note, what).why(why).mend(
        format!("sysctl -w vm.nr_hugepages={total}"),
        format!("sysctl -w vm.nr_hugepages={}", pages.total),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::super::{HugePages, Memlock};
    use super::*;

    fn found(host: &HostState) -> Vec<Finding> {
        let mut found = Vec::new();
        examine(host, &mut found);
        found
    }

    #[test]
    fn a_low_limit_matters_only_without_the_capability() {
        let level = |limit_bytes, exempt| {
            let host = HostState {
                memlock: Some(Memlock {
                    limit_bytes,
                    exempt,
                }),
                ..HostState::default()
            };
            one(&found(&host), "host/memlock").level
        };
        assert_eq!(level(Some(8 << 20), false), Level::Warning);
        assert_eq!(level(Some(8 << 20), true), Level::Ok);
        assert_eq!(level(Some(1 << 30), false), Level::Ok);
        assert_eq!(level(None, false), Level::Ok);
    }

    #[test]
    fn huge_pages_are_counted_by_worker() {
        let host = |total, free| HostState {
            huge_pages: Some(HugePages { total, free }),
            cpus: Some(2),
            ..HostState::default()
        };
        let few = found(&host(10, 6));
        let pages = one(&few, "host/huge-pages");
        assert_eq!(pages.level, Level::Note);
        let mend = pages.mend.as_ref().expect("a way");
        assert_eq!(mend.command, "sysctl -w vm.nr_hugepages=260");
        assert_eq!(mend.undo.as_deref(), Some("sysctl -w vm.nr_hugepages=10"));
        assert_eq!(
            one(&found(&host(256, 256)), "host/huge-pages").level,
            Level::Ok
        );
    }
}
