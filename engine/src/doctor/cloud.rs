//! What clouds do to gateways, and what lies at 169.254.0.0/16.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::facts::{Cloud, Facts};
use super::finding::{Finding, Level};

const HOST: &str = "host";
/// Metadata, name servers and network disks of clouds.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
/// Where a machine asks for its identity and its keys.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

pub(super) fn examine(facts: &Facts, found: &mut Vec<Finding>) {
    if let Some(cloud) = facts.host.cloud {
        found.push(addresses_checked(cloud));
        found.extend(metadata(facts));
    }
    found.extend(link_local(facts));
    if facts.host.has_network_disk == Some(true) {
        let what = "a disk is reached over the network (iSCSI); its packets stay with the kernel";
        let finding = Finding::new(HOST, "network-disk", Level::Ok, true, what);
        found.push(
            finding.why("the steering program passes all that is not Egret's before any copy"),
        );
    }
}

/// A cloud drops what is not from or to the machine's own address, unless told otherwise, and the
/// machine cannot see it.
fn addresses_checked(cloud: Cloud) -> Finding {
    let (name, title, command, undo) = match cloud {
        Cloud::Aws => (
            "aws",
            "AWS",
            "aws ec2 modify-instance-attribute --instance-id ID --no-source-dest-check",
            "aws ec2 modify-instance-attribute --instance-id ID --source-dest-check",
        ),
        Cloud::Google => (
            "google",
            "Google Cloud",
            "gcloud compute instances export NAME --destination=F && sed -i \
             '/^canIpForward/d;$a canIpForward: true' F && gcloud compute instances \
             update-from-file NAME --source=F",
            "the same with canIpForward: false",
        ),
        Cloud::Oracle => (
            "oracle",
            "Oracle Cloud",
            "oci network vnic update --vnic-id ID --skip-source-dest-check true",
            "oci network vnic update --vnic-id ID --skip-source-dest-check false",
        ),
        Cloud::Azure => (
            "azure",
            "Azure",
            "az network nic update --name NIC --resource-group GROUP --ip-forwarding true",
            "az network nic update --name NIC --resource-group GROUP --ip-forwarding false",
        ),
        Cloud::DigitalOcean => {
            let what = "DigitalOcean drops packets that are not to or from a Droplet's own address";
            return Finding::new(HOST, "cloud", Level::Warning, "digitalocean", what)
                .why("clients may not reach the gateway through their VPC")
                .advise("try one client first; a tunnel (WireGuard) between them works");
        }
    };
    let what = format!("{title} checks source and destination addresses unless told not to");
    Finding::new(HOST, "cloud", Level::Note, name, what)
        .why("clients' packets would never arrive here; the machine itself cannot see this setting")
        .mend(command, undo)
}

/// Clients could ask for the gateway's own keys: their requests come from its address.
fn metadata(facts: &Facts) -> Option<Finding> {
    let policy = facts.policy.as_ref()?;
    let is_denied = policy.deny.iter().any(|net| net.contains(&METADATA));
    let make = |level, what: &str| Finding::new(HOST, "metadata", level, is_denied, what);
    if is_denied {
        return Some(make(
            Level::Ok,
            "clients cannot reach the cloud's metadata service",
        ));
    }
    let what = "clients can reach the cloud's metadata service by the gateway's address";
    let why = "it gives the gateway's identity and keys to whoever asks from there";
    let finding = make(Level::Warning, what).why(why);
    Some(finding.advise("write deny = \"169.254.0.0/16\" into the configuration"))
}

fn link_local(facts: &Facts) -> Option<Finding> {
    let policy = facts.policy.as_ref()?;
    let overlaps = |net: &&Ipv4Net| net.contains(&LINK_LOCAL) || LINK_LOCAL.contains(*net);
    let net = policy.internal.iter().find(overlaps)?;
    let what = format!("the internal prefix {net} has addresses of 169.254.0.0/16");
    let finding = Finding::new(HOST, "link-local", Level::Problem, net.to_string(), what);
    Some(
        finding
            .why("metadata, name servers and network disks of clouds lie there: the host may hang")
            .advise("take it out of `internal` in the configuration"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::one;
    use super::super::{HostState, Policy};
    use super::*;

    fn facts(cloud: Option<Cloud>, internal: &str, deny: &[&str]) -> Facts {
        Facts {
            host: HostState {
                cloud,
                ..HostState::default()
            },
            policy: Some(Policy {
                internal: vec![internal.parse().unwrap()],
                deny: deny.iter().map(|net| net.parse().unwrap()).collect(),
                ..Policy::default()
            }),
            ..Facts::default()
        }
    }

    fn found(facts: &Facts) -> Vec<Finding> {
        let mut found = Vec::new();
        examine(facts, &mut found);
        found
    }

    #[test]
    fn every_cloud_has_its_command() {
        for cloud in [
            Cloud::Aws,
            Cloud::Google,
            Cloud::Oracle,
            Cloud::Azure,
            Cloud::DigitalOcean,
        ] {
            let found = found(&facts(Some(cloud), "10.0.0.0/8", &[]));
            let checked = one(&found, "host/cloud");
            assert!(
                checked.level >= Level::Note && checked.mend.is_some(),
                "{cloud:?}"
            );
        }
        assert!(found(&facts(None, "10.0.0.0/8", &[])).is_empty());
    }

    #[test]
    fn the_metadata_service_must_be_denied() {
        let level = |deny: &[&str]| {
            one(
                &found(&facts(Some(Cloud::Aws), "10.0.0.0/8", deny)),
                "host/metadata",
            )
            .level
        };
        assert_eq!(level(&[]), Level::Warning);
        assert_eq!(level(&["192.168.0.0/16"]), Level::Warning);
        assert_eq!(level(&["169.254.0.0/16"]), Level::Ok);
        assert_eq!(level(&["169.254.169.254/32"]), Level::Ok);
    }

    #[test]
    fn link_local_addresses_are_not_internal() {
        for (net, bad) in [
            ("169.254.8.0/24", true),
            ("0.0.0.0/0", true),
            ("10.0.0.0/8", false),
        ] {
            let found = found(&facts(None, net, &[]));
            assert_eq!(
                found.iter().any(|one| one.level == Level::Problem),
                bad,
                "{net}"
            );
        }
    }

    #[test]
    fn a_network_disk_is_told() {
        let mut with = facts(None, "10.0.0.0/8", &[]);
        with.host.has_network_disk = Some(true);
        assert_eq!(one(&found(&with), "host/network-disk").level, Level::Ok);
    }
}
