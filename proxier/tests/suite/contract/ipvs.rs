//! The contract of the IPVS table, for the kernel and the fake.

use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::ipvs::{
    Connections, Flags, Forward, Persistence, RealServer, SCTP, Scheduler, ServerKey, TCP, Timeouts, UDP, VirtualServer,
};
use netfilter::kernel::{IpvsError, IpvsTable, Operation, ipvs::check_scheduler};

use Operation::{AddReal, AddVirtual, DeleteReal, DeleteVirtual, UpdateReal, UpdateVirtual};

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

pub fn key(protocol: u8, text: &str) -> ServerKey {
    ServerKey { address: address(text), protocol }
}

pub fn virtual_server(key: ServerKey, scheduler: &str) -> VirtualServer {
    let scheduler = Scheduler::parse(scheduler).expect("a name");
    VirtualServer { key, scheduler, flags: Flags::default(), persistence: None }
}

pub fn real(text: &str, weight: u32) -> RealServer {
    RealServer { address: address(text), forward: Forward::Masquerade, weight }
}

/// The virtual servers of both families, in the order of their keys.
pub fn virtual_servers(table: &mut dyn IpvsTable) -> Vec<VirtualServer> {
    let mut servers = Vec::new();
    for family in IpFamily::ALL {
        table.virtual_servers(family, &mut |server| servers.push(server)).expect("a list");
    }
    servers.sort_by_key(|server| server.key);
    servers
}

/// The real servers of a virtual one, in the order of their addresses.
pub fn real_servers(table: &mut dyn IpvsTable, of: ServerKey) -> Vec<(RealServer, Connections)> {
    let mut servers = Vec::new();
    table.real_servers(of, &mut |real, connections| servers.push((real, connections))).expect("a list");
    servers.sort_by_key(|(real, _)| real.address);
    servers
}

/// What is refused, in words, by index.
pub fn apply(table: &mut dyn IpvsTable, operations: &[Operation]) -> Vec<(usize, String)> {
    let mut refused = Vec::new();
    table.apply(operations, &mut |index, error| refused.push((index, error.to_string()))).expect("applied");
    refused
}

/// All kinds of servers, as they would be compared with what is wanted.
pub fn servers_read_back(table: &mut dyn IpvsTable) {
    let kept = |seconds, prefix| Some(Persistence { seconds, prefix });
    let both = Flags::FALLBACK.with(Flags::PORT);
    let mut servers = vec![
        VirtualServer { persistence: kept(10800, 32), ..virtual_server(key(TCP, "10.0.0.1:443"), "rr") },
        VirtualServer { persistence: kept(1, 24), ..virtual_server(key(UDP, "10.0.0.1:443"), "lc") },
        VirtualServer { persistence: kept(86400, 128), ..virtual_server(key(TCP, "[fd00::1]:443"), "wlc") },
        VirtualServer { persistence: kept(60, 64), ..virtual_server(key(SCTP, "[fd00::1]:443"), "sed") },
        VirtualServer { flags: both, ..virtual_server(key(UDP, "10.0.0.1:53"), "mh") },
        VirtualServer { flags: Flags::PORT, ..virtual_server(key(TCP, "[fd00::1]:53"), "sh") },
        VirtualServer { flags: Flags::ONE_PACKET, ..virtual_server(key(UDP, "10.0.0.9:53"), "nq") },
    ];
    for (port, scheduler) in
        ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"].iter().enumerate()
    {
        servers.push(virtual_server(key(SCTP, &format!("10.0.0.2:{}", port + 1)), scheduler));
    }
    let operations: Vec<Operation> = servers.iter().copied().map(AddVirtual).collect();
    assert_eq!(apply(table, &operations), []);
    servers.sort_by_key(|server| server.key);
    assert_eq!(virtual_servers(table), servers);
    for family in IpFamily::ALL {
        let each = &mut |server: VirtualServer| assert_eq!(IpFamily::of(&server.key.address.ip()), family);
        table.virtual_servers(family, each).expect("a list");
    }
}

/// Real servers come, change and go.
pub fn real_servers_read_back(table: &mut dyn IpvsTable) {
    for (key, reals, tunnel) in [
        (key(TCP, "10.0.0.1:80"), ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.2:8081"], "[fd00::9]:80"),
        (key(UDP, "[fd00::1]:80"), ["[fd01::1]:8080", "[fd01::2]:8080", "[fd01::2]:8081"], "10.0.0.9:80"),
    ] {
        assert_eq!(real_servers(table, key), [], "there is no such server");
        assert_eq!(apply(table, &[AddVirtual(virtual_server(key, "rr"))]), []);
        assert_eq!(real_servers(table, key), []);
        let [a, b, c] = reals;
        let others = [
            RealServer { forward: Forward::Route, ..real(b, 7) },
            // A tunnel may have an endpoint of the other family.
            RealServer { forward: Forward::Tunnel, ..real(tunnel, 1) },
        ];
        let wanted = [real(a, 1), others[0], real(c, 0), others[1]];
        assert_eq!(apply(table, &wanted.map(|real| AddReal(key, real))), []);
        let found = |table: &mut dyn IpvsTable| -> Vec<RealServer> {
            let servers = real_servers(table, key).into_iter();
            servers.inspect(|(_, connections)| assert!(connections.none())).map(|(real, _)| real).collect()
        };
        let mut wanted = wanted.to_vec();
        wanted.sort_by_key(|real| real.address);
        assert_eq!(found(table), wanted);
        assert_eq!(apply(table, &[UpdateReal(key, real(a, 0)), DeleteReal(key, address(c))]), []);
        wanted.retain(|real| real.address != address(c));
        wanted.iter_mut().filter(|real| real.address == address(a)).for_each(|real| real.weight = 0);
        assert_eq!(found(table), wanted);
        let changed = VirtualServer {
            persistence: Some(Persistence { seconds: 60, prefix: if key.address.is_ipv4() { 32 } else { 128 } }),
            ..virtual_server(key, "wrr")
        };
        assert_eq!(apply(table, &[UpdateVirtual(changed)]), []);
        assert_eq!((virtual_servers(table).contains(&changed), found(table)), (true, wanted), "it keeps its real ones");
        assert_eq!(apply(table, &[UpdateVirtual(virtual_server(key, "sh"))]), []);
        assert!(virtual_servers(table).contains(&virtual_server(key, "sh")), "persistence is off");
        assert_eq!(apply(table, &[DeleteVirtual(key)]), []);
        assert_eq!(real_servers(table, key), []);
    }
    assert_eq!(virtual_servers(table), []);
}

/// What cannot be done is refused by name, and does not keep the rest from being done.
pub fn refusals_name_the_object(table: &mut dyn IpvsTable) {
    let (here, gone) = (key(TCP, "10.0.0.1:80"), key(UDP, "10.0.0.1:80"));
    let server = virtual_server(here, "rr");
    let nowhere = "10.1.0.9:8080";
    let operations = [
        AddVirtual(server),
        AddVirtual(server),
        UpdateVirtual(virtual_server(gone, "rr")),
        DeleteVirtual(gone),
        AddVirtual(virtual_server(key(TCP, "10.0.0.2:80"), "nosuch")),
        UpdateVirtual(virtual_server(here, "nosuch")),
        AddReal(gone, real("10.1.0.1:8080", 1)),
        AddReal(here, real("10.1.0.1:8080", 1)),
        AddReal(here, real("10.1.0.1:8080", 2)),
        UpdateReal(here, real(nowhere, 1)),
        DeleteReal(here, address(nowhere)),
        DeleteReal(gone, address(nowhere)),
        AddReal(here, real("[fd00::1]:8080", 1)),
        AddReal(here, real("10.1.0.3:8080", u32::MAX)),
        AddVirtual(virtual_server(key(TCP, "[fd00::1]:80"), "wrr")),
        AddReal(here, real("10.1.0.2:8080", 1)),
    ];
    let refused = apply(table, &operations);
    let scheduler = "this kernel has no IPVS scheduler nosuch: load module ip_vs_nosuch (modprobe ip_vs_nosuch), or set \
                     another scheduler";
    let expected = [
        (1, "virtual server -t 10.0.0.1:80: exists already"),
        (2, "virtual server -u 10.0.0.1:80: does not exist"),
        (3, "virtual server -u 10.0.0.1:80: does not exist"),
        (4, scheduler),
        (5, scheduler),
        (6, "virtual server -u 10.0.0.1:80: does not exist"),
        (8, "real server 10.1.0.1:8080 of -t 10.0.0.1:80: exists already"),
        (9, "real server 10.1.0.9:8080 of -t 10.0.0.1:80: does not exist"),
        (10, "real server 10.1.0.9:8080 of -t 10.0.0.1:80: does not exist"),
        (11, "virtual server -u 10.0.0.1:80: does not exist"),
        (12, "real server [fd00::1]:8080 of -t 10.0.0.1:80: Invalid argument (os error 22)"),
        (13, "real server 10.1.0.3:8080 of -t 10.0.0.1:80: Numerical result out of range (os error 34)"),
    ];
    assert_eq!(refused, expected.map(|(index, text)| (index, text.to_owned())));
    let reals: Vec<RealServer> = real_servers(table, here).into_iter().map(|(real, _)| real).collect();
    assert_eq!(reals, [real("10.1.0.1:8080", 1), real("10.1.0.2:8080", 1)]);
    assert_eq!(virtual_servers(table), [server, virtual_server(key(TCP, "[fd00::1]:80"), "wrr")]);
}

/// More operations than go into one message, failures among them.
pub fn many_operations_at_once(table: &mut dyn IpvsTable) {
    let keys: Vec<ServerKey> = (1..=300).map(|port| key(TCP, &format!("10.0.0.1:{port}"))).collect();
    let mut operations: Vec<Operation> = keys.iter().map(|key| AddVirtual(virtual_server(*key, "rr"))).collect();
    operations.extend(keys.iter().map(|key| AddReal(*key, real("10.1.0.1:8080", 1))));
    assert_eq!(apply(table, &operations), []);
    let refused: Vec<usize> = apply(table, &operations).into_iter().map(|(index, _)| index).collect();
    assert!(refused.into_iter().eq(0..600), "everything is there");
    assert_eq!(virtual_servers(table).len(), 300);
    assert!(keys.iter().all(|key| real_servers(table, *key).len() == 1));
}

/// Timeouts are set one by one.
pub fn timeouts(table: &mut dyn IpvsTable) {
    assert_eq!(table.timeouts().expect("timeouts"), Timeouts { tcp: 900, tcp_fin: 120, udp: 300 });
    table.set_timeouts(Timeouts { tcp: 100, tcp_fin: 0, udp: 7 }).expect("set");
    assert_eq!(table.timeouts().expect("timeouts"), Timeouts { tcp: 100, tcp_fin: 120, udp: 7 });
    table.set_timeouts(Timeouts::default()).expect("nothing to set");
    table.set_timeouts(Timeouts { tcp: 0, tcp_fin: 8, udp: 0 }).expect("set");
    assert_eq!(table.timeouts().expect("timeouts"), Timeouts { tcp: 100, tcp_fin: 8, udp: 7 });
}

/// Whether a scheduler is there is found out without leaving a trace.
pub fn schedulers_are_checked(table: &mut dyn IpvsTable) {
    for name in ["rr", "mh", "rr"] {
        check_scheduler(table, Scheduler::new(name)).expect("the kernel has it");
    }
    let error = check_scheduler(table, Scheduler::new("nosuch")).expect_err("no such scheduler");
    assert!(matches!(error, IpvsError::NoScheduler(name) if name.as_str() == "nosuch"), "{error}");
    assert_eq!(virtual_servers(table), []);
}
