//! Memory and workers: how much of the machine the gateway takes.

use conntrack::TableSize;

use super::facts::HostFacts;
use crate::config::{Config, DeviceMode, Poll, Problem, SESSIONS_MIN};

/// Table bytes that a session may cost at most, all in.
const BYTES_PER_SESSION_MAX: u64 = 192;
/// The table takes an eighth of the RAM by default.
const RAM_SHARE: u64 = 8;
/// Sessions by default on the smallest machine, and where the RAM is not known.
const SESSIONS_LEAST: u32 = 1 << 18;
/// Sessions by default on the largest machine; who needs more asks for it.
const SESSIONS_MOST: u32 = 1 << 20;

/// The number of sessions by default: the largest power of two whose table fits an eighth of the
/// RAM, from 262,144 to 1,048,576.
pub fn default_sessions(ram_bytes: Option<u64>) -> u32 {
    let fit = ram_bytes.unwrap_or(0) / RAM_SHARE / BYTES_PER_SESSION_MAX;
    let power = if fit == 0 { 0 } else { 1u64 << fit.ilog2() };
    power.clamp(SESSIONS_LEAST.into(), SESSIONS_MOST.into()) as u32
}

/// Bytes of the tables for so many sessions and addresses, the ownership bitmap included.
pub fn table_bytes(sessions_max: u32, addresses_max: u16) -> u64 {
    TableSize {
        sessions_max,
        addresses_max,
    }
    .bytes()
}

/// The default, or on a machine that is too small for it the largest power of two that is not.
fn sessions_that_fit(ram_bytes: u64, config: &Config) -> u32 {
    let mut sessions = default_sessions(Some(ram_bytes));
    let addresses_max = super::addresses_max(config);
    while sessions > SESSIONS_MIN && table_bytes(sessions, addresses_max) > ram_bytes / 2 {
        sessions /= 2;
    }
    sessions
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Does the table fit the machine?
pub(super) fn check_memory(
    config: &Config,
    host: &HostFacts,
    bytes: u64,
    sessions_max: u32,
    found: &mut Vec<Problem>,
) {
    let span = config
        .tables
        .sessions_max
        .and_then(|sessions| sessions.span);
    let name = format!(
        "the tables for {sessions_max} sessions take {}",
        mebibytes(bytes)
    );
    let Some(ram) = host.ram_bytes else {
        let problem = Problem::note("unchecked-memory", "the size of the RAM could not be read");
        found.push(problem.why("so the size of the tables was not checked"));
        return;
    };
    if bytes > ram / 2 {
        let what = format!("{name}, more than half of the {} RAM", mebibytes(ram));
        let why =
            "they are allocated at the start, and frames and the rest of the host need memory, too";
        let fix = format!(
            "write sessions_max = {} in [tables], or less",
            sessions_that_fit(ram, config)
        );
        found.push(
            Problem::error("tables-too-large", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    } else if let Some(free) = host.tables_free_bytes.filter(|&free| free < bytes) {
        let path = config.tables.path.value.display();
        let what = format!("{name}, but {path} has room for {}", mebibytes(free));
        let why = "the file system is full or limited in size";
        let fix = "enlarge it (mount -o remount,size=...), or choose another `tables.path` or a \
                   smaller `tables.sessions_max`";
        let span = config.tables.path.span.or(span);
        found.push(
            Problem::error("tables-no-room", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    } else if span.is_some() && sessions_max < 1024 {
        let what = format!("`tables.sessions_max` is {sessions_max}");
        let why = "one web page opens dozens of sessions; new ones are refused when it is full";
        let fix = format!("write {} or leave the key out", default_sessions(Some(ram)));
        found.push(
            Problem::warning("tables-small", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    }
}

/// Quotas are counted by client, and there is room for so many.
pub(super) fn subscribers(config: &Config, sessions_max: u32, found: &mut Vec<Problem>) {
    let size = TableSize {
        sessions_max,
        addresses_max: 1,
    };
    let room = u64::from(size.subscribers_max());
    let nets = config.internal.iter();
    let clients: u64 = nets.map(|net| 1_u64 << (32 - net.value.prefix_len())).sum();
    if !config.limits.quotas.any() || clients <= room {
        return;
    }
    let what = format!("there are quotas, and {clients} internal addresses");
    let why = format!(
        "{sessions_max} sessions have room to count for {room} clients at a time: the others would \
         be refused (subscribers_full)"
    );
    let problem = Problem::warning("many-subscribers", what).why(why);
    let fix = "narrow `internal` to the clients that there are, or raise tables.sessions_max: a \
               client for every 22 sessions";
    let span = config.internal.first().and_then(|net| net.span);
    found.push(problem.fix(fix).at(span));
}

/// The CPUs of the workers, one each; empty: the workers run where the system puts them, when the
/// CPUs could not be read. `queues` is the smallest queue count of the interfaces, if known.
pub(super) fn workers(
    config: &Config,
    host: &HostFacts,
    queues: Option<u16>,
    found: &mut Vec<Problem>,
) -> (u32, Vec<u16>) {
    let given: Vec<u16> = config.workers.cpus.iter().map(|cpu| cpu.value).collect();
    for cpu in &config.workers.cpus {
        if !host.cpus.is_empty() && !host.cpus.contains(&cpu.value) {
            let what = format!("CPU {} cannot be used", cpu.value);
            let why = format!("this process may run on {}", list(&host.cpus));
            let fix = "name CPUs from these, or start Egret with others (taskset, AllowedCPUs=)";
            found.push(
                Problem::error("no-such-cpu", what)
                    .why(why)
                    .fix(fix)
                    .at(cpu.span),
            );
        }
    }
    let cpus = if given.is_empty() {
        host.cpus.clone()
    } else {
        given
    };
    let available = cpus.len().max(1) as u32;
    let queues = queues.map_or(available, u32::from).max(1);
    let count = config
        .workers
        .count
        .map_or(available.min(queues), |count| count.value);
    let span = config.workers.count.and_then(|count| count.span);
    if count > queues {
        let what = format!("{count} workers, but an interface has {queues} receive queues");
        let why = "each worker serves queues of its own, so some would have nothing to do";
        let fix = format!("write count = {queues}, or add queues: ethtool -L IF combined {count}");
        found.push(
            Problem::error("too-many-workers", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    } else if count > available && !cpus.is_empty() {
        let what = format!("{count} workers, but only {available} of the CPUs");
        let why = "workers that share a CPU wait for each other";
        let fix = format!("write count = {available}, or leave it out");
        found.push(
            Problem::warning("few-cpus", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    }
    if config.workers.poll.value == Poll::Busy && count as usize >= host.cpus.len().max(1) {
        let what = format!(
            "poll = \"busy\" with {count} workers on {} CPUs",
            host.cpus.len()
        );
        let why = "workers that never sleep leave no CPU to the host: SSH may hang";
        let fix = "write poll = \"adaptive\", or a smaller `workers.count`";
        let span = config.workers.poll.span;
        found.push(
            Problem::warning("busy-everywhere", what)
                .why(why)
                .fix(fix)
                .at(span),
        );
    }
    let placed = (0..count as usize).filter_map(|worker| cpus.get(worker % cpus.len().max(1)));
    (count, placed.copied().collect())
}

fn list(cpus: &[u16]) -> String {
    cpus.iter()
        .map(u16::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The mode as in the file.
pub(super) fn mode_name(mode: DeviceMode) -> &'static str {
    match mode {
        DeviceMode::Auto => "auto",
        DeviceMode::ZeroCopy => "zero-copy",
        DeviceMode::Copy => "copy",
        DeviceMode::Generic => "generic",
        DeviceMode::Tun => "tun",
        DeviceMode::Routed => "routed",
    }
}
