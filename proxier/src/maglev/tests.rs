use std::collections::HashMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn endpoint(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0af4_0000 + number), 8080).into()
}

fn endpoints(count: u32) -> Vec<SocketAddr> {
    (1..=count).map(endpoint).collect()
}

/// The smallest and the largest number of slots that an endpoint has, over its even share.
fn balance(table: &MaglevTable) -> (f64, f64) {
    let mut counts: HashMap<SocketAddr, f64> = HashMap::new();
    table.iter().for_each(|endpoint| *counts.entry(endpoint).or_default() += 1.0);
    let even = table.slots.len() as f64 / table.endpoints.len() as f64;
    let shares = || counts.values().map(|count| count / even);
    assert_eq!(counts.len(), table.endpoints.len(), "an endpoint has no slot");
    (shares().fold(f64::MAX, f64::min), shares().fold(0.0, f64::max))
}

/// The slots of endpoints in both tables, and how many of them change hands.
fn moved(before: &MaglevTable, after: &MaglevTable) -> (usize, usize) {
    let stays = |endpoint: &SocketAddr| after.endpoints.contains(endpoint);
    let others = || before.iter().zip(after.iter()).filter(|(old, _)| stays(old));
    (others().count(), others().filter(|(old, new)| old != new).count())
}

fn share((all, moved): (usize, usize)) -> f64 {
    moved as f64 / all as f64
}

#[test]
fn hundred_endpoints_when_one_goes_move_at_most_two_percent_of_the_others() {
    let all = endpoints(100);
    let before = MaglevTable::of(all.iter().copied());
    let mut worst: f64 = 0.0;
    let mut sum = 0.0;
    for gone in (0..100).step_by(10) {
        let after = MaglevTable::of(all.iter().copied().filter(|endpoint| *endpoint != all[gone]));
        let moved = share(moved(&before, &after));
        worst = worst.max(moved);
        sum += moved;
    }
    println!(
        "one of 100 endpoints gone, {SLOTS} slots: {:.2} % of others moved, worst {:.2} %",
        sum * 10.0,
        worst * 100.0
    );
    assert!(worst <= 0.02, "{worst}");
}

/// The example of the paper's table 1: three endpoints, seven slots; then without the second endpoint.
#[test]
fn table_is_that_of_the_papers_example() {
    let permutations = [(3, 4), (0, 2), (3, 1)].map(|(next, skip)| move || Permutation { next, skip });
    let of = |which: &[usize]| fill(which.iter().map(|index| permutations[*index]()).collect(), 7);
    assert_eq!(of(&[0, 1, 2]), [1, 0, 1, 0, 2, 2, 0]);
    assert_eq!(of(&[0, 2]), [0, 0, 0, 0, 1, 1, 1]);
}

/// The setup of the paper (5.3): 1000 endpoints, with a table of 65537 slots and a larger one. With 100 slots or more for each
/// endpoint, shares differ by at most 1 %, and the larger table is the more resilient.
#[test]
fn larger_table_is_more_resilient_and_more_even_as_in_the_paper() {
    let all = endpoints(1000);
    let measure = |slots: u32| {
        let [before, after] = [0, 10].map(|gone| MaglevTable::with_slots(all[gone..].iter().copied(), slots));
        let (least, most) = balance(&before);
        let moved = share(moved(&before, &after));
        println!(
            "10 of 1000 endpoints gone, {slots} slots: {:.2} % of others moved, shares {least:.3} to {most:.3}",
            moved * 100.0
        );
        (moved, most - least)
    };
    let [(small, uneven), (large, even)] = [measure(65_537), measure(131_071)];
    assert!(large < small && small < 0.05, "{large} {small}");
    assert!(even <= 0.01 && even < uneven, "{even} {uneven}");
}

#[test]
fn endpoints_have_their_even_share_within_five_percent() {
    for count in [2, 3, 10, 100, 500, 800] {
        let (least, most) = balance(&MaglevTable::of(endpoints(count)));
        println!("{count} endpoints: {:.2} % to {:.2} % of the even share", least * 100.0, most * 100.0);
        assert!(least >= 0.95 && most <= 1.05, "{count} endpoints: {least} to {most}");
    }
}

#[test]
fn nodes_that_list_endpoints_differently_agree_on_100_000_clients() {
    let mut other = endpoints(37);
    other.reverse();
    other.push(other[5]);
    let [here, there] = [MaglevTable::of(endpoints(37)), MaglevTable::of(other)];
    for number in 0..100_000_u32 {
        let port = u16::try_from(1024 + number % 60_000).unwrap_or_default();
        let client = SocketAddr::from((Ipv4Addr::from_bits(0xc633_6400 + number / 7), port));
        for hash in [EndpointHash::Client, EndpointHash::Flow] {
            let chosen = here.endpoint_of(client, hash);
            assert!(chosen.is_some() && chosen == there.endpoint_of(client, hash), "{client} by {hash}");
        }
    }
}

#[test]
fn clients_of_consecutive_addresses_spread_evenly() {
    let table = MaglevTable::of(endpoints(10));
    let mut counts: HashMap<SocketAddr, u32> = HashMap::new();
    for number in 0..100_000 {
        let client = SocketAddr::from((Ipv4Addr::from_bits(0x0af4_0100 + number), 40_000));
        *counts.entry(table.endpoint_of(client, EndpointHash::Client).expect("an endpoint")).or_default() += 1;
    }
    assert!(counts.values().all(|count| (9_500..=10_500).contains(count)), "{counts:?}");
}

#[test]
fn table_without_endpoints_has_no_slot_and_one_endpoint_has_all() {
    assert_eq!(MaglevTable::of([]).iter().count(), 0);
    assert_eq!(MaglevTable::of([]).endpoint_of(endpoint(1), EndpointHash::Client), None);
    let one = MaglevTable::of([endpoint(1)]);
    assert_eq!(one.iter().filter(|of| *of == endpoint(1)).count(), SLOTS as usize);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn table_depends_on_the_set_of_endpoints_only(
        numbers in prop::collection::btree_set(0_u32..5000, 1..40),
        seed: prop::sample::Index,
    ) {
        let sorted: Vec<SocketAddr> = numbers.iter().map(|number| endpoint(*number)).collect();
        let mut turned = sorted.clone();
        turned.rotate_left(seed.index(sorted.len()));
        let table = MaglevTable::of(sorted.iter().copied());
        prop_assert_eq!(&table, &MaglevTable::of(turned));
        let counts = sorted.iter().map(|endpoint| table.iter().filter(|of| of == endpoint).count());
        let (least, most) = counts.fold((usize::MAX, 0), |(least, most), count| (least.min(count), most.max(count)));
        prop_assert!(most - least <= 1, "{} to {} slots", least, most);
    }

    #[test]
    fn endpoint_that_comes_moves_few_flows_of_the_others(count in 2_u32..60, new in 1000_u32..5000) {
        let before = MaglevTable::of(endpoints(count));
        let after = MaglevTable::of(endpoints(count).into_iter().chain([endpoint(new)]));
        let kept = before.iter().zip(after.iter()).filter(|(_, of)| *of != endpoint(new));
        let moved = kept.filter(|(old, of)| old != of).count();
        prop_assert!(moved * 100 <= before.slots.len() * 2, "{} of {} slots moved", moved, before.slots.len());
    }
}
