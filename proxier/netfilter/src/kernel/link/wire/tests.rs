//! rtnetlink messages round-trip with unknown attributes, and damaged ones never panic.

use proptest::prelude::*;

use super::super::super::netlink::fuzz::{damaged, flaws, put_unknown, unknown};
use super::*;

fn any_net() -> impl Strategy<Value = IpNet> {
    any::<(IpAddr, u8)>()
        .prop_map(|(ip, prefix)| IpNet::new(ip, prefix % if ip.is_ipv4() { 33 } else { 129 }).expect("a prefix"))
}

proptest! {
    #[test]
    fn addresses_round_trip(net in any_net(), index: u32, more in unknown(), flaws in flaws()) {
        let family = IpFamily::of_net(&net);
        for operation in [AddressOperation::Add(net), AddressOperation::Delete(net)] {
            let mut request = change(index, &operation);
            put_unknown(&mut request, &more);
            let bytes = request.into_attributes();
            prop_assert_eq!(address(&bytes, index, family), Some(net));
            prop_assert_eq!(address(&bytes, index.wrapping_add(1), family), None, "another device's");
            let bytes = damaged(bytes, &flaws);
            for family in IpFamily::ALL {
                let _ = address(&bytes, index, family);
            }
        }
    }

    #[test]
    fn devices_round_trip(index: u32, up: bool, kind in proptest::option::of("[a-z]{1,15}"), more in unknown(), flaws in flaws()) {
        let mut request = Request::new(RTM_NEWLINK, 0, &ifinfomsg(index, u32::from(up) * IFF_UP, 0));
        put_unknown(&mut request, &more);
        if let Some(kind) = &kind {
            request.nested(IFLA_LINKINFO, |info| {
                put_unknown(info, &more);
                info.text(IFLA_INFO_KIND, kind);
            });
        }
        let bytes = request.into_attributes();
        prop_assert_eq!(device(&bytes), Some(Device { index, kind, up }));
        let _ = device(&damaged(bytes, &flaws));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (device(&bytes), address(&bytes, 0, IpFamily::V4), address(&bytes, 0, IpFamily::V6));
    }
}

#[test]
fn point_to_point_address_is_the_local_one() {
    let mut request = Request::new(RTM_NEWADDR, 0, &ifaddrmsg(IpFamily::V4, 32, 3));
    request.attribute(IFA_ADDRESS, &[10, 0, 0, 2]).attribute(IFA_LOCAL, &[10, 0, 0, 1]);
    let expected = "10.0.0.1/32".parse().expect("an address");
    assert_eq!(address(&request.into_attributes(), 3, IpFamily::V4), Some(expected));
}
