//! Rules: which flows are translated how, or not at all. The first rule that fits a flow decides.
//!
//! Asked once a session, so a look-up must not grow with the number of rules. A rule is entered under
//! every pair of its source and destination prefixes; a flow asks only those pairs of prefix lengths
//! that its two addresses lie in (known from two sorted lists), and what a pair says by protocol and
//! destination port is laid out in advance: the first fitting rule of every stretch of ports.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::endpoint::{Endpoint, Protocol, Tuple};
use crate::hash::MixHasher;

/// Pairs of prefixes that rules may be entered under, all together.
pub const RULE_ENTRIES_MAX: usize = 1 << 18;

/// What is done with a flow from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is translated as the profile with this number says.
    Translate(u16),
    /// It is left to the kernel.
    Bypass,
    /// Its packets are dropped.
    Drop,
}

/// Which flows, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Prefixes of internal addresses; empty: all.
    pub sources: Vec<Ipv4Net>,
    /// Prefixes of remote addresses; empty: all.
    pub destinations: Vec<Ipv4Net>,
    /// Ranges of destination ports, first and last; empty: all. ICMP queries have none, so a rule
    /// with ports does not fit them.
    pub ports: Vec<(u16, u16)>,
    /// By [`Protocol::index`]: does it fit?
    pub protocols: [bool; 3],
    /// What is done.
    pub action: Action,
}

/// The flows of one protocol between two prefixes, to a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    protocol: Protocol,
    source: Ipv4Net,
    destination: Ipv4Net,
    ports: (u16, u16),
}

impl Piece {
    /// The flow with the lowest addresses and port.
    pub fn first(&self) -> Tuple {
        Tuple {
            protocol: self.protocol,
            source: Endpoint::new(self.source.network(), 0),
            destination: Endpoint::new(self.destination.network(), self.ports.0),
        }
    }
}

impl Rule {
    /// The pieces that the rule is made of: every flow that fits it is in one of them.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        let protocols = Protocol::ALL.into_iter();
        let protocols = protocols.filter(|protocol| self.protocols[protocol.index()]);
        protocols.flat_map(move |protocol| {
            let all = vec![(0, u16::MAX)];
            let ports = match (self.ports.is_empty(), protocol) {
                (true, _) => all,
                (false, Protocol::Icmp) => Vec::new(),
                (false, _) => self.ports.clone(),
            };
            let sources = or_any(&self.sources).into_iter();
            sources.flat_map(move |source| {
                let ports = ports.clone();
                let destinations = or_any(&self.destinations).into_iter();
                destinations.flat_map(move |destination| {
                    let piece = move |ports| Piece {
                        protocol,
                        source,
                        destination,
                        ports,
                    };
                    ports.clone().into_iter().map(piece)
                })
            })
        })
    }

    /// Do all flows of a piece fit, without help of a second prefix or range?
    pub fn takes(&self, piece: &Piece) -> bool {
        let within =
            |nets: &[Ipv4Net], net| nets.is_empty() || nets.iter().any(|n| n.contains(net));
        let (first, last) = piece.ports;
        self.protocols[piece.protocol.index()]
            && within(&self.sources, &piece.source)
            && within(&self.destinations, &piece.destination)
            && (self.ports.is_empty() || self.ports.iter().any(|p| p.0 <= first && last <= p.1))
    }
}

/// Prefixes without host bits; none stands for all addresses.
fn or_any(nets: &[Ipv4Net]) -> Vec<Ipv4Net> {
    match nets {
        [] => vec![Ipv4Net::default()],
        _ => nets.iter().map(Ipv4Net::trunc).collect(),
    }
}

/// The rules name more pairs of prefixes than [`RULE_ENTRIES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyEntries {
    /// The rule, from 0, with which there are too many.
    pub rule: usize,
}

/// Rules in their order. Cloning shares them.
#[derive(Clone, Default)]
pub struct Rules {
    list: Arc<[Rule]>,
    look_up: Arc<LookUp>,
}

impl Rules {
    /// Lays the rules out for look-ups.
    ///
    /// # Errors
    /// [`TooManyEntries`].
    pub fn new(list: Vec<Rule>) -> Result<Rules, TooManyEntries> {
        Ok(Rules {
            look_up: Arc::new(LookUp::new(&list)?),
            list: list.into(),
        })
    }

    /// Is there none?
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The rules, in their order.
    pub fn list(&self) -> &[Rule] {
        &self.list
    }

    /// The number of the first rule that fits a flow from inside, and what it says.
    pub fn find(&self, flow: &Tuple) -> Option<(usize, Action)> {
        if self.is_empty() {
            return None;
        }
        let number = self.look_up.find(flow)? as usize;
        Some((number, self.list.get(number)?.action))
    }

    /// Bytes of memory for look-ups.
    pub fn bytes(&self) -> usize {
        self.look_up.bytes()
    }
}

impl PartialEq for Rules {
    fn eq(&self, other: &Rules) -> bool {
        Arc::ptr_eq(&self.list, &other.list) || self.list == other.list
    }
}

impl Eq for Rules {}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.list.fmt(f)
    }
}

/// Lengths of IPv4 prefixes: 0 to 32.
const LENGTHS: usize = 33;

/// The two prefixes that a rule is entered under: addresses, and lengths (6 bits each).
type Pair = (u64, u16);

fn pair(source: Ipv4Net, destination: Ipv4Net) -> Pair {
    let addresses =
        u64::from(source.network().to_bits()) << 32 | u64::from(destination.network().to_bits());
    let lengths = u16::from(source.prefix_len()) << 6 | u16::from(destination.prefix_len());
    (addresses, lengths)
}

#[derive(Default)]
struct LookUp {
    sources: Lengths,
    destinations: Lengths,
    /// By lengths of source and destination: the first rule entered under such a pair.
    firsts: Vec<[u32; LENGTHS]>,
    /// By pair: for each protocol its stretches in `stretches`.
    pairs: HashMap<Pair, [Range<u32>; 3], BuildHasherDefault<MixHasher>>,
    stretches: Vec<Stretch>,
}

/// Ports from `first` to the next stretch's, and the first rule that fits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    first: u16,
    rule: u32,
}

/// No rule.
const NONE: u32 = u32::MAX;

impl LookUp {
    fn new(rules: &[Rule]) -> Result<LookUp, TooManyEntries> {
        let mut entered: HashMap<Pair, Vec<u32>> = HashMap::new();
        let mut firsts = vec![[NONE; LENGTHS]; LENGTHS];
        let (mut sources, mut destinations) = (Vec::new(), Vec::new());
        let mut count = 0;
        for (number, rule) in rules.iter().enumerate() {
            let (from, to) = (or_any(&rule.sources), or_any(&rule.destinations));
            count += from.len().saturating_mul(to.len());
            if count > RULE_ENTRIES_MAX {
                return Err(TooManyEntries { rule: number });
            }
            for &source in &from {
                for &destination in &to {
                    let lengths = (source.prefix_len(), destination.prefix_len());
                    let first = &mut firsts[usize::from(lengths.0)][usize::from(lengths.1)];
                    *first = (*first).min(number as u32);
                    let rules = entered.entry(pair(source, destination)).or_default();
                    if rules.last() != Some(&(number as u32)) {
                        rules.push(number as u32);
                    }
                }
            }
            sources.extend(from);
            destinations.extend(to);
        }
        let mut look_up = LookUp {
            sources: Lengths::new(sources),
            destinations: Lengths::new(destinations),
            firsts,
            pairs: HashMap::with_capacity_and_hasher(entered.len(), Default::default()),
            stretches: Vec::new(),
        };
        for (pair, numbers) in entered {
            let ranges = Protocol::ALL.map(|protocol| {
                let start = look_up.stretches.len() as u32;
                look_up
                    .stretches
                    .extend(stretches(rules, &numbers, protocol));
                start..look_up.stretches.len() as u32
            });
            look_up.pairs.insert(pair, ranges);
        }
        look_up.stretches.shrink_to_fit();
        Ok(look_up)
    }

    fn find(&self, flow: &Tuple) -> Option<u32> {
        let (source, destination) = (flow.source.addr, flow.destination.addr);
        let mut best = NONE;
        let to = self.destinations.of(destination);
        for from in bits(self.sources.of(source)) {
            for to in bits(to) {
                // What is entered here comes after what was found.
                if self.firsts[from][to] >= best {
                    continue;
                }
                let key = (
                    u64::from(masked(source, from)) << 32 | u64::from(masked(destination, to)),
                    (from << 6 | to) as u16,
                );
                if let Some(ranges) = self.pairs.get(&key) {
                    best = best.min(self.rule_of(&ranges[flow.protocol.index()], flow));
                }
            }
        }
        (best != NONE).then_some(best)
    }

    fn rule_of(&self, range: &Range<u32>, flow: &Tuple) -> u32 {
        let stretches = &self.stretches[range.start as usize..range.end as usize];
        // A query's identifier is no port: it has one stretch.
        let after = stretches.partition_point(|stretch| stretch.first <= flow.destination.port);
        after.checked_sub(1).map_or(NONE, |at| stretches[at].rule)
    }

    fn bytes(&self) -> usize {
        let entry = size_of::<(Pair, [Range<u32>; 3])>() + 1;
        self.pairs.capacity() * entry
            + self.stretches.capacity() * size_of::<Stretch>()
            + (self.sources.0.capacity() + self.destinations.0.capacity()) * size_of::<(u32, u64)>()
            + self.firsts.capacity() * size_of::<[u32; LENGTHS]>()
    }
}

fn masked(addr: Ipv4Addr, len: usize) -> u32 {
    (u64::from(addr.to_bits()) >> (32 - len) << (32 - len)) as u32
}

/// The numbers of the bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// Lays out which of some rules (ascending) is the first to fit each port of a protocol.
fn stretches(rules: &[Rule], numbers: &[u32], protocol: Protocol) -> Vec<Stretch> {
    let fits = |&&number: &&u32| {
        let rule = &rules[number as usize];
        rule.protocols[protocol.index()] && (rule.ports.is_empty() || protocol != Protocol::Icmp)
    };
    let spans = numbers.iter().filter(fits).flat_map(|&number| {
        let ports = match &rules[number as usize].ports[..] {
            [] => &[(0, u16::MAX)],
            ports => ports,
        };
        let span =
            move |&(first, last): &(u16, u16)| (u32::from(first)..u32::from(last) + 1, number);
        ports.iter().map(span)
    });
    let spans: Vec<(Range<u32>, u32)> = spans.collect();
    let mut borders: Vec<u32> = spans
        .iter()
        .flat_map(|(span, _)| [span.start, span.end])
        .filter(|&port| port <= u32::from(u16::MAX))
        .chain([0])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    // By stretch the rule that got it; the earlier ones take theirs first. `next` leads past those
    // that are taken.
    let mut taken = vec![NONE; borders.len()];
    let mut next: Vec<usize> = (0..=borders.len()).collect();
    for (span, number) in spans {
        let place = |port| borders.partition_point(|&border| border < port);
        let (mut at, end) = (free_from(&mut next, place(span.start)), place(span.end));
        while at < end {
            taken[at] = number;
            next[at] = at + 1;
            at = free_from(&mut next, at + 1);
        }
    }
    let mut laid: Vec<Stretch> = Vec::new();
    for (first, rule) in borders.into_iter().zip(taken) {
        let goes_on = laid.last().map_or(NONE, |last| last.rule) == rule;
        if !goes_on {
            let first = first as u16;
            laid.push(Stretch { first, rule });
        }
    }
    laid
}

/// The first place from `at` on that is not taken; paths are halved on the way.
fn free_from(next: &mut [usize], mut at: usize) -> usize {
    while next[at] != at {
        next[at] = next[next[at]];
        at = next[at];
    }
    at
}

/// For every address the lengths of the prefixes that it lies in, one bit a length: sorted, each
/// entry up to the next one.
#[derive(Default)]
struct Lengths(Vec<(u32, u64)>);

impl Lengths {
    fn new(mut prefixes: Vec<Ipv4Net>) -> Lengths {
        prefixes.sort_unstable_by_key(|prefix| (prefix.network(), prefix.prefix_len()));
        prefixes.dedup();
        let mut entries: Vec<(u32, u64)> = vec![(0, 0)];
        // Prefixes nest: those around the present address, the widest first.
        let mut around: Vec<Ipv4Net> = Vec::new();
        let mask = |around: &[Ipv4Net]| around.iter().map(|net| 1 << net.prefix_len()).sum();
        let mut enter = |first: u32, mask: u64| match entries.last_mut() {
            Some(last) if last.0 == first => last.1 = mask,
            _ => entries.push((first, mask)),
        };
        let all = prefixes.into_iter().map(Some).chain([None]);
        for prefix in all {
            let left = |net: &Ipv4Net| prefix.is_none_or(|prefix| !net.contains(&prefix.network()));
            while let Some(net) = around.pop_if(|net| left(net)) {
                if let Some(after) = net.broadcast().to_bits().checked_add(1) {
                    enter(after, mask(&around));
                }
            }
            if let Some(prefix) = prefix {
                around.push(prefix);
                enter(prefix.network().to_bits(), mask(&around));
            }
        }
        entries.shrink_to_fit();
        Lengths(entries)
    }

    fn of(&self, addr: Ipv4Addr) -> u64 {
        let bits = addr.to_bits();
        let after = self.0.partition_point(|&(first, _)| first <= bits);
        after.checked_sub(1).map_or(0, |at| self.0[at].1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
