//! The contract of network devices, for the kernel and the fake.

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::kernel::{AddressOperation, DeviceName, Links};

use AddressOperation::{Add, Delete};

pub const DEVICE: DeviceName = DeviceName::new("kube-ipvs0");
const GONE: DeviceName = DeviceName::new("gone0");

pub fn net(text: &str) -> IpNet {
    text.parse().expect("an address")
}

/// What is refused, in words, by index.
pub fn apply(links: &mut dyn Links, operations: &[AddressOperation]) -> Vec<(usize, String)> {
    let mut refused = Vec::new();
    let failed = &mut |index, error: netfilter::kernel::LinkError| refused.push((index, error.to_string()));
    links.apply(DEVICE, operations, failed).expect("applied");
    refused
}

/// The addresses of both families, in order.
pub fn addresses(links: &mut dyn Links) -> Vec<IpNet> {
    let mut found = Vec::new();
    for family in IpFamily::ALL {
        links.addresses(DEVICE, family, &mut |address| found.push(address)).expect("addresses");
    }
    found.sort_unstable();
    found
}

/// A dummy device is made once, goes up and down, and goes once.
pub fn devices_come_and_go(links: &mut dyn Links) {
    assert_eq!(links.device(DEVICE).expect("an answer"), None);
    links.delete_dummy(DEVICE).expect("nothing to delete");
    for _ in 0..2 {
        links.create_dummy(DEVICE).expect("made");
    }
    let device = links.device(DEVICE).expect("an answer").expect("it is there");
    assert_eq!((device.kind.as_deref(), device.up), (Some("dummy"), false));
    for up in [true, true, false] {
        links.set_up(DEVICE, up).expect("done");
        let now = links.device(DEVICE).expect("an answer").expect("it is there");
        assert_eq!((now.index, now.up), (device.index, up));
    }
    links.delete_dummy(DEVICE).expect("deleted");
    assert_eq!(links.device(DEVICE).expect("an answer"), None);
    assert_eq!(links.set_up(GONE, true).expect_err("no such device").to_string(), "device gone0 does not exist");
    let error = links.addresses(GONE, IpFamily::V4, &mut |_| ()).expect_err("no such device");
    assert_eq!(error.to_string(), "device gone0 does not exist");
    let error = links.apply(GONE, &[Add(net("10.0.0.1/32"))], &mut |_, _| ()).expect_err("no such device");
    assert_eq!(error.to_string(), "device gone0 does not exist");
}

/// Addresses come and go; what cannot be done is refused by name, and does not keep the rest from being done.
pub fn addresses_come_and_go(links: &mut dyn Links) {
    links.create_dummy(DEVICE).expect("made");
    let operations = [
        Add(net("10.96.0.1/32")),
        Add(net("10.96.0.1/32")),
        Add(net("10.96.0.2/24")),
        Add(net("fd00::1/128")),
        Add(net("fd00::1/128")),
        Add(net("fd00::2/64")),
        Delete(net("10.96.0.9/32")),
        Delete(net("10.96.0.2/32")),
        Delete(net("fd00::9/128")),
        Delete(net("fd00::1/128")),
        Add(net("10.96.0.3/32")),
    ];
    let exists = |address: &str| format!("address {address} of device kube-ipvs0: exists already");
    let missing = |address: &str| format!("address {address} of device kube-ipvs0: does not exist");
    let expected = [
        (1, exists("10.96.0.1/32")),
        (4, exists("fd00::1/128")),
        (6, missing("10.96.0.9/32")),
        (7, missing("10.96.0.2/32")),
        (8, missing("fd00::9/128")),
    ];
    assert_eq!(apply(links, &operations), expected);
    let wanted = ["10.96.0.1/32", "10.96.0.2/24", "10.96.0.3/32", "fd00::2/64"].map(net);
    assert_eq!(addresses(links), wanted);
    assert_eq!(apply(links, &[Delete(wanted[1]), Delete(wanted[3])]), []);
    assert_eq!(addresses(links), [wanted[0], wanted[2]]);
}

/// More operations than go into one message.
pub fn many_addresses_at_once(links: &mut dyn Links) {
    links.create_dummy(DEVICE).expect("made");
    let wanted: Vec<IpNet> = (1..=200).map(|last| net(&format!("10.96.0.{last}/32"))).collect();
    let six: Vec<IpNet> = (100..=300).map(|last| net(&format!("fd00::{last}/128"))).collect();
    let all: Vec<IpNet> = wanted.into_iter().chain(six).collect();
    assert_eq!(apply(links, &all.iter().copied().map(Add).collect::<Vec<_>>()), []);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert_eq!(addresses(links), sorted);
    assert_eq!(apply(links, &all.iter().copied().map(Delete).collect::<Vec<_>>()), []);
    assert_eq!(addresses(links), []);
}

/// A device of another kind is left alone.
pub fn others_devices_are_left_alone(links: &mut dyn Links) {
    for outcome in [links.create_dummy(DEVICE), links.delete_dummy(DEVICE)] {
        assert_eq!(
            outcome.expect_err("it is in the way").to_string(),
            "device kube-ipvs0 is veth and not a dummy device: rename or delete it"
        );
    }
    let device = links.device(DEVICE).expect("an answer").expect("it is still there");
    assert_eq!(device.kind.as_deref(), Some("veth"));
}
