//! Addresses of real devices, and the error without dummy devices. Needs root.

use std::process::Command;

use netfilter::IpFamily;
use netfilter::kernel::{AddressOperation, DeviceName, LinkError, Links, SystemLinks};

use crate::common::namespace::{in_namespace, run};

const DEVICE: DeviceName = DeviceName::new("kube-ipvs0");

#[test]
fn a_kernel_without_dummy_devices_is_reported() {
    in_namespace(|| {
        let other = Command::new("ip").args(["link", "add", "other", "type", "dummy"]).output().expect("ip runs");
        match SystemLinks::open().expect("rtnetlink").create_dummy(DEVICE) {
            Ok(()) => assert!(other.status.success()),
            Err(error) => {
                assert!(!other.status.success() && matches!(error, LinkError::NoDummy), "{error}");
                assert!(error.to_string().contains("load module dummy (modprobe dummy)"), "{error}");
            }
        }
    });
}

#[test]
fn addresses_of_one_device_are_given_and_taken() {
    in_namespace(|| {
        run("ip link add kube-ipvs0 type veth peer name other");
        run("ip address add 10.0.0.9/32 dev other");
        let mut links = SystemLinks::open().expect("rtnetlink");
        for (family, texts) in
            [(IpFamily::V4, ["10.0.0.1/32", "10.0.0.2/24"]), (IpFamily::V6, ["fd00::1/128", "fd00::2/64"])]
        {
            let nets = texts.map(|text| text.parse().expect("an address"));
            let mut all = |operations: &[AddressOperation]| {
                links.apply(DEVICE, operations, &mut |_, error| panic!("{error}")).expect("applied");
                let mut found = Vec::new();
                links.addresses(DEVICE, family, &mut |net| found.push(net)).expect("addresses");
                found.sort_unstable();
                found
            };
            assert_eq!(all(&nets.map(AddressOperation::Add)), nets);
            let shown = run("ip -oneline address show dev kube-ipvs0");
            assert!(texts.iter().all(|text| shown.contains(&format!(" {text} "))), "{shown}");
            assert_eq!(all(&[AddressOperation::Delete(nets[0])]), [nets[1]]);
        }
        let error = links.create_dummy(DEVICE).expect_err("it is in the way");
        assert!(matches!(&error, LinkError::Clash { found, .. } if found == "veth"), "{error}");
    });
}
