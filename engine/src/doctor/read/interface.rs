//! One interface.

use std::fs;

use aya::programs::{SchedClassifier, TcAttachType};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage};

use crate::device::sys::ethtool;
use crate::device::sys::link::{self, XdpMode};
use crate::doctor::facts::{InterfaceState, Program, VirtioFeatures};
use crate::host::Host;
use crate::interface::InterfaceFacts;
use crate::{steering, xdp_features};

pub(super) fn read(facts: &InterfaceFacts, host: &Host) -> InterfaceState {
    let name = facts.name.as_str();
    let virtio = || {
        let text = fs::read_to_string(format!("/sys/class/net/{name}/device/features")).ok()?;
        VirtioFeatures::parse(&text)
    };
    let driver = ethtool::driver(name).unwrap_or_default();
    let is_virtio = driver == "virtio_net";
    InterfaceState {
        name: name.to_owned(),
        is_ethernet: facts.mac.is_some() && !facts.loopback,
        up: facts.up,
        mtu: facts.mtu,
        channels: ethtool::channels(name).ok(),
        rings: ethtool::rings(name).ok(),
        spread: ethtool::receive_spread(name).ok(),
        features: ethtool::features(name).ok(),
        xdp: xdp_features::read(facts.ifindex).ok(),
        virtio: is_virtio.then(virtio).flatten(),
        program: xdp_program(facts.ifindex),
        tc: tc_programs(name, facts.ifindex),
        rp_filter: rp_filter(name, host),
        driver,
    }
}

/// The effective value, and the interface's own.
fn rp_filter(name: &str, host: &Host) -> Option<(u8, u8)> {
    let effective = host.rp_filter.iter().find(|(other, _)| other == name)?.1;
    let own = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?;
    Some((effective, own.trim().parse().ok()?))
}

fn xdp_program(ifindex: u32) -> Option<Option<Program>> {
    let attached = link::attached_xdp(ifindex).ok()?;
    Some(attached.map(|attached| {
        let place = match attached.mode {
            Some(XdpMode::Native) => "native",
            Some(XdpMode::Generic) => "generic",
            None => "hardware",
        };
        Program {
            id: attached.program,
            place: place.to_owned(),
            instance: steering::owner(ifindex, attached.program),
        }
    }))
}

/// Programs of tc: filters of the kind `bpf` (any kernel), and tcx links (6.6+), which only root may
/// see.
fn tc_programs(name: &str, ifindex: u32) -> Option<Vec<Program>> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let mut found = filters(ifindex)?;
    for (kind, place) in [
        (TcAttachType::Ingress, "ingress"),
        (TcAttachType::Egress, "egress"),
    ] {
        // A kernel without tcx refuses.
        let Ok((_, programs)) = SchedClassifier::query_tcx(name, kind) else {
            continue;
        };
        found.extend(programs.iter().map(|program| Program {
            id: program.id(),
            place: place.to_owned(),
            instance: None,
        }));
    }
    Some(found)
}

fn filters(ifindex: u32) -> Option<Vec<Program>> {
    // A thread of its own, because a runtime cannot be started within another one.
    let listed = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .ok()?;
        runtime.block_on(list_filters(i32::try_from(ifindex).ok()?))
    };
    std::thread::scope(|scope| scope.spawn(listed).join().ok()?)
}

async fn list_filters(ifindex: i32) -> Option<Vec<Program>> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let mut found = Vec::new();
    for place in ["ingress", "egress"] {
        let request = handle.traffic_filter(ifindex).get();
        let request = match place {
            "ingress" => request.ingress(),
            _ => request.egress(),
        };
        // An interface without a clsact qdisc is refused: it has no filters.
        let messages: Vec<TcMessage> = request.execute().try_collect().await.unwrap_or_default();
        let is_bpf = |message: &&TcMessage| {
            let mut attributes = message.attributes.iter();
            attributes.any(|one| matches!(one, TcAttribute::Kind(kind) if kind == "bpf"))
        };
        // A filter is listed with handle 0, too: for its priority.
        let filters = messages.iter().filter(is_bpf);
        found.extend(
            filters
                .filter(|message| u32::from(message.header.handle) != 0)
                .map(|_| Program {
                    id: 0,
                    place: place.to_owned(),
                    instance: None,
                }),
        );
    }
    Some(found)
}
