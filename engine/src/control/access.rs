//! Who may ask what.

use std::io;
use std::os::fd::AsFd;

use tokio::net::UnixStream;

use super::answer::{ErrorCode, Refusal};
use super::request::Request;
use crate::config::Config;
use crate::device::sys::peer;
use crate::plan::HostFacts;

/// A group of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

impl Group {
    /// The one that the configuration names.
    pub fn of(config: &Config, host: &HostFacts) -> Option<Group> {
        let name = config.control_group.as_ref()?;
        Some(Group {
            name: name.value.clone(),
            gid: host.control_gid?,
        })
    }
}

/// Whoever is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub uid: u32,
    /// All its groups.
    pub gids: Vec<u32>,
}

impl Peer {
    /// As the kernel noted it when it connected.
    pub fn of(client: &UnixStream) -> io::Result<Peer> {
        let credentials = client.peer_cred()?;
        let mut gids = peer::groups(client.as_fd())?;
        gids.push(credentials.gid());
        Ok(Peer {
            uid: credentials.uid(),
            gids,
        })
    }
}

/// The rules: root and the engine's own user may do everything, its group may look, and a group that
/// the configuration names may do everything, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    uid: u32,
    gid: u32,
    operators: Option<Group>,
}

impl Access {
    /// With this process's user and group.
    pub fn new(operators: Option<Group>) -> Access {
        Access {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            operators,
        }
    }

    fn is_operator(&self, peer: &Peer) -> bool {
        let group = self.operators.as_ref();
        peer.uid == 0
            || peer.uid == self.uid
            || group.is_some_and(|group| peer.gids.contains(&group.gid))
    }

    /// May the peer ask anything at all?
    ///
    /// # Errors
    /// No; says who may.
    pub fn may_ask(&self, peer: &Peer) -> Result<(), Refusal> {
        if self.is_operator(peer) || peer.gids.contains(&self.gid) {
            return Ok(());
        }
        self.refuse(peer, "ask", "the engine's own group")
    }

    /// May the peer ask this?
    ///
    /// # Errors
    /// No; says who may.
    pub fn may(&self, peer: &Peer, request: &Request) -> Result<(), Refusal> {
        if !request.changes() || self.is_operator(peer) {
            return Ok(());
        }
        self.refuse(peer, "change anything", "a group named by `control.group`")
    }

    fn refuse(&self, peer: &Peer, what: &str, others: &str) -> Result<(), Refusal> {
        let named = self.operators.as_ref();
        let others = named.map_or(others.to_owned(), |group| {
            format!("the group `{}`", group.name)
        });
        let error = format!(
            "user {} may not {what}: only root, the engine's own user or {others} may; use sudo",
            peer.uid
        );
        Err(Refusal::new(ErrorCode::Forbidden, error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Flush, Plain};
    use super::*;

    fn peer(uid: u32, gids: &[u32]) -> Peer {
        let gids = gids.to_vec();
        Peer { uid, gids }
    }

    #[test]
    fn others_may_not_ask_and_a_group_may_not_change() {
        let operators = Some(Group {
            name: "netops".to_owned(),
            gid: 70,
        });
        let plain = Access {
            uid: 100,
            gid: 200,
            operators: None,
        };
        let grouped = Access {
            operators,
            ..plain.clone()
        };
        let (status, flush) = (Request::Status(Plain {}), Request::Flush(Flush::default()));
        for (who, asks, changes, changes_with_group) in [
            (peer(0, &[0]), true, true, true),
            (peer(100, &[1]), true, true, true),
            (peer(5, &[200]), true, false, false),
            (peer(5, &[6, 200]), true, false, false),
            (peer(5, &[70]), false, false, true),
            (peer(5, &[6]), false, false, false),
        ] {
            assert_eq!(plain.may_ask(&who).is_ok(), asks, "{who:?}");
            assert_eq!(
                grouped.may_ask(&who).is_ok(),
                asks || changes_with_group,
                "{who:?}"
            );
            assert_eq!(plain.may(&who, &flush).is_ok(), changes, "{who:?}");
            assert_eq!(
                grouped.may(&who, &flush).is_ok(),
                changes_with_group,
                "{who:?}"
            );
            assert!(plain.may(&who, &status).is_ok());
            assert!(plain.may(&who, &Request::Confirm(Plain {})).is_ok() == changes);
        }
        let text = |access: &Access| {
            let refused = access.may(&peer(5, &[200]), &flush);
            refused.expect_err("it changes something").error
        };
        assert!(text(&plain).contains("user 5") && text(&plain).contains("`control.group`"));
        assert!(text(&grouped).contains("the group `netops`"));
    }
}
