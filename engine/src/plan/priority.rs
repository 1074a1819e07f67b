//! The workers' priority: what it needs of the host, and what it must leave to it.

use super::facts::HostFacts;
use crate::config::{Config, Poll, Problem};

/// What gets a process the right to a real-time priority.
const REMEDY: &str = "run it as root; or in the systemd unit: AmbientCapabilities=CAP_SYS_NICE or \
                      LimitRTPRIO=99; if root is refused, too, its CPU control group has no \
                      real-time time (cpu.rt_runtime_us); or leave the key out";

/// Everything that `workers.priority` brings with it, if it is given.
pub(super) fn priority(config: &Config, host: &HostFacts, workers: u32, found: &mut Vec<Problem>) {
    let Some(priority) = config.workers.priority else {
        return;
    };
    let name = format!("`workers.priority` is {}", priority.value);
    if let Some(refusal) = &host.real_time.refusal {
        let why = format!(
            "the kernel refuses it to this process ({refusal}): the workers run as if there were \
             no such key"
        );
        let problem = Problem::warning("priority-refused", name.clone());
        found.push(problem.why(why).fix(REMEDY).at(priority.span));
    }
    if config.workers.poll.value == Poll::Busy {
        found.push(busy(config, host, workers, &name).at(priority.span));
    }
    if host.real_time.runtime_us == Some(-1) {
        let what = format!("{name}, and sched_rt_runtime_us is -1");
        let why = "workers that have work all the time leave nothing of their CPUs to the kernel \
                   and the host: with 950000 these keep a twentieth";
        let fix = "sysctl -w kernel.sched_rt_runtime_us=950000";
        let problem = Problem::warning("priority-unlimited", what);
        found.push(problem.why(why).fix(fix).at(priority.span));
    }
}

/// Workers that never sleep and outrank everything. On CPUs that were named for them alone that is
/// the user's choice, elsewhere the host and Egret's own other threads would stand still.
fn busy(config: &Config, host: &HostFacts, workers: u32, name: &str) -> Problem {
    let what = format!("{name}, and poll = \"busy\"");
    let fix = "write poll = \"adaptive\", or leave the priority out";
    if config.workers.cpus.is_empty() {
        let why = "a worker that never sleeps and outranks all others leaves nothing of its CPU to \
                   the kernel and the host";
        let fix = format!("{fix}, or name CPUs for the workers alone in `workers.cpus`");
        return Problem::error("busy-priority", what).why(why).fix(fix);
    }
    if workers as usize >= host.cpus.len().max(1) {
        let what = format!("{what} on {} of {} CPUs", workers, host.cpus.len());
        let why = "nothing would be left to the host and to Egret's own other threads";
        let fix = format!("{fix}, or leave a CPU out of `workers.cpus`");
        return Problem::error("busy-priority", what).why(why).fix(fix);
    }
    let why = "nothing else runs on these CPUs, the kernel's own threads included, but while the \
               kernel stops the workers: 50 ms of each second by default (sched_rt_runtime_us)";
    Problem::warning("busy-priority", what).why(why).fix(fix)
}
