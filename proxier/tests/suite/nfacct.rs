//! nfacct counters of the real kernel, in a network namespace. Needs root.

use std::net::UdpSocket;

use netfilter::kernel::{Host, SystemHost, packet_counters};

use crate::common::namespace::{in_namespace, run};

fn packets_are_counted_by_name() {
    assert!(packet_counters().expect("the kernel has nfacct").is_empty());
    for name in ["sent", "idle", "sent"] {
        SystemHost.ensure_counter(name).expect("a counter");
    }
    run("iptables-nft -A OUTPUT -p udp --dport 9999 -m nfacct --nfacct-name sent");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for _ in 0..3 {
        // ICMP reports the closed port with the next packet.
        let _ = socket.send_to(b"x", "127.0.0.1:9999");
    }
    let counters: Vec<(String, u64)> = packet_counters().expect("the kernel has nfacct").into_iter().collect();
    assert_eq!(counters, [("idle".to_owned(), 0), ("sent".to_owned(), 3)]);
}

#[test]
fn kernel_counts_packets_of_nfacct_rules() {
    in_namespace(packets_are_counted_by_name);
}
