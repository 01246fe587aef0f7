//! IPVS messages round-trip with unknown attributes, and damaged ones never panic.

use proptest::prelude::*;

use super::super::super::netlink::fuzz::{damaged, flaws, put_unknown, unknown};
use super::fuzzing::dumped;
use super::*;

fn any_address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn any_key() -> impl Strategy<Value = ServerKey> {
    (any_address(), any::<u8>()).prop_map(|(address, protocol)| ServerKey { address, protocol })
}

fn any_virtual() -> impl Strategy<Value = VirtualServer> {
    (any_key(), "[a-z]{1,15}", any::<u32>(), proptest::option::of(any::<(u32, u8)>())).prop_map(
        |(key, scheduler, flags, persistence)| {
            let most = if key.address.is_ipv4() { 32 } else { 128 };
            let persistence = persistence.map(|(seconds, prefix)| Persistence { seconds, prefix: prefix.min(most) });
            let scheduler = Scheduler::parse(&scheduler).expect("a name");
            VirtualServer { key, scheduler, flags: Flags::of_bits(flags), persistence }
        },
    )
}

fn any_real() -> impl Strategy<Value = (RealServer, Connections)> {
    (any_address(), 0..5_u32, any::<(u32, u32, u32, u32)>()).prop_map(
        |(address, number, (weight, active, inactive, persistent))| {
            let forward = forward(number).expect("one of five");
            (RealServer { address, forward, weight }, Connections { active, inactive, persistent })
        },
    )
}

fn after_header(bytes: &[u8]) -> Attributes<'_> {
    Attributes::new(bytes.get(HEADER..).unwrap_or_default())
}

proptest! {
    #[test]
    fn virtual_servers_round_trip(server in any_virtual(), more in unknown(), flaws in flaws()) {
        for operation in [Operation::AddVirtual(server), Operation::UpdateVirtual(server)] {
            let mut written = request(20, &operation);
            put_unknown(&mut written, &more);
            let bytes = written.into_attributes();
            prop_assert_eq!(virtual_server(after_header(&bytes)), Some(server));
            let _ = virtual_server(after_header(&damaged(bytes, &flaws)));
        }
    }

    #[test]
    fn real_servers_round_trip((real, connections) in any_real(), more in unknown(), flaws in flaws()) {
        let family = IpFamily::of(&real.address.ip());
        let bytes = dumped(&real, &connections, &mut |nest| put_unknown(nest, &more));
        // The family in the message takes precedence over the expected one.
        for expected in IpFamily::ALL {
            prop_assert_eq!(real_server(after_header(&bytes), expected), Some((real, connections)));
        }
        let _ = real_server(after_header(&damaged(bytes, &flaws)), family);
    }

    #[test]
    fn statistics_round_trip(numbers in any::<[u64; 5]>(), more in unknown(), flaws in flaws()) {
        let short = numbers.map(|number| number & u64::from(u32::MAX));
        let attributes = |long: bool| {
            let mut request = Request::new(0, 0, &genlmsghdr(0));
            request.nested(IPVS_CMD_ATTR_DEST, |dest| {
                put_unknown(dest, &more);
                let kind = if long { IPVS_DEST_ATTR_STATS64 } else { IPVS_DEST_ATTR_STATS };
                dest.nested(kind, |counted| for (kind, number) in (IPVS_STATS_ATTR_CONNS..).zip(numbers) {
                    // Byte counters always have 64 bits.
                    let bytes = number.to_ne_bytes();
                    let low = if cfg!(target_endian = "little") { &bytes[..4] } else { &bytes[4..] };
                    counted.attribute(kind, if long || kind >= IPVS_STATS_ATTR_INBYTES { &bytes } else { low });
                });
            });
            request.into_attributes()
        };
        for (long, conns, packets, back) in [(true, numbers[0], numbers[1], numbers[2]), (false, short[0], short[1], short[2])] {
            let bytes = attributes(long);
            let expected = Statistics {
                connections: conns, packets, packets_back: back, bytes: numbers[3], bytes_back: numbers[4],
            };
            prop_assert_eq!(real_statistics(after_header(&bytes)), expected);
            let _ = real_statistics(after_header(&damaged(bytes, &flaws)));
        }
    }

    #[test]
    fn virtual_servers_are_listed_by_family(server in any_virtual()) {
        let bytes = request(20, &Operation::AddVirtual(server)).into_attributes();
        for family in IpFamily::ALL {
            let is = IpFamily::of(&server.key.address.ip()) == family;
            let expected = is.then_some(ListedServer::Server(server, Statistics::default()));
            prop_assert_eq!(listed(after_header(&bytes), family), expected);
        }
    }

    #[test]
    fn server_key_of_a_request_round_trips(key in any_key(), (real, _) in any_real()) {
        for operation in [
            Operation::DeleteVirtual(key),
            Operation::AddReal(key, real),
            Operation::UpdateReal(key, real),
            Operation::DeleteReal(key, real.address),
        ] {
            let bytes = request(20, &operation).into_attributes();
            let service = after_header(&bytes).nest(IPVS_CMD_ATTR_SERVICE).expect("whom it is about");
            let family = short(service, IPVS_SVC_ATTR_AF).expect("a family");
            let at = |attributes: Attributes<'_>, ip, port| {
                address(family, attributes.find_array(ip)?, attributes.find_array(port)?)
            };
            prop_assert_eq!(at(service, IPVS_SVC_ATTR_ADDR, IPVS_SVC_ATTR_PORT), Some(key.address));
            prop_assert_eq!(short(service, IPVS_SVC_ATTR_PROTOCOL), Some(u16::from(key.protocol)));
            if !matches!(operation, Operation::DeleteVirtual(_)) {
                let dest = after_header(&bytes).nest(IPVS_CMD_ATTR_DEST).expect("the real server");
                let family = short(dest, IPVS_DEST_ATTR_ADDR_FAMILY).expect("a family");
                let bytes = dest.find_array(IPVS_DEST_ATTR_ADDR).expect("an address");
                let port = dest.find_array(IPVS_DEST_ATTR_PORT).expect("a port");
                prop_assert_eq!(address(family, bytes, port), Some(real.address));
            }
        }
    }

    #[test]
    fn timeouts_round_trip(tcp in 1_u32.., tcp_fin in 1_u32.., udp in 1_u32.., flaws in flaws()) {
        let timeouts = Timeouts { tcp, tcp_fin, udp };
        let bytes = set_timeouts(20, timeouts).into_attributes();
        prop_assert_eq!(read_timeouts(after_header(&bytes)), Some(timeouts));
        let _ = read_timeouts(after_header(&damaged(bytes, &flaws)));
    }

    #[test]
    fn malformed_input_is_not_a_server(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let attributes = Attributes::new(&bytes);
        let _ = (virtual_server(attributes), real_server(attributes, IpFamily::V4), read_timeouts(attributes));
    }
}

#[test]
fn number_of_the_wrong_size_is_none() {
    let real =
        RealServer { address: "10.0.0.1:80".parse().expect("an address"), forward: Forward::Masquerade, weight: 1 };
    for size in [0, 1, 2, 3, 5, 8] {
        let mut request = Request::new(0, 0, &genlmsghdr(0));
        request.nested(IPVS_CMD_ATTR_DEST, |dest| {
            destination(dest, real.address);
            dest.attribute(IPVS_DEST_ATTR_WEIGHT, &vec![0; size]);
        });
        let bytes = request.into_attributes();
        let dest = after_header(&bytes).nest(IPVS_CMD_ATTR_DEST).expect("a nest");
        assert_eq!(dest.ne32(IPVS_DEST_ATTR_WEIGHT), None, "{size} bytes");
    }
}

#[test]
fn netmask_is_an_address_in_v4_and_a_prefix_length_in_v6() {
    for (address, prefix, expected) in
        [("10.0.0.1:80", 24, [255, 255, 255, 0]), ("[fd00::1]:80", 64, 64_u32.to_ne_bytes())]
    {
        let key = ServerKey { address: address.parse().expect("an address"), protocol: 6 };
        let persistence = Some(Persistence { seconds: 1, prefix });
        let server = VirtualServer { key, scheduler: Scheduler::new("rr"), flags: Flags::default(), persistence };
        let bytes = request(20, &Operation::AddVirtual(server)).into_attributes();
        let service = after_header(&bytes).nest(IPVS_CMD_ATTR_SERVICE).expect("a nest");
        assert_eq!(service.find_array(IPVS_SVC_ATTR_NETMASK), Some(expected));
        assert_eq!(service.find(IPVS_SVC_ATTR_SCHED_NAME), Some(&b"rr\0"[..]));
    }
}
