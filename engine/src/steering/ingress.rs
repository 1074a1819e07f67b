//! Which steering programs an interface's tc ingress has, whoever attached them: by links of tcx, which
//! need not be pinned (an engine on trial), and by filters, as before Linux 6.6.

use std::io;

use aya::programs::{SchedClassifier, TcAttachType};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::tc::STEER;

/// Numbers of the steering programs on the ingress of an interface of the calling thread's network
/// namespace.
///
/// # Errors
/// The kernel's refusal to list the filters.
pub(super) fn programs(interface: &str, ifindex: u32) -> io::Result<Vec<u32>> {
    // A kernel without tcx has none of it.
    let linked = SchedClassifier::query_tcx(interface, TcAttachType::Ingress);
    let linked = linked.map_or(Vec::new(), |(_, programs)| programs);
    let linked = linked
        .iter()
        .filter(|program| program.name() == STEER.as_bytes());
    let mut found: Vec<u32> = linked.map(aya::programs::ProgramInfo::id).collect();
    found.extend(filters(ifindex)?.iter().filter_map(steering_filter));
    Ok(found)
}

/// The filters on an interface's ingress.
fn filters(ifindex: u32) -> io::Result<Vec<TcMessage>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let listing = handle
            .traffic_filter(ifindex as i32)
            .get()
            .ingress()
            .execute();
        listing.try_collect().await.map_err(io::Error::other)
    })
}

/// The number of a filter's program, if that is ours.
fn steering_filter(filter: &TcMessage) -> Option<u32> {
    let options = filter
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    let (mut is_ours, mut number) = (false, None);
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => is_ours = name == STEER,
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => number = Some(*id),
            _ => {}
        }
    }
    number.filter(|_| is_ours)
}
