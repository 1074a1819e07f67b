//! Which served interfaces are still there. Their sockets and the steering program are bound to an
//! interface by its index, so one that went away is not served again before the next start, even if
//! one of its name comes back. The engine goes on with the others and says what is missing.

use tracing::{error, info};

use crate::config::Role;
use crate::netlink::NetworkView;

/// Looks in a row at which more wake-ups must have failed, so that a socket counts as dead: its
/// interface may be going away at this very moment.
const FAILING_LOOKS: u8 = 3;

/// What happened to a served interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was removed, or moved to another network namespace.
    Gone,
    /// One of its name is there now; it cannot be served before a restart.
    Returned,
    /// It is there, but the kernel refuses every wake-up of its sockets.
    Refused,
}

struct Watched {
    name: String,
    ifindex: u32,
    role: Role,
    gone: bool,
    /// The index of one with its name, after it was gone.
    successor: Option<u32>,
    wake_errors: u64,
    failing_looks: u8,
}

/// The served interfaces, by their numbers.
pub struct Presence(Vec<Watched>);

impl Presence {
    /// All of them are there. Each with name, index and role.
    pub fn new(interfaces: impl IntoIterator<Item = (String, u32, Role)>) -> Presence {
        let watched = interfaces.into_iter().map(|(name, ifindex, role)| Watched {
            name,
            ifindex,
            role,
            gone: false,
            successor: None,
            wake_errors: 0,
            failing_looks: 0,
        });
        Presence(watched.collect())
    }

    /// Has it been there all the time?
    pub fn is_present(&self, interface: usize) -> bool {
        !self.0[interface].gone
    }

    /// Takes up a view; what has happened since the last one, by interface number.
    pub fn follow(&mut self, view: &NetworkView) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        for (number, watched) in self.0.iter_mut().enumerate() {
            let there = |ifindex| view.interfaces.iter().any(|facts| facts.ifindex == ifindex);
            if !watched.gone && !there(watched.ifindex) {
                watched.gone = true;
                events.push((number, Event::Gone));
            }
            if watched.gone {
                let of_its_name =
                    |facts: &&crate::interface::InterfaceFacts| facts.name == watched.name;
                let successor = view.interfaces.iter().find(of_its_name);
                let successor = successor.map(|facts| facts.ifindex);
                if successor.is_some() && successor != watched.successor {
                    events.push((number, Event::Returned));
                }
                watched.successor = successor;
            }
        }
        events
    }

    /// Takes up how many wake-ups have failed so far, by interface number, some time after the last
    /// look. Each interface is told once.
    pub fn look(&mut self, wake_errors: impl IntoIterator<Item = u64>) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        for (number, (watched, errors)) in self.0.iter_mut().zip(wake_errors).enumerate() {
            let failed = errors > watched.wake_errors;
            watched.wake_errors = errors;
            if !failed || watched.gone {
                // Told is told.
                if watched.failing_looks < FAILING_LOOKS {
                    watched.failing_looks = 0;
                }
            } else if watched.failing_looks < FAILING_LOOKS {
                watched.failing_looks += 1;
                if watched.failing_looks == FAILING_LOOKS {
                    events.push((number, Event::Refused));
                }
            }
        }
        events
    }

    /// Says it in the log, with what to do, and which realm cannot be reached any more.
    pub fn tell(&self, events: &[(usize, Event)]) {
        for &(number, event) in events {
            let interface = self.0[number].name.as_str();
            match event {
                Event::Gone => error!(
                    interface,
                    "the interface is gone: nothing of it is served; bring it back, then restart \
                     egret"
                ),
                Event::Returned => error!(
                    interface,
                    "an interface of this name is there again, but egret is bound to the one that \
                     is gone, and the kernel handles the new one's traffic, untranslated: restart \
                     egret to serve it"
                ),
                Event::Refused => error!(
                    interface,
                    "the kernel refuses to send and receive for the interface's sockets: restart \
                     egret to bind them anew"
                ),
            }
        }
        if events.iter().any(|&(_, event)| event == Event::Gone) {
            self.tell_what_is_left();
        }
    }

    fn tell_what_is_left(&self) {
        let is_left = |serves: fn(Role) -> bool| {
            let mut left = self.0.iter().filter(|watched| !watched.gone);
            left.any(|watched| serves(watched.role))
        };
        let realms = [
            ("external", is_left(Role::is_external)),
            ("internal", is_left(Role::is_internal)),
        ];
        for (realm, _) in realms.iter().filter(|(_, left)| !left) {
            error!("no {realm} interface is left: nothing is translated until a restart");
        }
        if realms.iter().all(|&(_, left)| left) {
            info!("the other interfaces are served as before");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::InterfaceFacts;

    fn view(interfaces: &[(&str, u32)]) -> NetworkView {
        let facts = |&(name, ifindex): &(&str, u32)| InterfaceFacts {
            name: name.to_owned(),
            ifindex,
            ..InterfaceFacts::default()
        };
        NetworkView {
            interfaces: interfaces.iter().map(facts).collect(),
            ..NetworkView::default()
        }
    }

    fn presence() -> Presence {
        Presence::new([
            ("lan0".to_owned(), 2, Role::Internal),
            ("wan0".to_owned(), 3, Role::External),
        ])
    }

    #[test]
    fn an_interface_that_goes_is_told_once_and_stays_gone() {
        let mut presence = presence();
        assert_eq!(presence.follow(&view(&[("lan0", 2), ("wan0", 3)])), []);
        // Renamed, and another has its name: still the same interface.
        assert_eq!(
            presence.follow(&view(&[("lan1", 2), ("lan0", 7), ("wan0", 3)])),
            []
        );
        assert_eq!(presence.follow(&view(&[("lan0", 2)])), [(1, Event::Gone)]);
        assert_eq!(presence.follow(&view(&[("lan0", 2)])), []);
        assert!(presence.is_present(0) && !presence.is_present(1));
        let returned = [("lan0", 2), ("wan0", 9)];
        assert_eq!(presence.follow(&view(&returned)), [(1, Event::Returned)]);
        assert_eq!(presence.follow(&view(&returned)), []);
        // Its sockets are dead even if the index is the same again.
        assert_eq!(presence.follow(&view(&[("lan0", 2)])), []);
        let same = [("lan0", 2), ("wan0", 3)];
        assert_eq!(presence.follow(&view(&same)), [(1, Event::Returned)]);
        assert!(!presence.is_present(1));
    }

    #[test]
    fn one_that_is_replaced_between_two_views_is_noticed() {
        let events = presence().follow(&view(&[("lan0", 8), ("wan0", 3)]));
        assert_eq!(events, [(0, Event::Gone), (0, Event::Returned)]);
    }

    #[test]
    fn wake_ups_that_go_on_failing_are_told_once() {
        let mut presence = presence();
        assert_eq!(presence.look([5, 0]), []);
        assert_eq!(presence.look([6, 0]), []);
        // One quiet look: it has passed.
        assert_eq!(presence.look([6, 0]), []);
        assert_eq!(presence.look([7, 0]), []);
        assert_eq!(presence.look([8, 0]), []);
        assert_eq!(presence.look([9, 0]), [(0, Event::Refused)]);
        for errors in 10..20 {
            assert_eq!(presence.look([errors, 0]), []);
        }
        // Of one that is gone that is no news.
        presence.follow(&view(&[("lan0", 2)]));
        for errors in 1..9 {
            assert_eq!(presence.look([20, errors]), []);
        }
    }
}
