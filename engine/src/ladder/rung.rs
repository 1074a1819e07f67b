//! Where the ladder ended: the way of each interface, and why it is not a better one.

use tracing::info;

use super::Way;

/// The way that is used with one interface, and the ones above that do not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Name of the interface.
    pub interface: String,
    /// The way in use.
    pub way: Way,
    /// The ways that did not work, each with the reason.
    pub refused: Vec<(Way, String)>,
    /// Why no test frame proved that frames reach the sockets; `None`: proven.
    pub untested: Option<String>,
}

/// The rungs of all interfaces, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// One an interface.
    pub rungs: Vec<Rung>,
    /// Why the tun driver was tried before AF_XDP, if it was.
    pub tun_first: Option<String>,
}

impl Reached {
    /// The kernel routes packets to us by one interface, which no ladder leads to.
    pub fn routed(interface: &str) -> Reached {
        let why = "the kernel routes packets into the TAP; no test frame is sent";
        Reached {
            rungs: vec![Rung {
                interface: interface.to_owned(),
                way: Way::Routed,
                refused: Vec::new(),
                untested: Some(why.to_owned()),
            }],
            tun_first: None,
        }
    }

    /// The way of all interfaces; `None`: they have not the same.
    pub fn way(&self) -> Option<Way> {
        let first = self.rungs.first()?.way;
        let same = self.rungs.iter().all(|rung| rung.way == first);
        same.then_some(first)
    }

    /// The way of all interfaces as a word, or "mixed".
    pub fn mode(&self) -> String {
        self.way().map_or("mixed".to_owned(), |way| way.to_string())
    }

    /// Why an interface was not tested, with its name; `None`: all were.
    pub fn untested(&self) -> Option<String> {
        self.rungs.iter().find_map(|rung| {
            let why = rung.untested.as_ref()?;
            Some(format!("{}: {why}", rung.interface))
        })
    }

    /// Logs it.
    pub(super) fn tell(&self) {
        for rung in &self.rungs {
            let (mode, interface) = (rung.way, &rung.interface);
            match &rung.untested {
                None => info!(%mode, interface, "frames are exchanged; test frames arrived"),
                Some(why) => {
                    info!(%mode, interface, why, "frames are exchanged; no test was possible");
                }
            }
        }
        if self.way().is_none() {
            info!("interfaces of different modes: what goes from one to the other is copied");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(way: Way, untested: Option<&str>) -> Rung {
        Rung {
            interface: "lan0".to_owned(),
            way,
            refused: Vec::new(),
            untested: untested.map(str::to_owned),
        }
    }

    #[test]
    fn ways_that_differ_are_mixed() {
        let of = |ways: &[Way]| Reached {
            rungs: ways.iter().map(|&way| rung(way, None)).collect(),
            tun_first: None,
        };
        assert_eq!(of(&[Way::Copy, Way::Copy]).mode(), "copy");
        assert_eq!(of(&[Way::Copy, Way::Generic]).way(), None);
        assert_eq!(of(&[Way::Tun, Way::Copy]).mode(), "mixed");
    }

    #[test]
    fn one_interface_untested_is_told() {
        let reached = Reached {
            rungs: vec![rung(Way::Tun, None), rung(Way::ZeroCopy, Some("no way"))],
            tun_first: None,
        };
        assert_eq!(reached.untested().as_deref(), Some("lan0: no way"));
    }
}
