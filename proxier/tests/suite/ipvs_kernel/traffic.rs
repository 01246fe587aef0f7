//! Connections of real sockets through virtual servers, and the netlink messages of a change.
//!
//! Needs what `ipvs_kernel` needs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netfilter::ipset::{Entry, Set, SetName, SetType};
use netfilter::ipvs::{Connections, TCP};
use netfilter::kernel::{
    AddressOperation, Links, Operation, SetOperation, SystemIpSets, SystemIpvs, SystemLinks, traffic,
};

use crate::common::namespace::{in_namespace, run};
use crate::contract::{ipset, ipvs, link};

/// Asks until the counts are so.
fn await_connections(table: &mut SystemIpvs, key: netfilter::ipvs::ServerKey, wanted: [(u32, u32); 2]) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let counted: Vec<Connections> = ipvs::real_servers(table, key).into_iter().map(|(_, count)| count).collect();
        if counted.iter().map(|count| (count.active, count.inactive)).eq(wanted) {
            return;
        }
        assert!(Instant::now() < end, "{counted:?} and not {wanted:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn connections_are_spread_and_counted_and_outlive_weight_0() {
    for (service, reals) in [
        ("10.96.0.1:80", ["10.0.0.5:8080", "10.0.0.6:8080"]),
        ("[fd00:96::1]:80", ["[fd00::5]:8080", "[fd00::6]:8080"]),
    ] {
        in_namespace(move || {
            let (mut table, mut links) = (SystemIpvs::open().expect("IPVS"), SystemLinks::open().expect("rtnetlink"));
            let key = ipvs::key(TCP, service);
            links.create_dummy(link::DEVICE).expect("made");
            let own = |text: &str| ipnet::IpNet::from(ipvs::address(text).ip());
            assert_eq!(link::apply(&mut links, &[AddressOperation::Add(own(service))]), []);
            let listeners = reals.map(|real| {
                run(&format!("ip address add {} dev lo nodad", own(real)));
                TcpListener::bind(real).expect("a listener")
            });
            let server = ipvs::virtual_server(key, "rr");
            let add = [Operation::AddVirtual(server)]
                .into_iter()
                .chain(reals.map(|real| Operation::AddReal(key, ipvs::real(real, 1))));
            assert_eq!(ipvs::apply(&mut table, &add.collect::<Vec<_>>()), []);
            let mut clients = [(); 2].map(|()| TcpStream::connect(service).expect("a connection"));
            let mut served = listeners.each_ref().map(|listener| listener.accept().expect("one for each").0);
            await_connections(&mut table, key, [(1, 0), (1, 0)]);
            assert_eq!(ipvs::apply(&mut table, &[Operation::UpdateReal(key, ipvs::real(reals[0], 0))]), []);
            for client in &mut clients {
                client.write_all(b"x").expect("sent");
            }
            for stream in &mut served {
                stream.read_exact(&mut [0]).expect("it still arrives");
            }
            let another = TcpStream::connect(service).expect("a connection");
            let (third, _) = listeners[1].accept().expect("where there is weight");
            await_connections(&mut table, key, [(1, 0), (2, 0)]);
            drop((clients, served, another, third));
            await_connections(&mut table, key, [(0, 1), (0, 2)]);
        });
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_change_is_one_message_and_many_changes_are_few() {
    in_namespace(|| {
        let mut table = SystemIpvs::open().expect("IPVS");
        let mut cost = |operations: &[Operation]| {
            let before = traffic();
            assert_eq!(ipvs::apply(&mut table, operations), []);
            let cost = traffic().since(before);
            (cost.requests, cost.datagrams, cost.answers)
        };
        let key = ipvs::key(TCP, "10.0.0.1:80");
        assert_eq!(cost(&[Operation::AddVirtual(ipvs::virtual_server(key, "rr"))]), (1, 1, 1));
        let reals: Vec<Operation> =
            (1..=128).map(|port| Operation::AddReal(key, ipvs::real(&format!("10.1.0.1:{port}"), 1))).collect();
        assert_eq!(cost(&reals), (128, 2, 2), "64 in one, of which the last is acknowledged");
        assert_eq!(cost(&[]), (0, 0, 0));
        let mut sets = SystemIpSets::open().expect("ipset");
        let set = Set::new(SetName::new("A"), SetType::HashIpPort, netfilter::IpFamily::V4);
        assert_eq!(ipset::apply(&mut sets, &[SetOperation::Create(set)]), []);
        let before = traffic();
        let add = |port| SetOperation::Add(set.name, Entry::IpPort(ipset::place("10.0.0.1", 6, port)));
        assert_eq!(ipset::apply(&mut sets, &(1..=800).map(add).collect::<Vec<_>>()), []);
        let cost = traffic().since(before);
        assert_eq!((cost.requests, cost.datagrams, cost.answers), (2, 2, 2));
    });
}
