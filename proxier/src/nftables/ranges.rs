//! Merges networks into disjoint address ranges: a set with intervals accepts no overlaps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The addresses of all networks, as sorted disjoint ranges.
#[must_use]
pub fn merged(nets: &[IpNet]) -> Vec<(IpAddr, IpAddr)> {
    let mut ranges: Vec<(u128, u128)> = nets.iter().map(|net| (bits(net.network()), bits(net.broadcast()))).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let v4 = nets.first().is_some_and(|net| net.addr().is_ipv4());
    let address = |bits: u128| match u32::try_from(bits) {
        Ok(bits) if v4 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    };
    merged.into_iter().map(|(first, last)| (address(first), address(last))).collect()
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn shown(texts: &[&str]) -> String {
        merged(&nets(texts)).iter().map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn adjacent_networks_become_one_range() {
        assert_eq!(shown(&["198.51.100.128/26", "198.51.100.0/25"]), "198.51.100.0-198.51.100.191");
        assert_eq!(shown(&["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/32"]), "10.0.0.0-11.0.0.0");
        assert_eq!(shown(&["10.0.0.0/32", "10.0.0.2/32"]), "10.0.0.0-10.0.0.0 10.0.0.2-10.0.0.2");
        assert_eq!(shown(&["::/128", "ffff::/16"]), "::-:: ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(shown(&["0.0.0.0/1", "128.0.0.0/1"]), "0.0.0.0-255.255.255.255");
        assert_eq!(shown(&[]), "");
    }

    proptest! {
        #[test]
        fn merged_ranges_contain_the_same_addresses(
            nets in prop::collection::vec((any::<u16>(), 16_u8..=32), 1..8),
            address: u16,
        ) {
            let at = |low: u16| Ipv4Addr::from_bits(0x0a00_0000 | u32::from(low));
            let nets: Vec<IpNet> = nets.into_iter().map(|(low, length)| {
                IpNet::new(IpAddr::V4(at(low)), length).expect("a network").trunc()
            }).collect();
            let (ranges, address) = (merged(&nets), IpAddr::V4(at(address)));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
            let inside = ranges.iter().any(|(first, last)| (first..=last).contains(&&address));
            prop_assert_eq!(inside, nets.iter().any(|net| net.contains(&address)));
        }
    }
}
