//! Cost of 10,000 virtual servers with ten real servers each in the kernel: time, netlink messages, memory.
//!
//! Run it with `make bench-ipvs` as root in a kernel that has IPVS. `SERVICES=1000` selects another size. Prints a line
//! for writing
//! everything, reading everything, and single changes, without IPVS mode.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::ipset::{Entry, IpPortProto, Set, SetName, SetType};
use netfilter::ipvs::{Flags, Forward, RealServer, Scheduler, ServerKey, TCP, VirtualServer};
use netfilter::kernel::{
    AddressOperation, DeviceName, IpSets, IpvsTable, Links, Operation, SetOperation, SystemIpSets, SystemIpvs,
    SystemLinks, cpu_time, traffic,
};
use nix::sched::{CloneFlags, unshare};

const ENDPOINTS: u32 = 10;
const DEVICE: DeviceName = DeviceName::new("kube-ipvs0");
const SET: SetName = SetName::new("KUBE-CLUSTER-IP");

fn service_ip(service: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + service).into()
}

fn server(service: u32) -> VirtualServer {
    let key = ServerKey { address: SocketAddr::new(service_ip(service), 80), protocol: TCP };
    VirtualServer { key, scheduler: Scheduler::new("rr"), flags: Flags::default(), persistence: None }
}

fn real(number: u32) -> RealServer {
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + number);
    RealServer { address: (ip, 8080).into(), forward: Forward::Masquerade, weight: 1 }
}

fn entry(service: u32) -> Entry {
    Entry::IpPort(IpPortProto { ip: service_ip(service), protocol: TCP, port: 80 })
}

/// A line of `/proc/self/status`, in KiB.
fn memory_kib(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let value = status.lines().find_map(|l| l.strip_prefix(line)).expect("the line");
    value.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
}

fn measure<T>(what: &str, run: impl FnOnce() -> T) -> T {
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").expect("a peak of its own");
    let (before, cpu, start) = (traffic(), cpu_time(), Instant::now());
    let value = run();
    let (took, cpu, cost) = (start.elapsed(), cpu_time() - cpu, traffic().since(before));
    println!(
        "| {what} | {:.1} ms | {:.1} ms | {} in {} | {:.1} KiB | {} | {:.1} KiB | {:.1} MiB |",
        took.as_secs_f64() * 1000.0,
        cpu.as_secs_f64() * 1000.0,
        cost.requests,
        cost.datagrams,
        kib(cost.bytes),
        cost.answers,
        kib(cost.answer_bytes),
        f64::from(u32::try_from(memory_kib("VmHWM")).unwrap_or(u32::MAX)) / 1024.0,
    );
    value
}

fn kib(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / 1024.0
}

fn apply(table: &mut SystemIpvs, operations: &[Operation]) {
    table.apply(operations, &mut |_, error| panic!("{error}")).expect("applied");
}

fn write_all(services: u32, table: &mut SystemIpvs, sets: &mut SystemIpSets, links: &mut SystemLinks) {
    measure("write: servers", || {
        let mut operations = Vec::new();
        for service in 0..services {
            let server = server(service);
            operations.push(Operation::AddVirtual(server));
            let reals = (0..ENDPOINTS).map(|index| real(service * ENDPOINTS + index));
            operations.extend(reals.map(|real| Operation::AddReal(server.key, real)));
            if operations.len() > 1000 {
                apply(table, &operations);
                operations.clear();
            }
        }
        apply(table, &operations);
    });
    measure("write: a set", || {
        let set = Set { max_entries: services.max(65536), ..Set::new(SET, SetType::HashIpPort, IpFamily::V4) };
        let adds = (0..services).map(|service| SetOperation::Add(SET, entry(service)));
        let operations: Vec<SetOperation> = std::iter::once(SetOperation::Create(set)).chain(adds).collect();
        sets.apply(&operations, &mut |_, error| panic!("{error}")).expect("applied");
    });
    measure("write: addresses", || {
        links.create_dummy(DEVICE).expect("made");
        let adds = (0..services).map(|service| AddressOperation::Add(IpNet::from(service_ip(service))));
        links.apply(DEVICE, &adds.collect::<Vec<_>>(), &mut |_, error| panic!("{error}")).expect("applied");
    });
}

fn read_all(services: u32, table: &mut SystemIpvs, sets: &mut SystemIpSets, links: &mut SystemLinks) {
    let keys = measure("read: virtual servers", || {
        let mut keys = Vec::new();
        table.virtual_servers(IpFamily::V4, &mut |server| keys.push(server.key)).expect("a list");
        keys
    });
    let reals = measure("read: real servers", || {
        let mut reals = 0;
        for key in &keys {
            table.real_servers(*key, &mut |_, _| reals += 1).expect("a list");
        }
        reals
    });
    let mut entries = 0;
    measure("read: a set", || sets.entries(SET, &mut |_| entries += 1).expect("entries"));
    let mut addresses = 0;
    measure("read: addresses", || {
        links.addresses(DEVICE, IpFamily::V4, &mut |_| addresses += 1).expect("addresses");
    });
    let all = u32::try_from(keys.len()).expect("so many");
    assert_eq!((all, reals, entries, addresses), (services, services * ENDPOINTS, services, services));
}

fn change_one(table: &mut SystemIpvs, sets: &mut SystemIpSets, links: &mut SystemLinks) {
    let key = server(7).key;
    let (old, new) = (real(7 * ENDPOINTS), real(0x3f_0000));
    measure("change: an endpoint", || {
        apply(table, &[Operation::AddReal(key, new), Operation::UpdateReal(key, RealServer { weight: 0, ..old })]);
    });
    measure("change: its end", || apply(table, &[Operation::DeleteReal(key, old.address)]));
    measure("look at one service", || table.real_servers(key, &mut |_, _| ()).expect("a list"));
    measure("change: a service goes", || {
        apply(table, &[Operation::DeleteVirtual(key)]);
        let operations = [SetOperation::Delete(SET, entry(7))];
        sets.apply(&operations, &mut |_, error| panic!("{error}")).expect("applied");
        let operations = [AddressOperation::Delete(IpNet::from(service_ip(7)))];
        links.apply(DEVICE, &operations, &mut |_, error| panic!("{error}")).expect("applied");
    });
}

fn main() {
    // `cargo test --benches` passes no `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("ipvs: run it with make bench-ipvs");
        return;
    }
    let services = std::env::var("SERVICES").map_or(10_000, |text| text.parse().expect("SERVICES is a number"));
    let measured = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: run as root");
        let mut table = SystemIpvs::load().expect("IPVS");
        let (mut sets, mut links) = (SystemIpSets::open().expect("ipset"), SystemLinks::open().expect("rtnetlink"));
        // A namespace that has never had an address accepts no real servers: all addresses are broadcasts to it.
        links.set_up(DeviceName::new("lo"), true).expect("up");
        println!("{services} services of {ENDPOINTS} endpoints; an operation has {} bytes", size_of::<Operation>());
        println!("| what | time | CPU | requests | sent | answers | received | peak memory |");
        println!("|---|---|---|---|---|---|---|---|");
        write_all(services, &mut table, &mut sets, &mut links);
        read_all(services, &mut table, &mut sets, &mut links);
        change_one(&mut table, &mut sets, &mut links);
    });
    measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
