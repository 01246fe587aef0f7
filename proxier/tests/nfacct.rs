//! Packet counters of the real kernel, in a network namespace.
//!
//! In: root. Out: counters that rules refer to are made and read back. It must not know what the rules are for.

use std::net::UdpSocket;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proxier::kernel::{Host, SystemHost, packet_counters};

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn packets_are_counted_by_name() {
    unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace: run the tests as root");
    run("ip link set lo up");
    assert!(packet_counters().expect("the kernel has nfacct").is_empty());
    for name in ["sent", "idle", "sent"] {
        SystemHost.ensure_counter(name).expect("a counter");
    }
    run("iptables-nft -A OUTPUT -p udp --dport 9999 -m nfacct --nfacct-name sent");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for _ in 0..3 {
        // That nobody listens is told with the next packet.
        let _ = socket.send_to(b"x", "127.0.0.1:9999");
    }
    let counters: Vec<(String, u64)> = packet_counters().expect("the kernel has nfacct").into_iter().collect();
    assert_eq!(counters, [("idle".to_owned(), 0), ("sent".to_owned(), 3)]);
}

#[test]
fn the_kernel_counts_what_rules_tell_it_to() {
    let thread = std::thread::spawn(packets_are_counted_by_name);
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
