//! Finds Service ports whose endpoints do not share connections evenly.
//!
//! With an even choice among `m` endpoints, the number of an endpoint's connections out of `n` is binomial with probability
//! `1/m`. By Chernoff's bound a share as far from `1/m` as `k/n` comes with a probability of at most `exp(-n * D(k/n, 1/m))`,
//! where `D` is the relative entropy, whatever `n` is: so a handful of connections never is far enough.

use std::net::SocketAddr;

use super::rates::{EndpointRow, Row};

/// The probability that a table with even balance everywhere has a mark.
const FALSE_MARK: f64 = 0.001;
/// The least deviation from an even share that matters, as a factor: many connections make the smallest one certain.
const MATTERS: f64 = 1.25;

/// The endpoint whose share is hardest to explain by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uneven {
    /// The endpoint.
    pub address: SocketAddr,
    /// How many times an even share it gets.
    pub factor: f64,
}

/// Judges the rows of a table together: the more endpoints there are, the more extreme shares come by chance.
#[derive(Clone, Copy, Debug)]
pub struct Balance {
    /// The negative logarithm of the probability below which a share is marked.
    threshold: f64,
}

impl Balance {
    /// A judge of these rows.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // a number of endpoints
    pub fn of(rows: &[Row]) -> Self {
        let shares: usize = rows.iter().flat_map(groups).map(|group| group.len()).sum();
        // Each share can be too large or too small.
        Self { threshold: (2.0 * shares.max(1) as f64 / FALSE_MARK).ln() }
    }

    /// The endpoint of a row that shows an uneven balance, if one does.
    #[must_use]
    pub fn uneven(self, row: &Row) -> Option<Uneven> {
        let shares = groups(row).flat_map(|group| shares(&group));
        let marked = shares.filter(|(uneven, exponent)| {
            (uneven.factor >= MATTERS || uneven.factor <= 1.0 / MATTERS) && *exponent > self.threshold
        });
        marked.max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(uneven, _)| uneven)
    }
}

/// The endpoints of each family of a row, if they can be compared: clients choose the family, kube-proxy the endpoint.
fn groups(row: &Row) -> impl Iterator<Item = Vec<EndpointRow>> {
    let of = |is_ipv4: bool| -> Vec<EndpointRow> {
        let of_family = |endpoint: &&EndpointRow| endpoint.address.is_ipv4() == is_ipv4 && !endpoint.is_draining;
        row.endpoints.iter().filter(of_family).copied().collect()
    };
    let groups = if row.is_comparable { vec![of(true), of(false)] } else { Vec::new() };
    groups.into_iter().filter(|group| group.len() > 1)
}

/// The share of each endpoint, and the negative logarithm of the bound of its probability.
#[allow(clippy::cast_precision_loss)] // connections of an interval, far below 2^52
fn shares(group: &[EndpointRow]) -> Vec<(Uneven, f64)> {
    let (sum, even) = (group.iter().map(|endpoint| endpoint.new).sum::<u64>() as f64, 1.0 / group.len() as f64);
    if sum == 0.0 {
        return Vec::new();
    }
    let share = |endpoint: &EndpointRow| {
        let share = endpoint.new as f64 / sum;
        (Uneven { address: endpoint.address, factor: share / even }, sum * relative_entropy(share, even))
    };
    let mut shares: Vec<(Uneven, f64)> = group.iter().map(share).collect();
    if group.len() == 2 {
        // One of two deviates exactly as far as the other: the one that gets more is named.
        shares.retain(|(uneven, _)| uneven.factor >= 1.0);
    }
    shares
}

/// The relative entropy (Kullback-Leibler divergence) of two yes-or-no choices, in nats.
fn relative_entropy(share: f64, even: f64) -> f64 {
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    term(share, even) + term(1.0 - share, 1.0 - even)
}

#[cfg(test)]
mod tests {
    use proxier::model::{Protocol, ServicePortName};

    use super::*;

    fn row(counts: &[u64]) -> Row {
        let endpoint = |(number, new): (u8, &u64)| EndpointRow {
            address: ([10, 0, 0, number], 80).into(),
            new: *new,
            total: *new,
            is_draining: false,
        };
        Row {
            port: ServicePortName::parse("a/web", Protocol::Tcp).expect("a name"),
            new: counts.iter().sum(),
            total: counts.iter().sum(),
            endpoints: (1..).zip(counts).map(endpoint).collect(),
            is_comparable: true,
        }
    }

    /// The count of the endpoint that is marked, alone in a table.
    fn marked(row: &Row) -> Option<u64> {
        let uneven = Balance::of(std::slice::from_ref(row)).uneven(row)?;
        row.endpoints.iter().find(|endpoint| endpoint.address == uneven.address).map(|endpoint| endpoint.new)
    }

    #[test]
    fn a_share_is_marked_only_if_chance_does_not_explain_it() {
        for (counts, expected) in [
            (&[300, 10, 20][..], Some(300)),
            (&[100, 110, 95], None),
            (&[5, 0], None),
            (&[6, 0, 0], None),
            (&[20, 0], Some(20)),
            (&[100, 100, 100, 100, 0], Some(0)),
            (&[1_000_000, 1_010_000], None),
            (&[1000], None),
            (&[0, 0], None),
        ] {
            assert_eq!(marked(&row(counts)), expected, "{counts:?}");
        }
    }

    #[test]
    fn the_same_share_needs_more_evidence_in_a_larger_table() {
        let suspect = row(&[14, 0]);
        assert!(Balance::of(std::slice::from_ref(&suspect)).uneven(&suspect).is_some());
        let table = vec![suspect.clone(); 1000];
        assert_eq!(Balance::of(&table).uneven(&suspect), None);
    }

    #[test]
    fn new_and_draining_endpoints_and_the_other_family_are_not_compared() {
        let mut changed = row(&[300, 10]);
        changed.is_comparable = false;
        assert_eq!(marked(&changed), None);
        let mut draining = row(&[150, 150, 0]);
        assert_eq!(marked(&draining), Some(0));
        draining.endpoints[2].is_draining = true;
        assert_eq!(marked(&draining), None);
        let mut families = row(&[150, 150, 0, 0]);
        families.endpoints[2].address = "[fd00::1]:80".parse().expect("an address");
        families.endpoints[3].address = "[fd00::2]:80".parse().expect("an address");
        assert_eq!(marked(&families), None);
    }

    /// An even choice by a generator of random numbers, in many tables.
    #[test]
    fn even_choices_are_practically_never_marked() {
        let mut state: u64 = 1;
        let mut random = || {
            // Knuth's constants; the high bits are good.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 40).expect("24 bits")
        };
        let mut marks = 0;
        for table in 0..2000 {
            let mut counts = vec![0; 2 + table % 9];
            let endpoints = counts.len();
            (0..table % 301).for_each(|_| counts[random() % endpoints] += 1);
            marks += usize::from(marked(&row(&counts)).is_some());
        }
        assert!(marks <= 2, "{marks} of 2000 tables");
    }
}
