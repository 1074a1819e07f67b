//! A set of addresses, given as prefixes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Prefixes, overlapping or not. A look-up takes the logarithm of their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// First and last address of each range: sorted, apart from each other.
    ranges: Vec<(u32, u32)>,
}

impl Prefixes {
    /// Is the address in one of them?
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        let bits = addr.to_bits();
        let after = self.ranges.partition_point(|&(first, _)| first <= bits);
        after > 0 && bits <= self.ranges[after - 1].1
    }
}

impl FromIterator<Ipv4Net> for Prefixes {
    fn from_iter<T: IntoIterator<Item = Ipv4Net>>(prefixes: T) -> Prefixes {
        let prefixes: Vec<Ipv4Net> = prefixes.into_iter().collect();
        let apart = Ipv4Net::aggregate(&prefixes).into_iter();
        let mut ranges: Vec<(u32, u32)> = apart
            .map(|net| (net.network().to_bits(), net.broadcast().to_bits()))
            .collect();
        ranges.sort_unstable();
        Prefixes { ranges }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Prefixes {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn contains_what_one_of_them_contains() {
        let set = prefixes(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "9.9.9.9/32",
            "255.255.255.0/24",
        ]);
        for (addr, inside) in [
            ("0.0.0.0", false),
            ("9.9.9.8", false),
            ("9.9.9.9", true),
            ("9.9.9.10", false),
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.1.2.3", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("255.255.255.255", true),
        ] {
            assert_eq!(set.contains(addr.parse().unwrap()), inside, "{addr}");
        }
        assert!(!Prefixes::default().contains(Ipv4Addr::UNSPECIFIED));
        assert!(prefixes(&["0.0.0.0/0"]).contains(Ipv4Addr::BROADCAST));
    }
}
