//! Next hops and their link-layer addresses: one table of fixed size that all workers share.
//!
//! A [`HopTable`] gives every (interface, next-hop address, MTU) a dense number. Its cell is two
//! atomic words: the one that changes (MAC, state) is loaded and stored in one go, so a reader
//! never sees half of one MAC and half of another; the other is written once, before the number is
//! published. Workers create hops and ask for their resolution; only the netlink thread resolves.
//!
//! The table never blocks on being full: it has two halves, and the netlink thread turns over to
//! the other half when the current one is crowded (a scan of a large on-link prefix does that).
//! Numbers of the old half stay readable until the next turn, at least [`TURN_MIN`] later.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;

/// Least time between two turns of a [`HopTable`]; frames may be held for a hop half as long.
pub const TURN_MIN: Duration = Duration::from_secs(10);

/// Most hops that one half of a [`HopTable`] can have.
pub const HOPS_MAX: u32 = (1 << 17) - 1;

/// Requests that wait for the netlink thread at most; more are dropped and asked for again.
const REQUESTS_MAX: usize = 4096;

/// Bit of a cell's second word: the hop's resolution was asked for less than a second ago.
const ASKED: u64 = 1;

/// A dense number of a hop, 1 to 2 * [`HOPS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HopNumber(pub(crate) u32);

/// What is known of a hop's link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HopState {
    /// Not known yet: frames may be held, and resolution asked for.
    Unresolved = 0,
    /// Known.
    Resolved = 1,
    /// The neighbour did not answer: frames are dropped. Still to be asked for.
    Failed = 2,
}

/// A copy of a hop's cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Number of the egress interface, in the order of the configuration.
    pub interface: u8,
    /// Destination MAC; meaningful while the state is [`HopState::Resolved`]. Zero on interfaces
    /// without link-layer addresses.
    pub mac: [u8; 6],
    /// What is known of `mac`.
    pub state: HopState,
    /// Next-hop address: the gateway's, or the destination's own when it is on the link.
    pub addr: Ipv4Addr,
    /// Largest IPv4 packet that may be sent by this hop, bytes.
    pub mtu: u16,
}

/// Word `link`: MAC in bits 16..64, state in 8..16, interface in 0..8.
/// Word `key`: address in bits 32..64, MTU in 16..32, [`ASKED`] in bit 0. Zero: no hop.
#[derive(Default)]
struct Cell {
    link: AtomicU64,
    key: AtomicU64,
}

fn link_word(interface: u8, mac: [u8; 6], state: HopState) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&mac);
    u64::from_be_bytes(bytes) | (state as u64) << 8 | u64::from(interface)
}

fn key_word(addr: Ipv4Addr, mtu: u16) -> u64 {
    u64::from(u32::from(addr)) << 32 | u64::from(mtu) << 16
}

/// What a cell's words say.
#[inline]
fn hop(link: u64, key: u64) -> Hop {
    let [a, b, c, d, e, f, state, interface] = link.to_be_bytes();
    Hop {
        interface,
        mac: [a, b, c, d, e, f],
        state: match state {
            1 => HopState::Resolved,
            2 => HopState::Failed,
            _ => HopState::Unresolved,
        },
        addr: Ipv4Addr::from((key >> 32) as u32),
        mtu: (key >> 16) as u16,
    }
}

/// All hops of a gateway. Memory: 24 to 32 bytes for each hop of each half, allocated at once.
pub struct HopTable {
    /// Cell of hop number n is at n; both halves, the first starting at 1.
    cells: Box<[Cell]>,
    /// Open addressing, linear probing, at most half full; 0 is an empty place. Both halves.
    index: Box<[AtomicU32]>,
    capacity: u32,
    /// Number of the half in which hops are looked up and created.
    half: AtomicU32,
    used: [AtomicU32; 2],
    requests: ArrayQueue<HopNumber>,
    /// A wake-up of the netlink thread is under way.
    woken: AtomicBool,
    wake: Notify,
}

impl HopTable {
    /// A table of `capacity` hops a half, brought into 1..=[`HOPS_MAX`].
    pub fn new(capacity: u32) -> HopTable {
        let capacity = capacity.clamp(1, HOPS_MAX);
        let places = 2 * (capacity as usize * 2).next_power_of_two();
        HopTable {
            cells: (0..=2 * capacity).map(|_| Cell::default()).collect(),
            index: (0..places).map(|_| AtomicU32::new(0)).collect(),
            capacity,
            half: AtomicU32::new(0),
            used: [AtomicU32::new(0), AtomicU32::new(0)],
            requests: ArrayQueue::new(REQUESTS_MAX),
            woken: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// The number of a hop, created if need be (its resolution is then asked for). `None`: the
    /// table is full for the moment. Lock-free, allocates nothing.
    pub fn number_of(&self, interface: u8, addr: Ipv4Addr, mtu: u16) -> Option<HopNumber> {
        let half = self.half.load(Ordering::Acquire);
        let places = self.places(half);
        let key = key_word(addr, mtu);
        let mut place = hash(key ^ u64::from(interface)) as usize;
        let mut created = 0;
        for _ in 0..places.len() {
            let entry = &places[place & (places.len() - 1)];
            let mut number = entry.load(Ordering::Acquire);
            if number == 0 {
                if created == 0 {
                    created = self.create(half, interface, key)?;
                }
                match entry.compare_exchange(0, created, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => {
                        let created = HopNumber(created);
                        self.request(created);
                        return Some(created);
                    }
                    Err(other) => number = other,
                }
            }
            // A hop created for nothing because another worker was first stays unused until the
            // half is cleared.
            if self.is(number, interface, key) {
                return Some(HopNumber(number));
            }
            place = place.wrapping_add(1);
        }
        None
    }

    /// What is known of a hop. Two relaxed loads; the MAC, state and interface are of one moment.
    pub fn load(&self, number: HopNumber) -> Hop {
        let Some(cell) = self.cells.get(number.0 as usize) else {
            return Hop {
                interface: 0,
                mac: [0; 6],
                state: HopState::Unresolved,
                addr: Ipv4Addr::UNSPECIFIED,
                mtu: 0,
            };
        };
        let link = cell.link.load(Ordering::Relaxed);
        hop(link, cell.key.load(Ordering::Relaxed))
    }

    /// What is known of a hop, if the number names one: [`HopTable::contains`] and
    /// [`HopTable::load`] in one.
    #[inline]
    pub(crate) fn known(&self, number: HopNumber) -> Option<Hop> {
        let cell = self.cells.get(number.0 as usize)?;
        let key = cell.key.load(Ordering::Acquire);
        (key & !ASKED != 0).then(|| hop(cell.link.load(Ordering::Relaxed), key))
    }

    /// Asks the netlink thread to resolve a hop. Called for every frame that meets an unresolved
    /// or failed hop; a hop is asked for at most once a second, the rest of the calls do nothing.
    /// A full queue drops the request; a later call repeats it.
    pub fn request(&self, number: HopNumber) {
        let Some(cell) = self.cells.get(number.0 as usize) else {
            return;
        };
        if cell.key.load(Ordering::Relaxed) & ASKED != 0
            || cell.key.fetch_or(ASKED, Ordering::Relaxed) & ASKED != 0
        {
            return;
        }
        if self.requests.push(number).is_err() {
            cell.key.fetch_and(!ASKED, Ordering::Relaxed);
        }
        self.wake_netlink();
    }

    /// Does the number name a hop? False for numbers from outside (a table of an earlier process).
    pub fn contains(&self, number: HopNumber) -> bool {
        self.cells
            .get(number.0 as usize)
            .is_some_and(|cell| cell.key.load(Ordering::Acquire) & !ASKED != 0)
    }

    /// Hops in the current half.
    pub fn len(&self) -> u32 {
        self.used[self.half.load(Ordering::Relaxed) as usize & 1].load(Ordering::Relaxed)
    }

    /// Is there no hop?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hops that fit in one half.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Waits for requests (or for a full table); then [`HopTable::next_request`] has them.
    /// One waiter at a time.
    pub(crate) async fn requested(&self) {
        self.wake.notified().await;
        // A read-modify-write, so that what was pushed before the flag was raised is visible.
        self.woken.swap(false, Ordering::AcqRel);
    }

    /// The next hop to resolve. Its further requests are ignored until
    /// [`HopTable::allow_request`].
    pub(crate) fn next_request(&self) -> Option<HopNumber> {
        self.requests.pop()
    }

    /// Lets workers ask for the hop again.
    pub(crate) fn allow_request(&self, number: HopNumber) {
        if let Some(cell) = self.cells.get(number.0 as usize) {
            cell.key.fetch_and(!ASKED, Ordering::Relaxed);
        }
    }

    /// Writes what was learned about a hop. Netlink thread only.
    pub(crate) fn set(&self, number: HopNumber, mac: [u8; 6], state: HopState) {
        if let Some(cell) = self.cells.get(number.0 as usize) {
            let interface = cell.link.load(Ordering::Relaxed) as u8;
            cell.link
                .store(link_word(interface, mac, state), Ordering::Relaxed);
        }
    }

    /// Is the current half so full that it is time to turn over?
    pub(crate) fn is_crowded(&self) -> bool {
        self.len() >= self.capacity - self.capacity / 8
    }

    /// Will the next turn keep this number?
    pub(crate) fn survives_turn(&self, number: HopNumber) -> bool {
        (number.0 > self.capacity) == (self.half.load(Ordering::Relaxed) & 1 == 1)
    }

    /// Clears the other half and makes it the current one. Netlink thread only, at most once in
    /// [`TURN_MIN`] (nobody uses numbers of the other half any more), and together with a new
    /// generation of routes, so that remembered hops are looked up again.
    pub(crate) fn turn_over(&self) {
        let other = (self.half.load(Ordering::Relaxed) & 1) ^ 1;
        for entry in self.places(other) {
            entry.store(0, Ordering::Relaxed);
        }
        let first = 1 + (other * self.capacity) as usize;
        for cell in &self.cells[first..first + self.capacity as usize] {
            cell.key.store(0, Ordering::Relaxed);
            cell.link.store(0, Ordering::Relaxed);
        }
        self.used[other as usize].store(0, Ordering::Relaxed);
        self.half.store(other, Ordering::Release);
    }

    fn places(&self, half: u32) -> &[AtomicU32] {
        let middle = self.index.len() / 2;
        if half & 1 == 0 {
            &self.index[..middle]
        } else {
            &self.index[middle..]
        }
    }

    fn is(&self, number: u32, interface: u8, key: u64) -> bool {
        let cell = &self.cells[number as usize];
        cell.key.load(Ordering::Relaxed) & !ASKED == key
            && cell.link.load(Ordering::Relaxed) as u8 == interface
    }

    /// Takes and fills a cell; 0 < result. Wakes the netlink thread when there is none.
    fn create(&self, half: u32, interface: u8, key: u64) -> Option<u32> {
        let used = &self.used[half as usize & 1];
        let taken = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            (used < self.capacity).then_some(used + 1)
        });
        let Ok(taken) = taken else {
            self.wake_netlink();
            return None;
        };
        let number = 1 + half * self.capacity + taken;
        let cell = &self.cells[number as usize];
        cell.link.store(
            link_word(interface, [0; 6], HopState::Unresolved),
            Ordering::Relaxed,
        );
        // Pairs with `contains`: whoever learns the number from a session sees the whole cell.
        cell.key.store(key, Ordering::Release);
        Some(number)
    }

    fn wake_netlink(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }
}

/// Mixes 64 bits (multiply and fold, twice).
pub(crate) fn hash(key: u64) -> u64 {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0xab, 0xcd, 0xef];

    fn addr(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0a00_0000 + number)
    }

    #[test]
    fn a_hop_has_one_number_and_keeps_its_parts() {
        let table = HopTable::new(64);
        let first = table.number_of(3, addr(1), 1500).unwrap();
        assert_eq!(table.number_of(3, addr(1), 1500), Some(first));
        let others = [
            table.number_of(2, addr(1), 1500).unwrap(),
            table.number_of(3, addr(2), 1500).unwrap(),
            table.number_of(3, addr(1), 1400).unwrap(),
        ];
        assert_eq!(others.iter().collect::<HashSet<_>>().len(), 3);
        assert!(!others.contains(&first));
        assert_ne!(first.0, 0);

        table.set(first, MAC, HopState::Resolved);
        let hop = table.load(first);
        let wanted = Hop {
            interface: 3,
            mac: MAC,
            state: HopState::Resolved,
            addr: addr(1),
            mtu: 1500,
        };
        assert_eq!(hop, wanted);
        assert_eq!(table.load(others[0]).state, HopState::Unresolved);
        table.set(first, MAC, HopState::Failed);
        assert_eq!(table.load(first).state, HopState::Failed);
    }

    #[test]
    fn a_full_table_refuses_and_goes_on_after_a_turn() {
        let table = HopTable::new(8);
        let old: Vec<_> = (0..8)
            .map(|n| table.number_of(0, addr(n), 1500).unwrap())
            .collect();
        assert!(table.is_crowded());
        assert_eq!(table.number_of(0, addr(8), 1500), None);
        assert_eq!(
            table.number_of(0, addr(7), 1500),
            Some(old[7]),
            "the old ones are still found"
        );

        table.turn_over();
        let new = table.number_of(0, addr(8), 1500).unwrap();
        assert!(!old.contains(&new));
        assert_eq!(
            table.load(old[3]).addr,
            addr(3),
            "old numbers stay readable"
        );
        table.turn_over();
        assert!(table.is_empty());
        assert!(!table.contains(old[3]));
        assert!(table.contains(new));
    }

    #[test]
    fn a_hop_is_asked_for_once_until_allowed_again() {
        let table = HopTable::new(8);
        let number = table.number_of(0, addr(1), 1500).unwrap();
        assert_eq!(table.next_request(), Some(number), "creating asks");
        table.request(number);
        table.request(number);
        assert_eq!(table.next_request(), None);
        assert_eq!(
            table.number_of(0, addr(1), 1500),
            Some(number),
            "the mark is not in the key"
        );
        table.allow_request(number);
        table.request(number);
        table.request(number);
        assert_eq!(table.next_request(), Some(number));
        assert_eq!(table.next_request(), None);
    }

    #[test]
    fn a_request_dropped_by_a_full_queue_can_be_repeated() {
        let table = HopTable::new(REQUESTS_MAX as u32 + 1);
        for n in 0..REQUESTS_MAX as u32 {
            table.number_of(0, addr(n), 1500).unwrap();
        }
        let last = table.number_of(0, addr(REQUESTS_MAX as u32), 1500).unwrap();
        while table.next_request().is_some_and(|number| number != last) {}
        table.request(last);
        assert_eq!(table.next_request(), Some(last));
    }

    #[test]
    fn numbers_from_elsewhere_are_harmless() {
        let table = HopTable::new(8);
        for number in [0, 1, 17, 18, u32::MAX] {
            assert!(!table.contains(HopNumber(number)));
            assert_eq!(table.load(HopNumber(number)).state, HopState::Unresolved);
            table.set(HopNumber(number), MAC, HopState::Unresolved);
        }
    }

    #[test]
    fn threads_that_race_for_the_same_hops_agree() {
        const HOPS: u32 = 500;
        let table = HopTable::new(HOPS * 4);
        let start = std::sync::Barrier::new(4);
        let seen: Vec<HashMap<u32, HopNumber>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        (0..HOPS)
                            .map(|n| (n, table.number_of(1, addr(n), 1500).unwrap()))
                            .collect::<HashMap<_, _>>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .collect()
        });
        for worker in &seen {
            assert_eq!(worker, &seen[0]);
        }
        for (n, number) in &seen[0] {
            assert_eq!(table.load(*number).addr, addr(*n));
        }
    }

    #[test]
    fn a_reader_never_sees_a_mixed_mac() {
        let table = HopTable::new(8);
        let number = table.number_of(5, addr(1), 1500).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200_000_u32 {
                    table.set(number, [n as u8; 6], HopState::Resolved);
                }
                stop.store(true, Ordering::Relaxed);
            });
            while !stop.load(Ordering::Relaxed) {
                let hop = table.load(number);
                assert!(hop.mac.iter().all(|&byte| byte == hop.mac[0]), "{hop:?}");
                assert_eq!((hop.interface, hop.addr), (5, addr(1)));
            }
        });
    }
}
