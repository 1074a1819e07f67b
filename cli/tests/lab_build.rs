//! The lab is built as it was asked for.

mod common;

use egret_cli::lab::link::End;
use egret_cli::lab::owner::remove_leftovers;
use egret_cli::lab::{Lab, LabOptions, Topology, plan};

const PREFIX: &str = "egret-tb";

#[test]
fn queues_and_mtus_are_as_asked() {
    if !nix::unistd::geteuid().is_root() {
        common::skip("network namespaces need root");
        return;
    }
    remove_leftovers(PREFIX);
    for topology in Topology::ALL {
        let options = LabOptions {
            queues: 2,
            clients: 3,
            ..LabOptions::new(PREFIX, topology)
        };
        let lab = Lab::build(options).expect("the lab");
        assert_eq!(lab.clients.len(), 3);
        let gateway = |name| End {
            namespace: &lab.gateway,
            name,
        };
        let internal = gateway(topology.internal_link())
            .facts()
            .expect("its facts");
        let external = gateway(topology.external_link())
            .facts()
            .expect("its facts");
        assert_eq!(
            (
                internal.mtu,
                internal.receive_queues,
                internal.transmit_queues
            ),
            (1500, 2, 2)
        );
        let mtu = if topology == Topology::TwoArm {
            1492
        } else {
            1500
        };
        assert_eq!(
            (
                external.mtu,
                external.receive_queues,
                external.transmit_queues
            ),
            (mtu, 2, 2)
        );
        let router = End {
            namespace: &lab.router,
            name: plan::ROUTER_LINK,
        };
        assert_eq!(router.facts().expect("its facts").mtu, mtu);
        assert_eq!(
            lab.gateway.sysctl("ipv4/ip_forward").expect("a sysctl"),
            "0"
        );
    }
}
