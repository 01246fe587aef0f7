//! The kernel's IPVS, ipset and devices: the contract that the fakes also fulfil, and kernel-only behaviour.
//!
//! Needs root, a kernel with IPVS and the dummy device (`make test-ipvs`), and ipvsadm, ipset and ip to read back.

mod alike;
mod tools;
mod traffic;

use netfilter::kernel::{SystemIpSets, SystemIpvs, SystemLinks};

use crate::common::namespace::{in_namespace, run};
use crate::contract::{ipset, ipvs, link};

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvs_servers_read_back() {
    in_namespace(|| ipvs::servers_read_back(&mut SystemIpvs::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvs_real_servers_read_back() {
    in_namespace(|| ipvs::real_servers_read_back(&mut SystemIpvs::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvs_refusals_name_the_object() {
    in_namespace(|| ipvs::refusals_name_the_object(&mut SystemIpvs::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvs_many_operations_at_once() {
    in_namespace(|| ipvs::many_operations_at_once(&mut SystemIpvs::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvs_timeouts() {
    in_namespace(|| ipvs::timeouts(&mut SystemIpvs::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvs_schedulers_are_checked() {
    in_namespace(|| ipvs::schedulers_are_checked(&mut SystemIpvs::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipset_sets_and_entries_read_back() {
    in_namespace(|| ipset::sets_and_entries_read_back(&mut SystemIpSets::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipset_refusals_name_the_object() {
    in_namespace(|| ipset::refusals_name_the_object(&mut SystemIpSets::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipset_sets_are_swapped() {
    in_namespace(|| ipset::sets_are_swapped(&mut SystemIpSets::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipset_many_entries_at_once() {
    in_namespace(|| ipset::many_entries_at_once(&mut SystemIpSets::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn link_devices_come_and_go() {
    in_namespace(|| link::devices_come_and_go(&mut SystemLinks::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn link_addresses_come_and_go() {
    in_namespace(|| link::addresses_come_and_go(&mut SystemLinks::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn link_many_addresses_at_once() {
    in_namespace(|| link::many_addresses_at_once(&mut SystemLinks::open().expect("the kernel has it")));
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn link_others_devices_are_left_alone() {
    in_namespace(|| {
        run("ip link add kube-ipvs0 type veth peer name other");
        link::others_devices_are_left_alone(&mut SystemLinks::open().expect("rtnetlink"));
    });
}
