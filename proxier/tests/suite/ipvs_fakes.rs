//! The fakes of IPVS, ipset and devices fulfil the contract that `ipvs_kernel` checks on the kernel.

use netfilter::testing::{FakeIpSets, FakeIpvs, FakeLinks};

use crate::contract::{ipset, ipvs, link};

#[test]
fn ipvs_servers_read_back() {
    ipvs::servers_read_back(&mut FakeIpvs::default());
}

#[test]
fn ipvs_real_servers_read_back() {
    ipvs::real_servers_read_back(&mut FakeIpvs::default());
}

#[test]
fn ipvs_refusals_name_the_object() {
    ipvs::refusals_name_the_object(&mut FakeIpvs::default());
}

#[test]
fn ipvs_many_operations_at_once() {
    ipvs::many_operations_at_once(&mut FakeIpvs::default());
}

#[test]
fn ipvs_timeouts() {
    ipvs::timeouts(&mut FakeIpvs::default());
}

#[test]
fn ipvs_schedulers_are_checked() {
    ipvs::schedulers_are_checked(&mut FakeIpvs::default());
}

#[test]
fn ipset_sets_and_entries_read_back() {
    ipset::sets_and_entries_read_back(&mut FakeIpSets::default());
}

#[test]
fn ipset_refusals_name_the_object() {
    ipset::refusals_name_the_object(&mut FakeIpSets::default());
}

#[test]
fn ipset_sets_are_swapped() {
    ipset::sets_are_swapped(&mut FakeIpSets::default());
}

#[test]
fn ipset_many_entries_at_once() {
    ipset::many_entries_at_once(&mut FakeIpSets::default());
}

#[test]
fn link_devices_come_and_go() {
    link::devices_come_and_go(&mut FakeLinks::default());
}

#[test]
fn link_addresses_come_and_go() {
    link::addresses_come_and_go(&mut FakeLinks::default());
}

#[test]
fn link_many_addresses_at_once() {
    link::many_addresses_at_once(&mut FakeLinks::default());
}

#[test]
fn link_others_devices_are_left_alone() {
    let mut links = FakeLinks::default();
    links.add_device(link::DEVICE, Some("veth"));
    link::others_devices_are_left_alone(&mut links);
}
